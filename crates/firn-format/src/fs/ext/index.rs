//! Looking a name up by the index of a large folder.
//!
//! ```text
//! root    block 0: `.`, `..`, then at 24: 0 (4), hash version, 8, levels, flags;  at 32 the entries
//! node    one empty entry of 8 bytes, then the entries
//! entries the first: room (2), number (2), child (4);  the others: hash from which on (4), child (4)
//! ```
//!
//! A hash with its lowest bit set goes on from the block before. An index that does not make sense is not used: the
//! folder is then looked through name by name.
//!
//! Source: the kernel's `fs/ext4/namei.c` (`dx_probe`, `ext4_htree_next_block`).

use super::folder::{BlockKind, FolderBlock, index_start, read_block, visit_block};
use super::hash::Hasher;
use super::inode::Inode;
use super::volume::Volume;
use firn_disk::{Error, Record, Result};
use std::ops::ControlFlow;

/// More levels than any kernel makes.
const MAX_LEVELS: u8 = 3;
const CHILD_MASK: u32 = 0x0FFF_FFFF;

/// One level of the way down: its entries, and which one was taken.
#[derive(Debug, Clone)]
struct Step {
    entries: Vec<(u32, u32)>,
    taken: usize,
}

/// The way from the root to the block of names that a hash belongs to.
#[derive(Debug, Clone)]
pub(super) struct Path {
    steps: Vec<Step>,
    hash: u32,
}

impl Path {
    /// The block of names, within the folder.
    pub fn names(&self) -> Option<u64> {
        let step = self.steps.last()?;
        step.entries.get(step.taken).map(|(_, child)| u64::from(*child))
    }
}

/// Goes down to where `name` should be.
pub(super) fn probe(volume: &Volume, folder: &Inode, name: &[u8]) -> Result<Path> {
    let root = read_block(volume, folder, 0)?;
    let record = record_of(volume, &root);
    let (version, levels) = (record.u8(28)?, record.u8(30)?);
    if levels >= MAX_LEVELS {
        return Err(record.corrupt(30, format!("{levels} levels of index")));
    }
    let Some(hasher) = Hasher::new(version, volume.superblock.flags, volume.superblock.hash_seed) else {
        return Err(record.unsupported(28, format!("folder hash {version}")));
    };
    let (hash, _) = hasher.hash(name);
    let mut path = Path { steps: vec![step(volume, &root, hash)?], hash };
    for _ in 0..levels {
        let Some(index) = path.names() else {
            return Err(folder.corrupt("the folder's index has no entry"));
        };
        let node = read_block(volume, folder, index)?;
        if node.kind != BlockKind::Node {
            return Err(folder.corrupt(format!("block {index} is no node of the folder's index")));
        }
        path.steps.push(step(volume, &node, hash)?);
    }
    Ok(path)
}

fn record_of<'a>(volume: &Volume, block: &'a FolderBlock) -> Record<'a> {
    Record::new(&block.bytes, "folder index", block.block * volume.superblock.block_bytes())
}

fn step(volume: &Volume, block: &FolderBlock, hash: u32) -> Result<Step> {
    let record = record_of(volume, block);
    let start = index_start(&record, block.kind)?;
    let (room, count) = (usize::from(record.le_u16(start)?), usize::from(record.le_u16(start + 2)?));
    if count == 0 || count > room {
        return Err(record.corrupt(start, format!("{count} index entries in room for {room}")));
    }
    let mut entries = Vec::with_capacity(count.min(1 << 13));
    for at in (start..).step_by(8).take(count) {
        let from = if at == start { 0 } else { record.le_u32(at)? };
        entries.push((from, record.le_u32(at + 4)? & CHILD_MASK));
    }
    if !entries.is_sorted_by_key(|(from, _)| *from) {
        return Err(record.corrupt(start, "the index entries are not in order"));
    }
    let taken = entries.iter().skip(1).take_while(|(from, _)| *from <= hash).count();
    Ok(Step { entries, taken })
}

/// Moves to the next block of names if it goes on with the same hash.
fn advance(volume: &Volume, folder: &Inode, path: &mut Path) -> Result<bool> {
    let Some(level) = path.steps.iter().rposition(|step| step.taken + 1 < step.entries.len()) else {
        return Ok(false);
    };
    let Some(here) = path.steps.get_mut(level) else { return Ok(false) };
    here.taken += 1;
    let (from, mut child) = here.entries.get(here.taken).copied().unwrap_or_default();
    if from & !1 != path.hash {
        return Ok(false);
    }
    for below in path.steps.iter_mut().skip(level + 1) {
        let node = read_block(volume, folder, u64::from(child))?;
        if node.kind != BlockKind::Node {
            return Err(Error::corrupt("a node of the folder's index is none").in_structure(folder.name()));
        }
        *below = step(volume, &node, 0)?;
        child = below.entries.first().map_or(0, |(_, child)| *child);
    }
    Ok(true)
}

/// The inode of `name`, by the index.
pub(super) fn find(volume: &Volume, folder: &Inode, name: &[u8]) -> Result<Option<u32>> {
    let mut path = probe(volume, folder, name)?;
    let blocks = folder.size / volume.superblock.block_bytes();
    // Each turn is another block of the folder.
    for _ in 0..blocks {
        let Some(index) = path.names() else { return Ok(None) };
        let block = read_block(volume, folder, index)?;
        // A block of names that became empty looks like a node.
        if block.kind == BlockKind::Root {
            return Err(folder.corrupt(format!("block {index} of the folder holds no names")));
        }
        let mut found = None;
        let _ = visit_block(volume, folder, &block, &mut |entry| {
            if entry.name != name {
                return Ok(ControlFlow::Continue(()));
            }
            found = Some(entry.inode);
            Ok(ControlFlow::Break(()))
        })?;
        if found.is_some() || !advance(volume, folder, &mut path)? {
            return Ok(found);
        }
    }
    Ok(None)
}
