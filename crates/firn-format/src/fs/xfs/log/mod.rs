//! The log: finding what it holds, and replaying it in memory.
//!
//! ```text
//! log     records, one behind the other, round and round; the first word of every 512 bytes says how many times
//! record  header (512, more in larger ones): magic 0xFEEDBABE, cycle, version, length, lsn, tail's lsn, crc32c, ...,
//!         operations, the words that stood where the cycles are now, format, uuid, size; then operations
//! operation  transaction (4), length (4), client (1), flags (1), 0 (2); then a region of an item
//! item    its form first: type (2), regions (2), ...; then the regions that it announces
//! ```
//!
//! A log sequence number is a cycle and a place in the log, in units of 512 bytes. What lies between the tail, which
//! the last good record names, and the head behind that record is replayed, in the order in which transactions were
//! committed:
//!
//! - buffers, but for those that were freed later, and those whose own sequence number says that they are newer;
//! - inodes, in the same way; new chunks of inodes;
//! - what a transaction began and no later one finished: remapped extents and extended attributes are finished here;
//!   exchanged maps are refused; freed extents, reverse maps and reference counts are nothing that is read.
//!
//! Checksums of blocks that were patched are not up to date, and are not looked at. Inodes without a name are left as
//! they are: no name leads to them.
//!
//! Source: the kernel's `fs/xfs/libxfs/xfs_log_format.h`, `fs/xfs/xfs_log_recover.c`, `fs/xfs/xfs_buf_item_recover.c`,
//! `fs/xfs/xfs_inode_item_recover.c`.

mod buffer;
mod finished;
mod head;
mod inode_item;
mod intent;
mod record;
mod replay;
mod transaction;

pub(super) use finished::{AttributeChange, Finished};

use super::superblock::Superblock;
use firn_disk::{Cache, Error, Record, Result, SharedDisk, Window};
use head::Span;
use std::sync::Arc;

/// Bytes of the unit that the log is counted in.
pub(super) const UNIT: u64 = 512;
/// The largest log, in bytes.
const MAX_LOG: u64 = 1 << 31;
const STRUCTURE: &str = "XFS log";
/// Heads are searched for here and there, so a little is kept.
const CACHE_BYTES: usize = 4 << 20;
const CACHE_BLOCK: usize = 64 << 10;

/// What a log says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct State {
    /// The units that are to be replayed; `None` when the log is clean.
    pub span: Option<Span>,
    /// Whether the last records did not come to the disk whole and are left out.
    pub is_torn: bool,
}

/// A log on its disk.
#[derive(Debug)]
pub(super) struct Log {
    /// Exactly the log.
    disk: SharedDisk,
    /// Its length in units of 512 bytes.
    units: u64,
    uuid: [u8; 16],
    is_v5: bool,
    is_v2: bool,
}

impl Log {
    /// The log that stands within the file system.
    pub fn internal(disk: &SharedDisk, superblock: &Superblock) -> Result<Self> {
        let blocks = u64::from(superblock.log_blocks);
        let start = superblock
            .block_offset(superblock.log_start, blocks)
            .ok_or_else(|| superblock.no_block(superblock.log_start, blocks, STRUCTURE))?;
        Self::new(disk, start, superblock)
    }

    /// A log that has a disk of its own.
    pub fn external(disk: &SharedDisk, superblock: &Superblock) -> Result<Self> {
        Self::new(disk, 0, superblock)
    }

    fn new(disk: &SharedDisk, start: u64, superblock: &Superblock) -> Result<Self> {
        let length = u64::from(superblock.log_blocks) * superblock.block_bytes();
        // Every log has room for several records.
        if !(256 << 10..=MAX_LOG).contains(&length) {
            return Err(Error::corrupt(format!("a log of {length} bytes")).in_structure(STRUCTURE));
        }
        let window = Window::new(disk.clone(), start, length).map_err(|_| {
            Error::corrupt(format!("the disk ends at byte {}, before its end", disk.len())).in_structure(STRUCTURE)
        })?;
        Ok(Self {
            disk: Arc::new(Cache::new(window, CACHE_BLOCK, CACHE_BYTES)),
            units: length / UNIT,
            uuid: superblock.uuid,
            is_v5: superblock.features.is_v5(),
            is_v2: superblock.features.has_log_v2(),
        })
    }

    /// Reads `count` units from `start` on, going on at the beginning behind the end.
    fn read(&self, start: u64, count: u64) -> Result<Vec<u8>> {
        let count = count.min(self.units);
        let first = count.min(self.units - start % self.units);
        let mut bytes = vec![0; usize::try_from(count * UNIT).unwrap_or(usize::MAX)];
        let (now, later) = bytes.split_at_mut(usize::try_from(first * UNIT).unwrap_or(usize::MAX));
        Record::read(&self.disk, now, start % self.units * UNIT, STRUCTURE)?;
        if !later.is_empty() {
            Record::read(&self.disk, later, 0, STRUCTURE)?;
        }
        Ok(bytes)
    }

    /// A `Corrupt` error about the unit `at`.
    fn corrupt(&self, at: u64, message: impl Into<String>) -> Error {
        Error::corrupt(message).in_structure(STRUCTURE).at_offset(at % self.units * UNIT)
    }
}
