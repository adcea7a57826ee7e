//! What the proxy counts, and how Prometheus reads it.
//!
//! A handle is resolved once, when a snapshot is built; on the data path counting is an atomic addition to a cell that
//! only one worker writes, so that cores do not take cache lines from each other. Nothing is kept per request, path or
//! address. Histograms have fixed buckets: they cost the same after a billion requests as after one.

use std::{
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

/// Upper bounds of the request duration buckets, in microseconds.
const BUCKETS_US: [u64; 16] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000, 10_000_000, 30_000_000, 60_000_000,
];

/// How a request ended, as a label: the class of its status, or that the client left before it had one.
const CLASSES: [&str; 6] = ["canceled", "1xx", "2xx", "3xx", "4xx", "5xx"];

/// Why the proxy answered, or closed, by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    NoInstance,
    ConnectFailed,
    Overloaded,
    Timeout,
    UpstreamFailed,
    BadRequest,
}

impl Refusal {
    const ALL: [Self; 6] = [
        Self::NoInstance,
        Self::ConnectFailed,
        Self::Overloaded,
        Self::Timeout,
        Self::UpstreamFailed,
        Self::BadRequest,
    ];

    const fn label(self) -> &'static str {
        match self {
            Self::NoInstance => "no_healthy_instance",
            Self::ConnectFailed => "connect_failed",
            Self::Overloaded => "overloaded",
            Self::Timeout => "timeout",
            Self::UpstreamFailed => "upstream_failed",
            Self::BadRequest => "bad_request",
        }
    }
}

/// Whose traffic a set of counters holds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Labels {
    /// `inbound` or `outbound`.
    pub(crate) direction: &'static str,
    pub(crate) service: Box<str>,
    pub(crate) cluster: Box<str>,
}

/// The counters of one direction and cluster.
#[derive(Debug)]
pub(crate) struct Traffic {
    pub(crate) labels: Labels,
    shards: Box<[Shard]>,
}

/// One worker's part. Aligned so that two workers never share a cache line (two lines: the prefetcher takes pairs).
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Shard {
    requests: [AtomicU64; CLASSES.len()],
    buckets: [AtomicU64; BUCKETS_US.len() + 1],
    duration_us: AtomicU64,
    refused: [AtomicU64; Refusal::ALL.len()],
    pub(crate) connections_total: AtomicU64,
    connections_active: AtomicI64,
    pub(crate) bytes_received: AtomicU64,
    pub(crate) bytes_sent: AtomicU64,
    pub(crate) connect_failures: AtomicU64,
    pub(crate) retries: AtomicU64,
}

impl Traffic {
    pub(crate) fn new(labels: Labels, workers: usize) -> Arc<Self> {
        Arc::new(Self {
            labels,
            shards: (0..workers.max(1)).map(|_| Shard::default()).collect(),
        })
    }

    /// The part of this worker.
    pub(crate) fn shard(&self, worker: usize) -> &Shard {
        &self.shards[worker]
    }

    fn sum(&self, cell: impl Fn(&Shard) -> u64) -> u64 {
        self.shards.iter().map(cell).sum()
    }
}

impl Shard {
    /// Counts a finished request; `status` is 0 when the client left before there was one.
    pub(crate) fn request(&self, status: u16, took: Duration) {
        let class = usize::from(status / 100);
        self.requests[if class < CLASSES.len() {
            class
        } else {
            CLASSES.len() - 1
        }]
        .fetch_add(1, Relaxed);
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.buckets[BUCKETS_US.partition_point(|&bound| bound < us)].fetch_add(1, Relaxed);
        self.duration_us.fetch_add(us, Relaxed);
    }

    pub(crate) fn refuse(&self, why: Refusal) {
        self.refused[why as usize].fetch_add(1, Relaxed);
    }

    pub(crate) fn connection_opened(&self) {
        self.connections_total.fetch_add(1, Relaxed);
        self.connections_active.fetch_add(1, Relaxed);
    }

