//! Where the configuration comes from: the agent's `ProxyConfiguration.Stream`, followed for as long as the proxy runs.
//!
//! The bias is availability: nothing that happens to the stream changes what is served. The proxy goes on with its last
//! configuration and connects again, with a backoff that is jittered so that the proxies of a host do not come back in
//! step after their agent restarted.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{sync::watch, time::sleep};
use tonic::{
    Code, Request, Status,
    metadata::{Ascii, MetadataValue},
    transport::{Channel, Endpoint},
};
use wharf_proto::v1::{
    AdHocProxy, ProxyConfigurationRequest, ProxyUpstream,
    proxy_configuration_client::ProxyConfigurationClient, proxy_configuration_request,
};

use crate::{
    ProxyError, ProxyOptions, Target,
    balance::Rng,
    config::{Desired, OutOfStep},
};

const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// An agent whose machine vanished is noticed by a ping.
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Of one response: some 100 bytes per instance.
const MAX_MESSAGE: usize = 64 * 1024 * 1024;

/// The stream, and how to open it again.
#[derive(Debug)]
pub(crate) struct Source {
    agent: String,
    endpoint: Endpoint,
    token: Option<MetadataValue<Ascii>>,
    request: ProxyConfigurationRequest,
    /// Whether the stream is open, for the admin port.
    connected: Arc<AtomicBool>,
}

/// Why the stream ended.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("cannot reach the agent")]
    Connect(#[from] tonic::transport::Error),
    #[error("{}", told_by(.0))]
    Status(Status),
    #[error(transparent)]
    OutOfStep(#[from] OutOfStep),
    #[error("the agent ended the stream")]
    Ended,
    #[error("the proxy stops")]
    Stopped,
}

impl From<Status> for Broken {
    fn from(status: Status) -> Broken {
        Broken::Status(status)
    }
}

/// What the agent says; the name of the code when it says nothing.
fn told_by(status: &Status) -> String {
    match status.message() {
        "" => status.code().to_string(),
        message => message.to_owned(),
    }
}

impl Source {
    pub(crate) fn new(
        options: &ProxyOptions,
        connected: Arc<AtomicBool>,
    ) -> Result<Self, ProxyError> {
        let agent = options.agent_grpc.clone();
        let bad_address = || ProxyError::AgentAddress(agent.clone());
        let uri = match agent.strip_prefix("unix://") {
            // tonic takes it as it is.
            Some(path) if path.starts_with('/') => agent.clone(),
            Some(_) => return Err(bad_address()),
            None => {
                let authority = agent.parse::<http::uri::Authority>();
                let port = authority.ok().and_then(|authority| authority.port_u16());
                port.ok_or_else(bad_address)?;
                format!("http://{agent}")
            }
        };
        let endpoint = Endpoint::from_shared(uri)
            .map_err(|_| bad_address())?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(true);
        let token = match options.token.as_deref().filter(|token| !token.is_empty()) {
            None => None,
            Some(token) => {
                let mut value: MetadataValue<Ascii> =
                    token.parse().map_err(|_| ProxyError::Token)?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        Ok(Self {
            agent,
            endpoint,
            token,
            request: request(&options.target),
            connected,
        })
    }

    /// Sends what the agent wants into `updates` until their receiver is dropped, or the agent says that this proxy can
    /// never be served before it ever was.
    pub(crate) async fn follow(self, updates: watch::Sender<Desired>) -> Result<(), ProxyError> {
        let rng = Rng::from_entropy();
        let mut backoff = BACKOFF_FIRST;
        // One line when something changes, not one per attempt.
        let mut told = String::new();
        // Once it has something to serve, no answer ends the proxy: an agent that refuses it may be wrong for a while.
        let mut served = false;
        loop {
            let mut received = false;
            let broken = match self.stream(&updates, &mut received).await {
                Ok(never) => match never {},
                Err(broken) => broken,
            };
            self.connected.store(false, Relaxed);
            match &broken {
                Broken::Stopped => return Ok(()),
                Broken::Status(status)
                    if status.code() == Code::InvalidArgument && !served && !received =>
                {
                    return Err(ProxyError::Refused {
                        agent: self.agent,
                        message: status.message().to_owned(),
                    });
                }
                _ => {}
            }
            if received {
                served = true;
                backoff = BACKOFF_FIRST;
                told.clear();
            }
            let text = chain(&broken);
            if text != told {
                let meanwhile = if served {
                    "serving what is known"
                } else {
                    "serving nothing yet"
                };
                tracing::warn!(agent = %self.agent, "no configuration stream, {meanwhile} and trying again: {text}");
                told = text;
            }
            let half = backoff / 2;
            let jitter = rng.below(u64::try_from(half.as_micros()).unwrap_or(1).max(1));
            sleep(half + Duration::from_micros(jitter)).await;
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    /// One stream, to its end.
    async fn stream(
        &self,
        updates: &watch::Sender<Desired>,
        received: &mut bool,
    ) -> Result<std::convert::Infallible, Broken> {
        let channel: Channel = self.endpoint.connect().await?;
        let mut client =
            ProxyConfigurationClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
        let mut request = Request::new(self.request.clone());
        if let Some(token) = &self.token {
            request
                .metadata_mut()
                .insert("x-consul-token", token.clone());
        }
        let mut responses = client.stream(request).await?.into_inner();
        let mut desired = Desired::default();
        while let Some(response) = responses.message().await? {
            desired.apply(response, !*received)?;
            if !std::mem::replace(received, true) {
                self.connected.store(true, Relaxed);
                tracing::info!(agent = %self.agent, version = desired.version, "following the configuration");
            }
            updates.send(desired.clone()).map_err(|_| Broken::Stopped)?;
        }
        Err(Broken::Ended)
    }
}

/// An error with its causes: the last of them is usually the one to read.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

fn request(target: &Target) -> ProxyConfigurationRequest {
    use proxy_configuration_request::Target as Wire;
    let target = match target {
        Target::SidecarFor(id) => Wire::SidecarFor(id.clone()),
        Target::ProxyId(id) => Wire::ProxyId(id.clone()),
        Target::AdHoc { service, upstreams } => Wire::AdHoc(AdHocProxy {
            service: service.clone(),
            upstreams: upstreams
                .iter()
                .map(|upstream| ProxyUpstream {
                    destination: upstream.destination.clone(),
                    local_bind_address: upstream.local.ip().to_string(),
                    local_bind_port: upstream.local.port().into(),
                    datacenter: upstream.datacenter.clone().unwrap_or_default(),
                })
                .collect(),
        }),
    };
    ProxyConfigurationRequest {
        target: Some(target),
    }
}
