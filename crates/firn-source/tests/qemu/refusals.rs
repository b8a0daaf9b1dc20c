//! What firn does not do, and why it says so: two at one machine, somebody else's NBD server, no room.

use crate::machine::{Control, MIB, Machine, can_run};
use crate::taking::{OWNER, Pool, assert_stored, content, source};
use firn_disk::ErrorKind;
use firn_source::{Outcome, Source};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;

#[test]
fn two_at_one_machine_refuse_each_other() {
    if !can_run("two_at_one_machine_refuse_each_other") {
        return;
    }
    let mut machine = Machine::new(&[("a", "qcow2", MIB)]);
    let second = machine.path("second.sock");
    machine.arguments = ["-qmp".to_owned(), format!("unix:{},server=on,wait=off", second.display())].into();
    machine.start();
    let (mut one, mut other) = (Pool::new(OWNER), Pool::new("fedcba9876543210"));
    let mut first = source(&machine.uri());
    let request = one.next();
    first.plan(&request).unwrap();
    first.prepare(&request).unwrap();
    first.cut().unwrap();

    let error = other.take(&machine.uri(), || ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("another firn"), "{error}");
    // By another monitor of the same machine, into another pool.
    let error = other.take(&format!("qemu:{}", second.display()), || ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("into another pool"), "{error}");
    assert_eq!(first.open().unwrap().len(), 1);
    first.check().unwrap();
    first.finish(Outcome::Failed).unwrap();
    machine.assert_clean("after two");
    other.take(&machine.uri(), || ()).unwrap();

    // Somebody who is no firn has the monitor.
    let held = Control::connect(&machine.path("q.sock"));
    let error = one.take(&machine.uri(), || ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.next_step().unwrap().contains("another program"), "{error}");
    drop(held);
    one.take(&machine.uri(), || ()).unwrap();
    machine.assert_clean("at last");
}

#[test]
fn a_server_of_somebody_else_stays() {
    if !can_run("a_server_of_somebody_else_stays") {
        return;
    }
    let mut machine = Machine::new(&[("a", "qcow2", MIB)]);
    machine.start();
    let foreign = machine.path("foreign.sock");
    let address = json!({"addr": {"type": "unix", "data": {"path": foreign}}});
    machine.control().call("nbd-server-start", address);
    let mut pool = Pool::new(OWNER);
    let error = pool.take(&machine.uri(), || ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("NBD server"), "{error}");
    machine.control().call("nbd-server-stop", Value::Null);
    machine.assert_clean("after the foreign server");
    pool.take(&machine.uri(), || ()).unwrap();
}

/// A file system of 16 MiB, for as long as it lives.
struct SmallFolder<'a>(&'a Path);

impl<'a> SmallFolder<'a> {
    fn mount(test: &str, folder: &'a Path) -> Option<Self> {
        std::fs::create_dir(folder).unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=16m", "none"]).arg(folder).output();
        if !mounted.is_ok_and(|output| output.status.success()) {
            firn_disk::testing::skip(test, "a tmpfs cannot be mounted here");
            return None;
        }
        Some(Self(folder))
    }
}

impl Drop for SmallFolder<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0).status();
    }
}

