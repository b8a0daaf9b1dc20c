//! A libvirtd of its own, and a domain with two qcow2 disks and a raw one.

use firn_disk::testing::skip;
use firn_source::libvirt::LibvirtSource;
use firn_source::{Changed, FileOptions, FrozenDisk, Outcome, PreviousDisk, Request, Source};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

pub const MIB: u64 = 1 << 20;
/// Lengths of vda, vdb and vdc.
pub const LENGTHS: [u64; 3] = [64 * MIB, 32 * MIB, 8 * MIB];

/// A libvirtd and a folder for images; both end with it.
pub struct Lab {
    pub connection: String,
    pub folder: tempfile::TempDir,
    owner: String,
    scratch: PathBuf,
    mounted: bool,
}

/// What a run leaves for the next one.
#[derive(Debug, Clone, Default)]
pub struct Taken {
    pub previous: Vec<PreviousDisk>,
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../lab/libvirt.sh")
}

pub fn has(program: &str) -> bool {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&paths).chain(["/usr/sbin".into()]).any(|folder| folder.join(program).is_file())
}

/// Whether all of these can be used here; says so if not.
pub fn can_run(test: &str, programs: &[&str]) -> bool {
    if !rustix::process::geteuid().is_root() {
        skip(test, "a libvirtd of its own needs root");
        return false;
    }
    if let Some(missing) = programs.iter().find(|program| !has(program)) {
        skip(test, &format!("there is no {missing}"));
        return false;
    }
    true
}

pub fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {stdout}{stderr}");
    stdout.into_owned()
}

impl Lab {
    /// None, with a line about it, where this machine has not what it takes.
    pub fn start(test: &str) -> Option<Self> {
        Self::start_with(test, false)
    }

