//! What makes a job one that can run at all, whatever the cluster.

use std::{collections::BTreeSet, fmt};

use wharf_config::GoDuration;

use super::{
    Driver, Job, JobCheck, JobCheckType, JobService, NetworkMode, PortRef, Resources, Restart,
    Task, TaskGroup,
};

/// The most instances that one group may ask for.
pub const MAX_COUNT: u32 = 10_000;

/// The most groups of a job; tasks, services, ports and checks of what they belong to.
const MAX_PARTS: usize = 64;
/// The longest of the durations in a job: a day.
const MAX_DURATION: GoDuration = GoDuration::from_secs(24 * 60 * 60);
const MAX_INTERVAL: GoDuration = GoDuration::from_secs(7 * 24 * 60 * 60);
/// Less memory than this does not start a process.
const MIN_MEMORY_MB: u64 = 4;
/// 1,000 cores, and 16 TiB.
const MAX_CPU: u64 = 1_000_000;
const MAX_MEMORY_MB: u64 = 16 << 20;

/// Something in a job that cannot be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where: `Groups[0].Tasks[0].Image`.
    pub path: String,
    /// What, and what to do.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.message)
    }
}

/// The signals that a stop may begin with, by name, with Linux's numbers.
pub const KILL_SIGNALS: [(&str, i32); 13] = [
    ("SIGHUP", 1),
    ("SIGINT", 2),
    ("SIGQUIT", 3),
    ("SIGABRT", 6),
    ("SIGKILL", 9),
    ("SIGUSR1", 10),
    ("SIGUSR2", 12),
    ("SIGALRM", 14),
    ("SIGTERM", 15),
    ("SIGCONT", 18),
    ("SIGTSTP", 20),
    ("SIGWINCH", 28),
    ("SIGIO", 29),
];

/// The number of a signal in [`KILL_SIGNALS`]; `SIG` may be left out, and case does not count.
pub fn signal_number(name: &str) -> Option<i32> {
    let name = name.to_ascii_uppercase();
    let plain = name.strip_prefix("SIG").unwrap_or(&name);
    KILL_SIGNALS
        .iter()
        .find(|(known, _)| known[3..] == *plain)
        .map(|(_, number)| *number)
}

impl Job {
    /// Everything that is wrong with the job, in the order of its parts.
    pub fn validate(&self) -> Result<(), Vec<Problem>> {
        let mut problems = Problems::default();
        problems.name("Name", &self.name, "a job");
        if !self.id.is_empty() && self.id != self.name {
            let text = format!(
                "{:?} is not the name, {:?}: leave it out",
                self.id, self.name
            );
            problems.add("ID", text);
        }
        problems.parts(
            "Groups",
            self.groups.len(),
            "a job needs at least one group",
        );
        problems.unique("Groups", self.groups.iter().map(|group| &*group.name));
        for (index, group) in self.groups.iter().enumerate() {
            problems.group(&format!("Groups[{index}]"), group);
        }
        match problems.0 {
            none if none.is_empty() => Ok(()),
            some => Err(some),
        }
    }
}

#[derive(Default)]
struct Problems(Vec<Problem>);

impl Problems {
    fn add(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.0.push(Problem {
            path: path.into(),
            message: message.into(),
        });
    }

    /// Names end up in DNS, in host names and in paths.
    fn name(&mut self, path: &str, name: &str, what: &str) {
        if name.is_empty() {
            return self.add(path, format!("{what} needs a name"));
        }
        let letters = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let valid = name.len() <= 63
            && name.bytes().all(|b| letters(b) || b == b'-')
            && name.bytes().next().is_some_and(letters)
            && name.bytes().last().is_some_and(letters);
        if !valid {
            let text = format!(
                "{name:?} is not a name for DNS: use 1 to 63 lowercase letters, digits and inner dashes"
            );
            self.add(path, text);
        }
    }

    fn parts(&mut self, path: &str, count: usize, needed: &str) {
        if count == 0 && !needed.is_empty() {
            self.add(path, needed);
        }
        if count > MAX_PARTS {
            self.add(path, format!("{count} are too many: at most {MAX_PARTS}"));
        }
    }

