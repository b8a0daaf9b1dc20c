//! New UUIDs and serial numbers for file systems and swap space.
//!
//! | | what changes |
//! |---|---|
//! | ext2, ext3, ext4 | the superblock and its copies; see `ext/renew.rs` |
//! | FAT | the serial number in the boot sector and, with FAT32, in its copy |
//! | NTFS | the serial number in the boot sector and in its copy at the end |
//! | swap | the UUID in its header |
//!
//! Everything else is refused by name: XFS, whose log carries the UUID; btrfs and others, which have it in every block.

use super::ext;
use super::probe::{self, Class};
use crate::identity::{Fill, Renewal, random, random_uuid};
use crate::table::Guid;
use firn_disk::{Error, Record, Result, SharedDisk};

/// What changes on `disk`, a partition or volume with a file system or swap space; nothing where there is no
/// identifier.
///
/// # Errors
/// `Unsupported`, by name, for what cannot be changed safely; what the disk says.
pub(crate) fn renew(disk: &SharedDisk, fill: &mut Fill<'_>) -> Result<Renewal> {
    let Some(signature) = probe::identify(disk)? else { return Ok(Renewal::default()) };
    let mut renewal = Renewal::default();
    let kind = signature.kind;
    match (kind, &signature.uuid) {
        ("ext2" | "ext3" | "ext4", _) => {
            let uuid = random_uuid(fill)?;
            let old = ext::renew(disk, uuid, &mut renewal)?;
            renewal.note(kind, old, Guid::from_printed_order(uuid).to_string());
        }
        ("swap", None) if signature.features.iter().any(|feature| feature.contains("suspended")) => {
            return Err(Error::unsupported("swap space that holds a suspended machine"));
        }
        (_, None) => {}
        ("swap", Some(old)) => {
            let uuid = random_uuid(fill)?;
            renewal.patch(1036, uuid);
            renewal.note(kind, old, Guid::from_printed_order(uuid).to_string());
        }
        ("fat12" | "fat16" | "fat32", Some(old)) => {
            let serial = random::<4>(fill)?;
            renew_fat(disk, kind, serial, &mut renewal)?;
            let number = u32::from_le_bytes(serial);
            renewal.note(kind, old, format!("{:04X}-{:04X}", number >> 16, number & 0xFFFF));
        }
        ("ntfs", Some(old)) => {
            let serial = random::<8>(fill)?;
            renew_ntfs(disk, serial, &mut renewal)?;
            renewal.note(kind, old, format!("{:016X}", u64::from_le_bytes(serial)));
        }
        _ => return Err(refusal(kind, signature.class)),
    }
    Ok(renewal)
}

/// Why an identifier stays, and what else can be done about it.
pub(crate) fn refusal(kind: &str, class: Class) -> Error {
    let later = match kind {
        "xfs" => "xfs_admin -U generate",
        "btrfs" => "btrfstune -u",
        "luks1" | "luks2" => "cryptsetup luksUUID",
        "exfat" => "tune.exfat -I",
        _ => "its own tools",
    };
    let what = match class {
        Class::Encrypted => format!("{kind} encryption"),
        Class::Member => format!("a member of {kind}"),
        _ => kind.to_owned(),
    };
    Error::unsupported(format!("firn does not change the identifier of {what}; {later} can, on the copy"))
}

/// Whether `sector` ends as a boot sector does.
fn is_boot(sector: &[u8]) -> bool {
    sector.ends_with(&[0x55, 0xAA])
}

fn renew_fat(disk: &SharedDisk, kind: &str, serial: [u8; 4], renewal: &mut Renewal) -> Result<()> {
    let mut sector = [0; 512];
    let record = Record::read(disk, &mut sector, 0, "boot sector")?;
    let sector_bytes = u64::from(record.le_u16(11)?);
    let place = if kind == "fat32" { 67 } else { 39 };
    renewal.patch(place, serial);
    let copy = if kind == "fat32" { u64::from(record.le_u16(50)?) } else { 0 };
    if copy != 0 && copy != 0xFFFF {
        let at = copy * sector_bytes;
        let mut sector = [0; 512];
        // A copy that is none is left alone.
        if Record::read(disk, &mut sector, at, "boot sector's copy").is_ok() && is_boot(&sector) {
            renewal.patch(at + place, serial);
        }
    }
    Ok(())
}

fn renew_ntfs(disk: &SharedDisk, serial: [u8; 8], renewal: &mut Renewal) -> Result<()> {
    let mut sector = [0; 512];
    let record = Record::read(disk, &mut sector, 0, "boot sector")?;
    let copy = record.le_u64(40)?.checked_mul(u64::from(record.le_u16(11)?));
    renewal.patch(72, serial);
    let mut sector = [0; 512];
    if let Some(at) = copy
        && Record::read(disk, &mut sector, at, "boot sector's copy").is_ok()
        && is_boot(&sector)
        && sector.get(3..11) == Some(b"NTFS    ")
    {
        renewal.patch(at + 72, serial);
    }
    Ok(())
}
