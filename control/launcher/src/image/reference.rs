//! What a job or a command calls an image.
//!
//! `HOST[:PORT]/NAME[:TAG][@DIGEST]` is in a registry, `NAME[:TAG]` without a host is only in the store of
//! the node (built or imported there), and `oci:DIR[:TAG]`, `oci-archive:FILE[:TAG]` and
//! `docker-archive:FILE[:TAG]` are on disk. There is no registry that a name without a host means: whose it
//! would be is the reader's guess.

use std::{fmt, path::PathBuf, str::FromStr};

use super::Digest;

/// The tag of a name without tag and digest.
pub const DEFAULT_TAG: &str = "latest";

/// Where an image is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reference {
    /// In a registry, or in the node's store.
    Named(ImageName),
    /// In a directory with an OCI image layout.
    OciLayout(OnDisk),
    /// In a tar file of such a directory.
    OciArchive(OnDisk),
    /// In a tar file as `docker save` writes it.
    DockerArchive(OnDisk),
}

/// An image in files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OnDisk {
    pub path: PathBuf,
    /// Which of several.
    pub tag: Option<String>,
}

/// The name of an image, or of a repository with a tag or digest in it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageName {
    /// `host` or `host:port` of the registry.
    pub host: Option<String>,
    pub repository: String,
    pub tag: Option<String>,
    pub digest: Option<Digest>,
}

/// A text that is no reference, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("image {text:?}: {problem}")]
pub struct ReferenceError {
    pub text: String,
    pub problem: String,
}

/// The longest repository that registries take (OCI distribution specification).
const MAX_REPOSITORY: usize = 255;

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Reference, ReferenceError> {
        Reference::parse(text)
    }
}

impl Reference {
    /// Reads a reference in any of its forms.
    pub fn parse(text: &str) -> Result<Reference, ReferenceError> {
        let problem = |problem: String| ReferenceError {
            text: text.chars().take(300).collect(),
            problem,
        };
        if text.is_empty() {
            return Err(problem("a name is missing".into()));
        }
        if text.chars().any(|c| c.is_control()) {
            return Err(problem("it has characters that do not print".into()));
        }
        let on_disk = |rest| on_disk(rest).map_err(problem);
        match text.split_once(':') {
            Some(("oci", rest)) => on_disk(rest).map(Reference::OciLayout),
            Some(("oci-archive", rest)) => on_disk(rest).map(Reference::OciArchive),
            Some(("docker-archive", rest)) => on_disk(rest).map(Reference::DockerArchive),
            Some((scheme, rest)) if rest.starts_with("//") => {
                Err(problem(format!("write the name without {scheme}://")))
            }
            _ => named(text).map(Reference::Named).map_err(problem),
        }
    }
}

impl ImageName {
    /// Reads `[HOST/]NAME[:TAG][@DIGEST]`, and nothing else.
    pub fn parse(text: &str) -> Result<ImageName, ReferenceError> {
        match Reference::parse(text)? {
            Reference::Named(name) => Ok(name),
            _ => Err(ReferenceError {
                text: text.to_owned(),
                problem: "a name is expected here, not a path".into(),
            }),
        }
    }

    /// The same name with its default tag, if it has neither tag nor digest.
    pub fn with_default_tag(mut self) -> ImageName {
        if self.tag.is_none() && self.digest.is_none() {
            self.tag = Some(DEFAULT_TAG.to_owned());
        }
        self
    }

    /// The same repository, at this digest.
    pub fn at(&self, digest: Digest) -> ImageName {
        ImageName {
            digest: Some(digest),
            ..self.clone()
        }
    }

    /// What the registry is asked for.
    pub fn wanted(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => DEFAULT_TAG.to_owned(),
        }
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(host) = &self.host {
            write!(f, "{host}/")?;
        }
        f.write_str(&self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, on_disk) = match self {
            Reference::Named(name) => return name.fmt(f),
            Reference::OciLayout(on_disk) => ("oci", on_disk),
            Reference::OciArchive(on_disk) => ("oci-archive", on_disk),
            Reference::DockerArchive(on_disk) => ("docker-archive", on_disk),
        };
        write!(f, "{scheme}:{}", on_disk.path.display())?;
        match &on_disk.tag {
            Some(tag) => write!(f, ":{tag}"),
            None => Ok(()),
        }
    }
}

fn on_disk(rest: &str) -> Result<OnDisk, String> {
    // A tag has no slash, so a colon before the last slash belongs to the path. What follows the colon of
    // a docker archive may be a whole name.
    let (path, tag) = match rest.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
        _ => (rest, None),
    };
    if path.is_empty() {
        return Err("a path is missing".into());
    }
    if let Some(tag) = tag {
        check_tag(tag)?;
    }
    Ok(OnDisk {
        path: path.into(),
        tag: tag.map(str::to_owned),
    })
}

fn named(text: &str) -> Result<ImageName, String> {
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (
            rest,
            Some(digest.parse::<Digest>().map_err(|e| e.to_string())?),
        ),
        None => (text, None),
    };
    let (host, rest) = match rest.split_once('/') {
        Some((first, rest)) if is_host(first) => {
            check_host(first)?;
            (Some(first.to_owned()), rest)
        }
        _ => (None, rest),
    };
    let (repository, tag) = match rest.rsplit_once(':') {
        Some((repository, tag)) => (repository, Some(tag)),
        None => (rest, None),
    };
    if let Some(tag) = tag {
        check_tag(tag)?;
    }
    check_repository(repository)?;
    Ok(ImageName {
        host,
        repository: repository.to_owned(),
        tag: tag.map(str::to_owned),
        digest,
    })
}

/// The first part of a name is a host if it cannot be anything else, as with Docker.
fn is_host(part: &str) -> bool {
    part == "localhost" || part.contains(['.', ':'])
}

