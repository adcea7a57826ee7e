//! From a document tree to a serde type.
//!
//! A struct's fields are found by Consul's rule for keys ([`same_key`]): serde hands over the names of the
//! fields, so no schema is needed beyond the type itself. The keys of maps (`HashMap<String, _>`) are the
//! user's and stay as they are. A null is the same as an absent key.
//!
//! Types for this decoder do not use `#[serde(flatten)]`, `tag` or `untagged`: serde would buffer the value
//! first, and field names would then be compared literally.

use serde::Deserializer as _;
use serde::de::value::BorrowedStrDeserializer;
use serde::de::{self, DeserializeOwned, DeserializeSeed, IntoDeserializer, Visitor};

use crate::error::{DecodeError, DecodeErrorKind, Segment, describe};
use crate::node::{Entry, Map, Node, Value, same_key};
use crate::parse_json;

/// What to do about doubtful input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// For files and config entries: an unknown or repeated key is an error. As HCL cannot tell them apart, one
    /// object is taken for a list of one where a list is expected, and the reverse.
    Strict,
    /// For the bodies of agent, catalog and KV requests: unknown keys are ignored, the last of a repeated key
    /// counts.
    Lenient,
}

/// Decodes a tree, up to its first error.
pub fn decode<T: DeserializeOwned>(node: &Node, mode: Mode) -> Result<T, DecodeError> {
    let decoder = Decoder {
        node,
        path: Path::Root,
        mode,
    };
    // A type may refuse its value without any help of the decoder.
    decoder.placed(T::deserialize(decoder))
}

/// How many errors [`decode_all`] looks for. More are not read by anyone.
const MAX_ERRORS: usize = 20;

/// Decodes a tree and, if that fails, tells every error rather than the first (up to 20).
pub fn decode_all<T: DeserializeOwned>(node: &Node, mode: Mode) -> Result<T, Vec<DecodeError>> {
    let first = match decode(node, mode) {
        Ok(value) => return Ok(value),
        Err(error) => error,
    };
    // serde stops at an error, so what was wrong is taken out and the rest tried again.
    let mut rest = node.clone();
    let mut taken_out = prune(&mut rest, first.segments());
    let mut errors = vec![first];
    while taken_out && errors.len() < MAX_ERRORS {
        let Err(error) = decode::<T>(&rest, mode) else {
            break;
        };
        taken_out = prune(&mut rest, error.segments());
        if !errors.iter().any(|earlier| is_consequence(&error, earlier)) {
            errors.push(error);
        }
    }
    Err(errors)
}

/// Whether a key is only missing because it was taken out for an earlier error.
fn is_consequence(error: &DecodeError, earlier: &DecodeError) -> bool {
    match (error.kind(), earlier.segments().split_last()) {
        (DecodeErrorKind::Missing { key }, Some((Segment::Key(removed), parent))) => {
            parent == error.segments() && same_key(key, removed)
        }
        _ => false,
    }
}

/// Reads the JSON body of a request. Its size is limited by the caller.
pub fn parse_json_bytes(bytes: &[u8]) -> Result<Node, DecodeError> {
    let text = std::str::from_utf8(bytes)
        .map_err(|error| DecodeError::of_text(DecodeErrorKind::NotUtf8(error.valid_up_to())))?;
    parse_json("", text).map_err(|error| DecodeError::of_text(DecodeErrorKind::Syntax(error)))
}

/// [`parse_json_bytes`] and [`decode`].
pub fn decode_json_bytes<T: DeserializeOwned>(bytes: &[u8], mode: Mode) -> Result<T, DecodeError> {
    decode(&parse_json_bytes(bytes)?, mode)
}

/// Decodes a JSON value that has been read already, such as a part of a larger body.
pub fn decode_json_value<T: DeserializeOwned>(
    value: &serde_json::Value,
    mode: Mode,
) -> Result<T, DecodeError> {
    let node =
        Node::from_json(value).ok_or_else(|| DecodeError::of_text(DecodeErrorKind::TooDeep))?;
    decode(&node, mode)
}

/// Takes the value at `path` out of a tree; `false` if that is the whole tree.
fn prune(node: &mut Node, path: &[Segment]) -> bool {
    let Some((first, rest)) = path.split_first() else {
        return false;
    };
    match (&mut node.value, first) {
        (Value::List(items), Segment::Index(index)) => match items.get_mut(*index) {
            // In its place, so that the indexes of the others keep their meaning.
            Some(item) if rest.is_empty() => item.value = Value::Null,
            Some(item) => return prune(item, rest),
            None => return false,
        },
        // One object in place of a list, and the reverse: not a step in the tree.
        (Value::Map(_), Segment::Index(0)) if !rest.is_empty() => return prune(node, rest),
        (value @ Value::Map(_), Segment::Index(0)) => *value = Value::Null,
        (Value::List(items), Segment::Key(_)) => match items.first_mut() {
            Some(item) => return prune(item, path),
            None => return false,
        },
        (Value::Map(map), Segment::Key(key)) if rest.is_empty() => return map.forget(key),
        (Value::Map(map), Segment::Key(key)) => match map.get_mut(key) {
            Some(next) => return prune(next, rest),
            None => return false,
        },
        _ => return false,
    }
    true
}

