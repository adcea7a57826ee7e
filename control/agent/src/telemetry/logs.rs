//! The log: lines on standard output or in a file, and to whoever listens with `monitor`.
//!
//! One layer takes every event, renders it once per form and hands it to the sinks that want its
//! level. Our own crates log at the level that is set; libraries only warn, unless the level is
//! trace: a DNS library that logs each query would be slower than the query.

use std::{
    fmt::{self, Write as _},
    io::{self, Write as _},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
};

use bytes::Bytes;
use serde_json::{Map, Value};
use tokio::sync::mpsc;
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    level_filters::LevelFilter,
};
use tracing_subscriber::{
    Layer,
    fmt::{
        format::Writer,
        time::{FormatTime as _, SystemTime},
    },
    layer::{Context, Filter, SubscriberExt as _},
    util::SubscriberInitExt as _,
};

/// How many lines a listener may lag behind before it loses some.
const BACKLOG: usize = 512;

/// The form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// `2026-11-26T10:00:00.000000Z [INFO]  agent::http: text key=value`
    Text,
    /// One JSON object per line, with Consul's `@level`, `@message`, `@module` and `@timestamp`.
    Json,
}

/// Where the log of the process goes.
pub enum LogOutput {
    Stdout,
    Stderr,
    File(std::fs::File),
}

impl fmt::Debug for LogOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LogOutput::Stdout => "Stdout",
            LogOutput::Stderr => "Stderr",
            LogOutput::File(_) => "File",
        })
    }
}

/// A level that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Invalid log level: {0:?}. Valid log levels are: trace, debug, info, warn, error")]
pub struct UnknownLevel(pub String);

/// Reads a level as Consul names them, without case.
pub fn parse_level(text: &str) -> Result<LevelFilter, UnknownLevel> {
    match text.to_ascii_lowercase().as_str() {
        "trace" => Ok(LevelFilter::TRACE),
        "debug" => Ok(LevelFilter::DEBUG),
        "info" => Ok(LevelFilter::INFO),
        "warn" | "warning" => Ok(LevelFilter::WARN),
        "err" | "error" => Ok(LevelFilter::ERROR),
        _ => Err(UnknownLevel(text.to_owned())),
    }
}

/// The handle on the log of the process.
#[derive(Clone, Debug)]
pub struct Logs(Arc<Hub>);

#[derive(Debug)]
struct Hub {
    format: LogFormat,
    output: Mutex<LogOutput>,
    /// The level of the output.
    level: AtomicU8,
    /// The most verbose level that anybody wants.
    wanted: AtomicU8,
    listeners: Mutex<Vec<Listener>>,
}

#[derive(Debug)]
struct Listener {
    level: LevelFilter,
    format: LogFormat,
    lines: mpsc::Sender<Bytes>,
}

fn to_number(level: LevelFilter) -> u8 {
    match level {
        LevelFilter::OFF => 0,
        LevelFilter::ERROR => 1,
        LevelFilter::WARN => 2,
        LevelFilter::INFO => 3,
        LevelFilter::DEBUG => 4,
        _ => 5,
    }
}

fn to_filter(number: u8) -> LevelFilter {
    match number {
        0 => LevelFilter::OFF,
        1 => LevelFilter::ERROR,
        2 => LevelFilter::WARN,
        3 => LevelFilter::INFO,
        4 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    }
}

impl Logs {
    fn new(level: LevelFilter, format: LogFormat, output: LogOutput) -> Logs {
        Logs(Arc::new(Hub {
            format,
            output: Mutex::new(output),
            level: AtomicU8::new(to_number(level)),
            wanted: AtomicU8::new(to_number(level)),
            listeners: Mutex::default(),
        }))
    }

    /// Starts the log of the process. A second call gives a handle whose log goes nowhere.
    pub fn install(level: LevelFilter, format: LogFormat, output: LogOutput) -> Logs {
        let logs = Logs::new(level, format, output);
        // Only a test that runs several agents in one process comes here twice.
        let _ = tracing_subscriber::registry().with(logs.layer()).try_init();
        logs
    }

