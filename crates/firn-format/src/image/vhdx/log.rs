//! Replay of a VHDX's log, in memory.
//!
//! ```text
//! entry       0 "loge"  4 CRC-32C  8 length u32  12 tail u32  16 sequence u64  24 descriptors u32  32 log GUID
//!            48 flushed length u64  56 last length u64; descriptors from 64 on, 32 bytes each; then their data sectors
//! data        0 "desc"  4 last 4 bytes  8 first 8 bytes  16 place u64  24 sequence u64
//! zeros       0 "zero"  8 length u64  16 place u64  24 sequence u64
//! data sector 0 "data"  4 sequence, high  8 bytes 8 to 4092 of the sector  4092 sequence, low
//! ```
//! The log is a ring. The active sequence is the valid one with the highest number: entries with numbers that follow
//! each other, of which the last one's tail is the first. Where the header names a log and no sequence is valid, the
//! file is damaged. The bytes of data sectors are read from where they stand, so a large log costs little memory.
//!
//! Source: MS-VHDX, 2.3, and 2.3.3 on replay.

use super::header::{Header, check_sum};
use crate::image::access::ImageFile;
use crate::table::Guid;
use firn_disk::{Disk, Error, Extent, ExtentKind, Overlay, Record, Result, SharedDisk, check_range};
use std::sync::Arc;

const SECTOR: u64 = 4096;
/// Hyper-V and QEMU make logs of 1 MiB.
const LOG_MAX: u64 = 256 << 20;
/// Zeros of a log are kept in memory; they stand for tables, never for blocks.
const ZEROS_MAX: u64 = 64 << 20;
const ENTRY_HEADER: usize = 64;
const DESCRIPTOR: usize = 32;

/// `file` with what its log holds written into it, in memory; `None` when the log is empty.
///
/// # Errors
/// `Corrupt` when there is a log without a valid sequence, or the file is shorter than its log says.
pub(super) fn replay(file: &ImageFile, header: &Header) -> Result<Option<ImageFile>> {
    if header.log_guid == Guid::NIL {
        return Ok(None);
    }
    let corrupt = |message: String| Error::corrupt(message).in_structure("VHDX log").at_offset(header.log);
    if header.log_length > LOG_MAX {
        return Err(Error::unsupported(format!("a log of {} bytes", header.log_length)).in_structure("VHDX log"));
    }
    file.check_stored(header.log, header.log_length)?;
    let log = Log { file, header };
    let entries =
        log.active()?.ok_or_else(|| corrupt("the log is damaged, and the file is not whole without".into()))?;
    let length = file.disk().len();
    // Offsets in the file are below 2^63, and so is what it may grow to.
    let flushed = entries.last().map_or(0, |head| head.flushed);
    let last = entries.iter().fold(length, |last, entry| entry.last.max(last));
    if flushed > length || i64::try_from(last).is_err() {
        return Err(corrupt(format!("the file has {length} bytes, but {flushed} were written before"))
            .hint("the file is cut short: take another copy"));
    }
    let mut overlay = Overlay::new(Grown { below: file.shared_disk(), length: last });
    let mut zeros = ZEROS_MAX;
    for entry in &entries {
        log.apply(entry, &mut overlay, &mut zeros)?;
    }
    Ok(Some(file.with_content(Arc::new(overlay))))
}

/// A valid entry.
#[derive(Debug, Clone, Copy)]
struct Entry {
    /// Where in the log it begins.
    at: u64,
    length: u64,
    tail: u64,
    sequence: u64,
    descriptors: u64,
    flushed: u64,
    last: u64,
}

struct Log<'a> {
    file: &'a ImageFile,
    header: &'a Header,
}

