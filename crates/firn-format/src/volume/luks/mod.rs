//! LUKS 1 and 2: a volume key under key slots, and the data that it encrypts.
//!
//! ```text
//! header     which cipher, where the data begins, key slots, digest of the volume key   (LUKS 2: twice, with JSON)
//! key slot   the volume key, split over 4000 stripes, encrypted under a key that a passphrase gives by PBKDF2 or Argon2
//! data       sectors of 512 to 4096 bytes, each under an initialisation vector that follows from its number
//! ```
//! Every slot is tried with every key that was brought. Keys are wiped from memory when they are dropped. The header may
//! stand on another disk than the data ([`Unlocked::disk`]).
//!
//! Refused by name: other ciphers than AES in XTS and CBC, hashes other than SHA-1 and SHA-2, integrity, volumes that are
//! being re-encrypted, and slots that need more memory or time than allowed. Source: the LUKS1 On-Disk Format
//! Specification 1.2.3, the LUKS2 On-Disk Format Specification 1.1.2, and Linux, drivers/md/dm-crypt.c.

mod cipher;
mod header1;
mod header2;
mod key;

pub use cipher::Crypt;
pub use key::Keys;

use cipher::Cipher;
use firn_disk::{Disk, Error, ErrorKind, Record, Result, SharedDisk};
use key::{Kdf, Splitter};
use zeroize::Zeroizing;

/// Bytes of the sectors that key material is encrypted in.
const SECTOR: u64 = 512;

/// A place of encrypted key material.
#[derive(Debug, Clone)]
struct Slot {
    name: String,
    kdf: Kdf,
    splitter: Splitter,
    /// Where the key material stands, in bytes, and what it is encrypted with.
    offset: u64,
    encryption: String,
    /// Bytes of the key that it is encrypted with.
    area_key_bytes: usize,
    /// Bytes of the volume key.
    key_bytes: usize,
}

/// By what a volume key is known to be the right one.
#[derive(Debug, Clone)]
struct Digest {
    kdf: Kdf,
    value: Vec<u8>,
    /// The slots whose keys it is for; `None` for all.
    slots: Option<Vec<String>>,
}

/// The encrypted data.
#[derive(Debug, Clone)]
struct Segment {
    encryption: String,
    /// Where it begins, in bytes, and how long it is; `None` to the end of the disk.
    offset: u64,
    length: Option<u64>,
    sector_bytes: u64,
    /// The number of its first sector of 512 bytes, as initialisation vectors count.
    first_sector: u64,
}

/// The header of a LUKS container.
#[derive(Debug, Clone)]
pub struct Luks {
    disk: SharedDisk,
    /// 1 or 2.
    pub version: u16,
    /// UUID as cryptsetup prints it.
    pub uuid: String,
    /// What is wrong with it, in words: one of two headers is damaged.
    pub health: Vec<String>,
    slots: Vec<Slot>,
    digests: Vec<Digest>,
    segment: Segment,
    /// Slots that cannot be tried, with the reason.
    refused: Vec<String>,
}

impl Luks {
    /// The header on `disk`; `None` when it has none.
    ///
    /// # Errors
    /// `Corrupt` when it is damaged; `Unsupported`, by name, for what firn does not open.
    pub fn read(disk: &SharedDisk) -> Result<Option<Self>> {
        let mut buf = [0; 8];
        if disk.len() < 4096 {
            return Ok(None);
        }
        let record = Record::read(disk, &mut buf, 0, "LUKS header")?;
        if &record.array(0)? != b"LUKS\xBA\xBE" {
            return Ok(None);
        }
        match record.be_u16(6)? {
            1 => header1::read(disk).map(Some),
            2 => header2::read(disk).map(Some),
            version => Err(record.unsupported(6, format!("version {version}"))),
        }
    }

    /// What is told of it, in words: `aes-xts-plain64`, how many key slots.
    pub fn features(&self) -> Vec<String> {
        let slots = match self.slots.len() {
            1 => "1 key slot".to_owned(),
            count => format!("{count} key slots"),
        };
        let mut features = vec![self.segment.encryption.clone(), slots];
        if self.segment.sector_bytes != SECTOR {
            features.push(format!("sectors of {} bytes", self.segment.sector_bytes));
        }
        features
    }

