//! The record of a run on disk: what has to be undone when the run dies, and the folder where records are kept.
//!
//! ```text
//!   STATE/              0700, ours
//!     lock              held for a moment by whoever makes a record or looks for dead ones
//!     PID-RUN/          one run
//!       record.json     replaced as a whole, fsynced, before anything of it becomes true
//!       lock            held shared by the run and by its watchdog, alone by whoever undoes it for them
//! ```
//! Locks are flock(2): they go with their process. So a record is dead exactly when its lock can be had alone.
//! A folder that others can write to is refused, since what a record says is done: commands are run.

use super::Ticket;
use super::hooks::Hook;
use crate::source::Request;
use firn_disk::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const VERSION: u32 = 1;
const RECORD: &str = "record.json";
const TEMPORARY: &str = "record.new";
const LOCK: &str = "lock";
/// A record of a hundred machines has some 100 KiB.
const MOST_RECORD_BYTES: u64 = 16 << 20;
/// Records of one process and run.
const MOST_OF_A_NAME: u32 = 1_000;
/// How long a record that others look at or make is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(5);

/// Where firn keeps what must outlive its process: `$FIRN_STATE`, else `/run/firn` for root, else
/// `$XDG_RUNTIME_DIR/firn`, else `~/.local/state/firn`. It need not exist.
///
/// # Errors
/// `Invalid` when nothing of that is set.
pub fn state_folder() -> Result<PathBuf> {
    folder_by(|name| std::env::var_os(name), rustix::process::geteuid().is_root())
}

fn folder_by(environment: impl Fn(&str) -> Option<OsString>, is_root: bool) -> Result<PathBuf> {
    let get = |name: &str| environment(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(folder) = get("FIRN_STATE") {
        return std::path::absolute(&folder).map_err(|error| Error::from_io("find", error).at_path(folder));
    }
    let folder = match is_root {
        true => Some(PathBuf::from("/run/firn")),
        false => {
            let runtime = get("XDG_RUNTIME_DIR").map(|folder| folder.join("firn"));
            runtime.or_else(|| get("HOME").map(|home| home.join(".local/state/firn")))
        }
    };
    folder.filter(|folder| folder.is_absolute()).ok_or_else(|| {
        Error::invalid("there is no folder for firn's state").hint("set FIRN_STATE to a folder of your own")
    })
}

/// What has to be undone if a run dies.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    pub version: u32,
    /// Who made it.
    pub owner: Owner,
    /// When, for people.
    pub created: String,
    /// Where hooks on the host run.
    pub folder: PathBuf,
    /// Freezes and pauses that may be in force now.
    pub tickets: Vec<Ticket>,
    /// Whose sources are to be swept.
    pub machines: Vec<RecordedMachine>,
    /// How many starts of firn have tried in vain to undo it.
    pub tries: u32,
}

/// A process, by more than its number, which is given to another one later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Owner {
    pub process: u32,
    /// When it was started, in the kernel's ticks since it booted (proc(5), field 22 of `stat`).
    pub started: u64,
}

impl Owner {
    pub fn current() -> Self {
        let process = std::process::id();
        Self { process, started: start_of(process).unwrap_or(0) }
    }

    pub fn is_alive(self) -> bool {
        start_of(self.process) == Some(self.started)
    }
}

/// None for a process that is not there.
fn start_of(process: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name in parentheses may hold anything, parentheses too.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace();
    let state = fields.next()?;
    fields.nth(18)?.parse().ok().filter(|_| state != "Z")
}

/// A machine of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct RecordedMachine {
    pub machine: String,
    /// With its base: sweeping must leave what the next run goes on from.
    pub request: Request,
    /// The sources' URIs.
    pub sources: Vec<String>,
    /// Post-thaw hooks that are owed, since a pre-freeze hook was started.
    pub owed: Vec<Hook>,
}

impl Record {
    pub fn new(machines: Vec<RecordedMachine>, created: String, folder: PathBuf) -> Self {
        Self { version: VERSION, owner: Owner::current(), created, folder, tickets: Vec::new(), machines, tries: 0 }
    }

    /// For people: `web1, web2`.
    pub fn names(&self) -> String {
        self.machines.iter().map(|machine| machine.machine.as_str()).collect::<Vec<_>>().join(", ")
    }
}

/// A record's folder, with its lock held.
#[derive(Debug)]
pub(super) struct RecordFolder {
    path: PathBuf,
    _lock: File,
}

