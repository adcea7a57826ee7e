//! What is run with the new state: a program, or a request.

use std::{collections::BTreeMap, io, process::ExitStatus, time::Duration};

use http::StatusCode;
use tokio::process::Command;
use wharf_registry::model::Str;

use crate::{
    checks::{self, HttpFailure, Tail},
    config::{HttpHandler, WatchDefinition},
    local::{CheckTls, HttpCheck},
};

/// Of what a program prints, and of a response.
const SHOWN: usize = 4096;
const HTTP_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) enum Handler {
    /// A program with its arguments.
    Program(Vec<String>),
    Http(HttpHandler),
}

/// Why a handler failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum HandlerError {
    #[error("cannot run {program}: {source}")]
    Run { program: String, source: io::Error },
    #[error("{program} ended with {status}{}", shown(output))]
    Failed {
        program: String,
        status: ExitStatus,
        output: String,
    },
    #[error("{url}: {source}")]
    Http { url: String, source: HttpFailure },
    #[error("{url} answered {status}{}", shown(body))]
    Refused {
        url: String,
        status: StatusCode,
        body: String,
    },
    #[error("{url} did not answer within {} s", within.as_secs_f32())]
    TimedOut { url: String, within: Duration },
}

fn shown(text: &str) -> String {
    match text.trim_end() {
        "" => String::new(),
        text => format!(": {text}"),
    }
}

impl Handler {
    /// Of a definition that was validated.
    pub(super) fn of(definition: &WatchDefinition) -> Handler {
        match &definition.http_handler_config {
            Some(config) if definition.handler_type == "http" => Handler::Http(config.clone()),
            _ if definition.args.is_empty() => {
                let line = definition.handler.clone();
                Handler::Program(vec!["/bin/sh".into(), "-c".into(), line])
            }
            _ => Handler::Program(definition.args.clone()),
        }
    }

    /// Runs it to its end. Dropped before that, all its processes are killed.
    pub(super) async fn run(&self, state: &[u8], index: u64) -> Result<(), HandlerError> {
        match self {
            Handler::Program(words) => program(words, state, index).await,
            Handler::Http(config) => request(config, state, index).await,
        }
    }
}

async fn program(words: &[String], state: &[u8], index: u64) -> Result<(), HandlerError> {
    let Some((name, arguments)) = words.split_first() else {
        return Ok(());
    };
    let mut command = Command::new(name);
    command
        .args(arguments)
        .env("CONSUL_INDEX", index.to_string());
    let mut tail = Tail::of(SHOWN);
    let input = [state, b"\n"].concat();
    let ended = checks::run_program(&mut command, Some(&input), &mut tail).await;
    let status = ended.map_err(|source| HandlerError::Run {
        program: name.clone(),
        source,
    })?;
    let output = tail.into_text();
    if status.success() {
        tracing::debug!(program = name, output, "the handler of a watch has run");
        return Ok(());
    }
    Err(HandlerError::Failed {
        program: name.clone(),
        status,
        output,
    })
}

async fn request(config: &HttpHandler, state: &[u8], index: u64) -> Result<(), HandlerError> {
    let text = |text: &str| Str::from(text);
    let mut headers: BTreeMap<Str, Vec<Str>> = config
        .header
        .iter()
        .map(|(name, values)| (text(name), values.iter().map(|value| text(value)).collect()))
        .collect();
    for (name, value) in [
        ("Content-Type", "application/json"),
        ("User-Agent", "Consul Watch Handler"),
    ] {
        let given = headers.keys().any(|own| own.eq_ignore_ascii_case(name));
        if !given {
            headers.insert(text(name), vec![text(value)]);
        }
    }
    headers.insert(text("X-Consul-Index"), vec![text(&index.to_string())]);
    let exchange = HttpCheck {
        url: text(&config.path),
        headers,
        body: text(&String::from_utf8_lossy(state)),
        tls: CheckTls {
            skip_verify: config.tls_skip_verify,
            ..CheckTls::default()
        },
        ..HttpCheck::default()
    };
    let method = match config.method.as_str() {
        "" => "POST",
        method => method,
    };
    let within = Some(config.timeout.to_std())
        .filter(|timeout| !timeout.is_zero())
        .unwrap_or(HTTP_TIMEOUT);
    let url = || config.path.clone();
    let answer = tokio::time::timeout(within, checks::fetch(&exchange, method, SHOWN)).await;
    let answer = answer.map_err(|_| HandlerError::TimedOut { url: url(), within })?;
    let (status, body) = answer.map_err(|source| HandlerError::Http { url: url(), source })?;
    if status.is_success() {
        return Ok(());
    }
    Err(HandlerError::Refused {
        url: url(),
        status,
        body: String::from_utf8_lossy(&body).into_owned(),
    })
}
