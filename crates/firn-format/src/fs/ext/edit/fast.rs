//! Doing what fast commits say.
//!
//! A fast commit names inodes, ranges of blocks and names; bitmaps, counts, trees and folders follow from them. A file
//! keeps what its map had before the fast commits in mind, so that at the end exactly the blocks that nobody has any
//! more become free.
//!
//! What the kernel loses is kept here: the target of a new short symlink and the number of a new device, which are in
//! the fast commit, the links of a folder that gets or loses a folder, and that a removed folder's inode is free. What
//! the kernel keeps is lost: attributes of a file that had an inode's number before. A folder's times, which fast commits do not hold, become those of the change to the file whose name was added or
//! removed.
//!
//! Source: the kernel's `fs/ext4/fast_commit.c` (`ext4_fc_replay_*`).

use super::super::extent::{MAGIC, MAX_LENGTH};
use super::super::folder::{self, BlockKind, read_block};
use super::super::index;
use super::super::inode::{BLOCK_MAP, BLOCK_MAP_LENGTH, Inode, flag};
use super::super::journal::{Change, FastCommits};
use super::super::map::{Run, RunKind};
use super::mapping::FileMap;
use super::names::{NewName, type_byte};
use super::space::{Blocks, Sorted};
use super::{Workbench, put16, put32};
use firn_disk::{Error, Record, Result};
use std::collections::{BTreeMap, BTreeSet};

/// Changes that one replay makes; more are refused.
const MAX_CHANGES: usize = 1 << 18;

/// An inode that fast commits change.
#[derive(Debug, Default)]
struct Touched {
    /// What it had on the disk before.
    before: Blocks,
    /// Whether it was a folder before.
    was_folder: bool,
    /// Its extent tree, when it has one.
    map: Option<FileMap>,
    is_map_changed: bool,
    /// Its attributes were given back already, as it has no name any more.
    is_released: bool,
}

struct Finisher<'a> {
    bench: &'a Workbench,
    /// Blocks that the fast commits give to files.
    reserved: Sorted,
    touched: BTreeMap<u32, Touched>,
    /// Inodes that are deleted or shortened afterwards anyway; their deletion times are the links of a list.
    orphans: BTreeSet<u32>,
    /// Inodes that this fast commit has as they are at its end.
    recorded: BTreeSet<u32>,
    /// Attribute blocks of files that are gone.
    released: Blocks,
    /// Blocks that were taken here, for trees and folders. Not all are needed until the end.
    taken: Blocks,
}

impl Workbench {
    /// Does all that the fast commits say.
    pub fn apply_fast_commits(&self, fast: &FastCommits) -> Result<()> {
        if fast.changes.len() > MAX_CHANGES {
            return Err(Error::unsupported(format!("more than {MAX_CHANGES} changes in fast commits")));
        }
        let mut reserved = Blocks::default();
        for change in &fast.changes {
            if let Change::AddRange { extent, .. } = change
                && let (RunKind::Data(block) | RunKind::Unwritten(block), length) = parse_extent(extent)?
            {
                reserved.add(block, length)?;
            }
        }
        let mut finisher = Finisher {
            bench: self,
            reserved: reserved.sorted(),
            touched: BTreeMap::new(),
            orphans: self.orphans(false)?,
            recorded: BTreeSet::new(),
            released: Blocks::default(),
            taken: Blocks::default(),
        };
        for change in &fast.changes {
            finisher.apply(change).map_err(|error| error.context("fast commit"))?;
        }
        finisher.finish()
    }
}

fn parse_extent(extent: &[u8; 12]) -> Result<(RunKind, u64)> {
    let record = Record::new(extent, "fast commit range", 0);
    let block = u64::from(record.le_u32(8)?) | u64::from(record.le_u16(6)?) << 32;
    Ok(match record.le_u16(4)? {
        length if length > MAX_LENGTH => (RunKind::Unwritten(block), u64::from(length - MAX_LENGTH)),
        length => (RunKind::Data(block), u64::from(length)),
    })
}

