//! What a shim and a start cost: bounds that hold on a busy machine. The figures are printed.

use std::{fs, time::Instant};

use super::world::{World, run};

/// Resident memory of a process in kB: what only it has, and all.
fn resident(pid: u32) -> (u64, u64) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| {
        status
            .lines()
            .find_map(|line| {
                line.strip_prefix(name)?
                    .trim()
                    .strip_suffix(" kB")?
                    .trim()
                    .parse()
                    .ok()
            })
            .unwrap_or(0)
    };
    (field("RssAnon:"), field("VmRSS:"))
}

#[test]
fn an_idle_shim_is_small() {
    run(async {
        let Some(mut world) = World::new().await else {
            return;
        };
        let start = world.task("task", &["sleep", "1000"]);
        let began = Instant::now();
        world.start(start).await;
        let state = world.client.state().await.unwrap();
        let (anonymous, all) = resident(state.pid);
        println!(
            "shim with one task: {anonymous} kB of its own, {all} kB resident; started in {:?}",
            began.elapsed()
        );
        let (init, init_all) = resident(state.tasks["task"].pid.unwrap());
        println!("first process of a container: {init} kB of its own, {init_all} kB resident");
        // The dev profile's binary has far more pages than the shipped one: what counts is what is not shared.
        assert!(anonymous < 6 * 1024, "{anonymous} kB");
        world.end().await;
    });
}
