//! LVM2 disks that were made in a real guest (lab/make-lvm-images.sh), compared with what the guest read.

// The helpers of tests are tests too.
#![allow(clippy::unwrap_used)]

use firn_disk::testing::{self, Random};
use firn_disk::{Disk, Error, ErrorKind, MemDisk, SharedDisk};
use firn_format::layers::{LayerKind, Layers, NodeId};
use std::path::PathBuf;
use std::sync::Arc;

fn data(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/lvm").join(name)
}

fn bytes_of(name: &str) -> Vec<u8> {
    let file = std::fs::read(data(&format!("{name}.raw.zst"))).unwrap();
    let mut decoder = zstd::Decoder::new(file.as_slice()).unwrap();
    decoder.window_log_max(27).unwrap();
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut decoder, &mut bytes).unwrap();
    bytes
}

fn memory(bytes: Vec<u8>) -> SharedDisk {
    Arc::new(MemDisk::from(bytes))
}

/// The layers of the named disks, called vda, vdb…
fn probe(names: &[&str]) -> Layers {
    probe_bytes(names.iter().map(|name| bytes_of(name)).collect())
}

fn probe_bytes(disks: Vec<Vec<u8>>) -> Layers {
    let letters = 'a'..='z';
    Layers::probe(letters.zip(disks).map(|(letter, bytes)| (format!("vd{letter}"), memory(bytes))).collect())
}

/// What the guest's sha256sum said of a whole volume.
fn expected(name: &str) -> String {
    let list = std::fs::read_to_string(data("volumes.sha256")).unwrap();
    let line = list.lines().find(|line| line.split("  ").nth(1) == Some(name));
    line.unwrap_or_else(|| panic!("{name} is not in the list")).split("  ").next().unwrap().to_owned()
}

fn hash(bytes: &[u8]) -> String {
    use std::fmt::Write;
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn open(layers: &Layers, address: &str) -> Result<SharedDisk, Error> {
    let selectors: Vec<&str> = address.split('#').collect();
    layers.resolve(&selectors).and_then(|id| layers.disk(id))
}

fn read(layers: &Layers, address: &str) -> Vec<u8> {
    let disk = open(layers, address).unwrap_or_else(|error| panic!("{address}: {error}"));
    let mut bytes = vec![0; usize::try_from(disk.len()).unwrap()];
    disk.read_at(&mut bytes, 0).unwrap_or_else(|error| panic!("{address}: {error}"));
    bytes
}

#[track_caller]
fn check(layers: &Layers, address: &str, name: &str) {
    assert_eq!(hash(&read(layers, address)), expected(name), "{address}");
}

fn find<'a>(layers: &'a Layers, kind: LayerKind, name: &str) -> (NodeId, &'a firn_format::layers::Node) {
    layers.iter().find(|(_, node)| node.kind == kind && node.name == name).unwrap_or_else(|| panic!("{name}"))
}

const ALL: [(&[&str], &[&str]); 5] = [
    (&["linear0", "linear1"], &["vg0/first", "vg0/wide"]),
    (&["stripe0", "stripe1", "stripe2"], &["vgs/two", "vgs/three"]),
    (&["mirror0", "mirror1", "mirror2"], &["vgm/logged", "vgm/core"]),
    (&["raid0", "raid1"], &["vgr/good", "vgr/stale", "vgr/making"]),
    (&["ring0", "ring1"], &["ring/data"]),
];

#[test]
fn every_byte_of_every_volume_is_what_the_guest_read() {
    for (disks, volumes) in ALL {
        let layers = probe(disks);
        let group = find(&layers, LayerKind::VolumeGroup, volumes[0].split('/').next().unwrap());
        assert_eq!(group.1.health, Vec::<String>::new());
        for volume in volumes {
            check(&layers, volume, volume);
            let bytes = read(&layers, volume);
            testing::check_disk(&open(&layers, volume).unwrap(), &bytes, 1);
        }
        // In another order of the disks, it is the same.
        let backwards: Vec<&str> = disks.iter().rev().copied().collect();
        check(&probe(&backwards), volumes[0], volumes[0]);
    }
}

