//! Layers over LVM2 metadata that is written here, for what no lab can be brought to make: contradictions,
//! circles, half-done moves, groups inside groups.

// The helpers of tests are tests too.
#![allow(clippy::unwrap_used)]

use firn_disk::{Disk, Error, ErrorKind, MemDisk, SharedDisk, testing};
use firn_format::layers::{LayerKind, Layers};
use std::fmt::Write;
use std::sync::Arc;

const START: usize = 1 << 20;
const EXTENT: usize = 4096;

fn crc(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0xF597_A6CF, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ if crc & 1 == 1 { 0xEDB8_8320 } else { 0 })
    })
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// A 32-character UUID that ends in `name`.
fn id(name: &str) -> String {
    format!("{name:0>32}")
}

/// A physical volume called `name` of 100 extents filled with a pattern, whose metadata is `text`.
fn physical(name: &str, text: &str, seed: u64) -> Vec<u8> {
    let mut disk = vec![0; START];
    put(&mut disk, 512, b"LABELONE");
    put(&mut disk, 520, &1_u64.to_le_bytes());
    put(&mut disk, 532, &32_u32.to_le_bytes());
    put(&mut disk, 536, b"LVM2 001");
    put(&mut disk, 544, id(name).as_bytes());
    for (at, value) in [(584, START), (616, 4096), (624, START - 4096)] {
        put(&mut disk, at, &(value as u64).to_le_bytes());
    }
    let sum = crc(&disk[532..1024]);
    put(&mut disk, 528, &sum.to_le_bytes());
    put(&mut disk, 4096 + 4, b" LVM2 x[5A%r0N*>");
    put(&mut disk, 4096 + 20, &1_u32.to_le_bytes());
    for (at, value) in [(24, 4096), (32, START - 4096), (40, 512), (48, text.len())] {
        put(&mut disk, 4096 + at, &(value as u64).to_le_bytes());
    }
    put(&mut disk, 4096 + 512, text.as_bytes());
    let sum = crc(text.as_bytes());
    put(&mut disk, 4096 + 56, &sum.to_le_bytes());
    let sum = crc(&disk[4100..4096 + 512]);
    put(&mut disk, 4096, &sum.to_le_bytes());
    disk.extend(testing::pattern(100 * EXTENT, seed));
    disk
}

/// The text of group `name`, with physical volumes called `physical` and the given logical ones.
fn group(name: &str, sequence: u32, physical: &[&str], logical: &str) -> String {
    let mut text = format!(
        "{name} {{\nid = \"{}\"\nseqno = {sequence}\nstatus = [\"READ\"]\nextent_size = {}\nphysical_volumes {{\n",
        id(name),
        EXTENT / 512
    );
    for (at, uuid) in physical.iter().enumerate() {
        // As it is in the text, the UUID has dashes.
        let id = id(uuid);
        let parts = [&id[..6], &id[6..10], &id[10..14], &id[14..18], &id[18..22], &id[22..26], &id[26..]].join("-");
        let pe = START / 512;
        writeln!(text, "pv{at} {{ id = \"{parts}\" status = [] pe_start = {pe} pe_count = 100 }}").unwrap();
    }
    write!(text, "}}\nlogical_volumes {{\n{logical}}}\n}}\ncontents = \"Text Format Volume Group\"\nversion = 1\n")
        .unwrap();
    text
}

/// A logical volume of one segment.
fn volume(name: &str, count: u32, segment: &str) -> String {
    format!(
        "{name} {{ id = \"{}\" status = [\"READ\", \"WRITE\", \"VISIBLE\"] segment_count = 1\n\
         segment1 {{ start_extent = 0 extent_count = {count} {segment} }} }}\n",
        id(name)
    )
}

fn linear(name: &str, count: u32, place: &str) -> String {
    volume(name, count, &format!("type = \"striped\" stripe_count = 1 stripes = [{place}]"))
}

fn probe(disks: Vec<Vec<u8>>) -> Layers {
    let letters = 'a'..='z';
    let shared = |bytes| -> SharedDisk { Arc::new(MemDisk::from(bytes)) };
    Layers::probe(letters.zip(disks).map(|(letter, bytes)| (format!("vd{letter}"), shared(bytes))).collect())
}

fn open(layers: &Layers, name: &str) -> Result<SharedDisk, Error> {
    layers.resolve(&[name]).and_then(|id| layers.disk(id))
}

#[track_caller]
fn check(layers: &Layers, name: &str, disk: &[u8], extent: usize) {
    let volume = open(layers, name).unwrap_or_else(|error| panic!("{name}: {error}"));
    let mut bytes = vec![0; usize::try_from(volume.len()).unwrap()];
    volume.read_at(&mut bytes, 0).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert!(bytes == disk[START + extent * EXTENT..][..bytes.len()], "{name} differs");
}

