//! Several copies of the same bytes, of which those that are in sync are read.

use crate::volume::raid::Clean;
use firn_disk::{Disk, Error, ErrorKind, Extent, Record, Result, SharedDisk};

const MIRROR_LOG_MAGIC: u32 = 0x4D69_5272;
/// Where the bits of a mirror log begin.
const MIRROR_LOG_BITS_AT: u64 = 1024;
/// Most bytes of them: regions of 512 KiB on 64 TiB.
const MAX_MIRROR_LOG: u64 = 16 << 20;

/// The log of a mirror (Linux, drivers/md/dm-log.c): magic, version 2, number of regions, and from byte
/// 1024 on a bit for each region that is in sync.
///
/// # Errors
/// `Corrupt` when it is not one, or does not cover `length` bytes; what the disk says.
pub(super) fn read_mirror_log(log: &SharedDisk, region_bytes: u64, length: u64) -> Result<Clean> {
    let mut buf = [0; 16];
    let header = Record::read(log, &mut buf, 0, "mirror log")?;
    if header.le_u32(0)? != MIRROR_LOG_MAGIC {
        return Err(header.corrupt(0, "it has no magic"));
    }
    if header.le_u32(4)? != 2 {
        return Err(header.unsupported(4, format!("version {}", header.le_u32(4)?)));
    }
    let regions = header.le_u64(8)?;
    if region_bytes == 0 || regions.checked_mul(region_bytes).is_none_or(|covered| covered < length) {
        return Err(header.corrupt(8, format!("{regions} regions of {region_bytes} bytes are too few")));
    }
    let bytes = length.div_ceil(region_bytes).div_ceil(8);
    if bytes > MAX_MIRROR_LOG || firn_disk::check_range(MIRROR_LOG_BITS_AT, bytes, log.len()).is_err() {
        return Err(header.corrupt(8, "its bits do not fit into it"));
    }
    let mut bits = vec![0; usize::try_from(bytes).unwrap_or(0)];
    log.read_at(&mut bits, MIRROR_LOG_BITS_AT)?;
    Ok(Clean::Regions { region_bytes, bits })
}

/// Copies of one run of bytes.
#[derive(Debug)]
pub(super) struct Copies {
    /// The copy that is right everywhere; each copy with where it begins on its disk.
    pub(super) primary: Option<(SharedDisk, u64)>,
    /// Those that are right where `clean` says so.
    pub(super) others: Vec<(SharedDisk, u64)>,
    pub(super) clean: Clean,
}

impl Copies {
    /// Fills `buf` from `offset` on, out of the first copy that can.
    pub(super) fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let range = offset..offset.saturating_add(buf.len() as u64);
        let mut failure = None;
        if let Some((disk, at)) = &self.primary {
            match disk.read_at(buf, at.saturating_add(offset)) {
                Ok(()) => return Ok(()),
                Err(error) => failure = Some(error),
            }
        }
        if self.clean.covers(&range) {
            for (disk, at) in &self.others {
                match disk.read_at(buf, at.saturating_add(offset)) {
                    Ok(()) => return Ok(()),
                    Err(error) => failure = failure.or(Some(error)),
                }
            }
        } else if !self.others.is_empty() {
            let what = "the other copies are not known to be in sync here";
            return Err(match failure {
                Some(error) => error.context(what),
                None => Error::new(ErrorKind::Unavailable, what).at_offset(offset),
            });
        }
        Err(failure.unwrap_or_else(|| Error::new(ErrorKind::Unavailable, "no copy is there").at_offset(offset)))
    }

    /// What the primary copy knows; `None` when it knows nothing.
    pub(super) fn extent_at(&self, offset: u64) -> Option<Extent> {
        let (disk, at) = self.primary.as_ref()?;
        disk.extent_at(at.saturating_add(offset)).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use firn_disk::MemDisk;
    use std::sync::Arc;

    #[test]
    fn a_mirror_log_tells_region_by_region() {
        let mut bytes = vec![0; 2048];
        bytes[..4].copy_from_slice(&MIRROR_LOG_MAGIC.to_le_bytes());
        bytes[4] = 2;
        bytes[8] = 10;
        bytes[1024] = 0b1111_0111;
        bytes[1025] = 0b10;
        let log: SharedDisk = Arc::new(MemDisk::from(bytes.clone()));
        let clean = read_mirror_log(&log, 100, 1000).unwrap();
        assert!(clean.covers(&(0..300)) && clean.covers(&(400..800)) && clean.covers(&(900..1000)));
        assert!(!clean.covers(&(299..301)) && !clean.covers(&(800..801)) && !clean.covers(&(0..1000)));
        assert!(!clean.covers(&(5000..5001)), "what the log does not list is not clean");
        assert!(read_mirror_log(&log, 100, 1001).is_err());
        assert!(read_mirror_log(&log, 0, 0).is_err());
        bytes[0] = 0;
        assert!(read_mirror_log(&(Arc::new(MemDisk::from(bytes)) as SharedDisk), 100, 1000).is_err());
    }

    #[test]
    fn another_copy_is_read_only_where_it_is_clean() {
        let broken: SharedDisk = Arc::new(MemDisk::zeroed(0));
        let good: SharedDisk = Arc::new(MemDisk::from((0..100).collect::<Vec<u8>>()));
        let copies = Copies { primary: Some((broken, 0)), others: vec![(good, 10)], clean: Clean::Below(50) };
        let mut buf = [0; 2];
        copies.read_at(&mut buf, 48).unwrap();
        assert_eq!(buf, [58, 59]);
        assert!(copies.read_at(&mut buf, 49).unwrap_err().to_string().contains("not known to be in sync"));
        let none = Copies { primary: None, others: vec![], clean: Clean::Below(0) };
        assert_eq!(none.read_at(&mut buf, 0).unwrap_err().kind(), ErrorKind::Unavailable);
    }
}
