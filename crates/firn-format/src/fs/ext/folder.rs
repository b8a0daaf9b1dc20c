//! Folders: blocks of names.
//!
//! ```text
//! entry   inode (4), length of the entry (2), length of the name (1), type (1), name; a multiple of 4 bytes
//! tail    the last 12 bytes of a block with metadata_csum: an entry of inode 0 and type 0xDE that holds a crc32c
//! index   blocks of an indexed folder that hold hashes pretend to be one empty entry as long as the block
//! inline  without blocks: parent (4), entries; more entries in the attribute system.data
//! ```
//!
//! A folder with a name that holds `/` or NUL, or with entries that do not add up, is refused as a whole from that
//! block on: nothing after it can be trusted.
//!
//! Source: the kernel's `fs/ext4/dir.c` (`__ext4_check_dir_entry`), `fs/ext4/namei.c`.

use super::checksum::crc32c;
use super::features::{compat, incompat};
use super::inode::{Inode, flag};
use super::map::{RunKind, leaf_at, visit_leaves};
use super::volume::Volume;
use super::xattr;
use crate::fs::FileType;
use firn_disk::{Error, Record, Result};
use std::ops::ControlFlow;

/// Bytes of an entry before its name.
pub(super) const HEADER: usize = 8;
/// Bytes of a block's tail.
pub(super) const TAIL: usize = 12;
const TAIL_TYPE: u8 = 0xDE;
/// Where the entries of an inline folder begin in the block map.
const INLINE_ENTRIES: usize = 4;

/// One entry in use, not `.` or `..`.
#[derive(Debug, Clone, Copy)]
pub(super) struct RawEntry<'a> {
    pub name: &'a [u8],
    pub inode: u32,
    pub file_type: Option<FileType>,
    /// The hash behind the name, in folders that have it there.
    pub stored_hash: Option<(u32, u32)>,
}

/// Where an entry stands in its block, and what it says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slot<'a> {
    pub at: usize,
    pub length: usize,
    /// 0 when not in use.
    pub inode: u32,
    pub name: &'a [u8],
    pub kind: u8,
    /// The hash behind the name, in folders that have it there.
    pub hash: Option<(u32, u32)>,
}

/// The type byte of an entry.
pub(super) fn type_of(kind: u8) -> Option<FileType> {
    Some(match kind {
        1 => FileType::File,
        2 => FileType::Folder,
        3 => FileType::CharDevice,
        4 => FileType::BlockDevice,
        5 => FileType::Fifo,
        6 => FileType::Socket,
        7 => FileType::Symlink,
        _ => return None,
    })
}

/// The entries of one block, or of a piece of an inline folder, one by one.
pub(super) struct Slots<'a> {
    record: Record<'a>,
    block_size: u32,
    inodes: u32,
    /// Names of folders that are both encrypted and casefolded have a hash behind them.
    hash_length: usize,
    has_types: bool,
    /// Encrypted names may hold any byte.
    any_bytes: bool,
    at: usize,
    end: usize,
}

impl<'a> Slots<'a> {
    /// The entries of `record` up to `end`.
    pub fn new(volume: &Volume, folder: &Inode, record: Record<'a>, end: usize) -> Self {
        let superblock = &volume.superblock;
        let hashed = folder.has(flag::ENCRYPTED) && folder.has(flag::CASEFOLD);
        Self {
            record,
            block_size: superblock.block_size,
            inodes: superblock.inodes,
            hash_length: if hashed { 8 } else { 0 },
            has_types: superblock.features.incompat(incompat::FILETYPE),
            any_bytes: folder.has(flag::ENCRYPTED),
            at: 0,
            end,
        }
    }

    fn slot(&self) -> Result<Slot<'a>> {
        let (record, at) = (&self.record, self.at);
        let length = entry_length(record.le_u16(at + 4)?, self.block_size);
        let name_length = usize::from(record.u8(at + 6)?);
        let inode = record.le_u32(at)?;
        let extra = if inode == 0 || name_length <= 2 { 0 } else { self.hash_length };
        let bad = |what: String| Err(record.corrupt(at, what));
        if length < HEADER + 4 || !length.is_multiple_of(4) || length > self.end - at {
            return bad(format!("an entry of {length} bytes where {} are left", self.end - at));
        }
        if (HEADER + name_length).next_multiple_of(4) + extra > length {
            return bad(format!("a name of {name_length} bytes in an entry of {length}"));
        }
        if inode > self.inodes {
            return bad(format!("inode {inode} of {}", self.inodes));
        }
        let name = record.slice(at + HEADER, name_length)?;
        let unfit = name.iter().any(|byte| matches!(byte, 0 | b'/')) && !self.any_bytes;
        if inode != 0 && (name.is_empty() || unfit) {
            return bad("a name that is empty or holds a slash or a zero byte".into());
        }
        let hash = match extra {
            0 => None,
            _ => {
                let behind = at + (HEADER + name_length).next_multiple_of(4);
                Some((record.le_u32(behind)?, record.le_u32(behind + 4)?))
            }
        };
        Ok(Slot { at, length, inode, name, kind: if self.has_types { record.u8(at + 7)? } else { 0 }, hash })
    }
}

