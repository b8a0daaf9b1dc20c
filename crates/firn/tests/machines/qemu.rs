//! One boot of the guest, and everything that is done to it through QEMU's monitor.

use crate::support::{Firn, Guest, guest_folder, until};
use std::process::Child;

/// The whole of it in one test, since a boot takes 20 seconds.
#[test]
fn a_running_machine() {
    let Some(folder) = guest_folder("a_running_machine") else { return };
    let guest = Guest::boot(&folder, "machines");
    guest.start_load();
    until("the load has begun", || (guest.load_lines() > 40).then_some(()));
    let firn = Firn::with_pool();
    what_would_be_done(&firn, &guest);
    frozen_then_incremental(&firn, &guest);
    without_a_freeze(&firn, &guest);
    hooks(&firn, &guest);
    killed(&firn, &guest);
    beside_one_another(&firn, &guest);
    a_pool_that_fails(&firn, &guest);
}

fn what_would_be_done(firn: &Firn, guest: &Guest) {
    let plan = firn.json(&["snap", "web1", &guest.uri(), "--dry-run"]);
    let disks = plan["machines"][0]["sources"][0]["disks"].as_array().unwrap();
    let names: Vec<_> = disks.iter().map(|disk| disk["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["vda", "vdb"], "{plan}");
    assert!(disks.iter().all(|disk| disk["bytes_changed"].is_null()), "{plan}");
    guest.assert_tidy(0);
    let doctor = firn.json(&["doctor", "web1", &guest.uri(), "--freeze"]);
    let text = doctor.to_string();
    assert!(text.contains("answers") && text.contains("freeze and thaw"), "{text}");
    assert!(!text.contains("\"bad\""), "{text}");
    guest.assert_alive();
}

fn frozen_then_incremental(firn: &Firn, guest: &Guest) {
    let first = firn.json(&["snap", "web1", &guest.uri()]);
    assert_eq!(first["consistency"], "filesystem", "{first}");
    assert!(first["frozen_milliseconds"].as_u64().is_some(), "{first}");
    guest.assert_alive();
    guest.assert_tidy(2);
    firn.assert_load_is_whole("web1");

    let plan = firn.json(&["snap", "web1", "--dry-run"]);
    let disks = plan["machines"][0]["sources"][0]["disks"].as_array().unwrap().clone();
    assert!(disks.iter().all(|disk| disk["bytes_changed"].is_u64()), "{plan}");
    // From the last snapshot's own source.
    let second = firn.json(&["snap", "web1"]);
    assert_eq!(second["consistency"], "filesystem", "{second}");
    let bytes = |snapshot: &serde_json::Value, name: &str| snapshot[name].as_u64().unwrap();
    assert!(bytes(&second, "bytes_read") * 4 < bytes(&first, "bytes_read"), "{first} {second}");
    guest.assert_alive();
    guest.assert_tidy(2);
    firn.assert_load_is_whole("web1");
    firn.assert_load_is_whole("web1@latest~1");

    // What was read by its changes alone is the same disk as one that is read whole.
    firn.ok(&["restore", "web1", "out"]);
    for disk in ["vda", "vdb"] {
        let checked = std::process::Command::new("e2fsck")
            .args(["-fy", firn.path(&format!("out/{disk}.raw")).to_str().unwrap()])
            .output()
            .unwrap();
        let code = checked.status.code().unwrap();
        assert!(code <= 1, "{disk}: {code}: {}", String::from_utf8_lossy(&checked.stdout));
    }
}

fn without_a_freeze(firn: &Firn, guest: &Guest) {
    let taken = firn.json(&["snap", "web1", &guest.uri(), "--freeze", "no"]);
    assert_eq!(taken["consistency"], "crash", "{taken}");
    assert!(taken["frozen_milliseconds"].is_null(), "{taken}");
    firn.assert_load_is_whole("web1");
    guest.assert_alive();
    // Somebody else has it frozen: that is theirs to undo.
    guest.freeze();
    let taken = firn.json(&["snap", "web1", &guest.uri()]);
    assert_eq!(taken["consistency"], "crash", "{taken}");
    let required = firn.run(&["snap", "web1", &guest.uri(), "--freeze", "require"]);
    assert_eq!(required.status.code(), Some(6), "{required:?}");
    assert!(guest.is_frozen(), "it was not ours to thaw");
    guest.thaw();
    guest.assert_alive();
    guest.assert_tidy(2);
}

fn hooks(firn: &Firn, guest: &Guest) {
    let words = ["--hook-before", "guest:echo $FIRN_PHASE of $FIRN_MACHINE >>/data/hooks; sync /data/hooks"];
    let after = ["--hook-after", "guest:echo $FIRN_PHASE $FIRN_OUTCOME >>/data/hooks"];
    let uri = guest.uri();
    let taken = firn.json(&[["snap", "web1"].as_slice(), &[&uri], &words, &after].concat());
    assert_eq!(taken["consistency"], "application", "{taken}");
    assert_eq!(guest.shell("cat /data/hooks"), "pre-freeze of web1\npost-thaw application\n");
    assert_eq!(firn.ok(&["cat", "web1#vdb:/hooks"]), "pre-freeze of web1\n");
    let failed = firn.run(&["snap", "web1", &uri, "--hook-before", "guest:exit 3"]);
    assert!(!failed.status.success() && failed.stdout.is_empty(), "{failed:?}");
    guest.assert_alive();
    guest.assert_tidy(2);
}

/// SIGKILL at moments all over a run, firn alone: the watchdog undoes what it was at.
fn killed(firn: &Firn, guest: &Guest) {
    let uri = guest.uri();
    let before = firn.json(&["list", "web1"])["machines"][0]["snapshots"].as_array().unwrap().len();
    let mut published = 0;
    for round in 0..6 {
        let mut child = firn.command(&["snap", "web1", &uri]).spawn().unwrap();
        match round {
            // Frozen; the watchdog's record is on disk by then.
            0..3 => frozen_or_done(firn, &mut child),
            // While it is read.
            _ => reading_or_done(&mut child, (round - 2) * (4 << 20)),
        }
        let _ = child.kill();
        published += usize::from(child.wait().unwrap().success());
        until("all is undone", || {
            // The watchdog does it; where firn died before there was one, the next start of firn does.
            firn.ok(&["list"]);
            (firn.records() == 0 && !guest.is_frozen()).then_some(())
        });
        guest.assert_alive();
        guest.assert_tidy(2);
    }
    let after = firn.json(&["list", "web1"])["machines"][0]["snapshots"].as_array().unwrap().len();
    assert!(after >= before + published, "{before} {published} {after}");
    let next = firn.json(&["snap", "web1", &uri]);
    assert_eq!(next["consistency"], "filesystem", "{next}");
    firn.assert_load_is_whole("web1");
    firn.ok(&["verify"]);
}

fn frozen_or_done(firn: &Firn, child: &mut Child) {
    until("there is a record of the freeze, or firn has ended", || {
        (firn.records() > 0 || child.try_wait().unwrap().is_some()).then_some(())
    });
}

/// Until firn has read so many bytes, of whatever.
fn reading_or_done(child: &mut Child, bytes: u64) {
    until("firn reads or has ended", || {
        let io = std::fs::read_to_string(format!("/proc/{}/io", child.id())).unwrap_or_default();
        let read = io.lines().find_map(|line| line.strip_prefix("rchar: ")?.parse().ok()).unwrap_or(0u64);
        (read > bytes || child.try_wait().unwrap().is_some()).then_some(())
    });
}

fn beside_one_another(firn: &Firn, guest: &Guest) {
    let uri = guest.uri();
    let children: Vec<Child> = (0..2).map(|_| firn.command(&["snap", "web1", &uri]).spawn().unwrap()).collect();
    let outputs: Vec<_> = children.into_iter().map(|child| child.wait_with_output().unwrap()).collect();
    let good = outputs.iter().filter(|output| output.status.success()).count();
    assert!(good >= 1, "{outputs:?}");
    for output in outputs.iter().filter(|output| !output.status.success()) {
        assert_eq!(output.status.code(), Some(6), "{output:?}");
    }
    guest.assert_alive();
    guest.assert_tidy(2);
    // Another pool has bitmaps of its own, and neither disturbs the other.
    let other = Firn::with_pool();
    other.ok(&["snap", "web1", &uri]);
    guest.assert_tidy(4);
    let taken = firn.json(&["snap", "web1", &uri]);
    assert!(taken["bytes_read"].as_u64().unwrap() < 200 << 20, "{taken}");
    firn.assert_load_is_whole("web1");
    other.assert_load_is_whole("web1");
}

/// A pool that cannot be written to any more: the guest does not notice.
fn a_pool_that_fails(firn: &Firn, guest: &Guest) {
    let data = firn.path("pool/data");
    let away = firn.path("pool/data-away");
    std::fs::rename(&data, &away).unwrap();
    std::fs::write(&data, "no folder").unwrap();
    let failed = firn.run(&["snap", "web1", &guest.uri()]);
    assert!(!failed.status.success() && failed.stdout.is_empty(), "{failed:?}");
    guest.assert_alive();
    std::fs::remove_file(&data).unwrap();
    std::fs::rename(&away, &data).unwrap();
    guest.assert_tidy(4);
    let taken = firn.json(&["snap", "web1", &guest.uri()]);
    assert_eq!(taken["consistency"], "filesystem", "{taken}");
    firn.assert_load_is_whole("web1");
}
