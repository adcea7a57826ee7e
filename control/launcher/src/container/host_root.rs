//! The host's own root as a container's: which of its mounts belong to it, and what in it is not for containers.

use std::path::{Path, PathBuf};

/// Top directories that hold programs and what they need. A mount anywhere else is data, a device or a view of the
/// kernel, and stays outside.
const PROGRAMS: [&str; 12] = [
    "usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "opt", "etc", "nix", "gnu", "srv",
];

/// Filesystems that are no files on a disk.
const VIRTUAL: [&str; 24] = [
    "proc",
    "sysfs",
    "devtmpfs",
    "devpts",
    "tmpfs",
    "ramfs",
    "cgroup",
    "cgroup2",
    "debugfs",
    "tracefs",
    "securityfs",
    "bpf",
    "pstore",
    "mqueue",
    "hugetlbfs",
    "fusectl",
    "configfs",
    "autofs",
    "binfmt_misc",
    "rpc_pipefs",
    "nsfs",
    "efivarfs",
    "selinuxfs",
    "nfsd",
];

/// What a program of the host has no business to read, whoever it runs as: homes, password hashes, keys.
pub(crate) const SECRETS: [&str; 11] = [
    "/root",
    "/home",
    "/boot",
    "/etc/shadow",
    "/etc/shadow-",
    "/etc/gshadow",
    "/etc/gshadow-",
    "/etc/sudoers",
    "/etc/ssl/private",
    "/var/lib/wharf",
    "/var/spool",
];

/// Mount points, parents first, that are part of the root for a program, from the text of `/proc/self/mountinfo`.
pub(crate) fn program_mounts(mountinfo: &str) -> Vec<PathBuf> {
    let mut mounts: Vec<PathBuf> = mountinfo
        .lines()
        .filter_map(mount)
        .filter(|(point, kind)| !VIRTUAL.contains(&kind.as_str()) && holds_programs(point))
        .map(|(point, _)| point)
        .collect();
    mounts.sort();
    mounts.dedup();
    mounts
}

fn holds_programs(point: &Path) -> bool {
    let mut components = point.components().skip(1);
    components.next().is_some_and(|top| {
        PROGRAMS
            .iter()
            .any(|program| top.as_os_str() == std::ffi::OsStr::new(program))
    })
}

/// Mount point and filesystem of one line of mountinfo (proc_pid_mountinfo(5)):
/// `36 35 98:0 /root /point rw,noatime shared:1 - ext4 /dev/sda rw`.
pub(crate) fn mount(line: &str) -> Option<(PathBuf, String)> {
    let (before, after) = line.split_once(" - ")?;
    let point = unescape(before.split(' ').nth(4)?);
    Some((point, after.split(' ').next()?.to_owned()))
}

/// Undoes `\040` and the like.
fn unescape(text: &str) -> PathBuf {
    use std::{ffi::OsString, os::unix::ffi::OsStringExt};
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let octal = bytes
            .get(at + 1..at + 4)
            .filter(|_| bytes[at] == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        plain.push(octal.unwrap_or(bytes[at]));
        at += if octal.is_some() { 4 } else { 1 };
    }
    PathBuf::from(OsString::from_vec(plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_followed_and_data_is_not() {
        let mountinfo = "\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
23 22 0:20 / /proc rw - proc proc rw
24 22 8:2 / /usr ro,relatime shared:2 - ext4 /dev/sda2 ro
25 24 8:3 / /usr/local rw - xfs /dev/sda3 rw
26 22 8:4 / /home rw - ext4 /dev/sda4 rw
27 22 0:30 / /etc/secret rw - tmpfs tmpfs rw
28 22 8:5 / /opt/with\\040space rw - btrfs /dev/sda5 rw
29 22 8:6 / /data rw - ext4 /dev/sda6 rw
30 22 0:31 / /usrlocal rw - ext4 /dev/sda7 rw
nonsense
";
        assert_eq!(
            program_mounts(mountinfo),
            [
                PathBuf::from("/opt/with space"),
                "/usr".into(),
                "/usr/local".into()
            ]
        );
    }

    #[test]
    fn escapes_that_are_none_stay() {
        assert_eq!(unescape("/a\\"), PathBuf::from("/a\\"));
        assert_eq!(unescape("/a\\04"), PathBuf::from("/a\\04"));
        assert_eq!(unescape("/a\\134b"), PathBuf::from("/a\\b"));
    }
}
