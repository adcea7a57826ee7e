//! What a command can touch of the world around it.
//!
//! Data goes to `out`, messages to `err`; tests bring their own of each.

use std::{
    fmt,
    io::{Read, Write},
};

use clap::ArgMatches;

use crate::{
    endpoint::{Endpoint, Env},
    failure::Failure,
    http::Client,
    output::indented,
    persona::Persona,
};

pub(crate) struct Shell<'a> {
    pub(crate) persona: Persona,
    pub(crate) out: &'a mut dyn Write,
    pub(crate) err: &'a mut dyn Write,
    pub(crate) input: &'a mut dyn Read,
    /// Messages go to a person's terminal: progress can be drawn.
    pub(crate) terminal: bool,
    pub(crate) env: Env<'a>,
}

impl fmt::Debug for Shell<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shell")
            .field("persona", &self.persona)
            .finish_non_exhaustive()
    }
}

impl Shell<'_> {
    /// A client for the agent that the flags and the environment name.
    pub(crate) fn client(&self, matches: &ArgMatches) -> Result<Client, Failure> {
        Endpoint::from_flags(matches, self.env).map(Client::new)
    }

    pub(crate) fn line(&mut self, text: impl fmt::Display) -> Result<(), Failure> {
        Ok(writeln!(self.out, "{text}")?)
    }

    pub(crate) fn text(&mut self, text: &str) -> Result<(), Failure> {
        Ok(self.out.write_all(text.as_bytes())?)
    }

    /// JSON with the four spaces of Consul's `-format=json`.
    pub(crate) fn json(&mut self, json: &[u8]) -> Result<(), Failure> {
        let text = indented(json, "    ")
            .map_err(|error| Failure::new("the agent did not answer with JSON").because(error))?;
        self.text(&text)
    }

    pub(crate) fn object(&mut self, value: &impl serde::Serialize) -> Result<(), Failure> {
        let json = serde_json::to_vec(value)
            .map_err(|error| Failure::new("cannot write JSON").because(error))?;
        self.json(&json)
    }

    /// A message beside the data.
    pub(crate) fn note(&mut self, text: impl fmt::Display) {
        // Where messages cannot be written, there is nobody to tell.
        let _ = writeln!(self.err, "{text}");
    }

    /// DATA as `kv put` and `config write` take it: `@file`, `-` for stdin, else the text itself.
    pub(crate) fn load(&mut self, data: &str) -> Result<Vec<u8>, Failure> {
        match data.strip_prefix('@') {
            Some(file) => read_file(file),
            None if data == "-" => {
                let mut bytes = Vec::new();
                self.input
                    .read_to_end(&mut bytes)
                    .map_err(|error| Failure::new("Failed to read stdin").because(error))?;
                Ok(bytes)
            }
            None => Ok(data.as_bytes().to_vec()),
        }
    }
}

pub(crate) fn read_file(path: &str) -> Result<Vec<u8>, Failure> {
    std::fs::read(path)
        .map_err(|error| Failure::new(format!("Failed to read file: {path}")).because(error))
}
