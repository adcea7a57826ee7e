//! `?filter=`: Consul's boolean expressions over the rows of an answer.
//!
//! The language is that of go-bexpr. A selector names a field of the row's JSON; through a list it
//! means *any* element. A field that is not there decides as it does in Consul: it equals nothing,
//! is empty, and is in no list.

use std::{iter::Peekable, str::Chars};

use regex_lite::Regex;
use serde_json::Value;

use super::selectors::Fields;

/// How deep parentheses and `not` may nest: the parser and the evaluator recurse.
const MAX_DEPTH: usize = 64;
/// How long an expression may be, in bytes.
const MAX_LENGTH: usize = 16 * 1024;

/// Why a text is no expression.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Failed to create boolean expression evaluator: {0}")]
pub(crate) struct ExpressionError(String);

/// A parsed expression.
#[derive(Debug)]
pub(crate) struct Expression(Term);

#[derive(Debug)]
enum Term {
    And(Box<Term>, Box<Term>),
    Or(Box<Term>, Box<Term>),
    Not(Box<Term>),
    Match {
        selector: Vec<String>,
        operator: Operator,
        negated: bool,
    },
}

#[derive(Debug)]
enum Operator {
    Equal(String),
    /// The value is in a list, a key of a map, or a part of a text.
    Contains(String),
    Empty,
    Matches(Regex),
}

impl Expression {
    pub(crate) fn parse(text: &str) -> Result<Expression, ExpressionError> {
        if text.len() > MAX_LENGTH {
            return Err(ExpressionError(format!(
                "it is longer than {MAX_LENGTH} bytes"
            )));
        }
        let tokens = tokens(text)?;
        let mut parser = Parser {
            tokens: tokens.into_iter().peekable(),
            depth: 0,
        };
        let term = parser.or()?;
        match parser.tokens.next() {
            None => Ok(Expression(term)),
            Some(token) => Err(ExpressionError(format!("unexpected {}", token.shown()))),
        }
    }

    /// Refuses a selector that names no field of the rows.
    pub(crate) fn check(&self, fields: &Fields) -> Result<(), ExpressionError> {
        self.0.check(fields)
    }

    /// Whether a row, as JSON, is one that the expression asks for.
    pub(crate) fn matches(&self, row: &Value) -> bool {
        self.0.matches(row)
    }
}

// === the text ===

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Open,
    Close,
    /// `==` or `!=`.
    Equals {
        negated: bool,
    },
    /// A word outside quotes: a keyword, a selector, a number or a plain value.
    Word(String),
    /// A text in quotes or backquotes.
    Text(String),
}

impl Token {
    fn shown(&self) -> String {
        match self {
            Token::Open => "\"(\"".into(),
            Token::Close => "\")\"".into(),
            Token::Equals { negated: false } => "\"==\"".into(),
            Token::Equals { negated: true } => "\"!=\"".into(),
            Token::Word(text) | Token::Text(text) => format!("{text:?}"),
        }
    }

    fn is(&self, word: &str) -> bool {
        matches!(self, Token::Word(own) if own == word)
    }
}

fn tokens(text: &str) -> Result<Vec<Token>, ExpressionError> {
    let mut tokens = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(&next) = chars.peek() {
        match next {
            ' ' | '\t' | '\r' | '\n' => {
                chars.next();
            }
            '(' => {
                chars.next();
                tokens.push(Token::Open);
            }
            ')' => {
                chars.next();
                tokens.push(Token::Close);
            }
            '=' | '!' => {
                chars.next();
                if chars.next() != Some('=') {
                    return Err(ExpressionError(format!("expected \"=\" after {next:?}")));
                }
                tokens.push(Token::Equals {
                    negated: next == '!',
                });
            }
            '"' | '`' => {
                chars.next();
                tokens.push(Token::Text(quoted(&mut chars, next)?));
            }
            _ => tokens.push(Token::Word(word(&mut chars)?)),
        }
    }
    Ok(tokens)
}

