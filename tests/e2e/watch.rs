//! `wharf watch`, and the watches of an agent's configuration.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
};

use serde_json::{Value, json};
use wharf_tests::{Agent, Process, SOON, eventually, free_port};

fn seen(agent: &Agent, words: &[&str]) -> Value {
    let out = agent.run(words).success();
    serde_json::from_str(&out).unwrap_or_else(|_| panic!("no JSON: {out}"))
}

#[test]
fn without_a_handler_it_prints_what_is_there() {
    let agent = Agent::dev();
    for key in ["app/a", "app/b"] {
        agent.http.put(&format!("/v1/kv/{key}"), "1").ok();
    }
    for (id, status) in [("web-1", "passing"), ("web-2", "critical")] {
        let body = json!({
            "ID": id, "Name": "web", "Port": 80, "Tags": ["v1", id],
            "Check": {"TTL": "1h", "Status": status},
        });
        agent
            .http
            .put("/v1/agent/service/register", body.to_string())
            .ok();
    }
    let count = |words: &[&str]| seen(&agent, words).as_array().map(Vec::len);

    let key = seen(&agent, &["watch", "-type=key", "-key=app/a"]);
    assert_eq!(
        (&key["Key"], &key["Value"]),
        (&json!("app/a"), &json!("MQ=="))
    );
    assert_eq!(
        seen(&agent, &["watch", "-type=key", "-key=none"]),
        Value::Null
    );
    assert_eq!(
        count(&["watch", "-type=keyprefix", "-prefix=app/"]),
        Some(2)
    );
    assert_eq!(
        count(&["watch", "-type=keyprefix", "-prefix=none/"]),
        Some(0)
    );
    let services = seen(&agent, &["watch", "-type=services"]);
    assert!(
        services["web"].is_array() && services["consul"].is_array(),
        "{services}"
    );
    let node = agent.http.get("/v1/agent/self").json()["Config"]["NodeName"].clone();
    assert_eq!(seen(&agent, &["watch", "-type=nodes"])[0]["Node"], node);
    let service = ["watch", "-type=service", "-service=web"];
    assert_eq!(count(&service), Some(2));
    let passing = [service.as_slice(), &["-passingonly=true"]].concat();
    assert_eq!(seen(&agent, &passing)[0]["Service"]["ID"], "web-1");
    assert_eq!(count(&passing), Some(1));
    assert_eq!(
        count(&[service.as_slice(), &["-tag=web-2"]].concat()),
        Some(1)
    );
    assert_eq!(
        count(&[service.as_slice(), &["-tag=v1", "-tag=nope"]].concat()),
        Some(0)
    );
    let filter = "-filter=Service.ID == \"web-2\"";
    assert_eq!(count(&[service.as_slice(), &[filter]].concat()), Some(1));
    assert_eq!(count(&["watch", "-type=checks", "-service=web"]), Some(2));
    let critical = seen(&agent, &["watch", "-type=checks", "-state=critical"]);
    assert_eq!(critical[0]["CheckID"], "service:web-2");
    // Those of the node are among all.
    assert!(count(&["watch", "-type=checks"]) > Some(2));
    let instance = seen(
        &agent,
        &["watch", "-type=agent_service", "-service-id=web-1"],
    );
    assert_eq!(instance["ID"], "web-1");
    // At an address of its own.
    let address = format!("-http-addr=http://127.0.0.1:{}", agent.ports.http);
    assert!(seen(&agent, &["watch", &address, "-type=nodes"]).is_array());
}

#[test]
fn it_says_what_it_cannot_watch() {
    let agent = Agent::dev();
    for (words, text) in [
        (&["watch"][..], "type must be specified"),
        (&["watch", "-type=key"], "single key"),
        (&["watch", "-type=keyprefix"], "single prefix"),
        (&["watch", "-type=service"], "single service"),
        (&["watch", "-type=event", "-name=deploy"], "not built yet"),
        (&["watch", "-type=nope"], "nope"),
        (&["watch", "-type=key", "-key=a", "-service=b"], "service"),
        (
            &["watch", "-type=checks", "-service=a", "-state=any"],
            "service and state",
        ),
    ] {
        let error = agent.run(words).failure();
        assert!(error.contains(text), "{words:?}: {error}");
    }
    let nobody = format!("-http-addr=127.0.0.1:{}", wharf_tests::free_port());
    let error = agent.run(&["watch", "-type=nodes", &nobody]).failure();
    assert!(error.contains("refused"), "{error}");
}

