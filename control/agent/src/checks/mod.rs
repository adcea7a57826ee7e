//! Runs the checks that are registered with this agent.
//!
//! [`CheckRunner`] follows [`LocalState`]: every registered check has one task, which ends when the check is
//! deregistered or replaced. A check first runs after a random part of its interval, so that the checks
//! of an agent that starts are spread out, unless it is eager; the next run begins an interval after the last one ended. What
//! a run finds passes the thresholds of the check and is reported to [`LocalState`].

mod alias;
mod connect;
mod h2;
mod http;
mod script;
#[cfg(test)]
mod tests;
mod thresholds;

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::{
    task::{self, AbortHandle, JoinError, JoinSet},
    time::{Instant, MissedTickBehavior, interval_at, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use wharf_config::GoDuration;
use wharf_registry::model::{CheckStatus, Str};

use self::{connect::split_address, thresholds::Counter};
pub(crate) use self::{
    http::{HttpFailure, fetch},
    script::{Tail, run_program},
};
use crate::{
    cluster::Cluster,
    definition::{CheckError, Origin, ScriptPolicy},
    local::{CheckKind, CheckSpec, CheckTls, LocalState, random_up_to},
};

/// A check does not run more often.
const MIN_INTERVAL: Duration = Duration::from_secs(1);
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
const DEFAULT_SCRIPT_TIMEOUT: Duration = Duration::from_secs(30);
/// The pauses of an eager check until it first passes.
const FIRST_EAGER_PAUSE: Duration = Duration::from_millis(20);
const LAST_EAGER_PAUSE: Duration = Duration::from_millis(640);
/// How often instances are looked for that have been critical for too long.
const REAP_INTERVAL: Duration = Duration::from_secs(30);

/// What one run of a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Finding {
    status: CheckStatus,
    output: String,
}

impl Finding {
    fn passing(output: String) -> Finding {
        let status = CheckStatus::Passing;
        Finding { status, output }
    }

    fn critical(output: String) -> Finding {
        let status = CheckStatus::Critical;
        Finding { status, output }
    }
}

/// The owner of all running checks.
#[derive(Debug)]
pub struct CheckRunner {
    local: LocalState,
    cluster: Arc<dyn Cluster>,
    scripts: ScriptPolicy,
    tasks: JoinSet<()>,
    running: HashMap<Str, AbortHandle>,
    /// Which check a task runs, with its generation.
    checks: HashMap<task::Id, (Str, u64)>,
}

impl CheckRunner {
    pub fn new(local: LocalState, cluster: Arc<dyn Cluster>, scripts: ScriptPolicy) -> CheckRunner {
        CheckRunner {
            local,
            cluster,
            scripts,
            tasks: JoinSet::new(),
            running: HashMap::new(),
            checks: HashMap::new(),
        }
    }

    /// Runs until `stop`; then every check has ended, programs included.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut reap = interval_at(Instant::now() + REAP_INTERVAL, REAP_INTERVAL);
        reap.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                restarted = self.local.restarted_checks() => {
                    for id in restarted {
                        self.restart(id);
                    }
                }
                Some(ended) = self.tasks.join_next_with_id() => self.ended(ended),
                _ = reap.tick() => self.reap().await,
            }
        }
        self.tasks.shutdown().await;
    }

    /// Ends the run of a check that was replaced or is gone, and starts that of what there is now.
    fn restart(&mut self, id: Str) {
        if let Some(old) = self.running.remove(&id) {
            old.abort();
        }
        let Some((spec, generation)) = self.local.runnable(&id) else {
            return;
        };
        if matches!(
            spec.kind,
            CheckKind::Lease | CheckKind::Tasks | CheckKind::Maintenance
        ) {
            return;
        }
        let run = Run {
            local: self.local.clone(),
            cluster: self.cluster.clone(),
            spec,
            generation,
        };
        let origin = run.spec.source.origin();
        if matches!(run.spec.kind, CheckKind::Script { .. }) && !self.scripts.allows(origin) {
            // It was registered before scripts were switched off.
            let refusal = match origin {
                Origin::Api => CheckError::RemoteScripts,
                Origin::File => CheckError::Scripts,
            };
            run.report(&Finding::critical(refusal.to_string()));
            return;
        }
        let task = self.tasks.spawn(run.run());
        self.checks.insert(task.id(), (id.clone(), generation));
        self.running.insert(id, task);
    }

    fn ended(&mut self, ended: Result<(task::Id, ()), JoinError>) {
        let task = match &ended {
            Ok((task, ())) => *task,
            Err(error) => error.id(),
        };
        let Some((check, generation)) = self.checks.remove(&task) else {
            return;
        };
        if self
            .running
            .get(&check)
            .is_some_and(|running| running.id() == task)
        {
            self.running.remove(&check);
        }
        if let Err(error) = ended
            && error.is_panic()
        {
            // A check that does not run any more must not go on saying that all is well.
            tracing::error!(check = &*check, %error, "the runner of a check failed");
            let output = "the agent failed to run this check; its log says why";
            let critical = CheckStatus::Critical;
            self.local.report(&check, generation, critical, output);
        }
    }

    async fn reap(&self) {
        for (service, check) in self.local.overdue() {
            tracing::info!(
                service = &*service,
                check = &*check,
                "deregistering a service that has been critical for too long"
            );
            if let Err(error) = self.local.deregister_service(&service).await {
                // Two of its checks may have been overdue.
                tracing::debug!(service = &*service, %error, "cannot deregister");
            }
        }
    }
}

