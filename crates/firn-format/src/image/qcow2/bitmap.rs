//! Dirty bitmaps that QEMU keeps in an image while no machine runs on it.
//!
//! ```text
//! header extension:  0 bitmaps u32   8 directory bytes u64   16 directory u64
//! directory entry:   0 table u64   8 table entries u32   12 flags u32   16 type u8   17 granularity bits u8
//!                   18 name length u16   20 extra length u32   24 extra, name, padding to 8
//! table entry:      bits 9-55 cluster of bits; without one, bit 0: all zeros or all ones
//! flags:            bit 0 in use (not saved in order)   1 auto (records)   2 unknown extra data does not matter
//! ```
//! Bit n of the bits, lowest first in each byte, stands for `granularity` bytes of the disk from n times that on. All of
//! it counts only while bit 0 of the header's autoclear features is set: who writes to the image without knowing bitmaps
//! clears it. Source: QEMU, docs/interop/qcow2, section Bitmaps.

use crate::image::access::ImageFile;
use firn_disk::{Error, Record, Result};
use std::ops::Range;

/// QEMU's limit on the directory in bytes is `65535 * (24 + 1023)`, rounded up.
const DIRECTORY_MAX: u64 = 64 << 20;
/// QEMU's limit on the bits of one bitmap, in bytes.
const BITS_MAX: u64 = 512 << 20;
/// The directory entries' fields before the extra data.
const HEAD: usize = 24;
const STRUCTURE: &str = "qcow2 bitmap directory";

const IN_USE: u32 = 1;
const AUTO: u32 = 2;
const EXTRA_DATA_COMPATIBLE: u32 = 4;

/// Where the header says that the directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Directory {
    pub(super) count: u32,
    pub(super) length: u64,
    pub(super) offset: u64,
}

impl Directory {
    /// From the data of the header extension.
    pub(super) fn parse(data: &[u8]) -> Result<Self> {
        let record = Record::new(data, "qcow2 bitmaps extension", 0);
        Ok(Self { count: record.be_u32(0)?, length: record.be_u64(8)?, offset: record.be_u64(16)? })
    }
}

/// What an image says of one of its dirty bitmaps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoredBitmap {
    /// There is none of that name.
    Missing,
    /// It is there, but what it says does not count, and why.
    Unusable(&'static str),
    /// All that was written since the bitmap was made lies in these ranges of bytes, in order.
    Dirty(Vec<Range<u64>>),
}

/// The bitmaps of an open image.
#[derive(Debug, Clone)]
pub(in crate::image) struct Bitmaps {
    pub(super) file: ImageFile,
    pub(super) directory: Directory,
    /// Whether everybody who wrote to the image knew of them.
    pub(super) are_valid: bool,
    pub(super) cluster_bytes: u64,
    pub(super) disk_bytes: u64,
}

/// A directory entry.
#[derive(Debug)]
struct Entry {
    table: u64,
    table_entries: u32,
    flags: u32,
    kind: u8,
    granularity_bits: u8,
    has_extra_data: bool,
    name: Vec<u8>,
}

impl Bitmaps {
    /// # Errors
    /// `Corrupt` when directory or bitmap contradict themselves; what reading says.
    pub(in crate::image) fn read(&self, name: &str) -> Result<StoredBitmap> {
        if !self.are_valid {
            return Ok(StoredBitmap::Unusable("something that does not know bitmaps wrote to the image"));
        }
        let Some(entry) = self.find(name)? else { return Ok(StoredBitmap::Missing) };
        if entry.flags & IN_USE != 0 {
            return Ok(StoredBitmap::Unusable("it was not saved when QEMU ended"));
        }
        if entry.flags & AUTO == 0 {
            return Ok(StoredBitmap::Unusable("it does not record"));
        }
        let known = entry.flags & !(IN_USE | AUTO | EXTRA_DATA_COMPATIBLE) == 0 && entry.kind == 1;
        let extra_matters = entry.has_extra_data && entry.flags & EXTRA_DATA_COMPATIBLE == 0;
        if !known || extra_matters || !(9..=31).contains(&entry.granularity_bits) {
            return Ok(StoredBitmap::Unusable("it is of a kind that firn does not know"));
        }
        self.ranges(&entry).map(StoredBitmap::Dirty)
    }