    pub(crate) fn connection_closed(&self) {
        self.connections_active.fetch_sub(1, Relaxed);
    }
}

/// The state of the process itself, for the exposition.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Process {
    pub(crate) config_version: u64,
    pub(crate) config_rejected: usize,
    pub(crate) listeners_failed: usize,
    pub(crate) agent_connected: bool,
    pub(crate) draining: bool,
    pub(crate) workers: usize,
}

type Sink<'a> = &'a mut dyn FnMut(&str, u64);

/// One metric family over all sets of counters.
struct Family {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    /// Gives its samples to the second argument: labels beside the common ones, and the value.
    samples: fn(&Traffic, Sink<'_>),
}

const FAMILIES: [Family; 7] = [
    Family {
        name: "requests_total",
        kind: "counter",
        help: "Requests that ended, by class of their status.",
        samples: |traffic, sample| {
            for (i, class) in CLASSES.iter().enumerate() {
                sample(
                    &format!(",class=\"{class}\""),
                    traffic.sum(|s| s.requests[i].load(Relaxed)),
                );
            }
        },
    },
    Family {
        name: "refused_total",
        kind: "counter",
        help: "Requests and connections the proxy ended itself, by reason.",
        samples: |traffic, sample| {
            for why in Refusal::ALL {
                sample(
                    &format!(",reason=\"{}\"", why.label()),
                    traffic.sum(|s| s.refused[why as usize].load(Relaxed)),
                );
            }
        },
    },
    Family {
        name: "connections_total",
        kind: "counter",
        help: "Connections accepted.",
        samples: |traffic, sample| sample("", traffic.sum(|s| s.connections_total.load(Relaxed))),
    },
    Family {
        name: "connections_active",
        kind: "gauge",
        help: "Connections open now.",
        samples: |traffic, sample| {
            let open: i64 = traffic
                .shards
                .iter()
                .map(|s| s.connections_active.load(Relaxed))
                .sum();
            sample("", u64::try_from(open).unwrap_or(0));
        },
    },
    Family {
        name: "bytes_total",
        kind: "counter",
        help: "Bytes received from and sent to clients.",
        samples: |traffic, sample| {
            sample(
                ",flow=\"received\"",
                traffic.sum(|s| s.bytes_received.load(Relaxed)),
            );
            sample(
                ",flow=\"sent\"",
                traffic.sum(|s| s.bytes_sent.load(Relaxed)),
            );
        },
    },
    Family {
        name: "connect_failures_total",
        kind: "counter",
        help: "Connection attempts to an instance that failed.",
        samples: |traffic, sample| sample("", traffic.sum(|s| s.connect_failures.load(Relaxed))),
    },
    Family {
        name: "retries_total",
        kind: "counter",
        help: "Attempts after the first for one request or connection.",
        samples: |traffic, sample| sample("", traffic.sum(|s| s.retries.load(Relaxed))),
    },
];

/// The Prometheus text exposition, format 0.0.4.
pub(crate) fn render(sets: &[Arc<Traffic>], process: Process) -> String {
    let mut out = String::with_capacity(2048 + sets.len() * 4096);
    for direction in ["inbound", "outbound"] {
        let sets = || sets.iter().filter(|set| set.labels.direction == direction);
        if sets().next().is_none() {
            continue;
        }
        for family in &FAMILIES {
            let name = format!("wharf_proxy_{direction}_{}", family.name);
            let _ = writeln!(
                out,
                "# HELP {name} {}\n# TYPE {name} {}",
                family.help, family.kind
            );
            for set in sets() {
                let labels = label_pairs(&set.labels);
                (family.samples)(set, &mut |extra, value| {
                    let _ = writeln!(out, "{name}{{{labels}{extra}}} {value}");
                });
            }
        }
        let name = format!("wharf_proxy_{direction}_request_duration_seconds");
        let _ = writeln!(
            out,
            "# HELP {name} From the request's head to the end of its response.\n# TYPE {name} histogram"
        );
        for set in sets() {
            let labels = label_pairs(&set.labels);
            let mut seen = 0;
            for (i, bound) in BUCKETS_US.iter().enumerate() {
                seen += set.sum(|s| s.buckets[i].load(Relaxed));
                let _ = writeln!(
                    out,
                    "{name}_bucket{{{labels},le=\"{}\"}} {seen}",
                    *bound as f64 / 1e6
                );
            }
            seen += set.sum(|s| s.buckets[BUCKETS_US.len()].load(Relaxed));
            let seconds = set.sum(|s| s.duration_us.load(Relaxed)) as f64 / 1e6;
            let _ = writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {seen}");
            let _ = writeln!(
                out,
                "{name}_sum{{{labels}}} {seconds}\n{name}_count{{{labels}}} {seen}"
            );
        }
    }
    for (name, help, value) in [
        (
            "config_version",
            "Version of the configuration in use.",
            process.config_version,
        ),
        (
            "config_rejected",
            "Entries of the configuration that were refused.",
            process.config_rejected as u64,
        ),
        (
            "listeners_failed",
            "Listeners that cannot be bound now.",
            process.listeners_failed as u64,
        ),
        (
            "agent_connected",
            "1 while the configuration stream is open.",
            u64::from(process.agent_connected),
        ),
        (
            "draining",
            "1 while the proxy ends its work.",
            u64::from(process.draining),
        ),
        ("workers", "Data threads.", process.workers as u64),
    ] {
        let _ = writeln!(
            out,
            "# HELP wharf_proxy_{name} {help}\n# TYPE wharf_proxy_{name} gauge\nwharf_proxy_{name} {value}"
        );
    }
    out
}

fn label_pairs(labels: &Labels) -> String {
    format!(
        "service=\"{}\",cluster=\"{}\"",
        escape(&labels.service),
        escape(&labels.cluster)
    )
}

/// Label values may hold anything but need these three escaped.
fn escape(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn traffic() -> Arc<Traffic> {
        Traffic::new(
            Labels {
                direction: "outbound",
                service: "we\"b".into(),
                cluster: "web".into(),
            },
            2,
        )
    }

    #[test]
    fn buckets_are_cumulative_over_workers() {
        let set = traffic();
        set.shard(0).request(200, Duration::from_micros(500));
        set.shard(1).request(503, Duration::from_millis(3));
        set.shard(1).request(0, Duration::from_secs(120));
        let text = render(&[set], Process::default());
        let labels = r#"service="we\"b",cluster="web""#;
        for line in [
            format!(r#"wharf_proxy_outbound_requests_total{{{labels},class="2xx"}} 1"#),
            format!(r#"wharf_proxy_outbound_requests_total{{{labels},class="5xx"}} 1"#),
            format!(r#"wharf_proxy_outbound_requests_total{{{labels},class="canceled"}} 1"#),
            format!(
                r#"wharf_proxy_outbound_request_duration_seconds_bucket{{{labels},le="0.0005"}} 1"#
            ),
            format!(
                r#"wharf_proxy_outbound_request_duration_seconds_bucket{{{labels},le="0.005"}} 2"#
            ),
            format!(
                r#"wharf_proxy_outbound_request_duration_seconds_bucket{{{labels},le="60"}} 2"#
            ),
            format!(
                r#"wharf_proxy_outbound_request_duration_seconds_bucket{{{labels},le="+Inf"}} 3"#
            ),
            format!(r#"wharf_proxy_outbound_request_duration_seconds_count{{{labels}}} 3"#),
        ] {
            assert!(text.lines().any(|l| l == line), "missing {line} in\n{text}");
        }
    }

    #[test]
    fn a_strange_status_is_counted_somewhere() {
        let set = traffic();
        set.shard(0).request(999, Duration::ZERO);
        assert_eq!(set.sum(|s| s.requests[5].load(Relaxed)), 1);
    }
}
