//! Jobs, as far as they go without a node that runs them: read, registered, kept, explained.

use std::{fs, path::Path};

use serde_json::json;
use wharf_tests::{Agent, Ports, run, wharf};

fn example() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let path = root.join("examples/web.hcl");
    path.to_str().unwrap().to_owned()
}

#[test]
fn the_example_is_a_job() {
    let mut command = std::process::Command::new(wharf());
    command.args(["job", "validate", &example()]);
    assert_eq!(
        run(&mut command).success(),
        "Job \"web\" is valid: 1 group, 3 instances\n"
    );
}

#[test]
fn a_job_is_there_after_a_crash() {
    let directory = tempfile::tempdir().unwrap();
    let agent = Agent::durable(directory.path(), Ports::choose());
    agent.run(&["job", "run", "-detach", &example()]).success();
    agent
        .run(&["job", "scale", "-detach", "web", "0"])
        .success();
    let before = agent.http.get("/v1/job/web/versions").json();
    assert_eq!(before[0]["Version"], 1);

    let ports = agent.kill();
    let agent = Agent::durable(directory.path(), ports);
    assert_eq!(agent.http.get("/v1/job/web/versions").json(), before);
    let status = agent.run(&["job", "status", "web"]).success();
    assert!(status.contains("Status     running"), "{status}");
    agent.run(&["job", "stop", "web"]).success();
    let status = agent.run(&["job", "status"]).success();
    assert!(status.contains("dead"), "{status}");
    agent.run(&["job", "stop", "-purge", "web"]).success();
    assert_eq!(agent.http.get("/v1/jobs").json(), json!([]));
}

#[test]
fn a_job_that_fits_nowhere_says_what_lacks() {
    let agent = Agent::dev();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("huge.hcl");
    let text = fs::read_to_string(example())
        .unwrap()
        .replace("\"100m\"", "\"900\"");
    fs::write(&path, text).unwrap();
    let path = path.to_str().unwrap();
    let error = agent.run(&["job", "run", path]).failure();
    assert!(
        error.contains("3 instances of group \"web\" found no node"),
        "{error}"
    );
    let status = agent.run(&["job", "status", "web"]).success();
    assert!(status.contains("Not placed"), "{status}");
}

#[test]
fn mistakes_in_a_file_are_told_with_their_line() {
    let agent = Agent::dev();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bad.hcl");
    let text = fs::read_to_string(example()).unwrap().replace(
        "port \"http\" {}",
        "port \"http\" { static = 80 } port \"alt\" { static = 80 }",
    );
    fs::write(&path, text).unwrap();
    let path = path.to_str().unwrap();
    let error = agent.run(&["job", "run", path]).failure();
    assert!(error.contains("port 80 is there twice"), "{error}");
    assert!(error.contains("bad.hcl:"), "{error}");
    assert_eq!(agent.http.get("/v1/jobs").json(), json!([]));
}
