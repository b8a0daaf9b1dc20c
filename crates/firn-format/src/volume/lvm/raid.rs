//! raid4, raid5, raid6 and raid10 volumes: which members may be read, and where parity may be relied on.
//!
//! Every member is a pair of volumes: `_rimage_` with its bytes and `_rmeta_` with its state ([`super::state`]) and the
//! write-intent bitmap. A member that failed, missed updates or is not rebuilt is not read. Where the bitmap says that
//! writes may have been going on when the machine stopped, nothing is computed from parity, and no other copy is taken
//! for a missing one. An array that went on without a member keeps its bitmap from then on, so that there it says
//! nothing; as the kernel does, parity is then believed, and it is told.
//!
//! Source: LVM2, lib/raid; Linux, drivers/md/dm-raid.c.

use super::state::{self, DONE, SECTOR, State, Superblock, reason_against};
use crate::volume::raid::{Array, Clean, Geometry, Member, Parity, Ten, Trust};
use firn_disk::{Error, ErrorKind, Result, SharedDisk};

/// Where the bitmap stands in a `_rmeta_` volume.
const BITMAP_AT: u64 = 4096;

/// A raid segment type with parity or striped copies, as md knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) level: u32,
    pub(super) layout: u32,
    /// How many members more there are than it takes to hold the data once; of raid10 copies.
    pub(super) redundancy: usize,
}

impl Shape {
    /// Of a segment type's name; `copies` counts for raid10.
    pub(super) fn of(name: &str, copies: u32) -> Option<Self> {
        let shape = |level, layout, redundancy| Some(Self { level, layout, redundancy });
        match name {
            "raid4" => shape(5, 4, 1),
            "raid5_n" => shape(5, 5, 1),
            "raid5" | "raid5_ls" => shape(5, 2, 1),
            "raid5_rs" => shape(5, 3, 1),
            "raid5_la" => shape(5, 0, 1),
            "raid5_ra" => shape(5, 1, 1),
            "raid6" | "raid6_zr" => shape(6, 8, 2),
            "raid6_nr" => shape(6, 9, 2),
            "raid6_nc" => shape(6, 10, 2),
            "raid6_n_6" => shape(6, 5, 2),
            "raid6_ls_6" => shape(6, 18, 2),
            "raid6_rs_6" => shape(6, 19, 2),
            "raid6_la_6" => shape(6, 16, 2),
            "raid6_ra_6" => shape(6, 17, 2),
            "raid10" | "raid10_near" => shape(10, 0x100 | (copies & 0xFF), usize::try_from(copies).ok()?),
            _ => None,
        }
    }

    /// Bytes that each of `members` holds of a volume of `length` bytes.
    pub(super) fn member_bytes(self, length: u64, members: usize) -> Option<u64> {
        let count = members as u64;
        if self.level == 10 {
            return length.checked_mul(self.redundancy as u64)?.checked_div(count);
        }
        length.checked_div(count.checked_sub(self.redundancy as u64)?)
    }

    fn geometry(self, chunk: u64, members: usize, member_bytes: u64) -> Result<Geometry> {
        if self.level == 10 {
            return Ten::new(self.layout, chunk, members, member_bytes).map(Geometry::Ten);
        }
        Parity::new(self.level, self.layout, chunk, members, member_bytes).map(Geometry::Parity)
    }
}

/// A member's two volumes, each with where it begins; whether the group's metadata says that it is being rebuilt.
#[derive(Debug)]
pub(super) struct Leg {
    pub(super) name: String,
    pub(super) data: (SharedDisk, u64),
    pub(super) state: Option<SharedDisk>,
    pub(super) is_rebuilding: bool,
}

/// An array of `legs` with `length` bytes, and what is told of it.
///
/// # Errors
/// `Corrupt` when its sizes make no sense; `Unsupported` while it is being converted; `Unavailable` when no member can be
/// read.
pub(super) fn open(shape: Shape, chunk: u64, length: u64, legs: Vec<Leg>) -> Result<(Array, Vec<String>)> {
    let mut states = Vec::with_capacity(legs.len());
    for leg in &legs {
        states.push(match &leg.state {
            None => State::Absent,
            Some(disk) => state::read(disk, shape.level, Some(shape.layout))?,
        });
    }
    let mut notes = Vec::new();
    let superblocks: Vec<&Superblock> = states.iter().filter_map(State::written).collect();
    let newest = superblocks.iter().copied().max_by_key(|superblock| superblock.events);
    let member_bytes = shape.member_bytes(length, legs.len()).unwrap_or(0);
    let mut members = Vec::with_capacity(legs.len());
    let mut bitmap = None;
    for (at, (leg, state)) in legs.iter().zip(&states).enumerate() {
        let (readable, problem) = readable(at, leg, state, newest, &superblocks);
        if let Some(problem) = problem {
            notes.push(format!("{} {problem}", leg.name));
        } else if let (State::Written(own), Some(newest)) = (state, newest)
            && own.events == newest.events
        {
            bitmap = bitmap.or(leg.state.as_ref());
        }
        let disk = match (readable, problem) {
            (0, problem) => Err(problem.unwrap_or("cannot be read").to_owned()),
            _ => Ok(leg.data.0.clone()),
        };
        members.push(Member { name: leg.name.clone(), disk, start: leg.data.1, readable });
    }
    if members.iter().all(|member| member.disk.is_err()) {
        let what = format!("no member can be read: {}", notes.join("; "));
        return Err(Error::new(ErrorKind::Unavailable, what));
    }
    let covered = if shape.level == 10 { length } else { member_bytes };
    let clean = clean(newest, bitmap, covered, &mut notes);
    let geometry = shape.geometry(chunk, members.len(), member_bytes)?;
    Ok((Array::new(geometry, members, clean, Trust::FirstOnly, Some(length))?, notes))
}

