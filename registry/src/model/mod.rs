//! The domain objects, in the shapes that Consul's HTTP API gives them.
//!
//! One serde definition serves three uses: the JSON of the API, the record in a snapshot and the
//! body of a command. Stored records are self-describing maps, so a field can be added with a
//! default and an older record still reads.

mod autopilot;
mod check;
mod config_entry;
mod kv;
mod node;
pub mod platform;
mod proxy;
mod service;

pub use autopilot::{AutopilotConfig, NegativeDuration};
pub use check::{CheckDefinition, CheckStatus, HealthCheck, UnknownStatus};
pub use config_entry::{
    ConfigEntry, ConfigEntryKind, Destination, ProxyDefaults, ServiceDefaults, UnknownKind,
    UpstreamOverrides, UpstreamSettings,
};
pub use kv::KvEntry;
pub use node::Node;
pub use proxy::{ConnectProxy, ExposeConfig, ExposePath, MeshGateway, TransparentProxy, Upstream};
pub use service::{NodeService, ServiceAddress, ServiceConnect, ServiceKind, Weights};

use std::{collections::BTreeMap, sync::Arc};

/// A name that many objects share: cloning it copies a pointer.
pub type Str = Arc<str>;

/// Metadata and other small string maps, in one order everywhere.
pub type StrMap = BTreeMap<Str, Str>;

/// Free-form settings, such as the `Config` of a proxy.
pub type Settings = BTreeMap<Str, serde_json::Value>;

/// The form under which names are looked up: Consul compares node and service names without case.
pub fn fold_name(name: &str) -> Str {
    if name.bytes().any(|b| b.is_ascii_uppercase()) || !name.is_ascii() {
        name.to_lowercase().into()
    } else {
        name.into()
    }
}

/// Maps as Consul's JSON shows them: an empty one is `null`. Stored records keep the map.
pub(crate) mod map_or_null {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::StrMap;

    pub(crate) fn serialize<S: Serializer>(map: &StrMap, serializer: S) -> Result<S::Ok, S::Error> {
        if map.is_empty() && serializer.is_human_readable() {
            serializer.serialize_none()
        } else {
            map.serialize(serializer)
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<StrMap, D::Error> {
        Ok(Option::<StrMap>::deserialize(deserializer)?.unwrap_or_default())
    }
}

pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
