//! Where the blocks of a fork are: extents in the inode, or a B+tree of them.
//!
//! ```text
//! extent  128 bits, big-endian: unwritten (1), first block in the file (54), first block on disk (52), length (21)
//! root    level (2), entries (2); then room for first blocks (8 each), then for children (8 each)
//! node    "BMA3" or "BMAP" (4), level (2), entries (2), siblings (8 + 8), in version 5 its stamp (48);
//!         then as the root
//! leaf    the same header, level 0, then extents
//! ```
//!
//! A child is one level lower than its parent, so a loop cannot be built. A tree is read leaf by leaf as it is needed,
//! so that a file of millions of pieces costs no memory.
//!
//! Source: the kernel's `fs/xfs/libxfs/xfs_bmap_btree.c`, `fs/xfs/libxfs/xfs_format.h` (`struct xfs_bmbt_rec`).

use super::checksum;
use super::inode::{Fork, Format, Inode};
use super::volume::Volume;
pub(super) use crate::fs::run::{Run, RunKind};
use firn_disk::{Error, Record, Result};

const EXTENT: usize = 16;
/// "BMAP" and "BMA3"
const MAGIC: [u32; 2] = [0x424D_4150, 0x424D_4133];
/// No tree of the kernel is higher.
const MAX_LEVEL: u16 = 12;
/// One past the last block that a file can have.
pub(super) const MAX_BLOCKS: u64 = 1 << 54;

/// Decodes 16 bytes.
fn decode(raw: [u8; EXTENT]) -> Run {
    let bits = u128::from_be_bytes(raw);
    // Masked to fewer than 64 bits.
    let part = |shift: u32, width: u32| u64::try_from(bits >> shift & ((1 << width) - 1)).unwrap_or(0);
    let block = part(21, 52);
    let kind = if part(127, 1) == 1 { RunKind::Unwritten(block) } else { RunKind::Data(block) };
    Run { start: part(73, 54), length: part(0, 21), kind }
}

/// What one leaf of the map says about `start..end`. Blocks of no run are a hole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Leaf {
    pub start: u64,
    pub end: u64,
    /// In order, not overlapping, within `start..end`.
    pub runs: Vec<Run>,
}

impl Leaf {
    /// The run that `block` is in, from `block` on. `block` is within the leaf.
    pub fn run_at(&self, block: u64) -> Run {
        let index = self.runs.partition_point(|run| run.end() <= block);
        match self.runs.get(index) {
            Some(run) if run.start <= block => run.from(block),
            next => {
                let end = next.map_or(self.end, |run| run.start);
                Run { start: block, length: end.saturating_sub(block).max(1), kind: RunKind::Hole }
            }
        }
    }
}

/// The leaf that knows about `block` of a fork.
pub(super) fn leaf_at(volume: &Volume, inode: &Inode, fork: Fork, block: u64) -> Result<Leaf> {
    if block >= MAX_BLOCKS {
        return Err(inode.corrupt(format!("block {block} is more than a file can have")));
    }
    if let (Fork::Data, Some(runs)) = (fork, &inode.replaced_map) {
        return Ok(Leaf { start: 0, end: MAX_BLOCKS, runs: runs.to_vec() });
    }
    match inode.format(fork) {
        Some(Format::Extents) => {
            let count = usize::try_from(inode.extents(fork)).unwrap_or(usize::MAX);
            let name = format!("map of inode {}", inode.number);
            let record = Record::new(inode.fork(fork), &name, inode.fork_offset(fork));
            Ok(Leaf { start: 0, end: MAX_BLOCKS, runs: runs(volume, &record, 0, count, 0, MAX_BLOCKS)? })
        }
        Some(Format::Btree) => tree_leaf_at(volume, inode, fork, block),
        None => Ok(Leaf { start: 0, end: MAX_BLOCKS, runs: Vec::new() }),
        Some(other) => Err(inode.corrupt(format!("a fork in the form {other:?} has no map"))),
    }
}

