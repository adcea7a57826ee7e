use tonic::{Code, Streaming};
use tonic_types::StatusExt as _;
use wharf_proto::v1::{
    AdHocProxy, ProxyConfigurationRequest, ProxyConfigurationResponse, ProxyDelta, ProxyUpstream,
    proxy_configuration_client::ProxyConfigurationClient, proxy_configuration_request::Target,
    proxy_configuration_response::Update,
};

use super::*;

async fn open(
    harness: &Harness,
    target: Target,
) -> Result<Streaming<ProxyConfigurationResponse>, tonic::Status> {
    let mut client = ProxyConfigurationClient::new(harness.channel().await);
    let target = Some(target);
    let response = client.stream(ProxyConfigurationRequest { target }).await?;
    Ok(response.into_inner())
}

fn ad_hoc() -> Target {
    Target::AdHoc(AdHocProxy {
        service: "client".into(),
        upstreams: vec![ProxyUpstream {
            destination: "db".into(),
            local_bind_port: 5432,
            ..ProxyUpstream::default()
        }],
    })
}

async fn next(stream: &mut Streaming<ProxyConfigurationResponse>) -> (u64, Update) {
    let response = soon(stream.message()).await.unwrap().unwrap();
    (response.version, response.update.unwrap())
}

fn endpoints(delta: &ProxyDelta) -> Vec<&str> {
    let endpoints = delta.clusters.iter().flat_map(|cluster| &cluster.endpoints);
    endpoints.map(|endpoint| &*endpoint.instance_id).collect()
}

#[tokio::test]
async fn a_proxy_gets_a_snapshot_and_then_what_concerns_it() {
    let harness = Harness::start().await;
    let mut stream = open(&harness, ad_hoc()).await.unwrap();
    let (1, Update::Snapshot(snapshot)) = next(&mut stream).await else {
        panic!("no snapshot")
    };
    assert_eq!((&*snapshot.node, &*snapshot.service), ("n1", "client"));
    assert!(
        snapshot.clusters[0].endpoints.is_empty(),
        "the service does not exist yet"
    );

    harness
        .instance(
            "n2",
            json!({"ID": "other", "Service": "other", "Port": 1}),
            CheckStatus::Passing,
        )
        .await;
    harness
        .instance(
            "n2",
            json!({"ID": "db-1", "Service": "db", "Port": 1}),
            CheckStatus::Passing,
        )
        .await;
    let (2, Update::Delta(delta)) = next(&mut stream).await else {
        panic!("no delta")
    };
    assert_eq!(endpoints(&delta), ["db-1"]);
    assert!(delta.listeners.is_empty() && delta.removed_clusters.is_empty());

    harness
        .instance(
            "n2",
            json!({"ID": "db-1", "Service": "db", "Port": 1}),
            CheckStatus::Critical,
        )
        .await;
    let (3, Update::Delta(delta)) = next(&mut stream).await else {
        panic!("no delta")
    };
    assert!(endpoints(&delta).is_empty());
    harness.stop().await;
}

#[tokio::test]
async fn changes_that_come_together_are_told_together() {
    let harness = Harness::start().await;
    let mut stream = open(&harness, ad_hoc()).await.unwrap();
    next(&mut stream).await;
    for i in 0..50 {
        let instance = json!({"ID": format!("db-{i}"), "Service": "db", "Port": 1});
        harness.instance("n2", instance, CheckStatus::Passing).await;
    }
    let mut messages = 0;
    loop {
        messages += 1;
        if let (_, Update::Delta(delta)) = next(&mut stream).await
            && endpoints(&delta).len() == 50
        {
            break;
        }
    }
    assert!(messages < 10, "{messages} messages for 50 changes");
    harness.stop().await;
}

#[tokio::test]
async fn a_sidecar_is_served_from_its_registration_to_its_end() {
    let harness = Harness::start().await;
    let target = Target::SidecarFor("web-1".into());
    let unknown = open(&harness, target.clone()).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    let details = unknown.get_error_details();
    assert_eq!(details.error_info().unwrap().reason, "UNKNOWN_INSTANCE");

    let sidecar = |upstream_port: u16| {
        json!({"Kind": "connect-proxy", "ID": "web-1-sidecar-proxy", "Service": "web-sidecar-proxy", "Port": 21000,
            "Proxy": {"DestinationServiceName": "web", "DestinationServiceID": "web-1", "LocalServicePort": 80,
                "Upstreams": [{"DestinationName": "db", "LocalBindPort": upstream_port}]}})
    };
    harness
        .instance("n1", sidecar(5000), CheckStatus::Passing)
        .await;
    let mut stream = open(&harness, target).await.unwrap();
    let (1, Update::Snapshot(snapshot)) = next(&mut stream).await else {
        panic!("no snapshot")
    };
    assert_eq!(snapshot.listeners.len(), 2);

    // Something else of the node, then the proxy itself.
    harness
        .instance(
            "n1",
            json!({"ID": "x", "Service": "x", "Port": 1}),
            CheckStatus::Passing,
        )
        .await;
    harness
        .instance("n1", sidecar(5001), CheckStatus::Passing)
        .await;
    let (2, Update::Delta(delta)) = next(&mut stream).await else {
        panic!("no delta")
    };
    assert_eq!(delta.removed_listeners, ["db:127.0.0.1:5000"]);
    assert_eq!(delta.listeners[0].port, 5001);

    harness.remove("web-1-sidecar-proxy").await;
    let gone = soon(stream.message()).await.unwrap_err();
    assert_eq!(gone.code(), Code::NotFound);
    harness.until_unwatched().await;
    harness.stop().await;
}

#[tokio::test]
async fn an_impossible_request_is_refused_with_its_fields() {
    let harness = Harness::start().await;
    let mut target = ad_hoc();
    if let Target::AdHoc(proxy) = &mut target {
        proxy.upstreams[0].local_bind_port = 0;
    }
    let refused = open(&harness, target).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let details = refused.get_error_details();
    let fields = &details.bad_request().unwrap().field_violations;
    assert_eq!(fields[0].field, "ad_hoc.upstreams[0].local_bind_port");
    harness.stop().await;
}

#[tokio::test]
async fn nothing_stays_behind_of_a_proxy_that_went() {
    let harness = Harness::start().await;
    let mut stream = open(&harness, ad_hoc()).await.unwrap();
    next(&mut stream).await;
    assert!(harness.cluster.registry().watches().watchers() > 0);
    drop(stream);
    harness.until_unwatched().await;
    harness.stop().await;
}
