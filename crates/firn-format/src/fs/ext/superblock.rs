//! The superblock: 1024 bytes at byte 1024 of the file system, with copies at the start of some groups.
//!
//! ```text
//! 0x00 inodes  0x04 blocks  0x14 first data block  0x18 log2(block size / 1024)  0x1C the same of clusters
//! 0x20 blocks per group  0x24 clusters per group  0x28 inodes per group  0x38 magic 0xEF53  0x3A state
//! 0x4C revision  0x54 first inode  0x58 inode size  0x5A group of this copy  0x5C/0x60/0x64 features
//! 0x68 UUID  0x78 label  0xD0 journal UUID  0xE0 journal inode  0xE8 first orphan  0xEC hash seed  0xFE descriptor size
//! 0x10C journal inode's copy  0x150 blocks, high  0x160 flags  0x24C groups of the copies (sparse_super2)
//! 0x270 checksum seed  0x280 orphan file  0x3FC crc32c over all before it
//! ```
//!
//! Refused: geometry that contradicts itself, and incompat features that are not known (by name).
//!
//! Source: the kernel's `fs/ext4/ext4.h` (`struct ext4_super_block`) and `fs/ext4/super.c`.

use super::checksum::{crc32c, high32, low32};
use super::features::{Features, compat, incompat, ro_compat};
use firn_disk::{Disk, Error, Record, Result};

/// Where the first copy is, in bytes.
pub(super) const OFFSET: u64 = 1024;
/// Its length in bytes.
pub(super) const LENGTH: usize = 1024;
const MAGIC: u16 = 0xEF53;
const STRUCTURE: &str = "ext superblock";
/// Groups that may hold a copy and are tried when the first one is damaged.
const BACKUP_GROUPS: [u64; 9] = [1, 3, 5, 7, 9, 25, 27, 49, 81];
/// The state bit that says that errors were found.
const STATE_ERRORS: u16 = 2;

/// What the rest needs of a superblock, checked.
#[derive(Debug, Clone)]
pub(super) struct Superblock {
    /// All of its bytes.
    pub raw: Vec<u8>,
    /// Where they were read, in bytes.
    pub offset: u64,
    pub features: Features,
    pub inodes: u32,
    pub blocks: u64,
    pub free_blocks: u64,
    pub first_data_block: u32,
    /// Bytes in a block, 1024 to 65536.
    pub block_size: u32,
    /// Blocks in a cluster, 1 without bigalloc.
    pub cluster_blocks: u32,
    pub blocks_per_group: u32,
    pub clusters_per_group: u32,
    pub inodes_per_group: u32,
    pub groups: u32,
    /// Bytes in an inode.
    pub inode_size: u16,
    /// Bytes in a group descriptor, 32 or more.
    pub descriptor_size: u16,
    pub first_meta_bg: u32,
    pub first_inode: u32,
    pub state: u16,
    pub creator_os: u32,
    pub uuid: [u8; 16],
    pub label: Vec<u8>,
    pub journal_uuid: [u8; 16],
    pub journal_inode: u32,
    pub last_orphan: u32,
    pub hash_seed: [u32; 4],
    /// The hash of folders that do not say another one.
    pub hash_version: u8,
    pub flags: u32,
    /// Inodes that are the file system's own: quota files, the orphan file.
    pub own_inodes: [u32; 4],
    pub orphan_file: u32,
    pub backup_groups: [u32; 2],
    /// Where checksums of this file system start from.
    pub checksum_seed: u32,
}

impl Superblock {
    /// Reads the first copy; if it is damaged, the first later copy that is sound.
    ///
    /// The second value tells of the damage.
    pub fn read(disk: &dyn Disk) -> Result<(Self, Option<Error>)> {
        let first = match Self::read_at(disk, OFFSET) {
            Ok(superblock) => return Ok((superblock, None)),
            Err(error) => error,
        };
        // Another feature, or a device that fails, is no damage.
        if first.kind() != firn_disk::ErrorKind::Corrupt {
            return Err(first);
        }
        for offset in backup_offsets(disk.len()) {
            if let Ok(copy) = Self::read_at(disk, offset)
                && copy.is_copy_at(offset)
            {
                return Ok((copy, Some(first)));
            }
        }
        Err(first)
    }

