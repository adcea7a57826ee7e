//! Images: built, imported, fetched from a registry, removed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;
use tempfile::TempDir;
use wharf_tests::{
    Agent, Ended, Http, Ports, Process, SOON, eventually, free_port, missing, run, wharf,
};

#[track_caller]
fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| panic!("no JSON: {text}"))
}

/// Debian's registry, with nothing in it.
pub(crate) struct Registry {
    pub(crate) process: Process,
    pub(crate) host: String,
    _directory: TempDir,
}

impl Registry {
    /// `None`, said and counted, when this machine has none.
    pub(crate) fn start() -> Option<Registry> {
        for (program, package) in [("docker-registry", "docker-registry"), ("skopeo", "skopeo")] {
            if Command::new(program).arg("--version").output().is_err() {
                missing(package);
                return None;
            }
        }
        let directory = tempfile::tempdir().unwrap();
        let host = format!("127.0.0.1:{}", free_port());
        let config = directory.path().join("config.yml");
        let root = directory.path().join("registry");
        let text = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {host}\n",
            root.display()
        );
        fs::write(&config, text).unwrap();
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&config);
        let process = Process::start(&mut command);
        let http = Http {
            address: host.parse().unwrap(),
            timeout: SOON,
        };
        let ready = eventually(SOON, || {
            http.request("GET", "/v2/", &[], b"")
                .is_ok_and(|reply| reply.status == 200)
        });
        assert!(ready, "the registry does not answer:\n{}", process.text());
        Some(Registry {
            process,
            host,
            _directory: directory,
        })
    }

    /// Pushes an archive, with a client that is not ours.
    pub(crate) fn push(&self, archive: &Path, name: &str, more: &[&str]) {
        let mut command = Command::new("skopeo");
        command
            .args(["copy", "--insecure-policy", "--dest-tls-verify=false"])
            .args(more)
            .arg(format!("oci-archive:{}", archive.display()))
            .arg(format!("docker://{}/{name}", self.host));
        run(&mut command).success();
    }

    /// An agent that may speak to it in the clear.
    fn agent(&self) -> Agent {
        Agent::start(&["-dev", "-hcl", &self.listed()])
    }

    /// The configuration that allows it.
    pub(crate) fn listed(&self) -> String {
        format!(
            "platform {{ images {{ insecure_registries = [\"{}\"] }} }}",
            self.host
        )
    }
}

/// Debian's static busybox as an image.
struct Busybox(PathBuf);

impl Busybox {
    fn find() -> Option<Busybox> {
        let path = ["/bin/busybox", "/usr/bin/busybox"]
            .into_iter()
            .map(PathBuf::from)
            .find(|path| path.exists());
        if path.is_none() {
            missing("busybox (busybox-static)");
        }
        path.map(Busybox)
    }

    /// Builds an archive without an agent. Returns its digest.
    fn build(&self, out: &Path, more: &[&str]) -> String {
        let mut command = Command::new(wharf());
        command
            .args(["image", "build", "-name=busybox:1", "-format=json"])
            .arg(format!("-file={}:/bin/busybox", self.0.display()))
            .args(["-entrypoint=/bin/busybox", "-cmd=sh", "-env=A=1", "-o"])
            .arg(out)
            .args(more)
            .env_remove("SOURCE_DATE_EPOCH");
        let built = json(&run(&mut command).success());
        built["Digest"].as_str().unwrap().to_owned()
    }
}

/// An agent keeps images only where it can run them.
fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        missing("root for images");
    }
    root
}

/// The digest of the one line that a command prints for an image.
fn digest(text: &str) -> String {
    let words = text.split_whitespace();
    let mut digests = words.filter(|word| word.starts_with("sha256:"));
    digests
        .next()
        .unwrap_or_else(|| panic!("no digest: {text}"))
        .to_owned()
}

