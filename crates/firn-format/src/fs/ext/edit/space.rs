//! Bitmaps of blocks and inodes, and the counts in the group descriptors.
//!
//! With bigalloc a bit of the block bitmap is a cluster. A group whose bitmap was never written (flags in its
//! descriptor) gets the one that it would have had.
//!
//! Source: the kernel's `fs/ext4/balloc.c` (`ext4_init_block_bitmap`), `fs/ext4/bitmap.c`, `fs/ext4/ialloc.c`.

use super::super::checksum::{crc32c, high16, low16};
use super::super::features::{incompat, ro_compat};
use super::super::volume::{Group, group_checksum};
use super::{Workbench, put16};
use firn_disk::{Error, Record, Result};
use std::collections::BTreeMap;
use std::ops::Range;

const INODE_UNINIT: u16 = 1;
const BLOCK_UNINIT: u16 = 2;

/// Blocks on the disk, in no order.
#[derive(Debug, Default, Clone)]
pub(super) struct Blocks(Vec<Range<u64>>);

impl Blocks {
    /// Pieces of which all are remembered; more are refused.
    const MOST: usize = 1 << 20;

    pub fn add(&mut self, start: u64, count: u64) -> Result<()> {
        if self.0.len() >= Self::MOST {
            return Err(Error::unsupported(format!("more than {} pieces of space to change", Self::MOST)));
        }
        self.0.push(start..start.saturating_add(count));
        Ok(())
    }

    pub fn append(&mut self, other: &Self) -> Result<()> {
        other.0.iter().try_for_each(|range| self.add(range.start, range.end - range.start))
    }

    /// The same in order, to be asked for single blocks.
    pub fn sorted(&self) -> Sorted {
        Sorted(self.units(0, 1))
    }

    /// How many clusters of `size` blocks they touch.
    pub fn clusters(&self, first: u64, size: u64) -> u64 {
        self.units(first, size).iter().map(|range| range.end - range.start).sum()
    }

    /// In order and not overlapping, in units of `size` blocks counted from `first`.
    fn units(&self, first: u64, size: u64) -> Vec<Range<u64>> {
        let unit = |block: u64| block.saturating_sub(first);
        let mut ranges: Vec<_> =
            self.0.iter().map(|range| unit(range.start) / size..unit(range.end).div_ceil(size)).collect();
        ranges.sort_unstable_by_key(|range| range.start);
        let mut merged: Vec<Range<u64>> = Vec::new();
        for range in ranges {
            match merged.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => merged.push(range),
            }
        }
        merged
    }
}

/// Blocks on the disk, in order.
#[derive(Debug, Default)]
pub(super) struct Sorted(Vec<Range<u64>>);

impl Sorted {
    pub fn contains(&self, block: u64) -> bool {
        let index = self.0.partition_point(|range| range.end <= block);
        self.0.get(index).is_some_and(|range| range.start <= block)
    }
}

/// `all` without what is in `others`; both in order.
fn without(all: Vec<Range<u64>>, others: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut left = Vec::new();
    for mut range in all {
        let from = others.partition_point(|other| other.end <= range.start);
        for other in others.get(from..).unwrap_or_default().iter().take_while(|other| other.start < range.end) {
            if other.start > range.start {
                left.push(range.start..other.start);
            }
            range.start = other.end.min(range.end);
        }
        if range.start < range.end {
            left.push(range);
        }
    }
    left
}

impl Workbench {
    /// Marks `used` as used and what is in `freed` but not in `used` as free. Gives the number of clusters freed.
    pub(super) fn mark_blocks(&self, used: &Blocks, freed: &Blocks) -> Result<u64> {
        let superblock = &self.volume.superblock;
        let (first, size) = (u64::from(superblock.first_data_block), u64::from(superblock.cluster_blocks));
        let used = used.units(first, size);
        let freed = without(freed.units(first, size), &used);
        let mut groups: BTreeMap<u32, Vec<(Range<u64>, bool)>> = BTreeMap::new();
        let per_group = u64::from(superblock.clusters_per_group);
        let all = used.into_iter().map(|range| (range, true));
        let mut count = 0;
        for (mut range, is_used) in all.chain(freed.into_iter().map(|range| (range, false))) {
            count += if is_used { 0 } else { range.end - range.start };
            while range.start < range.end {
                let group = range.start / per_group;
                let end = range.end.min((group + 1) * per_group);
                let number = u32::try_from(group).map_err(|_| Error::corrupt("a block past all groups"))?;
                groups.entry(number).or_default().push((range.start % per_group..end - group * per_group, is_used));
                range.start = end;
            }
        }
        for (group, ranges) in groups {
            self.mark_group(group, &ranges)?;
        }
        Ok(count)
    }

