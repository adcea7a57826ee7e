//! Following a job until it is as it should be: one line per event, and on a terminal a bar.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use clap::ArgMatches;
use http::StatusCode;
use wharf_agent::platform::JobStatus;
use wharf_config::GoDuration;
use wharf_registry::model::platform::{Alloc, ClientStatus, TaskGroup};

use super::{
    AllocStub, JobDetail, fetch_alloc, job_path, short,
    story::{Event, story},
};
use crate::{
    failure::Failure,
    flags::Given,
    http::{Answer, Client, Request},
    moment::{now, since},
    shell::Shell,
};

/// How long one look waits for a change: what finds no node is not announced, so it must not be long.
const LOOK: Duration = Duration::from_secs(1);
/// What nobody checks must go on running this long: a program that ends at once was running, too.
const SETTLE: Duration = Duration::from_secs(1);
/// A look while it settles, and one at checks, which announce nothing here.
const SHORT_LOOK: Duration = Duration::from_millis(100);
/// What finds no node for this long is told.
const NOWHERE: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(5 * 60);
const BAR: usize = 30;
/// What Ctrl-C means, by convention.
const INTERRUPTED: u8 = 130;

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Goal {
    /// Exactly what is asked for runs, in its newest version.
    Running,
    /// Nothing runs any more.
    Stopped,
}

/// Whether and how long to follow.
#[derive(Clone, Copy, Debug)]
pub(super) struct Follow {
    detach: bool,
    patience: Duration,
}

impl Follow {
    pub(super) fn from_flags(matches: &ArgMatches) -> Result<Follow, Failure> {
        let patience = match matches.text("timeout") {
            None => PATIENCE,
            Some(text) => text
                .parse::<GoDuration>()
                .map_err(|error| {
                    Failure::new(format!("invalid value {text:?} for flag -timeout")).because(error)
                })?
                .to_std(),
        };
        Ok(Follow {
            detach: matches.on("detach"),
            patience,
        })
    }

    pub(super) async fn until(
        self,
        goal: Goal,
        name: &str,
        index: u64,
        client: &mut Client,
        shell: &mut Shell<'_>,
    ) -> Result<(), Failure> {
        if self.detach {
            return Ok(());
        }
        shell.out.flush()?;
        let mut following = Following {
            name,
            start: now(),
            index,
            allocs: BTreeMap::new(),
            told: BTreeSet::new(),
            known: BTreeSet::new(),
            nowhere_since: None,
            complete_since: None,
            almost: false,
            progress: "nothing is known of it".to_owned(),
            bar: false,
        };
        let watching = following.watch(goal, client, shell);
        let watching = tokio::time::timeout(self.patience, watching);
        let result = tokio::select! {
            result = watching => result,
            Ok(()) = tokio::signal::ctrl_c() => {
                following.clear(shell);
                return Err(Failure::new(format!("job {name:?} goes on, without being followed"))
                    .code(INTERRUPTED)
                    .hint(format!("wharf job status {name}")));
            }
        };
        following.clear(shell);
        result.unwrap_or_else(|_| {
            let what = match goal {
                Goal::Running => "runs",
                Goal::Stopped => "has ended",
            };
            let patience = GoDuration::from(self.patience);
            Err(
                Failure::new(format!("not all of job {name:?} {what} after {patience}"))
                    .because(&following.progress)
                    .hint(format!("wharf job status {name}")),
            )
        })
    }
}

struct Following<'a> {
    name: &'a str,
    start: i64,
    /// Of the state that has the change which is followed.
    index: u64,
    /// The latest known of each allocation, by id.
    allocs: BTreeMap<String, Alloc>,
    told: BTreeSet<(String, Event)>,
    /// Allocations that were looked at: what is not told of them has just happened.
    known: BTreeSet<String>,
    nowhere_since: Option<Instant>,
    /// Since when all of it runs without having been started again.
    complete_since: Option<(Instant, u32)>,
    /// It runs, and has to prove it.
    almost: bool,
    /// How far it was at the last look.
    progress: String,
    /// There is a bar on the last line.
    bar: bool,
}

