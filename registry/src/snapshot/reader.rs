//! Reading a snapshot.

use std::{
    collections::{BTreeMap, VecDeque},
    io::{self, Read},
};

use bytes::Bytes;
use sha2::Digest as _;

use super::{
    SnapshotError, SnapshotMeta,
    format::{
        BLOCK, BlockHead, FOOTER, HASH_LEN, MAGIC, MAX_BLOCK_SIZE, MAX_HEADER_SIZE, SKIPPABLE,
        VERSION, split_records,
    },
    hashed::Hashed,
};
use crate::{log::codec, state::Record};

/// The records of a snapshot, each verified before it is handed out. It yields an error at most
/// once, and then nothing more; only when it ended without one was the snapshot whole.
#[derive(Debug)]
pub struct SnapshotReader<R> {
    input: Hashed<R>,
    meta: SnapshotMeta,
    /// Decoded, and not handed out yet.
    records: VecDeque<Record>,
    counts: BTreeMap<u8, u64>,
    sizes: BTreeMap<u8, u64>,
    table: u8,
    ended: bool,
}

impl<R: Read> SnapshotReader<R> {
    /// Reads the header.
    pub fn new(input: R) -> Result<SnapshotReader<R>, SnapshotError> {
        let mut input = Hashed::new(input);
        if input.array::<8>()? != MAGIC {
            return Err(SnapshotError::Magic);
        }
        let version = u16::from_be_bytes(input.array()?);
        if version != VERSION {
            return Err(SnapshotError::Version {
                found: version,
                known: VERSION,
            });
        }
        let len = u32::from_be_bytes(input.array()?) as usize;
        let crc = u32::from_be_bytes(input.array()?);
        if len > MAX_HEADER_SIZE {
            return Err(SnapshotError::Malformed("the header is too large"));
        }
        let mut header = Bytes::from(input.body(len)?);
        if crc32fast::hash(&header) != crc {
            return Err(SnapshotError::Checksum { part: "the header" });
        }
        let meta = SnapshotMeta {
            last: codec::get_optional_log_id(&mut header)?,
            membership_id: codec::get_optional_log_id(&mut header)?,
            membership: codec::get_membership(&mut header)?,
        };
        Ok(SnapshotReader {
            input,
            meta,
            records: VecDeque::new(),
            counts: BTreeMap::new(),
            sizes: BTreeMap::new(),
            table: 0,
            ended: false,
        })
    }

    pub fn meta(&self) -> &SnapshotMeta {
        &self.meta
    }

    /// The tables that were read so far: number, records, bytes.
    pub(super) fn tables(&self) -> impl Iterator<Item = (u8, u64, u64)> + '_ {
        let sizes = &self.sizes;
        let tables = self.counts.iter();
        tables
            .map(move |(table, records)| (*table, *records, sizes.get(table).copied().unwrap_or(0)))
    }

    /// Reads to the end without decoding records, and says whether the snapshot is whole.
    pub fn verify(mut self) -> Result<[u8; HASH_LEN], SnapshotError> {
        loop {
            if let Part::End(hash) = self.next_part()? {
                return Ok(hash);
            }
        }
    }

    fn next_part(&mut self) -> Result<Part, SnapshotError> {
        match self.input.array::<1>()? {
            [BLOCK] => {
                let head = BlockHead::from_bytes(self.input.array()?);
                let crc = u32::from_be_bytes(self.input.array()?);
                let len = head.len as usize;
                if len > MAX_BLOCK_SIZE {
                    return Err(SnapshotError::Malformed("a block is too large"));
                }
                let body = self.input.body(len)?;
                if head.checksum(&body) != crc {
                    return Err(SnapshotError::Checksum { part: "a block" });
                }
                if head.table < self.table {
                    return Err(SnapshotError::Malformed("the tables are out of order"));
                }
                self.table = head.table;
                *self.counts.entry(head.table).or_default() += u64::from(head.records);
                *self.sizes.entry(head.table).or_default() += u64::from(head.len);
                Ok(Part::Block(head, body))
            }
            [FOOTER] => self.footer().map(Part::End),
            _ => Err(SnapshotError::Malformed("neither a block nor the footer")),
        }
    }

    fn footer(&mut self) -> Result<[u8; HASH_LEN], SnapshotError> {
        let [tables] = self.input.array()?;
        let mut counts = BTreeMap::new();
        for _ in 0..tables {
            let [table] = self.input.array()?;
            counts.insert(table, u64::from_be_bytes(self.input.array()?));
        }
        let expected: [u8; HASH_LEN] = self.input.hash.clone().finalize().into();
        let hash = self.input.array()?;
        if hash != expected {
            return Err(SnapshotError::Checksum { part: "the whole" });
        }
        if counts != self.counts {
            return Err(SnapshotError::Malformed("the counts do not add up"));
        }
        if self.input.inner.read(&mut [0])? != 0 {
            return Err(SnapshotError::Malformed("there is something after the end"));
        }
        Ok(hash)
    }

    /// Fills `records` from the next block; false at the end.
    fn next_block(&mut self) -> Result<bool, SnapshotError> {
        let (head, body) = match self.next_part()? {
            Part::End(_) => return Ok(false),
            Part::Block(head, body) => (head, body),
        };
        if !Record::knows_table(head.table) {
            if head.flags & SKIPPABLE == 0 {
                return Err(SnapshotError::UnknownTable(head.table));
            }
            tracing::warn!(table = head.table, "left out a table of a newer snapshot");
            return Ok(true);
        }
        for record in split_records(&body) {
            let table = head.table;
            let decoded = rmp_serde::from_slice(record?);
            let record: Record =
                decoded.map_err(|source| SnapshotError::Decode { table, source })?;
            if record.table() != head.table {
                return Err(SnapshotError::Malformed("a record is in the wrong table"));
            }
            self.records.push_back(record);
        }
        if self.records.len() != head.records as usize {
            return Err(SnapshotError::Malformed("a block has a wrong count"));
        }
        Ok(true)
    }
}

enum Part {
    Block(BlockHead, Vec<u8>),
    End([u8; HASH_LEN]),
}

impl<R: Read> Iterator for SnapshotReader<R> {
    type Item = Result<Record, SnapshotError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(record) = self.records.pop_front() {
                return Some(Ok(record));
            }
            if self.ended {
                return None;
            }
            match self.next_block() {
                Ok(more) => self.ended = !more,
                Err(error) => {
                    self.ended = true;
                    self.records.clear();
                    return Some(Err(error));
                }
            }
        }
    }
}

impl<R: Read> Hashed<R> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], SnapshotError> {
        let mut bytes = [0; N];
        self.read_exact(&mut bytes).map_err(cut)?;
        Ok(bytes)
    }

    /// Grows with what arrives: a length that lies does not reserve memory.
    fn body(&mut self, len: usize) -> Result<Vec<u8>, SnapshotError> {
        let mut bytes = Vec::new();
        self.take(len as u64).read_to_end(&mut bytes)?;
        if bytes.len() < len {
            return Err(SnapshotError::Truncated);
        }
        Ok(bytes)
    }
}

fn cut(error: io::Error) -> SnapshotError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => SnapshotError::Truncated,
        _ => SnapshotError::Io(error),
    }
}
