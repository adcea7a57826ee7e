use prost_types::Duration as Proto;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};
use tonic_types::StatusExt as _;
use wharf_proto::v1::{
    self, DeregisterRequest, Instance, KeyValueTarget, LeaseOpen, LeaseRequest, LeaseResponse,
    LeaseStatus, RegisterRequest, ServiceTarget, WatchRequest, WatchResponse, lease_request,
    lease_response, registry_client::RegistryClient, watch_request::Target, watch_response::Event,
};
use wharf_registry::{command::KvCommand, model::KvEntry};

use super::*;

type Client = RegistryClient<Channel>;

async fn client(harness: &Harness) -> Client {
    RegistryClient::new(harness.channel().await)
}

fn web(id: &str) -> Option<Instance> {
    Some(Instance {
        service: "web".into(),
        id: id.into(),
        port: 80,
        ..Instance::default()
    })
}

async fn watch(client: &mut Client, target: Target) -> Streaming<WatchResponse> {
    let request = WatchRequest {
        target: Some(target),
        resume_index: 0,
    };
    client.watch(request).await.unwrap().into_inner()
}

async fn watch_web(client: &mut Client) -> Streaming<WatchResponse> {
    let target = ServiceTarget {
        name: "web".into(),
        ..ServiceTarget::default()
    };
    let mut stream = watch(client, Target::Service(target)).await;
    assert_eq!(next(&mut stream).await, "complete");
    stream
}

async fn next(stream: &mut Streaming<WatchResponse>) -> String {
    match soon(stream.message())
        .await
        .unwrap()
        .unwrap()
        .event
        .unwrap()
    {
        Event::InstanceUpserted(instance) => {
            let status = instance
                .status()
                .as_str_name()
                .trim_start_matches("CHECK_STATUS_");
            format!("+{} {status}", instance.instance.unwrap().id)
        }
        Event::InstanceRemoved(key) => format!("-{}", key.id),
        Event::SnapshotComplete(_) => "complete".into(),
        other => format!("{other:?}"),
    }
}

/// A lease as its client holds it.
struct Lease {
    requests: mpsc::Sender<LeaseRequest>,
    responses: Streaming<LeaseResponse>,
}

impl Lease {
    async fn open(client: &mut Client, id: &str, hold: i64, remove_after: i64) -> Lease {
        let seconds = |seconds| Some(Proto { seconds, nanos: 0 });
        let (requests, receiver) = mpsc::channel(4);
        let open = LeaseOpen {
            instance: web(id),
            hold: seconds(hold),
            remove_after: seconds(remove_after),
            ..LeaseOpen::default()
        };
        let message = Some(lease_request::Message::Open(open));
        requests.send(LeaseRequest { message }).await.unwrap();
        let responses = soon(client.lease(ReceiverStream::new(receiver)))
            .await
            .unwrap();
        let mut lease = Lease {
            requests,
            responses: responses.into_inner(),
        };
        let Some(lease_response::Message::Granted(granted)) = lease.next().await.unwrap() else {
            panic!("not granted")
        };
        assert_eq!((&*granted.node, &*granted.id), ("n1", id));
        lease
    }

    async fn next(&mut self) -> Result<Option<lease_response::Message>, tonic::Status> {
        let response = soon(self.responses.message()).await?;
        Ok(response.and_then(|response| response.message))
    }

    async fn report(&mut self, status: v1::CheckStatus, output: &str) {
        let output = output.to_owned();
        let status = status.into();
        let message = Some(lease_request::Message::Status(LeaseStatus {
            status,
            output,
        }));
        self.requests.send(LeaseRequest { message }).await.unwrap();
    }

    /// Why the stream ended.
    async fn end(&mut self) -> (Code, String) {
        let status = self.next().await.unwrap_err();
        let reason = status
            .get_error_details()
            .error_info()
            .unwrap()
            .reason
            .clone();
        (status.code(), reason)
    }
}

#[tokio::test]
async fn an_instance_is_found_from_registration_to_deregistration() {
    let harness = Harness::start().await;
    let mut client = client(&harness).await;
    let mut watch = watch_web(&mut client).await;
    let request = RegisterRequest {
        instance: web(""),
        checks: vec![],
    };
    let registered = client.register(request).await.unwrap().into_inner();
    assert_eq!((&*registered.node, &*registered.id), ("n1", "web"));
    assert!(
        harness.cluster.registry().view().service("web").is_some(),
        "it can be found"
    );
    assert_eq!(next(&mut watch).await, "+web PASSING");

    let id = || DeregisterRequest { id: "web".into() };
    client.deregister(id()).await.unwrap();
    assert_eq!(next(&mut watch).await, "-web");
    let unknown = client.deregister(id()).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);

    let nothing = client
        .register(RegisterRequest::default())
        .await
        .unwrap_err();
    assert_eq!(nothing.code(), Code::InvalidArgument);
    let details = nothing.get_error_details();
    assert_eq!(
        details.bad_request().unwrap().field_violations[0].field,
        "instance"
    );
    drop(client);
    harness.stop().await;
}

#[tokio::test]
async fn an_instance_lives_as_long_as_its_stream() {
    let harness = Harness::start().await;
    let mut client = client(&harness).await;
    let mut watch = watch_web(&mut client).await;
    let mut lease = Lease::open(&mut client, "web-1", 0, 0).await;
    assert_eq!(next(&mut watch).await, "+web-1 PASSING");
    let check = harness.local.check("lease:web-1").unwrap();
    assert_eq!(&*check.kind, "lease");

    lease.report(v1::CheckStatus::Warning, "warming up").await;
    assert_eq!(next(&mut watch).await, "+web-1 WARNING");
    assert_eq!(
        &*harness.local.check("lease:web-1").unwrap().output,
        "warming up"
    );
    drop(lease);
    let mut last = next(&mut watch).await;
    if last == "+web-1 CRITICAL" {
        // Turned critical and removed at once: the watch may see the one or both.
        last = next(&mut watch).await;
    }
    assert_eq!(last, "-web-1");
    drop(client);
    harness.stop().await;
}

