//! From the words of the command line to an exit code.

use std::ffi::OsString;

use clap::{
    Command,
    error::{ContextKind, ContextValue, ErrorKind},
};

use crate::{
    argv::{self, ArgvError, Request},
    commands::{self, unbuilt::is_unbuilt, version},
    failure::{Failure, UNKNOWN_COMMAND},
    help,
    persona::Persona,
    shell::Shell,
};

/// Runs what `words` (without the program's name) ask for.
pub(crate) fn run(words: Vec<OsString>, shell: &mut Shell<'_>) -> u8 {
    let Err(failure) = perform(words, shell) else {
        return 0;
    };
    let text = failure.text(shell.persona);
    if !text.is_empty() {
        // What was printed before comes before the reason why there is no more.
        let _ = shell.out.flush();
        shell.note(text);
    }
    failure.exit_code()
}

fn perform(words: Vec<OsString>, shell: &mut Shell<'_>) -> Result<(), Failure> {
    let root = commands::tree();
    let persona = shell.persona;
    let words = texts(words).and_then(|words| argv::parse(&root, &words, persona));
    match words.map_err(|error| explain(error, &root, persona))? {
        Request::Version => version::print(shell),
        Request::Help { path } => shell.text(&help::text(&root, &path, persona)),
        Request::Run { path, args } => {
            let path: Vec<&str> = path.iter().map(String::as_str).collect();
            let matches = path
                .iter()
                .try_fold(&root, |command, name| command.find_subcommand(name))
                .unwrap_or(&root)
                .clone()
                .no_binary_name(true)
                .disable_help_flag(true)
                .args_override_self(true)
                .try_get_matches_from(args)
                .map_err(|error| refuse(&error))?;
            commands::run(&path, &matches, shell)
        }
    }
}

fn texts(words: Vec<OsString>) -> Result<Vec<String>, ArgvError> {
    let texts = words.into_iter().enumerate();
    texts
        .map(|(n, word)| word.into_string().map_err(|_| ArgvError::NotUtf8(n + 1)))
        .collect()
}

/// A command line that cannot be read, in words.
fn explain(error: ArgvError, root: &Command, persona: Persona) -> Failure {
    let program = persona.name();
    match &error {
        ArgvError::MissingCommand { path } => {
            let text = help::text(root, path, persona);
            // As Consul: no command at all is an unknown one.
            let code = if path.is_empty() { UNKNOWN_COMMAND } else { 1 };
            Failure::new(text.trim_end()).code(code)
        }
        ArgvError::UnknownCommand { path, token, nearest } => {
            let mut whole: Vec<&str> = path.iter().map(String::as_str).collect();
            whole.push(token);
            let spoken = whole.join(" ");
            if is_unbuilt(&whole) {
                return Failure::new(format!("{program}: {spoken:?} is not built yet"));
            }
            let failure = Failure::new(format!("{program}: there is no command {spoken:?}"));
            let before = [&[program.to_owned()], path.as_slice()].concat().join(" ");
            let failure = match nearest {
                Some(name) => failure.hint(format!("{before} {name}")),
                None => failure.hint(format!("{before} -help")),
            };
            failure.code(if path.is_empty() { UNKNOWN_COMMAND } else { 1 })
        }
        ArgvError::UnknownFlag { path, nearest, .. } => {
            let before = [&[program.to_owned()], path.as_slice()].concat().join(" ");
            Failure::new(error.to_string()).hint(match nearest {
                Some(name) => format!("-{name}   (all flags: {before} -help)"),
                None => format!("{before} -help"),
            })
        }
        ArgvError::Ambiguous { argument, .. } => Failure::new(error.to_string()).hint(format!(
            "a flag goes before the first argument; -- goes before a {argument} that begins with a dash"
        )),
        ArgvError::NotUtf8(_)
        | ArgvError::MissingValue { .. }
        | ArgvError::NotBoolean { .. }
        | ArgvError::BadSyntax(_)
        | ArgvError::TooManyArguments { .. } => Failure::new(error.to_string()),
    }
}

/// A value that a flag does not take, in Go's words.
fn refuse(error: &clap::Error) -> Failure {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        Some(ContextValue::Strings(texts)) => Some(texts.join(", ")),
        _ => None,
    };
    let (Some(flag), Some(value)) = (
        context(ContextKind::InvalidArg),
        context(ContextKind::InvalidValue),
    ) else {
        return Failure::new(error.to_string().trim_end().trim_start_matches("error: "));
    };
    let flag = flag
        .trim_start_matches('-')
        .split([' ', '='])
        .next()
        .unwrap_or_default()
        .to_owned();
    let failure = Failure::new(format!("invalid value {value:?} for flag -{flag}"));
    match (error.kind(), context(ContextKind::ValidValue)) {
        (ErrorKind::InvalidValue, Some(valid)) => failure.hint(format!("one of {valid}")),
        _ => match std::error::Error::source(error) {
            Some(cause) => failure.because(cause),
            None => failure,
        },
    }
}

#[cfg(test)]
#[path = "program_tests.rs"]
mod tests;
