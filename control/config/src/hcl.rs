//! The configuration language of Consul's files: HCL, version 1.
//!
//! Not HCL 2, which is another grammar: Consul's users write several keys on one line, quoted keys inside blocks
//! (`service_ttl { "*" = "5s" }`) and unescaped `${...}` that must arrive as written, and HCL 2 refuses all
//! three. On top of HCL 1, `null` and `key: value` inside braces are understood, so that the plain-value part of
//! an HCL 2 file reads too. There are no expressions, variables or functions.
//!
//! How blocks become values:
//!
//! * `a { }`, `a = { }` are the same: a map under `a`;
//! * several objects under one key become a list of them;
//! * labels nest: `a "x" { }` is `a = { x = { } }`, and several labelled blocks join into one map;
//! * a text that starts with `{` is JSON.

use std::collections::HashMap;

use crate::node::{Entry, Map, MapBuilder, Node, Position, Value};
use crate::parse::{Locator, ParseError, Source};
use crate::{MAX_DEPTH, json, parse_json};

type Result<T> = std::result::Result<T, Box<ParseError>>;

/// Parses an HCL text; `name` is the file it came from, or what to call it in errors. An empty text is a map
/// without entries.
pub fn parse_hcl(name: &str, text: &str) -> Result<Node> {
    if text.trim_start().starts_with('{') {
        return parse_json(name, text);
    }
    let source = Source::new(name, text);
    let mut parser = Parser {
        source: &source,
        locator: Locator::new(&source),
        at: 0,
    };
    let position = parser.position();
    let map = parser.body(0, None)?;
    Ok(Node::new(Value::Map(map), position))
}

struct Parser<'s, 't> {
    source: &'s Source<'t>,
    locator: Locator<'s, 't>,
    at: usize,
}

struct Key {
    name: String,
    position: Position,
}

// === structure ===

impl Parser<'_, '_> {
    /// The items up to the end of the text, or up to the brace that closes the one at `open`.
    fn body(&mut self, depth: usize, open: Option<usize>) -> Result<Map> {
        let mut map = MapBuilder::default();
        // The fewest labels that each labelled key was written with.
        let mut labels: HashMap<String, usize> = HashMap::new();
        loop {
            self.skip_space()?;
            match (self.peek(), open) {
                (None, None) => break,
                (None, Some(open)) => {
                    return Err(self.source.error(open, "this `{` is never closed"));
                }
                (Some(b'}'), Some(_)) => {
                    self.at += 1;
                    break;
                }
                (Some(b'}'), None) => return Err(self.error("this `}` closes nothing")),
                _ => {}
            }
            self.item(depth, &mut map, &mut labels)?;
            self.skip_space()?;
            self.take(b',');
        }
        for (key, count) in labels {
            if let Some(node) = map.get_mut(&key) {
                join_labelled(node, count);
            }
        }
        Ok(map.finish())
    }

    /// One `key = value`, `key { ... }` or `key "label" { ... }`.
    fn item(
        &mut self,
        depth: usize,
        map: &mut MapBuilder,
        labels: &mut HashMap<String, usize>,
    ) -> Result<()> {
        let key = self.key("a key")?;
        let mut block_labels = Vec::new();
        let node = loop {
            let before = self.at;
            self.skip_space()?;
            let same_line = !self.source.text[before..self.at].contains('\n');
            match self.peek() {
                Some(b'=') if block_labels.is_empty() => break self.assigned(depth)?,
                Some(b':') if block_labels.is_empty() && depth > 0 => {
                    break self.assigned(depth)?;
                }
                Some(b'{') => break self.value(depth + block_labels.len())?,
                Some(byte) if same_line && (byte == b'"' || self.at_identifier()) => {
                    block_labels.push(self.key("a label")?);
                    if depth + block_labels.len() >= MAX_DEPTH {
                        return Err(self.too_deep());
                    }
                }
                _ => {
                    let after = block_labels.last().unwrap_or(&key);
                    let expected = if block_labels.is_empty() {
                        "`=` or `{`"
                    } else {
                        "`{`"
                    };
                    return Err(self.unexpected(&format!("{expected} after {:?}", after.name)));
                }
            }
        };
        let count = block_labels.len();
        if count > 0 {
            let fewest = labels.entry(key.name.clone()).or_insert(count);
            *fewest = count.min(*fewest);
        } else {
            labels.remove(&key.name);
        }
        let node = block_labels.into_iter().rev().fold(node, |node, label| {
            let position = label.position.clone();
            let mut map = MapBuilder::default();
            map.insert(Entry {
                key: label.name,
                position: label.position,
                node,
            });
            Node::new(Value::Map(map.finish()), position)
        });
        add(map, key, node);
        Ok(())
    }

