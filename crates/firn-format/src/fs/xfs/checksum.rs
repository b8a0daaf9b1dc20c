//! Checksums, and what else a structure of version 5 says of itself.
//!
//! Every block carries a crc32c of itself (computed with that field zero, stored little-endian), the place where it
//! should be in units of 512 bytes, the file system's UUID and the inode that it belongs to. Only the places of these
//! fields differ.
//!
//! Source: the kernel's `fs/xfs/libxfs/xfs_cksum.h`, `fs/xfs/libxfs/xfs_da_format.h`.

use super::superblock::Superblock;
use firn_disk::{Record, Result};

/// Where a structure has what it says of itself, in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stamp {
    pub crc: usize,
    pub place: usize,
    pub uuid: usize,
    /// Not where the kernel lets it differ.
    pub owner: Option<usize>,
}

/// A folder's data block.
pub(super) const FOLDER: Stamp = Stamp { crc: 4, place: 8, uuid: 24, owner: Some(40) };
/// A block of an index of names: leaves and nodes of folders and of attributes.
pub(super) const INDEX: Stamp = Stamp { crc: 12, place: 16, uuid: 32, owner: Some(48) };
/// A block of an attribute's value or of a symlink's target.
pub(super) const REMOTE: Stamp = Stamp { crc: 12, place: 40, uuid: 16, owner: Some(32) };
/// A block of a file's map. Exchanging two maps leaves the old owner for a while.
pub(super) const MAP: Stamp = Stamp { crc: 64, place: 24, uuid: 40, owner: None };

/// crc32c of `bytes`, taking the 4 bytes at `at` as zero.
pub(super) fn sum(bytes: &[u8], at: usize) -> u32 {
    let (before, rest) = bytes.split_at_checked(at).unwrap_or((bytes, &[]));
    let after = rest.get(4..).unwrap_or(&[]);
    crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(before), &[0; 4]), after)
}

/// Checks the checksum at `at`.
pub(super) fn check(record: &Record<'_>, at: usize) -> Result<()> {
    let (stored, counted) = (record.le_u32(at)?, sum(record.bytes(), at));
    if stored != counted {
        return Err(record.corrupt(at, format!("the checksum is {stored:#010x}, not {counted:#010x}")));
    }
    Ok(())
}

/// Checks all that a structure of version 5 says of itself; `offset` is where it stands, in bytes.
///
/// `is_patched` says that the log was replayed over it, so that its checksum is not up to date.
pub(super) fn check_stamp(
    superblock: &Superblock,
    record: &Record<'_>,
    stamp: Stamp,
    offset: u64,
    owner: u64,
    is_patched: bool,
) -> Result<()> {
    if !superblock.features.is_v5() {
        return Ok(());
    }
    if !is_patched {
        check(record, stamp.crc)?;
    }
    let place = record.be_u64(stamp.place)?;
    if place != offset / 512 {
        return Err(record.corrupt(stamp.place, format!("a block that belongs at sector {place}")));
    }
    if record.array(stamp.uuid)? != superblock.structure_uuid {
        return Err(record.corrupt(stamp.uuid, "a block of another file system"));
    }
    if let Some(at) = stamp.owner {
        let found = record.be_u64(at)?;
        if found != owner {
            return Err(record.corrupt(at, format!("a block of inode {found}, not {owner}")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_takes_its_own_field_as_zero() {
        let mut bytes = *b"123456789....";
        let expected = crc32c::crc32c(b"123456789\0\0\0\0");
        assert_eq!(sum(&bytes, 9), expected);
        bytes[9..].copy_from_slice(&expected.to_le_bytes());
        check(&Record::new(&bytes, "block", 0), 9).unwrap();
        bytes[0] ^= 1;
        assert!(check(&Record::new(&bytes, "block", 0), 9).is_err());
    }
}
