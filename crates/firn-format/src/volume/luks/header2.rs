//! The two headers of LUKS 2, and the JSON in them.
//!
//! ```text
//! 0 "LUKS" BA BE, of the second one "SKUL" BA BE  6 version  8 bytes of header and JSON  16 sequence  24 label
//! 72 hash of the checksum  104 salt  168 UUID  208 subsystem  256 own place  448 checksum  4096 JSON, NUL
//! ```
//! Numbers are big-endian. The one with the higher sequence counts; one that is damaged is told. The JSON has
//! `keyslots`, `digests`, `segments` and `config`; numbers of 64 bits are strings there.

use super::header1::text;
use super::key::{Hash, Kdf, Splitter};
use super::{Digest, Luks, Segment, Slot};
use firn_disk::{Error, Record, Result, SharedDisk};
use serde_json::Value;

/// The sizes that a header may have: where the second one may stand.
const SIZES: [u64; 9] = [0x4000, 0x8000, 0x1_0000, 0x2_0000, 0x4_0000, 0x8_0000, 0x10_0000, 0x20_0000, 0x40_0000];
/// Most key slots; the specification has 32.
const MAX_SLOTS: usize = 32;

struct Header {
    sequence: u64,
    uuid: String,
    json: Value,
}

pub(super) fn read(disk: &SharedDisk) -> Result<Luks> {
    let mut health = Vec::new();
    let first = read_one(disk, 0, b"LUKS\xBA\xBE");
    let sizes: Vec<u64> = match &first {
        Ok((_, size)) => vec![*size],
        Err(_) => SIZES.to_vec(),
    };
    let mut second = Err(Error::corrupt("the second header was not found"));
    for size in sizes {
        second = read_one(disk, size, b"SKUL\xBA\xBE");
        if second.is_ok() {
            break;
        }
    }
    let header = match (first, second) {
        (Ok((first, _)), Ok((second, _))) => {
            if first.sequence >= second.sequence {
                first
            } else {
                health.push("the second header is newer than the first one, and is used".to_owned());
                second
            }
        }
        (Ok((first, _)), Err(error)) => {
            health.push(format!("the second header is damaged: {error}"));
            first
        }
        (Err(error), Ok((second, _))) => {
            health.push(format!("the first header is damaged, the second one is used: {error}"));
            second
        }
        (Err(error), Err(_)) => return Err(error),
    };
    from_json(disk, header, health)
}

/// The header at `offset`, checked, and its size.
fn read_one(disk: &SharedDisk, offset: u64, magic: &[u8; 6]) -> Result<(Header, u64)> {
    let mut buf = [0; 4096];
    let record = Record::read(disk, &mut buf, offset, "LUKS2 header")?;
    if &record.array(0)? != magic || record.be_u16(6)? != 2 {
        return Err(record.corrupt(0, "it has no magic"));
    }
    let size = record.be_u64(8)?;
    if !SIZES.contains(&size) || record.be_u64(256)? != offset {
        return Err(record.corrupt(8, format!("a header of {size} bytes at {}", record.be_u64(256)?)));
    }
    let name = text(&record, 72, 32)?;
    let hash = Hash::of(&name)?;
    let (sequence, uuid) = (record.be_u64(16)?, text(&record, 168, 40)?);
    let mut whole = vec![0; usize::try_from(size).unwrap_or(0)];
    let all = Record::read(disk, &mut whole, offset, "LUKS2 header")?;
    let sum = hash.digest(&[all.slice(0, 448)?, &[0; 64], all.slice(512, all.bytes().len() - 512)?]);
    if all.slice(448, sum.len())? != sum.as_slice() {
        return Err(record.corrupt(448, "its checksum does not match"));
    }
    let json = all.slice(4096, all.bytes().len() - 4096)?;
    let end = json.iter().position(|byte| *byte == 0).unwrap_or(json.len());
    let json = serde_json::from_slice(json.get(..end).unwrap_or_default());
    let json = json.map_err(|error| record.corrupt(4096, format!("its JSON is not: {error}")))?;
    Ok((Header { sequence, uuid, json }, size))
}

fn corrupt(what: impl Into<String>) -> Error {
    Error::corrupt(what).in_structure("LUKS2 JSON")
}

/// The string `name` of an object.
fn string<'a>(object: &'a Value, name: &str) -> Result<&'a str> {
    object.get(name).and_then(Value::as_str).ok_or_else(|| corrupt(format!("{name} is missing")))
}

/// The number `name`, which may be written as a string.
fn number(object: &Value, name: &str) -> Result<u64> {
    let value = object.get(name);
    let number = value.and_then(Value::as_u64).or_else(|| value.and_then(Value::as_str)?.parse().ok());
    number.ok_or_else(|| corrupt(format!("{name} is no number")))
}

fn number_32(object: &Value, name: &str) -> Result<u32> {
    u32::try_from(number(object, name)?).map_err(|_| corrupt(format!("{name} is too large")))
}

fn bytes(object: &Value, name: &str) -> Result<Vec<u8>> {
    base64(string(object, name)?).ok_or_else(|| corrupt(format!("{name} is not base64")))
}

