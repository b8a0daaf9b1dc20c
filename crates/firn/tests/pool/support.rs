//! Running firn in a home of its own, making images, and what the tests ask of the machine.

use firn_disk::testing::{Random, pattern, skip};
use serde_json::Value;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// How often a condition is looked at before a test gives up on it: some tens of seconds.
const MOST_LOOKS: usize = 300_000;

/// Where the tools of an administrator are, for users whose path lacks them.
const TOOL_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// firn in a folder of its own, which is also its home, its cache and where relative names begin.
#[derive(Debug)]
pub struct Firn {
    folder: TempDir,
    environment: Vec<(&'static str, String)>,
}

/// What a run of firn left.
#[derive(Debug)]
pub struct Run {
    pub stdout: Vec<u8>,
    pub stderr: String,
    /// The exit code, or 128 and the number of the signal.
    pub code: i32,
}

impl Run {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).expect("stdout is text")
    }
}

impl Firn {
    /// Without a pool.
    pub fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a folder"), environment: Vec::new() }
    }

    /// With an empty pool `pool` that needs no password.
    pub fn with_pool() -> Self {
        let firn = Self::new();
        firn.ok("init pool --no-password");
        firn
    }

    /// Sets a variable for all runs from now on.
    pub fn set(&mut self, name: &'static str, value: impl Into<String>) {
        self.environment.push((name, value.into()));
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
        path
    }

    pub fn exists(&self, name: &str) -> bool {
        self.path(name).symlink_metadata().is_ok()
    }

    /// firn as a command, with an environment in which nothing of the user's stands.
    pub fn command<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_firn"));
        self.prepare(&mut command);
        command.args(arguments);
        command
    }

    /// Gives `command` the surroundings of this firn.
    pub fn prepare(&self, command: &mut Command) {
        command
            .env_clear()
            .env("PATH", TOOL_PATH)
            .env("HOME", self.path("home"))
            .env("FIRN_STATE", self.path("state"))
            .env("TZ", "UTC")
            .env("FIRN_POOL", "pool")
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(self.folder())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
    }

    /// Runs `firn` with the words of `arguments`.
    pub fn run(&self, arguments: &str) -> Run {
        self.run_words(arguments.split_whitespace())
    }

    pub fn run_words<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Run {
        finish(self.command(arguments).spawn().expect("firn starts"))
    }

    pub fn spawn(&self, arguments: &str) -> Child {
        self.command(arguments.split_whitespace()).spawn().expect("firn starts")
    }

    /// Runs it, and it has to go well; answers what it printed.
    #[track_caller]
    pub fn ok(&self, arguments: &str) -> String {
        let run = self.run(arguments);
        assert_eq!(run.code, 0, "firn {arguments}: {}{}", run.text(), run.stderr);
        run.text().to_owned()
    }

    /// Runs it with `--json` and reads the one document that it prints.
    #[track_caller]
    pub fn json(&self, arguments: &str) -> Value {
        let text = self.ok(&format!("{arguments} --json"));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("firn {arguments} --json: {error}: {text}"))
    }

    /// Runs it, and it has to fail with `code`, nothing on stdout, and an error on stderr that has `parts` in it.
    #[track_caller]
    pub fn fails(&self, code: i32, arguments: &str, parts: &[&str]) {
        self.words_fail(code, &arguments.split_whitespace().collect::<Vec<_>>(), parts);
    }

    #[track_caller]
    pub fn words_fail<A: AsRef<OsStr> + std::fmt::Debug>(&self, code: i32, arguments: &[A], parts: &[&str]) {
        check_failure(&self.run_words(arguments), code, &format!("{arguments:?}"), parts);
    }

    /// Uuids of the machine's snapshots, oldest first.
    pub fn snapshots(&self, machine: &str) -> Vec<String> {
        let list = self.json(&format!("list {machine}"));
        let snapshots = list["machines"][0]["snapshots"].as_array().expect("snapshots");
        snapshots.iter().map(|snapshot| snapshot["uuid"].as_str().expect("uuid").to_owned()).collect()
    }

    /// The raw bytes of a machine's only disk.
    #[track_caller]
    pub fn raw(&self, address: &str) -> Vec<u8> {
        let run = self.run_words(["restore", address, "-"]);
        assert_eq!(run.code, 0, "restore {address}: {}", run.stderr);
        run.stdout
    }

    /// Every object of the pool under `folder`, as a path in the test's folder.
    pub fn objects(&self, folder: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut folders = vec![self.path("pool").join(folder)];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).into_iter().flatten() {
                let path = entry.expect("an entry").path();
                if path.is_dir() { folders.push(path) } else { found.push(path) }
            }
        }
        found.sort();
        found
    }

    /// Nothing temporary lies in the test's folder or below `folder` in it.
    #[track_caller]
    pub fn assert_tidy(&self, folder: &str) {
        for entry in std::fs::read_dir(self.path(folder)).expect("a folder") {
            let name = entry.expect("an entry").file_name();
            assert!(!name.to_string_lossy().contains(".firn-"), "{name:?} was left behind");
        }
    }
}

