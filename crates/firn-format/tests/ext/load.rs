//! A write load that does everything to a tree, from a seed.

#![allow(clippy::cast_possible_truncation)]

use firn_disk::testing::Random;
use rustix::fs::{FallocateFlags, XattrFlags, fallocate, setxattr};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// An access list with a named user, as setxattr takes it.
pub const ACCESS_LIST: &[u8] = &[
    2, 0, 0, 0, 1, 0, 6, 0, 0xFF, 0xFF, 0xFF, 0xFF, 2, 0, 4, 0, 0xD2, 4, 0, 0, 4, 0, 4, 0, 0xFF, 0xFF, 0xFF, 0xFF,
    0x10, 0, 6, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0x20, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF,
];

/// The load's state: what is there, and what is open without a name.
pub struct Load {
    root: PathBuf,
    random: Random,
    files: Vec<PathBuf>,
    folders: Vec<PathBuf>,
    unlinked: Vec<File>,
    count: u64,
}

impl Load {
    /// A load on the folder `root`.
    pub fn new(root: &Path, seed: u64) -> Self {
        Self {
            root: root.to_path_buf(),
            random: Random::new(seed),
            files: Vec::new(),
            folders: vec![root.to_path_buf()],
            unlinked: Vec::new(),
            count: 0,
        }
    }

    fn pick(&mut self) -> Option<PathBuf> {
        let index = self.random.below(self.files.len() as u64) as usize;
        self.files.get(index).cloned()
    }

    fn new_path(&mut self) -> PathBuf {
        self.count += 1;
        let index = self.random.below(self.folders.len() as u64) as usize;
        let long = self.random.below(8) == 0;
        let name = format!("{}{}", if long { "n".repeat(120) } else { "f".into() }, self.count);
        self.folders[index].join(name)
    }

    fn bytes(&mut self, most: u64) -> Vec<u8> {
        let mut bytes = vec![0; self.random.below(most) as usize];
        self.random.fill(&mut bytes);
        bytes
    }

    /// One random change. A full disk is no failure.
    pub fn step(&mut self) {
        match self.random.below(22) {
            0..=4 => self.create(),
            5 | 6 => self.overwrite(),
            7 => self.truncate(),
            8 | 9 => self.rename(),
            10 | 11 => self.unlink(),
            12 => self.unlink_open(),
            13 => self.folder(),
            14 => self.remove_folder(),
            15 => {
                let (path, target) = (self.new_path(), "t".repeat(1 + self.random.below(90) as usize));
                let _ = symlink(target, path);
            }
            16 => {
                if let Some(path) = self.pick() {
                    let link = self.new_path();
                    if fs::hard_link(path, &link).is_ok() {
                        self.files.push(link);
                    }
                }
            }
            17 | 18 => self.attributes(),
            19 => self.reserve(),
            20 => self.crowd(),
            _ => {
                if let Ok(folder) = File::open(&self.root) {
                    let _ = folder.sync_all();
                }
            }
        }
    }

    /// One random change of those that a fast commit can hold.
    pub fn light_step(&mut self) {
        match self.random.below(11) {
            0..=3 => self.create(),
            4 => self.overwrite(),
            5 => self.truncate(),
            6 => self.rename(),
            7 => self.unlink(),
            8 => self.folder(),
            9 => self.remove_folder(),
            _ => {
                if let Some(path) = self.pick() {
                    let link = self.new_path();
                    if fs::hard_link(path, &link).is_ok() {
                        self.files.push(link);
                    }
                }
            }
        }
    }

    /// Makes everything durable by fsync of files alone, the last one a new one: a fast commit takes what others did
    /// along. (fsync of a folder makes a whole transaction.)
    pub fn sync(&mut self) {
        self.count += 1;
        let last = self.root.join(format!("last{}", self.count));
        fs::write(&last, "last").unwrap();
        for path in self.files.iter().chain([&last]) {
            if let Ok(file) = File::open(path) {
                let _ = file.sync_all();
            }
        }
    }

    fn sync_sometimes(&mut self, file: &File) {
        if self.random.below(3) == 0 {
            let _ = file.sync_all();
        }
    }

    fn create(&mut self) {
        let path = self.new_path();
        let most = if self.random.below(6) == 0 { 300_000 } else { 3000 };
        let bytes = self.bytes(most);
        let Ok(file) = File::create(&path) else { return };
        let _ = file.write_all_at(&bytes, 0);
        self.sync_sometimes(&file);
        self.files.push(path);
    }

