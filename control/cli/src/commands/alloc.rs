//! `alloc`: what runs where, and what became of it.

use clap::{ArgMatches, Command};
use wharf_registry::model::platform::Alloc;

use super::{
    GroupHelp, client_command,
    job::{AllocStub, alloc_table, short, story::story},
};
use crate::{
    failure::Failure,
    flags::{Given, argument, switch, value},
    http::{Request, segment},
    moment::utc,
    output::{Format, columns, pairs},
    shell::Shell,
    stream::print_stream,
};

pub(super) fn command() -> Command {
    Command::new("alloc")
        .about("Look at the instances of jobs, stop one")
        .group_help(
            "  $ wharf alloc status             all of them
  $ wharf alloc status 3f2a91c0    one, with its story
  $ wharf alloc logs -f 3f2a91c0   what it writes
  $ wharf alloc stop 3f2a91c0      it is replaced",
        )
        .subcommands([status_command(), logs_command(), stop_command()])
}

pub(super) async fn run(
    verb: &str,
    matches: &ArgMatches,
    shell: &mut Shell<'_>,
) -> Result<(), Failure> {
    match verb {
        "status" => status(matches, shell).await,
        "logs" => logs(matches, shell).await,
        _ => stop(matches, shell).await,
    }
}

fn status_command() -> Command {
    client_command("status", "Show all allocations, or the story of one")
        .arg(argument("ID"))
        .arg(Format::flag())
        .long_about(
            "The beginning of an id is enough, as long as it is the only one that begins so.",
        )
        .after_help("  $ wharf alloc status\n  $ wharf alloc status 3f2a91c0")
}

async fn status(matches: &ArgMatches, shell: &mut Shell<'_>) -> Result<(), Failure> {
    let Some(id) = matches.text("ID") else {
        return all(matches, shell).await;
    };
    let failing = format!("Error reading allocation {id}");
    let request = Request::get(format!("/v1/allocation/{}", segment(id)));
    let answer = shell.client(matches)?.fetch(request).await;
    let answer = answer.map_err(|error| error.while_(&failing))?;
    if Format::of(matches) == Format::Json {
        return shell.json(&answer.body);
    }
    let alloc: Alloc = answer.json().map_err(|error| error.while_(&failing))?;
    shell.text(&described(&alloc))
}

fn logs_command() -> Command {
    client_command("logs", "Print what a task of an allocation wrote")
        .arg(argument("ID").required(true))
        .args([
            switch("f", "Go on as it writes, until the allocation has ended"),
            switch(
                "stderr",
                "Its standard error instead of its standard output",
            ),
            value("task", "name", "Which task, if there is more than one"),
            value("tail", "bytes", "Begin about so many bytes before the end"),
        ])
        .after_help(
            "  $ wharf alloc logs 3f2a91c0\n  $ wharf alloc logs -f -stderr -task=web 3f2a91c0",
        )
}

async fn logs(matches: &ArgMatches, shell: &mut Shell<'_>) -> Result<(), Failure> {
    let id = matches.text("ID").unwrap_or_default();
    let stream = if matches.on("stderr") {
        "stderr"
    } else {
        "stdout"
    };
    let mut request = Request::get(format!("/v1/allocation/{}/logs", segment(id)))
        .param("type", stream)
        .maybe("task", matches.text("task"))
        .maybe("tail", matches.text("tail"));
    if matches.on("f") {
        request = request.mark("follow");
    }
    let mut client = shell.client(matches)?;
    let body = client.stream(request).await;
    let body = body.map_err(|error| error.while_(format!("Error reading output of {id}")))?;
    print_stream(body, "the output broke off", shell)
        .await
        .map(drop)
}

async fn all(matches: &ArgMatches, shell: &mut Shell<'_>) -> Result<(), Failure> {
    let failing = "Error listing allocations";
    let request = Request::get("/v1/allocations");
    let answer = shell.client(matches)?.fetch(request).await;
    let answer = answer.map_err(|error| error.while_(failing))?;
    if Format::of(matches) == Format::Json {
        return shell.json(&answer.body);
    }
    let allocs: Vec<AllocStub> = answer.json().map_err(|error| error.while_(failing))?;
    if allocs.is_empty() {
        shell.note("There are no allocations. Run a job: wharf job run FILE");
        return Ok(());
    }
    shell.text(&alloc_table(allocs))
}

