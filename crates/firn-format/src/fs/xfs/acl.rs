//! POSIX access lists: from the form on the disk to the one that `getxattr` answers.
//!
//! ```text
//! disk      entries (4);  each: tag (4), id (4), permissions (2), 0 (2); big-endian
//! getxattr  version 2 (4);  each: tag (2), permissions (2), id (4; all ones where there is none); little-endian
//! ```
//!
//! Source: the kernel's `fs/xfs/libxfs/xfs_format.h` (`struct xfs_acl`), `fs/xfs/xfs_acl.c`,
//! `include/uapi/linux/posix_acl_xattr.h`.

use firn_disk::{Record, Result};

const XATTR_VERSION: u32 = 2;
const ENTRY: usize = 12;

/// The value that `getxattr` answers.
pub(super) fn to_xattr(value: &Record<'_>) -> Result<Vec<u8>> {
    let count = usize::try_from(value.be_u32(0)?).unwrap_or(usize::MAX);
    if count > (value.bytes().len() - 4) / ENTRY {
        return Err(value.corrupt(0, format!("an access list of {count} entries")));
    }
    let mut out = XATTR_VERSION.to_le_bytes().to_vec();
    for index in 0..count {
        let at = 4 + index * ENTRY;
        let tag = value.be_u32(at)?;
        let id = match tag {
            0x02 | 0x08 => value.be_u32(at + 4)?,
            0x01 | 0x04 | 0x10 | 0x20 => u32::MAX,
            _ => return Err(value.corrupt(at, format!("access list tag {tag:#x}"))),
        };
        // One of the six above.
        out.extend(u16::try_from(tag).unwrap_or(0).to_le_bytes());
        out.extend(value.be_u16(at + 8)?.to_le_bytes());
        out.extend(id.to_le_bytes());
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_turned_around() {
        let disk =
            [[0, 0, 0, 2].as_slice(), &[0, 0, 0, 1, 0, 0, 0, 0, 0, 6, 0, 0], &[0, 0, 0, 2, 0, 0, 3, 0xE8, 0, 4, 0, 0]]
                .concat();
        let xattr = to_xattr(&Record::new(&disk, "acl", 0)).unwrap();
        let none = [0xFF; 4];
        assert_eq!(xattr, [&[2, 0, 0, 0, 1, 0, 6, 0][..], &none, &[2, 0, 4, 0, 0xE8, 3, 0, 0]].concat());
        assert!(to_xattr(&Record::new(&disk[..20], "acl", 0)).is_err());
        assert!(to_xattr(&Record::new(&[], "acl", 0)).is_err());
    }
}
