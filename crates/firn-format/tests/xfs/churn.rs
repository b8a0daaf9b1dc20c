//! A write load for what XFS logs in forms of its own: chunks of inodes, folders that grow and shrink through all
//! forms, maps that become trees, shared extents, and attributes in leaves. From a seed.

#![allow(clippy::cast_possible_truncation)]

use firn_disk::testing::Random;
use rustix::fs::{FallocateFlags, XattrFlags, fallocate, ioctl_ficlone, setxattr};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};

/// The load's state.
pub struct Churn {
    root: PathBuf,
    random: Random,
    count: u64,
}

impl Churn {
    /// A load on the folder `root`, which is made.
    pub fn new(root: &Path, seed: u64) -> Self {
        fs::create_dir_all(root).unwrap();
        Self { root: root.to_path_buf(), random: Random::new(seed), count: 0 }
    }

    /// One random change. A full disk is no failure.
    pub fn step(&mut self) {
        match self.random.below(10) {
            0 | 1 => self.crowd(),
            2 | 3 => self.pieces(),
            4..=6 => self.share(),
            7 => self.attributes(),
            8 => self.links(),
            _ => self.remove(),
        }
    }

    fn path(&mut self) -> PathBuf {
        self.count += 1;
        self.root.join(format!("c{}", self.count))
    }

    /// One of the last that were made, which may be gone.
    fn old(&mut self) -> PathBuf {
        let back = self.random.below(12).min(self.count);
        self.root.join(format!("c{}", self.count - back))
    }

    fn bytes(&mut self, most: u64) -> Vec<u8> {
        let mut bytes = vec![0; 1 + self.random.below(most) as usize];
        self.random.fill(&mut bytes);
        bytes
    }

    fn sync_sometimes(&mut self, file: &File) {
        if self.random.below(4) == 0 {
            let _ = file.sync_all();
        }
    }

    /// Many inodes, of which most go again.
    fn crowd(&mut self) {
        let path = self.path();
        if fs::create_dir(&path).is_err() {
            return;
        }
        let count = [20, 100, 700][self.random.below(3) as usize];
        for number in 0..count {
            let _ = File::create(path.join(format!("{}{number}", "crowd".repeat(6))));
        }
        if let Ok(folder) = File::open(&path) {
            self.sync_sometimes(&folder);
        }
        let left = self.random.below(count);
        for number in left..count {
            let _ = fs::remove_file(path.join(format!("{}{number}", "crowd".repeat(6))));
        }
    }

    /// A file in many pieces; later more, fewer or other ones.
    fn pieces(&mut self) {
        let path = if self.random.below(2) == 0 { self.path() } else { self.old() };
        let Ok(file) = OpenOptions::new().write(true).create(true).truncate(false).open(path) else { return };
        let bytes = self.bytes(4000);
        for _ in 0..40 {
            let at = self.random.below(300) * 8192;
            let _ = file.write_all_at(&bytes, at);
        }
        self.sync_sometimes(&file);
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        for flags in [punch, FallocateFlags::KEEP_SIZE, FallocateFlags::COLLAPSE_RANGE, FallocateFlags::INSERT_RANGE] {
            let at = self.random.below(100) * 65536;
            let _ = fallocate(&file, flags, at, 65536);
        }
        self.sync_sometimes(&file);
    }

    /// A copy that shares its extents, written over here and there.
    fn share(&mut self) {
        let (from, to) = (self.old(), self.path());
        let (Ok(from), Ok(to)) = (File::open(from), File::create(to)) else { return };
        let _ = ioctl_ficlone(&to, from);
        let bytes = self.bytes(30_000);
        for _ in 0..self.random.below(8) {
            let at = self.random.below(2_000_000);
            let _ = to.write_all_at(&bytes, at);
        }
        self.sync_sometimes(&to);
    }

    fn attributes(&mut self) {
        let path = self.old();
        for _ in 0..20 {
            let name = format!("user.number-{}", self.random.below(60));
            if self.random.below(3) == 0 {
                let _ = rustix::fs::removexattr(&path, name);
            } else {
                let most = [30, 300, 5000][self.random.below(3) as usize];
                let _ = setxattr(&path, name, &self.bytes(most), XattrFlags::empty());
            }
        }
        if let Ok(file) = File::open(&path) {
            self.sync_sometimes(&file);
        }
    }

    fn links(&mut self) {
        let (path, length) = (self.path(), 1 + self.random.below(1000) as usize);
        let _ = symlink("l".repeat(length), path);
    }

    fn remove(&mut self) {
        let path = self.old();
        let _ = fs::remove_dir_all(&path);
        let _ = fs::remove_file(&path);
    }
}