fn quoted(chars: &mut Peekable<Chars<'_>>, quote: char) -> Result<String, ExpressionError> {
    let mut text = String::new();
    loop {
        match chars.next() {
            None => return Err(ExpressionError("a quoted text does not end".into())),
            Some(end) if end == quote => return Ok(text),
            Some('\\') if quote == '"' => match chars.next() {
                Some('n') => text.push('\n'),
                Some('t') => text.push('\t'),
                Some('r') => text.push('\r'),
                Some(other) => text.push(other),
                None => return Err(ExpressionError("a quoted text does not end".into())),
            },
            Some(other) => text.push(other),
        }
    }
}

/// A word, in which brackets may hold a quoted key: `Meta["some key"]` is `Meta` and `some key`.
fn word(chars: &mut Peekable<Chars<'_>>) -> Result<String, ExpressionError> {
    let mut text = String::new();
    while let Some(&next) = chars.peek() {
        match next {
            ' ' | '\t' | '\r' | '\n' | '(' | ')' | '=' | '!' | '`' | '"' => break,
            '[' => {
                chars.next();
                let quote = chars.next().filter(|quote| matches!(quote, '"' | '`'));
                let Some(quote) = quote else {
                    return Err(ExpressionError("expected a quoted key after \"[\"".into()));
                };
                let key = quoted(chars, quote)?;
                if chars.next() != Some(']') {
                    return Err(ExpressionError("expected \"]\" after a key".into()));
                }
                text.push(SEPARATOR);
                text.push_str(&key);
            }
            '.' => {
                chars.next();
                text.push(SEPARATOR);
            }
            other => {
                chars.next();
                text.push(other);
            }
        }
    }
    Ok(text)
}

/// Stands between the parts of a selector within a word: no text of a request holds it, since paths
/// and queries with control characters are refused or harmless here.
const SEPARATOR: char = '\u{1}';

/// A word that is meant as a value: its dots are dots.
fn literal(word: &str) -> String {
    word.replace(SEPARATOR, ".")
}

struct Parser {
    tokens: Peekable<std::vec::IntoIter<Token>>,
    depth: usize,
}

impl Parser {
    fn takes(&mut self, word: &str) -> bool {
        self.tokens.next_if(|token| token.is(word)).is_some()
    }

    fn or(&mut self) -> Result<Term, ExpressionError> {
        let mut term = self.and()?;
        while self.takes("or") {
            term = Term::Or(Box::new(term), Box::new(self.and()?));
        }
        Ok(term)
    }

    fn and(&mut self) -> Result<Term, ExpressionError> {
        let mut term = self.not()?;
        while self.takes("and") {
            term = Term::And(Box::new(term), Box::new(self.not()?));
        }
        Ok(term)
    }

    fn not(&mut self) -> Result<Term, ExpressionError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(ExpressionError(format!("it nests deeper than {MAX_DEPTH}")));
        }
        let term = if self.takes("not") {
            Term::Not(Box::new(self.not()?))
        } else if self.tokens.next_if_eq(&Token::Open).is_some() {
            let term = self.or()?;
            if self.tokens.next() != Some(Token::Close) {
                return Err(ExpressionError("expected \")\"".into()));
            }
            term
        } else {
            self.comparison()?
        };
        self.depth -= 1;
        Ok(term)
    }

    fn comparison(&mut self) -> Result<Term, ExpressionError> {
        let first = self
            .tokens
            .next()
            .ok_or_else(|| ExpressionError("it ends too early".into()))?;
        if let Some(Token::Equals { negated }) = self
            .tokens
            .next_if(|token| matches!(token, Token::Equals { .. }))
        {
            let value = self.value()?;
            return Ok(Term::Match {
                selector: selector(first)?,
                operator: Operator::Equal(value),
                negated,
            });
        }
        if self.takes("is") {
            let negated = self.takes("not");
            return match self.tokens.next() {
                Some(token) if token.is("empty") || token.is("nil") => Ok(Term::Match {
                    selector: selector(first)?,
                    operator: Operator::Empty,
                    negated,
                }),
                _ => Err(ExpressionError("expected \"empty\" after \"is\"".into())),
            };
        }
        let negated = self.takes("not");
        let Some(Token::Word(operator)) = self.tokens.next() else {
            return Err(ExpressionError(format!(
                "expected an operator after {}: ==, !=, in, contains, matches or is",
                first.shown()
            )));
        };
        match operator.as_str() {
            "in" => {
                let value = value(first)?;
                let Some(token) = self.tokens.next() else {
                    return Err(ExpressionError("expected a selector after \"in\"".into()));
                };
                let operator = Operator::Contains(value);
                Ok(Term::Match {
                    selector: selector(token)?,
                    operator,
                    negated,
                })
            }
            "contains" => {
                let operator = Operator::Contains(self.value()?);
                Ok(Term::Match {
                    selector: selector(first)?,
                    operator,
                    negated,
                })
            }
            "matches" => {
                let pattern = self.value()?;
                let regex = Regex::new(&pattern).map_err(|error| {
                    ExpressionError(format!("{pattern:?} is no regular expression: {error}"))
                })?;
                let operator = Operator::Matches(regex);
                Ok(Term::Match {
                    selector: selector(first)?,
                    operator,
                    negated,
                })
            }
            other => Err(ExpressionError(format!("unknown operator {other:?}"))),
        }
    }

    fn value(&mut self) -> Result<String, ExpressionError> {
        match self.tokens.next() {
            Some(token) => value(token),
            None => Err(ExpressionError("expected a value at the end".into())),
        }
    }
}

