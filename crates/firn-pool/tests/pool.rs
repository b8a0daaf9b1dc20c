//! The pool as its users see it: what goes in comes out, whatever happens in between.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use firn_disk::testing::{FaultDisk, Random, check_disk, pattern};
use firn_disk::{Disk, ErrorKind, FileDisk, Fua, MemDisk, WriteDisk};
use firn_pool::{
    Changes, Credential, Depth, NewCredential, OpenOptions, Pool, RecoveryKey, Scope, SnapshotProgress, VerifyProgress,
    scrub_location,
};
use jiff::Timestamp;
use proptest::prelude::*;
use std::ops::Range;
use std::sync::atomic::Ordering;
use support::{Lab, Seeded, disk_bytes, hooks, init_options, input, options, read_all, snap, snap_inputs};
use zeroize::Zeroizing;

const REGION: usize = 16 << 20;

fn verify(pool: &Pool, depth: Depth) -> firn_pool::VerifyReport {
    pool.verify(depth, &VerifyProgress::default()).unwrap()
}

#[test]
fn disks_of_all_lengths_conform() {
    let lab = Lab::new(1);
    for (number, length) in [0, 1, 511, 4096, 4097, 100_000, REGION - 1, REGION, REGION + 4097].into_iter().enumerate()
    {
        let bytes = disk_bytes(length, number as u64);
        let pool = lab.open();
        let manifest = snap(&pool, &bytes, i64::try_from(number).unwrap());
        check_disk(&pool.disk(&manifest.disks[0]), &bytes, 7);
        // And by another process that has no cache.
        let cold = Pool::open(lab.location(), OpenOptions::default()).unwrap();
        assert!(read_all(&cold, &manifest, 0).unwrap() == bytes, "{length}");
    }
    assert!(verify(&lab.open(), Depth::Data).is_sound());
}

#[test]
fn several_disks_are_one_snapshot_and_duplicates_are_stored_once() {
    let lab = Lab::new(2);
    let pool = lab.open();
    let bytes = disk_bytes(3 << 20, 1);
    let (a, b) = (MemDisk::from(bytes.clone()), MemDisk::from(bytes.clone()).with_logical_block_size(4096));
    let manifest = snap_inputs(&pool, &[input("vda", &a, Changes::All), input("vdb", &b, Changes::All)], 1).unwrap();
    assert_eq!(manifest.disks[1].logical_block_size, 4096);
    assert!(read_all(&pool, &manifest, 0).unwrap() == bytes && read_all(&pool, &manifest, 1).unwrap() == bytes);
    let stored = manifest.statistics.bytes_stored;
    assert!(stored < 3 << 20, "two equal disks took {stored} bytes");
    let again = snap(&lab.open(), &bytes, 2);
    assert_eq!(again.statistics.bytes_stored, 0, "an unchanged disk stores nothing");
    assert_eq!((manifest.sequence, again.sequence, manifest.machine), (1, 2, again.machine));
}

