//! [`Volume`]: the blocks, group descriptors and inodes of one file system.
//!
//! A group descriptor (32 bytes, 64 with 64bit):
//!
//! ```text
//! 0x00 block bitmap  0x04 inode bitmap  0x08 inode table  0x0C free clusters  0x0E free inodes  0x10 folders
//! 0x12 flags  0x18 block bitmap's checksum  0x1A inode bitmap's  0x1C unused inodes  0x1E its own checksum
//! 0x20 ... the high halves of the same
//! ```
//!
//! Descriptors are read when they are needed, so that opening a file system of many terabytes costs nothing. One
//! that is damaged is read from the copies behind the superblock's copies.
//!
//! Source: the kernel's `fs/ext4/ext4.h` (`struct ext4_group_desc`), `fs/ext4/super.c` (`descriptor_loc`).

use super::checksum::{crc16, crc32c, low16};
use super::features::{incompat, ro_compat};
use super::inode::Inode;
use super::superblock::Superblock;
use firn_disk::{Cache, Error, Record, Result, SharedDisk, check_range};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Structures that are kept in memory, in bytes.
const CACHE_BYTES: usize = 6 << 20;
/// Inodes that are read together stand together; so do folder blocks.
const CACHE_BLOCK: usize = 16 << 10;
/// How many copies of a damaged descriptor are tried.
const DESCRIPTOR_COPIES: usize = 4;

/// A file system whose superblock was read.
#[derive(Debug)]
pub(super) struct Volume {
    /// What file content is read from.
    pub disk: SharedDisk,
    /// What structures are read from.
    structures: SharedDisk,
    pub superblock: Superblock,
    /// Descriptors that were taken from a copy.
    copies_used: AtomicU64,
}

/// What is needed of a group descriptor.
#[derive(Debug, Clone)]
pub(super) struct Group {
    pub raw: Vec<u8>,
    /// Where it stood, in bytes.
    pub offset: u64,
    pub block_bitmap: u64,
    pub inode_bitmap: u64,
    pub inode_table: u64,
    pub free_clusters: u32,
    pub free_inodes: u32,
    pub folders: u32,
    pub flags: u16,
    pub unused_inodes: u32,
}

impl Volume {
    /// A file system on a disk that does not change; its structures are cached.
    pub fn cached(disk: SharedDisk, superblock: Superblock) -> Self {
        let structures = Arc::new(Cache::new(disk.clone(), CACHE_BLOCK.max(superblock.block_len()), CACHE_BYTES));
        Self { disk, structures, superblock, copies_used: AtomicU64::new(0) }
    }

    /// A file system on a disk that may change between two calls.
    pub fn direct(disk: SharedDisk, superblock: Superblock) -> Self {
        Self { structures: disk.clone(), disk, superblock, copies_used: AtomicU64::new(0) }
    }

    /// How many group descriptors were damaged and taken from a copy.
    pub fn copies_used(&self) -> u64 {
        self.copies_used.load(Ordering::Relaxed)
    }

    /// The byte at which `count` blocks from `block` on begin, when they lie in the file system.
    pub fn block_offset(&self, block: u64, count: u64, structure: &str) -> Result<u64> {
        let superblock = &self.superblock;
        if block < u64::from(superblock.first_data_block) || check_range(block, count, superblock.blocks).is_err() {
            return Err(Error::corrupt(format!(
                "{count} blocks at block {block} are not within the file system's {} blocks",
                superblock.blocks
            ))
            .in_structure(structure));
        }
        // Fewer than 2^47 blocks of at most 2^16 bytes.
        Ok(block * superblock.block_bytes())
    }

    /// Reads one block of a structure; `structure` names it in errors.
    pub fn read_block(&self, block: u64, structure: &str) -> Result<Vec<u8>> {
        let offset = self.block_offset(block, 1, structure)?;
        self.read_bytes(offset, self.superblock.block_len(), structure)
    }

