//! The text descriptor of a VMDK image.
//!
//! ```text
//! # Disk DescriptorFile
//! version=1
//! CID=a1b2c3d4
//! parentCID=ffffffff                    or the CID of the parent, named by parentFileNameHint="..."
//! createType="twoGbMaxExtentFlat"
//! RW 4192256 FLAT "disk-f001.vmdk" 0    access, sectors, type, file, first sector in the file
//! ddb.adapterType = "ide"               the disk database, which does not matter for reading
//! ```
//! Source: VMware, Virtual Disk Format 5.0, "The Text Descriptor".

use firn_disk::{Error, Result};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

/// The CID of a disk without parent.
const NO_PARENT: u32 = 0xffff_ffff;
/// More extents than 2 GB pieces of the largest disk that VMware makes.
const EXTENTS_MAX: usize = 32_768;

/// What an extent is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ExtentType {
    /// As it is in a file, from this byte on.
    Flat(u64),
    /// In a file of grains.
    Sparse,
    /// In a file of grains in the format of ESXi 6.5 and newer.
    SeSparse,
    Zero,
}

/// One line of the extent description.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ExtentLine {
    pub(super) bytes: u64,
    pub(super) kind: ExtentType,
    pub(super) file: OsString,
}

/// What the descriptor says, checked.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Descriptor {
    pub(super) cid: u32,
    pub(super) parent_cid: Option<u32>,
    pub(super) parent_hint: Option<OsString>,
    pub(super) create_type: String,
    pub(super) extents: Vec<ExtentLine>,
}

/// Whether `head`, the first bytes of a file, begin a descriptor.
pub(in crate::image) fn is_descriptor(head: &[u8]) -> bool {
    for line in head.split(|byte| *byte == b'\n') {
        let line = line.trim_ascii();
        if line.is_empty() {
            continue;
        }
        if line.starts_with(b"#") {
            if line.to_ascii_lowercase().ends_with(b"disk descriptorfile") {
                return true;
            }
            continue;
        }
        return key_value(line)
            .is_some_and(|(key, value)| key.eq_ignore_ascii_case(b"version") && matches!(value, [b'1'..=b'9']));
    }
    false
}

impl Descriptor {
    /// Reads a descriptor. `is_embedded` in a file of grains, which is then the only extent.
    ///
    /// # Errors
    /// `Corrupt` for what makes no sense; `Unsupported` for extents that are no files but devices.
    pub(super) fn parse(text: &[u8], is_embedded: bool) -> Result<Self> {
        let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
        let (mut cid, mut parent_cid, mut parent_hint, mut create_type) = (None, None, None, None);
        let mut extents = Vec::new();
        for line in text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii) {
            if line.is_empty() || line.starts_with(b"#") {
                continue;
            }
            if let Some(extent) = line_words(line) {
                if !is_embedded {
                    extents.push(parse_extent(&extent, line)?);
                }
                if extents.len() > EXTENTS_MAX {
                    return Err(corrupt(format!("more than {EXTENTS_MAX} extents")));
                }
                continue;
            }
            let Some((key, value)) = key_value(line) else { continue };
            match key.to_ascii_lowercase().as_slice() {
                b"cid" => cid = Some(parse_cid(value)?),
                b"parentcid" => parent_cid = Some(parse_cid(value)?),
                b"parentfilenamehint" => parent_hint = Some(OsString::from_vec(value.to_vec())),
                b"encryption.keysafe" | b"encryption.data" => {
                    return Err(unsupported("the image is encrypted").hint("decrypt the machine in VMware first"));
                }
                b"createtype" => create_type = Some(String::from_utf8_lossy(value).into_owned()),
                _ => {}
            }
        }
        let create_type = create_type.ok_or_else(|| corrupt("it has no createType"))?;
        refuse_devices(&create_type)?;
        Ok(Self {
            cid: cid.ok_or_else(|| corrupt("it has no CID"))?,
            parent_cid: parent_cid.filter(|cid| *cid != NO_PARENT),
            parent_hint,
            create_type,
            extents,
        })
    }
}

fn corrupt(message: impl Into<String>) -> Error {
    Error::corrupt(message).in_structure("VMDK descriptor")
}

fn unsupported(message: impl Into<String>) -> Error {
    Error::unsupported(message).in_structure("VMDK descriptor")
}

fn parse_cid(value: &[u8]) -> Result<u32> {
    let text = String::from_utf8_lossy(value);
    u32::from_str_radix(&text, 16).map_err(|_| corrupt(format!("a CID of {text:?}")))
}

/// `key = "value"`, with or without quotes and blanks.
fn key_value(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let equals = line.iter().position(|byte| *byte == b'=')?;
    let (key, value) = (line.get(..equals)?.trim_ascii(), line.get(equals + 1..)?.trim_ascii());
    let value = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value);
    Some((key, value))
}

/// The words of an extent line, quotes removed; `None` when it is not one.
fn line_words(line: &[u8]) -> Option<Vec<Vec<u8>>> {
    let access = line.split(u8::is_ascii_whitespace).next()?;
    if !matches!(access, b"RW" | b"RDONLY" | b"NOACCESS") {
        return None;
    }
    let mut words = Vec::new();
    let mut rest = line;
    while !rest.is_empty() {
        let (word, after) = match rest.strip_prefix(b"\"") {
            Some(quoted) => {
                let end = quoted.iter().position(|byte| *byte == b'"').unwrap_or(quoted.len());
                (quoted.get(..end)?, quoted.get(end + 1..).unwrap_or_default())
            }
            None => {
                let end = rest.iter().position(u8::is_ascii_whitespace).unwrap_or(rest.len());
                (rest.get(..end)?, rest.get(end..)?)
            }
        };
        words.push(word.to_vec());
        rest = after.trim_ascii_start();
    }
    Some(words)
}

