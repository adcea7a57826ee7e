//! Catalog, health, keys, config entries and the agent's endpoints, as curl sees them.

use serde_json::{Value, json};
use wharf_tests::{Agent, SOON, eventually};

/// The entries of an object, for assertions on its shape.
fn keys(value: &Value) -> Vec<&str> {
    let object = value.as_object().map(|map| map.keys().map(String::as_str));
    object.map(Iterator::collect).unwrap_or_default()
}

#[track_caller]
fn assert_has(value: &Value, names: &[&str]) {
    for name in names {
        assert!(value.get(name).is_some(), "no {name} in {:?}", keys(value));
    }
}

#[test]
fn reads_carry_the_headers_that_clients_parse() {
    let agent = Agent::dev();
    agent.http.put("/v1/kv/a", "b").ok();
    for path in [
        "/v1/kv/a",
        "/v1/catalog/services",
        "/v1/catalog/nodes",
        "/v1/catalog/service/consul",
        "/v1/health/service/consul",
        "/v1/health/state/any",
    ] {
        let reply = agent.http.get(path).ok();
        reply.index();
        assert_eq!(reply.header("x-consul-lastcontact"), Some("0"), "{path}");
        assert_eq!(reply.header("x-consul-knownleader"), Some("true"), "{path}");
        assert_eq!(reply.header("x-consul-default-acl-policy"), Some("allow"));
        assert_eq!(reply.header("content-type"), Some("application/json"));
    }
    let stale = agent.http.get("/v1/kv/a?stale");
    assert_eq!(
        stale.header("x-consul-effective-consistency"),
        Some("stale")
    );
    let both = agent.http.get("/v1/kv/a?stale&consistent");
    assert_eq!(both.status, 400);
    assert!(both.text().contains("conflicting semantics"));
}

#[test]
fn keys_are_put_read_compared_and_deleted() {
    let agent = Agent::dev();
    let http = agent.http;
    assert_eq!(
        http.put("/v1/kv/dir/a?flags=7", "one").ok().text().trim(),
        "true"
    );
    let read = http.get("/v1/kv/dir/a").json();
    assert_eq!(read[0]["Key"], "dir/a");
    assert_eq!(read[0]["Flags"], 7);
    assert_eq!(read[0]["Value"], "b25l");
    assert_eq!(read[0]["LockIndex"], 0);
    let modified = read[0]["ModifyIndex"].as_u64().unwrap();
    assert_eq!(read[0]["CreateIndex"], modified);

    // Check-and-set: once with the right index, not a second time; 0 creates only.
    let cas = format!("/v1/kv/dir/a?cas={modified}");
    assert_eq!(http.put(&cas, "two").ok().text().trim(), "true");
    assert_eq!(http.put(&cas, "three").ok().text().trim(), "false");
    assert_eq!(
        http.put("/v1/kv/dir/a?cas=0", "x").ok().text().trim(),
        "false"
    );
    assert_eq!(
        http.put("/v1/kv/dir/b?cas=0", "").ok().text().trim(),
        "true"
    );
    let raw = http.get("/v1/kv/dir/a?raw").ok();
    assert_eq!(raw.text(), "two");
    assert_eq!(raw.header("x-content-type-options"), Some("nosniff"));
    // An empty value is null, as in Consul.
    assert_eq!(http.get("/v1/kv/dir/b").json()[0]["Value"], Value::Null);

    http.put("/v1/kv/dir/sub/c", "c").ok();
    let listed = http.get("/v1/kv/dir/?keys").json();
    assert_eq!(listed, json!(["dir/a", "dir/b", "dir/sub/c"]));
    let folders = http.get("/v1/kv/dir/?keys&separator=/").json();
    assert_eq!(folders, json!(["dir/a", "dir/b", "dir/sub/"]));
    let all = http.get("/v1/kv/dir?recurse").json();
    assert_eq!(all.as_array().map(Vec::len), Some(3));

    assert_eq!(
        http.delete("/v1/kv/dir/a?cas=1").ok().text().trim(),
        "false"
    );
    assert_eq!(http.delete("/v1/kv/dir/a").ok().text().trim(), "true");
    let gone = http.get("/v1/kv/dir/a");
    assert_eq!((gone.status, gone.body.len()), (404, 0));
    assert!(gone.index() > modified);
    assert_eq!(http.delete("/v1/kv/dir?recurse").ok().text().trim(), "true");
    assert_eq!(http.get("/v1/kv/dir?recurse").status, 404);
    assert!(agent.metric("wharf_kv_entries").abs() < 0.5);

    let acquire = http.put("/v1/kv/lock?acquire=some-session", "");
    assert!(acquire.status >= 400 && acquire.text().to_lowercase().contains("session"));
}

