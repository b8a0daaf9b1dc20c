//! `restore --in-place`: over files, loop devices and exports of qemu-nbd, compared with the bytes that went in.

use crate::support::{Firn, Undo, Writer, have, loop_device, mixed_disk, tool};

/// A pool with `web1` of 3 MiB, and what its disk holds.
fn taken() -> (Firn, Vec<u8>) {
    let firn = Firn::with_pool();
    let content = mixed_disk(3 << 20, 21);
    firn.write("a.raw", &content);
    firn.ok("snap web1 a.raw");
    (firn, content)
}

#[test]
fn a_file_becomes_the_disk_and_only_what_differs_is_written() {
    let (firn, content) = taken();
    let mut changed = content.clone();
    changed[5000] ^= 1;
    changed[1 << 20..(1 << 20) + 10].fill(0xEE);
    firn.write("out.raw", [changed.as_slice(), &[7; 9000]].concat());
    let written = firn.json("restore web1 out.raw --in-place");
    assert!(firn.read("out.raw") == content);
    let bytes = written["disks"][0]["bytes_written"].as_u64().unwrap();
    assert!((1..=4 * 4096).contains(&bytes), "{written}");
    assert_eq!(firn.json("restore web1 out.raw --in-place")["disks"][0]["bytes_written"], 0);
    // A shorter file grows.
    firn.write("short.raw", [3; 100]);
    firn.ok("restore web1 short.raw --in-place");
    assert!(firn.read("short.raw") == content);
}

#[test]
fn what_is_not_there_or_no_raw_image_is_refused() {
    let (firn, _) = taken();
    firn.fails(4, "restore web1 nothing.raw --in-place", &["nothing.raw", "--in-place changes what is there"]);
    firn.fails(2, "restore web1 a.raw --in-place --format qcow2", &["only raw bytes"]);
    if !have("what_is_not_there_or_no_raw_image_is_refused", &["qemu-img", "qemu-io"]) {
        return;
    }
    tool(firn.folder(), "qemu-img", &["create", "-q", "-f", "qcow2", "b.qcow2", "8M"]);
    let before = firn.read("b.qcow2");
    firn.fails(2, "restore web1 b.qcow2 --in-place", &["it is qcow2", "--format raw"]);
    assert!(firn.read("b.qcow2") == before);
    let writer = Writer::start(&firn.path("a.raw"), "raw");
    firn.fails(6, "restore web1 a.raw --in-place", &["a running QEMU has this image open"]);
    drop(writer);
    firn.ok("restore web1 a.raw --in-place");
}

#[test]
fn a_device_keeps_what_lies_beyond_the_disk() {
    if !have("a_device_keeps_what_lies_beyond_the_disk", &["losetup", "root"]) {
        return;
    }
    let (firn, content) = taken();
    let file = firn.write("device.raw", vec![9; 4 << 20]);
    let (device, undo) = loop_device(&file, &[]);
    firn.ok(&format!("restore web1 {device} --in-place"));
    drop(undo);
    assert!(firn.read("device.raw") == [content.as_slice(), &[9; 1 << 20]].concat());
    let small = firn.write("small.raw", vec![9; 1 << 20]);
    let (device, undo) = loop_device(&small, &[]);
    firn.fails(2, &format!("restore web1 {device} --in-place"), &["it has 1048576 bytes"]);
    drop(undo);
    assert!(firn.read("small.raw") == vec![9; 1 << 20]);
}

#[test]
fn an_export_is_written_where_it_differs() {
    if !have("an_export_is_written_where_it_differs", &["qemu-nbd", "qemu-img"]) {
        return;
    }
    let (firn, content) = taken();
    tool(firn.folder(), "qemu-img", &["create", "-q", "-f", "qcow2", "out.qcow2", "3M"]);
    let socket = firn.path("socket");
    let options = ["--fork", "--pid-file", "nbd.pid", "--persistent", "-f", "qcow2", "-k", socket.to_str().unwrap()];
    tool(firn.folder(), "qemu-nbd", &[options.as_slice(), &["out.qcow2"]].concat());
    let server = Undo::kill(&firn.path("nbd.pid"));
    let uri = format!("nbd+unix:///?socket={}", socket.display());
    firn.fails(1, &format!("restore web1 {uri}"), &["NBD export", "--in-place"]);
    firn.ok(&format!("restore web1 {uri} --in-place"));
    let again = firn.json(&format!("restore web1 {uri} --in-place"));
    assert_eq!(again["disks"][0]["bytes_written"], 0);
    drop(server);
    assert!(firn.raw("out.qcow2") == content);
}
