//! The decompressed bytes of a layer: counted, hashed, bounded.

use std::{
    cell::{Cell, RefCell},
    fmt,
    io::{self, Read},
};

use super::UnpackError;
use crate::image::{Digest, digest::Hasher, limits::MAX_ENTRY_METADATA};

/// Read by reference, so that it can be asked things while a tar reads from it.
pub(in crate::image) struct Stream<R> {
    inner: RefCell<R>,
    hasher: RefCell<Hasher>,
    limit: u64,
    /// What the description of the present entry may still take; `None` while its content is read.
    metadata: Cell<Option<u64>>,
    exceeded: Cell<Option<Exceeded>>,
}

#[derive(Clone, Copy, Debug)]
enum Exceeded {
    Layer,
    Metadata,
}

/// The error under which a limit passes through the tar reader.
#[derive(Debug)]
struct LimitReached;

impl fmt::Display for LimitReached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a limit is reached")
    }
}

impl std::error::Error for LimitReached {}

impl<R: Read> Stream<R> {
    pub(super) fn new(inner: R, limit: u64) -> Stream<R> {
        Stream {
            inner: RefCell::new(inner),
            hasher: RefCell::default(),
            limit,
            metadata: Cell::new(None),
            exceeded: Cell::new(None),
        }
    }

    /// What comes now describes an entry: the reader of the tar keeps it in memory.
    pub(in crate::image) fn begin_metadata(&self) {
        self.metadata.set(Some(MAX_ENTRY_METADATA));
    }

    /// What comes now is content.
    pub(in crate::image) fn end_metadata(&self) {
        self.metadata.set(None);
    }

    /// The limit behind an error, or what `otherwise` makes of it.
    pub(in crate::image) fn explain(
        &self,
        error: io::Error,
        otherwise: impl FnOnce(io::Error) -> UnpackError,
    ) -> UnpackError {
        match self.exceeded.get() {
            Some(Exceeded::Layer) => UnpackError::TooLarge { limit: self.limit },
            Some(Exceeded::Metadata) => UnpackError::TooMuchMetadata,
            None if error.kind() == io::ErrorKind::StorageFull => UnpackError::DiskFull,
            None if error
                .get_ref()
                .is_some_and(|inner| inner.is::<super::decompress::Broken>()) =>
            {
                UnpackError::Compression(error.to_string())
            }
            None => otherwise(error),
        }
    }

    pub(super) fn finish(self) -> (Digest, u64) {
        let hasher = self.hasher.into_inner();
        let bytes = hasher.bytes();
        (hasher.finish(), bytes)
    }
}

impl<R: Read> Read for &Stream<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = loop {
            match self.inner.borrow_mut().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result?,
            }
        };
        let mut hasher = self.hasher.borrow_mut();
        hasher.update(&buffer[..read]);
        if hasher.bytes() > self.limit {
            self.exceeded.set(Some(Exceeded::Layer));
            return Err(io::Error::other(LimitReached));
        }
        if let Some(left) = self.metadata.get() {
            match left.checked_sub(read as u64) {
                Some(left) => self.metadata.set(Some(left)),
                None => {
                    self.exceeded.set(Some(Exceeded::Metadata));
                    return Err(io::Error::other(LimitReached));
                }
            }
        }
        Ok(read)
    }
}
