//! Which rows of a list a request asks for, beside what its caller may see.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::Serialize;
use serde_json::Value;
use wharf_registry::{model::StrMap, state::Instance};

use super::{
    error::HttpError,
    expression::{Expression, ExpressionError},
    request::Request,
    response,
    selectors::Fields,
};

/// `?tag`, `?node-meta`, `?near` and `?filter` of a request.
#[derive(Debug)]
pub(crate) struct RowFilter {
    tags: Vec<String>,
    node_meta: Vec<(String, String)>,
    near: Option<String>,
    expression: Option<Expression>,
}

impl From<ExpressionError> for HttpError {
    fn from(error: ExpressionError) -> HttpError {
        HttpError::bad_request(error.to_string())
    }
}

impl RowFilter {
    /// With the fields that rows of this kind have.
    pub(crate) fn parse(request: &Request, fields: &Fields) -> Result<RowFilter, HttpError> {
        let query = &request.query;
        let expression = query.get("filter").map(Expression::parse).transpose()?;
        if let Some(expression) = &expression {
            expression.check(fields)?;
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
            expression,
        })
    }

    /// Whether every row passes: an answer encoded for everyone will do.
    pub(crate) fn is_empty(&self) -> bool {
        self.tags.is_empty()
            && self.node_meta.is_empty()
            && self.near.is_none()
            && self.expression.is_none()
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
        if self.expression.is_none() {
            return response::encode(rows, pretty);
        }
        let kept: Result<Vec<Value>, HttpError> = rows
            .iter()
            .filter_map(|row| self.kept(row).transpose())
            .collect();
        response::encode(&kept?, pretty)
    }

    /// The same for an answer that is a map.
    pub(crate) fn encode_map<K: Serialize + Ord, T: Serialize>(
        &self,
        rows: BTreeMap<K, T>,
        pretty: bool,
    ) -> Result<Bytes, HttpError> {
        if self.expression.is_none() {
            return response::encode(&rows, pretty);
        }
        let mut kept = BTreeMap::new();
        for (key, row) in rows {
            if let Some(row) = self.kept(&row)? {
                kept.insert(key, row);
            }
        }
        response::encode(&kept, pretty)
    }

    pub(crate) fn has_expression(&self) -> bool {
        self.expression.is_some()
    }

    /// Whether the expression asks for a row.
    pub(crate) fn keeps<T: Serialize>(&self, row: &T) -> Result<bool, HttpError> {
        Ok(self.expression.is_none() || self.kept(row)?.is_some())
    }

    /// A row as JSON if the expression asks for it.
    fn kept<T: Serialize>(&self, row: &T) -> Result<Option<Value>, HttpError> {
        let row = serde_json::to_value(row)
            .map_err(|error| HttpError::internal(format!("the answer does not encode: {error}")))?;
        let keep = self
            .expression
            .as_ref()
            .is_none_or(|expression| expression.matches(&row));
        Ok(keep.then_some(row))
    }

    /// Without network coordinates, near means on the very node: its rows come first.
    pub(crate) fn sort_near<T>(&self, rows: &mut [T], node: impl Fn(&T) -> &str) {
        if let Some(near) = &self.near {
            rows.sort_by_key(|row| !node(row).eq_ignore_ascii_case(near));
        }
    }
}