    /// A log that nothing writes to.
    #[cfg(test)]
    pub(crate) fn detached() -> Logs {
        Logs::new(LevelFilter::OFF, LogFormat::Text, LogOutput::Stderr)
    }

    fn layer<S: Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>>(
        &self,
    ) -> impl Layer<S> {
        HubLayer(self.0.clone()).with_filter(HubFilter(self.0.clone()))
    }

    /// Changes the level of the output.
    pub fn set_level(&self, level: LevelFilter) {
        self.0.level.store(to_number(level), Ordering::Relaxed);
        self.0.settle();
    }

    /// Listens to the log at a level of one's own. Lines are lost when the receiver lags.
    pub fn listen(&self, level: LevelFilter, format: LogFormat) -> mpsc::Receiver<Bytes> {
        let (lines, receiver) = mpsc::channel(BACKLOG);
        self.0.listeners().push(Listener {
            level,
            format,
            lines,
        });
        self.0.settle();
        receiver
    }
}

impl Hub {
    fn listeners(&self) -> std::sync::MutexGuard<'_, Vec<Listener>> {
        self.listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets who no longer listens, and has the callsites look again at what is wanted.
    fn settle(&self) {
        let mut listeners = self.listeners();
        listeners.retain(|listener| !listener.lines.is_closed());
        let heard = listeners
            .iter()
            .map(|listener| to_number(listener.level))
            .max()
            .unwrap_or(0);
        drop(listeners);
        let wanted = heard.max(self.level.load(Ordering::Relaxed));
        if self.wanted.swap(wanted, Ordering::Relaxed) != wanted {
            tracing::callsite::rebuild_interest_cache();
        }
    }

    fn wanted(&self) -> LevelFilter {
        to_filter(self.wanted.load(Ordering::Relaxed))
    }

    fn emit(&self, event: &Event<'_>) {
        let level = *event.metadata().level();
        let line = Line::new(event);
        let (mut text, mut json) = (None, None);
        let mut render = |format| -> Bytes {
            match format {
                LogFormat::Text => text.get_or_insert_with(|| line.text()),
                LogFormat::Json => json.get_or_insert_with(|| line.json()),
            }
            .clone()
        };
        if admits(
            to_filter(self.level.load(Ordering::Relaxed)),
            event.metadata(),
        ) {
            let rendered = render(self.format);
            let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
            // A log that cannot be written has nowhere to say so.
            let _ = match &mut *output {
                LogOutput::Stdout => io::stdout().write_all(&rendered),
                LogOutput::Stderr => io::stderr().write_all(&rendered),
                LogOutput::File(file) => file.write_all(&rendered),
            };
        }
        let mut gone = false;
        for listener in self.listeners().iter() {
            if listener.level >= level {
                gone |= listener.lines.is_closed();
                let _ = listener.lines.try_send(render(listener.format));
            }
        }
        if gone {
            self.settle();
        }
    }
}

/// Whether a level lets an event pass: ours at the level, a library's as a warning, and the consensus
/// library's as an error: it warns of every heartbeat that a dead server does not answer.
fn admits(level: LevelFilter, metadata: &Metadata<'_>) -> bool {
    let ours = metadata.target().starts_with("wharf");
    let level = if ours || level == LevelFilter::TRACE {
        level
    } else if metadata.target().starts_with("openraft") {
        level.min(LevelFilter::ERROR)
    } else {
        level.min(LevelFilter::WARN)
    };
    *metadata.level() <= level
}

struct HubFilter(Arc<Hub>);

impl<S> Filter<S> for HubFilter {
    fn enabled(&self, metadata: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        metadata.is_event() && admits(self.0.wanted(), metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.0.wanted())
    }
}

struct HubLayer(Arc<Hub>);

impl<S: Subscriber> Layer<S> for HubLayer {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        self.0.emit(event);
    }
}

