//! Containers made of images.

use std::{path::Path, process::Command};

use wharf_tests::{eventually, missing, run, wharf};

use rustix::process::Signal;

use super::world::{PATIENCE, World, world, world_with};
use crate::images::Registry;

/// Debian's static busybox, and an image with nothing but it.
pub(super) fn busybox(world: &World, out: &str) -> Option<String> {
    busybox_with(world, out, "FROM_IMAGE=yes")
}

fn busybox_with(world: &World, out: &str, variable: &str) -> Option<String> {
    let Some(path) = ["/bin/busybox", "/usr/bin/busybox"]
        .into_iter()
        .find(|path| Path::new(path).exists())
    else {
        missing("busybox (busybox-static)");
        return None;
    };
    let out = world.path(out);
    let mut command = Command::new(wharf());
    command
        .args(["image", "build", "-name=box:1", "-user=1000:1000"])
        .arg(format!("-file={path}:/bin/busybox"))
        .args(["-entrypoint=/bin/busybox", "-env", variable, "-o"])
        .arg(&out)
        .env_remove("SOURCE_DATE_EPOCH");
    run(&mut command).success();
    Some(out.to_str().unwrap().to_owned())
}

/// A job of one container of `image` that runs a script.
pub(super) fn container(image: &str, more: &str, script: &str) -> String {
    let words = ["sh", "-c", script]
        .map(|word| format!("{word:?}"))
        .join(", ");
    format!(
        r#"job "box" {{
          group "box" {{
            restart {{ attempts = 0 }}
            task "box" {{
              driver = "container"
              image  = "{image}"
              args   = [{words}]
              {more}
            }}
          }}
        }}"#
    )
}

/// What the task says, once it has said `last`.
fn said(world: &mut World, last: &str) -> String {
    let id = world.live("box").remove(0).id;
    let mut text = String::new();
    let complete = eventually(PATIENCE, || {
        // Nothing of it, before it has started.
        text = world.agent.run(&["alloc", "logs", &id]).out;
        text.contains(last)
    });
    assert!(complete, "{text}");
    text
}

const LOOK: &str = "b=/bin/busybox; $b id; $b hostname; $b grep -E '^(Cap|Seccomp:|NoNewPrivs)' /proc/self/status; \
    $b echo FROM $FROM_IMAGE $FROM_JOB; $b touch /x; $b cat /etc/resolv.conf; $b ls /proc/kcore /sys/firmware; \
    $b ip -o -4 addr show dev eth0; $b nslookup consul.service.consul; $b echo THE END; exec $b sleep 1000";

#[test]
fn a_container_of_an_imported_image_seen_from_inside() {
    world(|world| {
        let Some(archive) = busybox(world, "box.tar") else {
            return;
        };
        world.agent.run(&["image", "import", &archive]).success();
        let text = container("box:1", "env { FROM_JOB = \"too\" }", LOOK);
        world.job(&text);
        let text = said(world, "THE END");
        let alloc = world.live("box").remove(0);
        for part in [
            "uid=1000 gid=1000",
            "CapInh:\t0000000000000000",
            "CapEff:\t0000000000000000",
            "CapBnd:\t00000000",
            "NoNewPrivs:\t1",
            "Seccomp:\t2",
            "FROM yes too",
            "search ",
            "nameserver 172.26.",
            &alloc.address,
            "Address: 127.0.0.1",
        ] {
            assert!(text.contains(part), "{part:?} is missing in\n{text}");
        }
        let stderr = world
            .agent
            .run(&["alloc", "logs", "-stderr", &alloc.id])
            .success();
        assert!(stderr.contains("/x: Read-only file system"), "{stderr}");
        // In use: not to be removed.
        let refused = world.agent.run(&["image", "rm", "box:1"]).failure();
        assert!(refused.contains("in use"), "{refused}");
        world.stop_and_look("box");
        world.agent.run(&["image", "rm", "box:1"]).success();
    });
}

#[test]
fn an_archive_is_taken_over_when_the_job_is_registered() {
    world(|world| {
        let Some(archive) = busybox(world, "box.tar") else {
            return;
        };
        let image = format!("oci-archive:{archive}");
        world.job(&container(
            &image,
            "",
            "echo HERE; exec /bin/busybox sleep 1000",
        ));
        said(world, "HERE");
        let job = world.agent.http.get("/v1/job/box").json();
        let digest = job["Groups"][0]["Tasks"][0]["ImageDigest"]
            .as_str()
            .unwrap();
        assert!(digest.starts_with("sha256:"), "{digest}");
        // What was chosen runs, also when the file is gone.
        std::fs::remove_file(&archive).unwrap();
        let first = world.live("box").remove(0);
        world.agent.run(&["alloc", "stop", &first.id]).success();
        assert!(eventually(PATIENCE, || {
            let live = world.live("box");
            live.len() == 1 && live[0].id != first.id && live[0].json["ClientStatus"] == "running"
        }));
        world.stop_and_look("box");
    });
}

#[test]
fn a_tag_is_what_it_was_when_the_job_was_registered() {
    let prepare = || {
        let registry = Registry::start()?;
        let flags = vec!["-hcl".to_owned(), registry.listed()];
        Some((registry, flags))
    };
    world_with(prepare, |world, mut registry| {
        let (Some(old), Some(new)) = (
            busybox_with(world, "old.tar", "FROM_IMAGE=old"),
            busybox_with(world, "new.tar", "FROM_IMAGE=new"),
        ) else {
            return;
        };
        registry.push(Path::new(&old), "team/box:1", &[]);
        let image = format!("{}/team/box:1", registry.host);
        let text = container(
            &image,
            "",
            "echo $FROM_IMAGE END; exec /bin/busybox sleep 1000",
        );
        world.job(&text);
        assert_eq!(said(world, "END"), "old END\n");
        registry.push(Path::new(&new), "team/box:1", &[]);
        let first = world.live("box").remove(0);
        world.agent.run(&["alloc", "stop", &first.id]).success();
        let replaced = eventually(PATIENCE, || {
            let live = world.live("box");
            live.len() == 1 && live[0].id != first.id
        });
        assert!(replaced);
        assert_eq!(said(world, "END"), "old END\n");
        // Registered again, it is the new one, which the node fetches.
        let changed = text.replace("restart {", "restart { delay = \"1s\"");
        world.job(&changed);
        assert_eq!(said(world, "END"), "new END\n");
        // And what is here needs no registry.
        registry.process.stop(Signal::KILL);
        let second = world.live("box").remove(0);
        world.agent.run(&["alloc", "stop", &second.id]).success();
        let replaced = eventually(PATIENCE, || {
            let live = world.live("box");
            live.len() == 1 && live[0].id != second.id
        });
        assert!(replaced);
        assert_eq!(said(world, "END"), "new END\n");
        world.stop_and_look("box");
    });
}

#[test]
fn memory_beyond_the_limit_is_told_as_such() {
    world(|world| {
        let Some(archive) = busybox(world, "box.tar") else {
            return;
        };
        world.agent.run(&["image", "import", &archive]).success();
        let resources = "resources {\n memory = \"16MiB\"\n }";
        let script = "exec /bin/busybox dd if=/dev/zero of=/dev/null bs=64M count=1";
        let path = world.file("box.hcl", container("box:1", resources, script));
        let error = world.agent.run(&["job", "run", &path]).failure();
        assert!(error.contains("out of memory"), "{error}");
        world.stop_and_look("box");
    });
}
