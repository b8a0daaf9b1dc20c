//! [`Superblock`]: the first sector of the file system, and the arithmetic that follows from it.
//!
//! ```text
//! 0x00 "XFSB"  0x04 block size  0x08 blocks  0x20 uuid  0x30 log's first block  0x38 root inode
//! 0x54 blocks of a group  0x58 groups  0x60 blocks of the log  0x64 version  0x66 sector  0x68 inode size
//! 0x6C label (12)  0x78 their logarithms: block, sector, inode, inodes of a block, blocks of a group
//! 0x90 free blocks  0xC0 log2 of blocks in a folder's block  0xC2 log's sector  0xC4 log's stripe
//! 0xC8 more features  0xD0 feature masks (4 x 4)  0xE0 crc32c of the sector  0xF0 lsn  0xF8 uuid of structures
//! ```
//!
//! Every allocation group begins with a copy; they are only written when the file system grows.
//!
//! An inode's number is group, block in the group and place in the block, each of as many bits as the superblock says;
//! a block's number is group and block in the group.
//!
//! Source: the kernel's `fs/xfs/libxfs/xfs_format.h`, `fs/xfs/libxfs/xfs_sb.c` (`xfs_validate_sb_common`).

use super::checksum;
use super::features::Features;
use firn_disk::{Disk, Error, Record, Result};

/// "XFSB"
const MAGIC: u32 = 0x5846_5342;
const STRUCTURE: &str = "XFS superblock";
/// The largest sector, and so the most that a superblock's checksum covers.
const MAX_SECTOR: usize = 32 << 10;

/// A decoded superblock, checked to make sense.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Superblock {
    pub features: Features,
    pub block_size: u32,
    pub block_log: u8,
    /// Blocks of the file system.
    pub blocks: u64,
    pub uuid: [u8; 16],
    /// The UUID that structures carry.
    pub structure_uuid: [u8; 16],
    pub label: Vec<u8>,
    /// First block of the log, 0 when it is on another disk.
    pub log_start: u64,
    pub log_blocks: u32,
    pub root: u64,
    /// Blocks of a group, fewer in the last one.
    pub group_blocks: u32,
    pub group_blocks_log: u8,
    pub groups: u32,
    pub sector_size: u16,
    pub inode_size: u16,
    pub inodes_per_block_log: u8,
    pub free_blocks: u64,
    /// log2 of the blocks in a folder's block.
    pub folder_block_log: u8,
}

impl Superblock {
    /// Reads the superblock at byte 0. `is_patched` says that its checksum need not be right, as the log was replayed
    /// over it.
    pub fn read(disk: &dyn Disk, is_patched: bool) -> Result<Self> {
        let mut head = [0; 512];
        let sector = usize::from(Record::read(disk, &mut head, 0, STRUCTURE)?.be_u16(102)?);
        let record = Record::new(&head, STRUCTURE, 0);
        if record.be_u32(0)? != MAGIC {
            return Err(record.corrupt(0, "no XFS superblock"));
        }
        if !sector.is_power_of_two() || !(512..=MAX_SECTOR).contains(&sector) {
            return Err(record.corrupt(102, format!("sectors of {sector} bytes")));
        }
        let mut bytes = vec![0; sector];
        let record = Record::read(disk, &mut bytes, 0, STRUCTURE)?;
        let is_v5 = record.be_u16(100)? & 0xF == 5;
        if is_v5 && !is_patched {
            checksum::check(&record, 224).map_err(|error| {
                error.hint("xfs_repair finds another copy of the superblock, on a copy of the disk")
            })?;
        }
        Self::parse(&record)
    }

    fn parse(record: &Record<'_>) -> Result<Self> {
        let features = Features::read(record)?;
        let uuid = record.array(32)?;
        let label: [u8; 12] = record.array(108)?;
        let found = Self {
            features,
            block_size: record.be_u32(4)?,
            block_log: record.u8(120)?,
            blocks: record.be_u64(8)?,
            uuid,
            structure_uuid: if features.has_meta_uuid() { record.array(248)? } else { uuid },
            label: label.iter().copied().take_while(|byte| *byte != 0).collect(),
            log_start: record.be_u64(48)?,
            log_blocks: record.be_u32(96)?,
            root: record.be_u64(56)?,
            group_blocks: record.be_u32(84)?,
            group_blocks_log: record.u8(124)?,
            groups: record.be_u32(88)?,
            sector_size: record.be_u16(102)?,
            inode_size: record.be_u16(104)?,
            inodes_per_block_log: record.u8(123)?,
            free_blocks: record.be_u64(144)?,
            folder_block_log: record.u8(192)?,
        };
        if record.u8(126)? != 0 {
            return Err(record.corrupt(126, "mkfs did not finish making this file system"));
        }
        found.check(record)?;
        Ok(found)
    }