/// Where the decoder is. Lives on the stack; made into text only for an error.
#[derive(Clone, Copy)]
enum Path<'p> {
    Root,
    Key(&'p Path<'p>, &'p str),
    Index(&'p Path<'p>, usize),
}

impl Path<'_> {
    fn segments(&self) -> Vec<Segment> {
        let (mut parent, last) = match self {
            Path::Root => return Vec::new(),
            Path::Key(parent, key) => (parent.segments(), Segment::Key((*key).to_owned())),
            Path::Index(parent, index) => (parent.segments(), Segment::Index(*index)),
        };
        parent.push(last);
        parent
    }
}

// === the deserializer of one node ===

#[derive(Clone, Copy)]
struct Decoder<'de, 'p> {
    node: &'de Node,
    path: Path<'p>,
    mode: Mode,
}

type Result<T, E = DecodeError> = std::result::Result<T, E>;

impl<'de> Decoder<'de, '_> {
    fn expected<T>(self, expected: &str) -> Result<T> {
        let kind = DecodeErrorKind::Type {
            expected: expected.to_owned(),
            found: describe(self.node),
        };
        Err(DecodeError::new(
            &self.node.position,
            self.path.segments(),
            kind,
        ))
    }

    /// An error that came back from a visitor without a place is about this node.
    fn placed<T>(self, result: Result<T>) -> Result<T> {
        result.map_err(|error| error.or_at(&self.node.position, || self.path.segments()))
    }

    fn map(self) -> Result<&'de Map> {
        match &self.node.value {
            Value::Map(map) => Ok(map),
            Value::List(items) if self.mode == Mode::Strict => match &items[..] {
                [
                    Node {
                        value: Value::Map(map),
                        ..
                    },
                ] => Ok(map),
                [_, second, ..] if matches!(second.value, Value::Map(_)) => {
                    let kind = DecodeErrorKind::Type {
                        expected: "one object".to_owned(),
                        found: format!("{} of them", items.len()),
                    };
                    Err(DecodeError::new(
                        &second.position,
                        self.path.segments(),
                        kind,
                    ))
                }
                _ => self.expected("an object"),
            },
            _ => self.expected("an object"),
        }
    }

    fn list(self) -> Result<&'de [Node]> {
        match &self.node.value {
            Value::List(items) => Ok(items),
            Value::Map(_) if self.mode == Mode::Strict => Ok(std::slice::from_ref(self.node)),
            _ => self.expected("a list"),
        }
    }

    fn text(self) -> Result<&'de str> {
        match &self.node.value {
            Value::String(text) => Ok(text),
            _ => self.expected("a string"),
        }
    }

    /// The integer here, if it is between `min` and `max`.
    fn integer(self, min: i64, max: u64) -> Result<i128> {
        let int = match &self.node.value {
            Value::Int(int) => i128::from(*int),
            Value::Uint(uint) => i128::from(*uint),
            // 8500.0 is an integer to everyone who did not write the parser.
            Value::Float(float) if float.fract() == 0.0 && float.abs() < 9e15 => *float as i128,
            _ => return self.expected("an integer"),
        };
        if int < i128::from(min) || int > i128::from(max) {
            return self.expected(&format!("an integer from {min} to {max}"));
        }
        Ok(int)
    }

    /// Refuses a repeated key where that is an error.
    fn check_repeated(self, map: &Map) -> Result<()> {
        match map.repeated() {
            Some(repeated) if self.mode == Mode::Strict => {
                let path = Path::Key(&self.path, &repeated.key).segments();
                let kind = DecodeErrorKind::Repeated {
                    first: repeated.first.clone(),
                };
                Err(DecodeError::new(&repeated.again, path, kind))
            }
            _ => Ok(()),
        }
    }

    /// The entries of a map that a struct with these fields is made of, each with the field's own name.
    fn fields(
        self,
        map: &'de Map,
        names: &'static [&'static str],
    ) -> Result<Vec<(&'static str, &'de Entry)>> {
        self.check_repeated(map)?;
        let mut fields: Vec<Option<&'de Entry>> = vec![None; names.len()];
        for entry in map {
            let exact = names.iter().position(|name| *name == entry.key);
            let field = exact.or_else(|| names.iter().position(|name| same_key(name, &entry.key)));
            let error = |kind| {
                let path = Path::Key(&self.path, &entry.key).segments();
                Err(DecodeError::new(&entry.position, path, kind))
            };
            match (field, self.mode) {
                (None, Mode::Lenient) => {}
                (None, Mode::Strict) => {
                    return error(DecodeErrorKind::UnknownKey {
                        nearest: nearest(&entry.key, names),
                    });
                }
                (Some(_), _) if matches!(entry.node.value, Value::Null) => {}
                (Some(field), mode) => {
                    if let (Some(first), Mode::Strict) = (fields[field], mode) {
                        return error(DecodeErrorKind::Repeated {
                            first: first.position.clone(),
                        });
                    }
                    fields[field] = Some(entry);
                }
            }
        }
        Ok(names
            .iter()
            .zip(fields)
            .filter_map(|(name, entry)| Some((*name, entry?)))
            .collect())
    }
}