/// The guest overwrites four times as much as the scratch can take.
#[test]
fn full_scratch_ends_the_snapshot_and_not_the_guest() {
    let test = "full_scratch_ends_the_snapshot_and_not_the_guest";
    if !can_run(test) {
        return;
    }
    for way in ["?cut=filter", "?cut=backup"] {
        let mut machine = Machine::new(&[("a", "qcow2", 64 * MIB), ("b", "raw", 8 * MIB)]);
        let small = machine.path("small");
        let Some(small) = SmallFolder::mount(test, &small) else { return };
        machine.start();
        let uri = machine.uri() + way;
        let mut pool = Pool::new(OWNER);
        for offset in 0..16 {
            machine.write("a", 1, offset * 4 * MIB, 4 * MIB);
        }
        pool.take(&uri, || ()).unwrap();
        machine.write("a", 2, 0, MIB);
        let expected = content(&machine);

        pool.request.scratch_folder = Some(small.0.to_path_buf());
        let error = pool.take(&uri, || (0..256).for_each(|step| machine.write("a", 3, step * MIB / 4, MIB / 4)));
        let error = error.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        assert!(error.next_step().unwrap().contains("more room"), "{error}");
        println!("{way}: {error}");
        machine.assert_clean(way);

        // What it had to read before is read now, and what was written since.
        pool.request.scratch_folder = None;
        assert_ne!(expected, content(&machine));
        let expected = content(&machine);
        let taken = pool.take(&uri, || ()).unwrap();
        assert_eq!((taken.read["vda"], taken.read["vdb"]), (Some(64 * MIB), Some(0)), "{way}");
        assert_stored(&pool, &expected);

        // No room at all is seen beforehand.
        std::fs::write(small.0.join("fill"), vec![1; 15 << 20]).unwrap();
        pool.request.scratch_folder = Some(small.0.to_path_buf());
        let error = pool.take(&uri, || ()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.to_string().contains("bytes are free"), "{error}");
        machine.assert_clean(way);
    }
}

/// Somebody else fills the file system while the snapshot is read.
#[test]
fn room_that_vanishes_ends_the_snapshot() {
    let test = "room_that_vanishes_ends_the_snapshot";
    if !can_run(test) {
        return;
    }
    for way in ["?cut=filter", "?cut=backup"] {
        let mut machine = Machine::new(&[("a", "qcow2", 8 * MIB)]);
        let small = machine.path("small");
        let Some(small) = SmallFolder::mount(test, &small) else { return };
        machine.start();
        let mut pool = Pool::new(OWNER);
        pool.request.scratch_folder = Some(small.0.to_path_buf());
        let mut taking = source(&(machine.uri() + way));
        let request = pool.next();
        taking.plan(&request).unwrap();
        taking.prepare(&request).unwrap();
        taking.cut().unwrap();
        let disks = taking.open().unwrap();
        std::fs::write(small.0.join("fill"), vec![1; (15 << 20) + (1 << 19)]).unwrap();
        let mut error = None;
        crate::machine::wait_for("the end of the snapshot", || {
            error = taking.check().err();
            error.is_some()
        });
        let error = error.unwrap();
        assert!(error.to_string().contains("bytes are free"), "{error}");
        assert_eq!(disks[0].disk.read_at(&mut [0; 512], 0).unwrap_err().kind(), ErrorKind::Unavailable);
        machine.write("a", 1, 0, 8 * MIB);
        taking.finish(Outcome::Failed).unwrap();
        machine.assert_clean(way);
    }
}

#[test]
fn qemu_that_ends_in_the_middle_leaves_nothing_to_do() {
    if !can_run("qemu_that_ends_in_the_middle_leaves_nothing_to_do") {
        return;
    }
    let mut machine = Machine::new(&[("a", "qcow2", MIB)]);
    machine.start();
    let mut pool = Pool::new(OWNER);
    pool.take(&machine.uri(), || ()).unwrap();
    let mut taking: Box<dyn Source> = source(&machine.uri());
    let request = pool.next();
    taking.plan(&request).unwrap();
    taking.prepare(&request).unwrap();
    taking.cut().unwrap();
    let disks = taking.open().unwrap();
    machine.kill();
    assert_eq!(disks[0].disk.read_at(&mut [0; 512], 0).unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(taking.check().unwrap_err().kind(), ErrorKind::Unavailable);
    taking.finish(Outcome::Failed).unwrap();
    machine.start();
    let taken = pool.take(&machine.uri(), || ()).unwrap();
    assert!(taken.why_all["vda"].contains("is gone"), "{:?}", taken.why_all);
    assert_eq!(machine.bitmaps("a").len(), 1);
    machine.assert_clean("after QEMU's end");
}
