//! The agent: its services and checks, itself, its members, its end.

use std::sync::atomic::Ordering;

use wharf_registry::{consensus::Member, log::ServerId};

use super::*;
use crate::servers::left;

#[tokio::test]
async fn services_and_checks_of_the_agent() {
    let api = Api::start().await;
    let web = r#"{"Name":"web","Port":80,"Tags":["a"],"Check":{"TTL":"10m"}}"#;
    assert_eq!(api.put("/v1/agent/service/register", web).await.status, 200);
    let services = api.get("/v1/agent/services").await.json();
    assert_eq!(services["web"]["Meta"], json!({}));
    assert_eq!(services["web"]["Datacenter"], "dc1");
    let found = api.get("/v1/health/service/web").await.json();
    assert_eq!(
        found[0]["Checks"][0]["Status"], "critical",
        "the catalog has it already"
    );
    assert_eq!(api.get("/v1/agent/health/service/id/web").await.status, 503);
    assert_eq!(
        api.put("/v1/agent/check/pass/service:web?note=fine", "")
            .await
            .status,
        200
    );
    let text = api
        .get("/v1/agent/health/service/name/web?format=text")
        .await;
    assert_eq!((text.status, &*text.body), (200, "passing"));
    let report = r#"{"Status":"warning","Output":"slow"}"#;
    assert_eq!(
        api.put("/v1/agent/check/update/service:web", report)
            .await
            .status,
        200
    );
    assert_eq!(api.get("/v1/agent/health/service/id/web").await.status, 429);
    let check = api.get("/v1/agent/checks").await.json()["service:web"].clone();
    assert_eq!(
        (&check["Output"], &check["Type"]),
        (&json!("slow"), &json!("ttl"))
    );
    assert_eq!(
        api.put("/v1/agent/service/maintenance/web?enable=true", "")
            .await
            .status,
        200
    );
    let health = api.get("/v1/agent/health/service/id/web").await;
    assert_eq!(
        (health.status, health.header("x-consul-reason")),
        (503, Some("maintenance"))
    );
    assert_eq!(
        api.put("/v1/agent/service/maintenance/web?enable=false", "")
            .await
            .status,
        200
    );
    assert_eq!(
        api.put("/v1/agent/maintenance?enable=true&reason=x", "")
            .await
            .status,
        200
    );
    assert!(
        api.get("/v1/agent/checks")
            .await
            .json()
            .get("_node_maintenance")
            .is_some()
    );
    assert_eq!(
        api.put("/v1/agent/maintenance?enable=false", "")
            .await
            .status,
        200
    );
    let filtered = api.get("/v1/agent/services?filter=Port+==+81").await.json();
    assert_eq!(filtered, json!({}));
    assert_eq!(
        api.put("/v1/agent/service/deregister/web", "").await.status,
        200
    );
    assert_eq!(api.get("/v1/agent/checks").await.json(), json!({}));
    assert_eq!(api.get("/v1/health/service/web").await.json(), json!([]));
}

