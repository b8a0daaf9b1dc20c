//! Names of other files as QEMU writes them into an image: plain, `file:`, or `json:`.
//!
//! Whatever reaches further than a local file (`nbd:`, `http:`, ...) or changes what the bytes mean (an
//! `offset` of the raw driver, a filter) is refused by name rather than ignored.

use super::ImageFormat;
use firn_disk::{Error, Result};
use serde_json::{Map, Value};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

/// A file that an image names, and its format where the name itself says it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct FileName {
    pub(super) path: PathBuf,
    pub(super) format: Option<ImageFormat>,
}

/// Options of a `json:` name that do not change what is read.
const HARMLESS: [&str; 10] = [
    "node-name",
    "read-only",
    "auto-read-only",
    "force-share",
    "discard",
    "detect-zeroes",
    "locking",
    "aio",
    "cache",
    "aio-max-batch",
];

/// Understands `name`; `role` ("backing file") is for errors.
///
/// # Errors
/// `Unsupported` for what is not a local file, `Corrupt` for `json:` that is none.
pub(super) fn parse(name: &OsStr, role: &str) -> Result<FileName> {
    let bytes = name.as_bytes();
    if let Some(json) = bytes.strip_prefix(b"json:") {
        let value: Value = serde_json::from_slice(json)
            .map_err(|error| Error::corrupt(format!("the {role} is named by bad json: {error}")))?;
        return from_json(&value, role);
    }
    let plain = bytes.strip_prefix(b"file:").unwrap_or(bytes);
    let colon = bytes.iter().position(|byte| *byte == b':').unwrap_or(usize::MAX);
    let slash = bytes.iter().position(|byte| *byte == b'/').unwrap_or(usize::MAX);
    if plain.len() == bytes.len() && colon < slash {
        let protocol = String::from_utf8_lossy(bytes.get(..colon).unwrap_or_default()).into_owned();
        return Err(Error::unsupported(format!("the {role} is reached by {protocol:?}, not as a local file")).hint(
            "copy it into a file and rebase the image, with qemu-img rebase -u, or take the machine through QEMU",
        ));
    }
    if plain.is_empty() || plain.contains(&0) {
        return Err(Error::corrupt(format!("the {role} has an impossible name")));
    }
    Ok(FileName { path: OsString::from_vec(plain.to_vec()).into(), format: None })
}

/// The format that QEMU's name of a driver stands for.
///
/// # Errors
/// `Unsupported` for a format that is not read here.
pub(super) fn format_from_driver(driver: &str) -> Result<ImageFormat> {
    match driver {
        "raw" | "file" | "host_device" => Ok(ImageFormat::Raw),
        "qcow2" => Ok(ImageFormat::Qcow2),
        "vmdk" => Ok(ImageFormat::Vmdk),
        "vpc" => Ok(ImageFormat::Vhd),
        "vhdx" => Ok(ImageFormat::Vhdx),
        "vdi" => Ok(ImageFormat::Vdi),
        other => Err(Error::unsupported(format!("the backing file's format is {other:?}"))
            .hint("raw, qcow2, vmdk, vpc, vhdx and vdi are read; convert it with qemu-img")),
    }
}

