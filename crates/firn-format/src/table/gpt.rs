//! GPT (UEFI 2.10, chapter 5): a header and an array of entries, each under a CRC-32, twice.
//!
//! ```text
//! header  0 "EFI PART"   8 revision  12 header size  16 CRC of the header with this field zero
//!        24 own sector  32 sector of the other header  40 first and 48 last usable sector
//!        56 disk GUID   72 sector of the entries  80 their number  84 size of one  88 CRC of them all
//! entry   0 type GUID   16 unique GUID  32 first and 40 last sector  48 attributes  56 name, 36 × UTF-16
//! ```

use super::{Guid, MAX_PARTITIONS, Partition, PartitionType, Table, TableKind, check_overlaps, crc32, mbr};
use firn_disk::{Disk, Error, Record, Result, SharedDisk};

/// Most bytes of entries that are read: 32,768 entries of 128 bytes.
const MAX_ENTRY_BYTES: u64 = 4 << 20;

/// One whole copy of the table.
#[derive(Debug)]
pub(super) struct Copy {
    block_size: u32,
    pub(super) disk_guid: Guid,
    pub(super) other_sector: u64,
    pub(super) entries_sector: u64,
    entries_checksum: u32,
    pub(super) entry_size: usize,
    pub(super) entries: Vec<u8>,
}

/// The table that a protective MBR promises, or, with `boot` absent, one whose MBR was lost.
pub(super) fn read(disk: &SharedDisk, sizes: [u32; 2], boot: Option<&mbr::Sector>) -> Result<Table> {
    let mut reasons = Vec::new();
    for block_size in sizes {
        match read_copy(disk, block_size, 1) {
            Ok(copy) => return Ok(with_backup(disk, copy, boot)),
            Err(error) => reasons.push(error),
        }
    }
    for (block_size, reason) in sizes.into_iter().zip(&reasons) {
        // The last sector, or where a primary header whose entries alone are bad says.
        let last = (disk.len() / u64::from(block_size)).checked_sub(1);
        let named = read_header(disk, block_size, 1).ok().map(|header| header.other_sector);
        for sector in [last, named].into_iter().flatten().filter(|sector| *sector > 1) {
            if let Ok(copy) = read_copy(disk, block_size, sector) {
                let mut table = to_table(disk, &copy, boot);
                table.health.push(format!("the primary table is damaged ({reason}); the backup is used"));
                return Ok(table);
            }
        }
    }
    let reason = reasons.into_iter().next().unwrap_or_else(|| Error::corrupt("no header was found"));
    Err(reason.context("the MBR promises a GPT, but neither it nor its backup is whole"))
}

/// The primary copy alone, of a disk whose MBR does not speak of it.
pub(super) fn read_primary(disk: &SharedDisk, sizes: [u32; 2]) -> Option<Table> {
    let copy = sizes.into_iter().find_map(|size| read_copy(disk, size, 1).ok())?;
    let mut table = with_backup(disk, copy, None);
    table.health.push("the protective MBR is missing".into());
    Some(table)
}

/// Checks a good primary copy against the backup, which must not change what is read.
fn with_backup(disk: &SharedDisk, copy: Copy, boot: Option<&mbr::Sector>) -> Table {
    let mut table = to_table(disk, &copy, boot);
    let last = (disk.len() / u64::from(copy.block_size)).saturating_sub(1);
    match read_copy(disk, copy.block_size, copy.other_sector) {
        Err(error) => table.health.push(format!("the backup table is damaged ({error})")),
        Ok(backup) if backup.entries_checksum != copy.entries_checksum => {
            table.health.push("the backup table differs from the primary one".into());
        }
        Ok(_) if copy.other_sector != last => {
            table.health.push("the backup table is not at the end of the disk, which was resized".into());
        }
        Ok(_) => {}
    }
    table
}

/// The checked fields of a header.
struct Header {
    disk_guid: Guid,
    other_sector: u64,
    entries_sector: u64,
    entry_count: u32,
    entry_size: u32,
    entries_checksum: u32,
}

fn read_header(disk: &SharedDisk, block_size: u32, sector: u64) -> Result<Header> {
    let structure = "GPT header";
    let offset = sector
        .checked_mul(u64::from(block_size))
        .ok_or_else(|| Error::corrupt("its sector number overflows").in_structure(structure))?;
    let mut buf = vec![0; usize::try_from(block_size).unwrap_or(512)];
    let record = Record::read(disk, &mut buf, offset, structure)?;
    if &record.array(0)? != b"EFI PART" {
        return Err(record.corrupt(0, "there is no header"));
    }
    let size = usize::try_from(record.le_u32(12)?).unwrap_or(usize::MAX);
    if size < 92 {
        return Err(record.corrupt(12, format!("its size of {size} bytes is too small")));
    }
    let bytes = record.slice(0, size)?;
    let (before, after) = (bytes.get(..16).unwrap_or_default(), bytes.get(20..).unwrap_or_default());
    let computed = !crc32::update(crc32::update(crc32::update(u32::MAX, before), &[0; 4]), after);
    if computed != record.le_u32(16)? {
        return Err(record.corrupt(16, "its checksum does not match"));
    }
    if record.le_u32(8)? >> 16 != 1 {
        return Err(record.unsupported(8, format!("revision {:#x}", record.le_u32(8)?)));
    }
    if record.le_u64(24)? != sector {
        return Err(record.corrupt(24, "it is meant for another sector"));
    }
    Ok(Header {
        disk_guid: Guid::from_disk(record.array(56)?),
        other_sector: record.le_u64(32)?,
        entries_sector: record.le_u64(72)?,
        entry_count: record.le_u32(80)?,
        entry_size: record.le_u32(84)?,
        entries_checksum: record.le_u32(88)?,
    })
}

