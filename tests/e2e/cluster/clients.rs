//! What a client agent keeps, and how much it asks of servers.

use std::fs;

use wharf_tests::{Reply, SOON, eventually};

use super::servers::{Server, Site};

const NO_PLATFORM: &str = "-hcl=platform { enabled = false }";

fn ask(agent: &Server) -> Reply {
    agent.http.get("/v1/kv/a")
}

#[test]
fn an_agent_asks_servers_for_no_more_than_it_may() {
    let site = Site::new(&[NO_PLATFORM]);
    let servers = site.three();
    assert!(servers[0].put("a", b"1"));
    let file = tempfile::NamedTempFile::with_suffix(".hcl").unwrap();
    let agent = site.client(21, &[&format!("-config-file={}", file.path().display())]);
    assert!(eventually(SOON, || servers[0].health_of("c21") == "passing"));
    let limit = |text: &str| {
        fs::write(file.path(), text).unwrap();
        agent.http.put("/v1/agent/reload", "").ok();
    };

    limit("limits { rpc_rate = 0, rpc_max_burst = 5 }");
    let answers: Vec<Reply> = (0..20).map(|_| ask(&agent)).collect();
    let statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
    assert_eq!(statuses, [[200; 5].as_slice(), &[429; 15]].concat());
    assert_eq!(answers[19].text(), "RPC rate limit exceeded");
    let shown = agent.http.get("/v1/agent/self").json();
    assert_eq!(shown["DebugConfig"]["RPCMaxBurst"], 5);
    assert_eq!(shown["DebugConfig"]["RPCRateLimit"], 0.0);

    // What the agent has to say of itself gets through.
    let service = r#"{"Name": "web", "Port": 80, "Check": {"TTL": "1h", "Status": "passing"}}"#;
    agent.http.put("/v1/agent/service/register", service).ok();
    assert!(eventually(SOON, || {
        let found = servers[0].http.get("/v1/health/service/web?passing").json();
        found.as_array().is_some_and(|found| found.len() == 1)
    }));
    assert_eq!(ask(&agent).status, 429);

    limit("");
    for _ in 0..20 {
        assert_eq!(ask(&agent).status, 200);
    }
}

#[test]
fn an_agent_that_starts_again_knows_the_servers_of_its_last_run() {
    let site = Site::new(&[NO_PLATFORM]);
    let mut servers = site.three();
    let agent = site.client_of(&[1], 21, &[]);
    assert!(eventually(SOON, || servers[1].health_of("c21") == "passing"));
    assert!(servers[1].put("a", b"1"));
    agent.kill();
    servers.remove(0).kill();
    // The only server that it was told of is gone.
    let agent = site.client_of(&[1], 21, &[]);
    assert!(eventually(SOON, || !agent.leader().is_empty()));
    assert_eq!(ask(&agent).text(), servers[0].http.get("/v1/kv/a").text());
}
