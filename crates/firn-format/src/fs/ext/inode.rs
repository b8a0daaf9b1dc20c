//! [`Inode`]: what is known of a file without its name and content.
//!
//! ```text
//! 0x00 mode  0x02 user  0x04 size  0x08 atime  0x0C ctime  0x10 mtime  0x14 dtime  0x18 group  0x1A links
//! 0x1C blocks  0x20 flags  0x28 block map, extent tree, short symlink or inline data: 60 bytes  0x64 generation
//! 0x68 attribute block  0x6C size, high  0x74 blocks, attribute block, user, group, checksum: high and low halves
//! 0x80 length of what follows  0x82 checksum, high  0x84 ctime+  0x88 mtime+  0x8C atime+  0x90 crtime  0x94 crtime+
//! ...  then attributes up to the inode size
//! ```
//!
//! A time's `+` word holds two more bits of seconds and 30 bits of nanoseconds.
//!
//! Source: the kernel's `fs/ext4/ext4.h` (`struct ext4_inode`), `fs/ext4/inode.c` (`__ext4_iget`, `ext4_inode_csum`).

use super::checksum::{crc32c, high16, low16};
use super::features::{incompat, ro_compat};
use super::superblock::Superblock;
use crate::fs::{FileType, Stat, Timestamp};
use firn_disk::{Error, Record, Result};

/// Where the 60 bytes of the block map are.
pub(super) const BLOCK_MAP: usize = 0x28;
/// Their length.
pub(super) const BLOCK_MAP_LENGTH: usize = 60;
/// The inode that every ext2 has; the rest lies behind it.
const OLD_SIZE: usize = 128;
/// What the kernel assumes for an inode that does not say how much of itself is used.
const ASSUMED_EXTRA: u16 = 32;
const OS_HURD: u32 = 1;

/// Inode flags.
pub(super) mod flag {
    pub const ENCRYPTED: u32 = 0x800;
    pub const INDEX: u32 = 0x1000;
    pub const HUGE_FILE: u32 = 0x4_0000;
    pub const EXTENTS: u32 = 0x8_0000;
    pub const EA_INODE: u32 = 0x20_0000;
    pub const INLINE_DATA: u32 = 0x1000_0000;
    pub const CASEFOLD: u32 = 0x4000_0000;
}

/// A decoded inode together with its bytes.
#[derive(Debug, Clone)]
pub(super) struct Inode {
    pub number: u32,
    /// Where it stands, in bytes.
    pub offset: u64,
    pub raw: Vec<u8>,
    pub mode: u16,
    pub links: u16,
    pub size: u64,
    /// What it takes, in units of 512 bytes.
    pub sectors: u64,
    pub flags: u32,
    pub generation: u32,
    pub xattr_block: u64,
    /// How many bytes behind the first 128 are fields; 0 in inodes of 128 bytes.
    pub extra: u16,
    /// Whether attributes may stand behind those fields.
    pub has_inner_xattrs: bool,
    /// Where checksums of what belongs to this inode start from.
    pub seed: u32,
}

impl Inode {
    /// Decodes `raw` after checking its checksum.
    pub fn parse(superblock: &Superblock, number: u32, raw: Vec<u8>, offset: u64) -> Result<Self> {
        let name = format!("ext inode {number}");
        let record = Record::new(&raw, &name, offset);
        let generation = record.le_u32(0x64)?;
        let seed = crc32c(crc32c(superblock.checksum_seed, &number.to_le_bytes()), &generation.to_le_bytes());
        let stated = if raw.len() > OLD_SIZE { record.le_u16(0x80)? } else { 0 };
        // An inode that was never used is all zeros, and has no checksum either.
        let unused = raw.iter().all(|byte| *byte == 0);
        if superblock.has_checksums() && !unused {
            let (counted, wide) = checksum(&raw, seed, stated);
            let high = if wide { record.le_u16(0x82)? } else { high16(counted) };
            let stored = u32::from(record.le_u16(0x7C)?) | u32::from(high) << 16;
            if stored != counted {
                return Err(record.corrupt(0x7C, format!("the checksum is {stored:#010x}, not {counted:#010x}")));
            }
        }
        if OLD_SIZE + usize::from(stated) > raw.len() || stated % 4 != 0 {
            return Err(record.corrupt(0x80, format!("{stated} extra bytes in an inode of {}", raw.len())));
        }
        let extra = if raw.len() > OLD_SIZE && stated == 0 { ASSUMED_EXTRA } else { stated };
        let mode = record.le_u16(0)?;
        let (flags, size) = (record.le_u32(0x20)?, size(superblock, mode, &record)?);
        let xattr_high = if superblock.creator_os == OS_HURD { 0 } else { record.le_u16(0x76)? };
        Ok(Self {
            number,
            offset,
            mode,
            links: record.le_u16(0x1A)?,
            size,
            sectors: sectors(superblock, flags, &record)?,
            flags,
            generation,
            xattr_block: u64::from(record.le_u32(0x68)?) | u64::from(xattr_high) << 32,
            extra,
            has_inner_xattrs: stated != 0,
            seed,
            raw,
        })
    }

