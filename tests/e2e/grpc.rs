//! The registration API `wharf.v1.Registry`, reflection and health, from a client's side.
//!
//! The clients have a thread of their own, so that they go on while a test waits for the agent.

use std::time::Duration;

use tokio::{sync::mpsc, time::timeout};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::{Code, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};
use wharf_proto::v1::{
    CheckStatus, DeregisterRequest, Instance, KeyValueTarget, LeaseOpen, LeaseRequest, LeaseStatus,
    RegisterRequest, ServiceTarget, WatchRequest, WatchResponse, lease_request::Message as Request,
    lease_response::Message as Response, registry_client::RegistryClient, watch_request::Target,
    watch_response::Event,
};
use wharf_tests::{Agent, SOON, eventually};

async fn channel(agent: &Agent) -> Channel {
    let url = format!("http://127.0.0.1:{}", agent.ports.grpc);
    Channel::from_shared(url).unwrap().connect().await.unwrap()
}

fn web(id: &str) -> Option<Instance> {
    Some(Instance {
        service: "web".into(),
        id: id.into(),
        address: "127.0.0.1".into(),
        port: 8080,
        ..Instance::default()
    })
}

async fn next(stream: &mut tonic::Streaming<WatchResponse>) -> WatchResponse {
    timeout(SOON, stream.message())
        .await
        .unwrap()
        .unwrap()
        .unwrap()
}

/// The next event that is not `Progress`.
async fn event(stream: &mut tonic::Streaming<WatchResponse>) -> Event {
    loop {
        match next(stream).await.event {
            Some(Event::Progress(_)) => {}
            Some(event) => return event,
            None => panic!("an event of no kind"),
        }
    }
}

fn passing(agent: &Agent) -> usize {
    let rows = agent.http.get("/v1/health/service/web?passing").json();
    rows.as_array().map_or(0, Vec::len)
}

