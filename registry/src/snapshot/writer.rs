//! Writing a snapshot.

use std::{collections::BTreeMap, io::Write};

use bytes::BytesMut;
use serde::Serialize;
use sha2::Digest as _;

use super::{
    SnapshotError, SnapshotMeta,
    format::{BLOCK, BLOCK_SIZE, BlockHead, FOOTER, HASH_LEN, MAGIC, VERSION},
    hashed::Hashed,
};
use crate::{log::codec, state::Record};

/// Writes the records it is given, which must come in the order of [`crate::View::records`].
#[derive(Debug)]
pub struct SnapshotWriter<W> {
    out: Hashed<W>,
    /// The body of the block that is being filled.
    body: Vec<u8>,
    table: u8,
    records: u32,
    counts: BTreeMap<u8, u64>,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    pub bytes: u64,
    /// The hash of the whole file: equal state at an equal index has an equal hash.
    pub hash: [u8; HASH_LEN],
    /// How many records each table has.
    pub counts: BTreeMap<u8, u64>,
}

impl<W: Write> SnapshotWriter<W> {
    pub fn new(out: W, meta: &SnapshotMeta) -> Result<SnapshotWriter<W>, SnapshotError> {
        let mut header = BytesMut::new();
        codec::put_optional_log_id(&mut header, meta.last);
        codec::put_optional_log_id(&mut header, meta.membership_id);
        codec::put_membership(&mut header, &meta.membership);
        let len = u32::try_from(header.len())
            .map_err(|_| SnapshotError::Malformed("the membership is too large"))?;

        let mut out = Hashed::new(out);
        out.write_all(&MAGIC)?;
        out.write_all(&VERSION.to_be_bytes())?;
        out.write_all(&len.to_be_bytes())?;
        out.write_all(&crc32fast::hash(&header).to_be_bytes())?;
        out.write_all(&header)?;
        Ok(SnapshotWriter {
            out,
            body: Vec::with_capacity(BLOCK_SIZE + BLOCK_SIZE / 4),
            table: 0,
            records: 0,
            counts: BTreeMap::new(),
        })
    }

    pub fn push(&mut self, record: &Record) -> Result<(), SnapshotError> {
        if record.table() != self.table {
            self.end_block()?;
            self.table = record.table();
        }
        let start = self.body.len();
        self.body.extend([0; 4]);
        record.serialize(&mut rmp_serde::Serializer::new(&mut self.body).with_struct_map())?;
        let len = u32::try_from(self.body.len() - start - 4)
            .map_err(|_| SnapshotError::Malformed("a record is too large"))?;
        self.body[start..start + 4].copy_from_slice(&len.to_be_bytes());
        self.records += 1;
        if self.body.len() >= BLOCK_SIZE {
            self.end_block()?;
        }
        Ok(())
    }

    /// Ends the snapshot; without this it is not one.
    pub fn finish(mut self) -> Result<(W, Summary), SnapshotError> {
        self.end_block()?;
        // Tables are numbered by a byte, and number 0 is none.
        self.out.write_all(&[FOOTER, self.counts.len() as u8])?;
        for (table, records) in &self.counts {
            self.out.write_all(&[*table])?;
            self.out.write_all(&records.to_be_bytes())?;
        }
        let Hashed {
            mut inner,
            hash,
            bytes,
        } = self.out;
        let hash: [u8; HASH_LEN] = hash.finalize().into();
        inner.write_all(&hash)?;
        inner.flush()?;
        let summary = Summary {
            bytes: bytes + HASH_LEN as u64,
            hash,
            counts: self.counts,
        };
        Ok((inner, summary))
    }

    fn end_block(&mut self) -> Result<(), SnapshotError> {
        if self.records == 0 {
            return Ok(());
        }
        let head = BlockHead {
            table: self.table,
            flags: 0,
            records: self.records,
            len: u32::try_from(self.body.len())
                .map_err(|_| SnapshotError::Malformed("a record is too large"))?,
        };
        self.out.write_all(&[BLOCK])?;
        self.out.write_all(&head.to_bytes())?;
        self.out
            .write_all(&head.checksum(&self.body).to_be_bytes())?;
        self.out.write_all(&self.body)?;
        *self.counts.entry(self.table).or_default() += u64::from(self.records);
        self.body.clear();
        self.records = 0;
        Ok(())
    }
}
