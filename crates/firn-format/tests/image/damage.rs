//! Damaged and hostile images: an error or the right bytes, never wrong bytes, a panic or an endless loop.

use crate::support::{have, mixed_disk, open, qemu_img, run, try_run};
use firn_disk::testing::{Random, check_disk};
use firn_disk::{Disk, ErrorKind};
use firn_format::image::{self, Image, OpenOptions};
use std::path::{Path, PathBuf};

/// An image of `format` that `qemu-img` made of mixed content, and that content.
fn made(folder: &Path, format: &str, options: &[&str], length: usize) -> (PathBuf, Vec<u8>) {
    let bytes = mixed_disk(length, 100);
    std::fs::write(folder.join("source.raw"), &bytes).unwrap();
    let mut arguments = vec!["convert", "-q", "-f", "raw", "-O", format];
    arguments.extend(options);
    arguments.extend(["source.raw", "image"]);
    qemu_img(folder, &arguments);
    (folder.join("image"), bytes)
}

fn be_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// What opening and reading everything says.
fn read_all(path: &Path) -> Result<Vec<u8>, firn_disk::Error> {
    let image = image::open(path, &OpenOptions::default())?;
    let mut bytes = vec![0xaa; usize::try_from(image.disk.len()).unwrap()];
    image.disk.read_at(&mut bytes, 0)?;
    Ok(bytes)
}

#[test]
fn each_lie_of_a_qcow2_header_is_told() {
    if !have("qemu-img", "each_lie_of_a_qcow2_header_is_told") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (path, _) = made(folder.path(), "qcow2", &[], 1 << 20);
    let sound = std::fs::read(&path).unwrap();
    let max = u64::MAX.to_be_bytes();
    use ErrorKind::{Corrupt, Unsupported};
    for (what, at, value, kind) in [
        ("version 9", 4, &[0, 0, 0, 9][..], Unsupported),
        ("version 1", 4, &[0, 0, 0, 1], Unsupported),
        ("clusters too small", 20, &[0, 0, 0, 8], Unsupported),
        ("clusters too large", 20, &[0, 0, 0, 22], Unsupported),
        ("clusters absurd", 20, &[255; 4], Unsupported),
        ("size", 24, &max, Corrupt),
        ("size past the L1 table", 24, &[0, 0, 1], Corrupt),
        ("size of all but one bit", 24, &[0x7f, 255, 255, 255, 255, 255, 255, 255], Corrupt),
        ("too few L1 entries", 36, &[0, 0, 0, 0], Corrupt),
        ("too many L1 entries", 36, &[255; 4], Corrupt),
        ("L1 at nothing", 40, &[0; 8], Corrupt),
        ("L1 between clusters", 46, &[1, 1], Corrupt),
        ("header length", 100, &[255; 4], Corrupt),
        ("short header length", 100, &[0, 0, 0, 72], Corrupt),
        ("snapshots without end", 60, &[255; 4], Corrupt),
        ("snapshots at the end", 60, &[0, 0, 0, 1, 255, 255, 255, 255, 255, 255, 255, 0], Corrupt),
        ("backing name too long", 8, &[0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 255, 255], Corrupt),
        ("backing name outside", 8, &[255, 255, 255, 255, 255, 255, 255, 255, 0, 0, 0, 9], Corrupt),
        ("compression unflagged", 104, &[1], Corrupt),
        ("compression unknown", 104, &[7], Unsupported),
    ] {
        let mut lie = sound.clone();
        lie[at..at + value.len()].copy_from_slice(value);
        std::fs::write(&path, lie).unwrap();
        let error = image::open(&path, &OpenOptions::default()).expect_err(what);
        assert_eq!(error.kind(), kind, "{what}: {error}");
    }
    for length in [0, 1, 3] {
        std::fs::write(&path, &sound[..length]).unwrap();
        assert_eq!(open(&path).format, image::ImageFormat::Raw, "{length} bytes are no magic");
    }
    for length in [4, 71, 103] {
        std::fs::write(&path, &sound[..length]).unwrap();
        assert_eq!(image::open(&path, &OpenOptions::default()).unwrap_err().kind(), Corrupt, "{length} bytes");
    }
}