    fn find(&self, name: &str) -> Result<Option<Entry>> {
        let Directory { count, length, offset } = self.directory;
        let bad = |message: String| Error::corrupt(message).in_structure(STRUCTURE).at_path(self.file.path());
        if length > DIRECTORY_MAX {
            return Err(bad(format!("{length} bytes; at most 64 MiB can be")));
        }
        let mut bytes = vec![0; usize::try_from(length).unwrap_or_default()];
        self.file.read_stored(&mut bytes, offset)?;
        let mut at = 0;
        for _ in 0..count {
            let record = Record::new(bytes.get(at..).unwrap_or_default(), STRUCTURE, offset + at as u64);
            let extra = usize::try_from(record.be_u32(20)?).unwrap_or(usize::MAX);
            let name_at = HEAD.saturating_add(extra);
            let name_length = usize::from(record.be_u16(18)?);
            let entry = Entry {
                table: record.be_u64(0)?,
                table_entries: record.be_u32(8)?,
                flags: record.be_u32(12)?,
                kind: record.u8(16)?,
                granularity_bits: record.u8(17)?,
                has_extra_data: extra > 0,
                name: record.slice(name_at, name_length)?.to_vec(),
            };
            if entry.name == name.as_bytes() {
                return Ok(Some(entry));
            }
            at += (name_at + name_length).next_multiple_of(8);
        }
        Ok(None)
    }

    fn ranges(&self, entry: &Entry) -> Result<Vec<Range<u64>>> {
        let granularity = 1_u64 << entry.granularity_bits;
        let bytes = self.disk_bytes.div_ceil(granularity).div_ceil(8);
        let clusters = bytes.div_ceil(self.cluster_bytes);
        let bad = |message: String| {
            Error::corrupt(message).in_structure("qcow2 bitmap table").at_offset(entry.table).at_path(self.file.path())
        };
        if bytes > BITS_MAX || u64::from(entry.table_entries) != clusters {
            return Err(bad(format!("{} entries for a bitmap of {bytes} bytes", entry.table_entries)));
        }
        let mut table = vec![0; usize::try_from(clusters * 8).unwrap_or_default()];
        self.file.read_stored(&mut table, entry.table)?;
        let mut found = Runs { granularity, end: self.disk_bytes, ranges: Vec::new() };
        let mut bits = Vec::new();
        for (index, word) in table.chunks_exact(8).enumerate() {
            let word = word.try_into().map_or(0, u64::from_be_bytes);
            let first = index as u64 * self.cluster_bytes;
            let length = usize::try_from((bytes - first).min(self.cluster_bytes)).unwrap_or_default();
            match (word & 0x00ff_ffff_ffff_fe00, word & !0x00ff_ffff_ffff_fe00) {
                (0, 0) => continue,
                (0, 1) => {
                    bits.clear();
                    bits.resize(length, 0xff);
                }
                (at, 0) if at.is_multiple_of(self.cluster_bytes) => {
                    bits.resize(length, 0);
                    self.file.read_stored(&mut bits, at)?;
                }
                _ => return Err(bad(format!("the entry {word:#x}"))),
            }
            bits.iter().enumerate().for_each(|(at, byte)| found.add_byte((first + at as u64) * 8, *byte));
        }
        Ok(found.ranges)
    }
}

/// Ranges, neighbours joined.
struct Runs {
    granularity: u64,
    end: u64,
    ranges: Vec<Range<u64>>,
}

impl Runs {
    fn add_byte(&mut self, first_bit: u64, byte: u8) {
        if byte == 0 {
            return;
        }
        for bit in (0..8).filter(|bit| byte >> bit & 1 == 1) {
            let start = (first_bit + bit) * self.granularity;
            let end = (start + self.granularity).min(self.end);
            match self.ranges.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ if start < end => self.ranges.push(start..end),
                _ => {}
            }
        }
    }
}