fn from_json(disk: &SharedDisk, header: Header, health: Vec<String>) -> Result<Luks> {
    let json = &header.json;
    let required = json.pointer("/config/requirements/mandatory").and_then(Value::as_array);
    if let Some(required) = required.filter(|list| !list.is_empty()) {
        let names: Vec<String> =
            required.iter().map(|name| name.as_str().unwrap_or("?").escape_debug().to_string()).collect();
        return Err(Error::unsupported(format!("it requires {}, which is not built yet", names.join(", "))));
    }
    let section =
        |name: &str| json.get(name).and_then(Value::as_object).ok_or_else(|| corrupt(format!("{name} are missing")));
    let (mut slots, mut refused) = (Vec::new(), Vec::new());
    for (name, object) in section("keyslots")?.iter().take(MAX_SLOTS) {
        match slot(name, object) {
            Ok(slot) => slots.push(slot),
            Err(error) if error.kind() == firn_disk::ErrorKind::Unsupported => {
                refused.push(format!("slot {}: {error}", name.escape_debug()));
            }
            Err(error) => return Err(error.context(format!("key slot {}", name.escape_debug()))),
        }
    }
    let digests = section("digests")?.values().take(MAX_SLOTS).map(digest).collect::<Result<Vec<_>>>()?;
    let mut segments = section("segments")?.values();
    let (Some(only), None) = (segments.next(), segments.next()) else {
        return Err(Error::unsupported("it has several segments: it is being re-encrypted"));
    };
    Ok(Luks {
        disk: disk.clone(),
        version: 2,
        uuid: header.uuid,
        health,
        slots,
        digests,
        segment: segment(only)?,
        refused,
    })
}

fn kdf(object: &Value) -> Result<Kdf> {
    let salt = bytes(object, "salt")?;
    match string(object, "type")? {
        "pbkdf2" => {
            let hash = Hash::of(string(object, "hash")?)?;
            Ok(Kdf::Pbkdf2 { hash, iterations: number_32(object, "iterations")?, salt })
        }
        kind @ ("argon2i" | "argon2id") => Ok(Kdf::Argon2 {
            is_hybrid: kind == "argon2id",
            passes: number_32(object, "time")?,
            memory_kib: number_32(object, "memory")?,
            lanes: number_32(object, "cpus")?,
            salt,
        }),
        other => Err(Error::unsupported(format!("key derivation {} is not built yet", other.escape_debug()))),
    }
}

fn slot(name: &str, object: &Value) -> Result<Slot> {
    let part = |name: &str| object.get(name).ok_or_else(|| corrupt(format!("{name} is missing")));
    match string(object, "type")? {
        "luks2" => {}
        other => return Err(Error::unsupported(format!("type {} is not built yet", other.escape_debug()))),
    }
    let (area, split) = (part("area")?, part("af")?);
    if string(area, "type")? != "raw" || string(split, "type")? != "luks1" {
        return Err(Error::unsupported("its area or splitter is of a type that is not built yet"));
    }
    let size = |object, name| -> Result<usize> { Ok(usize::try_from(number(object, name)?).unwrap_or(usize::MAX)) };
    Ok(Slot {
        name: name.to_owned(),
        kdf: kdf(part("kdf")?)?,
        splitter: Splitter { hash: Hash::of(string(split, "hash")?)?, stripes: number(split, "stripes")? },
        offset: number(area, "offset")?,
        encryption: string(area, "encryption")?.to_owned(),
        area_key_bytes: size(area, "key_size")?,
        key_bytes: size(object, "key_size")?,
    })
}

fn digest(object: &Value) -> Result<Digest> {
    let slots = object.get("keyslots").and_then(Value::as_array).into_iter().flatten();
    Ok(Digest {
        kdf: kdf(object)?,
        value: bytes(object, "digest")?,
        slots: Some(slots.filter_map(Value::as_str).map(str::to_owned).collect()),
    })
}

fn segment(object: &Value) -> Result<Segment> {
    let kind = string(object, "type")?;
    if kind != "crypt" {
        return Err(Error::unsupported(format!("a segment of type {} is not built yet", kind.escape_debug())));
    }
    if object.get("integrity").is_some() {
        return Err(Error::unsupported("it has integrity protection, which is not built yet"));
    }
    let sector_bytes = number(object, "sector_size")?;
    if !matches!(sector_bytes, 512 | 1024 | 2048 | 4096) {
        return Err(corrupt(format!("sectors of {sector_bytes} bytes")));
    }
    let length = if string(object, "size")? == "dynamic" { None } else { Some(number(object, "size")?) };
    Ok(Segment {
        encryption: string(object, "encryption")?.to_owned(),
        offset: number(object, "offset")?,
        length,
        sector_bytes,
        first_sector: number(object, "iv_tweak")?,
    })
}

/// Decodes base64 with padding (RFC 4648).
fn base64(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut count) = (0_u32, 0);
    for character in text.trim_end_matches('=').bytes() {
        let value = match character {
            b'A'..=b'Z' => character - b'A',
            b'a'..=b'z' => character - b'a' + 26,
            b'0'..=b'9' => character - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6 | u32::from(value)) & 0xFFFF;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push(u8::try_from(bits >> count & 0xFF).ok()?);
        }
    }
    (text.len().is_multiple_of(4)).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::base64;

    #[test]
    fn base64_is_that_of_the_rfc() {
        for (text, bytes) in [("", ""), ("Zg==", "f"), ("Zm8=", "fo"), ("Zm9vYmFy", "foobar")] {
            assert_eq!(base64(text).unwrap(), bytes.as_bytes());
        }
        assert_eq!(base64("+/+/").unwrap(), [0xFB, 0xFF, 0xBF]);
        assert!(base64("Zg=").is_none() && base64("Z!==").is_none());
    }
}
