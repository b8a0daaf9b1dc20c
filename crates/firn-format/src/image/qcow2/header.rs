//! The qcow2 header, its extensions and its feature bits, version 2 and 3.
//!
//! ```text
//!   0 magic "QFI\xfb"    20 cluster bits      48 refcount table      72 incompatible   (version 3 on)
//!   4 version            24 size              56 its clusters        80 compatible
//!   8 backing name at    32 encryption        60 snapshots           88 autoclear
//!  16 its length         36 L1 entries        64 snapshot table      96 refcount order, 100 header length
//!                        40 L1 table                                104 compression type
//! header length: extensions (type u32, length u32, data padded to 8) until type 0
//! ```
//! Source: QEMU, docs/interop/qcow2. Refused: encryption, unknown incompatible features (by name, where the
//! image holds a feature name table), sizes past QEMU's own limits.

use super::bitmap::Directory;
use crate::image::access::ImageFile;
use firn_disk::{Error, Record, Result};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

/// The first bytes of every qcow2 image.
pub(in crate::image) const MAGIC: &[u8; 4] = b"QFI\xfb";
/// What to do about a file that somebody calls qcow2.
const NOT_QCOW2: &str = "let the format be found by content, or take the file for raw if it is a raw disk";
/// QEMU's limit for a level 1 table, in bytes.
const L1_BYTES_MAX: u64 = 32 << 20;
/// A backing file's name is at most this long.
const NAME_MAX: u32 = 1023;

const DIRTY: u32 = 0;
const CORRUPT: u32 = 1;
const DATA_FILE: u32 = 2;
const COMPRESSION: u32 = 3;
const EXTENDED_L2: u32 = 4;

const EXTENSION_END: u32 = 0;
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
const EXTENSION_FEATURE_NAMES: u32 = 0x6803_f857;
const EXTENSION_BITMAPS: u32 = 0x2385_2875;
const EXTENSION_DATA_FILE: u32 = 0x4441_5441;

/// How compressed clusters are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    Zlib,
    Zstd,
}

/// What the header says, checked.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) version: u32,
    pub(super) cluster_bits: u32,
    pub(super) size: u64,
    pub(super) l1_offset: u64,
    pub(super) l1_entries: u32,
    pub(super) snapshots: u32,
    pub(super) snapshots_offset: u64,
    pub(super) compression: Compression,
    pub(super) extended_l2: bool,
    pub(super) dirty: bool,
    pub(super) corrupt: bool,
    pub(super) lazy_refcounts: bool,
    pub(super) refcount_bits: u32,
    pub(super) bitmaps: Option<Directory>,
    pub(super) bitmaps_are_valid: bool,
    pub(super) backing: Option<OsString>,
    pub(super) backing_format: Option<String>,
    pub(super) has_data_file: bool,
    pub(super) data_file_is_raw: bool,
    pub(super) data_file: Option<OsString>,
}

#[derive(Default)]
struct Extensions {
    backing_format: Option<String>,
    data_file: Option<OsString>,
    bitmaps: Option<Directory>,
    /// Kind (0 incompatible), bit and name.
    feature_names: Vec<(u8, u8, String)>,
}

