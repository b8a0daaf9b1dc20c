//! [`MemDisk`]: a disk in memory, for tests and for small structures that were unpacked.

use crate::{Disk, Extent, ExtentKind, Fua, MayUnmap, Result, WriteDisk, check_range};
use std::ops::Range;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// A disk whose bytes are a `Vec`. Every byte is reported as data.
#[derive(Debug, Default)]
pub struct MemDisk {
    bytes: RwLock<Vec<u8>>,
    block_size: u32,
}

impl MemDisk {
    /// A disk of `length` zero bytes.
    pub fn zeroed(length: usize) -> Self {
        Self::from(vec![0; length])
    }

    /// The same disk with another logical block size in bytes.
    #[must_use]
    pub fn with_logical_block_size(mut self, bytes: u32) -> Self {
        self.block_size = bytes;
        self
    }

    /// A copy of all its bytes.
    pub fn to_vec(&self) -> Vec<u8> {
        self.bytes().clone()
    }

    // A panic of another thread cannot leave a Vec half changed in a way that matters here.
    fn bytes(&self) -> RwLockReadGuard<'_, Vec<u8>> {
        self.bytes.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn bytes_mut(&self) -> RwLockWriteGuard<'_, Vec<u8>> {
        self.bytes.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl From<Vec<u8>> for MemDisk {
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes: RwLock::new(bytes), block_size: 512 }
    }
}

/// `offset..offset + length` as indexes into a buffer of `end` bytes.
fn indexes(offset: u64, length: usize, end: usize) -> Result<Range<usize>> {
    check_range(offset, length as u64, end as u64)?;
    // Checked above: the offset is not past a usize's worth of bytes.
    let start = usize::try_from(offset).unwrap_or(usize::MAX);
    Ok(start..start + length)
}

impl Disk for MemDisk {
    fn len(&self) -> u64 {
        self.bytes().len() as u64
    }

    fn logical_block_size(&self) -> u32 {
        self.block_size
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let bytes = self.bytes();
        buf.copy_from_slice(&bytes[indexes(offset, buf.len(), bytes.len())?]);
        Ok(())
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        let length = self.len();
        check_range(offset, 1, length)?;
        Ok(Extent { kind: ExtentKind::Data, length: length - offset })
    }
}

impl WriteDisk for MemDisk {
    fn write_at(&self, buf: &[u8], offset: u64, _fua: Fua) -> Result<()> {
        let mut bytes = self.bytes_mut();
        let range = indexes(offset, buf.len(), bytes.len())?;
        bytes[range].copy_from_slice(buf);
        Ok(())
    }

    fn zero(&self, range: Range<u64>, _may_unmap: MayUnmap) -> Result<()> {
        let mut bytes = self.bytes_mut();
        let end = bytes.len();
        check_range(range.start, range.end.saturating_sub(range.start), end as u64)?;
        let length = usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(usize::MAX);
        let range = indexes(range.start, length, end)?;
        bytes[range].fill(0);
        Ok(())
    }

    fn discard(&self, range: Range<u64>) -> Result<()> {
        self.zero(range, MayUnmap::Yes)
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn resize(&self, length: u64) -> Result<()> {
        let length =
            usize::try_from(length).map_err(|_| crate::Error::unsupported("a disk in memory of this length"))?;
        self.bytes_mut().resize(length, 0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn conforms() {
        let bytes = testing::pattern(10_000, 1);
        testing::check_disk(&MemDisk::from(bytes.clone()), &bytes, 1);
        testing::check_write_disk(&MemDisk::zeroed(70_000), 2, 500);
    }
}
