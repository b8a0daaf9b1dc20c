//! [`Disk`] and [`WriteDisk`]: the two traits that everything reads and serves.

use crate::{Error, Result};
use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

/// A disk that is shared between layers and threads.
pub type SharedDisk = Arc<dyn Disk>;

/// What is known of a run of bytes without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ExtentKind {
    /// Allocated, content unknown until read.
    Data,
    /// Allocated, and known to read as zeros.
    Zero,
    /// Not allocated, and reads as zeros.
    Hole,
}

/// A run of bytes of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Extent {
    /// What is known of the run.
    pub kind: ExtentKind,
    /// Its length in bytes, at least 1.
    pub length: u64,
}

/// Anything with a length in bytes that can be read at an offset.
///
/// Reads are positional, may come from many threads at once, and block until done. The content does not
/// change while it is read, unless the disk is also a [`WriteDisk`]; what a read sees of a write that runs at
/// the same time is either the old or the new byte.
pub trait Disk: Debug + Send + Sync {
    /// Length in bytes. Not always a multiple of the block size.
    fn len(&self) -> u64;

    /// Whether the disk has no bytes at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The sector size that tables on this disk count in: 512 or 4096 bytes.
    fn logical_block_size(&self) -> u32 {
        512
    }

    /// Fills the whole of `buf` with the bytes from `offset` on, or fails.
    ///
    /// # Errors
    /// `OutOfBounds` when `offset + buf.len()` is past [`len`](Self::len), whatever lies there; otherwise what
    /// the layer below says. After an error the content of `buf` is undefined.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()>;

    /// The run that starts at `offset`, as far as it is known to be of one kind.
    ///
    /// The run may be cut short anywhere, so two neighbours may be of the same kind; it never reaches past
    /// [`len`](Self::len). The default knows nothing: all data.
    ///
    /// # Errors
    /// `OutOfBounds` when `offset` is not below [`len`](Self::len).
    fn extent_at(&self, offset: u64) -> Result<Extent> {
        check_range(offset, 1, self.len())?;
        Ok(Extent { kind: ExtentKind::Data, length: self.len() - offset })
    }
}

/// Whether a write must be durable before it returns (*force unit access*).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fua {
    /// Durable after the next flush.
    No,
    /// Durable when the call returns.
    Yes,
}

/// Whether zeroing may give the space back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MayUnmap {
    /// The range stays allocated.
    No,
    /// The range may become a hole.
    Yes,
}

/// A [`Disk`] that can be written.
///
/// Durability: a write, zero or discard that returned is durable after a later [`flush`](Self::flush)
/// returned `Ok`. After a flush failed, nothing since the last good one may be trusted.
pub trait WriteDisk: Disk {
    /// Writes the whole of `buf` at `offset`, or fails.
    ///
    /// # Errors
    /// `OutOfBounds` when it reaches past the end (nothing is written); otherwise what the layer below says.
    fn write_at(&self, buf: &[u8], offset: u64, fua: Fua) -> Result<()>;

    /// Makes a range read as zeros.
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at).
    fn zero(&self, range: Range<u64>, may_unmap: MayUnmap) -> Result<()>;

    /// Says that the content of a range is no longer needed; what it reads as afterwards is the old bytes or
    /// zeros.
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at).
    fn discard(&self, range: Range<u64>) -> Result<()>;

    /// Makes every write that returned before this call durable.
    ///
    /// # Errors
    /// What the layer below says; see the trait's word on durability.
    fn flush(&self) -> Result<()>;

    /// Changes the length. What is added reads as zeros.
    ///
    /// # Errors
    /// `Unsupported` when the length is fixed.
    fn resize(&self, length: u64) -> Result<()>;
}

/// `Ok` when `length` bytes at `offset` lie within `end`, without overflow.
///
/// # Errors
/// `OutOfBounds` otherwise.
pub fn check_range(offset: u64, length: u64, end: u64) -> Result<()> {
    match offset.checked_add(length) {
        Some(stop) if stop <= end => Ok(()),
        _ => Err(Error::out_of_bounds(offset, length, end)),
    }
}

/// Calls `visit` with every run of `range`, neighbours of one kind joined, each clipped to the range.
///
/// # Errors
/// What [`Disk::extent_at`] or `visit` says, and `Corrupt` if a disk answers a run of no length.
pub fn visit_extents(
    disk: &dyn Disk,
    range: Range<u64>,
    mut visit: impl FnMut(ExtentKind, Range<u64>) -> Result<()>,
) -> Result<()> {
    check_range(range.start, range.end.saturating_sub(range.start), disk.len())?;
    let mut pending: Option<(ExtentKind, Range<u64>)> = None;
    let mut at = range.start;
    while at < range.end {
        let extent = disk.extent_at(at)?;
        if extent.length == 0 {
            return Err(Error::corrupt("a run of no length was reported").at_offset(at));
        }
        let stop = at.saturating_add(extent.length).min(range.end);
        match &mut pending {
            Some((kind, run)) if *kind == extent.kind => run.end = stop,
            _ => {
                if let Some((kind, run)) = pending.take() {
                    visit(kind, run)?;
                }
                pending = Some((extent.kind, at..stop));
            }
        }
        at = stop;
    }
    match pending {
        Some((kind, run)) => visit(kind, run),
        None => Ok(()),
    }
}

macro_rules! forward_disk {
    ($($pointer:ty),*) => {$(
        impl<D: Disk + ?Sized> Disk for $pointer {
            fn len(&self) -> u64 {
                (**self).len()
            }
            fn logical_block_size(&self) -> u32 {
                (**self).logical_block_size()
            }
            fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
                (**self).read_at(buf, offset)
            }
            fn extent_at(&self, offset: u64) -> Result<Extent> {
                (**self).extent_at(offset)
            }
        }
    )*};
}
forward_disk!(&D, Box<D>, Arc<D>);
