//! The command that a watch runs for each change.

use std::{io, process::Stdio};

use tokio::{io::AsyncWriteExt, process::Command};

use crate::{endpoint::Env, failure::Failure};

pub(super) struct Handler {
    program: String,
    args: Vec<String>,
}

impl Handler {
    /// `None` without words. With `shell`, the words are one command line for it.
    pub(super) fn new(words: Vec<&str>, shell: bool, env: Env<'_>) -> Option<Self> {
        let (first, rest) = words.split_first()?;
        if shell {
            return Some(Self {
                program: env("SHELL")
                    .filter(|shell| !shell.is_empty())
                    .unwrap_or_else(|| "/bin/sh".to_owned()),
                args: vec!["-c".to_owned(), words.join(" ")],
            });
        }
        Some(Self {
            program: (*first).to_owned(),
            args: rest.iter().map(|word| (*word).to_owned()).collect(),
        })
    }

    /// Runs the command with `state` on its standard input, and waits for its end.
    pub(super) async fn run(&self, state: &[u8], index: u64) -> Result<(), Failure> {
        let failed = |error: io::Error| Failure::new("Error executing handler").because(error);
        let mut child = Command::new(&self.program)
            .args(&self.args)
            .env("CONSUL_INDEX", index.to_string())
            .stdin(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        // A command that reads slowly is waited for together with its end; one that does not read at all
        // closes the pipe when it ends.
        let stdin = child.stdin.take();
        let write = async move {
            let Some(mut stdin) = stdin else {
                return Ok(());
            };
            stdin.write_all(state).await?;
            stdin.write_all(b"\n").await
        };
        let (written, ended) = tokio::join!(write, child.wait());
        let status = ended.map_err(failed)?;
        if !status.success() {
            return Err(Failure::new(format!("Error executing handler: {status}")));
        }
        match written {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(failed(error)),
            _ => Ok(()),
        }
    }
}
