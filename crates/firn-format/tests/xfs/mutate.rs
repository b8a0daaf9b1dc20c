//! Images with wrong bytes: nothing may panic, hang or take memory without bound; and where structures have checksums,
//! what is answered is right.

use crate::dirty::{Arena, cut};
use crate::image::{Mount, Recipe, can_mount};
use firn_disk::testing::Random;
use firn_disk::{Disk, MemDisk, Overlay};
use firn_format::fs::xfs::{Xfs, XfsOptions};
use firn_format::fs::{FileTree, FileType};
use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

/// What data blocks are filled with: their bytes have no checksum.
const FILL: u8 = 0xDA;

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
            if seen.len() > 10_000 {
                assert!(!is_checked, "more names than were made");
                return seen;
            }
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

/// A small tree with every structure.
fn populate(root: &Path) {
    std::fs::create_dir_all(root.join("a/b")).unwrap();
    for (name, count) in [("short", 3), ("block", 20), ("leaf", 120), ("node", 900)] {
        std::fs::create_dir(root.join(name)).unwrap();
        for number in 0..count {
            let bytes = vec![FILL; if number % 30 == 0 { number * 7 } else { 0 }];
            std::fs::write(root.join(format!("{name}/name-{number}-{}", "x".repeat(30))), bytes).unwrap();
        }
    }
    for (name, count) in [("a/large", 1), ("a/pieces", 12), ("a/tree", 400)] {
        let file = std::fs::File::create(root.join(name)).unwrap();
        for at in 0..count {
            file.write_all_at(&[FILL; 1024], at * 4096).unwrap();
        }
        file.sync_all().unwrap();
    }
    for length in [5, 400, 1000] {
        std::os::unix::fs::symlink("l".repeat(length), root.join(format!("a/b/link{length}"))).unwrap();
    }
    for (name, count, length) in [("few", 2, 10), ("leafed", 15, 30), ("noded", 90, 30), ("remote", 2, 3000)] {
        let path = root.join(format!("a/{name}"));
        std::fs::write(&path, [FILL; 300]).unwrap();
        for number in 0..count {
            let name = format!("user.attribute{number}");
            rustix::fs::setxattr(&path, name, &vec![FILL; length], rustix::fs::XattrFlags::empty()).unwrap();
        }
    }
}

fn open(disk: impl Disk + 'static) -> firn_disk::Result<Arc<Xfs>> {
    Xfs::open(Arc::new(disk), &XfsOptions::default())
}

/// Where a log stands, in bytes.
fn log_range(bytes: &[u8]) -> std::ops::Range<usize> {
    let word = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    let (block, start, log) = (word(4), word(52), bytes[124]);
    let at = (start >> log) * word(84) + (start & ((1 << log) - 1));
    at * block..(at + word(96)) * block
}

/// Bytes of structures: of sectors in `parts` that are neither empty nor filled with content.
fn structure_bytes(bytes: &[u8], is_wanted: impl Fn(usize) -> bool) -> Vec<u64> {
    let is_structure = |sector: &[u8]| !sector.iter().all(|byte| *byte == 0 || *byte == FILL);
    bytes
        .chunks(512)
        .enumerate()
        .filter(|(index, sector)| is_wanted(index * 512) && is_structure(sector))
        .flat_map(|(index, sector)| (0..sector.len()).map(move |at| (index * 512 + at) as u64))
        .collect()
}