    fn check(&self, record: &Record<'_>) -> Result<()> {
        let power = |log: u8, value: u32| u32::from(log) < 32 && value == 1 << log;
        if !(9..=16).contains(&self.block_log) || !power(self.block_log, self.block_size) {
            return Err(record.corrupt(4, format!("blocks of {} bytes", self.block_size)));
        }
        let inode = u32::from(self.inode_size);
        if !inode.is_power_of_two()
            || !(256..=2048).contains(&inode)
            || !power(self.inodes_per_block_log, self.block_size / inode)
        {
            return Err(record.corrupt(104, format!("inodes of {inode} bytes")));
        }
        if self.folder_block_log > 16 || self.block_log + self.folder_block_log > 16 {
            return Err(record.corrupt(192, format!("folder blocks of 2^{} blocks", self.folder_block_log)));
        }
        let (groups, length) = (u64::from(self.groups), u64::from(self.group_blocks));
        let fits = self.group_blocks_log < 32 && length <= 1 << self.group_blocks_log && length > 0 && groups > 0;
        // Products of numbers of 32 bits.
        if !fits || self.blocks > groups * length || self.blocks <= (groups - 1) * length {
            return Err(record.corrupt(84, format!("{} blocks in {groups} groups of {length}", self.blocks)));
        }
        if self.blocks.checked_mul(self.block_bytes()).is_none_or(|bytes| i64::try_from(bytes).is_err()) {
            return Err(record.corrupt(8, format!("{} blocks", self.blocks)));
        }
        Ok(())
    }

    pub fn block_bytes(&self) -> u64 {
        u64::from(self.block_size)
    }

    pub fn block_len(&self) -> usize {
        usize::try_from(self.block_size).unwrap_or(usize::MAX)
    }

    /// Blocks of a folder's block.
    pub fn folder_blocks(&self) -> u64 {
        1 << self.folder_block_log
    }

    /// Bytes of a folder's block, at most 64 KiB.
    pub fn folder_block_len(&self) -> usize {
        self.block_len() << self.folder_block_log
    }

    /// The blocks of one group.
    pub fn blocks_of_group(&self, group: u64) -> u64 {
        let length = u64::from(self.group_blocks);
        self.blocks.saturating_sub(group.saturating_mul(length)).min(length)
    }

    /// Where `count` blocks from number `block` on stand, in bytes; `None` when they are not all in one group.
    pub fn block_offset(&self, block: u64, count: u64) -> Option<u64> {
        let group = block >> self.group_blocks_log;
        let within = block & ((1 << self.group_blocks_log) - 1);
        if group >= u64::from(self.groups) || count > self.blocks_of_group(group).checked_sub(within)? {
            return None;
        }
        Some((group * u64::from(self.group_blocks) + within) * self.block_bytes())
    }

    /// Where an inode stands, in bytes.
    pub fn inode_offset(&self, number: u64) -> Option<u64> {
        let (block, place) = (number >> self.inodes_per_block_log, number & ((1 << self.inodes_per_block_log) - 1));
        Some(self.block_offset(block, 1)? + place * u64::from(self.inode_size))
    }

    /// The number of the inode at `place` of block `within` of `group`.
    pub fn inode_number(&self, group: u32, within: u32, place: u64) -> u64 {
        let block = u64::from(group) << self.group_blocks_log | u64::from(within);
        block << self.inodes_per_block_log | place
    }

    pub fn uuid_text(&self) -> String {
        spell_uuid(&self.uuid)
    }

    /// An error about a block number that is out of range.
    pub fn no_block(&self, block: u64, count: u64, structure: &str) -> Error {
        Error::corrupt(format!("{count} blocks at block {block} are not within one group")).in_structure(structure)
    }
}

/// A UUID in its usual spelling.
pub(super) fn spell_uuid(uuid: &[u8; 16]) -> String {
    let mut text = String::with_capacity(36);
    for (index, byte) in uuid.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text += &format!("{byte:02x}");
    }
    text
}
