//! Snapshot after snapshot: each is of its instant, and only what changed is read.

use crate::machine::{MIB, Machine, can_run, create_image};
use crate::taking::{OWNER, Pool, assert_stored, content, source};
use firn_disk::ErrorKind;
use firn_source::Outcome;
use serde_json::json;

const KIB64: u64 = 64 << 10;

/// Both ways to the instant, as a URI says them.
const WAYS: [&str; 2] = ["?cut=filter", "?cut=backup"];

#[test]
fn every_snapshot_is_of_its_instant_and_reads_what_changed() {
    if !can_run("every_snapshot_is_of_its_instant_and_reads_what_changed") {
        return;
    }
    for way in WAYS {
        let mut machine = Machine::new(&[("a", "qcow2", 8 * MIB), ("b", "raw", 3 * MIB + 512)]);
        machine.start();
        let uri = machine.uri() + way;
        let mut pool = Pool::new(OWNER);
        machine.write("a", 1, 0, MIB);
        machine.write("b", 2, 3 * MIB, 512);
        let expected = content(&machine);
        let taken = pool.take(&uri, || {
            machine.write("a", 3, MIB / 2, MIB);
            machine.write("b", 4, 0, 4096);
        });
        let taken = taken.unwrap();
        assert_eq!(taken.read["vda"], None, "{way}");
        assert_stored(&pool, &expected);
        machine.assert_clean(way);
        assert_eq!(machine.bitmaps("a").len(), 1);
        assert_eq!(machine.bitmaps("b").len(), 1);

        machine.write("a", 5, 4 * MIB + 1024, 512);
        let expected = content(&machine);
        let taken = pool.take(&uri, || machine.write("a", 6, 0, 4 * MIB)).unwrap();
        assert_eq!(taken.plan.disks[0].dirty_bytes, Some(MIB + KIB64));
        assert_eq!(taken.read["vda"], Some(MIB + KIB64), "{way}");
        assert_eq!(taken.read["vdb"], Some(KIB64), "{way}");
        assert_stored(&pool, &expected);

        let expected = content(&machine);
        let taken = pool.take(&uri, || ()).unwrap();
        assert_eq!((taken.read["vda"], taken.read["vdb"]), (Some(4 * MIB), Some(0)));
        assert_stored(&pool, &expected);
        machine.assert_clean(way);
    }
}

#[test]
fn a_failed_run_costs_nothing_and_pools_do_not_meet() {
    if !can_run("a_failed_run_costs_nothing_and_pools_do_not_meet") {
        return;
    }
    let mut machine = Machine::new(&[("a", "qcow2", 4 * MIB)]);
    machine.start();
    let uri = machine.uri();
    let (mut one, mut other) = (Pool::new(OWNER), Pool::new("fedcba9876543210"));
    one.take(&uri, || ()).unwrap();
    machine.write("a", 1, 0, 512);
    other.take(&uri, || ()).unwrap();
    machine.write("a", 2, MIB, 512);
    for outcome in [Some(Outcome::Failed), None] {
        let mut source = source(&uri);
        let request = one.next();
        source.plan(&request).unwrap();
        source.prepare(&request).unwrap();
        source.cut().unwrap();
        assert_eq!(source.open().unwrap().len(), 1);
        if let Some(outcome) = outcome {
            source.finish(outcome).unwrap();
        }
    }
    // The first thing that the next run does is to put the dead one in order.
    let expected = content(&machine);
    let taken = one.take(&uri, || ()).unwrap();
    assert_eq!(taken.read["vda"], Some(2 * KIB64));
    assert_stored(&one, &expected);
    machine.write("a", 3, 2 * MIB, 512);
    let taken = other.take(&uri, || ()).unwrap();
    assert_eq!(taken.read["vda"], Some(2 * KIB64));
    assert_stored(&other, &content(&machine));
    assert_eq!(machine.bitmaps("a").len(), 2);
    machine.assert_clean("two pools");
}