impl RecordFolder {
    /// Makes the record of a new run, durable when this returns, and holds its lock.
    ///
    /// # Errors
    /// `Unavailable` when another run of one of the owners is alive; `Denied` when the state folder is not safe.
    pub fn create(state: &Path, record: &Record, run: &str) -> Result<Self> {
        ensure_safe_folder(state)?;
        let _state_lock = lock_state(state)?;
        refuse_second_run(state, record)?;
        let run: String = run.chars().filter(char::is_ascii_alphanumeric).take(32).collect();
        let path = make_folder(state, &format!("{}-{run}", record.owner.process))?;
        let failed = |error| Error::from_io("make the record of the freeze", error).at_path(&path);
        let lock = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path.join(LOCK));
        let lock = lock.and_then(|lock| lock.lock_shared().map(|()| lock)).map_err(failed)?;
        let folder = Self { path, _lock: lock };
        folder.write(record)?;
        sync_folder(state)?;
        Ok(folder)
    }

    /// Takes part in a living run's record, as its watchdog.
    ///
    /// # Errors
    /// `Unavailable` when somebody undoes it already; `NotFound`.
    pub fn join(path: &Path) -> Result<Self> {
        let lock = open_lock(path)?;
        match lock.try_lock_shared() {
            Ok(()) => Ok(Self { path: path.to_path_buf(), _lock: lock }),
            Err(TryLockError::WouldBlock) => {
                Err(Error::new(ErrorKind::Unavailable, "somebody undoes this already").at_path(path))
            }
            Err(TryLockError::Error(error)) => Err(Error::from_io("lock", error).at_path(path)),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// # Errors
    /// The system's own; `Unsupported` for a record of a newer firn, `Corrupt` for what is none.
    pub fn read(&self) -> Result<Record> {
        read_record(&self.path)
    }

    /// Replaces the record; it is durable when this returns.
    ///
    /// # Errors
    /// The system's own.
    pub fn write(&self, record: &Record) -> Result<()> {
        let path = self.path.join(RECORD);
        let failed = |error| Error::from_io("write the record of the freeze", error).at_path(&path);
        let bytes = serde_json::to_vec_pretty(record).map_err(|error| failed(error.into()))?;
        let temporary = self.path.join(TEMPORARY);
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary);
        let written = file.and_then(|mut file| file.write_all(&bytes).and_then(|()| file.sync_all()));
        written.and_then(|()| std::fs::rename(&temporary, &path)).map_err(failed)?;
        sync_folder(&self.path)
    }

    /// Nothing is left to be undone.
    ///
    /// # Errors
    /// The system's own.
    pub fn remove(self) -> Result<()> {
        // The lock goes last, so that a record is never without one; somebody else may finish it meanwhile.
        let ignore_missing = |error: std::io::Error| match error.kind() {
            std::io::ErrorKind::NotFound => Ok(()),
            _ => Err(Error::from_io("remove the record of the freeze", error).at_path(&self.path)),
        };
        for name in [RECORD, TEMPORARY, LOCK] {
            std::fs::remove_file(self.path.join(name)).or_else(ignore_missing)?;
        }
        std::fs::remove_dir(&self.path).or_else(ignore_missing)
    }
}

/// The records below a state folder whose run and watchdog are both dead, with their locks held alone; and those of
/// which only the watchdog is alive.
#[derive(Debug, Default)]
pub(super) struct Leftovers {
    pub dead: Vec<RecordFolder>,
    pub undone_by_watchdog: Vec<Record>,
}

/// Looks for what dead runs left. One look into the folder when there is nothing.
///
/// # Errors
/// `Denied` when the folder is not safe; the system's own.
pub(super) fn leftovers(state: &Path) -> Result<Leftovers> {
    let mut found = Leftovers::default();
    if record_paths(state)?.is_empty() {
        return Ok(found);
    }
    check_safe_folder(state)?;
    let _state_lock = lock_state(state)?;
    // Again: what was being made a moment ago is complete now.
    for path in record_paths(state)? {
        let Ok(lock) = open_lock(&path) else {
            // Whoever made it was killed before there was anything to undo; one that is being removed is left alone.
            drop(std::fs::remove_dir(&path));
            continue;
        };
        match lock.try_lock() {
            Ok(()) => found.dead.push(RecordFolder { path, _lock: lock }),
            Err(_) => {
                let record = read_record(&path).ok().filter(|record| !record.owner.is_alive());
                found.undone_by_watchdog.extend(record);
            }
        }
    }
    Ok(found)
}

fn record_paths(state: &Path) -> Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(state) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::from_io("look into firn's state", error).at_path(state)),
    };
    let folders = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let is_ours = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.split_once('-').is_some_and(|(process, _)| process.parse::<u32>().is_ok())
    };
    Ok(folders.map(|entry| entry.path()).filter(is_ours).collect())
}

