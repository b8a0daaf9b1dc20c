//! Inodes in the log: the fields in the order of the machine, and forks as they are in memory.
//!
//! ```text
//! form   type (2), regions (2), what is logged (4), bytes of attributes (2), of data (2), 0 (4), inode (8),
//!        device (16), place of its buffer / 512 (8), length (4), place in it (4); 4 bytes less from
//!        machines of 32 bits
//! then   the fields; the data fork if it is logged; the attribute fork if it is logged
//! chunk  type (2), regions (2), group (4), block (4), inodes (4), their size (4), blocks (4), generation (4);
//!        big-endian
//! ```
//!
//! A fork that is a B+tree is logged as a block of the tree with its header, and stands in the inode without.
//!
//! Source: the kernel's `fs/xfs/xfs_inode_item_recover.c`, `fs/xfs/libxfs/xfs_bmap_btree.c` (`xfs_bmbt_to_bmdr`),
//! `fs/xfs/xfs_icreate_item.c`, `fs/xfs/libxfs/xfs_ialloc.c` (`xfs_ialloc_inode_init`).

use super::super::checksum;
use super::super::inode::{CRC, FLAG2_NREXT64, MAGIC, core_size};
use super::super::superblock::Superblock;
use super::buffer::Key;
use super::transaction::Item;
use super::{STRUCTURE, UNIT};
use firn_disk::{Error, Record, Result};

/// What is logged of an inode.
mod logged {
    pub const DATA: u32 = 0x002 | 0x004;
    pub const DATA_ROOT: u32 = 0x008;
    pub const DEVICE: u32 = 0x010;
    pub const ATTRIBUTES: u32 = 0x040 | 0x080;
    pub const ATTRIBUTES_ROOT: u32 = 0x100;
}

/// The fields of both versions as offset and width. The first of what nrext64 uses otherwise, the next unlinked inode,
/// the checksum and the sequence number are not among them.
const FIELDS: [(usize, usize); 24] = [
    (0, 2),
    (2, 2),
    (4, 1),
    (5, 1),
    (6, 2),
    (8, 4),
    (12, 4),
    (16, 4),
    (20, 2),
    (22, 2),
    (32, 8),
    (40, 8),
    (48, 8),
    (56, 8),
    (64, 8),
    (72, 4),
    (76, 4),
    (80, 2),
    (82, 1),
    (83, 1),
    (84, 4),
    (88, 2),
    (90, 2),
    (92, 4),
];
/// The fields of version 3 alone; its own number and UUID are as they stand.
const MORE_FIELDS: [(usize, usize); 5] = [(104, 8), (120, 8), (128, 4), (144, 8), (152, 8)];
const UUID: usize = 160;
const LSN: usize = 112;
const TIMES: [usize; 4] = [32, 40, 48, 144];
const FLAG2_BIGTIME: u64 = 1 << 3;

/// An inode as the log has it.
pub(super) struct InodeItem<'a> {
    item: &'a Item,
    logged: u32,
    pub number: u64,
    device: u32,
    /// The buffer that it stands in.
    pub buffer: Key,
    within: u64,
}

impl<'a> InodeItem<'a> {
    pub fn parse(item: &'a Item) -> Result<Self> {
        let form = item.region(0)?;
        // Machines of 32 bits leave out what aligns the number.
        let at = match form.bytes().len() {
            52 => 12,
            length if length >= 56 => 16,
            length => return Err(form.corrupt(0, format!("an inode's form of {length} bytes"))),
        };
        Ok(Self {
            item,
            logged: form.le_u32(4)?,
            number: form.le_u64(at)?,
            device: form.le_u32(at + 8)?,
            buffer: (form.le_u64(at + 24)?, form.le_u32(at + 32)?),
            within: u64::from(form.le_u32(at + 36)?),
        })
    }

    /// Where the inode stands, in bytes; what the item says of it must agree.
    pub fn offset(&self, superblock: &Superblock) -> Result<u64> {
        let stated = self.buffer.0.checked_mul(UNIT).and_then(|start| start.checked_add(self.within));
        match superblock.inode_offset(self.number) {
            Some(offset) if Some(offset) == stated => Ok(offset),
            _ => Err(self.corrupt("it is not where the log says")),
        }
    }

