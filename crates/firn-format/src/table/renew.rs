//! New identifiers for a partition table: the GUIDs of a GPT's disk and partitions, in both copies, and the disk
//! signature of an MBR.

use super::{Guid, Table, TableKind, crc32, gpt};
use crate::identity::{Fill, Renewal, random, random_uuid};
use firn_disk::{Disk, Error, Record, Result, SharedDisk};

const SIGNATURE_AT: u64 = 0x1B8;

/// What changes of `table`, which is that of `disk`.
///
/// # Errors
/// `Unsupported` when one copy of a GPT is damaged or differs from the other; what the disk says.
pub(crate) fn renew(disk: &SharedDisk, table: &Table, fill: &mut Fill<'_>) -> Result<Renewal> {
    let mut renewal = Renewal::default();
    let mut buf = [0; 4];
    let old = Record::read(disk, &mut buf, SIGNATURE_AT, "MBR")?.le_u32(0)?;
    // Zero is no signature, and nothing asks for one.
    if old != 0 {
        let new = u32::from_le_bytes(random(fill)?).max(1);
        renewal.patch(SIGNATURE_AT, new.to_le_bytes());
        if table.kind == TableKind::Mbr {
            renewal.note("disk signature", format!("{old:08x}"), format!("{new:08x}"));
            for partition in &table.partitions {
                let suffix = format!("-{:02x}", partition.number);
                let (old, new) = (format!("{old:08x}{suffix}"), format!("{new:08x}{suffix}"));
                renewal.note(format!("partition {}", partition.number), old, new);
            }
        }
    }
    if table.kind == TableKind::Gpt {
        renew_gpt(disk, table.block_size, fill, &mut renewal)?;
    }
    Ok(renewal)
}

fn renew_gpt(disk: &SharedDisk, block_size: u32, fill: &mut Fill<'_>, renewal: &mut Renewal) -> Result<()> {
    let damaged = |error: Error| {
        Error::unsupported("one of the two copies of the table is damaged").because(error).hint("repair it first")
    };
    let primary = gpt::read_copy(disk, block_size, 1).map_err(damaged)?;
    let backup = gpt::read_copy(disk, block_size, primary.other_sector).map_err(damaged)?;
    if primary.entries != backup.entries || primary.disk_guid != backup.disk_guid {
        return Err(Error::unsupported("the two copies of the table differ").hint("repair it first"));
    }
    let disk_guid = Guid::from_printed_order(random_uuid(fill)?);
    renewal.note("disk", primary.disk_guid.to_string(), disk_guid.to_string());
    let mut entries = primary.entries.clone();
    for (entry, number) in entries.chunks_exact_mut(primary.entry_size).zip(1_u32..) {
        let record = Record::new(entry, "GPT entry", 0);
        if Guid::from_disk(record.array(0)?) == Guid::NIL {
            continue;
        }
        let (old, new) = (Guid::from_disk(record.array(16)?), Guid::from_printed_order(random_uuid(fill)?));
        renewal.note(format!("partition {number}"), old.to_string(), new.to_string());
        if let Some(field) = entry.get_mut(16..32) {
            field.copy_from_slice(&new.to_disk());
        }
    }
    let sum = crc32::checksum(&entries);
    for (copy, sector) in [(&primary, 1), (&backup, primary.other_sector)] {
        let header_at = sector.saturating_mul(u64::from(block_size));
        renewal.patch(header_at, header(disk, header_at, block_size, disk_guid, sum)?);
        renewal.patch(copy.entries_sector.saturating_mul(u64::from(block_size)), entries.clone());
    }
    Ok(())
}

/// The header at `at` with another GUID and another checksum of the entries.
fn header(disk: &SharedDisk, at: u64, block_size: u32, disk_guid: Guid, entries_sum: u32) -> Result<Vec<u8>> {
    let mut block = vec![0; usize::try_from(block_size).unwrap_or(512)];
    disk.read_at(&mut block, at)?;
    let size = usize::try_from(Record::new(&block, "GPT header", at).le_u32(12)?).unwrap_or(usize::MAX);
    block.truncate(size);
    let mut put = |place: usize, bytes: &[u8]| {
        if let Some(field) = block.get_mut(place..place + bytes.len()) {
            field.copy_from_slice(bytes);
        }
    };
    put(56, &disk_guid.to_disk());
    put(88, &entries_sum.to_le_bytes());
    put(16, &[0; 4]);
    let sum = crc32::checksum(&block).to_le_bytes();
    if let Some(field) = block.get_mut(16..20) {
        field.copy_from_slice(&sum);
    }
    Ok(block)
}
