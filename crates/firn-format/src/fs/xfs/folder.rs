//! Folders: names within the inode, or in blocks.
//!
//! ```text
//! short  entries (1), of them with 8-byte inodes (1), parent (4 or 8);
//!        then length (1), place (2), name, type (1), inode (4 or 8)
//! block  "XDB3" (one block in all) or "XDD3" (4), its stamp (44), free space (3 x 4), 0 (4);  then entries
//! entry  inode (8), length (1), name, type (1), its own place (2), to a multiple of 8
//! unused 0xFFFF (2), length (2), ..., its own place (2)
//! ```
//!
//! Version 4 has "XD2B" and "XD2D" with no stamp, and types only with `ftype`. A block of a folder can be larger than
//! one of the file system, and its parts need not be next to each other. Blocks from 32 GiB on are the index of names.
//!
//! Source: the kernel's `fs/xfs/libxfs/xfs_da_format.h`, `fs/xfs/libxfs/xfs_dir2_data.c`,
//! `fs/xfs/libxfs/xfs_dir2_sf.c`.

use super::checksum;
use super::inode::{Fork, Format, Inode};
use super::map::{Blocks, Cursor, RunKind};
use super::volume::Volume;
use crate::fs::FileType;
use firn_disk::{Error, Record, Result};
use std::ops::ControlFlow;

/// Where the index of names begins in a folder, in bytes.
pub(super) const INDEX_START: u64 = 32 << 30;
/// One block in all: "XD2B", "XDB3".
pub(super) const BLOCK_MAGIC: [u32; 2] = [0x5844_3242, 0x5844_4233];
/// One of several blocks: "XD2D", "XDD3".
const DATA_MAGIC: [u32; 2] = [0x5844_3244, 0x5844_4433];
const UNUSED: u16 = 0xFFFF;

/// An entry as it stands in the folder.
#[derive(Debug, Clone, Copy)]
pub(super) struct RawEntry<'a> {
    pub name: &'a [u8],
    pub inode: u64,
    pub file_type: Option<FileType>,
}

/// What a visitor of entries says: go on or stop.
pub(super) type Visit<'v> = dyn FnMut(RawEntry<'_>) -> Result<ControlFlow<()>> + 'v;

/// Calls `visit` with every entry but `.` and `..`.
pub(super) fn visit(volume: &Volume, inode: &Inode, visit: &mut Visit<'_>) -> Result<()> {
    match inode.format(Fork::Data) {
        Some(Format::Local) => visit_short(volume, inode, visit),
        _ => visit_blocks(volume, inode, visit),
    }
}

fn file_type(raw: u8) -> Option<FileType> {
    Some(match raw {
        1 => FileType::File,
        2 => FileType::Folder,
        // A whiteout is a character device.
        3 | 8 => FileType::CharDevice,
        4 => FileType::BlockDevice,
        5 => FileType::Fifo,
        6 => FileType::Socket,
        7 => FileType::Symlink,
        _ => return None,
    })
}

/// A name that cannot be one.
fn is_wrong(name: &[u8]) -> bool {
    name.is_empty() || name.contains(&0) || name.contains(&b'/')
}

fn visit_short(volume: &Volume, inode: &Inode, visit: &mut Visit<'_>) -> Result<()> {
    let structure = format!("folder {}", inode.number);
    let record = Record::new(inode.local_data()?, &structure, inode.fork_offset(Fork::Data));
    let (count, wide) = (record.u8(0)?, record.u8(1)? != 0);
    let types = usize::from(volume.superblock.features.has_ftype());
    let width = if wide { 8 } else { 4 };
    let mut at = 2 + width;
    for _ in 0..count {
        let length = usize::from(record.u8(at)?);
        let name = record.slice(at + 3, length)?;
        let after = at + 3 + length;
        let number = after + types;
        let inode = if wide { record.be_u64(number)? } else { u64::from(record.be_u32(number)?) };
        if is_wrong(name) {
            return Err(record.corrupt(at, "an impossible name"));
        }
        let file_type = if types == 1 { file_type(record.u8(after)?) } else { None };
        if visit(RawEntry { name, inode, file_type })?.is_break() {
            return Ok(());
        }
        at = number + width;
    }
    Ok(())
}

fn visit_blocks(volume: &Volume, inode: &Inode, visit: &mut Visit<'_>) -> Result<()> {
    let superblock = &volume.superblock;
    let mut cursor = Cursor::new(volume, inode, Fork::Data);
    let step = superblock.folder_blocks();
    let end = inode.size.min(INDEX_START).div_ceil(superblock.block_bytes());
    let mut block = 0;
    let mut seen = false;
    while block < end {
        let run = cursor.run_at(block)?;
        if run.kind == RunKind::Hole && run.length >= step {
            // Blocks that were emptied are gone.
            block += run.length / step * step;
            continue;
        }
        let data = DataBlock::read(volume, inode, &mut cursor, block)?;
        seen = true;
        if data.visit(visit)?.is_break() {
            return Ok(());
        }
        block += step;
    }
    if seen { Ok(()) } else { Err(inode.corrupt("a folder without a block")) }
}

