//! What an image may make us open, and what a running QEMU keeps from us.

use crate::support::{have, mixed_disk, open, qemu_img, skip, try_run};
use firn_disk::ErrorKind;
use firn_disk::testing::check_disk;
use firn_format::image::{self, ImageFormat, OpenOptions};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// An image whose backing file is called `backing`, whether or not that exists.
fn overlay(folder: &Path, name: &str, backing: &str) -> PathBuf {
    qemu_img(folder, &["create", "-q", "-u", "-f", "qcow2", "-b", backing, "-F", "raw", name, "1M"]);
    folder.join(name)
}

fn refusal(path: &Path) -> firn_disk::Error {
    image::open(path, &OpenOptions::default()).unwrap_err()
}

#[test]
fn a_stranger_reads_nothing_outside_its_folder() {
    if !have("qemu-img", "a_stranger_reads_nothing_outside_its_folder") {
        return;
    }
    let outer = tempfile::tempdir().unwrap();
    let own = outer.path().join("own");
    std::fs::create_dir(&own).unwrap();
    let secret = outer.path().join("secret");
    std::fs::write(&secret, vec![0x5e; 4096]).unwrap();
    let secret_name = secret.to_str().unwrap().to_owned();
    std::os::unix::fs::symlink(&secret, own.join("innocent")).unwrap();
    std::os::unix::fs::symlink("..", own.join("folder")).unwrap();
    let json = format!(r#"json:{{"driver":"raw","file":{{"driver":"file","filename":"{secret_name}"}}}}"#);
    for (number, backing) in
        [secret_name.as_str(), "../secret", "innocent", "folder/secret", "/etc/passwd", &json].iter().enumerate()
    {
        let error = refusal(&overlay(&own, &format!("image{number}"), backing));
        assert_eq!(error.kind(), ErrorKind::Denied, "{backing}: {error}");
        assert!(error.next_step().unwrap().contains("--allow-backing "), "{backing}: {error}");
    }
    // With the user's word the same image opens; a neighbour of that folder still does not.
    let image = own.join("image1");
    let allow = |folder: &Path| OpenOptions { allow_backing: vec![folder.to_path_buf()], ..OpenOptions::default() };
    let mut byte = [0];
    image::open(&image, &allow(outer.path())).unwrap().disk.read_at(&mut byte, 0).unwrap();
    assert_eq!(byte, [0x5e]);
    let elsewhere = outer.path().join("own2");
    std::fs::create_dir(&elsewhere).unwrap();
    assert_eq!(image::open(&image, &allow(&elsewhere)).unwrap_err().kind(), ErrorKind::Denied);
    assert_eq!(image::open(&image, &allow(&own.join("absent"))).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn extents_parents_and_data_files_are_held_to_the_same() {
    if !have("qemu-img", "extents_parents_and_data_files_are_held_to_the_same") {
        return;
    }
    let outer = tempfile::tempdir().unwrap();
    let own = outer.path().join("own");
    std::fs::create_dir(&own).unwrap();
    std::fs::write(outer.path().join("secret"), vec![0x5e; 4096]).unwrap();
    let descriptor = |rest: &str| format!("# Disk DescriptorFile\nversion=1\nCID=1\ncreateType=\"vmfs\"\n{rest}\n");
    for (name, text) in [
        ("extent.vmdk", descriptor("parentCID=ffffffff\nRW 8 FLAT \"../secret\" 0")),
        ("sparse.vmdk", descriptor("parentCID=ffffffff\nRW 8 SPARSE \"../secret\"")),
        ("parent.vmdk", descriptor("parentCID=2\nparentFileNameHint=\"../secret\"\nRW 8 ZERO")),
    ] {
        std::fs::write(own.join(name), text).unwrap();
        assert_eq!(refusal(&own.join(name)).kind(), ErrorKind::Denied, "{name}");
    }
    qemu_img(&own, &["create", "-q", "-f", "qcow2", "-o", "data_file=../x.data", "data.qcow2", "1M"]);
    assert_eq!(refusal(&own.join("data.qcow2")).kind(), ErrorKind::Denied);
}

#[test]
fn devices_and_pipes_are_never_backing_files() {
    if !have("qemu-img", "devices_and_pipes_are_never_backing_files") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    assert!(Command::new("mkfifo").arg(folder.path().join("pipe")).status().unwrap().success());
    // Would block for ever if it were opened.
    let error = refusal(&overlay(folder.path(), "a", "pipe"));
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert_eq!(refusal(&folder.path().join("pipe")).kind(), ErrorKind::Unsupported);
    for device in ["/dev/zero", "/dev/stdin", "/proc/self/environ"] {
        assert_eq!(refusal(&overlay(folder.path(), "b", device)).kind(), ErrorKind::Denied, "{device}");
    }
    let allowed = OpenOptions { allow_backing: vec!["/dev".into()], ..OpenOptions::default() };
    let error = image::open(overlay(folder.path(), "c", "/dev/zero"), &allowed).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "a character device is no disk");
}

/// A loop device over `file`, until it is dropped.
struct LoopDevice(String);

impl LoopDevice {
    fn new(file: &Path, test: &str) -> Option<Self> {
        let made = Command::new("losetup").args(["-f", "--show"]).arg(file).output();
        match made {
            Ok(made) if made.status.success() => Some(Self(String::from_utf8(made.stdout).unwrap().trim().to_owned())),
            _ => {
                skip(test, "loop devices need root");
                None
            }
        }
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let done = Command::new("losetup").args(["-d", &self.0]).status();
        assert!(done.unwrap().success() || std::thread::panicking());
    }
}

#[test]
fn block_devices_are_images_but_stand_under_none() {
    let test = "block_devices_are_images_but_stand_under_none";
    if !have("qemu-img", test) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let bytes = mixed_disk(2 << 20, 1);
    std::fs::write(at.join("raw"), &bytes).unwrap();
    let Some(raw) = LoopDevice::new(&at.join("raw"), test) else { return };
    let image = open(&raw.0);
    assert_eq!(image.format, ImageFormat::Raw);
    check_disk(&image.disk, &bytes, 2);
    // An image on a device, as oVirt keeps them on logical volumes; a larger one than the image needs.
    qemu_img(at, &["convert", "-f", "raw", "-O", "qcow2", "raw", "image"]);
    std::fs::File::options().write(true).open(at.join("image")).unwrap().set_len(5 << 20).unwrap();
    let holder = LoopDevice::new(&at.join("image"), test).unwrap();
    check_disk(&open(&holder.0).disk, &bytes, 3);
    // Such an image lies in /dev, but other devices are not beside it.
    qemu_img(at, &["rebase", "-q", "-u", "-f", "qcow2", "-b", &raw.0, "-F", "raw", "image"]);
    for path in [Path::new(&holder.0), &at.join("image")] {
        assert_eq!(refusal(path).kind(), ErrorKind::Denied);
        let allowed = OpenOptions { allow_backing: vec!["/dev".into()], ..OpenOptions::default() };
        check_disk(&image::open(path, &allowed).unwrap().disk, &bytes, 4);
    }
}

#[test]
fn an_image_may_be_reached_by_a_link_and_from_the_current_folder() {
    if !have("qemu-img", "an_image_may_be_reached_by_a_link_and_from_the_current_folder") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    std::fs::create_dir(&store).unwrap();
    std::fs::write(store.join("base"), vec![3; 4096]).unwrap();
    overlay(&store, "top", "base");
    let link = folder.path().join("link");
    std::os::unix::fs::symlink("store/top", &link).unwrap();
    // QEMU would look for "base" beside the link; beside the image is where it is.
    let mut byte = [0];
    open(&link).disk.read_at(&mut byte, 0).unwrap();
    assert_eq!(byte, [3]);
    let relative = pathdiff(&store.join("top"));
    open(relative).disk.read_at(&mut byte, 0).unwrap();
    assert_eq!(byte, [3]);
}

/// `path` as seen from the current folder, by way of the root.
fn pathdiff(path: &Path) -> PathBuf {
    let depth = std::env::current_dir().unwrap().components().count() - 1;
    PathBuf::from("../".repeat(depth)).join(path.strip_prefix("/").unwrap())
}

/// A process of QEMU's that holds an image open until it is dropped.
struct Holder(Child);

impl Holder {
    /// Opens `image` in `qemu-io` with `arguments`; returns when it is open.
    fn open(folder: &Path, arguments: &[&str]) -> Self {
        let mut child = Command::new("qemu-io")
            .args(arguments)
            .current_dir(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // It has opened the image before it answers the first command.
        let mut input = child.stdin.take().unwrap();
        std::io::Write::write_all(&mut input, b"length\n").unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.contains("MiB") || line.contains("KiB"), "{line}");
        child.stdin = Some(input);
        Self(child)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().unwrap();
    }
}

#[test]
fn what_a_running_qemu_writes_to_is_refused_and_what_it_shares_is_not() {
    if !have("qemu-img", "what_a_running_qemu_writes_to_is_refused_and_what_it_shares_is_not") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    std::fs::write(at.join("base"), vec![7; 1 << 20]).unwrap();
    overlay(at, "top", "base");
    overlay(at, "other", "base");
    {
        let _guest = Holder::open(at, &["top"]);
        let error = refusal(&at.join("top"));
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        assert!(error.next_step().unwrap().contains("--torn"));
        let torn = OpenOptions { torn: true, ..OpenOptions::default() };
        image::open(at.join("top"), &torn).unwrap();
        // The base is shared, and so is another overlay on it.
        open(at.join("base"));
        open(at.join("other"));
    }
    {
        // A guest on the base itself keeps everything above it from us.
        let _guest = Holder::open(at, &["-f", "raw", "base"]);
        for name in ["base", "top", "other"] {
            assert_eq!(refusal(&at.join(name)).kind(), ErrorKind::Unavailable, "{name}");
        }
    }
    let _reader = Holder::open(at, &["-r", "top"]);
    open(at.join("top"));
}

#[test]
fn qemu_cannot_write_while_we_read_but_can_read() {
    if !have("qemu-img", "qemu_cannot_write_while_we_read_but_can_read") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    std::fs::write(at.join("base"), vec![7; 1 << 20]).unwrap();
    overlay(at, "top", "base");
    overlay(at, "other", "base");
    let image = open(at.join("top"));
    let writes = |name: &str| try_run(at, "qemu-io", &["-c", "write 0 512", name]).status.success();
    assert!(!writes("top"), "we read it");
    assert!(writes("other"), "a guest may start on another overlay of the base that we read");
    qemu_img(at, &["info", "top"]);
    qemu_img(at, &["info", "-f", "raw", "base"]);
    qemu_img(at, &["convert", "top", "copy"]);
    drop(image);
    assert!(writes("top"), "the lock goes with the image");
}

#[test]
fn two_of_us_share_a_base_and_a_read_only_file_is_enough() {
    if !have("qemu-img", "two_of_us_share_a_base_and_a_read_only_file_is_enough") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    std::fs::write(at.join("base"), vec![7; 4096]).unwrap();
    let mut permissions = std::fs::metadata(at.join("base")).unwrap().permissions();
    permissions.set_readonly(true);
    std::fs::set_permissions(at.join("base"), permissions).unwrap();
    overlay(at, "a", "base");
    overlay(at, "b", "base");
    let _both = (open(at.join("a")), open(at.join("b")), open(at.join("base")));
    assert_eq!(open(at.join("base")).format, ImageFormat::Raw);
}
