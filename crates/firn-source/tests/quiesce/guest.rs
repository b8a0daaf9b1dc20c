//! The real agent in a real guest of the lab: one boot for all of it.
//!
//! The guest's folder, as lab/make-guest.sh makes it, is `$FIRN_LAB_GUEST` or target/lab-guest.

use crate::killed::{Run, next_start};
use crate::support::{around, child_program, member, until};
use firn_disk::testing::skip;
use firn_source::quiesce::{
    AgentGuest, Consistency, CutOptions, Freeze, Guest, Hook, Phase, Place, WatchdogProgram, take,
};
use firn_source::testing::FakeSource;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const ENOUGH: Duration = Duration::from_secs(60);
/// 20 s on an idle machine; TCG on a busy one takes its time.
const BOOT: Duration = Duration::from_secs(900);

/// A running guest; it is powered off in the end.
struct Booted {
    folder: PathBuf,
}

impl Booted {
    fn start(guest: &Path, name: &str) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let folder = guest.join("run").join(name);
        drop(std::fs::remove_dir_all(&folder));
        let booted = Command::new(root.join("lab/vm.sh")).arg(guest).arg(name).status().unwrap();
        assert!(booted.success());
        Self { folder }
    }

    fn agent(&self) -> AgentGuest {
        AgentGuest::new(self.folder.join("ga.sock"))
    }

    fn sh(&self, script: &str) -> String {
        let ended = self.agent().run(script, &[], ENOUGH).unwrap();
        assert_eq!(ended.code, 0, "{script}: {}", ended.output);
        ended.output.trim().to_owned()
    }

    /// Whether a write to the guest's disk gets through.
    fn writes(&self) -> bool {
        let script = "timeout 5 sh -c 'date +%N >/srv/probe && sync -f /srv/probe'";
        self.agent().run(script, &[], ENOUGH).is_ok_and(|ended| ended.code == 0)
    }
}

impl Drop for Booted {
    fn drop(&mut self) {
        let number = std::fs::read_to_string(self.folder.join("pid")).unwrap_or_default();
        if let Some(process) = number.trim().parse().ok().and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(process, rustix::process::Signal::KILL);
        }
        drop(std::fs::remove_dir_all(&self.folder));
    }
}

fn guest_folder() -> Option<PathBuf> {
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/lab-guest");
    let folder = std::env::var_os("FIRN_LAB_GUEST").map_or_else(default, PathBuf::from);
    folder.join("guest-base.qcow2").exists().then(|| folder.canonicalize().unwrap())
}

#[test]
fn a_real_guest_is_frozen_and_thawed_whoever_is_killed() {
    let name = "a_real_guest_is_frozen_and_thawed_whoever_is_killed";
    let Some(folder) = guest_folder() else {
        return skip(name, "there is no guest in target/lab-guest or $FIRN_LAB_GUEST; lab/make-guest.sh makes one");
    };
    if !Command::new("qemu-system-x86_64").arg("--version").output().is_ok_and(|output| output.status.success()) {
        return skip(name, "qemu-system-x86_64 is not installed");
    }
    let guest = Booted::start(&folder, &format!("quiesce-{}", std::process::id()));
    let agent = guest.agent();
    let began = Instant::now();
    while agent.is_frozen(Duration::from_secs(5)).is_err() {
        assert!(began.elapsed() < BOOT, "the guest's agent does not come up");
    }
    eprintln!("the agent answers after {:?}", began.elapsed());
    guest.sh("mkfs.ext4 -q /dev/vdb && mkdir -p /srv && mount /dev/vdb /srv");
    freezes(&agent, &guest);
    takes(&guest);
    is_thawed_when_killed(&guest);
}