impl Following<'_> {
    async fn watch(
        &mut self,
        goal: Goal,
        client: &mut Client,
        shell: &mut Shell<'_>,
    ) -> Result<(), Failure> {
        let failing = format!("Error following job {:?}", self.name);
        let mut index = 0;
        loop {
            let allocations = format!("{}/allocations", job_path(self.name));
            let mut request = Request::get(allocations);
            if index > 0 {
                let wait = match self.almost {
                    true => SHORT_LOOK,
                    false => LOOK,
                };
                request = request
                    .param("index", index.to_string())
                    .param("wait", format!("{}ms", wait.as_millis()));
            }
            let answer = client.fetch(request).await;
            let answer: Answer = answer.map_err(|error| error.while_(&failing))?;
            index = answer.index().unwrap_or(0);
            let stubs: Vec<AllocStub> = answer.json().map_err(|error| error.while_(&failing))?;
            for stub in &stubs {
                let known = self.allocs.get(&stub.id);
                if known.is_some_and(|alloc| alloc.modify_index >= stub.modify_index) {
                    continue;
                }
                match fetch_alloc(client, &stub.id).await {
                    Ok(alloc) => {
                        self.allocs.insert(stub.id.clone(), alloc);
                    }
                    // It was forgotten in between.
                    Err(crate::http::HttpError::Status { code, .. })
                        if code == StatusCode::NOT_FOUND => {}
                    Err(error) => return Err(error.while_(&failing)),
                }
            }
            self.tell(shell)?;
            let detail = client
                .send(Request::get(job_path(self.name)))
                .await
                .map_err(|error| error.while_(&failing))?;
            if detail.status == StatusCode::NOT_FOUND {
                // Purged: what is left of it is in the list above.
                let live = self.allocs.values().filter(|alloc| alloc.is_live()).count();
                match goal {
                    Goal::Stopped if live == 0 => return self.ended(shell),
                    Goal::Stopped => continue,
                    Goal::Running => {
                        return Err(Failure::new(format!("job {:?} was purged", self.name)));
                    }
                }
            }
            let detail: JobDetail = detail
                .ok()
                .and_then(|answer| answer.json())
                .map_err(|error| error.while_(&failing))?;
            if self.is_over(goal, &detail, shell)? {
                return Ok(());
            }
        }
    }

    /// Prints what was not printed yet.
    fn tell(&mut self, shell: &mut Shell<'_>) -> Result<(), Failure> {
        let mut news: Vec<(Event, String, String)> = Vec::new();
        for (id, alloc) in &self.allocs {
            let new = alloc.create_index > self.index;
            let stopped = alloc.alloc_modify_index > self.index;
            let known = self.known.contains(id);
            for event in story(alloc) {
                if !self.told.insert((id.clone(), event.clone())) {
                    continue;
                }
                // What happened before is in `alloc status`.
                if new || known || (stopped && event.is_end()) {
                    news.push((event, id.clone(), alloc.name.to_string()));
                }
            }
            self.known.insert(id.clone());
        }
        if news.is_empty() {
            return Ok(());
        }
        self.clear(shell);
        news.sort();
        for (event, id, name) in news {
            let at = since(self.start, event.time);
            let message = match (event.task.is_empty(), event.message.is_empty()) {
                (true, _) => event.message,
                (false, true) => event.task,
                (false, false) => format!("{}: {}", event.task, event.message),
            };
            let line = format!(
                "{at:>8}  {}  {name}  {:<11} {message}",
                short(&id),
                event.kind
            );
            shell.line(line.trim_end())?;
        }
        Ok(shell.out.flush()?)
    }

    fn is_over(
        &mut self,
        goal: Goal,
        detail: &JobDetail,
        shell: &mut Shell<'_>,
    ) -> Result<bool, Failure> {
        let (running, desired) = detail.summary.running();
        match goal {
            Goal::Stopped => {
                if !detail.job.stop {
                    return Err(Failure::new(format!(
                        "job {:?} was run again in the meantime",
                        self.name
                    )));
                }
                if detail.summary.status == JobStatus::Dead {
                    self.ended(shell)?;
                    return Ok(true);
                }
                let left = self.allocs.values().filter(|alloc| alloc.is_live()).count();
                self.draw(shell, self.allocs.len() - left, self.allocs.len(), "ended");
                Ok(false)
            }
            Goal::Running if detail.job.stop => Err(Failure::new(format!(
                "job {:?} was stopped in the meantime",
                self.name
            ))),
            Goal::Running => {
                self.failed(detail)?;
                let stopping = detail
                    .summary
                    .summary
                    .values()
                    .any(|group| group.stopping > 0);
                self.almost = detail.summary.status == JobStatus::Running && !stopping;
                if !self.almost {
                    self.complete_since = None;
                    self.draw(shell, running as usize, desired as usize, "running");
                    return Ok(false);
                }
                if !detail.summary.is_healthy() {
                    self.complete_since = None;
                    let healthy = detail.summary.healthy() as usize;
                    self.draw(shell, healthy, desired as usize, "healthy");
                    return Ok(false);
                }
                if !detail.job.groups.iter().all(|group| is_checked(group)) {
                    let restarts = self.restarts();
                    let since = match self.complete_since {
                        Some((since, before)) if before == restarts => since,
                        _ => {
                            let since = Instant::now();
                            self.complete_since = Some((since, restarts));
                            since
                        }
                    };
                    if since.elapsed() < SETTLE {
                        return Ok(false);
                    }
                }
                self.clear(shell);
                shell.line(format_args!(
                    "Job {:?} runs: {running}/{desired} instances",
                    self.name
                ))?;
                Ok(true)
            }
        }
    }

    /// Whether it cannot come to run, as far as can be told: an instance failed, or finds no node.
    fn failed(&mut self, detail: &JobDetail) -> Result<(), Failure> {
        let hint = |id: &str| format!("wharf alloc status {}", short(id));
        let version = detail.job.version;
        // Of several, the first: the others most likely failed for the same reason.
        let failed = self
            .allocs
            .values()
            .filter(|alloc| alloc.client_status == ClientStatus::Failed)
            .filter(|alloc| alloc.job_version == version && alloc.create_index > self.index)
            .min_by_key(|alloc| alloc.end_time);
        if let Some(alloc) = failed {
            let last = story(alloc)
                .into_iter()
                .rfind(|event| !event.task.is_empty());
            let failure = Failure::new(format!(
                "{} failed: {}",
                alloc.name, alloc.client_description
            ));
            let failure = match last {
                Some(event) => failure.because(format_args!(
                    "{}: {} {}",
                    event.task, event.kind, event.message
                )),
                None => failure,
            };
            return Err(failure.hint(hint(&alloc.id)));
        }
        let Some(unplaced) = detail.placement_failures.first() else {
            self.nowhere_since = None;
            return Ok(());
        };
        let since = *self.nowhere_since.get_or_insert_with(Instant::now);
        if since.elapsed() < NOWHERE {
            return Ok(());
        }
        let what = match unplaced.count {
            1 => "1 instance".to_owned(),
            many => format!("{many} instances"),
        };
        Err(Failure::new(format!(
            "{what} of group {:?} found no node: {}",
            &*unplaced.group, unplaced.reason
        ))
        .hint(format!(
            "wharf node status   (they are placed as soon as there is room; wharf job stop {} takes it back)",
            self.name
        )))
    }

    fn restarts(&self) -> u32 {
        let live = self.allocs.values().filter(|alloc| alloc.is_live());
        let tasks = live.flat_map(|alloc| alloc.task_states.values());
        tasks.map(|task| task.restarts).sum()
    }

    fn ended(&mut self, shell: &mut Shell<'_>) -> Result<(), Failure> {
        self.clear(shell);
        shell.line(format_args!("Job {:?} has ended", self.name))
    }

    fn draw(&mut self, shell: &mut Shell<'_>, done: usize, all: usize, what: &str) {
        self.progress = format!("{done} of {all} {what}");
        if !shell.terminal || all == 0 {
            return;
        }
        let full = BAR * done.min(all) / all;
        let bar = format!("{}{}", "#".repeat(full), "-".repeat(BAR - full));
        let seconds = (now() - self.start) / 1_000_000_000;
        // What cannot be drawn is not missed.
        let _ = write!(shell.err, "\r\x1b[K[{bar}] {done}/{all} {what}  {seconds}s");
        let _ = shell.err.flush();
        self.bar = true;
    }

    fn clear(&mut self, shell: &mut Shell<'_>) {
        if std::mem::take(&mut self.bar) {
            let _ = write!(shell.err, "\r\x1b[K");
            let _ = shell.err.flush();
        }
    }
}

/// Whether there is somebody beside the job itself who says that its instances do their work.
fn is_checked(group: &TaskGroup) -> bool {
    group.count == 0
        || group
            .services
            .iter()
            .any(|service| !service.checks.is_empty())
}
