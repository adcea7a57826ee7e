//! Jobs that cannot run, and what their users are told.

use std::{
    fs, net::TcpListener, os::unix::process::CommandExt as _, path::PathBuf, process::Command,
};

use serde_json::json;

use wharf_tests::{Agent, Ports, in_network, missing, run};

use super::{
    images::{busybox, container},
    world::{World, world, world_in},
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
        assert_eq!(world.agent.http.get("/v1/jobs").json(), json!([]));
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

/// The images of a world on a small file system of their own, until this is dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(directory: PathBuf, size: &str) -> SmallDisk {
        fs::create_dir_all(&directory).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "wharf-test"]);
        run(mount.arg(&directory)).success();
        SmallDisk(directory)
    }

    /// Leaves only so much room.
    fn fill_but(&self, free: u64) -> PathBuf {
        let room = rustix::fs::statvfs(&self.0).unwrap();
        let room = room.f_bavail * room.f_bsize;
        let fill = self.0.join("fill");
        fs::write(
            &fill,
            vec![0; usize::try_from(room.saturating_sub(free)).unwrap()],
        )
        .unwrap();
        fill
    }

    /// Everything below, but what fills it.
    fn files(&self) -> Vec<String> {
        let found = run(Command::new("find")
            .arg(&self.0)
            .args(["!", "-name", "fill"]))
        .success();
        let mut files: Vec<String> = found.lines().map(str::to_owned).collect();
        files.sort();
        files
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_while_an_image_comes_in_or_is_unpacked_leaves_nothing_half() {
    if !rustix::process::geteuid().is_root() {
        missing("root, to mount a small file system");
        return;
    }
    let data = tempfile::tempdir().unwrap();
    let data = data.path().join("data");
    let images = SmallDisk::mount(data.join("platform/images"), "12m");
    world_in(data, |world| {
        let Some(archive) = busybox(world, "box.tar") else {
            return;
        };
        let before = images.files();
        let fill = images.fill_but(1 << 20);
        let error = world.agent.run(&["image", "import", &archive]).failure();
        assert!(error.contains("no space is left on the disk"), "{error}");
        assert_eq!(images.files(), before);
        assert_eq!(world.agent.http.get("/v1/images").json(), json!([]));

        // Here, but there is no room to unpack it.
        fs::remove_file(&fill).unwrap();
        world.agent.run(&["image", "import", &archive]).success();
        let before = images.files();
        images.fill_but(1 << 20);
        let text = container("box:1", "", "exec /bin/busybox sleep 1000");
        refused(
            world,
            &text,
            &["box.box[0] failed", "no space is left on the disk"],
        );
        let unpacked = |file: &&String| file.contains("/layers/") || file.contains("/tmp/");
        let left = images.files();
        let left: Vec<_> = left.iter().filter(unpacked).collect();
        let there: Vec<_> = before.iter().filter(unpacked).collect();
        assert_eq!(left, there, "nothing half");
        // With room again, running the job again is enough.
        fs::remove_file(&fill).unwrap();
        world.job(&text);
        world.stop_and_look("box");
    });
}

/// Runs what follows as on a kernel that does not know overlayfs: fsopen(2) says ENODEV, for this process and all that
/// it starts.
const NO_OVERLAYFS: &str = r#"
import ctypes, os, struct, sys
FSOPEN, ENODEV, SECCOMP, NO_NEW_PRIVS = 430, 19, 22, 38
ALLOW, ERRNO = 0x7fff0000, 0x00050000 | ENODEV
rules = [(0x20, 0, 0, 0), (0x15, 0, 1, FSOPEN), (0x06, 0, 0, ERRNO), (0x06, 0, 0, ALLOW)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *rule) for rule in rules))
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("rules", ctypes.c_void_p)]
program = Program(len(rules), ctypes.addressof(code))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(NO_NEW_PRIVS, 1, 0, 0, 0) == 0
assert libc.prctl(SECCOMP, 2, ctypes.byref(program), 0, 0) == 0, ctypes.get_errno()
os.execv(sys.argv[1], sys.argv[1:])
"#;

#[test]
fn without_overlayfs_images_do_not_run_and_everything_else_does() {
    in_network(|| {
        if Command::new("python3").arg("--version").output().is_err() {
            missing("python3");
            return;
        }
        let ports = Ports::choose();
        let agent = Agent::command(ports, &["-dev"]);
        let mut command = Command::new("python3");
        command.args(["-c", NO_OVERLAYFS]).arg(agent.get_program());
        command.args(agent.get_args());
        for (name, value) in agent.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let agent = Agent::of_command(ports, &mut command).expect("it starts");
        let path = tempfile::tempdir().unwrap();
        let path = path.path().join("box.hcl");
        let text = container(&format!("box:1@sha256:{}", "0".repeat(64)), "", "true");
        fs::write(&path, text).unwrap();
        let error = agent.run(&["job", "run", path.to_str().unwrap()]).failure();
        for part in ["driver container unhealthy on 1 node", "CONFIG_OVERLAY_FS"] {
            assert!(error.contains(part), "{part:?} is missing in\n{error}");
        }
        agent.http.put("/v1/kv/a", "1").ok();
        assert_eq!(agent.http.get("/v1/kv/a?raw").text(), "1");
        let nodes = agent.http.get("/v1/platform/nodes").json();
        assert_eq!(
            nodes[0]["Drivers"],
            json!({"container": false, "exec": true})
        );
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
