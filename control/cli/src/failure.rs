//! How a command says that it failed: what did not work, why, and what to try.

use std::fmt;

use crate::persona::Persona;

/// A command of Consul that does not exist ends with this code.
pub(crate) const UNKNOWN_COMMAND: u8 = 127;

/// `what` is a whole sentence, in Consul's words where Consul has words for it, because scripts
/// match them. `cause` and `hint` are added below it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    what: String,
    cause: Option<String>,
    hint: Option<String>,
    code: u8,
}

impl Failure {
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            cause: None,
            hint: None,
            code: 1,
        }
    }

    /// Ends with `code` and says nothing: for an empty answer that is not an error.
    pub(crate) fn silent(code: u8) -> Self {
        Self::new("").code(code)
    }

    pub(crate) fn because(mut self, cause: impl fmt::Display) -> Self {
        self.cause = Some(cause.to_string());
        self
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub(crate) fn code(mut self, code: u8) -> Self {
        self.code = code;
        self
    }

    pub(crate) fn exit_code(&self) -> u8 {
        self.code
    }
}

impl Failure {
    /// The whole message, nothing for a silent failure. Hints are written for `wharf`; under another name they
    /// speak of that one.
    pub(crate) fn text(&self, persona: Persona) -> String {
        let mut text = self.what.clone();
        if let Some(cause) = &self.cause {
            text.push_str("\n  cause: ");
            text.push_str(&cause.replace('\n', "\n         "));
        }
        if let Some(hint) = &self.hint {
            text.push_str("\n  try:   ");
            text.push_str(&persona.own(hint).replace('\n', "\n         "));
        }
        text
    }

    /// The same failure in a wider context.
    pub(crate) fn within(mut self, context: impl fmt::Display) -> Self {
        self.what = format!("{context}{}", self.what);
        self
    }
}

/// Writing to stdout failed. A reader that went away (`| head`) wants no complaint.
impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            Self::silent(1)
        } else {
            Self::new("cannot write the output").because(error)
        }
    }
}

/// The causes of an error on one line, outermost first, without repeating what a cause already says.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
        source = error.source();
    }
    text
}
