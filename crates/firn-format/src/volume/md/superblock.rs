//! The superblock of an md member, in its four versions.
//!
//! ```text
//! 0.90   in the last whole 64 KiB but one; words in the machine's order (little-endian here), 4 KiB
//!        0 magic  4..12 version  20 UUID word 0  28 level  32 KiB of a member  36 members known  40 members in the array
//!        44 number of md  52..64 UUID words 1-3  128 when  132 state  136.. counts  152 checksum  156 events
//!        172 synchronised up to  176 reshape position  256 layout  260 chunk bytes  512 members of 128 bytes: number, major, minor, slot, state
//!        3968 this member, as in the list
//! 1.x    1.0 at 8 KiB before the end, 1.1 at 0, 1.2 at 4 KiB
//!        0 magic  4 version 1  8 features  16 UUID  32 name  72 level  76 layout  80 size  88 chunk  92 members
//!        96 bitmap  100 new level, reshape…  128 data offset  136 data size  144 own place  152 rebuilt up to
//!        160 number  168 member's UUID  185 bad blocks…  192 when  200 events  208 synchronised up to  216 checksum
//!        220 entries  256 slot of each number
//! ```
//! Sizes are in sectors of 512 bytes. Source: Linux, include/uapi/linux/raid/md_p.h and drivers/md/md.c.

use firn_disk::{Disk, Error, Record, Result, SharedDisk, check_range};
use std::ops::Range;

const MAGIC: u32 = 0xA92B_4EFC;
const SECTOR: u64 = 512;
/// Most numbers that a version 1 superblock gives slots to.
const MAX_ENTRIES: u32 = 1920;
/// "All of it" in sectors.
const ALL: u64 = u64::MAX;

/// Bits of the features of version 1.
mod feature {
    pub(super) const BITMAP: u32 = 1;
    pub(super) const RECOVERY_OFFSET: u32 = 2;
    pub(super) const RESHAPE: u32 = 4;
    pub(super) const BAD_BLOCKS: u32 = 8;
    pub(super) const REPLACEMENT: u32 = 16;
    pub(super) const RESHAPE_BACKWARDS: u32 = 32;
    pub(super) const NEW_OFFSET: u32 = 64;
    pub(super) const RECOVERY_BITMAP: u32 = 128;
    pub(super) const CLUSTER_BITMAP: u32 = 256;
    pub(super) const JOURNAL: u32 = 512;
    pub(super) const RAID0_LAYOUT: u32 = 4096;
    pub(super) const KNOWN: u32 = 8191;
}

/// What a member's superblock says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// A member in this slot.
    Active(u32),
    Spare,
    Faulty,
    /// The journal of an array with parity.
    Journal,
}

/// A member's superblock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Superblock {
    /// `0.90`, `1.0`, `1.1`, `1.2`.
    pub(super) version: &'static str,
    /// UUID of the array in printed order.
    pub(super) uuid: [u8; 16],
    /// `lab:0`; empty in version 0.90.
    pub(super) name: String,
    /// The number of the array's device, which version 0.90 has.
    pub(super) minor: Option<u32>,
    pub(super) level: i32,
    pub(super) layout: u32,
    /// Whether the layout of a raid0 is told.
    pub(super) has_raid0_layout: bool,
    /// Bytes.
    pub(super) chunk: u64,
    /// How many members the array has.
    pub(super) count: u32,
    /// Bytes of each member that the array uses.
    pub(super) size: u64,
    /// Where this member's part of the array begins and how long it is, in bytes.
    pub(super) start: u64,
    pub(super) length: u64,
    pub(super) events: u64,
    /// When it was written, in seconds.
    pub(super) updated: u64,
    /// Bytes up to which redundancy is in order; `u64::MAX` when it is everywhere.
    pub(super) synchronised: u64,
    pub(super) role: Role,
    /// Bytes up to which this member is rebuilt; `u64::MAX` when it is.
    pub(super) recovered: u64,
    /// Where its bitmap stands on the disk, in bytes.
    pub(super) bitmap: Option<u64>,
    /// Slots whose members this one knows to be there and working.
    pub(super) active: Vec<bool>,
    /// Whether it stands in for another member that is still there.
    pub(super) is_replacement: bool,
    /// Why the array cannot be put together.
    pub(super) refusal: Option<&'static str>,
    /// Where its list of blocks stands that hold no right data.
    pub(super) bad_blocks: Option<BadBlocks>,
}

/// A list of blocks in which a member misses data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BadBlocks {
    at: u64,
    length: u64,
    shift: u8,
}