#[track_caller]
fn refused(logical: &str, name: &str, kind: ErrorKind, part: &str) {
    let layers = probe(vec![physical("a", &group("vg", 1, &["a"], logical), 1)]);
    let error = open(&layers, name).map(drop).unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.to_string().contains(part), "{error}");
}

#[test]
fn the_builder_makes_what_is_read() {
    let disk = physical("a", &group("vg", 1, &["a"], &linear("lv", 10, "\"pv0\", 5")), 1);
    let layers = probe(vec![disk.clone()]);
    check(&layers, "vg/lv", &disk, 5);
    assert!(layers.iter().all(|(_, node)| node.health.is_empty() && node.error.is_none()));
}

#[test]
fn mappings_that_make_no_sense_are_corrupt() {
    let list = linear("a", 10, "\"b\", 0") + &linear("b", 10, "\"a\", 0");
    refused(&list, "vg/a", ErrorKind::Corrupt, "circle");
    refused(&linear("a", 10, "\"a\", 0"), "vg/a", ErrorKind::Corrupt, "circle");
    refused(&linear("a", 10, "\"nothing\", 0"), "vg/a", ErrorKind::Corrupt, "nothing, which does not exist");
    refused(&linear("a", 10, "\"pv0\", 91"), "vg/a", ErrorKind::Corrupt, "too short");
    refused(&linear("a", 10, "\"pv0\", 9223372036854775807"), "vg/a", ErrorKind::Corrupt, "too short");
    let log = "type = \"mirror\" mirror_count = 1 mirror_log = \"x\" region_size = 8 mirrors = [\"pv0\", 0]";
    refused(&volume("a", 10, log), "vg/a", ErrorKind::Corrupt, "the log x does not exist");
    let mut chain = linear("v0", 1, "\"pv0\", 0");
    for at in 1..30 {
        chain += &linear(&format!("v{at}"), 1, &format!("\"v{}\", 0", at - 1));
    }
    refused(&chain, "vg/v29", ErrorKind::Corrupt, "nested too deeply");
}

#[test]
fn metadata_that_makes_no_sense_is_told_at_its_physical_volume() {
    for (logical, part) in [
        (linear("a", 0, "\"pv0\", 0"), "no extents"),
        (linear("a", 10, "\"pv0\""), "does not list volumes"),
        (linear("a", 10, "\"pv0\", 0, \"pv0\", 5"), "2 areas instead of 1"),
        (
            volume("a", 10, "type = \"striped\" stripe_count = 2 stripes = [\"pv0\", 0, \"pv0\", 9]"),
            "in 2 stripes of 0",
        ),
        (volume("a", 10, "type = \"raid1\" device_count = 2 raids = [\"a_rmeta_0\", \"b\"]"), "1 legs instead of 2"),
        (linear("a", 10, "\"pv0\", 0").replace("segment_count = 1", "segment_count = 2"), "1 segments, which is not"),
        (linear("a", 10, "\"pv0\", 0").replace("start_extent = 0", "start_extent = 1"), "do not meet"),
        (linear("a", 10, "\"pv0\", 0").replace("_count = 10", "_count = 99999999999999999"), "overflows"),
        ("a {".into(), "the text ends"),
        (linear("a", 10, "\"pv0\", 0").replace("a {", "\"\u{1b}[2J\" {"), "is not a name"),
    ] {
        let layers = probe(vec![physical("a", &group("vg", 1, &["a"], &logical), 1)]);
        let health: Vec<String> = layers.iter().flat_map(|(_, node)| node.health.clone()).collect();
        assert!(health.len() == 1 && health[0].contains(part), "{part}: {health:?}");
    }
}

#[test]
fn copies_that_contradict_each_other_are_not_chosen_between() {
    let one = group("vg", 7, &["a", "b"], &linear("lv", 10, "\"pv0\", 0"));
    let two = group("vg", 7, &["a", "b"], &linear("lv", 10, "\"pv1\", 0"));
    let layers = probe(vec![physical("a", &one, 1), physical("b", &two, 2)]);
    let error = open(&layers, "vg/lv").map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("different metadata") && error.next_step().is_some(), "{error}");
    // Of different age, the newer one wins, wherever it stands.
    let newer = group("vg", 8, &["a", "b"], &linear("lv", 10, "\"pv1\", 0"));
    for swapped in [false, true] {
        let mut disks = vec![physical("a", &one, 1), physical("b", &newer, 2)];
        let b = disks[1].clone();
        if swapped {
            disks.reverse();
        }
        let layers = probe(disks);
        check(&layers, "vg/lv", &b, 0);
        let node = layers.node(layers.resolve(&["vg"]).unwrap());
        assert!(node.health[0].contains("older: sequence number 7 instead of 8"), "{:?}", node.health);
    }
}