#[test]
fn an_image_is_built_imported_listed_and_removed() {
    if !is_root() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("hello");
    fs::write(&file, "#!/bin/sh\necho hello\n").unwrap();
    let files = format!("-file={}:/bin/hello", file.display());
    let agent = Agent::dev();
    assert_eq!(agent.run(&["image", "ls"]).success().lines().count(), 1);

    let built = agent
        .run(&[
            "image",
            "build",
            "-name=hello:1",
            &files,
            "-entrypoint=/bin/hello",
        ])
        .success();
    let own = digest(&built);
    assert!(built.starts_with("Built: hello:1"), "{built}");
    // The archive has the same digest, on any day and any machine.
    let archive = directory.path().join("hello.tar");
    let archive = archive.to_str().unwrap();
    let words = [
        "image",
        "build",
        "-name=hello:1",
        &files,
        "-entrypoint=/bin/hello",
        "-o",
        archive,
    ];
    assert_eq!(digest(&agent.run(&words).success()), own);
    let imported = agent
        .run(&["image", "import", "-name=other:2", archive])
        .success();
    assert_eq!(digest(&imported), own);
    let bytes = fs::read(archive).unwrap();
    let piped = agent
        .run_with_input(&["image", "import", "-"], &bytes)
        .success();
    assert_eq!(digest(&piped), own);

    let listed = agent.run(&["image", "ls"]).success();
    assert!(
        listed.contains("\nhello:1 ") && listed.contains("\nother:2 "),
        "{listed}"
    );
    let inspected = json(&agent.run(&["image", "inspect", "hello:1"]).success());
    assert_eq!(inspected["Config"]["Entrypoint"][0], "/bin/hello");
    assert_eq!(inspected["Origin"], "Import");
    let removed = agent.run(&["image", "rm", "hello:1"]).success();
    assert_eq!(removed, "Removed name: hello:1\n");
    let short = &own["sha256:".len()..][..12];
    let removed = agent.run(&["image", "rm", short]).success();
    assert!(removed.contains(&own), "{removed}");
    assert_eq!(agent.http.get("/v1/images").text().trim(), "[]");
    let error = agent.run(&["image", "rm", "hello:1"]).failure();
    assert!(
        error.contains("there is no image hello:1 on this node"),
        "{error}"
    );
}

#[test]
fn bad_images_are_refused_with_the_reason() {
    if !is_root() {
        return;
    }
    let agent = Agent::dev();
    let directory = tempfile::tempdir().unwrap();
    let junk = directory.path().join("junk.tar");
    fs::write(&junk, "no archive at all").unwrap();
    let error = agent
        .run(&["image", "import", junk.to_str().unwrap()])
        .failure();
    assert!(
        error.contains("400") && error.contains("cannot be read"),
        "{error}"
    );
    let error = agent.run(&["image", "import", "/none.tar"]).failure();
    assert!(error.contains("/none.tar"), "{error}");
    // A large one is refused too, however much of it is on its way.
    let large = vec![b'x'; 32 << 20];
    let error = agent
        .run_with_input(&["image", "import", "-"], &large)
        .failure();
    assert!(error.contains("cannot be read"), "{error}");
    for (image, problem) in [
        ("Web", "upper case"),
        ("web:1", "has no registry in its name"),
        (
            "127.0.0.1:1/web:1",
            "cannot reach the registry at 127.0.0.1:1",
        ),
    ] {
        let error = agent.run(&["image", "pull", image]).failure();
        assert!(error.contains(problem), "{error}");
    }
    let reply = agent.http.put("/v1/images/pull", "{");
    assert_eq!(reply.status, 400);
    assert_eq!(agent.http.get("/v1/image/none").status, 404);
    assert_eq!(agent.http.put("/v1/images/import?name=A", "").status, 400);
    let listed = "platform { images { insecure_registries = [\"http://x\"] } }";
    let refused = Process::start(&mut Agent::command(
        Ports::choose(),
        &["-dev", "-hcl", listed],
    ));
    assert!(
        refused
            .line("is not the host of a registry", SOON)
            .is_some()
    );
    let typo = "platform { images { insecure_registry = [] } }";
    let refused = Process::start(&mut Agent::command(
        Ports::choose(),
        &["-dev", "-hcl", typo],
    ));
    assert!(refused.line("insecure_registries", SOON).is_some());
}