#[test]
fn holes_cost_nothing_and_stay_holes() {
    let lab = Lab::new(3);
    let disk = FileDisk::create(lab.folder.path().join("disk"), 1 << 40).unwrap();
    for offset in [0, 5 << 30, (1 << 40) - 4096] {
        disk.write_at(&pattern(4096, offset), offset, Fua::No).unwrap();
    }
    let pool = lab.open();
    let manifest = snap_inputs(&pool, &[input("vda", &disk, Changes::All)], 1).unwrap();
    assert!(manifest.statistics.bytes_read <= 3 * 65536, "only data is read");
    let stored = pool.disk(&manifest.disks[0]);
    let mut block = [0; 4096];
    stored.read_at(&mut block, 5 << 30).unwrap();
    assert_eq!(block[..], pattern(4096, 5 << 30));
    assert_eq!(stored.extent_at(1 << 30).unwrap().kind, firn_disk::ExtentKind::Hole);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn a_history_of_changes_reads_back_at_every_point(seed in any::<u64>(), steps in 1_usize..5) {
        let lab = Lab::new(seed);
        let mut random = Random::new(seed);
        let mut bytes = disk_bytes(usize::try_from(random.below(40 << 20)).unwrap() + 1, seed);
        let pool = lab.open();
        let mut history = vec![(snap(&pool, &bytes, 0), bytes.clone())];
        for step in 1..=steps {
            let mut dirty: Vec<Range<u64>> = Vec::new();
            for _ in 0..random.below(20) {
                let start = random.below(bytes.len() as u64);
                let end = (start + random.below(300_000) + 1).min(bytes.len() as u64);
                let range = usize::try_from(start).unwrap()..usize::try_from(end).unwrap();
                match random.below(3) {
                    0 => bytes[range].fill(0),
                    _ => random.fill(&mut bytes[range]),
                }
                dirty.push(start..end);
            }
            if random.below(3) == 0 {
                let length = usize::try_from(random.below(40 << 20)).unwrap() + 1;
                bytes.resize(length, 0x5A);
            }
            let base = history.last().unwrap().0.disks[0].clone();
            let disk = FaultDisk::new(MemDisk::from(bytes.clone()));
            let changes = Changes::Since { base: &base, ranges: &dirty };
            let manifest = snap_inputs(&pool, &[input("vda", &disk, changes)], i64::try_from(step).unwrap()).unwrap();
            // The same disk, read whole, has the same tree: not a byte is stored for it.
            let whole = snap(&pool, &bytes, i64::try_from(step).unwrap());
            prop_assert_eq!(&whole.disks[0].length, &manifest.disks[0].length);
            prop_assert_eq!(whole.statistics.bytes_stored, 0, "seed {}: cut differently", seed);
            history.push((manifest, bytes.clone()));
        }
        for pair in history.windows(2) {
            let mut different = Vec::new();
            pool.changed_ranges(&pair[0].0.disks[0], &pair[1].0.disks[0], |range| {
                different.push(range);
                Ok(())
            }).unwrap();
            check_difference(&pair[0].1, &pair[1].1, &different);
        }
        for (manifest, bytes) in &history {
            prop_assert!(&read_all(&pool, manifest, 0).unwrap() == bytes, "seed {}", seed);
        }
        prop_assert!(verify(&pool, Depth::Data).is_sound());
    }
}

/// What is not in `different` must be equal.
fn check_difference(a: &[u8], b: &[u8], different: &[Range<u64>]) {
    let common = a.len().min(b.len());
    let mut at = 0;
    for range in different {
        let (start, end) = (usize::try_from(range.start).unwrap(), usize::try_from(range.end).unwrap());
        assert!(start >= at && end > start);
        let equal = at.min(common)..start.min(common);
        assert!(a[equal.clone()] == b[equal], "a difference before {start} was not told");
        at = end;
    }
    let rest = at.min(common)..common;
    assert!(a[rest.clone()] == b[rest]);
    assert!(a.len() == b.len() || at == a.len().max(b.len()));
}

#[test]
fn only_dirty_bytes_are_read_from_the_source() {
    let lab = Lab::new(4);
    let mut bytes = disk_bytes(3 * REGION, 9);
    let pool = lab.open();
    let base = snap(&pool, &bytes, 1);
    let dirty = [70_000..70_100_u64, REGION as u64 + 8192..REGION as u64 + 20480];
    for range in &dirty {
        bytes[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()].fill(0xAB);
    }
    let disk = FaultDisk::new(MemDisk::from(bytes.clone()));
    let changes = Changes::Since { base: &base.disks[0], ranges: &dirty };
    let manifest = snap_inputs(&pool, &[input("vda", &disk, changes)], 2).unwrap();
    assert!(read_all(&pool, &manifest, 0).unwrap() == bytes);
    assert_eq!(disk.bytes_read(), 4096 + 12288, "whole blocks of what is dirty, and no other");
}