    /// Its fields.
    pub fn record(&self) -> Record<'_> {
        Record::new(&self.raw, "ext inode", self.offset)
    }

    /// What errors call it.
    pub fn name(&self) -> String {
        format!("ext inode {}", self.number)
    }

    /// A `Corrupt` error about it.
    pub fn corrupt(&self, message: impl Into<String>) -> Error {
        Error::corrupt(message).in_structure(self.name()).at_offset(self.offset)
    }

    pub fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    /// Whether a name may lead to it.
    pub fn is_in_use(&self) -> bool {
        self.links > 0 && self.mode != 0
    }

    /// The 60 bytes of the block map.
    pub fn block_map(&self) -> Result<[u8; BLOCK_MAP_LENGTH]> {
        self.record().array(BLOCK_MAP)
    }

    pub fn file_type(&self) -> Result<FileType> {
        Ok(match self.mode >> 12 {
            0x1 => FileType::Fifo,
            0x2 => FileType::CharDevice,
            0x4 => FileType::Folder,
            0x6 => FileType::BlockDevice,
            0x8 => FileType::File,
            0xA => FileType::Symlink,
            0xC => FileType::Socket,
            other => return Err(self.corrupt(format!("file type {other:#x} is not known"))),
        })
    }

    pub fn is_folder(&self) -> bool {
        self.mode >> 12 == 0x4
    }

    pub fn is_file(&self) -> bool {
        self.mode >> 12 == 0x8
    }

    pub fn is_symlink(&self) -> bool {
        self.mode >> 12 == 0xA
    }

    /// Whether it is a symlink whose target stands where other inodes have their block map.
    pub fn is_short_symlink(&self, superblock: &Superblock) -> bool {
        if !self.is_symlink() || self.has(flag::EXTENTS) || self.size >= BLOCK_MAP_LENGTH as u64 {
            return false;
        }
        let cluster = superblock.block_bytes() / 512 * u64::from(superblock.cluster_blocks);
        let attributes = if self.xattr_block == 0 { 0 } else { cluster };
        self.sectors <= attributes || superblock.features.incompat(incompat::EA_INODE)
    }

    /// Whether it has blocks of its own, by a tree or by indirect blocks.
    pub fn has_block_map(&self, superblock: &Superblock) -> bool {
        let kind = self.is_file() || self.is_folder() || self.is_symlink();
        kind && !self.has(flag::INLINE_DATA) && !self.is_short_symlink(superblock)
    }

    /// The value in `extra` bytes at `at`, when this inode is long enough to have it.
    fn extra_word(&self, at: usize) -> Option<u32> {
        let end = OLD_SIZE + usize::from(self.extra);
        if at + 4 > end { None } else { self.record().le_u32(at).ok() }
    }

    fn time(&self, low: Option<u32>, more: Option<u32>) -> Option<Timestamp> {
        let more = more.unwrap_or(0);
        Some(Timestamp {
            seconds: i64::from(low?.cast_signed()) + (i64::from(more & 3) << 32),
            // Nothing above a second can have been meant.
            nanoseconds: (more >> 2).min(999_999_999),
        })
    }

    /// All that `stat` says.
    pub fn stat(&self) -> Result<Stat> {
        let record = self.record();
        let file_type = self.file_type()?;
        let time = |at: usize, more: usize| -> Result<Timestamp> {
            Ok(self.time(Some(record.le_u32(at)?), self.extra_word(more)).unwrap_or_default())
        };
        let inline = self.has(flag::INLINE_DATA) && file_type == FileType::File;
        let inline_sectors = if inline { self.size.div_ceil(512) } else { 0 };
        Ok(Stat {
            inode: u64::from(self.number),
            file_type,
            permissions: u32::from(self.mode & 0o7777),
            user: u32::from(record.le_u16(0x2)?) | u32::from(record.le_u16(0x78)?) << 16,
            group: u32::from(record.le_u16(0x18)?) | u32::from(record.le_u16(0x7A)?) << 16,
            size: self.size,
            allocated: self.sectors.saturating_add(inline_sectors).saturating_mul(512),
            links: u64::from(self.links),
            device: self.device(file_type)?,
            accessed: time(0x8, 0x8C)?,
            modified: time(0x10, 0x88)?,
            changed: time(0xC, 0x84)?,
            created: self.extra_word(0x90).and_then(|low| self.time(Some(low), self.extra_word(0x94))),
        })
    }

    /// Device numbers in the old form (8 bits each) or, if that is zero, the new one (12 and 20 bits).
    fn device(&self, file_type: FileType) -> Result<Option<(u32, u32)>> {
        if !matches!(file_type, FileType::CharDevice | FileType::BlockDevice) {
            return Ok(None);
        }
        let record = self.record();
        let (old, new) = (record.le_u32(BLOCK_MAP)?, record.le_u32(BLOCK_MAP + 4)?);
        Ok(Some(if old != 0 {
            (old >> 8 & 0xFF, old & 0xFF)
        } else {
            (new >> 8 & 0xFFF, new & 0xFF | new >> 12 & 0xF_FF00)
        }))
    }

    /// The bytes with the checksum set anew.
    pub fn sealed(superblock: &Superblock, number: u32, mut raw: Vec<u8>) -> Vec<u8> {
        if !superblock.has_checksums() {
            return raw;
        }
        let word = |raw: &[u8], at: usize| Record::new(raw, "ext inode", 0).le_u16(at).unwrap_or(0);
        let generation = Record::new(&raw, "ext inode", 0).le_u32(0x64).unwrap_or(0);
        let seed = crc32c(crc32c(superblock.checksum_seed, &number.to_le_bytes()), &generation.to_le_bytes());
        let stated = if raw.len() > OLD_SIZE { word(&raw, 0x80) } else { 0 };
        let (counted, wide) = checksum(&raw, seed, stated);
        if let Some(bytes) = raw.get_mut(0x7C..0x7E) {
            bytes.copy_from_slice(&low16(counted).to_le_bytes());
        }
        if wide && let Some(bytes) = raw.get_mut(0x82..0x84) {
            bytes.copy_from_slice(&high16(counted).to_le_bytes());
        }
        raw
    }
}