#[test]
fn a_service_is_registered_checked_found_and_deregistered() {
    let agent = Agent::dev();
    let http = agent.http;
    let body = json!({
        "ID": "web-1", "Name": "web", "Port": 8080, "Address": "10.0.0.9",
        "Tags": ["v1", "blue"], "Meta": {"team": "shop"},
        "Weights": {"Passing": 10, "Warning": 1},
        "Check": {"TTL": "1h", "Notes": "reported by the service"},
    });
    assert!(
        http.put("/v1/agent/service/register", body.to_string())
            .ok()
            .body
            .is_empty()
    );

    let own = http.get("/v1/agent/service/web-1").ok();
    let hash = own.header("x-consul-contenthash").map(str::to_owned);
    let own = own.json();
    assert_eq!(own["Service"], "web");
    assert_eq!(own["Tags"], json!(["v1", "blue"]));
    assert_eq!(own["Meta"], json!({"team": "shop"}));
    assert_eq!(own["ContentHash"].as_str(), hash.as_deref());
    assert!(http.get("/v1/agent/services").json().get("web-1").is_some());
    let check = &http.get("/v1/agent/checks").json()["service:web-1"];
    assert_eq!(check["Status"], "critical");
    assert_eq!(check["Type"], "ttl");
    assert_eq!(check["ServiceName"], "web");

    // The catalog agrees without being asked to.
    let row = http.get("/v1/catalog/service/web?tag=v1&tag=blue").json()[0].clone();
    assert_has(
        &row,
        &[
            "ID",
            "Node",
            "Address",
            "Datacenter",
            "TaggedAddresses",
            "NodeMeta",
            "ServiceID",
            "ServiceName",
            "ServiceAddress",
            "ServicePort",
            "ServiceTags",
            "ServiceMeta",
            "ServiceWeights",
            "ServiceEnableTagOverride",
            "CreateIndex",
            "ModifyIndex",
        ],
    );
    assert_eq!(row["ServiceAddress"], "10.0.0.9");
    assert_eq!(
        http.get("/v1/catalog/service/web?tag=red").json(),
        json!([])
    );

    let health = || http.get("/v1/health/service/web?passing").json();
    assert_eq!(health(), json!([]));
    assert_eq!(http.get("/v1/agent/health/service/id/web-1").status, 503);
    http.put("/v1/agent/check/pass/service:web-1?note=fine", "")
        .ok();
    assert!(eventually(SOON, || health()
        .as_array()
        .is_some_and(|rows| rows.len() == 1)));
    assert_eq!(http.get("/v1/agent/health/service/id/web-1").status, 200);
    let row = health()[0].clone();
    assert_eq!(row["Node"]["Datacenter"], "dc1");
    assert_eq!(
        row["Service"]["Weights"],
        json!({"Passing": 10, "Warning": 1})
    );
    let checks = row["Checks"].as_array().unwrap().clone();
    let ids: Vec<_> = checks
        .iter()
        .map(|check| check["CheckID"].as_str())
        .collect();
    assert!(
        ids.contains(&Some("serfHealth")) && ids.contains(&Some("service:web-1")),
        "{ids:?}"
    );
    let own = checks
        .iter()
        .find(|check| check["CheckID"] == "service:web-1")
        .unwrap();
    assert_eq!(own["Output"], "fine");
    assert_eq!(own["ServiceTags"], json!(["v1", "blue"]));

    http.put("/v1/agent/check/warn/service:web-1", "").ok();
    assert!(eventually(SOON, || {
        http.get("/v1/health/checks/web").json()[0]["Status"] == "warning"
    }));
    assert_eq!(http.get("/v1/agent/health/service/name/web").status, 429);
    let update = json!({"Status": "passing", "Output": "updated"});
    http.put("/v1/agent/check/update/service:web-1", update.to_string())
        .ok();
    assert!(eventually(SOON, || !health()
        .as_array()
        .unwrap()
        .is_empty()));

    // Maintenance takes it away, whatever its checks say, and gives it back.
    http.put(
        "/v1/agent/service/maintenance/web-1?enable=true&reason=upgrade",
        "",
    )
    .ok();
    assert!(eventually(SOON, || health() == json!([])));
    http.put("/v1/agent/service/maintenance/web-1?enable=false", "")
        .ok();
    assert!(eventually(SOON, || !health()
        .as_array()
        .unwrap()
        .is_empty()));

    http.put("/v1/agent/service/deregister/web-1", "").ok();
    assert_eq!(http.get("/v1/catalog/service/web").json(), json!([]));
    assert_eq!(http.get("/v1/agent/service/web-1").status, 404);
    let unknown = http.put("/v1/agent/service/deregister/web-1", "");
    assert_eq!(unknown.status, 404);
    assert_eq!(
        unknown.text().trim(),
        "Unknown service ID \"web-1\". Ensure that the service ID is passed, not the service name."
    );
}

