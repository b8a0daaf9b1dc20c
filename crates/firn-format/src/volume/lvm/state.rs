//! The state of a member of a raid volume, from the superblock in its `_rmeta_` volume.
//!
//! ```text
//! 0 "DmRd"  4 features  8 devices  12 own position  16 events  24 failed devices, bit by position
//! 32 recovered up to (sector)  40 array synchronised up to (sector)  48 level  52 layout … 60 flags … 96 data offset …
//! 120 more failed devices …  144 features that must be known      4096 a write-intent bitmap, as md's
//! ```
//! "Up to" is all ones when done. Source: Linux, drivers/md/dm-raid.c.

use firn_disk::{Disk, Record, Result, SharedDisk};

const MAGIC: u32 = 0x6452_6D44;
pub(super) const SECTOR: u64 = 512;
/// All ones: nothing is left to be done.
pub(super) const DONE: u64 = u64::MAX;

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

impl State {
    /// Its superblock, if it has one.
    pub(super) fn written(&self) -> Option<&Superblock> {
        match self {
            Self::Written(superblock) => Some(superblock),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Superblock {
    pub(super) position: u32,
    pub(super) events: u64,
    pub(super) failed: [u64; 4],
    /// The first sector of the member that was not rebuilt.
    pub(super) recovered: u64,
    /// The first sector that was not made redundant.
    pub(super) synchronised: u64,
}

impl Superblock {
    pub(super) fn says_failed(&self, position: usize) -> bool {
        self.failed.get(position / 64).is_none_or(|bits| bits >> (position % 64) & 1 == 1)
    }
}

/// Reads the state of a member of an array of md's `level` and, where there are several, `layout`.
///
/// # Errors
/// `Unsupported` when the superblock is of an array of another kind, or one that is being reshaped.
pub(super) fn read(disk: &SharedDisk, level: u32, layout: Option<u32>) -> Result<State> {
    let mut buf = [0; 512];
    if disk.len() < 512 || disk.read_at(&mut buf, 0).is_err() {
        return Ok(State::Unreadable);
    }
    let record = Record::new(&buf, "dm-raid superblock", 0);
    if record.le_u32(0)? != MAGIC {
        return Ok(State::Blank);
    }
    let has_more = record.le_u32(4)? & 1 != 0;
    let (own_level, own_layout) = (record.le_u32(48)?, record.le_u32(52)?);
    if own_level != level || layout.is_some_and(|layout| layout != own_layout) {
        let what = format!("it says raid level {own_level} with layout {own_layout}: the volume is being converted");
        return Err(record.unsupported(48, what));
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

/// Why a member is not read that a superblock was found of.
pub(super) fn reason_against<'a>(
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

#[cfg(test)]
mod tests {
    use super::*;
    use firn_disk::{ErrorKind, MemDisk};
    use std::sync::Arc;

    #[test]
    fn superblocks_are_read_and_odd_ones_refused() {
        let mut bytes = vec![0; 4096];
        let disk = |bytes: &[u8]| -> SharedDisk { Arc::new(MemDisk::from(bytes.to_vec())) };
        assert_eq!(read(&disk(&bytes), 1, None).unwrap(), State::Blank);
        assert_eq!(read(&disk(&[]), 1, None).unwrap(), State::Unreadable);
        bytes[..4].copy_from_slice(b"DmRd");
        assert_eq!(read(&disk(&bytes), 1, None).unwrap_err().kind(), ErrorKind::Unsupported, "level 0");
        bytes[48] = 1;
        bytes[12] = 1;
        bytes[32..48].fill(0xFF);
        assert_eq!(
            read(&disk(&bytes), 1, None).unwrap(),
            State::Written(Superblock { position: 1, events: 0, failed: [0; 4], recovered: DONE, synchronised: DONE })
        );
        bytes[4] = 1;
        bytes[60] = 1;
        assert_eq!(read(&disk(&bytes), 1, None).unwrap_err().kind(), ErrorKind::Unsupported, "reshape");
    }
}
