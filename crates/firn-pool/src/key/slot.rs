//! Key slots: the master key (or the structure key alone), sealed under something a person or program has.
//!
//! Fields of a slot's payload (see `fields`):
//! ```text
//! 1  slot UUID              2  kind: 0 clear, 1 password, 2 key file, 3 recovery key
//! 3  scope: 0 all, 1 structure    4  label            5  created, nanoseconds
//! 6  salt, 16 bytes         7  Argon2id: memory KiB, passes, lanes (3 × u32)
//! 8  sealed key: AES-256-GCM of 32 bytes under the slot's key, nonce zero; AAD = domain, fields 1 to 7
//!    (kind 0: the key in clear)
//! ```
//! The slot's key is Argon2id(password, salt), or HKDF-SHA256 of the key file's or recovery key's bytes with the
//! salt. The salt is random and new for each slot, so the key is used once and the nonce may be zero.

use super::{Keys, RecoveryKey, Secret, derive};
use crate::clock;
use crate::entropy::{Entropy, random_bytes, random_uuid};
use crate::fields::{FieldWriter, Fields};
use crate::object::{self, ObjectKind};
use firn_disk::{Error, ErrorKind, Result};
use jiff::Timestamp;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use uuid::Uuid;
use zeroize::Zeroizing;

const UUID: u16 = 1;
const KIND: u16 = 2;
const SCOPE: u16 = 3;
const LABEL: u16 = 4;
const CREATED: u16 = 5;
const SALT: u16 = 6;
const ARGON2: u16 = 7;
const SEALED: u16 = 8;

/// Argon2id for new slots: 64 MiB, 3 passes, 1 lane (RFC 9106, second recommended option, with one lane).
const ARGON2_DEFAULT: Argon2Cost = Argon2Cost { memory_kib: 64 << 10, passes: 3, lanes: 1 };
/// What an enemy's slot may make us spend at most.
const ARGON2_MOST_MEMORY_KIB: u32 = 1 << 20;
const ARGON2_MOST_PASSES: u32 = 64;
/// The first line of a file that `firn key export` writes.
const EXPORT_MAGIC: &str = "firn master key";
/// A key file with less than this in it is a mistake.
const KEY_FILE_LEAST_BYTES: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Argon2Cost {
    memory_kib: u32,
    passes: u32,
    lanes: u32,
}

/// What opens a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotKind {
    /// Nothing: the key stands in clear beside the data (`--no-password`).
    Clear,
    /// A password, through Argon2id.
    Password,
    /// The bytes of a file.
    KeyFile,
    /// A recovery key on paper.
    Recovery,
}

impl SlotKind {
    const ALL: [Self; 4] = [Self::Clear, Self::Password, Self::KeyFile, Self::Recovery];

    /// A word for people and for `--json`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Clear => "no-password",
            Self::Password => "password",
            Self::KeyFile => "key-file",
            Self::Recovery => "recovery-key",
        }
    }
}

/// What a slot gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Everything.
    All,
    /// Trees, manifests and notes, but no content of a disk.
    Structure,
}

impl Scope {
    /// A word for people and for `--json`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Structure => "structure",
        }
    }
}

/// What someone brings to open a pool.
#[derive(Debug)]
pub enum Credential {
    /// A password.
    Password(Zeroizing<String>),
    /// The content of a key file, or of a file that `firn key export` wrote.
    KeyFile(Zeroizing<Vec<u8>>),
    /// A recovery key.
    Recovery(RecoveryKey),
}

/// What a new slot shall be opened by.
#[derive(Debug)]
pub enum NewCredential {
    /// Nothing.
    Clear,
    /// A password, not empty.
    Password(Zeroizing<String>),
    /// The content of a key file of at least 16 bytes.
    KeyFile(Zeroizing<Vec<u8>>),
    /// A recovery key.
    Recovery(RecoveryKey),
}

