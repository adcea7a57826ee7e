//! The commands: one file per family, each with the definition of its commands and what they do.

mod agent;
mod alloc;
mod autopilot;
mod catalog;
mod config;
mod connect;
mod demo;
mod image;
mod job;
pub(crate) mod kv;
mod lifecycle;
mod maint;
mod members;
mod node;
mod operator;
mod services;
mod snapshot;
pub(crate) mod unbuilt;
mod validate;
pub(crate) mod version;
mod watch;

use clap::{ArgMatches, Command};

use crate::{endpoint::connection_flags, failure::Failure, shell::Shell};

/// The commands by what people come for, in the order `wharf -help` shows them.
pub(crate) const GROUPS: [(&str, &[&str]); 6] = [
    ("Run", &["agent", "connect", "demo"]),
    ("Register and configure", &["services", "config", "kv"]),
    ("Run jobs", &["job", "alloc", "node", "image"]),
    ("Look", &["catalog", "members", "info", "watch", "monitor"]),
    (
        "Operate",
        &[
            "snapshot",
            "maint",
            "reload",
            "join",
            "leave",
            "force-leave",
            "operator",
        ],
    ),
    ("Without an agent", &["validate", "keygen", "version"]),
];

/// Every command there is.
pub(crate) fn tree() -> Command {
    Command::new("wharf")
        .about("Service registry, DNS, mesh and scheduler in one binary")
        .group_help(
            "  $ wharf agent -dev                           start a whole cluster of one, in memory
  $ wharf job run examples/web.hcl
  $ wharf services register -name=web -port=8080
  $ wharf catalog services -tags
  $ wharf kv put redis/maxconns 5
  $ wharf connect proxy -service=me -upstream=web:9191",
        )
        .args(connection_flags())
        .subcommands([
            agent::command(),
            connect::command(),
            demo::command(),
            job::command(),
            alloc::command(),
            node::command(),
            services::command(),
            config::command(),
            kv::command(),
            image::command(),
            catalog::command(),
            members::command(),
            members::info_command(),
            watch::command(),
            lifecycle::monitor_command(),
            snapshot::command(),
            maint::command(),
            lifecycle::reload_command(),
            lifecycle::join_command(),
            lifecycle::leave_command(),
            lifecycle::force_leave_command(),
            operator::command(),
            validate::command(),
            version::keygen_command(),
            version::command(),
        ])
}

/// Runs the command at `path`, which is one of [`tree`].
pub(crate) fn run(
    path: &[&str],
    matches: &ArgMatches,
    shell: &mut Shell<'_>,
) -> Result<(), Failure> {
    match path {
        ["agent"] => agent::run(matches),
        ["validate"] => validate::run(matches, shell),
        ["connect", "proxy"] => connect::proxy(matches, shell),
        ["demo"] => block_on(demo::run(matches, shell)),
        ["demo", "serve"] => block_on(demo::serve(matches, shell)),
        ["version"] => version::run(matches, shell),
        ["keygen"] => version::keygen(shell),
        ["job", verb] => block_on(job::run(verb, matches, shell)),
        ["alloc", verb] => block_on(alloc::run(verb, matches, shell)),
        ["node", verb] => block_on(node::run(verb, matches, shell)),
        ["catalog", verb] => block_on(catalog::run(verb, matches, shell)),
        ["config", verb] => block_on(config::run(verb, matches, shell)),
        ["image", verb] => block_on(image::run(verb, matches, shell)),
        ["kv", verb] => block_on(kv::run(verb, matches, shell)),
        ["snapshot", verb] => block_on(snapshot::run(verb, matches, shell)),
        ["services", verb] => block_on(services::run(verb, matches, shell)),
        ["members"] => block_on(members::run(matches, shell)),
        ["info"] => block_on(members::info(matches, shell)),
        ["watch"] => block_on(watch::run(matches, shell)),
        ["monitor"] => block_on(lifecycle::monitor(matches, shell)),
        ["maint"] => block_on(maint::run(matches, shell)),
        ["reload"] => block_on(lifecycle::reload(matches, shell)),
        ["operator", "raft", verb] => block_on(operator::raft(verb, matches, shell)),
        ["operator", "autopilot", verb] => block_on(autopilot::run(verb, matches, shell)),
        ["join"] => block_on(lifecycle::join(matches, shell)),
        ["leave"] => block_on(lifecycle::leave(matches, shell)),
        ["force-leave"] => block_on(lifecycle::force_leave(matches, shell)),
        _ => Err(Failure::new(format!(
            "there is no command {:?}",
            path.join(" ")
        ))),
    }
}

/// Drives a client command to its end; one thread is plenty for one connection.
fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(|error| Failure::new("cannot start").because(error))?;
    runtime.block_on(work)
}

/// A command that asks an agent something.
fn client_command(name: &'static str, about: &'static str) -> Command {
    Command::new(name).about(about).args(connection_flags())
}

/// The examples of a command that only holds others.
trait GroupHelp {
    fn group_help(self, examples: &'static str) -> Self;
}

impl GroupHelp for Command {
    fn group_help(self, examples: &'static str) -> Self {
        self.after_help(examples).subcommand_required(true)
    }
}
