//! Registrations as gRPC clients send them, checked field by field.

use std::{collections::HashSet, net::IpAddr, time::Duration};

use wharf_proto::v1::{Check, CheckStatus, Instance, check::Kind};
use wharf_registry::model::{self, NodeService, Str, StrMap, Weights};

use super::status::Violations;
use crate::{
    definition::validate_meta,
    local::{CheckKind, CheckSpec, CheckTls, HttpCheck, Registration, Source, Thresholds},
};

/// Bounds of one registration; texts in bytes.
const MAX_TEXT: usize = 1024;
const MAX_TAGS: usize = 256;
const MAX_CHECKS: usize = 64;
const MAX_BODY: usize = 64 * 1024;

/// A check that keeps an instance critical must not remove it within a moment of bad luck.
const MIN_DEREGISTER_AFTER: Duration = Duration::from_secs(60);

/// The largest weight that an SRV record can carry.
const MAX_WEIGHT: u32 = u16::MAX as u32;

/// Converts an instance with its checks. What is wrong is added to `violations`, each with
/// `path` before its field; the result counts only when nothing was.
pub(super) fn parse(
    path: &str,
    instance: Option<Instance>,
    checks: Vec<Check>,
    source: Source,
    violations: &mut Violations,
) -> Registration {
    let Some(instance) = instance else {
        violations.add(format!("{path}instance"), "must be set");
        return Registration::default();
    };
    let service = service(path, instance, violations);
    let checks = self::checks(path, &service, checks, violations);
    Registration {
        service,
        checks,
        source,
        // The same id again replaces the instance, with all its checks.
        replace_existing_checks: true,
        ..Registration::default()
    }
}

fn service(path: &str, instance: Instance, violations: &mut Violations) -> NodeService {
    let mut wrong = |field: &str, reason: &str| {
        violations.add(format!("{path}instance.{field}"), reason);
    };
    let too_long = format!("at most {MAX_TEXT} bytes");
    if instance.service.is_empty() {
        wrong("service", "must not be empty");
    }
    for (field, text) in [
        ("service", &instance.service),
        ("id", &instance.id),
        ("address", &instance.address),
    ] {
        if text.len() > MAX_TEXT {
            wrong(field, &too_long);
        }
    }
    if instance
        .address
        .parse()
        .is_ok_and(|ip: IpAddr| ip.is_unspecified())
    {
        wrong(
            "address",
            "means every address of this machine: others cannot connect to it",
        );
    }
    let port = u16::try_from(instance.port).unwrap_or_else(|_| {
        wrong("port", "at most 65535");
        0
    });
    if instance.tags.len() > MAX_TAGS || instance.tags.iter().any(|tag| tag.len() > MAX_TEXT) {
        wrong(
            "tags",
            &format!("at most {MAX_TAGS}, each of at most {MAX_TEXT} bytes"),
        );
    }
    let meta: StrMap = instance
        .meta
        .iter()
        .map(|(key, value)| (Str::from(&**key), Str::from(&**value)))
        .collect();
    if let Err(error) = validate_meta(&meta) {
        wrong("meta", &error.to_string());
    }
    let weights = match instance.weights {
        None => Weights::default(),
        Some(weights) => {
            if weights.passing == 0 || weights.passing > MAX_WEIGHT || weights.warning > MAX_WEIGHT
            {
                wrong(
                    "weights",
                    "passing from 1 to 65535, warning from 0 to 65535",
                );
            }
            Weights {
                passing: weights.passing,
                warning: weights.warning,
            }
        }
    };
    let id = if instance.id.is_empty() {
        &instance.service
    } else {
        &instance.id
    };
    NodeService {
        id: id.as_str().into(),
        name: instance.service.as_str().into(),
        address: instance.address.into(),
        port,
        tags: instance.tags.into_iter().map(Str::from).collect(),
        meta,
        weights,
        ..NodeService::default()
    }
}