/// What can be told of a slot without opening it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeySlotInfo {
    /// Its name.
    pub uuid: Uuid,
    /// What opens it.
    pub kind: SlotKind,
    /// What it gives.
    pub scope: Scope,
    /// A person's word for it; may be empty.
    pub label: String,
    /// When it was made.
    pub created: Timestamp,
}

/// A slot as it is stored.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) info: KeySlotInfo,
    domain: Uuid,
    salt: [u8; 16],
    argon2: Option<Argon2Cost>,
    sealed: Zeroizing<Vec<u8>>,
}

impl Slot {
    /// The key domain that it belongs to.
    pub(crate) fn domain(&self) -> Uuid {
        self.domain
    }

    /// Seals the keys for `credential`.
    ///
    /// # Errors
    /// `Denied` when `scope` is more than `keys` hold, `Invalid` for an empty password or a tiny key file.
    pub(crate) fn create(
        keys: &Keys,
        credential: &NewCredential,
        scope: Scope,
        label: &str,
        created: Timestamp,
        entropy: &dyn Entropy,
    ) -> Result<Self> {
        let (kind, argon2) = match credential {
            NewCredential::Clear => (SlotKind::Clear, None),
            NewCredential::Password(password) if password.is_empty() => {
                return Err(Error::invalid("the password is empty").hint("--no-password makes a pool without one"));
            }
            NewCredential::Password(_) => (SlotKind::Password, Some(ARGON2_DEFAULT)),
            NewCredential::KeyFile(bytes) if bytes.len() < KEY_FILE_LEAST_BYTES => {
                return Err(Error::invalid(format!("the key file holds {} bytes, too few to be a key", bytes.len()))
                    .hint("make one with `head -c 32 /dev/urandom > FILE`"));
            }
            NewCredential::KeyFile(_) => (SlotKind::KeyFile, None),
            NewCredential::Recovery(_) => (SlotKind::Recovery, None),
        };
        let info = KeySlotInfo { uuid: random_uuid(entropy)?, kind, scope, label: label.to_owned(), created };
        let salt = random_bytes(entropy)?;
        let mut slot = Self { info, domain: keys.domain, salt, argon2, sealed: Zeroizing::default() };
        let secret: &Secret = match scope {
            Scope::All => &keys.full()?.master,
            Scope::Structure => &keys.structure,
        };
        slot.sealed = Zeroizing::new(secret.to_vec());
        let wrapping = match credential {
            NewCredential::Clear => return Ok(slot),
            NewCredential::Password(password) => slot.key_of_password(password)?,
            NewCredential::KeyFile(bytes) => slot.key_of_bytes(bytes)?,
            NewCredential::Recovery(key) => slot.key_of_bytes(key.secret())?,
        };
        let aad = Aad::from(slot.authenticated()?);
        cipher(&wrapping)?
            .seal_in_place_append_tag(Nonce::assume_unique_for_key([0; 12]), aad, &mut *slot.sealed)
            .map_err(|_| Error::new(ErrorKind::Invalid, "the key could not be sealed"))?;
        Ok(slot)
    }

