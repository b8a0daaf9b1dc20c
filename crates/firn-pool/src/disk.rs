//! [`PoolDisk`]: one disk of a snapshot, read out of the pool.

use crate::blobs::{Blobs, WantedChunk};
use crate::chunker::{BLOCK_BYTES, REGION_BYTES};
use crate::manifest::DiskRecord;
use crate::seal::{BlobId, BlobType};
use crate::tree::{self, Child, FAN_OUT, Run, RunKind};
use firn_disk::{Disk, Extent, ExtentKind, Result, check_range};
use lru::LruCache;
use std::fmt;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// Nodes kept in memory; a leaf of chunks of average size has about 9 KB.
const KEPT_NODES: usize = 256;
/// Chunks kept in memory after a part of them was read, at most 128 KiB each.
const KEPT_CHUNKS: usize = 96;

/// A disk of a snapshot. Reading it fetches and opens what is needed, and checks every byte on the way.
///
/// A large read fetches up to 16 pieces at once. A read of part of a chunk keeps the chunk for the next one.
pub struct PoolDisk {
    blobs: Arc<Blobs>,
    record: DiskRecord,
    inner_nodes: Kept<(u32, u64), Vec<Child>>,
    leaves: Kept<u64, Vec<PlacedRun>>,
    chunks: Kept<BlobId, Vec<u8>>,
}

struct Kept<K, V>(Mutex<LruCache<K, Arc<V>>>);

impl<K: std::hash::Hash + Eq, V> Kept<K, V> {
    fn new(most: usize) -> Self {
        Self(Mutex::new(LruCache::new(NonZeroUsize::new(most).unwrap_or(NonZeroUsize::MIN))))
    }

    fn get(&self, key: &K) -> Option<Arc<V>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    fn put(&self, key: K, value: Arc<V>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).put(key, value);
    }
}

/// A run of a leaf with where it starts in the region, in blocks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PlacedRun {
    pub(crate) start: usize,
    pub(crate) run: Run,
}

impl PlacedRun {
    pub(crate) fn blocks(&self) -> Range<usize> {
        self.start..self.start + usize::from(self.run.blocks)
    }
}

impl fmt::Debug for PoolDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolDisk").field("record", &self.record).finish_non_exhaustive()
    }
}

/// A part of a chunk that was asked for.
struct Part<'a> {
    id: BlobId,
    chunk_bytes: usize,
    skip: usize,
    into: &'a mut [u8],
}

impl PoolDisk {
    pub(crate) fn new(blobs: Arc<Blobs>, record: DiskRecord) -> Self {
        Self {
            blobs,
            record,
            inner_nodes: Kept::new(KEPT_NODES),
            leaves: Kept::new(KEPT_NODES),
            chunks: Kept::new(KEPT_CHUNKS),
        }
    }

    /// What the manifest says of the disk.
    pub fn record(&self) -> &DiskRecord {
        &self.record
    }

    /// What stands at `region` on the level of the leaves.
    pub(crate) fn leaf_child(&self, region: u64) -> Result<Child> {
        let mut child = self.record.root;
        for level in (1..=tree::level_count(self.record.length)).rev() {
            let Child::Node(id) = child else { return Ok(child) };
            let span = FAN_OUT.saturating_pow(level);
            let first = region / span * span;
            let children = self.inner_node(level, first, &id)?;
            let number = (region - first) / FAN_OUT.saturating_pow(level - 1);
            // `decode_inner` made sure of the number of children.
            child = usize::try_from(number).ok().and_then(|n| children.get(n)).copied().unwrap_or(Child::Hole);
        }
        Ok(child)
    }

    fn inner_node(&self, level: u32, first: u64, id: &BlobId) -> Result<Arc<Vec<Child>>> {
        if let Some(children) = self.inner_nodes.get(&(level, first)) {
            return Ok(children);
        }
        let count = tree::child_count(self.record.length, level, first);
        let bytes = self.blobs.node(BlobType::Inner, id)?;
        let children = Arc::new(tree::decode_inner(&bytes, count)?);
        self.inner_nodes.put((level, first), children.clone());
        Ok(children)
    }

    /// The runs of a region.
    pub(crate) fn leaf(&self, region: u64) -> Result<Arc<Vec<PlacedRun>>> {
        if let Some(runs) = self.leaves.get(&region) {
            return Ok(runs);
        }
        let runs = Arc::new(self.read_leaf(region, self.leaf_child(region)?)?);
        self.leaves.put(region, runs.clone());
        Ok(runs)
    }