#[test]
fn each_lie_of_a_table_entry_is_told() {
    if !have("qemu-img", "each_lie_of_a_table_entry_is_told") {
        return;
    }
    for (options, stride) in [(&["-o", "cluster_size=16k"][..], 8), (&["-o", "cluster_size=16k,extended_l2=on"], 16)] {
        let folder = tempfile::tempdir().unwrap();
        let (path, bytes) = made(folder.path(), "qcow2", options, 2 << 20);
        let sound = std::fs::read(&path).unwrap();
        let l1 = usize::try_from(be_u64(&sound, 40)).unwrap();
        let l2 = usize::try_from(be_u64(&sound, l1) & !(1 << 63)).unwrap();
        let is_stored = |index: &usize| {
            let entry = be_u64(&sound, l2 + index * stride);
            entry != 0 && entry & 1 == 0
        };
        let stored = l2 + (0..128).find(is_stored).unwrap() * stride;
        let far = 1_u64 << 50;
        let mut lies = vec![
            ("L1 outside", l1, far),
            ("L1 between clusters", l1, l2 as u64 + 512),
            ("L1 reserved high", l1, l2 as u64 | 1 << 60),
            ("L1 reserved low", l1, l2 as u64 | 4),
            ("L2 outside", stored, far),
            ("L2 between clusters", stored, 512),
            ("L2 reserved high", stored, 1 << 57 | 1 << 20),
            ("L2 reserved low", stored, 1 << 20 | 8),
            ("compressed outside", stored, 1 << 62 | 1 << 50),
            ("compressed garbage", stored, 1 << 62 | 3 << 60 | 70),
        ];
        if stride == 16 {
            lies.push(("zero bit beside subclusters", stored, be_u64(&sound, stored) | 1));
            lies.push(("subcluster allocated and zero", stored + 8, 1 | 1 << 32));
            lies.push(("subclusters of no cluster", stored, 0));
        }
        for (what, at, value) in lies {
            let mut lie = sound.clone();
            lie[at..at + 8].copy_from_slice(&value.to_be_bytes());
            std::fs::write(&path, lie).unwrap();
            assert_eq!(read_all(&path).expect_err(what).kind(), ErrorKind::Corrupt, "{what}");
        }
        // Refcounts are for writers: garbage there changes nothing.
        let mut garbage = sound.clone();
        let table = usize::try_from(be_u64(&sound, 48)).unwrap();
        let block = usize::try_from(be_u64(&sound, table)).unwrap();
        garbage[table..table + 16].fill(0xa5);
        garbage[block..block + 4096].fill(0x5a);
        std::fs::write(&path, garbage).unwrap();
        check_disk(&open(&path).disk, &bytes, 101);
    }
}

#[test]
fn a_zero_cluster_in_version_2_is_told() {
    if !have("qemu-img", "a_zero_cluster_in_version_2_is_told") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (path, _) = made(folder.path(), "qcow2", &["-o", "compat=0.10"], 1 << 20);
    let mut image = std::fs::read(&path).unwrap();
    let l1 = usize::try_from(be_u64(&image, 40)).unwrap();
    let l2 = usize::try_from(be_u64(&image, l1) & !(1 << 63)).unwrap();
    image[l2 + 7] |= 1;
    std::fs::write(&path, image).unwrap();
    assert_eq!(read_all(&path).unwrap_err().kind(), ErrorKind::Corrupt);
}

const SEEDS: [(&str, &[&str]); 9] = [
    ("qcow2", &["-o", "cluster_size=4k"]),
    ("qcow2", &["-o", "cluster_size=512"]),
    ("qcow2", &["-o", "cluster_size=16k,extended_l2=on"]),
    ("qcow2", &["-c", "-o", "cluster_size=4k"]),
    ("qcow2", &["-c", "-o", "cluster_size=4k,compression_type=zstd"]),
    ("qcow2", &["-o", "compat=0.10"]),
    ("vmdk", &["-o", "subformat=monolithicSparse"]),
    ("vmdk", &["-o", "subformat=streamOptimized"]),
    ("vmdk", &["-o", "subformat=twoGbMaxExtentSparse"]),
];

#[test]
fn a_truncated_image_gives_an_error_or_the_right_bytes() {
    if !have("qemu-img", "a_truncated_image_gives_an_error_or_the_right_bytes") {
        return;
    }
    for (format, options) in SEEDS {
        let folder = tempfile::tempdir().unwrap();
        let (named, bytes) = made(folder.path(), format, options, 700 << 10);
        let split = folder.path().join("image-s001");
        let path = if split.exists() { &split } else { &named };
        let sound = std::fs::read(path).unwrap();
        let mut random = Random::new(5);
        let mut cuts: Vec<usize> =
            (0..60).map(|_| usize::try_from(random.below(sound.len() as u64)).unwrap()).collect();
        cuts.extend([1, 100, 512, 1024, 4096, 65536].map(|cut| sound.len().saturating_sub(cut)));
        for cut in cuts.into_iter().filter(|cut| *cut >= 4) {
            std::fs::write(path, &sound[..cut]).unwrap();
            if let Ok(read) = read_all(&named) {
                assert!(read == bytes, "{format} {options:?} of {cut} bytes: wrong bytes");
            }
        }
    }
}

