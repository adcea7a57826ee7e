//! The name the binary was called by.
//!
//! A link named `consul` makes wharf a drop-in for the command of that name: its name in help and
//! messages, its version text, Go's rule that flags end at the first argument. The commands
//! themselves are the same.

use std::{ffi::OsStr, path::Path};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Persona {
    Wharf,
    Consul,
}

impl Persona {
    /// Decides by the file name of the program, as a multicall binary does.
    pub(crate) fn of(program: &OsStr) -> Self {
        match Path::new(program).file_stem().and_then(OsStr::to_str) {
            Some("consul") => Self::Consul,
            _ => Self::Wharf,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Wharf => "wharf",
            Self::Consul => "consul",
        }
    }

    /// A text written for `wharf`, speaking of this program and its environment variables.
    pub(crate) fn own(self, text: &str) -> String {
        match self {
            Self::Wharf => text.to_owned(),
            Self::Consul => text
                .replace("wharf ", "consul ")
                .replace("WHARF_", "CONSUL_"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_file_name_counts() {
        for (program, persona) in [
            ("consul", Persona::Consul),
            ("/usr/local/bin/consul", Persona::Consul),
            ("wharf", Persona::Wharf),
            ("/opt/consul/wharf", Persona::Wharf),
            ("consul-1.21", Persona::Wharf),
            ("", Persona::Wharf),
        ] {
            assert_eq!(Persona::of(OsStr::new(program)), persona, "{program}");
        }
    }
}