fn value(token: Token) -> Result<String, ExpressionError> {
    match token {
        Token::Text(text) => Ok(text),
        Token::Word(word) => Ok(literal(&word)),
        other => Err(ExpressionError(format!(
            "expected a value, found {}",
            other.shown()
        ))),
    }
}

fn selector(token: Token) -> Result<Vec<String>, ExpressionError> {
    match token {
        // A JSON pointer in quotes, as newer versions of go-bexpr take it.
        Token::Text(pointer) if pointer.starts_with('/') => Ok(pointer[1..]
            .split('/')
            .map(|part| part.replace("~1", "/").replace("~0", "~"))
            .collect()),
        Token::Word(word) => {
            let parts: Vec<String> = word.split(SEPARATOR).map(str::to_owned).collect();
            if parts[0].starts_with(|first: char| first.is_ascii_alphabetic())
                && parts.iter().all(|part| !part.is_empty())
            {
                Ok(parts)
            } else {
                Err(ExpressionError(format!(
                    "Selector {:?} is not valid",
                    literal(&word)
                )))
            }
        }
        other => Err(ExpressionError(format!(
            "expected a selector, found {}",
            other.shown()
        ))),
    }
}

// === the rows ===

impl Term {
    fn check(&self, fields: &Fields) -> Result<(), ExpressionError> {
        match self {
            Term::And(left, right) | Term::Or(left, right) => {
                left.check(fields)?;
                right.check(fields)
            }
            Term::Not(term) => term.check(fields),
            Term::Match { selector, .. } if fields.have(selector) => Ok(()),
            Term::Match { selector, .. } => Err(ExpressionError(format!(
                "Selector {:?} is not valid",
                selector.join(".")
            ))),
        }
    }

    fn matches(&self, row: &Value) -> bool {
        match self {
            Term::And(left, right) => left.matches(row) && right.matches(row),
            Term::Or(left, right) => left.matches(row) || right.matches(row),
            Term::Not(term) => !term.matches(row),
            Term::Match {
                selector,
                operator,
                negated,
            } => any(row, selector, &|field| operator.holds(field) != *negated),
        }
    }
}

/// Whether a field that the selector leads to satisfies `test`; an absent one is tested as null.
fn any(value: &Value, selector: &[String], test: &dyn Fn(&Value) -> bool) -> bool {
    let Some((first, rest)) = selector.split_first() else {
        return test(value);
    };
    match value {
        Value::Array(items) => match first.parse::<usize>() {
            Ok(index) => any(items.get(index).unwrap_or(&Value::Null), rest, test),
            Err(_) => items.iter().any(|item| any(item, selector, test)),
        },
        Value::Object(fields) => any(fields.get(first).unwrap_or(&Value::Null), rest, test),
        _ => test(&Value::Null),
    }
}

