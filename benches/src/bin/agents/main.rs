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
const PATIENCE: Duration = Duration::from_secs(120);
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

/// Waits until a count is right, and returns how long that took.
async fn until(
    what: &str,
    count: impl AsyncFn() -> Result<usize, Failure>,
    is_right: impl Fn(usize) -> bool,
) -> Result<Duration, Failure> {
    let began = Instant::now();
    loop {
        let count = count().await?;
        if is_right(count) {
            return Ok(began.elapsed());
        }
        if began.elapsed() > PATIENCE {
            return Err(format!("{what} takes longer than {PATIENCE:?}: now {count}").into());
        }
        sleep(Duration::from_millis(100)).await;
    }
}

async fn measure(program: &str, directory: &std::path::Path, count: usize) -> Result<(), Failure> {
    let mut servers = Servers::start(program, directory)?;
    let leaders = async || Ok(usize::from(servers.leader().await.is_some()));
    until("the election", leaders, |leaders| leaders == 1).await?;
    println!(
        "{count} agents, 3 servers, load {}",
        wharf_benches::process::load_average()
    );
    println!("idle: {}", servers.sizes()?);

    let crowd = Arc::new(Crowd::new(servers.addresses()));
    let agents: Vec<Simulated> = (0..count)
        .map(|number| Simulated::start(crowd.clone(), number))
        .collect();
    let present = async || Ok(crowd.present());
    let welcome = until("the welcome", present, |present| present == count).await;
    let welcome = welcome.map_err(|error| format!("{error}; at last {}", crowd.complaint()))?;
    let passing = async || servers.passing().await;
    let registered = until("the registration", passing, |passing| passing >= 2 * count).await?;
    println!(
        "all welcomed after {welcome:.1?}, all registered {registered:.1?} later, {} of them tried again",
        crowd.refusals.load(Ordering::Relaxed)
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
    until("the news of it", present, |present| present < count).await?;
    let back = until("the move", present, |present| present == count).await?;
    let moved = crowd.welcomes.load(Ordering::Relaxed) - moved;
    println!("{there} killed: the {moved} agents on it are with others after {back:.1?}");
    sleep(Duration::from_secs(20)).await;
    let dead = servers.dead().await?;
    println!("taken for dead within 20 s: {dead}");
    if dead > 0 {
        return Err("somebody who is alive was taken for dead".into());
    }

    let gone = count / 5;
    let killed_at = Instant::now();
    let mut agents = agents;
    agents.truncate(count - gone);
    let dead = async || servers.dead().await;
    until("the first one", dead, |dead| dead > 0).await?;
    let first = killed_at.elapsed();
    until("the last one", dead, |dead| dead == gone).await?;
    println!(
        "{gone} agents killed: the first is seen dead after {first:.1?}, the last after {:.1?}",
        killed_at.elapsed()
    );
    println!("end: {}", servers.sizes()?);
    drop(agents);
    Ok(())
}