impl<'a> Iterator for Slots<'a> {
    type Item = Result<Slot<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.end {
            return None;
        }
        let slot = self.slot();
        self.at = match &slot {
            Ok(slot) => self.at + slot.length,
            Err(_) => self.end,
        };
        Some(slot)
    }
}

/// The length of an entry from its 16 bits: blocks of 64 KiB need one more.
pub(super) fn entry_length(stored: u16, block_size: u32) -> usize {
    let stored = usize::from(stored);
    match stored {
        0 | 0xFFFF if block_size > 0xFFFF => 1 << 16,
        _ if block_size > 0xFFFF => (stored & 0xFFFC) | (stored & 3) << 16,
        _ => stored,
    }
}

/// The 16 bits of an entry's length.
pub(super) fn stored_length(length: usize) -> u16 {
    u16::try_from(length).unwrap_or(0)
}

/// Whether a folder has an index that may be used.
pub(super) fn is_indexed(volume: &Volume, folder: &Inode) -> bool {
    volume.superblock.features.compat(compat::DIR_INDEX) && folder.has(flag::INDEX)
}

/// What a block of a folder is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BlockKind {
    /// Names only.
    Names,
    /// `.`, `..` and the root of the index.
    Root,
    /// A node of the index, no names.
    Node,
}

/// Tells what block number `index` of a folder is, without trusting it.
pub(super) fn kind_of(volume: &Volume, folder: &Inode, index: u64, bytes: &[u8]) -> Result<BlockKind> {
    if !is_indexed(volume, folder) {
        return Ok(BlockKind::Names);
    }
    if index == 0 {
        return Ok(BlockKind::Root);
    }
    let record = Record::new(bytes, "ext folder", 0);
    let whole = entry_length(record.le_u16(4)?, volume.superblock.block_size) == bytes.len();
    // Without checksums, one name may take a whole block; so may none, which does no harm here.
    let is_node = whole && (record.le_u32(0)? == 0 || volume.superblock.has_checksums());
    Ok(if is_node { BlockKind::Node } else { BlockKind::Names })
}

/// A folder's block, read and checked.
#[derive(Debug)]
pub(super) struct FolderBlock {
    /// Its number on the disk.
    pub block: u64,
    pub bytes: Vec<u8>,
    pub kind: BlockKind,
    /// Where its entries end.
    pub end: usize,
}

/// Reads block number `index` of a folder.
pub(super) fn read_block(volume: &Volume, folder: &Inode, index: u64) -> Result<FolderBlock> {
    match leaf_at(volume, folder, index)?.run_at(index).kind {
        RunKind::Data(block) => read_block_at(volume, folder, index, block),
        _ => Err(folder.corrupt(format!("block {index} of the folder is not there"))),
    }
}

fn read_block_at(volume: &Volume, folder: &Inode, index: u64, block: u64) -> Result<FolderBlock> {
    let name = format!("block {index} of folder {}", folder.number);
    let bytes = volume.read_block(block, &name)?;
    let kind = kind_of(volume, folder, index, &bytes)?;
    let mut end = bytes.len();
    if volume.superblock.has_checksums() {
        let record = Record::new(&bytes, &name, block * volume.superblock.block_bytes());
        match kind {
            BlockKind::Names => {
                end -= TAIL;
                check_tail(&record, folder, end)?;
            }
            BlockKind::Root | BlockKind::Node => check_index(&record, folder, kind)?,
        }
    }
    Ok(FolderBlock { block, bytes, kind, end })
}

fn check_tail(record: &Record<'_>, folder: &Inode, end: usize) -> Result<()> {
    if record.le_u32(end)? != 0 || record.le_u16(end + 4)? != 12 || record.le_u16(end + 6)? != u16::from(TAIL_TYPE) << 8
    {
        return Err(record.corrupt(end, "the block has no checksum"));
    }
    let (stored, counted) = (record.le_u32(end + 8)?, crc32c(folder.seed, record.slice(0, end)?));
    if stored != counted {
        return Err(record.corrupt(end + 8, format!("the checksum is {stored:#010x}, not {counted:#010x}")));
    }
    Ok(())
}

/// Writes the tail of a block of names.
pub(super) fn seal_names(folder: &Inode, bytes: &mut [u8]) {
    let Some(end) = bytes.len().checked_sub(TAIL) else { return };
    let (body, tail) = bytes.split_at_mut(end);
    let sum = crc32c(folder.seed, body).to_le_bytes();
    for (to, from) in tail.iter_mut().zip([0, 0, 0, 0, 12, 0, 0, TAIL_TYPE].into_iter().chain(sum)) {
        *to = from;
    }
}

