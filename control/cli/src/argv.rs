//! The command line as people type it, turned into one spelling that clap reads.
//!
//! Consul's flags are those of Go's `flag` package: one dash or two, the value in the same token after `=` or
//! in the next one, booleans that take a value only after `=`. clap would read `-dev` as `-d -e -v`. So the
//! tokens are walked here with the tree of commands in hand, and come out as `--flag=value` for each flag,
//! then `--`, then the arguments: clap has nothing left to guess.
//!
//! Go ends flags at the first argument: `consul kv put key -5` stores "-5". Under the name `consul` so do we.
//! Under our own name flags are also taken after the arguments, except where the token could as well be an
//! argument; then the user is asked instead of guessed at.

use clap::{Arg, Command};

use crate::{
    flags::{is_switch, parse_bool},
    nearest::nearest,
    persona::Persona,
};

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// Run the command at `path`; `args` are its flags and arguments in clap's spelling.
    Run {
        path: Vec<String>,
        args: Vec<String>,
    },
    /// Explain the command at `path`; empty for the whole program.
    Help {
        path: Vec<String>,
    },
    Version,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ArgvError {
    #[error("argument {0} is not valid UTF-8")]
    NotUtf8(usize),
    #[error("{} needs a subcommand", path.join(" "))]
    MissingCommand { path: Vec<String> },
    #[error("unknown command {token:?}")]
    UnknownCommand {
        path: Vec<String>,
        token: String,
        nearest: Option<String>,
    },
    #[error("flag provided but not defined: -{flag}")]
    UnknownFlag {
        path: Vec<String>,
        flag: String,
        nearest: Option<String>,
    },
    #[error("flag needs an argument: -{flag}")]
    MissingValue { flag: String },
    #[error("invalid boolean value {value:?} for -{flag}: expected true or false")]
    NotBoolean { flag: String, value: String },
    #[error("bad flag syntax: {0}")]
    BadSyntax(String),
    #[error("{token:?} can be read as a flag or as the argument {argument}")]
    Ambiguous { token: String, argument: String },
    #[error("Too many arguments (expected {expected}, got {got})")]
    TooManyArguments { expected: String, got: usize },
}

/// Reads `tokens` (without the program name) against the tree under `root`.
pub(crate) fn parse(
    root: &Command,
    tokens: &[String],
    persona: Persona,
) -> Result<Request, ArgvError> {
    let mut walk = Walk {
        tokens,
        next: 0,
        path: Vec::new(),
        flags: Vec::new(),
    };
    let command = match walk.find_command(root)? {
        Found::Command(command) => command,
        Found::Other(request) => return Ok(request),
    };
    walk.read_command(command, persona)
}

enum Found<'a> {
    Command(&'a Command),
    Other(Request),
}

struct Walk<'t> {
    tokens: &'t [String],
    next: usize,
    path: Vec<String>,
    flags: Vec<String>,
}

