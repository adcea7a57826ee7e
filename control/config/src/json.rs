//! JSON (RFC 8259) with positions.
//!
//! Strictly the grammar of the RFC: no comments, no trailing commas. One choice is Go's, as the clients of
//! Consul rely on it: half a surrogate pair in a `\u` escape becomes U+FFFD instead of an error.

use crate::MAX_DEPTH;
use crate::node::{Entry, MapBuilder, Node, Position, Value};
use crate::parse::{Locator, ParseError, Source};

type Result<T> = std::result::Result<T, Box<ParseError>>;

/// Parses a JSON text; `name` is the file it came from, or empty.
///
/// A key that is there twice has its last value, and the map [remembers](crate::Map::repeated) it.
pub fn parse_json(name: &str, text: &str) -> Result<Node> {
    let source = Source::new(name, text);
    let mut parser = Parser {
        source: &source,
        locator: Locator::new(&source),
        at: 0,
    };
    parser.skip_space();
    let node = parser.value(0)?;
    parser.skip_space();
    if parser.at < text.len() {
        return Err(parser.error("more text after the end of the JSON value"));
    }
    Ok(node)
}

struct Parser<'s, 't> {
    source: &'s Source<'t>,
    locator: Locator<'s, 't>,
    at: usize,
}

impl Parser<'_, '_> {
    fn value(&mut self, depth: usize) -> Result<Node> {
        let position = self.position();
        let value = match self.peek() {
            Some(b'{') => self.object(depth)?,
            Some(b'[') => self.array(depth)?,
            Some(b'"') => Value::String(self.string()?),
            Some(b'-' | b'0'..=b'9') => self.number()?,
            Some(b'a'..=b'z') => self.word()?,
            _ => return Err(self.unexpected("a value")),
        };
        Ok(Node::new(value, position))
    }

    fn object(&mut self, depth: usize) -> Result<Value> {
        let open = self.open(depth)?;
        let mut map = MapBuilder::default();
        if self.take(b'}') {
            return Ok(Value::Map(map.finish()));
        }
        loop {
            if self.peek() != Some(b'"') {
                return Err(self.unclosed(open, "a key in double quotes"));
            }
            let position = self.position();
            let key = self.string()?;
            self.skip_space();
            if !self.take(b':') {
                return Err(self.unexpected("`:` after the key"));
            }
            self.skip_space();
            let node = self.value(depth + 1)?;
            map.insert(Entry {
                key,
                position,
                node,
            });
            self.skip_space();
            if self.take(b'}') {
                return Ok(Value::Map(map.finish()));
            }
            if !self.take(b',') {
                return Err(self.unclosed(open, "`,` or `}`"));
            }
            self.skip_space();
        }
    }

    fn array(&mut self, depth: usize) -> Result<Value> {
        let open = self.open(depth)?;
        let mut items = Vec::new();
        if self.take(b']') {
            return Ok(Value::List(items));
        }
        loop {
            items.push(self.value(depth + 1)?);
            self.skip_space();
            if self.take(b']') {
                return Ok(Value::List(items));
            }
            if !self.take(b',') {
                return Err(self.unclosed(open, "`,` or `]`"));
            }
            self.skip_space();
        }
    }

    /// Steps into an object or list and returns where it began.
    fn open(&mut self, depth: usize) -> Result<usize> {
        if depth >= MAX_DEPTH {
            return Err(self.error(format!("nested deeper than {MAX_DEPTH} levels")));
        }
        let open = self.at;
        self.at += 1;
        self.skip_space();
        Ok(open)
    }

