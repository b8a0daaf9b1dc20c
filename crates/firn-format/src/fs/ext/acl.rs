//! POSIX access lists: from the form on the disk to the one that `getxattr` answers.
//!
//! ```text
//! disk      version 1 (4);  entries: tag (2), permissions (2), and for named users and groups their id (4)
//! getxattr  version 2 (4);  entries: tag (2), permissions (2), id (4; all ones where there is none)
//! ```
//!
//! Source: the kernel's `fs/ext4/acl.h`, `include/uapi/linux/posix_acl_xattr.h`.

use firn_disk::{Record, Result};

const DISK_VERSION: u32 = 1;
const XATTR_VERSION: u32 = 2;
const USER: u16 = 0x02;
const GROUP: u16 = 0x08;

/// The value that `getxattr` answers.
pub(super) fn to_xattr(value: &Record<'_>) -> Result<Vec<u8>> {
    let version = value.le_u32(0)?;
    if version != DISK_VERSION {
        return Err(value.unsupported(0, format!("access list version {version}")));
    }
    let mut out = XATTR_VERSION.to_le_bytes().to_vec();
    let mut at = 4;
    while at < value.bytes().len() {
        let tag = value.le_u16(at)?;
        out.extend(value.slice(at, 4)?);
        let id = match tag {
            USER | GROUP => value.le_u32(at + 4)?,
            0x01 | 0x04 | 0x10 | 0x20 => u32::MAX,
            _ => return Err(value.corrupt(at, format!("access list tag {tag:#x}"))),
        };
        out.extend(id.to_le_bytes());
        at += if matches!(tag, USER | GROUP) { 8 } else { 4 };
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_added_where_the_disk_has_none() {
        let disk = [1, 0, 0, 0, 1, 0, 6, 0, 2, 0, 4, 0, 0xE8, 3, 0, 0, 0x20, 0, 4, 0];
        let xattr = to_xattr(&Record::new(&disk, "acl", 0)).unwrap();
        let none = [0xFF; 4];
        let expected = [&[2, 0, 0, 0, 1, 0, 6, 0][..], &none, &[2, 0, 4, 0, 0xE8, 3, 0, 0, 0x20, 0, 4, 0], &none];
        assert_eq!(xattr, expected.concat());
        assert!(to_xattr(&Record::new(&disk[..15], "acl", 0)).is_err());
        assert!(to_xattr(&Record::new(&[1, 0, 0, 0, 3, 0, 0, 0], "acl", 0)).is_err());
        assert!(to_xattr(&Record::new(&[], "acl", 0)).is_err());
    }
}