#[test]
fn restarts_crashes_and_other_disks() {
    if !can_run("restarts_crashes_and_other_disks") {
        return;
    }
    let mut machine = Machine::new(&[("a", "qcow2", 4 * MIB), ("b", "raw", MIB)]);
    let uri = machine.uri();
    let mut pool = Pool::new(OWNER);
    machine.start();
    pool.take(&uri, || ()).unwrap();
    machine.write("a", 1, MIB, 4096);
    machine.write("b", 1, 0, 4096);
    machine.quit();

    // In order: qcow2 keeps its bitmap, raw has no place for it.
    machine.start();
    machine.write("a", 2, 3 * MIB, 4096);
    let expected = content(&machine);
    let taken = pool.take(&uri, || ()).unwrap();
    assert_eq!((taken.read["vda"], taken.read["vdb"]), (Some(2 * KIB64), None));
    assert!(taken.why_all["vdb"].contains("does not keep it over a restart"), "{:?}", taken.why_all);
    assert_stored(&pool, &expected);

    // A crash: the bitmap in the file is out of date, and QEMU knows it. One that was never saved is not there at all.
    machine.quit();
    machine.start();
    machine.write("a", 3, 0, 4096);
    machine.flush("a");
    machine.kill();
    machine.start();
    let taken = pool.take(&uri, || ()).unwrap();
    assert!(taken.why_all["vda"].contains("was not saved"), "{:?}", taken.why_all);
    assert_stored(&pool, &content(&machine));
    assert_eq!(machine.bitmaps("a").len(), 1);
    assert_eq!(pool.take(&uri, || ()).unwrap().read["vda"], Some(0));
    machine.kill();
    machine.start();
    let taken = pool.take(&uri, || ()).unwrap();
    assert!(taken.why_all["vda"].contains("is gone"), "{:?}", taken.why_all);

    // A resized disk, one that went and one that came before the others.
    machine.control().call("block_resize", json!({"node-name": "a", "size": 5 * MIB}));
    machine.disks.get_mut("a").unwrap().bytes.resize(5 << 20, 0);
    let taken = pool.take(&uri, || ()).unwrap();
    assert!(taken.why_all["vda"].contains("resized"), "{:?}", taken.why_all);
    assert_stored(&pool, &content(&machine));
    machine.quit();
    machine.disks.remove("b").unwrap();
    machine.add_disk("Z", "qcow2", MIB);
    machine.start();
    machine.write("Z", 7, 0, MIB);
    let taken = pool.take(&uri, || ()).unwrap();
    assert_eq!(taken.plan.disks.iter().map(|disk| disk.name.as_str()).collect::<Vec<_>>(), ["vdb", "vda"]);
    assert_eq!(taken.read["vda"], Some(0));
    assert_eq!(pool.stored["vda"], machine.disks["a"].bytes);
    assert_eq!(pool.stored["vdb"], machine.disks["Z"].bytes);
    machine.assert_clean("other disks");
}

#[test]
fn a_machine_that_is_off_is_taken_from_its_files() {
    if !can_run("a_machine_that_is_off_is_taken_from_its_files") {
        return;
    }
    let mut machine = Machine::new(&[("a", "qcow2", 4 * MIB), ("b", "raw", MIB)]);
    let uri = machine.uri();
    let mut pool = Pool::new(OWNER);
    let error = pool.take(&uri, || ()).unwrap_err();
    assert!(error.to_string().contains("nothing tells its image files"), "{error}");
    machine.start();
    pool.take(&uri, || ()).unwrap();
    machine.write("a", 1, MIB, 4096);
    machine.write("b", 1, 0, 4096);
    machine.quit();
    for read in [KIB64, KIB64] {
        // Twice: the bitmap stays, so that what changed before is read again.
        let taken = pool.take(&uri, || ()).unwrap();
        assert_eq!(
            (taken.plan.disks[0].dirty_bytes, taken.read["vda"], taken.read["vdb"]),
            (Some(read), Some(read), None)
        );
        assert_stored(&pool, &content(&machine));
    }
    machine.start();
    machine.write("a", 2, 2 * MIB, 4096);
    let taken = pool.take(&uri, || ()).unwrap();
    assert_eq!((taken.read["vda"], taken.read["vdb"]), (Some(2 * KIB64), None));
    assert_stored(&pool, &content(&machine));
    assert_eq!(machine.bitmaps("a").len(), 1);

    // By their names alone, for a pool that knows nothing; and locked as long as they are read.
    machine.quit();
    let files = |name: &str| machine.disks[name].file.display().to_string();
    let named = format!("{uri}?images={},{}", files("a"), files("b"));
    let mut other = Pool::new("fedcba9876543210");
    let write = ["-f", "qcow2", &files("a"), "-c", "write 0 512"];
    let taken = other.take(&named, || {
        let refused = std::process::Command::new("qemu-io").args(write).output().unwrap();
        assert!(String::from_utf8_lossy(&refused.stderr).contains("lock"), "{refused:?}");
    });
    assert_eq!(taken.unwrap().read["vda"], None);
    assert_stored(&other, &content(&machine));
}

