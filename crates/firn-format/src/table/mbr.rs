//! MBR: four primary entries, and a chain of extended boot records for the logical ones.
//!
//! ```text
//! 0x1B8  disk signature, 4 bytes
//! 0x1BE  four entries: flag (0x80 boots), CHS start, type, CHS end, first sector, number of sectors
//! 0x1FE  0x55 0xAA
//! ```
//! An extended boot record is such a sector too: its first entry is a logical partition, counted from the
//! record itself; its extended entry is the next record, counted from the extended partition. Numbers and
//! the tolerance for odd records follow Linux (block/partitions/msdos.c).

use super::{MAX_PARTITIONS, Partition, PartitionType, Table, TableKind, check_overlaps};
use firn_disk::{Disk, Record, Result, SharedDisk};
use std::collections::BTreeSet;

const ENTRIES_AT: usize = 0x1BE;
/// Records without a partition that are followed in a row, as in Linux.
const MAX_EMPTY_RECORDS: usize = 100;

/// An entry in sectors.
#[derive(Debug, Clone, Copy)]
struct Entry {
    flag: u8,
    type_byte: u8,
    first: u32,
    count: u32,
}

impl Entry {
    fn is_extended(self) -> bool {
        PartitionType::Mbr(self.type_byte).is_extended()
    }
}

/// The first sector, if it looks like an MBR.
#[derive(Debug)]
pub(super) struct Sector {
    signature: u32,
    entries: [Entry; 4],
}

impl Sector {
    /// `None` when it is not an MBR: no magic, impossible flags, or the boot sector of a file system.
    pub(super) fn parse(record: &Record<'_>) -> Result<Option<Self>> {
        if record.array(510)? != [0x55, 0xAA] {
            return Ok(None);
        }
        let sector = Self { signature: record.le_u32(0x1B8)?, entries: entries(record)? };
        let flags_are_possible = sector.entries.iter().all(|entry| matches!(entry.flag, 0 | 0x80));
        if !flags_are_possible || (is_boot_record(record)? && !sector.is_sound()) {
            return Ok(None);
        }
        Ok(Some(sector))
    }

    /// Whether it stands before a GPT.
    pub(super) fn is_protective(&self) -> bool {
        self.entries.iter().any(|entry| entry.type_byte == 0xEE)
    }

    /// Whether it lists more than the protective entry.
    pub(super) fn is_hybrid(&self) -> bool {
        self.is_protective() && self.entries.iter().any(|entry| entry.type_byte != 0xEE && entry.count > 0)
    }

    /// Whether it lists nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.entries.iter().all(|entry| entry.count == 0)
    }

    /// Whether the entries could be somebody's: used ones have a type, a start, and do not overlap.
    fn is_sound(&self) -> bool {
        let used: Vec<_> = self.entries.iter().filter(|entry| entry.count > 0 || entry.type_byte > 0).collect();
        let mut ranges: Vec<_> = used
            .iter()
            .map(|entry| (u64::from(entry.first), u64::from(entry.first) + u64::from(entry.count)))
            .collect();
        ranges.sort_unstable();
        !used.is_empty()
            && used.iter().all(|entry| entry.count > 0 && entry.type_byte > 0 && entry.first > 0)
            && ranges.windows(2).all(|pair| matches!(pair, [(_, end), (start, _)] if end <= start))
    }

    fn uuid(&self) -> Option<String> {
        (self.signature != 0).then(|| format!("{:08x}", self.signature))
    }
}

fn entries(record: &Record<'_>) -> Result<[Entry; 4]> {
    let mut entries = [Entry { flag: 0, type_byte: 0, first: 0, count: 0 }; 4];
    for (entry, at) in entries.iter_mut().zip((ENTRIES_AT..).step_by(16)) {
        *entry = Entry {
            flag: record.u8(at)?,
            type_byte: record.u8(at + 4)?,
            first: record.le_u32(at + 8)?,
            count: record.le_u32(at + 12)?,
        };
    }
    Ok(entries)
}

