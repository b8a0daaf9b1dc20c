//! The log: transactions of descriptor, data, revoke and commit blocks, in a ring.
//!
//! ```text
//! all         magic (4), kind (4), sequence (4)
//! descriptor  tags: block (4), checksum (2), flags (2), block's high half (4); or with v3 block, flags, high half,
//!             checksum (4 each); the first with a UUID (16).  Its data blocks follow it.  Tail: crc32c
//! revoke      bytes used (4), block numbers (4 or 8).  Tail: crc32c
//! commit      checksum's type, size, value (v1, at 0x10; v2 and v3: crc32c over the block), time (at 0x30)
//! ```
//!
//! The log ends at the first block that is not the next one. What a bad checksum means is decided as the kernel does:
//! a commit that is older than the one before it is what an earlier turn of the ring left, and ends the log; anything
//! else is damage, and refused. A log that is longer than its ring is refused, so that no loop can be built.
//!
//! Source: the kernel's `fs/jbd2/recovery.c`.

use super::super::checksum::{crc32_be, crc32c, low16};
use super::Journal;
use super::superblock::{Checksums, MAGIC};
use firn_disk::{Record, Result};

const DESCRIPTOR: u32 = 1;
const COMMIT: u32 = 2;
const REVOKE: u32 = 5;
const HEADER: usize = 12;
const FLAG_ESCAPE: u16 = 1;
const FLAG_SAME_UUID: u16 = 2;
const FLAG_LAST: u16 = 8;
const CRC32_TYPE: u8 = 1;
const CRC32_SIZE: u8 = 4;

/// What a descriptor says of one data block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tag {
    /// The block of the file system that it belongs to.
    pub block: u64,
    /// Its first four bytes were the magic and stand as zeros in the log.
    pub escaped: bool,
    pub checksum: u32,
}

/// A block of the log that matters when replaying.
#[derive(Debug)]
pub(super) enum Event {
    /// A data block and where in the log it is.
    Data { tag: Tag, log_block: u32, sequence: u32 },
    /// A block that must not be replayed from this transaction or an earlier one.
    Revoke { block: u64, sequence: u32 },
}

/// A place in the ring, and how much of it may still be used.
struct Cursor<'a> {
    journal: &'a Journal,
    next: u32,
    left: u32,
}

impl<'a> Cursor<'a> {
    fn new(journal: &'a Journal) -> Self {
        let superblock = &journal.superblock;
        Self { journal, next: superblock.start, left: superblock.end.saturating_sub(superblock.first) }
    }

    /// The number of the next block; `None` after a whole turn.
    fn take(&mut self) -> Option<u32> {
        self.left = self.left.checked_sub(1)?;
        let block = self.next;
        self.next = if block + 1 >= self.journal.superblock.end { self.journal.superblock.first } else { block + 1 };
        Some(block)
    }

    /// The next block, when the log goes on there.
    fn read(&mut self, sequence: u32) -> Result<Option<(u32, Vec<u8>)>> {
        let Some(block) = self.take() else { return Ok(None) };
        let bytes = self.journal.read(block)?;
        let record = self.journal.record(&bytes, block);
        if record.be_u32(0)? != MAGIC || record.be_u32(8)? != sequence {
            return Ok(None);
        }
        Ok(Some((record.be_u32(4)?, bytes)))
    }

    /// The blocks of `tags`; refused when the ring has not that many left.
    fn data(&mut self, count: usize) -> Result<Vec<u32>> {
        let blocks: Vec<u32> = (0..count).map_while(|_| self.take()).collect();
        if blocks.len() < count {
            return Err(firn_disk::Error::corrupt("the log is longer than its ring").in_structure("journal"));
        }
        Ok(blocks)
    }
}

impl Journal {
    /// The sequence behind the last transaction that is to be replayed.
    pub(super) fn scan(&self) -> Result<u32> {
        let mut scan = Scan {
            journal: self,
            sequence: self.superblock.sequence,
            end: None,
            crc: !0,
            last_time: 0,
            suspicious: false,
        };
        let mut cursor = Cursor::new(self);
        while let Some((kind, bytes)) = cursor.read(scan.sequence)? {
            let goes_on = match kind {
                DESCRIPTOR => scan.descriptor(&mut cursor, &bytes)?,
                REVOKE => {
                    scan.suspicious |= !self.tail_is_right(&bytes)?;
                    true
                }
                COMMIT => scan.commit(&bytes)?,
                _ => false,
            };
            if !goes_on {
                break;
            }
        }
        Ok(scan.end.unwrap_or(scan.sequence))
    }

    /// Calls `visit` with what the transactions before `end` hold, in order.
    pub(super) fn visit(&self, end: u32, visit: &mut dyn FnMut(Event) -> Result<()>) -> Result<()> {
        let mut cursor = Cursor::new(self);
        let mut sequence = self.superblock.sequence;
        while sequence != end {
            let Some((kind, bytes)) = cursor.read(sequence)? else {
                return Err(firn_disk::Error::corrupt("the log reads differently the second time"));
            };
            match kind {
                DESCRIPTOR | REVOKE if !self.tail_is_right(&bytes)? => {
                    return Err(firn_disk::Error::corrupt(format!("a bad checksum in transaction {sequence}"))
                        .in_structure("journal"));
                }
                DESCRIPTOR => {
                    let tags = self.tags(&bytes)?;
                    for (tag, log_block) in tags.iter().zip(cursor.data(tags.len())?) {
                        visit(Event::Data { tag: *tag, log_block, sequence })?;
                    }
                }
                REVOKE => self.visit_revoked(&bytes, sequence, visit)?,
                _ => sequence = sequence.wrapping_add(1),
            }
        }
        Ok(())
    }

