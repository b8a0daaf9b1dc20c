//! Which copies of a raid1 volume are in sync, from the superblocks in their `_rmeta_` volumes.
//!
//! ```text
//! 0 "DmRd"  4 features  8 devices  12 own position  16 events  24 failed devices, bit by position
//! 32 recovered up to (sector)  40 array synchronised up to (sector)  48 level … 60 flags … 96 data offset …
//! 120 more failed devices …  144 features that must be known
//! ```
//! "Up to" is all ones when done. The rules are those by which Linux (drivers/md/dm-raid.c, raid1.c) reads: a
//! copy that is being rebuilt, that failed, or that missed updates is not read; while the array as a whole is
//! not synchronised, only its first copy is.

use firn_disk::{Disk, Error, Record, Result, SharedDisk};

const MAGIC: u32 = 0x6452_6D44;
const SECTOR: u64 = 512;
/// All ones: nothing is left to be done.
const DONE: u64 = u64::MAX;

/// What the state of one copy says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum State {
    /// There is no volume for it.
    Absent,
    /// It cannot be read.
    Unreadable,
    /// It was never written.
    Blank,
    /// A superblock.
    Written(Superblock),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Superblock {
    position: u32,
    events: u64,
    failed: [u64; 4],
    recovered: u64,
    synchronised: u64,
}

impl Superblock {
    fn says_failed(&self, position: usize) -> bool {
        self.failed.get(position / 64).is_none_or(|bits| bits >> (position % 64) & 1 == 1)
    }
}

/// Reads the state of a copy.
///
/// # Errors
/// `Unsupported` when the superblock is of an array that is being reshaped or is no raid1.
pub(super) fn read(disk: &SharedDisk) -> Result<State> {
    let mut buf = [0; 512];
    if disk.len() < 512 || disk.read_at(&mut buf, 0).is_err() {
        return Ok(State::Unreadable);
    }
    let record = Record::new(&buf, "dm-raid superblock", 0);
    if record.le_u32(0)? != MAGIC {
        return Ok(State::Blank);
    }
    let has_more = record.le_u32(4)? & 1 != 0;
    if record.le_u32(48)? != 1 {
        return Err(record.unsupported(48, format!("it says raid level {}", record.le_u32(48)?)));
    }
    if has_more && (record.le_u32(60)? & 1 != 0 || record.le_u64(96)? != 0 || record.le_u32(144)? != 0) {
        return Err(record.unsupported(60, "the volume is being reshaped"));
    }
    let mut failed = [record.le_u64(24)?, 0, 0, 0];
    if has_more {
        for (bits, at) in failed.iter_mut().skip(1).zip([120, 128, 136]) {
            *bits = record.le_u64(at)?;
        }
    }
    Ok(State::Written(Superblock {
        position: record.le_u32(12)?,
        events: record.le_u64(16)?,
        failed,
        recovered: record.le_u64(32)?,
        synchronised: record.le_u64(40)?,
    }))
}

/// Which copies may be read.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Choice {
    /// The copy that may be read everywhere.
    pub(super) primary: Option<usize>,
    /// Those that may be read below `synchronised`.
    pub(super) others: Vec<usize>,
    /// In bytes.
    pub(super) synchronised: u64,
    /// What is told of it.
    pub(super) notes: Vec<String>,
}

/// Chooses between copies; `rebuilding` are those that the group's metadata marks so.
pub(super) fn choose(states: &[State], rebuilding: &[usize]) -> Choice {
    let superblocks = || {
        states.iter().enumerate().filter_map(|(at, state)| match state {
            State::Written(superblock) => Some((at, superblock)),
            _ => None,
        })
    };
    let mut choice = Choice::default();
    let Some(newest) = superblocks().map(|(_, superblock)| superblock).max_by_key(|superblock| superblock.events)
    else {
        // Nothing was ever recorded: Linux would begin with the first copy. If that one's state cannot be
        // read, something may have been recorded there.
        if matches!(states.first(), Some(State::Blank | State::Absent)) && !rebuilding.contains(&0) {
            choice.primary = Some(0);
            choice.notes.push("its copies were never synchronised".into());
        }
        return choice;
    };
    for (at, state) in states.iter().enumerate() {
        let reason = match state {
            State::Absent | State::Unreadable => Some("has no readable state"),
            State::Blank => Some("was never synchronised"),
            State::Written(_) if rebuilding.contains(&at) => Some("is being rebuilt"),
            State::Written(own) => reason_against(at, own, newest, superblocks().map(|(_, other)| other)),
        };
        match reason {
            Some(reason) => choice.notes.push(format!("copy {at} is not read: it {reason}")),
            None if choice.primary.is_none() => choice.primary = Some(at),
            None => choice.others.push(at),
        }
    }
    choice.synchronised = newest.synchronised.saturating_mul(SECTOR);
    if newest.synchronised != DONE {
        choice.notes.push(format!("its copies are synchronised up to byte {} only", choice.synchronised));
        // The copy that the others are made from is the first one, and it is not known what is in it.
        if matches!(states.first(), Some(State::Unreadable)) {
            choice.others.extend(choice.primary.take());
            choice.others.sort_unstable();
        }
    }
    choice
}

