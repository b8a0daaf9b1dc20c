//! [`Layered`]: a disk made of a mapping over files, and of what lies below it.
//!
//! A format answers one question, [`Layer::map`]: where are the bytes at this offset, and how far does that
//! hold? Reading, joining of neighbours, decompression of whole units with a small cache, and falling through
//! to the backing disk are the same for every format and live here.

use super::access::ImageFile;
use firn_disk::{Disk, Error, Extent, ExtentKind, Result, SharedDisk, check_range};
use lru::LruCache;
use std::fmt::Debug;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of unpacked units kept for each layer, at least one unit.
const UNPACKED_BYTES: u64 = 2 << 20;

/// Where the bytes of a run are.
#[derive(Debug, Clone, Copy)]
pub(super) enum Place<'a> {
    /// In `file` from byte `at` on, as they are.
    Stored { file: &'a ImageFile, at: u64 },
    /// Somewhere in a compressed unit: from byte `into` of what it unpacks to.
    Packed(Unit, u64),
    /// Nowhere: they are zeros.
    Zero,
    /// Not in this layer.
    Below,
}

/// A compressed unit (a cluster, a grain): what a format needs to find it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Unit {
    /// Which of the layer's files holds it.
    pub(super) file: u32,
    /// The format's own word for where it lies.
    pub(super) word: u64,
    /// Offset on the disk of its first byte.
    pub(super) start: u64,
    /// How many bytes it must give.
    pub(super) length: u64,
}

/// A run of bytes in one place; at least one byte long.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run<'a> {
    pub(super) place: Place<'a>,
    pub(super) length: u64,
}

/// A format's mapping.
pub(super) trait Layer: Debug + Send + Sync {
    /// Length of the disk in bytes.
    fn len(&self) -> u64;

    /// The sector size of the disk in bytes, where the format records one.
    fn logical_block_size(&self) -> u32 {
        512
    }

    /// Bytes that the largest compressed unit unpacks to; 0 when there are none.
    fn unit_bytes(&self) -> u64;

    /// Where the bytes from `offset` on are; `offset` is below [`len`](Self::len). Runs may be cut short.
    fn map(&self, offset: u64) -> Result<Run<'_>>;

    /// Unpacks `unit` into `buf`, whose length is that of the unit.
    fn unpack(&self, unit: Unit, buf: &mut [u8]) -> Result<()>;
}

/// A layer over an optional disk below, as a disk.
#[derive(Debug)]
pub(super) struct Layered<L> {
    layer: L,
    below: Option<SharedDisk>,
    unpacked: Mutex<LruCache<Unit, Arc<[u8]>>>,
}

impl<L: Layer> Layered<L> {
    pub(super) fn new(layer: L, below: Option<SharedDisk>) -> Self {
        let units = UNPACKED_BYTES.checked_div(layer.unit_bytes()).unwrap_or(1);
        let units = usize::try_from(units).ok().and_then(NonZeroUsize::new).unwrap_or(NonZeroUsize::MIN);
        Self { layer, below, unpacked: Mutex::new(LruCache::new(units)) }
    }

    /// The run at `offset`, clipped to the disk.
    fn run(&self, offset: u64) -> Result<Run<'_>> {
        let run = self.layer.map(offset)?;
        if run.length == 0 {
            return Err(Error::corrupt("a run of no length was mapped").at_offset(offset));
        }
        let length = run.length.min(self.layer.len() - offset);
        if let Place::Stored { file, at } = run.place {
            file.check_stored(at, length)?;
        }
        Ok(Run { length, ..run })
    }

    /// Joins the runs that follow `run` in the file without a gap, until `most` bytes.
    fn join<'a>(&'a self, mut run: Run<'a>, offset: u64, most: u64) -> Result<Run<'a>> {
        while let Place::Stored { file, at } = run.place
            && run.length < most
            && offset + run.length < self.layer.len()
        {
            let next = self.run(offset + run.length)?;
            match next.place {
                Place::Stored { file: next_file, at: next_at }
                    if file.identity() == next_file.identity() && at.checked_add(run.length) == Some(next_at) =>
                {
                    run.length += next.length;
                }
                _ => break,
            }
        }
        run.length = run.length.min(most);
        Ok(run)
    }

    fn read_unit(&self, unit: Unit, into: u64, buf: &mut [u8]) -> Result<()> {
        if into == 0 && buf.len() as u64 == unit.length {
            return self.layer.unpack(unit, buf);
        }
        let cached = self.unpacked.lock().unwrap_or_else(PoisonError::into_inner).get(&unit).cloned();
        let bytes = match cached {
            Some(bytes) => bytes,
            None => {
                let mut bytes = vec![0; usize::try_from(unit.length).unwrap_or(usize::MAX)];
                self.layer.unpack(unit, &mut bytes)?;
                let bytes: Arc<[u8]> = bytes.into();
                self.unpacked.lock().unwrap_or_else(PoisonError::into_inner).put(unit, bytes.clone());
                bytes
            }
        };
        let start = usize::try_from(into).unwrap_or(usize::MAX);
        let piece = start.checked_add(buf.len()).and_then(|end| bytes.get(start..end));
        let piece = piece.ok_or_else(|| Error::corrupt("a compressed unit is shorter than its mapping says"))?;
        buf.copy_from_slice(piece);
        Ok(())
    }

    fn read_below(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let Some(below) = &self.below else {
            buf.fill(0);
            return Ok(());
        };
        let present = usize::try_from(below.len().saturating_sub(offset)).unwrap_or(usize::MAX).min(buf.len());
        let (now, rest) = buf.split_at_mut(present);
        rest.fill(0);
        if now.is_empty() { Ok(()) } else { below.read_at(now, offset) }
    }
}

impl<L: Layer> Disk for Layered<L> {
    fn len(&self) -> u64 {
        self.layer.len()
    }

    fn logical_block_size(&self) -> u32 {
        self.layer.logical_block_size()
    }

    fn read_at(&self, mut buf: &mut [u8], mut offset: u64) -> Result<()> {
        check_range(offset, buf.len() as u64, self.len())?;
        while !buf.is_empty() {
            let run = self.join(self.run(offset)?, offset, buf.len() as u64)?;
            let count = usize::try_from(run.length).unwrap_or(usize::MAX).min(buf.len());
            let (now, later) = buf.split_at_mut(count);
            match run.place {
                Place::Stored { file, at } => file.read_stored(now, at)?,
                Place::Packed(unit, into) => self.read_unit(unit, into, now)?,
                Place::Zero => now.fill(0),
                Place::Below => self.read_below(now, offset)?,
            }
            buf = later;
            offset += count as u64;
        }
        Ok(())
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        check_range(offset, 1, self.len())?;
        let Run { place, length } = self.run(offset)?;
        let kind = match place {
            Place::Stored { .. } | Place::Packed(..) => ExtentKind::Data,
            Place::Zero => ExtentKind::Zero,
            Place::Below => match &self.below {
                Some(below) if offset < below.len() => {
                    let extent = below.extent_at(offset)?;
                    return Ok(Extent { length: extent.length.min(length), ..extent });
                }
                _ => ExtentKind::Hole,
            },
        };
        Ok(Extent { kind, length })
    }
}
