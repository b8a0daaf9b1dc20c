//! Whatever goes wrong, and wherever: the machine runs on as before, nothing is left behind, the next run is green, and
//! still reads only what changed.

use crate::machine::{MIB, Machine, can_run};
use crate::proxy::{Fault, Proxy};
use crate::taking::{OWNER, Pool, assert_stored, content, source};
use firn_disk::ErrorKind;
use firn_source::Outcome;

/// A machine with a snapshot, and a proxy in front of its monitor.
fn with_snapshot(disks: &[(&'static str, &'static str, u64)], way: &str) -> (Machine, Pool, Proxy, String) {
    let mut machine = Machine::new(disks);
    machine.start();
    let proxy = Proxy::start(&machine.path("p.sock"), &machine.path("q.sock"));
    let uri = proxy.uri() + way;
    let mut pool = Pool::new(OWNER);
    pool.take(&uri, || ()).unwrap();
    (machine, pool, proxy, uri)
}

/// That the chain of bitmaps is whole: a snapshot reads only what was written, and is right.
fn assert_chain(machine: &mut Machine, pool: &mut Pool, uri: &str, when: &str) {
    machine.assert_clean(when);
    let expected = content(machine);
    let taken = pool.take(uri, || ()).unwrap_or_else(|error| panic!("{when}: {error}"));
    assert!(taken.why_all.is_empty(), "{when}: {:?}", taken.why_all);
    assert_stored(pool, &expected);
    machine.assert_clean(when);
}

/// Every command of a run is spoiled once, or of `stride` commands one.
fn every_command(way: &str, fault: Fault, is_killed: bool, stride: usize) {
    let (mut machine, mut pool, proxy, uri) = with_snapshot(&[("a", "qcow2", 2 * MIB), ("b", "qcow2", MIB)], way);
    let direct = machine.uri() + way;
    for index in (0..400).step_by(stride) {
        machine.write("a", u8::try_from(index % 250 + 1).unwrap(), (index * 8192) % MIB, 4096);
        proxy.spoil(fault, index);
        let request = pool.next();
        let before = pool.clone();
        let mut taking = source(&uri);
        let taken = pool.steps(taking.as_mut(), &request, || ());
        let when = format!("{way}, {fault:?} at command {index}, {:?}", proxy.spoiled());
        let outcome = if taken.is_ok() { Outcome::Published } else { Outcome::Failed };
        if taken.is_ok() && is_killed && proxy.spoiled().is_some() {
            panic!("{when}: it was killed, and there is a snapshot all the same");
        }
        if let (true, Err(error)) = (is_killed, &taken) {
            drop(taking);
            assert!(proxy.spoiled().is_some(), "{when}: {error}");
            source(&direct).sweep(&before.request).unwrap_or_else(|error| panic!("{when}: {error}"));
        } else if let Err(error) = taking.finish(outcome) {
            // What could not be removed now is removed by the next run.
            assert!(proxy.spoiled().is_some(), "{when}: {error}");
            drop(taking);
            source(&direct).sweep(&pool.request).unwrap_or_else(|error| panic!("{when}: {error}"));
        }
        let when = format!("{when}, then {:?}", proxy.spoiled());
        machine.assert_clean(&when);
        let generations: Vec<String> =
            pool.request.previous.iter().filter_map(|disk| disk.generation.clone()).collect();
        assert_eq!(machine.bitmaps("a"), &generations[..1], "{when}");
        assert_eq!(machine.bitmaps("b"), &generations[1..], "{when}");
        if proxy.spoiled().is_none() {
            println!("{way} {fault:?}: {index} commands");
            return assert_chain(&mut machine, &mut pool, &direct, &when);
        }
        if index % 16 == 0 {
            assert_chain(&mut machine, &mut pool, &direct, &when);
        }
    }
    panic!("a run takes more than 400 commands");
}

