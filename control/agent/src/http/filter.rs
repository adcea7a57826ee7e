//! Which rows of a list a request asks for, beside what its caller may see.

use bytes::Bytes;
use serde::Serialize;
use wharf_registry::{model::StrMap, state::Instance};

use super::{error::HttpError, request::Request, response};

/// `?tag`, `?node-meta`, `?near` and `?filter` of a request.
#[derive(Debug)]
pub(crate) struct RowFilter {
    tags: Vec<String>,
    node_meta: Vec<(String, String)>,
    near: Option<String>,
}

impl RowFilter {
    pub(crate) fn parse(request: &Request) -> Result<RowFilter, HttpError> {
        let query = &request.query;
        if query.get("filter").is_some() {
            return Err(HttpError::not_built("?filter="));
        }
        let node_meta = query
            .all("node-meta")
            .map(|pair| match pair.split_once(':') {
                Some((key, value)) => (key.to_owned(), value.to_owned()),
                None => (pair.to_owned(), String::new()),
            });
        Ok(RowFilter {
            tags: query
                .all("tag")
                .filter(|tag| !tag.is_empty())
                .map(str::to_owned)
                .collect(),
            node_meta: node_meta.collect(),
            near: query.get("near").map(str::to_owned),
        })
    }

    /// Whether every row passes: an answer encoded for everyone will do.
    pub(crate) fn is_empty(&self) -> bool {
        self.tags.is_empty() && self.node_meta.is_empty() && self.near.is_none()
    }

    pub(crate) fn has_node_meta(&self) -> bool {
        !self.node_meta.is_empty()
    }

    pub(crate) fn node_meta(&self, meta: &StrMap) -> bool {
        self.node_meta
            .iter()
            .all(|(key, value)| meta.get(key.as_str()).is_some_and(|own| **own == **value))
    }

    pub(crate) fn instance(&self, instance: &Instance) -> bool {
        self.tags.iter().all(|tag| instance.service.has_tag(tag))
            && self.node_meta(&instance.node.meta)
    }

    /// The rows that are left, as JSON.
    pub(crate) fn encode<T: Serialize>(
        &self,
        rows: &[T],
        pretty: bool,
    ) -> Result<Bytes, HttpError> {
        response::encode(rows, pretty)
    }

    /// Without network coordinates, near means on the very node: its rows come first.
    pub(crate) fn sort_near<T>(&self, rows: &mut [T], node: impl Fn(&T) -> &str) {
        if let Some(near) = &self.near {
            rows.sort_by_key(|row| !node(row).eq_ignore_ascii_case(near));
        }
    }
}
