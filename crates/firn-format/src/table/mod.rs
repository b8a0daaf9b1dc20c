//! Partition tables: GPT and MBR, in sectors of 512 or 4096 bytes.
//!
//! ```text
//! sector 0   MBR: 446 bytes of code, four entries of 16 bytes, 0x55 0xAA
//!            GPT puts a protective entry of type 0xEE there
//! sector 1   GPT header, with a CRC over itself and one over the entries
//! sector 2…  GPT entries, 128 bytes each
//!   …        partitions
//! the end    the backup: GPT entries, and its header in the last sector
//! ```
//!
//! What wins follows Linux: a protective entry says GPT, whatever else the MBR lists (a *hybrid* MBR); without
//! one the MBR is believed. Where Linux gives up, the backup of the GPT is used and [`Table::health`] says so.
//!
//! A disk that begins with the boot sector of a file system ends in 0x55 0xAA as well; it is not taken for a
//! table. Refused: BSD disk labels, Sun, Amiga and Apple maps are not tables to firn.

pub(crate) mod crc32;
mod gpt;
mod guid;
mod mbr;
mod renew;
mod types;

pub use guid::Guid;
pub(crate) use renew::renew;
pub use types::PartitionType;

use crate::fs::probe;
use firn_disk::{Disk, Error, Record, Result, SharedDisk, Window};

/// Most partitions that a table may have, as in Linux (`DISK_MAX_PARTS`).
pub const MAX_PARTITIONS: usize = 256;

/// Which kind of table it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableKind {
    /// GUID partition table.
    Gpt,
    /// The PC's first table, also called DOS or msdos.
    Mbr,
}

impl TableKind {
    /// `gpt` or `mbr`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gpt => "gpt",
            Self::Mbr => "mbr",
        }
    }
}

/// A partition table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Which kind.
    pub kind: TableKind,
    /// Bytes in the sectors that it counts in: 512 or 4096.
    pub block_size: u32,
    /// GPT's disk GUID, or the MBR's disk signature as eight hexadecimal digits.
    pub uuid: Option<String>,
    /// What is special about it: `hybrid MBR`.
    pub features: Vec<String>,
    /// What is wrong with it, in words. Empty when all is well.
    pub health: Vec<String>,
    /// The partitions in the order of their numbers.
    pub partitions: Vec<Partition>,
}

/// An entry of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Its number as Linux counts: the place in the table from 1 on, logical partitions from 5 on.
    pub number: u32,
    /// Where it begins, in bytes.
    pub start: u64,
    /// Its length in bytes as the table gives it, which may reach past the end of the disk.
    pub length: u64,
    /// What the table says that it holds.
    pub partition_type: PartitionType,
    /// PARTUUID as Linux prints it.
    pub uuid: Option<String>,
    /// PARTLABEL, a name that only GPT has.
    pub label: Option<String>,
    /// Marked as the one to boot from.
    pub bootable: bool,
    /// What is wrong with it, in words. Empty when all is well.
    pub health: Vec<String>,
}

impl Partition {
    /// The partition as a disk. What reaches past the end of `disk` is cut off, as Linux does.
    ///
    /// # Errors
    /// `Unavailable` when all of it lies past the end, as in an image that was cut short; `Corrupt` when it has
    /// no length.
    pub fn open(&self, disk: &SharedDisk) -> Result<Window<SharedDisk>> {
        if self.length == 0 {
            return Err(Error::corrupt(format!("partition {} has no length", self.number)));
        }
        let end = self.start.saturating_add(self.length).min(disk.len());
        let Some(length) = end.checked_sub(self.start).filter(|length| *length > 0) else {
            return Err(Error::new(
                firn_disk::ErrorKind::Unavailable,
                format!("partition {} begins past the end of the disk at {} bytes", self.number, disk.len()),
            )
            .at_offset(self.start)
            .hint("the image was cut short; use a complete copy"));
        };
        Window::new(disk.clone(), self.start, length)
    }

    /// Notes what reaches past the end of a disk of `disk_length` bytes.
    fn check_end(&mut self, disk_length: u64) {
        let end = self.start.saturating_add(self.length);
        if self.start >= disk_length {
            self.health.push("it lies past the end of the disk".into());
        } else if end > disk_length {
            self.health.push(format!("its last {} bytes lie past the end of the disk", end - disk_length));
        }
    }
}

