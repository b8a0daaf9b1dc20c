//! [`Volume`]: the blocks and inodes of one file system.
//!
//! An inode's place follows from its number alone, so nothing but the superblock is read at opening.

use super::inode::Inode;
use super::log::Finished;
use super::superblock::Superblock;
use firn_disk::{Cache, Error, Record, Result, SharedDisk};
use std::sync::Arc;

/// Structures that are kept in memory, in bytes.
const CACHE_BYTES: usize = 6 << 20;
/// Inodes that are read together stand together; so do folder blocks.
const CACHE_BLOCK: usize = 16 << 10;

/// A file system whose superblock was read.
#[derive(Debug)]
pub(super) struct Volume {
    /// What file content is read from.
    pub disk: SharedDisk,
    /// What structures are read from.
    structures: SharedDisk,
    pub superblock: Superblock,
    /// What replaying the log did that is not on `disk`.
    pub finished: Finished,
}

impl Volume {
    /// A file system on a disk that does not change; its structures are cached.
    pub fn new(disk: SharedDisk, superblock: Superblock, finished: Finished) -> Self {
        let structures = Arc::new(Cache::new(disk.clone(), CACHE_BLOCK, CACHE_BYTES));
        Self { disk, structures, superblock, finished }
    }

    /// Where `count` blocks stand, in bytes; an error names `structure`.
    pub fn block_offset(&self, block: u64, count: u64, structure: &str) -> Result<u64> {
        self.superblock.block_offset(block, count).ok_or_else(|| self.superblock.no_block(block, count, structure))
    }

    /// Reads the blocks of a structure. Callers bound `count`.
    pub fn read_blocks(&self, block: u64, count: u64, structure: &str) -> Result<Vec<u8>> {
        let offset = self.block_offset(block, count, structure)?;
        let length = usize::try_from(count * self.superblock.block_bytes()).unwrap_or(usize::MAX);
        self.read_bytes(offset, length, structure)
    }

    /// Reads a structure of `length` bytes at `offset`.
    pub fn read_bytes(&self, offset: u64, length: usize, structure: &str) -> Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        Record::read(&self.structures, &mut bytes, offset, structure)?;
        Ok(bytes)
    }

    /// Whether the log was replayed over a part of these bytes.
    pub fn is_patched(&self, offset: u64, length: usize) -> bool {
        self.finished.is_patched(offset, length as u64)
    }

    /// Reads and checks an inode, in use or not.
    pub fn inode(&self, number: u64) -> Result<Inode> {
        let superblock = &self.superblock;
        let offset = superblock
            .inode_offset(number)
            .ok_or_else(|| Error::not_found(format!("there is no inode {number}")).in_structure("XFS"))?;
        let raw = self.read_bytes(offset, usize::from(superblock.inode_size), &format!("XFS inode {number}"))?;
        let mut inode = Inode::parse(superblock, number, raw, offset)?;
        self.finished.amend(&mut inode);
        Ok(inode)
    }

    /// The free blocks as the groups count them; `None` when one of them is damaged.
    pub fn counted_free_blocks(&self) -> Option<u64> {
        (0..u64::from(self.superblock.groups)).try_fold(0_u64, |sum, group| {
            let superblock = &self.superblock;
            let start = group * u64::from(superblock.group_blocks) * superblock.block_bytes();
            let sector = u64::from(superblock.sector_size);
            let bytes = self.read_bytes(start + sector, usize::from(superblock.sector_size), "XFS free space").ok()?;
            let record = Record::new(&bytes, "XFS free space", start + sector);
            // "XAGF"; free blocks, those of the list, and those of the trees but their roots.
            let is_ours = record.be_u32(0).ok()? == 0x5841_4746 && u64::from(record.be_u32(8).ok()?) == group;
            let counts = [record.be_u32(52), record.be_u32(48), record.be_u32(60)];
            let free = counts.into_iter().try_fold(0, |sum, count| Some(sum + u64::from(count.ok()?)))?;
            (is_ours && free <= superblock.blocks_of_group(group)).then_some(sum + free)
        })
    }
}