#[test]
fn a_failing_or_shrinking_source_publishes_nothing_and_its_work_is_used() {
    let lab = Lab::new(5);
    let pool = lab.open();
    let bytes = pattern(4 * REGION, 1);
    let disk = FaultDisk::new(MemDisk::from(bytes.clone()));
    disk.fail_reads_in(3 * REGION as u64..4 * REGION as u64, ErrorKind::Io);
    let error = snap_inputs(&pool, &[input("vda", &disk, Changes::All)], 1).unwrap_err();
    assert!(error.to_string().contains("injected"), "{error}");
    assert!(pool.machines().unwrap().is_empty());
    disk.heal();
    let manifest = snap_inputs(&lab.open(), &[input("vda", &disk, Changes::All)], 2).unwrap();
    assert!(manifest.statistics.bytes_stored < 3 * REGION as u64, "what was stored before the failure is used");
    assert!(read_all(&pool_again(&lab), &manifest, 0).unwrap() == bytes);
}

fn pool_again(lab: &Lab) -> Pool {
    lab.open()
}

#[test]
fn stopping_leaves_a_sound_pool() {
    let lab = Lab::new(6);
    let pool = lab.open();
    let disk = MemDisk::from(pattern(2 * REGION, 1));
    let progress = SnapshotProgress::default();
    progress.cancel.store(true, Ordering::Relaxed);
    let inputs = [input("vda", &disk, Changes::All)];
    let stopped = pool.write_snapshot("web1", &inputs, options(1), hooks(&progress));
    assert_eq!(stopped.unwrap_err().kind(), ErrorKind::Interrupted);
    assert!(verify(&pool, Depth::Data).is_sound());
}

#[test]
fn packs_of_a_killed_writer_are_adopted() {
    let lab = Lab::new(7);
    let bytes = pattern(2 << 20, 1);
    snap(&lab.open(), &bytes, 1);
    // Killed after its packs were stored, before index and manifest.
    for object in lab.objects() {
        if lab.name_of(&object).starts_with("idx/") || lab.name_of(&object).starts_with("snap/") {
            std::fs::remove_file(object).unwrap();
        }
    }
    let manifest = snap(&lab.open(), &bytes, 2);
    assert_eq!(manifest.statistics.bytes_stored, 0);
    assert!(read_all(&lab.open(), &manifest, 0).unwrap() == bytes);
}

#[test]
fn the_index_is_made_again_from_the_packs_alone() {
    let lab = Lab::new(8);
    let histories: Vec<_> = (0..3).map(|seed| disk_bytes(5 << 20, seed)).collect();
    let manifests: Vec<_> = histories.iter().zip(0..).map(|(bytes, second)| snap(&lab.open(), bytes, second)).collect();
    std::fs::remove_dir_all(lab.path().join("idx")).unwrap();
    let error = read_all(&lab.open(), &manifests[0], 0).unwrap_err();
    assert!(error.next_step().unwrap().contains("rebuild-index"));
    assert!(!verify(&lab.open(), Depth::Structure).is_sound());
    for _ in 0..2 {
        assert_eq!(lab.open().rebuild_index().unwrap(), []);
        for (manifest, bytes) in manifests.iter().zip(&histories) {
            assert!(&read_all(&lab.open(), manifest, 0).unwrap() == bytes);
        }
    }
    assert!(verify(&lab.open(), Depth::Data).is_sound());
}