    fn mark_group(&self, number: u32, ranges: &[(Range<u64>, bool)]) -> Result<()> {
        let mut group = self.volume.group(number)?;
        let mut bitmap = self.block_bitmap(number, &group)?;
        let mut free = group.free_clusters;
        for (range, is_used) in ranges {
            for bit in range.clone() {
                let was = set_bit(&mut bitmap, bit, *is_used)?;
                match (was, is_used) {
                    (false, true) => free = free.checked_sub(1).ok_or_else(|| count_error(number))?,
                    (true, false) => free += 1,
                    (true, true) => {}
                    (false, false) => {
                        return Err(Error::corrupt(format!("cluster {bit} of group {number} is free already")));
                    }
                }
            }
        }
        group.flags &= !BLOCK_UNINIT;
        group.free_clusters = free;
        self.put_block(group.block_bitmap, bitmap)?;
        self.put_group(number, group)
    }

    /// The block bitmap of a group, checked, or made if it was never written.
    fn block_bitmap(&self, number: u32, group: &Group) -> Result<Vec<u8>> {
        if self.has_uninit() && group.flags & BLOCK_UNINIT != 0 {
            return self.fresh_block_bitmap(number, group);
        }
        let bitmap = self.volume.read_block(group.block_bitmap, "block bitmap")?;
        let length = self.volume.superblock.clusters_per_group / 8;
        self.check_bitmap(&bitmap, length, group, 0x18, 0x38)?;
        Ok(bitmap)
    }

    fn inode_bitmap(&self, group: &Group) -> Result<Vec<u8>> {
        let superblock = &self.volume.superblock;
        if self.has_uninit() && group.flags & INODE_UNINIT != 0 {
            let mut bitmap = vec![0; superblock.block_len()];
            for bit in u64::from(superblock.inodes_per_group)..superblock.block_bytes() * 8 {
                set_bit(&mut bitmap, bit, true)?;
            }
            return Ok(bitmap);
        }
        let bitmap = self.volume.read_block(group.inode_bitmap, "inode bitmap")?;
        self.check_bitmap(&bitmap, superblock.inodes_per_group / 8, group, 0x1A, 0x3A)?;
        Ok(bitmap)
    }

    fn check_bitmap(&self, bitmap: &[u8], length: u32, group: &Group, low: usize, high: usize) -> Result<()> {
        if !self.volume.superblock.has_checksums() {
            return Ok(());
        }
        let record = Record::new(&group.raw, "ext group descriptor", group.offset);
        let counted = self.bitmap_checksum(bitmap, length);
        let wide = group.raw.len() >= 64;
        let right = record.le_u16(low)? == low16(counted) && (!wide || record.le_u16(high)? == high16(counted));
        if right { Ok(()) } else { Err(record.corrupt(low, "the bitmap's checksum is wrong")) }
    }

    fn bitmap_checksum(&self, bitmap: &[u8], length: u32) -> u32 {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        crc32c(self.volume.superblock.checksum_seed, bitmap.get(..length).unwrap_or(bitmap))
    }

    /// Whether flags in descriptors mean something.
    fn has_uninit(&self) -> bool {
        let features = &self.volume.superblock.features;
        features.ro_compat(ro_compat::GDT_CSUM) || self.volume.superblock.has_checksums()
    }

