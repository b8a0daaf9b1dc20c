//! seSparse extents, built by hand after what QEMU's block/vmdk.c knows of them; QEMU reads the same. No program of
//! VMware's was at hand.

use crate::support::{check_image, have, mixed_disk, open, qemu_img};
use firn_disk::ErrorKind;
use firn_disk::testing::{Random, check_disk, pattern};
use firn_format::image::{self, OpenOptions};
use std::path::Path;

const MIB: usize = 1 << 20;
const GRAIN: usize = 4096;
/// Grains of a table.
const ENTRIES: usize = 4096;

/// What a grain of the child is.
#[derive(Clone, Copy)]
enum Grain {
    Data(u64),
    Zero,
    Unmapped,
}

/// A seSparse extent for a disk of `capacity` bytes.
fn extent(capacity: usize, grains: &[(usize, Grain)]) -> Vec<u8> {
    let tables = capacity.div_ceil(GRAIN * ENTRIES);
    // In sectors: headers, journal, directory, tables, free bitmap, back map, grains.
    let (volatile, journal_header, journal, directory) = (1, 2, 4, 8);
    let table = directory + (tables * 8).div_ceil(512);
    let table_sectors = tables * 64;
    let bitmap = table + table_sectors;
    let backmap = bitmap + 8;
    let data = (backmap + 64_usize).next_multiple_of(8);
    let mut file = vec![0; data * 512];
    let mut put = |at: usize, value: u64| file[at..at + 8].copy_from_slice(&value.to_le_bytes());
    let header = [
        0xcafe_babe,
        0x2_0000_0001,
        capacity / 512,
        8,
        64,
        0,
        0,
        0,
        0,
        0,
        volatile,
        1,
        journal_header,
        2,
        journal,
        4,
        directory,
        (tables * 8).div_ceil(512),
        table,
        table_sectors,
        bitmap,
        8,
        backmap,
        64,
        data,
        1 << 20,
    ];
    for (field, value) in header.into_iter().enumerate() {
        put(field * 8, value as u64);
    }
    put(512, 0xcafe_cafe);
    let mut stored = Vec::new();
    // Tables in the order in which they are needed first, as numbers in the area of tables.
    let mut numbers: Vec<usize> = Vec::new();
    for (index, grain) in grains {
        let slot = index / ENTRIES;
        let number = numbers.iter().position(|table| *table == slot).unwrap_or_else(|| {
            numbers.push(slot);
            put(directory * 512 + slot * 8, 0x1000_0000_0000_0000 | (numbers.len() - 1) as u64);
            numbers.len() - 1
        });
        let entry = match grain {
            Grain::Zero => 0x2000_0000_0000_0000,
            Grain::Unmapped => 0x1000_0000_0000_0000,
            Grain::Data(seed) => {
                let number = (stored.len() / GRAIN) as u64;
                stored.extend(pattern(GRAIN, *seed));
                0x3000_0000_0000_0000 | (number & 0xfff) << 48 | number >> 12
            }
        };
        put((table + number * 64) * 512 + index % ENTRIES * 8, entry);
    }
    file.extend(stored);
    file
}

/// A base, a snapshot of it as seSparse, and the bytes that the snapshot shows.
fn snapshot(folder: &Path, length: usize, grains: &[(usize, Grain)]) -> Vec<u8> {
    let mut bytes = mixed_disk(length, 120);
    std::fs::write(folder.join("base-flat.vmdk"), &bytes).unwrap();
    let text = |cid: &str, parent: &str, kind: &str, extent: String| {
        format!("# Disk DescriptorFile\nversion=3\nCID={cid}\nparentCID={parent}\ncreateType=\"{kind}\"\n{extent}\n")
    };
    let sectors = length / 512;
    let base = text("0000cafe", "ffffffff", "vmfs", format!("RW {sectors} VMFS \"base-flat.vmdk\""));
    std::fs::write(folder.join("base.vmdk"), base).unwrap();
    let hint = format!("parentFileNameHint=\"base.vmdk\"\nRW {sectors} SESPARSE \"base-000001-sesparse.vmdk\"");
    std::fs::write(folder.join("base-000001.vmdk"), text("0000beef", "0000cafe", "seSparse", hint)).unwrap();
    std::fs::write(folder.join("base-000001-sesparse.vmdk"), extent(length, grains)).unwrap();
    for (index, grain) in grains {
        let start = index * GRAIN;
        let end = (start + GRAIN).min(length);
        match grain {
            Grain::Data(seed) => bytes[start..end].copy_from_slice(&pattern(GRAIN, *seed)[..end - start]),
            Grain::Zero | Grain::Unmapped => bytes[start..end].fill(0),
        }
    }
    bytes
}