/// Asks for a little of everything, wherever the damaged image says that there is something.
fn exercise(image: &Image, random: &mut Random) {
    let disk = &image.disk;
    let mut buf = vec![0; 128 << 10];
    let mut at = 0;
    for _ in 0..100 {
        if at >= disk.len() {
            break;
        }
        match disk.extent_at(at) {
            Ok(extent) => {
                assert!(extent.length > 0 && extent.length <= disk.len() - at);
                at += extent.length;
            }
            Err(_) => at += 4096,
        }
    }
    let _ = image.stored_bitmap("b");
    for number in 0..12 {
        let offset = if number < 6 { number * 100_000 } else { random.below(disk.len().max(1)) };
        let rest = usize::try_from(disk.len().saturating_sub(offset)).unwrap_or(usize::MAX);
        let length = rest.min(buf.len());
        // The answer does not matter here; that there is one does.
        let _ = disk.read_at(&mut buf[..length], offset.min(disk.len()));
    }
}

fn mutate(bytes: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(6) {
        let length = bytes.len() as u64;
        if length < 16 {
            return;
        }
        // Most of what is worth damaging stands in front.
        let reach = [128, 1024, 70_000, length][usize::try_from(random.below(4)).unwrap()].min(length);
        let at = usize::try_from(random.below(reach)).unwrap();
        let end = (at + usize::try_from(random.below(9)).unwrap()).min(bytes.len());
        match random.below(6) {
            0 => random.fill(&mut bytes[at..end]),
            1 => bytes[at..end].fill(0xff),
            2 => bytes[at..end].fill(0),
            3 => bytes[at] ^= 1 << random.below(8),
            4 => bytes[at] = bytes[at].wrapping_add(1),
            _ if random.below(10) == 0 => bytes.truncate(at.max(4)),
            _ => {
                let from = usize::try_from(random.below(length - 8)).unwrap();
                bytes.copy_within(from..from + (end - at), at);
            }
        }
    }
}

#[test]
fn damage_never_panics_or_hangs() {
    if !have("qemu-img", "damage_never_panics_or_hangs") {
        return;
    }
    let mut opened = 0;
    for (seed, (format, options)) in (0..).zip(SEEDS) {
        let folder = tempfile::tempdir().unwrap();
        let (named, _) = made(folder.path(), format, options, 600 << 10);
        if format == "qcow2" {
            qemu_img(folder.path(), &["snapshot", "-c", "s1", "image"]);
            // Version 2 has no place for it.
            try_run(folder.path(), "qemu-img", &["bitmap", "--add", "image", "b"]);
            run(folder.path(), "qemu-io", &["-c", "write 8k 8k", "image"]);
        }
        let split = folder.path().join("image-s001");
        let path = if split.exists() { &split } else { &named };
        let sound = std::fs::read(path).unwrap();
        let mut random = Random::new(seed);
        for round in 0..300 {
            let mut bytes = sound.clone();
            mutate(&mut bytes, &mut random);
            std::fs::write(path, &bytes).unwrap();
            let snapshot = (round % 3 == 0 && format == "qcow2").then(|| "s1".to_owned());
            let options = OpenOptions { snapshot, ..OpenOptions::default() };
            if let Ok(image) = image::open(&named, &options) {
                opened += 1;
                exercise(&image, &mut random);
            }
        }
    }
    assert!(opened > 300, "the damage must not all be caught at opening: {opened}");
}

#[test]
fn damaged_descriptors_never_panic() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.vmdk");
    std::fs::write(folder.path().join("flat"), vec![1; 8192]).unwrap();
    let text = "# Disk DescriptorFile\nversion=1\nCID=00000001\nparentCID=ffffffff\ncreateType=\"vmfs\"\n\
                RW 8 VMFS \"flat\"\nRW 4 FLAT \"flat\" 3\nRW 5 ZERO\n";
    let mut random = Random::new(77);
    for _ in 0..3000 {
        let mut bytes = text.as_bytes().to_vec();
        mutate(&mut bytes, &mut random);
        std::fs::write(&path, &bytes).unwrap();
        if let Ok(image) = image::open(&path, &OpenOptions::default()) {
            exercise(&image, &mut random);
        }
    }
}