    fn key_of_password(&self, password: &str) -> Result<Secret> {
        let bad = |message: String| Error::corrupt(message).in_structure("key slot");
        let cost = self.argon2.ok_or_else(|| bad("it has no Argon2 parameters".into()))?;
        if cost.memory_kib > ARGON2_MOST_MEMORY_KIB || cost.passes > ARGON2_MOST_PASSES {
            return Err(bad(format!("it asks for {} KiB and {} passes of Argon2", cost.memory_kib, cost.passes)));
        }
        let parameters = argon2::Params::new(cost.memory_kib, cost.passes, cost.lanes, Some(32))
            .map_err(|error| bad(format!("its Argon2 parameters make no sense: {error}")))?;
        let argon2 = argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, parameters);
        let mut key = Zeroizing::new([0; 32]);
        argon2.hash_password_into(password.as_bytes(), &self.salt, key.as_mut()).map_err(|error| {
            Error::new(ErrorKind::Unavailable, format!("the password could not be hashed: {error}"))
        })?;
        Ok(key)
    }

    fn key_of_bytes(&self, bytes: &[u8]) -> Result<Secret> {
        derive(bytes, &self.salt, b"firn 0 key slot")
    }

    /// Opens the slot, or `None` when `credential` is not the right one.
    pub(crate) fn unlock(&self, credential: Option<&Credential>) -> Result<Option<Keys>> {
        let wrapping = match (self.info.kind, credential) {
            (SlotKind::Clear, None) => return self.keys(&self.sealed).map(Some),
            (SlotKind::Password, Some(Credential::Password(password))) => self.key_of_password(password)?,
            (SlotKind::KeyFile, Some(Credential::KeyFile(bytes))) => self.key_of_bytes(bytes)?,
            (SlotKind::Recovery, Some(Credential::Recovery(key))) => self.key_of_bytes(key.secret())?,
            _ => return Ok(None),
        };
        let mut sealed = self.sealed.clone();
        let nonce = Nonce::assume_unique_for_key([0; 12]);
        match cipher(&wrapping)?.open_in_place(nonce, Aad::from(self.authenticated()?), &mut sealed) {
            Ok(secret) => self.keys(secret).map(Some),
            Err(_) => Ok(None),
        }
    }

    fn keys(&self, secret: &[u8]) -> Result<Keys> {
        let secret: [u8; 32] =
            secret.try_into().map_err(|_| Error::corrupt("the key has a wrong length").in_structure("key slot"))?;
        match self.info.scope {
            Scope::All => Keys::from_master(self.domain, Zeroizing::new(secret)),
            Scope::Structure => Ok(Keys::structure_only(self.domain, Zeroizing::new(secret))),
        }
    }

    fn public_fields(&self) -> Result<FieldWriter> {
        let mut fields = FieldWriter::default();
        fields
            .uuid(UUID, self.info.uuid)
            .bytes(KIND, &[self.info.kind as u8])
            .bytes(SCOPE, &[self.info.scope as u8])
            .text(LABEL, &self.info.label)
            .i64(CREATED, clock::to_nanoseconds(self.info.created)?)
            .bytes(SALT, &self.salt);
        if let Some(cost) = self.argon2 {
            let words = [cost.memory_kib, cost.passes, cost.lanes].map(u32::to_le_bytes);
            fields.bytes(ARGON2, words.as_flattened());
        }
        Ok(fields)
    }

    fn authenticated(&self) -> Result<Vec<u8>> {
        let mut bytes = self.domain.as_bytes().to_vec();
        bytes.extend(self.public_fields()?.finish());
        Ok(bytes)
    }

    /// The slot as an object.
    pub(crate) fn to_object(&self) -> Result<Vec<u8>> {
        let mut fields = self.public_fields()?;
        fields.bytes(SEALED, &self.sealed);
        Ok(object::seal_small(ObjectKind::KeySlot, self.domain, &fields.finish()))
    }

    /// Reads a slot's object.
    pub(crate) fn from_object(bytes: &[u8]) -> Result<Self> {
        let (frame, payload) = object::open_small(bytes, ObjectKind::KeySlot)?;
        let known = [UUID, KIND, SCOPE, LABEL, CREATED, SALT, ARGON2, SEALED];
        let fields = Fields::parse(payload, "key slot", &known)?;
        let [kind] = fields.array(KIND)?;
        let unknown =
            |what: &str, value: u8| Error::unsupported(format!("{what} {value} is not known")).in_structure("key slot");
        let kind = SlotKind::ALL.into_iter().find(|k| *k as u8 == kind).ok_or_else(|| unknown("kind", kind))?;
        let scope = match fields.array(SCOPE)? {
            [0] => Scope::All,
            [1] => Scope::Structure,
            [other] => return Err(unknown("scope", other)),
        };
        let argon2 = match fields.optional(ARGON2) {
            None => None,
            Some(_) => {
                let words: [u8; 12] = fields.array(ARGON2)?;
                let word = |at: usize| u32::from_le_bytes([words[at], words[at + 1], words[at + 2], words[at + 3]]);
                Some(Argon2Cost { memory_kib: word(0), passes: word(4), lanes: word(8) })
            }
        };
        Ok(Self {
            info: KeySlotInfo {
                uuid: fields.uuid(UUID)?,
                kind,
                scope,
                label: fields.text(LABEL)?,
                created: clock::from_nanoseconds(fields.i64(CREATED)?)?,
            },
            domain: frame.domain,
            salt: fields.array(SALT)?,
            argon2,
            sealed: Zeroizing::new(fields.bytes(SEALED)?.to_vec()),
        })
    }
}

