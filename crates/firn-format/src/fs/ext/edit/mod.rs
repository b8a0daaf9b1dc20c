//! Finishing in memory what the guest had begun: fast commits and orphans.
//!
//! The changed blocks are kept beside the disk and put over it at the end; the disk is never written. How much may
//! change is bounded, so that a hostile image cannot fill the memory.

mod fast;
mod mapping;
mod names;
mod orphans;
mod space;

pub(super) use orphans::Orphans;

use super::inode::Inode;
use super::superblock::Superblock;
use super::volume::Volume;
use firn_disk::{Disk, Error, Overlay, Result, SharedDisk, check_range};
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

/// How much may be changed, in bytes.
const MAX_CHANGED: usize = 24 << 20;

/// A disk with changed blocks in memory.
#[derive(Debug)]
struct Edited {
    below: SharedDisk,
    block_size: usize,
    blocks: RwLock<BTreeMap<u64, Vec<u8>>>,
}

impl Disk for Edited {
    fn len(&self) -> u64 {
        self.below.len()
    }

    fn logical_block_size(&self) -> u32 {
        self.below.logical_block_size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(offset, buf.len() as u64, self.len())?;
        self.below.read_at(buf, offset)?;
        let size = self.block_size as u64;
        let blocks = self.blocks.read().unwrap_or_else(PoisonError::into_inner);
        let end = offset + buf.len() as u64;
        for (block, bytes) in blocks.range(offset / size..end.div_ceil(size)) {
            let start = block * size;
            let (from, to) = (start.max(offset), (start + size).min(end));
            let index = |at: u64, origin: u64| usize::try_from(at.saturating_sub(origin)).unwrap_or(usize::MAX);
            let source = bytes.get(index(from, start)..index(to, start));
            let target = buf.get_mut(index(from, offset)..index(to, offset));
            if let (Some(source), Some(target)) = (source, target) {
                target.copy_from_slice(source);
            }
        }
        Ok(())
    }
}

/// A file system that is being finished.
#[derive(Debug)]
pub(super) struct Workbench {
    disk: Arc<Edited>,
    pub volume: Volume,
}

impl Workbench {
    /// Begins with what is on `disk`.
    pub fn new(disk: SharedDisk, superblock: Superblock) -> Self {
        let block_size = superblock.block_len();
        let disk = Arc::new(Edited { below: disk, block_size, blocks: RwLock::default() });
        Self { volume: Volume::direct(disk.clone(), superblock), disk }
    }

    /// Changes a whole block.
    fn put_block(&self, block: u64, bytes: Vec<u8>) -> Result<()> {
        self.volume.block_offset(block, 1, "changed block")?;
        let mut blocks = self.disk.blocks.write().unwrap_or_else(PoisonError::into_inner);
        if blocks.len() >= MAX_CHANGED / self.disk.block_size && !blocks.contains_key(&block) {
            return Err(Error::unsupported(format!("more than {MAX_CHANGED} bytes to change")));
        }
        blocks.insert(block, bytes);
        Ok(())
    }

    /// Changes bytes within one block.
    fn put_bytes(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let size = self.volume.superblock.block_bytes();
        let start = usize::try_from(offset % size).unwrap_or(usize::MAX);
        let mut block = vec![0; self.disk.block_size];
        let block_start = offset - offset % size;
        let there = usize::try_from(self.disk.len().saturating_sub(block_start)).unwrap_or(usize::MAX);
        let count = there.min(block.len());
        self.disk.read_at(block.get_mut(..count).unwrap_or_default(), block_start)?;
        match block.get_mut(start..start.saturating_add(bytes.len())) {
            Some(part) => part.copy_from_slice(bytes),
            None => return Err(Error::corrupt("a structure reaches over two blocks").at_offset(offset)),
        }
        let mut blocks = self.disk.blocks.write().unwrap_or_else(PoisonError::into_inner);
        blocks.insert(offset / size, block);
        Ok(())
    }

    /// Changes an inode; its checksum is set here.
    fn put_inode(&self, number: u32, raw: Vec<u8>) -> Result<()> {
        let raw = Inode::sealed(&self.volume.superblock, number, raw);
        self.put_bytes(self.volume.inode_offset(number)?, &raw)
    }

    /// Changes the superblock, which is written to its first place.
    pub fn put_superblock(&mut self, change: impl FnOnce(&mut [u8])) -> Result<()> {
        let raw = self.volume.superblock.changed(|raw| {
            // A copy that stood elsewhere says where.
            put16(raw, 0x5A, 0);
            change(raw);
        });
        self.put_bytes(super::superblock::OFFSET, &raw)?;
        self.volume.superblock = Superblock::parse(raw, super::superblock::OFFSET)?;
        Ok(())
    }

    /// Puts bytes that do not belong to a structure of the file system in their place.
    pub fn put_foreign(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.put_bytes(offset, bytes)
    }

    /// The disk with all changes in place, and its superblock.
    pub fn finish(self) -> Result<(SharedDisk, Superblock)> {
        let mut overlay = Overlay::new(self.disk.below.clone());
        let blocks = std::mem::take(&mut *self.disk.blocks.write().unwrap_or_else(PoisonError::into_inner));
        for (block, mut bytes) in blocks {
            let start = block * self.disk.block_size as u64;
            let there = usize::try_from(overlay.len().saturating_sub(start)).unwrap_or(usize::MAX);
            bytes.truncate(there);
            overlay.replace(start, bytes.into())?;
        }
        Ok((Arc::new(overlay), self.volume.superblock))
    }
}

/// Writes a little-endian number; nothing where there is no room.
fn put16(raw: &mut [u8], at: usize, value: u16) {
    raw.get_mut(at..at + 2).unwrap_or(&mut [0; 2]).copy_from_slice(&value.to_le_bytes());
}

/// Writes a little-endian number; nothing where there is no room.
fn put32(raw: &mut [u8], at: usize, value: u32) {
    raw.get_mut(at..at + 4).unwrap_or(&mut [0; 4]).copy_from_slice(&value.to_le_bytes());
}
