use std::time::Instant;

use super::*;
use crate::{command::KvCommand, model::KvEntry};

fn single() -> ConsensusConfig {
    ConsensusConfig {
        on_fatal: FatalHandler::new(|reason| panic!("{reason}")),
        ..ConsensusConfig::single("s1", Uuid::from_u128(1), "127.0.0.1:8300")
    }
}

fn set(key: &str, value: &str) -> Command {
    Command::Kv(KvCommand::Set {
        entry: KvEntry {
            key: key.into(),
            value: value.to_owned().into(),
            ..KvEntry::default()
        },
    })
}

async fn led(config: ConsensusConfig) -> Consensus {
    let consensus = Consensus::start(config).await.unwrap();
    let mut changes = consensus.leader_changes();
    changes.wait_for(Option::is_some).await.unwrap();
    consensus
}

#[tokio::test]
async fn a_single_server_leads_at_once_and_applies_what_is_proposed() {
    let started = Instant::now();
    let consensus = led(single()).await;
    assert!(started.elapsed() < Duration::from_secs(1));
    assert!(consensus.is_leader());
    assert_eq!(consensus.peers(), ["127.0.0.1:8300"]);

    let outcome = consensus.propose(set("a", "1")).await.unwrap();
    assert_eq!(outcome, Outcome::Applied(true));
    let view = consensus.registry().view();
    assert_eq!(view.kv("a").unwrap().value, "1");
    for consistency in [
        Consistency::Stale,
        Consistency::Default,
        Consistency::Consistent,
    ] {
        consensus.read_barrier(consistency).await.unwrap();
    }
    let stats = consensus.stats();
    assert!(stats.contains(&("state".to_owned(), "Leader".to_owned())));
    assert!(stats.contains(&("applied_index".to_owned(), "2".to_owned())));
    consensus.shutdown().await;
}
