//! Where the blocks of a file are: by an extent tree or by indirect blocks, behind one face.
//!
//! A file's map is read leaf by leaf, as it is needed, so that a file of millions of pieces costs no memory.

use super::inode::{Inode, flag};
use super::volume::Volume;
use super::{extent, indirect};
pub(super) use crate::fs::run::{Run, RunKind};
use firn_disk::Result;

/// What one leaf of the map says about `start..end`. Blocks of no run are a hole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Leaf {
    pub start: u64,
    pub end: u64,
    /// In order, not overlapping, within `start..end`.
    pub runs: Vec<Run>,
}

impl Leaf {
    /// A leaf that says that there is nothing.
    pub fn hole(start: u64, end: u64) -> Self {
        Self { start, end, runs: Vec::new() }
    }

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

/// The leaf that knows about `block` of a file, which has at least that block's number of blocks.
pub(super) fn leaf_at(volume: &Volume, inode: &Inode, block: u64) -> Result<Leaf> {
    if inode.has(flag::EXTENTS) {
        extent::leaf_at(volume, inode, block)
    } else {
        indirect::leaf_at(volume, inode, block)
    }
}

/// Calls `visit` with every leaf of `0..end` blocks in order.
pub(super) fn visit_leaves(
    volume: &Volume,
    inode: &Inode,
    end: u64,
    mut visit: impl FnMut(Leaf) -> Result<()>,
) -> Result<()> {
    let mut block = 0;
    while block < end {
        let leaf = leaf_at(volume, inode, block)?;
        // Every leaf ends behind the block that was asked for, so this ends.
        block = leaf.end.max(block + 1);
        visit(leaf)?;
    }
    Ok(())
}