/// A folder called `name`, or the like where there is one.
fn make_folder(state: &Path, name: &str) -> Result<PathBuf> {
    let mut number = 0;
    loop {
        let path = match number {
            0 => state.join(name),
            _ => state.join(format!("{name}-{number}")),
        };
        number += 1;
        match DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && number < MOST_OF_A_NAME => {}
            Err(error) => return Err(Error::from_io("make the record of the freeze", error).at_path(&path)),
        }
    }
}

fn refuse_second_run(state: &Path, record: &Record) -> Result<()> {
    for path in record_paths(state)? {
        let Ok(other) = read_record(&path) else { continue };
        // One without sources waits for a guest to thaw, and is in nobody's way.
        let is_same = |one: &RecordedMachine, two: &RecordedMachine| {
            let is_at_work = !(two.sources.is_empty() && two.owed.is_empty());
            is_at_work && one.request.owner == two.request.owner && one.request.machine == two.request.machine
        };
        let mut machines = record.machines.iter();
        let Some(machine) = machines.find(|one| other.machines.iter().any(|two| is_same(one, two))) else { continue };
        if open_lock(&path).is_ok_and(|lock| lock.try_lock().is_err()) {
            let (name, process) = (&machine.machine, other.owner.process);
            let message = match other.owner.is_alive() {
                true => format!("a snapshot of {name} is under way, by process {process}"),
                false => format!("process {process} died over a snapshot of {name}, and its watchdog still undoes it"),
            };
            return Err(Error::new(ErrorKind::Unavailable, message).hint("try again when that has ended"));
        }
    }
    Ok(())
}

fn read_record(path: &Path) -> Result<Record> {
    let path = path.join(RECORD);
    let failed = |error| Error::from_io("read", error).at_path(&path);
    let mut bytes = Vec::new();
    File::open(&path).and_then(|file| file.take(MOST_RECORD_BYTES).read_to_end(&mut bytes)).map_err(failed)?;
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let corrupt =
        |error: serde_json::Error| Error::corrupt("this is no record of a freeze").at_path(&path).because(error);
    let versioned: Versioned = serde_json::from_slice(&bytes).map_err(corrupt)?;
    if versioned.version != VERSION {
        return Err(Error::unsupported("a newer firn made this record of a freeze").at_path(&path));
    }
    serde_json::from_slice(&bytes).map_err(corrupt)
}

fn open_lock(path: &Path) -> Result<File> {
    let lock = OpenOptions::new().read(true).write(true).open(path.join(LOCK));
    lock.map_err(|error| Error::from_io("open the lock of", error).at_path(path))
}

fn lock_state(state: &Path) -> Result<File> {
    let path = state.join(LOCK);
    let failed = |error| Error::from_io("lock", error).at_path(&path);
    let lock = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(&path).map_err(failed)?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(lock),
            Err(TryLockError::Error(error)) => return Err(failed(error)),
            Err(TryLockError::WouldBlock) if Instant::now() >= deadline => {
                return Err(failed(std::io::ErrorKind::ResourceBusy.into()));
            }
            Err(TryLockError::WouldBlock) => std::thread::sleep(LOOK),
        }
    }
}

fn ensure_safe_folder(state: &Path) -> Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(state);
    made.map_err(|error| Error::from_io("make the folder for firn's state", error).at_path(state))
        .map_err(|error| error.hint("set FIRN_STATE to a folder of your own"))?;
    check_safe_folder(state)
}

/// What stands in it is done, so that only we and root may write to it.
fn check_safe_folder(state: &Path) -> Result<()> {
    let metadata = std::fs::symlink_metadata(state).map_err(|error| Error::from_io("stat", error).at_path(state))?;
    let is_ours = metadata.uid() == rustix::process::geteuid().as_raw();
    if metadata.is_dir() && is_ours && metadata.mode() & 0o022 == 0 {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Denied, "others could write to this folder, which is for firn's state")
        .at_path(state)
        .hint("let it be a folder of your own with mode 0700, or set FIRN_STATE to one"))
}

