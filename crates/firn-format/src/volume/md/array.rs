//! From members to arrays.

use super::superblock::{self, Role, Superblock};
use crate::volume::raid::{Array, Clean, Counting, Geometry, Linear, MAX_MEMBERS, Member, Parity, Ten, Trust, Zones};
use firn_disk::{Disk, Error, ErrorKind, Extent, ExtentKind, Result, SharedDisk, check_range};
use std::ops::Range;
use std::sync::Arc;

/// "All of it" in bytes.
const ALL: u64 = u64::MAX;

/// A disk with an md superblock.
#[derive(Debug, Clone)]
pub struct MdMember {
    disk: SharedDisk,
    superblock: Superblock,
    name: String,
}

impl MdMember {
    /// The member on `disk`, if it is one; `name` is what messages call it.
    ///
    /// # Errors
    /// `Corrupt` when the superblock is damaged; what the disk says.
    pub fn read(disk: &SharedDisk, name: impl Into<String>) -> Result<Option<Self>> {
        let found = superblock::read(disk)?;
        Ok(found.map(|superblock| Self { disk: disk.clone(), superblock, name: name.into() }))
    }

    /// What messages call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn is_in(&self, slot: usize) -> bool {
        matches!(self.superblock.role, Role::Active(own) if usize::try_from(own) == Ok(slot))
    }

    /// What it says of itself, in words: its version, the level of its array, its place there.
    pub fn features(&self) -> Vec<String> {
        let role = match self.superblock.role {
            Role::Active(slot) => format!("slot {slot}"),
            Role::Spare => "spare".into(),
            Role::Faulty => "failed".into(),
            Role::Journal => "journal".into(),
        };
        vec![format!("version {}", self.superblock.version), level_name(self.superblock.level), role]
    }
}

/// As md calls a level.
fn level_name(level: i32) -> String {
    match level {
        -1 => "linear".into(),
        -4 => "multipath".into(),
        level if level >= 0 => format!("raid{level}"),
        level => format!("level {level}"),
    }
}

/// An array.
#[derive(Debug, Clone)]
pub struct MdArray {
    /// `md0` when it has a number, otherwise its name without that of its host; a number from 127 down without either.
    pub name: String,
    /// Its name as mdadm shows it, `lab:0`; empty in version 0.90.
    pub full_name: String,
    /// UUID with dashes.
    pub uuid: String,
    /// `raid5`, and other facts.
    pub features: Vec<String>,
    /// What is wrong or special, in words.
    pub health: Vec<String>,
    /// Whether a member is missing or not read.
    pub is_degraded: bool,
    /// The places of its members, spares included, in the list that was assembled.
    pub members: Vec<usize>,
    disk: Result<SharedDisk>,
}

impl MdArray {
    /// Its content.
    ///
    /// # Errors
    /// `Unsupported`, by name, for what is not put together; `Unavailable` when too much is missing; `Corrupt` when the
    /// superblocks make no sense.
    pub fn open(&self) -> Result<SharedDisk> {
        self.disk.clone()
    }
}

/// Puts members together to arrays, in the order in which they were first seen.
pub fn assemble(found: &[MdMember]) -> Vec<MdArray> {
    let mut uuids: Vec<[u8; 16]> = Vec::new();
    for member in found {
        if !uuids.contains(&member.superblock.uuid) {
            uuids.push(member.superblock.uuid);
        }
    }
    let mut unnamed = 127_u32;
    let mut arrays: Vec<MdArray> = uuids.into_iter().filter_map(|uuid| assemble_one(found, uuid)).collect();
    for array in arrays.iter_mut().filter(|array| array.name.is_empty()) {
        array.name = format!("md{unnamed}");
        unnamed = unnamed.saturating_sub(1);
    }
    arrays
}

fn assemble_one(found: &[MdMember], uuid: [u8; 16]) -> Option<MdArray> {
    let places: Vec<usize> =
        found.iter().enumerate().filter(|(_, member)| member.superblock.uuid == uuid).map(|(at, _)| at).collect();
    let members: Vec<&MdMember> = places.iter().filter_map(|at| found.get(*at)).collect();
    // A spare may have missed the last changes or not; those that hold data know best.
    let holds_data = |member: &&&MdMember| matches!(member.superblock.role, Role::Active(_));
    let newest = members
        .iter()
        .filter(holds_data)
        .max_by_key(|member| member.superblock.events)
        .or_else(|| members.iter().max_by_key(|member| member.superblock.events))?;
    let newest = &newest.superblock;
    let mut health = Vec::new();
    let (slots, lengths) = slots(&members, newest, &mut health);
    let is_degraded = slots.iter().any(|slot| slot.disk.is_err() || slot.readable != ALL);
    let disk = open(&members, newest, (slots, lengths), is_degraded, &mut health);
    let short = newest.name.rsplit_once(':').map_or(newest.name.as_str(), |(_, name)| name);
    let name = match newest.minor {
        Some(minor) => format!("md{minor}"),
        None if !short.is_empty() && short.bytes().all(|byte| byte.is_ascii_digit()) => format!("md{short}"),
        None => short.chars().filter(|character| !character.is_control() && *character != '#').collect(),
    };
    let mut features = vec![level_name(newest.level), format!("version {}", newest.version)];
    if newest.chunk > 0 && newest.level != 1 {
        features.push(format!("chunks of {} KiB", newest.chunk / 1024));
    }
    Some(MdArray {
        name,
        full_name: newest.name.clone(),
        uuid: crate::table::Guid::from_printed_order(uuid).to_string(),
        features,
        health,
        is_degraded,
        members: places,
        disk,
    })
}

