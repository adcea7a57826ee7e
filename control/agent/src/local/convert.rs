//! From definitions, as files and requests give them, to what the agent works with.

use wharf_registry::model::Str;

use super::{
    CheckKind, CheckSpec, CheckTls, HttpCheck, Registration, SidecarRequest, Source, Thresholds,
};
use crate::definition::{self, CheckDefinition, Origin, ServiceDefinition};

impl From<Origin> for Source {
    fn from(origin: Origin) -> Source {
        match origin {
            Origin::File => Source::Config,
            Origin::Api => Source::Api,
        }
    }
}

impl Source {
    /// What may be defined depends on this. Streams are opened by requests.
    pub(crate) fn origin(self) -> Origin {
        match self {
            Source::Config => Origin::File,
            Source::Api | Source::Lease | Source::Platform => Origin::Api,
        }
    }
}

impl Registration {
    /// A service as it was defined, which must be valid.
    pub fn from_definition(definition: ServiceDefinition, origin: Origin) -> Registration {
        let sidecar = definition.sidecar_port().map(|port| SidecarRequest {
            id: format!("{}-sidecar-proxy", definition.id()).into(),
            port,
            build: {
                let definition = definition.clone();
                Box::new(move |port| match definition.sidecar(port) {
                    Some(sidecar) => Registration::from_definition(sidecar, origin),
                    // It had one when the port was asked for.
                    None => Registration::default(),
                })
            },
        });
        let checks = definition.service_checks().into_iter().map(|check| {
            let mut spec = CheckSpec::from_definition(check.definition, origin);
            spec.id = check.id;
            spec.name = check.name;
            spec
        });
        Registration {
            service: definition.to_node_service(origin),
            checks: checks.collect(),
            sidecar,
            token: definition.token.token(),
            source: origin.into(),
            replace_existing_checks: false,
        }
    }
}

impl CheckSpec {
    /// A check as it was defined, which must be valid.
    pub fn from_definition(definition: CheckDefinition, origin: Origin) -> CheckSpec {
        let id = match definition.id() {
            id if id.is_empty() => definition.name.clone(),
            id => id.clone(),
        };
        let name = if definition.name.is_empty() {
            id.clone()
        } else {
            definition.name.clone()
        };
        CheckSpec {
            id,
            name,
            notes: definition.notes.clone(),
            service_id: definition.service_id.clone(),
            interval: match definition.kind().has_interval() {
                true => definition.effective_interval(),
                false => Default::default(),
            },
            timeout: match definition.kind().has_interval() {
                true => definition.effective_timeout(),
                false => Default::default(),
            },
            thresholds: Thresholds {
                success_before_passing: definition.success_before_passing,
                failures_before_warning: definition.failures_before_warning,
                failures_before_critical: definition.failures_before_critical,
            },
            deregister_after: definition.effective_deregister_after().unwrap_or_default(),
            status: (!definition.status.is_empty()).then(|| definition.initial_status()),
            output_max_size: usize::try_from(definition.output_max_size).unwrap_or_default(),
            token: definition.token.token(),
            source: origin.into(),
            eager: false,
            kind: kind(definition),
        }
    }
}

fn kind(definition: CheckDefinition) -> CheckKind {
    let tls = CheckTls {
        server_name: definition.tls_server_name.as_str().into(),
        skip_verify: definition.tls_skip_verify,
    };
    match definition.kind() {
        definition::CheckKind::Http => CheckKind::Http(Box::new(HttpCheck {
            url: definition.http.into(),
            method: definition.method.into(),
            headers: definition
                .header
                .into_iter()
                .map(|(name, values)| (name.into(), values.into_iter().map(Str::from).collect()))
                .collect(),
            body: definition.body.into(),
            disable_redirects: definition.disable_redirects,
            tls,
        })),
        definition::CheckKind::Tcp => CheckKind::Tcp {
            address: definition.tcp.into(),
            tls: definition.tcp_use_tls.then_some(tls),
        },
        definition::CheckKind::Udp => CheckKind::Udp {
            address: definition.udp.into(),
        },
        definition::CheckKind::Grpc => {
            let (address, service) = definition
                .grpc
                .split_once('/')
                .unwrap_or((&definition.grpc, ""));
            CheckKind::Grpc {
                address: address.into(),
                service: service.into(),
                tls: definition.grpc_use_tls.then_some(tls),
            }
        }
        definition::CheckKind::H2Ping => CheckKind::H2Ping {
            address: definition.h2ping.into(),
            tls: definition.h2ping_use_tls.unwrap_or(true).then_some(tls),
        },
        definition::CheckKind::Alias => CheckKind::Alias {
            node: definition.alias_node,
            service: definition.alias_service,
        },
        definition::CheckKind::Script => CheckKind::Script {
            args: definition.args.into_iter().map(Str::from).collect(),
        },
        // Docker and OS service checks are refused when they are validated.
        definition::CheckKind::Ttl
        | definition::CheckKind::Docker
        | definition::CheckKind::OsService => CheckKind::Ttl(definition.ttl.to_std()),
    }
}

#[cfg(test)]
mod tests {
    use wharf_config::{Mode, decode_json_bytes};
    use wharf_registry::model::{CheckStatus, ServiceKind};

    use super::*;

    fn service(json: &str) -> Registration {
        let definition = decode_json_bytes(json.as_bytes(), Mode::Lenient).unwrap();
        Registration::from_definition(definition, Origin::Api)
    }

    #[test]
    fn checks_get_the_ids_and_defaults_of_consul() {
        let registration = service(
            r#"{"Name":"web","Port":80,"Checks":[
                {"HTTP":"http://x","Interval":"100ms","DeregisterCriticalServiceAfter":"1s"},
                {"TTL":"10s","Status":"passing"}]}"#,
        );
        assert_eq!(&*registration.service.id, "web");
        let [http, ttl] = &registration.checks[..] else {
            panic!("two checks")
        };
        assert_eq!(
            (&*http.id, &*http.name),
            ("service:web:1", "Service 'web' check")
        );
        assert_eq!(http.interval.as_secs(), 1, "raised");
        assert_eq!(http.timeout.as_secs(), 10);
        assert_eq!(http.deregister_after.as_secs(), 60, "raised");
        assert_eq!(ttl.status, Some(CheckStatus::Passing));
        assert!(ttl.interval.is_zero());
    }

    #[test]
    fn a_sidecar_is_built_for_the_port_it_gets() {
        let registration = service(r#"{"Name":"web","Port":80,"Connect":{"SidecarService":{}}}"#);
        let sidecar = registration.sidecar.expect("a sidecar");
        assert_eq!((&*sidecar.id, sidecar.port), ("web-sidecar-proxy", 0));
        let built = (sidecar.build)(21000);
        assert_eq!(built.service.kind, ServiceKind::ConnectProxy);
        assert_eq!(built.service.port, 21000);
        assert_eq!(built.checks.len(), 2);
    }

    #[test]
    fn a_grpc_check_names_a_service_after_a_slash() {
        let registration =
            service(r#"{"Name":"g","Check":{"GRPC":"127.0.0.1:1/a.b","Interval":"5s"}}"#);
        let CheckKind::Grpc {
            address,
            service,
            tls,
        } = &registration.checks[0].kind
        else {
            panic!("a gRPC check")
        };
        assert_eq!((&**address, &**service, tls), ("127.0.0.1:1", "a.b", &None));
    }
}
