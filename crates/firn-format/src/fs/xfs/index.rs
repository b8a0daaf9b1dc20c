//! The index of a folder's names, by their hash.
//!
//! ```text
//! one block  behind its entries: hash (4), place / 8 (4), sorted by hash; entries (4), unused ones (4)
//! leaf       siblings (4 + 4), magic (2), 0 (2), in version 5 its stamp (44), entries (2), unused ones (2), in
//!            version 5 0 (4); then hash and place as above
//! node       the same header, entries (2), level (2), in version 5 0 (4); then last hash (4), block (4) of each child
//! ```
//!
//! The first block at 32 GiB is a leaf or the root of a tree of nodes. A place of 0 is an entry that was removed.
//!
//! Source: the kernel's `fs/xfs/libxfs/xfs_da_format.h`, `fs/xfs/libxfs/xfs_da_btree.c` (`xfs_da_hashname`,
//! `xfs_da3_node_lookup_int`), `fs/xfs/libxfs/xfs_dir2_leaf.c`.

use super::checksum;
use super::folder::{DataBlock, INDEX_START};
use super::inode::{Fork, Format, Inode};
use super::map::{Blocks, Cursor};
use super::volume::Volume;
use firn_disk::{Record, Result};

/// The one leaf of a folder, and one of several; of versions 4 and 5.
const LEAF_MAGIC: [u16; 4] = [0xD2F1, 0xD2FF, 0x3DF1, 0x3DFF];
/// A node, of versions 4 and 5.
pub(super) const NODE_MAGIC: [u16; 2] = [0xFEBE, 0x3EBE];
/// Trees of names are not higher.
pub(super) const MAX_LEVEL: u16 = 5;
/// Leaves that are looked at for one hash; there are not more unless thousands of names share it.
const MAX_LEAVES: u32 = 1000;

/// The hash of a name.
pub(super) fn hash(name: &[u8]) -> u32 {
    let byte = |at: usize| u32::from(name.get(at).copied().unwrap_or(0));
    let (mut hash, mut at) = (0_u32, 0);
    while name.len() - at >= 4 {
        hash = byte(at) << 21 ^ byte(at + 1) << 14 ^ byte(at + 2) << 7 ^ byte(at + 3) ^ hash.rotate_left(28);
        at += 4;
    }
    match name.len() - at {
        3 => byte(at) << 14 ^ byte(at + 1) << 7 ^ byte(at + 2) ^ hash.rotate_left(21),
        2 => byte(at) << 7 ^ byte(at + 1) ^ hash.rotate_left(14),
        1 => byte(at) ^ hash.rotate_left(7),
        _ => hash,
    }
}

/// Whether a folder has an index.
pub(super) fn is_indexed(volume: &Volume, inode: &Inode) -> bool {
    !volume.superblock.features.ignores_case() && inode.format(Fork::Data) != Some(Format::Local)
}

/// The inode that `name` names in a folder that has an index.
pub(super) fn find(volume: &Volume, inode: &Inode, name: &[u8]) -> Result<Option<u64>> {
    let mut cursor = Cursor::new(volume, inode, Fork::Data);
    let wanted = hash(name);
    if inode.size == volume.superblock.folder_block_len() as u64 {
        let block = DataBlock::read(volume, inode, &mut cursor, 0)?;
        if block.index_entries > 0 {
            return find_in_block(&block, wanted, name);
        }
    }
    find_in_leaves(volume, inode, &mut cursor, wanted, name)
}

