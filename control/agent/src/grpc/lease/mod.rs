//! `Registry.Lease`: an instance that lives as long as a stream.
//!
//! A lease outlives its stream, by what the client asked for: [`Leases`] keeps the time. Each
//! holding of an instance has a generation, and only the newest one's word counts: a stream that
//! was taken over can neither report nor break anything any more.

mod table;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};
use wharf_proto::v1::{
    LeaseDrain, LeaseGranted, LeaseOpen, LeaseRequest, LeaseResponse, lease_request, lease_response,
};
use wharf_registry::model::{CheckStatus, Str};

use self::table::{Grant, Step, Table, Terms};
use super::{
    feed::Feed,
    registration,
    status::{self, Violations},
};
use crate::local::{CheckKind, CheckSpec, LocalKey, LocalState, Registration, Source};

/// How long the first message of a stream may take.
pub(super) const OPEN_WITHIN: Duration = Duration::from_secs(10);

/// What a client may ask for at most: whoever stays away for longer starts anew.
const MAX_TERM: Duration = Duration::from_secs(7 * 24 * 3600);

/// The id of the check that a stream stands for.
pub(super) fn check_id(instance: &str) -> Str {
    format!("lease:{instance}").into()
}

/// A validated request to open a lease.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) registration: Registration,
    terms: Terms,
}

/// Checks the first message of a stream.
pub(super) fn parse(open: LeaseOpen) -> Result<Open, Status> {
    let mut violations = Violations::default();
    let mut term = |field: &str, duration| {
        let term = registration::duration(field, duration, &mut violations);
        if term > MAX_TERM {
            violations.add(field, format!("at most {} s", MAX_TERM.as_secs()));
        }
        term
    };
    let terms = Terms {
        hold: term("open.hold", open.hold),
        remove_after: term("open.remove_after", open.remove_after),
    };
    let mut registration = registration::parse(
        "open.",
        open.instance,
        open.checks,
        Source::Lease,
        &mut violations,
    );
    violations.finish()?;
    let id = &registration.service.id;
    let lease = CheckSpec {
        id: check_id(id),
        name: format!("Lease of {id}").into(),
        service_id: id.clone(),
        kind: CheckKind::Lease,
        status: Some(CheckStatus::Passing),
        source: Source::Lease,
        ..CheckSpec::default()
    };
    registration.checks.push(lease);
    Ok(Open {
        registration,
        terms,
    })
}

/// All leases of this agent.
#[derive(Debug)]
pub(super) struct Leases {
    local: LocalState,
    table: Mutex<Table>,
    /// The next thing due may have changed.
    changed: Notify,
    /// Held while an instance is registered or removed: these come in the order of the table's
    /// changes.
    registering: tokio::sync::Mutex<()>,
}

impl Leases {
    pub(super) fn new(local: LocalState) -> Arc<Leases> {
        Arc::new(Leases {
            local,
            table: Mutex::default(),
            changed: Notify::new(),
            registering: tokio::sync::Mutex::default(),
        })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Each of the table's methods leaves it whole.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers the instance and holds it until the [`Holding`] is dropped.
    pub(super) async fn open(self: &Arc<Self>, open: Open) -> Result<Holding, Status> {
        let id = open.registration.service.id.clone();
        let turn = self.registering.lock().await;
        let grant = self.table().open(&id, open.terms);
        let holding = Holding {
            leases: self.clone(),
            id: id.clone(),
            grant,
        };
        let mut registered = self.local.register_service(open.registration).await;
        if registered.is_ok() {
            // A check that was there before has kept its status, that of a broken lease perhaps.
            let output = "a stream holds the lease";
            registered = self
                .local
                .set_status(&check_id(&id), CheckStatus::Passing, output);
        }
        if let Err(error) = registered {
            self.table().forget(&id);
            return Err(status::local(&error));
        }
        drop(turn);
        Ok(holding)
    }

    /// Registers an instance that needs no stream, also where one held it.
    pub(super) async fn register(&self, registration: Registration) -> Result<(), Status> {
        let _turn = self.registering.lock().await;
        self.table().forget(&registration.service.id);
        let registered = self.local.register_service(registration).await;
        registered.map_err(|error| status::local(&error))
    }

    /// Removes an instance, whether a stream holds it or not.
    pub(super) async fn deregister(&self, id: &Str) -> Result<(), Status> {
        let _turn = self.registering.lock().await;
        self.table().forget(id);
        let removed = self.local.deregister_service(id).await;
        removed.map_err(|error| status::local(&error))
    }

    /// Does to broken leases what is due, until the shutdown.
    pub(super) async fn keep(self: Arc<Self>, shutdown: CancellationToken) {
        loop {
            let next = self.table().next_due();
            let due = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.changed.notified() => continue,
                () = due => self.do_due().await,
            }
        }
    }

    async fn do_due(&self) {
        let _turn = self.registering.lock().await;
        loop {
            let Some((id, step)) = self.table().take_due(Instant::now()) else {
                return;
            };
            let check = check_id(&id);
            // Gone, or registered anew in another way: then it is no longer the lease's.
            if self.local.check(&check).is_none() {
                self.table().forget(&id);
                continue;
            }
            let done = match step {
                Step::TurnCritical => {
                    let output = "the stream of the lease broke";
                    self.local.set_status(&check, CheckStatus::Critical, output)
                }
                Step::Remove => self.local.deregister_service(&id).await,
            };
            match done {
                Ok(()) => tracing::info!(instance = &*id, ?step, "a lease broke"),
                Err(error) => tracing::warn!(instance = &*id, ?step, %error, "a lease broke"),
            }
        }
    }
}

