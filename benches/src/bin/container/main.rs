//! How long a container takes from being asked for to running, beside `runc run` on the same machine.
//!
//! ```text
//! cargo build --release -p wharf && cargo run --release -p wharf-benches --bin container -- target/release/wharf [RUNS]
//! ```
//!
//! Needs root, busybox (static) and runc; run it in a network namespace of its own, for the agent has a bridge there. Both run `true` from busybox with a read-only root, in new namespaces, with
//! limits; runs alternate, so that both meet the same machine. Of wharf it measures: the start of a shim (`wharf shim`
//! until it serves), a task from the request until its command runs, and the whole life of one until its control
//! group is gone; of runc `runc run` from start to exit, as it tells of nothing in between. Then the whole platform: an
//! agent that keeps its state on disk gets jobs of three instances, without and with sidecars, and each allocation counts
//! from the job's sending until its command runs.

mod platform;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use tokio::process::Command;
use wharf_launcher::{
    container::{Limits, Rootfs, Spec, cgroup::Hierarchy},
    shim::{
        Client, Spawn,
        protocol::{EventKind, LogSettings, StartTask},
    },
};

type Failure = Box<dyn std::error::Error>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let mut words = std::env::args().skip(1);
    let program = words.next().ok_or("usage: container WHARF [RUNS]")?;
    let program = fs::canonicalize(program)?;
    let runs: usize = words.next().map_or(Ok(50), |text| text.parse())?;
    let directory = std::env::temp_dir().join(format!("wharf-bench-{}", std::process::id()));
    fs::create_dir_all(&directory)?;
    let result = measure(&program, &directory, runs).await;
    let _ = fs::remove_dir_all(&directory);
    result
}

async fn measure(program: &Path, directory: &Path, runs: usize) -> Result<(), Failure> {
    let rootfs = directory.join("rootfs");
    fs::create_dir_all(rootfs.join("bin"))?;
    let busybox = ["/bin/busybox", "/usr/bin/busybox"]
        .into_iter()
        .find(|at| Path::new(at).exists());
    fs::copy(busybox.ok_or("no busybox")?, rootfs.join("bin/busybox"))?;
    symlink("busybox", rootfs.join("bin/true"))?;
    for place in ["proc", "dev", "sys", "tmp", "run"] {
        fs::create_dir_all(rootfs.join(place))?;
    }
    let bundle = directory.join("runc");
    fs::create_dir_all(&bundle)?;
    let runc = runc_spec(&bundle, &rootfs).await.is_ok();
    let hierarchy = Hierarchy::detect()?;
    let mut figures: BTreeMap<&str, Vec<Duration>> = BTreeMap::new();
    for run in 0..runs {
        let group = PathBuf::from("wharf").join(format!("bench-{}-{run}", std::process::id()));
        let spawn = Spawn {
            program: program.to_owned(),
            words: vec!["shim".into()],
            socket: directory.join("shim.sock"),
            notify: directory.join("notify.sock"),
            group: group.clone(),
        };
        let began = Instant::now();
        let (mut client, mut events) = Client::spawn(&spawn).await?;
        let shim = Instant::now();
        client.start_task(task(directory, &rootfs, &group)).await?;
        let mut running = None;
        loop {
            match events.recv().await.ok_or("the shim is gone")?.kind {
                EventKind::TaskStarted { .. } => running = Some(Instant::now()),
                EventKind::TaskExited { exit, .. } => {
                    if exit.code != Some(0) {
                        return Err(format!("{exit:?}").into());
                    }
                    break;
                }
                _ => {}
            }
        }
        let ended = Instant::now();
        client.shutdown().await?;
        let swept = hierarchy.group(&group);
        tokio::task::spawn_blocking(move || swept.kill_all().and_then(|()| swept.remove()))
            .await??;
        let running = running.ok_or("it never ran")?;
        figures
            .entry("1 shim serves")
            .or_default()
            .push(shim - began);
        figures
            .entry("2 task: asked to running")
            .or_default()
            .push(running - shim);
        figures
            .entry("3 shim and task: to running")
            .or_default()
            .push(running - began);
        figures
            .entry("4 shim and task: to the end")
            .or_default()
            .push(ended - began);
        if runc {
            let began = Instant::now();
            let status = Command::new("runc")
                .args(["run", "--bundle"])
                .arg(&bundle)
                .arg(format!("bench-{}-{run}", std::process::id()))
                .stdin(Stdio::null())
                .status()
                .await?;
            if !status.success() {
                return Err(format!("runc: {status}").into());
            }
            figures
                .entry("5 runc run: to the end")
                .or_default()
                .push(began.elapsed());
        }
    }
    platform::measure(program, directory, runs.div_ceil(5), &mut figures)?;
    println!("{:<32} {:>9} {:>9} {:>9}", "ms", "p50", "p99", "min");
    for (what, mut times) in figures {
        times.sort_unstable();
        let at = |share: f64| {
            let index = ((times.len() as f64 * share).ceil() as usize).clamp(1, times.len()) - 1;
            times[index].as_secs_f64() * 1000.0
        };
        println!(
            "{:<32} {:>9.1} {:>9.1} {:>9.1}",
            &what[2..],
            at(0.5),
            at(0.99),
            at(0.0)
        );
    }
    if !runc {
        println!("runc is not here: no comparison");
    }
    Ok(())
}

async fn runc_spec(bundle: &Path, rootfs: &Path) -> Result<(), Failure> {
    let status = Command::new("runc")
        .arg("spec")
        .current_dir(bundle)
        .status()
        .await?;
    if !status.success() {
        return Err("runc spec".into());
    }
    let path = bundle.join("config.json");
    let mut spec: serde_json::Value = serde_json::from_slice(&fs::read(&path)?)?;
    spec["process"]["terminal"] = false.into();
    spec["process"]["args"] = serde_json::json!(["/bin/true"]);
    spec["process"]["rlimits"] = serde_json::json!([]);
    // Wharf's task has the host's network here, so this one has it too.
    if let Some(namespaces) = spec["linux"]["namespaces"].as_array_mut() {
        namespaces.retain(|namespace| namespace["type"] != "network");
    }
    spec["root"]["path"] = rootfs.display().to_string().into();
    spec["linux"]["resources"]["memory"] = serde_json::json!({"limit": 64 << 20});
    spec["linux"]["resources"]["pids"] = serde_json::json!({"limit": 100});
    fs::write(path, serde_json::to_vec(&spec)?)?;
    Ok(())
}

fn task(directory: &Path, rootfs: &Path, group: &Path) -> StartTask {
    StartTask {
        task: "true".into(),
        spec: Spec {
            id: "bench-true".into(),
            bundle: directory.join("bundle"),
            rootfs: Rootfs::Layers(vec![rootfs.to_owned()]),
            argv: vec!["/bin/true".into()],
            env: BTreeMap::new(),
            user: String::new(),
            cwd: "/".into(),
            hostname: "bench".into(),
            netns: None,
            cgroup: group.join("true"),
            limits: Limits {
                cpu_millis: 500,
                cpu_max_millis: None,
                memory: 64 << 20,
                memory_max: 64 << 20,
                pids: 100,
            },
            binds: Vec::new(),
            read_only: true,
            masked: Vec::new(),
        },
        logs: LogSettings {
            dir: directory.join("logs"),
            max_files: 1,
            max_file_bytes: 1 << 20,
        },
        exit_file: directory.join("exit.json"),
    }
}
