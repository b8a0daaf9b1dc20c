//! Keys: one master key per key domain, everything else derived from it.
//!
//! ```text
//! master (32 random bytes)
//!   HKDF-SHA256, salt = key domain, info = "firn 0 <name>"
//!   ├─ structure   seals tree nodes, manifests, notes; derives the header's authentication
//!   ├─ data        seals chunks
//!   ├─ id          keys the BLAKE3 that names chunks and nodes
//!   ├─ cut         keys the BLAKE3 that decides where chunks are cut
//!   └─ journal     for live volumes
//! ```
//! The master key is never used to seal anything but is itself sealed in key slots ([`slot`]). A slot of scope
//! *structure* holds the structure key alone: enough to check trees and to prune, not to read a byte of a disk.

pub(crate) mod recovery;
pub(crate) mod slot;

pub use recovery::RecoveryKey;
pub use slot::{Credential, KeySlotInfo, NewCredential, Scope, SlotKind};

use firn_disk::{Error, ErrorKind, Result};
use ring::hkdf::{HKDF_SHA256, KeyType, Salt};
use uuid::Uuid;
use zeroize::Zeroizing;

/// A secret of 32 bytes, wiped when dropped.
pub(crate) type Secret = Zeroizing<[u8; 32]>;

struct Bytes32;

impl KeyType for Bytes32 {
    fn len(&self) -> usize {
        32
    }
}

/// HKDF-SHA256 (RFC 5869): 32 bytes from `secret` for one purpose.
pub(crate) fn derive(secret: &[u8], salt: &[u8], purpose: &[u8]) -> Result<Secret> {
    let mut key = Zeroizing::new([0; 32]);
    Salt::new(HKDF_SHA256, salt)
        .extract(secret)
        .expand(&[purpose], Bytes32)
        .and_then(|okm| okm.fill(key.as_mut()))
        .map_err(|_| Error::new(ErrorKind::Invalid, "a key could not be derived"))?;
    Ok(key)
}

/// The keys of a domain, as far as the slot that was opened gives them.
pub(crate) struct Keys {
    pub(crate) domain: Uuid,
    pub(crate) structure: Secret,
    full: Option<FullKeys>,
}

/// The keys that a slot of scope *structure* does not give.
pub(crate) struct FullKeys {
    pub(crate) master: Secret,
    pub(crate) data: Secret,
    pub(crate) id: Secret,
    pub(crate) cut: Secret,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys").field("domain", &self.domain).field("full", &self.full.is_some()).finish_non_exhaustive()
    }
}

impl Keys {
    /// All keys of `domain` from its master key.
    pub(crate) fn from_master(domain: Uuid, master: Secret) -> Result<Self> {
        let key = |purpose: &[u8]| derive(master.as_ref(), domain.as_bytes(), purpose);
        Ok(Self {
            domain,
            structure: key(b"firn 0 structure")?,
            full: Some(FullKeys {
                data: key(b"firn 0 data")?,
                id: key(b"firn 0 id")?,
                cut: key(b"firn 0 cut")?,
                master,
            }),
        })
    }

    /// The structure key alone.
    pub(crate) fn structure_only(domain: Uuid, structure: Secret) -> Self {
        Self { domain, structure, full: None }
    }

    pub(crate) fn scope(&self) -> Scope {
        if self.full.is_some() { Scope::All } else { Scope::Structure }
    }

    /// The keys for content.
    ///
    /// # Errors
    /// `Denied` when only the structure key was opened.
    pub(crate) fn full(&self) -> Result<&FullKeys> {
        self.full.as_ref().ok_or_else(|| {
            Error::new(ErrorKind::Denied, "this key opens the structure of the pool only, not the content of its disks")
                .hint("use a password, key file or recovery key of full scope")
        })
    }

    /// Authenticates the pool's header for those who hold a key.
    pub(crate) fn authenticate(&self, bytes: &[u8]) -> Result<[u8; 32]> {
        let key = derive(self.structure.as_ref(), self.domain.as_bytes(), b"firn 0 header")?;
        Ok(*blake3::keyed_hash(&key, bytes).as_bytes())
    }

    /// The UUID of the machine that first had `name` (`attempt` 0), or a later one of the same name.
    ///
    /// Derived and not random, so that two hosts that take the first snapshot of a machine at the same time
    /// mean the same machine; keyed, so that it tells a stranger nothing.
    pub(crate) fn machine_uuid(&self, name: &str, attempt: u32) -> Result<Uuid> {
        let key = derive(self.structure.as_ref(), self.domain.as_bytes(), b"firn 0 machine")?;
        let mut hasher = blake3::Hasher::new_keyed(&key);
        hasher.update(&attempt.to_le_bytes()).update(name.as_bytes());
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        Ok(uuid::Builder::from_random_bytes(bytes).into_uuid())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_differ_by_purpose_and_by_domain() {
        let keys = |domain: u8| Keys::from_master(Uuid::from_bytes([domain; 16]), Zeroizing::new([1; 32])).unwrap();
        let (a, b) = (keys(1), keys(2));
        let full = a.full().unwrap();
        let mut all = [*a.structure, *full.data, *full.id, *full.cut, *b.structure, *full.master];
        all.sort_unstable();
        assert!(all.windows(2).all(|pair| pair[0] != pair[1]));
        assert_eq!(*keys(1).structure, *a.structure);
    }

    #[test]
    fn hkdf_agrees_with_rfc_5869_test_case_1() {
        let salt: Vec<u8> = (0..13).collect();
        let info: Vec<u8> = (0xf0..0xfa).collect();
        let okm = derive(&[0x0b; 22], &salt, &info).unwrap();
        assert_eq!(crate::names::hex(okm.as_ref()), "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf");
    }

    #[test]
    fn the_structure_key_alone_opens_no_content() {
        let keys = Keys::structure_only(Uuid::nil(), Zeroizing::new([0; 32]));
        assert_eq!(keys.full().err().unwrap().kind(), ErrorKind::Denied);
    }
}