    /// Tries all slots with all keys. Takes as long and as much memory as the slots say, within the limits of `keys`.
    ///
    /// # Errors
    /// `Denied` when no key fits, or none was brought; `Unsupported` when all slots are of a kind that is not known or
    /// need too much; `Corrupt`.
    pub fn unlock(&self, keys: &Keys) -> Result<Unlocked> {
        let denied = |what: &str| {
            let what = format!("the LUKS{} container {} {what}", self.version, self.uuid);
            Error::new(ErrorKind::Denied, what)
                .hint("give its key by --luks-key-file FILE, or its passphrase by --luks-password-file FILE")
        };
        if keys.is_empty() {
            return Err(denied("is locked"));
        }
        let mut refused = self.refused.clone();
        for slot in &self.slots {
            for key in keys.iter() {
                match self.try_slot(slot, key, keys) {
                    Ok(Some(volume_key)) => return Ok(Unlocked { volume_key, segment: self.segment.clone() }),
                    Ok(None) => {}
                    Err(error) if error.kind() == ErrorKind::Unsupported => {
                        refused.push(format!("slot {}: {error}", slot.name));
                        break;
                    }
                    Err(error) => return Err(error.context(format!("slot {}", slot.name))),
                }
            }
        }
        if refused.len() >= self.slots.len() && !refused.is_empty() {
            return Err(Error::unsupported(format!("no key slot can be tried: {}", refused.join("; "))));
        }
        Err(denied("is opened by none of the keys"))
    }

    fn try_slot(&self, slot: &Slot, key: &[u8], keys: &Keys) -> Result<Option<Zeroizing<Vec<u8>>>> {
        let area_key = slot.kdf.derive(key, slot.area_key_bytes, keys)?;
        let cipher = Cipher::new(&slot.encryption, &area_key)?;
        let length = slot.splitter.bytes(slot.key_bytes)?;
        let sectors = length.div_ceil(SECTOR) * SECTOR;
        if firn_disk::check_range(slot.offset, sectors, self.disk.len()).is_err() {
            return Err(Error::corrupt("its key material lies past the end of the disk").at_offset(slot.offset));
        }
        let mut material = Zeroizing::new(vec![0; usize::try_from(sectors).unwrap_or(0)]);
        self.disk.read_at(&mut material, slot.offset)?;
        for (number, sector) in (0..).zip(material.chunks_mut(512)) {
            cipher.decrypt(sector, number);
        }
        let volume_key = slot.splitter.merge(&material, slot.key_bytes)?;
        let fits = |digest: &&Digest| digest.slots.as_ref().is_none_or(|slots| slots.contains(&slot.name));
        for digest in self.digests.iter().filter(fits) {
            let value = digest.kdf.derive(&volume_key, digest.value.len(), keys)?;
            // Whether they differ early or late is not to be told by the time it takes.
            let difference = value.iter().zip(&digest.value).fold(0, |all, (own, right)| all | (own ^ right));
            if difference == 0 && !digest.value.is_empty() {
                return Ok(Some(volume_key));
            }
        }
        Ok(None)
    }
}

/// A container whose volume key is known.
#[derive(Debug)]
pub struct Unlocked {
    volume_key: Zeroizing<Vec<u8>>,
    segment: Segment,
}

impl Unlocked {
    /// The decrypted content of `data`, which is the disk of the header unless that was kept apart.
    ///
    /// # Errors
    /// `Corrupt` when the data does not fit onto the disk; `Unsupported`, by name, for a cipher that is not known.
    pub fn disk(&self, data: &SharedDisk) -> Result<Crypt> {
        let cipher = Cipher::new(&self.segment.encryption, &self.volume_key)?;
        let room = data.len().checked_sub(self.segment.offset);
        let length = match (room, self.segment.length) {
            (Some(room), None) => room,
            (Some(room), Some(length)) if length <= room => length,
            _ => return Err(Error::corrupt("its data lies past the end of the disk").at_offset(self.segment.offset)),
        };
        let Segment { offset, sector_bytes, first_sector, .. } = self.segment;
        Ok(Crypt::new(data.clone(), offset, length, sector_bytes, first_sector, cipher))
    }
}

#[cfg(test)]
mod tests;