    fn overwrite(&mut self) {
        let Some(path) = self.pick() else { return };
        let (bytes, offset) = (self.bytes(20_000), self.random.below(400_000));
        let Ok(file) = OpenOptions::new().write(true).open(path) else { return };
        let _ = file.write_all_at(&bytes, offset);
        self.sync_sometimes(&file);
    }

    fn truncate(&mut self) {
        let Some(path) = self.pick() else { return };
        let length = self.random.below(200_000);
        let Ok(file) = OpenOptions::new().write(true).open(path) else { return };
        let _ = file.set_len(length);
        self.sync_sometimes(&file);
    }

    fn rename(&mut self) {
        if self.files.is_empty() {
            return;
        }
        let index = self.random.below(self.files.len() as u64) as usize;
        let from = self.files.swap_remove(index);
        let to = if self.random.below(3) == 0 { self.pick() } else { None }.unwrap_or_else(|| self.new_path());
        if fs::rename(&from, &to).is_ok() {
            if !self.files.contains(&to) {
                self.files.push(to);
            }
        } else {
            self.files.push(from);
        }
    }

    fn unlink(&mut self) {
        if self.files.is_empty() {
            return;
        }
        let index = self.random.below(self.files.len() as u64) as usize;
        let _ = fs::remove_file(self.files.swap_remove(index));
    }

    fn unlink_open(&mut self) {
        let path = self.new_path();
        let bytes = self.bytes(60_000);
        let Ok(file) = File::create(&path) else { return };
        let _ = file.write_all_at(&bytes, 0);
        if self.random.below(2) == 0 {
            // Where values may be that long; shared with other files by their content.
            let value = [self.random.below(3) as u8; 9000];
            let _ = setxattr(&path, "user.long", &value, XattrFlags::empty());
        }
        self.sync_sometimes(&file);
        let _ = fs::remove_file(path);
        self.unlinked.push(file);
        if self.unlinked.len() > 6 {
            let index = self.random.below(6) as usize;
            self.unlinked.remove(index);
        }
    }

    fn folder(&mut self) {
        let path = self.new_path();
        if fs::create_dir(&path).is_ok() {
            let _ = fs::set_permissions(&path, fs::Permissions::from_mode(0o2755));
            self.folders.push(path);
        }
    }

    fn remove_folder(&mut self) {
        if self.folders.len() < 6 {
            return;
        }
        let index = 1 + self.random.below(self.folders.len() as u64 - 1) as usize;
        let path = self.folders.swap_remove(index);
        let _ = fs::remove_dir_all(&path);
        self.files.retain(|file| !file.starts_with(&path));
        self.folders.retain(|folder| !folder.starts_with(&path));
    }

    fn attributes(&mut self) {
        let Some(path) = self.pick() else { return };
        let value = self.bytes(700);
        let name = format!("user.a{}", self.random.below(4));
        let _ = setxattr(&path, name, &value, XattrFlags::empty());
        if self.random.below(4) == 0 {
            let _ = setxattr(&path, "system.posix_acl_access", ACCESS_LIST, XattrFlags::empty());
        }
    }

    fn reserve(&mut self) {
        let Some(path) = self.pick() else { return };
        let (offset, length) = (self.random.below(100_000), 1 + self.random.below(100_000));
        let Ok(file) = OpenOptions::new().write(true).open(path) else { return };
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let flags = match self.random.below(3) {
            0 => punch,
            1 => FallocateFlags::KEEP_SIZE,
            _ => FallocateFlags::empty(),
        };
        let _ = fallocate(&file, flags, offset, length);
        self.sync_sometimes(&file);
    }

    /// Many names in one folder, which then goes: its blocks are revoked and become data.
    fn crowd(&mut self) {
        let path = self.new_path();
        if fs::create_dir(&path).is_err() {
            return;
        }
        for index in 0..60 {
            let _ = File::create(path.join(format!("{}{index}", "crowd".repeat(12))));
        }
        if let Ok(folder) = File::open(&path) {
            let _ = folder.sync_all();
        }
        let _ = fs::remove_dir_all(&path);
        let data = self.new_path();
        let bytes = self.bytes(40_000);
        if let Ok(file) = File::create(&data) {
            let _ = file.write_all_at(&bytes, 0);
            let _ = file.sync_all();
            self.files.push(data);
        }
    }
}
