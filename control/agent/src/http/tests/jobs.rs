//! Jobs, allocations and nodes over the API, with the scheduler at work.

use wharf_registry::{
    Command,
    command::PlatformCommand,
    model::platform::{Driver, DriverHealth, PlatformNode, Resources},
};

use super::*;
use crate::{
    cluster::{Cluster, testing::agent_is_there},
    platform::scheduling::Scheduling,
};

/// An API with a scheduler and a node of four cores.
async fn start() -> Api {
    let api = Api::start().await;
    let healthy = DriverHealth {
        healthy: true,
        reason: "".into(),
    };
    let node = PlatformNode {
        id: "aaaa0000-1111".into(),
        name: "n1".into(),
        resources: Resources {
            cpu: 4000,
            memory_mb: 4096,
            memory_max_mb: 0,
        },
        drivers: [(Driver::Exec, healthy)].into(),
        ..PlatformNode::default()
    };
    let cluster: Arc<dyn Cluster> = api.cluster.clone();
    cluster
        .write(Command::Platform(PlatformCommand::RegisterNode {
            node: Box::new(node),
            time: 1,
        }))
        .await
        .unwrap();
    // Without an agent it would be lost after a while.
    agent_is_there(&*cluster, "n1", "aaaa0000-1111").await;
    let decisions = api.context.decisions.clone();
    let scheduling = Scheduling::new(cluster, decisions);
    tokio::spawn(scheduling.run(api.context.shutdown.clone()));
    api
}

fn web(count: u32, cpu: u64) -> String {
    json!({
        "Name": "web",
        "Groups": [{
            "Name": "web", "Count": count,
            "Tasks": [{"Name": "web", "Driver": "exec", "Command": "/bin/true", "Resources": {"CPU": cpu}}],
        }],
    })
    .to_string()
}

impl Api {
    /// The allocations of web once there are so many.
    async fn allocations(&self, count: usize) -> Vec<Value> {
        let mut index = 1;
        loop {
            let path = format!("/v1/job/web/allocations?index={index}&wait=10s");
            let reply = self.get(&path).await;
            if let Value::Array(rows) = reply.json()
                && rows.len() == count
            {
                return rows;
            }
            assert!(reply.index() > index, "the wait is over");
            index = reply.index();
        }
    }
}

