//! The layout of a snapshot, version 1. Integers are big-endian.
//!
//! ```text
//! magic    8 bytes  "WHARFSNP"
//! version  u16
//! header   u32 length, u32 crc32 of the body, body: last log id, log id of the membership
//!          (both optional), membership
//! blocks   any number of
//!            1: u8 · table: u8 · flags: u8 · records: u32 · length: u32 · crc32: u32 · body
//!          the crc covers what precedes it in the block, and the body; the body is, per record,
//!          u32 length and a MessagePack map; a block holds records of one table, and tables and
//!          the keys in them ascend
//! footer   2: u8 · number of tables: u8 · per table: u8, records: u64 · sha256 of all before it
//! ```
//!
//! Nothing in it depends on when or where it was written: two servers at one index have one hash.

use super::SnapshotError;

pub(super) const MAGIC: [u8; 8] = *b"WHARFSNP";
pub(super) const VERSION: u16 = 1;

pub(super) const BLOCK: u8 = 1;
pub(super) const FOOTER: u8 = 2;

/// Flag of a block: a reader that does not know its table may leave it out.
pub(super) const SKIPPABLE: u8 = 1;

/// A block is closed when its body reaches this size.
pub(super) const BLOCK_SIZE: usize = 256 << 10;
/// The largest body that a reader takes: one block plus one record of the largest size.
pub(super) const MAX_BLOCK_SIZE: usize = 64 << 20;
pub(super) const MAX_HEADER_SIZE: usize = 1 << 20;

pub(super) const HASH_LEN: usize = 32;

/// What precedes the body of a block, without the marker and the checksum.
#[derive(Clone, Copy, Debug)]
pub(super) struct BlockHead {
    pub(super) table: u8,
    pub(super) flags: u8,
    pub(super) records: u32,
    pub(super) len: u32,
}

impl BlockHead {
    pub(super) const LEN: usize = 1 + 1 + 4 + 4;

    pub(super) fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[0] = self.table;
        bytes[1] = self.flags;
        bytes[2..6].copy_from_slice(&self.records.to_be_bytes());
        bytes[6..10].copy_from_slice(&self.len.to_be_bytes());
        bytes
    }

    pub(super) fn from_bytes(bytes: [u8; Self::LEN]) -> BlockHead {
        let [table, flags, r0, r1, r2, r3, l0, l1, l2, l3] = bytes;
        BlockHead {
            table,
            flags,
            records: u32::from_be_bytes([r0, r1, r2, r3]),
            len: u32::from_be_bytes([l0, l1, l2, l3]),
        }
    }

    pub(super) fn checksum(self, body: &[u8]) -> u32 {
        let mut crc = crc32fast::Hasher::new();
        crc.update(&self.to_bytes());
        crc.update(body);
        crc.finalize()
    }
}

/// The records of a block's body, one after the other.
pub(super) fn split_records(mut body: &[u8]) -> impl Iterator<Item = Result<&[u8], SnapshotError>> {
    std::iter::from_fn(move || {
        if body.is_empty() {
            return None;
        }
        let record = body.split_first_chunk::<4>().and_then(|(len, rest)| {
            let len = usize::try_from(u32::from_be_bytes(*len)).ok()?;
            rest.split_at_checked(len)
        });
        match record {
            Some((record, rest)) => {
                body = rest;
                Some(Ok(record))
            }
            None => {
                body = &[];
                Some(Err(SnapshotError::Malformed("a record exceeds its block")))
            }
        }
    })
}
