//! `wharf connect proxy -sidecar-for`: a sidecar that is what its registration says, and follows it.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
};

use serde_json::{Value, json};
use wharf_tests::{Agent, Backend, Http, Process, SOON, eventually, free_port};

fn register(agent: &Agent, body: &Value) {
    agent
        .http
        .put("/v1/agent/service/register", body.to_string())
        .ok();
}

/// A service without a sidecar, that a backend serves.
fn serve(agent: &Agent, name: &str, backend: &Backend) {
    let port = backend.port();
    register(
        agent,
        &json!({"Name": name, "Port": port, "Address": "127.0.0.1"}),
    );
}

fn upstream(name: &str, port: u16) -> Value {
    json!({"DestinationName": name, "LocalBindPort": port})
}

/// A service with a sidecar that has these upstreams.
fn shop(port: u16, sidecar: u16, upstreams: &[Value]) -> Value {
    json!({
        "Name": "shop", "ID": "shop-1", "Port": port, "Address": "127.0.0.1",
        "Connect": {"SidecarService": {
            "Port": sidecar, "Address": "127.0.0.1", "Checks": [],
            "Proxy": {"Upstreams": upstreams},
        }},
    })
}

fn proxy(agent: &Agent, whose: &str) -> Process {
    let grpc = format!("-grpc-addr=127.0.0.1:{}", agent.ports.grpc);
    Process::start(&mut agent.cli(&["connect", "proxy", whose, &grpc]))
}

/// What is at the other end of a local port.
fn answers(port: u16, name: &str) -> bool {
    let reply = Http::local(port).request("GET", "/", &[], b"");
    reply.is_ok_and(|reply| reply.status == 200 && reply.text() == name)
}

/// A connection that is kept open.
struct Held(TcpStream);

impl Held {
    fn open(port: u16) -> Held {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        Held(stream)
    }

    /// One more request on it.
    #[track_caller]
    fn says(&mut self, name: &str) {
        self.0
            .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            .unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(name.as_bytes()) {
            let mut part = [0; 1024];
            let read = self.0.read(&mut part).unwrap();
            assert_ne!(read, 0, "the connection was dropped");
            answer.extend_from_slice(&part[..read]);
        }
    }
}

#[test]
fn it_follows_its_registration_without_dropping_a_connection() {
    let agent = Agent::dev();
    let [web, api, own] = ["web", "api", "shop"].map(Backend::start);
    serve(&agent, "web", &web);
    serve(&agent, "api", &api);
    let [to_web, to_api, inbound] = [free_port(), free_port(), free_port()];
    register(
        &agent,
        &shop(own.port(), inbound, &[upstream("web", to_web)]),
    );
    let sidecar = proxy(&agent, "-sidecar-for=shop-1");
    assert!(
        eventually(SOON, || answers(to_web, "web")),
        "{}",
        sidecar.text()
    );
    assert!(
        eventually(SOON, || answers(inbound, "shop")),
        "{}",
        sidecar.text()
    );
    let (mut out, mut inwards) = (Held::open(to_web), Held::open(inbound));
    out.says("web");
    inwards.says("shop");

    // One upstream more.
    let both = [upstream("web", to_web), upstream("api", to_api)];
    register(&agent, &shop(own.port(), inbound, &both));
    assert!(
        eventually(SOON, || answers(to_api, "api")),
        "{}",
        sidecar.text()
    );
    assert!(answers(to_web, "web"));
    out.says("web");
    inwards.says("shop");

    // The first is taken away: its listener goes, the connection that is open stays.
    register(&agent, &shop(own.port(), inbound, &both[1..]));
    assert!(
        eventually(SOON, || TcpStream::connect(("127.0.0.1", to_web)).is_err()),
        "{}",
        sidecar.text()
    );
    out.says("web");
    inwards.says("shop");
    assert!(answers(to_api, "api"));

    // The same local port leads elsewhere.
    register(
        &agent,
        &shop(own.port(), inbound, &[upstream("web", to_api)]),
    );
    assert!(
        eventually(SOON, || answers(to_api, "web")),
        "{}",
        sidecar.text()
    );
    inwards.says("shop");
}

