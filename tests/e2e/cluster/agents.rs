//! Agents that are clients of the servers.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::{
    net::{self, AddressFamily, SocketFlags, SocketType, sockopt},
    process::Signal,
};
use serde_json::{Value, json};
use tonic::{Streaming, transport::Channel};
use wharf_proto::v1::{
    KeyValueTarget, WatchRequest, WatchResponse, registry_client::RegistryClient,
    watch_request::Target,
};
use wharf_tests::{
    Agent, Backend, Chance, Http, Process, SOON, eventually, free_port, in_network, missing, run,
};

use super::servers::{Load, Server, Site, assert_everywhere, leader_of};
use crate::platform::world::{PATIENCE, processes};

/// The platform has tests of its own.
pub(super) const NO_PLATFORM: &str = "-hcl=platform { enabled = false }";

fn register(agent: &Server, body: &Value) {
    let body = body.to_string();
    agent.http.put("/v1/agent/service/register", body).ok();
}

/// The instances of a service as an agent answers it.
fn instances(agent: &Server, service: &str) -> Vec<Value> {
    let path = format!("/v1/health/service/{service}?passing");
    match agent.http.request("GET", &path, &[], b"") {
        Ok(reply) if reply.status == 200 => reply.json().as_array().cloned().unwrap_or_default(),
        Ok(_) | Err(_) => Vec::new(),
    }
}

/// Answers of an agent's DNS server, a line each. `None`: there is no dig.
fn dig(agent: &Server, words: &[&str]) -> Option<Vec<String>> {
    if Command::new("dig").arg("-v").output().is_err() {
        missing("dig");
        return None;
    }
    let mut command = Command::new("dig");
    command
        .arg(format!("@{}", agent.http.address.ip()))
        .args(["-p", &agent.ports().dns.to_string()])
        .args(["+time=5", "+tries=1", "+short"])
        .args(words);
    let text = run(&mut command).success();
    Some(text.lines().map(str::to_owned).collect())
}

/// Looks at the liveness of a node all the time, on every server that answers.
struct Witness {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Vec<String>>>,
    looking: thread::JoinHandle<()>,
}

impl Witness {
    fn of(site: &Site, node: &str) -> Witness {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let servers: Vec<Http> = (1..=3).map(|n| site.http(n)).collect();
        let path = format!("/v1/health/node/{node}?stale");
        let (stopped, sights) = (stop.clone(), seen.clone());
        let looking = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                for server in &servers {
                    let Ok(reply) = server.request("GET", &path, &[], b"") else {
                        continue;
                    };
                    if reply.status == 200
                        && let Some(checks) = reply.json().as_array()
                        && let Some(check) = checks.iter().find(|c| c["CheckID"] == "serfHealth")
                    {
                        let status = check["Status"].as_str().unwrap_or_default();
                        sights.lock().unwrap().push(status.to_owned());
                    }
                }
                thread::sleep(Duration::from_millis(20));
            }
        });
        Witness {
            stop,
            seen,
            looking,
        }
    }

    /// How often the node was seen alive, if it never was otherwise.
    #[track_caller]
    fn always_alive(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.looking.join().unwrap();
        let seen = std::mem::take(&mut *self.seen.lock().unwrap());
        let dead = seen.iter().filter(|status| *status != "passing").count();
        assert_eq!(dead, 0, "of {} looks", seen.len());
        seen.len()
    }
}