/// Waits for a child and gathers what it printed.
pub fn finish(child: Child) -> Run {
    let output = child.wait_with_output().expect("it ends");
    Run {
        stdout: output.stdout,
        stderr: String::from_utf8(output.stderr).expect("stderr is text"),
        code: output.status.code().unwrap_or_else(|| 128 + output.status.signal().unwrap_or_default()),
    }
}

#[track_caller]
pub fn check_failure(run: &Run, code: i32, what: &str, parts: &[&str]) {
    assert_eq!(run.code, code, "firn {what}: {}", run.stderr);
    assert!(run.stdout.is_empty(), "firn {what} printed data: {}", String::from_utf8_lossy(&run.stdout));
    let is_ours =
        run.stderr.lines().any(|line| ["firn: ", "error: ", "{\"error\""].iter().any(|start| line.starts_with(start)));
    assert!(is_ours, "firn {what}: {}", run.stderr);
    for part in parts {
        assert!(run.stderr.contains(part), "firn {what}: {part:?} is not in:\n{}", run.stderr);
    }
}

/// Looks at a condition again and again until it holds.
///
/// # Panics
/// When it does not for a long time.
#[track_caller]
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    for _ in 0..MOST_LOOKS {
        if let Some(found) = look() {
            return found;
        }
        std::thread::yield_now();
    }
    panic!("this never came to be: {what}");
}

/// Sends `signal`, as "INT", to a process.
pub fn send(signal: &str, child: &Child) {
    tool(Path::new("/"), "kill", &[&format!("-{signal}"), &child.id().to_string()]);
}

/// Stops `child` once it has read `file` up to byte `position`.
///
/// Readers of files walk through them with lseek, whose result the kernel shows.
pub fn stop_at(child: &Child, file: &Path, position: u64) {
    let fdinfo = format!("/proc/{}/fdinfo", child.id());
    let is_there = || {
        let descriptors = std::fs::read_dir(format!("/proc/{}/fd", child.id())).ok()?;
        let open = descriptors.flatten().filter(|entry| std::fs::read_link(entry.path()).is_ok_and(|to| to == file));
        let positions = open.filter_map(|entry| {
            let info = std::fs::read_to_string(Path::new(&fdinfo).join(entry.file_name())).ok()?;
            info.lines().next()?.strip_prefix("pos:")?.trim().parse::<u64>().ok()
        });
        positions.max().filter(|at| *at >= position)
    };
    until("firn is in the middle of the file", is_there);
    send("STOP", child);
    until("firn is stopped", || {
        let state = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).ok()?;
        state.rsplit_once(") ")?.1.starts_with('T').then_some(())
    });
}

