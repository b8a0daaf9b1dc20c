//! The feature bits of the superblock, by their usual names, and which of them can be read.
//!
//! Three sets stand in the superblock. An unknown *compat* or *ro_compat* bit does not change how files are read; an
//! unknown *incompat* bit does, and is refused by its name.
//!
//! Source: e2fsprogs `lib/e2p/feature.c`, the kernel's `fs/ext4/ext4.h`.

/// compat: harmless to who does not know it.
pub(super) mod compat {
    pub const HAS_JOURNAL: u32 = 0x4;
    pub const DIR_INDEX: u32 = 0x20;
    pub const SPARSE_SUPER2: u32 = 0x200;
    pub const FAST_COMMIT: u32 = 0x400;
    pub const ORPHAN_FILE: u32 = 0x1000;
}

/// ro_compat: harmless to who only reads.
pub(super) mod ro_compat {
    pub const SPARSE_SUPER: u32 = 0x1;
    pub const HUGE_FILE: u32 = 0x8;
    pub const GDT_CSUM: u32 = 0x10;
    pub const DIR_NLINK: u32 = 0x20;
    pub const EXTRA_ISIZE: u32 = 0x40;
    pub const QUOTA: u32 = 0x100;
    pub const BIGALLOC: u32 = 0x200;
    pub const METADATA_CSUM: u32 = 0x400;
    pub const PROJECT: u32 = 0x2000;
    pub const VERITY: u32 = 0x8000;
    pub const ORPHAN_PRESENT: u32 = 0x1_0000;
}

/// incompat: to be known by everyone.
pub(super) mod incompat {
    pub const FILETYPE: u32 = 0x2;
    pub const RECOVER: u32 = 0x4;
    pub const JOURNAL_DEV: u32 = 0x8;
    pub const META_BG: u32 = 0x10;
    pub const EXTENTS: u32 = 0x40;
    pub const BIT64: u32 = 0x80;
    pub const MMP: u32 = 0x100;
    pub const FLEX_BG: u32 = 0x200;
    pub const EA_INODE: u32 = 0x400;
    pub const CSUM_SEED: u32 = 0x2000;
    pub const LARGE_DIR: u32 = 0x4000;
    pub const INLINE_DATA: u32 = 0x8000;
    pub const ENCRYPT: u32 = 0x1_0000;
    pub const CASEFOLD: u32 = 0x2_0000;

    /// What can be read here. `journal_dev` is refused with words of its own.
    pub const READABLE: u32 = FILETYPE
        | RECOVER
        | META_BG
        | EXTENTS
        | BIT64
        | MMP
        | FLEX_BG
        | EA_INODE
        | CSUM_SEED
        | LARGE_DIR
        | INLINE_DATA
        | ENCRYPT
        | CASEFOLD;
}

const COMPAT_NAMES: &[(u32, &str)] = &[
    (0x1, "dir_prealloc"),
    (0x2, "imagic_inodes"),
    (compat::HAS_JOURNAL, "has_journal"),
    (0x8, "ext_attr"),
    (0x10, "resize_inode"),
    (compat::DIR_INDEX, "dir_index"),
    (0x40, "lazy_bg"),
    (0x80, "exclude_inode"),
    (0x100, "snapshot_bitmap"),
    (compat::SPARSE_SUPER2, "sparse_super2"),
    (compat::FAST_COMMIT, "fast_commit"),
    (0x800, "stable_inodes"),
    (compat::ORPHAN_FILE, "orphan_file"),
];

const INCOMPAT_NAMES: &[(u32, &str)] = &[
    (0x1, "compression"),
    (incompat::FILETYPE, "filetype"),
    (incompat::RECOVER, "needs_recovery"),
    (incompat::JOURNAL_DEV, "journal_dev"),
    (incompat::META_BG, "meta_bg"),
    (incompat::EXTENTS, "extent"),
    (incompat::BIT64, "64bit"),
    (incompat::MMP, "mmp"),
    (incompat::FLEX_BG, "flex_bg"),
    (incompat::EA_INODE, "ea_inode"),
    (0x1000, "dirdata"),
    (incompat::CSUM_SEED, "metadata_csum_seed"),
    (incompat::LARGE_DIR, "large_dir"),
    (incompat::INLINE_DATA, "inline_data"),
    (incompat::ENCRYPT, "encrypt"),
    (incompat::CASEFOLD, "casefold"),
];

