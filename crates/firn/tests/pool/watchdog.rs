//! The watchdog that firn is for itself, and what every start of firn does for those that were killed with theirs.

use crate::support::{Firn, until};
use firn_source::quiesce::{CutOptions, Member, Surroundings, WatchdogProgram, take};
use firn_source::testing::{FakeAgent, FakeSource, Reaction};
use firn_source::{Outcome, Request, Source};
use jiff::Timestamp;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

#[test]
fn firn_is_its_own_watchdog() {
    let firn = Firn::with_pool();
    let agent = FakeAgent::start(&firn.path("ga.sock"));
    // It freezes without saying so, and does not hear the run.
    agent.react("guest-fsfreeze-freeze", [Reaction::Mute]);
    agent.react("guest-fsfreeze-thaw", [Reaction::Ignore, Reaction::Ignore]);
    let source = FakeSource::new(firn.folder(), Some(agent.socket()));
    let request =
        Request { machine: "web1".to_owned(), owner: "0123".to_owned(), run: "4567".to_owned(), ..Request::default() };
    let sources: Vec<Box<dyn Source>> = vec![Box::new(source)];
    let mut members =
        [Member { machine: "web1".to_owned(), request, sources, hooks: Vec::new(), mount_points: Vec::new() }];
    let mut options = CutOptions::new(firn.path("state"));
    options.freeze_timeout = Duration::from_secs(1);
    let arguments = WatchdogProgram::default().arguments;
    options.watchdog = WatchdogProgram { program: PathBuf::from(env!("CARGO_BIN_EXE_firn")), arguments };
    let started = Instant::now();
    let around = Surroundings { now: &Timestamp::now, elapsed: &|| started.elapsed(), cancel: &AtomicBool::new(false) };
    let (_, watch) = take(&mut members, &options, &around).unwrap();
    assert!(agent.is_frozen());
    members[0].sources[0].finish(Outcome::Published).unwrap();
    watch.done().unwrap();
    agent.await_thaw(Duration::from_secs(60));
    let records = || std::fs::read_dir(firn.path("state")).unwrap().flatten().filter(|entry| entry.path().is_dir());
    until("the record is removed", || (records().count() == 0).then_some(()));
}

#[test]
fn every_start_thaws_what_a_killed_run_left_frozen() {
    let mut firn = Firn::with_pool();
    firn.set("FIRN_STATE", firn.path("state").to_str().unwrap());
    let agent = FakeAgent::start(&firn.path("ga.sock"));
    agent.set_frozen(true);
    let record = firn.path("state/4194305-4567");
    std::fs::create_dir_all(&record).unwrap();
    firn.write("state/4194305-4567/lock", "");
    let document = serde_json::json!({
        "version": 1,
        "owner": { "process": 4_194_305, "started": 7 },
        "created": "2026-11-21T03:00:00Z",
        "folder": firn.path("."),
        "tickets": [{ "agent": { "socket": agent.socket() } }],
        "machines": [{
            "machine": "web1",
            "request": { "machine": "web1", "owner": "0123", "run": "4567", "scratch_folder": null },
            "sources": [],
            "owed": [{
                "place": "host",
                "phase": "post-thaw",
                "command": "echo $FIRN_MACHINE $FIRN_OUTCOME >note",
                "timeout": { "secs": 60, "nanos": 0 },
            }],
        }],
        "tries": 0,
    });
    firn.write("state/4194305-4567/record.json", document.to_string());
    let run = firn.run("list");
    assert!(run.code == 0 && run.stderr.contains("thawed the guest"), "{}", run.stderr);
    assert!(!agent.is_frozen() && !record.exists());
    assert_eq!(firn.read("note"), b"web1 failed\n");
}
