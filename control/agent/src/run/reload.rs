//! While the agent runs: signals and requests that concern it as a whole, and the reload of its configuration.

use std::{fmt, io, sync::Arc};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
};

use super::{
    Agent,
    definitions::apply_entries,
    dns::zone,
    identity::node_meta,
    settings::{http_settings, level},
};
use crate::{
    config::{self, RuntimeConfig},
    context::{Control, Left},
};

pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    pub(super) fn new() -> io::Result<Signals> {
        Ok(Signals {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }
}

/// Why the agent ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Interrupted,
    Terminated,
    /// Somebody asked it to leave the cluster.
    Leaving,
}

impl End {
    /// Whether the agent leaves the cluster for good, or is expected back.
    pub(super) fn leaves(self, config: &RuntimeConfig) -> bool {
        match self {
            End::Interrupted => !config.skip_leave_on_interrupt,
            End::Terminated => config.leave_on_terminate,
            End::Leaving => true,
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            End::Interrupted => "interrupted",
            End::Terminated => "terminated",
            End::Leaving => "leaving",
        })
    }
}

impl Agent {
    /// The main loop. Returns why the agent ends, and who wants to know what becomes of leaving.
    pub(super) async fn until_told_to_end(
        &mut self,
        signals: &mut Signals,
        requests: &mut mpsc::Receiver<Control>,
    ) -> (End, Option<Left>) {
        loop {
            tokio::select! {
                _ = signals.interrupt.recv() => return (End::Interrupted, None),
                _ = signals.terminate.recv() => return (End::Terminated, None),
                _ = signals.hangup.recv() => {
                    if let Err(error) = self.reload().await {
                        tracing::error!("the configuration stays as it was: {error}");
                    }
                }
                Some(request) = requests.recv() => match request {
                    Control::Reload(answer) => {
                        let result = self.reload().await;
                        if let Err(error) = &result {
                            tracing::error!("the configuration stays as it was: {error}");
                        }
                        // Who asked may have gone.
                        let _ = answer.send(result);
                    }
                    Control::Leave(answer) => return (End::Leaving, Some(answer)),
                },
            }
        }
    }

    /// Reads the configuration again and puts what can change into force; all of it or nothing.
    async fn reload(&mut self) -> Result<(), String> {
        let loaded = config::load(&self.flags).map_err(|error| error.to_string())?;
        let new = loaded.config;
        let renewal = self.tls.read(&new.tls).map_err(|error| error.to_string())?;
        if let Some(dns) = &self.dns {
            dns.reload(zone(&new)).map_err(|error| error.to_string())?;
        }
        let current = self.http.agent.config.load_full();
        for warning in &loaded.warnings {
            tracing::warn!("{warning}");
        }
        for key in current.needs_restart(&new) {
            tracing::warn!("{key} has changed: that takes effect at the next start");
        }
        // What cannot change keeps its running value, so that the API shows what is in force.
        let mut running = (*current).clone();
        if new.tls != running.tls {
            let opened = !new.listen.grpc_tls.is_empty() && running.listen.grpc_tls.is_empty();
            if opened {
                tracing::warn!("gRPC with TLS is served from the next start on");
            }
            running.tls = new.tls;
        }
        self.tls.renew(renewal);
        running.reloadable = new.reloadable;
        self.http
            .agent
            .logs
            .set_level(level(running.reloadable.log_level));
        let rates = self.http.settings.load().rates.clone();
        let settings = http_settings(&running, rates);
        self.http.settings.store(Arc::new(settings));
        let mut node = (*self.http.local.node()).clone();
        node.meta = node_meta(&running);
        self.http.local.set_node(node);
        self.apply_definitions(&running).await;
        let running = Arc::new(running);
        apply_entries(&*self.cluster, &running).await;
        self.watches.replace(&running.reloadable.watches);
        self.http.agent.config.store(running);
        tracing::info!("the configuration is reloaded");
        Ok(())
    }
}