    /// Says which name is there twice, at its second place.
    fn unique<'a>(&mut self, path: &str, names: impl Iterator<Item = &'a str>) {
        let mut seen = BTreeSet::new();
        for (index, name) in names.enumerate() {
            if !name.is_empty() && !seen.insert(name) {
                self.add(
                    format!("{path}[{index}]"),
                    format!("{name:?} is there twice"),
                );
            }
        }
    }

    fn duration(&mut self, path: String, value: GoDuration, min: GoDuration, max: GoDuration) {
        if value < min {
            self.add(path, format!("{value} is too short: at least {min}"));
        } else if value > max {
            self.add(path, format!("{value} is too long: at most {max}"));
        }
    }

    fn group(&mut self, path: &str, group: &TaskGroup) {
        self.name(&format!("{path}.Name"), &group.name, "a group");
        if group.count > MAX_COUNT {
            let text = format!("{} are too many: at most {MAX_COUNT}", group.count);
            self.add(format!("{path}.Count"), text);
        }
        self.network(path, group);
        self.restart(&format!("{path}.Restart"), &group.restart);
        self.duration(
            format!("{path}.ShutdownDelay"),
            group.shutdown_delay,
            GoDuration::ZERO,
            MAX_DURATION,
        );
        let services = format!("{path}.Services");
        self.parts(&services, group.services.len(), "");
        let mut seen = BTreeSet::new();
        for (index, service) in group.services.iter().enumerate() {
            let path = format!("{services}[{index}]");
            if !seen.insert((&service.name, service.port.label())) {
                let text = format!("{:?} is there twice with the same port", service.name);
                self.add(&path, text);
            }
            self.service(&path, service, group);
        }
        let tasks = format!("{path}.Tasks");
        self.parts(&tasks, group.tasks.len(), "a group needs at least one task");
        self.unique(&tasks, group.tasks.iter().map(|task| &*task.name));
        for (index, task) in group.tasks.iter().enumerate() {
            self.task(&format!("{tasks}[{index}]"), task);
        }
    }

    fn network(&mut self, group_path: &str, group: &TaskGroup) {
        let network = &group.network;
        let path = format!("{group_path}.Network.Ports");
        self.parts(&path, network.ports.len(), "");
        self.unique(&path, network.ports.iter().map(|port| &*port.label));
        let mut statics = BTreeSet::new();
        for (index, port) in network.ports.iter().enumerate() {
            let path = format!("{path}[{index}]");
            let valid = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
            if !port.label.starts_with(|c: char| c.is_ascii_alphabetic())
                || !port.label.bytes().all(valid)
                || port.label.len() > 63
            {
                let text = format!(
                    "{:?} is not a label: use a letter, then letters, digits and underscores (63 at most)",
                    port.label
                );
                self.add(format!("{path}.Label"), text);
            }
            if port.r#static != 0 && !statics.insert(port.r#static) {
                let text = format!("port {} is there twice", port.r#static);
                self.add(format!("{path}.Static"), text);
            }
            let mapped = port.to != 0 && port.to != port.r#static;
            if network.mode == NetworkMode::Host && mapped {
                let text = "ports are not mapped in host mode: leave it out, and listen on the port that \
                            WHARF_PORT_<label> names";
                self.add(format!("{path}.To"), text);
            }
        }
    }

    fn restart(&mut self, path: &str, restart: &Restart) {
        let second = GoDuration::from_secs(1);
        if restart.attempts > 0 {
            self.duration(
                format!("{path}.Interval"),
                restart.interval,
                second,
                MAX_INTERVAL,
            );
        }
        for (key, value) in [("Delay", restart.delay), ("MaxDelay", restart.max_delay)] {
            self.duration(
                format!("{path}.{key}"),
                value,
                GoDuration::ZERO,
                MAX_DURATION,
            );
        }
    }

    fn port(&mut self, path: String, port: &PortRef, group: &TaskGroup) {
        if let PortRef::Label(label) = port
            && group.port(label).is_none()
        {
            let known: Vec<&str> = group
                .network
                .ports
                .iter()
                .map(|port| &*port.label)
                .collect();
            let hint = match known[..] {
                [] => "the group's network has no ports".to_owned(),
                _ => format!("the group's network has {}", known.join(", ")),
            };
            self.add(path, format!("there is no port {label:?}: {hint}"));
        }
    }

    fn service(&mut self, path: &str, service: &JobService, group: &TaskGroup) {
        self.name(&format!("{path}.Name"), &service.name, "a service");
        self.port(format!("{path}.Port"), &service.port, group);
        self.parts(&format!("{path}.Checks"), service.checks.len(), "");
        for (index, check) in service.checks.iter().enumerate() {
            self.check(&format!("{path}.Checks[{index}]"), check, service, group);
        }
        let Some(sidecar) = service.sidecar() else {
            return;
        };
        if service.port.is_none() {
            let text = "a service with a sidecar needs the port that its task listens on";
            self.add(format!("{path}.Port"), text);
        }
        let sidecar_path = format!("{path}.Connect.SidecarService");
        self.port(format!("{sidecar_path}.Port"), &sidecar.port, group);
        let upstreams = format!("{sidecar_path}.Proxy.Upstreams");
        self.parts(&upstreams, sidecar.proxy.upstreams.len(), "");
        let mut binds = BTreeSet::new();
        for (index, upstream) in sidecar.proxy.upstreams.iter().enumerate() {
            let path = format!("{upstreams}[{index}]");
            if upstream.destination_name.is_empty() {
                let text = "an upstream needs the name of a service";
                self.add(format!("{path}.DestinationName"), text);
            }
            if !matches!(&*upstream.destination_type, "" | "service") {
                let text = format!(
                    "{:?} is not built yet: only \"service\" is",
                    upstream.destination_type
                );
                self.add(format!("{path}.DestinationType"), text);
            }
            let port = upstream.local_bind_port;
            if port == 0 {
                let text = "an upstream needs the local port on which the task reaches it";
                self.add(format!("{path}.LocalBindPort"), text);
            } else if !binds.insert((&upstream.local_bind_address, port)) {
                let text = format!("port {port} is there twice");
                self.add(format!("{path}.LocalBindPort"), text);
            }
        }
    }

    fn check(&mut self, path: &str, check: &JobCheck, service: &JobService, group: &TaskGroup) {
        self.port(format!("{path}.Port"), &check.port, group);
        if check.port.is_none() && service.port.is_none() {
            let text = "neither the check nor its service has a port";
            self.add(format!("{path}.Port"), text);
        }
        let second = GoDuration::from_secs(1);
        self.duration(
            format!("{path}.Interval"),
            check.interval,
            second,
            MAX_DURATION,
        );
        let least = GoDuration::from_millis(1);
        self.duration(
            format!("{path}.Timeout"),
            check.timeout,
            least,
            MAX_DURATION,
        );
        match check.kind {
            JobCheckType::Http if !check.path.starts_with('/') => {
                let text = format!(
                    "{:?} is not a path: an http check needs one that starts with \"/\"",
                    check.path
                );
                self.add(format!("{path}.Path"), text);
            }
            JobCheckType::Http => {}
            other => {
                for (key, set) in [
                    ("Path", !check.path.is_empty()),
                    ("Method", !check.method.is_empty()),
                    ("Header", !check.header.is_empty()),
                    ("Body", !check.body.is_empty()),
                ] {
                    if set {
                        let text = format!("a {other} check has none: only http checks do");
                        self.add(format!("{path}.{key}"), text);
                    }
                }
            }
        }
        if check
            .failures_before_warning
            .is_some_and(|warning| warning > check.failures_before_critical)
        {
            let text = "it cannot be higher than FailuresBeforeCritical";
            self.add(format!("{path}.FailuresBeforeWarning"), text);
        }
    }

    fn task(&mut self, path: &str, task: &Task) {
        self.name(&format!("{path}.Name"), &task.name, "a task");
        match task.driver {
            Driver::Container => {
                if task.image.is_empty() {
                    let text = "a container needs an image: a reference such as \"web:1\", or a path such \
                                as \"oci-archive:web.tar\"";
                    self.add(format!("{path}.Image"), text);
                }
            }
            Driver::Exec => {
                if task.command.is_empty() {
                    self.add(format!("{path}.Command"), "an exec task needs a command");
                }
                if !task.image.is_empty() {
                    let text = "an exec task runs on the node's own root: use driver = \"container\" \
                                for an image";
                    self.add(format!("{path}.Image"), text);
                }
            }
        }
        let digest = &*task.image_digest;
        let is_digest = digest.strip_prefix("sha256:").is_some_and(|hex| {
            hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        });
        if !digest.is_empty() && !is_digest {
            let text = format!("{digest:?} is not a digest: sha256: and 64 hexadecimal digits");
            self.add(format!("{path}.ImageDigest"), text);
        }
        self.resources(&format!("{path}.Resources"), &task.resources);
        if !task.kill_signal.is_empty() && signal_number(&task.kill_signal).is_none() {
            let known: Vec<&str> = KILL_SIGNALS.iter().map(|(name, _)| *name).collect();
            let text = format!(
                "there is no signal {:?}: use one of {}",
                task.kill_signal,
                known.join(", ")
            );
            self.add(format!("{path}.KillSignal"), text);
        }
        self.duration(
            format!("{path}.KillTimeout"),
            task.kill_timeout,
            GoDuration::ZERO,
            MAX_DURATION,
        );
        if !task.work_dir.is_empty() && !task.work_dir.starts_with('/') {
            let text = format!("{:?} is not an absolute path", task.work_dir);
            self.add(format!("{path}.WorkDir"), text);
        }
        for (key, value) in &task.env {
            if key.is_empty() || key.contains(['=', '\0']) || value.contains('\0') {
                let text = format!("{key:?} is not a name for the environment");
                self.add(format!("{path}.Env"), text);
            }
        }
        for (index, arg) in task.args.iter().enumerate() {
            if arg.contains('\0') {
                let text = "an argument cannot hold a zero byte";
                self.add(format!("{path}.Args[{index}]"), text);
            }
        }
        if task.command.contains('\0') {
            let text = "a command cannot hold a zero byte";
            self.add(format!("{path}.Command"), text);
        }
        let logs = task.logs;
        if !(1..=1000).contains(&logs.max_files) {
            let text = format!("{} is not from 1 to 1000", logs.max_files);
            self.add(format!("{path}.Logs.MaxFiles"), text);
        }
        if !(1..=10_240).contains(&logs.max_file_size_mb) {
            let text = format!("{} is not from 1 to 10240", logs.max_file_size_mb);
            self.add(format!("{path}.Logs.MaxFileSizeMB"), text);
        }
    }

    fn resources(&mut self, path: &str, resources: &Resources) {
        let Resources {
            cpu,
            memory_mb,
            memory_max_mb,
        } = *resources;
        if !(1..=MAX_CPU).contains(&cpu) {
            let text = format!("{cpu} is not from 1 to {MAX_CPU} thousandths of a core");
            self.add(format!("{path}.CPU"), text);
        }
        if !(MIN_MEMORY_MB..=MAX_MEMORY_MB).contains(&memory_mb) {
            let text = format!("{memory_mb} is not from {MIN_MEMORY_MB} to {MAX_MEMORY_MB} MiB");
            self.add(format!("{path}.MemoryMB"), text);
        }
        if memory_max_mb != 0 && !(memory_mb..=MAX_MEMORY_MB).contains(&memory_max_mb) {
            let text = format!(
                "{memory_max_mb} is not from MemoryMB ({memory_mb}) to {MAX_MEMORY_MB}: 0 means the same"
            );
            self.add(format!("{path}.MemoryMaxMB"), text);
        }
    }
}
