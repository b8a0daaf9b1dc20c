//! [`Cache`]: a bounded read cache over a slower disk.
//!
//! Whole blocks are kept, the least recently used go first. A read of many blocks that are not in the cache
//! goes to the disk below in one piece and is not kept, so that a stream does not wash out the small
//! structures that are read again and again.

use crate::{Disk, Extent, Result, check_range};
use lru::LruCache;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};

/// Reads of at least this many blocks bypass the cache.
const STREAM_BLOCKS: u64 = 16;

/// A disk whose blocks are kept after they were read.
#[derive(Debug)]
pub struct Cache<D> {
    below: D,
    block_bytes: usize,
    blocks: Mutex<LruCache<u64, Arc<[u8]>>>,
}

impl<D: Disk> Cache<D> {
    /// Keeps at most `capacity_bytes` of `below`, at least one block, in blocks of `block_bytes`.
    ///
    /// # Panics
    /// When `block_bytes` is zero.
    pub fn new(below: D, block_bytes: usize, capacity_bytes: usize) -> Self {
        assert!(block_bytes > 0, "a cache has blocks of at least one byte");
        let count = NonZeroUsize::new(capacity_bytes / block_bytes).unwrap_or(NonZeroUsize::MIN);
        Self { below, block_bytes, blocks: Mutex::new(LruCache::new(count)) }
    }

    /// The disk below.
    pub fn below(&self) -> &D {
        &self.below
    }

    fn block(&self, index: u64) -> Result<Arc<[u8]>> {
        let cached = self.blocks.lock().unwrap_or_else(PoisonError::into_inner).get(&index).cloned();
        if let Some(block) = cached {
            return Ok(block);
        }
        // The lock is not held while reading: two threads may read one block twice, none waits for another.
        let start = index * self.block_bytes as u64;
        let length = usize::try_from(self.below.len() - start).unwrap_or(usize::MAX).min(self.block_bytes);
        let mut bytes = vec![0; length];
        self.below.read_at(&mut bytes, start)?;
        let block: Arc<[u8]> = bytes.into();
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner).put(index, block.clone());
        Ok(block)
    }
}

impl<D: Disk> Disk for Cache<D> {
    fn len(&self) -> u64 {
        self.below.len()
    }

    fn logical_block_size(&self) -> u32 {
        self.below.logical_block_size()
    }

    fn read_at(&self, mut buf: &mut [u8], mut offset: u64) -> Result<()> {
        check_range(offset, buf.len() as u64, self.len())?;
        let block_bytes = self.block_bytes as u64;
        if buf.len() as u64 / block_bytes >= STREAM_BLOCKS {
            return self.below.read_at(buf, offset);
        }
        while !buf.is_empty() {
            let block = self.block(offset / block_bytes)?;
            let into = usize::try_from(offset % block_bytes).unwrap_or(0);
            let count = (block.len() - into).min(buf.len());
            let (now, later) = buf.split_at_mut(count);
            now.copy_from_slice(&block[into..into + count]);
            buf = later;
            offset += count as u64;
        }
        Ok(())
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        self.below.extent_at(offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, FaultDisk};
    use crate::{ErrorKind, MemDisk};

    #[test]
    fn conforms_with_capacity_for_a_few_blocks() {
        let bytes = testing::pattern(50_001, 7);
        for capacity in [0, 1024, 4096, 1 << 20] {
            testing::check_disk(&Cache::new(MemDisk::from(bytes.clone()), 512, capacity), &bytes, 8);
        }
    }

    #[test]
    fn a_block_is_read_once_and_an_error_is_not_kept() {
        let disk = FaultDisk::new(MemDisk::from(testing::pattern(4096, 9)));
        disk.fail_reads_in(0..512, ErrorKind::Io);
        let cache = Cache::new(&disk, 512, 4096);
        let mut buf = [0; 10];
        assert_eq!(cache.read_at(&mut buf, 5).unwrap_err().kind(), ErrorKind::Io);
        disk.heal();
        cache.read_at(&mut buf, 5).unwrap();
        let reads = disk.reads();
        cache.read_at(&mut buf, 100).unwrap();
        assert_eq!(disk.reads(), reads, "the second read of a block came from the cache");
    }
}
