//! [`Inode`]: what is known of a file without its name and content.
//!
//! ```text
//! 0x00 "IN"  0x02 mode  0x04 version  0x05 format  0x06 links (version 1)  0x08 user  0x0C group  0x10 links
//! 0x18 extents (nrext64)  0x20 atime  0x28 mtime  0x30 ctime  0x38 size  0x40 blocks  0x4C extents  0x50 of attributes
//! 0x52 start of the attribute fork, in units of 8 bytes  0x53 its format  0x5A flags  0x60 next unlinked inode
//! 0x64 crc32c  0x68 changes  0x70 lsn  0x78 more flags  0x90 birth  0x98 own number  0xA0 uuid  (version 3 only)
//! then the data fork and the attribute fork, up to the inode's size
//! ```
//!
//! Times are seconds and nanoseconds of 32 bits each, or with `bigtime` nanoseconds since 1901-12-13 in 64 bits.
//!
//! Source: the kernel's `fs/xfs/libxfs/xfs_format.h` (`struct xfs_dinode`), `fs/xfs/libxfs/xfs_inode_buf.c`.

use super::checksum;
use super::map::Run;
use super::superblock::Superblock;
use crate::fs::{FileType, Stat, Timestamp};
use firn_disk::{Error, Record, Result};
use std::sync::Arc;

/// "IN"
pub(super) const MAGIC: u16 = 0x494E;
/// Where the checksum stands.
pub(super) const CRC: usize = 100;
const FLAG_REALTIME: u16 = 1;
const FLAG2_BIGTIME: u64 = 1 << 3;
/// Extents are counted in 64 bits.
pub(super) const FLAG2_NREXT64: u64 = 1 << 4;
const FLAG2_METADATA: u64 = 1 << 5;

/// Bytes of the fields of an inode, before its forks.
pub(super) fn core_size(version: u8) -> usize {
    if version >= 3 { 176 } else { 100 }
}

/// What a fork holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Device,
    Local,
    Extents,
    Btree,
    /// Nothing that is read.
    Other(u8),
}

impl Format {
    fn new(raw: u8) -> Self {
        match raw {
            0 => Self::Device,
            1 => Self::Local,
            2 => Self::Extents,
            3 => Self::Btree,
            other => Self::Other(other),
        }
    }
}

/// One of the two forks of an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fork {
    Data,
    Attribute,
}

/// A decoded inode together with its bytes.
#[derive(Debug, Clone)]
pub(super) struct Inode {
    pub number: u64,
    /// Where it stands, in bytes.
    pub offset: u64,
    raw: Vec<u8>,
    pub mode: u16,
    version: u8,
    format: Format,
    attribute_format: Format,
    pub links: u32,
    pub size: u64,
    /// Blocks of both forks and their maps.
    pub blocks: u64,
    extents: u64,
    attribute_extents: u64,
    /// Where the attribute fork begins behind the fields, 0 when there is none.
    fork_offset: usize,
    flags: u16,
    flags2: u64,
    /// The data fork's map where replaying the log changed it.
    pub replaced_map: Option<Arc<[Run]>>,
}

impl Inode {
    /// Decodes `raw` after checking it.
    pub fn parse(superblock: &Superblock, number: u64, raw: Vec<u8>, offset: u64) -> Result<Self> {
        let name = format!("XFS inode {number}");
        let record = Record::new(&raw, &name, offset);
        if record.be_u16(0)? != MAGIC {
            return Err(record.corrupt(0, "no inode"));
        }
        let version = record.u8(4)?;
        let is_v5 = superblock.features.is_v5();
        if is_v5 != (version == 3) || version == 0 || version > 3 {
            return Err(record.corrupt(4, format!("inode version {version}")));
        }
        if is_v5 {
            checksum::check(&record, CRC)?;
            if record.be_u64(152)? != number || record.array(160)? != superblock.structure_uuid {
                return Err(record.corrupt(152, "another inode, or one of another file system"));
            }
        }
        let flags2 = if is_v5 { record.be_u64(120)? } else { 0 };
        let is_wide = flags2 & FLAG2_NREXT64 != 0;
        let fork_offset = usize::from(record.u8(82)?) * 8;
        if fork_offset >= raw.len() - core_size(version) {
            return Err(record.corrupt(82, format!("an attribute fork at {fork_offset}")));
        }
        let size = record.be_u64(56)?;
        if i64::try_from(size).is_err() {
            return Err(record.corrupt(56, format!("a size of {size} bytes")));
        }
        Ok(Self {
            number,
            offset,
            mode: record.be_u16(2)?,
            version,
            format: Format::new(record.u8(5)?),
            attribute_format: Format::new(record.u8(83)?),
            links: if version == 1 { u32::from(record.be_u16(6)?) } else { record.be_u32(16)? },
            size,
            blocks: record.be_u64(64)?,
            extents: if is_wide { record.be_u64(24)? } else { u64::from(record.be_u32(76)?) },
            attribute_extents: u64::from(if is_wide { record.be_u32(76)? } else { u32::from(record.be_u16(80)?) }),
            fork_offset,
            flags: record.be_u16(90)?,
            flags2,
            replaced_map: None,
            raw,
        })
    }