#[test]
fn a_client_agent_answers_as_a_server_does() {
    let site = Site::new(&[NO_PLATFORM]);
    let servers = site.three();
    let agent = site.client(21, &[]);
    assert!(eventually(SOON, || servers[0].health_of("c21") == "passing"));
    assert!(eventually(SOON, || servers[1].state_of("c21") == "alive"));
    let members = agent.run(&["members"]).success();
    assert_eq!(members.lines().count(), 5, "{members}");
    assert!(members.contains("client"), "{members}");

    // Its services are in the catalog, and it answers for all of them.
    let check = json!({"TTL": "1h", "Status": "passing"});
    register(
        &agent,
        &json!({"Name": "web", "Port": 80, "Tags": ["a"], "Check": check}),
    );
    register(&servers[0], &json!({"Name": "web", "Port": 81}));
    for one in servers.iter().chain([&agent]) {
        assert!(eventually(SOON, || instances(one, "web").len() == 2));
    }
    assert_eq!(instances(&agent, "web").len(), 2);
    let Some(addresses) = dig(&agent, &["web.service.consul"]) else {
        return;
    };
    assert_eq!(addresses.len(), 2, "{addresses:?}");
    let targets = dig(&agent, &["a.web.service.consul", "SRV"]).unwrap();
    assert_eq!(targets, ["1 1 80 c21.node.dc1.consul."]);
    assert_eq!(dig(&agent, &["s2.node.consul"]).unwrap(), ["127.0.0.2"]);
    let holder = dig(&agent, &["-x", "127.0.0.3"]).unwrap();
    assert_eq!(holder, ["s3.node.dc1.consul."]);
    assert!(dig(&agent, &["none.service.consul"]).unwrap().is_empty());
    let three = dig(&agent, &["consul.service.consul"]).unwrap();
    assert_eq!(three.len(), 3, "{three:?}");
    // What has been asked for is told when it changes.
    let id = "/v1/agent/check/fail/service:web";
    agent.http.put(id, "").ok();
    let one = || dig(&agent, &["web.service.consul"]).unwrap();
    assert!(eventually(SOON, || one() == ["127.0.0.1"]), "{:?}", one());

    // Keys, with all their ways of asking, come from the servers.
    assert!(agent.put("a/b", b"value"));
    for consistency in ["", "consistent", "stale"] {
        assert_eq!(agent.keys("a/", consistency), ["a/b"]);
    }
    let large = vec![b'v'; 512 << 10];
    assert!(agent.put("large", &large));
    assert!(agent.http.get("/v1/kv/large?raw").body == large);
    let too_large = agent.http.put("/v1/kv/large", vec![b'v'; (512 << 10) + 1]);
    assert_eq!(too_large.status, 413, "{}", too_large.text());
    let index = agent.http.get("/v1/kv/a/b").index();
    let http = agent.http;
    let waiting = thread::spawn(move || http.get(&format!("/v1/kv/a/b?index={index}&wait=30s")));
    assert!(servers[2].put("a/b", b"changed"));
    assert!(waiting.join().unwrap().index() > index);
    let reply = agent.http.get("/v1/nope");
    assert_eq!(reply.status, 404);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("saved");
    let saved = agent.run(&["snapshot", "save", file.to_str().unwrap()]);
    assert!(saved.success().contains("Saved and verified"));
    assert_eq!(
        agent
            .http
            .get("/v1/status/peers")
            .json()
            .as_array()
            .unwrap()
            .len(),
        3
    );

    // About itself it answers by itself.
    let own = agent.http.get("/v1/agent/self").json();
    assert_eq!(own["Config"]["NodeName"], "c21");
    assert_eq!(own["Config"]["Server"], false);
    let services = agent.http.get("/v1/agent/services").json();
    assert_eq!(services.as_object().unwrap().len(), 1);

    // It leaves, and nothing of it stays.
    agent.run(&["leave"]).success();
    let gone = || {
        let nodes = servers[0].http.get("/v1/catalog/nodes").json();
        nodes.as_array().unwrap().len() == 3
    };
    assert!(gone(), "it is answered when it is done");
    assert_eq!(instances(&servers[0], "web").len(), 1);
}

