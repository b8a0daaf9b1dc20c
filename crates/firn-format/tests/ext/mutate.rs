//! Images with wrong bytes: nothing may panic, hang or take memory without bound; and where structures have checksums,
//! what is answered is right.

use crate::dirty::Case;
use crate::dirty::{Arena, cut};
use crate::image::{has_tool, make, run, skip};
use firn_disk::testing::Random;
use firn_disk::{Disk, MemDisk, Overlay};
use firn_format::fs::ext::{Ext, ExtOptions};
use firn_format::fs::{FileTree, FileType};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// What data blocks are filled with: their bytes have no checksum.
const FILL: [u8; 2] = [0xDA, b'l'];

type Seen = BTreeMap<Vec<u8>, Result<String, String>>;

/// All that can be had of a tree; an error ends a branch.
fn probe(tree: &dyn FileTree, is_checked: bool) -> Seen {
    let mut seen = Seen::new();
    let mut folders = vec![(tree.root(), Vec::new(), 0)];
    while let Some((folder, path, depth)) = folders.pop() {
        let mut entries = Vec::new();
        let listed = tree.list(folder, &mut |entry| {
            entries.push(entry);
            Ok(())
        });
        if let Err(error) = listed {
            seen.insert([&path[..], b"/"].concat(), Err(error.to_string()));
            continue;
        }
        for entry in entries {
            let path = [&path[..], b"/", &entry.name].concat();
            let found = tree.lookup(folder, &entry.name).unwrap_or(entry.inode);
            assert!(found == entry.inode || !is_checked, "{entry:?} is found as {found}");
            let item = item(tree, entry.inode);
            if matches!(tree.stat(entry.inode), Ok(stat) if stat.file_type == FileType::Folder) && depth < 8 {
                folders.push((entry.inode, path.clone(), depth + 1));
            }
            seen.insert(path, item.map_err(|error| error.to_string()));
            assert!(seen.len() < 10_000, "more names than were made");
        }
    }
    seen
}

fn item(tree: &dyn FileTree, inode: u64) -> firn_disk::Result<String> {
    let stat = tree.stat(inode)?;
    let xattrs = tree.xattrs(inode)?;
    let content = match stat.file_type {
        FileType::Symlink => format!("{:?}", tree.read_link(inode)?),
        FileType::File => {
            let disk = tree.open(inode)?;
            let mut hash = blake3::Hasher::new();
            let mut buf = vec![0; 4096];
            // Enough of a file that claims to be huge.
            let mut at = 0;
            while at < disk.len().min(1 << 20) {
                let count = usize::try_from((disk.len() - at).min(4096)).unwrap();
                disk.read_at(&mut buf[..count], at)?;
                hash.update(&buf[..count]);
                disk.extent_at(at)?;
                at += count as u64;
            }
            hash.finalize().to_hex().to_string()
        }
        _ => String::new(),
    };
    Ok(format!("{stat:?} {xattrs:?} {content}"))
}

/// A small tree with every structure; no root needed.
fn image(folder: &Path, options: &[&str]) -> Vec<u8> {
    let tree = folder.join("tree");
    std::fs::create_dir_all(tree.join("a/b")).unwrap();
    std::fs::create_dir(tree.join("many")).unwrap();
    for number in 0..90 {
        std::fs::write(tree.join(format!("many/name-{number}-{}", "x".repeat(30))), vec![0xDA; number * 7]).unwrap();
    }
    std::fs::write(tree.join("a/large"), vec![0xDA; 60_000]).unwrap();
    let sparse = std::fs::File::create(tree.join("a/sparse")).unwrap();
    for at in 0..12 {
        std::os::unix::fs::FileExt::write_all_at(&sparse, &[0xDA; 1024], at * 9000 / 1024 * 1024).unwrap();
    }
    std::os::unix::fs::symlink("l".repeat(100), tree.join("a/b/long")).unwrap();
    std::os::unix::fs::symlink("llll", tree.join("short")).unwrap();
    let _ = rustix::fs::setxattr(tree.join("a/large"), "user.x", &[0xDA; 300], rustix::fs::XattrFlags::empty());
    let path = make(folder, 4, &[options, &["-b", "1024", "-N", "256", "-d", tree.to_str().unwrap()]].concat());
    std::fs::read(path).unwrap()
}

fn open(disk: impl Disk + 'static) -> firn_disk::Result<Arc<Ext>> {
    Ext::open(Arc::new(disk), &ExtOptions::default())
}

/// Bytes of structures: of sectors that are neither empty nor filled with content.
fn structure_bytes(bytes: &[u8]) -> Vec<u64> {
    let is_structure = |sector: &[u8]| !sector.iter().all(|byte| *byte == 0 || FILL.contains(byte));
    bytes
        .chunks(512)
        .enumerate()
        .filter(|(_, sector)| is_structure(sector))
        .flat_map(|(index, sector)| (0..sector.len()).map(move |at| (index * 512 + at) as u64))
        .collect()
}

