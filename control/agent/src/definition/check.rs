//! Check definitions.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use wharf_config::GoDuration;
use wharf_registry::model::{CheckStatus, Str};

use super::{Origin, ScriptPolicy, is_default};
use crate::config::Secret;

/// A check as it is defined. Which kind it is follows from the fields that are set: [`CheckDefinition::kind`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct CheckDefinition {
    #[serde(rename = "ID", skip_serializing_if = "is_default")]
    pub id: Str,
    /// The same as `ID`: services' checks say it so. See [`CheckDefinition::id`].
    #[serde(rename = "CheckID", skip_serializing_if = "is_default")]
    pub check_id: Str,
    #[serde(skip_serializing_if = "is_default")]
    pub name: Str,
    #[serde(skip_serializing_if = "is_default")]
    pub notes: Str,
    /// The instance the check is about; empty for the node.
    #[serde(rename = "ServiceID", skip_serializing_if = "is_default")]
    pub service_id: Str,
    #[serde(skip_serializing_if = "is_default")]
    pub token: Secret,
    /// The status until the first run. Text, because an unknown one has its own error.
    #[serde(skip_serializing_if = "is_default")]
    pub status: Str,

    #[serde(alias = "ScriptArgs", skip_serializing_if = "is_default")]
    pub args: Vec<String>,
    #[serde(rename = "HTTP", skip_serializing_if = "is_default")]
    pub http: String,
    #[serde(skip_serializing_if = "is_default")]
    pub header: BTreeMap<String, Vec<String>>,
    #[serde(skip_serializing_if = "is_default")]
    pub method: String,
    #[serde(skip_serializing_if = "is_default")]
    pub body: String,
    #[serde(skip_serializing_if = "is_default")]
    pub disable_redirects: bool,
    #[serde(rename = "TCP", skip_serializing_if = "is_default")]
    pub tcp: String,
    #[serde(rename = "TCPUseTLS", skip_serializing_if = "is_default")]
    pub tcp_use_tls: bool,
    #[serde(rename = "UDP", skip_serializing_if = "is_default")]
    pub udp: String,
    #[serde(rename = "GRPC", skip_serializing_if = "is_default")]
    pub grpc: String,
    #[serde(rename = "GRPCUseTLS", skip_serializing_if = "is_default")]
    pub grpc_use_tls: bool,
    #[serde(rename = "H2PING", skip_serializing_if = "is_default")]
    pub h2ping: String,
    #[serde(rename = "H2PingUseTLS", skip_serializing_if = "is_default")]
    pub h2ping_use_tls: Option<bool>,
    #[serde(rename = "OSService", skip_serializing_if = "is_default")]
    pub os_service: String,
    #[serde(rename = "DockerContainerID", skip_serializing_if = "is_default")]
    pub docker_container_id: String,
    #[serde(skip_serializing_if = "is_default")]
    pub shell: String,
    #[serde(skip_serializing_if = "is_default")]
    pub alias_node: Str,
    #[serde(skip_serializing_if = "is_default")]
    pub alias_service: Str,
    #[serde(rename = "TTL", skip_serializing_if = "is_default")]
    pub ttl: GoDuration,
    #[serde(rename = "TLSServerName", skip_serializing_if = "is_default")]
    pub tls_server_name: String,
    #[serde(rename = "TLSSkipVerify", skip_serializing_if = "is_default")]
    pub tls_skip_verify: bool,

    #[serde(skip_serializing_if = "is_default")]
    pub interval: GoDuration,
    #[serde(skip_serializing_if = "is_default")]
    pub timeout: GoDuration,
    #[serde(skip_serializing_if = "is_default")]
    pub success_before_passing: u32,
    /// Absent: the same as `failures_before_critical`, so that nothing is ever a warning.
    #[serde(skip_serializing_if = "is_default")]
    pub failures_before_warning: Option<u32>,
    #[serde(skip_serializing_if = "is_default")]
    pub failures_before_critical: u32,
    #[serde(skip_serializing_if = "is_default")]
    pub deregister_critical_service_after: GoDuration,
    #[serde(skip_serializing_if = "is_default")]
    pub output_max_size: i64,
}

/// How a check finds out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CheckKind {
    Http,
    Tcp,
    Udp,
    Grpc,
    H2Ping,
    Ttl,
    Script,
    Docker,
    Alias,
    OsService,
}

/// A check of a service with the id and name it gets.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceCheck {
    pub id: Str,
    pub name: Str,
    pub definition: CheckDefinition,
}

/// Why a check is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckError {
    #[error("Interval and TTL cannot both be specified")]
    IntervalAndTtl,
    #[error("Interval must be > 0 for Script, HTTP, H2PING, TCP, UDP or OSService checks")]
    NoInterval,
    #[error("Interval cannot be set for Alias checks")]
    IntervalOfAlias,
    #[error("TTL must be not be set for Alias checks")]
    TtlOfAlias,
    /// Also the answer to a check of no kind at all.
    #[error("TTL must be > 0 for TTL checks")]
    NoTtl,
    #[error("a check has one kind, this one is both {0} and {1}")]
    TwoKinds(CheckKind, CheckKind),
    #[error("MaxOutputMaxSize must be positive")]
    OutputMaxSize,
    #[error("FailuresBeforeWarning can't be higher than FailuresBeforeCritical")]
    WarningAfterCritical,
    #[error("Status for checks must 'passing', 'warning', 'critical'")]
    Status,
    #[error(
        "Scripts are disabled on this agent from remote calls; to enable, configure 'enable_script_checks' to true"
    )]
    RemoteScripts,
    #[error(
        "Scripts are disabled on this agent; to enable, configure 'enable_script_checks' or \
         'enable_local_script_checks' to true"
    )]
    Scripts,
    #[error("{0} checks are not built into this agent")]
    NotBuilt(CheckKind),
}