#[tokio::test]
async fn a_broken_lease_turns_critical_and_can_be_taken_up_again() {
    let harness = Harness::start().await;
    let mut client = client(&harness).await;
    let mut watch = watch_web(&mut client).await;
    let lease = Lease::open(&mut client, "web-1", 0, 600).await;
    assert_eq!(next(&mut watch).await, "+web-1 PASSING");
    drop(lease);
    assert_eq!(next(&mut watch).await, "+web-1 CRITICAL");
    let _again = Lease::open(&mut client, "web-1", 0, 600).await;
    assert_eq!(next(&mut watch).await, "+web-1 PASSING");
    drop(client);
    harness.stop().await;
}

#[tokio::test]
async fn a_new_stream_takes_over_without_a_gap() {
    let harness = Harness::start().await;
    let mut client = client(&harness).await;
    let mut watch = watch_web(&mut client).await;
    let mut first = Lease::open(&mut client, "web-1", 0, 0).await;
    assert_eq!(next(&mut watch).await, "+web-1 PASSING");
    let mut second = Lease::open(&mut client, "web-1", 0, 0).await;
    assert_eq!(
        first.end().await,
        (Code::Aborted, "LEASE_TAKEN_OVER".into())
    );
    drop(first);
    second.report(v1::CheckStatus::Warning, "").await;
    assert_eq!(
        next(&mut watch).await,
        "+web-1 WARNING",
        "it was never critical in between"
    );

    let id = "web-1".to_owned();
    client.deregister(DeregisterRequest { id }).await.unwrap();
    assert_eq!(second.end().await, (Code::NotFound, "DEREGISTERED".into()));
    assert_eq!(next(&mut watch).await, "-web-1");
    drop(client);
    harness.stop().await;
}

#[tokio::test]
async fn a_lease_is_refused_for_what_is_wrong_with_it() {
    let harness = Harness::start().await;
    let mut client = client(&harness).await;
    let mut refusal = async |request: LeaseRequest| {
        let refused = soon(client.lease(tokio_stream::once(request)))
            .await
            .unwrap_err();
        let details = refused.get_error_details();
        details.bad_request().unwrap().field_violations[0]
            .field
            .clone()
    };
    assert_eq!(refusal(LeaseRequest::default()).await, "open");
    let hold = Some(Proto {
        seconds: -1,
        nanos: 0,
    });
    let open = LeaseOpen {
        instance: web(""),
        hold,
        ..LeaseOpen::default()
    };
    let message = Some(lease_request::Message::Open(open));
    assert_eq!(refusal(LeaseRequest { message }).await, "open.hold");
    let message = Some(lease_request::Message::Open(LeaseOpen::default()));
    assert_eq!(refusal(LeaseRequest { message }).await, "open.instance");

    // In the middle of a stream as well; and the stream ends with it.
    let mut lease = Lease::open(&mut client, "web-1", 0, 0).await;
    lease.report(v1::CheckStatus::Unspecified, "").await;
    assert_eq!(
        lease.end().await,
        (Code::InvalidArgument, "INVALID_ARGUMENT".into())
    );
    drop(client);
    harness.stop().await;
}

#[tokio::test]
async fn a_shutdown_asks_leases_to_drain() {
    let harness = Harness::start().await;
    let mut client = client(&harness).await;
    let mut lease = Lease::open(&mut client, "web-1", 5, 5).await;
    harness.shutdown.cancel();
    let drain = lease.next().await.unwrap();
    assert!(
        matches!(drain, Some(lease_response::Message::Drain(_))),
        "{drain:?}"
    );
    assert_eq!(
        lease.end().await,
        (Code::Unavailable, "SHUTTING_DOWN".into())
    );
    drop((lease, client));
    harness.stop().await;
}

#[tokio::test]
async fn a_client_that_never_reads_its_watch_costs_little_and_not_for_long() {
    const VALUE: usize = 256 * 1024;
    let limits = Limits {
        patience: Duration::from_millis(50),
        ..Limits::default()
    };
    let harness = Harness::with(limits, Arc::new(AllowAll), None).await;
    for i in 0..64 {
        let entry = KvEntry {
            key: format!("k/{i:02}").into(),
            value: vec![0; VALUE].into(),
            ..KvEntry::default()
        };
        harness
            .cluster
            .write(Command::Kv(KvCommand::Set { entry }))
            .await
            .unwrap();
    }
    let mut client = client(&harness).await;
    let prefix = "k/".to_owned();
    let mut stream = watch(&mut client, Target::KeyValue(KeyValueTarget { prefix })).await;
    // The flow control of HTTP/2 stops the server, its patience ends the watch.
    harness.until_unwatched().await;
    let mut received = 0;
    let ended = loop {
        match soon(stream.message()).await {
            Ok(Some(_)) => received += 1,
            Ok(None) => panic!("a clean end"),
            Err(status) => break status,
        }
    };
    assert_eq!(ended.code(), Code::ResourceExhausted);
    let details = ended.get_error_details();
    assert_eq!(details.error_info().unwrap().reason, "SLOW_CONSUMER");
    assert!(received < 64, "it was cut in the middle");
    drop(client);
    harness.stop().await;
}
