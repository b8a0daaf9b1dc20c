//! What LVM2 makes of device-mapper beyond linear: raid, thin, snapshots.

use crate::support::{check, disks, expected, find, hash, open, probe, read_all, without};
use firn_disk::{Disk, ErrorKind};
use firn_format::layers::LayerKind;

/// Every raid volume with how many members it can do without.
const RAID: [(&str, usize); 18] = [
    ("zero", 0),
    ("zerometa", 0),
    ("one", 2),
    ("ten", 1),
    ("raid4", 1),
    ("raid5_n", 1),
    ("raid5_la", 1),
    ("raid5_ra", 1),
    ("raid5_ls", 1),
    ("raid5_rs", 1),
    ("raid6_zr", 2),
    ("raid6_nr", 2),
    ("raid6_nc", 2),
    ("raid6_n_6", 2),
    ("raid6_la_6", 2),
    ("raid6_ra_6", 2),
    ("raid6_ls_6", 2),
    ("raid6_rs_6", 2),
];

#[test]
fn every_raid_volume_reads_as_the_guest_read_it_with_any_members_missing() {
    let all = disks("lvraid");
    let layers = probe(all.clone());
    for (name, _) in RAID {
        let name = format!("lvraid/{name}");
        check(&layers, &name, &name);
        assert_eq!(find(&layers, LayerKind::LogicalVolume, &name).1.health, Vec::<String>::new());
    }
    for one in 0..all.len() {
        for two in one..all.len() {
            let layers = probe(without(&all, &[one, two]));
            let missing = if one == two { 1 } else { 2 };
            for (name, bears) in RAID {
                let name = format!("lvraid/{name}");
                let read = open(&layers, &name).and_then(|disk| read_all(&disk));
                match read {
                    Ok(bytes) => assert_eq!(hash(&bytes), expected(&name), "{name} without {one} and {two}"),
                    // A volume that has nothing on the missing disks is whole; one that has must say what is missing.
                    Err(error) => {
                        assert!(missing > bears, "{name} without {one} and {two}: {error}");
                        assert_eq!(error.kind(), ErrorKind::Unavailable, "{name}: {error}");
                    }
                }
            }
        }
    }
}

#[test]
fn an_array_that_went_on_without_a_disk_does_not_read_it() {
    let all = disks("lvdeg");
    for away in [vec![], vec![1]] {
        let layers = probe(without(&all, &away));
        check(&layers, "lvdeg/five", "lvdeg/five");
        let health = &find(&layers, LayerKind::LogicalVolume, "lvdeg/five").1.health;
        assert!(!health.is_empty());
    }
    let layers = probe(without(&all, &[0]));
    let error = open(&layers, "lvdeg/five").and_then(|disk| read_all(&disk)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
}

#[test]
fn where_writes_were_going_on_parity_is_not_believed() {
    let all = disks("lvdeg");
    check(&probe(all.clone()), "lvdeg/busy", "lvdeg/busy");
    for away in 0..3 {
        let layers = probe(without(&all, &[away]));
        match open(&layers, "lvdeg/busy").and_then(|disk| read_all(&disk)) {
            Ok(bytes) => assert_eq!(hash(&bytes), expected("lvdeg/busy")),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Unavailable);
                assert!(error.to_string().contains("parity is not known to be in sync"), "{error}");
            }
        }
    }
}