fn checks(
    path: &str,
    service: &NodeService,
    checks: Vec<Check>,
    violations: &mut Violations,
) -> Vec<CheckSpec> {
    if checks.len() > MAX_CHECKS {
        violations.add(format!("{path}checks"), format!("at most {MAX_CHECKS}"));
        return Vec::new();
    }
    let several = checks.len() > 1;
    let mut ids = HashSet::new();
    let mut specs = Vec::with_capacity(checks.len());
    for (i, check) in checks.into_iter().enumerate() {
        let path = format!("{path}checks[{i}]");
        let mut spec = self::check(&path, check, violations);
        if spec.id.is_empty() {
            // The ids that checks without one get over HTTP as well.
            spec.id = match several {
                true => format!("service:{}:{}", service.id, i + 1).into(),
                false => format!("service:{}", service.id).into(),
            };
        }
        if spec.name.is_empty() {
            spec.name = format!("Service '{}' check", service.name).into();
        }
        if spec.id.starts_with("lease:") {
            violations.add(
                format!("{path}.id"),
                "lease: is reserved for the checks of leases",
            );
        }
        if !ids.insert(spec.id.clone()) {
            violations.add(format!("{path}.id"), format!("{:?} is used twice", spec.id));
        }
        spec.service_id = service.id.clone();
        specs.push(spec);
    }
    specs
}

fn check(path: &str, check: Check, violations: &mut Violations) -> CheckSpec {
    let field = |name: &str| format!("{path}.{name}");
    let status = match CheckStatus::try_from(check.initial_status) {
        Ok(status) => self::status(status),
        Err(_) => {
            violations.add(field("initial_status"), "is no status");
            None
        }
    };
    let interval = duration(&field("interval"), check.interval, violations);
    let timeout = duration(&field("timeout"), check.timeout, violations);
    let deregister_after = duration(
        &field("deregister_critical_service_after"),
        check.deregister_critical_service_after,
        violations,
    );
    let has_interval = !matches!(check.kind, Some(Kind::Ttl(_)) | None);
    if has_interval && interval.is_zero() {
        violations.add(field("interval"), "must be above zero");
    }
    if check.failures_before_warning > check.failures_before_critical {
        violations.add(
            field("failures_before_warning"),
            "at most failures_before_critical",
        );
    }
    for (name, text) in [
        ("id", &check.id),
        ("name", &check.name),
        ("notes", &check.notes),
    ] {
        if text.len() > MAX_TEXT {
            violations.add(field(name), format!("at most {MAX_TEXT} bytes"));
        }
    }
    CheckSpec {
        kind: kind(path, check.kind, violations),
        id: check.id.into(),
        name: check.name.into(),
        notes: check.notes.into(),
        interval,
        timeout,
        thresholds: Thresholds {
            success_before_passing: check.success_before_passing,
            failures_before_warning: match check.failures_before_warning {
                0 => None,
                failures => Some(failures),
            },
            failures_before_critical: check.failures_before_critical,
        },
        deregister_after: match deregister_after {
            Duration::ZERO => Duration::ZERO,
            after => after.max(MIN_DEREGISTER_AFTER),
        },
        status,
        ..CheckSpec::default()
    }
}