/// The known name that a misspelled key most likely means, in the key's own style.
fn nearest(key: &str, names: &[&'static str]) -> Option<String> {
    if key.len() > 64 {
        return None;
    }
    let plain = |key: &str| key.to_lowercase().replace('_', "");
    let wanted = plain(key);
    let (distance, name) = names
        .iter()
        .map(|name| (strsim::damerau_levenshtein(&wanted, &plain(name)), *name))
        .min()?;
    if distance > (wanted.chars().count() / 3).max(1) {
        return None;
    }
    let snake = !key.chars().any(char::is_uppercase);
    Some(if snake {
        snake_case(name)
    } else {
        name.to_owned()
    })
}

/// `TaggedAddresses` as `tagged_addresses`, `ServiceID` as `service_id`.
fn snake_case(name: &str) -> String {
    let chars: Vec<char> = name.chars().collect();
    let mut out = String::new();
    for (i, c) in chars.iter().enumerate() {
        let after_word = i > 0 && !chars[i - 1].is_uppercase() && chars[i - 1] != '_';
        let before_word = i > 0 && chars.get(i + 1).is_some_and(|next| next.is_lowercase());
        if c.is_uppercase() && (after_word || before_word) && !out.ends_with('_') {
            out.push('_');
        }
        out.extend(c.to_lowercase());
    }
    out
}

macro_rules! integers {
    ($($method:ident $visit:ident $type:ty),* $(,)?) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
            // The bounds are checked, so the cast loses nothing.
            let int = self.integer(<$type>::MIN as i64, <$type>::MAX as u64)? as $type;
            self.placed(visitor.$visit(int))
        }
    )*};
}

impl<'de> de::Deserializer<'de> for Decoder<'de, '_> {
    type Error = DecodeError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        let result = match &self.node.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Int(int) => visitor.visit_i64(*int),
            Value::Uint(uint) => visitor.visit_u64(*uint),
            Value::Float(float) => visitor.visit_f64(*float),
            Value::String(text) => visitor.visit_borrowed_str(text),
            Value::List(items) => visitor.visit_seq(Items {
                decoder: self,
                items: items.iter().enumerate(),
                all: true,
            }),
            Value::Map(_) => return self.deserialize_map(visitor),
        };
        self.placed(result)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        match self.node.value {
            Value::Bool(value) => self.placed(visitor.visit_bool(value)),
            _ => self.expected("true or false"),
        }
    }

    integers! {
        deserialize_i8 visit_i8 i8,
        deserialize_i16 visit_i16 i16,
        deserialize_i32 visit_i32 i32,
        deserialize_i64 visit_i64 i64,
        deserialize_u8 visit_u8 u8,
        deserialize_u16 visit_u16 u16,
        deserialize_u32 visit_u32 u32,
        deserialize_u64 visit_u64 u64,
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        let float = match self.node.value {
            Value::Float(float) => float,
            Value::Int(int) => int as f64,
            Value::Uint(uint) => uint as f64,
            _ => return self.expected("a number"),
        };
        self.placed(visitor.visit_f64(float))
    }

    fn deserialize_char<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.deserialize_str(visitor)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        let text = self.text()?;
        self.placed(visitor.visit_borrowed_str(text))
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.deserialize_str(visitor)
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.deserialize_str(visitor)
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        match self.node.value {
            Value::Null => self.placed(visitor.visit_none()),
            _ => self.placed(visitor.visit_some(self)),
        }
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        match self.node.value {
            Value::Null => self.placed(visitor.visit_unit()),
            _ => self.expected("null"),
        }
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value> {
        self.placed(visitor.visit_newtype_struct(self))
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        let items = self.list()?.iter().enumerate();
        self.placed(visitor.visit_seq(Items {
            decoder: self,
            items,
            all: false,
        }))
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _len: usize, visitor: V) -> Result<V::Value> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _len: usize,
        visitor: V,
    ) -> Result<V::Value> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        let map = self.map()?;
        self.check_repeated(map)?;
        let entries = map.iter().map(|entry| (entry.key.as_str(), entry));
        self.placed(visitor.visit_map(Entries {
            decoder: self,
            entries,
            value: None,
        }))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        names: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value> {
        let entries = self.fields(self.map()?, names)?.into_iter();
        self.placed(visitor.visit_map(Entries {
            decoder: self,
            entries,
            value: None,
        }))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value> {
        let (variant, content) = match &self.node.value {
            Value::String(text) => (text.as_str(), None),
            Value::Map(map) if map.len() == 1 => match map.iter().next() {
                Some(entry) => (entry.key.as_str(), Some(entry)),
                None => return self.expected("a string"),
            },
            _ => return self.expected("a string"),
        };
        let exact = variants.iter().find(|name| **name == variant);
        let variant = exact
            .or_else(|| variants.iter().find(|name| same_key(name, variant)))
            .copied()
            .unwrap_or(variant);
        self.placed(visitor.visit_enum(Variant {
            decoder: self,
            variant,
            content,
        }))
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.deserialize_str(visitor)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        visitor.visit_unit()
    }
}