/// What stands in each slot of the array with its length in bytes, and what is wrong with it.
fn slots(members: &[&MdMember], newest: &Superblock, health: &mut Vec<String>) -> (Vec<Member>, Vec<u64>) {
    let count = usize::try_from(newest.count).unwrap_or(usize::MAX).min(MAX_MEMBERS);
    let (mut slots, mut lengths) = (Vec::with_capacity(count), Vec::with_capacity(count));
    for slot in 0..count {
        let in_slot = |member: &&&MdMember| member.is_in(slot);
        let is_expected = newest.active.get(slot).copied().unwrap_or(false);
        let mut fresh: Vec<&MdMember> = Vec::new();
        let mut problem = None;
        for member in members.iter().filter(in_slot) {
            match reason_against(member, newest, is_expected) {
                Some(reason) => problem = Some(format!("{} ({reason})", member.name)),
                None => fresh.push(member),
            }
        }
        // A replacement that is ready does what the member it replaces does.
        fresh.sort_by_key(|member| (member.superblock.is_replacement, member.superblock.recovered != ALL));
        let replacements = fresh.iter().filter(|member| member.superblock.is_replacement).count();
        if fresh.len() - replacements > 1 {
            let names: Vec<&str> = fresh.iter().map(|member| member.name.as_str()).collect();
            problem = Some(format!("is there {} times: {}", names.len(), names.join(", ")));
            fresh.clear();
        }
        let Some(member) = fresh.first() else {
            let (why, note) = match problem {
                Some(problem) if problem.starts_with("is there") => {
                    (problem.clone(), format!("member {slot} {problem}"))
                }
                Some(problem) => (format!("is not read: {problem}"), format!("member {slot} is not read: {problem}")),
                None if is_expected => ("is missing".into(), format!("member {slot} is missing")),
                None => ("is missing".into(), format!("member {slot} was missing already")),
            };
            health.push(note);
            let name = format!("member {slot}");
            slots.push(Member { name, disk: Err(why), start: 0, readable: ALL });
            lengths.push(0);
            continue;
        };
        let own = &member.superblock;
        if own.recovered != ALL {
            health.push(format!("member {slot} ({}) is being rebuilt, up to byte {}", member.name, own.recovered));
        }
        let name = format!("member {slot} ({})", member.name);
        let disk = without_bad_blocks(member, health).map_err(|error| format!("is not read: {error}"));
        slots.push(Member { name, disk, start: own.start, readable: own.recovered });
        lengths.push(own.length);
    }
    let known = |member: &&&MdMember| matches!(member.superblock.role, Role::Active(slot) if slot < newest.count);
    for member in members.iter().filter(|member| !known(member)) {
        let what = match member.superblock.role {
            Role::Spare => "is a spare",
            Role::Faulty => "failed",
            Role::Journal => "is its journal",
            Role::Active(_) => "is in no slot",
        };
        health.push(format!("{} {what}", member.name));
    }
    (slots, lengths)
}

/// Why a member of the right slot is not read.
fn reason_against(member: &MdMember, newest: &Superblock, is_expected: bool) -> Option<String> {
    let own = &member.superblock;
    if own.events.saturating_add(1) < newest.events {
        Some(format!("it missed updates: events {} instead of {}", own.events, newest.events))
    } else if !is_expected {
        Some("it failed".into())
    } else if (own.level, own.layout, own.chunk, own.count) != (newest.level, newest.layout, newest.chunk, newest.count)
    {
        Some("it is of an array of another shape".into())
    } else {
        None
    }
}

/// The disk of a member, failing where it misses data.
fn without_bad_blocks(member: &MdMember, health: &mut Vec<String>) -> Result<SharedDisk> {
    let Some(list) = member.superblock.bad_blocks else { return Ok(member.disk.clone()) };
    let ranges = list.read(&member.disk)?;
    if ranges.is_empty() {
        return Ok(member.disk.clone());
    }
    health.push(format!("{} has {} runs of bad blocks", member.name, ranges.len()));
    Ok(Arc::new(Pierced { below: member.disk.clone(), bad: ranges, name: member.name.clone() }))
}

