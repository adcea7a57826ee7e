//! Blocking queries: woken by what they ask for, and by nothing else.

use std::{
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use serde_json::json;
use wharf_tests::{Agent, Http, Reply, SOON, eventually};

/// Asks in a thread of its own, and tells when the answer comes.
fn park(http: Http, path: String) -> mpsc::Receiver<(Reply, Duration)> {
    let (done, answer) = mpsc::channel();
    thread::spawn(move || {
        let asked = Instant::now();
        if let Ok(reply) = http.request("GET", &path, &[], b"") {
            // The test may have ended.
            let _ = done.send((reply, asked.elapsed()));
        }
    });
    answer
}

fn parked(agent: &Agent, count: u32) -> bool {
    eventually(SOON, || agent.metric("wharf_watchers") >= f64::from(count))
}

#[test]
fn a_query_returns_when_what_it_asked_for_changes() {
    let agent = Agent::dev();
    agent.http.put("/v1/kv/a", "1").ok();
    let index = agent.http.get("/v1/kv/a").index();
    let answer = park(agent.http, format!("/v1/kv/a?index={index}&wait=60s"));
    assert!(parked(&agent, 1));
    agent.http.put("/v1/kv/b", "other").ok();
    assert!(
        answer.recv_timeout(Duration::from_millis(300)).is_err(),
        "woken by another key"
    );
    agent.http.put("/v1/kv/a", "2").ok();
    let (reply, _) = answer.recv_timeout(SOON).unwrap();
    assert!(reply.index() > index);
    assert_eq!(reply.json()[0]["Value"], "Mg==");
}

#[test]
fn a_query_returns_at_its_end_with_the_same_index() {
    let agent = Agent::dev();
    agent.http.put("/v1/kv/a", "1").ok();
    let index = agent.http.get("/v1/kv/a").index();
    let (reply, took) = park(agent.http, format!("/v1/kv/a?index={index}&wait=1s"))
        .recv_timeout(SOON)
        .unwrap();
    assert_eq!(reply.index(), index);
    assert!(took >= Duration::from_secs(1), "{took:?}");
}

#[test]
fn what_does_not_exist_is_waited_for() {
    let agent = Agent::dev();
    let missing = agent.http.get("/v1/kv/later");
    assert_eq!(missing.status, 404);
    let key = park(
        agent.http,
        format!("/v1/kv/later?index={}&wait=60s", missing.index()),
    );
    let index = agent.http.get("/v1/health/service/later").index();
    let service = park(
        agent.http,
        format!("/v1/health/service/later?index={index}&wait=60s"),
    );
    let index = agent.http.get("/v1/config/service-defaults/later").index();
    let entry = format!("/v1/config/service-defaults/later?index={index}&wait=60s");
    let entry = park(agent.http, entry);
    assert!(parked(&agent, 3));
    agent.http.put("/v1/kv/later", "now").ok();
    let body = json!({"Name": "later", "Port": 1});
    agent
        .http
        .put("/v1/agent/service/register", body.to_string())
        .ok();
    let body = json!({"Kind": "service-defaults", "Name": "later", "Protocol": "tcp"});
    agent.http.put("/v1/config", body.to_string()).ok();
    assert_eq!(key.recv_timeout(SOON).unwrap().0.json()[0]["Key"], "later");
    let rows = service.recv_timeout(SOON).unwrap().0.json();
    assert_eq!(rows[0]["Service"]["Service"], "later");
    assert_eq!(entry.recv_timeout(SOON).unwrap().0.json()["Name"], "later");
}

#[test]
fn the_agents_own_service_blocks_by_its_hash() {
    let agent = Agent::dev();
    let register = |port: u16| {
        let body = json!({"Name": "web", "Port": port});
        agent
            .http
            .put("/v1/agent/service/register", body.to_string())
            .ok();
    };
    register(1);
    let reply = agent.http.get("/v1/agent/service/web").ok();
    let hash = reply.header("x-consul-contenthash").unwrap().to_owned();
    let answer = park(
        agent.http,
        format!("/v1/agent/service/web?hash={hash}&wait=60s"),
    );
    assert!(answer.recv_timeout(Duration::from_millis(300)).is_err());
    register(2);
    let (reply, _) = answer.recv_timeout(SOON).unwrap();
    assert_eq!(reply.json()["Port"], 2);
    assert_ne!(reply.header("x-consul-contenthash"), Some(hash.as_str()));
}

/// The measure: 1,000 services, 200 watchers of different ones.
#[test]
fn of_200_watchers_exactly_those_wake_whose_service_changed() {
    const SERVICES: usize = 1_000;
    const WATCHERS: usize = 200;
    const CHANGED: usize = 20;
    let agent = Agent::start(&[
        "-dev",
        "-log-level=info",
        // All watchers come from one address.
        "-hcl=limits { http_max_conns_per_client = 300 }",
    ]);
    let register = |number: usize, port: u16| {
        let body = json!({"Name": format!("service-{number}"), "Port": port});
        agent
            .http
            .put("/v1/agent/service/register", body.to_string())
            .ok();
    };
    let started = Instant::now();
    thread::scope(|scope| {
        for lane in 0..4 {
            scope.spawn(move || {
                (lane..SERVICES)
                    .step_by(4)
                    .for_each(|number| register(number, 80))
            });
        }
    });
    // A debug build on a busy machine; a release build needs a second or two.
    let elapsed = started.elapsed();
    println!("{SERVICES} services registered in {elapsed:?}");
    assert!(elapsed < Duration::from_secs(30), "{elapsed:?}");
    let listed = || agent.http.get("/v1/catalog/services").json();
    assert!(eventually(SOON, || listed()
        .as_object()
        .is_some_and(|all| all.len() == SERVICES + 1)));

    let watched: Vec<usize> = (0..WATCHERS).map(|number| number * 5).collect();
    let watchers: Vec<_> = watched
        .iter()
        .map(|number| {
            let path = format!("/v1/health/service/service-{number}");
            let index = agent.http.get(&path).index();
            park(agent.http, format!("{path}?index={index}&wait=60s"))
        })
        .collect();
    assert!(parked(&agent, u32::try_from(watched.len()).unwrap()));
    let wakes = agent.metric("wharf_watch_wakes_total");

    // Every tenth watched service changes, and as many that nobody watches.
    let changed: Vec<usize> = (0..CHANGED / 2).map(|number| number * 10).collect();
    for number in &changed {
        register(watched[*number], 81);
        register(watched[*number] + 1, 81);
    }
    for number in &changed {
        let (reply, _) = watchers[*number].recv_timeout(SOON).unwrap();
        assert_eq!(reply.json()[0]["Service"]["Port"], 81);
    }
    let left = watched.len() - changed.len();
    assert!(eventually(SOON, || agent.metric("wharf_watchers") as usize == left));
    for (position, answer) in watchers.iter().enumerate() {
        if !changed.contains(&position) {
            assert!(
                answer.try_recv().is_err(),
                "the watcher of {} woke",
                watched[position]
            );
        }
    }
    // One cell was woken for each, not one for every watcher.
    let woken = agent.metric("wharf_watch_wakes_total") - wakes;
    assert!(
        woken as usize <= 2 * changed.len(),
        "{woken} wakes for {} changes",
        changed.len()
    );
}
