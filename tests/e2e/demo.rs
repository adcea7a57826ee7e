//! `wharf demo`: the story it tells, and that nothing of it stays.

use std::{net::TcpStream, process::Command};

use rustix::process::Signal;
use wharf_tests::{Process, SOON, run, wharf};

/// The agent's HTTP port, which the demo names in its second line.
fn agent_port(text: &str) -> u16 {
    let after = text
        .split_once("HTTP 127.0.0.1:")
        .expect("the agent's port")
        .1;
    let digits: String = after.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().expect("a port")
}

#[test]
fn it_tells_the_whole_story_without_a_failed_request() {
    let ended = run(Command::new(wharf()).args(["demo", "-pause=200ms"]));
    let text = ended.success();
    for part in [
        "dig web.service.consul",
        "DNS followed",
        "kill -9 web-1",
        "web-1 again",
        "scale to 5",
        "scale to 2",
        "web-4",
        "Requests ",
    ] {
        assert!(text.contains(part), "{part:?} is missing in\n{text}");
    }
    assert!(!text.contains("never"), "{text}");
    let port = agent_port(&text);
    assert!(
        TcpStream::connect(("127.0.0.1", port)).is_err(),
        "the agent is gone"
    );
}

#[test]
fn an_interrupt_ends_all_of_it() {
    let mut demo = Process::start(Command::new(wharf()).args(["demo", "-pause=60s"]));
    let line = demo.line("200 requests a second", SOON);
    assert!(line.is_some(), "{}", demo.text());
    let port = agent_port(&demo.text());
    demo.signal(Signal::INT);
    let status = demo.ended(SOON).expect("it ends");
    assert_eq!(status.code(), Some(130), "{}", demo.text());
    assert!(
        TcpStream::connect(("127.0.0.1", port)).is_err(),
        "the agent is gone"
    );
    assert!(TcpStream::connect(("127.77.0.1", port)).is_err());
}