#[test]
fn uuids_and_lengths_are_those_that_lvm_printed() {
    let report = std::fs::read_to_string(data("report.txt")).unwrap();
    for (disks, volumes) in ALL {
        let layers = probe(disks);
        for (_, node) in layers.iter() {
            let named =
                matches!(node.kind, LayerKind::PhysicalVolume | LayerKind::VolumeGroup | LayerKind::LogicalVolume);
            if let Some(uuid) = node.uuid.as_ref().filter(|_| named) {
                assert!(report.contains(uuid.as_str()), "{} {uuid}", node.name);
            }
        }
        for volume in volumes {
            let uuid = find(&layers, LayerKind::LogicalVolume, volume).1.uuid.clone().unwrap();
            check(&layers, &uuid, volume);
            check(&layers, &uuid.to_lowercase(), volume);
        }
    }
}

#[test]
fn internal_volumes_are_hidden_and_not_opened() {
    let layers = probe(&["raid0", "raid1"]);
    let hidden: Vec<&str> =
        layers.iter().filter(|(_, node)| node.is_hidden).map(|(_, node)| node.name.as_str()).collect();
    assert!(hidden.contains(&"vgr/good_rimage_0") && hidden.contains(&"vgr/good_rmeta_1"), "{hidden:?}");
    assert_eq!(open(&layers, "vgr/good_rimage_0").unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(open(&layers, "vgr").unwrap_err().kind(), ErrorKind::Invalid);
    assert!(!find(&layers, LayerKind::LogicalVolume, "vgr/good").1.is_hidden);
}

#[test]
fn without_a_physical_volume_the_rest_is_read() {
    let whole = read(&probe(&["linear0", "linear1"]), "vg0/wide");
    let layers = probe(&["linear0"]);
    let group = find(&layers, LayerKind::VolumeGroup, "vg0").1;
    assert!(group.health.iter().any(|note| note.contains("is missing")), "{:?}", group.health);
    assert!(group.features.contains(&"degraded".into()));
    let first = open(&layers, "vg0/first").unwrap();
    assert_eq!(first.read_at(&mut [0; 512], 0).unwrap_err().kind(), ErrorKind::Unavailable);
    assert!(!find(&layers, LayerKind::LogicalVolume, "vg0/first").1.health.is_empty());
    // What is there is right, byte for byte; the rest fails, none of it reads as zeros.
    let wide = open(&layers, "vg0/wide").unwrap();
    assert_eq!(wide.len(), whole.len() as u64);
    let (mut there, mut gone) = (0, 0);
    for (at, piece) in whole.chunks(4096).enumerate() {
        let mut buf = [0; 4096];
        match wide.read_at(&mut buf, at as u64 * 4096) {
            Ok(()) => {
                assert!(buf == piece, "the block {at} differs");
                there += 1;
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
                gone += 1;
            }
        }
    }
    assert!(there > 500 && gone > 100, "{there} blocks there, {gone} gone");
}

#[test]
fn a_disk_that_was_cut_short_fails_only_where_it_was_cut() {
    let whole = bytes_of("ring0");
    let (full, mut cut) = (read(&probe(&["ring0", "ring1"]), "ring/data"), whole.clone());
    cut.truncate(2 << 20);
    let layers = probe_bytes(vec![cut, bytes_of("ring1")]);
    let volume = open(&layers, "ring/data").unwrap();
    let mut buf = vec![0; 4096];
    volume.read_at(&mut buf, 0).unwrap();
    assert_eq!(buf, full[..4096]);
    assert_eq!(volume.read_at(&mut buf, volume.len() - 4096).unwrap_err().kind(), ErrorKind::Unavailable);
}

#[test]
fn a_mirror_is_read_from_another_copy_only_where_its_log_says_so() {
    for away in ["mirror1", "mirror2"] {
        let left: Vec<&str> = ["mirror0", "mirror1", "mirror2"].into_iter().filter(|disk| *disk != away).collect();
        check(&probe(&left), "vgm/logged", "vgm/logged");
        check(&probe(&left), "vgm/core", "vgm/core");
    }
    let layers = probe(&["mirror1", "mirror2"]);
    check(&layers, "vgm/logged", "vgm/logged");
    // A log in the guest's memory is gone: which copy is right is not known.
    let core = open(&layers, "vgm/core").unwrap();
    assert_eq!(core.read_at(&mut [0; 512], 0).unwrap_err().kind(), ErrorKind::Unavailable);
}

#[test]
fn a_raid1_is_read_from_copies_in_sync_only() {
    for disk in ["raid0", "raid1"] {
        check(&probe(&[disk]), "vgr/good", "vgr/good");
    }
    // The second disk was away while "stale" was written to: only the other one knows, and it is believed.
    check(&probe(&["raid1"]), "vgr/stale", "vgr/stale");
    // The copy on raid0 was being made when the power went.
    check(&probe(&["raid1"]), "vgr/making", "vgr/making");
    let layers = probe(&["raid0"]);
    let error = match open(&layers, "vgr/making") {
        Err(error) => error,
        Ok(disk) => disk.read_at(&mut [0; 512], disk.len() - 512).unwrap_err(),
    };
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    let layers = probe(&["raid0", "raid1"]);
    let health = &find(&layers, LayerKind::LogicalVolume, "vgr/making").1.health;
    assert!(health.iter().any(|note| note.contains("rebuilt")), "{health:?}");
}

#[test]
fn metadata_is_read_from_whichever_area_is_whole() {
    let (ring0, ring1) = (bytes_of("ring0"), bytes_of("ring1"));
    // The text goes around the end of its ring, as the lab made sure.
    let field = |at: usize| u64::from_le_bytes(ring0[4096 + at..4096 + at + 8].try_into().unwrap());
    assert!(field(40) + field(48) > field(32), "the ring does not wrap");
    let magic = b" LVM2 x[5A%r0N*>";
    let areas: Vec<usize> = (0..ring0.len()).step_by(512).filter(|at| ring0[at + 4..at + 20] == magic[..]).collect();
    assert_eq!(areas.len(), 2, "one at each end");
    let without = |places: &[usize]| {
        let mut bytes = ring0.clone();
        for place in places {
            bytes[place + 30] ^= 1;
        }
        bytes
    };
    for places in [&areas[..1], &areas[1..]] {
        let layers = probe_bytes(vec![without(places), ring1.clone()]);
        check(&layers, "ring/data", "ring/data");
        let health = &layers.iter().find(|(_, node)| node.kind == LayerKind::PhysicalVolume).unwrap().1.health;
        assert!(health[0].contains("damaged"), "{health:?}");
    }
    check(&probe_bytes(vec![without(&areas), ring1.clone()]), "ring/data", "ring/data");
    let layers = probe_bytes(vec![without(&areas)]);
    assert_eq!(open(&layers, "ring/data").unwrap_err().kind(), ErrorKind::NotFound);
    assert!(layers.iter().any(|(_, node)| node.health.iter().any(|note| note.contains("damaged"))));
    // A damaged text.
    let mut bytes = ring0.clone();
    let text = usize::try_from(field(40)).unwrap();
    bytes[4096 + text + 20] ^= 1;
    check(&probe_bytes(vec![bytes, ring1]), "ring/data", "ring/data");
}

#[test]
fn groups_of_one_name_are_told_apart_by_uuid() {
    let layers = probe(&["twin0", "twin1"]);
    let error = layers.resolve(&["twin/data"]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    let groups: Vec<_> = layers.iter().filter(|(_, node)| node.kind == LayerKind::VolumeGroup).collect();
    assert_eq!(groups.len(), 2);
    for ((id, group), name) in groups.into_iter().zip(["twin0", "twin1"]) {
        let volume = layers.node(group.children[0]);
        assert!(error.to_string().contains(volume.uuid.as_ref().unwrap()), "{error}");
        check(&layers, &format!("{}/data", group.uuid.as_ref().unwrap()), name);
        check(&layers, volume.uuid.as_ref().unwrap(), name);
        check(&layers, volume.address.trim_start_matches('#'), name);
        assert_eq!(layers.members(id).len(), 1);
        // Inside of its own disk the name is enough.
        let disk = if name == "twin0" { "vda" } else { "vdb" };
        check(&layers, &format!("{disk}#twin/data"), name);
    }
}

#[test]
fn a_clone_beside_its_original_is_not_guessed_between() {
    let layers = probe(&["linear0", "linear1", "linear1"]);
    let group = find(&layers, LayerKind::VolumeGroup, "vg0").1;
    assert!(group.health.iter().any(|note| note.contains("2 times: vdb, vdc")), "{:?}", group.health);
    let first = open(&layers, "vg0/first").unwrap();
    assert_eq!(first.read_at(&mut [0; 512], 0).unwrap_err().kind(), ErrorKind::Unavailable);
    // A volume that has nothing on it is read.
    read(&layers, "vg0/mid");
}

#[test]
fn every_kind_of_volume_is_listed_and_what_holds_no_bytes_of_its_own_is_hidden() {
    let layers = probe(&["stripe0", "stripe1", "stripe2"]);
    read(&layers, "vgs/five");
    let layers = probe(&["other0"]);
    for (volume, kind) in [("thin", "thin"), ("snap", "snapshot")] {
        let node = find(&layers, LayerKind::LogicalVolume, &format!("other/{volume}")).1;
        assert!(node.features.contains(&kind.to_owned()), "{:?}", node.features);
    }
    read(&layers, "other/thin");
    // More of its origin was written to than the store had room for.
    let error = open(&layers, "other/snap").map(drop).unwrap_err();
    assert!(error.to_string().contains("ran full"), "{error}");
    let pool = find(&layers, LayerKind::LogicalVolume, "other/pool").1;
    assert!(pool.is_hidden && pool.features == ["thin-pool"], "{:?}", pool.features);
    assert_eq!(open(&layers, "other/pool").unwrap_err().kind(), ErrorKind::Invalid);
    assert!(find(&layers, LayerKind::LogicalVolume, "other/snapshot0").1.is_hidden);
    check(&layers, "other/origin", "other/origin");
    check(&layers, "other/nothing", "other/nothing");
    let broken = open(&layers, "other/broken").unwrap();
    assert_eq!(broken.read_at(&mut [0; 512], 0).unwrap_err().kind(), ErrorKind::Unavailable);
    let health = &find(&layers, LayerKind::VolumeGroup, "other").1.health;
    assert_eq!(health, &["it is exported"]);
}

#[test]
fn a_machines_disk_has_its_file_systems() {
    let layers = probe(&["web1"]);
    let root = layers.resolve(&["system/root"]).unwrap();
    let files = layers.node(layers.file_system_of(root).unwrap());
    assert_eq!((files.name.as_str(), files.label.as_deref()), ("ext4", Some("root")));
    assert_eq!(layers.node(layers.resolve(&["old"]).unwrap()).name, "ext3", "by its label");
    assert_eq!(layers.root_candidates()[0], layers.file_system_of(root).unwrap());
    let error = layers.file_system_of(layers.resolve(&["vda"]).unwrap()).unwrap_err();
    assert!(error.next_step().unwrap().contains("#system/root, #system/old"), "{error:?}");
    let error = layers.resolve(&["vda3"]).unwrap_err();
    assert!(error.next_step().unwrap().contains("#vda, #vda1"), "{error:?}");
}

#[test]
fn a_disk_that_came_back_after_its_group_went_on_is_not_read() {
    let layers = probe(&["gone0", "gone1"]);
    check(&layers, "gone/here", "gone/here");
    let error = open(&layers, "gone/away").unwrap().read_at(&mut [0; 512], 0).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("the group went on without it"), "{error}");
    assert_eq!(open(&layers, "gone/junk").unwrap_err().kind(), ErrorKind::NotFound, "the newest metadata counts");
    // On its own it is a group that lacks its other disk.
    let layers = probe(&["gone1"]);
    check(&layers, "gone/away", "gone/away");
    assert!(layers.resolve(&["gone/junk"]).is_ok());
}

#[test]
fn members_of_md_arrays_are_recognised_in_every_version() {
    let Ok(output) = std::process::Command::new("blkid").arg("-V").output() else {
        let name = "members_of_md_arrays_are_recognised_in_every_version";
        assert!(std::env::var_os("FIRN_REQUIRE_ALL").is_none(), "{name}: blkid is missing");
        eprintln!("SKIPPED: {name}: blkid is missing");
        return;
    };
    assert!(output.status.success());
    let folder = tempfile::tempdir().unwrap();
    for (name, version) in [("md090", "0.90"), ("md10", "1.0"), ("md11", "1.1"), ("md12", "1.2")] {
        let bytes = bytes_of(name);
        let file = folder.path().join(name);
        std::fs::write(&file, &bytes).unwrap();
        let said = std::process::Command::new("blkid").args(["-p", "-o", "export"]).arg(&file).output().unwrap().stdout;
        let said = String::from_utf8(said).unwrap();
        let value = |key: &str| said.lines().find_map(|line| line.strip_prefix(key)).map(str::to_owned);
        assert_eq!(value("TYPE=").as_deref(), Some("linux_raid_member"));
        let layers = probe_bytes(vec![bytes]);
        let (_, node) = find(&layers, LayerKind::Member, "md");
        assert_eq!((&node.uuid, &node.label), (&value("UUID="), &value("LABEL=")), "{said}");
        assert_eq!(node.features[..3], [format!("version {version}"), "raid1".into(), "slot 0".into()]);
        let array = layers.iter().find(|(_, node)| node.kind == LayerKind::Array).unwrap().1;
        assert_eq!(array.health, ["member 1 was missing already"]);
        read(&layers, array.address.trim_start_matches('#'));
    }
}

/// Where the text of the area at 4096 stands, as pieces of the disk.
fn text_pieces(disk: &[u8]) -> Vec<std::ops::Range<usize>> {
    let field = |at: usize| -> usize {
        usize::try_from(u64::from_le_bytes(disk[4096 + at..4096 + at + 8].try_into().unwrap())).unwrap()
    };
    let (size, at, length) = (field(32), field(40), field(48));
    let first = length.min(size - at);
    vec![4096 + at..4096 + at + first, 4096 + 512..4096 + 512 + (length - first)]
}

fn crc(start: u32, bytes: impl Iterator<Item = u8>) -> u32 {
    bytes.fold(start, |crc, byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ if crc & 1 == 1 { 0xEDB8_8320 } else { 0 })
    })
}