/// Shorter intervals are raised to this.
const MIN_INTERVAL: Duration = Duration::from_secs(1);
/// A shorter time until deregistration is raised to this.
const MIN_DEREGISTER_AFTER: Duration = Duration::from_secs(60);

impl CheckKind {
    /// The name in the `Type` of a check.
    pub fn as_str(self) -> &'static str {
        match self {
            CheckKind::Http => "http",
            CheckKind::Tcp => "tcp",
            CheckKind::Udp => "udp",
            CheckKind::Grpc => "grpc",
            CheckKind::H2Ping => "h2ping",
            CheckKind::Ttl => "ttl",
            CheckKind::Script => "script",
            CheckKind::Docker => "docker",
            CheckKind::Alias => "alias",
            CheckKind::OsService => "os_service",
        }
    }

    /// Whether the agent runs the check every now and then.
    pub fn has_interval(self) -> bool {
        !matches!(self, CheckKind::Ttl | CheckKind::Alias)
    }
}

impl fmt::Display for CheckKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl CheckDefinition {
    /// The id it was given, under either name; empty if none was.
    pub fn id(&self) -> &Str {
        if self.check_id.is_empty() {
            &self.id
        } else {
            &self.check_id
        }
    }

    /// The kind of the check. One that names no other kind can only be TTL.
    pub fn kind(&self) -> CheckKind {
        self.kinds().next().unwrap_or(CheckKind::Ttl)
    }

    fn kinds(&self) -> impl Iterator<Item = CheckKind> {
        let docker = !self.docker_container_id.is_empty();
        [
            (docker, CheckKind::Docker),
            (!docker && !self.args.is_empty(), CheckKind::Script),
            (!self.http.is_empty(), CheckKind::Http),
            (!self.tcp.is_empty(), CheckKind::Tcp),
            (!self.udp.is_empty(), CheckKind::Udp),
            (!self.grpc.is_empty(), CheckKind::Grpc),
            (!self.h2ping.is_empty(), CheckKind::H2Ping),
            (!self.os_service.is_empty(), CheckKind::OsService),
            (
                !self.alias_node.is_empty() || !self.alias_service.is_empty(),
                CheckKind::Alias,
            ),
        ]
        .into_iter()
        .filter_map(|(set, kind)| set.then_some(kind))
    }

    /// The status until the check says otherwise.
    pub fn initial_status(&self) -> CheckStatus {
        self.status.parse().unwrap_or_default()
    }

    pub fn effective_interval(&self) -> Duration {
        self.interval.to_std().max(MIN_INTERVAL)
    }

    /// How long one run may take: 30 s for programs, else 10 s, unless the definition says.
    pub fn effective_timeout(&self) -> Duration {
        match (self.timeout.to_std(), self.kind()) {
            (Duration::ZERO, CheckKind::Script | CheckKind::Docker) => Duration::from_secs(30),
            (Duration::ZERO, _) => Duration::from_secs(10),
            (timeout, _) => timeout,
        }
    }

    /// After how long in critical state the service goes; `None`: never.
    pub fn effective_deregister_after(&self) -> Option<Duration> {
        match self.deregister_critical_service_after.to_std() {
            Duration::ZERO => None,
            after => Some(after.max(MIN_DEREGISTER_AFTER)),
        }
    }

    pub fn effective_failures_before_warning(&self) -> u32 {
        self.failures_before_warning
            .unwrap_or(self.failures_before_critical)
    }

    /// Whether this agent can and may run the check.
    pub fn validate(&self, origin: Origin, scripts: ScriptPolicy) -> Result<(), CheckError> {
        let mut kinds = self.kinds();
        let (first, second) = (kinds.next(), kinds.next());
        let kind = first.unwrap_or(CheckKind::Ttl);
        let (interval, ttl) = (
            self.interval > GoDuration::ZERO,
            self.ttl > GoDuration::ZERO,
        );
        if interval && ttl {
            return Err(CheckError::IntervalAndTtl);
        }
        match (first, second) {
            (Some(other), Some(CheckKind::Alias)) if other.has_interval() => {
                return Err(CheckError::IntervalOfAlias);
            }
            (Some(one), Some(other)) => return Err(CheckError::TwoKinds(one, other)),
            _ => {}
        }
        match kind {
            CheckKind::Alias if interval => return Err(CheckError::IntervalOfAlias),
            CheckKind::Alias if ttl => return Err(CheckError::TtlOfAlias),
            CheckKind::Alias => {}
            CheckKind::Ttl if !ttl => return Err(CheckError::NoTtl),
            CheckKind::Ttl => {}
            _ if ttl => return Err(CheckError::TwoKinds(kind, CheckKind::Ttl)),
            _ if !interval => return Err(CheckError::NoInterval),
            _ => {}
        }
        if self.output_max_size < 0 {
            return Err(CheckError::OutputMaxSize);
        }
        if self
            .failures_before_warning
            .is_some_and(|warning| warning > self.failures_before_critical)
        {
            return Err(CheckError::WarningAfterCritical);
        }
        if !self.status.is_empty() && self.status.parse::<CheckStatus>().is_err() {
            return Err(CheckError::Status);
        }
        match kind {
            CheckKind::Script if !scripts.allows(origin) => Err(match origin {
                Origin::Api => CheckError::RemoteScripts,
                Origin::File => CheckError::Scripts,
            }),
            CheckKind::Docker | CheckKind::OsService => Err(CheckError::NotBuilt(kind)),
            _ => Ok(()),
        }
    }
}
