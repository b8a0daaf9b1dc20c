//! Feature bits: what is known, what each is called, and what is refused.
//!
//! Version 4 keeps its features in two words, version 5 in four masks: compatible, read-only compatible, incompatible,
//! and incompatible for the log alone. Names are those of `xfs_info` and `mkfs.xfs`.
//!
//! Source: the kernel's `fs/xfs/libxfs/xfs_format.h`.

use firn_disk::{Error, Record, Result};

/// Bits of the version word.
mod version {
    pub const NUMBER: u16 = 0xF;
    pub const ATTRIBUTES: u16 = 0x10;
    pub const QUOTA: u16 = 0x40;
    pub const SHARED: u16 = 0x200;
    pub const LOG_V2: u16 = 0x400;
    pub const FOLDERS_V2: u16 = 0x2000;
    pub const ASCII_CI: u16 = 0x4000;
    pub const MORE: u16 = 0x8000;
}

/// Bits of the second word of version 4.
mod more {
    pub const LAZY_COUNT: u32 = 0x2;
    pub const ATTR2: u32 = 0x8;
    pub const PROJID32: u32 = 0x80;
    pub const FTYPE: u32 = 0x200;
    pub const KNOWN: u32 = LAZY_COUNT | ATTR2 | PROJID32 | FTYPE;
}

const INCOMPAT_FTYPE: u32 = 0x1;
const INCOMPAT_META_UUID: u32 = 0x4;
const INCOMPAT_NEEDS_REPAIR: u32 = 0x10;

/// Incompatible features that are read.
const INCOMPAT_READ: [(u32, &str); 7] = [
    (INCOMPAT_FTYPE, "ftype"),
    (0x2, "sparse"),
    (INCOMPAT_META_UUID, "meta_uuid"),
    (0x8, "bigtime"),
    (0x20, "nrext64"),
    (0x40, "exchange"),
    (0x80, "parent"),
];
/// Incompatible features that are known and refused.
const INCOMPAT_REFUSED: [(u32, &str); 3] = [(0x100, "metadir"), (0x200, "zoned"), (0x400, "zone gaps")];
const RO_COMPAT: [(u32, &str); 4] = [(0x1, "finobt"), (0x2, "rmapbt"), (0x4, "reflink"), (0x8, "inobtcount")];
/// Extended attributes as log items of their own.
const LOG_XATTRS: u32 = 0x1;

/// All feature words of a superblock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Features {
    version: u16,
    more: u32,
    ro_compat: u32,
    incompat: u32,
    log_incompat: u32,
}

impl Features {
    /// Reads the words and refuses, by name, what is not known.
    pub fn read(record: &Record<'_>) -> Result<Self> {
        let version = record.be_u16(100)?;
        let number = version & version::NUMBER;
        if number != 4 && number != 5 {
            return Err(record.unsupported(100, format!("XFS version {number}")));
        }
        let is_v5 = number == 5;
        let word = |at: usize| if is_v5 { record.be_u32(at) } else { Ok(0) };
        let more = if is_v5 || version & version::MORE != 0 {
            // Older kernels wrote this word 4 bytes further on.
            record.be_u32(200)? | record.be_u32(204)?
        } else {
            0
        };
        let found = Self { version, more, ro_compat: word(212)?, incompat: word(216)?, log_incompat: word(220)? };
        if is_v5 {
            found.check_v5(record)?
        } else {
            found.check_v4(record)?
        }
        Ok(found)
    }

    fn check_v4(&self, record: &Record<'_>) -> Result<()> {
        if self.version & version::FOLDERS_V2 == 0 {
            return Err(record.unsupported(100, "folders of version 1"));
        }
        if self.version & version::SHARED != 0 {
            return Err(record.unsupported(100, "the feature shared"));
        }
        match self.more & !more::KNOWN {
            0 => Ok(()),
            bits => Err(record.unsupported(200, format!("unknown features {bits:#x}"))),
        }
    }

    fn check_v5(&self, record: &Record<'_>) -> Result<()> {
        if self.incompat & INCOMPAT_NEEDS_REPAIR != 0 {
            return Err(record
                .unsupported(216, "the file system is marked as in need of repair (needsrepair)")
                .hint("run xfs_repair on a copy of the disk"));
        }
        if let Some((_, name)) = INCOMPAT_REFUSED.iter().find(|(bit, _)| self.incompat & bit != 0) {
            return Err(record.unsupported(216, format!("the feature {name}")));
        }
        let known = INCOMPAT_READ.iter().fold(0, |bits, (bit, _)| bits | bit);
        match self.incompat & !known {
            0 => Ok(()),
            bits => Err(record.unsupported(216, format!("unknown incompatible features {bits:#x}"))),
        }
    }

    /// Why the log must not be replayed, if its features or those of the file system are not known.
    pub fn check_replay(&self) -> Result<()> {
        let known = RO_COMPAT.iter().fold(0, |bits, (bit, _)| bits | bit);
        let unknown = [("read-only compatible", self.ro_compat & !known), ("log", self.log_incompat & !LOG_XATTRS)];
        match unknown.into_iter().find(|(_, bits)| *bits != 0) {
            None => Ok(()),
            Some((which, bits)) => Err(Error::unsupported(format!("unknown {which} features {bits:#x}"))),
        }
    }

    /// Whether structures have checksums and point back to their owner.
    pub fn is_v5(&self) -> bool {
        self.version & version::NUMBER == 5
    }

    /// Whether folders say what their entries are.
    pub fn has_ftype(&self) -> bool {
        if self.is_v5() { self.incompat & INCOMPAT_FTYPE != 0 } else { self.more & more::FTYPE != 0 }
    }

    /// Whether structures carry another UUID than the file system.
    pub fn has_meta_uuid(&self) -> bool {
        self.incompat & INCOMPAT_META_UUID != 0
    }

    /// Whether names differ by more than the case of ASCII letters.
    pub fn ignores_case(&self) -> bool {
        self.version & version::ASCII_CI != 0
    }

    pub fn has_log_v2(&self) -> bool {
        self.is_v5() || self.version & version::LOG_V2 != 0
    }

    /// The names of all that is set.
    pub fn names(&self) -> Vec<String> {
        let mut names = vec![if self.is_v5() { "v5".into() } else { "v4".to_string() }];
        let mut add = |is_set: bool, name: &str| {
            if is_set {
                names.push(name.into());
            }
        };
        add(self.is_v5(), "crc");
        add(!self.is_v5() && self.more & more::FTYPE != 0, "ftype");
        for (bit, name) in INCOMPAT_READ {
            add(self.incompat & bit != 0, name);
        }
        for (bit, name) in RO_COMPAT {
            add(self.ro_compat & bit != 0, name);
        }
        let unknown = self.ro_compat & !RO_COMPAT.iter().fold(0, |bits, (bit, _)| bits | bit);
        add(unknown != 0, &format!("unknown read-only compatible {unknown:#x}"));
        add(self.version & version::ATTRIBUTES != 0, "attr");
        add(self.more & more::ATTR2 != 0, "attr2");
        add(self.more & more::LAZY_COUNT != 0, "lazy-count");
        add(self.more & more::PROJID32 != 0, "projid32bit");
        add(self.version & version::QUOTA != 0, "quota");
        add(self.ignores_case(), "ascii-ci");
        add(!self.is_v5() && self.has_log_v2(), "log v2");
        names
    }
}