/// Runs a tool that has to go well and answers what it printed.
#[track_caller]
pub fn tool(folder: &Path, name: &str, arguments: &[&str]) -> String {
    let output = Command::new(name).args(arguments).current_dir(folder).env("PATH", TOOL_PATH).output();
    let output = output.unwrap_or_else(|error| panic!("{name}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{name} {arguments:?}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// Whether all `tools` are there; says loudly when `test` is skipped for want of one. "root" asks for the user.
pub fn have(test: &str, tools: &[&str]) -> bool {
    let is_missing = |tool: &&&str| match **tool {
        "root" => !rustix::process::geteuid().is_root(),
        name => !TOOL_PATH.split(':').any(|folder| Path::new(folder).join(name).exists()),
    };
    let missing = tools.iter().find(is_missing);
    if let Some(missing) = missing {
        skip(test, &format!("{missing} is missing"));
    }
    missing.is_none()
}

/// A mount or loop device that goes away with this.
#[derive(Debug)]
pub struct Undo(Vec<String>);

impl Undo {
    /// Ends the process that wrote its number into `pid_file`, and waits until it is gone.
    pub fn kill(pid_file: &Path) -> Self {
        let pid = std::fs::read_to_string(pid_file).expect("a pid file");
        let pid = pid.trim();
        Self::new(&["sh", "-c", &format!("kill {pid}; timeout 20 tail --pid={pid} -f /dev/null")])
    }

    fn new(words: &[&str]) -> Self {
        Self(words.iter().map(|&word| word.to_owned()).collect())
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        // A test that fails has said why already.
        let _ = Command::new(&self.0[0]).args(&self.0[1..]).env("PATH", TOOL_PATH).status();
    }
}

/// Mounts with the words of `mount`'s command line, the last of which is the folder.
pub fn mount(folder: &Path, arguments: &[&str]) -> Undo {
    tool(folder, "mount", arguments);
    let point = folder.join(arguments.last().expect("a folder"));
    Undo::new(&["umount", "-l", point.to_str().expect("a plain path")])
}

/// A loop device over `file`.
pub fn loop_device(file: &Path, options: &[&str]) -> (String, Undo) {
    let file = file.to_str().expect("a plain path");
    let device = tool(Path::new("/"), "losetup", &[&["-f", "--show"], options, &[file]].concat()).trim().to_owned();
    let undo = Undo::new(&["losetup", "-d", &device]);
    (device, undo)
}

/// A disk with data that does not compress, text that does, zeros, and holes, on and off the bounds of blocks.
pub fn mixed_disk(length: usize, seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut bytes = vec![0; length];
    let mut at = 0;
    while at < length {
        let most = usize::try_from(random.below(200 << 10)).expect("small") + 1;
        let end = (at + most.next_multiple_of(if random.below(3) == 0 { 512 } else { 4096 })).min(length);
        match random.below(4) {
            0 => random.fill(&mut bytes[at..end]),
            1 => bytes[at..end].fill(b'x'),
            _ => {}
        }
        at = end;
    }
    bytes
}

/// Writes `bytes` with a hole wherever there are 4 KiB of zeros.
pub fn write_sparse(path: &Path, bytes: &[u8]) {
    let file = std::fs::File::create(path).expect("a new file");
    file.set_len(bytes.len() as u64).expect("its length");
    for (number, block) in bytes.chunks(4096).enumerate() {
        if block.iter().any(|byte| *byte != 0) {
            file.write_all_at(block, number as u64 * 4096).expect("its data");
        }
    }
}

/// A sparse file of `length` with 4 KiB of data at every multiple of `step`.
pub fn sprinkled(path: &Path, length: u64, step: u64) {
    let file = std::fs::File::create(path).expect("a new file");
    file.set_len(length).expect("its length");
    for at in (0..length).step_by(usize::try_from(step).expect("small")) {
        file.write_all_at(&pattern(4096, at), at).expect("its data");
    }
}

/// A small content that tells a file from others.
pub fn pattern_file(name: &str) -> Vec<u8> {
    name.repeat(1000).into_bytes()
}

/// The names and types in a document, a line each: `machines[].name: string`.
pub fn shape(document: &Value) -> String {
    let mut lines = Vec::new();
    collect_shape(document, "", &mut lines);
    lines.sort();
    lines.dedup();
    lines.join("\n")
}

fn collect_shape(value: &Value, at: &str, lines: &mut Vec<String>) {
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(items) => {
            if items.is_empty() {
                lines.push(format!("{at}[]: nothing"));
            }
            items.iter().for_each(|item| collect_shape(item, &format!("{at}[]"), lines));
            return;
        }
        Value::Object(fields) => {
            let prefix = if at.is_empty() { String::new() } else { format!("{at}.") };
            fields.iter().for_each(|(name, value)| collect_shape(value, &format!("{prefix}{name}"), lines));
            return;
        }
    };
    let mut line = String::new();
    write!(line, "{at}: {kind}").expect("memory");
    lines.push(line);
}

/// A qemu-io that has `image` open for writing and has written to it, until it is dropped.
#[derive(Debug)]
pub struct Writer(Child);

impl Writer {
    pub fn start(image: &Path, format: &str) -> Self {
        let child = Command::new("qemu-io")
            .args(["-f", format])
            .arg(image)
            .env("PATH", TOOL_PATH)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("qemu-io starts");
        let mut writer = Self(child);
        writer.0.stdin.as_mut().expect("its stdin").write_all(b"write -P 1 0 4k\n").expect("a command");
        let mut lines = BufReader::new(writer.0.stdout.as_mut().expect("its stdout")).lines();
        let wrote = lines.any(|line| line.is_ok_and(|line| line.contains("wrote")));
        assert!(wrote, "qemu-io wrote");
        writer
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // Dropping stdin would end it, too, but later.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
