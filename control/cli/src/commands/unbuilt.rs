//! Consul's commands that wharf does not have yet. Naming one gets that answer, not "unknown command".

/// Whether Consul has a command at `path` (its beginning is enough) that is not built here.
pub(crate) fn is_unbuilt(path: &[&str]) -> bool {
    match path {
        [command] => TOP.contains(command),
        [group, command, ..] => TOP.contains(group) || BELOW.contains(&(group, command)),
        [] => false,
    }
}

const TOP: [&str; 17] = [
    "acl",
    "debug",
    "event",
    "exec",
    "intention",
    "keyring",
    "license",
    "lock",
    "login",
    "logout",
    "namespace",
    "partition",
    "peering",
    "resource",
    "rtt",
    "tls",
    "troubleshoot",
];

const BELOW: [(&str, &str); 10] = [
    ("connect", "ca"),
    ("connect", "envoy"),
    ("connect", "expose"),
    ("connect", "redirect-traffic"),
    ("operator", "area"),
    ("operator", "usage"),
    ("operator", "utilization"),
    ("services", "export"),
    ("services", "exported-services"),
    ("services", "imported-services"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::tree;

    #[test]
    fn what_is_built_is_not_listed() {
        let root = tree();
        for name in TOP {
            assert!(root.find_subcommand(name).is_none(), "{name}");
        }
        for (group, name) in BELOW {
            let group = root.find_subcommand(group).expect("a group that is built");
            assert!(group.find_subcommand(name).is_none(), "{name}");
        }
    }

    #[test]
    fn below_an_unbuilt_group_everything_is_unbuilt() {
        assert!(is_unbuilt(&["acl"]) && is_unbuilt(&["acl", "token", "list"]));
        assert!(is_unbuilt(&["connect", "ca"]) && is_unbuilt(&["connect", "ca", "get-config"]));
        assert!(!is_unbuilt(&["connect"]) && !is_unbuilt(&["nonsense"]) && !is_unbuilt(&[]));
    }
}