#[test]
fn external_nodes_live_in_the_catalog() {
    let agent = Agent::dev();
    let http = agent.http;
    let body = json!({
        "Node": "printer", "Address": "10.9.9.9", "NodeMeta": {"external": "true"},
        "Service": {"ID": "ipp", "Service": "ipp", "Port": 631, "Tags": ["colour"]},
        "Check": {"CheckID": "paper", "Name": "paper", "Status": "passing", "ServiceID": "ipp"},
    });
    assert_eq!(
        http.put("/v1/catalog/register", body.to_string())
            .ok()
            .text()
            .trim(),
        "true"
    );
    assert_eq!(
        http.get("/v1/catalog/services").json()["ipp"],
        json!(["colour"])
    );
    let nodes = http.get("/v1/catalog/nodes?node-meta=external:true").json();
    assert_eq!(nodes[0]["Node"], "printer");
    assert_eq!(nodes.as_array().map(Vec::len), Some(1));
    let node = http.get("/v1/catalog/node/printer").json();
    assert_eq!(node["Services"]["ipp"]["Port"], 631);
    let list = http.get("/v1/catalog/node-services/printer").json();
    assert_eq!(list["Services"][0]["ID"], "ipp");
    assert_eq!(http.get("/v1/catalog/node/nobody").json(), Value::Null);
    let state = http.get("/v1/health/state/passing").json();
    assert!(
        state
            .as_array()
            .unwrap()
            .iter()
            .any(|check| check["CheckID"] == "paper")
    );
    assert_eq!(
        http.get("/v1/health/node/printer").json()[0]["Name"],
        "paper"
    );
    let filtered = http
        .get("/v1/catalog/nodes?filter=Node%20==%20%22printer%22")
        .json();
    assert_eq!(filtered.as_array().map(Vec::len), Some(1));

    http.put(
        "/v1/catalog/deregister",
        json!({"Node": "printer"}).to_string(),
    )
    .ok();
    assert_eq!(http.get("/v1/catalog/node/printer").json(), Value::Null);
    assert_eq!(http.get("/v1/catalog/service/ipp").json(), json!([]));
    assert_eq!(http.get("/v1/health/node/printer").json(), json!([]));
}

