//! How fast one server takes proposals, and where the time goes.
//!
//! `cargo run --release -p wharf-registry --example propose -- [proposers] [seconds] [directory]`
//!
//! Every proposer keeps one proposal of a 256 byte value in flight. Three runs: the state machine
//! alone, the whole path with the log in memory, and with the log in `directory`.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use uuid::Uuid;
use wharf_registry::{
    Command, Committed, Consensus, ConsensusConfig, Replica, command::KvCommand, model::KvEntry,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let proposers = args.next().map_or(Ok(64), |arg| arg.parse())?;
    let seconds = Duration::from_secs(args.next().map_or(Ok(5), |arg| arg.parse())?);
    let directory = args.next().map(PathBuf::from);

    for batch in [1, 16, 64, 512] {
        let rate = apply_rate(batch, Duration::from_secs(1));
        println!("state machine alone, batches of {batch}: {rate:.0} commands/s");
    }
    let runtime = tokio::runtime::Runtime::new()?;
    let id = Uuid::new_v4();
    let memory = ConsensusConfig::single("bench", id, "127.0.0.1:8300");
    runtime.block_on(run("memory", memory.clone(), proposers, seconds))?;
    if let Some(directory) = directory {
        println!(
            "fsync of 4 KiB appended to a file: {:?}",
            fsync_time(&directory)?
        );
        let disk = ConsensusConfig {
            data_dir: Some(directory.join(id.to_string())),
            ..memory
        };
        runtime.block_on(run("disk", disk, proposers, seconds))?;
    }
    Ok(())
}

fn command(key: usize) -> Command {
    Command::Kv(KvCommand::Set {
        entry: KvEntry {
            key: format!("bench/{key}").into(),
            value: vec![b'v'; 256].into(),
            ..KvEntry::default()
        },
    })
}

/// Decoding, applying, publishing the view, waking.
fn apply_rate(batch: usize, duration: Duration) -> f64 {
    let mut replica = Replica::new();
    let encoded: Vec<_> = (0..1000).map(|key| command(key).encode()).collect();
    let (mut index, started) = (0, Instant::now());
    while started.elapsed() < duration {
        let entries: Vec<Committed> = (0..batch)
            .map(|_| {
                index += 1;
                let command = Some(encoded[index as usize % encoded.len()].clone());
                Committed { index, command }
            })
            .collect();
        if replica.apply(&entries).is_err() {
            break;
        }
    }
    index as f64 / started.elapsed().as_secs_f64()
}

fn fsync_time(directory: &PathBuf) -> std::io::Result<Duration> {
    use std::io::Write;
    std::fs::create_dir_all(directory)?;
    let path = directory.join("fsync");
    let mut file = std::fs::File::create(&path)?;
    let mut times = Vec::new();
    for _ in 0..200 {
        file.write_all(&[0; 4096])?;
        let started = Instant::now();
        file.sync_data()?;
        times.push(started.elapsed());
    }
    std::fs::remove_file(path)?;
    times.sort();
    Ok(times[times.len() / 2])
}

async fn run(
    name: &str,
    config: ConsensusConfig,
    proposers: usize,
    duration: Duration,
) -> Result<(), Box<dyn std::error::Error>> {
    let started = Instant::now();
    let consensus = Consensus::start(config).await?;
    let mut leader = consensus.leader_changes();
    leader.wait_for(Option::is_some).await?;
    println!("{name}: leader after {:?}", started.elapsed());

    let consensus = Arc::new(consensus);
    let started = Instant::now();
    let tasks: Vec<_> = (0..proposers)
        .map(|proposer| {
            let consensus = consensus.clone();
            tokio::spawn(async move {
                let mut times = Vec::new();
                let mut key = proposer;
                while started.elapsed() < duration {
                    let sent = Instant::now();
                    consensus.propose(&command(key % 100_000)).await?;
                    times.push(sent.elapsed());
                    key += proposers;
                }
                Ok::<_, wharf_registry::consensus::ProposeError>(times)
            })
        })
        .collect();
    let mut times = Vec::new();
    for task in tasks {
        times.extend(task.await??);
    }
    let elapsed = started.elapsed();
    times.sort();
    let rate = times.len() as f64 / elapsed.as_secs_f64();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    println!(
        "{name}: {proposers} proposers, {rate:.0} proposals/s, p50 {:?}, p99 {:?}, p99.9 {:?}",
        at(0.5),
        at(0.99),
        at(0.999)
    );
    let started = Instant::now();
    for _ in 0..10_000 {
        consensus.read_barrier(Default::default()).await?;
    }
    println!(
        "{name}: default read barrier {:?}",
        started.elapsed() / 10_000
    );
    let started = Instant::now();
    for _ in 0..1_000 {
        let consistent = wharf_registry::consensus::Consistency::Consistent;
        consensus.read_barrier(consistent).await?;
    }
    println!(
        "{name}: consistent read barrier {:?}",
        started.elapsed() / 1_000
    );
    let started = Instant::now();
    consensus.shutdown().await;
    println!("{name}: shut down in {:?}", started.elapsed());
    Ok(())
}