fn kind(path: &str, kind: Option<Kind>, violations: &mut Violations) -> CheckKind {
    let field = |name: &str| format!("{path}.{name}");
    match kind {
        None => {
            violations.add(field("kind"), "one of http, tcp, grpc and ttl must be set");
            CheckKind::Lease
        }
        Some(Kind::Ttl(ttl)) => {
            let ttl = duration(&field("ttl"), Some(ttl), violations);
            if ttl.is_zero() {
                violations.add(field("ttl"), "must be above zero");
            }
            CheckKind::Ttl(ttl)
        }
        Some(Kind::Tcp(tcp)) => {
            if !is_host_and_port(&tcp.address) {
                violations.add(field("tcp.address"), "must be host:port");
            }
            CheckKind::Tcp {
                address: tcp.address.into(),
                tls: None,
            }
        }
        Some(Kind::Grpc(grpc)) => {
            let (address, service) = grpc.target.split_once('/').unwrap_or((&grpc.target, ""));
            if !is_host_and_port(address) {
                violations.add(
                    field("grpc.target"),
                    "must be host:port or host:port/service",
                );
            }
            CheckKind::Grpc {
                address: address.into(),
                service: service.into(),
                tls: grpc.use_tls.then(CheckTls::default),
            }
        }
        Some(Kind::Http(http)) => {
            let uri = http.url.parse::<http::Uri>().ok();
            let usable = uri.is_some_and(|uri| {
                matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some()
            });
            if !usable || http.url.len() > MAX_TEXT {
                violations.add(field("http.url"), "must be an http or https URL");
            }
            if !http.method.is_empty() && http.method.parse::<http::Method>().is_err() {
                violations.add(field("http.method"), "is no method");
            }
            let is_header = |(name, value): (&String, &String)| {
                name.parse::<http::HeaderName>().is_ok()
                    && value.parse::<http::HeaderValue>().is_ok()
            };
            if !http.headers.iter().all(is_header) {
                violations.add(
                    field("http.headers"),
                    "holds a name or value that no header can have",
                );
            }
            if http.body.len() > MAX_BODY {
                violations.add(field("http.body"), format!("at most {MAX_BODY} bytes"));
            }
            CheckKind::Http(Box::new(HttpCheck {
                url: http.url.into(),
                method: http.method.into(),
                headers: http
                    .headers
                    .into_iter()
                    .map(|(name, value)| (name.into(), vec![value.into()]))
                    .collect(),
                body: http.body.into(),
                disable_redirects: false,
                tls: CheckTls {
                    server_name: http.tls_server_name.into(),
                    skip_verify: http.tls_skip_verify,
                },
            }))
        }
    }
}

fn is_host_and_port(text: &str) -> bool {
    let parts = text.rsplit_once(':');
    text.len() <= MAX_TEXT
        && parts.is_some_and(|(host, port)| {
            !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0)
        })
}

/// `None` for an unspecified status.
pub(super) fn status(status: CheckStatus) -> Option<model::CheckStatus> {
    match status {
        CheckStatus::Unspecified => None,
        CheckStatus::Passing => Some(model::CheckStatus::Passing),
        CheckStatus::Warning => Some(model::CheckStatus::Warning),
        CheckStatus::Critical => Some(model::CheckStatus::Critical),
    }
}

/// A duration that is not negative; absent is zero.
pub(super) fn duration(
    field: &str,
    duration: Option<prost_types::Duration>,
    violations: &mut Violations,
) -> Duration {
    let Some(duration) = duration else {
        return Duration::ZERO;
    };
    // Both parts bear the sign; the second is below a second (google.protobuf.Duration).
    let parts = (
        u64::try_from(duration.seconds),
        u32::try_from(duration.nanos),
    );
    match parts {
        (Ok(seconds), Ok(nanos)) if nanos < 1_000_000_000 && seconds <= MAX_SECONDS => {
            Duration::new(seconds, nanos)
        }
        _ => {
            violations.add(field, "must be a duration from zero to ten years");
            Duration::ZERO
        }
    }
}

const MAX_SECONDS: u64 = 10 * 366 * 24 * 3600;

#[cfg(test)]
mod tests {
    use prost_types::Duration as Proto;
    use tonic_types::StatusExt as _;
    use wharf_proto::v1::{GrpcCheck, HttpCheck, TcpCheck};

    use super::*;

    fn web() -> Instance {
        Instance {
            service: "web".into(),
            port: 80,
            ..Instance::default()
        }
    }

    fn every_second(kind: Kind) -> Check {
        Check {
            interval: Some(Proto {
                seconds: 1,
                nanos: 0,
            }),
            kind: Some(kind),
            ..Check::default()
        }
    }

