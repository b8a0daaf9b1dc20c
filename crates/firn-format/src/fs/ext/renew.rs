//! A new UUID for ext2, ext3 and ext4.
//!
//! Checksums of metadata_csum start from the UUID unless metadata_csum_seed is set. So that not every structure must
//! be written anew, that feature is set and keeps the old start, as `tune2fs -O metadata_csum_seed` does; Linux knows
//! it since 4.4. The checksums of uninit_bg are computed anew, in each copy of the group descriptors.
//!
//! Refused, as tune2fs does or more: a journal that must be replayed first, an external journal (which lists its file
//! systems by UUID), stable_inodes (keys of encrypted files come from the UUID), uninit_bg with meta_bg.

use super::features::{compat, incompat, ro_compat};
use super::superblock::{self, Superblock};
use super::volume::group_checksum;
use crate::identity::Renewal;
use firn_disk::{Error, Record, Result, SharedDisk};

const STABLE_INODES: u32 = 0x800;
/// Bytes of group descriptors that are looked at in one copy: those of 16 TiB in groups of 128 MiB.
const DESCRIPTORS_MAX: u64 = 8 << 20;

/// Gives `disk` the UUID `uuid`; answers the old one in its usual spelling.
///
/// # Errors
/// `Unsupported`; `Corrupt` when the superblock is damaged; what the disk says.
pub(crate) fn renew(disk: &SharedDisk, uuid: [u8; 16], renewal: &mut Renewal) -> Result<String> {
    let (superblock, damage) = Superblock::read(&**disk)?;
    if let Some(damage) = damage {
        return Err(damage.hint("repair the file system first, with e2fsck"));
    }
    check(&superblock)?;
    for group in (0..superblock.groups).filter(|group| superblock.group_has_superblock(*group)) {
        let start = superblock.group_start(group).saturating_mul(superblock.block_bytes());
        // The first copy stands behind the boot block, whatever the size of a block.
        let at = if group == 0 { superblock::OFFSET } else { start };
        let mut raw = vec![0; superblock::LENGTH];
        if Record::read(disk, &mut raw, at, "ext superblock").is_err() {
            continue;
        }
        let record = Record::new(&raw, "ext superblock", at);
        // A copy that is none, or another file system's that was here before, is left alone.
        if record.le_u16(0x38)? != 0xEF53 || record.array::<16>(0x68)? != superblock.uuid {
            continue;
        }
        let copy = Superblock { raw, ..superblock.clone() };
        renewal.patch(at, copy.changed(|raw| put_uuid(raw, &superblock, uuid)));
        renew_descriptors(disk, &superblock, group, uuid, renewal)?;
    }
    Ok(superblock.uuid_text())
}

fn check(superblock: &Superblock) -> Result<()> {
    let features = superblock.features;
    let refuse = |message: &str| Err(Error::unsupported(message));
    if features.incompat(incompat::RECOVER) {
        return refuse("its journal was not replayed, which would bring the old UUID back");
    }
    if features.compat(compat::HAS_JOURNAL) && superblock.journal_inode == 0 {
        return refuse("its journal is on another disk, which knows it by its UUID");
    }
    if features.compat(STABLE_INODES) {
        return refuse("the keys of its encrypted files come from the UUID (stable_inodes)");
    }
    Ok(())
}

fn put_uuid(raw: &mut [u8], superblock: &Superblock, uuid: [u8; 16]) {
    let incompatible = raw.get(0x60..0x64).and_then(<[u8]>::first_chunk).map_or(0, |word| u32::from_le_bytes(*word));
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(field) = raw.get_mut(at..at + bytes.len()) {
            field.copy_from_slice(bytes);
        }
    };
    put(0x68, &uuid);
    if superblock.has_checksums() && !superblock.features.incompat(incompat::CSUM_SEED) {
        put(0x60, &(incompatible | incompat::CSUM_SEED).to_le_bytes());
        put(0x270, &superblock.checksum_seed.to_le_bytes());
    }
}

/// The descriptors behind the superblock of `group`, where their checksums start from the UUID itself.
fn renew_descriptors(
    disk: &SharedDisk,
    superblock: &Superblock,
    group: u32,
    uuid: [u8; 16],
    renewal: &mut Renewal,
) -> Result<()> {
    if superblock.has_checksums() || !superblock.features.ro_compat(ro_compat::GDT_CSUM) {
        return Ok(());
    }
    if superblock.features.incompat(incompat::META_BG) {
        return Err(Error::unsupported("uninit_bg together with meta_bg"));
    }
    let size = usize::from(superblock.descriptor_size);
    let length = u64::from(superblock.groups) * size as u64;
    if length > DESCRIPTORS_MAX {
        return Err(Error::unsupported(format!("uninit_bg with {} groups", superblock.groups)));
    }
    let boot = u64::from(superblock.block_size == 1024 && group == 0 && superblock.first_data_block == 0);
    let at = (superblock.group_start(group) + 1 + boot).saturating_mul(superblock.block_bytes());
    let mut raw = vec![0; usize::try_from(length).unwrap_or_default()];
    Record::read(disk, &mut raw, at, "ext group descriptors")?;
    let renewed = Superblock { uuid, ..superblock.clone() };
    for (descriptor, number) in raw.chunks_exact_mut(size).zip(0_u32..) {
        let stored = Record::new(descriptor, "ext group descriptor", at).le_u16(0x1E)?;
        // In the copies old ones may be anything; what was wrong stays wrong.
        if group_checksum(superblock, number, descriptor) == Some(stored)
            && let Some(sum) = group_checksum(&renewed, number, descriptor)
            && let Some(field) = descriptor.get_mut(0x1E..0x20)
        {
            field.copy_from_slice(&sum.to_le_bytes());
        }
    }
    renewal.patch(at, raw);
    Ok(())
}
