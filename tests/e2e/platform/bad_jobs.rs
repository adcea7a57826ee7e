//! Jobs that cannot run, and what their users are told.

use std::{fs, net::TcpListener, os::unix::process::CommandExt as _, process::Command};

use wharf_tests::{Agent, Ports, missing, run};

use super::{
    images::{busybox, container},
    world::{World, world},
};

/// A job of one task on the host's own root.
fn exec(command: &str, args: &str, group: &str) -> String {
    format!(
        r#"job "bad" {{
          group "bad" {{
            {group}
            task "bad" {{
              driver  = "exec"
              command = "{command}"
              args    = [{args}]
            }}
          }}
        }}"#
    )
}

#[track_caller]
fn refused(world: &World, text: &str, parts: &[&str]) {
    let path = world.file("bad.hcl", text);
    let error = world
        .agent
        .run(&["job", "run", "-timeout=50s", &path])
        .failure();
    for part in parts {
        assert!(error.contains(part), "{part:?} is missing in\n{error}");
    }
}

#[test]
fn a_program_that_is_not_there() {
    world(|world| {
        let text = exec("/no/such/program", "", "restart { attempts = 0 }");
        refused(world, &text, &["bad.bad[0] failed", "/no/such/program"]);
        world.stop_and_look("bad");
    });
}

#[test]
fn a_program_that_ends_at_once_is_started_again_later_and_later_and_then_given_up() {
    world(|world| {
        let group = "restart {\n attempts = 2\n delay = \"100ms\"\n }";
        let text = exec("/bin/sh", "\"-c\", \"echo because; exit 7\"", group);
        refused(
            world,
            &text,
            &["bad.bad[0] failed", "ended with code 7", "2 restarts"],
        );
        let rows = world.agent.http.get("/v1/job/bad/allocations").json();
        let id = rows[0]["ID"].as_str().unwrap();
        let status = world.agent.run(&["alloc", "status", id]).success();
        for part in ["in 100ms", "in 200ms", "Not Restarting", "failed"] {
            assert!(status.contains(part), "{part:?} is missing in\n{status}");
        }
        let logs = world.agent.run(&["alloc", "logs", id]).success();
        assert_eq!(logs, "because\nbecause\nbecause\n");
        world.stop_and_look("bad");
    });
}

#[test]
fn an_image_that_is_missing_or_another_one() {
    world(|world| {
        refused(
            world,
            &container("nowhere:1", "", "true"),
            &["nowhere:1", "build or import it"],
        );
        let text = container("oci-archive:/no/such.tar", "", "true");
        refused(world, &text, &["/no/such.tar", "No such file"]);
        let Some(archive) = busybox(world, "box.tar") else {
            return;
        };
        // A file that is not what it says it is.
        let mut bytes = fs::read(&archive).unwrap();
        let half = bytes.len() / 2;
        bytes[half] ^= 1;
        let broken = world.file("broken.tar", bytes);
        let text = container(&format!("oci-archive:{broken}"), "", "true");
        refused(world, &text, &["digest"]);
        assert_eq!(
            world.agent.http.get("/v1/jobs").json(),
            serde_json::json!([])
        );
        world.agent.run(&["image", "import", &archive]).success();
        // A digest is taken at its word when the job is registered: another node may have it.
        let wrong = format!("box:1@sha256:{}", "0".repeat(64));
        refused(
            world,
            &container(&wrong, "", "true"),
            &["box:1@sha256:0000"],
        );
        world.stop_and_look("box");
    });
}

#[test]
fn two_jobs_that_want_the_same_port() {
    world(|world| {
        let port = wharf_tests::free_port();
        let group = format!("network {{\n port \"http\" {{ static = {port} }}\n }}");
        let first = exec("/bin/sleep", "\"1000\"", &group);
        world.job(&first);
        let second = first.replace("job \"bad\"", "job \"worse\"");
        refused(world, &second, &[&format!("port {port} taken on 1 node")]);
        world.agent.run(&["job", "stop", "worse"]).success();
        world.stop_and_look("bad");
        // Here somebody has it whom the scheduler cannot know of.
        let _taken = TcpListener::bind(("0.0.0.0", port)).unwrap();
        refused(
            world,
            &first,
            &[&format!("port {port}"), "a process of this machine has it"],
        );
        world.stop_and_look("bad");
    });
}

#[test]
fn a_full_disk_while_an_image_is_unpacked_leaves_nothing_half() {
    world(|world| {
        let Some(archive) = busybox(world, "box.tar") else {
            return;
        };
        let small = world.path("small");
        fs::create_dir(&small).unwrap();
        // Enough for the state and half of an image.
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", "size=3m", "tmpfs"])
            .arg(&small);
        run(&mut mount).success();
        let images = small.join("data/platform/images");
        {
            let agent = Agent::durable(&small.join("data"), Ports::choose());
            let size = |path: &std::path::Path| {
                let out = run(Command::new("du").arg("-sk").arg(path)).success();
                out.split_whitespace()
                    .next()
                    .unwrap()
                    .parse::<u64>()
                    .unwrap()
            };
            let before = size(&images);
            let fill = small.join("fill");
            let _ = run(Command::new("dd")
                .arg("if=/dev/zero")
                .arg(format!("of={}", fill.display()))
                .args(["bs=64k", "count=20"]));
            let error = agent.run(&["image", "import", &archive]).failure();
            assert!(error.contains("no space is left on the disk"), "{error}");
            assert_eq!(size(&images), before);
            assert_eq!(agent.http.get("/v1/images").json(), serde_json::json!([]));
            assert_eq!(agent.http.get("/v1/agent/self").status, 200);
        }
        run(Command::new("umount").arg("-l").arg(&small)).success();
    });
}

#[test]
fn without_root_the_agent_serves_the_rest_and_says_what_is_missing() {
    if !rustix::process::geteuid().is_root() {
        missing("root, to become somebody else");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let ports = Ports::choose();
    let mut command = Agent::command(ports, &["-dev"]);
    command.uid(65534).gid(65534);
    let agent = Agent::of_command(ports, &mut command).expect("it starts");
    agent.http.put("/v1/kv/a", "1").ok();
    let path = directory.path().join("job.hcl");
    fs::write(&path, exec("/bin/true", "", "")).unwrap();
    let error = agent.run(&["job", "run", path.to_str().unwrap()]).failure();
    let wanted = "driver exec unhealthy on 1 node (containers need root: start the agent as root)";
    assert!(error.contains(wanted), "{error}");
    let node = agent.http.get("/v1/platform/nodes").json()[0]["Name"].clone();
    let node = agent
        .run(&["node", "status", node.as_str().unwrap()])
        .success();
    assert!(node.contains("start the agent as root"), "{node}");
}