#[test]
fn config_entries_are_written_read_and_deleted() {
    let agent = Agent::dev();
    let http = agent.http;
    let entry = json!({"Kind": "service-defaults", "Name": "web", "Protocol": "http"});
    assert_eq!(
        http.put("/v1/config", entry.to_string()).ok().text().trim(),
        "true"
    );
    let read = http.get("/v1/config/service-defaults/web").json();
    assert_eq!(read["Protocol"], "http");
    let index = read["ModifyIndex"].as_u64().unwrap();
    let stale = format!("/v1/config?cas={}", index - 1);
    assert_eq!(
        http.put(&stale, entry.to_string()).ok().text().trim(),
        "false"
    );
    let current = format!("/v1/config?cas={index}");
    assert_eq!(
        http.put(&current, entry.to_string()).ok().text().trim(),
        "true"
    );
    let list = http.get("/v1/config/service-defaults").json();
    assert_eq!(list.as_array().map(Vec::len), Some(1));
    http.delete("/v1/config/service-defaults/web").ok();
    let gone = http.get("/v1/config/service-defaults/web");
    assert_eq!(gone.status, 404);
    assert!(
        gone.text().contains("Config entry not found"),
        "{}",
        gone.text()
    );
    let wrong = json!({"Kind": "service-defaults", "Name": "web", "Protokoll": "http"});
    let reply = http.put("/v1/config", wrong.to_string());
    assert_eq!(reply.status, 400, "{}", reply.text());
    assert!(reply.text().contains("Protokoll"), "{}", reply.text());
}

#[test]
fn the_agent_describes_itself() {
    let agent = Agent::dev();
    let own = agent.http.get("/v1/agent/self").json();
    assert_has(
        &own,
        &[
            "Config",
            "DebugConfig",
            "Coord",
            "Member",
            "Stats",
            "Meta",
            "xDS",
        ],
    );
    assert_has(
        &own["Config"],
        &[
            "Datacenter",
            "PrimaryDatacenter",
            "NodeName",
            "NodeID",
            "Revision",
            "Server",
            "Version",
            "BuildDate",
        ],
    );
    assert_eq!(own["Member"]["Addr"], "127.0.0.1");
    assert_eq!(own["DebugConfig"]["GRPCPort"], agent.ports.grpc);
    let members = agent.http.get("/v1/agent/members").json();
    assert_eq!(members[0]["Status"], 1);
    assert_eq!(members[0]["Name"], own["Config"]["NodeName"]);
    assert_has(
        &agent.http.get("/v1/agent/metrics").json(),
        &["Timestamp", "Gauges", "Points", "Counters", "Samples"],
    );
    assert_has(
        &agent.http.get("/v1/agent/version").json(),
        &["HumanVersion"],
    );

    agent
        .http
        .put("/v1/agent/maintenance?enable=true&reason=disk", "")
        .ok();
    assert!(eventually(SOON, || {
        let consul = agent.http.get("/v1/health/service/consul?passing").json();
        consul == json!([])
    }));
    assert_eq!(agent.http.put("/v1/agent/maintenance", "").status, 400);
}

#[test]
fn methods_and_paths_that_do_not_exist_are_refused() {
    let agent = Agent::dev();
    let reply = agent.http.put("/v1/catalog/nodes", "");
    assert_eq!(reply.status, 405);
    assert!(
        reply
            .header("allow")
            .is_some_and(|allow| allow.contains("GET"))
    );
    let reply = agent.http.get("/v1/agent/service/register");
    assert_eq!(reply.status, 405);
    let reply = agent.http.get("/v1/nothing/here");
    assert_eq!(reply.status, 404);
    let reply = agent.http.get("/v1/kv/a?dc=nowhere");
    assert_eq!(
        (reply.status, reply.text().trim()),
        (500, "No path to datacenter")
    );
    let reply = agent.http.get("/v1/kv/a?index=none");
    assert_eq!(reply.status, 400);
    let reply = agent.http.get("/v1/catalog/nodes?ns=team");
    assert_eq!(reply.status, 400, "{}", reply.text());
}
