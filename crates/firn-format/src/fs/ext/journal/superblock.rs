//! The journal's superblock: its first block, big endian.
//!
//! ```text
//! 0x00 magic 0xC03B3998  0x04 kind: 3 (version 1) or 4 (version 2)  0x0C block size  0x10 blocks  0x14 first log block
//! 0x18 first sequence  0x1C first block of it, 0 when clean  0x24 compat  0x28 incompat  0x2C ro_compat  0x30 UUID
//! 0x40 users  0x50 checksum type  0x54 blocks for fast commits  0xFC crc32c over 1024 bytes
//! ```
//!
//! Source: the kernel's `include/linux/jbd2.h`, `fs/jbd2/journal.c` (`journal_load_superblock`).

use super::super::checksum::crc32c;
use firn_disk::{Record, Result};

/// What every block of the log begins with.
pub(super) const MAGIC: u32 = 0xC03B_3998;
/// Bytes of the superblock that count.
pub(super) const LENGTH: usize = 1024;
const COMPAT_CHECKSUM: u32 = 1;
const INCOMPAT_64BIT: u32 = 2;
const INCOMPAT_ASYNC_COMMIT: u32 = 4;
const INCOMPAT_CSUM_V2: u32 = 8;
const INCOMPAT_CSUM_V3: u32 = 0x10;
const INCOMPAT_FAST_COMMIT: u32 = 0x20;
const INCOMPAT_KNOWN: u32 = 0x3F;
const CHECKSUM_CRC32C: u8 = 4;
/// A log is never made shorter than this by fast commits.
const MIN_LOG_BLOCKS: u32 = 1024;
const DEFAULT_FAST_COMMIT_BLOCKS: u32 = 256;

/// Which checksums a log has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Checksums {
    None,
    /// crc32 over a transaction's blocks, in its commit block.
    V1,
    /// crc32c per block, 16 bits of it for data.
    V2,
    /// crc32c per block.
    V3,
}

/// The superblock, checked.
#[derive(Debug, Clone)]
pub(super) struct JournalSuperblock {
    pub raw: Vec<u8>,
    pub block_size: u32,
    /// Blocks of the journal, its superblock being the first.
    pub blocks: u32,
    pub first: u32,
    pub sequence: u32,
    /// 0 when there is nothing to replay.
    pub start: u32,
    pub checksums: Checksums,
    pub is_64bit: bool,
    pub async_commit: bool,
    /// One past the last block of the log.
    pub end: u32,
    /// The first block for fast commits, if there are any.
    pub fast_commits: Option<u32>,
    /// Where checksums start from.
    pub seed: u32,
    pub users: u32,
}

impl JournalSuperblock {
    /// Checks and decodes the first 1024 bytes of a journal of at most `blocks_there` blocks.
    pub fn parse(raw: Vec<u8>, offset: u64, blocks_there: u64) -> Result<Self> {
        let record = Record::new(&raw, "journal superblock", offset);
        let kind = record.be_u32(4)?;
        if record.be_u32(0)? != MAGIC || !matches!(kind, 3 | 4) {
            return Err(record.corrupt(0, "no journal superblock"));
        }
        let features = |at: usize| if kind == 4 { record.be_u32(at) } else { Ok(0) };
        let (compat, incompat, ro_compat) = (features(0x24)?, features(0x28)?, features(0x2C)?);
        let checksums = check_features(&record, compat, incompat, ro_compat)?;
        if matches!(checksums, Checksums::V2 | Checksums::V3) {
            let mut body = raw.clone();
            body.get_mut(0xFC..0x100).unwrap_or_default().fill(0);
            let (stored, counted) = (record.be_u32(0xFC)?, crc32c(!0, &body));
            if stored != counted {
                return Err(record.corrupt(0xFC, format!("the checksum is {stored:#010x}, not {counted:#010x}")));
            }
        }
        let (blocks, first, start) = (record.be_u32(0x10)?, record.be_u32(0x14)?, record.be_u32(0x1C)?);
        if first == 0 || first >= blocks || u64::from(blocks) > blocks_there {
            return Err(record.corrupt(0x10, format!("{blocks} blocks from {first} on, of {blocks_there}")));
        }
        let (end, fast_commits) = areas(&record, blocks, incompat & INCOMPAT_FAST_COMMIT != 0, kind)?;
        if start != 0 && !(first..end).contains(&start) {
            return Err(record.corrupt(0x1C, format!("the log starts at block {start}, not within {first}..{end}")));
        }
        let uuid = record.array::<16>(0x30)?;
        Ok(Self {
            block_size: record.be_u32(0xC)?,
            blocks,
            first,
            sequence: record.be_u32(0x18)?,
            start,
            checksums,
            is_64bit: incompat & INCOMPAT_64BIT != 0,
            async_commit: incompat & INCOMPAT_ASYNC_COMMIT != 0,
            end,
            fast_commits,
            seed: crc32c(!0, &uuid),
            users: if kind == 4 { record.be_u32(0x40)? } else { 1 },
            raw,
        })
    }

    /// Whether every block of the log has a crc32c.
    pub fn has_block_checksums(&self) -> bool {
        matches!(self.checksums, Checksums::V2 | Checksums::V3)
    }