    /// `small` makes the scratch folder a file system of 16 MiB.
    pub fn start_with(test: &str, small: bool) -> Option<Self> {
        if !can_run(test, &["virsh", "libvirtd", "qemu-system-x86_64", "qemu-img"]) {
            return None;
        }
        let folder = tempfile::Builder::new().prefix("fl").tempdir().unwrap();
        let scratch = folder.path().join("scratch");
        std::fs::create_dir(&scratch).unwrap();
        if small {
            // Before the daemon starts, whose mount namespace sees nothing that comes later.
            succeed(Command::new("mount").args(["-t", "tmpfs", "-o", "size=16m", "none"]).arg(&scratch));
        }
        // What libvirt finds out about QEMU takes seconds, so the tests share it.
        let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("libvirt-cache");
        let started =
            Command::new(script()).arg("start").arg(folder.path().join("d")).env("CACHE", &cache).output().unwrap();
        assert!(started.status.success(), "{}", String::from_utf8_lossy(&started.stderr));
        let connection = String::from_utf8(started.stdout).unwrap().trim().to_owned();
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let owner = format!("{:08x}{number:08x}", std::process::id());
        Some(Self { connection, folder, owner, scratch, mounted: small })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn virsh(&self, arguments: &[&str]) -> String {
        succeed(Command::new("virsh").args(["--quiet", "-c", &self.connection]).args(arguments).env("LC_ALL", "C"))
    }

    /// The definition of a domain with the disks `a.qcow2`, `b.qcow2` and `c.raw`, and an empty drive.
    pub fn domain_xml(&self, more: &str) -> String {
        let disk = |format: &str, file: &str, target: &str| {
            format!(
                "<disk type='file' device='disk'><driver name='qemu' type='{format}'/><source file='{}'/>\
                 <target dev='{target}' bus='virtio'/></disk>",
                self.path(file).display()
            )
        };
        format!(
            "<domain type='qemu'><name>lab</name><uuid>93a5c045-6457-2c09-e56c-927cdf34e178</uuid>
             <memory unit='MiB'>32</memory><vcpu>1</vcpu><features><acpi/></features><os><type arch='x86_64' machine='pc'>hvm</type></os>
             <devices>{}{}{}
             <disk type='file' device='cdrom'><target dev='hdc' bus='ide'/><readonly/></disk>
             <controller type='usb' model='none'/><memballoon model='none'/>{more}</devices></domain>",
            disk("qcow2", "a.qcow2", "vda"),
            disk("qcow2", "b.qcow2", "vdb"),
            disk("raw", "c.raw", "vdc"),
        )
    }

    pub fn make_images(&self) {
        for (file, format, length) in [("a.qcow2", "qcow2", 64), ("b.qcow2", "qcow2", 32), ("c.raw", "raw", 8)] {
            let size = format!("{length}M");
            succeed(Command::new("qemu-img").args(["create", "-q", "-f", format]).arg(self.path(file)).arg(size));
        }
    }

    /// Defines and starts the domain.
    pub fn boot(&self) {
        self.make_images();
        let file = self.path("lab.xml");
        std::fs::write(&file, self.domain_xml("")).unwrap();
        self.virsh(&["define", &file.to_string_lossy()]);
        self.power_on();
    }

    /// Starts it, with its processors halted: firmware that finds nothing to boot would only burn the host's.
    pub fn power_on(&self) {
        self.virsh(&["start", "lab", "--paused"]);
    }

    /// Writes a byte over a range of a disk, as the guest would. Whether it could is seen by reading it.
    pub fn write(&self, disk: usize, byte: u8, range: Range<u64>) {
        let length = range.end - range.start;
        // What was not flushed may be lost with QEMU, as it may on any disk.
        for command in [format!("write -P {byte} {} {length}", range.start), "flush".to_owned()] {
            let command = format!("qemu-io -d /machine/peripheral/virtio-disk{disk}/virtio-backend \"{command}\"");
            assert_eq!(self.virsh(&["qemu-monitor-command", "lab", "--hmp", &command]).trim(), "");
        }
    }

    /// Kills QEMU, as a crash of the host does.
    pub fn kill_qemu(&self) {
        let pid = std::fs::read_to_string(self.path("d/qemu/lab.pid")).unwrap();
        succeed(Command::new("kill").args(["-9", pid.trim()]));
        self.wait("QEMU's end", || self.virsh(&["domstate", "lab"]).trim() == "shut off");
    }

    pub fn wait(&self, what: &str, is_done: impl Fn() -> bool) {
        Self::wait_for(what, Duration::from_secs(60), is_done);
    }

    /// For a guest without KVM that boots beside others.
    pub fn wait_long(&self, what: &str, is_done: impl Fn() -> bool) {
        Self::wait_for(what, Duration::from_secs(300), is_done);
    }

    fn wait_for(what: &str, patience: Duration, is_done: impl Fn() -> bool) {
        let deadline = Instant::now() + patience;
        while !is_done() {
            assert!(Instant::now() < deadline, "waited for {what}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub fn uri(&self) -> String {
        let connection = self.connection.replace('?', "%3F").replace('=', "%3D");
        format!("libvirt://lab?connect={connection}")
    }

    pub fn source(&self) -> LibvirtSource {
        LibvirtSource::new(&self.uri(), FileOptions::default()).unwrap()
    }

    /// The request of run number `run`, which follows `last`.
    pub fn request(&self, run: u32, last: &Taken) -> Request {
        Request {
            machine: "lab".to_owned(),
            owner: self.owner.clone(),
            run: format!("{run:08x}"),
            previous: last.previous.clone(),
            scratch_folder: Some(self.scratch.clone()),
        }
    }

    pub fn checkpoints(&self) -> Vec<String> {
        self.virsh(&["checkpoint-list", "lab", "--name"]).split_whitespace().map(str::to_owned).collect()
    }

    pub fn checkpoint(&self, run: u32) -> String {
        format!("firn-{}-{run:08x}", self.owner)
    }

    /// What a run leaves behind: scratch files, sockets, documents. The lock stays.
    pub fn leftovers(&self) -> Vec<String> {
        let of_owner = format!("firn-{}", self.owner);
        let folders = [self.scratch.clone(), "/run".into(), std::env::temp_dir()];
        let names =
            folders.iter().flat_map(|folder| std::fs::read_dir(folder).unwrap()).map(|entry| entry.unwrap().path());
        names
            .map(|path| path.to_string_lossy().into_owned())
            .filter(|path| path.contains(&of_owner) && !path.ends_with(".lock"))
            .collect()
    }

    pub fn has_job(&self) -> bool {
        !self.virsh(&["domjobinfo", "lab"]).contains("None")
    }

    /// A whole run. `read` is given the frozen disks.
    pub fn snap(&self, run: u32, last: &Taken, read: impl FnOnce(&[FrozenDisk])) -> Taken {
        let mut source = self.source();
        let request = self.request(run, last);
        source.plan(&request).unwrap();
        source.prepare(&request).unwrap();
        source.cut().unwrap();
        let frozen = source.open().unwrap();
        read(&frozen);
        source.check().unwrap();
        let taken = taken(&frozen);
        source.finish(Outcome::Published).unwrap();
        assert_eq!(self.leftovers(), Vec::<String>::new());
        taken
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = Command::new(script()).arg("stop").arg(self.path("d")).status();
        if self.mounted {
            let _ = Command::new("umount").arg("--lazy").arg(&self.scratch).status();
        }
        // What a run left that was killed on purpose, and the locks.
        for entry in std::fs::read_dir("/run").into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(&format!("firn-{}-", self.owner)) {
                let _ = std::fs::remove_dir_all(entry.path()).or_else(|_| std::fs::remove_file(entry.path()));
            }
        }
    }
}

/// What the pool would remember of these disks.
pub fn taken(frozen: &[FrozenDisk]) -> Taken {
    let previous = frozen.iter().map(|disk| PreviousDisk {
        name: disk.name.clone(),
        length: disk.disk.len(),
        source: disk.source.clone(),
        generation: disk.generation.clone(),
    });
    Taken { previous: previous.collect() }
}

pub fn since(disk: &FrozenDisk) -> &[Range<u64>] {
    match &disk.changed {
        Changed::Since(ranges) => ranges,
        Changed::Unknown(reason) => panic!("all of {} is read: {reason}", disk.name),
    }
}

pub fn why_all(disk: &FrozenDisk) -> &str {
    match &disk.changed {
        Changed::Since(ranges) => panic!("only {ranges:?} of {} is read", disk.name),
        Changed::Unknown(reason) => reason,
    }
}

/// The byte that fills this range of a disk.
pub fn byte(disk: &FrozenDisk, range: Range<u64>) -> u8 {
    let mut bytes = vec![0; usize::try_from(range.end - range.start).unwrap()];
    disk.disk.read_at(&mut bytes, range.start).unwrap();
    assert!(bytes.iter().all(|byte| *byte == bytes[0]), "{}: {range:?} is not of one byte", disk.name);
    bytes[0]
}