#[test]
fn an_agent_that_dies_is_seen_and_comes_back_with_what_it_had() {
    let site = Site::new(&[NO_PLATFORM]);
    let servers = site.three();
    let agent = site.client(21, &[]);
    assert!(eventually(SOON, || servers[0].health_of("c21") == "passing"));
    let check = json!({"TTL": "1h"});
    register(&agent, &json!({"Name": "web", "Port": 80, "Check": check}));
    // A report is remembered; without one, a check that comes back is critical.
    agent.http.put("/v1/agent/check/pass/service:web", "").ok();
    assert!(eventually(SOON, || instances(&servers[0], "web").len() == 1));
    // A new leader believes nobody gone before a lease is over.
    let at = Instant::now();
    agent.kill();
    assert!(eventually(PATIENCE, || servers[0].health_of("c21") == "critical"));
    println!("seen dead after {:?}", at.elapsed());
    assert!(eventually(SOON, || servers[0].state_of("c21") == "failed"));
    assert!(instances(&servers[0], "web").is_empty());

    let agent = site.client(21, &[]);
    assert!(eventually(SOON, || servers[0].health_of("c21") == "passing"));
    assert!(eventually(SOON, || instances(&servers[0], "web").len() == 1));
    let service = agent.http.get("/v1/agent/service/web").json();
    assert_eq!(service["Port"], 80);

    // A machine that hangs is dead too, and alive when it goes on.
    agent.process.signal(Signal::STOP);
    let at = Instant::now();
    assert!(eventually(PATIENCE, || servers[0].health_of("c21") == "critical"));
    println!("seen silent after {:?}", at.elapsed());
    agent.process.signal(Signal::CONT);
    assert!(eventually(SOON, || servers[0].health_of("c21") == "passing"));

    // Somebody takes the dead one out.
    agent.kill();
    assert!(eventually(PATIENCE, || servers[0].health_of("c21") == "critical"));
    servers[0].run(&["force-leave", "c21"]).success();
    assert!(eventually(SOON, || servers[0].health_of("c21").is_empty()));
    assert!(eventually(SOON, || servers[2].state_of("c21") == "left"));

    // It is there again, and leaves by itself.
    let mut agent = site.client(21, &[]);
    assert!(eventually(SOON, || servers[0].state_of("c21") == "alive"));
    agent.run(&["leave"]).success();
    assert!(agent.process.ended(SOON).is_some());
    assert_eq!(servers[0].health_of("c21"), "");
    for server in &servers {
        assert!(eventually(SOON, || server.state_of("c21") == "left"));
    }
    // Somebody else registers a node of that name meanwhile, which is no member and stays.
    let external = json!({"Node": "c21", "Address": "10.0.0.1"}).to_string();
    let reply = servers[1].http.put("/v1/catalog/register", external);
    assert_eq!(reply.status, 200, "{}", reply.text());
    servers[1].run(&["force-leave", "-prune", "c21"]).success();
    assert!(eventually(SOON, || servers[0].state_of("c21").is_empty()));
    let node = servers[1]
        .http
        .get("/v1/catalog/node/c21?consistent")
        .json();
    assert_eq!(node["Node"]["Address"], "10.0.0.1");
}

#[test]
fn nothing_is_lost_and_nobody_taken_for_dead_while_servers_go_and_come() {
    let site = Site::new(&[NO_PLATFORM]);
    let mut servers = site.three();
    let agents = [site.client(21, &[]), site.client(22, &[])];
    for agent in ["c21", "c22"] {
        assert!(eventually(SOON, || servers[0].health_of(agent) == "passing"));
    }
    register(&agents[0], &json!({"Name": "web", "Port": 80}));
    assert!(eventually(SOON, || instances(&agents[1], "web").len() == 1));
    let known = dig(&agents[1], &["web.service.consul"]);
    let witnesses = ["c21", "c22"].map(|agent| Witness::of(&site, agent));
    let load = Load::on(&agents);
    load.wait_for_writes_after(Instant::now(), 20);

    // Every server in turn, leaders by kill, the others by their word.
    for round in 0..3 {
        let leader = leader_of(&servers);
        let place = if round == 1 { leader } else { (leader + 1) % 3 };
        let mut gone = servers.remove(place);
        let (number, at) = (gone.number, Instant::now());
        if round == 1 {
            gone.kill();
        } else {
            gone.process.stop(Signal::TERM);
        }
        load.wait_for_writes_after(at + Duration::from_millis(50), 20);
        println!(
            "round {round}: the longest pause {:?}",
            load.longest_gap_after(at)
        );
        // What DNS has been asked for it answers, whoever is there.
        for agent in &agents {
            if known.is_some() {
                let answer = dig(agent, &["web.service.consul"]).unwrap();
                assert_eq!(answer, ["127.0.0.21"]);
            }
        }
        servers.push(site.expecting(number));
        servers[2].wait_for_peers(3);
    }
    // One that hangs is left for another.
    let hanging = (leader_of(&servers) + 1) % 3;
    let at = Instant::now();
    servers[hanging].process.signal(Signal::STOP);
    load.wait_for_writes_after(at + Duration::from_secs(6), 20);
    servers[hanging].process.signal(Signal::CONT);
    servers[hanging].wait_for_peers(3);
    let acknowledged = load.stop();
    assert_everywhere(&servers, "load/", &acknowledged);
    for witness in witnesses {
        assert!(witness.always_alive() > 100);
    }
}

