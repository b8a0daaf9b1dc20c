//! Adding and removing names in one block of a folder.

use super::super::folder::{BlockKind, FolderBlock, HEADER, Slots, TAIL, seal_names, stored_length};
use super::super::inode::{Inode, flag};
use super::{Workbench, put16, put32};
use crate::fs::FileType;
use firn_disk::{Error, Record, Result};

/// The type byte of an entry.
pub(super) fn type_byte(kind: FileType) -> u8 {
    match kind {
        FileType::File => 1,
        FileType::Folder => 2,
        FileType::CharDevice => 3,
        FileType::BlockDevice => 4,
        FileType::Fifo => 5,
        FileType::Socket => 6,
        FileType::Symlink => 7,
    }
}

/// A name that is to be added.
#[derive(Debug, Clone, Copy)]
pub(super) struct NewName<'a> {
    pub name: &'a [u8],
    pub inode: u32,
    pub kind: u8,
}

impl NewName<'_> {
    fn length(&self) -> usize {
        (HEADER + self.name.len()).next_multiple_of(4)
    }
}

/// Where an entry stands, how long it is, and how much of that it needs.
struct Place {
    at: usize,
    length: usize,
    needed: usize,
    inode: u32,
    is_sought: bool,
}

impl Workbench {
    fn places(&self, folder: &Inode, block: &FolderBlock, sought: &[u8]) -> Result<Vec<Place>> {
        if folder.has(flag::ENCRYPTED) {
            return Err(Error::unsupported("fast commits in an encrypted folder").in_structure(folder.name()));
        }
        let record = Record::new(&block.bytes, "folder block", 0);
        Slots::new(&self.volume, folder, record, block.end)
            .map(|slot| {
                let slot = slot?;
                let needed = if slot.inode == 0 { 0 } else { (HEADER + slot.name.len()).next_multiple_of(4) };
                let is_sought = slot.inode != 0 && slot.name == sought;
                Ok(Place { at: slot.at, length: slot.length, needed, inode: slot.inode, is_sought })
            })
            .collect()
    }

    /// Adds a name where there is room; `false` when there is none.
    pub(super) fn add_to_block(&self, folder: &Inode, block: &mut FolderBlock, new: NewName<'_>) -> Result<bool> {
        let places = self.places(folder, block, new.name)?;
        let Some(place) = places.iter().find(|place| place.length - place.needed >= new.length()) else {
            return Ok(false);
        };
        if place.needed > 0 {
            put16(&mut block.bytes, place.at + 4, stored_length(place.needed));
        }
        write_entry(&mut block.bytes, place.at + place.needed, place.length - place.needed, new);
        self.put_names(folder, block)?;
        Ok(true)
    }

    /// Removes a name when it is in the block, and names `inode`; gives the inode that it names.
    pub(super) fn remove_from_block(
        &self,
        folder: &Inode,
        block: &mut FolderBlock,
        name: &[u8],
        inode: u32,
    ) -> Result<Option<u32>> {
        let places = self.places(folder, block, name)?;
        let Some(index) = places.iter().position(|place| place.is_sought) else { return Ok(None) };
        let Some(place) = places.get(index) else { return Ok(None) };
        if place.inode != inode {
            return Ok(Some(place.inode));
        }
        match index.checked_sub(1).and_then(|before| places.get(before)) {
            Some(before) => put16(&mut block.bytes, before.at + 4, stored_length(before.length + place.length)),
            None => put32(&mut block.bytes, place.at, 0),
        }
        self.put_names(folder, block)?;
        Ok(Some(inode))
    }

    fn put_names(&self, folder: &Inode, block: &mut FolderBlock) -> Result<()> {
        if self.volume.superblock.has_checksums() {
            if block.kind != BlockKind::Names {
                return Err(folder.corrupt("names are not changed in a block of the index"));
            }
            seal_names(folder, &mut block.bytes);
        }
        self.put_block(block.block, block.bytes.clone())
    }

    /// A block with these entries, the last one reaching to its end.
    pub(super) fn new_block(&self, folder: &Inode, block: u64, entries: &[NewName<'_>]) -> Result<()> {
        let mut bytes = vec![0; self.volume.superblock.block_len()];
        let end = bytes.len() - if self.volume.superblock.has_checksums() { TAIL } else { 0 };
        let mut at = 0;
        for (index, entry) in entries.iter().enumerate() {
            let length = if index + 1 == entries.len() { end - at } else { entry.length() };
            write_entry(&mut bytes, at, length, *entry);
            at += length;
        }
        let kind = BlockKind::Names;
        self.put_names(folder, &mut FolderBlock { block, bytes, kind, end })
    }

    /// Turns a block of an index into one that holds its names only.
    pub(super) fn plain_block(&self, folder: &Inode, block: &mut FolderBlock) -> Result<()> {
        let end = block.bytes.len() - if self.volume.superblock.has_checksums() { TAIL } else { 0 };
        match block.kind {
            BlockKind::Names => return Ok(()),
            // `.` takes 12 bytes, `..` the rest.
            BlockKind::Root => put16(&mut block.bytes, 12 + 4, stored_length(end - 12)),
            BlockKind::Node => {
                put32(&mut block.bytes, 0, 0);
                put32(&mut block.bytes, 4, 0);
                put16(&mut block.bytes, 4, stored_length(end));
            }
        }
        block.kind = BlockKind::Names;
        block.end = end;
        self.put_names(folder, block)
    }
}

fn write_entry(bytes: &mut [u8], at: usize, length: usize, new: NewName<'_>) {
    put32(bytes, at, new.inode);
    put16(bytes, at + 4, stored_length(length));
    let name_length = u8::try_from(new.name.len()).unwrap_or(u8::MAX);
    for (to, from) in bytes.iter_mut().skip(at + 6).zip([name_length, new.kind].iter().chain(new.name)) {
        *to = *from;
    }
}