#[test]
fn every_object_damaged_in_turn_gives_an_error_or_right_data_and_is_found() {
    let lab = Lab::new(9);
    let bytes = disk_bytes(300_000, 1);
    let manifest = snap(&lab.open(), &bytes, 1);
    let mut random = Random::new(9);
    let (mut right, mut refused) = (0, 0);
    for object in lab.objects() {
        let name = lab.name_of(&object);
        let sound = std::fs::read(&object).unwrap();
        for _ in 0..12 {
            let mut broken = sound.clone();
            let at = usize::try_from(random.below(broken.len() as u64)).unwrap();
            broken[at] ^= 1 << random.below(8);
            std::fs::write(&object, &broken).unwrap();
            let _ = std::fs::remove_dir_all(lab.folder.path().join("cache"));
            match lab.try_open().and_then(|pool| read_all(&pool, &manifest, 0)) {
                Ok(read) => {
                    right += 1;
                    assert!(read == bytes, "{name} byte {at}: wrong data with success");
                }
                Err(_) => {
                    refused += 1;
                    assert!(name.starts_with("data/") || name.starts_with("idx/"), "{name} byte {at} is there twice");
                }
            }
            let report = scrub_location(lab.location(), &VerifyProgress::default()).unwrap();
            assert!(report.problems.iter().any(|problem| problem.what == name), "{name} byte {at}: scrub saw nothing");
            if let Ok(pool) = lab.try_open() {
                assert!(!verify(&pool, Depth::Scrub).is_sound(), "{name} byte {at}: verify saw nothing");
            }
        }
        for end in [0, sound.len() / 2, sound.len() - 1] {
            std::fs::write(&object, &sound[..end]).unwrap();
            if let Ok(read) = lab.try_open().and_then(|pool| read_all(&pool, &manifest, 0)) {
                assert!(read == bytes, "{name} cut at {end}");
            }
            assert!(!scrub_location(lab.location(), &VerifyProgress::default()).unwrap().is_sound());
        }
        std::fs::remove_file(&object).unwrap();
        if let Ok(read) = lab.try_open().and_then(|pool| read_all(&pool, &manifest, 0)) {
            assert!(read == bytes, "{name} removed");
        }
        std::fs::write(&object, &sound).unwrap();
    }
    assert!(right > 50 && refused > 10, "{right} right, {refused} refused");
    assert!(verify(&lab.open(), Depth::Data).is_sound());
}

#[test]
fn a_damaged_pack_is_traced_to_the_snapshots_it_reaches() {
    let lab = Lab::new(10);
    let (good, bad) = (disk_bytes(1 << 20, 1), disk_bytes(1 << 20, 2));
    let damaged = snap(&lab.open(), &bad, 1);
    let before: Vec<_> = lab.objects();
    snap(&lab.open(), &good, 2);
    let pack = before.iter().find(|path| lab.name_of(path).starts_with("data/")).unwrap();
    let mut bytes = std::fs::read(pack).unwrap();
    bytes[1000] ^= 1;
    std::fs::write(pack, bytes).unwrap();
    let report = verify(&lab.open(), Depth::Scrub);
    assert_eq!(report.problems.len(), 1);
    let reached: Vec<_> = report.damaged_snapshots.iter().map(|problem| problem.what.as_str()).collect();
    assert_eq!(reached, ["web1@1970-01-01T00:00:01Z"]);
    assert_eq!(read_all(&lab.open(), &damaged, 0).unwrap_err().kind(), ErrorKind::Corrupt);
    std::fs::remove_file(pack).unwrap();
    assert_eq!(verify(&lab.open(), Depth::Structure).damaged_snapshots.len(), 1);
}

#[test]
fn a_lost_or_cut_pack_is_stored_again_by_the_next_snapshot_that_has_its_chunks() {
    for (folder, cut) in [("data/", false), ("data/", true), ("node/", false), ("node/", true)] {
        let lab = Lab::new(16);
        let bytes = disk_bytes(3 << 20, 1);
        let first = snap(&lab.open(), &bytes, 1);
        for pack in lab.objects().into_iter().filter(|path| lab.name_of(path).starts_with(folder)) {
            if cut {
                let whole = std::fs::read(&pack).unwrap();
                std::fs::write(&pack, &whole[..whole.len() / 2]).unwrap();
            } else {
                std::fs::remove_file(&pack).unwrap();
            }
        }
        assert!(read_all(&lab.open(), &first, 0).is_err());
        let second = snap(&lab.open(), &bytes, 2);
        for manifest in [&first, &second] {
            assert!(read_all(&lab.open(), manifest, 0).unwrap() == bytes, "healed");
        }
        let report = verify(&lab.open(), Depth::Structure);
        assert_eq!(report.damaged_snapshots, [], "{folder} cut: {cut}");
    }
}