#[test]
fn images_outlive_an_agent_with_a_data_directory() {
    if !is_root() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "x").unwrap();
    let files = format!("-file={}", file.display());
    let build = ["image", "build", "-name=kept:1", &files];
    let data = directory.path().join("data");
    let agent = Agent::durable(&data, Ports::choose());
    agent.run(&build).success();
    let ports = agent.kill();
    let agent = Agent::durable(&data, ports);
    assert!(agent.run(&["image", "ls"]).success().contains("kept:1"));
    drop(agent);
}

#[test]
fn images_come_from_a_registry() {
    if !is_root() {
        return;
    }
    let (Some(mut registry), Some(busybox)) = (Registry::start(), Busybox::find()) else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let archive = directory.path().join("busybox.tar");
    let own = busybox.build(&archive, &[]);
    // What we build, others read.
    let mut inspect = Command::new("skopeo");
    inspect
        .arg("inspect")
        .arg(format!("oci-archive:{}", archive.display()));
    let seen = json(&run(&mut inspect).success());
    assert_eq!(seen["Digest"], own.as_str());
    registry.push(&archive, "tools/busybox:1", &["--preserve-digests"]);
    // In Docker's format, and so under another digest.
    registry.push(&archive, "docker/busybox:1", &["--format=v2s2"]);

    let agent = registry.agent();
    let name = |rest: &str| format!("{}/tools/busybox{rest}", registry.host);
    let fetch = |name: &str| -> Ended { agent.run(&["image", "pull", name]) };
    let pull = |rest: &str| fetch(&name(rest));
    assert_eq!(digest(&pull(":1").success()), own);
    let docker = format!("{}/docker/busybox:1", registry.host);
    assert_ne!(digest(&fetch(&docker).success()), own);
    let inspected = json(&agent.run(&["image", "inspect", &name(":1")]).success());
    assert_eq!(inspected["Origin"], "Registry");
    assert_eq!(inspected["Config"]["Cmd"][0], "sh");

    // A tag that moves: the name follows at the next pull, the old image is still there by its digest.
    let other = directory.path().join("other.tar");
    let moved = busybox.build(&other, &["-label=version=2"]);
    registry.push(&other, "tools/busybox:1", &["--preserve-digests"]);
    assert_eq!(digest(&pull(":1").success()), moved);
    assert_eq!(digest(&pull(&format!("@{own}")).success()), own);
    let listed = json(&agent.run(&["image", "ls", "-format=json"]).success());
    let find = |digest: &str| {
        let images = listed.as_array().unwrap().iter();
        images
            .clone()
            .find(|image| image["Digest"] == digest)
            .unwrap()["Names"]
            .clone()
    };
    assert_eq!(find(&moved)[0], name(":1").as_str());
    assert_eq!(find(&own), Value::Array(Vec::new()));

    let error = pull(":none").failure();
    assert!(error.contains("404") && error.contains(":none"), "{error}");
    let wrong = format!("@sha256:{}", "0".repeat(64));
    let error = pull(&wrong).failure();
    assert!(error.contains(&wrong[1..]), "{error}");

    // Without the registry: what is pinned and here is here, and a tag cannot be asked for.
    registry.process.stop(rustix::process::Signal::KILL);
    assert_eq!(digest(&pull(&format!(":1@{own}")).success()), own);
    let error = pull(":1").failure();
    assert!(error.contains("cannot reach the registry"), "{error}");
    let error = agent.run(&["image", "pull", &name(&wrong)]).failure();
    assert!(error.contains("cannot reach the registry"), "{error}");

    let removed = agent.run(&["image", "prune", "-keep=1"]).success();
    assert!(removed.contains("Freed"), "{removed}");
    let left = json(&agent.run(&["image", "ls", "-format=json"]).success());
    assert_eq!(left.as_array().unwrap().len(), 1, "{left}");
}

#[test]
fn a_registry_that_is_not_listed_is_not_spoken_to_in_the_clear() {
    if !is_root() {
        return;
    }
    let Some(registry) = Registry::start() else {
        return;
    };
    let agent = Agent::dev();
    let name = format!("{}/web:1", registry.host);
    let error = agent.run(&["image", "pull", &name]).failure();
    assert!(error.contains("insecure_registries"), "{error}");
    assert!(
        !registry.process.text().contains("/v2/web"),
        "it was asked:\n{}",
        registry.process.text()
    );
}