    fn corrupt(&self, message: &str) -> Error {
        Error::corrupt(format!("inode {} in the log: {message}", self.number)).in_structure(STRUCTURE)
    }

    /// Whether the inode on the disk is newer than a transaction with the sequence number `lsn`.
    pub fn is_newer(&self, superblock: &Superblock, raw: &[u8], lsn: u64) -> Result<bool> {
        let disk = Record::new(raw, STRUCTURE, 0);
        if disk.be_u16(0)? != MAGIC {
            return Err(self.corrupt("there is none on the disk"));
        }
        if superblock.features.is_v5() {
            let found = disk.be_u64(LSN)?;
            return Ok(found != 0 && found != u64::MAX && found > lsn);
        }
        // Version 4 counts how often an inode was written, in 16 bits that start anew.
        let (ours, theirs) = (self.item.region(1)?.le_u16(30)?, disk.be_u16(30)?);
        Ok(ours < theirs && !(theirs == u16::MAX && ours < u16::MAX / 2))
    }

    /// Puts what is logged into the inode's bytes.
    pub fn apply(&self, superblock: &Superblock, raw: &mut [u8], lsn: u64) -> Result<()> {
        let is_v5 = superblock.features.is_v5();
        let fields = self.item.region(1)?;
        let version = fields.u8(4)?;
        let core = core_size(version);
        // Version 2 is logged without the next unlinked inode.
        let expected = if is_v5 { core } else { core - 4 };
        if fields.le_u16(0)? != MAGIC || is_v5 != (version == 3) || fields.bytes().len() < expected {
            return Err(self.corrupt("its fields are damaged"));
        }
        self.put_fields(&fields, raw, is_v5)?;
        let mut area = raw.len() - core;
        let fork_offset = usize::from(fields.u8(82)?) * 8;
        if fork_offset >= area {
            return Err(self.corrupt("its attribute fork is outside"));
        }
        if fork_offset != 0 {
            area = fork_offset;
        }
        let (_, forks) = raw.split_at_mut(core);
        let (data, attributes) = forks.split_at_mut(area);
        if self.logged & logged::DEVICE != 0 {
            put(data, 0, &self.device.to_be_bytes())?;
        }
        let mut region = 2;
        for (fork, plain, root) in
            [(data, logged::DATA, logged::DATA_ROOT), (attributes, logged::ATTRIBUTES, logged::ATTRIBUTES_ROOT)]
        {
            if self.logged & (plain | root) == 0 || region >= self.item.regions.len() {
                continue;
            }
            let bytes = self.item.region(region)?;
            if self.logged & root != 0 {
                put_root(&bytes, fork, is_v5)?;
            } else {
                put(fork, 0, bytes.bytes())?;
            }
            region += 1;
        }
        if is_v5 {
            put(raw, LSN, &lsn.to_be_bytes())?;
            let sum = checksum::sum(raw, CRC);
            put(raw, CRC, &sum.to_le_bytes())?;
        }
        Ok(())
    }

    fn put_fields(&self, fields: &Record<'_>, raw: &mut [u8], is_v5: bool) -> Result<()> {
        let flags2 = if is_v5 { fields.le_u64(120)? } else { 0 };
        let turned = |at: usize, width: usize| -> Result<Vec<u8>> {
            Ok(fields.slice(at, width)?.iter().rev().copied().collect())
        };
        let more: &[(usize, usize)] = if is_v5 { &MORE_FIELDS } else { &[] };
        for (at, width) in FIELDS.iter().chain(more) {
            if TIMES.contains(at) && flags2 & FLAG2_BIGTIME == 0 {
                // Seconds and nanoseconds.
                put(raw, *at, &turned(*at, 4)?)?;
                put(raw, at + 4, &turned(at + 4, 4)?)?;
            } else {
                put(raw, *at, &turned(*at, *width)?)?;
            }
        }
        if flags2 & FLAG2_NREXT64 != 0 {
            put(raw, 24, &turned(24, 8)?)?;
        } else {
            // In version 2 the kernel begins to count its writes anew.
            put(raw, 24, &[0; 8])?;
        }
        if is_v5 {
            put(raw, UUID, fields.slice(UUID, 16)?)?;
        }
        Ok(())
    }
}