impl Header {
    pub(super) fn read(file: &ImageFile) -> Result<Self> {
        let disk = file.disk();
        let mut head = [0; 112];
        let version = {
            let record = Record::read(disk, &mut head[..72], 0, "qcow2 header")?;
            if record.slice(0, 4)? != MAGIC {
                return Err(record.corrupt(0, "this is no qcow2 image: it does not begin as one").hint(NOT_QCOW2));
            }
            let version = record.be_u32(4)?;
            if !(2..=3).contains(&version) {
                return Err(record.unsupported(4, format!("qcow version {version}; 2 and 3 are known")));
            }
            version
        };
        if version >= 3 {
            let length = 112.min(disk.len());
            let length = usize::try_from(length).unwrap_or(112);
            Record::read(disk, &mut head[..length], 0, "qcow2 header")?;
        }
        let record = Record::new(&head, "qcow2 header", 0);
        let cluster_bits = record.be_u32(20)?;
        if !(9..=21).contains(&cluster_bits) {
            return Err(record.unsupported(20, format!("clusters of 2^{cluster_bits} bytes; 2^9 to 2^21 are known")));
        }
        match record.be_u32(32)? {
            0 => {}
            1 => return Err(encrypted(&record, "AES")),
            2 => return Err(encrypted(&record, "LUKS")),
            other => return Err(encrypted(&record, &format!("method {other}"))),
        }
        let header_bytes = header_length(&record, version, cluster_bits)?;
        let extensions = read_extensions(file, u64::from(header_bytes), cluster_bits, record.be_u64(8)?)?;
        let incompatible = if version >= 3 { record.be_u64(72)? } else { 0 };
        refuse_unknown(&record, incompatible, &extensions)?;
        let has = |bit: u32| incompatible >> bit & 1 == 1;
        let header = Self {
            version,
            cluster_bits,
            size: record.be_u64(24)?,
            l1_offset: record.be_u64(40)?,
            l1_entries: record.be_u32(36)?,
            snapshots: record.be_u32(60)?,
            snapshots_offset: record.be_u64(64)?,
            compression: compression(&record, header_bytes, has(COMPRESSION))?,
            extended_l2: has(EXTENDED_L2),
            dirty: has(DIRTY),
            corrupt: has(CORRUPT),
            lazy_refcounts: version >= 3 && record.be_u64(80)? & 1 == 1,
            refcount_bits: if version >= 3 { 1_u32.checked_shl(record.be_u32(96)?).unwrap_or(0) } else { 16 },
            bitmaps: extensions.bitmaps,
            bitmaps_are_valid: version >= 3 && record.be_u64(88)? & 1 == 1,
            backing: read_backing_name(file, &record, cluster_bits)?,
            backing_format: extensions.backing_format,
            has_data_file: has(DATA_FILE),
            data_file_is_raw: version >= 3 && record.be_u64(88)? >> 1 & 1 == 1,
            data_file: extensions.data_file,
        };
        header.check(&record)?;
        Ok(header)
    }

    fn check(&self, record: &Record<'_>) -> Result<()> {
        if self.extended_l2 && self.cluster_bits < 14 {
            return Err(record.corrupt(20, "extended L2 entries need clusters of at least 16 KiB"));
        }
        let needed = self.size.div_ceil(self.l2_coverage());
        if u64::from(self.l1_entries) < needed {
            return Err(record.corrupt(36, format!("{} L1 entries for {needed} that its size needs", self.l1_entries)));
        }
        self.check_l1(self.l1_offset, self.l1_entries).map_err(|message| record.corrupt(40, message))?;
        if self.size > i64::MAX.unsigned_abs() {
            return Err(record.corrupt(24, format!("a size of {} bytes is past every limit", self.size)));
        }
        if self.has_data_file && self.snapshots > 0 {
            return Err(record.corrupt(60, "internal snapshots beside an external data file"));
        }
        Ok(())
    }

    /// `Ok` when a level 1 table may lie there and be that large.
    pub(super) fn check_l1(&self, offset: u64, entries: u32) -> std::result::Result<(), String> {
        if u64::from(entries) * 8 > L1_BYTES_MAX {
            return Err(format!("a level 1 table of {entries} entries is larger than 32 MiB"));
        }
        if entries > 0 && (offset == 0 || !offset.is_multiple_of(self.cluster_bytes())) {
            return Err(format!("a level 1 table at byte {offset}, which is not the start of a cluster"));
        }
        Ok(())
    }

    pub(super) fn cluster_bytes(&self) -> u64 {
        1 << self.cluster_bits
    }

    pub(super) fn l2_entry_bytes(&self) -> u64 {
        if self.extended_l2 { 16 } else { 8 }
    }

    pub(super) fn l2_entries(&self) -> u64 {
        self.cluster_bytes() / self.l2_entry_bytes()
    }

    /// Bytes of the disk that one level 2 table maps; at most 2^39.
    pub(super) fn l2_coverage(&self) -> u64 {
        self.l2_entries() << self.cluster_bits
    }

    /// For people: what is special about the image.
    pub(super) fn features(&self) -> Vec<String> {
        let mut features = vec![format!("version {}", self.version)];
        features.push(match self.compression {
            Compression::Zlib => "zlib".to_owned(),
            Compression::Zstd => "zstd".to_owned(),
        });
        let flags = [
            (self.extended_l2, "extended L2 entries"),
            (self.lazy_refcounts, "lazy refcounts"),
            (self.bitmaps.is_some(), "persistent bitmaps"),
            (self.has_data_file && !self.data_file_is_raw, "external data file"),
            (self.has_data_file && self.data_file_is_raw, "external raw data file"),
        ];
        features.extend(flags.iter().filter(|(is_set, _)| *is_set).map(|(_, name)| (*name).to_owned()));
        if self.refcount_bits != 16 {
            features.push(format!("{}-bit refcounts", self.refcount_bits));
        }
        features
    }
}

