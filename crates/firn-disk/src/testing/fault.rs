//! [`FaultDisk`]: fails the reads it was told to fail.

use crate::{Disk, Error, ErrorKind, Extent, Result};
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// A disk that counts its reads and fails some of them.
#[derive(Debug)]
pub struct FaultDisk<D> {
    below: D,
    reads: AtomicU64,
    bytes_read: AtomicU64,
    faults: Mutex<Vec<Fault>>,
}

#[derive(Debug, Clone)]
enum Fault {
    Range(Range<u64>, ErrorKind),
    After(u64, ErrorKind),
}

impl<D: Disk> FaultDisk<D> {
    /// `below`, sound so far.
    pub fn new(below: D) -> Self {
        Self { below, reads: AtomicU64::new(0), bytes_read: AtomicU64::new(0), faults: Mutex::default() }
    }

    /// Fails every read that touches `range`.
    pub fn fail_reads_in(&self, range: Range<u64>, kind: ErrorKind) {
        self.faults.lock().expect("no test panics while holding it").push(Fault::Range(range, kind));
    }

    /// Fails every read from the `count`-th from now on.
    pub fn fail_after(&self, count: u64, kind: ErrorKind) {
        let fault = Fault::After(self.reads() + count, kind);
        self.faults.lock().expect("no test panics while holding it").push(fault);
    }

    /// Forgets all faults.
    pub fn heal(&self) {
        self.faults.lock().expect("no test panics while holding it").clear();
    }

    /// How many reads were asked for.
    pub fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    /// How many bytes were read.
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read.load(Ordering::Relaxed)
    }
}

impl<D: Disk> Disk for FaultDisk<D> {
    fn len(&self) -> u64 {
        self.below.len()
    }

    fn logical_block_size(&self) -> u32 {
        self.below.logical_block_size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let number = self.reads.fetch_add(1, Ordering::Relaxed);
        let end = offset.saturating_add(buf.len() as u64);
        for fault in self.faults.lock().expect("no test panics while holding it").iter() {
            let kind = match fault {
                Fault::Range(range, kind) if offset < range.end && range.start < end => *kind,
                Fault::After(count, kind) if number >= *count => *kind,
                _ => continue,
            };
            return Err(Error::new(kind, "injected fault").at_offset(offset));
        }
        self.bytes_read.fetch_add(buf.len() as u64, Ordering::Relaxed);
        self.below.read_at(buf, offset)
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        self.below.extent_at(offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemDisk;

    #[test]
    fn fails_what_it_was_told_and_counts() {
        let disk = FaultDisk::new(MemDisk::zeroed(4096));
        crate::testing::check_disk(&disk, &[0; 4096], 1);
        disk.fail_reads_in(100..200, ErrorKind::Io);
        assert!(disk.read_at(&mut [0; 10], 95).is_err());
        assert!(disk.read_at(&mut [0; 10], 90).is_ok());
        disk.heal();
        disk.fail_after(1, ErrorKind::Unavailable);
        assert!(disk.read_at(&mut [0; 10], 95).is_ok());
        assert_eq!(disk.read_at(&mut [0; 10], 95).unwrap_err().kind(), ErrorKind::Unavailable);
    }
}
