//! A guest of the lab under write load, and firn beside it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

const LAB: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../lab");

/// The folder of the guest that lab/make-guest.sh made, if all that is needed to boot it is there.
pub fn guest_folder(test: &str) -> Option<PathBuf> {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/lab-guest");
    let folder = PathBuf::from(std::env::var("FIRN_LAB_GUEST").unwrap_or_else(|_| default.to_owned()));
    let has = |tool: &str| Command::new(tool).arg("--version").output().is_ok_and(|output| output.status.success());
    if !has("qemu-system-x86_64") {
        firn_disk::testing::skip(test, "needs qemu-system-x86_64 (lab/setup-qemu.sh)");
    } else if !folder.join("guest-base.qcow2").exists() {
        firn_disk::testing::skip(test, "needs the lab's guest (lab/make-guest.sh target/lab-guest, as root)");
    } else {
        return folder.canonicalize().ok();
    }
    None
}

/// A running guest with two disks: its root, and `/data` on vdb.
pub struct Guest {
    run: PathBuf,
}

impl Guest {
    /// Boots the guest of `folder` under a name of this process, and waits for its agent.
    pub fn boot(folder: &Path, name: &str) -> Self {
        let name = format!("{name}-{}", std::process::id());
        let run = folder.join("run").join(&name);
        let booted = Command::new("bash").arg(format!("{LAB}/vm.sh")).arg(folder).arg(&name).output().unwrap();
        assert!(booted.status.success(), "vm.sh: {}", String::from_utf8_lossy(&booted.stderr));
        let guest = Self { run };
        guest.wait_for_agent();
        guest
    }

    fn wait_for_agent(&self) {
        let script = format!("{LAB}/guest-exec.py");
        let agent = self.run.join("ga.sock");
        let answered = Command::new("python3").arg(script).arg(agent).args(["true", "300"]).output().unwrap();
        assert!(answered.status.success(), "the agent: {}", String::from_utf8_lossy(&answered.stderr));
    }

    /// The source's URI.
    pub fn uri(&self) -> String {
        format!("qemu:{}?agent={}", self.run.join("qmp.sock").display(), self.run.join("ga.sock").display())
    }

    /// Runs a shell command in the guest.
    #[track_caller]
    pub fn shell(&self, command: &str) -> String {
        let script = format!("{LAB}/guest-exec.py");
        let agent = self.run.join("ga.sock");
        let output = Command::new("python3").arg(script).arg(agent).args([command, "120"]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "in the guest: {command}: {text}{}", String::from_utf8_lossy(&output.stderr));
        text
    }