    fn fresh_block_bitmap(&self, number: u32, group: &Group) -> Result<Vec<u8>> {
        let superblock = &self.volume.superblock;
        let size = u64::from(superblock.cluster_blocks);
        let start = superblock.group_start(number);
        let mut bitmap = vec![0; superblock.block_len()];
        let own = self.blocks_before_bitmaps(number).div_ceil(size);
        let tables =
            [(group.block_bitmap, 1), (group.inode_bitmap, 1), (group.inode_table, self.volume.inode_table_blocks())];
        let inside = start..start + superblock.group_blocks(number);
        let bits = tables
            .into_iter()
            .flat_map(|(first, count)| first..first.saturating_add(count))
            .filter(|block| inside.contains(block))
            .map(|block| (block - start) / size);
        let clusters = superblock.group_blocks(number).div_ceil(size);
        for bit in (0..own).chain(bits).chain(clusters..superblock.block_bytes() * 8) {
            set_bit(&mut bitmap, bit, true)?;
        }
        Ok(bitmap)
    }

    /// Blocks of the superblock's copy and of descriptors at the start of a group.
    fn blocks_before_bitmaps(&self, number: u32) -> u64 {
        let superblock = &self.volume.superblock;
        let per_block = superblock.block_size / u32::from(superblock.descriptor_size);
        let has_copy = superblock.group_has_superblock(number);
        let meta = superblock.features.incompat(incompat::META_BG);
        if !meta || number / per_block < superblock.first_meta_bg {
            if !has_copy {
                return 0;
            }
            let all = superblock.groups.div_ceil(per_block);
            let descriptors = if meta { superblock.first_meta_bg } else { all };
            return 1 + u64::from(descriptors) + u64::from(superblock.reserved_descriptor_blocks());
        }
        let place = number % per_block;
        u64::from(has_copy) + u64::from(place == 0 || place == 1 || place == per_block - 1)
    }

    /// Writes a descriptor back with the checksums of its bitmaps and of itself.
    fn put_group(&self, number: u32, mut group: Group) -> Result<()> {
        let superblock = &self.volume.superblock;
        let wide = group.raw.len() >= 64;
        let raw = &mut group.raw;
        for (low, high, value) in [
            (0xC, 0x2C, group.free_clusters),
            (0xE, 0x2E, group.free_inodes),
            (0x10, 0x30, group.folders),
            (0x1C, 0x32, group.unused_inodes),
        ] {
            put16(raw, low, low16(value));
            if wide {
                put16(raw, high, high16(value));
            }
        }
        put16(raw, 0x12, group.flags);
        if superblock.has_checksums() {
            for (low, high, block, length, unwritten) in [
                (0x18, 0x38, group.block_bitmap, superblock.clusters_per_group / 8, BLOCK_UNINIT),
                (0x1A, 0x3A, group.inode_bitmap, superblock.inodes_per_group / 8, INODE_UNINIT),
            ] {
                if group.flags & unwritten == 0 {
                    let sum = self.bitmap_checksum(&self.volume.read_block(block, "bitmap")?, length);
                    put16(raw, low, low16(sum));
                    if wide {
                        put16(raw, high, high16(sum));
                    }
                }
            }
        }
        if let Some(sum) = group_checksum(superblock, number, raw) {
            put16(raw, 0x1E, sum);
        }
        self.put_bytes(group.offset, &group.raw)
    }

    /// Whether an inode is marked used.
    pub(super) fn is_inode_marked(&self, inode: u32) -> Result<bool> {
        let per_group = self.volume.superblock.inodes_per_group;
        let index = inode.checked_sub(1).ok_or_else(|| Error::corrupt("inode 0"))?;
        let bitmap = self.inode_bitmap(&self.volume.group(index / per_group)?)?;
        Ok(get_bit(&bitmap, u64::from(index % per_group)))
    }

    /// Marks an inode used or free. Gives whether it changed.
    pub(super) fn mark_inode(&self, inode: u32, is_used: bool, is_folder: bool) -> Result<bool> {
        let per_group = self.volume.superblock.inodes_per_group;
        let index = inode.checked_sub(1).ok_or_else(|| Error::corrupt("inode 0"))?;
        let (number, bit) = (index / per_group, index % per_group);
        let mut group = self.volume.group(number)?;
        let mut bitmap = self.inode_bitmap(&group)?;
        if set_bit(&mut bitmap, u64::from(bit), is_used)? == is_used {
            return Ok(false);
        }
        let folders = u32::from(is_folder);
        if is_used {
            group.free_inodes = group.free_inodes.checked_sub(1).ok_or_else(|| count_error(number))?;
            group.folders += folders;
            if self.has_uninit() {
                group.unused_inodes = group.unused_inodes.min(per_group - bit - 1);
            }
        } else {
            group.free_inodes += 1;
            group.folders = group.folders.checked_sub(folders).ok_or_else(|| count_error(number))?;
        }
        if group.flags & BLOCK_UNINIT != 0 && self.has_uninit() {
            let fresh = self.fresh_block_bitmap(number, &group)?;
            self.put_block(group.block_bitmap, fresh)?;
            group.flags &= !BLOCK_UNINIT;
        }
        group.flags &= !INODE_UNINIT;
        self.put_block(group.inode_bitmap, bitmap)?;
        self.put_group(number, group)?;
        Ok(true)
    }