/// Whether the sector is the boot sector of FAT, exFAT, NTFS or BitLocker rather than an MBR.
fn is_boot_record(record: &Record<'_>) -> Result<bool> {
    let jumps = match record.array(0)? {
        [0xEB, _, 0x90] | [0xE9, _, _] => true,
        [_, _, _] => false,
    };
    let named = matches!(&record.array(3)?, b"NTFS    " | b"EXFAT   " | b"-FVE-FS-");
    let sector_bytes = record.le_u16(11)?;
    let parameters = matches!(sector_bytes, 512 | 1024 | 2048 | 4096)
        && record.u8(13)?.is_power_of_two()
        && record.le_u16(14)? > 0
        && matches!(record.u8(16)?, 1 | 2)
        && matches!(record.u8(21)?, 0xF0 | 0xF8..);
    Ok(jumps && (named || parameters))
}

/// A table that lists nothing.
pub(super) fn empty_table(boot: &Sector, block_size: u32) -> Table {
    Table { kind: TableKind::Mbr, block_size, uuid: boot.uuid(), features: vec![], health: vec![], partitions: vec![] }
}

/// All partitions of the table that begins with `boot`.
pub(super) fn read(disk: &SharedDisk, boot: &Sector, block_size: u32) -> Result<Table> {
    let mut table = empty_table(boot, block_size);
    for (entry, number) in boot.entries.iter().zip(1..) {
        if entry.count > 0 {
            push(&mut table, number, u64::from(entry.first), *entry);
        }
    }
    for entry in boot.entries.iter().filter(|entry| entry.count > 0 && entry.is_extended()) {
        follow_chain(disk, &mut table, *entry)?;
    }
    check_overlaps(&mut table.partitions);
    for partition in &mut table.partitions {
        partition.check_end(disk.len());
    }
    Ok(table)
}

/// Adds a partition that begins at sector `first` of the disk.
fn push(table: &mut Table, number: u32, first: u64, entry: Entry) {
    let block = u64::from(table.block_size);
    let uuid = table.uuid.as_ref().map(|disk| format!("{disk}-{number:02x}"));
    table.partitions.push(Partition {
        number,
        start: first.saturating_mul(block),
        length: u64::from(entry.count).saturating_mul(block),
        partition_type: PartitionType::Mbr(entry.type_byte),
        uuid,
        label: None,
        bootable: entry.flag == 0x80,
        health: vec![],
    });
}

/// Adds the logical partitions of the extended partition `outer`. What is wrong with the chain ends it and is
/// told in the table's health.
fn follow_chain(disk: &SharedDisk, table: &mut Table, outer: Entry) -> Result<()> {
    let block = u64::from(table.block_size);
    let outer_first = u64::from(outer.first);
    let outer_end = outer_first + u64::from(outer.count);
    let (mut at, mut length) = (outer_first, u64::from(outer.count));
    let mut seen = BTreeSet::new();
    let mut empty = 0;
    loop {
        if !seen.insert(at) || empty > MAX_EMPTY_RECORDS {
            table.health.push(format!("the chain of extended boot records goes in a circle at sector {at}"));
            return Ok(());
        }
        let offset = at.saturating_mul(block);
        let mut buf = [0; 512];
        if firn_disk::check_range(offset, 512, disk.len()).is_err() {
            table.health.push(format!("the extended boot record at sector {at} lies past the end of the disk"));
            return Ok(());
        }
        let record = Record::read(disk, &mut buf, offset, "extended boot record")?;
        if record.array(510)? != [0x55, 0xAA] {
            table.health.push(format!("the extended boot record at sector {at} has no magic"));
            return Ok(());
        }
        let list = entries(&record)?;
        let before = table.partitions.len();
        for (index, entry) in list.iter().enumerate().filter(|(_, entry)| entry.count > 0 && !entry.is_extended()) {
            let first = at + u64::from(entry.first);
            let end = first + u64::from(entry.count);
            // The third and fourth entries hold garbage at times.
            let sound = u64::from(entry.first) + u64::from(entry.count) <= length && end <= outer_end;
            if index < 2 || sound {
                let logical = table.partitions.iter().filter(|partition| partition.number > 4).count();
                let Some(number) = u32::try_from(logical + 5).ok().filter(|_| logical + 5 <= MAX_PARTITIONS) else {
                    table.health.push(format!("it has more than {MAX_PARTITIONS} partitions; the rest is left out"));
                    return Ok(());
                };
                push(table, number, first, *entry);
            }
        }
        empty = if table.partitions.len() == before { empty + 1 } else { 0 };
        let Some(next) = list.iter().find(|entry| entry.count > 0 && entry.is_extended()) else { return Ok(()) };
        at = outer_first + u64::from(next.first);
        length = u64::from(next.count);
    }
}
