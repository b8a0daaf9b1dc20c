//! Trees with files of every kind.

use crate::load::ACCESS_LIST;
use firn_disk::testing::pattern;
use rustix::fs::{CWD, FallocateFlags, FileType, Mode, XattrFlags, fallocate, lsetxattr, makedev, mknodat};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

/// How a tree is made.
pub type Populate = fn(&Path);

/// Files, folders, links, devices, holes, odd names, odd times; a folder of 1500 names of which a third goes again.
pub fn everything(root: &Path) {
    mixture(root, 1500);
    fs::set_permissions(root.join("a/b"), fs::Permissions::from_mode(0o1777)).unwrap();
    for (name, seconds, nanoseconds) in [("old", -304_905_297_i64, 500_000_000), ("future", 7_258_118_400, 123_456_789)]
    {
        let file = File::create(root.join("a").join(name)).unwrap();
        let offset = Duration::from_secs(seconds.unsigned_abs());
        let time =
            if seconds < 0 { UNIX_EPOCH - offset } else { UNIX_EPOCH + offset } + Duration::from_nanos(nanoseconds);
        // An inode of 128 bytes cannot hold it; the kernel then stores the nearest it can.
        file.set_modified(time).unwrap();
    }
    for name in ["n".repeat(255), "a\nb\\c\x01".into(), "ünïcode ☃".into(), "-rf *".into()] {
        fs::write(root.join(name), "x").unwrap();
    }
}

/// The same, smaller.
pub fn few(root: &Path) {
    mixture(root, 300);
}

fn mixture(root: &Path, names: u32) {
    fs::create_dir_all(root.join("a/b/c")).unwrap();
    fs::create_dir(root.join("many")).unwrap();
    for number in 0..names {
        fs::write(root.join(format!("many/a file with the number {number}")), number.to_string()).unwrap();
    }
    for number in (0..names).step_by(3) {
        fs::remove_file(root.join(format!("many/a file with the number {number}"))).unwrap();
    }
    let a = root.join("a");
    for (name, length) in [("random", 3_000_000), ("small", 100), ("inline", 59), ("inline2", 140), ("empty", 0)] {
        fs::write(a.join(name), pattern(length, length as u64)).unwrap();
    }
    sparse(&a);
    for (name, length) in [("link", 5), ("link59", 59), ("link60", 60), ("longlink", 200)] {
        symlink("l".repeat(length), a.join(name)).unwrap();
    }
    fs::hard_link(a.join("random"), a.join("b/hard")).unwrap();
    for (name, kind, major, minor) in [
        ("char", FileType::CharacterDevice, 5, 1),
        ("block", FileType::BlockDevice, 259, 70000),
        ("none", FileType::CharacterDevice, 0, 0),
        ("fifo", FileType::Fifo, 0, 0),
        ("socket", FileType::Socket, 0, 0),
    ] {
        mknodat(CWD, a.join(name), kind, Mode::RUSR, makedev(major, minor)).unwrap();
    }
    chown(a.join("small"), Some(70_000), Some(80_000)).unwrap();
    fs::set_permissions(a.join("small"), fs::Permissions::from_mode(0o6751)).unwrap();
}

fn sparse(folder: &Path) {
    let file = File::create(folder.join("sparse")).unwrap();
    // Far enough for three levels of indirect blocks with blocks of 1 KiB.
    for at in [0, 5000, 70_000, 290_000, 80_000_000] {
        file.write_all_at(b"here", at).unwrap();
    }
    file.set_len(100_000_000).unwrap();
    let file = File::create(folder.join("holes")).unwrap();
    for index in (0..600).step_by(2) {
        file.write_all_at(&pattern(4096, index), index * 4096).unwrap();
    }
    file.sync_all().unwrap();
    let file = File::create(folder.join("reserved")).unwrap();
    // Not where there are no extents.
    let _ = fallocate(&file, FallocateFlags::empty(), 0, 400_000);
    let _ = fallocate(&file, FallocateFlags::KEEP_SIZE, 400_000, 400_000);
    file.write_all_at(&pattern(5000, 1), 100_000).unwrap();
}

fn set(path: &Path, name: &str, value: &[u8]) {
    lsetxattr(path, name, value, XattrFlags::empty()).unwrap_or_else(|error| panic!("{name}: {error}"));
}

/// Attributes of every prefix, in inodes and in blocks, shared blocks, and access lists.
pub fn attributes(root: &Path) {
    let (folder, file, link) = (root.join("d"), root.join("d/f"), root.join("d/l"));
    fs::create_dir(&folder).unwrap();
    fs::write(&file, "x").unwrap();
    symlink("f", &link).unwrap();
    for (name, length) in [
        ("user.small", 5),
        ("user.empty", 0),
        ("user.middle", 600),
        ("trusted.t", 40),
        ("security.other", 1),
        ("system.posix_acl_access", 0),
    ] {
        let value = if length == 0 && name.starts_with("system") { ACCESS_LIST.to_vec() } else { pattern(length, 1) };
        set(&file, name, &value);
    }
    set(&link, "trusted.link", b"l");
    set(&folder, "user.folder", &pattern(300, 2));
    set(&folder, "system.posix_acl_default", ACCESS_LIST);
    fs::write(folder.join("inherits"), "").unwrap();
    for number in 0..10 {
        let path = root.join(format!("shared{number}"));
        fs::write(&path, "y").unwrap();
        set(&path, "user.shared", &pattern(500, 3));
    }
}

/// Values that are longer than a block.
pub fn large_attributes(root: &Path) {
    let (file, link) = (root.join("f"), root.join("l"));
    fs::write(&file, "x").unwrap();
    symlink("abcdef", &link).unwrap();
    for number in 1..=3 {
        set(&file, &format!("user.large{number}"), &pattern(number * 20_000, 4));
    }
    set(&link, "trusted.large", &pattern(9000, 5));
    attributes(root);
}

/// A folder whose index has two levels.
pub fn many(root: &Path) {
    fs::create_dir(root.join("m")).unwrap();
    for number in 0..20_000 {
        File::create(root.join(format!("m/a-rather-long-name-to-fill-the-blocks-of-the-folder-{number:06}"))).unwrap();
    }
}
