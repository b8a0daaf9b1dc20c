//! [`PowerCutDisk`]: a disk in memory that forgets what was not flushed.
//!
//! Writes go to a volatile list of sectors, as into a drive's cache. A flush makes them durable. When the
//! power is cut, each sector that was written since the last flush survives or not by itself, and where one
//! sector was written several times, any of its versions may be the one that survives.

use super::Random;
use crate::{Disk, Error, ErrorKind, Extent, ExtentKind, Fua, MayUnmap, MemDisk, Result, WriteDisk, check_range};
use std::ops::Range;
use std::sync::{Mutex, MutexGuard};

/// Which unflushed sectors survive a power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Survivors {
    /// None: as if the cache was lost whole.
    None,
    /// All: as if everything was written back in time.
    All,
    /// Each by the toss of a coin that this seed decides.
    Random(u64),
    /// Bit *n* of the mask decides over the *n*-th sector write; for walking over all subsets.
    Mask(u64),
}

/// A disk that loses what was not flushed when its power is cut.
#[derive(Debug)]
pub struct PowerCutDisk {
    sector_bytes: usize,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    durable: Vec<u8>,
    /// What reads see: all writes applied.
    current: Vec<u8>,
    /// Sector writes since the last flush, in order.
    unflushed: Vec<(usize, Vec<u8>)>,
    fail_next_flush: bool,
    off: bool,
}

impl PowerCutDisk {
    /// A disk of `length` zero bytes whose writes are atomic per sector of `sector_bytes`.
    ///
    /// # Panics
    /// When `length` is not a whole number of sectors.
    pub fn new(length: usize, sector_bytes: usize) -> Self {
        assert!(length.is_multiple_of(sector_bytes), "whole sectors");
        let state = State {
            durable: vec![0; length],
            current: vec![0; length],
            unflushed: Vec::new(),
            fail_next_flush: false,
            off: false,
        };
        Self { sector_bytes, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panics while holding it")
    }

    /// How many sector writes are not flushed: the number of bits that count in [`Survivors::Mask`].
    pub fn unflushed_sectors(&self) -> usize {
        self.state().unflushed.len()
    }

    /// Fails the next flush; what was unflushed is then lost to later flushes, as on Linux.
    pub fn fail_next_flush(&self) {
        self.state().fail_next_flush = true;
    }

    /// Cuts the power: every later call fails. Answers what the platters hold, as a new disk.
    pub fn cut(&self, survivors: Survivors) -> MemDisk {
        let mut state = self.state();
        state.off = true;
        let mut platters = state.durable.clone();
        let mut random = Random::new(match survivors {
            Survivors::Random(seed) => seed,
            _ => 0,
        });
        for (index, (sector, bytes)) in state.unflushed.iter().enumerate() {
            let survives = match survivors {
                Survivors::None => false,
                Survivors::All => true,
                Survivors::Random(_) => random.below(2) == 1,
                Survivors::Mask(mask) => index < 64 && mask >> index & 1 == 1,
            };
            if survives {
                let start = sector * self.sector_bytes;
                platters[start..start + bytes.len()].copy_from_slice(bytes);
            }
        }
        MemDisk::from(platters)
    }

    fn powered(&self) -> Result<MutexGuard<'_, State>> {
        let state = self.state();
        if state.off { Err(Error::new(ErrorKind::Io, "the power was cut")) } else { Ok(state) }
    }

    fn change(&self, range: Range<u64>, apply: impl FnOnce(&mut [u8])) -> Result<()> {
        let mut state = self.powered()?;
        check_range(range.start, range.end.saturating_sub(range.start), state.current.len() as u64)?;
        let (Ok(start), Ok(end)) = (usize::try_from(range.start), usize::try_from(range.end)) else {
            return Err(Error::out_of_bounds(range.start, 0, 0));
        };
        if start >= end {
            return Ok(());
        }
        apply(&mut state.current[start..end]);
        for sector in start / self.sector_bytes..end.div_ceil(self.sector_bytes) {
            let at = sector * self.sector_bytes;
            let bytes = state.current[at..at + self.sector_bytes].to_vec();
            state.unflushed.push((sector, bytes));
        }
        Ok(())
    }
}

impl Disk for PowerCutDisk {
    fn len(&self) -> u64 {
        self.state().current.len() as u64
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let state = self.powered()?;
        check_range(offset, buf.len() as u64, state.current.len() as u64)?;
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        buf.copy_from_slice(&state.current[start..start + buf.len()]);
        Ok(())
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        let length = self.len();
        check_range(offset, 1, length)?;
        Ok(Extent { kind: ExtentKind::Data, length: length - offset })
    }
}

impl WriteDisk for PowerCutDisk {
    fn write_at(&self, buf: &[u8], offset: u64, fua: Fua) -> Result<()> {
        let end = offset.checked_add(buf.len() as u64).ok_or_else(|| Error::out_of_bounds(offset, 0, 0))?;
        check_range(offset, buf.len() as u64, self.len())?;
        self.change(offset..end, |bytes| bytes.copy_from_slice(buf))?;
        match fua {
            Fua::Yes => self.flush(),
            Fua::No => Ok(()),
        }
    }

    fn zero(&self, range: Range<u64>, _may_unmap: MayUnmap) -> Result<()> {
        self.change(range, |bytes| bytes.fill(0))
    }

    fn discard(&self, range: Range<u64>) -> Result<()> {
        check_range(range.start, range.end.saturating_sub(range.start), self.len())
    }

    fn flush(&self) -> Result<()> {
        let mut state = self.powered()?;
        if std::mem::take(&mut state.fail_next_flush) {
            // Linux marks the pages clean after a failed fsync: a second one would lie.
            state.unflushed.clear();
            return Err(Error::new(ErrorKind::Io, "injected flush failure"));
        }
        // Not a copy of what reads see: that may hold sectors which a failed flush has given up.
        for (sector, bytes) in std::mem::take(&mut state.unflushed) {
            let start = sector * self.sector_bytes;
            state.durable[start..start + bytes.len()].copy_from_slice(&bytes);
        }
        Ok(())
    }

    fn resize(&self, _length: u64) -> Result<()> {
        Err(Error::unsupported("this disk has a fixed length"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn conforms() {
        testing::check_write_disk(&PowerCutDisk::new(64 << 10, 512), 3, 300);
    }

    #[test]
    fn only_flushed_sectors_are_sure_to_survive() {
        let disk = PowerCutDisk::new(2048, 512);
        disk.write_at(&[1; 512], 0, Fua::Yes).unwrap();
        disk.write_at(&[2; 1024], 0, Fua::No).unwrap();
        assert_eq!(disk.unflushed_sectors(), 2);
        assert_eq!(disk.cut(Survivors::None).to_vec()[..512], [1; 512]);
        let second_only = disk.cut(Survivors::Mask(0b10)).to_vec();
        assert_eq!((second_only[0], second_only[512]), (1, 2));
        assert_eq!(disk.cut(Survivors::All).to_vec()[..1024], [2; 1024]);
        assert!(disk.flush().is_err(), "the power is off");
    }

    #[test]
    fn after_a_failed_flush_a_second_one_does_not_bring_it_back() {
        let disk = PowerCutDisk::new(512, 512);
        disk.write_at(&[1; 512], 0, Fua::No).unwrap();
        disk.fail_next_flush();
        assert!(disk.flush().is_err());
        assert_eq!(disk.unflushed_sectors(), 0);
        disk.flush().unwrap();
        assert_eq!(disk.cut(Survivors::All).to_vec(), [0; 512]);
    }
}
