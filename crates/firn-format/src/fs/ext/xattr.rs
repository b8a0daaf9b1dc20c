//! Extended attributes: in the inode, in a block of their own, and values in inodes of their own.
//!
//! ```text
//! inode   after the fields: magic 0xEA020000 (4), entries; values are counted from the first entry
//! block   magic (4), references (4), blocks (4), hash (4), checksum (4), unused (12), entries; values from its start
//! entry   length of the name (1), prefix (1), place of the value (2), its inode (4), its length (4), hash (4), name
//! ```
//!
//! Four zero bytes end the entries. A value in an inode of its own carries a crc32c there, which is checked.
//!
//! Source: the kernel's `fs/ext4/xattr.h`, `fs/ext4/xattr.c`.

use super::acl;
use super::checksum::crc32c;
use super::content::read_whole;
use super::inode::{Inode, flag};
use super::volume::Volume;
use crate::fs::Xattr;
use firn_disk::{Error, Record, Result};

const MAGIC: u32 = 0xEA02_0000;
const BLOCK_HEADER: usize = 32;
const ENTRY: usize = 16;
/// No longer value can be had from `getxattr`.
const MAX_VALUE: u32 = 1 << 16;

const INDEX_ACL_ACCESS: u8 = 2;
const INDEX_ACL_DEFAULT: u8 = 3;
const INDEX_SYSTEM: u8 = 7;
const INDEX_ENCRYPTION: u8 = 9;

/// One attribute as it is stored.
struct Stored<'a> {
    prefix: u8,
    name: &'a [u8],
    value: Record<'a>,
    value_inode: u32,
    value_length: u32,
}

/// All attributes that have a name for users, with the values that `getxattr` answers.
pub(super) fn read(volume: &Volume, inode: &Inode) -> Result<Vec<Xattr>> {
    let mut found = Vec::new();
    visit(volume, inode, &mut |stored| {
        let Some(name) = full_name(&stored)? else { return Ok(()) };
        let value = match (stored.value_inode, stored.prefix) {
            (0, INDEX_ACL_ACCESS | INDEX_ACL_DEFAULT) => acl::to_xattr(&stored.value)?,
            (0, _) => stored.value.bytes().to_vec(),
            (number, prefix) => {
                let value = value_of(volume, inode, number, stored.value_length)?;
                if matches!(prefix, INDEX_ACL_ACCESS | INDEX_ACL_DEFAULT) {
                    acl::to_xattr(&Record::new(&value, "access list", 0))?
                } else {
                    value
                }
            }
        };
        found.push(Xattr { name, value });
        Ok(())
    })?;
    Ok(found)
}

/// What an inode with inline data holds behind the first 60 bytes.
pub(super) fn inline_data(volume: &Volume, inode: &Inode) -> Result<Vec<u8>> {
    let mut data = None;
    visit(volume, inode, &mut |stored| {
        if is_inline_data(&stored) && stored.value_inode == 0 {
            data = Some(stored.value.bytes().to_vec());
        }
        Ok(())
    })?;
    data.ok_or_else(|| inode.corrupt("inline data without its attribute"))
}

/// The inodes that hold values of this inode's attributes.
pub(super) fn value_inodes(volume: &Volume, inode: &Inode) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    visit(volume, inode, &mut |stored| {
        if stored.value_inode != 0 {
            found.push(stored.value_inode);
        }
        Ok(())
    })?;
    Ok(found)
}

fn is_inline_data(stored: &Stored<'_>) -> bool {
    stored.prefix == INDEX_SYSTEM && stored.name == b"data"
}

/// The name with its prefix; `None` for what the kernel keeps to itself.
fn full_name(stored: &Stored<'_>) -> Result<Option<Vec<u8>>> {
    let prefix: &[u8] = match stored.prefix {
        0 | INDEX_ENCRYPTION => return Ok(None),
        INDEX_SYSTEM if is_inline_data(stored) => return Ok(None),
        1 => b"user.",
        INDEX_ACL_ACCESS => b"system.posix_acl_access",
        INDEX_ACL_DEFAULT => b"system.posix_acl_default",
        4 => b"trusted.",
        5 => b"lustre.",
        6 => b"security.",
        INDEX_SYSTEM => b"system.",
        8 => b"system.richacl",
        10 => b"gnu.",
        other => return Err(stored.value.unsupported(0, format!("attribute prefix {other}"))),
    };
    let whole = matches!(stored.prefix, INDEX_ACL_ACCESS | INDEX_ACL_DEFAULT | 8);
    let name = [prefix, if whole { b"" } else { stored.name }].concat();
    if name.contains(&0) {
        return Err(stored.value.corrupt(0, "an attribute's name holds a zero byte"));
    }
    Ok(Some(name))
}

