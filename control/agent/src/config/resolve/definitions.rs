//! The services, checks and configuration entries that the files define.

use wharf_config::Node;
use wharf_registry::model::{ConfigEntry, UnknownKind};

use super::{FileConfig, Problems};
use crate::{
    config_entry::{self, ConfigEntryError},
    definition::{Origin, ScriptPolicy},
};

pub(super) fn check_definitions(
    file: &FileConfig,
    scripts: ScriptPolicy,
    p: &mut Problems<'_>,
    warnings: &mut Vec<String>,
) {
    let nodes = |key: &str| {
        p.document
            .get(key)
            .and_then(Node::as_list)
            .unwrap_or_default()
    };
    let (service_nodes, check_nodes) = (nodes("services"), nodes("checks"));
    for (index, service) in file.services.iter().enumerate() {
        if let Err(error) = service.validate(Origin::File, scripts) {
            p.at_node(
                service_nodes.get(index),
                format!("services[{index}] ({:?}): {error}", service.name),
            );
        }
        warnings.extend(service.warnings());
    }
    for (index, check) in file.checks.iter().enumerate() {
        let mut problem = |error: &dyn std::fmt::Display| {
            p.at_node(
                check_nodes.get(index),
                format!("checks[{index}] ({:?}): {error}", check.name),
            );
        };
        if check.name.is_empty() {
            problem(&"Missing check name");
        }
        if let Err(error) = check.validate(Origin::File, scripts) {
            problem(&format!("Invalid check: {error}"));
        }
    }
}

pub(super) fn config_entries(p: &mut Problems<'_>, warnings: &mut Vec<String>) -> Vec<ConfigEntry> {
    let document = p.document;
    let nodes = document
        .at(["config_entries", "bootstrap"])
        .and_then(Node::as_list)
        .unwrap_or_default();
    let mut entries = Vec::new();
    for (index, node) in nodes.iter().enumerate() {
        match config_entry::decode_node(node) {
            Ok(entry) => entries.push(entry),
            Err(ConfigEntryError::Kind(error @ UnknownKind::NotBuilt(_))) => {
                warnings.push(format!(
                    "config_entries.bootstrap[{index}] has no effect: {error}"
                ));
            }
            // These have their places already.
            Err(ConfigEntryError::Decode(error)) => p.list.push(error.to_string()),
            Err(ConfigEntryError::UnknownKeys(errors)) => {
                p.list.extend(errors.iter().map(ToString::to_string));
            }
            Err(error) => p.at_node(
                Some(node),
                format!("config_entries.bootstrap[{index}]: {error}"),
            ),
        }
    }
    entries
}
