//! Images that real tools make: mkfs.xfs, the kernel's mount on a loop device.

use crate::walker::{Tree, read_kernel};
use firn_disk::testing::skip;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Whether loop mounts and xfsprogs can be used; says so if not.
pub fn can_mount(test: &str) -> bool {
    let missing = ["mkfs.xfs", "mount", "xfs_repair", "xfs_db"].into_iter().find(|tool| !has_tool(tool));
    if let Some(tool) = missing {
        skip(test, &format!("needs {tool}"));
        return false;
    }
    if !rustix::process::geteuid().is_root() {
        skip(test, "needs root for loop mounts");
        return false;
    }
    true
}

fn has_tool(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).chain(["/sbin".into(), "/usr/sbin".into()]).any(|folder| folder.join(tool).exists())
}

/// Runs a program; panics with its output when it fails.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = output(program, arguments);
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {arguments:?}: {text}");
    text
}

fn output(program: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(program);
    // These make mkfs.xfs accept file systems and logs that are too small for machines, as its own tests need them.
    command.env("TEST_DIR", "1").env("TEST_DEV", "1").env("QA_CHECK_FS", "1");
    command.args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"))
}

/// A file system to be made.
#[derive(Debug, Clone, Copy)]
pub struct Recipe<'a> {
    pub mebibytes: u64,
    /// Options of mkfs.xfs.
    pub mkfs: &'a [&'a str],
    /// Options of mount.
    pub mount: &'a str,
    /// Incompatible features that this mkfs.xfs does not know, set by hand on the new file system.
    pub incompat: u32,
    /// The length of an external log in MiB, 0 for none.
    pub external_log: u64,
}

impl Recipe<'_> {
    /// Makes `path`, and a log beside it if there is to be one.
    pub fn make(&self, path: &Path) -> Option<PathBuf> {
        File::create(path).unwrap().set_len(self.mebibytes << 20).unwrap();
        let log = (self.external_log > 0).then(|| path.with_extension("log"));
        let mut arguments = vec!["-q", "-K"];
        arguments.extend(self.mkfs);
        let option;
        if let Some(log) = &log {
            File::create(log).unwrap().set_len(self.external_log << 20).unwrap();
            option = format!("logdev={},size={}m", log.display(), self.external_log);
            arguments.extend(["-l", &option]);
        }
        arguments.push(path.to_str().unwrap());
        run("mkfs.xfs", &arguments);
        if self.incompat != 0 {
            change_superblock(path, |sector| {
                let bits = u32::from_be_bytes(sector[216..220].try_into().unwrap()) | self.incompat;
                sector[216..220].copy_from_slice(&bits.to_be_bytes());
            });
        }
        log
    }
}

/// Changes the superblock, and its checksum with it.
pub fn change_superblock(path: &Path, change: impl FnOnce(&mut [u8])) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut head = [0; 512];
    file.read_exact_at(&mut head, 0).unwrap();
    let mut sector = vec![0; usize::from(u16::from_be_bytes([head[102], head[103]]))];
    file.read_exact_at(&mut sector, 0).unwrap();
    change(&mut sector);
    sector[224..228].fill(0);
    let sum = crc32c::crc32c(&sector);
    sector[224..228].copy_from_slice(&sum.to_le_bytes());
    file.write_all_at(&sector, 0).unwrap();
}

/// A mount that ends with its value.
#[derive(Debug)]
pub struct Mount {
    point: PathBuf,
    log: Option<LoopDevice>,
}

impl Mount {
    /// Mounts an image by a loop device.
    pub fn new(image: &Path, log: Option<&Path>, point: &Path, options: &str) -> Self {
        std::fs::create_dir_all(point).unwrap();
        let log = log.map(LoopDevice::new);
        let mut all = "loop,noatime,nouuid".to_string();
        if !options.is_empty() {
            all += &format!(",{options}");
        }
        if let Some(log) = &log {
            all += &format!(",logdev={}", log.0);
        }
        run("mount", &["-t", "xfs", "-o", &all, image.to_str().unwrap(), point.to_str().unwrap()]);
        Self { point: point.to_path_buf(), log }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.point
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let mut said = String::new();
        // Whoever looks at all mounts of the machine keeps one busy for a moment.
        for _ in 0..100 {
            let output = output("umount", &[self.point.to_str().unwrap()]);
            if output.status.success() {
                self.log = None;
                return;
            }
            said = String::from_utf8_lossy(&output.stderr).into_owned();
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        assert!(std::thread::panicking(), "umount: {said}");
    }
}

/// A loop device that ends with its value.
#[derive(Debug)]
struct LoopDevice(String);

impl LoopDevice {
    fn new(path: &Path) -> Self {
        Self(run("losetup", &["-f", "--show", path.to_str().unwrap()]).trim().into())
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = output("losetup", &["-d", &self.0]);
    }
}

/// The tree under a mount, without the second name that Linux lists access lists under.
pub fn kernel_tree(root: &Path) -> Tree {
    let mut tree = read_kernel(root);
    for item in tree.values_mut() {
        item.xattrs.retain(|name, _| !name.starts_with(b"trusted.SGI_ACL_"));
    }
    tree
}