impl Walk<'_> {
    fn take(&mut self) -> Option<String> {
        let token = self.tokens.get(self.next).cloned();
        self.next += usize::from(token.is_some());
        token
    }

    /// Descends to the command that is named. A connection flag may stand before it:
    /// `wharf -http-addr=... members`.
    fn find_command<'c>(&mut self, root: &'c Command) -> Result<Found<'c>, ArgvError> {
        let mut command = root;
        while command.has_subcommands() {
            if is_leaf(command) {
                // It runs by itself; a command below it has to be named at once.
                let next = self.tokens.get(self.next);
                let Some(below) = next.and_then(|token| command.find_subcommand(token)) else {
                    break;
                };
                command = below;
                self.next += 1;
                self.path.push(below.get_name().to_owned());
                continue;
            }
            let Some(token) = self.take() else {
                return Err(ArgvError::MissingCommand {
                    path: self.path.clone(),
                });
            };
            if is_help(&token) || (self.path.is_empty() && token == "help") {
                let rest = self.tokens[self.next..].iter().filter(|t| !is_help(t));
                let path = self.path.iter().chain(rest).cloned().collect();
                return known_path(root, path).map(Found::Other);
            }
            if self.path.is_empty() && matches!(token.as_str(), "-v" | "-version" | "--version") {
                return Ok(Found::Other(Request::Version));
            }
            if token.starts_with('-') {
                let (name, value) = split_flag(&token)?;
                let arg = find_flag(root, name).ok_or_else(|| self.unknown_flag(root, name))?;
                self.read_flag(arg, value)?;
                continue;
            }
            command = find_subcommand(command, &self.path, &token)?;
            self.path.push(token);
        }
        Ok(Found::Command(command))
    }

    fn read_command(mut self, command: &Command, persona: Persona) -> Result<Request, ArgvError> {
        let arguments: Vec<&Arg> = command.get_positionals().collect();
        // A child's command line: nothing in it is ours.
        let has_child = arguments
            .last()
            .is_some_and(|arg| arg.is_trailing_var_arg_set());
        let limit = if arguments.iter().any(|arg| is_many(arg)) {
            usize::MAX
        } else {
            arguments.len()
        };
        let mut given: Vec<String> = Vec::new();
        let mut flags_ended = false;
        while let Some(token) = self.take() {
            if flags_ended || (has_child && !given.is_empty()) {
                given.push(token);
                continue;
            }
            if is_help(&token) {
                return Ok(Request::Help { path: self.path });
            }
            let after_argument = !given.is_empty();
            if token == "-"
                || !token.starts_with('-')
                || (after_argument && persona == Persona::Consul)
            {
                given.push(token);
                continue;
            }
            if token == "--" {
                flags_ended = true;
                continue;
            }
            let may_be_argument = after_argument
                && arguments
                    .get(given.len())
                    .is_some_and(|arg| arg.is_allow_hyphen_values_set());
            let flag = split_flag(&token);
            let arg = match &flag {
                Ok((name, _)) => find_flag(command, name),
                Err(_) => None,
            };
            match (arg, flag) {
                (Some(arg), Ok((_, value))) => {
                    let left = self.tokens.len() - self.next + 1;
                    if may_be_argument && given.len() + left <= limit {
                        return Err(ArgvError::Ambiguous {
                            token,
                            argument: arguments[given.len()].get_id().to_string(),
                        });
                    }
                    self.read_flag(arg, value)?;
                }
                _ if may_be_argument => given.push(token),
                (_, Err(error)) => return Err(error),
                (None, Ok((name, _))) => return Err(self.unknown_flag(command, name)),
            }
        }
        if given.len() > limit {
            // An argument that may begin with a dash is one that may be left out, as DATA of `kv put`.
            let required = arguments
                .iter()
                .filter(|arg| !arg.is_allow_hyphen_values_set())
                .count();
            return Err(ArgvError::TooManyArguments {
                expected: if required < limit {
                    format!("{required} or {limit}")
                } else {
                    limit.to_string()
                },
                got: given.len(),
            });
        }
        let mut args = self.flags;
        args.push("--".to_owned());
        args.append(&mut given);
        Ok(Request::Run {
            path: self.path,
            args,
        })
    }

    /// Adds the flag in clap's spelling, with its value from this token or the next.
    fn read_flag(&mut self, arg: &Arg, value: Option<&str>) -> Result<(), ArgvError> {
        let flag = arg.get_id().as_str();
        let value = match value {
            Some(value) if is_switch(arg) => {
                parse_bool(value).map_err(|_| ArgvError::NotBoolean {
                    flag: flag.to_owned(),
                    value: value.to_owned(),
                })?;
                value.to_owned()
            }
            Some(value) => value.to_owned(),
            None if is_switch(arg) => "true".to_owned(),
            None => self.take().ok_or_else(|| ArgvError::MissingValue {
                flag: flag.to_owned(),
            })?,
        };
        self.flags.push(format!("--{flag}={value}"));
        Ok(())
    }

    fn unknown_flag(&self, command: &Command, name: &str) -> ArgvError {
        let known = command.get_opts().filter_map(Arg::get_long);
        ArgvError::UnknownFlag {
            path: self.path.clone(),
            flag: name.to_owned(),
            nearest: nearest(name, known).map(str::to_owned),
        }
    }
}

fn is_help(token: &str) -> bool {
    matches!(token, "-h" | "-help" | "--help")
}

fn is_many(arg: &Arg) -> bool {
    arg.get_num_args()
        .is_some_and(|range| range.max_values() == usize::MAX)
}

/// `-name`, `--name`, `-name=value`. Go refuses `---name`, `-=value` and a lone `--` here.
fn split_flag(token: &str) -> Result<(&str, Option<&str>), ArgvError> {
    let body = token
        .strip_prefix("--")
        .or_else(|| token.strip_prefix('-'))
        .unwrap_or(token);
    if body.is_empty() || body.starts_with(['-', '=']) {
        return Err(ArgvError::BadSyntax(token.to_owned()));
    }
    Ok(match body.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (body, None),
    })
}

/// Also under the other of `_` and `-`: Consul itself has `-check_output_max_size` among its dashes.
fn find_flag<'c>(command: &'c Command, name: &str) -> Option<&'c Arg> {
    let alike = |arg: &&Arg| {
        arg.get_long()
            .is_some_and(|long| long.replace('_', "-") == name.replace('_', "-"))
    };
    let mut flags = command.get_opts();
    flags
        .find(|arg| arg.get_long() == Some(name))
        .or_else(|| command.get_opts().find(alike))
}

/// Whether the command does something by itself, whatever is below it.
pub(crate) fn is_leaf(command: &Command) -> bool {
    !command.has_subcommands() || !command.is_subcommand_required_set()
}

fn find_subcommand<'c>(
    command: &'c Command,
    path: &[String],
    token: &str,
) -> Result<&'c Command, ArgvError> {
    command
        .find_subcommand(token)
        .ok_or_else(|| ArgvError::UnknownCommand {
            path: path.to_vec(),
            token: token.to_owned(),
            nearest: nearest(token, command.get_subcommands().map(Command::get_name))
                .map(str::to_owned),
        })
}

/// The commands that exist along `path`, which may end in arguments: `wharf help kv put key`.
fn known_path(root: &Command, path: Vec<String>) -> Result<Request, ArgvError> {
    let mut command = root;
    let mut known = Vec::new();
    for token in path {
        if !command.has_subcommands()
            || (is_leaf(command) && command.find_subcommand(&token).is_none())
        {
            break;
        }
        command = find_subcommand(command, &known, &token)?;
        known.push(token);
    }
    Ok(Request::Help { path: known })
}

#[cfg(test)]
#[path = "argv_tests.rs"]
mod tests;