/// An allocation for people: what it is, where, its tasks, why it is there, and its story.
fn described(alloc: &Alloc) -> String {
    let with = |status: &str, description: &str| match description {
        "" => status.to_owned(),
        why => format!("{status} ({why})"),
    };
    let mut text = pairs(
        &[
            ("ID", alloc.id.to_string()),
            ("Name", alloc.name.to_string()),
            (
                "Job",
                format!("{} (version {})", alloc.job_name, alloc.job_version),
            ),
            (
                "Node",
                format!("{} ({})", alloc.node, short(&alloc.node_id)),
            ),
            (
                "Status",
                with(alloc.client_status.as_str(), &alloc.client_description),
            ),
            (
                "Desired",
                with(alloc.desired_status.as_str(), &alloc.desired_description),
            ),
            (
                "Address",
                match &*alloc.address {
                    "" => "-".to_owned(),
                    address => address.to_owned(),
                },
            ),
            (
                "Reserved",
                format!(
                    "cpu {}m, memory {} MiB",
                    alloc.resources.cpu, alloc.resources.memory_mb
                ),
            ),
            ("Created", utc(alloc.create_time)),
        ],
        2,
    );
    if !alloc.ports.is_empty() {
        let header = ["Port", "Node", "Task"].map(str::to_owned);
        let rows = alloc.ports.iter().map(|port| {
            [
                port.label.to_string(),
                port.value.to_string(),
                port.to.to_string(),
            ]
        });
        let rows: Vec<_> = std::iter::once(header).chain(rows).collect();
        text.push('\n');
        text.push_str(&columns(&rows));
    }
    if !alloc.task_states.is_empty() {
        let header =
            ["Task", "State", "Restarts", "Started", "Finished", "Exit"].map(str::to_owned);
        let rows = alloc.task_states.iter().map(|(name, task)| {
            let exit = match (task.exit_code, task.signal, task.oom_killed) {
                (_, _, true) => "out of memory".to_owned(),
                (_, signal, _) if signal != 0 => format!("signal {signal}"),
                (Some(code), _, _) => code.to_string(),
                (None, _, _) => "-".to_owned(),
            };
            [
                name.to_string(),
                match task.failed {
                    true => "failed".to_owned(),
                    false => task.state.to_string(),
                },
                task.restarts.to_string(),
                utc(task.started_at),
                utc(task.finished_at),
                exit,
            ]
        });
        let rows: Vec<_> = std::iter::once(header).chain(rows).collect();
        text.push('\n');
        text.push_str(&columns(&rows));
    }
    if !alloc.placement.scores.is_empty() {
        let placement = &alloc.placement;
        text.push_str(&format!(
            "\nPlaced here after a look at {} of the nodes, {} of which were not able to take it\n",
            placement.nodes_evaluated, placement.nodes_filtered
        ));
        let header = ["Candidate", "Score", "Made of"].map(str::to_owned);
        let rows = placement.scores.iter().map(|score| {
            let parts: Vec<String> = score
                .scores
                .iter()
                .map(|(name, score)| format!("{name} {score:.3}"))
                .collect();
            [
                score.node.to_string(),
                format!("{:.3}", score.final_score),
                parts.join(", "),
            ]
        });
        let rows: Vec<_> = std::iter::once(header).chain(rows).collect();
        text.push_str(&columns(&rows));
    }
    let header = ["Time (UTC)", "Task", "Event", "Message"].map(str::to_owned);
    let rows = story(alloc)
        .into_iter()
        .map(|event| [utc(event.time), event.task, event.kind, event.message]);
    let rows: Vec<_> = std::iter::once(header).chain(rows).collect();
    text.push('\n');
    text.push_str(&columns(&rows));
    text
}

fn stop_command() -> Command {
    client_command("stop", "Stop an allocation; its job replaces it")
        .arg(argument("ID"))
        .after_help("  $ wharf alloc stop 3f2a91c0")
}

async fn stop(matches: &ArgMatches, shell: &mut Shell<'_>) -> Result<(), Failure> {
    let Some(id) = matches.text("ID") else {
        return Err(
            Failure::new("Must provide the id of an allocation").hint("wharf alloc stop 3f2a91c0")
        );
    };
    let request = Request::put(format!("/v1/allocation/{}/stop", segment(id)));
    let alloc: AllocStub = shell
        .client(matches)?
        .fetch_json(request)
        .await
        .map_err(|error| error.while_(format!("Error stopping allocation {id}")))?;
    shell.line(format_args!(
        "{} ({}) is told to stop",
        alloc.name,
        short(&alloc.id)
    ))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use wharf_registry::model::platform::{
        ClientStatus, DesiredStatus, NodeScore, Placement, TaskEvent, TaskState,
    };

    use super::*;

    #[test]
    fn the_story_is_told_in_the_order_of_time() {
        let second = 1_000_000_000;
        let mut task = TaskState {
            restarts: 1,
            exit_code: Some(3),
            ..TaskState::default()
        };
        for (at, kind) in [(2, "Started"), (4, "Terminated"), (5, "Started")] {
            task.record(TaskEvent {
                time: at * second,
                kind: kind.into(),
                message: "m".into(),
                ..TaskEvent::default()
            });
        }
        let score = NodeScore {
            node: "n1".into(),
            scores: [("binpack".into(), 0.5)].into(),
            final_score: 0.5,
            ..NodeScore::default()
        };
        let alloc = Alloc {
            id: "3f2a91c0-aaaa".into(),
            name: "web.web[0]".into(),
            node: "n1".into(),
            client_status: ClientStatus::Complete,
            desired_status: DesiredStatus::Stop,
            desired_description: "the job is stopped".into(),
            task_states: [("web".into(), task)].into(),
            placement: Arc::new(Placement {
                nodes_evaluated: 1,
                nodes_filtered: 0,
                scores: vec![score],
            }),
            create_time: second,
            stop_time: 6 * second,
            end_time: 7 * second,
            ..Alloc::default()
        };
        let kinds: Vec<String> = story(&alloc).into_iter().map(|event| event.kind).collect();
        assert_eq!(
            kinds,
            [
                "Placed",
                "Started",
                "Terminated",
                "Started",
                "Stopping",
                "Complete"
            ]
        );
        let text = described(&alloc);
        for part in [
            "Desired   stop (the job is stopped)",
            "n1         0.500  binpack 0.500",
            "1970-01-01 00:00:06.000        Stopping    the job is stopped",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
    }
}