fn freezes(agent: &AgentGuest, guest: &Booted) {
    assert!(agent.commands(ENOUGH).unwrap().contains(&"guest-fsfreeze-freeze-list".to_owned()));
    assert_eq!(agent.freeze(&[], ENOUGH).unwrap(), 2);
    assert!(agent.is_frozen(ENOUGH).unwrap());
    // Nothing else is done meanwhile.
    assert_eq!(agent.run("true", &[], ENOUGH).unwrap_err().kind(), firn_disk::ErrorKind::Unsupported);
    assert_eq!(agent.thaw(ENOUGH).unwrap(), 2);
    assert_eq!((agent.is_frozen(ENOUGH).unwrap(), agent.thaw(ENOUGH).unwrap()), (false, 0));
    assert_eq!(agent.freeze(&["/srv".to_owned()], ENOUGH).unwrap(), 1);
    assert_eq!(agent.thaw(ENOUGH).unwrap(), 1);
    assert_eq!(agent.freeze(&["/nowhere".to_owned()], ENOUGH).unwrap_or(0), 0);
    assert!(!agent.is_frozen(ENOUGH).unwrap());
    let environment = [("FIRN_MACHINE".to_owned(), "web 1".to_owned())];
    let ended = agent.run("echo \"$FIRN_MACHINE $PATH\"; echo no >&2; exit 4", &environment, ENOUGH).unwrap();
    assert!(ended.code == 4 && ended.output.starts_with("web 1 /") && ended.output.ends_with("no\n"), "{ended:?}");
    assert_eq!(agent.run("kill -9 $$", &[], ENOUGH).unwrap().code, 137);
    agent.run("exec sleep 543", &[], Duration::from_secs(5)).unwrap_err();
    let sleeps = "for name in /proc/[0-9]*/comm; do read -r it 2>/dev/null <$name && [ \"$it\" = sleep ] && echo $name; done; true";
    until("the command is killed in the guest", || guest.sh(sleeps).is_empty());
    // A client that sent half a request and went is in nobody's way.
    {
        let mut half = std::os::unix::net::UnixStream::connect(guest.folder.join("ga.sock")).unwrap();
        std::io::Write::write_all(&mut half, b"{\"execute\": \"guest-fs").unwrap();
    }
    assert!(!agent.is_frozen(ENOUGH).unwrap());
    // A second client waits for the first to go.
    let first = std::os::unix::net::UnixStream::connect(guest.folder.join("ga.sock")).unwrap();
    let error = agent.is_frozen(Duration::from_millis(500)).unwrap_err();
    assert_eq!(error.kind(), firn_disk::ErrorKind::Unavailable, "{error}");
    drop(first);
    assert!(!agent.is_frozen(ENOUGH).unwrap());
}

fn takes(guest: &Booted) {
    let folder = tempfile::tempdir().unwrap();
    let mut options = CutOptions::new(folder.path().join("state"));
    options.watchdog = WatchdogProgram { program: child_program(), arguments: vec![OsString::from("__watchdog")] };
    options.freeze = Freeze::Require;
    (options.freeze_timeout, options.frozen_limit) = (ENOUGH, ENOUGH * 2);
    let hooks = vec![
        Hook::new(Place::Guest, Phase::PreFreeze, "echo $FIRN_PHASE >/srv/hook"),
        Hook::new(Place::Guest, Phase::PostThaw, "echo $FIRN_PHASE $FIRN_OUTCOME >>/srv/hook"),
    ];
    let mut times = Vec::new();
    for _ in 0..10 {
        let source = FakeSource::new(folder.path(), Some(&guest.folder.join("ga.sock")));
        let mut members = [member("web1", vec![source], hooks.clone())];
        let (taken, watch) = take(&mut members, &options, &around()).unwrap();
        watch.done().unwrap();
        assert_eq!(taken[0].consistency, Consistency::Application, "{:?}", taken[0].remarks);
        times.extend(taken[0].frozen);
    }
    times.sort_unstable();
    eprintln!(
        "frozen for {:?} (median), {:?} (longest of {})",
        times[times.len() / 2],
        times[times.len() - 1],
        times.len()
    );
    assert_eq!(guest.sh("cat /srv/hook"), "pre-freeze\npost-thaw application");
    assert!(guest.writes());
}

fn is_thawed_when_killed(guest: &Booted) {
    let agent = guest.agent();
    let is_frozen = || agent.is_frozen(ENOUGH).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let things = folder.path().join("things");
    std::fs::create_dir(&things).unwrap();
    let start = || Run::start(&state, &things, &guest.folder.join("ga.sock"), None);
    let mut run = start();
    run.go_to("cut");
    assert!(is_frozen());
    run.kill();
    until("the watchdog has thawed the guest", || !is_frozen());
    until("the watchdog has swept", || std::fs::read_dir(&things).unwrap().count() == 0);
    assert!(guest.writes());
    let mut run = start();
    run.go_to("cut");
    run.kill_with_watchdog();
    assert!(is_frozen());
    assert!(next_start(&state).contains("thawed the guest"));
    assert!(!is_frozen() && guest.writes());
}
