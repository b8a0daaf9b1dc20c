//! Sources that somebody else is writing to: running machines, mounts, files that change or shrink; and devices.

use crate::support::{
    Firn, Writer, finish, have, loop_device, mixed_disk, mount, send, sprinkled, stop_at, tool, write_sparse,
};
use std::fs::File;
use std::os::unix::fs::FileExt;

#[test]
fn an_image_that_a_running_qemu_writes_to_is_refused() {
    let test = "an_image_that_a_running_qemu_writes_to_is_refused";
    if !have(test, &["qemu-img", "qemu-io"]) {
        return;
    }
    let firn = Firn::with_pool();
    tool(firn.folder(), "qemu-img", &["create", "-q", "-f", "qcow2", "a.qcow2", "8M"]);
    tool(firn.folder(), "qemu-img", &["create", "-q", "-f", "qcow2", "-b", "a.qcow2", "-F", "qcow2", "b.qcow2"]);
    firn.write("a.raw", vec![0; 1 << 20]);
    firn.ok("snap web1 a.qcow2");
    for (image, format) in [("a.qcow2", "qcow2"), ("a.raw", "raw")] {
        let writer = Writer::start(&firn.path(image), format);
        let parts = [image, "a running QEMU writes to this image", "--torn"];
        firn.fails(6, &format!("snap web1 {image}"), &parts);
        firn.fails(6, &format!("restore {image} out.raw"), &parts);
        if image == "a.qcow2" {
            firn.fails(6, "snap web1 b.qcow2", &["a.qcow2", "a running QEMU"]);
        }
        firn.ok(&format!("snap torn {image} --torn"));
        firn.ok(&format!("restore {image} out.raw --torn --force"));
        drop(writer);
        firn.ok(&format!("snap web1 {image}"));
    }
    let taken: Vec<_> = firn.json("list torn")["machines"][0]["snapshots"]
        .as_array()
        .unwrap()
        .iter()
        .map(|snapshot| snapshot["consistency"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(taken, ["torn", "torn"]);
    assert_eq!(firn.json("show web1")["consistency"], "crash");
    // A torn one never pushes out a good one.
    firn.ok("snap web1 a.qcow2 --torn");
    let kept = firn.json("forget web1 --keep-daily 1 --dry-run");
    let kept: Vec<_> = kept["snapshots"].as_array().unwrap().iter().map(|s| s["keep"].as_bool().unwrap()).collect();
    assert_eq!(kept, [false, false, true, false]);
}

#[test]
fn a_machine_served_by_qemu_nbd_is_refused_and_its_backing_file_is_not() {
    let test = "a_machine_served_by_qemu_nbd_is_refused_and_its_backing_file_is_not";
    if !have(test, &["qemu-img", "qemu-nbd"]) {
        return;
    }
    let firn = Firn::with_pool();
    let content = mixed_disk(2 << 20, 4);
    firn.write("base.raw", &content);
    tool(firn.folder(), "qemu-img", &["create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "top.qcow2"]);
    let socket = firn.path("socket");
    let socket = socket.to_str().unwrap();
    let options = ["--fork", "--pid-file", "nbd.pid", "--persistent", "-f", "qcow2", "-k", socket, "top.qcow2"];
    tool(firn.folder(), "qemu-nbd", &options);
    let pid = String::from_utf8(firn.read("nbd.pid")).unwrap();
    let refused = firn.run("snap web1 top.qcow2");
    let base = firn.run("snap web1 base.raw");
    tool(firn.folder(), "kill", &[pid.trim()]);
    assert!(refused.code == 6 && refused.stderr.contains("top.qcow2"), "{}", refused.stderr);
    assert_eq!(base.code, 0, "{}", base.stderr);
    assert!(firn.raw("web1") == content);
}

#[test]
fn an_image_that_changes_while_it_is_read_gives_no_snapshot() {
    let firn = Firn::with_pool();
    let source = firn.path("a.raw");
    firn.write("b.raw", [1; 512]);
    sprinkled(&source, 1 << 40, 1 << 30);
    for (arguments, code) in [("snap web1 a.raw", 6), ("snap web1 b.raw a.raw", 6), ("snap web1 a.raw --torn", 0)] {
        let child = firn.spawn(arguments);
        stop_at(&child, &source, 1 << 34);
        File::options().write(true).open(&source).unwrap().write_all_at(b"change", 0).unwrap();
        send("CONT", &child);
        let run = finish(child);
        assert_eq!(run.code, code, "{arguments}: {}", run.stderr);
        if code == 6 {
            assert!(run.stderr.contains("written to while it was read; there is no snapshot"), "{}", run.stderr);
            assert!(run.stdout.is_empty() && run.stderr.contains("a.raw") && run.stderr.contains("--torn"));
            assert!(firn.objects("snap").is_empty());
        }
    }
    assert_eq!(firn.json("show web1")["consistency"], "torn");
    firn.ok("verify");
}

#[test]
fn an_image_that_shrinks_while_it_is_read_gives_no_snapshot() {
    let firn = Firn::with_pool();
    let source = firn.path("a.raw");
    for arguments in ["snap web1 a.raw", "snap web1 a.raw --torn"] {
        sprinkled(&source, 1 << 40, 1 << 30);
        let child = firn.spawn(arguments);
        stop_at(&child, &source, 1 << 34);
        File::options().write(true).open(&source).unwrap().set_len(1 << 20).unwrap();
        send("CONT", &child);
        let run = finish(child);
        assert!(matches!(run.code, 1 | 6), "{arguments}: {} {}", run.code, run.stderr);
        assert!(run.stdout.is_empty() && run.stderr.contains("a.raw"), "{}", run.stderr);
        assert!(firn.objects("snap").is_empty());
    }
    // The pool is none the worse.
    firn.ok("snap web1 a.raw");
    assert!(firn.raw("web1") == firn.read("a.raw"));
    firn.ok("verify --read-data");
}

#[test]
fn block_devices_are_taken_and_written_unless_they_are_in_use() {
    let test = "block_devices_are_taken_and_written_unless_they_are_in_use";
    if !have(test, &["root", "losetup", "mkfs.ext4", "mount", "sfdisk"]) {
        return;
    }
    let firn = Firn::with_pool();
    let image = firn.path("disk.raw");
    File::create(&image).unwrap().set_len(48 << 20).unwrap();
    tool(firn.folder(), "mkfs.ext4", &["-q", "-d", "/etc/default", "disk.raw"]);
    std::fs::create_dir(firn.path("mnt")).unwrap();
    let before = firn.read("disk.raw");
    let (device, attached) = loop_device(&image, &[]);
    firn.ok(&format!("snap dev {device}"));
    assert!(firn.raw("dev") == before);
    assert_eq!(firn.json("show dev")["disks"][0]["source"], device.as_str());

    let mounted = mount(firn.folder(), &[&device, "mnt"]);
    for arguments in ["snap dev".to_owned(), format!("snap dev {device}"), "snap dev disk.raw".to_owned()] {
        firn.fails(6, &arguments, &["this is mounted on", "mnt", "--torn"]);
    }
    firn.ok("snap torn --torn disk.raw");
    firn.fails(6, &format!("restore dev {device} --force"), &[&device, "busy", "is it mounted"]);
    drop(mounted);
    let mounted = mount(firn.folder(), &["-o", "ro,noload", &device, "mnt"]);
    firn.ok("snap dev");
    firn.fails(6, &format!("restore dev {device} --force"), &["is it mounted"]);
    drop(mounted);

    // The device as a target.
    firn.fails(1, &format!("restore dev@first {device}"), &["all that is on it would be lost", "--force"]);
    firn.fails(2, &format!("restore dev@first {device} --force --format qcow2"), &["raw bytes only"]);
    firn.write("large.raw", vec![1; 50 << 20]);
    firn.fails(2, &format!("restore large.raw {device} --force"), &["the device has", "large enough"]);
    std::fs::write(&device, vec![0xAA; 48 << 20]).unwrap();
    let written = firn.json(&format!("restore dev@first {device} --force"));
    assert_eq!(written["disks"][0]["path"], device.as_str());
    assert!(std::fs::read(&device).unwrap() == before);
    drop(attached);
    assert!(firn.read("disk.raw") == before);

    // A disk whose partition is mounted is in use, although nothing mounts the disk itself.
    File::create(&image).unwrap().set_len(48 << 20).unwrap();
    firn.write("table", "label: gpt\nstart=2048, size=81920\n");
    tool(firn.folder(), "bash", &["-c", "sfdisk -q disk.raw < table"]);
    let (device, attached) = loop_device(&image, &["-P"]);
    let partition = format!("{device}p1");
    if std::path::Path::new(&partition).exists() {
        tool(firn.folder(), "mkfs.ext4", &["-q", &partition]);
        let mounted = mount(firn.folder(), &[&partition, "mnt"]);
        for disk in [&device, "disk.raw"] {
            firn.fails(6, &format!("snap part {disk}"), &["a mounted partition of it", "--torn"]);
        }
        firn.fails(6, &format!("snap part {partition}"), &["this is mounted on"]);
        firn.fails(6, &format!("restore dev@first {device} --force"), &["is it mounted"]);
        drop(mounted);
    }
    firn.ok(&format!("snap part {device}"));
    drop(attached);
}

#[test]
fn a_mounted_btrfs_is_recognised() {
    if !have("a_mounted_btrfs_is_recognised", &["root", "losetup", "mkfs.btrfs", "mount"]) {
        return;
    }
    let firn = Firn::with_pool();
    write_sparse(&firn.path("disk.raw"), &vec![0; 128 << 20]);
    tool(firn.folder(), "mkfs.btrfs", &["-q", "disk.raw"]);
    std::fs::create_dir(firn.path("mnt")).unwrap();
    let (device, _attached) = loop_device(&firn.path("disk.raw"), &[]);
    let mounted = mount(firn.folder(), &[&device, "mnt"]);
    firn.fails(6, &format!("snap dev {device}"), &["this is mounted on"]);
    drop(mounted);
    firn.ok(&format!("snap dev {device}"));
}