fn check_host(host: &str) -> Result<(), String> {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => {
            let (inner, rest) = rest
                .split_once(']')
                .ok_or_else(|| format!("{host:?} is not a host: a bracket is missing"))?;
            inner
                .parse::<std::net::Ipv6Addr>()
                .map_err(|_| format!("{inner:?} is not an IPv6 address"))?;
            (
                None,
                rest.strip_prefix(':').or((!rest.is_empty()).then_some("")),
            )
        }
        None => match host.split_once(':') {
            Some((name, port)) => (Some(name), Some(port)),
            None => (Some(host), None),
        },
    };
    let good = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    if let Some(name) = name
        && !name.split('.').all(good)
    {
        return Err(format!("{name:?} is not a host"));
    }
    if let Some(port) = port
        && !port.parse::<u16>().is_ok_and(|port| port != 0)
    {
        return Err(format!("{port:?} is not a port"));
    }
    Ok(())
}

fn check_repository(repository: &str) -> Result<(), String> {
    if repository.is_empty() {
        return Err("the name is empty".into());
    }
    if repository.len() > MAX_REPOSITORY {
        return Err(format!(
            "the name is longer than {MAX_REPOSITORY} characters"
        ));
    }
    if repository.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(format!(
            "{repository:?} has upper case letters: try {:?}",
            repository.to_ascii_lowercase()
        ));
    }
    // Letters and digits, with single separators between them: '.', '_', '__' or any number of '-'.
    let good = |part: &str| {
        let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let bytes = part.as_bytes();
        bytes.first().is_some_and(|b| alphanumeric(*b))
            && bytes.last().is_some_and(|b| alphanumeric(*b))
            && bytes
                .iter()
                .all(|b| alphanumeric(*b) || matches!(b, b'.' | b'_' | b'-'))
            && !part.contains("..")
    };
    match repository.split('/').find(|part| !good(part)) {
        None => Ok(()),
        Some(part) => Err(format!(
            "{part:?} cannot be part of a name: lower case letters and digits, with '.', '_' or '-' between them"
        )),
    }
}

fn check_tag(tag: &str) -> Result<(), String> {
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    let begins = tag
        .bytes()
        .next()
        .is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_');
    if begins && tag.len() <= 128 && tag.bytes().all(good) {
        return Ok(());
    }
    Err(format!(
        "{tag:?} is not a tag: up to 128 letters, digits, '_', '.' and '-'"
    ))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> ImageName {
        ImageName::parse(text).unwrap()
    }

    #[test]
    fn names_are_taken_apart() {
        let digest = Digest::of(b"x");
        assert_eq!(
            name(&format!("registry.example:5000/team/web:v1@{digest}")),
            ImageName {
                host: Some("registry.example:5000".into()),
                repository: "team/web".into(),
                tag: Some("v1".into()),
                digest: Some(digest),
            }
        );
        assert_eq!(name("web").with_default_tag().to_string(), "web:latest");
        assert_eq!(name("team/web:1").host, None);
        assert_eq!(name("localhost/web").host.as_deref(), Some("localhost"));
        assert_eq!(name("127.0.0.1:5000/web").tag, None);
        assert_eq!(name("[::1]:5000/web").host.as_deref(), Some("[::1]:5000"));
        assert_eq!(name("web").wanted(), "latest");
        assert_eq!(
            name(&format!("web:1@{digest}")).wanted(),
            digest.to_string()
        );
    }

    #[test]
    fn files_are_named_by_scheme() {
        let parse = |text| Reference::parse(text).unwrap();
        let disk = |path: &str, tag: Option<&str>| OnDisk {
            path: path.into(),
            tag: tag.map(str::to_owned),
        };
        assert_eq!(
            parse("oci:/srv/web"),
            Reference::OciLayout(disk("/srv/web", None))
        );
        assert_eq!(
            parse("oci:web:v1"),
            Reference::OciLayout(disk("web", Some("v1")))
        );
        assert_eq!(
            parse("oci-archive:/a:b/web.tar"),
            Reference::OciArchive(disk("/a:b/web.tar", None))
        );
        assert_eq!(
            parse("docker-archive:web.tar:v1").to_string(),
            "docker-archive:web.tar:v1"
        );
    }

    #[test]
    fn an_error_says_what_is_wrong() {
        for (text, problem) in [
            ("", "a name is missing"),
            ("Web", "try \"web\""),
            ("web:", "is not a tag"),
            ("web:a b", "is not a tag"),
            ("a//b", "\"\" cannot be part"),
            ("a/../b", "\"..\" cannot be part"),
            ("-x", "\"-x\" cannot be part"),
            ("web@sha256:1", "is not a digest"),
            ("host.example:0/web", "is not a port"),
            ("host.example:99999/web", "is not a port"),
            ("ho_st.example/web", "is not a host"),
            ("[::1/web", "bracket"),
            ("https://host.example/web", "without https://"),
            ("oci:", "a path is missing"),
            ("oci-archive::v1", "a path is missing"),
            ("web\n", "do not print"),
        ] {
            let error = Reference::parse(text).unwrap_err().to_string();
            assert!(error.contains(problem), "{text:?}: {error}");
        }
        let long = format!("{}:1", "a".repeat(256));
        assert!(
            Reference::parse(&long)
                .unwrap_err()
                .problem
                .contains("longer than 255")
        );
    }

    proptest! {
        #[test]
        fn whatever_reads_reads_again_as_it_prints(text in "[a-zA-Z0-9:/@._\\[\\] -]{0,60}") {
            if let Ok(reference) = Reference::parse(&text) {
                prop_assert_eq!(Reference::parse(&reference.to_string()), Ok(reference));
            }
        }
    }
}