fn from_json(value: &Value, role: &str) -> Result<FileName> {
    let refuse = |what: String| Err(Error::unsupported(format!("the {role} is named with {what}")));
    let Value::Object(object) = value else {
        return Err(Error::corrupt(format!("the {role} is named by json that is no object")));
    };
    let mut flat = Map::new();
    flatten(object, "", 0, &mut flat)?;
    let text = |key: &str| flat.get(key).and_then(Value::as_str);
    let driver = text("driver");
    let (format, prefix) = match driver {
        Some("file" | "host_device") => (Some(ImageFormat::Raw), ""),
        Some("raw" | "qcow2" | "vmdk" | "vpc" | "vhdx" | "vdi") => {
            (driver.map(format_from_driver).transpose()?, "file.")
        }
        Some(other) => return refuse(format!("driver {other:?}")),
        // Without a driver QEMU looks at the content.
        None => (None, "file."),
    };
    if prefix == "file." && !matches!(text("file.driver"), None | Some("file" | "host_device")) {
        return refuse(format!("protocol {:?}", text("file.driver").unwrap_or_default()));
    }
    let filename_key = format!("{prefix}filename");
    for key in flat.keys() {
        let option = key.strip_prefix("file.").unwrap_or(key);
        let head = option.split('.').next().unwrap_or(option);
        let is_known = key == "driver" || key == "file.driver" || *key == filename_key;
        if !is_known && !HARMLESS.contains(&head) {
            return refuse(format!("option {key:?}"));
        }
    }
    match text(&filename_key) {
        Some(path) if !path.is_empty() && !path.contains('\0') => Ok(FileName { path: path.into(), format }),
        _ => refuse("no file name".to_owned()),
    }
}

/// Nested objects as dotted keys, which QEMU holds to be the same.
fn flatten(object: &Map<String, Value>, prefix: &str, depth: u32, into: &mut Map<String, Value>) -> Result<()> {
    if depth > 8 {
        return Err(Error::corrupt("json nested too deeply"));
    }
    for (key, value) in object {
        let key = format!("{prefix}{key}");
        match value {
            Value::Object(inner) => flatten(inner, &format!("{key}."), depth + 1, into)?,
            other => {
                into.insert(key, other.clone());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use firn_disk::ErrorKind;

    fn parsed(name: &str) -> (String, Option<ImageFormat>) {
        let name = parse(OsStr::new(name), "backing file").unwrap();
        (name.path.to_str().unwrap().to_owned(), name.format)
    }

    #[test]
    fn local_files_in_each_spelling() {
        assert_eq!(parsed("base.qcow2"), ("base.qcow2".into(), None));
        assert_eq!(parsed("/a/b:c"), ("/a/b:c".into(), None));
        assert_eq!(parsed("./b:c"), ("./b:c".into(), None));
        assert_eq!(parsed("file:base"), ("base".into(), None));
        let nested = r#"json:{"driver":"qcow2","file":{"driver":"file","filename":"/a/b"},"node-name":"x"}"#;
        assert_eq!(parsed(nested), ("/a/b".into(), Some(ImageFormat::Qcow2)));
        let dotted = r#"json:{"driver":"raw","file.driver":"file","file.filename":"b","file.locking":"off"}"#;
        assert_eq!(parsed(dotted), ("b".into(), Some(ImageFormat::Raw)));
        assert_eq!(parsed(r#"json:{"driver":"file","filename":"b"}"#), ("b".into(), Some(ImageFormat::Raw)));
        assert_eq!(parsed(r#"json:{"file":{"filename":"b"}}"#), ("b".into(), None));
    }

    #[test]
    fn what_is_not_a_local_file_is_refused_by_name() {
        for (name, word) in [
            ("nbd://host/disk", "nbd"),
            ("http:x", "http"),
            (r#"json:{"driver":"nbd","host":"x"}"#, "nbd"),
            (r#"json:{"driver":"qcow2","file":{"driver":"https","url":"x"}}"#, "https"),
            (r#"json:{"driver":"raw","offset":512,"file":{"driver":"file","filename":"x"}}"#, "offset"),
            (r#"json:{"driver":"qcow2","file":{"driver":"file","filename":"x"},"backing":null}"#, "backing"),
        ] {
            let error = parse(OsStr::new(name), "backing file").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{name}");
            assert!(error.to_string().contains(word), "{error}");
        }
        for name in ["json:{", "json:[]", "json:", ""] {
            assert_eq!(parse(OsStr::new(name), "backing file").unwrap_err().kind(), ErrorKind::Corrupt, "{name:?}");
        }
    }
}