    fn assigned(&mut self, depth: usize) -> Result<Node> {
        self.at += 1;
        self.skip_space()?;
        self.value(depth)
    }

    fn key(&mut self, expected: &str) -> Result<Key> {
        let position = self.position();
        let name = match self.peek() {
            Some(b'"') => self.string()?,
            Some(_) if self.at_identifier() => self.identifier().to_owned(),
            _ => return Err(self.unexpected(expected)),
        };
        Ok(Key { name, position })
    }

    fn value(&mut self, depth: usize) -> Result<Node> {
        let position = self.position();
        let value = match self.peek() {
            Some(b'"') => Value::String(self.string()?),
            Some(b'<') => Value::String(self.heredoc()?),
            Some(b'-' | b'0'..=b'9') => self.number()?,
            Some(b'{' | b'[') if depth >= MAX_DEPTH => return Err(self.too_deep()),
            Some(b'{') => {
                let open = self.at;
                self.at += 1;
                Value::Map(self.body(depth + 1, Some(open))?)
            }
            Some(b'[') => self.list(depth)?,
            Some(_) if self.at_identifier() => {
                let start = self.at;
                match self.identifier() {
                    "true" => Value::Bool(true),
                    "false" => Value::Bool(false),
                    "null" => Value::Null,
                    word => {
                        let message = format!(
                            "expected a value, found `{word}` (a string is written in double quotes)"
                        );
                        return Err(self.source.error(start, message));
                    }
                }
            }
            _ => return Err(self.unexpected("a value")),
        };
        Ok(Node::new(value, position))
    }

    fn list(&mut self, depth: usize) -> Result<Value> {
        let open = self.at;
        self.at += 1;
        let mut items = Vec::new();
        loop {
            self.skip_space()?;
            if self.take(b']') {
                return Ok(Value::List(items));
            }
            if self.peek().is_none() {
                return Err(self.source.error(open, "this `[` is never closed"));
            }
            items.push(self.value(depth + 1)?);
            self.skip_space()?;
            if !self.take(b',') && !matches!(self.peek(), Some(b']') | None) {
                return Err(self.unexpected("`,` or `]` in the list"));
            }
        }
    }
}

/// Puts an item into its map: objects under one key gather in a list, anything else may be there once.
fn add(map: &mut MapBuilder, key: Key, node: Node) {
    if let Some(existing) = map.get_mut(&key.name)
        && let (Value::Map(_), Value::Map(_) | Value::List(_)) | (Value::List(_), Value::Map(_)) =
            (&existing.value, &node.value)
    {
        existing.make_list();
        existing.merge(node);
        return;
    }
    map.insert(Entry {
        key: key.name,
        position: key.position,
        node,
    });
}

/// Joins the maps of several blocks that all have `labels` labels into one map, level by level.
fn join_labelled(node: &mut Node, labels: usize) {
    let Value::List(blocks) = &mut node.value else {
        return;
    };
    let mut joined = MapBuilder::default();
    for block in std::mem::take(blocks) {
        if let Value::Map(map) = block.value {
            for entry in map {
                add(
                    &mut joined,
                    Key {
                        name: entry.key,
                        position: entry.position,
                    },
                    entry.node,
                );
            }
        }
    }
    let mut joined = joined.finish();
    if labels > 1 {
        joined
            .values_mut()
            .for_each(|inner| join_labelled(inner, labels - 1));
    }
    node.value = Value::Map(joined);
}

// === tokens ===