/// Where the index entries of a block begin: room, number and first child stand there.
pub(super) fn index_start(record: &Record<'_>, kind: BlockKind) -> Result<usize> {
    if kind == BlockKind::Node {
        return Ok(HEADER);
    }
    if record.u8(29)? != 8 || record.le_u32(24)? != 0 {
        return Err(record.corrupt(24, "the root of the folder's index is not one"));
    }
    Ok(32)
}

fn check_index(record: &Record<'_>, folder: &Inode, kind: BlockKind) -> Result<()> {
    let start = index_start(record, kind)?;
    let (room, count) = (usize::from(record.le_u16(start)?), usize::from(record.le_u16(start + 2)?));
    let tail = start + room * 8;
    if count > room || tail + 8 > record.bytes().len() {
        return Err(record.corrupt(start, format!("{count} index entries in room for {room}")));
    }
    let counted = index_checksum(folder, record.slice(0, start + count * 8)?, record.slice(tail, 4)?);
    let stored = record.le_u32(tail + 4)?;
    if stored != counted {
        return Err(record.corrupt(tail + 4, format!("the checksum is {stored:#010x}, not {counted:#010x}")));
    }
    Ok(())
}

/// The checksum of an index block: its used part, and the first word of its tail.
pub(super) fn index_checksum(folder: &Inode, used: &[u8], tail: &[u8]) -> u32 {
    crc32c(crc32c(crc32c(folder.seed, used), tail), &[0; 4])
}

/// Calls `visit` with every name of `folder`.
pub(super) fn visit(
    volume: &Volume,
    folder: &Inode,
    visit: &mut dyn FnMut(RawEntry<'_>) -> Result<ControlFlow<()>>,
) -> Result<()> {
    if folder.has(flag::INLINE_DATA) {
        return visit_inline(volume, folder, visit);
    }
    let size = volume.superblock.block_bytes();
    if !folder.size.is_multiple_of(size) || folder.size == 0 {
        return Err(folder.corrupt(format!("a folder of {} bytes", folder.size)));
    }
    let blocks = folder.size / size;
    let mut stopped = false;
    visit_leaves(volume, folder, blocks, |leaf| {
        let mut index = leaf.start;
        while index < leaf.end.min(blocks) && !stopped {
            let run = leaf.run_at(index);
            let RunKind::Data(block) = run.kind else {
                return Err(folder.corrupt(format!("block {index} of the folder is not there")));
            };
            let block = read_block_at(volume, folder, index, block)?;
            stopped = visit_block(volume, folder, &block, visit)?.is_break();
            index += 1;
        }
        Ok(())
    })
}

/// Calls `visit` with every name of one block.
pub(super) fn visit_block(
    volume: &Volume,
    folder: &Inode,
    block: &FolderBlock,
    visit: &mut dyn FnMut(RawEntry<'_>) -> Result<ControlFlow<()>>,
) -> Result<ControlFlow<()>> {
    let name = format!("block of folder {}", folder.number);
    let record = Record::new(&block.bytes, &name, block.block * volume.superblock.block_bytes());
    visit_slots(Slots::new(volume, folder, record, block.end), visit)
}

fn visit_slots(
    slots: Slots<'_>,
    visit: &mut dyn FnMut(RawEntry<'_>) -> Result<ControlFlow<()>>,
) -> Result<ControlFlow<()>> {
    for slot in slots {
        let slot = slot?;
        if slot.inode == 0 || matches!(slot.name, b"." | b"..") {
            continue;
        }
        let file_type = type_of(slot.kind);
        let entry = RawEntry { name: slot.name, inode: slot.inode, file_type, stored_hash: slot.hash };
        if visit(entry)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}

fn visit_inline(
    volume: &Volume,
    folder: &Inode,
    visit: &mut dyn FnMut(RawEntry<'_>) -> Result<ControlFlow<()>>,
) -> Result<()> {
    let (map, more) = (folder.block_map()?, xattr::inline_data(volume, folder)?);
    let name = format!("inline folder {}", folder.number);
    let first = Record::new(&map, &name, folder.offset);
    let entries = Record::new(first.slice(INLINE_ENTRIES, map.len() - INLINE_ENTRIES)?, &name, folder.offset);
    let end = entries.bytes().len();
    if visit_slots(Slots::new(volume, folder, entries, end), visit)?.is_continue() && !more.is_empty() {
        let end = more.len();
        let _ = visit_slots(Slots::new(volume, folder, Record::new(&more, &name, folder.offset), end), visit)?;
    }
    Ok(())
}

/// The inode of `name`, by looking at every name.
pub(super) fn find(volume: &Volume, folder: &Inode, name: &[u8]) -> Result<Option<u32>> {
    let mut found = None;
    visit(volume, folder, &mut |entry| {
        if entry.name != name {
            return Ok(ControlFlow::Continue(()));
        }
        found = Some(entry.inode);
        Ok(ControlFlow::Break(()))
    })?;
    Ok(found)
}

/// Refuses what is no folder.
pub(super) fn check_is_folder(inode: &Inode) -> Result<()> {
    if inode.is_folder() { Ok(()) } else { Err(Error::invalid("this is not a folder").in_structure(inode.name())) }
}
