//! New identifiers for a copy that is to stand beside its original: what the parts of a disk share for it.
//!
//! Each format says which bytes change (`Patch`) and what was what ([`IdChange`]); nothing is written. Putting the
//! patches where they belong is [`Layers::renewed`](crate::layers::Layers::renewed)'s.

use firn_disk::Result;

/// Where random bytes come from.
pub type Fill<'a> = dyn FnMut(&mut [u8]) -> Result<()> + 'a;

/// Bytes that are to stand at `offset` of a disk, partition or volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Patch {
    pub(crate) offset: u64,
    pub(crate) bytes: Vec<u8>,
}

/// An identifier that is changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdChange {
    /// Of what: `disk`, `partition 2`, `volume group vg0`, `ext4`.
    pub what: String,
    /// Where that is, as `#vda2`.
    pub address: String,
    /// As it was, in its usual spelling.
    pub old: String,
    /// As it becomes.
    pub new: String,
}

/// What one part changes.
#[derive(Debug, Default)]
pub(crate) struct Renewal {
    pub(crate) patches: Vec<Patch>,
    pub(crate) changes: Vec<IdChange>,
}

impl Renewal {
    pub(crate) fn patch(&mut self, offset: u64, bytes: impl Into<Vec<u8>>) {
        self.patches.push(Patch { offset, bytes: bytes.into() });
    }

    pub(crate) fn note(&mut self, what: impl Into<String>, old: impl Into<String>, new: impl Into<String>) {
        let (what, old, new) = (what.into(), old.into(), new.into());
        self.changes.push(IdChange { what, address: String::new(), old, new });
    }
}

/// `N` random bytes.
pub(crate) fn random<const N: usize>(fill: &mut Fill<'_>) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    fill(&mut bytes)?;
    Ok(bytes)
}

/// A random UUID (version 4) in printed order.
pub(crate) fn random_uuid(fill: &mut Fill<'_>) -> Result<[u8; 16]> {
    let mut uuid: [u8; 16] = random(fill)?;
    let [_, _, _, _, _, _, version, _, variant, ..] = &mut uuid;
    *version = *version & 0x0f | 0x40;
    *variant = *variant & 0x3f | 0x80;
    Ok(uuid)
}