#[test]
fn agents_that_are_restarted_one_by_one_are_not_missed() {
    let site = Site::new(&[NO_PLATFORM]);
    let servers = site.three();
    let stays = ["-hcl=leave_on_terminate = false"];
    let mut agents = vec![site.client(21, &stays), site.client(22, &stays)];
    for agent in &agents {
        let alive = || servers[0].health_of(&agent.name()) == "passing";
        assert!(eventually(SOON, alive));
        let id = format!("web-{}", agent.name());
        register(agent, &json!({"ID": id, "Name": "web", "Port": 80}));
    }
    assert!(eventually(SOON, || instances(&servers[0], "web").len() == 2));
    let before = servers[0].http.get("/v1/health/service/web").index();
    let witnesses = ["c21", "c22"].map(|agent| Witness::of(&site, agent));
    for number in [21, 22] {
        let mut old = agents.remove(0);
        old.process.stop(Signal::TERM);
        let new = site.client(number, &stays);
        assert!(eventually(SOON, || instances(&new, "web").len() == 2));
        let own = || {
            let reply = new.http.request("GET", "/v1/agent/services", &[], b"");
            reply.is_ok_and(|reply| reply.json().as_object().map(serde_json::Map::len) == Some(1))
        };
        assert!(eventually(SOON, own));
        agents.push(new);
    }
    for witness in witnesses {
        // Also of what a leader would find out by and by.
        assert!(eventually(SOON, || witness.seen.lock().unwrap().len() > 200));
        assert!(witness.always_alive() > 200);
    }
    // Nothing of it was ever different.
    let after = servers[0].http.get("/v1/health/service/web").index();
    assert_eq!(before, after);
}

#[test]
fn an_agent_without_servers_says_so_and_goes_on_with_what_it_has() {
    let site = Site::new(&[NO_PLATFORM]);
    let hold = ["-hcl=performance { rpc_hold_timeout = \"1s\" }"];
    // There is nobody yet.
    let agent = site.client(21, &hold);
    let answered = || agent.http.request("GET", "/v1/agent/self", &[], b"");
    assert!(eventually(SOON, || answered().is_ok()));
    let refused = agent.http.get("/v1/kv/a");
    assert_eq!(
        (refused.status, &*refused.text()),
        (500, "No known Consul servers")
    );
    let leader = agent.http.get("/v1/status/leader");
    assert_eq!(leader.status, 500, "{}", leader.text());
    register(&agent, &json!({"Name": "web", "Port": 80}));

    let nobody = agent.run(&["join", &site.server_address(1)]).failure();
    assert!(nobody.contains("Failed to join"), "{nobody}");
    // It learns of servers by word of mouth, too.
    let servers = site.three();
    let join = ["join", &site.server_address(3)];
    agent.run(&join).success();
    assert!(eventually(SOON, || instances(&servers[0], "web").len() == 1));
    let before = dig(&agent, &["web.service.consul"]);
    for mut server in servers {
        server.process.stop(Signal::KILL);
    }
    assert!(eventually(SOON, || agent.http.get("/v1/kv/a").status == 500));
    assert_eq!(dig(&agent, &["web.service.consul"]), before);
    let unknown = dig(&agent, &["other.service.consul", "+noshort", "+comments"]);
    assert!(unknown.is_none_or(|lines| lines.iter().any(|line| line.contains("SERVFAIL"))));
}