    /// The fields that are refused.
    fn refused(instance: Instance, checks: Vec<Check>) -> Vec<String> {
        let mut violations = Violations::default();
        parse("", Some(instance), checks, Source::Api, &mut violations);
        let Err(status) = violations.finish() else {
            return Vec::new();
        };
        let details = status.get_error_details();
        let fields = details.bad_request().unwrap().field_violations.iter();
        fields.map(|violation| violation.field.clone()).collect()
    }

    #[test]
    fn ids_and_names_are_filled_in() {
        let mut violations = Violations::default();
        let tcp = || {
            every_second(Kind::Tcp(TcpCheck {
                address: "[::1]:80".into(),
            }))
        };
        let target = "127.0.0.1:90/db.Admin".into();
        let grpc = every_second(Kind::Grpc(GrpcCheck {
            target,
            use_tls: true,
        }));
        let checks = vec![tcp(), grpc];
        let registration = parse("", Some(web()), checks, Source::Api, &mut violations);
        assert!(violations.finish().is_ok());
        assert_eq!(&*registration.service.id, "web");
        assert_eq!(registration.service.weights, Weights::default());
        let ids: Vec<_> = registration.checks.iter().map(|check| &*check.id).collect();
        assert_eq!(ids, ["service:web:1", "service:web:2"]);
        assert_eq!(&*registration.checks[0].name, "Service 'web' check");
        let CheckKind::Grpc {
            address,
            service,
            tls,
        } = &registration.checks[1].kind
        else {
            panic!("another kind")
        };
        assert_eq!(
            (&**address, &**service, tls.is_some()),
            ("127.0.0.1:90", "db.Admin", true)
        );
        let one = parse(
            "",
            Some(web()),
            vec![tcp()],
            Source::Api,
            &mut Violations::default(),
        );
        assert_eq!(&*one.checks[0].id, "service:web");
    }

    #[test]
    fn each_field_is_checked() {
        let all_wrong = Instance {
            address: "0.0.0.0".into(),
            port: 70_000,
            meta: [("bad key".to_owned(), String::new())].into(),
            weights: Some(wharf_proto::v1::Weights {
                passing: 0,
                warning: 1,
            }),
            ..Instance::default()
        };
        let fields = ["service", "address", "port", "meta", "weights"];
        assert_eq!(
            refused(all_wrong, vec![]),
            fields.map(|field| format!("instance.{field}"))
        );

        let ttl = |seconds, nanos| Check {
            kind: Some(Kind::Ttl(Proto { seconds, nanos })),
            ..Check::default()
        };
        let url = |url: &str| {
            let http = HttpCheck {
                url: url.into(),
                ..HttpCheck::default()
            };
            every_second(Kind::Http(http))
        };
        let with_id = |mut check: Check, id: &str| {
            check.id = id.into();
            vec![check]
        };
        for (checks, field) in [
            (vec![Check::default()], "checks[0].kind"),
            (vec![ttl(0, 0)], "checks[0].ttl"),
            (vec![ttl(-1, 0)], "checks[0].ttl"),
            (vec![ttl(1, 1_000_000_000)], "checks[0].ttl"),
            (vec![url("ftp://x")], "checks[0].http.url"),
            (vec![url("/health")], "checks[0].http.url"),
            (
                vec![every_second(Kind::Tcp(TcpCheck {
                    address: "x".into(),
                }))],
                "checks[0].tcp.address",
            ),
            (with_id(url("http://x"), "lease:web"), "checks[0].id"),
        ] {
            assert_eq!(
                refused(web(), checks).first().map(|field| &**field),
                Some(field)
            );
        }
        let mut idle = url("http://x/");
        idle.interval = None;
        assert_eq!(refused(web(), vec![idle]), ["checks[0].interval"]);
        let twice = [
            with_id(url("http://x/"), "a"),
            with_id(url("http://y/"), "a"),
        ]
        .concat();
        assert_eq!(refused(web(), twice), ["checks[1].id"]);
        assert!(refused(web(), vec![url("https://x:8443/health?full")]).is_empty());
    }
}