fn grains(length: usize) -> Vec<(usize, Grain)> {
    let mut random = Random::new(121);
    let count = length.div_ceil(GRAIN) as u64;
    let mut found: Vec<(usize, Grain)> = Vec::new();
    for number in 0..900 {
        let index = usize::try_from(random.below(count)).unwrap();
        let grain = match number % 7 {
            0 => Grain::Zero,
            1 => Grain::Unmapped,
            _ => Grain::Data(number),
        };
        if found.iter().all(|(taken, _)| *taken != index) {
            found.push((index, grain));
        }
    }
    // Runs, over the end of a table, too.
    found.retain(|(index, _)| !(4090..4100).contains(index));
    found.extend((4090..4100).map(|index| (index, Grain::Data(index as u64))));
    found
}

#[test]
fn a_snapshot_of_esxi_reads_as_in_qemu() {
    let folder = tempfile::tempdir().unwrap();
    let length = 40 * MIB;
    let bytes = snapshot(folder.path(), length, &grains(length));
    let path = folder.path().join("base-000001.vmdk");
    let image = open(&path);
    check_disk(&image.disk, &bytes, 122);
    assert_eq!(image.details.subformat.as_deref(), Some("seSparse"));
    assert_eq!((image.details.cluster_size, image.details.chain.len()), (Some(4096), 1));
    drop(image);
    if have("qemu-img", "a_snapshot_of_esxi_reads_as_in_qemu") {
        std::fs::write(folder.path().join("expected.raw"), &bytes).unwrap();
        qemu_img(folder.path(), &["compare", "-f", "raw", "-F", "vmdk", "expected.raw", "base-000001.vmdk"]);
        check_image(&path, &bytes, 123);
    }
}

#[test]
fn what_is_not_known_of_an_sesparse_extent_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let length = 20 * MIB;
    let bytes = snapshot(folder.path(), length, &grains(length));
    let at = |name: &str| folder.path().join(name);
    let sound = std::fs::read(at("base-000001-sesparse.vmdk")).unwrap();
    let refusal = |path: &Path| image::open(path, &OpenOptions::default()).unwrap_err();
    let error = refusal(&at("base-000001-sesparse.vmdk"));
    assert!(error.kind() == ErrorKind::Invalid && error.next_step().unwrap().contains("descriptor"), "{error}");
    use ErrorKind::{Corrupt, Unsupported};
    for (what, place, value, kind) in [
        ("magic", 0, 1_u64, Corrupt),
        ("version", 8, 0x2_0000_0002, Unsupported),
        ("grain", 24, 16, Unsupported),
        ("table", 32, 32, Unsupported),
        ("flags", 40, 1, Unsupported),
        ("reserved", 56, 1, Unsupported),
        ("volatile header", 80, 2, Corrupt),
        ("replay", 512 + 24, 1, Unsupported),
        ("capacity", 16, 1 << 40, Corrupt),
        ("small capacity", 16, 8, Corrupt),
        ("directory", 128, 1 << 54, Corrupt),
    ] {
        let mut lie = sound.clone();
        lie[place..place + 8].copy_from_slice(&value.to_le_bytes());
        std::fs::write(at("base-000001-sesparse.vmdk"), lie).unwrap();
        let error = refusal(&at("base-000001.vmdk"));
        assert_eq!(error.kind(), kind, "{what}: {error}");
    }
    // Damage of tables is told at the read; whatever reads, reads right or fails.
    let mut random = Random::new(124);
    for _ in 0..400 {
        let mut damaged = sound.clone();
        let at_byte = 4096 + usize::try_from(random.below(70_000)).unwrap();
        damaged[at_byte] ^= 1 << random.below(8);
        std::fs::write(at("base-000001-sesparse.vmdk"), &damaged).unwrap();
        if let Ok(image) = image::open(at("base-000001.vmdk"), &OpenOptions::default()) {
            let mut read = vec![0; length];
            let _ = image.disk.read_at(&mut read, 0);
        }
    }
    std::fs::write(at("base-000001-sesparse.vmdk"), &sound).unwrap();
    check_disk(&open(at("base-000001.vmdk")).disk, &bytes, 125);
}