    fn string(&mut self) -> Result<String> {
        let open = self.at;
        self.at += 1;
        let mut text = String::new();
        loop {
            let rest = &self.source.text[self.at..];
            let plain = rest
                .bytes()
                .position(|b| b == b'"' || b == b'\\' || b < b' ')
                .unwrap_or(rest.len());
            text.push_str(&rest[..plain]);
            self.at += plain;
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(text);
                }
                Some(b'\\') => text.push(self.escape()?),
                Some(b'\n' | b'\r') | None => {
                    return Err(self
                        .source
                        .error(open, "this string has no closing double quote on its line"));
                }
                Some(_) => {
                    return Err(self.error("a control character in a string must be escaped"));
                }
            }
        }
    }

    fn escape(&mut self) -> Result<char> {
        let start = self.at;
        self.at += 2;
        Ok(match self.source.text.as_bytes().get(start + 1) {
            Some(b'"') => '"',
            Some(b'\\') => '\\',
            Some(b'/') => '/',
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => {
                let unit = self.four_hex_digits(start)?;
                self.surrogate_pair(unit)
                    .or_else(|| char::from_u32(unit))
                    .unwrap_or(char::REPLACEMENT_CHARACTER)
            }
            _ => {
                return Err(self
                    .source
                    .error(start, "unknown escape sequence in a string"));
            }
        })
    }

    fn four_hex_digits(&mut self, start: usize) -> Result<u32> {
        let digits = self
            .source
            .text
            .as_bytes()
            .get(self.at..self.at + 4)
            .unwrap_or_default();
        if digits.len() < 4 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(self
                .source
                .error(start, "`\\u` needs four hexadecimal digits"));
        }
        self.at += 4;
        Ok(digits.iter().fold(0, |unit, digit| {
            unit << 4 | char::from(*digit).to_digit(16).unwrap_or(0)
        }))
    }

    /// The character of a high surrogate and the low one after it, which is consumed; `None` if there is no pair.
    fn surrogate_pair(&mut self, high: u32) -> Option<char> {
        if !(0xD800..0xDC00).contains(&high) || !self.source.text[self.at..].starts_with("\\u") {
            return None;
        }
        let back = self.at;
        self.at += 2;
        match self.four_hex_digits(back) {
            Ok(low) if (0xDC00..0xE000).contains(&low) => {
                char::from_u32(0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00))
            }
            _ => {
                self.at = back;
                None
            }
        }
    }

    fn number(&mut self) -> Result<Value> {
        let start = self.at;
        self.take(b'-');
        let whole = self.digits();
        let leading_zero = whole.len() > 1 && whole.starts_with('0');
        let mut well_formed = !whole.is_empty() && !leading_zero;
        let mut integer = true;
        if self.take(b'.') {
            integer = false;
            well_formed &= !self.digits().is_empty();
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            integer = false;
            if !self.take(b'+') {
                self.take(b'-');
            }
            well_formed &= !self.digits().is_empty();
        }
        if !well_formed {
            return Err(self.source.error(start, "malformed number"));
        }
        let text = &self.source.text[start..self.at];
        number(text, integer).ok_or_else(|| self.source.error(start, "number out of range"))
    }

    fn digits(&mut self) -> &str {
        let start = self.at;
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        &self.source.text[start..self.at]
    }

    fn word(&mut self) -> Result<Value> {
        let rest = &self.source.text[self.at..];
        let length = rest
            .bytes()
            .position(|b| !b.is_ascii_alphanumeric() && b != b'_')
            .unwrap_or(rest.len());
        let value = match &rest[..length] {
            "null" => Value::Null,
            "true" => Value::Bool(true),
            "false" => Value::Bool(false),
            _ => return Err(self.unexpected("a value")),
        };
        self.at += length;
        Ok(value)
    }

    fn peek(&self) -> Option<u8> {
        self.source.text.as_bytes().get(self.at).copied()
    }

    fn take(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn position(&mut self) -> Position {
        self.locator.position(self.at)
    }

    fn error(&self, message: impl Into<String>) -> Box<ParseError> {
        self.source.error(self.at, message)
    }

    fn unexpected(&self, expected: &str) -> Box<ParseError> {
        self.error(format!(
            "expected {expected}, found {}",
            self.source.describe(self.at)
        ))
    }

    /// Like [`Self::unexpected`], but at the end of the text the mistake is what was opened and not closed.
    fn unclosed(&self, open: usize, expected: &str) -> Box<ParseError> {
        if self.at < self.source.text.len() {
            return self.unexpected(expected);
        }
        let bracket = &self.source.text[open..open + 1];
        self.source
            .error(open, format!("this `{bracket}` is never closed"))
    }
}