impl Finisher<'_> {
    fn apply(&mut self, change: &Change) -> Result<()> {
        match change {
            Change::Inode { inode, raw } => self.inode(*inode, raw),
            Change::AddRange { inode, extent } => self.add_range(*inode, extent),
            Change::DelRange { inode, start, length } => {
                let (start, length) = (u64::from(*start), u64::from(*length));
                self.change_map(*inode, |map| map.clear(start, start + length))
            }
            Change::Create { folder, inode, name } => self.create(*folder, *inode, name),
            Change::Link { folder, inode, name } => {
                let Some(child) = self.in_use(*inode)? else { return Ok(()) };
                if self.add_name(*folder, &child, name)? {
                    self.put_links(&child, child.links.saturating_add(1))?;
                }
                Ok(())
            }
            Change::Unlink { folder, inode, name } => self.unlink(*folder, *inode, name),
            Change::End => {
                self.recorded.clear();
                Ok(())
            }
        }
    }

    /// Remembers what an inode has before it is changed for the first time.
    fn touch(&mut self, number: u32) -> Result<()> {
        if self.bench.volume.superblock.is_own_inode(number) {
            return Err(Error::corrupt(format!("a change of inode {number}, which no file has")));
        }
        if self.touched.contains_key(&number) {
            return Ok(());
        }
        let mut touched = Touched::default();
        if let Some(inode) = self.allocated(number)? {
            touched.was_folder = inode.is_folder();
            if inode.has(flag::EXTENTS) && inode.has_block_map(&self.bench.volume.superblock) {
                let map = self.bench.load_map(&inode)?;
                map.blocks(&mut touched.before)?;
                touched.map = Some(map);
            }
        }
        self.touched.insert(number, touched);
        Ok(())
    }

    /// The inode, when a name may lead to it. One that was never written is not in use, whatever is there.
    fn in_use(&self, number: u32) -> Result<Option<Inode>> {
        self.bench.volume.inode_offset(number)?;
        Ok(self.bench.volume.inode(number).ok().filter(Inode::is_in_use))
    }

    /// The inode, when it is somebody's: with a name, or open without one.
    fn allocated(&self, number: u32) -> Result<Option<Inode>> {
        self.bench.volume.inode_offset(number)?;
        match self.bench.volume.inode(number).ok().filter(|inode| inode.mode != 0) {
            Some(inode) if inode.links > 0 || self.bench.is_inode_marked(number)? => Ok(Some(inode)),
            _ => Ok(None),
        }
    }

    fn inode(&mut self, number: u32, new: &[u8]) -> Result<()> {
        self.touch(number)?;
        self.recorded.insert(number);
        let size = usize::from(self.bench.volume.superblock.inode_size);
        let record = Record::new(new, "inode in a fast commit", 0);
        let flags = record.le_u32(0x20)?;
        let behind = record.slice(0x64, new.len().saturating_sub(0x64))?;
        if new.len() > size || behind.len() < 128 - 0x64 {
            return Err(record.corrupt(0, format!("{} bytes of an inode of {size}", new.len())));
        }
        // Another generation is another file that got the number of one that is gone.
        let generation = record.le_u32(0x64)?;
        let old = self.allocated(number)?;
        if let Some(gone) = old.as_ref().filter(|inode| inode.generation != generation) {
            self.release(gone)?;
            self.touched.entry(number).or_default().is_released = false;
        }
        let old = old.filter(|inode| inode.generation == generation);
        let was_used = old.is_some();
        let next_orphan = old.as_ref().and_then(|inode| inode.record().le_u32(0x14).ok());
        let mut raw = old.map_or_else(|| vec![0; size], |inode| inode.raw);
        for (at, part) in [(0, record.slice(0, BLOCK_MAP)?), (0x64, behind)] {
            raw.get_mut(at..at + part.len()).unwrap_or_default().copy_from_slice(part);
        }
        match next_orphan {
            Some(next) if self.orphans.contains(&number) => put32(&mut raw, 0x14, next),
            _ => put32(&mut raw, 0x14, 0),
        }
        let touched = self.touched.entry(number).or_default();
        if !was_used {
            touched.map = None;
        }
        let has_tree = flags & flag::EXTENTS != 0;
        if !has_tree {
            let map = record.slice(BLOCK_MAP, BLOCK_MAP_LENGTH)?;
            // The numbers of indirect blocks are not in fast commits.
            let keeps_blocks =
                was_used && flags & flag::INLINE_DATA == 0 && matches!(raw.get(1), Some(0x40..=0x4F | 0x80..=0x8F));
            if !keeps_blocks {
                raw.get_mut(BLOCK_MAP..BLOCK_MAP + BLOCK_MAP_LENGTH).unwrap_or_default().copy_from_slice(map);
            }
            touched.map = None;
        } else if touched.map.is_none() {
            touched.map = Some(FileMap::default());
            touched.is_map_changed = true;
            let mut root = vec![0; BLOCK_MAP_LENGTH];
            put16(&mut root, 0, MAGIC);
            put16(&mut root, 4, 4);
            raw.get_mut(BLOCK_MAP..BLOCK_MAP + BLOCK_MAP_LENGTH).unwrap_or_default().copy_from_slice(&root);
        }
        self.bench.put_inode(number, raw)
    }

    fn add_range(&mut self, number: u32, extent: &[u8; 12]) -> Result<()> {
        let (kind, length) = parse_extent(extent)?;
        let start = u64::from(Record::new(extent, "fast commit range", 0).le_u32(0)?);
        if let RunKind::Data(block) | RunKind::Unwritten(block) = kind {
            self.bench.volume.block_offset(block, length, "fast commit range")?;
        }
        if length == 0 || start + length > super::super::extent::MAX_BLOCKS {
            return Err(Error::corrupt(format!("a range of blocks {start}..{}", start + length)));
        }
        self.change_map(number, |map| map.set(Run { start, length, kind }))
    }

    fn change_map(&mut self, number: u32, change: impl FnOnce(&mut FileMap)) -> Result<()> {
        self.touch(number)?;
        if self.in_use(number)?.is_none() {
            return Ok(());
        }
        let touched = self.touched.entry(number).or_default();
        let Some(map) = &mut touched.map else {
            return Err(Error::unsupported(format!("ranges of inode {number}, which has no extent tree")));
        };
        change(map);
        touched.is_map_changed = true;
        Ok(())
    }

    fn create(&mut self, folder: u32, number: u32, name: &[u8]) -> Result<()> {
        self.touch(number)?;
        // A file that was gone again when the fast commit was written has no links there.
        let Some(child) = self.in_use(number)? else { return Ok(()) };
        if child.is_folder() {
            self.begin_folder(&child, folder)?;
        }
        if self.add_name(folder, &child, name)? && child.is_folder() {
            let parent = self.parent(folder)?;
            self.put_folder_links(&parent, parent.links.saturating_add(1))?;
        }
        Ok(())
    }

    /// Writes `.` and `..` into the first block of a new folder.
    fn begin_folder(&mut self, child: &Inode, parent: u32) -> Result<()> {
        if child.has(flag::INLINE_DATA) {
            return Ok(());
        }
        self.flush(child.number)?;
        let child = self.bench.volume.inode(child.number)?;
        let kind = type_byte(crate::fs::FileType::Folder);
        let entries = [NewName { name: b".", inode: child.number, kind }, NewName { name: b"..", inode: parent, kind }];
        let leaf = super::super::map::leaf_at(&self.bench.volume, &child, 0)?;
        match leaf.run_at(0).kind {
            RunKind::Data(block) => self.bench.new_block(&child, block, &entries),
            _ => self.put_new_block(&child, 0, &entries),
        }
    }

    fn unlink(&mut self, folder: u32, number: u32, name: &[u8]) -> Result<()> {
        self.touch(number)?;
        let Some(child) = self.in_use(number)? else { return Ok(()) };
        let Some(parent) = self.in_use(folder)?.filter(Inode::is_folder) else { return Ok(()) };
        self.flush(folder)?;
        let blocks = parent.size / self.bench.volume.superblock.block_bytes();
        check_has_blocks(&parent)?;
        for index in 0..blocks {
            let mut block = read_block(&self.bench.volume, &parent, index)?;
            if block.kind != BlockKind::Names {
                continue;
            }
            if self.bench.remove_from_block(&parent, &mut block, name, number)?.is_some() {
                self.put_times(&parent, &child)?;
                let links = if child.is_folder() { 0 } else { child.links.saturating_sub(1) };
                self.put_links(&child, links)?;
                if child.is_folder() {
                    self.put_folder_links(&parent, parent.links.saturating_sub(1))?;
                }
                if links == 0 && !self.orphans.contains(&number) {
                    self.release(&child)?;
                    self.touched.entry(number).or_default().map = Some(FileMap::default());
                }
                return Ok(());
            }
        }
        Ok(())
    }

    /// Gives back the attributes of a file that is gone, once.
    fn release(&mut self, inode: &Inode) -> Result<()> {
        let touched = self.touched.entry(inode.number).or_default();
        if std::mem::replace(&mut touched.is_released, true) || self.orphans.contains(&inode.number) {
            return Ok(());
        }
        self.bench.release_attributes(inode, &mut self.released)
    }

    fn parent(&self, number: u32) -> Result<Inode> {
        let inode = self.in_use(number)?.ok_or_else(|| Error::corrupt(format!("folder {number} does not exist")))?;
        folder::check_is_folder(&inode)?;
        check_has_blocks(&inode)?;
        Ok(inode)
    }

    /// Adds a name to a folder; `false` when it is there already.
    fn add_name(&mut self, number: u32, child: &Inode, name: &[u8]) -> Result<bool> {
        if name.is_empty() || name.len() > 255 || name.iter().any(|byte| matches!(byte, 0 | b'/')) {
            return Err(Error::corrupt("a name that no file can have"));
        }
        self.touch(number)?;
        self.flush(number)?;
        let folder = self.parent(number)?;
        if folder::find(&self.bench.volume, &folder, name)?.is_some() {
            return Ok(false);
        }
        let has_types = self.bench.volume.superblock.features.incompat(super::super::features::incompat::FILETYPE);
        let kind = if has_types { type_byte(child.file_type()?) } else { 0 };
        let new = NewName { name, inode: child.number, kind };
        if !self.add_where_room_is(&folder, new)? {
            let folder = self.without_index(folder)?;
            let blocks = folder.size / self.bench.volume.superblock.block_bytes();
            self.put_new_block(&folder, blocks, &[new])?;
        }
        self.put_times(&self.parent(number)?, child)?;
        Ok(true)
    }

    fn add_where_room_is(&self, folder: &Inode, new: NewName<'_>) -> Result<bool> {
        let volume = &self.bench.volume;
        if folder::is_indexed(volume, folder) {
            // The index says in which block a name must stand.
            let Some(index) = index::probe(volume, folder, new.name)?.names() else { return Ok(false) };
            return self.bench.add_to_block(folder, &mut read_block(volume, folder, index)?, new);
        }
        for index in 0..folder.size / volume.superblock.block_bytes() {
            if self.bench.add_to_block(folder, &mut read_block(volume, folder, index)?, new)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The same folder without an index, so that names may stand anywhere.
    fn without_index(&mut self, folder: Inode) -> Result<Inode> {
        let volume = &self.bench.volume;
        if !folder::is_indexed(volume, &folder) {
            return Ok(folder);
        }
        for index in 0..folder.size / volume.superblock.block_bytes() {
            self.bench.plain_block(&folder, &mut read_block(volume, &folder, index)?)?;
        }
        let mut raw = folder.raw.clone();
        put32(&mut raw, 0x20, folder.flags & !flag::INDEX);
        self.bench.put_inode(folder.number, raw)?;
        volume.inode(folder.number)
    }

    /// Gives a folder its last block, number `index`, with these names.
    fn put_new_block(&mut self, folder: &Inode, index: u64, entries: &[NewName<'_>]) -> Result<()> {
        let superblock = &self.bench.volume.superblock;
        let block = self.bench.allocate(self.group_of(folder.number), &self.reserved)?;
        self.taken.add(block, 1)?;
        self.touch(folder.number)?;
        self.change_map(folder.number, |map| map.set(Run { start: index, length: 1, kind: RunKind::Data(block) }))?;
        self.bench.new_block(folder, block, entries)?;
        let mut raw = folder.raw.clone();
        let size = u32::try_from((index + 1) * superblock.block_bytes());
        put32(&mut raw, 0x4, size.map_err(|_| folder.corrupt("a folder of 4 GiB"))?);
        self.bench.put_inode(folder.number, raw)?;
        self.flush(folder.number)
    }

    fn group_of(&self, inode: u32) -> u32 {
        inode.saturating_sub(1) / self.bench.volume.superblock.inodes_per_group
    }

    /// Counts a folder that came or went, unless the fast commit has this one as it is afterwards. A folder of one
    /// link has more folders than can be counted.
    fn put_folder_links(&self, folder: &Inode, links: u16) -> Result<()> {
        if folder.links < 2 || links < 2 || self.recorded.contains(&folder.number) {
            return Ok(());
        }
        self.put_links(folder, links)
    }

    fn put_links(&self, inode: &Inode, links: u16) -> Result<()> {
        let mut raw = self.bench.volume.inode(inode.number)?.raw;
        put16(&mut raw, 0x1A, links);
        self.bench.put_inode(inode.number, raw)
    }

    /// Gives a folder the time of the change of the file whose name was added or removed, if that is later.
    fn put_times(&self, folder: &Inode, child: &Inode) -> Result<()> {
        let (now, time) = (child.stat()?.changed, folder.stat()?.modified);
        if now <= time {
            return Ok(());
        }
        let mut raw = self.bench.volume.inode(folder.number)?.raw;
        let from = child.record();
        for (at, more) in [(0xC, 0x84), (0x10, 0x88)] {
            put32(&mut raw, at, from.le_u32(0xC)?);
            if usize::from(folder.extra.min(child.extra)) + 128 >= more + 4 {
                put32(&mut raw, more, from.le_u32(0x84)?);
            }
        }
        self.bench.put_inode(folder.number, raw)
    }

    /// Writes a changed map into its inode, so that the file can be read.
    fn flush(&mut self, number: u32) -> Result<()> {
        let near = self.group_of(number);
        let Some(touched) = self.touched.get_mut(&number).filter(|touched| touched.is_map_changed) else {
            return Ok(());
        };
        touched.is_map_changed = false;
        let Some(map) = &mut touched.map else { return Ok(()) };
        let inode = self.bench.volume.inode(number)?;
        let root = self.bench.store_map(&inode, map, || {
            let block = self.bench.allocate(near, &self.reserved)?;
            self.taken.add(block, 1)?;
            Ok(block)
        })?;
        let mut raw = inode.raw;
        raw.get_mut(BLOCK_MAP..BLOCK_MAP + BLOCK_MAP_LENGTH).unwrap_or_default().copy_from_slice(&root);
        self.bench.put_inode(number, raw)
    }

    /// Writes all maps, sets bitmaps and counts, and deletes what has no name any more.
    fn finish(mut self) -> Result<()> {
        let numbers: Vec<u32> = self.touched.keys().copied().collect();
        let (mut used, mut freed) = (Blocks::default(), Blocks::default());
        let mut deleted = Vec::new();
        for number in numbers {
            let inode = self.bench.volume.inode(number);
            let in_use = inode.as_ref().is_ok_and(Inode::is_in_use);
            if in_use {
                self.flush(number)?;
            }
            let touched = self.touched.remove(&number).unwrap_or_default();
            let Ok(inode) = inode else { continue };
            if !in_use && self.orphans.contains(&number) {
                continue;
            }
            freed.append(&touched.before)?;
            if !in_use {
                if inode.mode != 0 {
                    let was_folder = touched.was_folder;
                    self.touched.insert(number, touched);
                    self.release(&inode)?;
                    deleted.push((inode, was_folder));
                }
                continue;
            }
            self.count(&inode, &touched, &mut used)?;
        }
        freed.append(&self.released)?;
        freed.append(&self.taken)?;
        self.bench.mark_blocks(&used, &freed)?;
        for (inode, was_folder) in deleted {
            let mut raw = inode.raw.clone();
            if inode.has(flag::EXTENTS) {
                let mut nothing = Blocks::default();
                self.bench.shorten(&inode, &mut raw, 0, &mut nothing)?;
            }
            self.bench.put_deleted(&inode, raw, was_folder)?;
        }
        Ok(())
    }

    /// Counts what an inode takes, and marks it used.
    fn count(&self, inode: &Inode, touched: &Touched, used: &mut Blocks) -> Result<()> {
        let superblock = &self.bench.volume.superblock;
        if !self.bench.mark_inode(inode.number, true, inode.is_folder())? {
            self.bench.count_folder(inode.number, touched.was_folder, inode.is_folder())?;
        }
        let Some(map) = &touched.map else { return Ok(()) };
        let mut own = Blocks::default();
        map.blocks(&mut own)?;
        used.append(&own)?;
        let size = u64::from(superblock.cluster_blocks);
        let attributes = u64::from(inode.xattr_block != 0);
        let clusters = own.clusters(u64::from(superblock.first_data_block), size) + attributes;
        let mut raw = self.bench.volume.inode(inode.number)?.raw;
        self.bench.put_sectors(inode.flags, &mut raw, clusters * size * (superblock.block_bytes() / 512));
        self.bench.put_inode(inode.number, raw)
    }
}

fn check_has_blocks(folder: &Inode) -> Result<()> {
    if folder.has(flag::INLINE_DATA) {
        return Err(Error::unsupported("fast commits in a folder with inline data").in_structure(folder.name()));
    }
    Ok(())
}
