//! Where copies and parity are known to agree with the data.
//!
//! ```text
//! bitmap   0 "bitm"  4 version  8 UUID  24 events  40 length in sectors  48 state  52 bytes of a chunk … 256 bits
//! ```
//! A bit is set before a region is written to and cleared some time after all members have it. Source: Linux,
//! drivers/md/md-bitmap.h.

use firn_disk::{Disk, Record, Result, SharedDisk};
use std::ops::Range;

/// Where the bits of a bitmap begin.
const BITS_AT: u64 = 256;
/// Most bytes of them: regions of 64 KiB on 16 TiB.
const MAX_BITS: u64 = 32 << 20;

/// Where redundancy may be relied on.
#[derive(Debug, Clone)]
pub(crate) enum Clean {
    /// Below this offset.
    Below(u64),
    /// In the regions whose bit is set.
    Regions { region_bytes: u64, bits: Vec<u8> },
}

impl Clean {
    pub(crate) fn covers(&self, range: &Range<u64>) -> bool {
        match self {
            Self::Below(end) => range.end <= *end,
            Self::Regions { region_bytes, bits } => {
                let last = range.end.saturating_sub(1) / region_bytes;
                (range.start / region_bytes..=last).all(|region| {
                    let byte = usize::try_from(region / 8).ok().and_then(|at| bits.get(at));
                    byte.is_some_and(|byte| byte >> (region % 8) & 1 == 1)
                })
            }
        }
    }

    /// What a write-intent bitmap at byte `at` of `disk` says of `length` bytes; `None` when there is none. Anything
    /// that makes its bits unsure (stale, of another version) makes nothing clean.
    ///
    /// # Errors
    /// `Corrupt` when it makes no sense; what the disk says.
    pub(crate) fn read_bitmap(disk: &SharedDisk, at: u64, length: u64) -> Result<Option<Self>> {
        let mut buf = [0; 64];
        let header = Record::read(disk, &mut buf, at, "md bitmap")?;
        if &header.array(0)? != b"bitm" {
            return Ok(None);
        }
        let (version, state, chunk) = (header.le_u32(4)?, header.le_u32(48)?, u64::from(header.le_u32(52)?));
        // State: bit 1 stale, bit 2 a write to it failed.
        if !(3..=4).contains(&version) || state & 0b110 != 0 {
            return Ok(Some(Self::Below(0)));
        }
        if chunk < 512 || !chunk.is_power_of_two() {
            return Err(header.corrupt(52, format!("regions of {chunk} bytes")));
        }
        let bytes = length.div_ceil(chunk).div_ceil(8);
        let start = at.saturating_add(BITS_AT);
        if bytes > MAX_BITS || firn_disk::check_range(start, bytes, disk.len()).is_err() {
            return Err(header.corrupt(40, "its bits do not fit into it"));
        }
        let mut bits = vec![0; usize::try_from(bytes).unwrap_or(0)];
        disk.read_at(&mut bits, start)?;
        bits.iter_mut().for_each(|byte| *byte = !*byte);
        Ok(Some(Self::Regions { region_bytes: chunk, bits }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use firn_disk::MemDisk;
    use std::sync::Arc;

    fn bitmap(change: impl Fn(&mut Vec<u8>)) -> Result<Option<Clean>> {
        let mut bytes = vec![0; 1024];
        bytes[512..516].copy_from_slice(b"bitm");
        bytes[516] = 4;
        bytes[512 + 52..512 + 56].copy_from_slice(&4096_u32.to_le_bytes());
        bytes[512 + 256] = 0b0000_0100;
        change(&mut bytes);
        Clean::read_bitmap(&(Arc::new(MemDisk::from(bytes)) as SharedDisk), 512, 100_000)
    }

    #[test]
    fn a_bitmap_tells_where_writes_may_have_been_going_on() {
        let clean = bitmap(|_| {}).unwrap().unwrap();
        assert!(clean.covers(&(0..8192)) && clean.covers(&(12_288..100_000)));
        assert!(!clean.covers(&(8191..8193)) && !clean.covers(&(12_287..12_288)));
        assert!(bitmap(|bytes| bytes[512] = 0).unwrap().is_none());
        for (at, value) in [(516, 5), (512 + 48, 2), (512 + 48, 4)] {
            let clean = bitmap(|bytes| bytes[at] = value).unwrap().unwrap();
            assert!(!clean.covers(&(0..1)) && clean.covers(&(0..0)));
        }
        assert!(bitmap(|bytes| bytes[512 + 53] = 1).is_err());
        assert!(bitmap(|bytes| bytes.truncate(768)).is_err());
    }
}
