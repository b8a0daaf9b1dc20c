//! Disks behind an NBD server that answers slowly, wrongly or not at all, and behind a loop device.

use crate::support::{Taken, have, is_root, named, request, take, tool};
use firn_disk::ErrorKind;
use firn_disk::testing::{pattern, skip};
use firn_source::open;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// nbdkit with a file of 2 MiB, killed with this.
struct Server {
    folder: TempDir,
    child: Child,
}

impl Server {
    fn start(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("disk"), pattern(2 << 20, 5)).unwrap();
        let mut command = Command::new("nbdkit");
        command.current_dir(folder.path()).args(["-f", "-U", "socket"]).stdout(Stdio::null());
        let child = command.args(arguments).spawn().unwrap();
        let server = Self { folder, child };
        let end = Instant::now() + Duration::from_secs(20);
        while !server.folder.path().join("socket").exists() {
            assert!(Instant::now() < end, "nbdkit {arguments:?} did not start");
            std::thread::sleep(Duration::from_millis(5));
        }
        server
    }

    fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}/socket", self.folder.path().display())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_slow_server_is_waited_for() {
    if !have("a_slow_server_is_waited_for", &["nbdkit"]) {
        return;
    }
    let filters = ["-r", "--filter=delay", "--filter=rate", "file", "disk", "rdelay=50ms", "rate=64M"];
    let server = Server::start(&filters);
    let taken = take(&mut *open(&server.uri(), &named("vda")).unwrap(), 0, &Taken::default()).unwrap();
    assert!(taken.contents[0] == pattern(2 << 20, 5));
    assert_eq!(taken.previous[0].source, server.uri());
}

#[test]
fn a_server_that_answers_with_errors_or_goes_away_gives_no_snapshot() {
    if !have("a_server_that_answers_with_errors_or_goes_away_gives_no_snapshot", &["nbdkit"]) {
        return;
    }
    let server = Server::start(&["-r", "--filter=error", "file", "disk", "error-pread=EIO", "error-pread-rate=100%"]);
    let error = take(&mut *open(&server.uri(), &named("vda")).unwrap(), 0, &Taken::default()).unwrap_err();
    assert!(error.kind() == ErrorKind::Io && error.to_string().contains("socket"), "{error:?}");
    let mut gone = Server::start(&["-r", "file", "disk"]);
    let mut source = open(&gone.uri(), &named("vda")).unwrap();
    let asked = request(0, &Taken::default());
    source.plan(&asked).unwrap();
    source.prepare(&asked).unwrap();
    source.cut().unwrap();
    let disk = source.open().unwrap().remove(0).disk;
    gone.child.kill().unwrap();
    gone.child.wait().unwrap();
    let error = disk.read_at(&mut [0; 4096], 0).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Io | ErrorKind::Unavailable | ErrorKind::NotFound), "{error:?}");
    let error = open(&gone.uri(), &named("vda")).unwrap().plan(&asked).unwrap_err();
    assert!(error.to_string().contains("socket"), "{error}");
}

#[test]
fn an_export_that_can_be_written_to_is_refused() {
    if !have("an_export_that_can_be_written_to_is_refused", &["nbdkit"]) {
        return;
    }
    let server = Server::start(&["file", "disk"]);
    let error = take(&mut *open(&server.uri(), &named("vda")).unwrap(), 0, &Taken::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let mut options = named("vda");
    options.file.image.torn = true;
    let mut source = open(&server.uri(), &options).unwrap();
    assert!(!source.is_atomic());
    assert!(take(&mut *source, 0, &Taken::default()).unwrap().contents[0] == pattern(2 << 20, 5));
}

#[test]
fn an_export_is_the_frozen_copy_of_a_command() {
    if !have("an_export_is_the_frozen_copy_of_a_command", &["nbdkit"]) {
        return;
    }
    let server = Server::start(&["-r", "file", "disk"]);
    let file = server.folder.path().join("array.toml");
    let text =
        format!("create = 'true'\npath = 'echo \"{}\"'\ndelete = 'true'\nlist = 'echo $FIRN_NAME'", server.uri());
    std::fs::write(&file, text).unwrap();
    let taken = take(&mut *open(&format!("command:{}", file.display()), &named("vda")).unwrap(), 0, &Taken::default());
    assert!(taken.unwrap().contents[0] == pattern(2 << 20, 5));
}

/// A loop device, detached with this.
struct Loop(String);

impl Drop for Loop {
    fn drop(&mut self) {
        tool("losetup", &["-d", &self.0]);
    }
}

#[test]
fn a_block_device_is_read_while_nobody_writes_to_it() {
    let test = "a_block_device_is_read_while_nobody_writes_to_it";
    if !is_root(test) || !have(test, &["losetup", "mkfs.ext4", "mount"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    std::fs::write(&image, vec![0; 4 << 20]).unwrap();
    let attached = Command::new("losetup").args(["-f", "--show"]).arg(&image).output().unwrap();
    if !attached.status.success() {
        return skip(test, "no loop devices");
    }
    let device = Loop(String::from_utf8(attached.stdout).unwrap().trim().to_owned());
    tool("mkfs.ext4", &["-q", &device.0]);
    let take = || take(&mut *open(&format!("file:{}", device.0), &named("vda")).unwrap(), 0, &Taken::default());
    let taken = take().unwrap();
    assert!(taken.contents[0] == std::fs::read(Path::new(&device.0)).unwrap());
    let mount = folder.path().join("mount");
    std::fs::create_dir(&mount).unwrap();
    tool("mount", &[&device.0, mount.to_str().unwrap()]);
    let refused = take();
    tool("umount", &[mount.to_str().unwrap()]);
    let error = refused.unwrap_err();
    assert!(error.kind() == ErrorKind::Unavailable && error.to_string().contains("mounted on"), "{error}");
    take().unwrap();
}