    fn read_leaf(&self, region: u64, child: Child) -> Result<Vec<PlacedRun>> {
        let blocks = tree::region_blocks(self.record.length, region);
        let whole = |kind| Run { kind, blocks: u16::try_from(blocks).unwrap_or(0) };
        let runs = match child {
            Child::Hole => vec![whole(RunKind::Hole)],
            Child::Zero => vec![whole(RunKind::Zero)],
            Child::Node(id) => tree::decode_leaf(&self.blobs.node(BlobType::Leaf, &id)?, blocks)?,
        };
        let mut start = 0;
        let place = |run: Run| {
            let placed = PlacedRun { start, run };
            start += usize::from(run.blocks);
            placed
        };
        Ok(runs.into_iter().map(place).collect())
    }

    /// Splits what was asked of one region into whole chunks and parts of chunks, and fills in zeros.
    fn split<'a>(
        runs: &[PlacedRun],
        mut buf: &'a mut [u8],
        mut at: usize,
        whole: &mut Vec<WantedChunk<'a>>,
        parts: &mut Vec<Part<'a>>,
    ) {
        let first = runs.partition_point(|placed| placed.blocks().end * BLOCK_BYTES <= at);
        for placed in &runs[first.min(runs.len())..] {
            if buf.is_empty() {
                return;
            }
            let bytes = placed.blocks().start * BLOCK_BYTES..placed.blocks().end * BLOCK_BYTES;
            let count = (bytes.end - at).min(buf.len());
            let (now, later) = std::mem::take(&mut buf).split_at_mut(count);
            match placed.run.kind {
                RunKind::Hole | RunKind::Zero => now.fill(0),
                RunKind::Chunk(id) if count == bytes.len() => whole.push(WantedChunk { id, content: now }),
                RunKind::Chunk(id) => {
                    parts.push(Part { id, chunk_bytes: bytes.len(), skip: at - bytes.start, into: now });
                }
            }
            buf = later;
            at += count;
        }
    }

    fn fill_parts(&self, parts: Vec<Part<'_>>) -> Result<()> {
        for part in parts {
            let chunk = match self.chunks.get(&part.id) {
                Some(chunk) => chunk,
                None => {
                    let mut content = vec![0; part.chunk_bytes];
                    self.blobs.chunks(vec![WantedChunk { id: part.id, content: &mut content }])?;
                    let chunk = Arc::new(content);
                    self.chunks.put(part.id, chunk.clone());
                    chunk
                }
            };
            part.into.copy_from_slice(&chunk[part.skip..part.skip + part.into.len()]);
        }
        Ok(())
    }
}

impl Disk for PoolDisk {
    fn len(&self) -> u64 {
        self.record.length
    }

    fn logical_block_size(&self) -> u32 {
        self.record.logical_block_size
    }

    fn read_at(&self, mut buf: &mut [u8], mut offset: u64) -> Result<()> {
        check_range(offset, buf.len() as u64, self.record.length)?;
        let (mut whole, mut parts) = (Vec::new(), Vec::new());
        while !buf.is_empty() {
            let (region, at) = (offset / REGION_BYTES, offset % REGION_BYTES);
            let count = usize::try_from(REGION_BYTES - at).unwrap_or(usize::MAX).min(buf.len());
            let (now, later) = buf.split_at_mut(count);
            let runs = self.leaf(region)?;
            Self::split(&runs, now, usize::try_from(at).unwrap_or(usize::MAX), &mut whole, &mut parts);
            buf = later;
            offset += count as u64;
        }
        self.blobs.chunks(whole)?;
        self.fill_parts(parts)
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        check_range(offset, 1, self.record.length)?;
        let (region, at) = (offset / REGION_BYTES, offset % REGION_BYTES);
        let region_end = ((region + 1) * REGION_BYTES).min(self.record.length);
        let runs = self.leaf(region)?;
        let block = usize::try_from(at / BLOCK_BYTES as u64).unwrap_or(usize::MAX);
        let first = runs.partition_point(|placed| placed.blocks().end <= block);
        let kind_of = |placed: &PlacedRun| match placed.run.kind {
            RunKind::Hole => ExtentKind::Hole,
            RunKind::Zero => ExtentKind::Zero,
            RunKind::Chunk(_) => ExtentKind::Data,
        };
        let kind = runs.get(first).map_or(ExtentKind::Data, kind_of);
        let same = runs.iter().skip(first).take_while(|placed| kind_of(placed) == kind);
        let end_block = same.last().map_or(block + 1, |placed| placed.blocks().end);
        let end = (region * REGION_BYTES + (end_block * BLOCK_BYTES) as u64).min(region_end);
        Ok(Extent { kind, length: end - offset })
    }
}
