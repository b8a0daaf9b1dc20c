//! Histories of other tools: chains of qcow2 and VMDK, internal snapshots, folders of dated images, virtnbdbackup.

use crate::support::{Firn, have, mixed_disk, tool, write_sparse};
use serde_json::Value;
use std::fs::File;
use std::process::Command;
use std::time::{Duration, SystemTime};

/// Sets when `name` was last written to: that many seconds after 2026-01-01 UTC.
fn written_at(firn: &Firn, name: &str, seconds: u64) {
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600 + seconds);
    File::options().write(true).open(firn.path(name)).unwrap().set_modified(time).unwrap();
}

/// The instants of a machine's snapshots, oldest first.
fn instants(document: &Value) -> Vec<String> {
    let states = document["states"].as_array().unwrap();
    states.iter().map(|state| state["created"].as_str().unwrap().to_owned()).collect()
}

fn results(document: &Value) -> Vec<&str> {
    document["states"].as_array().unwrap().iter().map(|state| state["result"].as_str().unwrap()).collect()
}

/// A chain of three images, the middle one with an internal snapshot, and the disk's bytes at each state.
fn chain(firn: &Firn) -> Vec<Vec<u8>> {
    let mut bytes = mixed_disk(4 << 20, 1);
    let mut states = vec![bytes.clone()];
    write_sparse(&firn.path("base.raw"), &bytes);
    let folder = firn.folder();
    tool(folder, "qemu-img", &["create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "mid.qcow2"]);
    let mut change = |image: &str, byte: u8, at: usize| {
        tool(folder, "qemu-io", &["-c", &format!("write -P {byte} {at} 64k"), image]);
        bytes[at..at + 65_536].fill(byte);
        states.push(bytes.clone());
    };
    change("mid.qcow2", 1, 1 << 20);
    tool(folder, "qemu-img", &["snapshot", "-c", "before-upgrade", "mid.qcow2"]);
    change("mid.qcow2", 2, 2 << 20);
    tool(folder, "qemu-img", &["create", "-q", "-f", "qcow2", "-b", "mid.qcow2", "-F", "qcow2", "top.qcow2"]);
    change("top.qcow2", 3, 0);
    for (name, seconds) in [("base.raw", 0), ("mid.qcow2", 2000), ("top.qcow2", 3000)] {
        written_at(firn, name, seconds);
    }
    states
}

#[test]
fn a_chain_becomes_a_history_and_a_second_time_nothing() {
    if !have("a_chain_becomes_a_history_and_a_second_time_nothing", &["qemu-img", "qemu-io"]) {
        return;
    }
    let firn = Firn::with_pool();
    let states = chain(&firn);
    let command = "import web1 top.qcow2 --date before-upgrade=2026-01-01T00:16:40Z";
    let planned = firn.json(&format!("{command} --dry-run"));
    assert_eq!(results(&planned), ["to import"; 4]);
    let expected = ["2026-01-01T00:00:00", "2026-01-01T00:16:40", "2026-01-01T00:33:20", "2026-01-01T00:50:00"];
    for (found, expected) in instants(&planned).iter().zip(expected) {
        assert!(found.starts_with(expected), "{found} {expected}");
    }
    firn.fails(4, "list web1", &[]);
    let imported = firn.json(command);
    assert_eq!(results(&imported), ["imported"; 4]);
    for (time, bytes) in ["00:00", "00:17", "00:34", "00:50"].iter().zip(&states) {
        assert!(firn.raw(&format!("web1@2026-01-01T{time}")) == *bytes, "{time}");
    }
    assert_eq!(results(&firn.json(command)), ["already there"; 4]);
    // The next state of the same chain is one more snapshot.
    tool(firn.folder(), "qemu-io", &["-c", "write -P 9 3M 64k", "top.qcow2"]);
    written_at(&firn, "top.qcow2", 9000);
    let again = firn.json(command);
    assert_eq!(results(&again), ["already there", "already there", "already there", "imported"]);
    assert_eq!(firn.snapshots("web1").len(), 5);
    // Elsewhere it is still the same history.
    std::fs::create_dir(firn.path("moved")).unwrap();
    for name in ["base.raw", "mid.qcow2", "top.qcow2"] {
        std::fs::rename(firn.path(name), firn.path("moved").join(name)).unwrap();
    }
    let moved = firn.json("import web1 moved/top.qcow2 --date before-upgrade=2026-01-01T00:16:40Z");
    assert_eq!(results(&moved), ["already there"; 4]);
}

#[test]
fn internal_snapshots_have_dates_of_their_own() {
    if !have("internal_snapshots_have_dates_of_their_own", &["qemu-img", "qemu-io"]) {
        return;
    }
    let firn = Firn::with_pool();
    tool(firn.folder(), "qemu-img", &["create", "-q", "-f", "qcow2", "a.qcow2", "4M"]);
    for byte in 1..4 {
        tool(firn.folder(), "qemu-io", &["-c", &format!("write -P {byte} 0 64k"), "a.qcow2"]);
        tool(firn.folder(), "qemu-img", &["snapshot", "-c", &format!("s{byte}"), "a.qcow2"]);
    }
    let info: Value =
        serde_json::from_str(&tool(firn.folder(), "qemu-img", &["info", "--output=json", "a.qcow2"])).unwrap();
    let imported = firn.json("import web1 root=a.qcow2");
    let states = imported["states"].as_array().unwrap();
    assert_eq!(states.len(), 4);
    for (snapshot, byte) in info["snapshots"].as_array().unwrap().iter().zip(1_u8..) {
        let name = format!("a.qcow2@s{byte}");
        let state = states.iter().find(|state| state["name"] == name.as_str()).unwrap();
        let taken: i64 = snapshot["date-sec"].as_i64().unwrap();
        let seconds = Command::new("date").args(["-d", state["created"].as_str().unwrap(), "+%s"]).output().unwrap();
        assert_eq!(String::from_utf8(seconds.stdout).unwrap().trim().parse::<i64>().unwrap(), taken);
        assert!(state["disks"]["root"].as_str().unwrap().contains("a.qcow2@"));
    }
}

#[test]
fn a_vmdk_chain_and_two_disks_together() {
    if !have("a_vmdk_chain_and_two_disks_together", &["qemu-img", "qemu-io"]) {
        return;
    }
    let firn = Firn::with_pool();
    let folder = firn.folder();
    for disk in ["a", "b"] {
        tool(folder, "qemu-img", &["create", "-q", "-f", "vmdk", &format!("{disk}.vmdk"), "4M"]);
        tool(folder, "qemu-io", &["-c", "write -P 1 0 64k", &format!("{disk}.vmdk")]);
        let (base, top) = (format!("{disk}.vmdk"), format!("{disk}-000001.vmdk"));
        tool(folder, "qemu-img", &["create", "-q", "-f", "vmdk", "-b", &base, "-F", "vmdk", &top]);
        tool(folder, "qemu-io", &["-c", "write -P 2 0 64k", &top]);
        written_at(&firn, &base, 100);
        written_at(&firn, &top, 200);
    }
    let imported = firn.json("import db1 vda=a-000001.vmdk data=b-000001.vmdk");
    assert_eq!(results(&imported), ["imported"; 2]);
    let state = firn.json("show db1@first");
    assert_eq!(state["disks"].as_array().unwrap().len(), 2);
    // Nothing says that files of two disks are of one instant.
    assert_eq!(state["consistency"], "torn");
    firn.fails(2, "import db2 vda=a-000001.vmdk data=b.vmdk", &["different numbers"]);
}

#[test]
fn a_folder_of_dated_images() {
    let firn = Firn::with_pool();
    std::fs::create_dir(firn.path("old")).unwrap();
    let contents: Vec<_> = (0..3).map(|number| mixed_disk(1 << 20, 20 + number)).collect();
    for (day, bytes) in [17, 16, 18].into_iter().zip(&contents) {
        firn.write(&format!("old/web1-2026-11-{day}_0300.img"), bytes);
    }
    firn.write("old/notes.txt", "not an image");
    let imported = firn.json("import web1 old");
    assert_eq!(
        instants(&imported).iter().map(|time| &time[..16]).collect::<Vec<_>>(),
        ["2026-11-16T03:00", "2026-11-17T03:00", "2026-11-18T03:00"]
    );
    assert!(firn.raw("web1@2026-11-17") == contents[0]);
    assert!(firn.raw("web1@latest") == contents[2]);
    firn.write("old/data-2026-11-18_0300.img", &contents[0]);
    firn.fails(2, "import web1 old", &["several disks"]);
    std::fs::create_dir(firn.path("empty")).unwrap();
    firn.fails(4, "import web1 empty", &["no image"]);
    firn.fails(4, "import web1 nothing", &[]);
}

/// Streams by the tool's own writer, in the way `virtnbdbackup` lays them out.
const WRITER: &str = r#"
import sys, os
from argparse import Namespace
from libvirtnbdbackup.sparsestream import types, streamer
t = types.SparseStreamTypes()
for disk in ("vda", "vdb"):
    content = bytearray(os.urandom(1 << 20))
    for number in range(3):
        level = "full" if number == 0 else "inc"
        runs = [(0, 1 << 20)] if number == 0 else [(number << 16, 1 << 16)]
        if number:
            content[number << 16:(number + 1) << 16] = os.urandom(1 << 16)
        s = streamer.SparseStream(types)
        parent = "virtnbdbackup.%d" % (number - 1) if number else ""
        args = Namespace(level=level, compress=False, cpt=Namespace(name="virtnbdbackup.%d" % number, parent=parent))
        meta = s.dumpMetadata(args, 1 << 20, sum(l for _, l in runs), Namespace(target=disk, format="qcow2"))
        name = disk + (".full.data" if number == 0 else ".inc.virtnbdbackup.%d.data" % number)
        with open("backup/" + name, "wb") as w:
            s.writeFrame(w, t.META, 0, len(meta)); w.write(meta); w.write(t.TERM)
            for start, length in runs:
                s.writeFrame(w, t.DATA, start, length); w.write(content[start:start + length]); w.write(t.TERM)
            s.writeFrame(w, t.STOP, 0, 0)
        open("%s.%d" % (disk, number), "wb").write(content)
        open("backup/vmconfig.virtnbdbackup.%d.xml" % number, "w").write("<domain/>")
"#;

#[test]
fn a_folder_of_virtnbdbackup() {
    let python = "/usr/bin/python3";
    let found = Command::new(python).args(["-c", "import libvirtnbdbackup"]).output();
    if !found.is_ok_and(|output| output.status.success()) {
        firn_disk::testing::skip("a_folder_of_virtnbdbackup", "virtnbdbackup is missing");
        return;
    }
    let firn = Firn::with_pool();
    std::fs::create_dir(firn.path("backup")).unwrap();
    let written = Command::new(python).args(["-c", WRITER]).current_dir(firn.folder()).env("TZ", "UTC").output();
    let written = written.unwrap();
    assert!(written.status.success(), "{}", String::from_utf8_lossy(&written.stderr));
    let imported = firn.json("import web1 backup");
    assert_eq!(results(&imported), ["imported"; 3]);
    for (back, number) in [(2, 0), (1, 1), (0, 2)] {
        firn.ok(&format!("restore web1@latest~{back} out{number}"));
        for disk in ["vda", "vdb"] {
            assert!(firn.read(&format!("out{number}/{disk}.raw")) == firn.read(&format!("{disk}.{number}")));
        }
        assert!(firn.exists(&format!("out{number}/vmconfig.virtnbdbackup.{number}.xml")));
    }
    assert_eq!(results(&firn.json("import web1 backup")), ["already there"; 3]);
    std::fs::remove_file(firn.path("backup/vdb.inc.virtnbdbackup.1.data")).unwrap();
    firn.fails(4, "import web2 backup", &["vdb.inc.virtnbdbackup.1.data is missing"]);
}
