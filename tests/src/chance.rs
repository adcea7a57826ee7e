//! Chance that can be repeated, for tests that do things at random for as long as one likes.

use std::{
    env,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Splitmix64 (Steele, Lea and Flood 2014): the same everywhere, from any seed.
#[derive(Clone, Debug)]
pub struct Chance(u64);

impl Chance {
    pub fn new(seed: u64) -> Chance {
        Chance(seed)
    }

    /// Below `limit`, which is above 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }

    /// Between two numbers of milliseconds.
    pub fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from))
    }
}

/// The seed that `WHARF_CHAOS_SEED` repeats, or one that nobody had. To be printed.
///
/// # Panics
///
/// When the variable is no number.
pub fn chaos_seed() -> u64 {
    let given = env::var("WHARF_CHAOS_SEED").ok();
    given.map_or_else(
        || {
            let now = SystemTime::now().duration_since(UNIX_EPOCH);
            now.map_or(1, |now| now.as_nanos() as u64)
        },
        |text| text.parse().expect("WHARF_CHAOS_SEED is a number"),
    )
}

/// How long something is done over and over: `WHARF_CHAOS_SECONDS`, or so many seconds.
///
/// # Panics
///
/// When the variable is no number.
pub fn chaos_duration(otherwise: u64) -> Duration {
    let given = env::var("WHARF_CHAOS_SECONDS").ok();
    let seconds = given.map_or(otherwise, |text| {
        text.parse().expect("WHARF_CHAOS_SECONDS is a number")
    });
    Duration::from_secs(seconds)
}
