use super::*;

const LIMITS: Limits = Limits {
    cpu_millis: 500,
    cpu_max_millis: Some(1500),
    memory: 64 << 20,
    memory_max: 128 << 20,
    pids: 77,
};

const HYBRID: &str = "\
30 29 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
33 30 0:29 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
34 30 0:30 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer
35 30 0:31 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
36 30 0:32 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate
";

fn nothing(_: &Path) -> String {
    "hugetlb".to_owned()
}

#[test]
fn hybrid_is_version_1_and_follows_the_rest() {
    let hierarchy = Hierarchy::of(HYBRID, &nothing).unwrap();
    let Hierarchy::V1 {
        controllers,
        tracking,
    } = &hierarchy
    else {
        panic!("{hierarchy:?}");
    };
    let names: Vec<&str> = controllers.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["cpu", "cpuacct", "memory", "pids", "freezer"]);
    assert_eq!(tracking.len(), 2);
    assert_eq!(hierarchy.version(), "hybrid");
}

#[test]
fn version_2_needs_its_controllers() {
    let unified = "36 30 0:32 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
    let offered = |_: &Path| "cpuset cpu io memory hugetlb pids\n".to_owned();
    let hierarchy = Hierarchy::of(unified, &offered).unwrap();
    assert_eq!(
        hierarchy,
        Hierarchy::V2 {
            root: "/sys/fs/cgroup".into()
        }
    );
    assert_eq!(hierarchy.version(), "v2");
    assert!(matches!(
        Hierarchy::of(unified, &nothing),
        Err(CgroupError::Unavailable { missing: "cpu" })
    ));
    assert!(matches!(
        Hierarchy::of("", &nothing),
        Err(CgroupError::Unavailable { .. })
    ));
}

fn fake_v2() -> (tempfile::TempDir, Hierarchy) {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().to_owned();
    (directory, Hierarchy::V2 { root })
}

#[test]
fn version_2_switches_controllers_on_from_the_top_and_not_in_the_leaf() {
    let (directory, hierarchy) = fake_v2();
    let group = hierarchy.group(Path::new("wharf/a/web"));
    group.create(Some(&LIMITS)).unwrap();
    let read = |path: &str| fs::read_to_string(directory.path().join(path)).ok();
    for parent in ["", "wharf/", "wharf/a/"] {
        assert_eq!(
            read(&format!("{parent}cgroup.subtree_control")).as_deref(),
            Some("+cpu +memory +pids"),
            "{parent:?}"
        );
    }
    // A leaf with controllers for its children could hold no process.
    assert_eq!(read("wharf/a/web/cgroup.subtree_control"), None);
    let expected = [
        ("memory.max", "134217728"),
        ("memory.swap.max", "0"),
        ("memory.low", "67108864"),
        ("pids.max", "77"),
        ("cpu.weight", "20"),
        ("cpu.max", "150000 100000"),
    ];
    for (file, text) in expected {
        assert_eq!(
            read(&format!("wharf/a/web/{file}")).as_deref(),
            Some(text),
            "{file}"
        );
    }
    group.enter(4242).unwrap();
    assert_eq!(read("wharf/a/web/cgroup.procs").as_deref(), Some("4242"));
    assert_eq!(group.processes(), [4242]);
    assert_eq!(hierarchy.allocations(), ["a"]);
}

#[test]
fn version_2_counts_kills_for_memory() {
    let (directory, hierarchy) = fake_v2();
    let group = hierarchy.group(Path::new("wharf/a/web"));
    group.create(None).unwrap();
    assert_eq!(group.oom_kills(), 0);
    let events = "low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n";
    fs::write(directory.path().join("wharf/a/web/memory.events"), events).unwrap();
    assert_eq!(group.oom_kills(), 2);
    assert!(matches!(group.watch_oom(), Ok(OomWatch::Events(_))));
}

#[test]
fn removal_takes_empty_parents_along_and_no_others() {
    let (directory, hierarchy) = fake_v2();
    let root = directory.path();
    let one = hierarchy.group(Path::new("wharf/a/one"));
    // Without files, as in the kernel, where they go with the directory.
    for group in ["wharf/a/one/below", "wharf/a/two", "others"] {
        fs::create_dir_all(root.join(group)).unwrap();
    }
    one.remove().unwrap();
    assert!(!root.join("wharf/a/one").exists());
    assert!(root.join("wharf/a/two").exists());
    hierarchy.group(Path::new("wharf/a/two")).remove().unwrap();
    assert!(!root.join("wharf").exists());
    assert!(root.join("others").exists());
    // Again, on nothing.
    one.remove().unwrap();
}

#[test]
fn version_1_settings() {
    let text = |controller: &str| {
        v1::settings(controller, &LIMITS)
            .into_iter()
            .map(|(file, text)| format!("{file}={text}"))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        text("cpu"),
        [
            "cpu.shares=512",
            "cpu.cfs_period_us=100000",
            "cpu.cfs_quota_us=150000"
        ]
    );
    assert_eq!(
        text("memory"),
        [
            "memory.limit_in_bytes=134217728",
            "memory.memsw.limit_in_bytes=134217728",
            "memory.soft_limit_in_bytes=67108864"
        ]
    );
    assert_eq!(text("pids"), ["pids.max=77"]);
    assert_eq!(text("devices")[0], "devices.deny=a");
    assert!(text("freezer").is_empty());
    assert_eq!(
        v1::oom_kills("oom_kill_disable 0\nunder_oom 0\noom_kill 4\n"),
        4
    );
}

#[test]
fn a_kernel_without_swap_accounting_is_no_error() {
    let group = tempfile::tempdir().unwrap();
    v1::set(group.path(), "memory.memsw.limit_in_bytes", "1").unwrap();
    assert_eq!(
        fs::read_to_string(group.path().join("memory.swappiness")).unwrap(),
        "0"
    );
}
