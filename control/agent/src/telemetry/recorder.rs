//! The figures of this process, in fixed memory.
//!
//! A recorder for the [`metrics`] facade. Histograms are counted into buckets as they are recorded:
//! the usual exporter keeps every sample until somebody scrapes, and grows without bound when nobody
//! does. Read as Prometheus text or as the JSON of `/v1/agent/metrics`.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use metrics::{
    Counter, Gauge, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder as Facade,
    SharedString, Unit,
};
use metrics_util::registry::{Registry, Storage};
use serde_json::{Value, json};

/// Upper bounds in seconds: from a cached answer to a parked one.
const BOUNDS: [f64; 15] = [
    0.000_1, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// A histogram with fixed bounds.
#[derive(Debug, Default)]
struct Buckets {
    /// One per bound, and one for what is above the last.
    counts: [AtomicU64; BOUNDS.len() + 1],
    /// Bits of an `f64`.
    sum: AtomicU64,
    min: AtomicF64,
    max: AtomicF64,
}

/// Bits of an `f64`, or nothing yet.
#[derive(Debug)]
struct AtomicF64(AtomicU64);

const UNSET: u64 = f64::NAN.to_bits();

impl Default for AtomicF64 {
    fn default() -> Self {
        AtomicF64(AtomicU64::new(UNSET))
    }
}

impl AtomicF64 {
    fn get(&self) -> f64 {
        let value = f64::from_bits(self.0.load(Ordering::Relaxed));
        if value.is_nan() { 0.0 } else { value }
    }

    /// Replaces the value where `better` says so of (new, old).
    fn replace_if(&self, new: f64, better: impl Fn(f64, f64) -> bool) {
        let mut current = self.0.load(Ordering::Relaxed);
        while current == UNSET || better(new, f64::from_bits(current)) {
            match self.0.compare_exchange_weak(
                current,
                new.to_bits(),
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => return,
                Err(actual) => current = actual,
            }
        }
    }
}

impl HistogramFn for Buckets {
    fn record(&self, value: f64) {
        if value.is_nan() {
            return;
        }
        let bucket = BOUNDS.partition_point(|bound| *bound < value);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.min.replace_if(value, |new, old| new < old);
        self.max.replace_if(value, |new, old| new > old);
        let mut current = self.sum.load(Ordering::Relaxed);
        loop {
            let sum = (f64::from_bits(current) + value).to_bits();
            match self
                .sum
                .compare_exchange_weak(current, sum, Ordering::Relaxed, Ordering::Relaxed)
            {
                Ok(_) => return,
                Err(actual) => current = actual,
            }
        }
    }
}

impl Buckets {
    fn count(&self) -> u64 {
        self.counts
            .iter()
            .map(|count| count.load(Ordering::Relaxed))
            .sum()
    }

    fn sum(&self) -> f64 {
        f64::from_bits(self.sum.load(Ordering::Relaxed))
    }
}

#[derive(Debug)]
struct FixedStorage;

impl Storage<Key> for FixedStorage {
    type Counter = Arc<AtomicU64>;
    type Gauge = Arc<AtomicU64>;
    type Histogram = Arc<Buckets>;

    fn counter(&self, _: &Key) -> Self::Counter {
        Arc::default()
    }

    fn gauge(&self, _: &Key) -> Self::Gauge {
        Arc::default()
    }

    fn histogram(&self, _: &Key) -> Self::Histogram {
        Arc::default()
    }
}

/// All figures of the process. Cheap to clone.
#[derive(Clone)]
pub struct Recorder {
    registry: Arc<Registry<Key, FixedStorage>>,
}

impl std::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recorder").finish_non_exhaustive()
    }
}

impl Default for Recorder {
    fn default() -> Self {
        Recorder {
            registry: Arc::new(Registry::new(FixedStorage)),
        }
    }
}

impl Facade for Recorder {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        self.registry
            .get_or_create_counter(key, |counter| Counter::from_arc(counter.clone()))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        self.registry
            .get_or_create_gauge(key, |gauge| Gauge::from_arc(gauge.clone()))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        self.registry
            .get_or_create_histogram(key, |buckets| Histogram::from_arc(buckets.clone()))
    }
}

impl Recorder {
    /// Makes this the recorder of the process, or gives back the one that already is.
    pub fn install() -> Recorder {
        static INSTALLED: std::sync::OnceLock<Recorder> = std::sync::OnceLock::new();
        let recorder = INSTALLED.get_or_init(|| {
            let recorder = Recorder::default();
            if metrics::set_global_recorder(recorder.clone()).is_err() {
                tracing::warn!("another metrics recorder is installed: /v1/agent/metrics is empty");
            }
            recorder
        });
        recorder.clone()
    }

