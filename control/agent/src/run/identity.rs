//! Who this node is: its id over restarts, its addresses, its metadata.

use std::{
    fs,
    io::{self, Write as _},
    path::Path,
};

use uuid::Uuid;
use wharf_registry::model::{Node, Str, StrMap};

use super::{RunError, files::file_error};
use crate::{config::RuntimeConfig, context::NodeInfo};

/// The node's id: the configured one, the one of an earlier start, or a new one that is kept.
pub(super) fn node_uuid(config: &RuntimeConfig) -> Result<Uuid, RunError> {
    let Some(directory) = &config.data_dir else {
        return Ok(config.node_id.unwrap_or_else(Uuid::new_v4));
    };
    let path = directory.join("node-id");
    let kept = match fs::read_to_string(&path) {
        Ok(text) => {
            let uuid = text.trim().parse().map_err(|_| RunError::NodeId {
                path: path.clone(),
                text: text.trim().chars().take(64).collect(),
            })?;
            Some(uuid)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(source) => return Err(file_error(&path, source)),
    };
    if let Some(uuid) = kept.filter(|kept| config.node_id.is_none_or(|wanted| wanted == *kept)) {
        return Ok(uuid);
    }
    let uuid = config.node_id.unwrap_or_else(Uuid::new_v4);
    let write = || -> io::Result<()> {
        create_dir(directory)?;
        let temporary = directory.join("node-id.tmp");
        let mut file = fs::File::create(&temporary)?;
        writeln!(file, "{uuid}")?;
        file.sync_all()?;
        fs::rename(&temporary, &path)?;
        fs::File::open(directory)?.sync_all()
    };
    write().map_err(|source| file_error(&path, source))?;
    Ok(uuid)
}

/// Creates a directory with those above it, so that they are there after a power cut.
fn create_dir(directory: &Path) -> io::Result<()> {
    let missing: Vec<&Path> = directory
        .ancestors()
        .take_while(|path| !path.as_os_str().is_empty() && !path.exists())
        .collect();
    fs::create_dir_all(directory)?;
    for created in missing {
        let above = created
            .parent()
            .filter(|above| !above.as_os_str().is_empty());
        fs::File::open(above.unwrap_or(Path::new(".")))?.sync_all()?;
    }
    Ok(())
}

pub(super) fn join_host_port(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

pub(super) fn node_info(config: &RuntimeConfig, id: Uuid) -> NodeInfo {
    let address: Str = config.advertise_addr.to_string().into();
    let wan: Str = config.advertise_addr_wan.to_string().into();
    let family = |name: &str, ip: std::net::IpAddr| -> Str {
        format!("{name}_{}", if ip.is_ipv4() { "ipv4" } else { "ipv6" }).into()
    };
    let tagged_addresses = StrMap::from([
        ("lan".into(), address.clone()),
        (family("lan", config.advertise_addr), address.clone()),
        ("wan".into(), wan.clone()),
        (family("wan", config.advertise_addr_wan), wan),
    ]);
    NodeInfo {
        name: config.node_name.as_str().into(),
        id: id.to_string().into(),
        datacenter: config.datacenter.as_str().into(),
        address,
        tagged_addresses,
        meta: node_meta(config),
        server: config.server,
    }
}

/// The configured metadata, and what Consul always adds.
pub(super) fn node_meta(config: &RuntimeConfig) -> StrMap {
    let mut meta = config.reloadable.node_meta.clone();
    meta.insert("consul-network-segment".into(), "".into());
    meta.insert(
        "consul-version".into(),
        crate::context::CONSUL_VERSION.into(),
    );
    meta
}

pub(super) fn server_meta() -> StrMap {
    StrMap::from([
        ("version".into(), crate::context::CONSUL_VERSION.into()),
        ("wharf".into(), crate::context::VERSION.into()),
        ("raft_version".into(), "3".into()),
    ])
}

pub(super) fn catalog_node(node: &NodeInfo) -> Node {
    Node {
        id: node.id.clone(),
        name: node.name.clone(),
        address: node.address.clone(),
        datacenter: node.datacenter.clone(),
        tagged_addresses: node.tagged_addresses.clone(),
        meta: node.meta.clone(),
        ..Node::default()
    }
}
