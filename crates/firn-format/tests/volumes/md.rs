//! Linux software RAID.

use crate::support::{array, check, check_files, disks, expected, find, hash, open, probe, read_all, without};
use firn_disk::testing::Random;
use firn_disk::{Disk, ErrorKind};
use firn_format::layers::LayerKind;

/// Every array with how many members it can do without.
const ALL: [(&str, usize); 22] = [
    ("lin", 0),
    ("r0", 0),
    ("r0alt", 0),
    ("r0orig", 0),
    ("r1", 1),
    ("r1old", 2),
    ("r1name", 1),
    ("r10n2", 1),
    ("r10n3", 2),
    ("r10f2", 1),
    ("r10f3", 2),
    ("r10o2", 1),
    ("r10o3", 2),
    ("r4", 1),
    ("r5ls", 1),
    ("r5rs", 1),
    ("r5pf", 1),
    ("r6la", 2),
    ("r6ra", 2),
    ("r6ls", 2),
    ("r6rs", 2),
    ("r6pf", 2),
];

#[test]
fn every_array_reads_as_the_guest_read_it_with_any_members_missing() {
    for (set, bears) in ALL {
        let all = disks(set);
        let layers = probe(all.clone());
        let whole = array(&layers);
        assert_eq!(whole.health, Vec::<String>::new(), "{set}");
        check(&layers, whole.address.trim_start_matches('#'), set);
        // In another order of the disks, too.
        let mut turned = all.clone();
        turned.reverse();
        let layers = probe(turned);
        check(&layers, array(&layers).address.trim_start_matches('#'), set);
        for one in 0..all.len() {
            for two in one..all.len() {
                let away = [one, two];
                let missing = if one == two { 1 } else { 2 };
                if missing > 1 && bears < 2 {
                    break;
                }
                let layers = probe(without(&all, &away));
                let node = array(&layers);
                let disk = open(&layers, node.address.trim_start_matches('#'));
                if bears == 0 {
                    let error = disk.map(drop).unwrap_err();
                    assert_eq!(error.kind(), ErrorKind::Unavailable, "{set} without {away:?}: {error}");
                    assert!(error.to_string().contains(&format!("member {one} is missing")), "{error}");
                    continue;
                }
                let note = format!("member {one} is missing");
                assert!(node.health.contains(&note), "{set} without {away:?}: {:?}", node.health);
                assert!(node.features.contains(&"degraded".to_owned()), "{:?}", node.features);
                let bytes = read_all(&disk.unwrap()).unwrap_or_else(|error| panic!("{set} without {away:?}: {error}"));
                assert_eq!(hash(&bytes), expected(set), "{set} without {away:?}");
            }
        }
    }
}

#[test]
fn one_member_too_few_is_an_error_that_names_them() {
    for (set, away) in [("r5ls", vec![0, 2]), ("r6ls", vec![0, 1, 3]), ("r10n2", vec![0, 1])] {
        let layers = probe(without(&disks(set), &away));
        let disk = open(&layers, array(&layers).address.trim_start_matches('#')).unwrap();
        let error = read_all(&disk).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{set}");
        assert!(away.iter().any(|slot| error.to_string().contains(&format!("member {slot} is missing"))), "{error}");
    }
}

#[test]
fn a_member_that_missed_updates_is_not_read() {
    let all = disks("r1stale");
    for order in [[0, 1], [1, 0]] {
        let layers = probe(order.iter().map(|at| all[*at].clone()).collect());
        let node = array(&layers);
        check(&layers, node.address.trim_start_matches('#'), "r1stale");
        assert!(node.health.iter().any(|note| note.contains("missed updates: events")), "{:?}", node.health);
    }
    // On its own nobody can know.
    let layers = probe(vec![all[1].clone()]);
    assert_ne!(hash(&read_all(&open(&layers, &array(&layers).name).unwrap()).unwrap()), expected("r1stale"));
    let layers = probe(disks("r1spare"));
    let node = array(&layers);
    check(&layers, &node.name, "r1spare");
    assert_eq!(node.health, ["vdc is a spare"]);
}

#[test]
fn arrays_are_found_by_number_name_and_uuid() {
    let layers = probe(disks("r1name"));
    let node = array(&layers);
    assert_eq!((node.name.as_str(), node.label.as_deref(), node.address.as_str()), ("data", Some("web:data"), "#data"));
    let uuid = node.uuid.clone().unwrap();
    let colons: String = uuid.replace('-', "").as_bytes().chunks(8).map(|piece| String::from_utf8_lossy(piece)).fold(
        String::new(),
        |mut text, piece| {
            if !text.is_empty() {
                text.push(':');
            }
            text += &piece;
            text
        },
    );
    for name in ["data", "web:data", &uuid, &uuid.to_uppercase(), &colons] {
        assert!(open(&layers, name).is_ok(), "{name}");
    }
    for device in ["/dev/md/data", "/dev/disk/by-id/md-name-web:data", &format!("/dev/disk/by-id/md-uuid-{colons}")] {
        assert_eq!(layers.node(layers.device(device).unwrap()).kind, LayerKind::Array, "{device}");
    }
    let layers = probe(disks("r1"));
    let name = array(&layers).name.clone();
    assert!(name.starts_with("md"), "{name}");
    assert!(layers.device(&format!("/dev/{name}")).is_some());
    // Two arrays of one name go by their UUIDs.
    let both = [disks("r1name"), disks("r1name")].concat();
    let layers = probe(both);
    let node = array(&layers);
    assert!(node.health[0].contains("is there 2 times: vda, vdc"), "{:?}", node.health);
    assert!(read_all(&open(&layers, "data").unwrap()).is_err());
}