fn sync_folder(path: &Path) -> Result<()> {
    let synced = File::open(path).and_then(|folder| folder.sync_all());
    synced.map_err(|error| Error::from_io("fsync", error).at_path(path))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test")]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn record(owner: &str) -> Record {
        let request = Request {
            machine: "web1".to_owned(),
            owner: owner.to_owned(),
            run: "1234abcd".to_owned(),
            ..Request::default()
        };
        let machine = RecordedMachine {
            machine: "web1".to_owned(),
            request,
            sources: vec!["qemu:/run/web1.qmp".to_owned()],
            owed: Vec::new(),
        };
        Record::new(vec![machine], "2026-11-21T03:00:00Z".to_owned(), PathBuf::from("/"))
    }

    #[test]
    fn the_folder_is_the_users_own() {
        let by = |values: &'static [(&str, &str)], is_root| {
            let find = |name: &str| values.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value));
            folder_by(find, is_root).map(|folder| folder.to_str().unwrap().to_owned())
        };
        assert_eq!(by(&[("FIRN_STATE", "/a"), ("HOME", "/home/ann")], true).unwrap(), "/a");
        assert_eq!(by(&[("XDG_RUNTIME_DIR", "/run/user/7"), ("HOME", "/home/ann")], true).unwrap(), "/run/firn");
        assert_eq!(by(&[("XDG_RUNTIME_DIR", "/run/user/7")], false).unwrap(), "/run/user/7/firn");
        assert_eq!(
            by(&[("XDG_RUNTIME_DIR", ""), ("HOME", "/home/ann")], false).unwrap(),
            "/home/ann/.local/state/firn"
        );
        assert_eq!(by(&[], false).unwrap_err().kind(), ErrorKind::Invalid);
    }

    #[test]
    fn a_record_is_dead_when_nobody_holds_its_lock() {
        let state = tempfile::tempdir().unwrap();
        let state = state.path().join("state");
        assert!(leftovers(&state).unwrap().dead.is_empty(), "there is no folder yet");
        let ours = RecordFolder::create(&state, &record("a"), "r1").unwrap();
        let watchdog = RecordFolder::join(ours.path()).unwrap();
        assert_eq!(watchdog.read().unwrap(), record("a"));
        let error = RecordFolder::create(&state, &record("a"), "r2").unwrap_err();
        assert!(error.kind() == ErrorKind::Unavailable && error.to_string().contains("web1 is under way"), "{error}");
        let other = RecordFolder::create(&state, &record("b"), "r1").unwrap();
        drop(ours);
        assert!(leftovers(&state).unwrap().dead.is_empty(), "the watchdog is alive");
        drop(watchdog);
        let found = leftovers(&state).unwrap();
        assert_eq!(found.dead.len(), 1);
        // Whoever undoes it does so alone, and the owner has to wait for that.
        assert_eq!(RecordFolder::join(found.dead[0].path()).unwrap_err().kind(), ErrorKind::Unavailable);
        assert!(leftovers(&state).unwrap().dead.is_empty());
        assert_eq!(RecordFolder::create(&state, &record("a"), "r3").unwrap_err().kind(), ErrorKind::Unavailable);
        found.dead.into_iter().for_each(|folder| folder.remove().unwrap());
        other.remove().unwrap();
        assert!(record_paths(&state).unwrap().is_empty());
    }

    #[test]
    fn a_run_that_died_while_it_made_its_record_left_nothing() {
        let state = tempfile::tempdir().unwrap();
        std::fs::create_dir(state.path().join("77-abc")).unwrap();
        std::fs::create_dir(state.path().join("somebody's")).unwrap();
        assert!(leftovers(state.path()).unwrap().dead.is_empty());
        assert!(!state.path().join("77-abc").exists() && state.path().join("somebody's").exists());
    }

    #[test]
    fn a_folder_that_others_can_write_to_is_refused() {
        let state = tempfile::tempdir().unwrap();
        std::fs::create_dir(state.path().join("77-abc")).unwrap();
        for mode in [0o770, 0o777, 0o1777] {
            std::fs::set_permissions(state.path(), std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(leftovers(state.path()).unwrap_err().kind(), ErrorKind::Denied);
            assert_eq!(RecordFolder::create(state.path(), &record("a"), "r").unwrap_err().kind(), ErrorKind::Denied);
        }
    }

    #[test]
    fn what_is_no_record_or_a_newer_one_is_told_apart() {
        let state = tempfile::tempdir().unwrap();
        let folder = RecordFolder::create(&state.path().join("state"), &record("a"), "r").unwrap();
        let file = folder.path().join(RECORD);
        for (text, kind) in [
            ("{\"version\": 2, \"new\": []}", ErrorKind::Unsupported),
            ("{\"version\": 1}", ErrorKind::Corrupt),
            ("", ErrorKind::Corrupt),
        ] {
            std::fs::write(&file, text).unwrap();
            assert_eq!(folder.read().unwrap_err().kind(), kind, "{text}");
        }
    }

    #[test]
    fn a_process_is_known_by_its_start() {
        let current = Owner::current();
        assert!(current.started > 0 && current.is_alive());
        assert!(!Owner { started: current.started + 1, ..current }.is_alive());
    }
}