/// The value of a well-formed decimal number; `None` when it is beyond what a double holds.
pub(crate) fn number(text: &str, integer: bool) -> Option<Value> {
    if integer {
        if let Ok(int) = text.parse() {
            return Some(Value::Int(int));
        }
        if let Ok(uint) = text.parse() {
            return Some(Value::Uint(uint));
        }
    }
    let float: f64 = text.parse().ok()?;
    float.is_finite().then_some(Value::Float(float))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn message(text: &str) -> String {
        let shown = parse_json("x.json", text).unwrap_err().to_string();
        shown.lines().next().unwrap_or_default().to_owned()
    }

    #[test]
    fn values_and_where_they_are() {
        let node = parse_json(
            "x.json",
            "{\n  \"a\": [1, -2.5, \"é\\n\"],\n  \"b\": {\"c\": null}\n}",
        )
        .unwrap();
        assert_eq!(
            node.to_json(),
            json!({"a": [1, -2.5, "é\n"], "b": {"c": null}})
        );
        let items = node.get("a").unwrap().as_list().unwrap();
        assert_eq!(items[1].position.to_string(), "x.json:2:12");
        assert_eq!(
            node.at(["b", "c"]).unwrap().position.to_string(),
            "x.json:3:14"
        );
    }

    #[test]
    fn large_integers_stay_exact() {
        let node = parse_json("", "[18446744073709551615, -9223372036854775808, 1e3]").unwrap();
        assert_eq!(node.to_json(), json!([u64::MAX, i64::MIN, 1000.0]));
    }

    #[test]
    fn mistakes_are_told_where_they_are() {
        assert_eq!(
            message("{\"a\": 1,}"),
            "x.json:1:9: expected a key in double quotes, found `}`"
        );
        assert_eq!(
            message("{\n \"a\" 1}"),
            "x.json:2:6: expected `:` after the key, found `1`"
        );
        assert_eq!(
            message("[1 2]"),
            "x.json:1:4: expected `,` or `]`, found `2`"
        );
        assert_eq!(
            message("{\"a\": [1, 2"),
            "x.json:1:7: this `[` is never closed"
        );
        assert_eq!(
            message("{} x"),
            "x.json:1:4: more text after the end of the JSON value"
        );
        assert_eq!(
            message(""),
            "x.json:1:1: expected a value, found the end of the text"
        );
        assert_eq!(
            message("{\"a\": nul}"),
            "x.json:1:7: expected a value, found `nul`"
        );
        assert_eq!(
            message("// no\n1"),
            "x.json:1:1: expected a value, found `/`"
        );
        assert_eq!(message("[01]"), "x.json:1:2: malformed number");
        assert_eq!(message("[1e999]"), "x.json:1:2: number out of range");
        assert_eq!(
            message("[\"a\nb\"]"),
            "x.json:1:2: this string has no closing double quote on its line"
        );
        assert_eq!(
            message("[\"a\\x\"]"),
            "x.json:1:4: unknown escape sequence in a string"
        );
    }

    #[test]
    fn depth_is_limited_not_the_stack() {
        let nested = |n: usize| "[".repeat(n) + &"]".repeat(n);
        assert!(parse_json("", &nested(MAX_DEPTH)).is_ok());
        assert!(message(&nested(MAX_DEPTH + 1)).ends_with("nested deeper than 64 levels"));
        assert!(parse_json("", &"[".repeat(1_000_000)).is_err());
    }

    #[test]
    fn surrogates_are_paired_or_replaced() {
        let text = |json: &str| parse_json("", json).unwrap().as_str().unwrap().to_owned();
        assert_eq!(text(r#""\ud83d\ude00""#), "\u{1f600}");
        assert_eq!(text(r#""\ud83dx""#), "\u{fffd}x");
        assert_eq!(text(r#""\ud83d\u0041""#), "\u{fffd}A");
        assert_eq!(text(r#""\ude00""#), "\u{fffd}");
    }

    #[test]
    fn a_repeated_key_is_remembered() {
        let node = parse_json("x.json", "{\"a\": 1, \"a\": 2}").unwrap();
        assert_eq!(node.to_json(), json!({"a": 2}));
        let repeated = node.as_map().unwrap().repeated().unwrap();
        assert_eq!(repeated.again.to_string(), "x.json:1:10");
    }

    proptest! {
        /// serde_json decides what JSON is, on texts made of JSON's own pieces.
        #[test]
        fn accepts_what_serde_json_accepts(
            pieces in proptest::collection::vec(
                proptest::sample::select(&[
                    "{", "}", "[", "]", ",", ":", "\"a\"", "\"b\\n\"", "1", "0", "-", ".", "e", "+", "null",
                    "true", "fals", " ", "\n", "\t", "\u{a0}", "\u{b}", "'", "/", "\\", "\"", "é",
                ][..]),
                0..14,
            )
        ) {
            let text = pieces.concat();
            let ours = parse_json("", &text).ok().map(|node| node.to_json());
            let theirs: Option<serde_json::Value> = serde_json::from_str(&text).ok();
            match (ours, theirs) {
                // serde_json reads -0 as a float, we as the integer that it is.
                (Some(ours), Some(theirs)) => {
                    let same_zero = |value: serde_json::Value| value.to_string().replace("-0.0", "0");
                    prop_assert_eq!(same_zero(ours), same_zero(theirs));
                }
                (ours, theirs) => prop_assert_eq!(ours, theirs),
            }
        }

        #[test]
        fn never_panics(text in "\\PC{0,64}") {
            let _ = parse_json("", &text);
        }
    }
}
