//! `wharf demo`: the story it tells, and that nothing of it stays.

use std::{net::TcpStream, os::unix::process::CommandExt as _, process::Command, time::Duration};

use rustix::process::{Signal, geteuid};
use wharf_tests::{Process, in_network, run, wharf};

/// How long it may take on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(60);

/// The agent's HTTP port, which the demo names in its second line.
fn agent_port(text: &str) -> u16 {
    let after = text
        .split_once("HTTP 127.0.0.1:")
        .expect("the agent's port")
        .1;
    let digits: String = after.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().expect("a port")
}

/// The demo as somebody who may not run containers.
fn demo() -> Command {
    let mut command = Command::new(wharf());
    command.arg("demo");
    if geteuid().is_root() {
        command.uid(65534).gid(65534);
    }
    command
}

fn check(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is missing in\n{text}");
    }
    assert!(!text.contains("never"), "{text}");
    let port = agent_port(text);
    assert!(
        TcpStream::connect(("127.0.0.1", port)).is_err(),
        "the agent is gone"
    );
}

#[test]
fn it_tells_the_whole_story_without_a_failed_request() {
    let ended = run(demo().arg("-pause=200ms"));
    let parts = [
        "As plain processes",
        "containers need root",
        "dig web.service.consul",
        "DNS followed",
        "kill -9 web-1",
        "web-1 again",
        "scale to 5",
        "scale to 2",
        "web-4",
        "Requests ",
    ];
    check(&ended.success(), &parts);
}

#[test]
fn in_containers_it_tells_the_same_and_leaves_nothing() {
    in_network(|| {
        let links = || run(Command::new("ip").args(["-brief", "link"])).success();
        let before = links();
        let ended = run(Command::new(wharf()).args(["demo", "-pause=200ms"]));
        let parts = [
            "As containers",
            "dig web.service.consul",
            "DNS followed",
            "kill -9 web.web[1]",
            "web.web[1] again",
            "scale to 5",
            "scale to 2",
            "web.web[4]",
            "failed 0;",
        ];
        check(&ended.success(), &parts);
        assert_eq!(links(), before);
    });
}

#[test]
fn an_interrupt_ends_all_of_it() {
    let mut demo = Process::start(demo().arg("-pause=60s"));
    interrupt(&mut demo);
    assert!(TcpStream::connect(("127.77.0.1", agent_port(&demo.text()))).is_err());
}

#[test]
fn an_interrupt_ends_containers_too() {
    in_network(|| {
        let links = || run(Command::new("ip").args(["-brief", "link"])).success();
        let before = links();
        let mut command = Command::new(wharf());
        let mut demo = Process::start(command.args(["demo", "-pause=60s"]));
        interrupt(&mut demo);
        assert_eq!(links(), before);
    });
}

fn interrupt(demo: &mut Process) {
    let line = demo.line("200 requests a second", PATIENCE);
    assert!(line.is_some(), "{}", demo.text());
    let port = agent_port(&demo.text());
    demo.signal(Signal::INT);
    let status = demo.ended(PATIENCE).expect("it ends");
    assert_eq!(status.code(), Some(130), "{}", demo.text());
    assert!(
        TcpStream::connect(("127.0.0.1", port)).is_err(),
        "the agent is gone"
    );
}