impl Log<'_> {
    /// `length` bytes of the ring from `at` on.
    fn read(&self, at: u64, length: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(length).unwrap_or_default()];
        let until_end = usize::try_from(self.header.log_length - at).unwrap_or(usize::MAX).min(bytes.len());
        let (first, wrapped) = bytes.split_at_mut(until_end);
        self.file.read_stored(first, self.header.log + at)?;
        self.file.read_stored(wrapped, self.header.log)?;
        Ok(bytes)
    }

    /// The entry at `at`, if a valid one stands there. `budget` is how many bytes may still be summed up.
    fn entry(&self, at: u64, budget: &mut u64) -> Result<Option<Entry>> {
        let head = self.read(at, SECTOR)?;
        let record = Record::new(&head, "VHDX log entry", self.header.log + at);
        if record.slice(0, 4)? != b"loge" || Guid::from_disk(record.array(32)?) != self.header.log_guid {
            return Ok(None);
        }
        let (length, tail) = (u64::from(record.le_u32(8)?), u64::from(record.le_u32(12)?));
        let entry = Entry {
            at,
            length,
            tail,
            sequence: record.le_u64(16)?,
            descriptors: u64::from(record.le_u32(24)?),
            flushed: record.le_u64(48)?,
            last: record.le_u64(56)?,
        };
        let is_sound = length >= SECTOR
            && length.is_multiple_of(SECTOR)
            && length <= self.header.log_length
            && tail.is_multiple_of(SECTOR)
            && tail < self.header.log_length
            && entry.sequence > 0
            && ENTRY_HEADER as u64 + entry.descriptors * DESCRIPTOR as u64 <= length;
        if !is_sound {
            return Ok(None);
        }
        *budget = budget.checked_sub(length).ok_or_else(|| {
            Error::corrupt("its entries lie over one another").in_structure("VHDX log").at_offset(self.header.log)
        })?;
        let whole = self.read(at, length)?;
        let record = Record::new(&whole, "VHDX log entry", self.header.log + at);
        Ok((check_sum(&record, b"loge").is_ok() && self.is_whole(&record, &entry)).then_some(entry))
    }

    /// Whether all descriptors and data sectors of an entry carry its number.
    fn is_whole(&self, record: &Record<'_>, entry: &Entry) -> bool {
        let sectors = record.bytes().chunks_exact(4096);
        let mut data = sectors.skip(usize::try_from(descriptor_sectors(entry)).unwrap_or(usize::MAX));
        let low = entry.sequence & 0xffff_ffff;
        (0..usize::try_from(entry.descriptors).unwrap_or_default()).all(|number| {
            let at = ENTRY_HEADER + number * DESCRIPTOR;
            let is_numbered = record.le_u64(at + 24).is_ok_and(|sequence| sequence == entry.sequence);
            let has_data = match record.slice(at, 4) {
                Ok(b"zero") => true,
                Ok(b"desc") => data.next().is_some_and(|sector| {
                    let sector = Record::new(sector, "VHDX log data", 0);
                    sector.slice(0, 4).is_ok_and(|signature| signature == b"data")
                        && sector.le_u32(4).is_ok_and(|high| u64::from(high) == entry.sequence >> 32)
                        && sector.le_u32(4092).is_ok_and(|found| u64::from(found) == low)
                }),
                _ => false,
            };
            is_numbered && has_data
        })
    }

    /// The entries of the active sequence from its tail on, in order.
    fn active(&self) -> Result<Option<Vec<Entry>>> {
        let ring = self.header.log_length;
        let mut budget = ring.saturating_mul(8);
        let (mut best, mut start): (Option<Vec<Entry>>, u64) = (None, 0);
        while start < ring {
            let mut sequence: Vec<Entry> = Vec::new();
            let (mut at, mut covered) = (start, 0);
            while let Some(entry) = self.entry(at, &mut budget)? {
                let follows = sequence.last().is_none_or(|last| last.sequence.checked_add(1) == Some(entry.sequence));
                if !follows || covered + entry.length > ring {
                    break;
                }
                covered += entry.length;
                at = (at + entry.length) % ring;
                sequence.push(entry);
            }
            let number = |sequence: &[Entry]| sequence.last().map_or(0, |entry| entry.sequence);
            let tail = sequence.last().and_then(|head| sequence.iter().position(|entry| entry.at == head.tail));
            if let Some(tail) = tail
                && number(&sequence) > best.as_deref().map_or(0, number)
            {
                best = Some(sequence.split_off(tail));
            }
            // Past the end of the ring every place has been looked at.
            start += covered.max(SECTOR);
        }
        Ok(best)
    }

    /// Writes what `entry` holds; `zeros` is how many bytes may still be zeroed.
    fn apply(&self, entry: &Entry, overlay: &mut Overlay<Grown>, zeros: &mut u64) -> Result<()> {
        let head = self.read(entry.at, descriptor_sectors(entry) * SECTOR)?;
        let record = Record::new(&head, "VHDX log entry", self.header.log + entry.at);
        let mut data = entry.at + descriptor_sectors(entry) * SECTOR;
        for number in 0..usize::try_from(entry.descriptors).unwrap_or_default() {
            let at = ENTRY_HEADER + number * DESCRIPTOR;
            let place = record.le_u64(at + 16)?;
            let outside = |_| record.corrupt(at + 16, format!("it leads outside the file, to byte {place}"));
            if record.slice(at, 4)? == b"zero" {
                let length = record.le_u64(at + 8)?;
                check_range(place, length, overlay.len()).map_err(outside)?;
                let left = zeros.checked_sub(length);
                *zeros = left.ok_or_else(|| record.unsupported(at + 8, "a log that zeroes more than 64 MiB"))?;
                overlay.replace(place, vec![0; usize::try_from(length).unwrap_or_default()].into())?;
                continue;
            }
            check_range(place, SECTOR, overlay.len()).map_err(outside)?;
            // A sector of the ring never stands over its end.
            let from = self.header.log + data % self.header.log_length;
            overlay.replace(place, record.slice(at + 8, 8)?.into())?;
            overlay.redirect(place + 8, SECTOR - 12, from + 8)?;
            overlay.replace(place + SECTOR - 4, record.slice(at + 4, 4)?.into())?;
            data += SECTOR;
        }
        Ok(())
    }
}

/// Sectors that an entry's header and descriptors fill.
fn descriptor_sectors(entry: &Entry) -> u64 {
    (ENTRY_HEADER as u64 + entry.descriptors * DESCRIPTOR as u64).div_ceil(SECTOR)
}

/// A file that is longer than it is, by zeros.
#[derive(Debug)]
struct Grown {
    below: SharedDisk,
    length: u64,
}

impl Disk for Grown {
    fn len(&self) -> u64 {
        self.length
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(offset, buf.len() as u64, self.length)?;
        let present = usize::try_from(self.below.len().saturating_sub(offset)).unwrap_or(usize::MAX).min(buf.len());
        let (now, rest) = buf.split_at_mut(present);
        rest.fill(0);
        if now.is_empty() { Ok(()) } else { self.below.read_at(now, offset) }
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        check_range(offset, 1, self.length)?;
        if offset < self.below.len() {
            return self.below.extent_at(offset);
        }
        Ok(Extent { kind: ExtentKind::Hole, length: self.length - offset })
    }
}
