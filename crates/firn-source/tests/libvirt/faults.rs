//! What goes wrong around a run. After each: the guest runs and writes, nothing is left behind, the next run is green.

use crate::lab::{Lab, MIB, Taken, byte, since, succeed, taken, why_all};
use firn_disk::ErrorKind;
use firn_source::{Outcome, Source};
use std::process::Command;

#[test]
fn a_bitmap_that_a_crash_lost_costs_one_full_read() {
    let Some(lab) = Lab::start("a_bitmap_that_a_crash_lost_costs_one_full_read") else { return };
    lab.boot();
    let first = lab.snap(1, &Taken::default(), |_| {});
    lab.write(0, 1, 0..MIB);
    // It was never written into the image.
    lab.kill_qemu();
    lab.power_on();
    let second = lab.snap(2, &first, |frozen| {
        assert!(why_all(&frozen[0]).contains("lost or inconsistent"));
        assert_eq!(byte(&frozen[0], 0..MIB), 1);
    });
    assert_eq!(lab.checkpoints(), [lab.checkpoint(2)]);
    // It was written by an orderly end, and then marked as in use when the next one died.
    lab.virsh(&["destroy", "lab", "--graceful"]);
    lab.power_on();
    lab.write(0, 2, 0..MIB);
    lab.kill_qemu();
    lab.power_on();
    let third = lab.snap(3, &second, |frozen| {
        assert!(why_all(&frozen[0]).contains("lost or inconsistent"));
        assert_eq!(byte(&frozen[0], 0..MIB), 2);
    });
    lab.write(0, 3, 0..65536);
    lab.snap(4, &third, |frozen| assert_eq!(since(&frozen[0]), [0..65536]));
    assert_eq!(lab.checkpoints(), [lab.checkpoint(4)]);
    // The broken one is gone from the image, too.
    lab.virsh(&["destroy", "lab", "--graceful"]);
    let info = succeed(Command::new("qemu-img").arg("info").arg(lab.path("a.qcow2")));
    assert!(info.contains(&lab.checkpoint(4)) && !info.contains(&lab.checkpoint(2)), "{info}");
}

#[test]
fn a_checkpoint_that_libvirt_forgot_is_told_again() {
    let Some(lab) = Lab::start("a_checkpoint_that_libvirt_forgot_is_told_again") else { return };
    lab.boot();
    let first = lab.snap(1, &Taken::default(), |_| {});
    lab.write(0, 1, 0..65536);
    lab.virsh(&["checkpoint-delete", "lab", &lab.checkpoint(1), "--metadata"]);
    let plan = lab.source().plan(&lab.request(2, &first)).unwrap();
    assert!(plan.disks[0].why_all.as_ref().unwrap().contains("does not know its checkpoint"));
    let second = lab.snap(2, &first, |frozen| assert_eq!(since(&frozen[0]), [0..65536]));
    assert_eq!(lab.checkpoints(), [lab.checkpoint(2)]);
    // A disk whose image was put back from elsewhere has no bitmap; the other one still has.
    lab.virsh(&["destroy", "lab", "--graceful"]);
    lab.virsh(&["undefine", "lab", "--checkpoints-metadata"]);
    let image = lab.path("b.qcow2");
    succeed(Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&image).arg("32M"));
    lab.virsh(&["create", &lab.path("lab.xml").to_string_lossy(), "--paused"]);
    lab.write(0, 2, MIB..MIB + 65536);
    let third = lab.snap(3, &second, |frozen| {
        assert_eq!(since(&frozen[0]), [MIB..MIB + 65536]);
        assert!(why_all(&frozen[1]).contains("lost or inconsistent"), "{:?}", frozen[1].changed);
    });
    // That was a transient domain, which takes its checkpoints with it, though not the bitmaps.
    lab.virsh(&["destroy", "lab", "--graceful"]);
    lab.virsh(&["create", &lab.path("lab.xml").to_string_lossy(), "--paused"]);
    assert_eq!(lab.checkpoints(), Vec::<String>::new());
    lab.write(1, 3, 0..65536);
    lab.snap(4, &third, |frozen| {
        assert_eq!((since(&frozen[0]).len(), since(&frozen[1])), (0, [0..65536].as_slice()));
    });
    assert_eq!(lab.checkpoints(), [lab.checkpoint(4)]);
}

#[test]
fn two_backups_refuse_each_other() {
    let Some(lab) = Lab::start("two_backups_refuse_each_other") else { return };
    lab.boot();
    let mut source = lab.source();
    let request = lab.request(1, &Taken::default());
    source.plan(&request).unwrap();
    source.prepare(&request).unwrap();
    source.cut().unwrap();
    // Of the same pool, and of another one.
    let refused = |request: &firn_source::Request| {
        let mut other = lab.source();
        other.plan(request).unwrap();
        let error = other.prepare(request).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        other.finish(Outcome::Failed).unwrap();
        error.to_string()
    };
    assert!(refused(&lab.request(2, &Taken::default())).contains("already"));
    let mut stranger = lab.request(2, &Taken::default());
    stranger.owner = stranger.owner.replace('0', "f");
    assert!(refused(&stranger).contains("another backup"));
    let _ = std::fs::remove_file(format!("/run/firn-{}-93a5c0456457.lock", stranger.owner));
    assert_eq!(source.open().unwrap().len(), 3);
    source.check().unwrap();
    source.finish(Outcome::Published).unwrap();
    assert_eq!(lab.leftovers(), Vec::<String>::new());
}