/// The extents from byte `at` of a leaf on, all checked.
fn runs(volume: &Volume, record: &Record<'_>, at: usize, count: usize, start: u64, end: u64) -> Result<Vec<Run>> {
    if count > record.bytes().len().saturating_sub(at) / EXTENT {
        return Err(record.corrupt(at, format!("{count} extents are more than there is room for")));
    }
    let mut found = Vec::with_capacity(count);
    let mut from = start;
    for index in 0..count {
        let at = at + index * EXTENT;
        let run = decode(record.array(at)?);
        // Sums of numbers of 54 and 21 bits.
        if run.length == 0 || run.start < from || run.end() > end {
            return Err(record
                .corrupt(at, format!("an extent of blocks {}..{} where {from}..{end} is left", run.start, run.end())));
        }
        check_run(volume, &run).map_err(|error| record.corrupt(at, error.to_string()))?;
        from = run.end();
        found.push(run);
    }
    Ok(found)
}

/// Checks that a run is within a group.
fn check_run(volume: &Volume, run: &Run) -> Result<()> {
    match run.kind {
        RunKind::Data(block) | RunKind::Unwritten(block) => {
            volume.block_offset(block, run.length, "XFS extent").map(|_| ())
        }
        RunKind::Hole => Ok(()),
    }
}

/// Entries of a node: first blocks, then children.
struct Node<'a> {
    record: Record<'a>,
    header: usize,
    entries: usize,
    level: u16,
}

impl<'a> Node<'a> {
    /// `level` is what the parent says; `None` for a root, whose level is within limits only.
    fn new(record: Record<'a>, header: usize, level: Option<u16>) -> Result<Self> {
        // A root has no magic number before its level.
        let at = if level.is_none() { 0 } else { 4 };
        let (found, entries) = (record.be_u16(at)?, usize::from(record.be_u16(at + 2)?));
        if found > MAX_LEVEL || level.is_some_and(|level| level != found) || (level.is_none() && found == 0) {
            return Err(record.corrupt(at, format!("level {found} of the map where it should not be")));
        }
        let node = Self { record, header, entries, level: found };
        // A leaf's entries are checked where they are read.
        if found > 0 && (entries == 0 || entries > node.room()) {
            return Err(record.corrupt(at + 2, format!("{entries} entries in room for {}", node.room())));
        }
        Ok(node)
    }

    fn room(&self) -> usize {
        self.record.bytes().len().saturating_sub(self.header) / 16
    }

    /// The child that speaks of `block`, with its first block and the end of what it speaks of; no child when the first
    /// one begins later.
    fn find(&self, block: u64, end: u64) -> Result<(Option<(u64, u64)>, u64)> {
        let mut found = None;
        let mut previous = None;
        for index in 0..self.entries {
            let at = self.header + index * 8;
            let first = self.record.be_u64(at)?;
            if previous.is_some_and(|previous| first <= previous) || first >= end {
                return Err(self.record.corrupt(at, "the entries of the map are not in order"));
            }
            if first > block {
                return Ok((found, first));
            }
            previous = Some(first);
            found = Some((first, self.record.be_u64(self.header + (self.room() + index) * 8)?));
        }
        Ok((found, end))
    }
}

