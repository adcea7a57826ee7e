//! The API over real sockets, on a cluster of one without a log.

mod agent;
mod jobs;

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tokio_util::sync::CancellationToken;
use wharf_registry::watch::Watches;

use super::*;
use crate::{
    anti_entropy::AntiEntropy,
    authz::AllowAll,
    cluster::{ClusterError, Consistency, testing::Solo},
};

mod transport;

struct Api {
    address: std::net::SocketAddr,
    cluster: Arc<Solo>,
    context: Arc<HttpContext>,
}

struct Reply {
    status: u16,
    head: String,
    body: String,
}

impl Reply {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (own, value) = line.split_once(':')?;
            own.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    fn index(&self) -> u64 {
        self.header("x-consul-index")
            .expect("an index")
            .parse()
            .unwrap()
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("no JSON: {}", self.body))
    }
}

impl Api {
    async fn start() -> Api {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let cluster = Arc::new(Solo::new());
        let context = Arc::new(testing::context(cluster.clone()));
        let entropy = AntiEntropy::of_client(context.local.clone(), cluster.clone());
        tokio::spawn(entropy.run(context.shutdown.clone()));
        HttpServer::start(context.clone(), vec![HttpListener::Plain(listener)]);
        Api {
            address,
            cluster,
            context,
        }
    }

    async fn raw(&self, request: &str) -> Reply {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut reply = Vec::new();
        stream.read_to_end(&mut reply).await.unwrap();
        let reply = String::from_utf8(reply).unwrap();
        let (head, body) = reply.split_once("\r\n\r\n").expect("a complete reply");
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Reply {
            status,
            head: head.to_owned(),
            body: body.to_owned(),
        }
    }

