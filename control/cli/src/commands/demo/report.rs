//! What the demo has measured, as tables.

use std::{collections::BTreeMap, time::Duration};

use super::load::Tally;
use crate::output::columns;

/// Something that happened to the service, and how long it took until others followed.
#[derive(Clone, Debug)]
pub(super) struct Event {
    pub(super) what: String,
    pub(super) dns: Option<Duration>,
    pub(super) sidecar: Option<Duration>,
    /// Requests that failed meanwhile.
    pub(super) failed: usize,
}

/// The tables of the end.
pub(super) fn tables(events: &[Event], tally: &Tally) -> String {
    let time = |time: Option<Duration>| time.map_or_else(|| "never".to_owned(), milliseconds);
    let mut rows = vec![["Event", "DNS followed", "Sidecar followed", "Failed"].map(str::to_owned)];
    rows.extend(events.iter().map(|event| {
        [
            event.what.clone(),
            time(event.dns),
            time(event.sidecar),
            event.failed.to_string(),
        ]
    }));
    let mut text = columns(&rows);
    text.push('\n');
    let mut instances: BTreeMap<&str, (u64, usize)> = BTreeMap::new();
    for (who, seen) in &tally.answered {
        let (requests, processes) = instances.entry(&who.name).or_default();
        *requests += seen.requests;
        *processes += 1;
    }
    let total: u64 = instances.values().map(|(requests, _)| requests).sum();
    let mut rows = vec![["Instance", "Requests", "Share", "Processes"].map(str::to_owned)];
    rows.extend(instances.iter().map(|(name, (requests, processes))| {
        [
            (*name).to_owned(),
            requests.to_string(),
            format!("{:.0} %", *requests as f64 * 100.0 / total.max(1) as f64),
            processes.to_string(),
        ]
    }));
    text.push_str(&columns(&rows));
    text.push_str(&format!(
        "\nRequests {}, failed {}; half of them within {}, 99 % within {}\n",
        tally.requests(),
        tally.failed.len(),
        milliseconds(tally.latency(0.5)),
        milliseconds(tally.latency(0.99)),
    ));
    for reason in tally.reasons() {
        text.push_str(&format!("  failed: {reason}\n"));
    }
    text
}

/// Two significant digits are enough for a person.
pub(super) fn milliseconds(time: Duration) -> String {
    let ms = time.as_secs_f64() * 1000.0;
    match ms {
        ms if ms < 10.0 => format!("{ms:.1} ms"),
        ms => format!("{ms:.0} ms"),
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::commands::demo::load::{Seen, Who};

    #[test]
    fn the_tables_have_events_instances_and_the_sum() {
        let now = Instant::now();
        let mut tally = Tally::default();
        for (name, process, requests) in
            [("web-0", "1", 30), ("web-1", "2", 50), ("web-1", "3", 20)]
        {
            let who = Who {
                name: name.to_owned(),
                process: process.to_owned(),
            };
            let seen = Seen {
                requests,
                first: now,
                last: now,
            };
            tally.answered.insert(who, seen);
        }
        tally.failed.push((now, "502: gone".to_owned()));
        tally.latencies = (1..=100).map(|n| n * 100).collect();
        let events = [Event {
            what: "kill -9 web-1".to_owned(),
            dns: Some(Duration::from_micros(4200)),
            sidecar: None,
            failed: 1,
        }];
        let text = tables(&events, &tally);
        for line in [
            "kill -9 web-1  4.2 ms        never             1",
            "web-1     70        70 %   2",
            "Requests 101, failed 1; half of them within 5.1 ms, 99 % within 10 ms",
            "  failed: 502: gone",
        ] {
            assert!(text.contains(line), "{line:?} is not in\n{text}");
        }
    }
}
