//! Extended attributes: within the inode, in leaves, and values in blocks of their own.
//!
//! ```text
//! short   bytes (2), entries (1), 0 (1);  length of the name (1), of the value (1), flags (1), name, value
//! leaf    header as a folder's index, entries (2), used (2), first used (2), holes (1), 0 (1), free space (3 x 4), in
//!         version 5 0 (4);  then hash (4), place (2), flags (1), 0 (1)
//! local   length of the value (2), of the name (1), name, value
//! remote  block of the value (4), its length (4), length of the name (1), name
//! value   in version 5 each block: "XARM" (4), where it belongs (4), bytes (4), crc32c (4), uuid (16), owner (8),
//!         place (8), lsn (8); in version 4 nothing but bytes
//! ```
//!
//! Access lists are kept as `trusted.SGI_ACL_FILE` and `trusted.SGI_ACL_DEFAULT` and are given as what they are. Linux
//! lists them under both names; here they have one. Parent pointers are left out, as Linux does.
//!
//! Source: the kernel's `fs/xfs/libxfs/xfs_da_format.h`, `fs/xfs/libxfs/xfs_attr_leaf.c`, `fs/xfs/xfs_xattr.c`.

use super::acl;
use super::checksum;
use super::index::{IndexBlock, MAX_LEVEL};
use super::inode::{Fork, Format, Inode};
use super::log::AttributeChange;
use super::map::Cursor;
use super::volume::Volume;
use crate::fs::Xattr;
use firn_disk::{Record, Result};

const LEAF_MAGIC: [u16; 2] = [0xFBEE, 0x3BEE];
/// "XARM"
const REMOTE_MAGIC: u32 = 0x5841_524D;
const REMOTE_HEADER: usize = 56;
/// No longer value can be had from `getxattr`.
const MAX_VALUE: u32 = 1 << 16;
/// All attributes of an inode together, in bytes; `listxattr` ends at 64 KiB of names.
const MAX_BYTES: usize = 64 << 20;
/// Leaves of an inode; there can be many parent pointers.
const MAX_LEAVES: u64 = 1 << 18;

const LOCAL: u8 = 0x1;
pub(super) const ROOT: u8 = 0x2;
pub(super) const SECURE: u8 = 0x4;
pub(super) const PARENT: u8 = 0x8;
const INCOMPLETE: u8 = 0x80;
/// What tells two attributes of one name apart.
pub(super) const NAMESPACE: u8 = ROOT | SECURE | PARENT;

/// An attribute as it is stored.
struct Stored {
    flags: u8,
    name: Vec<u8>,
    value: Vec<u8>,
}

/// All attributes that have a name for users, with the values that `getxattr` answers.
pub(super) fn read(volume: &Volume, inode: &Inode) -> Result<Vec<Xattr>> {
    let mut stored = match inode.format(Fork::Attribute) {
        None => Vec::new(),
        Some(Format::Local) => read_short(inode)?,
        Some(_) if inode.extents(Fork::Attribute) == 0 => Vec::new(),
        Some(_) => read_leaves(volume, inode)?,
    };
    for change in volume.finished.attribute_changes(inode.number) {
        apply(&mut stored, change);
    }
    stored.into_iter().filter(|stored| stored.flags & PARENT == 0).map(|stored| to_xattr(inode, stored)).collect()
}

/// Does what the log says was begun.
fn apply(stored: &mut Vec<Stored>, change: &AttributeChange) {
    stored.retain(|stored| stored.flags & NAMESPACE != change.namespace || stored.name != change.name);
    if let Some(value) = &change.value {
        stored.push(Stored { flags: change.namespace, name: change.name.clone(), value: value.clone() });
    }
}

fn to_xattr(inode: &Inode, stored: Stored) -> Result<Xattr> {
    if stored.name.is_empty() || stored.name.contains(&0) {
        return Err(inode.corrupt("an attribute with an impossible name"));
    }
    let prefix: &[u8] = match stored.flags & NAMESPACE {
        0 => b"user.",
        ROOT => {
            let list = match stored.name.as_slice() {
                b"SGI_ACL_FILE" => Some("system.posix_acl_access"),
                b"SGI_ACL_DEFAULT" => Some("system.posix_acl_default"),
                _ => None,
            };
            if let Some(name) = list {
                let structure = format!("access list of inode {}", inode.number);
                let value = acl::to_xattr(&Record::new(&stored.value, &structure, inode.offset))?;
                return Ok(Xattr { name: name.into(), value });
            }
            b"trusted."
        }
        SECURE => b"security.",
        other => return Err(inode.corrupt(format!("an attribute with the flags {other:#x}"))),
    };
    Ok(Xattr { name: [prefix, &stored.name].concat(), value: stored.value })
}

