//! Random faults while clients write: whatever was acknowledged is on every server in the end, and all
//! servers agree. A failing seed is in the message and can be run again by itself.

use proptest::{
    prelude::Rng as _,
    test_runner::{RngAlgorithm, TestRng},
};

use super::*;

/// How many histories a test run plays; `WHARF_SEEDS` plays more.
const SEEDS: u64 = 12;
const STEPS: u32 = 12;

fn rng(seed: u64) -> TestRng {
    let mut bytes = [7; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    TestRng::from_seed(RngAlgorithm::ChaCha, &bytes)
}

async fn history(seed: u64) {
    let mut rng = rng(seed);
    let mut below = |limit: u32| rng.next_u32() % limit;
    let count = if below(2) == 0 { 3 } else { 5 };
    let mut cluster = Cluster::founded(count).await;
    let count = count as usize;
    let mut acknowledged = Vec::new();
    for step in 0..STEPS {
        match below(6) {
            0 => {
                let at = below(count as u32) as usize;
                let down = (0..count).filter(|at| !cluster.runs(*at)).count();
                // A majority stays, so that the writers get on.
                if cluster.runs(at) && down < (count - 1) / 2 {
                    cluster.crash(at).await;
                }
            }
            1 => {
                let ids: Vec<_> = cluster.machines.iter().map(|m| m.id).collect();
                let split = 1 + below(count as u32 - 1) as usize;
                cluster.net.partition(&ids[..split], &ids[split..]);
            }
            2 => {
                let ids: Vec<_> = cluster.machines.iter().map(|m| m.id).collect();
                let (a, b) = (below(count as u32), below(count as u32));
                cluster.net.cut_one_way(ids[a as usize], ids[b as usize]);
            }
            3 => cluster
                .net
                .lose_one_of(seed + u64::from(step), u64::from(3 + below(20))),
            4 => {
                let down = (0..count).find(|at| !cluster.runs(*at));
                if let Some(at) = down {
                    cluster.start(at).await;
                }
            }
            _ => cluster.net.heal(),
        }
        for n in 0..1 + below(6) {
            let key = format!("{step}-{n}");
            let wrote = tokio::time::timeout(Duration::from_secs(5), cluster.write(&key)).await;
            if wrote == Ok(true) {
                acknowledged.push(key);
            }
        }
        tokio::time::sleep(Duration::from_millis(u64::from(below(1500)))).await;
    }
    cluster.net.heal();
    for at in 0..count {
        if !cluster.runs(at) {
            cluster.start(at).await;
        }
    }
    cluster.agree_on(&acknowledged).await;
    assert!(!acknowledged.is_empty(), "nothing was written");
}

#[test]
fn no_fault_loses_an_acknowledged_write() {
    let seeds = std::env::var("WHARF_SEEDS")
        .ok()
        .and_then(|n| n.parse().ok());
    for seed in 0..seeds.unwrap_or(SEEDS) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        let played = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            runtime.block_on(history(seed));
        }));
        if let Err(panic) = played {
            println!("seed {seed}");
            std::panic::resume_unwind(panic);
        }
    }
}
