//! The configuration of an agent: Consul's files and flags.
//!
//! Defaults, then development defaults, then files in order, then flags, then `-hcl` pieces: a later value wins,
//! lists append, maps merge key by key. Flags that are lists come before those of files. Each document is checked for
//! keys and types on its own; then they are merged as trees that know where each value was written, so that any
//! mistake, in a type or in its meaning, is told with file and line. The rules are those of Consul's `agent` documentation.

mod address;
mod debug;
mod file;
mod flags;
mod known;
mod listen;
mod normalise;
mod problems;
mod reload;
mod resolve;
mod runtime;
mod secret;
mod watch;

pub use address::{AddressError, Interfaces, Listen};
pub use flags::{AgentFlags, FlagEffect, FlagError, FlagKind, FlagSpec, agent_flags};
pub use known::IgnoredKey;
pub use runtime::{
    DnsConfig, HttpConfig, Limits, Listeners, LogConfig, LogLevel, Network, PlatformConfig,
    RaftConfig, Reloadable, RuntimeConfig, SoaConfig, TelemetryConfig, TelemetryFilter, TlsConfig,
    TlsFiles, TlsVersion, Tokens, UiConfig, UnixSocket,
};
pub use secret::Secret;
pub use watch::{HttpHandler, WatchDefinition, WatchError};

use std::fmt;
use std::path::{Path, PathBuf};

use file::FileConfig;
use wharf_config::{Format, Mode, Node, decode_all, parse_file_as, parse_hcl, same_key};

/// What `-dev` sets before files and flags are read.
const DEV: &str = r#"
bind_addr                = "127.0.0.1"
enable_debug             = true
log_level                = "DEBUG"
performance              { raft_multiplier = 1 }
ports                    { grpc = 8502 }
server                   = true
ui_config                { enabled = true }
"#;

/// A complete configuration, and what its owner should know about it.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub config: RuntimeConfig,
    /// Sentences for the log.
    pub warnings: Vec<String>,
    /// Keys that were accepted and have no effect, each once.
    pub ignored_keys: Vec<IgnoredKey>,
}

/// Everything that is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// One mistake each, with file and line where there is one.
    pub problems: Vec<String>,
}

/// What the machine says that configuration may leave out.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    pub hostname: Option<String>,
    pub interfaces: Interfaces,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problems.join("\n"))
    }
}

impl std::error::Error for ConfigError {}

impl Environment {
    /// Asks this machine.
    pub fn detect() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).ok();
        let hostname = read("/proc/sys/kernel/hostname").or_else(|| read("/etc/hostname"));
        let hostname = hostname
            .map(|name| name.trim().to_owned())
            .filter(|name| !name.is_empty());
        Self {
            hostname,
            interfaces: Interfaces::detect(),
        }
    }
}

/// Reads the configuration that the flags of an agent ask for.
pub fn load(flags: &AgentFlags) -> Result<Loaded, ConfigError> {
    load_in(flags, &Environment::detect())
}

/// [`load`] on a machine like this.
pub fn load_in(flags: &AgentFlags, environment: &Environment) -> Result<Loaded, ConfigError> {
    let mut reader = Reader::default();
    if flags.dev {
        match parse_hcl("", DEV) {
            Ok(dev) => reader.merged.merge(dev),
            Err(error) => reader.problems.push(error.to_string()),
        }
    }
    reader.add(flags.lists.clone());
    for path in &flags.sources {
        reader.add_path(path, flags.format);
    }
    reader.add(flags.values.clone());
    for (index, text) in flags.hcl.iter().enumerate() {
        match parse_hcl(&format!("flag -hcl ({})", index + 1), text) {
            Ok(document) => reader.add(document),
            Err(error) => reader.problems.push(error.to_string()),
        }
    }
    let Reader {
        merged,
        mut warnings,
        ignored_keys,
        mut problems,
        mistyped,
    } = reader;
    warnings.extend(flags.ignored.iter().filter_map(|spec| match spec.effect {
        FlagEffect::Ignored(why) => Some(format!("flag -{} has no effect: {why}", spec.name)),
        _ => None,
    }));
    if !mistyped.is_empty() {
        problems.extend(mistyped);
        return Err(ConfigError { problems });
    }
    let file: FileConfig = match decode_all(&merged, Mode::Strict) {
        Ok(file) => file,
        Err(errors) => {
            problems.extend(errors.iter().map(ToString::to_string));
            return Err(ConfigError { problems });
        }
    };
    let resolved = resolve::resolve(file, merged, flags.dev, environment, &mut warnings);
    match resolved {
        Ok(config) if problems.is_empty() => Ok(Loaded {
            config,
            warnings,
            ignored_keys,
        }),
        Ok(_) => Err(ConfigError { problems }),
        Err(more) => {
            problems.extend(more);
            Err(ConfigError { problems })
        }
    }
}

/// Gathers documents.
#[derive(Debug)]
struct Reader {
    merged: Node,
    warnings: Vec<String>,
    ignored_keys: Vec<IgnoredKey>,
    problems: Vec<String>,
    /// Problems of keys and types. With any of them there is no configuration whose meaning could be checked.
    mistyped: Vec<String>,
}

impl Default for Reader {
    fn default() -> Self {
        Self {
            merged: Node::empty(),
            warnings: Vec::new(),
            ignored_keys: Vec::new(),
            problems: Vec::new(),
            mistyped: Vec::new(),
        }
    }
}

impl Reader {
    fn add(&mut self, mut document: Node) {
        if document.as_map().is_none() {
            self.problems.push(format!(
                "{}: expected an object with configuration keys",
                document.position
            ));
            return;
        }
        self.warnings.extend(normalise::normalise(&mut document));
        for ignored in known::take_ignored(&mut document) {
            if !self
                .ignored_keys
                .iter()
                .any(|earlier| same_key(&earlier.key, &ignored.key))
            {
                self.ignored_keys.push(ignored);
            }
        }
        // On its own: what a later document overrides must be right too, or it waits to be found out.
        if let Err(errors) = decode_all::<FileConfig>(&document, Mode::Strict) {
            self.mistyped.extend(errors.iter().map(ToString::to_string));
        }
        self.merged.merge(document);
    }

    /// A file, or the files of a folder.
    fn add_path(&mut self, path: &Path, format: Option<Format>) {
        if !path.is_dir() {
            self.add_file(path, format);
            return;
        }
        match files_of(path, format) {
            Ok(files) => files.iter().for_each(|file| self.add_file(file, format)),
            Err(error) => self.problems.push(format!(
                "{}: cannot read the folder: {error}",
                path.display()
            )),
        }
    }

    fn add_file(&mut self, path: &Path, format: Option<Format>) {
        let format = format.map_or_else(|| Format::of_file(path), Ok);
        match format.and_then(|format| parse_file_as(path, format)) {
            Ok(document) => self.add(document),
            Err(error) => self.problems.push(error.to_string()),
        }
    }
}

/// The configuration files of a folder in alphabetical order; folders in it are not entered.
fn files_of(folder: &Path, format: Option<Format>) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if !path.is_dir() && (format.is_some() || Format::of_path(&path).is_some()) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests;