    /// What errors call it.
    pub fn name(&self) -> String {
        format!("XFS inode {}", self.number)
    }

    /// A `Corrupt` error about it.
    pub fn corrupt(&self, message: impl Into<String>) -> Error {
        Error::corrupt(message).in_structure(self.name()).at_offset(self.offset)
    }

    /// Whether a name may lead to it.
    pub fn is_in_use(&self) -> bool {
        self.mode != 0 && self.links > 0 && self.flags2 & FLAG2_METADATA == 0
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

    /// Whether its content is on the realtime device.
    pub fn is_realtime(&self) -> bool {
        self.flags & FLAG_REALTIME != 0
    }

    /// What a fork holds; `None` when there is no such fork.
    pub fn format(&self, fork: Fork) -> Option<Format> {
        match fork {
            Fork::Data => Some(self.format),
            Fork::Attribute => (self.fork_offset != 0).then_some(self.attribute_format),
        }
    }

    /// The number of a fork's extents.
    pub fn extents(&self, fork: Fork) -> u64 {
        match fork {
            Fork::Data => self.extents,
            Fork::Attribute => self.attribute_extents,
        }
    }

    /// The bytes of a fork within the inode.
    pub fn fork(&self, fork: Fork) -> &[u8] {
        let area = self.raw.get(core_size(self.version)..).unwrap_or(&[]);
        let (data, attributes) = match self.fork_offset {
            0 => (area, &[][..]),
            at => area.split_at_checked(at).unwrap_or((area, &[])),
        };
        match fork {
            Fork::Data => data,
            Fork::Attribute => attributes,
        }
    }

    /// Where a fork stands, in bytes.
    pub fn fork_offset(&self, fork: Fork) -> u64 {
        let within = if fork == Fork::Data { 0 } else { self.fork_offset };
        self.offset + (core_size(self.version) + within) as u64
    }

    /// What is stored in the inode itself, `size` bytes of the data fork.
    pub fn local_data(&self) -> Result<&[u8]> {
        let size = usize::try_from(self.size).unwrap_or(usize::MAX);
        self.fork(Fork::Data)
            .get(..size)
            .ok_or_else(|| self.corrupt(format!("{size} bytes within the inode are more than it has room for")))
    }

    fn file_type(&self) -> Result<FileType> {
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

    fn time(&self, record: &Record<'_>, at: usize) -> Result<Timestamp> {
        if self.flags2 & FLAG2_BIGTIME != 0 {
            let raw = record.be_u64(at)?;
            let seconds = i64::try_from(raw / 1_000_000_000).unwrap_or(i64::MAX) - (1 << 31);
            let nanoseconds = u32::try_from(raw % 1_000_000_000).unwrap_or(0);
            return Ok(Timestamp { seconds, nanoseconds });
        }
        Ok(Timestamp {
            seconds: i64::from(record.be_i32(at)?),
            // Nothing above a second can have been meant.
            nanoseconds: record.be_u32(at + 4)?.min(999_999_999),
        })
    }

    /// All that `stat` says.
    pub fn stat(&self, superblock: &Superblock) -> Result<Stat> {
        let name = self.name();
        let record = Record::new(&self.raw, &name, self.offset);
        let file_type = self.file_type()?;
        let device = match file_type {
            FileType::CharDevice | FileType::BlockDevice => {
                let bytes = Record::new(self.fork(Fork::Data), &name, self.offset).be_u32(0)?;
                Some((bytes >> 18 & 0x3FFF, bytes & 0x3_FFFF))
            }
            _ => None,
        };
        Ok(Stat {
            inode: self.number,
            file_type,
            permissions: u32::from(self.mode & 0o7777),
            user: record.be_u32(8)?,
            group: record.be_u32(12)?,
            size: self.size,
            allocated: self.blocks.saturating_mul(superblock.block_bytes()),
            links: u64::from(self.links),
            device,
            accessed: self.time(&record, 32)?,
            modified: self.time(&record, 40)?,
            changed: self.time(&record, 48)?,
            created: if self.version >= 3 { Some(self.time(&record, 144)?) } else { None },
        })
    }
}
