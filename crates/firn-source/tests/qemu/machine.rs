//! A QEMU process without a guest: it starts in a moment, and what a guest would write is written by its monitor, through
//! the device's own backend.
//!
//! ```text
//!   q.sock   the monitor that firn is given        control.sock   the one that the tests use beside it
//! ```

use firn_disk::testing::skip;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

pub const QEMU: &str = "qemu-system-x86_64";
pub const MIB: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(60);

/// Whether the tools are there; says so loudly where not.
pub fn can_run(test: &str) -> bool {
    let missing = [QEMU, "qemu-img"].into_iter().find(|tool| Command::new(tool).arg("--version").output().is_err());
    if let Some(tool) = missing {
        skip(test, &format!("{tool} is not installed"));
    }
    missing.is_none()
}

/// A disk of the machine and what it has to hold.
#[derive(Debug)]
pub struct ModelDisk {
    pub file: PathBuf,
    pub format: &'static str,
    pub device: String,
    pub bytes: Vec<u8>,
}

pub struct Machine {
    pub folder: TempDir,
    pub disks: BTreeMap<&'static str, ModelDisk>,
    /// Arguments beside those of the disks.
    pub arguments: Vec<String>,
    process: Option<Process>,
}

struct Process {
    child: Child,
    said: BufReader<ChildStdout>,
    control: Control,
}