/// An instance, held by a stream. Dropping it is the break.
#[derive(Debug)]
pub(super) struct Holding {
    leases: Arc<Leases>,
    id: Str,
    grant: Grant,
}

impl Drop for Holding {
    fn drop(&mut self) {
        let mut table = self.leases.table();
        table.broke(&self.id, self.grant.generation, Instant::now());
        drop(table);
        self.leases.changed.notify_one();
    }
}

impl Holding {
    /// Serves the stream until it breaks, is taken over, or the agent shuts down.
    pub(super) async fn hold(
        self,
        mut requests: Streaming<LeaseRequest>,
        feed: Feed<LeaseResponse>,
        shutdown: CancellationToken,
    ) -> Result<(), Status> {
        let local = &self.leases.local;
        let mut registered = local.watch(LocalKey::Service(self.id.clone()));
        let message = |message| {
            vec![LeaseResponse {
                message: Some(message),
            }]
        };
        let granted = LeaseGranted {
            node: local.node().name.to_string(),
            id: self.id.to_string(),
        };
        feed.send(message(lease_response::Message::Granted(granted)))
            .await?;
        loop {
            tokio::select! {
                request = requests.message() => match request {
                    Ok(Some(request)) => self.receive(request)?,
                    // The client is done, or gone: in either case the stream no longer stands.
                    Ok(None) => return Ok(()),
                    Err(broken) => return Err(broken),
                },
                () = self.grant.superseded.cancelled() => return Err(self.ended(&self.leases.table())),
                () = registered.changed() => self.is_registered()?,
                () = shutdown.cancelled() => {
                    let reason = "the agent is shutting down".to_owned();
                    let drain = lease_response::Message::Drain(LeaseDrain { reason });
                    feed.send(message(drain)).await?;
                    return Err(status::shutting_down());
                }
            }
        }
    }

    fn receive(&self, request: LeaseRequest) -> Result<(), Status> {
        let report = match request.message {
            Some(lease_request::Message::Status(report)) => report,
            Some(lease_request::Message::Open(_)) => {
                return Err(status::violation(
                    "open",
                    "only the first message opens the lease",
                ));
            }
            None => return Err(status::violation("message", "status must be set")),
        };
        let Some(status) = registration::status(report.status()) else {
            return Err(status::violation(
                "status.status",
                "must be passing, warning or critical",
            ));
        };
        let table = self.leases.table();
        if !table.is_current(&self.id, self.grant.generation) {
            return Err(self.ended(&table));
        }
        // Under the table's lock, so that nobody takes the lease over in between.
        let reported = self
            .leases
            .local
            .set_status(&check_id(&self.id), status, &report.output);
        reported.map_err(|_| status::deregistered(&self.id))
    }

    /// Why this stream's word counts no longer.
    fn ended(&self, table: &Table) -> Status {
        if table.is_held(&self.id) {
            status::taken_over(&self.id)
        } else {
            status::deregistered(&self.id)
        }
    }

    fn is_registered(&self) -> Result<(), Status> {
        match self.leases.local.check(&check_id(&self.id)) {
            Some(_) => Ok(()),
            None => Err(status::deregistered(&self.id)),
        }
    }
}

#[cfg(test)]
mod tests {
    use wharf_registry::model::Node;

    use super::*;
    use crate::local;

    fn leases() -> Arc<Leases> {
        let node = Node {
            name: "n1".into(),
            ..Node::default()
        };
        Leases::new(LocalState::open(local::Options::default(), node).unwrap())
    }

    fn web(hold: i64, remove_after: i64) -> Open {
        let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
        let instance = Some(wharf_proto::v1::Instance {
            service: "web".into(),
            ..wharf_proto::v1::Instance::default()
        });
        parse(LeaseOpen {
            instance,
            hold: seconds(hold),
            remove_after: seconds(remove_after),
            checks: vec![],
        })
        .unwrap()
    }

    fn status(leases: &Leases) -> Option<CheckStatus> {
        leases.local.check("lease:web").map(|check| check.status)
    }

    /// Lets the keeper do what is due after so many seconds.
    async fn after(seconds: u64) {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_hold_and_the_removal_are_counted_from_the_break() {
        let leases = leases();
        let shutdown = CancellationToken::new();
        let keeper = tokio::spawn(leases.clone().keep(shutdown.clone()));
        let holding = leases.open(web(10, 60)).await.unwrap();
        after(1000).await;
        assert_eq!(status(&leases), Some(CheckStatus::Passing));
        drop(holding);
        after(9).await;
        assert_eq!(status(&leases), Some(CheckStatus::Passing));
        after(2).await;
        assert_eq!(status(&leases), Some(CheckStatus::Critical));
        after(58).await;
        assert_eq!(status(&leases), Some(CheckStatus::Critical));
        after(2).await;
        assert!(leases.local.service("web").is_none());
        shutdown.cancel();
        keeper.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_registration_without_a_stream_ends_the_lease() {
        let leases = leases();
        let shutdown = CancellationToken::new();
        let keeper = tokio::spawn(leases.clone().keep(shutdown.clone()));
        drop(leases.open(web(1, 1)).await.unwrap());
        let Open {
            mut registration, ..
        } = web(0, 0);
        registration.checks.clear();
        leases.register(registration).await.unwrap();
        assert_eq!(status(&leases), None, "its check went");
        after(100).await;
        assert!(leases.local.service("web").is_some());

        // Over HTTP nobody tells the table, but the check of the lease is gone as well.
        drop(leases.open(web(1, 1)).await.unwrap());
        leases.local.deregister_check("lease:web").await.unwrap();
        after(100).await;
        assert!(leases.local.service("web").is_some());
        shutdown.cancel();
        keeper.await.unwrap();
    }
}
