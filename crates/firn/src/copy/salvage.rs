//! A disk of the pool of which not all can be read any more: what is damaged reads as zeros, and is written down.

use firn_disk::{Disk, Error, ErrorKind, Extent, ExtentKind, Result, SharedDisk, check_range};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Leaves of a disk's tree stand for so many bytes each: where one is damaged, all of them are lost.
const REGION_BYTES: u64 = 16 << 20;
/// The pool's chunks end on these bounds.
const BLOCK_BYTES: u64 = 4096;

/// A disk whose damaged parts read as zeros.
#[derive(Debug)]
pub struct Salvage {
    disk: SharedDisk,
    damaged: Mutex<Damaged>,
}

#[derive(Debug, Default)]
struct Damaged {
    ranges: Vec<Range<u64>>,
    first: Option<Error>,
}

impl Salvage {
    /// Over `disk`.
    pub fn new(disk: SharedDisk) -> Self {
        Self { disk, damaged: Mutex::default() }
    }

    /// Whether there is anything to be saved: one part of the disk at least whose place in the pool is known.
    ///
    /// # Errors
    /// `Corrupt` when there is nothing; any error that is no damage.
    pub fn check(&self) -> Result<()> {
        let mut first = Ok(());
        for offset in (0..self.len()).step_by(usize::try_from(REGION_BYTES).unwrap_or(usize::MAX)) {
            match damage(self.disk.extent_at(offset))? {
                None => return Ok(()),
                Some(error) => first = first.and(Err(error)),
            }
        }
        first
    }

    /// What could not be read so far, in order and joined, and the first error.
    pub fn damage(&self) -> Option<(Vec<Range<u64>>, Error)> {
        let damaged = self.damaged.lock().unwrap_or_else(PoisonError::into_inner);
        let mut ranges = damaged.ranges.clone();
        ranges.sort_unstable_by_key(|range| range.start);
        let mut joined: Vec<Range<u64>> = Vec::new();
        for range in ranges {
            match joined.last_mut() {
                Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
                _ => joined.push(range),
            }
        }
        Some((joined, damaged.first.clone()?))
    }

    fn note(&self, range: Range<u64>, error: &Error) {
        let mut damaged = self.damaged.lock().unwrap_or_else(PoisonError::into_inner);
        damaged.first.get_or_insert_with(|| error.clone());
        match damaged.ranges.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => damaged.ranges.push(range),
        }
    }

    /// Reads what can be read of a range within one region, after reading it at once failed.
    fn read_region(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let end = offset + buf.len() as u64;
        if let Some(error) = damage(self.disk.extent_at(offset))? {
            buf.fill(0);
            self.note(offset..end, &error);
            return Ok(());
        }
        let mut at = offset;
        while at < end {
            let stop = ((at / BLOCK_BYTES + 1) * BLOCK_BYTES).min(end);
            let part = slice(buf, offset, &(at..stop))?;
            if let Some(error) = damage(self.disk.read_at(part, at))? {
                part.fill(0);
                self.note(at..stop, &error);
            }
            at = stop;
        }
        Ok(())
    }
}

/// The error, if it is damage; any other fails the caller.
fn damage<T>(result: Result<T>) -> Result<Option<Error>> {
    match result {
        Ok(_) => Ok(None),
        Err(error) if error.kind() == ErrorKind::Corrupt => Ok(Some(error)),
        Err(error) => Err(error),
    }
}

/// The part of `buf`, which begins at `offset`, that stands for `range`.
fn slice<'a>(buf: &'a mut [u8], offset: u64, range: &Range<u64>) -> Result<&'a mut [u8]> {
    let index = |at: u64| usize::try_from(at - offset).unwrap_or(usize::MAX);
    buf.get_mut(index(range.start)..index(range.end)).ok_or_else(|| Error::invalid("a range outside of the buffer"))
}

impl Disk for Salvage {
    fn len(&self) -> u64 {
        self.disk.len()
    }

    fn logical_block_size(&self) -> u32 {
        self.disk.logical_block_size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(offset, buf.len() as u64, self.len())?;
        if damage(self.disk.read_at(buf, offset))?.is_none() {
            return Ok(());
        }
        let end = offset + buf.len() as u64;
        let mut at = offset;
        while at < end {
            let stop = ((at / REGION_BYTES + 1) * REGION_BYTES).min(end);
            self.read_region(slice(buf, offset, &(at..stop))?, at)?;
            at = stop;
        }
        Ok(())
    }

    /// Where that is damaged, all is data: reading it notes the damage.
    fn extent_at(&self, offset: u64) -> Result<Extent> {
        let extent = self.disk.extent_at(offset);
        match extent {
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                let end = ((offset / REGION_BYTES + 1) * REGION_BYTES).min(self.len());
                Ok(Extent { kind: ExtentKind::Data, length: end - offset })
            }
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use firn_disk::MemDisk;
    use firn_disk::testing::{FaultDisk, check_disk, pattern};
    use std::sync::Arc;

    #[test]
    fn without_damage_it_is_the_disk_itself() {
        let bytes = pattern(100_000, 3);
        check_disk(&Salvage::new(Arc::new(MemDisk::from(bytes.clone()))), &bytes, 3);
    }

    #[test]
    fn damage_reads_as_zeros_and_is_written_down() {
        let mut bytes = pattern((16 << 20) + 50_000, 4);
        let fault = FaultDisk::new(MemDisk::from(bytes.clone()));
        fault.fail_reads_in(9000..9001, ErrorKind::Corrupt);
        let last = (16 << 20) + 40_960;
        fault.fail_reads_in(last..last + 5000, ErrorKind::Corrupt);
        let salvage = Salvage::new(Arc::new(fault));
        let mut read = vec![1; bytes.len()];
        salvage.read_at(&mut read, 0).unwrap();
        bytes[8192..12288].fill(0);
        let lost = usize::try_from(last).unwrap();
        bytes[lost..lost + 8192].fill(0);
        assert!(read == bytes);
        let (ranges, _) = salvage.damage().unwrap();
        assert_eq!(ranges, [8192..12288, last..last + 8192]);
    }

    #[test]
    fn what_is_no_damage_still_fails() {
        let fault = FaultDisk::new(MemDisk::from(pattern(9000, 5)));
        fault.fail_reads_in(0..1, ErrorKind::Unavailable);
        let salvage = Salvage::new(Arc::new(fault));
        assert_eq!(salvage.read_at(&mut [0; 10], 0).unwrap_err().kind(), ErrorKind::Unavailable);
        assert!(salvage.damage().is_none());
    }
}