#[test]
fn a_disk_that_was_taken_out_of_its_group_is_told() {
    let old = group("vg", 7, &["a", "b"], &linear("lv", 10, "\"pv1\", 0"));
    let new = group("vg", 9, &["a"], &linear("lv", 10, "\"pv0\", 3"));
    let (a, b) = (physical("a", &new, 1), physical("b", &old, 2));
    let layers = probe(vec![a.clone(), b]);
    check(&layers, "vg/lv", &a, 3);
    let health = &layers.node(layers.resolve(&["vg"]).unwrap()).health;
    assert!(health.iter().any(|note| note.contains("vdb was removed from the group")), "{health:?}");
}

#[test]
fn a_pvmove_is_read_from_where_lvm_reads() {
    for (moved, extent, disk) in [("extents_moved = 4", 0, "a"), ("extents_moved = 10", 50, "b"), ("", 0, "a")] {
        let mirror =
            format!("type = \"mirror\" mirror_count = 2 {moved} region_size = 8 mirrors = [\"pv0\", 0, \"pv1\", 50]");
        let list = linear("lv", 10, "\"pvmove0\", 0") + &volume("pvmove0", 10, &mirror);
        let text = group("vg", 1, &["a", "b"], &list);
        let (a, b) = (physical("a", &text, 1), physical("b", &text, 2));
        let layers = probe(vec![a.clone(), b.clone()]);
        check(&layers, "vg/lv", if disk == "a" { &a } else { &b }, extent);
        // Without the disk that is read from, the other one's copy is not known to be whole.
        let layers = probe(vec![if disk == "a" { b } else { a }]);
        let error = open(&layers, "vg/lv").unwrap().read_at(&mut [0; 1], 0).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    }
}

#[test]
fn other_types_are_refused_by_name_wherever_they_stand() {
    refused(&volume("lv", 1, "type = \"cache\" cache_pool = \"p\""), "vg/lv", ErrorKind::Unsupported, "cache");
    let flagged = "type = \"striped+NEW\" stripe_count = 1 stripes = [\"pv0\", 0]";
    refused(&volume("lv", 1, flagged), "vg/lv", ErrorKind::Unsupported, "striped+NEW");
    let below = linear("lv", 1, "\"inner\", 0") + &volume("inner", 1, "type = \"integrity\" origin = \"x\"");
    refused(&below, "vg/lv", ErrorKind::Unsupported, "integrity of inner");
    let merging = linear("origin", 1, "\"pv0\", 0")
        + &linear("store", 1, "\"pv0\", 1")
        + &volume("snapshot0", 1, "type = \"snapshot\" chunk_size = 8 origin = \"origin\" merging_store = \"store\"");
    refused(&merging, "vg/origin", ErrorKind::Unsupported, "being merged");
    refused(&merging, "vg/store", ErrorKind::Unsupported, "being merged into origin");
    refused(&merging, "vg/snapshot0", ErrorKind::Invalid, "internal part");
}

