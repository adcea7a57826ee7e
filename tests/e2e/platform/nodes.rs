//! Jobs over several nodes, and nodes that go.

use std::collections::BTreeSet;

use rustix::process::Signal;
use serde_json::Value;
use wharf_tests::{eventually, in_network, missing};

use super::world::{PATIENCE, processes};
use crate::cluster::servers::{Server, Site, leader_of};

fn running(server: &Server) -> Vec<Value> {
    let rows = server.http.get("/v1/job/web/allocations").json();
    let mut rows = rows.as_array().cloned().unwrap_or_default();
    rows.retain(|row| row["ClientStatus"] == "running");
    rows
}

fn text(row: &Value, name: &str) -> String {
    row[name].as_str().unwrap().to_owned()
}

/// The status of a node of the platform.
fn status(server: &Server, node: &str) -> String {
    let nodes = server.http.get("/v1/platform/nodes").json();
    let nodes = nodes.as_array().cloned().unwrap_or_default();
    let node = nodes.iter().find(|row| row["Name"] == node);
    node.map_or_else(String::new, |row| text(row, "Status"))
}

#[test]
fn a_job_spreads_over_nodes_and_what_a_lost_one_had_is_replaced() {
    in_network(|| {
        let site = Site::new(&[]);
        let mut servers = site.three();
        let ready = |server: &Server| (1..=3).all(|n| status(server, &format!("s{n}")) == "ready");
        assert!(eventually(PATIENCE, || ready(&servers[0])));
        let nodes = servers[0].http.get("/v1/platform/nodes").json();
        if nodes[0]["Drivers"]["exec"] != true {
            missing(&format!("containers: {nodes}"));
            return;
        }
        let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/web.hcl");
        servers[1].run(&["job", "run", example]).success();
        let rows = running(&servers[0]);
        let places: BTreeSet<String> = rows.iter().map(|row| text(row, "Node")).collect();
        assert_eq!(places.len(), 3, "one on each: {rows:#?}");

        // The machine of one is gone, as far as the others can tell; its containers are not.
        let leader = leader_of(&servers);
        let gone = servers.remove((leader + 1) % 3);
        let (number, name) = (gone.number, gone.name());
        let lost = rows.iter().find(|row| text(row, "Node") == name).unwrap();
        let (lost, index) = (text(lost, "ID"), text(lost, "Name"));
        gone.kill();
        let moved = || {
            let rows = running(&servers[0]);
            rows.len() == 3 && rows.iter().all(|row| text(row, "Node") != name)
        };
        assert!(eventually(PATIENCE, moved), "{:#?}", running(&servers[0]));
        assert_eq!(status(&servers[0], &name), "down");
        let told = servers[0].run(&["alloc", "status", &lost]).success();
        assert!(told.contains("lost"), "{told}");
        let of_lost = BTreeSet::from([lost]);
        assert!(!processes(&of_lost).is_empty(), "they run on");

        // It comes back, and ends what runs elsewhere by now.
        servers.push(site.expecting(number));
        servers[2].wait_for_peers(3);
        assert!(eventually(PATIENCE, || processes(&of_lost).is_empty()));
        assert!(eventually(PATIENCE, || status(&servers[2], &name) == "ready"));
        let live = running(&servers[2]);
        let same = live.iter().filter(|row| text(row, "Name") == index);
        assert_eq!((live.len(), same.count()), (3, 1), "{live:#?}");
        servers[2].run(&["job", "stop", "web"]).success();
        for server in &servers {
            server.process.signal(Signal::TERM);
        }
        for mut server in servers {
            assert!(server.process.ended(PATIENCE).is_some());
        }
    });
}
