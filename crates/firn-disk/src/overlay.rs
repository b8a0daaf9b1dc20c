//! [`Overlay`]: a disk some of whose bytes are replaced, as the replay of a journal in memory does.
//!
//! The disk below is never written to. A replaced range either carries its own bytes or points at another
//! place of the disk below (a journal's copy of a block), so that a large journal costs little memory.

use crate::{Disk, Error, Extent, ExtentKind, Result, check_range};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

/// A disk with patches on top. Later patches win over earlier ones.
#[derive(Debug, Clone)]
pub struct Overlay<D> {
    below: D,
    /// Patches by where they start; they never overlap.
    patches: BTreeMap<u64, Patch>,
}

#[derive(Debug, Clone)]
struct Patch {
    length: u64,
    content: Content,
}

#[derive(Debug, Clone)]
enum Content {
    /// The bytes from `skip` on.
    Bytes { bytes: Arc<[u8]>, skip: usize },
    /// The bytes of the disk below from `at` on.
    Moved { at: u64 },
}

impl Patch {
    /// What is left of the patch without its first `count` bytes.
    fn after(&self, count: u64) -> Self {
        let content = match &self.content {
            Content::Bytes { bytes, skip } => {
                Content::Bytes { bytes: bytes.clone(), skip: skip + usize::try_from(count).unwrap_or(usize::MAX) }
            }
            Content::Moved { at } => Content::Moved { at: at + count },
        };
        Self { length: self.length - count, content }
    }
}

impl<D: Disk> Overlay<D> {
    /// `below`, unchanged so far.
    pub fn new(below: D) -> Self {
        Self { below, patches: BTreeMap::new() }
    }

    /// The disk below.
    pub fn below(&self) -> &D {
        &self.below
    }

    /// Whether nothing is replaced.
    pub fn is_unchanged(&self) -> bool {
        self.patches.is_empty()
    }

    /// The replaced ranges as start and length in bytes, in order.
    pub fn replaced(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.patches.iter().map(|(&start, patch)| (start, patch.length))
    }

    /// Replaces the bytes at `offset`.
    ///
    /// # Errors
    /// `OutOfBounds` when they reach past the end of the disk below.
    pub fn replace(&mut self, offset: u64, bytes: Arc<[u8]>) -> Result<()> {
        let length = bytes.len() as u64;
        check_range(offset, length, self.below.len())?;
        self.insert(offset, Patch { length, content: Content::Bytes { bytes, skip: 0 } });
        Ok(())
    }

    /// Makes `length` bytes at `offset` read as those of the disk below at `from`.
    ///
    /// # Errors
    /// `OutOfBounds` when either range reaches past the end of the disk below.
    pub fn redirect(&mut self, offset: u64, length: u64, from: u64) -> Result<()> {
        check_range(offset, length, self.below.len())?;
        check_range(from, length, self.below.len())?;
        self.insert(offset, Patch { length, content: Content::Moved { at: from } });
        Ok(())
    }

    fn insert(&mut self, offset: u64, patch: Patch) {
        if patch.length == 0 {
            return;
        }
        let end = offset + patch.length;
        // The one that begins before us may reach into us, or around us.
        if let Some((start, before)) = self.patches.range(..offset).next_back().map(|(s, p)| (*s, p.clone())) {
            let before_end = start + before.length;
            if before_end > offset {
                self.patches.insert(start, Patch { length: offset - start, ..before.clone() });
                if before_end > end {
                    self.patches.insert(end, before.after(end - start));
                }
            }
        }
        while let Some((start, covered)) = self.patches.range(offset..end).next().map(|(s, p)| (*s, p.clone())) {
            self.patches.remove(&start);
            if start + covered.length > end {
                self.patches.insert(end, covered.after(end - start));
            }
        }
        self.patches.insert(offset, patch);
    }

    /// The patch at `offset` with how far into it that is, or else where the next patch starts.
    fn find(&self, offset: u64) -> std::result::Result<(&Patch, u64), u64> {
        if let Some((start, patch)) = self.patches.range(..=offset).next_back()
            && offset - start < patch.length
        {
            return Ok((patch, offset - start));
        }
        let next = self.patches.range((Bound::Excluded(offset), Bound::Unbounded)).next();
        Err(next.map_or(u64::MAX, |(start, _)| *start))
    }
}

impl<D: Disk> Disk for Overlay<D> {
    fn len(&self) -> u64 {
        self.below.len()
    }

    fn logical_block_size(&self) -> u32 {
        self.below.logical_block_size()
    }

    fn read_at(&self, mut buf: &mut [u8], mut offset: u64) -> Result<()> {
        check_range(offset, buf.len() as u64, self.len())?;
        while !buf.is_empty() {
            let found = self.find(offset);
            let known = match found {
                Ok((patch, into)) => patch.length - into,
                Err(next) => next - offset,
            };
            let count = usize::try_from(known).unwrap_or(usize::MAX).min(buf.len());
            let (now, later) = buf.split_at_mut(count);
            match found {
                Ok((patch, into)) => match &patch.content {
                    Content::Bytes { bytes, skip } => {
                        let from = skip + usize::try_from(into).unwrap_or(usize::MAX);
                        now.copy_from_slice(&bytes[from..from + count]);
                    }
                    Content::Moved { at } => self.below.read_at(now, at + into)?,
                },
                Err(_) => self.below.read_at(now, offset)?,
            }
            buf = later;
            offset += count as u64;
        }
        Ok(())
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        check_range(offset, 1, self.len())?;
        match self.find(offset) {
            Ok((patch, into)) => Ok(Extent { kind: ExtentKind::Data, length: patch.length - into }),
            Err(next) => {
                let extent = self.below.extent_at(offset)?;
                if extent.length == 0 {
                    return Err(Error::corrupt("a run of no length was reported").at_offset(offset));
                }
                Ok(Extent { length: extent.length.min(next - offset), ..extent })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MemDisk, testing};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn equals_a_vector_with_the_same_patches(
            patches in prop::collection::vec((0_u64..4000, 1_usize..700, any::<Option<u16>>()), 0..40),
            seed in any::<u64>(),
        ) {
            let original = testing::pattern(5000, seed);
            let mut model = original.clone();
            let mut overlay = Overlay::new(MemDisk::from(original.clone()));
            for (index, (offset, length, from)) in patches.into_iter().enumerate() {
                let start = usize::try_from(offset).unwrap();
                let content = match from {
                    Some(from) => {
                        let from = usize::from(from) % (5000 - length);
                        overlay.redirect(offset, length as u64, from as u64).unwrap();
                        original[from..from + length].to_vec()
                    }
                    None => {
                        let bytes = testing::pattern(length, index as u64);
                        overlay.replace(offset, bytes.as_slice().into()).unwrap();
                        bytes
                    }
                };
                model[start..start + length].copy_from_slice(&content);
            }
            testing::check_disk(&overlay, &model, seed);
        }
    }

    #[test]
    fn patches_outside_are_refused() {
        let mut overlay = Overlay::new(MemDisk::zeroed(100));
        assert!(overlay.replace(99, [0, 0].as_slice().into()).is_err());
        assert!(overlay.redirect(0, 2, 99).is_err());
        assert!(overlay.redirect(u64::MAX, 2, 0).is_err());
        assert!(overlay.is_unchanged());
    }
}
