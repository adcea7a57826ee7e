//! What commands print: Consul's tables, and JSON.

use serde::de::IgnoredAny;

use clap::{Arg, ArgMatches};

use crate::flags::{Given, value};

/// `-format` of the read commands. `pretty` is Consul's word for the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Table,
    Json,
}

impl Format {
    pub(crate) fn flag() -> Arg {
        value(
            "format",
            "table|pretty|json",
            "How to print the answer (default table; pretty is the same)",
        )
        .value_parser(["table", "pretty", "json"])
    }

    pub(crate) fn of(matches: &ArgMatches) -> Self {
        match matches.text("format") {
            Some("json") => Self::Json,
            _ => Self::Table,
        }
    }
}

/// Left-aligned columns, two spaces apart, the last one not padded.
pub(crate) fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in rows {
        for (column, (cell, width)) in row.iter().zip(widths).enumerate() {
            text.push_str(cell);
            if column + 1 < N {
                pad(&mut text, width + 2 - cell.chars().count());
            }
        }
        text.push('\n');
    }
    text
}

/// Two columns with `gap` spaces after the longest name: the form of Go's tabwriter.
pub(crate) fn pairs(rows: &[(&str, String)], gap: usize) -> String {
    let width = rows
        .iter()
        .map(|(name, _)| name.chars().count())
        .max()
        .unwrap_or(0);
    let mut text = String::new();
    for (name, value) in rows {
        text.push_str(name);
        pad(&mut text, width + gap - name.chars().count());
        text.push_str(value);
        text.push('\n');
    }
    text
}

fn pad(text: &mut String, spaces: usize) {
    text.extend(std::iter::repeat_n(' ', spaces));
}

/// The same JSON with one member a line, `indent` per level, in the order it came in. The text of numbers
/// and strings is kept: a 64-bit flag does not pass through a float here.
pub(crate) fn indented(json: &[u8], indent: &str) -> Result<String, serde_json::Error> {
    serde_json::from_slice::<IgnoredAny>(json)?;
    let mut out = String::with_capacity(json.len() * 2);
    let mut depth: usize = 0;
    let mut in_string = false;
    let mut escaped = false;
    // Checked to be JSON above, so it is UTF-8.
    let text = String::from_utf8_lossy(json);
    let mut chars = text.chars().peekable();
    let line = |out: &mut String, depth: usize| {
        out.push('\n');
        for _ in 0..depth {
            out.push_str(indent);
        }
    };
    while let Some(c) = chars.next() {
        if in_string {
            out.push(c);
            in_string = escaped || c != '"';
            escaped = !escaped && c == '\\';
            continue;
        }
        match c {
            _ if is_space(c) => {}
            '"' => {
                out.push(c);
                in_string = true;
            }
            '{' | '[' => {
                out.push(c);
                while chars.next_if(|next| is_space(*next)).is_some() {}
                match chars.next_if(|next| matches!(next, '}' | ']')) {
                    Some(close) => out.push(close),
                    None => {
                        depth += 1;
                        line(&mut out, depth);
                    }
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                line(&mut out, depth);
                out.push(c);
            }
            ',' => {
                out.push(c);
                line(&mut out, depth);
            }
            ':' => out.push_str(": "),
            _ => out.push(c),
        }
    }
    out.push('\n');
    Ok(out)
}

/// White space in the sense of RFC 8259.
fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\n' | '\r' | '\t')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn row<const N: usize>(cells: [&str; N]) -> [String; N] {
        cells.map(str::to_owned)
    }

    /// Checked against the output of Consul 1.8.7.
    #[test]
    fn columns_as_consul_prints_them() {
        let rows = [
            row(["Node", "ID", "Address", "DC"]),
            row(["ext-longer-name", "", "10.0.0.1", "dc1"]),
            row(["oracle", "f323ba60", "127.0.0.1", "dc1"]),
        ];
        let expected = "\
Node             ID        Address    DC
ext-longer-name            10.0.0.1   dc1
oracle           f323ba60  127.0.0.1  dc1
";
        assert_eq!(columns(&rows), expected);
        assert_eq!(
            columns(&[row(["Größe", "x"]), row(["a", "y"])]),
            "Größe  x\na      y\n"
        );
    }

    #[test]
    fn pairs_pad_to_the_longest_name() {
        let rows = [("web", "a,b".to_owned()), ("consul", String::new())];
        assert_eq!(pairs(&rows, 6), "web         a,b\nconsul      \n");
        assert_eq!(pairs(&[], 6), "");
    }

    #[test]
    fn json_keeps_order_and_numbers() {
        let compact = br#"{"b":[],"a":{},"n":18446744073709551615,"l":[1,{"s":"x,{\"}\\"}]}"#;
        let expected = r#"{
    "b": [],
    "a": {},
    "n": 18446744073709551615,
    "l": [
        1,
        {
            "s": "x,{\"}\\"
        }
    ]
}
"#;
        assert_eq!(indented(compact, "    ").expect("json"), expected);
        assert_eq!(
            indented(expected.as_bytes(), "    ").expect("json"),
            expected
        );
        assert!(indented(b"{\"a\":", "  ").is_err());
        assert!(indented(b"\xff", "  ").is_err());
    }

    proptest! {
        #[test]
        fn indenting_changes_nothing_but_white_space(text in "[ -~\\n\"\\\\äß]{0,40}", number in any::<u64>()) {
            let value = serde_json::json!({ "k": [text.clone(), number, { text: null }], "e": [] });
            let compact = serde_json::to_vec(&value).expect("json");
            let spread = indented(&compact, "  ").expect("json");
            prop_assert_eq!(serde_json::from_str::<Value>(&spread).expect("json"), value);
        }
    }
}