#[test]
fn a_group_inside_a_volume_is_found_and_addressed() {
    let inner = physical("i", &group("inner", 1, &["i"], &linear("data", 10, "\"pv0\", 2")), 3);
    let extents = inner.len() / EXTENT;
    let text = group("outer", 1, &["o"], &linear("disk", u32::try_from(extents).unwrap(), "\"pv0\", 0"));
    let mut outer = physical("o", &text.replace("pe_count = 100", "pe_count = 400"), 1);
    outer.truncate(START);
    outer.extend_from_slice(&inner);
    let layers = probe(vec![outer]);
    check(&layers, "inner/data", &inner, 2);
    let id = layers.resolve(&["outer/disk", "inner/data"]).unwrap();
    assert_eq!(layers.node(id).address, "#inner/data");
    assert_eq!(layers.resolve(&["inner/data", "outer/disk"]).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn names_that_meet_are_an_error_with_the_uuids() {
    let disk = physical("a", &group("vda", 1, &["a"], &linear("lv", 10, "\"pv0\", 5")), 1);
    let layers = probe(vec![disk.clone()]);
    let error = layers.resolve(&["vda"]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains(&id("vda")), "{error}");
    check(&layers, "vda/lv", &disk, 5);
    check(&layers, &format!("{}/lv", id("VDA")), &disk, 5);
    let error = layers.resolve(&["vdb1"]).unwrap_err();
    let there = error.next_step().unwrap();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(there.ends_with("#vda") && there.contains(&format!("#{}/lv", id("vda"))), "{there}");
    assert_eq!(layers.resolve::<&str>(&[]).unwrap_err().kind(), ErrorKind::Invalid);
}

#[test]
fn devices_are_found_by_what_the_machine_calls_them() {
    let text = group("my-vg", 1, &["a"], &(linear("root-1", 10, "\"pv0\", 0") + &linear("swap", 10, "\"pv0\", 20")));
    let mut disk = physical("a", &text, 1);
    let root = START;
    disk[root..root + 4096].fill(0);
    put(&mut disk, root, b"XFSB");
    put(&mut disk, root + 32, &[0xAB; 16]);
    put(&mut disk, root + 108, b"system");
    let layers = probe(vec![disk]);
    let name = |device: &str| layers.device(device).map(|id| layers.node(id).name.clone());
    for device in ["/dev/my-vg/root-1", "/dev/mapper/my--vg-root--1"] {
        assert_eq!(name(device).as_deref(), Some("my-vg/root-1"), "{device}");
    }
    let uuid = "ABABABAB-abab-abab-abab-abababababab";
    for device in [format!("UUID={uuid}"), format!("UUID=\"{uuid}\""), format!("/dev/disk/by-uuid/{uuid}")] {
        assert_eq!(name(&device).as_deref(), Some("xfs"), "{device}");
    }
    assert_eq!(name("LABEL=system").as_deref(), Some("xfs"));
    assert_eq!(name("/dev/sda").as_deref(), Some("vda"));
    for device in ["/dev/sdb", "/dev/sda1", "/dev/mapper/my-vg-root-1", "LABEL=", "tmpfs", "/dev/loop0"] {
        assert_eq!(name(device), None, "{device}");
    }
}

#[test]
fn much_metadata_takes_little_time() {
    // Every volume lies on one that is in two thousand pieces; each is mapped once.
    let mut pieces = String::new();
    for at in 0..2000 {
        writeln!(
            pieces,
            "segment{} {{ start_extent = {at} extent_count = 1 type = \"striped\" stripe_count = 1 \
             stripes = [\"pv0\", {}] }}",
            at + 1,
            at % 100
        )
        .unwrap();
    }
    let mut list = format!("all {{ id = \"all\" status = [] segment_count = 2000\n{pieces}}}\n");
    for at in 0..2000 {
        list += &linear(&format!("v{at}"), 2000, "\"all\", 0");
    }
    let layers = probe(vec![physical("a", &group("vg", 1, &["a"], &list), 1)]);
    assert_eq!(layers.iter().filter(|(_, node)| node.kind == LayerKind::LogicalVolume).count(), 2001);
    open(&layers, "vg/v1999").unwrap().read_at(&mut [0; 4096], 1_000_000).unwrap();
}

#[test]
fn every_signature_with_anything_around_it_is_looked_at_without_panic() {
    let magics: [(usize, &[u8]); 16] = [
        (0, b"LUKS\xBA\xBE\x00\x02"),
        (0, b"LUKS\xBA\xBE\x00\x09"),
        (3, b"NTFS    "),
        (3, b"EXFAT   "),
        (0, b"\xEB\x3C\x90mkfs.fat\0\x02\x01\x01\0\x01\0\0\x10\0\xF8"),
        (1080, b"\x53\xEF"),
        (0, b"XFSB"),
        (0x1_0040, b"_BHRfS_M"),
        (4086, b"SWAPSPACE2"),
        (0x8001, b"CD001"),
        (4096, b"\xFC\x4E\x2B\xA9\x01\0\0\0"),
        (0x3_0000 - 0x1_0000, b"\xFC\x4E\x2B\xA9\0\0\0\0\x5A\0\0\0"),
        (0x2_0400, b"\x0C\xB1\xBA\0\0\0\0\0"),
        (510, b"\x55\xAA"),
        (512, b"LABELONE"),
        (512, b"EFI PART"),
    ];
    let mut random = testing::Random::new(23);
    let mut kinds = std::collections::BTreeSet::new();
    for round in 0..2000 {
        let length = [0x3_0000, 0x2_0000, 70_000, 5000, 1100, 512][usize::try_from(random.below(6)).unwrap()];
        let mut bytes = if round % 2 == 0 { vec![0; length] } else { testing::pattern(length, round) };
        for _ in 0..=random.below(3) {
            let (at, magic) = magics[usize::try_from(random.below(16)).unwrap()];
            if at + magic.len() <= length {
                put(&mut bytes, at, magic);
            }
        }
        put(&mut bytes, 510, b"\x55\xAA");
        let layers = probe(vec![bytes]);
        kinds.extend(layers.iter().map(|(_, node)| node.name.clone()));
        for id in layers.file_systems() {
            // What it says is for the file system's own tests; here it must only come back.
            let _ = layers.open_files(id, &firn_format::fs::OpenOptions::default());
        }
    }
    assert!(kinds.len() > 12, "{kinds:?}");
}
