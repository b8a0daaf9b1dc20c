//! The table of internal snapshots.
//!
//! ```text
//!  0 L1 table u64   8 L1 entries u32   12 id length u16   14 name length u16   16 seconds u32   20 nanoseconds u32
//! 24 guest clock u64   32 VM state u32   36 extra length u32   40 extra: VM state u64, disk size u64, ...
//! then id, name, and padding to 8
//! ```

use super::header::Header;
use crate::image::{InternalSnapshot, access::ImageFile};
use firn_disk::{Disk, Error, Record, Result};

/// QEMU's limit on the number of snapshots.
const COUNT_MAX: u32 = 65_536;
/// QEMU's limit on the table's size in bytes.
const TABLE_MAX: u64 = 64 << 20;
/// QEMU's limit on extra data of one snapshot.
const EXTRA_MAX: u32 = 1024;

/// A snapshot, and where its table is.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) public: InternalSnapshot,
    pub(super) l1_offset: u64,
    pub(super) l1_entries: u32,
}

/// All snapshots of the image, in the order of the table.
pub(super) fn read_table(file: &ImageFile, header: &Header) -> Result<Vec<Entry>> {
    if header.snapshots > COUNT_MAX {
        return Err(Error::corrupt(format!("{} internal snapshots; at most {COUNT_MAX} can be", header.snapshots))
            .in_structure("qcow2 snapshot table"));
    }
    let mut entries = Vec::new();
    let mut at = header.snapshots_offset;
    for _ in 0..header.snapshots {
        let (entry, length) = read_entry(file.disk(), header, at)?;
        entries.push(entry);
        at = at.saturating_add(length);
        if at.saturating_sub(header.snapshots_offset) > TABLE_MAX {
            return Err(Error::corrupt("the table is larger than 64 MiB").in_structure("qcow2 snapshot table"));
        }
    }
    Ok(entries)
}

fn read_entry(disk: &dyn Disk, header: &Header, at: u64) -> Result<(Entry, u64)> {
    const STRUCTURE: &str = "qcow2 snapshot table";
    let mut head = [0; 40];
    let fixed = Record::read(disk, &mut head, at, STRUCTURE)?;
    let (id_length, name_length, extra_length) = (fixed.be_u16(12)?, fixed.be_u16(14)?, fixed.be_u32(36)?);
    if extra_length > EXTRA_MAX {
        return Err(fixed.corrupt(36, format!("{extra_length} bytes of extra data")));
    }
    let extra_length = usize::try_from(extra_length).unwrap_or_default();
    let id_at = 40 + extra_length;
    let name_at = id_at + usize::from(id_length);
    let length = name_at + usize::from(name_length);
    let mut bytes = vec![0; length];
    let record = Record::read(disk, &mut bytes, at, STRUCTURE)?;
    let vm_state_size = if extra_length >= 8 { record.be_u64(40)? } else { u64::from(record.be_u32(32)?) };
    let disk_size = if extra_length >= 16 { record.be_u64(48)? } else { header.size };
    let text = |at, length: u16| -> Result<String> {
        Ok(String::from_utf8_lossy(record.slice(at, usize::from(length))?).into_owned())
    };
    let public = InternalSnapshot {
        id: text(id_at, id_length)?,
        name: text(name_at, name_length)?,
        seconds: record.be_u32(16)?,
        nanoseconds: record.be_u32(20)?,
        vm_state_size,
        disk_size,
    };
    let entry = Entry { public, l1_offset: record.be_u64(0)?, l1_entries: record.be_u32(8)? };
    Ok((entry, (length as u64).next_multiple_of(8)))
}

/// The snapshot that `wanted` names: by its id, or else by its name.
///
/// # Errors
/// `NotFound` with the names that there are; `Invalid` when several have that name.
pub(super) fn find<'a>(entries: &'a [Entry], wanted: &str) -> Result<&'a Entry> {
    if let Some(entry) = entries.iter().find(|entry| entry.public.id == wanted) {
        return Ok(entry);
    }
    let mut named = entries.iter().filter(|entry| entry.public.name == wanted);
    match (named.next(), named.next()) {
        (Some(entry), None) => Ok(entry),
        (Some(_), Some(_)) => {
            Err(Error::invalid(format!("several internal snapshots are named {wanted:?}")).hint("name it by its id"))
        }
        (None, _) => {
            let names: Vec<&str> = entries.iter().map(|entry| entry.public.name.as_str()).take(20).collect();
            let hint = if names.is_empty() {
                "the image holds no internal snapshots".to_owned()
            } else {
                format!("the image holds: {}", names.join(", "))
            };
            Err(Error::not_found(format!("there is no internal snapshot {wanted:?}")).hint(hint))
        }
    }
}
