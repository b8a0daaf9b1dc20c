//! Trees that need the larger forms of XFS: maps that are trees, shared extents, folders that grew and shrank.

use firn_disk::testing::pattern;
use rustix::fs::{FallocateFlags, XattrFlags, fallocate, ioctl_ficlone, lsetxattr};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;

/// Files in so many pieces that their maps are trees, also of two levels with small blocks.
pub fn pieces(root: &Path) {
    let folder = root.join("pieces");
    fs::create_dir(&folder).unwrap();
    for (name, count) in [("few", 12), ("some", 60), ("many", 4000)] {
        let file = File::create(folder.join(name)).unwrap();
        for index in 0..count {
            file.write_all_at(&pattern(3000, index), index * 12_288).unwrap();
        }
        file.sync_all().unwrap();
        for index in (0..count).step_by(5) {
            let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            fallocate(&file, punch, index * 12_288, 4096).unwrap();
        }
        for index in (0..count).step_by(7) {
            fallocate(&file, FallocateFlags::KEEP_SIZE, index * 12_288 + 8192, 4096).unwrap();
        }
    }
}

/// Symlinks of every length that matters.
pub fn links(root: &Path) {
    let folder = root.join("links");
    fs::create_dir(&folder).unwrap();
    for length in [1, 100, 155, 156, 157, 300, 336, 337, 968, 969, 1000, 1023] {
        symlink("t".repeat(length), folder.join(format!("link{length}"))).unwrap();
        let link = folder.join(format!("attributed{length}"));
        symlink("t".repeat(length), &link).unwrap();
        lsetxattr(link, "trusted.of-a-link", &pattern(200, 1), XattrFlags::empty()).unwrap();
    }
}

/// Copies that share their extents, changed here and there.
pub fn shared(root: &Path) {
    let original = root.join("original");
    fs::write(&original, pattern(2_000_000, 1)).unwrap();
    for number in 0..10 {
        let copy = File::create(root.join(format!("shared{number}"))).unwrap();
        ioctl_ficlone(&copy, File::open(&original).unwrap()).unwrap();
        for index in 0..number {
            copy.write_all_at(&pattern(5000, index), index * 150_000).unwrap();
        }
    }
}

/// Attributes by the hundred: leaves, nodes, values in blocks of their own; and such that went again.
pub fn many_attributes(root: &Path) {
    for (name, count, length) in [("leaf", 12, 40), ("node", 400, 60), ("values", 30, 3500), ("long", 6, 65_000)] {
        let path = root.join(name);
        fs::write(&path, name).unwrap();
        for number in 0..count {
            let name = format!("user.attribute-number-{number}");
            lsetxattr(&path, name, &pattern(length, number), XattrFlags::empty()).unwrap();
        }
        for number in (0..count).step_by(3) {
            rustix::fs::lremovexattr(&path, format!("user.attribute-number-{number}")).unwrap();
        }
    }
}

/// A folder of every form, and one that was large and is small.
pub fn folders(root: &Path) {
    let root = root.join("folders");
    fs::create_dir(&root).unwrap();
    for (name, count, left) in
        [("short", 3, 3), ("block", 40, 40), ("leaf", 300, 300), ("node", 6000, 6000), ("shrunk", 6000, 2)]
    {
        let folder = root.join(name);
        fs::create_dir(&folder).unwrap();
        for number in 0..count {
            File::create(folder.join(format!("a-name-that-is-not-short-{number}"))).unwrap();
        }
        for number in left..count {
            fs::remove_file(folder.join(format!("a-name-that-is-not-short-{number}"))).unwrap();
        }
    }
    // Holes in a folder of many blocks.
    for number in 1000..5000 {
        fs::remove_file(root.join(format!("node/a-name-that-is-not-short-{number}"))).unwrap();
    }
}

/// All of these.
pub fn all(root: &Path) {
    pieces(root);
    links(root);
    many_attributes(root);
    folders(root);
}