#[test]
fn a_sidecar_of_the_configuration_follows_a_reload() {
    let directory = tempfile::tempdir().unwrap();
    let [web, api] = ["web", "api"].map(Backend::start);
    let (local, inbound) = (free_port(), free_port());
    let write = |destination: &str| {
        let text = format!(
            "service {{\n  name = \"shop\"\n  id = \"shop-1\"\n  port = 1\n  connect {{\n    sidecar_service {{\n      \
             port = {inbound}\n      proxy {{\n        upstreams = [\n          {{ destination_name = \
             \"{destination}\", local_bind_port = {local} }}\n        ]\n      }}\n    }}\n  }}\n}}\n"
        );
        fs::write(directory.path().join("shop.hcl"), text).unwrap();
    };
    write("web");
    let flag = format!("-config-dir={}", directory.path().display());
    let agent = Agent::start(&["-dev", &flag]);
    serve(&agent, "web", &web);
    serve(&agent, "api", &api);
    let sidecar = proxy(&agent, "-sidecar-for=shop-1");
    assert!(
        eventually(SOON, || answers(local, "web")),
        "{}",
        sidecar.text()
    );
    let mut held = Held::open(local);
    held.says("web");
    write("api");
    agent.run(&["reload"]).success();
    assert!(
        eventually(SOON, || answers(local, "api")),
        "{}",
        sidecar.text()
    );
    held.says("web");
}

#[test]
fn a_sidecar_that_is_not_registered_says_so_and_waits_for_it() {
    let agent = Agent::dev();
    let web = Backend::start("web");
    serve(&agent, "web", &web);
    let sidecar = proxy(&agent, "-sidecar-for=shop-1");
    let nobody = "no service with id \"shop-1\" is registered on this agent";
    assert!(sidecar.line(nobody, SOON).is_some(), "{}", sidecar.text());
    register(&agent, &json!({"Name": "shop", "ID": "shop-1", "Port": 1}));
    let none = "no sidecar proxy is registered for the service with id \"shop-1\"";
    assert!(sidecar.line(none, SOON).is_some(), "{}", sidecar.text());
    let local = free_port();
    register(&agent, &shop(1, free_port(), &[upstream("web", local)]));
    assert!(
        eventually(SOON, || answers(local, "web")),
        "{}",
        sidecar.text()
    );
}

#[test]
fn of_several_proxies_one_has_to_be_named() {
    let agent = Agent::dev();
    let web = Backend::start("web");
    serve(&agent, "web", &web);
    register(&agent, &json!({"Name": "shop", "ID": "shop-1", "Port": 1}));
    let ports = [free_port(), free_port()];
    for (id, port) in ["one", "two"].into_iter().zip(ports) {
        let body = json!({
            "Kind": "connect-proxy", "Name": "shop-proxy", "ID": id, "Port": free_port(),
            "Proxy": {
                "DestinationServiceName": "shop", "DestinationServiceID": "shop-1",
                "Upstreams": [upstream("web", port)],
            },
        });
        register(&agent, &body);
    }
    let sidecar = proxy(&agent, "-sidecar-for=shop-1");
    let line = sidecar.line("several sidecar proxies", SOON);
    let line = line.unwrap_or_else(|| panic!("{}", sidecar.text()));
    for part in ["shop-1", "one", "two"] {
        assert!(line.contains(part), "{part} is not in: {line}");
    }
    let named = proxy(&agent, "-proxy-id=two");
    assert!(
        eventually(SOON, || answers(ports[1], "web")),
        "{}",
        named.text()
    );
    assert!(!answers(ports[0], "web"));
    let service = proxy(&agent, "-proxy-id=shop-1");
    assert!(
        service.line("not a sidecar proxy", SOON).is_some(),
        "{}",
        service.text()
    );
}