    fn visit_revoked(&self, bytes: &[u8], sequence: u32, visit: &mut dyn FnMut(Event) -> Result<()>) -> Result<()> {
        let record = Record::new(bytes, "journal revoke block", 0);
        let used = usize::try_from(record.be_u32(HEADER)?).unwrap_or(usize::MAX);
        let tail = if self.superblock.has_block_checksums() { 4 } else { 0 };
        if used > bytes.len() - tail {
            return Err(record.corrupt(HEADER, format!("{used} bytes of revoked blocks in a block")));
        }
        let size = if self.superblock.is_64bit { 8 } else { 4 };
        let mut at = HEADER + 4;
        while at + size <= used {
            let block = if size == 8 { record.be_u64(at)? } else { u64::from(record.be_u32(at)?) };
            visit(Event::Revoke { block, sequence })?;
            at += size;
        }
        Ok(())
    }

    /// The tags of a descriptor block.
    fn tags(&self, bytes: &[u8]) -> Result<Vec<Tag>> {
        let record = Record::new(bytes, "journal descriptor block", 0);
        let size = self.superblock.tag_bytes();
        let end = bytes.len() - if self.superblock.has_block_checksums() { 4 } else { 0 };
        let (mut tags, mut at) = (Vec::new(), HEADER);
        while at + size <= end {
            let flags = record.be_u16(at + 6)?;
            let high = if self.superblock.is_64bit { u64::from(record.be_u32(at + 8)?) << 32 } else { 0 };
            tags.push(Tag {
                block: u64::from(record.be_u32(at)?) | high,
                escaped: flags & FLAG_ESCAPE != 0,
                checksum: match self.superblock.checksums {
                    Checksums::V3 => record.be_u32(at + 12)?,
                    _ => u32::from(record.be_u16(at + 4)?),
                },
            });
            at += size + if flags & FLAG_SAME_UUID == 0 { 16 } else { 0 };
            if flags & FLAG_LAST != 0 {
                break;
            }
        }
        Ok(tags)
    }

    /// Whether the crc32c at the end of a descriptor or revoke block is right.
    fn tail_is_right(&self, bytes: &[u8]) -> Result<bool> {
        self.checksum_is_right(bytes, bytes.len() - 4)
    }

    /// Whether the crc32c at `at` is right for a block in which it counts as zeros.
    fn checksum_is_right(&self, bytes: &[u8], at: usize) -> Result<bool> {
        if !self.superblock.has_block_checksums() {
            return Ok(true);
        }
        let record = Record::new(bytes, "journal block", 0);
        let sum = crc32c(self.superblock.seed, record.slice(0, at)?);
        let sum = crc32c(crc32c(sum, &[0; 4]), record.slice(at + 4, bytes.len() - at - 4)?);
        Ok(record.be_u32(at)? == sum)
    }

    /// Whether a data block is what its tag says.
    pub(super) fn data_is_right(&self, bytes: &[u8], sequence: u32, checksum: u32) -> bool {
        let sum = crc32c(crc32c(self.superblock.seed, &sequence.to_be_bytes()), bytes);
        match self.superblock.checksums {
            Checksums::V3 => sum == checksum,
            Checksums::V2 => u32::from(low16(sum)) == checksum,
            Checksums::None | Checksums::V1 => true,
        }
    }
}

/// The first pass over the log: where does it end?
struct Scan<'a> {
    journal: &'a Journal,
    sequence: u32,
    /// Set when a transaction with a bad checksum may have been cut off.
    end: Option<u32>,
    crc: u32,
    last_time: u64,
    /// A block's checksum was wrong: the commit block's time tells why.
    suspicious: bool,
}

impl Scan<'_> {
    fn descriptor(&mut self, cursor: &mut Cursor<'_>, bytes: &[u8]) -> Result<bool> {
        self.suspicious |= !self.journal.tail_is_right(bytes)?;
        let data = cursor.data(self.journal.tags(bytes)?.len())?;
        if self.journal.superblock.checksums == Checksums::V1 && !self.suspicious && self.end.is_none() {
            self.crc = crc32_be(self.crc, bytes);
            for block in data {
                self.crc = crc32_be(self.crc, &self.journal.read(block)?);
            }
        }
        Ok(true)
    }

    fn commit(&mut self, bytes: &[u8]) -> Result<bool> {
        let record = Record::new(bytes, "journal commit block", 0);
        let time = record.be_u64(0x30)?;
        let sequence = self.sequence;
        let damaged =
            || firn_disk::Error::corrupt(format!("transaction {sequence} is damaged")).in_structure("journal");
        let stale = time < self.last_time;
        if self.suspicious {
            return if stale { Ok(false) } else { Err(damaged()) };
        }
        if self.end.is_some() {
            // A commit behind one that was not whole: that one was written, and is damaged.
            return Err(damaged());
        }
        if !self.commit_is_right(&record, bytes)? {
            if stale {
                return Ok(false);
            }
            if !self.journal.superblock.async_commit {
                return Err(damaged());
            }
            self.end = Some(self.sequence);
        }
        self.crc = !0;
        self.last_time = time;
        self.sequence = self.sequence.wrapping_add(1);
        Ok(true)
    }

    fn commit_is_right(&self, record: &Record<'_>, bytes: &[u8]) -> Result<bool> {
        if self.journal.superblock.checksums != Checksums::V1 {
            return self.journal.checksum_is_right(bytes, 0x10);
        }
        let found = (record.u8(12)?, record.u8(13)?, record.be_u32(0x10)?);
        // Kernels that do not write checksums leave all three zero.
        Ok(found == (CRC32_TYPE, CRC32_SIZE, self.crc) || found == (0, 0, 0))
    }
}
