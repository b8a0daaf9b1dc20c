//! Buffers in the log: pieces of 128 bytes of a block, and how new a block on the disk is.
//!
//! ```text
//! form  type (2), regions (2), flags (2), length / 512 (2), place / 512 (8), words of the map (4), the map: a bit for
//!       each piece that follows; neighbours share a region
//! ```
//!
//! Source: the kernel's `fs/xfs/xfs_buf_item_recover.c` (`xlog_recover_get_buf_lsn`, `xlog_recover_do_reg_buffer`).

use super::super::superblock::Superblock;
use super::transaction::Item;
use super::{STRUCTURE, UNIT};
use firn_disk::{Error, Record, Result};

const PIECE: usize = 128;
/// Words of the map of the largest buffer, 64 KiB, and one more.
const MAX_WORDS: u32 = 17;

/// The buffer has inodes whose links to the next inode without a name were changed, and nothing else.
const FLAG_INODES: u16 = 1;
/// The buffer was freed.
const FLAG_CANCEL: u16 = 1 << 1;
/// The buffer has quotas of one kind or another.
const FLAG_QUOTAS: u16 = 1 << 2 | 1 << 3 | 1 << 4;

/// The place and length of a buffer in units of 512 bytes, which name it.
pub(super) type Key = (u64, u32);

/// A buffer as the log has it.
#[derive(Debug)]
pub(super) struct Buffer<'a> {
    pub key: Key,
    flags: u16,
    map: Vec<u32>,
    item: &'a Item,
}

impl<'a> Buffer<'a> {
    pub fn parse(item: &'a Item) -> Result<Self> {
        let form = item.region(0)?;
        let words = form.le_u32(16)?;
        if words > MAX_WORDS {
            return Err(form.corrupt(16, format!("a map of {words} words")));
        }
        let map = (0..words as usize).map(|index| form.le_u32(20 + index * 4)).collect::<Result<_>>()?;
        let key = (form.le_u64(8)?, u32::from(form.le_u16(6)?));
        Ok(Self { key, flags: form.le_u16(4)?, map, item })
    }

    pub fn is_cancel(&self) -> bool {
        self.flags & FLAG_CANCEL != 0
    }

    /// Whether it only changes links between inodes without a name.
    pub fn is_unlinked_list(&self) -> bool {
        self.flags & FLAG_INODES != 0
    }

    pub fn is_quota(&self) -> bool {
        self.flags & FLAG_QUOTAS != 0
    }

    /// Where it stands, in bytes.
    pub fn offset(&self) -> Result<u64> {
        self.key.0.checked_mul(UNIT).ok_or_else(|| Error::corrupt("a buffer without a place").in_structure(STRUCTURE))
    }

    pub fn length(&self) -> u64 {
        u64::from(self.key.1) * UNIT
    }

    /// Calls `visit` with every piece: where in the buffer it goes, and its bytes.
    pub fn visit_pieces(&self, mut visit: impl FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
        let is_set = |bit: usize| self.map.get(bit / 32).is_some_and(|word| word >> (bit % 32) & 1 == 1);
        let bits = self.map.len() * 32;
        let (mut bit, mut region) = (0, 1);
        while bit < bits {
            if !is_set(bit) {
                bit += 1;
                continue;
            }
            let run = (bit..bits).take_while(|bit| is_set(*bit)).count();
            let bytes = self.item.region(region)?;
            // A run can be logged in several regions.
            let pieces = run.min(bytes.bytes().len() / PIECE);
            if pieces == 0 || ((bit + pieces) * PIECE) as u64 > self.length() {
                return Err(bytes.corrupt(0, "a piece of a buffer that does not fit"));
            }
            visit((bit * PIECE) as u64, bytes.slice(0, pieces * PIECE)?)?;
            bit += pieces;
            region += 1;
        }
        Ok(())
    }
}

/// How new a block is: the sequence number that it carries; `None` when it has none and is replayed over in any case.
///
/// `head` is its first 512 bytes. Blocks of other file systems, of former use, and values of attributes (which are not
/// logged) have none.
pub(super) fn sequence_number(superblock: &Superblock, head: &[u8]) -> Option<u64> {
    if !superblock.features.is_v5() {
        return None;
    }
    let record = Record::new(head, STRUCTURE, 0);
    let (lsn, uuid) = match record.be_u32(0).ok()?.to_be_bytes() {
        // Trees within a group: free space, inodes, reverse maps, reference counts.
        [b'A', b'B', b'3', b'B' | b'C']
        | [b'I' | b'F', b'A' | b'I', b'B', b'3']
        | [b'R', b'M', b'B', b'3']
        | [b'R', b'3', b'F', b'C'] => (24, 32),
        // Maps of files.
        [b'B', b'M', b'A', b'3'] => (32, 40),
        [b'X', b'A', b'G', b'F'] => (208, 64),
        [b'X', b'A', b'F', b'L'] => (24, 8),
        [b'X', b'A', b'G', b'I'] => (320, 296),
        [b'X', b'S', b'L', b'M'] => (48, 16),
        // Folders: one block, data, free space.
        [b'X', b'D', b'B' | b'D' | b'F', b'3'] => (16, 24),
        [b'X', b'F', b'S', b'B'] => (240, if superblock.features.has_meta_uuid() { 248 } else { 32 }),
        _ => match record.be_u16(8).ok()? {
            // Leaves and nodes of folders and attributes.
            0x3DF1 | 0x3DFF | 0x3BEE | 0x3EBE => (24, 32),
            _ => return None,
        },
    };
    let is_ours = record.array(uuid).ok()? == superblock.structure_uuid;
    let found = record.be_u64(lsn).ok()?;
    (is_ours && found != 0 && found != u64::MAX).then_some(found)
}
