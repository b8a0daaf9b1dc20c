//! What LVM2 makes of device-mapper beyond linear: raid, thin, snapshots.

use crate::support::{check, check_files, disks, expected, find, hash, open, probe, read_all, without};
use firn_disk::testing::Random;
use firn_disk::{Disk, ErrorKind, ExtentKind};
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

#[test]
fn thin_volumes_and_their_snapshots_read_as_the_guest_read_them() {
    let layers = probe(disks("thin"));
    for name in ["base", "one", "first", "second", "onbase"] {
        let name = format!("thin/{name}");
        check(&layers, &name, &name);
    }
    for hidden in ["pool", "pool_tmeta", "pool_tdata"] {
        assert!(find(&layers, LayerKind::LogicalVolume, &format!("thin/{hidden}")).1.is_hidden, "{hidden}");
    }
    assert!(layers.iter().all(|(_, node)| node.error.is_none() && node.health.is_empty()));
    // A TiB with two blocks in it.
    let sparse = open(&layers, "thin/sparse").unwrap();
    assert_eq!(sparse.len(), 1 << 40);
    let mut bytes = vec![0; 65_536];
    sparse.read_at(&mut bytes, 1 << 39).unwrap();
    assert_eq!(hash(&bytes), expected("thin/sparse-mid"));
    let mut mapped = 0;
    firn_disk::visit_extents(&sparse, 0..sparse.len(), |kind, range| {
        mapped += if kind == ExtentKind::Hole { 0 } else { range.end - range.start };
        Ok(())
    })
    .unwrap();
    assert_eq!(mapped, 2 * 65_536);
}

#[test]
fn what_the_journal_knew_is_there_on_thin_volumes_and_their_snapshots() {
    let layers = probe(disks("thin"));
    check_files(&layers, "thin/files", "thin-after");
    check_files(&layers, "thin/filesnap", "thin");
}

#[test]
fn classic_snapshots_are_what_their_origin_was() {
    let layers = probe(disks("snap"));
    for name in ["origin", "early", "late", "small"] {
        let name = format!("snap/{name}");
        check(&layers, &name, &name);
    }
    let node = find(&layers, LayerKind::LogicalVolume, "snap/early").1;
    assert_eq!((node.size, node.features[0].as_str()), (4 << 20, "snapshot"));
    let error = open(&layers, "snap/full").map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("ran full"), "{error}");
}

#[test]
fn damage_anywhere_never_panics() {
    let seed = 71;
    eprintln!("seed {seed}");
    let mut random = Random::new(seed);
    for set in ["lvraid", "thin", "snap"] {
        let mut all = disks(set);
        for _ in 0..12 {
            for disk in &mut all {
                // The first MiB has what describes the group; bytes that are not zero matter most.
                let end = disk.len();
                for _ in 0..40 {
                    let at = usize::try_from(random.below(end as u64)).unwrap();
                    let at = disk[at..].iter().position(|byte| *byte != 0).map_or(at, |more| at + more);
                    if at > 1 << 20 {
                        disk[at] = random.next_u64().to_le_bytes()[0];
                    }
                }
            }
            let layers = probe(all.clone());
            for (id, _) in layers.iter() {
                let Ok(disk) = layers.disk(id) else { continue };
                let mut buf = vec![0; usize::try_from(disk.len().min(1 << 18)).unwrap()];
                let _ = disk.read_at(&mut buf, 0);
                let _ = disk.extent_at(disk.len() / 2);
            }
        }
    }
}
