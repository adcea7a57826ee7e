//! Layers: from a compressed tar to a directory that overlayfs can stack.
//!
//! A layer comes from strangers. Whatever is in it,
//!
//! * nothing outside the root is touched: every path is opened by the kernel as if the root were `/`
//!   (`openat2` with `RESOLVE_IN_ROOT`), the last component never follows a link, `..` is refused. An
//!   absolute name is one below the root, as builders write such names;
//! * device nodes are refused: a container here gets its devices from the launcher and needs no others.
//!   Sparse files and unknown kinds are refused as well;
//! * sizes and counts are bounded ([`Limits`]), so a small file that decompresses without end ends with an
//!   error;
//! * extended attributes are `security.capability` and `user.*`; others belong to the machine that made the
//!   layer, and those of overlayfs would change what its mount shows.
//!
//! Whiteouts become overlayfs's: `.wh.NAME` a character device 0:0, `.wh..wh..opq` the attribute
//! `trusted.overlay.opaque`. Both are about the layers below, never about this one.

mod decompress;
mod entry;
mod root;
mod stream;

use std::{fs::File, io, os::fd::AsFd, path::Path};

use super::{
    Digest,
    limits::{Limits, MAX_ENTRY_METADATA},
};
use root::Root;
use stream::Stream;

/// Why a layer is not unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    #[error("{entry:?} leads out of the layer")]
    Escapes { entry: String },
    #[error("{entry:?} is a device node; containers get their devices from the launcher")]
    Device { entry: String },
    #[error("{entry:?} is of a kind ({kind}) that layers do not have")]
    Kind { entry: String, kind: &'static str },
    #[error("{entry:?} is not a name that a file can have: {why}")]
    Name { entry: String, why: &'static str },
    #[error("{entry:?}: {what} is out of range")]
    Range { entry: String, what: &'static str },
    #[error("{entry:?} is a hard link to {target:?}, which is not in the layer")]
    LinkTarget { entry: String, target: String },
    #[error("{entry:?} needs the directory {parent:?}, which is something else")]
    Parent { entry: String, parent: String },
    #[error("{entry:?} ends early: {missing} bytes are missing")]
    Truncated { entry: String, missing: u64 },
    #[error("it decompresses to more than {limit} bytes")]
    TooLarge { limit: u64 },
    #[error("it has more than {limit} entries")]
    TooManyEntries { limit: u64 },
    #[error("the names and attributes of one entry take more than {MAX_ENTRY_METADATA} bytes")]
    TooMuchMetadata,
    #[error("it unpacks to {actual}, but the image says {expected}")]
    WrongDiffId { expected: Digest, actual: Digest },
    #[error("it cannot be decompressed: {0}")]
    Compression(String),
    #[error("it is no tar: {0}")]
    Tar(io::Error),
    #[error("{entry:?}: {source}")]
    Entry { entry: String, source: io::Error },
    #[error("no space is left on the disk; nothing was kept")]
    DiskFull,
    #[error("{what}: {source}")]
    Io {
        what: &'static str,
        source: io::Error,
    },
}

/// Whether the owners of files are those that the layer names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// As in the layer: needs root.
    Kept,
    /// All of this process's user: for looking at images without root.
    Own,
}

impl Ownership {
    /// What this process can do.
    pub fn possible() -> Ownership {
        match rustix::process::geteuid().is_root() {
            true => Ownership::Kept,
            false => Ownership::Own,
        }
    }
}

/// What a layer had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unpacked {
    /// The digest of the tar: the layer's diff ID.
    pub diff_id: Digest,
    /// Bytes of the tar.
    pub bytes: u64,
    pub entries: u64,
}

/// Unpacks a layer, compressed with gzip, zstd or not at all, into an empty directory. On an error the
/// directory holds some of it, and should be removed.
pub fn unpack(
    layer: impl io::Read,
    directory: &Path,
    limits: &Limits,
    ownership: Ownership,
) -> Result<Unpacked, UnpackError> {
    let stream = bounded(layer, limits.layer).map_err(|source| UnpackError::Io {
        what: "reading the layer",
        source,
    })?;
    let root = Root::open(directory, ownership).map_err(|source| UnpackError::Io {
        what: "opening the directory of the layer",
        source,
    })?;
    let mut unpacker = entry::Unpacker::new(root, *limits);
    let mut archive = tar::Archive::new(&stream);
    let entries = archive.entries().map_err(UnpackError::Tar)?;
    let mut count = 0;
    stream.begin_metadata();
    for entry in entries {
        let entry = entry.map_err(|error| stream.explain(error, UnpackError::Tar))?;
        stream.end_metadata();
        count += 1;
        if count > limits.entries {
            return Err(UnpackError::TooManyEntries {
                limit: limits.entries,
            });
        }
        unpacker.add(entry, &stream)?;
        stream.begin_metadata();
    }
    stream.end_metadata();
    // Some writers pad the end; the digest is over all of it.
    io::copy(&mut &stream, &mut io::sink())
        .map_err(|error| stream.explain(error, UnpackError::Tar))?;
    unpacker.finish()?;
    let (diff_id, bytes) = stream.finish();
    Ok(Unpacked {
        diff_id,
        bytes,
        entries: count,
    })
}

/// Decompresses what comes, up to a number of bytes.
pub(super) fn bounded<'r>(
    reader: impl io::Read + 'r,
    limit: u64,
) -> io::Result<Stream<Box<dyn io::Read + 'r>>> {
    Ok(Stream::new(decompress::decompress(reader)?, limit))
}

/// Makes what was unpacked durable, before its directory gets its name.
pub(super) fn sync(directory: &Path) -> io::Result<()> {
    let directory = File::open(directory)?;
    // One call for all of its files; fsync of each would be thousands.
    rustix::fs::syncfs(directory.as_fd())?;
    Ok(())
}

/// An error of writing: a full disk is told apart.
fn of_writing(entry: &str, source: io::Error) -> UnpackError {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => UnpackError::DiskFull,
        _ => UnpackError::Entry {
            entry: entry.to_owned(),
            source,
        },
    }
}

#[cfg(test)]
mod tests;
