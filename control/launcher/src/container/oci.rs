//! A [`Spec`] as an OCI runtime configuration: what all containers have in common is decided here.

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
};

use oci_spec::{
    OciSpecError,
    runtime::{
        self as oci, Capability, LinuxBuilder, LinuxCapabilitiesBuilder, LinuxNamespaceBuilder,
        LinuxNamespaceType, MountBuilder, PosixRlimitBuilder, PosixRlimitType, ProcessBuilder,
        RootBuilder, SpecBuilder, UserBuilder,
    },
};

use super::{Account, Bind, Spec, cgroup::Hierarchy};

/// What is left of root's powers: enough for a program that starts as root and lowers itself, nothing that reaches
/// beyond the container. Not there: MKNOD, NET_RAW, AUDIT_WRITE, SYS_CHROOT, SETFCAP, and everything with ADMIN.
pub(crate) const CAPABILITIES: [Capability; 9] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setpcap,
    Capability::NetBindService,
];

/// Views of the kernel that tell about, or reach into, the whole machine.
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Settings of the whole machine: to be read only.
const READ_ONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// Open files: what programs get, and how far they may raise it.
pub(super) const NOFILE: (u64, u64) = (65_536, 1_048_576);

/// Where a command without `/` is looked for, if the environment does not say.
pub(crate) const DEFAULT_PATH: &str =
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The configuration for `spec` run as `account`, its root filesystem mounted at `root`. `binds` are those of the
/// description, at the places where they can be put; `open_files` is how many the process may have.
pub(crate) fn configuration(
    spec: &Spec,
    account: &Account,
    root: &Path,
    binds: &[Bind],
    hierarchy: &Hierarchy,
    open_files: u64,
) -> Result<oci::Spec, OciSpecError> {
    SpecBuilder::default()
        .version("1.0.2")
        .hostname(&spec.hostname)
        .root(
            RootBuilder::default()
                .path(root)
                .readonly(spec.read_only)
                .build()?,
        )
        .process(process(spec, account, open_files)?)
        .mounts(mounts(spec, binds, hierarchy)?)
        .linux(linux(spec)?)
        .build()
}

fn process(spec: &Spec, account: &Account, open_files: u64) -> Result<oci::Process, OciSpecError> {
    let mut env = spec.env.clone();
    env.entry("PATH".into())
        .or_insert_with(|| DEFAULT_PATH.into());
    // Without it libcontainer would look it up through modules of the root filesystem.
    env.entry("HOME".into())
        .or_insert_with(|| account.home.clone());
    let capabilities: HashSet<Capability> = CAPABILITIES.into_iter().collect();
    let user = UserBuilder::default()
        .uid(account.uid)
        .gid(account.gid)
        .umask(0o022u32)
        .additional_gids(account.groups.clone())
        .build()?;
    let limit = |typ, soft: u64, hard: u64| {
        PosixRlimitBuilder::default()
            .typ(typ)
            .soft(soft)
            .hard(hard)
            .build()
    };
    ProcessBuilder::default()
        .terminal(false)
        .user(user)
        .args(spec.argv.clone())
        .env(
            env.iter()
                .map(|(name, value)| format!("{name}={value}"))
                .collect::<Vec<_>>(),
        )
        .cwd(spec.cwd.clone())
        .no_new_privileges(true)
        .oom_score_adj(0)
        .rlimits(vec![
            limit(
                PosixRlimitType::RlimitNofile,
                NOFILE.0.min(open_files),
                open_files,
            )?,
            limit(PosixRlimitType::RlimitCore, 0, 0)?,
        ])
        .capabilities(
            LinuxCapabilitiesBuilder::default()
                .bounding(capabilities.clone())
                .permitted(capabilities.clone())
                .effective(capabilities)
                // Inheritable capabilities would survive a change of user.
                .inheritable(HashSet::new())
                .ambient(HashSet::new())
                .build()?,
        )
        .build()
}

fn mounts(
    spec: &Spec,
    binds: &[Bind],
    hierarchy: &Hierarchy,
) -> Result<Vec<oci::Mount>, OciSpecError> {
    let mount = |target: &str, kind: &str, options: &[&str]| {
        MountBuilder::default()
            .destination(target)
            .typ(kind)
            .source(kind)
            .options(options.iter().map(|o| (*o).to_owned()).collect::<Vec<_>>())
            .build()
    };
    let shm = format!("size={}", spec.limits.memory_max.min(64 << 20));
    let mut mounts = vec![
        mount("/proc", "proc", &["nosuid", "noexec", "nodev"])?,
        mount(
            "/dev",
            "tmpfs",
            &["nosuid", "noexec", "strictatime", "mode=755", "size=64k"],
        )?,
        mount(
            "/dev/pts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
            ],
        )?,
        mount(
            "/dev/shm",
            "tmpfs",
            &["nosuid", "noexec", "nodev", "mode=1777", &shm],
        )?,
        mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"])?,
        mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"])?,
        mount("/tmp", "tmpfs", &["nosuid", "nodev", "mode=1777"])?,
        mount("/run", "tmpfs", &["nosuid", "nodev", "mode=755"])?,
    ];
    if matches!(hierarchy, Hierarchy::V1 { .. }) {
        let options = ["nosuid", "noexec", "nodev", "mode=755", "size=16k"];
        mounts.push(mount("/sys/fs/cgroup", "tmpfs", &options)?);
    }
    for (source, target) in hierarchy.views(&spec.cgroup) {
        mounts.push(bind(
            source,
            target,
            &["bind", "ro", "nosuid", "noexec", "nodev"],
        )?);
    }
    for wanted in binds {
        let options: &[&str] = if wanted.read_only {
            &["rbind", "rro", "nosuid", "nodev"]
        } else {
            &["rbind", "nosuid", "nodev"]
        };
        mounts.push(bind(wanted.source.clone(), wanted.target.clone(), options)?);
    }
    Ok(mounts)
}