impl<'t> Parser<'_, 't> {
    fn identifier(&mut self) -> &'t str {
        let rest = &self.source.text[self.at..];
        let end = rest.find(|c: char| !(c.is_alphanumeric() || matches!(c, '_' | '-' | '.')));
        let word = &rest[..end.unwrap_or(rest.len())];
        self.at += word.len();
        word
    }

    fn at_identifier(&self) -> bool {
        self.source.text[self.at..].starts_with(|c: char| c.is_alphabetic() || c == '_')
    }

    fn string(&mut self) -> Result<String> {
        let open = self.at;
        let unclosed = "this string has no closing double quote on its line";
        self.at += 1;
        let mut text = String::new();
        loop {
            let rest = &self.source.text[self.at..];
            let Some(c) = rest.chars().next() else {
                return Err(self.source.error(open, unclosed));
            };
            match c {
                '"' => {
                    self.at += 1;
                    return Ok(text);
                }
                '\n' => return Err(self.source.error(open, unclosed)),
                '\\' => text.push(self.escape()?),
                '$' if rest.starts_with("${") => text.push_str(self.interpolation(open)?),
                _ => {
                    text.push(c);
                    self.at += c.len_utf8();
                }
            }
        }
    }

    /// A `${...}` with everything in it, quotes and nested braces too, as it is written.
    fn interpolation(&mut self, string: usize) -> Result<&'t str> {
        let rest = &self.source.text[self.at..];
        let mut depth = 0usize;
        for (offset, byte) in rest.bytes().enumerate() {
            match byte {
                b'{' => depth += 1,
                b'}' if depth == 1 => {
                    self.at += offset + 1;
                    return Ok(&rest[..=offset]);
                }
                b'}' => depth -= 1,
                _ => {}
            }
        }
        Err(self
            .source
            .error(string, "this string has a `${` without its `}`"))
    }

    fn escape(&mut self) -> Result<char> {
        let start = self.at;
        self.at += 1;
        let unknown = || {
            self.source.error(
                start,
                "unknown escape sequence in a string (a backslash is written `\\\\`)",
            )
        };
        let rest = &self.source.text[self.at..];
        let letter = rest.chars().next().ok_or_else(unknown)?;
        let (digits, radix, skip) = match letter {
            'x' => (2, 16, 1),
            'u' => (4, 16, 1),
            'U' => (8, 16, 1),
            '0'..='7' => (3, 8, 0),
            _ => {
                self.at += letter.len_utf8();
                return Ok(match letter {
                    '"' | '\\' => letter,
                    'n' => '\n',
                    't' => '\t',
                    'r' => '\r',
                    'a' => '\u{7}',
                    'b' => '\u{8}',
                    'f' => '\u{c}',
                    'v' => '\u{b}',
                    _ => return Err(unknown()),
                });
            }
        };
        let code = rest
            .get(skip..skip + digits)
            .filter(|code| code.chars().all(|c| c.is_digit(radix)));
        let c = code
            .and_then(|code| u32::from_str_radix(code, radix).ok())
            .and_then(char::from_u32);
        self.at += skip + digits;
        c.ok_or_else(|| {
            self.source.error(
                start,
                format!("this escape needs {digits} digits that name a character"),
            )
        })
    }

    /// `<<MARK` to a line with `MARK` alone; `<<-MARK` takes the closing line's indentation off every line.
    fn heredoc(&mut self) -> Result<String> {
        let open = self.at;
        let malformed = |parser: &Self| {
            parser.source.error(
                open,
                "expected `<<` and a word alone on the rest of the line",
            )
        };
        let rest = &self.source.text[self.at..];
        let Some(after) = rest.strip_prefix("<<") else {
            return Err(malformed(self));
        };
        let (first, content) = after.split_once('\n').ok_or_else(|| malformed(self))?;
        let (unindent, mark) = match first.trim_end().strip_prefix('-') {
            Some(mark) => (true, mark),
            None => (false, first.trim_end()),
        };
        if mark.is_empty()
            || !mark
                .chars()
                .all(|c| c.is_alphanumeric() || matches!(c, '_' | '-'))
        {
            return Err(malformed(self));
        }
        let mut length = 0;
        for line in content.split_inclusive('\n') {
            if line.trim() == mark {
                let body = &content[..length];
                // The closing line's newline stays: it separates what follows.
                self.at = self.source.text.len() - content.len() + length + line.trim_end().len();
                let indent = &line[..line.len() - line.trim_start().len()];
                let flush = |line: &str| line.trim().is_empty() || line.starts_with(indent);
                if unindent && body.lines().all(flush) {
                    let lines = body.split_inclusive('\n');
                    return Ok(lines
                        .map(|line| line.strip_prefix(indent).unwrap_or(line))
                        .collect());
                }
                return Ok(body.to_owned());
            }
            length += line.len();
        }
        Err(self
            .source
            .error(open, format!("no line with `{mark}` alone ends this text")))
    }

    fn number(&mut self) -> Result<Value> {
        let rest = &self.source.text[self.at..];
        let mut end = usize::from(rest.starts_with('-'));
        for c in rest[end..].chars() {
            let exponent_sign = matches!(c, '+' | '-') && rest[..end].ends_with(['e', 'E']);
            if !(c.is_alphanumeric() || matches!(c, '.' | '_') || exponent_sign) {
                break;
            }
            end += c.len_utf8();
        }
        let text = &rest[..end];
        let value = parse_number(text).ok_or_else(|| {
            let hint = match text.parse::<crate::GoDuration>() {
                Ok(_) => format!(" (a duration is written in double quotes: \"{text}\")"),
                Err(_) => String::new(),
            };
            self.error(format!("`{text}` is not a number{hint}"))
        })?;
        self.at += end;
        Ok(value)
    }

    /// Skips white space and comments.
    fn skip_space(&mut self) -> Result<()> {
        loop {
            let rest = &self.source.text[self.at..];
            let trimmed = rest.trim_start_matches([' ', '\t', '\r', '\n', '\u{feff}']);
            self.at += rest.len() - trimmed.len();
            if trimmed.starts_with('#') || trimmed.starts_with("//") {
                self.at += trimmed.find('\n').unwrap_or(trimmed.len());
            } else if let Some(comment) = trimmed.strip_prefix("/*") {
                let length = comment
                    .find("*/")
                    .ok_or_else(|| self.error("this comment is never closed"))?;
                self.at += 2 + length + 2;
            } else {
                return Ok(());
            }
        }
    }

    fn peek(&self) -> Option<u8> {
        self.source.text.as_bytes().get(self.at).copied()
    }

    fn take(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    fn position(&mut self) -> Position {
        self.locator.position(self.at)
    }

    fn error(&self, message: impl Into<String>) -> Box<ParseError> {
        self.source.error(self.at, message)
    }

    fn too_deep(&self) -> Box<ParseError> {
        self.error(format!("nested deeper than {MAX_DEPTH} levels"))
    }

    fn unexpected(&self, expected: &str) -> Box<ParseError> {
        self.error(format!(
            "expected {expected}, found {}",
            self.source.describe(self.at)
        ))
    }
}

/// A number in HCL 1: as in JSON, and hexadecimal (`0x1F`) and octal (`0644`) integers.
fn parse_number(text: &str) -> Option<Value> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", text),
    };
    if !digits.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let integer = digits.bytes().all(|b| b.is_ascii_digit());
    let radix = |digits: &str, radix| {
        i64::from_str_radix(&format!("{sign}{digits}"), radix)
            .ok()
            .map(Value::Int)
    };
    if let Some(hex) = digits
        .strip_prefix("0x")
        .or_else(|| digits.strip_prefix("0X"))
    {
        return hex
            .bytes()
            .all(|b| b.is_ascii_hexdigit())
            .then(|| radix(hex, 16))?;
    }
    if integer && digits.len() > 1 && digits.starts_with('0') {
        return radix(digits, 8);
    }
    let decimal = digits
        .bytes()
        .all(|b| matches!(b, b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-'));
    if !decimal || digits.ends_with('.') {
        return None;
    }
    json::number(text, integer)
}

#[cfg(test)]
mod tests;