/// Puts bytes at a place, if there is room.
fn put(raw: &mut [u8], at: usize, bytes: &[u8]) -> Result<()> {
    match raw.get_mut(at..at + bytes.len()) {
        Some(place) => place.copy_from_slice(bytes),
        None => return Err(Error::corrupt("more is logged of an inode than it has room for").in_structure(STRUCTURE)),
    }
    Ok(())
}

/// Puts the root of a map, which is logged as a block of the tree, into a fork.
fn put_root(block: &Record<'_>, fork: &mut [u8], is_v5: bool) -> Result<()> {
    let header = if is_v5 { 72 } else { 24 };
    let (level, entries) = (block.be_u16(4)?, usize::from(block.be_u16(6)?));
    let from = block.bytes().len().saturating_sub(header) / 16;
    let to = fork.len().saturating_sub(4) / 16;
    if entries > from || entries > to {
        return Err(block.corrupt(6, format!("a map's root of {entries} entries")));
    }
    put(fork, 0, &level.to_be_bytes())?;
    put(fork, 2, block.slice(6, 2)?)?;
    put(fork, 4, block.slice(header, entries * 8)?)?;
    put(fork, 4 + to * 8, block.slice(header + from * 8, entries * 8)?)
}

/// New inodes.
pub(super) struct NewInodes {
    /// Where they stand, in bytes.
    pub offset: u64,
    pub count: u64,
    /// The blocks that they take.
    pub blocks: u64,
    group: u32,
    block: u32,
    generation: u32,
}

impl NewInodes {
    pub fn parse(superblock: &Superblock, item: &Item) -> Result<Self> {
        let form = item.region(0)?;
        let (group, block) = (form.be_u32(4)?, form.be_u32(8)?);
        let (count, size, blocks) = (u64::from(form.be_u32(12)?), form.be_u32(16)?, u64::from(form.be_u32(20)?));
        let first = u64::from(group) << superblock.group_blocks_log | u64::from(block);
        let bytes = count * u64::from(superblock.inode_size);
        let is_whole = size == u32::from(superblock.inode_size) && bytes == blocks * superblock.block_bytes();
        // The kernel makes chunks of 64 inodes, or a block of more.
        if !is_whole || count == 0 || count > 256 {
            return Err(form.corrupt(12, format!("{count} new inodes of {size} bytes in {blocks} blocks")));
        }
        let offset = superblock.block_offset(first, blocks).filter(|_| block < superblock.group_blocks);
        let offset = offset.ok_or_else(|| superblock.no_block(first, blocks, STRUCTURE))?;
        Ok(Self { offset, count, blocks, group, block, generation: form.be_u32(24)? })
    }

    /// The bytes of the inodes.
    pub fn bytes(&self, superblock: &Superblock) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let first = superblock.inode_number(self.group, self.block, 0);
        for index in 0..self.count {
            let mut raw = vec![0; usize::from(superblock.inode_size)];
            let version = if superblock.features.is_v5() { 3 } else { 2 };
            put(&mut raw, 0, &MAGIC.to_be_bytes())?;
            put(&mut raw, 4, &[version])?;
            put(&mut raw, 92, &self.generation.to_be_bytes())?;
            put(&mut raw, 96, &[0xFF; 4])?;
            if version == 3 {
                // Inodes of a chunk have numbers one behind the other, across blocks too.
                put(&mut raw, 152, &(first + index).to_be_bytes())?;
                put(&mut raw, UUID, &superblock.structure_uuid)?;
                let sum = checksum::sum(&raw, CRC);
                put(&mut raw, CRC, &sum.to_le_bytes())?;
            }
            bytes.extend(raw);
        }
        Ok(bytes)
    }
}
