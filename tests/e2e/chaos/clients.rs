//! Who uses the registry meanwhile, through servers and through client agents, and what they remember of it.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::json;
use wharf_tests::{
    Chance, Http,
    history::{Action, Operation},
};

pub(super) const KEYS: u64 = 3;
/// Instances that each agent has at once.
const INSTANCES: usize = 12;

/// What was done with the keys that everybody reads and writes: whether one register each explains it.
#[derive(Debug, Default)]
pub(super) struct Histories {
    values: AtomicU64,
    pub(super) of: Mutex<BTreeMap<u64, Vec<Operation>>>,
}

/// One client's operation on one key.
fn operate(http: Http, key: u64, value: u64, chance: &mut Chance) -> Option<Action> {
    let path = format!("/v1/kv/chaos/{key}");
    let read = |consistency: &str| -> Option<(u64, u64)> {
        let reply = http.request("GET", &format!("{path}?raw&{consistency}"), &[], b"");
        let reply = reply.ok()?;
        match reply.status {
            404 => Some((0, 0)),
            200 => Some((reply.text().parse().ok()?, reply.index())),
            _ => None,
        }
    };
    match chance.below(4) {
        0 => read("").map(|(value, _)| Action::Read(value)),
        1 => read("consistent").map(|(value, _)| Action::Read(value)),
        2 => {
            // Not an operation of its own: it only says what to compare with.
            let (from, index) = read("stale")?;
            let path = format!("{path}?cas={index}");
            let text = value.to_string();
            match http.request("PUT", &path, &[], text.as_bytes()) {
                Ok(reply) if reply.status == 200 => {
                    // An index is compared, not a value: that it was another says nothing of the value.
                    (reply.text().trim() == "true").then_some(Action::Swap {
                        from,
                        to: value,
                        swapped: true,
                    })
                }
                _ => Some(Action::MaybeSwap { from, to: value }),
            }
        }
        _ => {
            let text = value.to_string();
            Some(match http.request("PUT", &path, &[], text.as_bytes()) {
                Ok(reply) if reply.status == 200 => Action::Write(value),
                // Refused or cut off: some of these certainly did nothing, and none is believed.
                _ => Action::MaybeWrite(value),
            })
        }
    }
}

/// A client that reads and writes the common keys, each time through somebody else.
pub(super) fn client(https: &[Http], mut chance: Chance, stop: &AtomicBool, histories: &Histories) {
    while !stop.load(Ordering::Relaxed) {
        let http = https[usize::try_from(chance.below(https.len() as u64)).unwrap()];
        let key = chance.below(KEYS);
        let value = 1 + histories.values.fetch_add(1, Ordering::Relaxed);
        let called = Instant::now();
        if let Some(action) = operate(http, key, value, &mut chance) {
            let unknown = action.is_unknown();
            let operation = Operation {
                action,
                called,
                returned: (!unknown).then(Instant::now),
            };
            let mut histories = histories.of.lock().unwrap();
            histories.entry(key).or_default().push(operation);
        }
        // The check is of what they see of each other, not of how fast they are.
        thread::sleep(chance.millis(5, 40));
    }
}

/// A write that was acknowledged.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    pub(super) called: Instant,
    pub(super) acknowledged: Instant,
    pub(super) key: String,
}

/// Writes that were acknowledged, each to a key of its own: all of them have to be there in the end.
#[derive(Debug, Default)]
pub(super) struct Ledger(Mutex<Vec<Kept>>);

impl Ledger {
    /// When the first write was acknowledged of those that were begun after `since`.
    pub(super) fn first_after(&self, since: Instant) -> Option<Instant> {
        let kept = self.0.lock().unwrap();
        // They are in the order of their acknowledgements, but for what threads do between clock and lock.
        let recent = kept
            .iter()
            .rev()
            .take_while(|kept| kept.acknowledged + Duration::from_secs(1) > since);
        let after = recent.filter(|kept| kept.called > since);
        after.map(|kept| kept.acknowledged).min()
    }

    pub(super) fn keys(&self) -> Vec<String> {
        let kept = self.0.lock().unwrap();
        kept.iter().map(|kept| kept.key.clone()).collect()
    }

    /// The longest time without an acknowledgement, up to now.
    pub(super) fn longest_silence(&self, from: Instant) -> Duration {
        let kept = self.0.lock().unwrap();
        let mut times: Vec<Instant> = kept.iter().map(|kept| kept.acknowledged).collect();
        times.extend([from, Instant::now()]);
        times.sort();
        let gaps = times.windows(2).map(|pair| pair[1] - pair[0]);
        gaps.max().unwrap_or_default()
    }
}

/// A client that writes one new key after the other through the same server or agent.
pub(super) fn writer(
    number: usize,
    http: Http,
    mut chance: Chance,
    stop: &AtomicBool,
    ledger: &Ledger,
) {
    for count in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let key = format!("ledger/{number}/{count}");
        let called = Instant::now();
        let reply = http.request("PUT", &format!("/v1/kv/{key}"), &[], b"kept");
        if reply.is_ok_and(|reply| reply.status == 200) {
            ledger.0.lock().unwrap().push(Kept {
                called,
                acknowledged: Instant::now(),
                key,
            });
        }
        // Who is gone refuses faster than anybody can count.
        thread::sleep(chance.millis(5, 30));
    }
}

/// What an agent was told of instances, and acknowledged.
#[derive(Debug, Default)]
pub(super) struct Registered {
    pub(super) there: BTreeSet<String>,
    pub(super) gone: BTreeSet<String>,
}

/// The service of an agent's instances.
pub(super) fn service_of(agent: usize) -> String {
    format!("of-{agent}")
}

/// Somebody who registers instances with an agent, reports that they pass, and takes the oldest away.
pub(super) fn registrar(
    agent: usize,
    http: Http,
    mut chance: Chance,
    stop: &AtomicBool,
    registered: &Mutex<Registered>,
) {
    let put = |path: &str, body: &str| {
        let reply = http.request("PUT", path, &[], body.as_bytes());
        reply.is_ok_and(|reply| reply.status == 200)
    };
    let mut there: VecDeque<String> = VecDeque::new();
    for count in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let id = format!("{}-{count}", service_of(agent));
        let body = json!({
            "ID": id, "Name": service_of(agent), "Port": 80, "Check": {"TTL": "1h"},
        });
        let known = put("/v1/agent/service/register", &body.to_string())
            && put(&format!("/v1/agent/check/pass/service:{id}"), "");
        if known {
            there.push_back(id.clone());
            registered.lock().unwrap().there.insert(id);
        }
        if there.len() > INSTANCES
            && let Some(oldest) = there.pop_front()
        {
            // Nothing is known of it, until that is acknowledged.
            registered.lock().unwrap().there.remove(&oldest);
            if put(&format!("/v1/agent/service/deregister/{oldest}"), "") {
                registered.lock().unwrap().gone.insert(oldest);
            }
        }
        thread::sleep(chance.millis(50, 250));
    }
}
