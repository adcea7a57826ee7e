//! What the two front ends share: choosing one for a file, positions from offsets, syntax errors.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use crate::node::{Node, Position};
use crate::{parse_hcl, parse_json};

/// How a text is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Hcl,
    Json,
}

/// A text that is not HCL or JSON: where, what was wrong, and the line itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParseError {
    pub position: Position,
    pub message: String,
    /// The line as written, cut to a readable length around the mistake.
    line: String,
    /// How many characters of `line` come before the mistake.
    indent: usize,
}

/// Why a file could not be read as a document.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("{file}: cannot read it: {source}")]
    Read {
        file: String,
        source: std::io::Error,
    },
    #[error("{file}: not text in UTF-8 (byte {offset})")]
    NotUtf8 { file: String, offset: usize },
    #[error("{file}: neither .hcl nor .json: the format must be given (-config-format)")]
    UnknownFormat { file: String },
    #[error(transparent)]
    Syntax(#[from] Box<ParseError>),
}

impl Format {
    /// The format that a file's extension says it has.
    pub fn of_path(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()? {
            "hcl" => Some(Self::Hcl),
            "json" => Some(Self::Json),
            _ => None,
        }
    }

    /// The format of a file that is there, or what is wrong.
    pub fn of_file(path: &Path) -> Result<Self, FileError> {
        let file = || path.display().to_string();
        match (Self::of_path(path), std::fs::metadata(path)) {
            (Some(format), _) => Ok(format),
            (None, Err(source)) => Err(FileError::Read {
                file: file(),
                source,
            }),
            (None, Ok(_)) => Err(FileError::UnknownFormat { file: file() }),
        }
    }

    /// Parses `text`, calling it `name` in positions.
    pub fn parse(self, name: &str, text: &str) -> Result<Node, Box<ParseError>> {
        match self {
            Self::Hcl => parse_hcl(name, text),
            Self::Json => parse_json(name, text),
        }
    }
}

/// Reads a file in the format its extension says.
pub fn parse_file(path: &Path) -> Result<Node, FileError> {
    parse_file_as(path, Format::of_file(path)?)
}

/// Reads a file in the given format, whatever its name.
pub fn parse_file_as(path: &Path, format: Format) -> Result<Node, FileError> {
    let file = path.display().to_string();
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(source) => return Err(FileError::Read { file, source }),
    };
    let text = match String::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            return Err(FileError::NotUtf8 {
                file,
                offset: error.utf8_error().valid_up_to(),
            });
        }
    };
    Ok(format.parse(&file, &text)?)
}

/// A named text and where its lines begin.
#[derive(Debug)]
pub(crate) struct Source<'t> {
    pub(crate) text: &'t str,
    name: Arc<str>,
    line_starts: Vec<usize>,
}

/// How much of a line an error shows.
const SHOWN: usize = 100;

impl<'t> Source<'t> {
    pub(crate) fn new(name: &str, text: &'t str) -> Self {
        let newlines = text
            .bytes()
            .enumerate()
            .filter(|(_, byte)| *byte == b'\n')
            .map(|(i, _)| i + 1);
        Self {
            text,
            name: Arc::from(name),
            line_starts: std::iter::once(0).chain(newlines).collect(),
        }
    }

    /// The position of a byte offset on a character boundary, in time logarithmic in the number of lines and
    /// linear in the length of the line; see [`Locator`] for many positions on one long line.
    pub(crate) fn position(&self, offset: usize) -> Position {
        let (line, start) = self.line_of(offset);
        let column = self.text[start..offset].chars().count() + 1;
        self.position_at(line, column)
    }

    pub(crate) fn error(&self, offset: usize, message: impl Into<String>) -> Box<ParseError> {
        // Errors at the end of a text end up on the last line, after its last character.
        let mut offset = offset.min(self.text.len());
        while !self.text.is_char_boundary(offset) {
            offset -= 1;
        }
        let (_, start) = self.line_of(offset);
        let line = self.text[start..].lines().next().unwrap_or_default();
        let before = self.text[start..offset].chars().count();
        let skipped = before.saturating_sub(SHOWN / 2);
        let shown: String = line
            .chars()
            .skip(skipped)
            .take(SHOWN)
            .map(|c| if c == '\t' { ' ' } else { c })
            .collect();
        Box::new(ParseError {
            position: self.position(offset),
            message: message.into(),
            line: shown,
            indent: before - skipped,
        })
    }