/// The first of `count` sorted entries whose hash is at least `wanted`.
pub(super) fn first_at_least(count: usize, wanted: u32, hash_at: impl Fn(usize) -> Result<u32>) -> Result<usize> {
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low + (high - low) / 2;
        if hash_at(middle)? < wanted {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    Ok(low)
}

fn find_in_block(block: &DataBlock, wanted: u32, name: &[u8]) -> Result<Option<u64>> {
    let first = first_at_least(block.index_entries, wanted, |index| Ok(block.index_entry(index)?.0))?;
    for index in first..block.index_entries {
        let (hash, place) = block.index_entry(index)?;
        if hash != wanted {
            break;
        }
        if place != 0 {
            let (entry, _) = block.entry(usize::try_from(u64::from(place) * 8).unwrap_or(usize::MAX))?;
            if entry.name == name {
                return Ok(Some(entry.inode));
            }
        }
    }
    Ok(None)
}

/// A leaf or node, checked.
pub(super) struct IndexBlock {
    blocks: Blocks,
    structure: String,
    pub magic: u16,
    header: usize,
    pub entries: usize,
    /// Of nodes.
    pub level: u16,
}

impl IndexBlock {
    /// Reads the block of `count` blocks at `block` of a fork; `header` is where a leaf's entries begin in version 5
    /// and in version 4.
    pub fn read(volume: &Volume, inode: &Inode, cursor: &mut Cursor<'_>, block: u64, count: u64) -> Result<Self> {
        let structure = format!("index of inode {}", inode.number);
        let blocks = cursor.read(block, count, &structure)?;
        let record = Record::new(&blocks.bytes, &structure, blocks.offset);
        let is_v5 = volume.superblock.features.is_v5();
        let magic = record.be_u16(8)?;
        checksum::check_stamp(
            &volume.superblock,
            &record,
            checksum::INDEX,
            blocks.offset,
            inode.number,
            blocks.is_patched,
        )?;
        let (fields, header) = if is_v5 { (56, 64) } else { (12, 16) };
        let (entries, level) = (usize::from(record.be_u16(fields)?), record.be_u16(fields + 2)?);
        if entries > blocks.bytes.len().saturating_sub(header) / 8 {
            return Err(record.corrupt(fields, format!("{entries} entries")));
        }
        Ok(Self { magic, header, entries, level, structure, blocks })
    }

    pub fn record(&self) -> Record<'_> {
        Record::new(&self.blocks.bytes, &self.structure, self.blocks.offset)
    }

    pub fn is_node(&self) -> bool {
        NODE_MAGIC.contains(&self.magic)
    }

    /// Hash, and place or child.
    pub fn entry(&self, index: usize) -> Result<(u32, u32)> {
        let at = self.header + index * 8;
        Ok((self.record().be_u32(at)?, self.record().be_u32(at + 4)?))
    }

    /// The next block of the same level, 0 behind the last.
    pub fn next(&self) -> Result<u64> {
        Ok(u64::from(self.record().be_u32(0)?))
    }

    /// The child that may have `wanted`; `None` when it is behind the last.
    pub fn child(&self, wanted: u32) -> Result<Option<u64>> {
        let index = first_at_least(self.entries, wanted, |index| Ok(self.entry(index)?.0))?;
        if index == self.entries { Ok(None) } else { Ok(Some(u64::from(self.entry(index)?.1))) }
    }
}

fn find_in_leaves(
    volume: &Volume,
    inode: &Inode,
    cursor: &mut Cursor<'_>,
    wanted: u32,
    name: &[u8],
) -> Result<Option<u64>> {
    let count = volume.superblock.folder_blocks();
    let mut at = INDEX_START / volume.superblock.block_bytes();
    let mut block = IndexBlock::read(volume, inode, cursor, at, count)?;
    let mut level = MAX_LEVEL + 1;
    while block.is_node() {
        if block.level == 0 || block.level >= level {
            return Err(block.record().corrupt(0, format!("level {} of the index", block.level)));
        }
        level = block.level;
        let Some(child) = block.child(wanted)? else { return Ok(None) };
        at = child;
        block = IndexBlock::read(volume, inode, cursor, at, count)?;
    }
    for _ in 0..MAX_LEAVES {
        if !LEAF_MAGIC.contains(&block.magic) {
            return Err(block.record().corrupt(8, "no leaf of an index"));
        }
        let first = first_at_least(block.entries, wanted, |index| Ok(block.entry(index)?.0))?;
        for index in first..block.entries {
            let (hash, place) = block.entry(index)?;
            if hash != wanted {
                return Ok(None);
            }
            if place != 0
                && let Some(found) = entry_at(volume, inode, cursor, place, name)?
            {
                return Ok(Some(found));
            }
        }
        // Names of one hash may go on in the next leaf.
        match block.next()? {
            0 => return Ok(None),
            next => block = IndexBlock::read(volume, inode, cursor, next, count)?,
        }
    }
    Err(inode.corrupt("too many names of one hash"))
}

/// The inode of the entry at a place, when it has that name.
fn entry_at(volume: &Volume, inode: &Inode, cursor: &mut Cursor<'_>, place: u32, name: &[u8]) -> Result<Option<u64>> {
    let length = volume.superblock.folder_block_len() as u64;
    let byte = u64::from(place) * 8;
    let first = byte / length * volume.superblock.folder_blocks();
    let block = DataBlock::read(volume, inode, cursor, first)?;
    let (entry, _) = block.entry(usize::try_from(byte % length).unwrap_or(usize::MAX))?;
    Ok((entry.name == name).then_some(entry.inode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_the_kernels() {
        // Short names are their letters, shifted by 7.
        assert_eq!(hash(b"."), 0x2E);
        assert_eq!(hash(b".."), 0x2E << 7 ^ 0x2E);
        assert_eq!(hash(b"abcd"), 0x61 << 21 ^ 0x62 << 14 ^ 0x63 << 7 ^ 0x64);
        assert_eq!(hash(b"abcde"), hash(b"abcd").rotate_left(7) ^ 0x65);
    }
}
