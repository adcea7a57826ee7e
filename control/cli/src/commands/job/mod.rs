//! `job`: what is to run.

mod follow;
mod status;
pub(super) mod story;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use clap::{ArgMatches, Command};
use serde::Deserialize;
use wharf_agent::{
    jobspec,
    platform::{JobSummary, scheduling::PlacementFailure},
};
use wharf_registry::model::platform::{Alloc, AllocPort, ClientStatus, DesiredStatus, Job};

use self::follow::{Follow, Goal};
pub(super) use self::status::alloc_table;
use super::{GroupHelp, client_command};
use crate::{
    document,
    failure::Failure,
    flags::{Given, argument, number, switch, value},
    http::{Client, HttpError, Request, segment},
    shell::Shell,
};

pub(super) fn command() -> Command {
    Command::new("job")
        .about("Run jobs, look after them, stop them")
        .group_help(
            "  $ wharf job run examples/web.hcl
  $ wharf job status web
  $ wharf job scale web 5
  $ wharf job stop web",
        )
        .subcommands([
            run_command(),
            status::command(),
            stop_command(),
            scale_command(),
            inspect_command(),
            validate_command(),
        ])
}

pub(super) async fn run(
    verb: &str,
    matches: &ArgMatches,
    shell: &mut Shell<'_>,
) -> Result<(), Failure> {
    match verb {
        "run" => run_job(matches, shell).await,
        "status" => status::run(matches, shell).await,
        "stop" => stop(matches, shell).await,
        "scale" => scale(matches, shell).await,
        "inspect" => inspect(matches, shell).await,
        _ => validate(matches, shell),
    }
}

/// A job as the agent shows it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct JobDetail {
    #[serde(flatten)]
    job: Job,
    #[serde(flatten)]
    summary: JobSummary,
    #[serde(default)]
    placement_failures: Vec<PlacementFailure>,
}

/// An allocation in a list.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct AllocStub {
    #[serde(rename = "ID")]
    pub(super) id: String,
    pub(super) name: String,
    pub(super) job_version: u64,
    pub(super) node: String,
    pub(super) desired_status: DesiredStatus,
    pub(super) client_status: ClientStatus,
    pub(super) client_description: String,
    pub(super) address: String,
    pub(super) ports: Vec<AllocPort>,
    pub(super) task_states: BTreeMap<String, TaskStub>,
    pub(super) modify_index: u64,
    pub(super) create_time: i64,
    pub(super) modify_time: i64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct TaskStub {
    pub(super) restarts: u32,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Registered {
    name: String,
    version: u64,
    job_modify_index: u64,
    /// What comes of the change has larger indexes.
    index: u64,
}

/// The first eight characters of an id: what tables show.
pub(super) fn short(id: &str) -> &str {
    id.get(..8).unwrap_or(id)
}

fn job_path(name: &str) -> String {
    format!("/v1/job/{}", segment(name))
}

fn name_of<'m>(matches: &'m ArgMatches, example: &str) -> Result<&'m str, Failure> {
    matches
        .text("NAME")
        .ok_or_else(|| Failure::new("Must provide the name of a job").hint(example))
}

async fn fetch_alloc(client: &mut Client, id: &str) -> Result<Alloc, HttpError> {
    let request = Request::get(format!("/v1/allocation/{}", segment(id)));
    client.fetch_json(request).await
}

/// The flags of the commands that follow what they began.
fn following() -> [clap::Arg; 2] {
    [
        switch("detach", "Do not follow: end when the agent has taken it"),
        value(
            "timeout",
            "duration",
            "How long to follow before giving up (default 5m)",
        ),
    ]
}

fn read_job(matches: &ArgMatches, shell: &mut Shell<'_>, example: &str) -> Result<Job, Failure> {
    let Some(file) = matches.text("FILE") else {
        return Err(Failure::new("Must provide a job file").hint(example));
    };
    let document = document::read(file, shell)?;
    jobspec::decode(document)
        .map_err(|error| Failure::new(format!("{file} is not a job")).because(error))
}

fn run_command() -> Command {
    client_command("run", "Run a job file, and follow its start")
        .arg(argument("FILE"))
        .args(following())
        .arg(number(
            "check-index",
            "Only if the job's JobModifyIndex is this; 0 means it must not exist",
        ))
        .long_about(
            "Creates the job or puts it in place of the one with its name. Instances whose part of the file\n\
             changed are replaced one at a time. Ends when everything runs; with exit code 1 and the reason\n\
             when something failed or finds no node.",
        )
        .after_help(
            "  $ wharf job run examples/web.hcl
  $ cat web.json | wharf job run -
  $ wharf job run -detach web.hcl",
        )
}