fn cipher(key: &Secret) -> Result<LessSafeKey> {
    let key = UnboundKey::new(&AES_256_GCM, key.as_ref());
    Ok(LessSafeKey::new(key.map_err(|_| Error::invalid("a key of the wrong length"))?))
}

/// The master key as text, which opens the pool (as a key file) even when every slot is lost.
pub(crate) fn export(keys: &Keys) -> Result<Zeroizing<String>> {
    let master = Zeroizing::new(crate::names::hex(keys.full()?.master.as_ref()));
    let check = crate::names::hex(&blake3::derive_key("firn master key checksum", master.as_bytes())[..4]);
    let domain = keys.domain;
    Ok(Zeroizing::new(format!("{EXPORT_MAGIC}\ndomain {domain}\nkey {}\ncheck {check}\n", *master)))
}

/// The keys in a file that [`export`] wrote, or `None` when `file` is any other key file.
///
/// # Errors
/// `Denied` when the file is damaged or belongs to another domain.
pub(crate) fn import(file: &[u8], domain: Uuid) -> Result<Option<Keys>> {
    let Some(text) = std::str::from_utf8(file).ok().filter(|text| text.starts_with(EXPORT_MAGIC)) else {
        return Ok(None);
    };
    let damaged = || Error::new(ErrorKind::Denied, "the exported master key is damaged");
    let line = |word: &str| {
        text.lines().find_map(|line| line.strip_prefix(word)?.strip_prefix(' ')).map(str::trim).ok_or_else(damaged)
    };
    let key = line("key")?;
    if line("check")? != crate::names::hex(&blake3::derive_key("firn master key checksum", key.as_bytes())[..4]) {
        return Err(damaged());
    }
    if Uuid::parse_str(line("domain")?).map_err(|_| damaged())? != domain {
        return Err(Error::new(ErrorKind::Denied, "this exported master key belongs to another key domain"));
    }
    let mut master = Zeroizing::new([0; 32]);
    let (high, low) = key.split_at_checked(32).ok_or_else(damaged)?;
    master[..16].copy_from_slice(&crate::names::unhex(high).ok_or_else(damaged)?);
    master[16..].copy_from_slice(&crate::names::unhex(low).ok_or_else(damaged)?);
    Keys::from_master(domain, master).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entropy::tests::SeededEntropy;

    fn keys() -> Keys {
        Keys::from_master(Uuid::from_bytes([3; 16]), Zeroizing::new([42; 32])).unwrap()
    }

    fn slot(credential: &NewCredential, scope: Scope) -> Slot {
        let slot =
            Slot::create(&keys(), credential, scope, "me", Timestamp::UNIX_EPOCH, &SeededEntropy::new(5)).unwrap();
        Slot::from_object(&slot.to_object().unwrap()).unwrap()
    }

    fn password(text: &str) -> Zeroizing<String> {
        Zeroizing::new(text.to_owned())
    }

    #[test]
    fn only_the_right_credential_opens() {
        let slot = slot(&NewCredential::Password(password("right")), Scope::All);
        assert_eq!((slot.info.kind, slot.info.label.as_str()), (SlotKind::Password, "me"));
        let opened = slot.unlock(Some(&Credential::Password(password("right")))).unwrap().unwrap();
        assert_eq!(opened.full().unwrap().master, keys().full().unwrap().master);
        assert!(slot.unlock(Some(&Credential::Password(password("wrong")))).unwrap().is_none());
        assert!(slot.unlock(Some(&Credential::KeyFile(Zeroizing::new(b"right".to_vec())))).unwrap().is_none());
        assert!(slot.unlock(None).unwrap().is_none());
    }

    #[test]
    fn key_files_recovery_keys_and_no_password() {
        let file = || Zeroizing::new(vec![7; 32]);
        assert!(
            slot(&NewCredential::KeyFile(file()), Scope::All)
                .unlock(Some(&Credential::KeyFile(file())))
                .unwrap()
                .is_some()
        );
        let recovery = RecoveryKey::generate(&SeededEntropy::new(6)).unwrap();
        let opened = slot(&NewCredential::Recovery(recovery.clone()), Scope::All);
        assert!(opened.unlock(Some(&Credential::Recovery(recovery))).unwrap().is_some());
        assert!(slot(&NewCredential::Clear, Scope::All).unlock(None).unwrap().is_some());
    }

    #[test]
    fn a_structure_slot_gives_the_structure_key_alone() {
        let file = Zeroizing::new(vec![7; 32]);
        let slot = slot(&NewCredential::KeyFile(file.clone()), Scope::Structure);
        let opened = slot.unlock(Some(&Credential::KeyFile(file))).unwrap().unwrap();
        assert_eq!(*opened.structure, *keys().structure);
        assert!(opened.full().is_err());
        let upgrade =
            Slot::create(&opened, &NewCredential::Clear, Scope::All, "", Timestamp::UNIX_EPOCH, &SeededEntropy::new(1));
        assert_eq!(upgrade.unwrap_err().kind(), ErrorKind::Denied);
    }

    #[test]
    fn tampering_with_the_scope_is_noticed() {
        let file = || Zeroizing::new(vec![7; 32]);
        let mut slot = slot(&NewCredential::KeyFile(file()), Scope::Structure);
        slot.info.scope = Scope::All;
        assert!(slot.unlock(Some(&Credential::KeyFile(file()))).unwrap().is_none());
    }

    #[test]
    fn an_exported_key_is_read_back_and_belongs_to_its_domain() {
        let text = export(&keys()).unwrap();
        let back = import(text.as_bytes(), keys().domain).unwrap().unwrap();
        assert_eq!(back.full().unwrap().master, keys().full().unwrap().master);
        assert_eq!(import(text.as_bytes(), Uuid::nil()).unwrap_err().kind(), ErrorKind::Denied);
        assert!(import(text.replace("key 2a", "key 2b").as_bytes(), keys().domain).is_err());
        assert!(import(b"any other key file", keys().domain).unwrap().is_none());
    }

    #[test]
    fn absurd_costs_and_weak_credentials_are_refused() {
        let mut slot = slot(&NewCredential::Password(password("x")), Scope::All);
        slot.argon2 = Some(Argon2Cost { memory_kib: u32::MAX, passes: 1, lanes: 1 });
        assert_eq!(slot.unlock(Some(&Credential::Password(password("x")))).unwrap_err().kind(), ErrorKind::Corrupt);
        for weak in [NewCredential::Password(password("")), NewCredential::KeyFile(Zeroizing::new(vec![1; 15]))] {
            let made = Slot::create(&keys(), &weak, Scope::All, "", Timestamp::UNIX_EPOCH, &SeededEntropy::new(1));
            assert_eq!(made.unwrap_err().kind(), ErrorKind::Invalid);
        }
    }
}
