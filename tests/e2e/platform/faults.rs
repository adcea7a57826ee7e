//! What runs, when something of it is killed.

use std::{
    collections::BTreeSet,
    fs,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use rustix::process::Signal;
use serde_json::Value;
use wharf_tests::{Agent, eventually, in_network, missing};

use super::{
    run::{ask, ask_until},
    world::{PATIENCE, is_alive, kill, processes, world},
};

/// `count` small web servers with sidecars, started again at once.
pub(super) fn web(count: usize) -> String {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/web.hcl");
    let text = fs::read_to_string(root).unwrap();
    let counted = format!("count = {count}\n    restart {{ delay = \"100ms\" }}");
    text.replace("count = 3", &counted)
}

fn restarts(alloc: &Value) -> u64 {
    alloc["TaskStates"]["web"]["Restarts"].as_u64().unwrap()
}

#[test]
fn a_killed_task_is_out_of_dns_at_once_and_comes_back() {
    world(|world| {
        world.job(&web(2));
        world.until_passing("web", 2);
        let live = world.live("web");
        let victim = &live[0];
        let server = *world.task(victim).last().expect("its process");
        let said = ask(victim);
        kill(server);
        let back = world.until(&victim.id, "started again", |alloc| {
            restarts(alloc) == 1 && alloc["TaskStates"]["web"]["State"] == "running"
        });
        world.until_passing("web", 2);
        assert_ne!(ask_until(&back), said, "another process answers");
        assert_eq!(back.address, victim.address);
        // The story, in the order in which it happened.
        let status = world.agent.run(&["alloc", "status", &victim.id]).success();
        let mut rest = &status[..];
        for part in [
            "Placed",
            "Received",
            "Started",
            "Terminated  was killed by signal 9",
            "Restarting",
            "Started",
        ] {
            let at = rest.find(part);
            rest = &rest
                [at.unwrap_or_else(|| panic!("{part:?} is not where it belongs in\n{status}"))..];
        }
        world.stop_and_look("web");
    });
}

#[test]
fn a_killed_shim_takes_its_allocation_along_and_it_is_started_anew() {
    world(|world| {
        world.job(&web(1));
        let alloc = world.live("web").remove(0);
        let before = world.task(&alloc);
        kill(world.shim(&alloc));
        let back = world.until(&alloc.id, "started again", |alloc| {
            restarts(alloc) == 1 && alloc["TaskStates"]["web"]["State"] == "running"
        });
        assert!(before.iter().all(|pid| !is_alive(*pid)));
        assert!(ask_until(&back).starts_with("web.web[0]"));
        world.until_passing("web", 1);
        world.stop_and_look("web");
    });
}

#[test]
fn what_runs_does_not_notice_that_the_agent_was_killed() {
    world(|world| {
        world.job(&web(2));
        world.until_passing("web", 2);
        let live = world.live("web");
        let before: Vec<_> = live.iter().map(|alloc| world.task(alloc)).collect();
        let answers: Vec<_> = live.iter().map(ask).collect();
        // Asked all the time, from here until a new agent has taken over.
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let asked = scope.spawn(|| {
                let mut asked = 0_u32;
                while !done.load(Ordering::Relaxed) {
                    assert_eq!(ask(&live[0]), answers[0]);
                    asked += 1;
                }
                asked
            });
            world.agent.process.stop(Signal::KILL);
            let ports = world.agent.ports;
            world.agent = Agent::durable(&world.path("data"), ports);
            world.until_passing("web", 2);
            done.store(true, Ordering::Relaxed);
            assert!(asked.join().unwrap() > 0);
        });
        let after = world.live("web");
        for (at, alloc) in after.iter().enumerate() {
            assert_eq!(alloc.id, live[at].id);
            assert_eq!(world.task(alloc), before[at], "nothing was touched");
            assert_eq!(restarts(&alloc.json), 0);
            assert_eq!(ask(alloc), answers[at]);
        }
        // The new agent hears what happens to them.
        kill(*before[0].last().unwrap());
        world.until(&after[0].id, "started again", |alloc| restarts(alloc) == 1);
        world.until_passing("web", 2);
        world.stop_and_look("web");
    });
}

#[test]
fn what_ended_while_no_agent_was_there_is_told_by_the_next() {
    world(|world| {
        world.job(&web(2));
        let live = world.live("web");
        let servers: Vec<_> = live
            .iter()
            .map(|a| *world.task(a).last().unwrap())
            .collect();
        world.agent.process.stop(Signal::KILL);
        kill(servers[0]);
        kill(world.shim(&live[1]));
        let ports = world.agent.ports;
        world.agent = Agent::durable(&world.path("data"), ports);
        for alloc in &live {
            let back = world.until(&alloc.id, "started again", |alloc| {
                restarts(alloc) == 1 && alloc["TaskStates"]["web"]["State"] == "running"
            });
            assert!(ask_until(&back).starts_with(&alloc.name));
        }
        world.until_passing("web", 2);
        world.stop_and_look("web");
    });
}

#[test]
fn an_agent_that_is_told_to_end_leaves_what_runs_to_the_next() {
    world(|world| {
        world.job(&web(1));
        let alloc = world.live("web").remove(0);
        let before = world.task(&alloc);
        assert!(world.agent.process.stop(Signal::TERM).success());
        assert!(ask(&alloc).starts_with("web.web[0]"));
        let ports = world.agent.ports;
        world.agent = Agent::durable(&world.path("data"), ports);
        world.until_passing("web", 1);
        assert_eq!(world.task(&alloc), before);
        world.stop_and_look("web");
    });
}

#[test]
fn a_job_that_was_stopped_while_the_agent_was_away_is_taken_down() {
    world(|world| {
        world.job(&web(1));
        let alloc = world.live("web").remove(0);
        // It dies between the decision and the deed.
        world
            .agent
            .run(&["job", "stop", "-detach", "web"])
            .success();
        world.agent.process.stop(Signal::KILL);
        let ports = world.agent.ports;
        world.agent = Agent::durable(&world.path("data"), ports);
        world.until(&alloc.id, "ended", |alloc| {
            alloc["ClientStatus"] == "complete"
        });
        assert!(eventually(PATIENCE, || world.passing("web") == 0));
        world.look();
    });
}

#[test]
fn what_a_killed_development_agent_left_is_ended_by_the_next() {
    in_network(|| {
        let agent = Agent::start(&["-dev"]);
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/web.hcl");
        let ran = agent.run(&["job", "run", path]);
        if ran.code != Some(0) && ran.err.contains("unhealthy") {
            missing(&ran.err);
            return;
        }
        ran.success();
        let rows = agent.http.get("/v1/job/web/allocations").json();
        let ids: BTreeSet<String> = rows
            .as_array()
            .unwrap()
            .iter()
            .map(|row| row["ID"].as_str().unwrap().to_owned())
            .collect();
        assert!(!processes(&ids).is_empty());
        agent.kill();
        assert!(!processes(&ids).is_empty(), "nobody has ended them yet");
        let _next = Agent::start(&["-dev"]);
        // It may be another test's agent that is faster.
        assert!(eventually(PATIENCE, || processes(&ids).is_empty()));
    });
}
