//! Thin volumes: blocks that a pool gives out when they are first written.
//!
//! ```text
//! metadata block 0   superblock: 0 CRC-32C  4 flags  8 own place  32 magic  40 version  48 transaction
//!                    320 root of the mappings  328 root of the devices  336 sectors of a data block … 360 features
//! mappings           a tree device -> root of a tree block -> data block << 24 | time
//! devices            a tree device -> blocks mapped, transaction, times
//! ```
//! Blocks that a device does not map read as zeros, or as its external origin. Nothing is read ahead: a volume with
//! millions of mappings opens with two blocks, and a pool keeps 512 of them at most.
//!
//! Source: Linux, drivers/md/dm-thin-metadata.c and dm-thin.c.

mod tree;

use firn_disk::{Disk, Error, ErrorKind, Extent, ExtentKind, Record, Result, SharedDisk, check_range};
use std::sync::Arc;
use tree::{BLOCK, Trees};

const MAGIC: u64 = 27_022_010;
const SUPERBLOCK_SALT: u32 = 160_774;
const SECTOR: u64 = 512;
/// Bit of the flags: the kernel wants the metadata to be checked.
const NEEDS_CHECK: u32 = 1;
/// Most bytes of a data block; device-mapper's own limit.
const MAX_BLOCK: u64 = 1 << 30;

/// A thin pool.
#[derive(Debug)]
pub(super) struct Pool {
    trees: Trees,
    data: SharedDisk,
    block_bytes: u64,
    mappings: u64,
    devices: u64,
    /// How often LVM2 changed it.
    pub(super) transaction: u64,
    /// Whether the kernel gave up on its metadata.
    pub(super) needs_check: bool,
}

impl Pool {
    /// The pool with this metadata and data, whose blocks have `block_bytes`.
    ///
    /// # Errors
    /// `Corrupt` when the superblock is damaged or says otherwise; `Unsupported` for a later version; what the disk says.
    pub(super) fn open(metadata: SharedDisk, data: SharedDisk, block_bytes: u64) -> Result<Self> {
        let mut buf = [0; 4096];
        let record = Record::read(&metadata, &mut buf, 0, "thin pool superblock")?;
        if record.le_u64(32)? != MAGIC {
            return Err(record.corrupt(32, "it has no magic"));
        }
        if tree::checksum(record.slice(4, 4092)?, SUPERBLOCK_SALT) != record.le_u32(0)? {
            return Err(record.corrupt(0, "its checksum does not match"));
        }
        if record.le_u64(8)? != 0 {
            return Err(record.corrupt(8, "it is meant for another place"));
        }
        let (version, features) = (record.le_u32(40)?, record.le_u32(360)?);
        if !(1..=2).contains(&version) || features != 0 {
            return Err(record.unsupported(40, format!("version {version} with features {features:#x}")));
        }
        if u64::from(record.le_u32(340)?) * SECTOR != BLOCK {
            return Err(record.unsupported(340, format!("metadata blocks of {} sectors", record.le_u32(340)?)));
        }
        let own = u64::from(record.le_u32(336)?) * SECTOR;
        if own == 0 || own > MAX_BLOCK || own != block_bytes {
            return Err(record.corrupt(336, format!("blocks of {own} bytes instead of {block_bytes}")));
        }
        Ok(Self {
            data,
            block_bytes,
            mappings: record.le_u64(320)?,
            devices: record.le_u64(328)?,
            transaction: record.le_u64(48)?,
            needs_check: record.le_u32(4)? & NEEDS_CHECK != 0,
            trees: Trees::new(metadata),
        })
    }

    /// The volume of device number `device`, of `length` bytes. What it does not map is that of `origin`.
    ///
    /// # Errors
    /// `Unavailable` when the pool has no such device; `Corrupt` when its metadata is damaged.
    pub(super) fn volume(self: &Arc<Self>, device: u64, length: u64, origin: Option<SharedDisk>) -> Result<ThinVolume> {
        let missing = || {
            let what = format!("the pool has no device {device}: it was not made yet when the machine stopped");
            Error::new(ErrorKind::Unavailable, what)
        };
        self.trees.find(self.devices, device, 24)?.ok_or_else(missing)?;
        let root = self.trees.find(self.mappings, device, 8)?.ok_or_else(missing)?;
        Ok(ThinVolume { pool: self.clone(), root, length, origin })
    }
}

/// A thin volume.
#[derive(Debug)]
pub(super) struct ThinVolume {
    pool: Arc<Pool>,
    root: u64,
    length: u64,
    origin: Option<SharedDisk>,
}

impl ThinVolume {
    /// Where a block stands in the pool's data, in bytes; `None` when it is not mapped.
    fn place_of(&self, block: u64) -> Result<Option<u64>> {
        let Some(value) = self.pool.trees.find(self.root, block, 8)? else { return Ok(None) };
        // Below stands the time at which it was mapped.
        let at = (value >> 24).checked_mul(self.pool.block_bytes);
        match at.filter(|at| check_range(*at, self.pool.block_bytes, self.pool.data.len()).is_ok()) {
            Some(at) => Ok(Some(at)),
            None => {
                Err(Error::corrupt(format!("block {block} lies past the end of the pool at block {}", value >> 24))
                    .in_structure("thin pool mapping"))
            }
        }
    }

    /// Fills `buf` with what is there where nothing is mapped.
    fn read_unmapped(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let origin_end = self.origin.as_ref().map_or(0, |origin| origin.len());
        let count = usize::try_from(origin_end.saturating_sub(offset)).unwrap_or(usize::MAX).min(buf.len());
        let (old, rest) = buf.split_at_mut(count);
        rest.fill(0);
        match &self.origin {
            Some(origin) if !old.is_empty() => origin.read_at(old, offset),
            _ => Ok(()),
        }
    }
}

impl Disk for ThinVolume {
    fn len(&self) -> u64 {
        self.length
    }

    fn logical_block_size(&self) -> u32 {
        self.pool.data.logical_block_size()
    }

    fn read_at(&self, mut buf: &mut [u8], mut offset: u64) -> Result<()> {
        check_range(offset, buf.len() as u64, self.length)?;
        while !buf.is_empty() {
            let within = offset % self.pool.block_bytes;
            let left = self.pool.block_bytes - within;
            let count = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
            let (now, later) = buf.split_at_mut(count);
            match self.place_of(offset / self.pool.block_bytes)? {
                Some(at) => self.pool.data.read_at(now, at + within)?,
                None => self.read_unmapped(now, offset)?,
            }
            buf = later;
            offset += count as u64;
        }
        Ok(())
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        check_range(offset, 1, self.length)?;
        let block = offset / self.pool.block_bytes;
        let within = offset % self.pool.block_bytes;
        if let Some(at) = self.place_of(block)? {
            let left = (self.pool.block_bytes - within).min(self.length - offset);
            let extent = self.pool.data.extent_at(at + within)?;
            return Ok(Extent { length: extent.length.min(left), ..extent });
        }
        let next = self.pool.trees.next(self.root, block)?;
        let end = next.and_then(|next| next.checked_mul(self.pool.block_bytes)).unwrap_or(u64::MAX);
        let left = end.min(self.length).saturating_sub(offset).max(1);
        match &self.origin {
            Some(origin) if offset < origin.len() => {
                let extent = origin.extent_at(offset)?;
                Ok(Extent { length: extent.length.min(left), ..extent })
            }
            _ => Ok(Extent { kind: ExtentKind::Hole, length: left }),
        }
    }
}

#[cfg(test)]
mod tests;