fn reason_against<'a>(
    at: usize,
    own: &Superblock,
    newest: &Superblock,
    mut all: impl Iterator<Item = &'a Superblock>,
) -> Option<&'static str> {
    if usize::try_from(own.position) != Ok(at) {
        Some("says that it is another copy")
    } else if own.recovered != DONE {
        Some("is being rebuilt")
    } else if own.events.saturating_add(1) < newest.events {
        Some("missed updates")
    } else if all.any(|other| other.events >= own.events && other.says_failed(at)) {
        Some("failed")
    } else {
        None
    }
}

/// Why nothing can be read.
pub(super) fn nothing_to_read(notes: &[String]) -> Error {
    let what = if notes.is_empty() { "the state of its copies is missing".into() } else { notes.join("; ") };
    Error::new(firn_disk::ErrorKind::Unavailable, format!("no copy is known to be in sync: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use firn_disk::{ErrorKind, MemDisk};
    use std::sync::Arc;

    fn written(position: u32, events: u64) -> Superblock {
        Superblock { position, events, failed: [0; 4], recovered: DONE, synchronised: DONE }
    }

    #[test]
    fn copies_in_sync_are_read_and_others_are_not() {
        let good = |position| State::Written(written(position, 10));
        let choice = choose(&[good(0), good(1)], &[]);
        assert_eq!((choice.primary, choice.others, choice.notes), (Some(0), vec![1], vec![]));

        let rebuilding = State::Written(Superblock { recovered: 100, ..written(0, 10) });
        let stale = State::Written(written(2, 8));
        let swapped = State::Written(written(1, 10));
        let choice = choose(&[rebuilding, good(1), stale, swapped, State::Blank, State::Unreadable], &[]);
        assert_eq!((choice.primary, choice.others.len(), choice.notes.len()), (Some(1), 0, 5));

        let choice = choose(&[good(0), good(1)], &[0]);
        assert_eq!((choice.primary, choice.others), (Some(1), vec![]));
    }

    #[test]
    fn a_copy_that_another_saw_fail_is_not_read() {
        let accuser = State::Written(Superblock { failed: [0b10, 0, 0, 0], ..written(0, 10) });
        let choice = choose(&[accuser.clone(), State::Written(written(1, 10))], &[]);
        assert_eq!((choice.primary, choice.others), (Some(0), vec![]));
        // An older copy's word against a newer one counts for nothing.
        let old_accuser = State::Written(Superblock { failed: [0b10, 0, 0, 0], ..written(0, 9) });
        let choice = choose(&[old_accuser, State::Written(written(1, 10))], &[]);
        assert_eq!((choice.primary, choice.others), (Some(0), vec![1]));
    }

    #[test]
    fn before_the_first_synchronisation_only_the_first_copy_counts() {
        let fresh = |position| State::Written(Superblock { synchronised: 8, ..written(position, 3) });
        let choice = choose(&[fresh(0), fresh(1)], &[]);
        assert_eq!((choice.primary, choice.others, choice.synchronised), (Some(0), vec![1], 4096));
        let choice = choose(&[State::Unreadable, fresh(1)], &[]);
        assert_eq!((choice.primary, choice.others), (None, vec![1]));
        assert_eq!(choose(&[State::Blank, State::Blank], &[]).primary, Some(0));
        assert_eq!(choose(&[State::Unreadable, State::Blank], &[]).primary, None);
    }

    #[test]
    fn superblocks_are_read_and_odd_ones_refused() {
        let mut bytes = vec![0; 4096];
        let disk = |bytes: &[u8]| -> SharedDisk { Arc::new(MemDisk::from(bytes.to_vec())) };
        assert_eq!(read(&disk(&bytes)).unwrap(), State::Blank);
        assert_eq!(read(&disk(&[])).unwrap(), State::Unreadable);
        bytes[..4].copy_from_slice(b"DmRd");
        assert_eq!(read(&disk(&bytes)).unwrap_err().kind(), ErrorKind::Unsupported, "level 0");
        bytes[48] = 1;
        bytes[12] = 1;
        bytes[32..48].fill(0xFF);
        assert_eq!(read(&disk(&bytes)).unwrap(), State::Written(written(1, 0)));
        bytes[4] = 1;
        bytes[60] = 1;
        assert_eq!(read(&disk(&bytes)).unwrap_err().kind(), ErrorKind::Unsupported, "reshape");
    }
}