#[test]
fn what_a_killed_run_left_is_swept() {
    let Some(lab) = Lab::start("what_a_killed_run_left_is_swept") else { return };
    lab.boot();
    let first = lab.snap(1, &Taken::default(), |_| {});
    // A source that is dropped does no more than one whose process was killed.
    let die = |run: u32| {
        let mut source = lab.source();
        let request = lab.request(run, &first);
        source.plan(&request).unwrap();
        source.prepare(&request).unwrap();
        source.cut().unwrap();
        drop(source);
        assert!(lab.has_job() && !lab.leftovers().is_empty());
        request
    };
    let dead = die(2);
    lab.write(0, 1, 0..65536);
    lab.source().sweep(&dead).unwrap();
    assert_eq!((lab.checkpoints(), lab.leftovers().len(), lab.has_job()), (vec![lab.checkpoint(1)], 0, false));
    // Sweeping what is clean changes nothing.
    lab.source().sweep(&dead).unwrap();
    assert_eq!(lab.checkpoints(), [lab.checkpoint(1)]);
    // Without the watchdog the next run does it.
    die(3);
    let fourth = lab.snap(4, &first, |frozen| assert_eq!(since(&frozen[0]), [0..65536]));
    assert_eq!(lab.checkpoints(), [lab.checkpoint(4)]);
    // A job from another host, which did not hold this lock, is left alone.
    let dead = die(5);
    std::fs::write(format!("/run/firn-{}-93a5c0456457.lock", dead.owner), "").unwrap();
    let mut source = lab.source();
    let request = lab.request(6, &fourth);
    source.plan(&request).unwrap();
    assert!(source.prepare(&request).unwrap_err().to_string().contains("another host"));
    assert!(lab.has_job());
}

#[test]
fn a_full_scratch_ends_the_backup_and_not_the_guest() {
    let Some(lab) = Lab::start_with("a_full_scratch_ends_the_backup_and_not_the_guest", true) else { return };
    lab.boot();
    lab.write(0, 1, 0..32 * MIB);
    let first = lab.snap(1, &Taken::default(), |_| {});
    let mut source = lab.source();
    let request = lab.request(2, &first);
    source.plan(&request).unwrap();
    source.prepare(&request).unwrap();
    source.cut().unwrap();
    let frozen = source.open().unwrap();
    assert_eq!(taken(&frozen).previous.len(), 3);
    // Each step needs its room in the scratch file: 32 MiB do not fit into 16.
    for step in 0..32 {
        lab.write(0, 2, step * MIB..(step + 1) * MIB);
    }
    lab.wait("the end of the job", || !lab.has_job());
    let error = source.check().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("scratch files left only"), "{error}");
    drop(frozen);
    source.finish(Outcome::Failed).unwrap();
    assert_eq!((lab.checkpoints(), lab.leftovers().len()), (vec![lab.checkpoint(1)], 0));
    // No write of the guest was lost, and none has failed.
    assert_eq!(lab.virsh(&["domblkerror", "lab"]).trim(), "No errors found");
    lab.snap(3, &first, |frozen| {
        assert_eq!(since(&frozen[0]), [0..32 * MIB]);
        assert_eq!(byte(&frozen[0], 0..32 * MIB), 2);
    });
}

#[test]
fn a_job_that_ends_too_early_is_noticed() {
    let Some(lab) = Lab::start("a_job_that_ends_too_early_is_noticed") else { return };
    lab.boot();
    let first = lab.snap(1, &Taken::default(), |_| {});
    let begin = |run: u32| {
        let mut source = lab.source();
        let request = lab.request(run, &first);
        source.plan(&request).unwrap();
        source.prepare(&request).unwrap();
        source.cut().unwrap();
        let frozen = source.open().unwrap();
        (source, frozen)
    };
    let (mut source, frozen) = begin(2);
    lab.virsh(&["domjobabort", "lab"]);
    lab.wait("the end of the job", || !lab.has_job());
    let mut bytes = vec![0; 4096];
    assert!(frozen[0].disk.read_at(&mut bytes, 0).is_err());
    assert_eq!(source.check().unwrap_err().kind(), ErrorKind::Unavailable);
    source.finish(Outcome::Failed).unwrap();
    assert_eq!((lab.checkpoints(), lab.leftovers().len()), (vec![lab.checkpoint(1)], 0));

    let (mut source, _frozen) = begin(3);
    lab.kill_qemu();
    assert_eq!(source.check().unwrap_err().kind(), ErrorKind::Unavailable);
    source.finish(Outcome::Failed).unwrap();
    assert_eq!(lab.leftovers(), Vec::<String>::new());
    lab.power_on();
    lab.snap(4, &first, |frozen| assert!(why_all(&frozen[0]).contains("lost or inconsistent")));
    assert_eq!(lab.checkpoints(), [lab.checkpoint(4)]);
}

#[test]
fn a_domain_that_changes_after_the_plan_is_refused() {
    let Some(lab) = Lab::start("a_domain_that_changes_after_the_plan_is_refused") else { return };
    lab.boot();
    let mut source = lab.source();
    let request = lab.request(1, &Taken::default());
    source.plan(&request).unwrap();
    lab.virsh(&["destroy", "lab", "--graceful"]);
    let error = source.prepare(&request).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    // An image of version 2 keeps no bitmaps; it is read whole all the same.
    let image = lab.path("a.qcow2");
    succeed(Command::new("qemu-img").args(["create", "-q", "-f", "qcow2", "-o", "compat=0.10"]).arg(&image).arg("64M"));
    lab.power_on();
    let first = lab.snap(2, &Taken::default(), |frozen| assert!(frozen.iter().all(|disk| disk.generation.is_none())));
    lab.snap(3, &first, |frozen| assert!(why_all(&frozen[0]).contains("left no checkpoint")));
    assert_eq!(lab.checkpoints(), Vec::<String>::new());
}