// === lists, maps, variants ===

/// The items of a list; nulls only if `all`.
struct Items<'de, 'p, I> {
    decoder: Decoder<'de, 'p>,
    items: I,
    all: bool,
}

impl<'de, I: Iterator<Item = (usize, &'de Node)>> de::SeqAccess<'de> for Items<'de, '_, I> {
    type Error = DecodeError;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>> {
        let all = self.all;
        let Some((index, node)) = self
            .items
            .find(|(_, node)| all || !matches!(node.value, Value::Null))
        else {
            return Ok(None);
        };
        let decoder = Decoder {
            node,
            path: Path::Index(&self.decoder.path, index),
            mode: self.decoder.mode,
        };
        decoder.placed(seed.deserialize(decoder)).map(Some)
    }

    fn size_hint(&self) -> Option<usize> {
        self.items.size_hint().1
    }
}

/// The entries of a map, each under the key or field name to give out.
struct Entries<'de, 'p, I> {
    decoder: Decoder<'de, 'p>,
    entries: I,
    value: Option<&'de Entry>,
}

impl<'de, I: Iterator<Item = (&'de str, &'de Entry)>> de::MapAccess<'de> for Entries<'de, '_, I> {
    type Error = DecodeError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>> {
        let Some((key, entry)) = self.entries.next() else {
            return Ok(None);
        };
        self.value = Some(entry);
        let path = Path::Key(&self.decoder.path, &entry.key);
        let result = seed.deserialize(BorrowedStrDeserializer::new(key));
        result
            .map(Some)
            .map_err(|error: DecodeError| error.or_at(&entry.position, || path.segments()))
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value> {
        let Some(entry) = self.value.take() else {
            return Err(de::Error::custom("a value was asked for before its key"));
        };
        let path = Path::Key(&self.decoder.path, &entry.key);
        let decoder = Decoder {
            node: &entry.node,
            path,
            mode: self.decoder.mode,
        };
        decoder.placed(seed.deserialize(decoder))
    }

    fn size_hint(&self) -> Option<usize> {
        self.entries.size_hint().1
    }
}

/// An enum: `"variant"` or `{ "variant": content }`.
struct Variant<'de, 'p> {
    decoder: Decoder<'de, 'p>,
    variant: &'de str,
    content: Option<&'de Entry>,
}

impl<'de, 'p> Variant<'de, 'p> {
    /// Runs `read` on the content that a variant with content must have.
    fn content<T>(&self, read: impl FnOnce(Decoder<'de, '_>) -> Result<T>) -> Result<T> {
        let Some(entry) = self.content else {
            return self
                .decoder
                .expected(&format!("an object with the key {:?}", self.variant));
        };
        let path = Path::Key(&self.decoder.path, &entry.key);
        let decoder = Decoder {
            node: &entry.node,
            path,
            mode: self.decoder.mode,
        };
        decoder.placed(read(decoder))
    }
}

impl<'de, 'p> de::EnumAccess<'de> for Variant<'de, 'p> {
    type Error = DecodeError;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self)> {
        let variant = self
            .decoder
            .placed(seed.deserialize(self.variant.into_deserializer()))?;
        Ok((variant, self))
    }
}

impl<'de> de::VariantAccess<'de> for Variant<'de, '_> {
    type Error = DecodeError;

    fn unit_variant(self) -> Result<()> {
        match self.content {
            None => Ok(()),
            Some(_) => self
                .decoder
                .expected(&format!("the string {:?}", self.variant)),
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value> {
        self.content(|decoder| seed.deserialize(decoder))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _len: usize, visitor: V) -> Result<V::Value> {
        self.content(|decoder| decoder.deserialize_seq(visitor))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        names: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value> {
        self.content(|decoder| decoder.deserialize_struct("", names, visitor))
    }
}

#[cfg(test)]
mod tests;
