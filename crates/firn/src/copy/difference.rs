//! A disk written over another in place: what is equal already is left alone.

use super::stream::{Piece, for_each_piece};
use firn_disk::{Error, ExtentKind, Fua, MayUnmap, Result, SharedDisk, WriteDisk, visit_extents};
use std::ops::Range;
use std::sync::atomic::AtomicBool;

/// What is compared, and written where it differs.
const BLOCK_BYTES: usize = 4096;
/// The target is read in pieces of so many bytes.
const PIECE_BYTES: u64 = 1 << 20;

/// What writing in place came to, in bytes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Difference {
    /// Written because it differed.
    pub written: u64,
    /// Made zero because it was not.
    pub zeroed: u64,
}

/// Makes the first `disk.len()` bytes of `target` equal to `disk` and flushes. The target is read where the disk has
/// data or where it may have some itself; nothing is written where both are equal. When it fails in the middle the
/// target is partly old and partly new, and the same call again makes it whole. `progress` is told of bytes that are
/// done with.
///
/// # Errors
/// `OutOfBounds` when the target is shorter; `Interrupted` once `cancel` is set; what reading and writing say.
pub fn write_difference(
    disk: &SharedDisk,
    target: &dyn WriteDisk,
    cancel: &AtomicBool,
    progress: &mut dyn FnMut(u64),
) -> Result<Difference> {
    firn_disk::check_range(0, disk.len(), target.len())?;
    let mut difference = Difference::default();
    let mut old = Vec::new();
    for_each_piece(disk, cancel, &mut |piece| {
        let range = match &piece {
            Piece::Bytes(bytes, offset) => *offset..*offset + bytes.len() as u64,
            Piece::Zeros(range) => range.clone(),
        };
        match piece {
            Piece::Bytes(bytes, offset) => write_bytes(target, bytes, offset, &mut old, &mut difference)?,
            Piece::Zeros(range) => write_zeros(target, range, &mut old, &mut difference)?,
        }
        progress(range.end - range.start);
        Ok(())
    })?;
    target.flush()?;
    Ok(difference)
}

/// Reads a range of the target into `old`.
fn read(target: &dyn WriteDisk, range: &Range<u64>, old: &mut Vec<u8>) -> Result<()> {
    let length = usize::try_from(range.end - range.start);
    old.resize(length.map_err(|_| Error::invalid("a piece is larger than memory"))?, 0);
    target.read_at(old, range.start)
}

fn write_bytes(
    target: &dyn WriteDisk,
    new: &[u8],
    offset: u64,
    old: &mut Vec<u8>,
    difference: &mut Difference,
) -> Result<()> {
    read(target, &(offset..offset + new.len() as u64), old)?;
    for run in differing(new, old) {
        let bytes = new.get(run.clone()).unwrap_or_default();
        target.write_at(bytes, offset + run.start as u64, Fua::No)?;
        difference.written += bytes.len() as u64;
    }
    Ok(())
}

fn write_zeros(
    target: &dyn WriteDisk,
    range: Range<u64>,
    old: &mut Vec<u8>,
    difference: &mut Difference,
) -> Result<()> {
    let mut filled = Vec::new();
    visit_extents(target, range, |kind, run| {
        if kind == ExtentKind::Data {
            filled.push(run);
        }
        Ok(())
    })?;
    let zeros = vec![0; usize::try_from(PIECE_BYTES).unwrap_or(BLOCK_BYTES)];
    for run in filled {
        let mut at = run.start;
        while at < run.end {
            let end = run.end.min(at + PIECE_BYTES);
            read(target, &(at..end), old)?;
            for part in differing(zeros.get(..old.len()).unwrap_or_default(), old) {
                let part = at + part.start as u64..at + part.end as u64;
                difference.zeroed += part.end - part.start;
                target.zero(part, MayUnmap::Yes)?;
            }
            at = end;
        }
    }
    Ok(())
}

/// The runs of blocks in which two slices of one length differ.
fn differing(new: &[u8], old: &[u8]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    let mut at = 0;
    for (a, b) in new.chunks(BLOCK_BYTES).zip(old.chunks(BLOCK_BYTES)) {
        let end = at + a.len();
        if a != b {
            match runs.last_mut() {
                Some(last) if last.end == at => last.end = end,
                _ => runs.push(at..end),
            }
        }
        at = end;
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use firn_disk::testing::{Random, pattern};
    use firn_disk::{Disk, MemDisk};
    use std::sync::Arc;

    #[test]
    fn afterwards_both_are_equal_and_only_what_differed_was_written() {
        let mut random = Random::new(11);
        for round in 0..200 {
            let length = usize::try_from(random.below(3 << 20)).unwrap();
            let mut wanted = pattern(length, round);
            let mut found = wanted.clone();
            let mut at_most = 0;
            for _ in 0..random.below(6) {
                if length == 0 {
                    break;
                }
                let start = usize::try_from(random.below(length as u64)).unwrap();
                let end = length.min(start + usize::try_from(random.below(200_000)).unwrap());
                let target = if random.below(2) == 0 { &mut wanted } else { &mut found };
                target[start..end].fill(u8::try_from(random.below(2)).unwrap() * 7);
                at_most += end - start + 2 * BLOCK_BYTES;
            }
            let target = MemDisk::from([found, vec![9; 5000]].concat());
            let disk: SharedDisk = Arc::new(MemDisk::from(wanted.clone()));
            let mut done = 0;
            let difference =
                write_difference(&disk, &target, &AtomicBool::new(false), &mut |bytes| done += bytes).unwrap();
            let mut after = vec![0; length + 5000];
            target.read_at(&mut after, 0).unwrap();
            assert!(after[..length] == wanted && after[length..] == vec![9; 5000], "round {round}");
            assert_eq!(done, length as u64);
            assert!(difference.written + difference.zeroed <= at_most as u64, "round {round}: {difference:?}");
            let again = write_difference(&disk, &target, &AtomicBool::new(false), &mut |_| ()).unwrap();
            assert_eq!(again, Difference::default());
        }
    }

    #[test]
    fn a_target_that_is_too_short_is_left_alone() {
        let disk: SharedDisk = Arc::new(MemDisk::from(vec![1; 10]));
        let target = MemDisk::from(vec![2; 9]);
        write_difference(&disk, &target, &AtomicBool::new(false), &mut |_| ()).unwrap_err();
        let mut after = vec![0; 9];
        target.read_at(&mut after, 0).unwrap();
        assert_eq!(after, vec![2; 9]);
    }
}
