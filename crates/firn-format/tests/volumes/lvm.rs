//! What LVM2 makes of device-mapper beyond linear: thin volumes and snapshots.

use crate::support::{check, check_files, disks, expected, find, hash, open, probe};
use firn_disk::testing::Random;
use firn_disk::{Disk, ErrorKind, ExtentKind};
use firn_format::layers::LayerKind;

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
    for set in ["thin", "snap"] {
        let mut all = disks(set);
        for _ in 0..3 {
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
