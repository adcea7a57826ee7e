//! From a file to running instances, and back to nothing.

use std::fs;

use wharf_tests::{Http, eventually, eventually_some};

use super::world::{Alloc, PATIENCE, World, world};

fn example() -> String {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/web.hcl");
    fs::read_to_string(root).unwrap()
}

/// What an instance answers.
pub(super) fn ask(alloc: &Alloc) -> String {
    http(alloc).get("/").text()
}

/// The same of one that has just been started: its port may come a little later.
pub(super) fn ask_until(alloc: &Alloc) -> String {
    let answer = || http(alloc).request("GET", "/", &[], b"").ok();
    let answer = eventually_some(PATIENCE, answer);
    answer.expect("it serves").text()
}

fn http(alloc: &Alloc) -> Http {
    Http {
        address: format!("{}:{}", alloc.address, alloc.port).parse().unwrap(),
        timeout: PATIENCE,
    }
}

fn until_live(world: &mut World, job: &str, count: usize) -> Vec<Alloc> {
    let mut live = Vec::new();
    let reached = eventually(PATIENCE, || {
        live = world.live(job);
        live.len() == count
            && live
                .iter()
                .all(|alloc| alloc.json["ClientStatus"] == "running")
    });
    assert!(reached, "{count} of {job}: {live:#?}");
    live
}

#[test]
fn the_example_runs_is_scaled_and_leaves_nothing() {
    world(|world| {
        let told = world.job(&example());
        assert!(told.contains("Job \"web\" runs: 3/3 instances"), "{told}");
        for word in ["web.web[0]", "web.web[2]", "Placed", "Received", "Started"] {
            assert!(told.contains(word), "{word} in {told}");
        }
        let live = world.live("web");
        let names: Vec<&str> = live.iter().map(|alloc| &*alloc.name).collect();
        assert_eq!(names, ["web.web[0]", "web.web[1]", "web.web[2]"]);
        for alloc in &live {
            assert!(ask(alloc).starts_with(&alloc.name), "{}", ask(alloc));
        }
        world.until_passing("web", 3);
        let name = ["+short", "web.service.consul", "SRV"];
        if let Some(records) = crate::checks::dig(&world.agent, &name) {
            let mut ports: Vec<&str> = records
                .iter()
                .map(|record| record.split(' ').nth(2).unwrap())
                .collect();
            ports.sort_unstable();
            let mut wanted: Vec<String> = live.iter().map(|a| a.port.to_string()).collect();
            wanted.sort();
            assert_eq!(ports, wanted);
        }
        let status = world.agent.run(&["job", "status", "web"]).success();
        assert!(status.contains("web    3        3        3"), "{status}");
        let logs = world.agent.run(&["alloc", "logs", &live[0].id[..8]]);
        let logs = logs.success();
        assert!(logs.starts_with("web.web[0] serves on 0.0.0.0:"), "{logs}");

        // What `inspect` prints is the same job.
        let inspected = world.agent.run(&["job", "inspect", "web"]).success();
        let file = world.file("web.json", inspected);
        let told = world.agent.run(&["job", "run", &file]).success();
        assert!(
            told.starts_with("Job \"web\" registered: version 0"),
            "{told}"
        );

        world.agent.run(&["job", "scale", "web", "5"]).success();
        let five = until_live(world, "web", 5);
        let kept = |before: &Alloc| five.iter().any(|alloc| alloc.id == before.id);
        assert!(live.iter().all(kept), "what ran goes on");
        world.until_passing("web", 5);
        world.agent.run(&["job", "scale", "web", "0"]).success();
        until_live(world, "web", 0);
        world.until_passing("web", 0);
        world.look();

        world.agent.run(&["job", "scale", "web", "1"]).success();
        until_live(world, "web", 1);
        world.stop_and_look("web");
        let status = world.agent.run(&["job", "status"]).success();
        assert!(status.contains("dead"), "{status}");
    });
}

#[test]
fn one_instance_can_be_stopped_and_is_replaced() {
    world(|world| {
        world.job(&example().replace("count = 3", "count = 1"));
        let first = world.live("web").remove(0);
        let stopped = world.agent.run(&["alloc", "stop", &first.id[..8]]);
        stopped.success();
        let mut second = None;
        assert!(eventually(PATIENCE, || {
            second = world.live("web").into_iter().find(|a| a.id != first.id);
            second
                .as_ref()
                .is_some_and(|alloc| alloc.json["ClientStatus"] == "running")
        }));
        let second = second.unwrap();
        assert_eq!(second.name, first.name);
        world.until(&first.id, "ended", |alloc| {
            alloc["ClientStatus"] == "complete"
        });
        world.stop_and_look("web");
    });
}

#[test]
fn a_new_version_replaces_one_instance_after_the_other() {
    world(|world| {
        let text = example().replace("count = 3", "count = 2");
        world.job(&text);
        let before = world.live("web");
        let changed = text.replace("\"100m\"", "\"110m\"");
        let told = world.job(&changed);
        assert!(told.contains("runs: 2/2 instances"), "{told}");
        let after = world.live("web");
        assert_eq!(after.len(), 2);
        for alloc in &after {
            assert_eq!(alloc.json["JobVersion"], 1);
            assert!(before.iter().all(|old| old.id != alloc.id));
        }
        world.stop_and_look("web");
    });
}

#[test]
fn host_networking_and_a_static_port() {
    world(|world| {
        let port = wharf_tests::free_port();
        let text = format!(
            r#"job "host" {{
              group "host" {{
                network {{
                  mode = "host"
                  port "http" {{ static = {port} }}
                }}
                service {{
                  name = "host"
                  port = "http"
                  check {{
                    type     = "tcp"
                    interval = "1s"
                  }}
                }}
                task "web" {{
                  driver  = "exec"
                  command = "${{WHARF_EXE}}"
                  args    = ["demo", "serve", "-port=${{WHARF_PORT_http}}", "-name=${{WHARF_ALLOC_NAME}}"]
                }}
              }}
            }}"#
        );
        world.job(&text);
        world.until_passing("host", 1);
        assert!(
            Http::local(port)
                .get("/")
                .text()
                .starts_with("host.host[0]")
        );
        world.stop_and_look("host");
    });
}

#[test]
fn output_is_followed_while_it_is_written() {
    world(|world| {
        let text = r#"job "say" {
          group "say" {
            task "say" {
              driver  = "exec"
              command = "/bin/sh"
              args    = ["-c", "i=0; while :; do i=$((i+1)); echo line $i; echo err $i >&2; sleep 0.1; done"]
            }
          }
        }"#;
        world.job(text);
        let alloc = world.live("say").remove(0);
        let mut command = world.agent.cli(&["alloc", "logs", "-f", &alloc.id[..8]]);
        let mut following = wharf_tests::Process::start(&mut command);
        assert!(following.line("line 5", PATIENCE).is_some());
        assert!(!following.text().contains("err"), "{}", following.text());
        let errors = world
            .agent
            .run(&["alloc", "logs", "-stderr", &alloc.id[..8]])
            .success();
        assert!(errors.starts_with("err 1\n"), "{errors}");
        world.stop_and_look("say");
        // With the task its output ends, and so does who follows it.
        assert!(
            following
                .ended(PATIENCE)
                .is_some_and(|status| status.success())
        );
    });
}