    /// Reads the copy at `offset`.
    pub fn read_at(disk: &dyn Disk, offset: u64) -> Result<Self> {
        let mut bytes = vec![0; LENGTH];
        Record::read(disk, &mut bytes, offset, STRUCTURE)?;
        Self::parse(bytes, offset)
    }

    /// Whether a copy of group `s_block_group_nr` of this geometry stands at `offset`.
    fn is_copy_at(&self, offset: u64) -> bool {
        let group = Record::new(&self.raw, STRUCTURE, self.offset).le_u16(0x5A).unwrap_or(0);
        group > 0 && u32::from(group) < self.groups && self.group_start(u32::from(group)) * self.block_bytes() == offset
    }

    /// Checks and decodes `raw`.
    pub fn parse(raw: Vec<u8>, offset: u64) -> Result<Self> {
        let record = Record::new(&raw, STRUCTURE, offset);
        if record.le_u16(0x38)? != MAGIC {
            return Err(record.corrupt(0x38, "no ext2, ext3 or ext4 magic"));
        }
        let revision = record.le_u32(0x4C)?;
        let features = match revision {
            0 => Features::default(),
            _ => Features {
                compat: record.le_u32(0x5C)?,
                incompat: record.le_u32(0x60)?,
                ro_compat: record.le_u32(0x64)?,
            },
        };
        if features.ro_compat(ro_compat::METADATA_CSUM) {
            check_sum(&record)?;
        }
        check_features(&record, features)?;
        let mut superblock = Self::decode(&record, features, revision)?;
        superblock.groups = superblock.check_geometry(&record)?;
        superblock.offset = offset;
        superblock.raw = raw;
        Ok(superblock)
    }

    fn decode(record: &Record<'_>, features: Features, revision: u32) -> Result<Self> {
        let wide = features.incompat(incompat::BIT64);
        let high = |at: usize| -> Result<u64> { Ok(if wide { u64::from(record.le_u32(at)?) << 32 } else { 0 }) };
        let shift = record.le_u32(0x18)?;
        if shift > 6 {
            return Err(record.corrupt(0x18, format!("the block size is 1024 << {shift} bytes, at most << 6 is known")));
        }
        let bigalloc = features.ro_compat(ro_compat::BIGALLOC);
        let cluster_shift = if bigalloc { record.le_u32(0x1C)? } else { shift };
        if cluster_shift < shift || cluster_shift > 20 {
            return Err(record.corrupt(0x1C, format!("the cluster size is 1024 << {cluster_shift} bytes")));
        }
        let blocks_per_group = record.le_u32(0x20)?;
        let uuid = record.array::<16>(0x68)?;
        let label = record.slice(0x78, 16)?;
        let seeded = features.incompat(incompat::CSUM_SEED);
        let mut hash_seed = [0; 4];
        for (at, word) in (0xEC..).step_by(4).zip(&mut hash_seed) {
            *word = record.le_u32(at)?;
        }
        Ok(Self {
            raw: Vec::new(),
            offset: 0,
            features,
            inodes: record.le_u32(0x0)?,
            blocks: u64::from(record.le_u32(0x4)?) | high(0x150)?,
            free_blocks: u64::from(record.le_u32(0xC)?) | high(0x158)?,
            first_data_block: record.le_u32(0x14)?,
            block_size: 1024 << shift,
            cluster_blocks: 1 << (cluster_shift - shift),
            blocks_per_group,
            clusters_per_group: if bigalloc { record.le_u32(0x24)? } else { blocks_per_group },
            inodes_per_group: record.le_u32(0x28)?,
            groups: 0,
            inode_size: if revision == 0 { 128 } else { record.le_u16(0x58)? },
            descriptor_size: if wide { record.le_u16(0xFE)? } else { 32 },
            first_meta_bg: record.le_u32(0x104)?,
            first_inode: if revision == 0 { 11 } else { record.le_u32(0x54)? },
            state: record.le_u16(0x3A)?,
            creator_os: record.le_u32(0x48)?,
            uuid,
            label: label.iter().copied().take_while(|byte| *byte != 0).collect(),
            journal_uuid: record.array(0xD0)?,
            journal_inode: record.le_u32(0xE0)?,
            last_orphan: record.le_u32(0xE8)?,
            hash_seed,
            hash_version: record.u8(0xFC)?,
            flags: record.le_u32(0x160)?,
            own_inodes: [
                record.le_u32(0x240)?,
                record.le_u32(0x244)?,
                record.le_u32(0x26C)?,
                if features.compat(compat::ORPHAN_FILE) { record.le_u32(0x280)? } else { 0 },
            ],
            orphan_file: if features.compat(compat::ORPHAN_FILE) { record.le_u32(0x280)? } else { 0 },
            backup_groups: [record.le_u32(0x24C)?, record.le_u32(0x250)?],
            checksum_seed: if seeded { record.le_u32(0x270)? } else { crc32c(!0, &uuid) },
        })
    }