/// The table on `disk`, if there is one.
///
/// The disk's own logical block size is tried first, then the other one. A table without partitions is a
/// table; whether the disk is rather a file system is for the caller to weigh.
///
/// # Errors
/// `Corrupt` when a protective MBR promises a GPT of which neither copy is whole, and what the disk says.
pub fn read(disk: &SharedDisk) -> Result<Option<Table>> {
    if disk.len() < 512 {
        return Ok(None);
    }
    let mut buf = [0; 512];
    let sector = Record::read(disk, &mut buf, 0, "boot sector")?;
    let boot = mbr::Sector::parse(&sector)?;
    let own = disk.logical_block_size();
    let sizes = [own, if own == 4096 { 512 } else { 4096 }];
    match boot {
        Some(boot) if boot.is_protective() => gpt::read(disk, sizes, Some(&boot)).map(Some),
        Some(boot) if !boot.is_empty() => read_mbr(disk, &boot, sizes).map(Some),
        // Without a protective entry a GPT is believed only when nothing else claims the disk.
        boot => match gpt::read_primary(disk, sizes) {
            Some(table) if probe::identify(disk)?.is_none() => Ok(Some(table)),
            _ => Ok(boot.map(|boot| mbr::empty_table(&boot, own))),
        },
    }
}

/// An MBR has no word on its sector size: the size in which its partitions hold something is taken.
fn read_mbr(disk: &SharedDisk, boot: &mbr::Sector, sizes: [u32; 2]) -> Result<Table> {
    let mut table = mbr::read(disk, boot, sizes[0])?;
    if !holds_something(disk, &table) {
        let mut other = mbr::read(disk, boot, sizes[1])?;
        if holds_something(disk, &other) {
            other.health.push(format!("it counts in sectors of {} bytes, unlike its disk", sizes[1]));
            table = other;
        }
    }
    if gpt::read_primary(disk, sizes).is_some() {
        table
            .health
            .push("a GPT is there too, but the MBR has no protective entry for it; ignored, as in Linux".into());
    }
    Ok(table)
}

/// Whether any partition begins with something that is known.
fn holds_something(disk: &SharedDisk, table: &Table) -> bool {
    table.partitions.iter().filter(|partition| !partition.partition_type.is_extended()).any(|partition| {
        let Ok(window) = partition.open(disk) else { return false };
        let window: SharedDisk = std::sync::Arc::new(window);
        matches!(probe::identify(&window), Ok(Some(_)))
    })
}

/// Notes partitions that overlap.
fn check_overlaps(partitions: &mut [Partition]) {
    let mut order: Vec<usize> = (0..partitions.len()).collect();
    order.retain(|&at| partitions.get(at).is_some_and(|part| !part.partition_type.is_extended() && part.length > 0));
    order.sort_by_key(|&at| partitions.get(at).map_or(0, |part| part.start));
    let mut furthest: Option<(u64, u32)> = None;
    for at in order {
        let Some(part) = partitions.get_mut(at) else { continue };
        if let Some((_, number)) = furthest.filter(|(end, _)| part.start < *end) {
            part.health.push(format!("it overlaps partition {number}"));
        }
        let end = part.start.saturating_add(part.length);
        if furthest.is_none_or(|(furthest, _)| end > furthest) {
            furthest = Some((end, part.number));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use firn_disk::{ErrorKind, MemDisk};
    use std::sync::Arc;

    fn partition(number: u32, start: u64, length: u64) -> Partition {
        Partition {
            number,
            start,
            length,
            partition_type: PartitionType::Mbr(0x83),
            uuid: None,
            label: None,
            bootable: false,
            health: vec![],
        }
    }

    #[test]
    fn a_partition_past_the_end_is_cut_or_refused() {
        let disk: SharedDisk = Arc::new(MemDisk::zeroed(1000));
        assert_eq!(partition(1, 512, 100).open(&disk).unwrap().len(), 100);
        let mut long = partition(1, 512, u64::MAX);
        long.check_end(1000);
        assert_eq!(long.open(&disk).unwrap().len(), 488);
        assert!(long.health[0].contains("past the end"), "{:?}", long.health);
        assert_eq!(partition(1, 1000, 1).open(&disk).unwrap_err().kind(), ErrorKind::Unavailable);
    }

    #[test]
    fn overlaps_are_told_even_when_one_holds_the_other() {
        let mut parts = [partition(1, 0, 1000), partition(2, 10, 10), partition(3, 500, 10), partition(4, 1000, 5)];
        check_overlaps(&mut parts);
        let told: Vec<bool> = parts.iter().map(|part| !part.health.is_empty()).collect();
        assert_eq!(told, [false, true, true, false]);
    }

    #[test]
    fn nothing_is_no_table() {
        for length in [0, 511, 512, 4096] {
            let disk: SharedDisk = Arc::new(MemDisk::zeroed(length));
            assert_eq!(read(&disk).unwrap(), None);
        }
    }
}