/// Devices of every bus, a disk in a thread of its own, one made by -drive, one with a limit, and what is no disk.
#[test]
fn devices_of_all_kinds() {
    if !can_run("devices_of_all_kinds") {
        return;
    }
    let mut machine = Machine::new(&[("a", "qcow2", MIB)]);
    for (name, format) in
        [("t", "qcow2"), ("d", "raw"), ("s", "qcow2"), ("i", "qcow2"), ("n", "raw"), ("ro", "raw"), ("old", "qcow2")]
    {
        create_image(&machine.path(name), format, MIB);
    }
    let old = ["create", "-q", "-f", "qcow2", "-o", "compat=0.10"];
    assert!(
        std::process::Command::new("qemu-img").args(old).arg(machine.path("old")).arg("1M").status().unwrap().success()
    );
    let folder = machine.folder.path().to_path_buf();
    let file = |name: &str| folder.join(name).display().to_string();
    let node = |name: &str, driver: &str| {
        format!("driver={driver},node-name={name},file.driver=file,file.filename={}", file(name))
    };
    let lines = [
        "-object iothread,id=io -object throttle-group,id=g,x-iops-total=100000".to_owned(),
        format!("-blockdev {} -device virtio-blk-pci,drive=t,iothread=io,id=t", node("t", "qcow2")),
        format!("-drive if=none,id=d,format=raw,file={} -device virtio-blk-pci,drive=d", file("d")),
        format!(
            "-device virtio-scsi-pci -blockdev {} -blockdev driver=throttle,throttle-group=g,node-name=lim,file=s -device scsi-hd,drive=lim,id=s",
            node("s", "qcow2")
        ),
        format!("-blockdev {} -device ide-hd,drive=i", node("i", "qcow2")),
        format!("-blockdev {} -device nvme,drive=n,serial=1", node("n", "raw")),
        format!("-blockdev {},read-only=on -device virtio-blk-pci,drive=ro", node("ro", "raw")),
        format!("-blockdev {} -device virtio-blk-pci,drive=old", node("old", "qcow2")),
        "-device scsi-cd -device ide-cd,bus=ide.1".to_owned(),
    ];
    machine.arguments = lines.iter().flat_map(|line| line.split(' ')).map(str::to_owned).collect();
    machine.start();
    let mut pool = Pool::new(OWNER);
    for way in WAYS {
        let uri = machine.uri() + way;
        pool.take(&uri, || machine.write("a", 1, 0, 4096)).unwrap();
        let taken = pool.take(&uri, || ()).unwrap();
        let mut names: Vec<&str> = taken.plan.disks.iter().map(|disk| disk.name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["nvme0n1", "sda", "sdb", "vda", "vdb", "vdc", "vdd"]);
        assert!(taken.why_all.is_empty(), "{way}: {:?}", taken.why_all);
        let left_out = taken.plan.steps.iter().filter(|line| line.contains("leave out")).count();
        assert_eq!(left_out, 3, "{:?}", taken.plan.steps);
        machine.assert_clean(way);
    }
    let only = format!("{}?images={},{}", machine.uri(), file("t"), file("i"));
    let taken = Pool::new("00000000000000aa").take(&only, || ()).unwrap();
    assert_eq!(taken.plan.disks.len(), 2);
    let error = Pool::new("00000000000000ab").take(&(only + ",/nowhere"), || ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}