fn visit(volume: &Volume, inode: &Inode, visit: &mut dyn FnMut(Stored<'_>) -> Result<()>) -> Result<()> {
    let start = 128 + usize::from(inode.extra);
    if inode.has_inner_xattrs && start + 4 <= inode.raw.len() {
        let name = format!("attributes of inode {}", inode.number);
        let record = Record::new(&inode.raw, &name, inode.offset);
        if record.le_u32(start)? == MAGIC {
            let first = start + 4;
            let inner = Record::new(record.slice(first, inode.raw.len() - first)?, &name, inode.offset);
            visit_entries(&inner, 0, visit)?;
        }
    }
    if inode.xattr_block != 0 {
        let name = format!("attribute block of inode {}", inode.number);
        let bytes = volume.read_block(inode.xattr_block, &name)?;
        let record = Record::new(&bytes, &name, inode.xattr_block * volume.superblock.block_bytes());
        check_block(volume, inode.xattr_block, &record)?;
        visit_entries(&record, BLOCK_HEADER, visit)?;
    }
    Ok(())
}

fn check_block(volume: &Volume, block: u64, record: &Record<'_>) -> Result<()> {
    if record.le_u32(0)? != MAGIC || record.le_u32(8)? != 1 {
        return Err(record.corrupt(0, "no attribute block"));
    }
    if volume.superblock.has_checksums() {
        let (stored, counted) = (record.le_u32(0x10)?, block_checksum(volume, block, record)?);
        if stored != counted {
            return Err(record.corrupt(0x10, format!("the checksum is {stored:#010x}, not {counted:#010x}")));
        }
    }
    Ok(())
}

/// The checksum of an attribute block.
pub(super) fn block_checksum(volume: &Volume, block: u64, record: &Record<'_>) -> Result<u32> {
    let sum = crc32c(volume.superblock.checksum_seed, &block.to_le_bytes());
    let sum = crc32c(crc32c(sum, record.slice(0, 0x10)?), &[0; 4]);
    Ok(crc32c(sum, record.slice(0x14, record.bytes().len() - 0x14)?))
}

fn visit_entries(record: &Record<'_>, first: usize, visit: &mut dyn FnMut(Stored<'_>) -> Result<()>) -> Result<()> {
    let mut at = first;
    // Each entry takes 16 bytes or more of a block.
    while record.bytes().len() >= at + 4 && record.le_u32(at)? != 0 {
        let name_length = usize::from(record.u8(at)?);
        let value_length = record.le_u32(at + 8)?;
        let value_inode = record.le_u32(at + 4)?;
        if value_length > MAX_VALUE {
            return Err(record.corrupt(at + 8, format!("an attribute's value of {value_length} bytes")));
        }
        let length = if value_inode == 0 { usize::try_from(value_length).unwrap_or(usize::MAX) } else { 0 };
        let place = if length == 0 { 0 } else { usize::from(record.le_u16(at + 2)?) };
        visit(Stored {
            prefix: record.u8(at + 1)?,
            name: record.slice(at + ENTRY, name_length)?,
            value: Record::new(record.slice(place, length)?, "attribute value", 0),
            value_inode,
            value_length,
        })?;
        at += (ENTRY + name_length).next_multiple_of(4);
    }
    Ok(())
}

/// The value of an attribute that is kept in inode `number`.
fn value_of(volume: &Volume, owner: &Inode, number: u32, length: u32) -> Result<Vec<u8>> {
    let inode = volume.inode(number).map_err(|error| Error::corrupt(error.to_string()).in_structure(owner.name()))?;
    if !inode.has(flag::EA_INODE) || !inode.is_file() || inode.size != u64::from(length) {
        return Err(inode.corrupt(format!("not the attribute value of {length} bytes that inode {} has", owner.number)));
    }
    let value = read_whole(volume, &inode, u64::from(length))?;
    let record = inode.record();
    let stored = record.le_u32(0x8)?;
    // Values that Lustre wrote point back to their owner instead of having a checksum.
    let points_back = record.le_u32(0x10)? == owner.number && inode.generation == owner.generation;
    let counted = crc32c(volume.superblock.checksum_seed, &value);
    if stored != counted && !points_back {
        return Err(inode.corrupt(format!("the value's checksum is {stored:#010x}, not {counted:#010x}")));
    }
    Ok(value)
}