    /// The number of groups, when all of the geometry makes sense.
    fn check_geometry(&self, record: &Record<'_>) -> Result<u32> {
        let bits = self.block_size * 8;
        let bad = |at: usize, what: String| Err(record.corrupt(at, what));
        if self.clusters_per_group == 0 || self.clusters_per_group > bits {
            return bad(0x24, format!("{} clusters in a group do not fit a bitmap block", self.clusters_per_group));
        }
        if u64::from(self.clusters_per_group) * u64::from(self.cluster_blocks) != u64::from(self.blocks_per_group) {
            return bad(0x20, format!("{} blocks in a group are not its clusters", self.blocks_per_group));
        }
        if self.inodes_per_group == 0 || self.inodes_per_group > bits {
            return bad(0x28, format!("{} inodes in a group do not fit a bitmap block", self.inodes_per_group));
        }
        let size = u32::from(self.inode_size);
        if size < 128 || !size.is_power_of_two() || size > self.block_size {
            return bad(0x58, format!("an inode of {size} bytes"));
        }
        let descriptor = u32::from(self.descriptor_size);
        let least = if self.is_64bit() { 64 } else { 32 };
        if descriptor < least || descriptor > 1024 || !descriptor.is_power_of_two() {
            return bad(0xFE, format!("a group descriptor of {descriptor} bytes"));
        }
        let small = self.block_size == 1024;
        let starts = if small && self.cluster_blocks > 1 { 0..=1 } else { u32::from(small)..=u32::from(small) };
        if !starts.contains(&self.first_data_block) {
            return bad(0x14, format!("the first data block is {}", self.first_data_block));
        }
        let data = self.blocks.saturating_sub(u64::from(self.first_data_block));
        let groups = data.div_ceil(u64::from(self.blocks_per_group));
        if groups == 0 || self.blocks > u64::MAX >> 17 {
            return bad(0x4, format!("{} blocks", self.blocks));
        }
        let Ok(groups) = u32::try_from(groups) else {
            return bad(0x4, format!("{} blocks are more groups than can be counted", self.blocks));
        };
        if u64::from(self.inodes) != u64::from(groups) * u64::from(self.inodes_per_group) {
            return bad(0x0, format!("{} inodes in {groups} groups of {}", self.inodes, self.inodes_per_group));
        }
        Ok(groups)
    }

    pub fn is_64bit(&self) -> bool {
        self.features.incompat(incompat::BIT64)
    }

    /// Whether structures carry a crc32c.
    pub fn has_checksums(&self) -> bool {
        self.features.ro_compat(ro_compat::METADATA_CSUM)
    }

    /// Bytes in a block.
    pub fn block_bytes(&self) -> u64 {
        u64::from(self.block_size)
    }

    /// Bytes in a block, as a length in memory.
    pub fn block_len(&self) -> usize {
        usize::try_from(self.block_size).unwrap_or(usize::MAX)
    }

    /// Whether the kernel found errors and said so.
    pub fn has_errors(&self) -> bool {
        self.state & STATE_ERRORS != 0
    }

    /// The first block of a group.
    pub fn group_start(&self, group: u32) -> u64 {
        u64::from(self.first_data_block) + u64::from(group) * u64::from(self.blocks_per_group)
    }