/// Makes all checksums right again, so that what was changed is believed.
fn fix_checksums(disk: &mut [u8]) {
    const START: u32 = 0xF597_A6CF;
    let text: Vec<u8> = text_pieces(disk).into_iter().flat_map(|piece| disk[piece].to_vec()).collect();
    let sum = crc(START, text.into_iter());
    disk[4096 + 56..4096 + 60].copy_from_slice(&sum.to_le_bytes());
    let sum = crc(START, disk[4100..4096 + 512].iter().copied());
    disk[4096..4100].copy_from_slice(&sum.to_le_bytes());
    let sum = crc(START, disk[512 + 20..1024].iter().copied());
    disk[512 + 16..512 + 20].copy_from_slice(&sum.to_le_bytes());
}

#[test]
fn mutated_metadata_never_panics_hangs_or_takes_memory() {
    let disks: Vec<Vec<u8>> = ["ring1", "raid0", "mirror0", "stripe0", "other0"].map(bytes_of).to_vec();
    let mut random = Random::new(17);
    let mut opened = 0;
    for round in 0..1500 {
        let mut disk = disks[round % disks.len()].clone();
        disk.truncate(8 << 20);
        let pieces = text_pieces(&disk);
        let text: Vec<usize> = pieces.into_iter().flatten().collect();
        for _ in 0..=random.below(5) {
            let random_at = |random: &mut Random, count: usize| usize::try_from(random.below(count as u64)).unwrap();
            match random.below(8) {
                0 => disk[512 + random_at(&mut random, 512)] = random.next_u64().to_le_bytes()[0],
                // Not the text's place, which fix_checksums goes by.
                1 => disk[4096 + 4 + random_at(&mut random, 28)] = random.next_u64().to_le_bytes()[0],
                2..=4 => {
                    // A digit for a digit: other extents, counts and sizes.
                    let at = random_at(&mut random, text.len());
                    let digit = text[at..].iter().copied().find(|place| disk[*place].is_ascii_digit());
                    if let Some(place) = digit {
                        disk[place] = b'0' + u8::try_from(random.below(10)).unwrap();
                    }
                }
                _ => {
                    let place = text[random_at(&mut random, text.len())];
                    disk[place] = b"{}[]\"=,#0 9_\n"[random_at(&mut random, 13)];
                }
            }
        }
        if random.below(10) > 0 {
            fix_checksums(&mut disk);
        }
        let layers = probe_bytes(vec![disk]);
        for (id, node) in layers.iter() {
            assert!(node.size < u64::MAX);
            let Ok(disk) = layers.disk(id) else { continue };
            opened += u32::from(node.kind == LayerKind::LogicalVolume);
            let mut buf = [0; 1024];
            for offset in [0, disk.len().saturating_sub(1024), disk.len() / 2] {
                let _ = disk.read_at(&mut buf, offset);
                let _ = disk.extent_at(offset);
            }
        }
    }
    assert!(opened > 300, "{opened} volumes were opened");
}