/// How much of a member may be read, and what is wrong with it.
fn readable(
    at: usize,
    leg: &Leg,
    state: &State,
    newest: Option<&Superblock>,
    all: &[&Superblock],
) -> (u64, Option<&'static str>) {
    match (state, newest) {
        // Nothing was ever recorded: the data is there, and nothing computed from it.
        (State::Blank | State::Absent, None) if !leg.is_rebuilding => (u64::MAX, None),
        (State::Absent | State::Unreadable, _) => (0, Some("has no readable state")),
        (State::Blank, _) => (0, Some("was never synchronised")),
        (State::Written(_), _) if leg.is_rebuilding => (0, Some("is being rebuilt")),
        (State::Written(own), Some(newest)) => {
            let rebuilt = Superblock { recovered: DONE, ..own.clone() };
            match reason_against(at, &rebuilt, newest, all.iter().copied()) {
                Some(reason) => (0, Some(reason)),
                None if own.recovered == DONE => (u64::MAX, None),
                None => (own.recovered.saturating_mul(SECTOR), Some("is being rebuilt")),
            }
        }
        (State::Written(_), None) => (0, Some("has no readable state")),
    }
}

/// Where copies and parity agree with the data.
fn clean(newest: Option<&Superblock>, bitmap: Option<&SharedDisk>, covered: u64, notes: &mut Vec<String>) -> Clean {
    let Some(newest) = newest else {
        notes.push("its members were never synchronised".into());
        return Clean::Below(0);
    };
    if newest.synchronised != DONE {
        let bytes = newest.synchronised.saturating_mul(SECTOR);
        notes.push(format!("its members are synchronised up to byte {bytes} of each only"));
        return Clean::Below(bytes);
    }
    if newest.failed.iter().any(|bits| *bits != 0) {
        notes.push("it went on without a member: what was being written at the end may be a mix of old and new".into());
        return Clean::Below(u64::MAX);
    }
    match bitmap.map(|disk| Clean::read_bitmap(disk, BITMAP_AT, covered)) {
        Some(Ok(Some(clean))) => clean,
        Some(Ok(None)) => Clean::Below(u64::MAX),
        Some(Err(error)) => {
            notes.push(format!("redundancy is not relied on: {error}"));
            Clean::Below(0)
        }
        None => Clean::Below(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use firn_disk::{Disk, MemDisk, testing};
    use std::sync::Arc;

    fn leg(at: usize, change: impl Fn(&mut Vec<u8>)) -> Leg {
        let mut bytes = vec![0; 8192];
        bytes[..4].copy_from_slice(b"DmRd");
        bytes[12] = u8::try_from(at).unwrap();
        bytes[32..48].fill(0xFF);
        (bytes[48], bytes[52]) = (5, 2);
        change(&mut bytes);
        Leg {
            name: format!("member {at}"),
            data: (Arc::new(MemDisk::from(testing::pattern(40_960, at as u64))), 0),
            state: Some(Arc::new(MemDisk::from(bytes))),
            is_rebuilding: false,
        }
    }

    fn opened(legs: Vec<Leg>) -> Result<(Array, Vec<String>)> {
        open(Shape::of("raid5", 0).unwrap(), 4096, 81_920, legs)
    }

    #[test]
    fn parity_is_believed_only_where_it_was_made() {
        let read = |legs| opened(legs).unwrap().0.read_at(&mut [0; 512], 0);
        let gone = |mut leg: Leg| {
            leg.state = None;
            leg
        };
        assert!(read(vec![gone(leg(0, |_| {})), leg(1, |_| {}), leg(2, |_| {})]).is_ok());
        let unsynced = |at| leg(at, |bytes| bytes[40..48].fill(0));
        let error = read(vec![gone(leg(0, |_| {})), unsynced(1), unsynced(2)]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(read(vec![unsynced(0), unsynced(1), gone(leg(2, |_| {}))]).is_ok(), "the data itself is there");
        let dirty = |at| {
            leg(at, |bytes| {
                bytes[4096..4100].copy_from_slice(b"bitm");
                bytes[4100] = 4;
                bytes[4096 + 53] = 16;
                bytes[4096 + 256] = 1;
            })
        };
        assert!(read(vec![gone(leg(0, |_| {})), dirty(1), dirty(2)]).is_err());
        let error = opened(vec![gone(leg(0, |_| {})), dirty(1), dirty(2)]).unwrap().0.read_at(&mut [0; 512], 16384);
        assert!(error.is_ok(), "the next region is clean: {error:?}");
        let accused = |at| leg(at, |bytes| bytes[24] = 1);
        let (_, notes) = opened(vec![leg(0, |_| {}), accused(1), accused(2)]).unwrap();
        assert!(notes.iter().any(|note| note == "member 0 failed"), "{notes:?}");
    }

    #[test]
    fn a_member_is_read_as_far_as_it_was_rebuilt() {
        let partly = leg(1, |bytes| bytes[32..40].copy_from_slice(&8_u64.to_le_bytes()));
        let (array, notes) = opened(vec![leg(0, |_| {}), partly, leg(2, |_| {})]).unwrap();
        assert_eq!(notes, ["member 1 is being rebuilt"]);
        let mut buf = [0; 512];
        array.read_at(&mut buf, 4096).unwrap();
        assert_eq!(buf, testing::pattern(512, 1)[..]);
        assert!(opened(vec![leg(0, |bytes| bytes[52] = 3), leg(1, |_| {}), leg(2, |_| {})]).is_err());
        assert!(opened(vec![]).is_err());
    }
}