fn encrypted(record: &Record<'_>, method: &str) -> Error {
    record
        .unsupported(32, format!("the image is encrypted ({method})"))
        .hint("decrypt it into a plain copy first, with qemu-img convert and its --image-opts")
}

fn header_length(record: &Record<'_>, version: u32, cluster_bits: u32) -> Result<u32> {
    if version < 3 {
        return Ok(72);
    }
    let length = record.be_u32(100)?;
    if length < 104 || !length.is_multiple_of(8) || length > 1 << cluster_bits {
        return Err(record.corrupt(100, format!("a header length of {length} bytes")));
    }
    Ok(length)
}

fn compression(record: &Record<'_>, header_bytes: u32, is_flagged: bool) -> Result<Compression> {
    let kind = if header_bytes > 104 { record.u8(104)? } else { 0 };
    match (kind, is_flagged) {
        (0, false) => Ok(Compression::Zlib),
        (1, true) => Ok(Compression::Zstd),
        (0 | 1, _) => Err(record.corrupt(104, "the compression type and its feature bit contradict each other")),
        _ => Err(record.unsupported(104, format!("compression type {kind}; zlib and zstd are known"))),
    }
}

fn refuse_unknown(record: &Record<'_>, incompatible: u64, extensions: &Extensions) -> Result<()> {
    let unknown = incompatible & !0b1_1111;
    if unknown == 0 {
        return Ok(());
    }
    let names: Vec<String> = (0..64_u8)
        .filter(|bit| unknown >> bit & 1 == 1)
        .map(|bit| {
            let known = extensions.feature_names.iter().find(|(kind, number, _)| *kind == 0 && *number == bit);
            known.map_or_else(|| format!("bit {bit}"), |(_, _, name)| format!("\"{name}\""))
        })
        .collect();
    Err(record.unsupported(72, format!("incompatible features that firn does not know: {}", names.join(", "))))
}

fn read_backing_name(file: &ImageFile, record: &Record<'_>, cluster_bits: u32) -> Result<Option<OsString>> {
    let (at, length) = (record.be_u64(8)?, record.be_u32(16)?);
    if at == 0 {
        return Ok(None);
    }
    if length == 0 {
        return Ok(None);
    }
    let end = at.checked_add(u64::from(length));
    if length > NAME_MAX || end.is_none_or(|end| end > 1 << cluster_bits) {
        return Err(record.corrupt(8, format!("a backing file name of {length} bytes at byte {at}")));
    }
    let mut name = vec![0; usize::try_from(length).unwrap_or_default()];
    Record::read(file.disk(), &mut name, at, "qcow2 backing file name")?;
    if name.contains(&0) {
        return Err(record.corrupt(8, "a backing file name with a zero byte"));
    }
    Ok(Some(OsString::from_vec(name)))
}

fn read_extensions(file: &ImageFile, start: u64, cluster_bits: u32, backing_at: u64) -> Result<Extensions> {
    let disk = file.disk();
    let mut found = Extensions::default();
    let first_cluster = (1_u64 << cluster_bits).min(disk.len());
    let end = if backing_at == 0 { first_cluster } else { backing_at.min(first_cluster) };
    let mut at = start;
    while end.saturating_sub(at) >= 8 {
        let mut head = [0; 8];
        let record = Record::read(disk, &mut head, at, "qcow2 header extension")?;
        let (kind, length) = (record.be_u32(0)?, record.be_u32(4)?);
        if kind == EXTENSION_END {
            break;
        }
        if u64::from(length) > end - at - 8 {
            return Err(record.corrupt(4, format!("{length} bytes reach past the header at byte {end}")));
        }
        let mut data = vec![0; usize::try_from(length).unwrap_or_default()];
        Record::read(disk, &mut data, at + 8, "qcow2 header extension")?;
        match kind {
            EXTENSION_BACKING_FORMAT => found.backing_format = Some(String::from_utf8_lossy(&data).into_owned()),
            EXTENSION_DATA_FILE => found.data_file = Some(OsString::from_vec(data)),
            // The disk can be read without them.
            EXTENSION_BITMAPS => found.bitmaps = Directory::parse(&data).ok(),
            EXTENSION_FEATURE_NAMES => found.feature_names = feature_names(&data),
            _ => {}
        }
        at += 8 + u64::from(length).next_multiple_of(8);
    }
    Ok(found)
}

fn feature_names(data: &[u8]) -> Vec<(u8, u8, String)> {
    data.chunks_exact(48)
        .filter_map(|entry| match entry {
            [kind, bit, name @ ..] => {
                let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
                Some((*kind, *bit, String::from_utf8_lossy(name).into_owned()))
            }
            _ => None,
        })
        .collect()
}