macro_rules! faults {
    ($($name:ident: $way:literal, $fault:ident, $is_killed:literal, $stride:literal;)*) => {$(
        #[test]
        fn $name() {
            if can_run(stringify!($name)) {
                every_command($way, Fault::$fault, $is_killed, $stride);
            }
        }
    )*};
}

faults! {
    killed_at_every_command_by_filter: "?cut=filter", Lost, true, 1;
    killed_at_every_command_by_backup: "?cut=backup", Lost, true, 1;
    connection_lost_at_every_command: "?cut=filter", Lost, false, 5;
    every_command_refused_by_filter: "?cut=filter", Refused, false, 1;
    every_command_refused_by_backup: "?cut=backup", Refused, false, 1;
    garbage_for_every_command: "?cut=filter", Garbage, false, 7;
    wrong_id_for_every_command: "?cut=filter", WrongId, false, 11;
}

#[test]
fn versions_choose_the_way() {
    if !can_run("versions_choose_the_way") {
        return;
    }
    let (mut machine, mut pool, proxy, _) = with_snapshot(&[("a", "qcow2", MIB)], "");
    for (version, step) in [((6, 2), "backup job"), ((7, 2), "filters"), ((8, 2), "filters"), ((10, 0), "filters")] {
        proxy.pretend_version(version.0, version.1);
        machine.write("a", 9, 0, 512);
        let expected = content(&machine);
        let taken = pool.take(&proxy.uri(), || machine.write("a", 8, 0, MIB / 2)).unwrap();
        assert!(taken.plan.steps.iter().any(|line| line.contains(step)), "{version:?}: {:?}", taken.plan.steps);
        assert!(taken.why_all.is_empty());
        assert_stored(&pool, &expected);
        machine.assert_clean("versions");
    }
    proxy.pretend_version(5, 2);
    let error = pool.take(&proxy.uri(), || ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

#[test]
fn a_monitor_that_falls_silent_while_paused_does_not_leave_the_machine_so() {
    if !can_run("a_monitor_that_falls_silent_while_paused_does_not_leave_the_machine_so") {
        return;
    }
    let (mut machine, mut pool, proxy, uri) = with_snapshot(&[("a", "qcow2", MIB), ("b", "raw", MIB)], "?cut=filter");
    let mut taking = source(&uri);
    let request = pool.next();
    taking.plan(&request).unwrap();
    taking.prepare(&request).unwrap();
    assert_eq!(taking.tickets().len(), 1);
    // The first looks whether the machine runs.
    proxy.spoil(Fault::Silence, 1);
    let error = taking.cut().unwrap_err();
    assert_eq!((error.kind(), proxy.spoiled().as_deref()), (ErrorKind::Unavailable, Some("stop")), "{error}");
    assert_eq!(machine.status(), "running");
    taking.finish(Outcome::Failed).unwrap();
    let direct = machine.uri();
    assert_chain(&mut machine, &mut pool, &direct, "after the silence");
}

#[test]
fn a_machine_that_somebody_paused_stays_so() {
    if !can_run("a_machine_that_somebody_paused_stays_so") {
        return;
    }
    let (mut machine, mut pool, _proxy, uri) = with_snapshot(&[("a", "qcow2", MIB), ("b", "raw", MIB)], "?cut=filter");
    let mut taking = source(&uri);
    let request = pool.next();
    taking.plan(&request).unwrap();
    taking.prepare(&request).unwrap();
    machine.control().call("stop", serde_json::Value::Null);
    taking.cut().unwrap();
    taking.open().unwrap();
    assert_eq!(machine.status(), "paused");
    // Neither does the end of a run let it go on, nor what cleans up behind a dead one.
    drop(taking);
    source(&uri).sweep(&request).unwrap();
    assert_eq!(machine.status(), "paused");
    machine.control().call("cont", serde_json::Value::Null);
    assert_chain(&mut machine, &mut pool, &uri, "after the pause");
}
