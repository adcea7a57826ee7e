//! A session as a client agent has it.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{interval, sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;
use wharf_proto::server::v1::{
    self as proto, agents_client::AgentsClient, from_agent::Message as From,
    session_reply::Result as Reply, session_request, to_agent::Message as To, topic::Topic,
};
use wharf_registry::{
    Command,
    command::Register,
    mirror,
    model::{CheckStatus, HealthCheck, Node, NodeService},
};

use super::Failure;

/// What all agents share.
pub(crate) struct Crowd {
    addresses: Vec<String>,
    present: AtomicUsize,
    /// Sessions that were welcomed.
    pub(crate) welcomes: AtomicUsize,
    /// Registrations that a server did not take, and that were sent again.
    pub(crate) refusals: AtomicUsize,
    /// Why a session ended last.
    complaint: Mutex<String>,
    sessions: AtomicU64,
}

impl Crowd {
    pub(crate) fn new(addresses: Vec<String>) -> Crowd {
        Crowd {
            addresses,
            present: AtomicUsize::new(0),
            welcomes: AtomicUsize::new(0),
            refusals: AtomicUsize::new(0),
            complaint: Mutex::default(),
            sessions: AtomicU64::new(1),
        }
    }

    pub(crate) fn complaint(&self) -> String {
        let complaint = self.complaint.lock();
        complaint.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many have a session.
    pub(crate) fn present(&self) -> usize {
        self.present.load(Ordering::Relaxed)
    }
}

/// Ends without a word when it is dropped.
pub(crate) struct Simulated(JoinHandle<()>);

impl Drop for Simulated {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Counts as present until it is dropped.
struct Present<'a>(&'a Crowd);

impl Drop for Present<'_> {
    fn drop(&mut self) {
        self.0.present.fetch_sub(1, Ordering::Relaxed);
    }
}

fn node(number: usize) -> Node {
    let name = format!("agent-{number}");
    Node {
        id: format!("00000000-0000-4000-8000-{number:012x}").into(),
        address: format!("10.{}.{}.{}", number >> 16, number >> 8 & 255, number & 255).into(),
        datacenter: "dc1".into(),
        name: name.as_str().into(),
        ..Node::default()
    }
}

/// The service of an agent's node, with a check.
fn registration(number: usize) -> Command {
    let node = node(number);
    let service = NodeService {
        id: "web".into(),
        name: "web".into(),
        port: 80,
        ..NodeService::default()
    };
    let check = HealthCheck {
        node: node.name.clone(),
        id: "service:web".into(),
        name: "web".into(),
        status: CheckStatus::Passing,
        service_id: "web".into(),
        service_name: "web".into(),
        ..HealthCheck::default()
    };
    Command::Register(Box::new(Register {
        node,
        skip_node_update: true,
        service: Some(service),
        checks: vec![check],
    }))
}

impl Simulated {
    pub(crate) fn start(crowd: Arc<Crowd>, number: usize) -> Simulated {
        Simulated(tokio::spawn(async move {
            // Not with the same server as everybody else, and not at the same moment.
            sleep(Duration::from_millis(number as u64 % 1000)).await;
            for turn in number.. {
                let address = &crowd.addresses[turn % crowd.addresses.len()];
                // Whatever it was, the next server may be better.
                if let Err(error) = session(&crowd, number, address).await {
                    let mut complaint = crowd
                        .complaint
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner);
                    *complaint = format!("{address}: {error}");
                }
                sleep(Duration::from_millis(50)).await;
            }
        }))
    }
}

async fn session(crowd: &Crowd, number: usize, address: &str) -> Result<(), Failure> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?;
    let channel = timeout(Duration::from_secs(2), endpoint.connect()).await??;
    let (out, outgoing) = mpsc::channel(16);
    let say = |message| proto::FromAgent {
        message: Some(message),
    };
    let greeting = proto::Greeting {
        session: crowd.sessions.fetch_add(1, Ordering::Relaxed),
        datacenter: "dc1".to_owned(),
        node: mirror::pack(&node(number))?,
        ..proto::Greeting::default()
    };
    out.send(say(From::Greeting(greeting))).await?;
    let mut client = AgentsClient::new(channel);
    let answer = timeout(
        Duration::from_secs(12),
        client.session(ReceiverStream::new(outgoing)),
    );
    let mut incoming = answer.await??.into_inner();
    let first = timeout(Duration::from_secs(12), incoming.message()).await??;
    if !matches!(first.and_then(|first| first.message), Some(To::Welcome(_))) {
        return Err("no welcome".into());
    }
    crowd.present.fetch_add(1, Ordering::Relaxed);
    crowd.welcomes.fetch_add(1, Ordering::Relaxed);
    let _present = Present(crowd);
    let follow = proto::Topic {
        topic: Some(Topic::Node(format!("agent-{number}"))),
    };
    out.send(say(From::Follow(follow))).await?;
    let register = || {
        let change = session_request::Request::Change(registration(number).encode());
        say(From::Request(proto::SessionRequest {
            number: 1,
            request: Some(change),
        }))
    };
    out.send(register()).await?;
    let mut refused = false;
    let mut beats = interval(Duration::from_secs(2));
    loop {
        tokio::select! {
            _ = beats.tick() => {
                if std::mem::take(&mut refused) {
                    out.send(register()).await?;
                }
                out.send(say(From::Alive(proto::Alive::default()))).await?;
            }
            told = timeout(Duration::from_secs(4), incoming.message()) => {
                let told = told??.ok_or("the session is over")?;
                if let Some(To::Reply(reply)) = told.message {
                    refused = matches!(reply.result, Some(Reply::Failure(_)));
                    crowd.refusals.fetch_add(usize::from(refused), Ordering::Relaxed);
                }
            }
        }
    }
}
