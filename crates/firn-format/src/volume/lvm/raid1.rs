//! Which copies of a raid1 volume are in sync, from the superblocks in their `_rmeta_` volumes.
//!
//! The rules are those by which Linux (drivers/md/dm-raid.c, raid1.c) reads: a
//! copy that is being rebuilt, that failed, or that missed updates is not read; while the array as a whole is
//! not synchronised, only its first copy is.

use super::state::{DONE, SECTOR, State, reason_against};
use firn_disk::Error;

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

/// Why nothing can be read.
pub(super) fn nothing_to_read(notes: &[String]) -> Error {
    let what = if notes.is_empty() { "the state of its copies is missing".into() } else { notes.join("; ") };
    Error::new(firn_disk::ErrorKind::Unavailable, format!("no copy is known to be in sync: {what}"))
}

#[cfg(test)]
mod tests {
    use super::super::state::Superblock;
    use super::*;

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
}