async fn run_job(matches: &ArgMatches, shell: &mut Shell<'_>) -> Result<(), Failure> {
    let job = read_job(matches, shell, "wharf job run web.hcl")?;
    let follow = Follow::from_flags(matches)?;
    let mut request = Request::put("/v1/jobs");
    if let Some(index) = matches.number("check-index") {
        request = request.param("cas", index.to_string());
    }
    let failing = format!("Error running job {:?}", &*job.name);
    let request = request.json(&job).map_err(|error| error.while_(&failing))?;
    let mut client = shell.client(matches)?;
    let answer = client.fetch_json(request).await;
    let answer: Registered = answer.map_err(|error| error.while_(&failing))?;
    shell.line(format_args!(
        "Job {:?} registered: version {}, index {}",
        answer.name, answer.version, answer.job_modify_index
    ))?;
    follow
        .until(
            Goal::Running,
            &answer.name,
            answer.index,
            &mut client,
            shell,
        )
        .await
}

fn stop_command() -> Command {
    client_command("stop", "Stop a job")
        .arg(argument("NAME"))
        .args(following())
        .arg(switch("purge", "Forget the job as well"))
        .after_help("  $ wharf job stop web\n  $ wharf job stop -purge web")
}

async fn stop(matches: &ArgMatches, shell: &mut Shell<'_>) -> Result<(), Failure> {
    let name = name_of(matches, "wharf job stop web")?;
    let follow = Follow::from_flags(matches)?;
    let mut request = Request::delete(job_path(name));
    if matches.on("purge") {
        request = request.mark("purge");
    }
    let mut client = shell.client(matches)?;
    let answer: Registered = client
        .fetch_json(request)
        .await
        .map_err(|error| error.while_(format!("Error stopping job {name:?}")))?;
    shell.line(format_args!("Job {name:?} is told to stop"))?;
    follow
        .until(Goal::Stopped, name, answer.index, &mut client, shell)
        .await
}

fn scale_command() -> Command {
    client_command("scale", "Change how many instances of a group there are")
        .arg(argument("NAME"))
        .arg(argument("GROUP"))
        .arg(argument("COUNT"))
        .args(following())
        .after_help("  $ wharf job scale web 5\n  $ wharf job scale shop worker 0")
}

async fn scale(matches: &ArgMatches, shell: &mut Shell<'_>) -> Result<(), Failure> {
    let name = name_of(matches, "wharf job scale web 5")?;
    // With one argument after the name there is no group in between.
    let (group, count) = match (matches.text("GROUP"), matches.text("COUNT")) {
        (Some(count), None) => ("", count),
        (Some(group), Some(count)) => (group, count),
        (None, _) => {
            return Err(
                Failure::new("Must provide how many instances there are to be")
                    .hint("wharf job scale web 5"),
            );
        }
    };
    let count: u32 = count.parse().map_err(|_| {
        Failure::new(format!("{count:?} is not a number of instances"))
            .hint("wharf job scale NAME [GROUP] COUNT")
    })?;
    let follow = Follow::from_flags(matches)?;
    let failing = format!("Error scaling job {name:?}");
    let body = serde_json::json!({"Group": group, "Count": count});
    let request = Request::put(format!("{}/scale", job_path(name))).json(&body);
    let request = request.map_err(|error| error.while_(&failing))?;
    let mut client = shell.client(matches)?;
    let answer: Registered = client
        .fetch_json(request)
        .await
        .map_err(|error| error.while_(&failing))?;
    shell.line(format_args!(
        "Job {name:?} scaled to {count}: version {}, index {}",
        answer.version, answer.job_modify_index
    ))?;
    follow
        .until(Goal::Running, name, answer.index, &mut client, shell)
        .await
}

fn inspect_command() -> Command {
    client_command("inspect", "Print a job as JSON, which can be run again")
        .arg(argument("NAME"))
        .arg(number("version", "This version of it, if it is kept"))
        .after_help(
            "  $ wharf job inspect web
  $ wharf job inspect -version=3 web > web.json && wharf job run web.json",
        )
}

async fn inspect(matches: &ArgMatches, shell: &mut Shell<'_>) -> Result<(), Failure> {
    let name = name_of(matches, "wharf job inspect web")?;
    let mut request = Request::get(job_path(name));
    if let Some(version) = matches.number("version") {
        request = request.param("version", version.to_string());
    }
    let detail = shell
        .client(matches)?
        .fetch_json::<JobDetail>(request)
        .await;
    let detail = detail.map_err(|error| error.while_(format!("Error reading job {name:?}")))?;
    // How it is doing is no part of what it is.
    let job = serde_json::to_vec(&detail.job)
        .map_err(|error| Failure::new(format!("job {name:?} cannot be shown")).because(error))?;
    shell.json(&job)
}

fn validate_command() -> Command {
    Command::new("validate")
        .about("Check a job file, without an agent")
        .arg(argument("FILE"))
        .after_help("  $ wharf job validate web.hcl")
}

fn validate(matches: &ArgMatches, shell: &mut Shell<'_>) -> Result<(), Failure> {
    let job = read_job(matches, shell, "wharf job validate web.hcl")?;
    let instances: u32 = job.groups.iter().map(|group| group.count).sum();
    let groups = match job.groups.len() {
        1 => "1 group".to_owned(),
        many => format!("{many} groups"),
    };
    shell.line(format_args!(
        "Job {:?} is valid: {groups}, {instances} instances",
        &*job.name
    ))
}
