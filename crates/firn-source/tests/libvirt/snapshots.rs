//! Snapshots that succeed: everything, then what changed; new, resized and raw disks; a domain that is shut off.

use crate::lab::{LENGTHS, Lab, MIB, Taken, byte, since, why_all};
use firn_source::{Outcome, Source};
use std::process::Command;

#[test]
fn everything_and_then_what_changed() {
    let Some(lab) = Lab::start("everything_and_then_what_changed") else { return };
    lab.boot();
    lab.write(0, 1, 0..MIB);
    lab.write(1, 2, MIB..2 * MIB);
    lab.write(2, 3, 0..4096);

    let first = lab.snap(1, &Taken::default(), |frozen| {
        assert_eq!(frozen.iter().map(|disk| disk.name.as_str()).collect::<Vec<_>>(), ["vda", "vdb", "vdc"]);
        assert_eq!(frozen.iter().map(|disk| disk.disk.len()).collect::<Vec<_>>(), LENGTHS);
        // What the guest writes after the instant is not in it.
        lab.write(0, 9, 0..2 * MIB);
        lab.write(2, 9, 0..4096);
        assert_eq!((byte(&frozen[0], 0..MIB), byte(&frozen[0], MIB..2 * MIB)), (1, 0));
        assert_eq!((byte(&frozen[1], MIB..2 * MIB), byte(&frozen[2], 0..4096)), (2, 3));
        assert!(why_all(&frozen[0]).contains("no snapshot of it yet"));
        assert!(why_all(&frozen[2]).contains("raw image"));
    });
    assert_eq!(lab.checkpoints(), [lab.checkpoint(1)]);
    assert!(!lab.has_job());

    lab.write(0, 5, 10 * MIB..10 * MIB + 65536);
    let second = lab.snap(2, &first, |frozen| {
        assert_eq!(since(&frozen[0]), [0..2 * MIB, 10 * MIB..10 * MIB + 65536]);
        assert_eq!(since(&frozen[1]), []);
        assert!(why_all(&frozen[2]).contains("raw image"));
        assert_eq!((byte(&frozen[0], 0..2 * MIB), byte(&frozen[0], 10 * MIB..10 * MIB + 65536)), (9, 5));
        assert_eq!(byte(&frozen[2], 0..4096), 9);
    });
    // The base of the next run is the only one that is kept.
    assert_eq!(lab.checkpoints(), [lab.checkpoint(2)]);

    // The plan tells how much it will be, and keeps the definition.
    lab.write(1, 7, 0..65536);
    let plan = lab.source().plan(&lab.request(3, &second)).unwrap();
    let dirty: Vec<_> = plan.disks.iter().map(|disk| disk.dirty_bytes).collect();
    assert_eq!(dirty, [Some(0), Some(65536), None]);
    assert!(plan.steps.iter().any(|step| step.contains("leave out hdc")), "{:?}", plan.steps);
    let attachment = &plan.attachments[0];
    assert_eq!(attachment.name, "domain.xml");
    assert!(std::str::from_utf8(&attachment.bytes).unwrap().contains("<name>lab</name>"));
}

#[test]
fn after_a_failed_run_nothing_is_missing() {
    let Some(lab) = Lab::start("after_a_failed_run_nothing_is_missing") else { return };
    lab.boot();
    let first = lab.snap(1, &Taken::default(), |_| {});
    lab.write(0, 1, 0..65536);
    let mut source = lab.source();
    let request = lab.request(2, &first);
    source.plan(&request).unwrap();
    source.prepare(&request).unwrap();
    source.cut().unwrap();
    lab.write(0, 2, MIB..MIB + 65536);
    source.finish(Outcome::Failed).unwrap();
    assert_eq!((lab.checkpoints(), lab.leftovers().len(), lab.has_job()), (vec![lab.checkpoint(1)], 0, false));
    lab.write(0, 3, 2 * MIB..2 * MIB + 65536);
    lab.snap(3, &first, |frozen| {
        let step = |at: u64| at * MIB..at * MIB + 65536;
        assert_eq!(since(&frozen[0]), [step(0), step(1), step(2)]);
    });
}

