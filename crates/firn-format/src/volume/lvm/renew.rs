//! New UUIDs for physical volumes and their groups, and new names for groups.
//!
//! The text of each metadata area is written anew where it stands: UUIDs have one length, and a name that is longer
//! only makes the text longer, which goes over the end of the ring as any text does. Older texts in the ring are not
//! touched; nothing reads them.

use super::label::{self, Area};
use super::metadata::Group;
use super::text::Section;
use crate::identity::{Fill, Renewal, random};
use firn_disk::{Error, Record, Result, SharedDisk};
use std::collections::BTreeMap;

/// What LVM2 makes UUIDs of.
const LETTERS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// What becomes what: UUIDs of physical volumes and groups, names of groups.
#[derive(Debug, Default)]
pub(crate) struct Renaming {
    pub(crate) uuids: BTreeMap<String, String>,
    pub(crate) names: BTreeMap<String, String>,
}

/// A random UUID as LVM2 spells it.
pub(crate) fn random_uuid(fill: &mut Fill<'_>) -> Result<String> {
    let bytes: [u8; 32] = random(fill)?;
    let letters = bytes.map(|byte| LETTERS.get(usize::from(byte) % LETTERS.len()).copied().unwrap_or(b'0'));
    label::format_uuid(&letters).ok_or_else(|| Error::invalid("no UUID could be made"))
}

/// What changes on the physical volume `disk`.
///
/// # Errors
/// `Unsupported` when a change of its group was begun and not finished, or the text does not fit; `Corrupt` when
/// label or metadata are damaged; what the disk says.
pub(crate) fn renew(disk: &SharedDisk, renaming: &Renaming) -> Result<Renewal> {
    let mut renewal = Renewal::default();
    let Some(label) = label::read(disk)? else {
        return Err(Error::corrupt("it has no label any more"));
    };
    let (at, mut sector) = label::read_sector(disk)?.ok_or_else(|| Error::corrupt("it has no label any more"))?;
    if let Some(new) = renaming.uuids.get(&label.uuid) {
        let record = Record::new(&sector, "LVM label", at);
        let header = usize::try_from(record.le_u32(20)?).unwrap_or(usize::MAX);
        record.slice(header, 32)?;
        let letters: Vec<u8> = new.bytes().filter(|byte| *byte != b'-').collect();
        put(&mut sector, header, &letters);
        let sum = label::crc(Record::new(&sector, "LVM label", at).slice(20, 492)?);
        put(&mut sector, 16, &sum.to_le_bytes());
        renewal.patch(at, sector);
    }
    for area in &label.metadata_areas {
        renew_area(disk, *area, renaming, &mut renewal)?;
    }
    Ok(renewal)
}

fn renew_area(disk: &SharedDisk, area: Area, renaming: &Renaming, renewal: &mut Renewal) -> Result<()> {
    let Some(stored) = label::read_text(disk, area)? else { return Ok(()) };
    let mut header = stored.header;
    // The second location is that of a text which was written but not committed.
    if Record::new(&header, "LVM metadata area", area.offset).le_u64(64)? != 0 {
        return Err(Error::unsupported("a change of the volume group was begun and not finished")
            .in_structure("LVM metadata area")
            .hint("run vgck --updatemetadata on the original, or keep these identifiers"));
    }
    let text = renamed(&stored.text, renaming)?;
    let (length, room) = (text.len() as u64, stored.size.saturating_sub(label::AREA_HEADER));
    if length > room {
        return Err(Error::unsupported(format!("metadata of {length} bytes do not fit into {room}")));
    }
    let first = usize::try_from((stored.size - stored.at).min(length)).unwrap_or(usize::MAX);
    let (before_end, rest) = text.split_at(first.min(text.len()));
    renewal.patch(area.offset.saturating_add(stored.at), before_end);
    if !rest.is_empty() {
        renewal.patch(area.offset.saturating_add(label::AREA_HEADER), rest);
    }
    put(&mut header, 48, &length.to_le_bytes());
    put(&mut header, 56, &label::crc(&text).to_le_bytes());
    let sum = label::crc(header.get(4..).unwrap_or_default());
    put(&mut header, 0, &sum.to_le_bytes());
    renewal.patch(area.offset, header);
    Ok(())
}

/// The text with UUIDs and the name of the group replaced.
fn renamed(text: &[u8], renaming: &Renaming) -> Result<Vec<u8>> {
    let before = Group::parse(&Section::parse(text)?)?;
    let mut new = text.to_vec();
    for (old, fresh) in &renaming.uuids {
        // In quotation marks, as values stand; both have one length.
        replace_all(&mut new, format!("\"{old}\"").as_bytes(), format!("\"{fresh}\"").as_bytes());
    }
    if let Some(name) = renaming.names.get(&before.name) {
        // The group's section comes first in the text.
        let end = before.name.len();
        if new.get(..end) != Some(before.name.as_bytes()) {
            return Err(Error::unsupported("the metadata do not begin with the group's name"));
        }
        new.splice(..end, name.bytes());
    }
    // What was made must read as the same group.
    let after = Group::parse(&Section::parse(&new)?)?;
    let fresh = |uuid: &String| renaming.uuids.get(uuid).unwrap_or(uuid).clone();
    let is_right = after.uuid == fresh(&before.uuid)
        && after.name == *renaming.names.get(&before.name).unwrap_or(&before.name)
        && after.physical.iter().map(|volume| volume.uuid.clone()).eq(before.physical.iter().map(|v| fresh(&v.uuid)))
        && after.logical.len() == before.logical.len();
    if is_right { Ok(new) } else { Err(Error::unsupported("the metadata cannot be rewritten safely")) }
}

fn replace_all(text: &mut [u8], old: &[u8], new: &[u8]) {
    let mut at = 0;
    while let Some(found) = text.get(at..).and_then(|rest| rest.windows(old.len()).position(|part| part == old)) {
        put(text, at + found, new);
        at += found + old.len();
    }
}

fn put(bytes: &mut [u8], at: usize, piece: &[u8]) {
    if let Some(field) = at.checked_add(piece.len()).and_then(|end| bytes.get_mut(at..end)) {
        field.copy_from_slice(piece);
    }
}