fn mutate(test: &str, options: &[&str], rounds: u32, is_checked: bool) {
    if !has_tool("mkfs.ext4") {
        return skip(test, "needs mkfs.ext4");
    }
    let folder = tempfile::tempdir().unwrap();
    let bytes = image(folder.path(), options);
    let places = structure_bytes(&bytes);
    mutate_bytes(test, bytes, &places, rounds, is_checked);
}

fn mutate_bytes(test: &str, bytes: Vec<u8>, places: &[u64], rounds: u32, is_checked: bool) {
    let base = Arc::new(MemDisk::from(bytes.clone()));
    let sound = probe(&*open(base.clone()).unwrap(), true);
    assert!(sound.values().all(Result::is_ok), "{sound:?}");
    let (mut refused, mut partly) = (0, 0);
    for seed in 0..u64::from(rounds) {
        let mut random = Random::new(seed);
        let mut disk = Overlay::new(base.clone());
        let mut changed = Vec::new();
        for _ in 0..1 + random.below(3) {
            let at = places[usize::try_from(random.below(places.len() as u64)).unwrap()];
            let old = bytes[usize::try_from(at).unwrap()];
            let new = match random.below(3) {
                0 => old ^ 1 << random.below(8),
                1 => [0, 0xFF][usize::try_from(random.below(2)).unwrap()],
                _ => u8::try_from(random.below(256)).unwrap(),
            };
            disk.replace(at, [new].as_slice().into()).unwrap();
            changed.push((at, old, new));
        }
        let Ok(ours) = open(disk) else {
            refused += 1;
            continue;
        };
        let _ = (ours.facts(), ours.replayed_disk());
        let seen = probe(&*ours, is_checked);
        partly += u32::from(seen.values().any(Result::is_err));
        if is_checked {
            compare(&sound, &seen, &format!("{test}: seed {seed}, {changed:x?}"));
        }
    }
    eprintln!("{test}: {rounds} rounds, {refused} refused, {partly} with errors");
    assert!(refused + partly > 0, "the changes must be seen");
}

/// What is answered is as it was, and what is missing is behind an error.
fn compare(sound: &Seen, seen: &Seen, what: &str) {
    for (path, item) in seen {
        let name = String::from_utf8_lossy(path);
        if let Ok(item) = item {
            assert_eq!(sound.get(path), Some(&Ok(item.clone())), "{what}: {name}");
        }
    }
    for path in sound.keys().filter(|path| !seen.contains_key(*path)) {
        let mut parts = (0..path.len()).filter(|at| path[*at] == b'/');
        let behind_error =
            parts.any(|at| [&path[..at], &path[..=at]].iter().any(|part| matches!(seen.get(*part), Some(Err(_)))));
        assert!(behind_error, "{what}: {} is missing", String::from_utf8_lossy(path));
    }
}

#[test]
fn wrong_bytes_with_checksums() {
    mutate("wrong_bytes_with_checksums", &[], 2500, true);
}

#[test]
fn wrong_bytes_with_checksums_and_inline_data() {
    mutate("wrong_bytes_with_checksums_and_inline_data", &["-O", "inline_data,^resize_inode", "-I", "256"], 1500, true);
}

#[test]
fn wrong_bytes_without_checksums() {
    mutate("wrong_bytes_without_checksums", &["-t", "ext2"], 1500, false);
    mutate("wrong_bytes_without_checksums", &["-O", "^metadata_csum"], 1000, false);
}

/// Journals with fast commits, orphans in the list and in the file.
#[test]
fn wrong_bytes_in_journals() {
    let test = "wrong_bytes_in_journals";
    let Some(arena) = Arena::new(test) else { return };
    for (seed, mkfs) in [
        (3, &["-b", "1024", "-J", "size=2", "-O", "fast_commit,orphan_file"][..]),
        (4, &["-b", "1024", "-J", "size=1", "-O", "^metadata_csum,^64bit"]),
        (5, &["-b", "1024", "-J", "size=1", "-O", "^extent,^metadata_csum,^64bit"]),
    ] {
        let image = arena.path("image");
        std::fs::File::create(&image).unwrap().set_len(12 << 20).unwrap();
        run("mkfs.ext4", &[&["-q", "-F"], mkfs, &[image.to_str().unwrap()]].concat());
        let cuts = cut(&arena, &image, &Case { seed, cuts: 1, ..Case::named(test) });
        let bytes = std::fs::read(&cuts[0]).unwrap();
        // The first blocks of the file system, and what begins like a block of the log or a fast commit.
        let mut places = structure_bytes(&bytes[..300 << 10]);
        for (index, block) in bytes.chunks(1024).enumerate() {
            if block.starts_with(&[0xC0, 0x3B, 0x39, 0x98]) || block.starts_with(&[9, 0, 8, 0]) {
                places.extend((0..64).map(|at| (index * 1024 + at) as u64));
            }
        }
        mutate_bytes(test, bytes, &places, 400, false);
    }
}