fn registered(agent: &Agent) -> usize {
    let rows = agent.http.get("/v1/catalog/service/web").json();
    rows.as_array().map_or(0, Vec::len)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_instance_is_registered_and_deregistered() {
    let agent = Agent::dev();
    let mut client = RegistryClient::new(channel(&agent).await);
    let request = RegisterRequest {
        instance: web("web-1"),
        checks: Vec::new(),
    };
    let answer = client.register(request).await.unwrap().into_inner();
    assert_eq!(answer.id, "web-1");
    assert_eq!(registered(&agent), 1);
    assert!(
        agent
            .http
            .get("/v1/agent/services")
            .json()
            .get("web-1")
            .is_some()
    );
    let id = DeregisterRequest { id: "web-1".into() };
    client.deregister(id.clone()).await.unwrap();
    assert!(eventually(SOON, || registered(&agent) == 0));
    assert_eq!(
        client.deregister(id).await.unwrap_err().code(),
        Code::NotFound
    );
    let nameless = RegisterRequest::default();
    let error = client.register(nameless).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(!error.details().is_empty(), "no details: {error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_lease_that_is_cut_takes_its_instance_with_it() {
    let agent = Agent::dev();
    let connection = channel(&agent).await;
    let mut client = RegistryClient::new(connection);
    let (requests, to_agent) = mpsc::channel(4);
    let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    let open = LeaseOpen {
        instance: web("web-1"),
        remove_after: seconds(2),
        ..LeaseOpen::default()
    };
    let message = Some(Request::Open(open));
    requests.send(LeaseRequest { message }).await.unwrap();
    let mut lease = client
        .lease(ReceiverStream::new(to_agent))
        .await
        .unwrap()
        .into_inner();
    let granted = timeout(SOON, lease.message())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert!(matches!(granted.message, Some(Response::Granted(granted)) if granted.id == "web-1"));
    assert!(eventually(SOON, || passing(&agent) == 1));

    // It says how it is.
    let status = |status: CheckStatus| LeaseRequest {
        message: Some(Request::Status(LeaseStatus {
            status: status.into(),
            output: "busy".into(),
        })),
    };
    requests.send(status(CheckStatus::Warning)).await.unwrap();
    assert!(eventually(SOON, || passing(&agent) == 0));
    requests.send(status(CheckStatus::Passing)).await.unwrap();
    assert!(eventually(SOON, || passing(&agent) == 1));

    // The connection goes, as when the process dies.
    drop((requests, lease, client));
    assert!(eventually(SOON, || passing(&agent) == 0));
    assert_eq!(registered(&agent), 1, "it is removed later");
    assert!(eventually(SOON, || registered(&agent) == 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_watch_of_a_service_tells_what_is_and_what_changes() {
    let agent = Agent::dev();
    let mut client = RegistryClient::new(channel(&agent).await);
    let request = |id: &str| RegisterRequest {
        instance: web(id),
        checks: Vec::new(),
    };
    client.register(request("web-1")).await.unwrap();
    let target = Target::Service(ServiceTarget {
        name: "web".into(),
        ..ServiceTarget::default()
    });
    let watch = WatchRequest {
        target: Some(target),
        resume_index: 0,
    };
    let mut stream = client.watch(watch).await.unwrap().into_inner();
    let id = |event: Event| match event {
        Event::InstanceUpserted(upserted) => upserted.instance.unwrap().id,
        Event::InstanceRemoved(key) => format!("-{}", key.id),
        other => panic!("{other:?}"),
    };
    assert_eq!(id(event(&mut stream).await), "web-1");
    assert!(matches!(
        event(&mut stream).await,
        Event::SnapshotComplete(_)
    ));
    client.register(request("web-2")).await.unwrap();
    assert_eq!(id(event(&mut stream).await), "web-2");
    client
        .deregister(DeregisterRequest { id: "web-1".into() })
        .await
        .unwrap();
    assert_eq!(id(event(&mut stream).await), "-web-1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_watch_of_keys_goes_on_from_where_another_ended() {
    let agent = Agent::dev();
    agent.http.put("/v1/kv/app/a", "1").ok();
    let mut client = RegistryClient::new(channel(&agent).await);
    let watch = |resume_index| WatchRequest {
        target: Some(Target::KeyValue(KeyValueTarget {
            prefix: "app/".into(),
        })),
        resume_index,
    };
    let mut stream = client.watch(watch(0)).await.unwrap().into_inner();
    assert!(matches!(event(&mut stream).await, Event::KeyUpserted(pair) if pair.key == "app/a"));
    let index = loop {
        let response = next(&mut stream).await;
        if matches!(response.event, Some(Event::SnapshotComplete(_))) {
            break response.index;
        }
    };
    drop(stream);
    agent.http.put("/v1/kv/app/b", "2").ok();
    agent.http.put("/v1/kv/other", "2").ok();
    agent.http.delete("/v1/kv/app/a").ok();
    let mut stream = client.watch(watch(index)).await.unwrap().into_inner();
    let mut events =
        [event(&mut stream).await, event(&mut stream).await].map(|event| match event {
            Event::KeyUpserted(pair) => pair.key,
            Event::KeyRemoved(key) => format!("-{key}"),
            other => panic!("{other:?}"),
        });
    events.sort();
    assert_eq!(events, ["-app/a", "app/b"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn reflection_and_health_answer() {
    let agent = Agent::dev();
    let channel = channel(&agent).await;
    let mut health = HealthClient::new(channel.clone());
    for service in ["", "wharf.v1.Registry"] {
        // HTTP has named a leader: the same is true here, at once.
        let request = HealthCheckRequest {
            service: service.into(),
        };
        let mut updates = health.watch(request.clone()).await.unwrap().into_inner();
        let first = timeout(SOON, updates.next()).await.unwrap();
        let first = first.unwrap().unwrap().status();
        assert_eq!(first, ServingStatus::Serving, "{service:?}");
        let status = health.check(request).await.unwrap().into_inner().status();
        assert_eq!(status, ServingStatus::Serving, "{service:?}");
    }
    let mut reflection = ServerReflectionClient::new(channel);
    let ask = |message| {
        tokio_stream::once(ServerReflectionRequest {
            host: String::new(),
            message_request: Some(message),
        })
    };
    let list = ask(MessageRequest::ListServices(String::new()));
    let mut answers = reflection
        .server_reflection_info(list)
        .await
        .unwrap()
        .into_inner();
    let answer = timeout(SOON, answers.next())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
        panic!("{answer:?}");
    };
    let names: Vec<_> = list
        .service
        .iter()
        .map(|service| service.name.as_str())
        .collect();
    for name in [
        "wharf.v1.Registry",
        "wharf.v1.ProxyConfiguration",
        "grpc.health.v1.Health",
    ] {
        assert!(names.contains(&name), "{names:?}");
    }
    let symbol = ask(MessageRequest::FileContainingSymbol(
        "wharf.v1.Registry".into(),
    ));
    let mut answers = reflection
        .server_reflection_info(symbol)
        .await
        .unwrap()
        .into_inner();
    let answer = timeout(SOON, answers.next())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert!(matches!(
        answer.message_response,
        Some(MessageResponse::FileDescriptorResponse(files)) if !files.file_descriptor_proto.is_empty()
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn clients_are_told_that_the_agent_goes() {
    let mut agent = Agent::dev();
    let mut client = RegistryClient::new(channel(&agent).await);
    let watch = WatchRequest {
        target: Some(Target::KeyValue(KeyValueTarget { prefix: "a".into() })),
        resume_index: 0,
    };
    let mut stream = client.watch(watch).await.unwrap().into_inner();
    assert!(matches!(
        event(&mut stream).await,
        Event::SnapshotComplete(_)
    ));
    agent.process.signal(rustix::process::Signal::TERM);
    let end = timeout(Duration::from_secs(10), async {
        while let Ok(Some(_)) = stream.message().await {}
    });
    assert!(end.await.is_ok(), "the watch does not end with its agent");
    assert!(
        agent
            .process
            .ended(SOON)
            .is_some_and(|status| status.success())
    );
}
