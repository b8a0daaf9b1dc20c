//! A folder with a fake agent, and the program that stands for firn.

use firn_source::Request;
use firn_source::quiesce::{CutOptions, Hook, Member, Surroundings, WatchdogProgram};
use firn_source::testing::{FakeAgent, FakeSource};
use jiff::Timestamp;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// For what happens at once.
pub const SOON: Duration = Duration::from_secs(60);

pub static NEVER: AtomicBool = AtomicBool::new(false);

/// The example of that name, which is built with all tests of this crate.
pub fn child_program() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let program = test.parent().unwrap().with_file_name("examples").join("quiesce_child");
    assert!(program.exists(), "run `cargo build -p firn-source --example quiesce_child` first");
    program
}

pub struct Lab {
    pub folder: tempfile::TempDir,
    pub agent: FakeAgent,
}

impl Lab {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("things")).unwrap();
        let agent = FakeAgent::start(&folder.path().join("ga.sock"));
        Self { folder, agent }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn state(&self) -> PathBuf {
        self.path("state")
    }

    pub fn source(&self) -> FakeSource {
        FakeSource::new(&self.path("things"), Some(self.agent.socket()))
    }

    /// Records of runs, living or dead.
    pub fn records(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.state()).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
    }

    pub fn things(&self) -> usize {
        std::fs::read_dir(self.path("things")).unwrap().count()
    }

    /// Neither a frozen guest, nor a record, nor anything of a source is left, at the latest in a while.
    pub fn assert_clean(&self) {
        self.agent.await_thaw(SOON);
        until("all is swept", || self.records().is_empty() && self.things() == 0);
    }

    pub fn options(&self) -> CutOptions {
        let mut options = CutOptions::new(self.state());
        options.watchdog = WatchdogProgram { program: child_program(), arguments: vec![OsString::from("__watchdog")] };
        options
    }
}

pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !is_so() {
        assert!(Instant::now() < deadline, "still not: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn request(machine: &str) -> Request {
    Request { machine: machine.to_owned(), owner: "0123".to_owned(), run: "4567".to_owned(), ..Request::default() }
}

pub fn member(machine: &str, sources: Vec<FakeSource>, hooks: Vec<Hook>) -> Member {
    let sources = sources.into_iter().map(|source| Box::new(source) as _).collect();
    Member { machine: machine.to_owned(), request: request(machine), sources, hooks, mount_points: Vec::new() }
}

fn elapsed() -> Duration {
    static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
    START.elapsed()
}

fn now() -> Timestamp {
    Timestamp::constant(1_795_000_000, 0)
}

pub fn around() -> Surroundings<'static> {
    Surroundings { now: &now, elapsed: &elapsed, cancel: &NEVER }
}

pub fn words(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

/// QEMU's monitor behind a socket, as far as the watchdog needs it.
#[derive(Clone)]
pub struct Monitor(Arc<AtomicBool>);

impl Monitor {
    pub fn start(socket: &Path) -> Self {
        let listener = UnixListener::bind(socket).unwrap();
        let paused = Arc::new(AtomicBool::new(false));
        let state = paused.clone();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let mut client = client.unwrap();
                let mut say = client.try_clone().unwrap();
                let mut tell = |line: &str| drop(writeln!(say, "{line}"));
                tell(r#"{"QMP": {"version": {}, "capabilities": []}}"#);
                for line in BufReader::new(&mut client).lines().map_while(Result::ok) {
                    if line.contains("query-status") {
                        tell(r#"{"event": "RTC_CHANGE", "data": {}}"#);
                        let status = if state.load(Ordering::SeqCst) { "paused" } else { "running" };
                        tell(&format!(r#"{{"return": {{"status": "{status}"}}}}"#));
                    } else {
                        if line.contains("cont") {
                            state.store(false, Ordering::SeqCst);
                        }
                        tell(r#"{"return": {}}"#);
                    }
                }
            }
        });
        Self(paused)
    }

    pub fn set_paused(&self, paused: bool) {
        self.0.store(paused, Ordering::SeqCst);
    }

    pub fn is_paused(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}