    async fn call(&self, method: &str, path: &str, body: &str) -> Reply {
        let length = body.len();
        self.raw(&format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        ))
        .await
    }

    async fn get(&self, path: &str) -> Reply {
        self.call("GET", path, "").await
    }

    async fn put(&self, path: &str, body: &str) -> Reply {
        self.call("PUT", path, body).await
    }

    async fn register(&self, node: &str, service: &str, status: &str) {
        let body = json!({
            "Node": node, "Address": "10.0.0.1",
            "Service": {"Service": service, "Port": 80, "Tags": ["v1"]},
            "Check": {"Name": "up", "ServiceID": service, "Status": status},
        });
        let reply = self.put("/v1/catalog/register", &body.to_string()).await;
        assert_eq!((reply.status, &*reply.body), (200, "true"));
    }

    fn watches(&self) -> Arc<Watches> {
        self.cluster.registry().watches().clone()
    }

    /// Waits until so many reads are parked.
    async fn parked(&self, watchers: usize) {
        while self.watches().watchers() != watchers {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn keys_are_set_read_listed_and_deleted() {
    let api = Api::start().await;
    assert_eq!(api.get("/v1/kv/a").await.status, 404);
    assert_eq!(api.put("/v1/kv/a/b?flags=7", "x").await.body, "true");
    let row = api.get("/v1/kv/a/b").await.json();
    assert_eq!(row[0]["Value"], "eA==");
    assert_eq!(row[0]["Flags"], 7);
    assert!(row[0].get("Session").is_none());
    let raw = api.get("/v1/kv/a/b?raw").await;
    assert_eq!(
        (&*raw.body, raw.header("content-security-policy")),
        ("x", Some("sandbox"))
    );
    assert_eq!(api.put("/v1/kv/a/b?cas=1", "y").await.body, "false");
    let index = raw.index();
    assert_eq!(
        api.put(&format!("/v1/kv/a/b?cas={index}"), "y").await.body,
        "true"
    );
    api.put("/v1/kv/a/c/d", "z").await;
    assert_eq!(
        api.get("/v1/kv/a/?keys&separator=/").await.json(),
        json!(["a/b", "a/c/"])
    );
    assert_eq!(
        api.get("/v1/kv/a?recurse")
            .await
            .json()
            .as_array()
            .unwrap()
            .len(),
        2
    );
    assert_eq!(api.get("/v1/kv/none?recurse").await.status, 404);
    assert_eq!(
        api.call("DELETE", "/v1/kv/a?recurse", "").await.body,
        "true"
    );
    assert_eq!(api.get("/v1/kv/?keys").await.json(), json!([]));
}

#[tokio::test]
async fn bad_requests_are_named() {
    let api = Api::start().await;
    let cases = [
        ("GET", "/v1/kv/", 400, "Missing key name"),
        ("PUT", "/v1/kv/", 400, "Missing key name"),
        ("GET", "/v1/kv/a?index=x", 400, "Invalid index"),
        ("GET", "/v1/kv/a?wait=x", 400, "Invalid wait time"),
        (
            "GET",
            "/v1/kv/a?stale&consistent",
            400,
            "conflicting semantics",
        ),
        (
            "PUT",
            "/v1/kv/a?cas=1&acquire=b",
            400,
            "Conflicting flags: acquire=b&cas=1",
        ),
        (
            "PUT",
            "/v1/kv/a?acquire=b",
            501,
            "sessions come with a later issue",
        ),
        ("PUT", "/v1/kv/a?flags=b", 400, "is not a number"),
        ("PUT", "/v1/kv/a/..", 301, ""),
        ("GET", "/v1/kv//a", 301, ""),
        ("GET", "/v1/kv/%00", 400, "do not print"),
        ("GET", "/v1/kv/a?dc=elsewhere", 500, "No path to datacenter"),
        (
            "GET",
            "/v1/catalog/nodes?ns=x",
            400,
            "Namespaces are a Consul Enterprise feature",
        ),
        ("GET", "/v1/health/state/", 400, "Missing check state"),
        ("GET", "/v1/health/service/", 400, "Missing service name"),
        (
            "GET",
            "/v1/health/service/x?passing=maybe",
            400,
            "Invalid value for ?passing",
        ),
        ("PUT", "/v1/catalog/register", 400, "Request decode failed"),
        (
            "DELETE",
            "/v1/catalog/nodes",
            405,
            "method DELETE not allowed",
        ),
        ("GET", "/v1/session/list", 501, "not built yet"),
        ("GET", "/v1/nope", 404, "not a recognized HTTP API endpoint"),
        ("GET", "/nope", 404, "ensure the path starts with '/v1/'"),
        (
            "GET",
            "/v1/config/nope/x",
            500,
            "invalid config entry kind: nope",
        ),
    ];
    for (method, path, status, text) in cases {
        let reply = api.call(method, path, "").await;
        assert_eq!(reply.status, status, "{method} {path}: {}", reply.body);
        assert!(reply.body.contains(text), "{method} {path}: {}", reply.body);
        assert!(reply.header("x-consul-default-acl-policy").is_some());
    }
    let options = api.call("OPTIONS", "/v1/kv/x", "").await;
    assert_eq!(
        (options.status, options.header("allow")),
        (200, Some("OPTIONS,GET,PUT,DELETE"))
    );
}

#[tokio::test]
async fn a_value_over_the_limit_is_refused_before_it_is_read() {
    let api = Api::start().await;
    let announced =
        "PUT /v1/kv/a HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 524289\r\n\r\n";
    let reply = api.raw(announced).await;
    assert_eq!(reply.status, 413, "{}", reply.body);
    assert!(
        reply
            .body
            .contains("Request body(524289 bytes) too large, max size: 524288 bytes")
    );
    assert_eq!(api.put("/v1/kv/a", &"x".repeat(524_288)).await.body, "true");
}

#[tokio::test]
async fn the_catalog_answers_in_consuls_shapes() {
    let api = Api::start().await;
    api.register("n1", "web", "passing").await;
    api.register("n2", "web", "critical").await;
    let nodes = api.get("/v1/catalog/nodes").await.json();
    assert_eq!(nodes[0]["Meta"], Value::Null);
    assert_eq!(nodes[0]["Datacenter"], "dc1");
    assert_eq!(
        api.get("/v1/catalog/services").await.json(),
        json!({"web": ["v1"]})
    );
    let rows = api.get("/v1/catalog/service/web?tag=V1").await.json();
    assert_eq!(rows.as_array().unwrap().len(), 2);
    assert_eq!(
        rows[0]["ServiceWeights"],
        json!({"Passing": 1, "Warning": 1})
    );
    assert_eq!(
        api.get("/v1/catalog/service/web?tag=v2").await.json(),
        json!([])
    );
    assert_eq!(
        api.get("/v1/catalog/service/web?near=n2").await.json()[0]["Node"],
        "n2"
    );
    assert_eq!(api.get("/v1/catalog/node/none").await.json(), Value::Null);
    let node = api.get("/v1/catalog/node/n1").await.json();
    assert_eq!(node["Services"]["web"]["Port"], 80);
    let list = api.get("/v1/catalog/node-services/n1").await.json();
    assert_eq!(list["Services"][0]["ID"], "web");
    let passing = api.get("/v1/health/service/web?passing").await.json();
    assert_eq!(passing.as_array().unwrap().len(), 1);
    assert_eq!(passing[0]["Node"]["Node"], "n1");
    assert_eq!(passing[0]["Checks"][0]["Definition"], json!({}));
    assert_eq!(passing[0]["Service"]["Proxy"]["MeshGateway"], json!({}));
    assert_eq!(
        api.get("/v1/health/state/critical")
            .await
            .json()
            .as_array()
            .unwrap()
            .len(),
        1
    );
    assert_eq!(api.get("/v1/health/state/nonsense").await.json(), json!([]));
    assert_eq!(
        api.get("/v1/health/node/n2").await.json()[0]["Status"],
        "critical"
    );
    assert_eq!(
        api.get("/v1/health/checks/web")
            .await
            .json()
            .as_array()
            .unwrap()
            .len(),
        2
    );
    let gone = api.put("/v1/catalog/deregister", r#"{"Node":"n2"}"#).await;
    assert_eq!(gone.body, "true");
    assert_eq!(
        api.get("/v1/health/service/web")
            .await
            .json()
            .as_array()
            .unwrap()
            .len(),
        1
    );
    let incomplete = api.put("/v1/catalog/register", r#"{"Node":"n3"}"#).await;
    assert_eq!(incomplete.status, 500);
    assert_eq!(
        incomplete.body,
        "Must provide address if SkipNodeUpdate is not set"
    );
}

#[tokio::test]
async fn a_blocking_read_waits_for_its_own_key_only() {
    let api = Arc::new(Api::start().await);
    api.register("n1", "web", "passing").await;
    let index = api.get("/v1/health/service/web").await.index();
    let reader = api.clone();
    let parked = tokio::spawn(async move {
        reader
            .get(&format!("/v1/health/service/web?index={index}&wait=60s"))
            .await
    });
    api.parked(1).await;
    let wakes = api.watches().wakes();
    api.register("n9", "db", "passing").await;
    api.put("/v1/kv/unrelated", "x").await;
    assert_eq!(api.watches().wakes(), wakes, "nobody was woken");
    api.register("n1", "web", "critical").await;
    let reply = parked.await.unwrap();
    assert!(reply.index() > index);
    assert_eq!(reply.json()[0]["Checks"][0]["Status"], "critical");
    assert_eq!(api.watches().watchers(), 0);
}

#[tokio::test]
async fn a_key_that_does_not_exist_can_be_waited_for() {
    let api = Arc::new(Api::start().await);
    let missing = api.get("/v1/kv/later").await;
    assert_eq!((missing.status, missing.index()), (404, 1));
    let reader = api.clone();
    let parked = tokio::spawn(async move { reader.get("/v1/kv/later?index=1").await });
    api.parked(1).await;
    api.put("/v1/kv/later", "now").await;
    assert_eq!(parked.await.unwrap().status, 200);
}

#[tokio::test]
async fn a_timeout_answers_with_the_same_index() {
    let api = Api::start().await;
    api.register("n1", "web", "passing").await;
    let index = api.get("/v1/health/service/web").await.index();
    let path = format!("/v1/health/service/web?index={index}&wait=10ms");
    let reply = api.get(&path).await;
    assert_eq!((reply.status, reply.index()), (200, index));
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_watch() {
    let api = Api::start().await;
    let mut stream = TcpStream::connect(api.address).await.unwrap();
    stream
        .write_all(b"GET /v1/kv/x?index=1 HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    api.parked(1).await;
    drop(stream);
    api.parked(0).await;
}

#[tokio::test]
async fn shutdown_answers_parked_reads_at_once() {
    let api = Arc::new(Api::start().await);
    let reader = api.clone();
    let parked = tokio::spawn(async move { reader.get("/v1/kv/x?index=1&wait=5m").await });
    api.parked(1).await;
    api.context.shutdown.cancel();
    assert_eq!(parked.await.unwrap().status, 404);
}

#[tokio::test]
async fn without_a_leader_writes_fail_and_say_so() {
    let api = Api::start().await;
    *api.cluster.failure.lock().unwrap() = Some(ClusterError::NoLeader);
    let reply = api.put("/v1/kv/a", "x").await;
    assert_eq!((reply.status, &*reply.body), (500, "No cluster leader"));
    *api.cluster.failure.lock().unwrap() = Some(ClusterError::Overloaded);
    assert_eq!(api.put("/v1/kv/a", "x").await.status, 429);
}

#[tokio::test]
async fn config_entries_are_strict_and_compared() {
    let api = Api::start().await;
    let entry = r#"{"Kind":"service-defaults","Name":"web","Protocol":"http"}"#;
    assert_eq!(api.put("/v1/config", entry).await.body, "true");
    let read = api.get("/v1/config/service-defaults/web").await;
    assert_eq!(read.json()["Protocol"], "http");
    assert_eq!(read.json()["Kind"], "service-defaults");
    let list = api.get("/v1/config/service-defaults").await.json();
    assert_eq!(list.as_array().unwrap().len(), 1);
    let unknown = api
        .put("/v1/config", &entry.replace("Protocol", "Protcol"))
        .await;
    assert_eq!(unknown.status, 400);
    assert!(unknown.body.contains("Protcol"), "{}", unknown.body);
    assert_eq!(api.put("/v1/config?cas=1", entry).await.body, "false");
    let later = r#"{"Kind":"service-router","Name":"web"}"#;
    assert_eq!(api.put("/v1/config", later).await.status, 501);
    assert_eq!(
        api.call("DELETE", "/v1/config/service-defaults/web", "")
            .await
            .body,
        "{}"
    );
    let missing = api.get("/v1/config/service-defaults/web").await;
    assert_eq!(missing.status, 404);
    assert!(
        missing
            .body
            .contains(r#"Config entry not found for "service-defaults" / "web""#)
    );
}

#[tokio::test]
async fn a_client_with_too_many_connections_is_told() {
    let api = Api::start().await;
    let settings = HttpSettings {
        max_conns_per_client: 1,
        ..HttpSettings::default()
    };
    api.context.settings.store(Arc::new(settings));
    let _first = TcpStream::connect(api.address).await.unwrap();
    // The first connection counts once it was accepted: which the second, accepted later, shows.
    let reply = api.get("/v1/status/leader").await;
    assert_eq!(reply.status, 429);
}

mod testing {
    use tokio::sync::mpsc;
    use wharf_registry::model::Node;

    use super::*;
    use crate::{
        config::{self, AgentFlags},
        context::Control,
        telemetry::{logs::Logs, recorder::Recorder},
    };

    pub(super) fn context(cluster: Arc<Solo>) -> HttpContext {
        let flags = AgentFlags::parse([("dev", "true"), ("node", "test")]).unwrap();
        let config = config::load(&flags).unwrap().config;
        let node = Node {
            name: "test".into(),
            address: "127.0.0.1".into(),
            ..Node::default()
        };
        let (control, mut requests) = mpsc::channel(1);
        tokio::spawn(async move {
            while let Some(request) = requests.recv().await {
                match request {
                    Control::Reload(answer) => {
                        let _ = answer.send(Err("bad.hcl:1:1: wrong".into()));
                    }
                    Control::Leave(answer) => {
                        let _ = answer.send(Err("this server stays a member".into()));
                    }
                }
            }
        });
        HttpContext {
            local: LocalState::open(Default::default(), node).unwrap(),
            images: crate::platform::images::Images::closed("a test"),
            snapshots: crate::snapshot::Snapshots::new(std::env::temp_dir()),
            allocs: None,
            agent: Arc::new(AgentContext {
                config: ArcSwap::from_pointee(config),
                logs: Logs::detached(),
                recorder: Recorder::default(),
                control,
                started: std::time::Instant::now(),
            }),
            cluster,
            authorizer: Arc::new(AllowAll),
            node: Arc::new(NodeInfo {
                name: "test".into(),
                id: "11111111-2222-3333-4444-555555555555".into(),
                datacenter: "dc1".into(),
                address: "127.0.0.1".into(),
                tagged_addresses: Default::default(),
                meta: Default::default(),
                server: true,
            }),
            decisions: Default::default(),
            settings: ArcSwap::from_pointee(HttpSettings {
                max_query_time: Duration::from_secs(600),
                ..HttpSettings::default()
            }),
            shutdown: CancellationToken::new(),
        }
    }
}

#[tokio::test]
async fn filters_choose_rows() {
    let api = Api::start().await;
    api.register("n1", "web", "passing").await;
    api.register("n2", "db", "critical").await;
    let count = async |path: &str| api.get(path).await.json().as_array().unwrap().len();
    assert_eq!(count("/v1/catalog/nodes?filter=Node+==+n1").await, 1);
    assert_eq!(
        count("/v1/health/service/web?filter=v1+in+Service.Tags").await,
        1
    );
    assert_eq!(
        count("/v1/health/service/web?filter=v2+in+Service.Tags").await,
        0
    );
    assert_eq!(
        count("/v1/catalog/service/web?filter=ServicePort+==+80").await,
        1
    );
    assert_eq!(
        count("/v1/health/state/any?filter=Status+!=+critical").await,
        1
    );
    let names = api
        .get("/v1/catalog/services?filter=Node+==+n2")
        .await
        .json();
    assert_eq!(names, json!({"db": ["v1"]}));
    let node = api
        .get("/v1/catalog/node/n1?filter=Service+==+none")
        .await
        .json();
    assert_eq!(node["Services"], json!({}));
    let bad = api.get("/v1/catalog/nodes?filter=Node+=+n1").await;
    assert_eq!(bad.status, 400);
    assert!(
        bad.body
            .starts_with("Failed to create boolean expression evaluator"),
        "{}",
        bad.body
    );
}

#[tokio::test]
async fn the_bound_of_a_stale_read_is_kept_and_what_the_leader_says_is_not_old() {
    let api = Arc::new(Api::start().await);
    *api.cluster.contact.lock().unwrap() = Some(Duration::from_millis(36));
    for (query, consistency, contact) in [
        ("", Consistency::Default, "0"),
        ("?consistent", Consistency::Consistent, "0"),
        ("?stale", Consistency::Stale, "36"),
        ("?max_stale=1m", Consistency::Stale, "36"),
        ("?max_stale=0s", Consistency::Stale, "36"),
        ("?max_stale=1ms", Consistency::Default, "0"),
        ("?stale&max_stale=1ms", Consistency::Default, "0"),
    ] {
        api.cluster.barriers.lock().unwrap().clear();
        let reply = api.get(&format!("/v1/catalog/services{query}")).await;
        assert!(
            api.cluster.barriers.lock().unwrap().contains(&consistency),
            "{query}"
        );
        assert_eq!(
            reply.header("x-consul-lastcontact"),
            Some(contact),
            "{query}"
        );
    }
    // It holds when the read ends, too: the leader may go while it waits.
    for (query, consistency) in [("max_stale=1m", "leader"), ("stale", "stale")] {
        *api.cluster.contact.lock().unwrap() = Some(Duration::from_millis(36));
        api.cluster.barriers.lock().unwrap().clear();
        let path = format!("/v1/catalog/services?index=1000&wait=10ms&{query}");
        let reader = api.clone();
        let parked = tokio::spawn(async move { reader.get(&path).await });
        while api.cluster.barriers.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        *api.cluster.contact.lock().unwrap() = Some(Duration::from_secs(100));
        let reply = parked.await.unwrap();
        let found = reply.header("x-consul-effective-consistency");
        assert_eq!(found, Some(consistency));
    }
    // Never heard of any: older than every bound.
    *api.cluster.contact.lock().unwrap() = None;
    let reply = api.get("/v1/catalog/services?stale").await;
    assert_eq!(reply.header("x-consul-lastcontact"), Some("9223372036854"));
    let reply = api.get("/v1/catalog/services?max_stale=9000h").await;
    assert_eq!(
        reply.header("x-consul-effective-consistency"),
        Some("leader")
    );
    for (query, text) in [
        ("max_stale=abc", "Invalid max_stale value \"abc\""),
        (
            "max_stale=1s&consistent",
            "Cannot specify ?stale with ?consistent, conflicting semantics.",
        ),
    ] {
        let reply = api.get(&format!("/v1/catalog/services?{query}")).await;
        assert_eq!((reply.status, &*reply.body), (400, text));
    }
}