/// The runs of one check.
#[derive(Debug)]
struct Run {
    local: LocalState,
    cluster: Arc<dyn Cluster>,
    spec: Arc<CheckSpec>,
    generation: u64,
}

impl Run {
    fn report(&self, finding: &Finding) {
        let Finding { status, output } = finding;
        let (id, generation) = (&self.spec.id, self.generation);
        self.local.report(id, generation, *status, output);
    }

    async fn run(self) {
        match &self.spec.kind {
            CheckKind::Ttl(_) => self.expire().await,
            CheckKind::Alias { node, service } => {
                let target = alias::Target {
                    node: node.clone(),
                    service: service.clone(),
                };
                let tell = |finding| self.report(&finding);
                alias::follow(&self.local, &*self.cluster, &self.spec.id, &target, tell).await;
            }
            _ => self.probe_at_intervals().await,
        }
    }

    /// Waits until no report has come for the TTL. A report after that starts another run.
    async fn expire(&self) {
        while let Some(deadline) = self.local.expire_ttl(&self.spec.id, self.generation) {
            sleep_until(deadline).await;
        }
    }

    async fn probe_at_intervals(&self) {
        let interval = self.spec.interval.max(MIN_INTERVAL);
        let mut counter = Counter::new(self.spec.thresholds);
        let mut soon = self.spec.eager.then_some(FIRST_EAGER_PAUSE);
        if soon.is_none() {
            sleep(random_up_to(interval)).await;
        }
        loop {
            let finding = self.probe().await;
            if let Some(status) = counter.observe(finding.status) {
                if status == CheckStatus::Passing {
                    soon = None;
                }
                self.report(&Finding { status, ..finding });
            }
            sleep(soon.unwrap_or(interval)).await;
            soon = soon.map(|pause| (pause * 2).min(LAST_EAGER_PAUSE).min(interval));
        }
    }

    /// One run.
    async fn probe(&self) -> Finding {
        let limit = self.local.output_limit(&self.spec);
        let time = match (self.spec.timeout, &self.spec.kind) {
            (Duration::ZERO, CheckKind::Script { .. }) => DEFAULT_SCRIPT_TIMEOUT,
            (Duration::ZERO, _) => DEFAULT_TIMEOUT,
            (given, _) => given,
        };
        match &self.spec.kind {
            // It limits its own time, to tell what was written until then.
            CheckKind::Script { args } => script::probe(args, time, limit).await,
            CheckKind::Http(check) => {
                let what = || {
                    format!(
                        "{} {}",
                        if check.method.is_empty() {
                            "GET"
                        } else {
                            &check.method
                        },
                        check.url
                    )
                };
                within(time, what, http::probe(check, limit)).await
            }
            CheckKind::Tcp { address, tls } => {
                let probe = tcp(address, tls.as_ref());
                within(time, || format!("TCP connect {address}"), probe).await
            }
            CheckKind::Grpc {
                address,
                service,
                tls,
            } => {
                let probe = h2::grpc(address, service, tls.as_ref());
                within(time, || format!("gRPC check {address}"), probe).await
            }
            CheckKind::H2Ping { address, tls } => {
                let probe = h2::ping(address, tls.as_ref());
                within(time, || format!("HTTP2 ping to {address}"), probe).await
            }
            CheckKind::Udp { address } => udp(address, time).await,
            CheckKind::Ttl(_)
            | CheckKind::Alias { .. }
            | CheckKind::Lease
            | CheckKind::Tasks
            | CheckKind::Maintenance => std::future::pending().await,
        }
    }
}

async fn within(
    time: Duration,
    what: impl FnOnce() -> String,
    probe: impl Future<Output = Finding>,
) -> Finding {
    timeout(time, probe).await.unwrap_or_else(|_| {
        let time = GoDuration::from(time);
        Finding::critical(format!("{}: no answer within {time}", what()))
    })
}

async fn tcp(address: &str, tls: Option<&CheckTls>) -> Finding {
    let connected = async {
        let (host, port) = split_address(address)?;
        connect::stream(host, port, tls, &[]).await
    };
    match connected.await {
        Ok(_) => Finding::passing(format!("TCP connect {address}: Success")),
        Err(error) => Finding::critical(error.to_string()),
    }
}

/// Sends a datagram. An answer is good, and so is none: only a port that refuses is known to be down.
async fn udp(address: &str, time: Duration) -> Finding {
    let asked = async {
        let (host, port) = split_address(address).map_err(|error| error.to_string())?;
        let socket = connect::udp(host, port)
            .await
            .map_err(|error| error.to_string())?;
        let refused = |error: std::io::Error| format!("udp {address}: {error}");
        socket.send(b"Consul Health Check").await.map_err(refused)?;
        let mut answer = [0; 1];
        socket.recv(&mut answer).await.map_err(refused)
    };
    match timeout(time, asked).await {
        Ok(Err(error)) => Finding::critical(error),
        Ok(Ok(_)) | Err(_) => Finding::passing(format!("UDP connect {address}: Success")),
    }
}
