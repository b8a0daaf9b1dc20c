//! One worker's way from a region of a disk to a leaf of a tree.

use super::SnapshotProgress;
use super::session::{NewBlob, Session};
use crate::blobs::WantedChunk;
use crate::chunker::{BLOCK_BYTES, Block, REGION_BLOCKS, REGION_BYTES, is_zero};
use crate::disk::{PlacedRun, PoolDisk};
use crate::names::PackKind;
use crate::recut::{Piece, Recut};
use crate::seal::{BlobId, BlobType, Compressor};
use crate::tree::{self, Child, Run, RunKind};
use firn_disk::{Disk, ExtentKind, Result, visit_extents};
use std::ops::Range;
use std::sync::atomic::Ordering;

/// A worker with its buffers, which are used again for every region.
pub(super) struct RegionWorker<'a> {
    session: &'a Session<'a>,
    disk: &'a dyn Disk,
    /// The disk in an earlier snapshot, and the ranges that changed since, sorted and apart.
    base: Option<(&'a PoolDisk, &'a [Range<u64>])>,
    progress: &'a SnapshotProgress,
    compressor: Compressor,
    /// The region's bytes.
    bytes: Vec<u8>,
    /// Compressed chunks that are not in a pack yet.
    plain: Vec<u8>,
}

impl<'a> RegionWorker<'a> {
    pub(super) fn new(
        session: &'a Session<'a>,
        disk: &'a dyn Disk,
        base: Option<(&'a PoolDisk, &'a [Range<u64>])>,
        progress: &'a SnapshotProgress,
    ) -> Result<Self> {
        Ok(Self {
            session,
            disk,
            base,
            progress,
            compressor: Session::compressor()?,
            bytes: Vec::new(),
            plain: Vec::new(),
        })
    }

    /// Stores region `region` and answers what stands for it in the tree.
    pub(super) fn store(&mut self, region: u64) -> Result<Child> {
        let length = self.disk.len();
        let range = region * REGION_BYTES..((region + 1) * REGION_BYTES).min(length);
        let blocks = tree::region_blocks(length, region);
        let runs = match self.base {
            None => self.cut_whole(range.clone(), blocks)?,
            Some((base, ranges)) => match self.cut_changed(base, ranges, region, range.clone(), blocks)? {
                Ok(runs) => runs,
                Err(unchanged) => {
                    self.progress.bytes_done.fetch_add(range.end - range.start, Ordering::Relaxed);
                    return Ok(unchanged);
                }
            },
        };
        self.progress.bytes_done.fetch_add(range.end - range.start, Ordering::Relaxed);
        match tree::encode_leaf(&runs) {
            Ok(leaf) => Ok(Child::Node(self.session.store_node(BlobType::Leaf, &leaf)?)),
            Err(uniform) => Ok(uniform),
        }
    }

    fn cut_whole(&mut self, range: Range<u64>, blocks: usize) -> Result<Vec<Run>> {
        let mut kinds = vec![Block::Hole; blocks];
        self.read(range.start, range, &mut kinds)?;
        let cuts = self.session.pool.chunker()?.cut(&kinds, &self.bytes);
        self.store_pieces(cuts.into_iter().map(|cut| Piece::New { kind: cut.kind, blocks: cut.blocks }).collect())
    }

    /// Cuts what changed; the inner `Err` is the base's own child, when nothing did.
    fn cut_changed(
        &mut self,
        base: &PoolDisk,
        ranges: &[Range<u64>],
        region: u64,
        range: Range<u64>,
        blocks: usize,
    ) -> Result<std::result::Result<Vec<Run>, Child>> {
        let first = ranges.partition_point(|dirty| dirty.end <= range.start);
        let dirty: Vec<_> = ranges[first..]
            .iter()
            .take_while(|dirty| dirty.start < range.end)
            .map(|dirty| widen(dirty, &range))
            .collect();
        let base_blocks = tree::region_blocks(base.len(), region);
        if base_blocks != blocks {
            // The end of the disk moved within this region.
            return self.cut_whole(range, blocks).map(Ok);
        }
        if dirty.is_empty() {
            return base.leaf_child(region).map(Err);
        }
        let mut kinds = vec![Block::Hole; blocks];
        let mut changed = vec![None; blocks];
        for dirty in &dirty {
            self.read(range.start, dirty.clone(), &mut kinds)?;
            for block in blocks_of(dirty, range.start) {
                changed[block] = Some(kinds[block]);
            }
        }
        let old = base.leaf(region)?;
        self.bytes.resize(blocks * BLOCK_BYTES, 0);
        let pool = self.session.pool;
        let recut = Recut { old: &old, changed: &changed, bytes: &mut self.bytes };
        let pieces = recut.run(pool.chunker()?, |placed: &PlacedRun, content| match placed.run.kind {
            RunKind::Chunk(id) => pool.blobs().chunks(vec![WantedChunk { id, content }]),
            RunKind::Hole | RunKind::Zero => Ok(()),
        })?;
        self.store_pieces(pieces).map(Ok)
    }

