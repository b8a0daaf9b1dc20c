//! Extent trees.
//!
//! ```text
//! node    header (12 bytes): magic 0xF30A, entries, room, depth, generation;  then entries of 12 bytes
//! index   first block, child's block (32 low, 16 high bits)
//! leaf    first block, length (above 32768: unwritten, minus 32768), first block on disk (16 high, 32 low bits)
//! tail    crc32c over the node before it, at 12 + 12 * room; not in the inode
//! ```
//!
//! The root is in the inode. A child is one level lower than its parent, so a loop cannot be built.
//!
//! Source: the kernel's `fs/ext4/ext4_extents.h`, `fs/ext4/extents.c` (`__ext4_ext_check`).

use super::checksum::crc32c;
use super::inode::{BLOCK_MAP, Inode};
use super::map::{Leaf, Run, RunKind};
use super::volume::Volume;
use firn_disk::{Record, Result};

pub(super) const MAGIC: u16 = 0xF30A;
/// Deeper trees are not needed for 2^32 blocks and are refused, by the kernel too.
pub(super) const MAX_DEPTH: u16 = 5;
/// Bytes in a header and in an entry.
pub(super) const ENTRY: usize = 12;
/// A length above this means unwritten.
pub(super) const MAX_LENGTH: u16 = 0x8000;
/// One past the last block that a file can have.
pub(super) const MAX_BLOCKS: u64 = 1 << 32;

/// One node, checked.
pub(super) struct Node<'a> {
    record: Record<'a>,
    pub entries: usize,
    pub depth: u16,
}

impl<'a> Node<'a> {
    /// Checks the header; `depth` is what the parent says, `None` for a root.
    pub fn new(record: Record<'a>, depth: Option<u16>) -> Result<Self> {
        if record.le_u16(0)? != MAGIC {
            return Err(record.corrupt(0, "no extent tree magic"));
        }
        let (entries, room, found) = (record.le_u16(2)?, record.le_u16(4)?, record.le_u16(6)?);
        if entries > room || (usize::from(room) + 1) * ENTRY > record.bytes().len() {
            return Err(record.corrupt(2, format!("{entries} entries in room for {room}")));
        }
        if found > MAX_DEPTH || depth.is_some_and(|depth| depth != found) {
            return Err(record.corrupt(6, format!("level {found} of the extent tree where it should not be")));
        }
        if entries == 0 && found > 0 {
            return Err(record.corrupt(2, "an index of the extent tree without entries"));
        }
        Ok(Self { record, entries: usize::from(entries), depth: found })
    }

    /// First block and child of an index entry.
    pub fn child(&self, index: usize) -> Result<(u64, u64)> {
        let at = (index + 1) * ENTRY;
        let high = u64::from(self.record.le_u16(at + 8)?) << 32;
        Ok((u64::from(self.record.le_u32(at)?), u64::from(self.record.le_u32(at + 4)?) | high))
    }

    /// A leaf entry.
    pub fn run(&self, index: usize) -> Result<Run> {
        let at = (index + 1) * ENTRY;
        let start = u64::from(self.record.le_u32(at)?);
        let raw = self.record.le_u16(at + 4)?;
        let block = u64::from(self.record.le_u32(at + 8)?) | u64::from(self.record.le_u16(at + 6)?) << 32;
        if raw == 0 {
            return Err(self.record.corrupt(at + 4, "an extent of no blocks"));
        }
        Ok(if raw > MAX_LENGTH {
            Run { start, length: u64::from(raw - MAX_LENGTH), kind: RunKind::Unwritten(block) }
        } else {
            Run { start, length: u64::from(raw), kind: RunKind::Data(block) }
        })
    }

    /// The runs of a leaf that speaks of `start..end`, all checked.
    fn runs(&self, volume: &Volume, start: u64, end: u64) -> Result<Vec<Run>> {
        let mut runs = Vec::with_capacity(self.entries);
        let mut from = start;
        for index in 0..self.entries {
            let run = self.run(index)?;
            let at = (index + 1) * ENTRY;
            if run.start < from || run.end() > end {
                return Err(self.record.corrupt(
                    at,
                    format!("an extent of blocks {}..{} where {from}..{end} is left", run.start, run.end()),
                ));
            }
            if let RunKind::Data(block) | RunKind::Unwritten(block) = run.kind {
                volume
                    .block_offset(block, run.length, "ext extent")
                    .map_err(|error| self.record.corrupt(at, error.to_string()))?;
            }
            from = run.end();
            runs.push(run);
        }
        Ok(runs)
    }

    /// The child that speaks of `block`, and the end of what it speaks of; `None` when the first one begins later.
    fn find(&self, block: u64, end: u64) -> Result<(Option<(u64, u64)>, u64)> {
        let mut found = None;
        let mut previous = None;
        for index in 0..self.entries {
            let (first, child) = self.child(index)?;
            if previous.is_some_and(|previous| first <= previous) || first >= end {
                return Err(self.record.corrupt((index + 1) * ENTRY, "the index entries are not in order"));
            }
            if first > block {
                return Ok((found, first));
            }
            previous = Some(first);
            found = Some((first, child));
        }
        Ok((found, end))
    }
}

/// Reads a node that is not the root, after checking its checksum.
pub(super) fn read_node(volume: &Volume, inode: &Inode, block: u64) -> Result<Vec<u8>> {
    let name = format!("extent block of inode {}", inode.number);
    let bytes = volume.read_block(block, &name)?;
    if volume.superblock.has_checksums() {
        let record = Record::new(&bytes, &name, block * volume.superblock.block_bytes());
        let tail = (usize::from(record.le_u16(4)?) + 1) * ENTRY;
        let (stored, counted) = (record.le_u32(tail)?, crc32c(inode.seed, record.slice(0, tail)?));
        if stored != counted {
            return Err(record.corrupt(tail, format!("the checksum is {stored:#010x}, not {counted:#010x}")));
        }
    }
    Ok(bytes)
}

/// The leaf that knows about `block`.
pub(super) fn leaf_at(volume: &Volume, inode: &Inode, block: u64) -> Result<Leaf> {
    let name = format!("extent tree of inode {}", inode.number);
    if block >= MAX_BLOCKS {
        return Err(inode.corrupt(format!("block {block} is more than an extent tree can hold")));
    }
    let mut bytes = inode.block_map()?.to_vec();
    let mut offset = inode.offset + BLOCK_MAP as u64;
    let (mut start, mut end, mut depth) = (0, MAX_BLOCKS, None);
    // One level lower every time, so at most MAX_DEPTH times.
    loop {
        let node = Node::new(Record::new(&bytes, &name, offset), depth)?;
        let Some(lower) = node.depth.checked_sub(1) else {
            return Ok(Leaf { start, end, runs: node.runs(volume, start, end)? });
        };
        let (found, next) = node.find(block, end)?;
        end = next;
        let Some((first, child)) = found else {
            return Ok(Leaf::hole(start, end));
        };
        start = start.max(first);
        bytes = read_node(volume, inode, child)?;
        offset = child * volume.superblock.block_bytes();
        depth = Some(lower);
    }
}
