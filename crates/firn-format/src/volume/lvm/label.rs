//! What stands on a physical volume: its label, and the areas that hold the group's metadata.
//!
//! ```text
//! sectors 0..3   label, in one of them: "LABELONE", own sector, CRC, offset of the PV header, "LVM2 001"
//!   PV header    UUID (32 characters), size of the device, list of data areas, list of metadata areas, flags
//! metadata area  512 bytes: CRC, magic, version, own place, size, up to 19 locations of text
//!                then a ring: a text that reaches the end goes on after the header
//! ```
//! Sectors are 512 bytes whatever the disk says (lib/label/label.h and lib/format_text/layout.h of LVM2).

use super::text::Section;
use crate::table::crc32;
use firn_disk::{Disk, Error, Record, Result, SharedDisk};

const SECTOR: u64 = 512;
/// What LVM2 puts into its CRC register first; it does not invert it at the end.
const CRC_START: u32 = 0xF597_A6CF;
const AREA_MAGIC: &[u8; 16] = b" LVM2 x[5A%r0N*>";
/// Bytes of the header of a metadata area, after which the ring begins.
pub(super) const AREA_HEADER: u64 = 512;
/// Most bytes of one text. A group of thousands of volumes has some MiB.
const MAX_TEXT: u64 = 16 << 20;
/// Most areas in each of the two lists; the label's sector has room for fewer.
const MAX_AREAS: usize = 32;

/// A run of bytes on the physical volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Area {
    pub(super) offset: u64,
    pub(super) length: u64,
}

/// A physical volume's label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Label {
    /// UUID as LVM2 prints it, with dashes.
    pub(super) uuid: String,
    /// Bytes of the device when it was labelled; 0 when not known.
    pub(super) device_size: u64,
    /// Where metadata is kept.
    pub(super) metadata_areas: Vec<Area>,
    /// Whether it says that it belongs to a group, which metadata may say on other physical volumes only.
    pub(super) is_used: bool,
}

/// The label on `disk`, if it has one.
///
/// # Errors
/// `Corrupt` when a label's checksum is wrong or its lists make no sense; what the disk says.
pub(super) fn read(disk: &SharedDisk) -> Result<Option<Label>> {
    find(disk).map(|found| found.map(|(label, ..)| label))
}

/// The place and the bytes of the sector that the label of `disk` stands in.
///
/// # Errors
/// As [`read`].
pub(super) fn read_sector(disk: &SharedDisk) -> Result<Option<(u64, Vec<u8>)>> {
    find(disk).map(|found| found.map(|(_, offset, sector)| (offset, sector)))
}

fn find(disk: &SharedDisk) -> Result<Option<(Label, u64, Vec<u8>)>> {
    let mut damage = None;
    for sector in 0..4 {
        let offset = sector * SECTOR;
        if offset + SECTOR > disk.len() {
            break;
        }
        let mut buf = [0; 512];
        let record = Record::read(disk, &mut buf, offset, "LVM label")?;
        if &record.array(0)? != b"LABELONE" {
            continue;
        }
        match parse(&record, sector) {
            Ok(label) => return Ok(Some((label, offset, buf.to_vec()))),
            Err(error) => damage = damage.or(Some(error)),
        }
    }
    damage.map_or(Ok(None), Err)
}

fn parse(record: &Record<'_>, sector: u64) -> Result<Label> {
    if &record.array(24)? != b"LVM2 001" {
        return Err(record.unsupported(24, "an LVM label of another type than LVM2 001"));
    }
    if record.le_u64(8)? != sector {
        return Err(record.corrupt(8, "it is meant for another sector"));
    }
    if crc(record.slice(20, 492)?) != record.le_u32(16)? {
        return Err(record.corrupt(16, "its checksum does not match"));
    }
    let at = usize::try_from(record.le_u32(20)?).unwrap_or(usize::MAX);
    let uuid = format_uuid(record.slice(at, 32)?).ok_or_else(|| record.corrupt(at, "its UUID is not one"))?;
    let device_size = record.le_u64(at + 32)?;
    let (_, next) = areas(record, at + 40)?;
    let (metadata_areas, extension) = areas(record, next)?;
    // The extension of the header, which older versions do not have: version, flags.
    let is_used =
        matches!((record.le_u32(extension), record.le_u32(extension + 4)), (Ok(2..), Ok(flags)) if flags & 1 != 0);
    Ok(Label { uuid, device_size, metadata_areas, is_used })
}

/// The list of areas at `at`, and where the next one begins.
fn areas(record: &Record<'_>, mut at: usize) -> Result<(Vec<Area>, usize)> {
    let mut list = Vec::new();
    loop {
        let area = Area { offset: record.le_u64(at)?, length: record.le_u64(at + 8)? };
        at += 16;
        if area.offset == 0 {
            return Ok((list, at));
        }
        if list.len() == MAX_AREAS {
            return Err(record.corrupt(at, "its list of areas has no end"));
        }
        list.push(area);
    }
}