    /// Bytes of a tag in a descriptor block, without a UUID.
    pub fn tag_bytes(&self) -> usize {
        match (self.checksums, self.is_64bit) {
            (Checksums::V3, _) => 16,
            (Checksums::V2, true) => 14,
            (Checksums::V2, false) => 10,
            (_, true) => 12,
            (_, false) => 8,
        }
    }

    /// The superblock of the same journal when all of it was replayed; `next` is the next sequence.
    pub fn emptied(&self, next: u32) -> Vec<u8> {
        let mut raw = self.raw.clone();
        let mut put = |at: usize, value: u32| {
            raw.get_mut(at..at + 4).unwrap_or_default().copy_from_slice(&value.to_be_bytes());
        };
        put(0x18, next);
        put(0x1C, 0);
        if self.has_block_checksums() {
            put(0xFC, 0);
            let sum = crc32c(!0, &raw).to_be_bytes();
            raw.get_mut(0xFC..0x100).unwrap_or_default().copy_from_slice(&sum);
        }
        raw
    }
}

fn check_features(record: &Record<'_>, compat: u32, incompat: u32, ro_compat: u32) -> Result<Checksums> {
    if incompat & !INCOMPAT_KNOWN != 0 || ro_compat != 0 {
        let bits = format!("incompat {:#x}, ro_compat {ro_compat:#x}", incompat & !INCOMPAT_KNOWN);
        return Err(record.unsupported(0x28, format!("the journal has features that are not known ({bits})")));
    }
    let set = [compat & COMPAT_CHECKSUM, incompat & INCOMPAT_CSUM_V2, incompat & INCOMPAT_CSUM_V3];
    let checksums = match set.map(|bit| bit != 0) {
        [false, false, false] => Checksums::None,
        [true, false, false] => Checksums::V1,
        [false, true, false] => Checksums::V2,
        [false, false, true] => Checksums::V3,
        _ => return Err(record.corrupt(0x28, "the journal has two kinds of checksums")),
    };
    let kind = record.u8(0x50)?;
    if matches!(checksums, Checksums::V2 | Checksums::V3) && kind != CHECKSUM_CRC32C {
        return Err(record.unsupported(0x50, format!("journal checksum type {kind}")));
    }
    Ok(checksums)
}

/// The end of the log, and the first block for fast commits.
fn areas(record: &Record<'_>, blocks: u32, fast: bool, kind: u32) -> Result<(u32, Option<u32>)> {
    if !fast || kind != 4 {
        return Ok((blocks, None));
    }
    let count = match record.be_u32(0x54)? {
        0 => DEFAULT_FAST_COMMIT_BLOCKS,
        count => count,
    };
    match blocks.checked_sub(count) {
        Some(end) if end >= MIN_LOG_BLOCKS => Ok((end, Some(end.saturating_add(1)))),
        _ => Ok((blocks, None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw() -> Vec<u8> {
        let mut raw = vec![0; LENGTH];
        for (at, value) in [(0, MAGIC), (4, 4), (0xC, 4096), (0x10, 2000), (0x14, 1), (0x18, 7), (0x1C, 5)] {
            raw[at..at + 4].copy_from_slice(&value.to_be_bytes());
        }
        raw
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        assert_eq!(JournalSuperblock::parse(raw(), 0, 2000).unwrap().start, 5);
        for (at, value) in [(0_usize, 1_u32), (4, 9), (0x10, 2001), (0x14, 0), (0x14, 2000), (0x1C, 2000), (0x28, 0x18)]
        {
            let mut raw = raw();
            raw[at..at + 4].copy_from_slice(&value.to_be_bytes());
            assert!(JournalSuperblock::parse(raw, 0, 2000).is_err(), "{at:#x} {value}");
        }
        let mut unknown = raw();
        unknown[0x28] = 0x40;
        let error = JournalSuperblock::parse(unknown, 0, 2000).unwrap_err();
        assert_eq!(error.kind(), firn_disk::ErrorKind::Unsupported);
        let mut checked = raw();
        checked[0x2B] = 0x10;
        checked[0x50] = 4;
        assert!(JournalSuperblock::parse(checked.clone(), 0, 2000).is_err(), "the checksum counts");
        let superblock = JournalSuperblock { raw: checked, checksums: Checksums::V3, ..parsed() };
        let emptied = JournalSuperblock::parse(superblock.emptied(9), 0, 2000).unwrap();
        assert_eq!((emptied.start, emptied.sequence), (0, 9));
    }

    fn parsed() -> JournalSuperblock {
        JournalSuperblock::parse(raw(), 0, 2000).unwrap()
    }

    #[test]
    fn tags_and_areas() {
        for (checksums, is_64bit, bytes) in [
            (Checksums::None, false, 8),
            (Checksums::V1, true, 12),
            (Checksums::V2, false, 10),
            (Checksums::V2, true, 14),
            (Checksums::V3, false, 16),
        ] {
            assert_eq!(JournalSuperblock { checksums, is_64bit, ..parsed() }.tag_bytes(), bytes);
        }
        let mut fast = raw();
        fast[0x2B] = 0x20;
        let superblock = JournalSuperblock::parse(fast, 0, 2000).unwrap();
        assert_eq!((superblock.end, superblock.fast_commits), (1744, Some(1745)));
    }
}