#[test]
fn a_snapshot_that_is_newer_than_the_reader_can_be_read() {
    let lab = Lab::new(17);
    let reader = lab.open();
    let bytes = disk_bytes(1 << 20, 1);
    let manifest = snap(&lab.open(), &bytes, 1);
    assert!(read_all(&reader, &manifest, 0).unwrap() == bytes);
}

#[test]
fn forgetting_one_snapshot_leaves_the_others() {
    let lab = Lab::new(11);
    let pool = lab.open();
    let (first, second) = (disk_bytes(1 << 20, 1), disk_bytes(1 << 20, 2));
    snap(&pool, &first, 1);
    let kept = snap(&pool, &second, 2);
    let snapshots = pool.snapshots(kept.machine).unwrap();
    pool.forget(&snapshots[0]).unwrap();
    let left: Vec<_> = pool.snapshots(kept.machine).unwrap().into_iter().map(|s| s.uuid).collect();
    assert_eq!(left, [kept.snapshot]);
    assert!(read_all(&pool, &kept, 0).unwrap() == second);
}

#[test]
fn two_writers_at_once_lose_nothing() {
    let lab = Lab::new(12);
    let disks: Vec<_> = (0..4_u64).map(|seed| disk_bytes(6 << 20, seed)).collect();
    let manifests: Vec<_> = std::thread::scope(|scope| {
        let writers: Vec<_> = disks
            .iter()
            .enumerate()
            .map(|(number, bytes)| {
                let pool = Pool::open(
                    lab.location(),
                    OpenOptions { entropy: Seeded::new(number as u64), ..OpenOptions::default() },
                )
                .unwrap();
                scope.spawn(move || snap(&pool, bytes, i64::try_from(number).unwrap()))
            })
            .collect();
        writers.into_iter().map(|writer| writer.join().unwrap()).collect()
    });
    let pool = lab.open();
    assert_eq!(pool.machines().unwrap().len(), 1, "one name is one machine");
    assert_eq!(pool.snapshots(manifests[0].machine).unwrap().len(), 4);
    for (manifest, bytes) in manifests.iter().zip(&disks) {
        assert!(&read_all(&pool, manifest, 0).unwrap() == bytes);
    }
    assert!(verify(&pool, Depth::Data).is_sound());
}

fn password(text: &str) -> Zeroizing<String> {
    Zeroizing::new(text.to_owned())
}

fn open_with(location: &str, credential: Option<Credential>) -> firn_disk::Result<Pool> {
    Pool::open(location, OpenOptions { credential, ..OpenOptions::default() })
}

