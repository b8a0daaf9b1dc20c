//! Finding the parent of a differencing disk that another system made.
//!
//! VHD and VHDX name a parent by paths of Windows: relative to the child, absolute, or by volume. A relative one is
//! taken as it stands; of any other only the last part can mean something here. Whether the file that is found is
//! the parent is for its identity to say, which the formats check.

use super::Opener;
use super::access::ImageFile;
use firn_disk::{Error, ErrorKind, Result};
use std::path::Path;

/// Text as UTF-16, up to the first zero.
pub(super) fn utf16(bytes: &[u8], is_big_endian: bool) -> String {
    let words = bytes.chunks_exact(2).filter_map(|pair| pair.first_chunk().copied());
    let words = words.map(|pair| if is_big_endian { u16::from_be_bytes(pair) } else { u16::from_le_bytes(pair) });
    let words: Vec<u16> = words.take_while(|word| *word != 0).collect();
    String::from_utf16_lossy(&words)
}

/// Paths that may lead to the parent, from names as Windows writes them.
fn paths(names: &[String]) -> Vec<String> {
    let mut paths = Vec::new();
    for name in names {
        let plain = name.trim_start_matches("file://").replace('\\', "/");
        let is_relative = !plain.starts_with('/') && plain.as_bytes().get(1) != Some(&b':');
        let last = plain.rsplit('/').next().unwrap_or_default().to_owned();
        paths.extend(is_relative.then(|| plain.clone()));
        paths.push(last);
    }
    // A name of dots is a folder, and one with a zero is none.
    paths
        .retain(|path| !path.contains('\0') && path.rsplit('/').next().is_some_and(|last| last.contains(|c| c != '.')));
    paths
}

/// Opens the first file that is there of those that `names` mean, for `file`.
///
/// # Errors
/// `Corrupt` without a name; `NotFound` when none is there; otherwise what opening says.
pub(super) fn open(opener: &Opener, file: &ImageFile, names: &[String]) -> Result<ImageFile> {
    let mut missing = None;
    for path in paths(names) {
        match opener.gate.open_named(file, Path::new(&path), "parent") {
            Err(error) if error.kind() == ErrorKind::NotFound => missing = missing.or(Some(error)),
            other => return other,
        }
    }
    Err(missing
        .unwrap_or_else(|| Error::corrupt("it has a parent but does not name it").at_path(file.path()))
        .hint("put the parent beside the image, under the name that the image gives it"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_windows_become_paths_here() {
        let names = |name: &str| paths(&[name.to_owned()]);
        assert_eq!(names(".\\a b.vhd"), ["./a b.vhd", "a b.vhd"]);
        assert_eq!(names("..\\base\\x.vhdx"), ["../base/x.vhdx", "x.vhdx"]);
        assert_eq!(names("C:\\VMs\\x.vhdx"), ["x.vhdx"]);
        assert_eq!(names("\\\\?\\Volume{1}\\x.vhdx"), ["x.vhdx"]);
        assert_eq!(names("file:///home/x.vhd"), ["x.vhd"]);
        assert!(names("..\\..").is_empty() && names("").is_empty() && names("a\0").is_empty());
        assert_eq!(utf16(b"a\0b\0\0\0c\0", false), "ab");
        assert_eq!(utf16(b"\0a\0b", true), "ab");
    }
}