    /// Reads `range` of the disk into the buffer, whose first byte is that of `region_start`, and sets the kinds of
    /// all blocks that it touches. `range` begins and ends at blocks, or at the end of the disk.
    fn read(&mut self, region_start: u64, range: Range<u64>, kinds: &mut [Block]) -> Result<()> {
        let touched = blocks_of(&range, region_start);
        self.bytes.resize(self.bytes.len().max(touched.end * BLOCK_BYTES), 0);
        kinds[touched.clone()].fill(Block::Hole);
        let (disk, bytes, progress) = (self.disk, &mut self.bytes, self.progress);
        visit_extents(disk, range, |kind, run| {
            let blocks = blocks_of(&run, region_start);
            match kind {
                ExtentKind::Hole => {}
                // Half of a block may be data already, or become data with the next run.
                ExtentKind::Zero => {
                    kinds[blocks].iter_mut().filter(|k| **k == Block::Hole).for_each(|k| *k = Block::Zero)
                }
                ExtentKind::Data => {
                    let at = |offset: u64| usize::try_from(offset - region_start).unwrap_or(usize::MAX);
                    let (start, end) = (at(run.start), at(run.end));
                    if kinds[blocks.start] != Block::Data {
                        bytes[blocks.start * BLOCK_BYTES..start].fill(0);
                    }
                    bytes[end..blocks.end * BLOCK_BYTES].fill(0);
                    disk.read_at(&mut bytes[start..end], run.start)?;
                    progress.bytes_read.fetch_add(run.end - run.start, Ordering::Relaxed);
                    kinds[blocks].fill(Block::Data);
                }
            }
            Ok(())
        })?;
        for block in touched {
            if kinds[block] == Block::Data && is_zero(&self.bytes[block * BLOCK_BYTES..(block + 1) * BLOCK_BYTES]) {
                kinds[block] = Block::Zero;
            }
        }
        Ok(())
    }

    /// Names the new chunks, stores those that the pool does not have, and answers the runs of the leaf.
    fn store_pieces(&mut self, pieces: Vec<Piece>) -> Result<Vec<Run>> {
        let id_key = &self.session.pool.blobs().keys.full()?.id;
        let mut runs = Vec::with_capacity(pieces.len());
        let mut new = Vec::new();
        self.plain.clear();
        for piece in pieces {
            let (kind, blocks) = match piece {
                Piece::Kept(run) => {
                    runs.push(run);
                    continue;
                }
                Piece::New { kind, blocks } => (kind, blocks),
            };
            let kind = match kind {
                Block::Hole => RunKind::Hole,
                Block::Zero => RunKind::Zero,
                Block::Data => {
                    let content = &self.bytes[blocks.start * BLOCK_BYTES..blocks.end * BLOCK_BYTES];
                    let id = BlobId::of(id_key, BlobType::Chunk, content);
                    self.progress.bytes_data.fetch_add(content.len() as u64, Ordering::Relaxed);
                    if self.session.claim(&id)? {
                        let start = self.plain.len();
                        self.compressor.append_plain(content, &mut self.plain);
                        new.push(NewBlob { kind: BlobType::Chunk, id, plain: start..self.plain.len() });
                    }
                    RunKind::Chunk(id)
                }
            };
            // A run of one region: at most 4096 blocks.
            runs.push(Run { kind, blocks: u16::try_from(blocks.len()).unwrap_or(u16::MAX) });
        }
        self.session.append(PackKind::Data, &new, &self.plain)?;
        Ok(runs)
    }
}

/// The blocks of a region that a range of bytes touches.
fn blocks_of(range: &Range<u64>, region_start: u64) -> Range<usize> {
    let block = BLOCK_BYTES as u64;
    let index = |number: u64| usize::try_from(number).unwrap_or(REGION_BLOCKS).min(REGION_BLOCKS);
    index((range.start - region_start) / block)..index((range.end - region_start).div_ceil(block))
}

/// `dirty` widened to whole blocks, within `region`.
fn widen(dirty: &Range<u64>, region: &Range<u64>) -> Range<u64> {
    let block = BLOCK_BYTES as u64;
    let start = dirty.start.max(region.start);
    let end = dirty.end.min(region.end);
    start / block * block..(end.div_ceil(block) * block).min(region.end)
}