#[test]
fn a_handler_runs_at_every_change() {
    let agent = Agent::dev();
    let handler = "cat; echo index=$CONSUL_INDEX.";
    let watch = Process::start(&mut agent.cli(&["watch", "-type=key", "-key=watched", handler]));
    agent.run(&["kv", "put", "watched", "first"]).success();
    assert!(watch.line("Zmlyc3Q=", SOON).is_some());
    let index = agent.http.get("/v1/kv/watched").index();
    assert!(
        watch.line(&format!("index={index}."), SOON).is_some(),
        "{}",
        watch.text()
    );
    agent.run(&["kv", "put", "watched", "second"]).success();
    assert!(watch.line("c2Vjb25k", SOON).is_some());

    // Its end is that of a handler which fails.
    let failing = ["watch", "-type=nodes", "-shell=false", "false"];
    let error = agent.run(&failing).failure();
    assert!(error.contains("handler"), "{error}");
    let missing = ["watch", "-type=nodes", "-shell=false", "/nowhere/handler"];
    let error = agent.run(&missing).failure();
    assert!(error.contains("handler"), "{error}");
}

#[test]
fn the_agent_runs_the_watches_of_its_configuration() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let receiver = free_port();
    let seen = path("seen");
    let configuration = |more: Value| {
        let mut watches = vec![
            json!({
                "type": "key", "key": "watched",
                "args": ["/bin/sh", "-c", format!("cat >> {0}; echo index=$CONSUL_INDEX >> {0}", seen.display())],
            }),
            json!({
                "type": "service", "service": "web", "passingonly": true, "handler_type": "http",
                "http_handler_config": {
                    "path": format!("http://127.0.0.1:{receiver}/changed"),
                    "header": {"X-Own": ["yes"]}, "timeout": "5s",
                },
            }),
            json!({"type": "nodes", "args": ["/bin/sh", "-c", "echo went wrong; exit 3"]}),
        ];
        watches.extend(more.as_array().unwrap().iter().cloned());
        fs::write(path("agent.json"), json!({"watches": watches}).to_string()).unwrap();
    };
    configuration(json!([]));
    let listener = TcpListener::bind(("127.0.0.1", receiver)).unwrap();
    let flag = format!("-config-dir={}", directory.path().display());
    let agent = Agent::start(&["-dev", &flag]);
    let contains = |text: &str| fs::read_to_string(&seen).unwrap_or_default().contains(text);

    // A program is told what is there, and every change, with its index.
    assert!(eventually(SOON, || contains("null\n")));
    agent.http.put("/v1/kv/watched", "first").ok();
    assert!(eventually(SOON, || contains("Zmlyc3Q=")));
    let index = agent.http.get("/v1/kv/watched").index();
    assert!(eventually(SOON, || contains(&format!("index={index}\n"))));

    // A request likewise; the first one tells that there is nothing.
    let next = || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        let request = read_request(&mut stream);
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            .unwrap();
        request
    };
    let (head, body) = next();
    assert!(head.starts_with("POST /changed HTTP/1.1"), "{head}");
    let lower = head.to_ascii_lowercase();
    for header in [
        "x-own: yes",
        "content-type: application/json",
        "x-consul-index: ",
    ] {
        assert!(lower.contains(header), "{header} is not in: {head}");
    }
    assert_eq!(body, "[]");
    let web = json!({"Name": "web", "Port": 80});
    agent
        .http
        .put("/v1/agent/service/register", web.to_string())
        .ok();
    let (_, body) = next();
    let rows: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(rows[0]["Service"]["Service"], "web");

    // One that fails is told with what it printed, and goes on.
    let failed = agent.process.line("went wrong", SOON);
    assert!(
        failed.is_some_and(|line| line.contains("exit status: 3")),
        "{}",
        agent.process.text()
    );

    // A reload starts what is new, stops what has gone, and leaves the others alone.
    let other = path("other");
    configuration(json!([
        {"type": "keyprefix", "prefix": "w", "handler": format!("cat > {}", other.display())},
        {"type": "event", "name": "deploy", "args": ["/bin/true"]},
    ]));
    agent.run(&["reload"]).success();
    assert!(eventually(SOON, || fs::read_to_string(&other)
        .is_ok_and(|text| text.contains("watched"))));
    assert!(agent.process.line("\"event\" is not run", SOON).is_some());
    assert!(agent.metric("wharf_watchers") >= 4.0);
    fs::write(path("agent.json"), "{}").unwrap();
    agent.run(&["reload"]).success();
    assert!(eventually(SOON, || agent.metric("wharf_watchers") < 1.0));
}

/// Head and body of one request.
fn read_request(stream: &mut TcpStream) -> (String, String) {
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert_ne!(reader.read_line(&mut head).unwrap(), 0, "{head}");
    }
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length")
            .then(|| value.trim().parse().unwrap())
    });
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body).unwrap();
    (head, String::from_utf8(body).unwrap())
}