fn read_short(inode: &Inode) -> Result<Vec<Stored>> {
    let structure = format!("attributes of inode {}", inode.number);
    let record = Record::new(inode.fork(Fork::Attribute), &structure, inode.fork_offset(Fork::Attribute));
    let mut found = Vec::new();
    let mut at = 4;
    for _ in 0..record.u8(2)? {
        let (name, value) = (usize::from(record.u8(at)?), usize::from(record.u8(at + 1)?));
        let flags = record.u8(at + 2)?;
        if flags & INCOMPLETE == 0 {
            found.push(Stored {
                flags,
                name: record.slice(at + 3, name)?.to_vec(),
                value: record.slice(at + 3 + name, value)?.to_vec(),
            });
        }
        at += 3 + name + value;
    }
    Ok(found)
}

fn read_leaves(volume: &Volume, inode: &Inode) -> Result<Vec<Stored>> {
    let mut cursor = Cursor::new(volume, inode, Fork::Attribute);
    let mut block = IndexBlock::read(volume, inode, &mut cursor, 0, 1)?;
    let mut level = MAX_LEVEL + 1;
    while block.is_node() {
        if block.level == 0 || block.level >= level || block.entries == 0 {
            return Err(block.record().corrupt(0, format!("level {} of the index", block.level)));
        }
        level = block.level;
        let first = u64::from(block.entry(0)?.1);
        block = IndexBlock::read(volume, inode, &mut cursor, first, 1)?;
    }
    let (mut found, mut bytes) = (Vec::new(), 0);
    // A leaf takes a block of the inode, so there are not more leaves than blocks.
    for _ in 0..inode.blocks.min(MAX_LEAVES) {
        if !LEAF_MAGIC.contains(&block.magic) {
            return Err(block.record().corrupt(8, "no leaf of attributes"));
        }
        read_leaf(volume, inode, &mut cursor, &block, &mut found, &mut bytes)?;
        match block.next()? {
            0 => return Ok(found),
            next => block = IndexBlock::read(volume, inode, &mut cursor, next, 1)?,
        }
    }
    Err(inode.corrupt("the leaves of its attributes do not end"))
}

fn read_leaf(
    volume: &Volume,
    inode: &Inode,
    cursor: &mut Cursor<'_>,
    leaf: &IndexBlock,
    found: &mut Vec<Stored>,
    bytes: &mut usize,
) -> Result<()> {
    let record = leaf.record();
    let first = if volume.superblock.features.is_v5() { 80 } else { 32 };
    for index in 0..leaf.entries {
        let entry = first + index * 8;
        let (at, flags) = (usize::from(record.be_u16(entry + 4)?), record.u8(entry + 6)?);
        if flags & (INCOMPLETE | PARENT) != 0 {
            continue;
        }
        let (name, value) = if flags & LOCAL != 0 {
            let (value, name) = (usize::from(record.be_u16(at)?), usize::from(record.u8(at + 2)?));
            (record.slice(at + 3, name)?.to_vec(), record.slice(at + 3 + name, value)?.to_vec())
        } else {
            let (block, length) = (record.be_u32(at)?, record.be_u32(at + 4)?);
            if length > MAX_VALUE {
                return Err(record.corrupt(at + 4, format!("an attribute's value of {length} bytes")));
            }
            let name = record.slice(at + 9, usize::from(record.u8(at + 8)?))?.to_vec();
            (name, read_value(volume, inode, cursor, u64::from(block), length)?)
        };
        *bytes += name.len() + value.len();
        if *bytes > MAX_BYTES {
            return Err(inode.corrupt(format!("more than {MAX_BYTES} bytes of attributes")));
        }
        found.push(Stored { flags, name, value });
    }
    Ok(())
}

/// Reads a value that stands in blocks of its own.
fn read_value(volume: &Volume, inode: &Inode, cursor: &mut Cursor<'_>, mut block: u64, length: u32) -> Result<Vec<u8>> {
    let name = format!("attribute value of inode {}", inode.number);
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    let is_v5 = volume.superblock.features.is_v5();
    let mut value = Vec::with_capacity(length);
    // Every block has at least one byte.
    while value.len() < length {
        let part = cursor.read(block, 1, &name)?;
        let record = Record::new(&part.bytes, &name, part.offset);
        let wanted = length - value.len();
        if is_v5 {
            // Values are not logged but written at once, so that their checksum is always right.
            checksum::check_stamp(
                &volume.superblock,
                &record,
                checksum::REMOTE,
                part.offset,
                inode.number,
                part.is_patched,
            )?;
            let count = usize::try_from(record.be_u32(8)?).unwrap_or(usize::MAX);
            let at = usize::try_from(record.be_u32(4)?).unwrap_or(usize::MAX);
            if record.be_u32(0)? != REMOTE_MAGIC || at != value.len() || count == 0 || count > wanted {
                return Err(record.corrupt(0, format!("no part of a value of {length} bytes")));
            }
            value.extend(record.slice(REMOTE_HEADER, count)?);
        } else {
            value.extend(record.slice(0, wanted.min(part.bytes.len()))?);
        }
        block += 1;
    }
    Ok(value)
}