impl BadBlocks {
    /// The ranges of bytes on the disk.
    ///
    /// # Errors
    /// `Corrupt` when the list makes no sense; what the disk says.
    pub(super) fn read(self, disk: &SharedDisk) -> Result<Vec<Range<u64>>> {
        let mut bytes = vec![0; usize::try_from(self.length).unwrap_or(0)];
        let record = Record::read(disk, &mut bytes, self.at, "md list of bad blocks")?;
        if self.shift > 32 {
            return Err(record.corrupt(0, format!("its blocks have 2^{} sectors", self.shift)));
        }
        let mut ranges = Vec::new();
        for at in (0..record.bytes().len()).step_by(8) {
            // 54 bits where, 10 bits how many.
            let entry = record.le_u64(at)?;
            if entry == u64::MAX {
                break;
            }
            let bytes = |blocks: u64| (blocks << self.shift).saturating_mul(SECTOR);
            let start = bytes((entry >> 10) & (u64::MAX >> (10 + self.shift)));
            ranges.push(start..start.saturating_add(bytes(entry & 0x3FF)));
        }
        Ok(ranges)
    }
}

/// Where the superblock of version 0.90 and those of version 1 stand on a disk of `length` bytes.
fn places(length: u64) -> Vec<(&'static str, u64)> {
    let at_1_0 = length.checked_sub(8192).map(|at| ("1.0", at & !4095));
    let at_0_90 = (length & !0xFFFF).checked_sub(0x1_0000).map(|at| ("0.90", at));
    at_1_0.into_iter().chain(at_0_90).chain([("1.1", 0), ("1.2", 4096)]).collect()
}

/// The superblock on `disk`, if it has one. Of several the newest wins, as with mdadm: an old one may be left over.
///
/// # Errors
/// `Corrupt` when it has none that is whole; what the disk says.
pub(super) fn read(disk: &SharedDisk) -> Result<Option<Superblock>> {
    let mut best: Option<Superblock> = None;
    let mut damage = None;
    for (version, at) in places(disk.len()) {
        match read_at(disk, version, at) {
            Ok(None) => {}
            Ok(Some(found)) => {
                if best.as_ref().is_none_or(|best| best.updated < found.updated) {
                    best = Some(found);
                }
            }
            Err(error) => damage = damage.or(Some(error)),
        }
    }
    match (best, damage) {
        (None, Some(error)) => Err(error),
        (best, _) => Ok(best),
    }
}

fn read_at(disk: &SharedDisk, version: &'static str, at: u64) -> Result<Option<Superblock>> {
    let mut buf = [0; 4096];
    if check_range(at, 4096, disk.len()).is_err() {
        return Ok(None);
    }
    let record = Record::read(disk, &mut buf, at, "md superblock")?;
    let (magic, major) = (record.le_u32(0)?, record.le_u32(4)?);
    if version == "0.90" {
        if magic.swap_bytes() == MAGIC {
            return Err(record.unsupported(0, "it was written by a big-endian machine"));
        }
        if magic != MAGIC || major != 0 || record.le_u32(8)? < 90 {
            return Ok(None);
        }
        return parse_0_90(&record, at).map(Some);
    }
    if magic != MAGIC || major != 1 || record.le_u64(144)? != at / SECTOR {
        return Ok(None);
    }
    parse_1(&record, version).map(Some)
}

fn parse_0_90(record: &Record<'_>, at: u64) -> Result<Superblock> {
    let sum = sum_of_words(record.bytes(), 152)?;
    let folded = (sum & 0xFFFF_FFFF).wrapping_add(sum >> 32) & 0xFFFF_FFFF;
    if u64::from(record.le_u32(152)?) != folded {
        return Err(record.corrupt(152, "its checksum does not match"));
    }
    let mut uuid = [0; 16];
    for (piece, field) in uuid.chunks_exact_mut(4).zip([20, 52, 56, 60]) {
        piece.copy_from_slice(&record.le_u32(field)?.to_be_bytes());
    }
    let state = record.le_u32(132)?;
    let count = record.le_u32(40)?;
    // Of its 27 entries each has its slot and its state: bit 0 faulty, 1 active, 2 in sync.
    let mut active = vec![false; usize::try_from(count.min(27)).unwrap_or(0)];
    for entry in 0..27 {
        let at = 512 + 128 * entry;
        let (slot, state) = (record.le_u32(at + 12)?, record.le_u32(at + 16)?);
        if state & 0b111 == 0b110
            && let Some(slot) = usize::try_from(slot).ok().and_then(|slot| active.get_mut(slot))
        {
            *slot = true;
        }
    }
    let (slot, own_state) = (record.le_u32(3968 + 12)?, record.le_u32(3968 + 16)?);
    let role = match own_state {
        own if own & 1 != 0 => Role::Faulty,
        own if own & 0b110 == 0b110 && slot < count => Role::Active(slot),
        _ => Role::Spare,
    };
    let minor_version = record.le_u32(8)?;
    let is_reshaping = minor_version >= 91 && record.le_u64(176)? != ALL;
    let level = record.le_i32(28)?;
    let bitmap = (state & 1 << 8 != 0).then(|| at.saturating_add(4096));
    Ok(Superblock {
        version: "0.90",
        uuid,
        name: String::new(),
        minor: Some(record.le_u32(44)?),
        level,
        layout: record.le_u32(256)?,
        has_raid0_layout: false,
        chunk: u64::from(record.le_u32(260)?),
        count,
        size: u64::from(record.le_u32(32)?).saturating_mul(1024),
        start: 0,
        length: at,
        events: record.le_u64(156)?,
        updated: record.le_u32(128)?.into(),
        // Bit 0 of the state says that nothing was being written.
        synchronised: if state & 1 != 0 { ALL } else { 0 },
        role,
        recovered: ALL,
        bitmap,
        active,
        is_replacement: false,
        refusal: is_reshaping.then_some("it is being reshaped"),
        bad_blocks: None,
    })
}