    /// The Prometheus text format, version 0.0.4.
    pub fn prometheus(&self) -> String {
        let mut text = String::new();
        for (name, series) in by_name(self.registry.get_counter_handles()) {
            let _ = writeln!(text, "# TYPE {name} counter");
            for (key, value) in series {
                let value = value.load(Ordering::Relaxed);
                let _ = writeln!(text, "{name}{} {value}", labels(&key, None));
            }
        }
        for (name, series) in by_name(self.registry.get_gauge_handles()) {
            let _ = writeln!(text, "# TYPE {name} gauge");
            for (key, value) in series {
                let value = f64::from_bits(value.load(Ordering::Relaxed));
                let _ = writeln!(text, "{name}{} {value}", labels(&key, None));
            }
        }
        for (name, series) in by_name(self.registry.get_histogram_handles()) {
            let _ = writeln!(text, "# TYPE {name} histogram");
            for (key, buckets) in series {
                let mut total = 0;
                for (at, count) in buckets.counts.iter().enumerate() {
                    total += count.load(Ordering::Relaxed);
                    let bound = match BOUNDS.get(at) {
                        Some(bound) => bound.to_string(),
                        None => "+Inf".to_owned(),
                    };
                    let _ = writeln!(text, "{name}_bucket{} {total}", labels(&key, Some(&bound)));
                }
                let _ = writeln!(text, "{name}_sum{} {}", labels(&key, None), buckets.sum());
                let _ = writeln!(text, "{name}_count{} {total}", labels(&key, None));
            }
        }
        text
    }

    /// The JSON of `/v1/agent/metrics`. Counts and sums are those since the process started.
    pub fn json(&self, timestamp: &str) -> Value {
        let gauges = by_name(self.registry.get_gauge_handles());
        let gauges: Vec<Value> = rows(&gauges)
            .map(|(name, key, value)| {
                let value = f64::from_bits(value.load(Ordering::Relaxed));
                json!({"Name": name, "Value": value, "Labels": label_map(key)})
            })
            .collect();
        let counters = by_name(self.registry.get_counter_handles());
        let counters: Vec<Value> = rows(&counters)
            .map(|(name, key, value)| {
                let value = value.load(Ordering::Relaxed);
                json!({"Name": name, "Count": value, "Sum": value, "Labels": label_map(key)})
            })
            .collect();
        let samples = by_name(self.registry.get_histogram_handles());
        let samples: Vec<Value> = rows(&samples)
            .map(|(name, key, buckets)| {
                let (count, sum) = (buckets.count(), buckets.sum());
                let mean = if count == 0 { 0.0 } else { sum / count as f64 };
                json!({
                    "Name": name, "Count": count, "Sum": sum, "Min": buckets.min.get(),
                    "Max": buckets.max.get(), "Mean": mean, "Labels": label_map(key),
                })
            })
            .collect();
        json!({
            "Timestamp": timestamp,
            "Gauges": gauges,
            "Points": [],
            "Counters": counters,
            "Samples": samples,
        })
    }
}

type Families<T> = BTreeMap<String, Vec<(Key, T)>>;

/// Series by metric name, in one order.
fn by_name<T>(handles: impl IntoIterator<Item = (Key, T)>) -> Families<T> {
    let mut families: Families<T> = BTreeMap::new();
    for (key, value) in handles {
        families
            .entry(key.name().to_owned())
            .or_default()
            .push((key, value));
    }
    for series in families.values_mut() {
        series.sort_by(|(a, _), (b, _)| a.cmp(b));
    }
    families
}

fn rows<T>(families: &Families<T>) -> impl Iterator<Item = (&str, &Key, &T)> {
    families
        .iter()
        .flat_map(|(name, series)| series.iter().map(move |(key, value)| (&**name, key, value)))
}

fn label_map(key: &Key) -> BTreeMap<&str, &str> {
    key.labels()
        .map(|label| (label.key(), label.value()))
        .collect()
}

/// `{name="value",...}`, with backslash, quote and newline escaped; empty without labels.
fn labels(key: &Key, bound: Option<&str>) -> String {
    let own = key.labels().map(|label| (label.key(), label.value()));
    let mut text = String::new();
    for (name, value) in own.chain(bound.map(|bound| ("le", bound))) {
        let value = value
            .replace('\\', "\\\\")
            .replace('"', "\\\"")
            .replace('\n', "\\n");
        let _ = write!(
            text,
            "{}{name}=\"{value}\"",
            if text.is_empty() { "{" } else { "," }
        );
    }
    if !text.is_empty() {
        text.push('}');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_show_what_was_recorded() {
        let recorder = Recorder::default();
        metrics::with_local_recorder(&recorder, || {
            metrics::counter!("hits_total", "path" => "/a\"b").increment(3);
            metrics::gauge!("load").set(1.5);
            let seconds = metrics::histogram!("took_seconds");
            for value in [0.0001, 0.003, 20.0, f64::NAN] {
                seconds.record(value);
            }
        });
        let text = recorder.prometheus();
        assert!(text.contains("# TYPE hits_total counter\nhits_total{path=\"/a\\\"b\"} 3\n"));
        assert!(text.contains("load 1.5\n"));
        assert!(text.contains("took_seconds_bucket{le=\"0.0001\"} 1\n"));
        assert!(text.contains("took_seconds_bucket{le=\"0.005\"} 2\n"));
        assert!(text.contains("took_seconds_bucket{le=\"+Inf\"} 3\n"));
        assert!(text.contains("took_seconds_count 3\n"));
        let json = recorder.json("now");
        assert_eq!(json["Samples"][0]["Max"], 20.0);
        assert_eq!(json["Samples"][0]["Min"], 0.0001);
        assert_eq!(json["Counters"][0]["Count"], 3);
        assert_eq!(json["Gauges"][0]["Value"], 1.5);
    }
}