const RO_COMPAT_NAMES: &[(u32, &str)] = &[
    (ro_compat::SPARSE_SUPER, "sparse_super"),
    (0x2, "large_file"),
    (0x4, "btree_dir"),
    (ro_compat::HUGE_FILE, "huge_file"),
    (ro_compat::GDT_CSUM, "uninit_bg"),
    (ro_compat::DIR_NLINK, "dir_nlink"),
    (ro_compat::EXTRA_ISIZE, "extra_isize"),
    (0x80, "snapshot"),
    (ro_compat::QUOTA, "quota"),
    (ro_compat::BIGALLOC, "bigalloc"),
    (ro_compat::METADATA_CSUM, "metadata_csum"),
    (0x800, "replica"),
    (0x1000, "read-only"),
    (ro_compat::PROJECT, "project"),
    (0x4000, "shared_blocks"),
    (ro_compat::VERITY, "verity"),
    (ro_compat::ORPHAN_PRESENT, "orphan_present"),
];

/// The three sets of feature bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Features {
    pub compat: u32,
    pub incompat: u32,
    pub ro_compat: u32,
}

impl Features {
    pub fn compat(self, bit: u32) -> bool {
        self.compat & bit != 0
    }

    pub fn incompat(self, bit: u32) -> bool {
        self.incompat & bit != 0
    }

    pub fn ro_compat(self, bit: u32) -> bool {
        self.ro_compat & bit != 0
    }

    /// All of them by name, in the order of `dumpe2fs`; an unknown bit as `FEATURE_I20`.
    pub fn names(self) -> Vec<String> {
        let mut names = spell(self.compat, COMPAT_NAMES, 'C');
        names.extend(spell(self.incompat, INCOMPAT_NAMES, 'I'));
        names.extend(spell(self.ro_compat, RO_COMPAT_NAMES, 'R'));
        names
    }

    /// The names of the incompat features that cannot be read here.
    pub fn unreadable(self) -> Vec<String> {
        spell(self.incompat & !incompat::READABLE, INCOMPAT_NAMES, 'I')
    }

    /// `ext4`, `ext3` or `ext2`: the oldest of them that could mount this.
    pub fn kind(self) -> &'static str {
        const EXT3_INCOMPAT: u32 = incompat::FILETYPE | incompat::RECOVER | incompat::META_BG;
        const EXT3_RO_COMPAT: u32 = ro_compat::SPARSE_SUPER | 0x2 | 0x4;
        if self.incompat & !EXT3_INCOMPAT != 0 || self.ro_compat & !EXT3_RO_COMPAT != 0 {
            "ext4"
        } else if self.compat(compat::HAS_JOURNAL) {
            "ext3"
        } else {
            "ext2"
        }
    }
}

fn spell(bits: u32, names: &[(u32, &str)], set: char) -> Vec<String> {
    (0..32)
        .filter(|shift| bits >> shift & 1 == 1)
        .map(|shift| {
            let known = names.iter().find(|(bit, _)| *bit == 1 << shift);
            known.map_or_else(|| format!("FEATURE_{set}{shift}"), |(_, name)| (*name).to_string())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_kinds() {
        let plain = Features { compat: 0x38, incompat: 0x2, ro_compat: 0x3 };
        assert_eq!(plain.kind(), "ext2");
        assert_eq!(plain.names().join(" "), "ext_attr resize_inode dir_index filetype sparse_super large_file");
        assert_eq!(Features { compat: 0x3C, ..plain }.kind(), "ext3");
        assert_eq!(Features { incompat: 0x42, ..plain }.kind(), "ext4");
        assert!(plain.unreadable().is_empty());
        let odd = Features { incompat: 0x1 | 0x1000 | 1 << 20 | incompat::EXTENTS, ..plain };
        assert_eq!(odd.unreadable(), ["compression", "dirdata", "FEATURE_I20"]);
    }
}
