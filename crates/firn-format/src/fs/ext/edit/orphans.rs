//! Orphans: inodes that had no name any more, or were to be shortened, when the machine stopped.
//!
//! They hang in a list that begins in the superblock and goes on in each inode's deletion time, or stand as numbers in
//! the orphan file: blocks of inode numbers that end in a magic number and a crc32c. An orphan without links is
//! deleted; one with links is shortened to its size.
//!
//! Source: the kernel's `fs/ext4/orphan.c`.

use super::super::checksum::{crc32c, high16, high32, low16, low32};
use super::super::features::ro_compat;
use super::super::inode::{Inode, flag};
use super::super::map::{RunKind, visit_leaves};
use super::super::xattr;
use super::space::Blocks;
use super::{Workbench, put16, put32};
use firn_disk::{Error, Record, Result};
use std::collections::BTreeSet;

/// More orphans than this are left as they are.
const MAX_ORPHANS: usize = 1 << 16;
/// More blocks than the kernel lets an orphan file have.
const MAX_FILE_BLOCKS: u64 = 512;
const FILE_MAGIC: u32 = 0x0B10_CA04;
const FILE_TAIL: usize = 8;

/// What was done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in super::super) struct Orphans {
    pub deleted: u32,
    pub shortened: u32,
}

impl Workbench {
    /// Whether there is anything to do.
    pub fn has_orphans(&self) -> bool {
        let superblock = &self.volume.superblock;
        superblock.last_orphan != 0 || superblock.features.ro_compat(ro_compat::ORPHAN_PRESENT)
    }

    /// The numbers of all orphans. They are taken out of the orphan file, if `empty` says so.
    pub(super) fn orphans(&self, empty: bool) -> Result<BTreeSet<u32>> {
        let mut orphans = BTreeSet::new();
        self.listed(&mut orphans)?;
        let superblock = &self.volume.superblock;
        if superblock.orphan_file != 0 && superblock.features.ro_compat(ro_compat::ORPHAN_PRESENT) {
            self.filed(&mut orphans, empty)?;
        }
        Ok(orphans)
    }

    /// Deletes and shortens all orphans.
    pub fn process_orphans(&mut self) -> Result<Orphans> {
        let orphans = self.orphans(true)?;
        let mut done = Orphans::default();
        for number in orphans {
            let inode = self.volume.inode(number)?;
            if inode.links == 0 {
                self.delete(&inode)?;
                done.deleted += 1;
            } else {
                self.shorten_to_size(&inode)?;
                done.shortened += 1;
            }
        }
        let features = superblock_ro_compat(self) & !ro_compat::ORPHAN_PRESENT;
        self.put_superblock(|raw| {
            put32(raw, 0xE8, 0);
            put32(raw, 0x64, features);
        })?;
        Ok(done)
    }

    /// The orphans of the list. Like the kernel, this ends at the first inode that makes no sense.
    fn listed(&self, orphans: &mut BTreeSet<u32>) -> Result<()> {
        let mut next = self.volume.superblock.last_orphan;
        while next != 0 && orphans.len() < MAX_ORPHANS {
            let Ok(inode) = self.volume.inode(next) else { return Ok(()) };
            if self.volume.superblock.is_own_inode(next) || inode.mode == 0 || !orphans.insert(next) {
                return Ok(());
            }
            next = inode.record().le_u32(0x14)?;
        }
        if next == 0 { Ok(()) } else { Err(Error::unsupported(format!("more than {MAX_ORPHANS} orphans"))) }
    }

    /// The orphans of the orphan file.
    fn filed(&self, orphans: &mut BTreeSet<u32>, empty: bool) -> Result<()> {
        let superblock = &self.volume.superblock;
        let file = self.volume.inode(superblock.orphan_file)?;
        let blocks = file.size / superblock.block_bytes();
        if !file.is_file() || blocks > MAX_FILE_BLOCKS {
            return Err(file.corrupt("this is no orphan file"));
        }
        visit_leaves(&self.volume, &file, blocks, |leaf| {
            for run in &leaf.runs {
                let RunKind::Data(first) = run.kind else { continue };
                for block in first..first + run.length.min(blocks.saturating_sub(run.start)) {
                    self.filed_in_block(&file, block, orphans, empty)?;
                }
            }
            Ok(())
        })
    }

    fn filed_in_block(&self, file: &Inode, block: u64, orphans: &mut BTreeSet<u32>, empty: bool) -> Result<()> {
        let mut bytes = self.volume.read_block(block, "orphan file")?;
        let body = bytes.len() - FILE_TAIL;
        let record = Record::new(&bytes, "orphan file", block * self.volume.superblock.block_bytes());
        if record.le_u32(body)? != FILE_MAGIC {
            return Err(record.corrupt(body, "no orphan file magic"));
        }
        let seed = crc32c(file.seed, &block.to_le_bytes());
        if self.volume.superblock.has_checksums() {
            let (stored, counted) = (record.le_u32(body + 4)?, crc32c(seed, record.slice(0, body)?));
            if stored != counted {
                return Err(record.corrupt(body + 4, format!("the checksum is {stored:#010x}, not {counted:#010x}")));
            }
        }
        let mut found = false;
        for at in (0..body).step_by(4) {
            let number = record.le_u32(at)?;
            if number != 0 {
                found = true;
                orphans.insert(number);
            }
        }
        if orphans.len() > MAX_ORPHANS {
            return Err(Error::unsupported(format!("more than {MAX_ORPHANS} orphans")));
        }
        if found && empty {
            bytes.get_mut(..body).unwrap_or_default().fill(0);
            if self.volume.superblock.has_checksums() {
                let sum = crc32c(seed, bytes.get(..body).unwrap_or_default());
                put32(&mut bytes, body + 4, sum);
            }
            self.put_block(block, bytes)?;
        }
        Ok(())
    }