#[test]
fn keys_open_what_they_should_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let location = folder.path().join("pool").to_str().unwrap().to_owned();
    let recovery =
        Pool::init(&location, &init_options(NewCredential::Password(password("right")), 1)).unwrap().unwrap();
    for wrong in
        [None, Some(Credential::Password(password("wrong"))), Some(Credential::KeyFile(Zeroizing::new(vec![0; 32])))]
    {
        assert_eq!(open_with(&location, wrong).unwrap_err().kind(), ErrorKind::Denied);
    }
    let pool = open_with(&location, Some(Credential::Password(password("right")))).unwrap();
    let manifest = snap(&pool, &pattern(100_000, 1), 1);
    let typed = RecoveryKey::parse(&recovery.to_text().to_lowercase()).unwrap();
    let by_recovery = open_with(&location, Some(Credential::Recovery(typed))).unwrap();
    assert_eq!(read_all(&by_recovery, &manifest, 0).unwrap(), pattern(100_000, 1));

    let file = || Zeroizing::new(vec![7; 32]);
    let now = Timestamp::UNIX_EPOCH;
    pool.add_key(&NewCredential::KeyFile(file()), Scope::Structure, "target", now).unwrap();
    let target = open_with(&location, Some(Credential::KeyFile(file()))).unwrap();
    assert_eq!(read_all(&target, &manifest, 0).unwrap_err().kind(), ErrorKind::Denied);
    assert!(target.verify(Depth::Scrub, &VerifyProgress::default()).unwrap().is_sound());
    assert!(snap_inputs(&target, &[input("vda", &MemDisk::zeroed(5), Changes::All)], 2).is_err());

    let exported = pool.export_key().unwrap();
    let slots = pool.key_slots().unwrap();
    assert_eq!(slots.len(), 3);
    let full: Vec<_> = slots.iter().filter(|slot| slot.scope == Scope::All).map(|slot| slot.uuid).collect();
    pool.remove_key(full[0]).unwrap();
    assert_eq!(pool.remove_key(full[1]).unwrap_err().kind(), ErrorKind::Invalid, "the last key stays");
    let by_export =
        open_with(&location, Some(Credential::KeyFile(Zeroizing::new(exported.as_bytes().to_vec())))).unwrap();
    assert_eq!(read_all(&by_export, &manifest, 0).unwrap(), pattern(100_000, 1));
}

#[test]
fn pools_of_one_domain_share_keys_and_ids() {
    let lab = Lab::new(13);
    let first = lab.open();
    let location = lab.folder.path().join("second").to_str().unwrap().to_owned();
    let mut options = init_options(NewCredential::Clear, 2);
    options.same_keys_as = Some(&first);
    assert!(Pool::init(&location, &options).unwrap().is_none());
    let second = open_with(&location, None).unwrap();
    let (a, b) = (first.info().unwrap().public, second.info().unwrap().public);
    assert!(a.domain == b.domain && a.pool != b.pool);
    let bytes = disk_bytes(1 << 20, 3);
    let (one, other) = (snap(&first, &bytes, 1), snap(&second, &bytes, 1));
    // Equal ids all the way up: the records differ in nothing but where they lie.
    assert_eq!(one.disks, other.disks);
    assert_eq!(one.machine, other.machine);
}

#[test]
fn a_pool_is_not_made_over_anything() {
    let lab = Lab::new(14);
    let again = Pool::init(lab.location(), &init_options(NewCredential::Clear, 3));
    assert_eq!(again.unwrap_err().kind(), ErrorKind::Exists);
    let other = lab.folder.path().join("other");
    std::fs::create_dir(&other).unwrap();
    std::fs::write(other.join("letter.txt"), "dear").unwrap();
    let over = Pool::init(other.to_str().unwrap(), &init_options(NewCredential::Clear, 3));
    assert_eq!(over.unwrap_err().kind(), ErrorKind::Exists);
    assert_eq!(open_with(other.to_str().unwrap(), None).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn bad_names_and_too_many_disks_of_one_name_are_refused() {
    let lab = Lab::new(15);
    let pool = lab.open();
    let disk = MemDisk::zeroed(5);
    for name in ["", "../x", "a/b", "..", "a b"] {
        let inputs = [input("vda", &disk, Changes::All)];
        let result = pool.write_snapshot(name, &inputs, options(1), hooks(&SnapshotProgress::default()));
        assert_eq!(result.unwrap_err().kind(), ErrorKind::Invalid, "{name:?}");
        assert!(snap_inputs(&pool, &[input(name, &disk, Changes::All)], 1).is_err());
    }
    let twice = [input("vda", &disk, Changes::All), input("vda", &disk, Changes::All)];
    assert_eq!(snap_inputs(&pool, &twice, 1).unwrap_err().kind(), ErrorKind::Invalid);
    assert!(snap_inputs(&pool, &[], 1).is_err());
}