#[tokio::test]
async fn bad_registrations_are_refused_with_consuls_texts() {
    let api = Api::start().await;
    let cases = [
        (
            "service/register",
            r#"{"Port":1}"#,
            400,
            "Missing service name",
        ),
        (
            "service/register",
            r#"{"Name":"x","Port":"80"}"#,
            400,
            "Request decode failed",
        ),
        (
            "service/register",
            r#"{"Name":"x","Check":{"HTTP":"http://x"}}"#,
            400,
            "Interval must be > 0",
        ),
        (
            "service/register",
            r#"{"Name":"x","Check":{"HTTP":"http://x","Interval":"x"}}"#,
            400,
            "invalid duration",
        ),
        (
            "service/register",
            r#"{"Name":"x","Check":{"Args":["true"],"Interval":"1s"}}"#,
            400,
            "Scripts are disabled",
        ),
        ("check/register", r#"{"Name":"x"}"#, 400, "TTL must be > 0"),
        (
            "check/register",
            r#"{"TTL":"1s"}"#,
            400,
            "Missing check name",
        ),
        (
            "check/register",
            r#"{"Name":"x","ServiceID":"y","TTL":"1s"}"#,
            404,
            "ServiceID \"y\" does not exist",
        ),
        ("service/deregister/y", "", 404, "Unknown service ID \"y\""),
        ("check/deregister/y", "", 404, "Unknown check ID \"y\""),
        ("check/pass/y", "", 404, "Unknown check ID \"y\""),
        (
            "check/update/y",
            r#"{"Status":"odd"}"#,
            400,
            "Invalid check status: 'odd'",
        ),
        (
            "service/maintenance/y?enable=true",
            "",
            404,
            "No service registered with ID \"y\"",
        ),
        ("service/maintenance/y", "", 400, "Missing value for enable"),
        (
            "maintenance?enable=maybe",
            "",
            400,
            "Invalid value for enable",
        ),
        ("reload", "", 500, "bad.hcl:1:1: wrong"),
        ("join/10.0.0.1", "", 500, "no servers to operate on"),
        ("join/10.0.0.1?wan=1", "", 501, "not built yet"),
    ];
    for (path, body, status, text) in cases {
        let reply = api.put(&format!("/v1/agent/{path}"), body).await;
        assert_eq!(reply.status, status, "{path} {body}: {}", reply.body);
        assert!(reply.body.contains(text), "{path} {body}: {}", reply.body);
    }
    assert_eq!(
        api.get("/v1/agent/service/none").await.body,
        "unknown service ID: none"
    );
    assert_eq!(
        api.get("/v1/agent/health/service/name/none").await.status,
        404
    );
    assert_eq!(api.get("/v1/agent/monitor?loglevel=loud").await.status, 400);
}

#[tokio::test]
async fn a_service_can_be_waited_for_by_its_hash() {
    let api = Arc::new(Api::start().await);
    api.put("/v1/agent/service/register", r#"{"Name":"web","Port":80}"#)
        .await;
    let first = api.get("/v1/agent/service/web").await;
    let hash = first.header("x-consul-contenthash").unwrap().to_owned();
    assert_eq!(first.json()["ContentHash"], hash);
    let timeout = api
        .get(&format!("/v1/agent/service/web?hash={hash}&wait=10ms"))
        .await;
    assert_eq!(timeout.header("x-consul-contenthash"), Some(&*hash));
    let reader = api.clone();
    let path = format!("/v1/agent/service/web?hash={hash}&wait=60s");
    let parked = tokio::spawn(async move { reader.get(&path).await });
    api.put("/v1/agent/service/register", r#"{"Name":"web","Port":81}"#)
        .await;
    assert_eq!(parked.await.unwrap().json()["Port"], 81);
}

#[tokio::test]
async fn the_agent_describes_itself() {
    let api = Api::start().await;
    let own = api.get("/v1/agent/self").await.json();
    assert_eq!(own["Config"]["NodeName"], "test");
    assert_eq!(own["Config"]["Version"], crate::context::CONSUL_VERSION);
    assert_eq!(own["DebugConfig"]["NodeID"], own["Config"]["NodeID"]);
    assert_eq!(own["Member"]["Tags"]["role"], "consul");
    assert!(own["DebugConfig"].is_object() && own["Stats"]["agent"].is_object());
    assert_eq!(api.get("/v1/agent/members").await.json()[0]["Status"], 1);
    let metrics = api.get("/v1/agent/metrics").await.json();
    assert!(metrics["Gauges"].is_array() && metrics["Timestamp"].is_string());
    let text = api.get("/v1/agent/metrics?format=prometheus").await;
    assert!(
        text.header("content-type")
            .unwrap()
            .starts_with("text/plain; version=0.0.4")
    );
}

#[tokio::test]
async fn members_are_shown_as_far_as_they_are_known() {
    let api = Api::start().await;
    let register = json!({
        "Node": "s2", "ID": "22222222-2222-3333-4444-555555555555", "Address": "10.0.0.2",
        "Service": {"ID": "consul", "Service": "consul", "Meta": {"wharf": "0.9.9"}},
        "Check": {"CheckID": "serfHealth", "Name": "Serf Health Status", "Status": "passing"},
    });
    let reply = api.put("/v1/catalog/register", &register.to_string()).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    api.register("external", "web", "passing").await;
    *api.cluster.servers.lock().unwrap() = vec![Member::named(
        ServerId(uuid::Uuid::from_u128(2)),
        "s2".into(),
        "10.0.0.2:8300".into(),
    )];
    let members = async |query: &str| {
        let reply = api.get(&format!("/v1/agent/members{query}")).await;
        let rows = reply.json().as_array().unwrap().clone();
        let shown = rows.iter().map(|row| {
            let name = row["Name"].as_str().unwrap();
            format!("{name}:{} {}", row["Port"], row["Status"])
        });
        (shown.collect::<Vec<String>>(), rows)
    };
    let (shown, rows) = members("?segment=_all").await;
    assert_eq!(shown, ["test:8301 1", "s2:8301 1"]);
    assert_eq!(rows[0]["Tags"]["bootstrap"], "1");
    assert_eq!(rows[0]["Tags"]["wharf"], crate::context::VERSION);
    assert_eq!(rows[1]["Tags"]["wharf"], "0.9.9");
    let stats = api.get("/v1/agent/self").await.json()["Stats"]["serf_lan"].clone();
    assert_eq!(stats, json!({"members": "2", "failed": "0", "left": "0"}));
    let (shown, _) = members("?wan=1").await;
    assert_eq!(shown, ["test.dc1:8302 1", "s2.dc1:8302 1"]);
    let reply = api.get("/v1/agent/members?segment=abc").await;
    assert_eq!(
        (reply.status, &*reply.body),
        (500, "segment \"abc\" not found")
    );

    // Nobody says any more who is dead: this server looks for itself.
    api.cluster.leaderless.store(true, Ordering::Relaxed);
    assert_eq!(members("").await.0[1], "s2:8301 1");
    api.cluster
        .out_of_reach
        .lock()
        .unwrap()
        .insert("10.0.0.2:8300".into());
    assert_eq!(members("").await.0[1], "s2:8301 4");
    let stats = api.get("/v1/agent/self").await.json()["Stats"]["serf_lan"].clone();
    assert_eq!(stats, json!({"members": "2", "failed": "1", "left": "0"}));
}

#[tokio::test]
async fn who_left_is_shown_as_it_was_until_it_is_back() {
    let api = Api::start().await;
    let node = |name: &str, status: &str, service: serde_json::Value| {
        json!({
            "Node": name, "ID": format!("22222222-2222-3333-4444-{name:0>12}"),
            "Address": "10.0.0.2", "NodeMeta": {"consul-version": "1.2.3"}, "Service": service,
            "Check": {"CheckID": "serfHealth", "Name": "Serf Health Status", "Status": status},
        })
    };
    let server = json!({
        "ID": "consul", "Service": "consul", "Port": 8300, "Meta": {"wharf": "0.9.9"}
    });
    let register = async |node: serde_json::Value| {
        let reply = api.put("/v1/catalog/register", &node.to_string()).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
    };
    register(node("a1", "passing", json!(null))).await;
    register(node("s2", "passing", server.clone())).await;
    for name in ["a1", "s2"] {
        let cluster: Arc<dyn Cluster> = api.cluster.clone();
        cluster.write(left::leave(name.into())).await.unwrap();
    }
    // A server that said that it leaves and is still in the catalog, and one that is let in only now.
    register(node("s3", "critical", server.clone())).await;
    register(node("s4", "passing", server)).await;
    let members = async |query: &str| {
        let rows = api.get(&format!("/v1/agent/members{query}")).await.json();
        let rows = rows.as_array().unwrap().iter().map(|row| {
            let tags = &row["Tags"];
            let [name, role, port, build] =
                [&row["Name"], &tags["role"], &tags["port"], &tags["build"]]
                    .map(|value| value.as_str().unwrap_or("-").to_owned());
            format!("{name} {} {role} {port} {build}", row["Status"])
        });
        rows.skip(1).collect::<Vec<String>>()
    };
    assert_eq!(
        members("").await,
        [
            "s3 3 consul 8300 1.2.3:",
            "s4 1 consul 8300 1.2.3:",
            "a1 3 node - 1.2.3:",
            "s2 3 consul 8300 1.2.3:",
        ]
    );
    assert_eq!(
        members("?filter=Status==3%20or%20Name==test").await.len(),
        3
    );
    assert_eq!(members("?wan=1").await.len(), 3, "of servers only");
    let stats = api.get("/v1/agent/self").await.json()["Stats"]["serf_lan"].clone();
    assert_eq!(stats, json!({"members": "5", "failed": "0", "left": "3"}));
    register(node("a1", "critical", json!(null))).await;
    let now = members("").await;
    assert!(now.contains(&"a1 4 node - 1.2.3:".to_owned()), "{now:?}");
    assert_eq!(now.len(), 4, "it is shown once");
}

#[tokio::test]
async fn what_is_not_understood_or_not_done_is_said() {
    let api = Api::start().await;
    let path = "/v1/operator/autopilot/configuration";
    let reply = api.put(path, r#"{"Nonsense": "abc"}"#).await;
    assert_eq!(reply.status, 400);
    assert!(
        reply.body.contains("Error parsing autopilot config") && reply.body.contains("Nonsense"),
        "{}",
        reply.body
    );
    let reply = api.put("/v1/agent/leave", "").await;
    assert_eq!(
        (reply.status, &*reply.body),
        (500, "this server stays a member")
    );
}
