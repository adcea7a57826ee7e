//! `job status`: how jobs are doing.

use clap::{ArgMatches, Command};
use serde::Deserialize;
use wharf_agent::platform::JobSummary;

use super::{AllocStub, JobDetail, job_path, short};
use crate::{
    commands::client_command,
    failure::Failure,
    flags::{Given, argument},
    http::Request,
    moment::{age, now, utc},
    output::{Format, columns, pairs},
    shell::Shell,
};

pub(super) fn command() -> Command {
    client_command("status", "Show all jobs, or one with its allocations")
        .arg(argument("NAME"))
        .arg(Format::flag())
        .after_help("  $ wharf job status\n  $ wharf job status web")
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct JobStub {
    name: String,
    #[serde(rename = "Type")]
    kind: String,
    version: u64,
    submit_time: i64,
    #[serde(flatten)]
    summary: JobSummary,
}

pub(super) async fn run(matches: &ArgMatches, shell: &mut Shell<'_>) -> Result<(), Failure> {
    match matches.text("NAME") {
        Some(name) => one(name, matches, shell).await,
        None => all(matches, shell).await,
    }
}

async fn all(matches: &ArgMatches, shell: &mut Shell<'_>) -> Result<(), Failure> {
    let failing = "Error listing jobs";
    let answer = shell.client(matches)?.fetch(Request::get("/v1/jobs")).await;
    let answer = answer.map_err(|error| error.while_(failing))?;
    if Format::of(matches) == Format::Json {
        return shell.json(&answer.body);
    }
    let jobs: Vec<JobStub> = answer.json().map_err(|error| error.while_(failing))?;
    if jobs.is_empty() {
        shell.note("There are no jobs. Run one: wharf job run FILE");
        return Ok(());
    }
    let now = now();
    let header = ["Name", "Type", "Status", "Running", "Version", "Age"].map(str::to_owned);
    let rows = jobs.iter().map(|job| {
        let (running, desired) = job.summary.running();
        [
            job.name.clone(),
            job.kind.clone(),
            job.summary.status.to_string(),
            format!("{running}/{desired}"),
            job.version.to_string(),
            age(job.submit_time, now),
        ]
    });
    let rows: Vec<_> = std::iter::once(header).chain(rows).collect();
    shell.text(&columns(&rows))
}

async fn one(name: &str, matches: &ArgMatches, shell: &mut Shell<'_>) -> Result<(), Failure> {
    let failing = format!("Error reading job {name:?}");
    let mut client = shell.client(matches)?;
    let answer = client.fetch(Request::get(job_path(name))).await;
    let answer = answer.map_err(|error| error.while_(&failing))?;
    if Format::of(matches) == Format::Json {
        return shell.json(&answer.body);
    }
    let detail: JobDetail = answer.json().map_err(|error| error.while_(&failing))?;
    let request = Request::get(format!("{}/allocations", job_path(name)));
    let allocs: Vec<AllocStub> = client
        .fetch_json(request)
        .await
        .map_err(|error| error.while_(&failing))?;
    let job = &detail.job;
    shell.text(&pairs(
        &[
            ("Name", job.name.to_string()),
            ("Type", job.kind.to_string()),
            ("Status", detail.summary.status.to_string()),
            ("Version", job.version.to_string()),
            ("Submitted", utc(job.submit_time)),
        ],
        2,
    ))?;
    let header = [
        "Group", "Desired", "Running", "Healthy", "Pending", "Stopping", "Outdated", "Failed",
        "Lost", "Complete",
    ]
    .map(str::to_owned);
    let rows = detail.summary.summary.iter().map(|(name, group)| {
        let counts = [
            group.desired,
            group.running,
            group.healthy,
            group.pending,
            group.stopping,
            group.outdated,
            group.failed,
            group.lost,
            group.complete,
        ]
        .map(|count| count.to_string());
        let [a, b, c, d, e, f, g, h, i] = counts;
        [name.to_string(), a, b, c, d, e, f, g, h, i]
    });
    let rows: Vec<_> = std::iter::once(header).chain(rows).collect();
    shell.text("\nGroups\n")?;
    shell.text(&columns(&rows))?;
    if !detail.placement_failures.is_empty() {
        shell.text("\nNot placed\n")?;
        for failure in &detail.placement_failures {
            shell.line(format_args!(
                "{} of group {:?}: {}",
                failure.count, &*failure.group, failure.reason
            ))?;
        }
    }
    if allocs.is_empty() {
        return Ok(());
    }
    shell.text("\nAllocations\n")?;
    shell.text(&alloc_table(allocs))
}

/// A table of allocations, newest first.
pub(in crate::commands) fn alloc_table(mut allocs: Vec<AllocStub>) -> String {
    allocs.sort_by(|a, b| {
        let newest_first = b.create_time.cmp(&a.create_time);
        newest_first.then_with(|| numbered(&a.name).cmp(&numbered(&b.name)))
    });
    let now = now();
    let header = [
        "ID", "Name", "Node", "Version", "Desired", "Status", "Restarts", "Address", "Age", "",
    ]
    .map(str::to_owned);
    let rows = allocs.into_iter().map(|alloc| {
        let ports: Vec<String> = alloc
            .ports
            .iter()
            .map(|port| format!("{}={}", port.label, port.value))
            .collect();
        let address = match (alloc.address.is_empty(), ports.is_empty()) {
            (true, true) => "-".to_owned(),
            (false, true) => alloc.address.clone(),
            (true, false) => ports.join(","),
            (false, false) => format!("{} {}", alloc.address, ports.join(",")),
        };
        let restarts: u32 = alloc.task_states.values().map(|task| task.restarts).sum();
        [
            short(&alloc.id).to_owned(),
            alloc.name,
            alloc.node,
            alloc.job_version.to_string(),
            alloc.desired_status.to_string(),
            alloc.client_status.to_string(),
            restarts.to_string(),
            address,
            age(alloc.create_time, now),
            alloc.client_description,
        ]
    });
    let rows: Vec<_> = std::iter::once(header).chain(rows).collect();
    columns(&rows)
}

/// `web.web[10]` as what is before its number, and the number.
fn numbered(name: &str) -> (&str, u64) {
    let parts = name
        .strip_suffix(']')
        .and_then(|name| name.rsplit_once('['));
    match parts.map(|(group, index)| (group, index.parse())) {
        Some((group, Ok(index))) => (group, index),
        _ => (name, 0),
    }
}
