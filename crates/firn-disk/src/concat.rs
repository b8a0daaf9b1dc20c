//! [`Concat`]: disks one after the other, as the extents of a split image or of a linear volume are.

use crate::{Disk, Error, Extent, Result, SharedDisk, check_range};

/// Several disks as one, in order.
#[derive(Debug, Clone)]
pub struct Concat {
    /// Each disk with the offset at which it ends.
    parts: Vec<(u64, SharedDisk)>,
    block_size: u32,
}

impl Concat {
    /// The disks of `parts`, one after the other.
    ///
    /// The logical block size is the largest of theirs.
    ///
    /// # Errors
    /// `Corrupt` when their lengths overflow 64 bits.
    pub fn new(parts: Vec<SharedDisk>) -> Result<Self> {
        let block_size = parts.iter().map(|part| part.logical_block_size()).max().unwrap_or(512);
        let mut end = 0_u64;
        let parts = parts
            .into_iter()
            .filter(|part| !part.is_empty())
            .map(|part| {
                end = end.checked_add(part.len()).ok_or_else(|| Error::corrupt("the parts' lengths overflow"))?;
                Ok((end, part))
            })
            .collect::<Result<_>>()?;
        Ok(Self { parts, block_size })
    }

    /// The part that holds `offset`, and where that part begins. `offset` is below the end.
    fn part_at(&self, offset: u64) -> (usize, u64) {
        let index = self.parts.partition_point(|(end, _)| *end <= offset);
        let start = index.checked_sub(1).map_or(0, |before| self.parts[before].0);
        (index, start)
    }
}

impl Disk for Concat {
    fn len(&self) -> u64 {
        self.parts.last().map_or(0, |(end, _)| *end)
    }

    fn logical_block_size(&self) -> u32 {
        self.block_size
    }

    fn read_at(&self, mut buf: &mut [u8], mut offset: u64) -> Result<()> {
        check_range(offset, buf.len() as u64, self.len())?;
        while !buf.is_empty() {
            let (index, start) = self.part_at(offset);
            let (end, part) = &self.parts[index];
            let count = usize::try_from(end - offset).unwrap_or(usize::MAX).min(buf.len());
            let (now, later) = buf.split_at_mut(count);
            part.read_at(now, offset - start)?;
            buf = later;
            offset += count as u64;
        }
        Ok(())
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        check_range(offset, 1, self.len())?;
        let (index, start) = self.part_at(offset);
        self.parts[index].1.extent_at(offset - start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MemDisk, testing};
    use std::sync::Arc;

    #[test]
    fn conforms_with_empty_parts_in_between() {
        let bytes = testing::pattern(9_000, 5);
        let parts: Vec<SharedDisk> = [&bytes[..1], &[], &bytes[1..4096], &bytes[4096..], &[]]
            .into_iter()
            .map(|part| Arc::new(MemDisk::from(part.to_vec())) as SharedDisk)
            .collect();
        testing::check_disk(&Concat::new(parts).unwrap(), &bytes, 6);
    }

    #[test]
    fn nothing_is_an_empty_disk() {
        let disk = Concat::new(vec![]).unwrap();
        assert!(disk.is_empty());
        assert!(disk.extent_at(0).is_err());
        disk.read_at(&mut [], 0).unwrap();
    }
}