/// The array as a disk.
fn open(
    members: &[&MdMember],
    newest: &Superblock,
    (slots, lengths): (Vec<Member>, Vec<u64>),
    is_degraded: bool,
    health: &mut Vec<String>,
) -> Result<SharedDisk> {
    if let Some(refusal) = newest.refusal {
        return Err(Error::unsupported(format!("{refusal}, which is not built yet")));
    }
    if newest.count == 0 || slots.len() as u64 != u64::from(newest.count) {
        return Err(Error::corrupt(format!("it says that it has {} members", newest.count)));
    }
    // Of a member that is not read it is not known how long it is.
    let all_lengths = || -> Result<Vec<u64>> {
        if let Some(missing) = slots.iter().find(|slot| slot.disk.is_err()) {
            let why = missing.disk.as_ref().err().map_or("", String::as_str);
            return Err(Error::new(ErrorKind::Unavailable, format!("{} {why}", missing.name))
                .hint("name all disks of the array, as a list: a.img,b.img"));
        }
        Ok(lengths.clone())
    };
    let geometry = match newest.level {
        -1 => {
            let whole = |length: u64| length - length.checked_rem(newest.chunk).unwrap_or(0);
            Geometry::Linear(Linear::new(&all_lengths()?.into_iter().map(whole).collect::<Vec<_>>())?)
        }
        0 => {
            let counting = match (newest.has_raid0_layout, newest.layout) {
                (true, 1) => Some(Counting::Array),
                (true, 2) => Some(Counting::Zone),
                _ => None,
            };
            Geometry::Zones(Zones::new(newest.chunk, &all_lengths()?, counting)?)
        }
        1 => Geometry::Mirror(newest.size),
        10 => Geometry::Ten(Ten::new(newest.layout, newest.chunk, slots.len(), newest.size)?),
        level @ (4..=6) => {
            let level = level.unsigned_abs();
            Geometry::Parity(Parity::new(level, newest.layout, newest.chunk, slots.len(), newest.size)?)
        }
        level => return Err(Error::unsupported(format!("md arrays of {} are not built yet", level_name(level)))),
    };
    let clean = clean(members, newest, &geometry, health);
    if is_degraded && matches!(geometry, Geometry::Parity(_)) && matches!(clean, Clean::Below(end) if end != ALL) {
        health.push("it was being written to when it stopped: what only parity knows is not read".into());
    }
    Ok(Arc::new(Array::new(geometry, slots, clean, Trust::FirstThere, None)?))
}

/// Where copies and parity agree with the data. Without a clean stop the bitmap tells, as long as nothing was missing:
/// an array that is degraded clears none of its bits.
fn clean(members: &[&MdMember], newest: &Superblock, geometry: &Geometry, health: &mut Vec<String>) -> Clean {
    let known = Clean::Below(newest.synchronised);
    let is_whole = newest.active.iter().all(|active| *active);
    if newest.synchronised == ALL || !is_whole {
        return known;
    }
    let Some((member, at)) = members
        .iter()
        .find(|member| member.superblock == *newest)
        .and_then(|member| member.superblock.bitmap.map(|at| (member, at)))
    else {
        return known;
    };
    let covered = geometry.covered(newest.size);
    match Clean::read_bitmap(&member.disk, at, covered) {
        Ok(Some(clean)) => clean,
        Ok(None) => known,
        Err(error) => {
            health.push(format!("its bitmap cannot be read: {error}"));
            known
        }
    }
}

/// A member that misses data in places.
#[derive(Debug)]
struct Pierced {
    below: SharedDisk,
    bad: Vec<Range<u64>>,
    name: String,
}

impl Disk for Pierced {
    fn len(&self) -> u64 {
        self.below.len()
    }

    fn logical_block_size(&self) -> u32 {
        self.below.logical_block_size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let end = offset.saturating_add(buf.len() as u64);
        check_range(offset, buf.len() as u64, self.len())?;
        if self.bad.iter().any(|bad| bad.start < end && offset < bad.end) {
            let what = format!("{} lists a bad block here", self.name);
            return Err(Error::new(ErrorKind::Unavailable, what).at_offset(offset));
        }
        self.below.read_at(buf, offset)
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        check_range(offset, 1, self.len())?;
        // What is known of the disk is not true of the data that should be there.
        Ok(Extent { kind: ExtentKind::Data, length: self.len() - offset })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use firn_disk::{MemDisk, testing};

    #[test]
    fn a_member_without_bad_blocks_where_it_is_read_conforms() {
        let bytes = testing::pattern(20_000, 4);
        let below: SharedDisk = Arc::new(MemDisk::from(bytes.clone()));
        let whole = Pierced { below: below.clone(), bad: vec![], name: "vda".into() };
        testing::check_disk(&whole, &bytes, 4);
        let pierced = Pierced { below, bad: vec![512..1024, 4096..8192], name: "vda".into() };
        assert!(pierced.read_at(&mut [0; 512], 0).is_ok() && pierced.read_at(&mut [0; 3072], 1024).is_ok());
        for (at, length) in [(511, 2), (1023, 1), (0, 20_000), (8191, 10)] {
            let error = pierced.read_at(&mut vec![0; length], at).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unavailable);
        }
    }
}
