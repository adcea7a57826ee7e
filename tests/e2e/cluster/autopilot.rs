//! What a cluster does about its servers by itself.

use std::time::Duration;

use wharf_tests::eventually;

use super::servers::{Server, Site, leader_of};

/// Longer than a dead server is kept with the settings of these tests: ten seconds, and what it takes.
const CLEANED_UP: Duration = Duration::from_secs(40);

fn names(server: &Server) -> Vec<String> {
    let reply = server
        .http
        .get("/v1/operator/raft/configuration?stale")
        .json();
    let servers = reply["Servers"].as_array().cloned().unwrap_or_default();
    let names = servers
        .iter()
        .map(|server| server["Node"].as_str().unwrap_or_default());
    let mut names: Vec<String> = names.map(str::to_owned).collect();
    names.sort();
    names
}

#[test]
fn settings_are_the_clusters_and_compared_before_they_are_set() {
    let site = Site::new(&["-hcl=autopilot { max_trailing_logs = 500 }"]);
    let servers = site.three();
    let path = "/v1/operator/autopilot/configuration";
    for server in &servers {
        let found = server
            .run(&["operator", "autopilot", "get-config"])
            .success();
        assert_eq!(
            found,
            "CleanupDeadServers = true\nLastContactThreshold = 200ms\nMaxTrailingLogs = 500\nMinQuorum = 0\n\
             ServerStabilizationTime = 10s\nRedundancyZoneTag = \"\"\nDisableUpgradeMigration = false\n\
             UpgradeVersionTag = \"\"\n"
        );
    }
    let set = [
        "operator",
        "autopilot",
        "set-config",
        "-min-quorum=3",
        "-last-contact-threshold=1s",
    ];
    assert_eq!(servers[1].run(&set).success(), "Configuration updated!\n");
    let now = servers[2].http.get(path).json();
    assert_eq!(
        (&now["MinQuorum"], &now["LastContactThreshold"]),
        (&3.into(), &"1s".into())
    );
    assert_eq!(now["MaxTrailingLogs"], 500);
    let (create, modify) = (now["CreateIndex"].as_u64(), now["ModifyIndex"].as_u64());
    assert!(create > Some(0) && create < modify);
    let stale = servers[0]
        .http
        .put(&format!("{path}?cas=1"), r#"{"MinQuorum": 1}"#);
    assert_eq!((stale.status, stale.text().trim()), (200, "false"));
    for body in [
        r#"{"LastContactThreshold": "x"}"#,
        r#"{"ServerStabilizationTime": "-1s"}"#,
        "[",
    ] {
        let reply = servers[0].http.put(path, body);
        assert_eq!(reply.status, 400, "{body}");
        assert!(
            reply.text().contains("Error parsing autopilot config"),
            "{}",
            reply.text()
        );
    }
    assert_eq!(servers[0].http.get(path).json(), now);
}

#[test]
fn a_dead_server_is_replaced_by_a_new_one_and_cleaned_up() {
    let site = Site::new(&["-hcl=autopilot { server_stabilization_time = \"3s\" }"]);
    let mut servers = site.three();
    let healthy = |server: &Server| {
        let reply = server.http.get("/v1/operator/autopilot/health");
        // Also what is not in order is told.
        let health: serde_json::Value = serde_json::from_str(&reply.text()).unwrap();
        (
            reply.status,
            health["Healthy"] == true,
            health["FailureTolerance"].as_u64(),
        )
    };
    assert!(eventually(CLEANED_UP, || healthy(&servers[0]) == (200, true, Some(1))));
    let state = servers[1]
        .run(&["operator", "autopilot", "state"])
        .success();
    assert!(
        state.starts_with("Healthy:                      true\n"),
        "{state}"
    );
    assert_eq!(
        state.matches("Status:          voter").count(),
        2,
        "{state}"
    );
    assert_eq!(
        state.matches("Status:          leader").count(),
        1,
        "{state}"
    );

    let leader = leader_of(&servers);
    let dead = servers.remove((leader + 1) % 3);
    let name = dead.name();
    dead.kill();
    assert!(eventually(CLEANED_UP, || healthy(&servers[0]) == (429, false, Some(0))));
    // Nobody comes in its place, and it is taken out after a while; two of two go on.
    assert!(
        eventually(CLEANED_UP, || names(&servers[0]).len() == 2),
        "{:?}",
        names(&servers[0])
    );
    assert!(!names(&servers[0]).contains(&name));
    assert!(eventually(CLEANED_UP, || healthy(&servers[1]) == (200, true, Some(0))));
    assert!(servers[0].put("two", b"value"));
    // A new one has no vote before it is stable.
    let join = format!("-retry-join={}", site.server_address(servers[0].number));
    servers.push(site.start(4, &[&join]));
    let voter = |server: &Server| {
        let reply = server
            .http
            .get("/v1/operator/raft/configuration?stale")
            .json();
        let servers = reply["Servers"].as_array().cloned().unwrap_or_default();
        let new = servers
            .iter()
            .find(|server| server["Node"] == "s4")
            .cloned();
        new.map(|new| new["Voter"] == true)
    };
    assert!(eventually(CLEANED_UP, || voter(&servers[0]) == Some(false)));
    assert!(eventually(CLEANED_UP, || voter(&servers[0]) == Some(true)));
    for server in &servers {
        server.wait_for_peers(3);
    }
    // The last of three, and a minimum that keeps the dead.
    let set = ["operator", "autopilot", "set-config", "-min-quorum=3"];
    servers[0].run(&set).success();
    servers.remove(2).kill();
    assert!(eventually(CLEANED_UP, || healthy(&servers[0]).0 == 429));
    let kept = !eventually(Duration::from_secs(15), || names(&servers[0]).len() != 3);
    assert!(kept, "{:?}", names(&servers[0]));
    assert!(servers[1].put("after", b"value"));
}