    /// The blocks of a group; the last one may be short.
    pub fn group_blocks(&self, group: u32) -> u64 {
        (self.blocks - self.group_start(group).min(self.blocks)).min(u64::from(self.blocks_per_group))
    }

    /// Whether `group` holds a copy of the superblock.
    pub fn group_has_superblock(&self, group: u32) -> bool {
        if group == 0 {
            return true;
        }
        if self.features.compat(compat::SPARSE_SUPER2) {
            return self.backup_groups.contains(&group);
        }
        if group == 1 || !self.features.ro_compat(ro_compat::SPARSE_SUPER) {
            return true;
        }
        group % 2 == 1 && [3, 5, 7].iter().any(|base| is_power_of(group, *base))
    }

    /// Blocks behind the descriptors that are kept for more of them.
    pub fn reserved_descriptor_blocks(&self) -> u16 {
        Record::new(&self.raw, STRUCTURE, self.offset).le_u16(0xCE).unwrap_or(0)
    }

    /// Whether the inode belongs to the file system itself and no name may lead to it.
    pub fn is_own_inode(&self, inode: u32) -> bool {
        const ROOT: u32 = 2;
        (inode != ROOT && inode < self.first_inode) || inode == self.journal_inode || self.own_inodes.contains(&inode)
    }

    /// The bytes with `change` made and the checksum set anew.
    pub fn changed(&self, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
        let mut raw = self.raw.clone();
        change(&mut raw);
        if self.has_checksums()
            && let Some((body, sum)) = raw.split_at_mut_checked(0x3FC)
        {
            sum.copy_from_slice(&crc32c(!0, body).to_le_bytes());
        }
        raw
    }

    /// UUID in its usual spelling.
    pub fn uuid_text(&self) -> String {
        spell_uuid(&self.uuid)
    }
}

/// A UUID in its usual spelling.
pub(super) fn spell_uuid(uuid: &[u8; 16]) -> String {
    use std::fmt::Write;
    uuid.iter().enumerate().fold(String::with_capacity(36), |mut text, (at, byte)| {
        if matches!(at, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Writes a number of blocks into a superblock's low and, with 64bit, high word.
pub(super) fn put_split(raw: &mut [u8], low: usize, high: Option<usize>, value: u64) {
    if let Some(bytes) = raw.get_mut(low..low + 4) {
        bytes.copy_from_slice(&low32(value).to_le_bytes());
    }
    if let Some(bytes) = high.and_then(|high| raw.get_mut(high..high + 4)) {
        bytes.copy_from_slice(&high32(value).to_le_bytes());
    }
}

fn check_sum(record: &Record<'_>) -> Result<()> {
    let kind = record.u8(0x175)?;
    if kind != 1 {
        return Err(record.unsupported(0x175, format!("checksum type {kind}")));
    }
    let stored = record.le_u32(0x3FC)?;
    let counted = crc32c(!0, record.slice(0, 0x3FC)?);
    if stored != counted {
        return Err(record.corrupt(0x3FC, format!("the checksum is {stored:#010x}, not {counted:#010x}")));
    }
    Ok(())
}

fn check_features(record: &Record<'_>, features: Features) -> Result<()> {
    if features.incompat(incompat::JOURNAL_DEV) {
        return Err(record
            .unsupported(0x60, "this is an external journal (journal_dev), not a file system")
            .hint("name the disk of the file system, and this one as its journal"));
    }
    let unknown = features.unreadable();
    if !unknown.is_empty() {
        return Err(record.unsupported(0x60, format!("the feature {} is not known", unknown.join(", "))));
    }
    Ok(())
}

fn is_power_of(mut value: u32, base: u32) -> bool {
    while value.is_multiple_of(base) {
        value /= base;
    }
    value == 1
}

/// Where copies stand in file systems made with the default number of blocks per group.
fn backup_offsets(disk_length: u64) -> impl Iterator<Item = u64> {
    (0..7).flat_map(move |shift| {
        let block = 1024_u64 << shift;
        let first = u64::from(shift == 0);
        BACKUP_GROUPS
            .iter()
            .map(move |group| (first + group * block * 8) * block)
            .filter(move |offset| offset.saturating_add(LENGTH as u64) <= disk_length)
    })
}