fn parse_extent(words: &[Vec<u8>], line: &[u8]) -> Result<ExtentLine> {
    let shown = String::from_utf8_lossy(line).into_owned();
    let bad = || corrupt(format!("an extent line that makes no sense: {shown:?}"));
    let number = |index: usize| -> Result<Option<u64>> {
        let Some(word) = words.get(index) else { return Ok(None) };
        let number = std::str::from_utf8(word).ok().and_then(|word| word.parse::<u64>().ok());
        let bytes = number.and_then(|sectors| sectors.checked_mul(512)).filter(|bytes| i64::try_from(*bytes).is_ok());
        bytes.map(Some).ok_or_else(bad)
    };
    if words.first().is_some_and(|access| access == b"NOACCESS") {
        return Err(unsupported(format!("an extent that may not be read: {shown:?}")));
    }
    let bytes = number(1)?.ok_or_else(bad)?;
    let kind = match words.get(2).map(|word| word.to_ascii_uppercase()).as_deref() {
        Some(b"FLAT" | b"VMFS") => ExtentType::Flat(number(4)?.unwrap_or(0)),
        Some(b"SPARSE" | b"VMFSSPARSE") => ExtentType::Sparse,
        Some(b"SESPARSE") => ExtentType::SeSparse,
        Some(b"ZERO") => ExtentType::Zero,
        Some(b"VMFSRDM" | b"VMFSRDMP" | b"VMFSRAW") => return Err(device_mapping(&shown)),
        Some(other) => {
            return Err(unsupported(format!("extents of type {:?}", String::from_utf8_lossy(other).into_owned())));
        }
        None => return Err(bad()),
    };
    let file = OsString::from_vec(words.get(3).cloned().unwrap_or_default());
    if file.is_empty() && kind != ExtentType::Zero {
        return Err(bad());
    }
    Ok(ExtentLine { bytes, kind, file })
}

fn device_mapping(shown: &str) -> Error {
    unsupported(format!("a raw device mapping, whose data is on a device and not in a file: {shown:?}"))
        .hint("take the mapped device itself, or clone the disk with vmkfstools -i into a file")
}

fn refuse_devices(create_type: &str) -> Result<()> {
    match create_type.to_ascii_lowercase().as_str() {
        "fulldevice"
        | "partitioneddevice"
        | "vmfsraw"
        | "vmfsrdm"
        | "vmfsrdmp"
        | "vmfsrawdevicemap"
        | "vmfspassthroughrawdevicemap" => Err(device_mapping(create_type)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use firn_disk::ErrorKind;

    const EXAMPLE: &str = "# Disk DescriptorFile\r\nversion=1\r\nCID=0123abcd\r\nparentCID=ffffffff\r\n\
        createType=\"vmfs\"\r\n\r\nRW 10 VMFS \"a b-flat.vmdk\"\r\nRW 5 FLAT \"x\" 7\r\nRW 3 ZERO\r\n\
        ddb.adapterType = \"lsilogic\"\r\n";

    #[test]
    fn the_example_of_each_simple_extent() {
        let descriptor = Descriptor::parse(EXAMPLE.as_bytes(), false).unwrap();
        assert_eq!((descriptor.cid, descriptor.parent_cid), (0x0123_abcd, None));
        assert_eq!(descriptor.create_type, "vmfs");
        let extents: Vec<_> = descriptor.extents.iter().map(|extent| (extent.bytes, extent.kind.clone())).collect();
        assert_eq!(extents, [(5120, ExtentType::Flat(0)), (2560, ExtentType::Flat(3584)), (1536, ExtentType::Zero)]);
        assert_eq!(descriptor.extents.first().unwrap().file, "a b-flat.vmdk");
        assert!(is_descriptor(EXAMPLE.as_bytes()));
        assert!(is_descriptor(b"\n # a\n\nversion=3\r\n"));
        assert!(!is_descriptor(b"#!/bin/sh\nversion 1"));
        assert!(!is_descriptor(&[0; 512]));
    }

    #[test]
    fn an_encrypted_disk_is_refused_as_such() {
        let text = b"# Disk DescriptorFile\nversion=1\nencryption.keySafe = \"vmware:key/list/x\"\n";
        let error = Descriptor::parse(text, false).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("encrypted"));
    }

    #[test]
    fn devices_are_refused_by_name() {
        let with = |kind: &str, line: &str| {
            let text = format!("version=1\nCID=1\nparentCID=ffffffff\ncreateType=\"{kind}\"\n{line}\n");
            Descriptor::parse(text.as_bytes(), false).unwrap_err()
        };
        for (kind, line, word) in [
            ("vmfsRawDeviceMap", "RW 8 VMFSRDM \"x-rdm.vmdk\"", "raw device mapping"),
            ("vmfs", "RW 8 VMFSRDMP \"x-rdmp.vmdk\"", "raw device mapping"),
            ("fullDevice", "RW 8 FLAT \"/dev/sda\" 0", "raw device mapping"),
            ("vmfs", "RW 8 WONDER \"x\"", "WONDER"),
            ("vmfs", "NOACCESS 8 FLAT \"x\" 0", "may not be read"),
        ] {
            let error = with(kind, line);
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            assert!(error.to_string().contains(word), "{error}");
        }
        for line in
            ["RW", "RW x FLAT \"a\" 0", "RW 99999999999999999999 ZERO", "RW 36028797018963968 ZERO", "RW 1 FLAT"]
        {
            assert_eq!(with("vmfs", line).kind(), ErrorKind::Corrupt, "{line}");
        }
    }
}
