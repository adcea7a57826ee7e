//! What can be wrong with a document that is well-formed: the wrong key, the wrong type, the wrong value.

use std::fmt;

use serde::de;

use crate::node::{Node, Position, Value};
use crate::parse::ParseError;

/// Why a document does not decode, and where.
///
/// Displayed with the place in the file if there is one, and with the path of keys:
/// `web.json:4:11: services[0].port: expected an integer, found a string "80a"`.
#[derive(Debug, Clone, PartialEq)]
pub struct DecodeError(Box<Inner>);

#[derive(Debug, Clone, PartialEq)]
struct Inner {
    /// Where: absent only while the error travels from serde to the decoder of the value it is about.
    place: Option<(Position, Vec<Segment>)>,
    kind: DecodeErrorKind,
}

/// One step of the path to a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Segment {
    Key(String),
    Index(usize),
}

#[derive(Debug, Clone, PartialEq)]
pub enum DecodeErrorKind {
    /// The text is no document at all.
    Syntax(Box<ParseError>),
    /// The bytes are not UTF-8, from this offset on.
    NotUtf8(usize),
    /// Nested deeper than [`crate::MAX_DEPTH`].
    TooDeep,
    /// The path ends in a key that nothing has a use for.
    UnknownKey { nearest: Option<String> },
    /// The path ends in a key that the same map has already.
    Repeated { first: Position },
    /// The value at the path lacks a key that it must have.
    Missing { key: String },
    /// The value is of another type than it must be, or a number out of range.
    Type { expected: String, found: String },
    /// The value's own type refuses it.
    Invalid(String),
}

/// Keys and values are shown up to this many characters.
const SHOWN: usize = 64;

impl DecodeError {
    pub(crate) fn new(position: &Position, path: Vec<Segment>, kind: DecodeErrorKind) -> Self {
        Self(Box::new(Inner {
            place: Some((position.clone(), path)),
            kind,
        }))
    }

    /// An error of a whole text.
    pub(crate) fn of_text(kind: DecodeErrorKind) -> Self {
        Self::new(&Position::nowhere(), Vec::new(), kind)
    }

    fn unplaced(kind: DecodeErrorKind) -> Self {
        Self(Box::new(Inner { place: None, kind }))
    }

    /// Gives an error without a place the one of the value it is about.
    pub(crate) fn or_at(
        mut self,
        position: &Position,
        path: impl FnOnce() -> Vec<Segment>,
    ) -> Self {
        self.0
            .place
            .get_or_insert_with(|| (position.clone(), path()));
        self
    }

    pub fn kind(&self) -> &DecodeErrorKind {
        &self.0.kind
    }

    /// Where the value was written, if it was written in a file.
    pub fn position(&self) -> Option<&Position> {
        self.0
            .place
            .as_ref()
            .map(|(position, _)| position)
            .filter(|position| position.is_in_file())
    }

    /// The keys and indexes that lead to the value.
    pub fn segments(&self) -> &[Segment] {
        self.0.place.as_ref().map_or(&[], |(_, path)| path)
    }

    /// The path as text: `services[0].port`; empty at the top.
    pub fn path(&self) -> String {
        let mut text = String::new();
        for segment in self.segments() {
            match segment {
                Segment::Index(index) => text.push_str(&format!("[{index}]")),
                Segment::Key(key) => {
                    if !text.is_empty() {
                        text.push('.');
                    }
                    text.extend(key.chars().take(SHOWN));
                }
            }
        }
        text
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(position) = self.position() {
            write!(f, "{position}: ")?;
        }
        let path = self.path();
        match self.kind() {
            DecodeErrorKind::UnknownKey { nearest } => {
                write!(f, "unknown key \"{path}\"")?;
                nearest
                    .iter()
                    .try_for_each(|nearest| write!(f, " (did you mean \"{nearest}\"?)"))
            }
            DecodeErrorKind::Repeated { first } => {
                write!(f, "key \"{path}\" is there twice")?;
                if first.line > 0 {
                    write!(f, " (first at {first})")?;
                }
                Ok(())
            }
            kind => {
                if !path.is_empty() {
                    write!(f, "{path}: ")?;
                }
                match kind {
                    DecodeErrorKind::Syntax(error) => error.fmt(f),
                    DecodeErrorKind::NotUtf8(offset) => {
                        write!(f, "not text in UTF-8 (byte {offset})")
                    }
                    DecodeErrorKind::TooDeep => {
                        write!(f, "nested deeper than {} levels", crate::MAX_DEPTH)
                    }
                    DecodeErrorKind::Missing { key } => write!(f, "missing key \"{key}\""),
                    DecodeErrorKind::Type { expected, found } => {
                        write!(f, "expected {expected}, found {found}")
                    }
                    DecodeErrorKind::Invalid(message) => f.write_str(message),
                    DecodeErrorKind::UnknownKey { .. } | DecodeErrorKind::Repeated { .. } => Ok(()),
                }
            }
        }
    }
}

impl std::error::Error for DecodeError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self.kind() {
            DecodeErrorKind::Syntax(error) => Some(&**error),
            _ => None,
        }
    }
}

impl de::Error for DecodeError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::unplaced(DecodeErrorKind::Invalid(message.to_string()))
    }

    fn invalid_type(unexpected: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::unplaced(DecodeErrorKind::Type {
            expected: expected.to_string(),
            found: found(unexpected),
        })
    }

    fn invalid_value(unexpected: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::invalid_type(unexpected, expected)
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        let expected = match expected {
            [] => "nothing".to_owned(),
            [one] => format!("{one:?}"),
            many => format!(
                "one of {}",
                many.iter()
                    .map(|v| format!("{v:?}"))
                    .collect::<Vec<_>>()
                    .join(", ")
            ),
        };
        Self::unplaced(DecodeErrorKind::Type {
            expected,
            found: quoted(variant),
        })
    }

    fn missing_field(field: &'static str) -> Self {
        Self::unplaced(DecodeErrorKind::Missing {
            key: field.to_owned(),
        })
    }
}

fn quoted(text: &str) -> String {
    let cut = text.char_indices().nth(SHOWN);
    match cut {
        Some((end, _)) => format!("{:?}...", &text[..end]),
        None => format!("{text:?}"),
    }
}

fn found(unexpected: de::Unexpected<'_>) -> String {
    match unexpected {
        de::Unexpected::Bool(value) => value.to_string(),
        de::Unexpected::Unsigned(value) => value.to_string(),
        de::Unexpected::Signed(value) => value.to_string(),
        de::Unexpected::Float(value) => value.to_string(),
        de::Unexpected::Str(text) => format!("a string {}", quoted(text)),
        de::Unexpected::Seq => "a list".to_owned(),
        de::Unexpected::Map => "an object".to_owned(),
        de::Unexpected::Unit | de::Unexpected::Option => "null".to_owned(),
        other => other.to_string(),
    }
}

/// A value as the second half of "expected ..., found ...".
pub(crate) fn describe(node: &Node) -> String {
    found(match &node.value {
        Value::Null => de::Unexpected::Unit,
        Value::Bool(value) => de::Unexpected::Bool(*value),
        Value::Int(value) => de::Unexpected::Signed(*value),
        Value::Uint(value) => de::Unexpected::Unsigned(*value),
        Value::Float(value) => de::Unexpected::Float(*value),
        Value::String(text) => de::Unexpected::Str(text),
        Value::List(_) => de::Unexpected::Seq,
        Value::Map(_) => de::Unexpected::Map,
    })
}