    /// An answer of QEMU's monitor.
    #[track_caller]
    pub fn monitor(&self, command: &str) -> String {
        let socket = self.run.join("qmp.sock");
        let output = Command::new("python3").arg(format!("{LAB}/qmp.py")).arg(socket).arg(command).output().unwrap();
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    #[track_caller]
    fn agent(&self, command: &str) -> String {
        let socket = self.run.join("ga.sock");
        let output =
            Command::new("python3").arg(format!("{LAB}/qmp.py")).arg("-g").arg(socket).arg(command).output().unwrap();
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub fn freeze(&self) {
        self.agent("guest-fsfreeze-freeze");
    }

    pub fn thaw(&self) {
        self.agent("guest-fsfreeze-thaw");
    }

    pub fn is_frozen(&self) -> bool {
        self.agent("guest-fsfreeze-status").contains("\"frozen\"")
    }

    /// Formats vdb, mounts it on /data and starts the load there.
    pub fn start_load(&self) {
        let script = std::fs::read(format!("{LAB}/guest/load.py")).unwrap();
        let octal: String = script.iter().map(|byte| format!("\\{byte:03o}")).collect();
        self.shell(&format!("printf '{octal}' >/tmp/load.py"));
        self.shell("mkfs.ext4 -q -F /dev/vdb && mkdir -p /data && mount /dev/vdb /data && mkdir /data/load");
        self.shell("setsid python3 /tmp/load.py /data/load >/data/log 2>&1 & sleep 0.2; sync");
    }

    /// How many lines the load has written.
    pub fn load_lines(&self) -> u64 {
        self.shell("cat /data/load/list 2>/dev/null | wc -l").trim().parse().unwrap()
    }

    /// The guest runs, its file systems take writes, and its load goes on.
    #[track_caller]
    pub fn assert_alive(&self) {
        assert!(self.monitor("query-status").contains("\"running\""), "the machine is paused");
        self.shell("echo alive >/data/alive && sync /data/alive");
        let before = self.load_lines();
        until("the load goes on", || (self.load_lines() > before).then_some(()));
        assert_eq!(self.shell("cat /data/log"), "");
    }

    /// No bitmap but `kept`, no job, no export, no filter and no scratch file is left.
    #[track_caller]
    pub fn assert_tidy(&self, kept: usize) {
        let blocks = self.monitor("query-named-block-nodes");
        let bitmaps = blocks.matches("\"firn-").count();
        assert_eq!(bitmaps, kept, "bitmaps and nodes of firn's: {blocks}");
        assert!(!blocks.contains("copy-before-write") && !blocks.contains("snapshot-access"), "{blocks}");
        assert!(!self.monitor("query-block-exports").contains("\"id\""), "an export is left");
        assert!(!self.monitor("query-jobs").contains("\"id\""), "a job is left");
        let files = std::fs::read_dir(&self.run).unwrap().map(|entry| entry.unwrap().file_name());
        let left: Vec<_> = files.filter(|name| name.to_string_lossy().contains("firn")).collect();
        assert!(left.is_empty(), "scratch files are left: {left:?}");
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if let Ok(pid) = std::fs::read_to_string(self.run.join("pid")) {
            let pid = pid.trim();
            let kill = format!("kill -9 {pid}; timeout 20 tail --pid={pid} -f /dev/null");
            // A test that fails has said why already.
            let _ = Command::new("sh").args(["-c", &kill]).stderr(Stdio::null()).status();
        }
        let _ = std::fs::remove_dir_all(&self.run);
    }
}

/// Looks until it sees something; a minute at most.
#[track_caller]
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "{what}: not within a minute");
        std::thread::yield_now();
    }
}

/// firn with a pool and state of its own.
pub struct Firn {
    folder: tempfile::TempDir,
}

impl Firn {
    pub fn with_pool() -> Self {
        let firn = Self { folder: tempfile::tempdir().unwrap() };
        firn.ok(&["init", "pool", "--no-password"]);
        firn
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs of which there is a record: each has a folder.
    pub fn records(&self) -> usize {
        let entries = std::fs::read_dir(self.path("state")).into_iter().flatten().flatten();
        entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).count()
    }

    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_firn"));
        command
            .args(words)
            .current_dir(self.folder.path())
            .env("FIRN_POOL", "pool")
            .env("FIRN_STATE", self.path("state"))
            .env("HOME", self.path("home"))
            .env("TZ", "UTC")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    /// Runs it, and it has to go well; answers its stdout.
    #[track_caller]
    pub fn ok(&self, words: &[&str]) -> String {
        let output = self.run(words);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "firn {words:?}: {out}{err}");
        out.into_owned()
    }

    #[track_caller]
    pub fn json(&self, words: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.ok(&[words, &["--json"]].concat())).unwrap()
    }

    /// Every file that the load had made durable at the instant of `address` is there with its hash.
    #[track_caller]
    pub fn assert_load_is_whole(&self, address: &str) -> usize {
        let list = self.ok(&["cat", &format!("{address}#vdb:/load/list")]);
        let whole = &list[..list.rfind('\n').map_or(0, |end| end + 1)];
        let mut expected = std::collections::BTreeMap::new();
        let mut deleted = None;
        for line in whole.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            match words.as_slice() {
                ["+", name, hash] => drop(expected.insert((*name).to_owned(), (*hash).to_owned())),
                ["-", name] => {
                    expected.remove(*name);
                    deleted = Some((*name).to_owned());
                }
                other => panic!("a line of the list that was never written: {other:?}"),
            }
        }
        let hashes = self.ok(&["hash", &format!("{address}#vdb:/load")]);
        let found: std::collections::BTreeMap<String, String> = hashes
            .lines()
            .filter_map(|line| line.split_once("  "))
            .map(|(hash, path)| (path.rsplit('/').next().unwrap_or(path).to_owned(), hash.to_owned()))
            .collect();
        for (name, hash) in &expected {
            assert_eq!(found.get(name), Some(hash), "{address}: {name} (last deleted: {deleted:?})");
        }
        assert!(expected.len() > 3, "{address}: the load had hardly begun: {whole}");
        expected.len()
    }
}
