use proptest::prelude::*;

use super::{Balancer, Policy, Rng};

fn policies() -> impl Strategy<Value = Policy> {
    prop_oneof![
        Just(Policy::LeastRequest),
        Just(Policy::RoundRobin),
        Just(Policy::Random)
    ]
}

/// How often each instance is picked in `picks` turns with nothing in flight.
fn shares(policy: Policy, weights: &[u32], picks: u64) -> Vec<u64> {
    let balancer = Balancer::new(policy, weights);
    let rng = Rng::from_seed(7);
    let mut counts = vec![0; weights.len()];
    for turn in 0..picks {
        let i = balancer
            .pick(&rng, turn, |_| 0, |_| true)
            .expect("all are usable");
        counts[i] += 1;
    }
    counts
}

proptest! {
    #[test]
    fn picks_only_usable_instances(
        policy in policies(),
        instances in prop::collection::vec((0_u32..100, any::<bool>(), 0_u32..50), 0..20),
        seed: u64,
        turn: u64,
    ) {
        let weights: Vec<u32> = instances.iter().map(|i| i.0).collect();
        let balancer = Balancer::new(policy, &weights);
        let rng = Rng::from_seed(seed);
        for turn in turn..turn.saturating_add(20) {
            let picked = balancer.pick(&rng, turn, |i| instances[i].2, |i| instances[i].1);
            match picked {
                Some(i) => prop_assert!(instances[i].1, "picked {i}, which is not usable"),
                None => prop_assert!(instances.iter().all(|i| !i.1), "a usable instance was not found"),
            }
        }
    }

    #[test]
    fn round_robin_is_exact_over_one_cycle(weights in prop::collection::vec(1_u32..20, 1..12)) {
        let counts = shares(Policy::RoundRobin, &weights, weights.iter().copied().map(u64::from).sum());
        prop_assert_eq!(counts, weights.into_iter().map(u64::from).collect::<Vec<_>>());
    }
}

#[test]
fn weights_show_in_the_shares() {
    const PICKS: u64 = 60_000;
    for policy in [Policy::LeastRequest, Policy::Random, Policy::RoundRobin] {
        let counts = shares(policy, &[1, 2, 3], PICKS);
        for (count, weight) in counts.iter().zip([1_u64, 2, 3]) {
            let expected = PICKS * weight / 6;
            assert!(
                count.abs_diff(expected) < expected / 20,
                "{policy:?}: {count} picks of weight {weight}, expected about {expected}"
            );
        }
    }
}

#[test]
fn the_busier_of_two_is_never_chosen() {
    let balancer = Balancer::new(Policy::LeastRequest, &[1, 1]);
    let rng = Rng::from_seed(1);
    for turn in 0..1000 {
        assert_eq!(balancer.pick(&rng, turn, |i| [5, 4][i], |_| true), Some(1));
    }
}

#[test]
fn load_is_relative_to_weight() {
    let balancer = Balancer::new(Policy::LeastRequest, &[1, 10]);
    let rng = Rng::from_seed(1);
    // 3 in flight at weight 1 is more than 9 at weight 10.
    for turn in 0..1000 {
        assert_eq!(balancer.pick(&rng, turn, |i| [3, 9][i], |_| true), Some(1));
    }
}

#[test]
fn two_choices_keep_the_longest_queue_short() {
    // 100 instances, 10,000 requests that never end: random alone leaves a gap of tens between the longest queue and
    // the mean, two choices a gap of about log log n.
    let longest = |policy| {
        let balancer = Balancer::new(policy, &[1; 100]);
        let rng = Rng::from_seed(3);
        let mut queues = vec![0_u32; 100];
        for turn in 0..10_000 {
            let i = balancer
                .pick(&rng, turn, |i| queues[i], |_| true)
                .expect("usable");
            queues[i] += 1;
        }
        queues.into_iter().max().unwrap_or(0)
    };
    assert!(longest(Policy::LeastRequest) <= 104);
    assert!(longest(Policy::Random) > 110);
}