fn bind(source: PathBuf, target: PathBuf, options: &[&str]) -> Result<oci::Mount, OciSpecError> {
    MountBuilder::default()
        .destination(target)
        .typ("bind")
        .source(source)
        .options(options.iter().map(|o| (*o).to_owned()).collect::<Vec<_>>())
        .build()
}

fn linux(spec: &Spec) -> Result<oci::Linux, OciSpecError> {
    let fresh = |typ| LinuxNamespaceBuilder::default().typ(typ).build();
    let mut namespaces = vec![
        fresh(LinuxNamespaceType::Pid)?,
        fresh(LinuxNamespaceType::Mount)?,
        fresh(LinuxNamespaceType::Uts)?,
        fresh(LinuxNamespaceType::Ipc)?,
        fresh(LinuxNamespaceType::Cgroup)?,
    ];
    let mut sysctl = HashMap::new();
    if let Some(netns) = &spec.netns {
        namespaces.push(
            LinuxNamespaceBuilder::default()
                .typ(LinuxNamespaceType::Network)
                .path(netns)
                .build()?,
        );
        // In a network of one's own no port is anybody else's.
        sysctl.insert(
            "net.ipv4.ip_unprivileged_port_start".to_owned(),
            "0".to_owned(),
        );
    }
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let masked = MASKED
        .into_iter()
        .map(str::to_owned)
        .chain(spec.masked.iter().map(|path| text(path)))
        .collect::<Vec<_>>();
    let mut read_only: Vec<String> = READ_ONLY.map(str::to_owned).into();
    read_only.push("/sys/fs/cgroup".into());
    LinuxBuilder::default()
        .namespaces(namespaces)
        .cgroups_path(Path::new("/").join(&spec.cgroup))
        .rootfs_propagation("private")
        .masked_paths(masked)
        .readonly_paths(read_only)
        .sysctl(sysctl)
        .devices(Vec::new())
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::spec::tests::sample;

    fn made(change: impl FnOnce(&mut Spec)) -> serde_json::Value {
        let mut spec = sample();
        change(&mut spec);
        let account = Account {
            uid: 7,
            gid: 8,
            groups: vec![9],
            home: "/srv".into(),
        };
        let hierarchy = Hierarchy::V2 {
            root: "/sys/fs/cgroup".into(),
        };
        let binds = spec.binds.clone();
        let made = configuration(
            &spec,
            &account,
            Path::new("/root/fs"),
            &binds,
            &hierarchy,
            1000,
        );
        serde_json::to_value(made.unwrap()).unwrap()
    }

    #[test]
    fn the_process_has_little_power_and_the_account_that_was_found() {
        let made = made(|_| {});
        let process = &made["process"];
        assert_eq!(process["noNewPrivileges"], true);
        assert_eq!(process["user"]["uid"], 7);
        assert_eq!(process["user"]["additionalGids"], serde_json::json!([9]));
        for set in ["bounding", "permitted", "effective"] {
            let names = process["capabilities"][set].as_array().unwrap();
            assert_eq!(names.len(), CAPABILITIES.len(), "{set}");
            assert!(!names.iter().any(|name| {
                let name = name.as_str().unwrap();
                name.contains("ADMIN") || name == "CAP_NET_RAW" || name == "CAP_MKNOD"
            }));
        }
        for set in ["inheritable", "ambient"] {
            assert_eq!(process["capabilities"][set], serde_json::json!([]));
        }
        let env = process["env"].as_array().unwrap();
        assert!(env.contains(&"HOME=/srv".into()));
        assert!(
            env.iter()
                .any(|entry| entry.as_str().unwrap().starts_with("PATH="))
        );
    }

    #[test]
    fn what_the_task_says_of_its_environment_counts() {
        let made = made(|spec| {
            spec.env.insert("PATH".into(), "/only".into());
            spec.env.insert("HOME".into(), "/h".into());
        });
        let env = made["process"]["env"].as_array().unwrap().clone();
        assert!(env.contains(&"PATH=/only".into()));
        assert!(env.contains(&"HOME=/h".into()));
        assert_eq!(env.len(), 3);
    }

    #[test]
    fn the_network_is_joined_or_is_the_hosts() {
        let joined = made(|spec| spec.netns = Some("/run/ns".into()));
        let namespaces = joined["linux"]["namespaces"].as_array().unwrap().clone();
        assert!(namespaces.contains(&serde_json::json!({"type": "network", "path": "/run/ns"})));
        let host = made(|_| {});
        let namespaces = host["linux"]["namespaces"].as_array().unwrap();
        assert!(!namespaces.iter().any(|one| one["type"] == "network"));
        // Nothing of the host's network is changed.
        assert_eq!(host["linux"]["sysctl"], serde_json::json!({}));
    }

    #[test]
    fn binds_come_last_and_are_what_they_say() {
        let made = made(|spec| {
            spec.binds = vec![Bind {
                source: "/a".into(),
                target: "/etc/hosts".into(),
                read_only: true,
            }];
        });
        let last = made["mounts"].as_array().unwrap().last().unwrap().clone();
        assert_eq!(last["destination"], "/etc/hosts");
        assert!(last["options"].as_array().unwrap().contains(&"rro".into()));
    }

    #[test]
    fn it_can_be_read_back() {
        let made = made(|_| {});
        let spec: oci::Spec = serde_json::from_value(made).unwrap();
        assert_eq!(
            spec.linux().as_ref().unwrap().cgroups_path(),
            &Some("/wharf/a/web".into())
        );
    }
}