    /// Counts an inode that became a folder, or is none any more.
    pub(super) fn count_folder(&self, inode: u32, was_folder: bool, is_folder: bool) -> Result<()> {
        if was_folder == is_folder {
            return Ok(());
        }
        let number = inode.saturating_sub(1) / self.volume.superblock.inodes_per_group;
        let mut group = self.volume.group(number)?;
        let folders =
            group.folders.checked_add(u32::from(is_folder)).and_then(|n| n.checked_sub(u32::from(was_folder)));
        group.folders = folders.ok_or_else(|| count_error(number))?;
        self.put_group(number, group)
    }

    /// Takes a free block outside of `reserved`, near a group.
    pub(super) fn allocate(&self, near: u32, reserved: &Sorted) -> Result<u64> {
        let superblock = &self.volume.superblock;
        let size = u64::from(superblock.cluster_blocks);
        for number in (near..superblock.groups).chain(0..near.min(superblock.groups)) {
            let group = self.volume.group(number)?;
            if group.free_clusters == 0 {
                continue;
            }
            let bitmap = self.block_bitmap(number, &group)?;
            let start = superblock.group_start(number);
            for bit in 0..superblock.group_blocks(number) / size {
                let block = start + bit * size;
                if !get_bit(&bitmap, bit) && !(block..block + size).any(|block| reserved.contains(block)) {
                    self.mark_group(number, &[(bit..bit + 1, true)])?;
                    return Ok(block);
                }
            }
        }
        Err(Error::new(firn_disk::ErrorKind::Unavailable, "no free block is left to finish the fast commits"))
    }
}

fn count_error(group: u32) -> Error {
    Error::corrupt(format!("the counts of group {group} do not fit its bitmaps"))
}

fn get_bit(bitmap: &[u8], bit: u64) -> bool {
    let byte = usize::try_from(bit / 8).ok().and_then(|index| bitmap.get(index));
    byte.is_none_or(|byte| byte >> (bit % 8) & 1 == 1)
}

/// Sets a bit and gives what it was.
fn set_bit(bitmap: &mut [u8], bit: u64, value: bool) -> Result<bool> {
    let byte = usize::try_from(bit / 8).ok().and_then(|index| bitmap.get_mut(index));
    let byte = byte.ok_or_else(|| Error::corrupt(format!("bit {bit} is not in the bitmap")))?;
    let mask = 1 << (bit % 8);
    let was = *byte & mask != 0;
    *byte = if value { *byte | mask } else { *byte & !mask };
    Ok(was)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_merged_and_cut() {
        let mut blocks = Blocks::default();
        for (start, count) in [(40, 3), (9, 1), (10, 5), (12, 1), (43, 1)] {
            blocks.add(start, count).unwrap();
        }
        assert_eq!(blocks.units(0, 1), [9..15, 40..44]);
        assert_eq!(blocks.units(1, 4), [2..4, 9..11]);
        assert!(blocks.sorted().contains(14) && !blocks.sorted().contains(15));
        assert_eq!(blocks.clusters(1, 4), 4);
        assert_eq!(without(vec![0..10, 20..30], &[2..4, 8..22, 29..40]), [0..2, 4..8, 22..29]);
        assert_eq!(without(vec![0..10, 20..30], &[]), [0..10, 20..30]);
    }

    #[test]
    fn bits() {
        let mut bitmap = vec![0; 2];
        assert!(!set_bit(&mut bitmap, 9, true).unwrap());
        assert!(set_bit(&mut bitmap, 9, true).unwrap() && get_bit(&bitmap, 9));
        assert!(set_bit(&mut bitmap, 16, true).is_err() && get_bit(&bitmap, 16));
    }
}