/// One event, taken apart.
struct Line {
    time: String,
    level: Level,
    module: String,
    message: String,
    fields: Vec<(&'static str, Value)>,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            let _ = write!(self.message, "{value:?}");
        } else {
            self.fields
                .push((field.name(), Value::String(format!("{value:?}"))));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.message.push_str(value);
        } else {
            self.fields
                .push((field.name(), Value::String(value.to_owned())));
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.fields.push((field.name(), value.into()));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.fields.push((field.name(), value.into()));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.fields.push((field.name(), value.into()));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.fields.push((field.name(), value.into()));
    }
}

impl Line {
    fn new(event: &Event<'_>) -> Line {
        let metadata = event.metadata();
        let module = metadata.target();
        let module = module.strip_prefix("wharf_").unwrap_or(module);
        let mut time = String::new();
        if SystemTime.format_time(&mut Writer::new(&mut time)).is_err() {
            time.clear();
        }
        let mut line = Line {
            time,
            level: *metadata.level(),
            module: module.to_owned(),
            message: String::new(),
            fields: Vec::new(),
        };
        event.record(&mut line);
        line
    }

    fn text(&self) -> Bytes {
        let level = format!("[{}]", self.level);
        let mut text = format!("{} {level:<7} {}: ", self.time, self.module);
        // A line is a line, whatever was put into it.
        push_escaped(&mut text, &self.message);
        for (name, value) in &self.fields {
            let _ = write!(text, " {name}=");
            match value {
                Value::String(value) if value.contains([' ', '"', '=']) || value.is_empty() => {
                    let _ = write!(text, "{value:?}");
                }
                Value::String(value) => push_escaped(&mut text, value),
                other => {
                    let _ = write!(text, "{other}");
                }
            }
        }
        text.push('\n');
        text.into()
    }

    fn json(&self) -> Bytes {
        let mut object = Map::new();
        object.insert(
            "@level".into(),
            self.level.as_str().to_ascii_lowercase().into(),
        );
        object.insert("@message".into(), self.message.clone().into());
        object.insert("@module".into(), self.module.clone().into());
        object.insert("@timestamp".into(), self.time.clone().into());
        for (name, value) in &self.fields {
            object.insert((*name).into(), value.clone());
        }
        let mut text = Value::Object(object).to_string();
        text.push('\n');
        text.into()
    }
}

fn push_escaped(text: &mut String, part: &str) {
    for character in part.chars() {
        if character.is_control() {
            text.extend(character.escape_default());
        } else {
            text.push(character);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn every_listener_hears_its_level_in_its_form() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let output = LogOutput::File(file.reopen().unwrap());
        let logs = Logs::new(LevelFilter::INFO, LogFormat::Text, output);
        let subscriber = tracing_subscriber::registry().with(logs.layer());
        tracing::subscriber::with_default(subscriber, || {
            let mut listener = logs.listen(LevelFilter::DEBUG, LogFormat::Json);
            tracing::info!(target: "wharf_agent", key = "a b", n = 3, "hello\nworld");
            tracing::debug!(target: "wharf_agent", "detail");
            tracing::info!(target: "hickory_server", "chatter");
            tracing::warn!(target: "hickory_server", "trouble");

            let mut heard = Vec::new();
            while let Ok(line) = listener.try_recv() {
                let value: Value = serde_json::from_slice(&line).unwrap();
                heard.push(value["@message"].as_str().unwrap().to_owned());
            }
            assert_eq!(heard, ["hello\nworld", "detail", "trouble"]);

            drop(listener);
            logs.set_level(LevelFilter::ERROR);
            tracing::warn!(target: "wharf_agent", "unheard");
        });
        let mut text = String::new();
        file.reopen().unwrap().read_to_string(&mut text).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(
            lines[0].ends_with("[INFO]  agent: hello\\nworld key=\"a b\" n=3"),
            "{text}"
        );
        assert!(
            lines[1].ends_with("[WARN]  hickory_server: trouble"),
            "{text}"
        );
    }

    #[test]
    fn levels_have_consuls_names() {
        assert_eq!(parse_level("WARN"), Ok(LevelFilter::WARN));
        assert_eq!(parse_level("err"), Ok(LevelFilter::ERROR));
        assert!(
            parse_level("loud")
                .unwrap_err()
                .to_string()
                .contains("Valid log levels")
        );
    }
}
