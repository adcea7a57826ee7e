//! The `wharf` command: everything the platform does, under one name. Called by the name `consul`, it is that
//! command instead.

#![forbid(unsafe_code)]

mod argv;
mod commands;
mod document;
mod endpoint;
mod failure;
mod flags;
mod help;
mod http;
mod moment;
mod nearest;
mod output;
mod persona;
mod program;
mod shell;
mod stream;
#[cfg(test)]
mod stub;
mod tls;
mod upload;

use std::{
    env,
    ffi::OsString,
    io::{self, IsTerminal, Write},
    process::ExitCode,
};

use crate::{persona::Persona, shell::Shell};

/// The agent allocates small objects on many threads; the system's allocator is slower at it and gives less back.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let mut words: Vec<OsString> = env::args_os().collect();
    // A shim must find a process with one thread, and costs memory for as long as a container lives: it branches
    // off before anything else.
    if words.get(1).is_some_and(|word| word == "shim") {
        wharf_launcher::shim::run(&words[2..]);
    }
    // Fails only if there is a provider already, which is then as good.
    let _ = rustls::crypto::ring::default_provider().install_default();

    let program = if words.is_empty() {
        OsString::new()
    } else {
        words.remove(0)
    };
    // Whole lines are flushed by the commands that run on; the others write one answer.
    let mut out = io::BufWriter::new(io::stdout());
    let mut shell = Shell {
        persona: Persona::of(&program),
        out: &mut out,
        err: &mut io::stderr(),
        input: &mut io::stdin(),
        terminal: io::stderr().is_terminal(),
        env: &|name| env::var(name).ok(),
    };
    let code = program::run(words, &mut shell);
    match out.flush() {
        Err(error) if code == 0 && error.kind() != io::ErrorKind::BrokenPipe => ExitCode::FAILURE,
        _ => ExitCode::from(code),
    }
}