    /// What stands at `offset`, for "found ...": a word, a character, or the end.
    pub(crate) fn describe(&self, offset: usize) -> String {
        let rest = &self.text[offset..];
        let Some(first) = rest.chars().next() else {
            return "the end of the text".to_owned();
        };
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        match first {
            '\n' | '\r' => "the end of the line".to_owned(),
            _ if is_word(first) => {
                format!(
                    "`{}`",
                    rest.chars()
                        .take(40)
                        .take_while(|c| is_word(*c))
                        .collect::<String>()
                )
            }
            _ if first.is_control() => format!("the character U+{:04X}", u32::from(first)),
            _ => format!("`{first}`"),
        }
    }

    fn line_of(&self, offset: usize) -> (usize, usize) {
        let line = self.line_starts.partition_point(|start| *start <= offset);
        (line, self.line_starts[line - 1])
    }

    fn position_at(&self, line: usize, column: usize) -> Position {
        let clamp = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Position {
            file: self.name.clone(),
            line: clamp(line),
            column: clamp(column),
        }
    }
}

/// Positions of growing offsets, in time linear in the text over all of them.
#[derive(Debug)]
pub(crate) struct Locator<'s, 't> {
    source: &'s Source<'t>,
    offset: usize,
    line: usize,
    column: usize,
}

impl<'s, 't> Locator<'s, 't> {
    pub(crate) fn new(source: &'s Source<'t>) -> Self {
        Self {
            source,
            offset: 0,
            line: 1,
            column: 1,
        }
    }

    /// The position of `offset`; not smaller than the one before, or the work starts again at its line.
    pub(crate) fn position(&mut self, offset: usize) -> Position {
        let (line, start) = self.source.line_of(offset);
        if line != self.line || offset < self.offset {
            (self.line, self.column, self.offset) = (line, 1, start);
        }
        self.column += self.source.text[self.offset..offset].chars().count();
        self.offset = offset;
        self.source.position_at(self.line, self.column)
    }
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.position, self.message)?;
        if !self.line.trim().is_empty() {
            let number = self.position.line.to_string();
            let (margin, indent) = (number.len(), self.indent);
            write!(
                f,
                "\n  {number} | {}\n  {:margin$} | {:indent$}^",
                self.line, "", ""
            )?;
        }
        Ok(())
    }
}

impl std::error::Error for ParseError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_count_lines_and_characters() {
        let source = Source::new("f", "ab\nµx = 1\n");
        assert_eq!(source.position(0).to_string(), "f:1:1");
        assert_eq!(source.position(3).to_string(), "f:2:1");
        assert_eq!(source.position(5).to_string(), "f:2:2");
        assert_eq!(source.position(source.text.len()).to_string(), "f:3:1");
        let mut locator = Locator::new(&source);
        for offset in [0, 3, 5, 6, 10, 5, 0] {
            assert_eq!(locator.position(offset), source.position(offset));
        }
    }

    #[test]
    fn an_error_shows_the_line_and_points_into_it() {
        let error = Source::new("a.hcl", "x = 1\nname = foo\n").error(13, "expected a value");
        assert_eq!(
            error.to_string(),
            "a.hcl:2:8: expected a value\n  2 | name = foo\n    |        ^"
        );
    }

    #[test]
    fn an_error_on_a_long_line_shows_its_surroundings() {
        let text = format!("{}!{}", "a".repeat(5000), "b".repeat(5000));
        let shown = Source::new("", &text).error(5000, "no").to_string();
        assert!(shown.starts_with("1:5001: no\n"), "{shown}");
        assert!(shown.len() < 300, "{shown}");
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(lines[1].find('!'), lines[2].find('^'));
    }

    #[test]
    fn a_file_needs_a_known_extension_and_text() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, content: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, content).unwrap();
            path
        };
        assert_eq!(
            parse_file(&write("a.hcl", b"a = 1")).unwrap().to_json(),
            serde_json::json!({"a": 1})
        );
        assert!(matches!(
            parse_file(&write("a.conf", b"a = 1")),
            Err(FileError::UnknownFormat { .. })
        ));
        assert!(parse_file_as(&write("b.conf", b"a = 1"), Format::Hcl).is_ok());
        assert!(matches!(
            parse_file(&write("b.hcl", b"a = \"\xff\"")),
            Err(FileError::NotUtf8 { offset: 5, .. })
        ));
        assert!(matches!(
            parse_file(&dir.path().join("none.hcl")),
            Err(FileError::Read { .. })
        ));
        assert!(matches!(
            parse_file(&write("c.json", b"{")),
            Err(FileError::Syntax(_))
        ));
    }
}