#[tokio::test]
async fn a_job_is_registered_shown_scaled_and_stopped() {
    let api = start().await;
    assert_eq!(api.get("/v1/jobs").await.json(), json!([]));
    assert_eq!(api.get("/v1/job/web").await.status, 404);
    let reply = api.put("/v1/jobs", &web(2, 100)).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert_eq!(reply.json()["Version"], 0);
    let allocs = api.allocations(2).await;
    assert_eq!(allocs[0]["Node"], "n1");
    assert_eq!(allocs[0]["ClientStatus"], "pending");

    let list = api.get("/v1/jobs?prefix=we").await.json();
    assert_eq!(list[0]["Name"], "web");
    assert_eq!(list[0]["Status"], "pending");
    assert_eq!(list[0]["Summary"]["web"]["Pending"], 2);
    assert_eq!(api.get("/v1/jobs?prefix=x").await.json(), json!([]));
    let job = api.get("/v1/job/web").await.json();
    assert_eq!(job["Groups"][0]["Restart"]["Attempts"], 2);
    assert_eq!(job["PlacementFailures"], json!([]));

    let reply = api
        .call("POST", "/v1/job/web/scale", r#"{"Count": 3}"#)
        .await;
    assert_eq!(reply.json()["Version"], 1, "{}", reply.body);
    api.allocations(3).await;
    let versions = api.get("/v1/job/web/versions").await.json();
    assert_eq!(versions[0]["Version"], 1);
    assert_eq!(versions[1]["Groups"][0]["Count"], 2);
    let old = api.get("/v1/job/web?version=0").await.json();
    assert_eq!(old["Groups"][0]["Count"], 2);
    let decisions = api.get("/v1/job/web/decisions").await.json();
    assert_eq!(decisions.as_array().unwrap().len(), 2);

    let reply = api.call("DELETE", "/v1/job/web", "").await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    let job = api.get("/v1/job/web").await.json();
    assert_eq!(
        (&job["Stop"], &job["Status"]),
        (&json!(true), &json!("stopping"))
    );
    let reply = api.put("/v1/job/web/scale", r#"{"Count": 3}"#).await;
    assert_eq!(reply.status, 409);
    assert_eq!(reply.body, r#"job "web" is stopped: run it again first"#);
    let reply = api.call("DELETE", "/v1/job/web?purge", "").await;
    assert_eq!(reply.status, 200);
    assert_eq!(api.get("/v1/job/web").await.status, 404);
}

#[tokio::test]
async fn what_is_wrong_with_a_job_is_said() {
    let api = start().await;
    let refused = async |path: &str, body: &str| {
        let reply = api.put(path, body).await;
        (reply.status, reply.body)
    };
    let (status, text) = refused("/v1/jobs", r#"{"Name": "web", "Gruops": []}"#).await;
    assert_eq!(status, 400);
    assert_eq!(
        text,
        r#"the job is not accepted: unknown key "Gruops" (did you mean "Groups"?)"#
    );
    let (status, text) = refused("/v1/jobs", r#"{"Name": "We b", "Groups": []}"#).await;
    assert_eq!((status, text.lines().count()), (400, 2), "{text}");
    let (status, _) = refused("/v1/job/other", &web(1, 1)).await;
    assert_eq!(status, 400);
    let large = format!(r#"{{"Name": "{}"}}"#, "x".repeat(600_000));
    assert_eq!(refused("/v1/jobs", &large).await.0, 413);
    let (status, text) = refused("/v1/job/web/scale", r#"{"Count": 3}"#).await;
    assert_eq!((status, &*text), (404, r#"there is no job "web""#));

    assert_eq!(refused("/v1/jobs?cas=0", &web(1, 1)).await.0, 200);
    let (status, text) = refused("/v1/jobs?cas=0", &web(2, 1)).await;
    assert_eq!(status, 409);
    assert!(text.contains("exists already"), "{text}");
    assert_eq!(refused("/v1/jobs?cas=x", &web(2, 1)).await.0, 400);
    assert_eq!(refused("/v1/job/web/scale", "{}").await.0, 400);
    assert_eq!(refused("/v1/job/web/nope", "{}").await.0, 404);
    assert_eq!(api.get("/v1/job/web/nope").await.status, 404);
    assert_eq!(api.call("DELETE", "/v1/job/nope", "").await.status, 404);
}

#[tokio::test]
async fn an_image_is_pinned_or_the_job_is_refused() {
    let api = start().await;
    let job = |image: &str, digest: &str| {
        let task = json!({"Name": "web", "Image": image, "ImageDigest": digest});
        json!({"Name": "web", "Groups": [{"Name": "web", "Tasks": [task]}]}).to_string()
    };
    let reply = api.put("/v1/jobs", &job("web:1", "")).await;
    let text =
        "the job is not accepted: Groups[0].Tasks[0].Image: this agent keeps no images: a test";
    assert_eq!((reply.status, &*reply.body), (503, text));
    let reply = api.put("/v1/jobs", &job("https://web", "")).await;
    assert_eq!(reply.status, 400, "{}", reply.body);
    let digest = format!("sha256:{}", "0".repeat(64));
    let reply = api.put("/v1/jobs", &job("web:1", &digest)).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
}

#[tokio::test]
async fn an_allocation_is_found_by_the_beginning_of_its_id_and_stopped() {
    let api = start().await;
    api.put("/v1/jobs", &web(1, 100)).await;
    let alloc = api.allocations(1).await.remove(0);
    let id = alloc["ID"].as_str().unwrap();
    let all = api.get("/v1/allocations").await.json();
    assert_eq!(all[0]["ID"], id);
    let short = &id[..8];
    let one = api.get(&format!("/v1/allocation/{short}")).await.json();
    assert_eq!(one["Name"], "web.web[0]");
    assert!(one["Placement"]["Scores"][0]["Scores"]["binpack"].is_number());
    assert_eq!(api.get("/v1/allocation/zzzz").await.status, 404);
    assert_eq!(api.get("/v1/allocation/z").await.status, 400);
    let reply = api.put(&format!("/v1/allocation/{short}/stop"), "").await;
    assert_eq!(reply.json()["DesiredStatus"], "stop");
    assert_eq!(api.put("/v1/allocation/zzzz/stop", "").await.status, 404);
    assert_eq!(
        api.put(&format!("/v1/allocation/{id}"), "").await.status,
        404
    );
}

#[tokio::test]
async fn a_read_of_an_allocation_waits_for_its_change() {
    let api = start().await;
    api.put("/v1/jobs", &web(1, 100)).await;
    let alloc = api.allocations(1).await.remove(0);
    let id = alloc["ID"].as_str().unwrap();
    let path = format!("/v1/allocation/{id}");
    let index = api.get(&path).await.index();
    let stop = format!("/v1/allocation/{id}/stop");
    let blocking = format!("{path}?index={index}&wait=30s");
    let (changed, _) = tokio::join!(api.get(&blocking), api.put(&stop, ""));
    assert_eq!(changed.json()["DesiredStatus"], "stop");
    assert!(changed.index() > index);
}

#[tokio::test]
async fn why_nowhere_is_on_the_job_and_nodes_show_their_room() {
    let api = start().await;
    api.put("/v1/jobs", &web(3, 1500)).await;
    api.allocations(2).await;
    let job = api.get("/v1/job/web").await.json();
    let failure = &job["PlacementFailures"][0];
    assert_eq!(failure["Count"], 1);
    let reason = failure["Reason"].as_str().unwrap();
    assert!(
        reason.contains("cpu exhausted on 1 node: it needs 1500m, 1000m free"),
        "{reason}"
    );

    let nodes = api.get("/v1/platform/nodes").await.json();
    assert_eq!(nodes[0]["Name"], "n1");
    assert_eq!(nodes[0]["Reserved"]["CPU"], 3000);
    assert_eq!(nodes[0]["Allocations"], 2);
    for name in ["n1", "aaaa0000-1111", "aaaa"] {
        let node = api.get(&format!("/v1/platform/node/{name}")).await.json();
        assert_eq!(node["Drivers"]["exec"]["Healthy"], true);
    }
    let rows = api.get("/v1/platform/node/n1/allocations").await.json();
    assert_eq!(rows.as_array().unwrap().len(), 2);
    let path = "/v1/platform/node/n1/eligibility";
    let reply = api.put(path, r#"{"Eligible": false}"#).await;
    assert_eq!(reply.json()["Eligible"], false);
    assert_eq!(api.put(path, "{}").await.status, 400);
    assert_eq!(api.get("/v1/platform/node/n9").await.status, 404);
}

#[tokio::test]
async fn the_index_of_a_change_is_before_all_that_comes_of_it() {
    let api = Api::start().await;
    let entry = wharf_registry::model::KvEntry {
        key: "a".into(),
        ..Default::default()
    };
    let fast = Command::Kv(wharf_registry::command::KvCommand::Set { entry });
    *api.cluster.follow_up.lock().unwrap() = Some(fast);
    let registered = api.put("/v1/jobs", &web(1, 10)).await.json();
    let follows = api.cluster.registry().view().kv("a").unwrap().modify_index;
    assert!(
        registered["Index"].as_u64().unwrap() < follows,
        "{registered}"
    );
    // Nothing changes, and what it brings about comes later all the same.
    let again = api.put("/v1/jobs", &web(1, 10)).await.json();
    assert!(again["Index"].as_u64().unwrap() >= follows, "{again}");
}