    /// Gives back everything that an inode without links has, and the inode.
    pub(super) fn delete(&self, inode: &Inode) -> Result<()> {
        let mut freed = Blocks::default();
        let mut raw = inode.raw.clone();
        if inode.has_block_map(&self.volume.superblock) {
            self.shorten(inode, &mut raw, 0, &mut freed)?;
        }
        self.release_attributes(inode, &mut freed)?;
        self.mark_blocks(&Blocks::default(), &freed)?;
        self.put_deleted(inode, raw, inode.is_folder())
    }

    /// Writes an inode as a deleted one, and marks it free.
    pub(super) fn put_deleted(&self, inode: &Inode, mut raw: Vec<u8>, was_folder: bool) -> Result<()> {
        put16(&mut raw, 0x1A, 0);
        for at in [0x4, 0x6C, 0x1C, 0x68] {
            put32(&mut raw, at, 0);
        }
        put16(&mut raw, 0x74, 0);
        put16(&mut raw, 0x76, 0);
        // There is no clock here; the superblock's last write is the newest time that is known.
        let superblock = &self.volume.superblock;
        let written = Record::new(&superblock.raw, "ext superblock", 0).le_u32(0x30)?;
        put32(&mut raw, 0x14, written.max(1));
        self.put_inode(inode.number, raw)?;
        self.mark_inode(inode.number, false, was_folder)?;
        Ok(())
    }

    /// Gives back an inode's attribute block, or its share of one, and the inodes that hold values.
    pub(super) fn release_attributes(&self, inode: &Inode, freed: &mut Blocks) -> Result<()> {
        for number in xattr::value_inodes(&self.volume, inode)? {
            self.release_value(number, freed)?;
        }
        if inode.xattr_block == 0 {
            return Ok(());
        }
        let mut bytes = self.volume.read_block(inode.xattr_block, "attribute block")?;
        let references = Record::new(&bytes, "attribute block", 0).le_u32(4)?;
        if references <= 1 {
            return freed.add(inode.xattr_block, 1);
        }
        put32(&mut bytes, 4, references - 1);
        if self.volume.superblock.has_checksums() {
            let record = Record::new(&bytes, "attribute block", 0);
            let sum = xattr::block_checksum(&self.volume, inode.xattr_block, &record)?;
            put32(&mut bytes, 0x10, sum);
        }
        self.put_block(inode.xattr_block, bytes)
    }

    /// One reference less to an inode that holds an attribute's value. The count is in its change time and version.
    fn release_value(&self, number: u32, freed: &mut Blocks) -> Result<()> {
        let inode = self.volume.inode(number)?;
        if !inode.has(flag::EA_INODE) {
            return Err(inode.corrupt("not the value of an attribute"));
        }
        let record = inode.record();
        let references = u64::from(record.le_u32(0xC)?) << 32 | u64::from(record.le_u32(0x24)?);
        let mut raw = inode.raw.clone();
        if references > 1 {
            put32(&mut raw, 0xC, high32(references - 1));
            put32(&mut raw, 0x24, low32(references - 1));
            return self.put_inode(number, raw);
        }
        self.shorten(&inode, &mut raw, 0, freed)?;
        self.put_deleted(&inode, raw, false)
    }

    /// Frees what an inode has past its size.
    fn shorten_to_size(&self, inode: &Inode) -> Result<()> {
        let superblock = &self.volume.superblock;
        let mut raw = inode.raw.clone();
        put32(&mut raw, 0x14, 0);
        if inode.has_block_map(superblock) {
            let mut freed = Blocks::default();
            let keep = inode.size.div_ceil(superblock.block_bytes());
            self.shorten(inode, &mut raw, keep, &mut freed)?;
            let clusters = self.mark_blocks(&Blocks::default(), &freed)?;
            let sectors = clusters * u64::from(superblock.cluster_blocks) * (superblock.block_bytes() / 512);
            let left = inode.sectors.checked_sub(sectors);
            let left = left.ok_or_else(|| inode.corrupt("it has more blocks than it counts"))?;
            self.put_sectors(inode.flags, &mut raw, left);
        }
        self.put_inode(inode.number, raw)
    }

    /// Writes how many units of 512 bytes an inode takes.
    pub(super) fn put_sectors(&self, flags: u32, raw: &mut [u8], sectors: u64) {
        let superblock = &self.volume.superblock;
        let unit = if flags & flag::HUGE_FILE != 0 { superblock.block_bytes() / 512 } else { 1 };
        let count = sectors / unit;
        put32(raw, 0x1C, low32(count));
        if superblock.features.ro_compat(ro_compat::HUGE_FILE) {
            put16(raw, 0x74, low16(high32(count)));
        }
        debug_assert_eq!(high16(high32(count)), 0);
    }
}

fn superblock_ro_compat(bench: &Workbench) -> u32 {
    bench.volume.superblock.features.ro_compat
}
