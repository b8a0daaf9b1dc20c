//! The header of LUKS 1.
//!
//! ```text
//! 0 "LUKS" BA BE  6 version  8 cipher  40 mode  72 hash  104 sector of the data  108 bytes of the key
//! 112 digest of the key  132 its salt  164 its iterations  168 UUID
//! 208 eight slots of 48 bytes: 0 state  4 iterations  8 salt  40 sector of the key material  44 stripes
//! ```
//! Numbers are big-endian.

use super::key::{Hash, Kdf, MAX_KEY, Splitter};
use super::{Digest, Luks, SECTOR, Segment, Slot};
use firn_disk::{Record, Result, SharedDisk};

const SLOT_IN_USE: u32 = 0x00AC_71F3;

pub(super) fn read(disk: &SharedDisk) -> Result<Luks> {
    let mut buf = [0; 592];
    let header = Record::read(disk, &mut buf, 0, "LUKS1 header")?;
    let encryption = format!("{}-{}", text(&header, 8, 32)?, text(&header, 40, 32)?);
    let hash = Hash::of(&text(&header, 72, 32)?)?;
    let key_bytes = usize::try_from(header.be_u32(108)?).unwrap_or(usize::MAX);
    if key_bytes == 0 || key_bytes > MAX_KEY {
        return Err(header.corrupt(108, format!("a key of {key_bytes} bytes")));
    }
    let mut slots = Vec::new();
    for number in 0..8 {
        let at = 208 + 48 * number;
        if header.be_u32(at)? != SLOT_IN_USE {
            continue;
        }
        slots.push(Slot {
            name: number.to_string(),
            kdf: Kdf::Pbkdf2 { hash, iterations: header.be_u32(at + 4)?, salt: header.slice(at + 8, 32)?.to_vec() },
            splitter: Splitter { hash, stripes: header.be_u32(at + 44)?.into() },
            offset: u64::from(header.be_u32(at + 40)?) * SECTOR,
            encryption: encryption.clone(),
            area_key_bytes: key_bytes,
            key_bytes,
        });
    }
    let kdf = Kdf::Pbkdf2 { hash, iterations: header.be_u32(164)?, salt: header.slice(132, 32)?.to_vec() };
    Ok(Luks {
        disk: disk.clone(),
        version: 1,
        uuid: text(&header, 168, 40)?,
        health: vec![],
        slots,
        digests: vec![Digest { kdf, value: header.slice(112, 20)?.to_vec(), slots: None }],
        segment: Segment {
            encryption,
            offset: u64::from(header.be_u32(104)?) * SECTOR,
            length: None,
            sector_bytes: SECTOR,
            first_sector: 0,
        },
        refused: vec![],
    })
}

/// A string up to its NUL, without anything that could not be shown.
pub(super) fn text(header: &Record<'_>, at: usize, length: usize) -> Result<String> {
    let bytes = header.slice(at, length)?;
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(length);
    let text = String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned();
    if text.chars().any(char::is_control) {
        return Err(header.corrupt(at, "it is not text"));
    }
    Ok(text)
}
