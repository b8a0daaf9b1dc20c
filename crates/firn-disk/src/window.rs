//! [`Window`]: a part of another disk, as a partition is.

use crate::{Disk, Error, Extent, Result, check_range};

/// `length` bytes of `disk` from `start` on.
#[derive(Debug, Clone)]
pub struct Window<D> {
    disk: D,
    start: u64,
    length: u64,
}

impl<D: Disk> Window<D> {
    /// A window on `length` bytes from `start` on.
    ///
    /// # Errors
    /// `OutOfBounds` when it does not lie within `disk`.
    pub fn new(disk: D, start: u64, length: u64) -> Result<Self> {
        check_range(start, length, disk.len())?;
        Ok(Self { disk, start, length })
    }

    /// Where in the disk below the window begins, in bytes.
    pub fn start(&self) -> u64 {
        self.start
    }
}

impl<D: Disk> Disk for Window<D> {
    fn len(&self) -> u64 {
        self.length
    }

    fn logical_block_size(&self) -> u32 {
        self.disk.logical_block_size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(offset, buf.len() as u64, self.length)?;
        self.disk.read_at(buf, self.start + offset)
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        check_range(offset, 1, self.length)?;
        let extent = self.disk.extent_at(self.start + offset)?;
        if extent.length == 0 {
            return Err(Error::corrupt("a run of no length was reported").at_offset(self.start + offset));
        }
        Ok(Extent { length: extent.length.min(self.length - offset), ..extent })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MemDisk, testing};

    #[test]
    fn conforms() {
        let bytes = testing::pattern(20_000, 3);
        let window = Window::new(MemDisk::from(bytes.clone()), 513, 15_000).unwrap();
        testing::check_disk(&window, &bytes[513..15_513], 4);
        assert_eq!(window.start(), 513);
    }

    #[test]
    fn a_window_past_the_end_is_refused_without_overflow() {
        let disk = MemDisk::zeroed(1000);
        assert!(Window::new(&disk, 500, 501).is_err());
        assert!(Window::new(&disk, u64::MAX, 2).is_err());
        assert!(Window::new(&disk, 1000, 0).is_ok());
    }
}