/// The checksum of an inode, and whether all 32 bits of it are stored.
fn checksum(raw: &[u8], seed: u32, stated_extra: u16) -> (u32, bool) {
    let part = |range: std::ops::Range<usize>| raw.get(range).unwrap_or(&[]);
    let mut sum = crc32c(crc32c(seed, part(0..0x7C)), &[0, 0]);
    sum = crc32c(sum, part(0x7E..OLD_SIZE));
    if raw.len() <= OLD_SIZE {
        return (sum, false);
    }
    sum = crc32c(sum, part(OLD_SIZE..0x82));
    let wide = stated_extra >= 4;
    if wide {
        return (crc32c(crc32c(sum, &[0, 0]), part(0x84..raw.len())), true);
    }
    (crc32c(sum, part(0x82..raw.len())), false)
}

fn size(superblock: &Superblock, mode: u16, record: &Record<'_>) -> Result<u64> {
    let wide = mode >> 12 == 0x8 || superblock.features.incompat(incompat::LARGE_DIR);
    let high = if wide { u64::from(record.le_u32(0x6C)?) << 32 } else { 0 };
    let size = u64::from(record.le_u32(0x4)?) | high;
    if i64::try_from(size).is_err() {
        return Err(record.corrupt(0x6C, format!("a size of {size} bytes")));
    }
    Ok(size)
}

fn sectors(superblock: &Superblock, flags: u32, record: &Record<'_>) -> Result<u64> {
    let low = u64::from(record.le_u32(0x1C)?);
    if !superblock.features.ro_compat(ro_compat::HUGE_FILE) {
        return Ok(low);
    }
    let blocks = low | u64::from(record.le_u16(0x74)?) << 32;
    Ok(if flags & flag::HUGE_FILE != 0 { blocks * (superblock.block_bytes() / 512) } else { blocks })
}