#[test]
fn what_the_journal_knew_is_there_on_an_array_that_was_running() {
    let all = disks("r5dirty");
    let layers = probe(all.clone());
    check_files(&layers, &array(&layers).name, "r5dirty");
    // Which member's node is named makes no difference.
    check_files(&layers, "vdb", "r5dirty");
    // With a member missing, parity may not fit: what only it knows is not made up.
    let layers = probe(without(&all, &[1]));
    let node = array(&layers);
    assert!(node.health.iter().any(|note| note.contains("was being written to")), "{:?}", node.health);
    let error = read_all(&open(&layers, &node.name).unwrap()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("parity is not known to be in sync"), "{error}");
}

#[test]
fn a_member_that_is_being_rebuilt_is_read_no_further() {
    let all = disks("r5build");
    let layers = probe(all);
    let node = array(&layers);
    assert!(node.health.iter().any(|note| note.contains("rebuilt")), "{:?}", node.health);
    match read_all(&open(&layers, &node.name).unwrap()) {
        Ok(bytes) => assert_eq!(hash(&bytes), expected("r5build")),
        Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}"),
    }
}

#[test]
fn what_cannot_be_put_together_is_refused_by_name() {
    for (set, what) in [("r5grow", "being reshaped"), ("r5log", "journal")] {
        let layers = probe(disks(set));
        let (_, node) = layers.iter().find(|(_, node)| node.kind == LayerKind::Array).unwrap();
        let error = node.error.clone().unwrap();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(error.to_string().contains(what), "{error}");
        assert!(find(&layers, LayerKind::Member, "md").1.features.iter().any(|feature| feature == "raid5"));
    }
}

#[test]
fn damaged_superblocks_never_panic_and_are_told() {
    let sets: Vec<Vec<Vec<u8>>> = ["r6ls", "r5ls", "r10f2", "r0alt", "r1"].map(disks).to_vec();
    let seed = 41;
    eprintln!("seed {seed}");
    let mut random = Random::new(seed);
    let (mut opened, mut damaged) = (0, 0);
    for round in 0..600 {
        let mut all = sets[round % sets.len()].clone();
        let is_fixed = random.below(4) > 0;
        for disk in &mut all {
            let end = disk.len();
            let (at, is_old) = match disk[4096..4100] == [0xFC, 0x4E, 0x2B, 0xA9] {
                true => (4096, false),
                false if disk[end - 0x1_0000..][..4] == [0xFC, 0x4E, 0x2B, 0xA9] => (end - 0x1_0000, true),
                false => (end - 8192, false),
            };
            if random.below(3) == 0 {
                continue;
            }
            for _ in 0..=random.below(3) {
                let field = at + 4 * usize::try_from(random.below(70)).unwrap();
                let value = match random.below(3) {
                    0 => random.next_u64(),
                    1 => random.below(10),
                    _ => u64::MAX,
                };
                disk[field..field + 4].copy_from_slice(&value.to_le_bytes()[..4]);
            }
            if is_fixed {
                fix_checksum(&mut disk[at..], is_old);
            }
        }
        let layers = probe(all);
        for (id, node) in layers.iter() {
            damaged += u32::from(node.kind == LayerKind::Member && node.error.is_some());
            let Ok(disk) = layers.disk(id) else { continue };
            opened += u32::from(node.kind == LayerKind::Array);
            for offset in [0, disk.len() / 2, disk.len().saturating_sub(1024)] {
                let _ = disk.read_at(&mut [0; 1024], offset);
                let _ = disk.extent_at(offset);
            }
        }
    }
    assert!(opened > 100 && damaged > 50, "{opened} opened, {damaged} damaged");
}

fn fix_checksum(superblock: &mut [u8], is_old: bool) {
    let word = |superblock: &[u8], at: usize| u32::from_le_bytes(superblock[at..at + 4].try_into().unwrap());
    let (place, length) =
        if is_old { (152, 4096) } else { (216, 256 + 2 * usize::try_from(word(superblock, 220)).unwrap().min(1920)) };
    let mut sum: u64 = (0..length / 4).filter(|at| at * 4 != place).map(|at| u64::from(word(superblock, at * 4))).sum();
    if length % 4 == 2 {
        sum += u64::from(u16::from_le_bytes(superblock[length - 2..length].try_into().unwrap()));
    }
    let sum = u32::try_from((sum & 0xFFFF_FFFF) + (sum >> 32) & 0xFFFF_FFFF).unwrap();
    superblock[place..place + 4].copy_from_slice(&sum.to_le_bytes());
}