#[test]
fn a_domain_that_is_shut_off_is_taken_from_its_files() {
    let Some(lab) = Lab::start("a_domain_that_is_shut_off_is_taken_from_its_files") else { return };
    lab.boot();
    let first = lab.snap(1, &Taken::default(), |_| {});
    lab.write(0, 1, 0..65536);
    lab.virsh(&["destroy", "lab", "--graceful"]);
    assert!(lab.source().guest().is_some());
    let second = lab.snap(2, &first, |frozen| {
        assert_eq!((byte(&frozen[0], 0..65536), why_all(&frozen[0])), (1, "the domain is shut off"));
        assert_eq!(frozen[0].generation, Some(lab.checkpoint(1)));
        // It cannot be started while it is read.
        let mut start = Command::new("virsh");
        start.args(["-c", &lab.connection, "start", "lab"]);
        assert!(!start.output().unwrap().status.success());
    });
    lab.power_on();
    lab.write(0, 2, MIB..MIB + 65536);
    lab.snap(3, &second, |frozen| {
        assert_eq!(since(&frozen[0]), [0..65536, MIB..MIB + 65536]);
        assert_eq!(since(&frozen[1]), []);
    });
    assert_eq!(lab.checkpoints(), [lab.checkpoint(3)]);
}

#[test]
fn disks_that_come_grow_and_go() {
    let Some(lab) = Lab::start("disks_that_come_grow_and_go") else { return };
    lab.boot();
    let first = lab.snap(1, &Taken::default(), |_| {});
    lab.virsh(&["blockresize", "lab", "vda", "80M"]);
    lab.write(0, 1, 70 * MIB..71 * MIB);
    lab.virsh(&["detach-disk", "lab", "vdb", "--live"]);
    let gone = || !lab.virsh(&["domblklist", "lab"]).contains("vdb");
    // Without a guest nobody agrees to give a disk up.
    let is_gone = gone();
    let new = lab.path("new.qcow2").to_string_lossy().into_owned();
    crate::lab::succeed(Command::new("qemu-img").args(["create", "-q", "-f", "qcow2", &new, "8M"]));
    lab.virsh(&["attach-disk", "lab", &new, "vdd", "--subdriver", "qcow2", "--live"]);
    lab.snap(2, &first, |frozen| {
        assert_eq!(frozen.len(), if is_gone { 3 } else { 4 });
        assert_eq!(frozen[0].disk.len(), 80 * MIB);
        assert_eq!(byte(&frozen[0], 70 * MIB..71 * MIB), 1);
        // What is new may be named or not; what was there is not.
        assert!(since(&frozen[0]).iter().all(|range| range.start >= 64 * MIB), "{:?}", frozen[0].changed);
        let last = frozen.last().unwrap();
        assert_eq!(last.name, "vdd");
        assert!(why_all(last).contains("no snapshot of it yet"));
        assert_eq!(last.generation, Some(lab.checkpoint(2)));
    });
}

#[test]
fn names_and_numbers() {
    let Some(lab) = Lab::start("names_and_numbers") else { return };
    lab.boot();
    let open = |domain: &str| {
        let uri = lab.uri().replace("lab?", &format!("{domain}?"));
        firn_source::open(&uri, &firn_source::SourceOptions::default())
            .unwrap()
            .plan(&lab.request(1, &Taken::default()))
    };
    assert_eq!(open("93a5c045-6457-2c09-e56c-927cdf34e178").unwrap().disks.len(), 3);
    // Its number in libvirt is another one after each start.
    let number = lab.virsh(&["domid", "lab"]);
    assert_eq!(open(number.trim()).unwrap_err().kind(), firn_disk::ErrorKind::Invalid);
    assert_eq!(open("nobody").unwrap_err().kind(), firn_disk::ErrorKind::NotFound);
    let uri = format!("{}&skip=vdc,vda", lab.uri());
    let mut source = firn_source::open(&uri, &firn_source::SourceOptions::default()).unwrap();
    assert_eq!(source.plan(&lab.request(1, &Taken::default())).unwrap().disks.len(), 1);
    assert_eq!(firn_source::open(&source.uri(), &firn_source::SourceOptions::default()).unwrap().uri(), source.uri());
}
