//! `wharf watch`, and the watches of an agent's configuration.

use serde_json::{Value, json};
use wharf_tests::{Agent, Process, SOON};

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