fn mutate(test: &str, bytes: Vec<u8>, places: &[u64], rounds: u64, is_checked: bool) {
    let base = Arc::new(MemDisk::from(bytes.clone()));
    let sound = probe(&*open(base.clone()).unwrap(), is_checked);
    assert!(sound.values().all(Result::is_ok), "{sound:?}");
    let (mut refused, mut partly) = (0, 0);
    for seed in 0..rounds {
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

const SMALL: Recipe<'static> =
    Recipe { mebibytes: 32, mkfs: &["-b", "size=1024"], mount: "", incompat: 0, external_log: 0 };

#[test]
fn wrong_bytes_of_structures() {
    let test = "wrong_bytes_of_structures";
    if !can_mount(test) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    SMALL.make(&image);
    populate(Mount::new(&image, None, &folder.path().join("mount"), "").path());
    let bytes = std::fs::read(&image).unwrap();
    let log = log_range(&bytes);
    let places = structure_bytes(&bytes, |at| !log.contains(&at));
    mutate(test, bytes, &places, 500, true);
}

/// Wrong bytes whose checksum is right again: what the checks beside checksums are for.
#[test]
fn wrong_bytes_with_right_checksums() {
    let test = "wrong_bytes_with_right_checksums";
    if !can_mount(test) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    SMALL.make(&image);
    populate(Mount::new(&image, None, &folder.path().join("mount"), "").path());
    let bytes = std::fs::read(&image).unwrap();
    let log = log_range(&bytes);
    let blocks: Vec<_> = stamped(&bytes).into_iter().filter(|(at, ..)| !log.contains(at)).collect();
    assert!(blocks.len() > 100);
    let base = Arc::new(MemDisk::from(bytes));
    let mut partly = 0;
    for seed in 0..600 {
        let mut random = Random::new(seed);
        let mut disk = Overlay::new(base.clone());
        for _ in 0..1 + random.below(2) {
            let (at, length, crc) = blocks[usize::try_from(random.below(blocks.len() as u64)).unwrap()];
            let mut block = vec![0; length];
            disk.read_at(&mut block, at as u64).unwrap();
            block[usize::try_from(random.below(length as u64)).unwrap()] = u8::try_from(random.below(256)).unwrap();
            block[crc..crc + 4].fill(0);
            let sum = crc32c::crc32c(&block);
            block[crc..crc + 4].copy_from_slice(&sum.to_le_bytes());
            disk.replace(at as u64, block.into()).unwrap();
        }
        let Ok(ours) = open(disk) else { continue };
        partly += u32::from(probe(&*ours, false).values().any(Result::is_err));
    }
    assert!(partly > 0, "no change was seen");
    eprintln!("{test}: {partly} of 600 (seeds 0..600) with errors");
}

/// Inodes and blocks of 1 KiB that carry a right checksum: place, length, and where the checksum is.
fn stamped(bytes: &[u8]) -> Vec<(usize, usize, usize)> {
    let is_right = |at: usize, length: usize, crc: usize| {
        let mut block = bytes[at..at + length].to_vec();
        let stored: [u8; 4] = block[crc..crc + 4].try_into().unwrap();
        block[crc..crc + 4].fill(0);
        crc32c::crc32c(&block).to_le_bytes() == stored
    };
    let mut found = Vec::new();
    for at in (0..bytes.len()).step_by(512) {
        if bytes[at..].starts_with(b"IN") && is_right(at, 512, 100) {
            found.push((at, 512, 100));
        }
        for crc in [4, 12, 64] {
            if at % 1024 == 0 && bytes[at..at + 16] != [0; 16] && is_right(at, 1024, crc) {
                found.push((at, 1024, crc));
            }
        }
    }
    if is_right(0, 512, 224) {
        found.push((0, 512, 224));
    }
    found
}

/// Changes of logs, as they are and with the record's checksum made right, so that they come to what reads items.
#[test]
fn wrong_bytes_of_logs() {
    let test = "wrong_bytes_of_logs";
    let Some(arena) = Arena::new(test) else { return };
    for seed in [3, 4] {
        let cuts = cut(&arena, &SMALL, seed, 1);
        let bytes = std::fs::read(&cuts[0]).unwrap();
        let log = log_range(&bytes);
        let records = records(&bytes, log.clone());
        let places = structure_bytes(&bytes, |at| log.contains(&at));
        let base = Arc::new(MemDisk::from(bytes.clone()));
        let sound = open(base.clone()).unwrap().facts().health;
        let (mut refused, mut others) = (0, 0);
        for seed in 0..400 {
            let mut random = Random::new(seed);
            let mut disk = Overlay::new(base.clone());
            let mut pick = |bound: usize| usize::try_from(random.below(bound as u64)).unwrap();
            if seed % 4 == 0 {
                let place = places[pick(places.len())];
                disk.replace(place, Arc::from([bytes[usize::try_from(place).unwrap()] ^ 1 << pick(8)])).unwrap();
            }
            for _ in 0..1 + pick(3) {
                let (at, length) = records[pick(records.len())];
                let mut record = vec![0; 512 + length];
                disk.read_at(&mut record, at as u64).unwrap();
                // Most of all the first bytes, where operations and the forms of items are.
                let range = [64, 600, length][pick(3)].min(length);
                let within = pick(range);
                let other = u8::try_from(pick(256)).unwrap();
                record[512 + within] = [0, 0xFF, 1, other][pick(4)];
                let sum = record_sum(&record);
                record[32..36].copy_from_slice(&sum.to_le_bytes());
                disk.replace(at as u64, record.into()).unwrap();
            }
            match open(disk) {
                Ok(ours) => {
                    others += u32::from(ours.facts().health != sound);
                    probe(&*ours, false);
                }
                Err(_) => refused += 1,
            }
        }
        eprintln!(
            "{test}: {} records, {sound}; of 400 (seeds 0..400) {refused} refused, {others} other",
            records.len()
        );
        assert!(refused > 0, "the changes must be seen");
    }
}

/// Where records with one header stand, and how long they are behind it.
fn records(bytes: &[u8], log: std::ops::Range<usize>) -> Vec<(usize, usize)> {
    let word = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    let found = log.clone().step_by(512).filter(|at| bytes[*at..].starts_with(&[0xFE, 0xED, 0xBA, 0xBE]));
    found.map(|at| (at, word(at + 12))).filter(|(at, length)| at + 512 + length <= log.end && *length > 512).collect()
}

fn record_sum(record: &[u8]) -> u32 {
    let sum = crc32c::crc32c_append(crc32c::crc32c(&record[..32]), &[0; 4]);
    let sum = crc32c::crc32c_append(sum, &record[36..328]);
    crc32c::crc32c_append(sum, &record[512..])
}
