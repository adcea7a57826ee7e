//! Who a container runs as: `user[:group]` against the root filesystem's own `/etc/passwd` and `/etc/group`.
//!
//! The C library is not asked: it would load modules out of a root filesystem that is not ours.

use std::{io, os::fd::AsFd, path::Path};

use super::in_root;

/// Largest `/etc/passwd` or `/etc/group` that is read.
const LIMIT: u64 = 1 << 20;

/// Most supplementary groups that are kept, as many as the kernel takes are far more.
const MAX_GROUPS: usize = 1024;

/// The numbers a process gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups, for a user that is named or known.
    pub groups: Vec<u32>,
    /// The home directory, `/` where none is known.
    pub home: String,
}

/// Why a user is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    #[error("{path} of the root filesystem cannot be read: {source}")]
    Read {
        path: &'static str,
        source: io::Error,
    },
    #[error("the root filesystem's /etc/passwd has no user {0:?}")]
    NoUser(String),
    #[error("the root filesystem's /etc/group has no group {0:?}")]
    NoGroup(String),
    #[error("{0:?} is no user: write a name or number, or `user:group`")]
    Malformed(String),
}

/// Resolves `wanted`, empty for root, within `root`.
///
/// A number needs no entry in `/etc/passwd`; its group is then 0, as elsewhere. A group that is given replaces the
/// supplementary groups too.
///
/// # Errors
/// A name that is not there, a file that cannot be trusted.
pub fn resolve(root: impl AsFd, wanted: &str) -> Result<Account, UserError> {
    let read = |path: &'static str| {
        in_root::read(root.as_fd(), Path::new(path), LIMIT)
            .map(|content| String::from_utf8_lossy(&content.unwrap_or_default()).into_owned())
            .map_err(|source| UserError::Read { path, source })
    };
    find(wanted, &read("/etc/passwd")?, &read("/etc/group")?)
}

/// [`resolve`] over the two files' text.
fn find(wanted: &str, passwd: &str, group: &str) -> Result<Account, UserError> {
    let wanted = if wanted.is_empty() { "0" } else { wanted };
    let (user, group_wanted) = match wanted.split_once(':') {
        Some((user, group)) if !user.is_empty() && !group.is_empty() && !group.contains(':') => {
            (user, Some(group))
        }
        Some(_) => return Err(UserError::Malformed(wanted.to_owned())),
        None => (wanted, None),
    };
    let number = number(user);
    let entry = passwd
        .lines()
        .filter_map(Passwd::parse)
        .find(|entry| entry.name == user || number.is_some_and(|number| entry.uid == number));
    let (uid, gid, home, name) = match (entry, number) {
        (Some(entry), _) => (entry.uid, entry.gid, entry.home, Some(entry.name)),
        (None, Some(uid)) => (uid, 0, "/", None),
        (None, None) => return Err(UserError::NoUser(user.to_owned())),
    };
    let groups = group.lines().filter_map(Group::parse);
    let (gid, groups) = match group_wanted {
        Some(wanted) => {
            let mut groups = groups;
            let gid = match (
                groups.find(|entry| entry.name == wanted),
                self::number(wanted),
            ) {
                (Some(entry), _) => entry.gid,
                (None, Some(gid)) => gid,
                (None, None) => return Err(UserError::NoGroup(wanted.to_owned())),
            };
            (gid, Vec::new())
        }
        None => {
            let member = |entry: &Group<'_>| {
                entry.gid != gid
                    && name.is_some_and(|name| entry.members.split(',').any(|m| m == name))
            };
            let groups = groups
                .filter(member)
                .map(|entry| entry.gid)
                .take(MAX_GROUPS)
                .collect();
            (gid, groups)
        }
    };
    let home = if home.starts_with('/') { home } else { "/" };
    Ok(Account {
        uid,
        gid,
        groups,
        home: home.to_owned(),
    })
}

/// A user or group number; -1 means "no change" to the kernel and is nobody's.
fn number(text: &str) -> Option<u32> {
    text.parse().ok().filter(|number| *number != u32::MAX)
}

/// `name:password:uid:gid:comment:home:shell`
struct Passwd<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

impl<'a> Passwd<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        Some(Self {
            name,
            uid: number(fields.nth(1)?)?,
            gid: number(fields.next()?)?,
            home: fields.nth(1).unwrap_or("/"),
        })
    }
}

/// `name:password:gid:member,member`
struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

impl<'a> Group<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        Some(Self {
            name,
            gid: number(fields.nth(1)?)?,
            members: fields.next().unwrap_or(""),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n# a comment\nbroken\n\
        web:x:1000:1001:Web:/srv/web:/bin/sh\nodd:x:7:8::relative:\n:x:5:5::/:\nbig:x:4294967295:1::/:\n";
    const GROUP: &str =
        "root:x:0:\nwebs:x:1001:\nlogs:x:50:root,web\nwheel:x:10:web\nother:x:11:webby\n";

    fn account(wanted: &str) -> Account {
        find(wanted, PASSWD, GROUP).unwrap()
    }

    #[test]
    fn names_numbers_and_groups() {
        assert_eq!(account(""), account("root"));
        let web = account("web");
        assert_eq!(
            (web.uid, web.gid, web.home.as_str()),
            (1000, 1001, "/srv/web")
        );
        assert_eq!(web.groups, [50, 10]);
        assert_eq!(account("1000"), web);
        let with_group = account("web:logs");
        assert_eq!((with_group.uid, with_group.gid), (1000, 50));
        assert!(with_group.groups.is_empty());
        assert_eq!(account("web:77").gid, 77);
    }

    #[test]
    fn a_number_needs_no_entry_and_a_name_does() {
        let nobody = account("65534");
        assert_eq!(
            (nobody.uid, nobody.gid, nobody.home.as_str()),
            (65534, 0, "/")
        );
        assert!(matches!(
            find("ghost", PASSWD, GROUP),
            Err(UserError::NoUser(name)) if name == "ghost"
        ));
        assert!(matches!(
            find("web:ghosts", PASSWD, GROUP),
            Err(UserError::NoGroup(_))
        ));
    }

    #[test]
    fn oddities_are_refused_or_harmless() {
        for wanted in [":", "a:", ":b", "a:b:c"] {
            assert!(matches!(
                find(wanted, PASSWD, GROUP),
                Err(UserError::Malformed(_))
            ));
        }
        // -1 would leave the process root.
        assert!(find("4294967295", PASSWD, GROUP).is_err());
        assert!(find("big", PASSWD, GROUP).is_err());
        assert_eq!(account("odd").home, "/");
    }

    proptest! {
        #[test]
        fn no_text_panics(wanted in ".*", passwd in "(?s).*", group in "(?s).*") {
            let _ = find(&wanted, &passwd, &group);
        }
    }
}