impl Machine {
    /// Disks of these names, formats and lengths, each a virtio device. Not started yet.
    pub fn new(disks: &[(&'static str, &'static str, u64)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut machine = Self { folder, disks: BTreeMap::new(), arguments: Vec::new(), process: None };
        for (name, format, length) in disks {
            machine.add_disk(name, format, *length);
        }
        machine
    }

    pub fn add_disk(&mut self, name: &'static str, format: &'static str, length: u64) {
        let file = self.folder.path().join(format!("{name}.{format}"));
        create_image(&file, format, length);
        let device = format!("/machine/peripheral/dev-{name}/virtio-backend");
        let bytes = vec![0; usize::try_from(length).unwrap()];
        self.disks.insert(name, ModelDisk { file, format, device, bytes });
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn uri(&self) -> String {
        format!("qemu:{}", self.path("q.sock").display())
    }

    pub fn start(&mut self) -> &mut Self {
        // What the monitor's qemu-io says goes to stdout, a line at a time only when told so.
        let mut command = Command::new("stdbuf");
        command.args(["-oL", QEMU]);
        command.args(["-machine", "q35", "-accel", "tcg", "-m", "16", "-nodefaults", "-display", "none", "-bios"]);
        command.arg(self.sleeping_firmware());
        for name in ["q.sock", "control.sock"] {
            let _ = std::fs::remove_file(self.path(name));
            command.args(["-qmp", &format!("unix:{},server=on,wait=off", self.path(name).display())]);
        }
        for (name, disk) in &self.disks {
            let (file, format) = (disk.file.display(), disk.format);
            command.args([
                "-blockdev",
                &format!("driver={format},node-name={name},discard=unmap,file.driver=file,file.filename={file}"),
            ]);
            command.args(["-device", &format!("virtio-blk-pci,drive={name},id=dev-{name}")]);
        }
        command.args(&self.arguments).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let said = BufReader::new(child.stdout.take().unwrap());
        let control = Control::connect(&self.path("control.sock"));
        self.process = Some(Process { child, said, control });
        // The first thing that firn sees is its greeting: the socket has to be there.
        wait_for("QEMU's socket", || self.path("q.sock").exists());
        self
    }

    /// A processor that sleeps: real firmware would look for something to boot, and on a busy host keep QEMU from its work.
    fn sleeping_firmware(&self) -> PathBuf {
        let path = self.path("firmware");
        let mut bytes = vec![0x90; 64 << 10];
        // At the reset vector: cli; hlt; jmp to the hlt.
        let vector = bytes.len() - 16;
        bytes[vector..vector + 4].copy_from_slice(&[0xfa, 0xf4, 0xeb, 0xfd]);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    pub fn control(&mut self) -> &mut Control {
        &mut self.process.as_mut().unwrap().control
    }

    /// Writes `length` bytes of `pattern`, as the guest would.
    pub fn write(&mut self, name: &str, pattern: u8, offset: u64, length: u64) {
        let answer = self.try_write(name, pattern, offset, length);
        assert!(answer.contains("wrote"), "the guest's write failed: {answer}");
    }

    /// As `write`; returns what QEMU says. What the disk has to hold is changed only when it was written.
    pub fn try_write(&mut self, name: &str, pattern: u8, offset: u64, length: u64) -> String {
        let device = self.disks[name].device.clone();
        let command = format!("qemu-io -d {device} \"write -P {pattern} {offset} {length}\"");
        let refusal = self.control().call("human-monitor-command", json!({"command-line": command}));
        assert_eq!(refusal, "", "qemu-io cannot write");
        let mut answer = String::new();
        self.process.as_mut().unwrap().said.read_line(&mut answer).unwrap();
        if answer.contains("wrote") {
            // The time that it took.
            self.process.as_mut().unwrap().said.read_line(&mut String::new()).unwrap();
            let range = usize::try_from(offset).unwrap()..usize::try_from(offset + length).unwrap();
            self.disks.get_mut(name).unwrap().bytes[range].fill(pattern);
        }
        answer
    }

    /// As a guest's fsync: what was written outlives a crash.
    pub fn flush(&mut self, name: &str) {
        let command = format!("qemu-io -d {} flush", self.disks[name].device);
        self.control().call("human-monitor-command", json!({"command-line": command}));
    }

    /// Ends it in order, so that bitmaps are saved.
    pub fn quit(&mut self) {
        let mut process = self.process.take().unwrap();
        process.control.send("quit", Value::Null);
        process.child.wait().unwrap();
    }

    /// As a power cut.
    pub fn kill(&mut self) {
        let mut process = self.process.take().unwrap();
        process.child.kill().unwrap();
        process.child.wait().unwrap();
    }

    pub fn status(&mut self) -> String {
        self.control().call("query-status", Value::Null)["status"].as_str().unwrap().to_owned()
    }

    /// The bitmaps of a disk that are firn's, sorted.
    pub fn bitmaps(&mut self, name: &str) -> Vec<String> {
        let nodes = self.control().call("query-named-block-nodes", json!({"flat": true}));
        let node = nodes.as_array().unwrap().iter().find(|node| node["node-name"] == name).unwrap();
        let bitmaps = node["dirty-bitmaps"].as_array().cloned().unwrap_or_default();
        let names = bitmaps.iter().map(|bitmap| bitmap["name"].as_str().unwrap_or_default().to_owned());
        let mut names: Vec<String> = names.filter(|name| name.starts_with("firn")).collect();
        names.sort();
        names
    }

    /// That the machine is as if nobody had ever taken a snapshot, bitmaps aside.
    pub fn assert_clean(&mut self, when: &str) {
        let own_nodes = self.disks.keys().copied().collect::<Vec<_>>();
        let control = self.control();
        let nodes = control.call("query-named-block-nodes", json!({"flat": true}));
        let strange = nodes.as_array().unwrap().iter().filter_map(|node| node["node-name"].as_str());
        let strange: Vec<&str> = strange.filter(|name| name.starts_with("firn") || name.contains("backup")).collect();
        assert!(strange.is_empty(), "{when}: nodes are left: {strange:?}");
        for device in control.call("query-block", Value::Null).as_array().unwrap() {
            let node = device["inserted"]["node-name"].as_str().unwrap_or_default();
            assert!(own_nodes.contains(&node) || !node.starts_with("firn"), "{when}: a device has {node}");
        }
        for command in ["query-jobs", "query-block-exports", "query-fdsets"] {
            let left = control.call(command, Value::Null);
            assert_eq!(left, json!([]), "{when}: {command}");
        }
        let server = control.try_call("nbd-server-stop", Value::Null);
        assert!(server.is_err(), "{when}: the NBD server is still there");
        assert_eq!(self.status(), "running", "{when}");
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            let _ = process.child.kill();
            let _ = process.child.wait();
        }
    }
}

pub fn create_image(file: &Path, format: &str, length: u64) {
    let made = Command::new("qemu-img").args(["create", "-q", "-f", format]).arg(file).arg(length.to_string()).status();
    assert!(made.unwrap().success());
}

/// A bare client of QMP.
pub struct Control {
    lines: BufReader<UnixStream>,
}

impl Control {
    pub fn connect(socket: &Path) -> Self {
        let mut stream = None;
        wait_for("QEMU's monitor", || {
            stream = UnixStream::connect(socket).ok();
            stream.is_some()
        });
        let stream = stream.unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut control = Self { lines: BufReader::new(stream) };
        control.read();
        control.call("qmp_capabilities", Value::Null);
        control
    }

    fn read(&mut self) -> Value {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line}: {error}"))
    }

    pub fn send(&mut self, command: &str, arguments: Value) {
        let mut message = json!({"execute": command});
        if !arguments.is_null() {
            message["arguments"] = arguments;
        }
        self.lines.get_mut().write_all(format!("{message}\n").as_bytes()).unwrap();
    }

    pub fn try_call(&mut self, command: &str, arguments: Value) -> Result<Value, Value> {
        self.send(command, arguments);
        loop {
            let mut answer = self.read();
            if !answer["error"].is_null() {
                return Err(answer["error"].take());
            }
            if answer.get("return").is_some() {
                return Ok(answer["return"].take());
            }
        }
    }

    pub fn call(&mut self, command: &str, arguments: Value) -> Value {
        self.try_call(command, arguments).unwrap_or_else(|error| panic!("{command}: {error}"))
    }
}

/// Looks until it is so.
pub fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what} did not come within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
