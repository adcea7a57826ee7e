//! What a watch looks at, and what of the answer is its state.

use std::fmt;

use bytes::Bytes;
use http::StatusCode;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use crate::{
    config::WatchDefinition,
    http::{InsideAnswer, InsideError},
};

/// What may stand as it is in a path or a query. A slash in a key is one of the path.
const PLAIN: AsciiSet = NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');
const KEY: AsciiSet = PLAIN.remove(b'/');

/// What of an answer the handler gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    Whole,
    /// The only row; `null` without one.
    One,
    /// All rows; none when there is nothing.
    Rows,
}

#[derive(Debug)]
pub(super) struct Query {
    kind: String,
    /// With everything but what makes it block.
    path: String,
    shape: Shape,
    by_hash: bool,
    token: String,
}

impl Query {
    /// `None` for what there is nothing to ask for yet.
    pub(super) fn of(definition: &WatchDefinition) -> Option<Query> {
        let part = |text: &str| utf8_percent_encode(text, &PLAIN).to_string();
        let key = |text: &str| utf8_percent_encode(text, &KEY).to_string();
        let WatchDefinition { service, state, .. } = definition;
        let (path, shape) = match definition.kind.as_str() {
            "key" => (format!("kv/{}?", key(&definition.key)), Shape::One),
            "keyprefix" => (
                format!("kv/{}?recurse&", key(&definition.prefix)),
                Shape::Rows,
            ),
            "services" => ("catalog/services?".to_owned(), Shape::Whole),
            "nodes" => ("catalog/nodes?".to_owned(), Shape::Whole),
            "service" => {
                let mut path = format!("health/service/{}?", part(service));
                for tag in &definition.tag {
                    path += &format!("tag={}&", part(tag));
                }
                if definition.passing_only {
                    path += "passing&";
                }
                (path, Shape::Whole)
            }
            "checks" if !service.is_empty() => {
                (format!("health/checks/{}?", part(service)), Shape::Whole)
            }
            "checks" if state.is_empty() => ("health/state/any?".to_owned(), Shape::Whole),
            "checks" => (format!("health/state/{}?", part(state)), Shape::Whole),
            "agent_service" => {
                let id = part(&definition.service_id);
                (format!("agent/service/{id}?"), Shape::Whole)
            }
            _ => return None,
        };
        let mut path = format!("/v1/{path}");
        for (name, value) in [
            ("dc", &definition.datacenter),
            ("filter", &definition.filter),
        ] {
            if !value.is_empty() {
                path += &format!("{name}={}&", part(value));
            }
        }
        if definition.stale {
            path += "stale&";
        }
        Some(Query {
            kind: definition.kind.clone(),
            path,
            shape,
            by_hash: definition.kind == "agent_service",
            token: definition.token.secret().to_owned(),
        })
    }

    pub(super) fn token(&self) -> Option<&str> {
        Some(self.token.as_str()).filter(|token| !token.is_empty())
    }

    /// What to ask for, to be answered when the state is past `index`, or differs from what has `hash`.
    pub(super) fn path(&self, index: u64, hash: &str) -> String {
        let path = &self.path;
        match (self.by_hash, index) {
            (true, _) if hash.is_empty() => path.clone(),
            (true, _) => format!("{path}hash={hash}"),
            (false, 0) => path.clone(),
            (false, index) => format!("{path}index={index}"),
        }
    }

    /// The JSON that is passed on, in one line.
    pub(super) fn state(&self, answer: InsideAnswer) -> Result<Bytes, InsideError> {
        let absent = answer.status == StatusCode::NOT_FOUND && answer.body.is_empty();
        let state = match self.shape {
            Shape::One if absent => Value::Null,
            Shape::Rows if absent => Value::Array(Vec::new()),
            shape => {
                let state: Value = answer.json()?;
                match (shape, state) {
                    (Shape::One, Value::Array(rows)) => rows.into_iter().next().unwrap_or_default(),
                    (_, state) => state,
                }
            }
        };
        Ok(state.to_string().into())
    }
}

impl fmt::Display for Query {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} ({})",
            self.kind,
            self.path.trim_end_matches(['?', '&'])
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(json: &str) -> Query {
        let definition: WatchDefinition = serde_json::from_str(json).unwrap();
        Query::of(&definition).unwrap()
    }

    #[test]
    fn a_watch_is_a_blocking_query() {
        let key = of(r#"{"type": "key", "key": "a/b c"}"#);
        assert_eq!(key.path(0, ""), "/v1/kv/a/b%20c?");
        assert_eq!(key.path(7, ""), "/v1/kv/a/b%20c?index=7");
        let service = of(
            r#"{"type": "service", "service": "w/b", "tag": ["x", "y"], "passingonly": true, "stale": true,
                "filter": "Service.ID == \"a\""}"#,
        );
        assert_eq!(
            service.path(0, ""),
            "/v1/health/service/w%2Fb?tag=x&tag=y&passing&filter=Service.ID%20%3D%3D%20%22a%22&stale&"
        );
        let checks = of(r#"{"type": "checks", "state": "critical"}"#);
        assert_eq!(checks.path(0, ""), "/v1/health/state/critical?");
        let instance = of(r#"{"type": "agent_service", "service_id": "a"}"#);
        assert_eq!(instance.path(3, "abc"), "/v1/agent/service/a?hash=abc");
    }

    #[test]
    fn events_are_not_there_to_be_asked_for() {
        let definition: WatchDefinition = serde_json::from_str(r#"{"type": "event"}"#).unwrap();
        assert!(Query::of(&definition).is_none());
    }

    #[test]
    fn a_key_is_one_object_or_null() {
        let key = of(r#"{"type": "key", "key": "a"}"#);
        let answer = |status, body: &str| InsideAnswer {
            status,
            index: None,
            hash: None,
            body: body.to_owned().into(),
        };
        let found = answer(StatusCode::OK, "[\n {\"Key\": \"a\"}\n]\n");
        assert_eq!(key.state(found).unwrap(), r#"{"Key":"a"}"#);
        assert_eq!(
            key.state(answer(StatusCode::NOT_FOUND, "")).unwrap(),
            "null"
        );
        let refused = answer(StatusCode::FORBIDDEN, "Permission denied");
        assert!(
            key.state(refused)
                .unwrap_err()
                .to_string()
                .contains("Permission denied")
        );
    }
}