/// The copy whose header is in `sector`, both checksums checked.
pub(super) fn read_copy(disk: &SharedDisk, block_size: u32, sector: u64) -> Result<Copy> {
    let structure = "GPT entries";
    let header = read_header(disk, block_size, sector)?;
    let bytes = u64::from(header.entry_count) * u64::from(header.entry_size);
    if header.entry_size < 128 || !header.entry_size.is_multiple_of(128) || bytes > MAX_ENTRY_BYTES {
        let what = format!("{} entries of {} bytes are not possible", header.entry_count, header.entry_size);
        return Err(Error::corrupt(what).in_structure(structure));
    }
    let offset = header
        .entries_sector
        .checked_mul(u64::from(block_size))
        .ok_or_else(|| Error::corrupt("their sector number overflows").in_structure(structure))?;
    // Before memory is taken for them.
    firn_disk::check_range(offset, bytes, disk.len())
        .map_err(|_| Error::corrupt("they lie past the end of the disk").in_structure(structure).at_offset(offset))?;
    let mut entries = vec![0; usize::try_from(bytes).unwrap_or(0)];
    Record::read(disk, &mut entries, offset, structure)?;
    if crc32::checksum(&entries) != header.entries_checksum {
        return Err(Error::corrupt("their checksum does not match").in_structure(structure).at_offset(offset));
    }
    Ok(Copy {
        block_size,
        disk_guid: header.disk_guid,
        other_sector: header.other_sector,
        entries_sector: header.entries_sector,
        entries_checksum: header.entries_checksum,
        entry_size: usize::try_from(header.entry_size).unwrap_or(128),
        entries,
    })
}

fn to_table(disk: &SharedDisk, copy: &Copy, boot: Option<&mbr::Sector>) -> Table {
    let mut table = Table {
        kind: TableKind::Gpt,
        block_size: copy.block_size,
        uuid: Some(copy.disk_guid.to_string()),
        features: vec![],
        health: vec![],
        partitions: vec![],
    };
    if boot.is_some_and(mbr::Sector::is_hybrid) {
        table.features.push("hybrid MBR".into());
    }
    if copy.block_size != disk.logical_block_size() {
        table.health.push(format!("it counts in sectors of {} bytes, unlike its disk", copy.block_size));
    }
    for (bytes, number) in copy.entries.chunks_exact(copy.entry_size).zip(1_u32..) {
        let record = Record::new(bytes, "GPT entry", 0);
        // A record of at least 128 bytes has all fields that are read of it.
        let Ok(Some(mut partition)) = to_partition(&record, number, copy.block_size) else { continue };
        if table.partitions.len() == MAX_PARTITIONS {
            table.health.push(format!("it has more than {MAX_PARTITIONS} partitions; the rest is left out"));
            break;
        }
        partition.check_end(disk.len());
        table.partitions.push(partition);
    }
    check_overlaps(&mut table.partitions);
    table
}

/// The partition of an entry, `None` when the entry is not in use.
fn to_partition(record: &Record<'_>, number: u32, block_size: u32) -> Result<Option<Partition>> {
    let partition_type = Guid::from_disk(record.array(0)?);
    if partition_type == Guid::NIL {
        return Ok(None);
    }
    let block = u64::from(block_size);
    let (first, last) = (record.le_u64(32)?, record.le_u64(40)?);
    let mut health = vec![];
    let count = match last.checked_sub(first) {
        Some(count) => count.saturating_add(1),
        None => {
            health.push("it ends before it begins".into());
            0
        }
    };
    let name: Vec<u16> = record
        .slice(56, 72)?
        .chunks_exact(2)
        .map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
        .take_while(|unit| *unit != 0)
        .collect();
    let name = String::from_utf16_lossy(&name);
    Ok(Some(Partition {
        number,
        start: first.saturating_mul(block),
        length: count.saturating_mul(block),
        partition_type: PartitionType::Gpt(partition_type),
        uuid: Some(Guid::from_disk(record.array(16)?).to_string()),
        label: (!name.is_empty()).then_some(name),
        // Attribute bit 2: the legacy BIOS boots from it.
        bootable: record.le_u64(48)? & 4 != 0,
        health,
    }))
}