pub(super) fn crc(bytes: &[u8]) -> u32 {
    crc32::update(CRC_START, bytes)
}

/// `XXXXXX-XXXX-XXXX-XXXX-XXXX-XXXX-XXXXXX`; `None` when a character is not one that LVM2 uses.
pub(super) fn format_uuid(bytes: &[u8]) -> Option<String> {
    let is_sound = bytes.len() == 32 && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"!#".contains(byte));
    let mut uuid = String::with_capacity(38);
    for (at, byte) in bytes.iter().enumerate().filter(|_| is_sound) {
        if at >= 6 && (at - 6).is_multiple_of(4) && at < 30 {
            uuid.push('-');
        }
        uuid.push(char::from(*byte));
    }
    is_sound.then_some(uuid)
}

/// The text of a metadata area, parsed, and its length in bytes; `None` when the area is empty or set aside
/// (`metadataignore`).
///
/// # Errors
/// `Corrupt` when a checksum or a location is wrong; what the disk says.
pub(super) fn read_area(disk: &SharedDisk, area: Area) -> Result<Option<(Section, u64)>> {
    let Some(stored) = read_text(disk, area)? else { return Ok(None) };
    Section::parse(&stored.text).map(|section| Some((section, stored.text.len() as u64)))
}

/// A text as it stands in its area.
pub(super) struct StoredText {
    /// The 512 bytes of the area's header.
    pub(super) header: Vec<u8>,
    /// Bytes of the area.
    pub(super) size: u64,
    /// Where in the area the text begins.
    pub(super) at: u64,
    pub(super) text: Vec<u8>,
}

/// As [`read_area`], not parsed.
pub(super) fn read_text(disk: &SharedDisk, area: Area) -> Result<Option<StoredText>> {
    let mut buf = [0; 512];
    let header = Record::read(disk, &mut buf, area.offset, "LVM metadata area")?;
    if crc(header.slice(4, 508)?) != header.le_u32(0)? {
        return Err(header.corrupt(0, "its checksum does not match"));
    }
    if &header.array(4)? != AREA_MAGIC {
        return Err(header.corrupt(4, "it has no magic"));
    }
    if header.le_u32(20)? != 1 {
        return Err(header.unsupported(20, format!("version {}", header.le_u32(20)?)));
    }
    if header.le_u64(24)? != area.offset {
        return Err(header.corrupt(24, "it is meant for another place"));
    }
    let size = header.le_u64(32)?;
    // The first location is the committed text; the second would be one that was never committed.
    let (at, length) = (header.le_u64(40)?, header.le_u64(48)?);
    let is_ignored = header.le_u32(60)? & 1 != 0;
    if at == 0 || is_ignored {
        return Ok(None);
    }
    let room = size.saturating_sub(AREA_HEADER);
    if at < AREA_HEADER || at >= size || length > room.min(MAX_TEXT) {
        return Err(header.corrupt(40, format!("its text of {length} bytes at {at} does not fit into {size} bytes")));
    }
    let before_end = length.min(size - at);
    let pieces = [(at, before_end), (AREA_HEADER, length - before_end)];
    let mut text = Vec::new();
    for (at, length) in pieces.into_iter().filter(|(_, length)| *length > 0) {
        let start = area.offset.checked_add(at).ok_or_else(|| header.corrupt(40, "its place overflows"))?;
        firn_disk::check_range(start, length, disk.len())
            .map_err(|_| header.corrupt(40, "its text lies past the end of the disk"))?;
        let mut piece = vec![0; usize::try_from(length).unwrap_or(0)];
        disk.read_at(&mut piece, start)?;
        text.append(&mut piece);
    }
    if crc(&text) != header.le_u32(56)? {
        return Err(Error::corrupt("its checksum does not match")
            .in_structure("LVM metadata text")
            .at_offset(area.offset.saturating_add(at)));
    }
    Ok(Some(StoredText { header: buf.to_vec(), size, at, text }))
}

#[cfg(test)]
mod tests {
    #[test]
    fn uuids_are_spelled_as_lvm_spells_them() {
        let uuid = super::format_uuid(b"0zd3UTwbYTlDHqlMPsEjoE0o18wL28X4").unwrap();
        assert_eq!(uuid, "0zd3UT-wbYT-lDHq-lMPs-EjoE-0o18-wL28X4");
        assert_eq!(super::format_uuid(b"0zd3UT-wbYTlDHqlMPsEjoE0o18wL28X"), None);
        assert_eq!(super::format_uuid(b"short"), None);
    }
}
