//! Block maps of ext2 and ext3: fifteen block numbers in the inode.
//!
//! ```text
//! 0..12   the first twelve blocks
//! 12      a block of block numbers
//! 13      a block of blocks of block numbers
//! 14      one level more
//! ```
//!
//! Zero is a hole, at every level. There is no checksum; a number outside of the file system is refused.
//!
//! Source: the kernel's `fs/ext4/indirect.c` (`ext4_block_to_path`).

use super::inode::{BLOCK_MAP, Inode};
use super::map::{Leaf, Run, RunKind};
use super::volume::Volume;
use firn_disk::{Record, Result};

const DIRECT: u64 = 12;

/// The leaf that knows about `block`.
pub(super) fn leaf_at(volume: &Volume, inode: &Inode, block: u64) -> Result<Leaf> {
    let map = inode.block_map()?;
    let offset = inode.offset + BLOCK_MAP as u64;
    if block < DIRECT {
        let record = Record::new(&map, "block map", offset);
        return runs(volume, &record, 0, 12);
    }
    let per_block = volume.superblock.block_bytes() / 4;
    let mut start = DIRECT;
    for level in 1..=3_u32 {
        let span = per_block.pow(level);
        if block - start < span {
            let pointer = u64::from(inode.record().le_u32(BLOCK_MAP + 44 + 4 * level as usize)?);
            return descend(volume, inode, pointer, level, start, block);
        }
        start += span;
    }
    Err(inode.corrupt(format!("block {block} is more than indirect blocks can hold")))
}

/// Goes down from the block of numbers `pointer`, `level` levels above the file's blocks, of which the first is
/// `start`.
fn descend(volume: &Volume, inode: &Inode, pointer: u64, level: u32, start: u64, block: u64) -> Result<Leaf> {
    let per_block = volume.superblock.block_bytes() / 4;
    let (mut pointer, mut start) = (pointer, start);
    for level in (1..=level).rev() {
        let span = per_block.pow(level);
        if pointer == 0 {
            return Ok(Leaf::hole(start, start + span));
        }
        let name = format!("indirect block of inode {}", inode.number);
        let bytes = volume.read_block(pointer, &name)?;
        let record = Record::new(&bytes, &name, pointer * volume.superblock.block_bytes());
        if level == 1 {
            return runs(volume, &record, start, bytes.len() / 4);
        }
        let below = span / per_block;
        let index = (block - start) / below;
        start += index * below;
        pointer = u64::from(record.le_u32(usize::try_from(index * 4).unwrap_or(usize::MAX))?);
    }
    Err(inode.corrupt("the block map has no level"))
}

/// The numbers of one block as runs.
fn runs(volume: &Volume, record: &Record<'_>, start: u64, count: usize) -> Result<Leaf> {
    let mut runs: Vec<Run> = Vec::new();
    for (index, logical) in (0..count).zip(start..) {
        let block = u64::from(record.le_u32(index * 4)?);
        if block == 0 {
            continue;
        }
        if let Some(last) = runs.last_mut()
            && last.end() == logical
            && let RunKind::Data(first) = last.kind
            && first + last.length == block
        {
            last.length += 1;
        } else {
            runs.push(Run { start: logical, length: 1, kind: RunKind::Data(block) });
        }
    }
    for run in &runs {
        if let RunKind::Data(block) = run.kind {
            volume
                .block_offset(block, run.length, "ext block map")
                .map_err(|error| record.corrupt(0, error.to_string()))?;
        }
    }
    Ok(Leaf { start, end: start + count as u64, runs })
}
