//! Images that real tools make: mkfs, the kernel's mount on a loop device, e2fsck.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Says loudly that a test cannot run here; fails it where everything must run.
pub fn skip(test: &str, reason: &str) {
    assert!(std::env::var_os("FIRN_REQUIRE_ALL").is_none_or(|value| value != "1"), "{test} must run: {reason}");
    eprintln!("SKIPPED: {test}: {reason}");
}

/// Whether loop mounts and e2fsprogs can be used; says so if not.
pub fn can_mount(test: &str) -> bool {
    let missing = ["mkfs.ext4", "mount", "debugfs", "e2fsck"].into_iter().find(|tool| !has_tool(tool));
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

/// Whether a program is installed.
pub fn has_tool(tool: &str) -> bool {
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

/// Runs a program and gives what it said, whatever its end.
pub fn output(program: &str, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"))
}

/// Makes an image of `mebibytes` with `mkfs.ext4` and these options.
pub fn make(folder: &Path, mebibytes: u64, options: &[&str]) -> PathBuf {
    let path = folder.join("image");
    File::create(&path).unwrap().set_len(mebibytes << 20).unwrap();
    let image = path.to_str().unwrap();
    run("mkfs.ext4", &[&["-q", "-F", "-E", "nodiscard"], options, &[image]].concat());
    path
}

/// A mount that ends with its value.
#[derive(Debug)]
pub struct Mount {
    point: PathBuf,
}

impl Mount {
    /// Mounts an image by a loop device.
    pub fn new(image: &Path, point: &Path, options: &str) -> Self {
        Self::try_new(image, point, options).unwrap_or_else(|error| panic!("mount {}: {error}", image.display()))
    }

    /// The same, with what the kernel says when it refuses.
    pub fn try_new(image: &Path, point: &Path, options: &str) -> Result<Self, String> {
        std::fs::create_dir_all(point).unwrap();
        let options = format!("loop,noatime{}{options}", if options.is_empty() { "" } else { "," });
        let output = output("mount", &["-t", "ext4", "-o", &options, image.to_str().unwrap(), point.to_str().unwrap()]);
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        Ok(Self { point: point.to_path_buf() })
    }

    /// Mounts another kind of file system.
    pub fn of_type(kind: &str, image: &Path, point: &Path) -> Self {
        std::fs::create_dir_all(point).unwrap();
        run("mount", &["-t", kind, "-o", "loop,noatime", image.to_str().unwrap(), point.to_str().unwrap()]);
        Self { point: point.to_path_buf() }
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
                return;
            }
            said = String::from_utf8_lossy(&output.stderr).into_owned();
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        assert!(std::thread::panicking(), "umount: {said}");
    }
}
