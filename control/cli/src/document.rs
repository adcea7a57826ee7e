//! Files in HCL or JSON that a command is given.

use std::path::Path;

use wharf_config::{Format, Node, parse_file, parse_hcl};

use crate::{failure::Failure, shell::Shell};

/// Reads `path`, or standard input for `-`. What is not a `.json` file may be written either way: JSON is what
/// begins with a brace.
pub(crate) fn read(path: &str, shell: &mut Shell<'_>) -> Result<Node, Failure> {
    if path != "-" && Format::of_path(Path::new(path)).is_some() {
        return parse_file(Path::new(path))
            .map_err(|error| Failure::new(format!("Failed to load data: {error}")));
    }
    let (name, bytes) = match path {
        "-" => ("stdin", shell.load("-")?),
        path => (path, shell.load(&format!("@{path}"))?),
    };
    let text = String::from_utf8(bytes).map_err(|error| {
        Failure::new(format!("Failed to load data: {name} is not text")).because(error)
    })?;
    let parsed = if text.trim_start().starts_with('{') {
        Format::Json.parse(name, &text)
    } else {
        parse_hcl(name, &text)
    };
    parsed.map_err(|error| Failure::new(format!("Failed to load data: {error}")))
}
