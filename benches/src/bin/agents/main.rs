//! How many client agents three servers carry.
//!
//! ```text
//! cargo run --release -p wharf-benches --bin agents -- target/release/wharf [AGENTS]
//! ```
//!
//! The servers are real, on addresses of their own. The agents are sessions as a client agent has them, held by this
//! program: each greets a server, follows its own node, registers a service with a check, and says every two seconds
//! that it is there. One server is killed, and then a fifth of the agents: it is seen how long all others take to be
//! with another server, that none of them is taken for dead, and how long the dead ones take to be.

mod agent;
mod servers;

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use tokio::time::sleep;

use agent::{Crowd, Simulated};
use servers::Servers;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(300);
const STEADY: Duration = Duration::from_secs(20);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let mut words = std::env::args().skip(1);
    let program = words.next().ok_or("usage: agents WHARF [AGENTS]")?;
    let count: usize = words.next().map_or(Ok(3000), |text| text.parse())?;
    let directory = std::env::temp_dir().join(format!("wharf-agents-{}", std::process::id()));
    std::fs::create_dir_all(&directory)?;
    let result = measure(&program, &directory, count).await;
    let _ = std::fs::remove_dir_all(&directory);
    result
}

/// Waits until it is so, and returns how long that took.
async fn until(
    what: &str,
    is_so: impl AsyncFn() -> Result<bool, Failure>,
) -> Result<Duration, Failure> {
    let began = Instant::now();
    while !is_so().await? {
        if began.elapsed() > PATIENCE {
            return Err(format!("{what} takes longer than {PATIENCE:?}").into());
        }
        sleep(Duration::from_millis(100)).await;
    }
    Ok(began.elapsed())
}

async fn measure(program: &str, directory: &std::path::Path, count: usize) -> Result<(), Failure> {
    let mut servers = Servers::start(program, directory)?;
    until("the election", async || {
        Ok(servers.leader().await.is_some())
    })
    .await?;
    println!(
        "{count} agents, 3 servers, load {}",
        wharf_benches::process::load_average()
    );
    println!("idle: {}", servers.sizes()?);

    let crowd = Arc::new(Crowd::new(servers.addresses()));
    let agents: Vec<Simulated> = (0..count)
        .map(|number| Simulated::start(crowd.clone(), number))
        .collect();
    let welcome = until("the welcome", async || Ok(crowd.present() == count)).await?;
    let registered = until("the registration", async || {
        Ok(servers.count("/v1/health/state/passing?stale").await? >= 2 * count)
    });
    println!(
        "all welcomed after {welcome:.1?}, all registered {:.1?} later",
        registered.await?
    );
    println!("full: {}", servers.sizes()?);

    let before = servers.cpu()?;
    sleep(STEADY).await;
    println!("steady, for {STEADY:?}: {}", servers.busy(&before, STEADY)?);

    // Everybody who was there goes somewhere else.
    let moved = crowd.welcomes.load(Ordering::Relaxed);
    let leader = servers.leader().await.ok_or("there is no leader")?;
    let follower = (leader + 1) % 3;
    let there = servers.kill(follower);
    until("the news of it", async || Ok(crowd.present() < count)).await?;
    let back = until("the move", async || Ok(crowd.present() == count)).await?;
    let moved = crowd.welcomes.load(Ordering::Relaxed) - moved;
    println!("{there} killed: the {moved} agents on it are with others after {back:.1?}");
    sleep(Duration::from_secs(20)).await;
    let dead = servers.dead().await?;
    println!("taken for dead within 20 s: {}", dead - 1);
    if dead > 1 {
        return Err("somebody who is alive was taken for dead".into());
    }

    let gone = count / 5;
    let killed_at = Instant::now();
    let mut agents = agents;
    agents.truncate(count - gone);
    until("the first one", async || Ok(servers.dead().await? > 1)).await?;
    let first = killed_at.elapsed();
    until("the last one", async || {
        Ok(servers.dead().await? == gone + 1)
    })
    .await?;
    println!(
        "{gone} agents killed: the first is seen dead after {first:.1?}, the last after {:.1?}",
        killed_at.elapsed()
    );
    println!("end: {}", servers.sizes()?);
    drop(agents);
    Ok(())
}
