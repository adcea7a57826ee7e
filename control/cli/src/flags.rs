//! The kinds of flag there are, and the typed reading of what was given.
//!
//! Consul's flags are Go's: a boolean takes a value only after `=`, any other flag takes the next token
//! whatever it looks like. [`crate::argv`] turns the command line into one spelling, so the definitions here
//! need to say only the name, the placeholder and the text.

use clap::{Arg, ArgAction, ArgMatches, builder::ValueParser};

/// A boolean flag: `-x`, `-x=true`, `-x=false`.
pub(crate) fn switch(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .help(help)
        .action(ArgAction::Set)
        .num_args(0..=1)
        .require_equals(true)
        .default_missing_value("true")
        .value_parser(ValueParser::new(parse_bool))
}

/// A flag with a value; the last one given counts.
pub(crate) fn value(name: &'static str, placeholder: &'static str, help: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .value_name(placeholder)
        .help(help)
        .action(ArgAction::Set)
        .num_args(1)
        .allow_hyphen_values(true)
}

/// A flag that may be given many times, each adding a value.
pub(crate) fn repeated(name: &'static str, placeholder: &'static str, help: &'static str) -> Arg {
    value(name, placeholder, help).action(ArgAction::Append)
}

/// A flag whose value is an unsigned number.
pub(crate) fn number(name: &'static str, help: &'static str) -> Arg {
    value(name, "uint", help).value_parser(ValueParser::new(parse_number))
}

/// An argument that is not a flag. None is required: the commands say themselves what they miss.
pub(crate) fn argument(name: &'static str) -> Arg {
    Arg::new(name).value_name(name)
}

/// Whether the flag is one that takes a value only after `=`.
pub(crate) fn is_switch(arg: &Arg) -> bool {
    arg.get_num_args()
        .is_some_and(|range| range.min_values() == 0)
}

/// Go's `strconv.ParseBool`.
pub(crate) fn parse_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("expected true or false".to_owned()),
    }
}

fn parse_number(text: &str) -> Result<u64, String> {
    text.parse()
        .map_err(|_| "expected a number from 0 up".to_owned())
}

/// Reading flags by name. A name the command does not define reads as not given, so that what is common
/// to all commands can be read from any of them.
pub(crate) trait Given {
    fn on(&self, name: &str) -> bool;
    fn switch(&self, name: &str) -> Option<bool>;
    fn text(&self, name: &str) -> Option<&str>;
    fn texts(&self, name: &str) -> Vec<&str>;
    fn number(&self, name: &str) -> Option<u64>;
}

impl Given for ArgMatches {
    fn on(&self, name: &str) -> bool {
        self.switch(name).unwrap_or(false)
    }

    fn switch(&self, name: &str) -> Option<bool> {
        self.try_get_one::<bool>(name).ok().flatten().copied()
    }

    /// An empty value counts as not given, as it does for Consul.
    fn text(&self, name: &str) -> Option<&str> {
        self.try_get_one::<String>(name)
            .ok()
            .flatten()
            .map(String::as_str)
            .filter(|text| !text.is_empty())
    }

    fn texts(&self, name: &str) -> Vec<&str> {
        self.try_get_many::<String>(name)
            .ok()
            .flatten()
            .map(|values| values.map(String::as_str).collect())
            .unwrap_or_default()
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.try_get_one::<u64>(name).ok().flatten().copied()
    }
}