/// A connection whose end here takes little that is not read. The kernel would take many megabytes otherwise, and
/// the answer would not be held up at all.
fn connect_narrow(to: SocketAddr) -> TcpStream {
    let socket = net::socket_with(
        AddressFamily::INET,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    sockopt::set_socket_recv_buffer_size(&socket, 16 << 10).unwrap();
    net::connect(&socket, &to).unwrap();
    socket.into()
}

/// A watch of all the large keys through an agent, which is not read yet.
async fn watch_all(agent: &Server) -> Streaming<WatchResponse> {
    let url = format!("http://{}:{}", agent.http.address.ip(), agent.ports().grpc);
    let channel = Channel::from_shared(url).unwrap().connect().await.unwrap();
    let request = WatchRequest {
        target: Some(Target::KeyValue(KeyValueTarget {
            prefix: "large/".into(),
        })),
        resume_index: 0,
    };
    let mut client = RegistryClient::new(channel);
    client.watch(request).await.unwrap().into_inner()
}

#[test]
fn an_answer_that_nobody_reads_holds_up_nothing_else() {
    let site = Site::new(&[NO_PLATFORM]);
    let servers = site.three();
    let agent = site.client(21, &[]);
    assert!(eventually(SOON, || servers[0].health_of("c21") == "passing"));
    // What does not get smaller when it is compressed.
    let mut chance = Chance::new(1);
    for key in 0..48 {
        let value: Vec<u8> = (0..512 << 10).map(|_| chance.below(256) as u8).collect();
        assert!(servers[0].put(&format!("large/{key}"), &value));
    }
    let mut reader = connect_narrow(agent.http.address);
    reader
        .write_all(b"GET /v1/snapshot HTTP/1.1\r\nHost: a\r\n\r\n")
        .unwrap();
    let mut first = [0; 12];
    reader.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");
    // That alone may leave some of a connection's window to others; with watches that nobody reads there is nothing left.
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let unread: Vec<_> = (0..4)
        .map(|_| runtime.block_on(watch_all(&agent)))
        .collect();
    // Longer than a server may be silent.
    let until = Instant::now() + Duration::from_secs(6);
    while Instant::now() < until {
        assert!(agent.put("small", b"value"));
        assert_eq!(agent.keys("small", ""), ["small"]);
    }
    assert!(
        !agent
            .process
            .text()
            .contains("session with a server is over")
    );
    drop(unread);
    // It is all there for who reads it after all.
    let mut rest = Vec::new();
    reader
        .set_read_timeout(Some(Duration::from_secs(2)))
        .unwrap();
    let _ = reader.read_to_end(&mut rest);
    assert!(rest.len() > 24 << 20, "{}", rest.len());
}

#[test]
fn who_does_not_belong_is_turned_away_and_told() {
    let site = Site::new(&[NO_PLATFORM]);
    let servers = site.three();
    let agent = site.client(21, &[]);
    assert!(eventually(SOON, || servers[0].health_of("c21") == "passing"));
    let of = |agent: &Server, what: &str| {
        let line = agent.process.line(what, SOON);
        assert!(line.is_some(), "{}", agent.process.text());
    };
    let namesake = site.client(22, &["-node=c21"]);
    of(&namesake, "whose agent is alive");
    let pretender = site.client(23, &["-node=s1"]);
    of(&pretender, "is that of a server");
    // Of a machine that was copied: one node would take the place of the other.
    let id = std::fs::read_to_string(site.data_dir(21).join("node-id")).unwrap();
    let copied = site.client(25, &[&format!("-node-id={}", id.trim())]);
    of(&copied, "was its data directory copied?");
    let stranger = site.client(24, &["-datacenter=dc2"]);
    of(
        &stranger,
        "this server is of datacenter \"dc1\", and the agent of \"dc2\"",
    );
    assert_eq!(servers[0].health_of("c21"), "passing");
    drop(agent);
}

#[test]
fn a_proxy_of_a_client_agent_follows_services_of_others() {
    let site = Site::new(&[NO_PLATFORM]);
    let servers = site.three();
    let agents = [site.client(21, &[]), site.client(22, &[])];
    for agent in ["c21", "c22"] {
        assert!(eventually(SOON, || servers[0].health_of(agent) == "passing"));
    }
    let mut backends = vec![Backend::start("one"), Backend::start("two")];
    let defaults = json!({"Kind": "service-defaults", "Name": "web", "Protocol": "http"});
    agents[0].http.put("/v1/config", defaults.to_string()).ok();
    for backend in &backends {
        let address = format!("http://127.0.0.1:{}/", backend.port());
        register(
            &agents[0],
            &json!({
                "ID": format!("web-{}", backend.port()), "Name": "web",
                "Address": "127.0.0.1", "Port": backend.port(),
                "Check": {"HTTP": address, "Interval": "200ms", "Status": "passing"},
            }),
        );
    }
    let (port, admin) = (free_port(), free_port());
    let grpc = format!("127.0.0.22:{}", agents[1].ports().grpc);
    let mut proxy = Agent::command(agents[1].ports(), &[]);
    proxy = Command::new(proxy.get_program());
    proxy.args(["connect", "proxy", "-service=me"]).args([
        format!("-upstream=web:{port}"),
        format!("-grpc-addr={grpc}"),
        format!("-admin-port={admin}"),
    ]);
    let proxy = Process::start(&mut proxy);
    let upstream = Http::local(port);
    let call = || {
        let reply = upstream.request("GET", "/", &[], b"").ok()?;
        (reply.status == 200).then(|| reply.text())
    };
    let both = || {
        call();
        backends.iter().all(|backend| backend.requests() > 5)
    };
    assert!(eventually(SOON, both), "{}", proxy.text());
    // The server that the agent is with goes; the proxy does not notice.
    let mut servers = servers;
    servers.remove(0).kill();
    for _ in 0..20 {
        assert!(call().is_some(), "{}", proxy.text());
    }
    // And what changes afterwards reaches it.
    let gone = backends.remove(0);
    drop(gone);
    assert!(eventually(SOON, || instances(&agents[1], "web").len() == 1));
    for _ in 0..20 {
        assert!(call().is_some(), "{}", proxy.text());
    }
}

#[test]
fn a_job_runs_on_a_client_agent() {
    in_network(|| {
        let site = Site::new(&[]);
        let mut servers = Vec::new();
        for number in 1..=3 {
            let join = format!("-retry-join={}", site.server_address(1));
            servers.push(site.start(number, &["-bootstrap-expect=3", &join, NO_PLATFORM]));
        }
        for server in &servers {
            server.wait_for_peers(3);
        }
        let agent = site.client(21, &[]);
        let nodes = || servers[0].http.get("/v1/platform/nodes").json();
        assert!(
            eventually(PATIENCE, || nodes()[0]["Status"] == "ready"),
            "{}",
            nodes()
        );
        if nodes()[0]["Drivers"]["exec"] != true {
            missing(&format!("containers: {}", nodes()));
            return;
        }
        let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/web.hcl");
        agent.run(&["job", "run", example]).success();
        assert!(eventually(PATIENCE, || instances(&agent, "web").len() == 3));
        let allocs = || {
            let rows = agent.http.get("/v1/job/web/allocations").json();
            let mut rows = rows.as_array().cloned().unwrap_or_default();
            rows.retain(|row| row["ClientStatus"] == "running");
            let ids = rows
                .iter()
                .map(|row| row["ID"].as_str().unwrap().to_owned());
            ids.collect::<std::collections::BTreeSet<_>>()
        };
        let ids = allocs();
        assert_eq!(ids.len(), 3);
        let first = ids.first().unwrap();
        agent.run(&["alloc", "logs", first]).success();
        let running = processes(&ids);

        // The agent is replaced; what runs does not notice.
        agent.kill();
        let agent = site.client(21, &[]);
        assert!(eventually(PATIENCE, || servers[0].health_of("c21") == "passing"));
        assert!(eventually(PATIENCE, || instances(&agent, "web").len() == 3));
        assert_eq!(processes(&ids), running);

        // So do all servers; with nobody there nothing is stopped.
        let numbers: Vec<u8> = servers.iter().map(|server| server.number).collect();
        for server in servers.drain(..) {
            server.kill();
        }
        for number in numbers {
            let join = format!("-retry-join={}", site.server_address(1));
            servers.push(site.start(number, &["-bootstrap-expect=3", &join, NO_PLATFORM]));
        }
        servers[0].wait_for_peers(3);
        assert!(eventually(PATIENCE, || instances(&agent, "web").len() == 3));
        assert_eq!(processes(&ids), running);
        agent.run(&["job", "stop", "web"]).success();
        assert!(eventually(PATIENCE, || processes(&ids).is_empty()));
        let mut agent = agent;
        agent.process.stop(Signal::TERM);
    });
}