    /// Reads a structure of `length` bytes at `offset`.
    pub fn read_bytes(&self, offset: u64, length: usize, structure: &str) -> Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        Record::read(&self.structures, &mut bytes, offset, structure)?;
        Ok(bytes)
    }

    /// The descriptor of a group, from its first place or else from a copy.
    pub fn group(&self, group: u32) -> Result<Group> {
        if group >= self.superblock.groups {
            return Err(Error::corrupt(format!("group {group} of {}", self.superblock.groups)));
        }
        let mut first = None;
        for (copy, offset) in self.descriptor_offsets(group).into_iter().enumerate() {
            match self.read_group(group, offset) {
                Ok(descriptor) => {
                    if copy > 0 {
                        self.copies_used.fetch_add(1, Ordering::Relaxed);
                    }
                    return Ok(descriptor);
                }
                Err(error) => {
                    first.get_or_insert(error);
                }
            }
        }
        Err(first.unwrap_or_else(|| Error::corrupt(format!("group {group} has no descriptor"))))
    }

    /// Where the descriptor of a group and its copies stand, in bytes.
    fn descriptor_offsets(&self, group: u32) -> Vec<u64> {
        let superblock = &self.superblock;
        let size = u64::from(superblock.descriptor_size);
        let per_block = superblock.block_size / u32::from(superblock.descriptor_size);
        let (index, within) = (group / per_block, u64::from(group % per_block) * size);
        let at = |block: u64| block.saturating_mul(superblock.block_bytes()).saturating_add(within);
        if superblock.features.incompat(incompat::META_BG) && index >= superblock.first_meta_bg {
            // One block of descriptors stands in the first, second and last of the groups that it describes.
            let first = index.saturating_mul(per_block);
            let last = first.saturating_add(per_block - 1);
            return [first, first.saturating_add(1), last]
                .into_iter()
                .filter(|group| *group < superblock.groups)
                .map(|group| at(superblock.group_start(group) + self.superblock_blocks(group)))
                .collect();
        }
        let first = if superblock.block_size == 1024 { 2 } else { 1 };
        let copies = (1..superblock.groups.min(100)).filter(|group| superblock.group_has_superblock(*group));
        std::iter::once(at(first + u64::from(index)))
            .chain(copies.take(DESCRIPTOR_COPIES).map(|group| at(superblock.group_start(group) + 1 + u64::from(index))))
            .collect()
    }

    /// Blocks at the start of a group before the descriptors of a `meta_bg` group.
    fn superblock_blocks(&self, group: u32) -> u64 {
        let superblock = &self.superblock;
        // With 1 KiB blocks and clusters, block 0 is the boot block and still belongs to group 0.
        let boot = superblock.block_size == 1024 && group == 0 && superblock.first_data_block == 0;
        u64::from(superblock.group_has_superblock(group)) + u64::from(boot)
    }

    fn read_group(&self, group: u32, offset: u64) -> Result<Group> {
        let structure = format!("ext group descriptor {group}");
        let raw = self.read_bytes(offset, usize::from(self.superblock.descriptor_size), &structure)?;
        let record = Record::new(&raw, &structure, offset);
        if let Some(counted) = group_checksum(&self.superblock, group, &raw) {
            let stored = record.le_u16(0x1E)?;
            if stored != counted {
                return Err(record.corrupt(0x1E, format!("the checksum is {stored:#06x}, not {counted:#06x}")));
            }
        }
        let wide = raw.len() >= 64;
        let block = |low: usize, high: usize| -> Result<u64> {
            let high = if wide { u64::from(record.le_u32(high)?) << 32 } else { 0 };
            Ok(u64::from(record.le_u32(low)?) | high)
        };
        let count = |low: usize, high: usize| -> Result<u32> {
            let high = if wide { u32::from(record.le_u16(high)?) << 16 } else { 0 };
            Ok(u32::from(record.le_u16(low)?) | high)
        };
        let found = Group {
            offset,
            block_bitmap: block(0x0, 0x20)?,
            inode_bitmap: block(0x4, 0x24)?,
            inode_table: block(0x8, 0x28)?,
            free_clusters: count(0xC, 0x2C)?,
            free_inodes: count(0xE, 0x2E)?,
            folders: count(0x10, 0x30)?,
            flags: record.le_u16(0x12)?,
            unused_inodes: count(0x1C, 0x32)?,
            raw: Vec::new(),
        };
        self.block_offset(found.inode_table, self.inode_table_blocks(), &structure)?;
        Ok(Group { raw, ..found })
    }

    /// Blocks of the inode table of a group.
    pub fn inode_table_blocks(&self) -> u64 {
        let superblock = &self.superblock;
        (u64::from(superblock.inodes_per_group) * u64::from(superblock.inode_size)).div_ceil(superblock.block_bytes())
    }

    /// Where an inode stands, in bytes.
    pub fn inode_offset(&self, number: u32) -> Result<u64> {
        let superblock = &self.superblock;
        if number == 0 || number > superblock.inodes {
            return Err(Error::not_found(format!("there is no inode {number}: the last one is {}", superblock.inodes)));
        }
        let (group, index) = ((number - 1) / superblock.inodes_per_group, (number - 1) % superblock.inodes_per_group);
        let table = self.group(group)?.inode_table;
        Ok(table * superblock.block_bytes() + u64::from(index) * u64::from(superblock.inode_size))
    }

    /// Reads and checks an inode, in use or not.
    pub fn inode(&self, number: u32) -> Result<Inode> {
        let offset = self.inode_offset(number)?;
        let structure = format!("ext inode {number}");
        let raw = self.read_bytes(offset, usize::from(self.superblock.inode_size), &structure)?;
        Inode::parse(&self.superblock, number, raw, offset)
    }
}

/// The checksum that a descriptor should have; `None` where descriptors have none.
pub(super) fn group_checksum(superblock: &Superblock, group: u32, raw: &[u8]) -> Option<u16> {
    let (before, rest) = raw.split_at_checked(0x1E)?;
    let (_, after) = rest.split_at_checked(2)?;
    if superblock.has_checksums() {
        let seed = crc32c(superblock.checksum_seed, &group.to_le_bytes());
        return Some(low16(crc32c(crc32c(crc32c(seed, before), &[0, 0]), after)));
    }
    if superblock.features.ro_compat(ro_compat::GDT_CSUM) {
        let seed = crc16(crc16(!0, &superblock.uuid), &group.to_le_bytes());
        let tail = if superblock.is_64bit() { after } else { &[] };
        return Some(crc16(crc16(seed, before), tail));
    }
    None
}
