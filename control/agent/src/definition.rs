//! What is registered with an agent: services and checks, as the API and configuration files say them.
//!
//! One definition serves both, since the decoder takes every spelling of a key. What Consul treats differently
//! by where a definition comes from is an [`Origin`]. The error texts are Consul's: clients and people match
//! them.

mod check;
mod metadata;
mod service;

pub use check::{CheckDefinition, CheckError, CheckKind, ServiceCheck};
pub use metadata::{InvalidMeta, validate_meta, validate_node_meta};
pub use service::{
    ConnectDefinition, DefinitionError, ServiceDefinition, SidecarDefinition, UpstreamError,
    WeightsDefinition,
};

/// Who defined something, and whether that may run scripts on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A configuration file: written by who runs the agent.
    File,
    /// A request: from whoever reaches the API.
    Api,
}

/// Whether checks may run programs (`enable_script_checks`, `enable_local_script_checks`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScriptPolicy {
    /// Checks that come over the API may.
    pub from_api: bool,
    /// Checks in configuration files may.
    pub from_files: bool,
}

impl ScriptPolicy {
    pub fn allows(self, origin: Origin) -> bool {
        match origin {
            Origin::File => self.from_files || self.from_api,
            Origin::Api => self.from_api,
        }
    }
}

/// What is wrong with a name as a part of a DNS name, in Consul's words; `None` for a good one.
///
/// `what` is "Service name", "Service tag" or "Node name". Such a name is accepted, and warned about.
pub fn dns_warning(what: &str, name: &str) -> Option<String> {
    let valid = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    if name.is_empty() || !name.bytes().all(valid) {
        return Some(format!(
            "{what} {name:?} will not be discoverable via DNS due to invalid characters. Valid characters \
             include all alpha-numerics and dashes."
        ));
    }
    (name.len() > 63).then(|| {
        format!(
            "{what} {name:?} will not be discoverable via DNS due to it being too long. Valid lengths are \
             between 1 and 63 bytes."
        )
    })
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[cfg(test)]
mod tests;