impl Operator {
    fn holds(&self, field: &Value) -> bool {
        match (self, field) {
            (Operator::Equal(text), Value::String(own)) => own == text,
            (Operator::Equal(text), Value::Bool(own)) => {
                super::request::go_bool(text) == Some(*own)
            }
            (Operator::Equal(text), Value::Number(own)) => match own.as_i64() {
                Some(own) => text.parse() == Ok(own),
                None => text.parse().ok() == own.as_f64(),
            },
            (Operator::Contains(text), Value::String(own)) => own.contains(text.as_str()),
            (Operator::Contains(text), Value::Object(fields)) => fields.contains_key(text),
            (Operator::Contains(text), Value::Array(items)) => items
                .iter()
                .any(|item| Operator::Equal(text.clone()).holds(item)),
            (Operator::Empty, Value::Null) => true,
            (Operator::Empty, Value::String(own)) => own.is_empty(),
            (Operator::Empty, Value::Array(items)) => items.is_empty(),
            (Operator::Empty, Value::Object(fields)) => fields.is_empty(),
            (Operator::Matches(regex), Value::String(own)) => regex.is_match(own),
            (Operator::Matches(regex), Value::Array(items)) => items
                .iter()
                .any(|item| item.as_str().is_some_and(|item| regex.is_match(item))),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn row() -> Value {
        json!({
            "Node": {"Node": "n1", "Meta": {"os": "linux", "a.b": "c"}},
            "Service": {"Service": "web", "Port": 80, "Tags": ["v1", "blue"], "Meta": {},
                        "EnableTagOverride": false, "Address": ""},
            "Checks": [{"CheckID": "a", "Status": "passing"}, {"CheckID": "b", "Status": "warning"}],
        })
    }

    fn holds(text: &str) -> bool {
        Expression::parse(text)
            .unwrap_or_else(|error| panic!("{text}: {error}"))
            .matches(&row())
    }

    #[test]
    fn expressions_of_consuls_documentation_hold() {
        for text in [
            "Node.Node == n1",
            "Node.Node == \"n1\" and Service.Port == 80",
            "Service.Port != 81",
            "Node.Meta.os == linux",
            "Node.Meta[\"a.b\"] == c",
            "v1 in Service.Tags",
            "\"blue\" in Service.Tags and not green in Service.Tags",
            "Service.Tags contains v1",
            "Service.Tags not contains v2",
            "red not in Service.Tags",
            "os in Node.Meta",
            "Service.Meta is empty",
            "Service.Tags is not empty",
            "Service.Address is empty",
            "Service.Missing is empty",
            "Checks.Status == warning",
            "Service.EnableTagOverride == false",
            "Service.Service matches `^w.b$`",
            "Service.Service not matches \"^x\"",
            "not (Service.Port == 81 or Node.Node == n2)",
            "Node.Meta.none != anything",
            "we in Service.Service",
            "\"/Node/Meta/os\" == linux",
        ] {
            assert!(holds(text), "{text}");
        }
        for text in [
            "Node.Node == n2",
            "Service.Port == 8",
            "Checks.Status == critical",
            "Node.Meta.none == anything",
            "Service.Port == 80 and not (Node.Node == n1)",
        ] {
            assert!(!holds(text), "{text}");
        }
    }

    #[test]
    fn or_binds_looser_than_and() {
        assert!(holds(
            "Node.Node == n1 or Node.Node == n2 and Service.Port == 1"
        ));
        assert!(!holds(
            "(Node.Node == n1 or Node.Node == n2) and Service.Port == 1"
        ));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let refused = |text: &str| Expression::parse(text).unwrap_err().to_string();
        for text in [
            "",
            "a",
            "a ==",
            "a = b",
            "(a == b",
            "a == b)",
            "a is full",
            "a matches `(`",
            "== b",
            "a == b c",
            "not",
            "a[b] == c",
            "\"x",
            "Node..x == y",
            "1x == y",
        ] {
            let error = refused(text);
            assert!(
                error.starts_with("Failed to create boolean expression evaluator: "),
                "{error}"
            );
        }
        assert!(refused(&"(".repeat(1000)).contains("nests deeper"));
        assert!(refused(&"not ".repeat(1000)).contains("nests deeper"));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[a-zA-Z.\\[\\]\"`()!= ]{0,40}|.{0,40}") {
            if let Ok(expression) = Expression::parse(&text) {
                expression.matches(&row());
            }
        }
    }
}