fn parse_1(record: &Record<'_>, version: &'static str) -> Result<Superblock> {
    let entries = record.le_u32(220)?;
    if entries > MAX_ENTRIES {
        return Err(record.corrupt(220, format!("it lists {entries} members")));
    }
    let listed = record.slice(256, usize::try_from(entries).unwrap_or(0) * 2)?;
    let sum = sum_of_words(record.slice(0, 256 + listed.len())?, 216)?;
    let folded = (sum & 0xFFFF_FFFF).wrapping_add(sum >> 32) & 0xFFFF_FFFF;
    if u64::from(record.le_u32(216)?) != folded {
        return Err(record.corrupt(216, "its checksum does not match"));
    }
    let features = record.le_u32(8)?;
    let has = |feature| features & feature != 0;
    let bytes = |at| -> Result<u64> { Ok(record.le_u64(at)?.saturating_mul(SECTOR)) };
    let roles: Vec<u16> =
        listed.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])).collect();
    let count = record.le_u32(92)?;
    let mut active = vec![false; usize::try_from(count.min(MAX_ENTRIES)).unwrap_or(0)];
    for role in &roles {
        if let Some(slot) = active.get_mut(usize::from(*role)) {
            *slot = true;
        }
    }
    let own = usize::try_from(record.le_u32(160)?).ok().and_then(|number| roles.get(number)).copied();
    let role = match own {
        Some(0xFFFE) => Role::Faulty,
        Some(0xFFFD) => Role::Journal,
        Some(slot) if u32::from(slot) < count => Role::Active(u32::from(slot)),
        _ => Role::Spare,
    };
    let refusal = if features & !feature::KNOWN != 0 {
        Some("it has features that are not known")
    } else if has(feature::RESHAPE | feature::RESHAPE_BACKWARDS | feature::NEW_OFFSET) {
        Some("it is being reshaped")
    } else if has(feature::JOURNAL) {
        Some("it has a journal on a disk of its own")
    } else if has(feature::CLUSTER_BITMAP) {
        Some("it belongs to a cluster")
    } else {
        None
    };
    let name = record.slice(32, 32)?;
    let name = name.get(..name.iter().position(|byte| *byte == 0).unwrap_or(32)).unwrap_or_default();
    let recovered = if has(feature::RECOVERY_OFFSET) { bytes(152)? } else { ALL };
    let own_place = bytes(144)?;
    let bitmap_offset = i64::from(record.le_i32(96)?).saturating_mul(512);
    let bad_blocks = if has(feature::BAD_BLOCKS) {
        let offset = i64::from(record.le_i32(188)?).saturating_mul(512);
        let length = u64::from(record.le_u16(186)?).saturating_mul(SECTOR);
        Some(BadBlocks { at: own_place.saturating_add_signed(offset), length, shift: record.u8(185)? })
    } else {
        None
    };
    Ok(Superblock {
        version,
        uuid: record.array(16)?,
        name: String::from_utf8_lossy(name).into_owned(),
        minor: None,
        level: record.le_i32(72)?,
        layout: record.le_u32(76)?,
        has_raid0_layout: has(feature::RAID0_LAYOUT),
        chunk: u64::from(record.le_u32(88)?).saturating_mul(SECTOR),
        count,
        size: bytes(80)?,
        start: bytes(128)?,
        length: bytes(136)?,
        events: record.le_u64(200)?,
        // The upper bits are microseconds.
        updated: record.le_u64(192)? & ((1 << 40) - 1),
        synchronised: match record.le_u64(208)? {
            ALL => ALL,
            sectors => sectors.saturating_mul(SECTOR),
        },
        role,
        // With a bitmap of what is left to be rebuilt, none of it is taken for granted.
        recovered: if has(feature::RECOVERY_BITMAP) { 0 } else { recovered },
        bitmap: has(feature::BITMAP).then(|| own_place.saturating_add_signed(bitmap_offset)),
        active,
        is_replacement: has(feature::REPLACEMENT),
        refusal,
        bad_blocks,
    })
}

/// The sum of all little-endian words of `bytes` but the one at `skip`; two bytes at the end count as a word.
fn sum_of_words(bytes: &[u8], skip: usize) -> Result<u64> {
    let mut sum = 0_u64;
    let mut words = bytes.chunks_exact(4);
    for (at, word) in words.by_ref().enumerate() {
        let word: [u8; 4] = word.try_into().map_err(|_| Error::corrupt("a word is not one"))?;
        if at * 4 != skip {
            sum = sum.wrapping_add(u64::from(u32::from_le_bytes(word)));
        }
    }
    if let [low, high] = words.remainder() {
        sum = sum.wrapping_add(u64::from(u16::from_le_bytes([*low, *high])));
    }
    Ok(sum)
}
