//! Free-form settings, read as leniently as Consul reads them: names in snake case or Pascal case,
//! numbers also as text. What cannot be read is reported, and counts as not set.

use serde_json::Value;
use wharf_proto::v1::ProxyProtocol;
use wharf_registry::model::Settings;

/// One source of settings, and what to call it in a report.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Source<'a> {
    pub(crate) name: &'a str,
    pub(crate) settings: &'a Settings,
}

impl<'a> Source<'a> {
    fn get(self, key: &str) -> Option<&'a Value> {
        let exact = self.settings.get(key);
        exact.or_else(|| {
            let mut fields = self.settings.iter();
            fields
                .find(|(name, _)| is_same_name(name, key))
                .map(|(_, value)| value)
        })
    }

    pub(crate) fn text(self, key: &str, problems: &mut Vec<String>) -> Option<&'a str> {
        match self.get(key)? {
            Value::String(text) if text.is_empty() => None,
            Value::String(text) => Some(text),
            Value::Null => None,
            _ => {
                problems.push(format!("{}: {key} is not a text", self.name));
                None
            }
        }
    }

    pub(crate) fn number(self, key: &str, problems: &mut Vec<String>) -> Option<u32> {
        number(self.get(key)?, self.name, key, problems)
    }

    pub(crate) fn object(self, key: &str) -> Option<&'a Value> {
        self.get(key).filter(|value| value.is_object())
    }
}

/// A number within an object, such as one of `limits`.
pub(crate) fn number_in(
    object: &Value,
    source: &str,
    key: &str,
    problems: &mut Vec<String>,
) -> Option<u32> {
    let mut fields = object.as_object()?.iter();
    let (_, value) = fields.find(|(name, _)| is_same_name(name, key))?;
    number(value, source, key, problems)
}

fn number(value: &Value, source: &str, key: &str, problems: &mut Vec<String>) -> Option<u32> {
    let number = match value {
        Value::Null => return None,
        Value::Number(number) => number.as_u64().or_else(|| {
            number
                .as_f64()
                .filter(|n| *n >= 0.0 && n.fract() == 0.0)
                .map(|n| n as u64)
        }),
        Value::String(text) => text.parse().ok(),
        _ => None,
    };
    let number = number.and_then(|number| u32::try_from(number).ok());
    if number.is_none() {
        problems.push(format!(
            "{source}: {key} is not a whole number between 0 and {}",
            u32::MAX
        ));
    }
    number
}

/// The protocol that `text` names; reported when it names none. Empty: not set.
pub(crate) fn protocol(
    text: &str,
    source: &str,
    problems: &mut Vec<String>,
) -> Option<ProxyProtocol> {
    match text.to_ascii_lowercase().as_str() {
        "" => None,
        "tcp" => Some(ProxyProtocol::Tcp),
        "http" => Some(ProxyProtocol::Http),
        "http2" => Some(ProxyProtocol::Http2),
        "grpc" => Some(ProxyProtocol::Grpc),
        other => {
            problems.push(format!(
                "{source}: protocol {other:?} is none of tcp, http, http2 and grpc"
            ));
            None
        }
    }
}

/// `MaxConnections` and `max_connections` are the same name.
fn is_same_name(a: &str, b: &str) -> bool {
    let letters = |name: &str| {
        name.bytes()
            .filter(|&b| b != b'_')
            .map(|b| b.to_ascii_lowercase())
            .collect::<Vec<_>>()
    };
    a.len().abs_diff(b.len()) <= 8 && letters(a) == letters(b)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn settings_are_read_leniently_and_mistakes_are_told() {
        let settings: Settings = serde_json::from_value(json!({
            "connect_timeout_ms": "250",
            "MaxThings": 7.0,
            "broken": -1,
            "fraction": 1.5,
            "protocol": 3,
        }))
        .unwrap();
        let source = Source {
            name: "upstream \"db\"",
            settings: &settings,
        };
        let mut problems = Vec::new();
        assert_eq!(
            source.number("connect_timeout_ms", &mut problems),
            Some(250)
        );
        assert_eq!(source.number("max_things", &mut problems), Some(7));
        assert_eq!(source.number("absent", &mut problems), None);
        assert!(problems.is_empty());
        assert_eq!(source.number("broken", &mut problems), None);
        assert_eq!(source.number("fraction", &mut problems), None);
        assert_eq!(source.text("protocol", &mut problems), None);
        assert_eq!(problems.len(), 3);
        assert_eq!(
            problems[0],
            "upstream \"db\": broken is not a whole number between 0 and 4294967295"
        );
    }
}