/// A block of entries, checked.
pub(super) struct DataBlock {
    blocks: Blocks,
    structure: String,
    has_ftype: bool,
    first: usize,
    /// Where the entries end.
    end: usize,
    /// The entries of the index of names in a folder of one block, behind the data.
    pub index_entries: usize,
}

impl DataBlock {
    /// Reads the block that begins at `block` of the folder.
    pub fn read(volume: &Volume, inode: &Inode, cursor: &mut Cursor<'_>, block: u64) -> Result<Self> {
        let superblock = &volume.superblock;
        let structure = format!("folder {}", inode.number);
        let blocks = cursor.read(block, superblock.folder_blocks(), &structure)?;
        let record = Record::new(&blocks.bytes, &structure, blocks.offset);
        let magic = record.be_u32(0)?;
        let version = usize::from(superblock.features.is_v5());
        let is_single = Some(&magic) == BLOCK_MAGIC.get(version);
        if !is_single && Some(&magic) != DATA_MAGIC.get(version) {
            return Err(record.corrupt(0, "no block of a folder"));
        }
        checksum::check_stamp(superblock, &record, checksum::FOLDER, blocks.offset, inode.number, blocks.is_patched)?;
        let length = blocks.bytes.len();
        let mut end = length;
        let mut index_entries = 0;
        if is_single {
            // Entries of the index (4) and of them unused (4) are the last; the index before them.
            let count = record.be_u32(length - 8)?;
            index_entries = usize::try_from(count).unwrap_or(usize::MAX);
            end = index_entries
                .checked_mul(8)
                .and_then(|size| (length - 8).checked_sub(size))
                .ok_or_else(|| record.corrupt(length - 8, format!("an index of {count} entries")))?;
        }
        let first = if version == 1 { 64 } else { 16 };
        let has_ftype = superblock.features.has_ftype();
        Ok(Self { blocks, structure, has_ftype, first, end, index_entries })
    }

    fn record(&self) -> Record<'_> {
        Record::new(&self.blocks.bytes, &self.structure, self.blocks.offset)
    }

    /// The index behind the data, entry by entry: hash and place.
    pub fn index_entry(&self, index: usize) -> Result<(u32, u32)> {
        let record = self.record();
        Ok((record.be_u32(self.end + index * 8)?, record.be_u32(self.end + index * 8 + 4)?))
    }

    /// The entry at `at`, and where the next thing stands.
    pub fn entry(&self, at: usize) -> Result<(RawEntry<'_>, usize)> {
        let record = self.record();
        if at < self.first || !at.is_multiple_of(8) {
            return Err(record.corrupt(at, "no entry"));
        }
        let length = usize::from(record.u8(at + 8)?);
        let name = record.slice(at + 9, length)?;
        let after = at + 9 + length;
        let next = (after + usize::from(self.has_ftype) + 2).next_multiple_of(8);
        if next > self.end || usize::from(record.be_u16(next - 2)?) != at || is_wrong(name) {
            return Err(record.corrupt(at, "a damaged entry"));
        }
        let file_type = if self.has_ftype { file_type(record.u8(after)?) } else { None };
        Ok((RawEntry { name, inode: record.be_u64(at)?, file_type }, next))
    }

    fn visit(&self, visit: &mut Visit<'_>) -> Result<ControlFlow<()>> {
        let record = self.record();
        let mut at = self.first;
        // Everything takes 8 bytes or more.
        while at < self.end {
            if record.be_u16(at)? == UNUSED {
                let length = usize::from(record.be_u16(at + 2)?);
                if length < 8 || length % 8 != 0 || at + length > self.end {
                    return Err(record.corrupt(at + 2, format!("{length} unused bytes")));
                }
                at += length;
                continue;
            }
            let (entry, next) = self.entry(at)?;
            if entry.name != b"." && entry.name != b".." && visit(entry)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
            at = next;
        }
        Ok(ControlFlow::Continue(()))
    }
}

/// `Invalid` when an inode is no folder.
pub(super) fn check_is_folder(inode: &Inode) -> Result<()> {
    if inode.is_folder() { Ok(()) } else { Err(Error::invalid("this is not a folder").in_structure(inode.name())) }
}

/// The inode that `name` names, by looking at every entry.
pub(super) fn find(volume: &Volume, inode: &Inode, name: &[u8]) -> Result<Option<u64>> {
    let mut found = None;
    visit(volume, inode, &mut |entry| {
        if entry.name != name {
            return Ok(ControlFlow::Continue(()));
        }
        found = Some(entry.inode);
        Ok(ControlFlow::Break(()))
    })?;
    Ok(found)
}
