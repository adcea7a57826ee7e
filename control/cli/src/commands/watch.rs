//! `watch`: run a command, or print, whenever something in the cluster changes.
//!
//! Built on blocking queries as Consul's clients do them: wait on the index of the last answer, start over when
//! the index goes backwards, pass on only what differs from the last time.

mod handler;
mod view;

use std::time::Duration;

use bytes::Bytes;
use clap::{ArgMatches, Command};

use self::{handler::Handler, view::View};
use super::client_command;
use crate::{
    failure::Failure,
    flags::{Given, argument, repeated, switch, value},
    http::{Client, HttpError},
    shell::Shell,
};

/// Consul's own default for how long a blocking query is held.
const WAIT: Duration = Duration::from_secs(300);
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

pub(super) fn command() -> Command {
    client_command("watch", "Run a command whenever something changes")
        .args([
            value("type", "type", "What to watch: key, keyprefix, services, nodes, service, checks, agent_service"),
            value("key", "key", "The key, for type key"),
            value("prefix", "prefix", "The prefix, for type keyprefix"),
            value("service", "name", "The service, for type service; for type checks: only its checks"),
            repeated("tag", "tag", "Only instances with this tag, for type service; may be repeated"),
            value("passingonly", "true|false", "Only passing instances, for type service (default false)"),
            value("state", "state", "Only checks in this state, for type checks (default any)"),
            value("service-id", "id", "The instance, for type agent_service"),
            value("filter", "expression", "Only what the expression holds for"),
            value("name", "name", "The event, for type event"),
            switch("shell", "Run the command through $SHELL, or /bin/sh (default true)"),
            switch("follow", "Without a command: go on printing, one JSON value a change"),
        ])
        .arg(argument("COMMAND").num_args(0..).trailing_var_arg(true).allow_hyphen_values(true))
        .long_about(
            "The command gets the new state as JSON on its standard input, and its index in CONSUL_INDEX. The\n\
             next change waits until it has ended. If it fails, the watch ends with exit code 1.\n\
             Without a command, prints the state once and ends.",
        )
        .after_help(
            "  $ wharf watch -type=service -service=web ./reload-balancer.sh
  $ wharf watch -type=keyprefix -prefix=app/ -follow
  $ wharf watch -type=checks -state=critical",
        )
}

pub(super) async fn run(matches: &ArgMatches, shell: &mut Shell<'_>) -> Result<(), Failure> {
    let view = View::from_flags(matches)?;
    let handler = Handler::new(
        matches.texts("COMMAND"),
        matches.switch("shell").unwrap_or(true),
        shell.env,
    );
    let forever = handler.is_some() || matches.on("follow");
    let mut client = shell.client(matches)?;
    let mut cursor = Cursor::default();
    let mut pause = FIRST_PAUSE;
    loop {
        match cursor.next(&view, &mut client).await {
            Ok(None) => pause = FIRST_PAUSE,
            Ok(Some(state)) => {
                pause = FIRST_PAUSE;
                match &handler {
                    Some(handler) => handler.run(&state, cursor.index).await?,
                    None => {
                        shell.json(&state)?;
                        shell.out.flush()?;
                    }
                }
                if !forever {
                    return Ok(());
                }
            }
            // A watch that runs forever outlives the restart of its agent.
            Err(error) if forever && cursor.started() => {
                let failure = error.while_(format_args!("watch of {view} failed"));
                let text = failure.text(shell.persona);
                shell.note(format_args!("{text}\n  again in {} s", pause.as_secs()));
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            Err(error) => return Err(error.while_("Error querying Consul agent")),
        }
    }
}

/// How far a watch has seen.
#[derive(Debug, Default)]
struct Cursor {
    index: u64,
    hash: String,
    last: Option<Bytes>,
}

impl Cursor {
    fn started(&self) -> bool {
        self.last.is_some()
    }

    /// Waits for the next answer; `None` if it is the state that is known already.
    async fn next(&mut self, view: &View, client: &mut Client) -> Result<Option<Bytes>, HttpError> {
        let answer = client
            .send(view.request(self.index, &self.hash, WAIT))
            .await?;
        let index = answer.index();
        let hash = answer.hash();
        let state = view.state(answer)?;
        self.index = match index {
            // The log was restored from an older one: what was seen means nothing any more.
            Some(index) if index < self.index => 0,
            Some(index) => index,
            None => self.index,
        };
        self.hash = hash.unwrap_or_default();
        if self.last.as_ref() == Some(&state) {
            return Ok(None);
        }
        self.last = Some(state.clone());
        Ok(Some(state))
    }
}