fn tree_leaf_at(volume: &Volume, inode: &Inode, fork: Fork, block: u64) -> Result<Leaf> {
    let name = format!("map of inode {}", inode.number);
    let header = if volume.superblock.features.is_v5() { 72 } else { 24 };
    let root = Record::new(inode.fork(fork), &name, inode.fork_offset(fork));
    let mut node = Node::new(root, 4, None)?;
    let (mut start, mut end) = (0, MAX_BLOCKS);
    let mut bytes;
    // One level lower every time, so at most MAX_LEVEL times.
    loop {
        let (found, next) = node.find(block, end)?;
        end = next;
        let Some((first, child)) = found else {
            return Ok(Leaf { start, end, runs: Vec::new() });
        };
        start = start.max(first);
        let level = node.level - 1;
        bytes = volume.read_blocks(child, 1, &name)?;
        let offset = volume.block_offset(child, 1, &name)?;
        let record = Record::new(&bytes, &name, offset);
        if !MAGIC.contains(&record.be_u32(0)?) {
            return Err(record.corrupt(0, "no block of a map"));
        }
        checksum::check_stamp(
            &volume.superblock,
            &record,
            checksum::MAP,
            offset,
            inode.number,
            volume.is_patched(offset, bytes.len()),
        )?;
        node = Node::new(record, header, Some(level))?;
        if level == 0 {
            return Ok(Leaf { start, end, runs: runs(volume, &record, header, node.entries, start, end)? });
        }
    }
}

/// Reads a fork's map front to back; the leaf that was used last is kept.
pub(super) struct Cursor<'a> {
    volume: &'a Volume,
    inode: &'a Inode,
    fork: Fork,
    leaf: Option<Leaf>,
}

impl<'a> Cursor<'a> {
    pub fn new(volume: &'a Volume, inode: &'a Inode, fork: Fork) -> Self {
        Self { volume, inode, fork, leaf: None }
    }

    /// The run that `block` is in, from `block` on.
    pub fn run_at(&mut self, block: u64) -> Result<Run> {
        match &self.leaf {
            Some(leaf) if (leaf.start..leaf.end).contains(&block) => Ok(leaf.run_at(block)),
            _ => {
                let leaf = leaf_at(self.volume, self.inode, self.fork, block)?;
                let run = leaf.run_at(block);
                self.leaf = Some(leaf);
                Ok(run)
            }
        }
    }

    /// Reads `count` blocks of a structure from `block` of the fork on; they need not be next to each other.
    pub fn read(&mut self, block: u64, count: u64, structure: &str) -> Result<Blocks> {
        let mut blocks = Blocks { bytes: Vec::new(), offset: 0, is_patched: false };
        let mut done = 0;
        while done < count {
            let run = self.run_at(block + done)?;
            let RunKind::Data(at) = run.kind else {
                return Err(Error::corrupt(format!("block {} is not there", block + done)).in_structure(structure));
            };
            let length = run.length.min(count - done);
            let part = self.volume.read_blocks(at, length, structure)?;
            let offset = self.volume.block_offset(at, length, structure)?;
            if done == 0 {
                blocks.offset = offset;
            }
            blocks.is_patched |= self.volume.is_patched(offset, part.len());
            blocks.bytes.extend(part);
            done += length;
        }
        Ok(blocks)
    }
}

/// A structure of several blocks.
#[derive(Debug)]
pub(super) struct Blocks {
    pub bytes: Vec<u8>,
    /// Where its first block stands, in bytes.
    pub offset: u64,
    /// Whether the log was replayed over it.
    pub is_patched: bool,
}

/// All runs of a fork, at most `limit`.
pub(super) fn all_runs(volume: &Volume, inode: &Inode, fork: Fork, limit: usize) -> Result<Vec<Run>> {
    let mut found = Vec::new();
    let mut block = 0;
    while block < MAX_BLOCKS {
        let leaf = leaf_at(volume, inode, fork, block)?;
        found.extend(leaf.runs);
        if found.len() > limit {
            return Err(Error::unsupported(format!("a map of more than {limit} extents")).in_structure(inode.name()));
        }
        // Every leaf ends behind the block that was asked for, so this ends.
        block = leaf.end.max(block + 1);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_are_decoded() {
        let bits = 1_u128 << 127 | 5 << 73 | 0x1234 << 21 | 7;
        let run = decode(bits.to_be_bytes());
        assert_eq!(run, Run { start: 5, length: 7, kind: RunKind::Unwritten(0x1234) });
        let run = decode((bits & !(1 << 127)).to_be_bytes());
        assert_eq!(run.kind, RunKind::Data(0x1234));
    }
}
