//! Getting disks back: every format against qemu-img, every place to write to, and nothing half done.

use crate::support::{Firn, have, mixed_disk, tool, write_sparse};
use std::path::Path;

const FORMATS: [(&str, &str); 9] = [
    ("raw", "raw"),
    ("qcow2", "qcow2"),
    ("qcow2-zlib", "qcow2"),
    ("qcow2-zstd", "qcow2"),
    ("vmdk", "vmdk"),
    ("vmdk-stream", "vmdk"),
    ("vhd", "vpc"),
    ("vhdx", "vhdx"),
    ("vdi", "vdi"),
];

/// web1 with one disk of 6 MiB, and the disk's bytes.
fn with_snapshot() -> (Firn, Vec<u8>) {
    let firn = Firn::with_pool();
    let content = mixed_disk(6 << 20, 11);
    write_sparse(&firn.path("a.raw"), &content);
    firn.ok("snap web1 a.raw");
    (firn, content)
}

/// db1 with the disks vda and data and the kept file vm.xml.
fn with_two_disks() -> Firn {
    let firn = Firn::with_pool();
    firn.write("a.raw", mixed_disk(1 << 20, 1));
    firn.write("b.raw", mixed_disk(2 << 20, 2));
    firn.write("vm.xml", "<domain/>");
    firn.ok("snap db1 a.raw data=b.raw --config vm.xml");
    firn
}

#[test]
fn every_format_is_what_qemu_takes_it_for() {
    if !have("every_format_is_what_qemu_takes_it_for", &["qemu-img"]) {
        return;
    }
    let (firn, content) = with_snapshot();
    let compare = |format: &str, image: &str| {
        tool(firn.folder(), "qemu-img", &["compare", "-q", "-f", format, "-F", "raw", image, "a.raw"]);
        // QEMU has no check for VHD.
        if !matches!(format, "raw" | "vpc") {
            tool(firn.folder(), "qemu-img", &["check", "-q", "-f", format, image]);
        }
    };
    for (name, format) in FORMATS {
        let text = firn.ok(&format!("restore web1 {name}.img --format {name}"));
        assert!(text.starts_with(&format!("vda -> {name}.img  6.0 MiB, ")), "{text}");
        compare(format, &format!("{name}.img"));
    }
    for (file, format) in [
        ("b.qcow2", "qcow2"),
        ("b.QCOW2", "qcow2"),
        ("b.vmdk", "vmdk"),
        ("b.vhdx", "vhdx"),
        ("b.vdi", "vdi"),
        ("b.img", "raw"),
        ("b", "raw"),
    ] {
        firn.ok(&format!("restore web1 {file}"));
        compare(format, file);
    }
    assert!(firn.read("b") == content);
    let written = firn.json("restore web1 c.vmdk --format qcow2");
    assert_eq!(written["disks"][0]["path"], "c.vmdk");
    compare("qcow2", "c.vmdk");
    firn.assert_tidy("");
    // What was written goes back in, from each format.
    for (name, _) in FORMATS {
        let again = firn.json(&format!("snap again {name}.img"));
        assert_eq!(again["bytes"], content.len());
        assert!(firn.raw("again") == content, "{name}");
    }
}

#[test]
fn a_disk_that_ends_within_a_sector_is_filled_up_and_says_so() {
    if !have("a_disk_that_ends_within_a_sector_is_filled_up_and_says_so", &["qemu-img"]) {
        return;
    }
    let firn = Firn::with_pool();
    let content = mixed_disk(1_000_001, 3);
    firn.write("a.raw", &content);
    firn.ok("snap web1 a.raw");
    for (name, format) in FORMATS {
        let file = format!("{name}.img");
        let written = firn.json(&format!("restore web1 {file} --format {name}"));
        let padding = if format == "raw" { 0 } else { 447 };
        assert_eq!(written["disks"][0]["padding"], padding, "{name}");
        let said = firn.ok(&format!("restore web1 again --force --format {name}")).contains("447 zero bytes added");
        assert_eq!(said, padding > 0, "{name}");
        tool(firn.folder(), "qemu-img", &["convert", "-f", format, "-O", "raw", &file, "back.raw"]);
        let back = firn.read("back.raw");
        let (whole, rest) = back.split_at(content.len());
        assert!(whole == content && rest.iter().all(|byte| *byte == 0) && back.len() < content.len() + 512, "{name}");
    }
}

#[test]
fn images_are_converted_without_a_pool() {
    if !have("images_are_converted_without_a_pool", &["qemu-img", "qemu-io"]) {
        return;
    }
    let firn = Firn::new();
    let content = mixed_disk(2 << 20, 5);
    firn.write("a.raw", &content);
    tool(firn.folder(), "qemu-img", &["convert", "-O", "qcow2", "a.raw", "a.qcow2"]);
    tool(firn.folder(), "qemu-img", &["snapshot", "-c", "s1", "a.qcow2"]);
    tool(firn.folder(), "qemu-io", &["-c", "write -P 1 0 64k", "a.qcow2"]);
    firn.ok("restore a.qcow2 b.vmdk");
    tool(firn.folder(), "qemu-img", &["compare", "-q", "b.vmdk", "a.qcow2"]);
    firn.ok("restore a.qcow2@s1 c.raw");
    assert!(firn.read("c.raw") == content);
    firn.ok("restore a.qcow2@s1,b.vmdk both --format qcow2");
    tool(firn.folder(), "qemu-img", &["compare", "-q", "both/vda.qcow2", "a.raw"]);
    tool(firn.folder(), "qemu-img", &["compare", "-q", "both/vdb.qcow2", "b.vmdk"]);
    firn.ok("restore a.qcow2@s1,b.vmdk d.raw --disk vdb");
    tool(firn.folder(), "qemu-img", &["compare", "-q", "d.raw", "b.vmdk"]);
    firn.ok("restore a.qcow2 file.raw --input-format raw");
    assert!(firn.read("file.raw") == firn.read("a.qcow2"));
    // An image may be replaced by what is read from it.
    firn.ok("restore a.qcow2@s1 a.qcow2 --force --format raw");
    assert!(firn.read("a.qcow2") == content);
    firn.fails(4, "restore a.raw,missing.raw out", &["there is no file missing.raw"]);
    firn.fails(4, "restore ./missing.raw out", &["there is no file ./missing.raw"]);
    firn.fails(7, "restore ebs:vol-1 out", &["image files, block devices and NBD exports"]);
    firn.fails(4, "restore nbd+unix:///x?socket=none out", &["none", "No such file"]);
    firn.assert_tidy("");
}

#[test]
fn where_it_cannot_be_written_is_said_before_anything_is_done() {
    let (mut firn, content) = with_snapshot();
    firn.write("there", "precious");
    std::fs::create_dir(firn.path("folder")).unwrap();
    std::os::unix::fs::symlink("there", firn.path("link")).unwrap();
    for (code, out, parts) in [
        (1, "there", &["there: it is there already", "--force"][..]),
        (1, "link", &["link: it is there already"][..]),
        (1, "folder", &["folder: this is a folder", "name the file, as folder/vda.raw"][..]),
        (1, "folder/", &["name the file, as folder/vda.raw"][..]),
        (1, "folder --force --format vmdk", &["name the file, as folder/vda.vmdk"][..]),
        (1, "new/", &["name the file, as new/vda.raw"][..]),
        (4, "missing/out.raw", &["missing: there is no such folder", "make it first"][..]),
        (2, "there/out.raw", &["there: this is a file, not a folder"][..]),
        (2, "- --format qcow2", &["stdout takes raw bytes only", "--format"][..]),
        (4, "out.raw --disk vdb", &["there is no disk vdb", "the disks are vda"][..]),
        (7, "/dev/null --force", &["not a regular file"][..]),
    ] {
        firn.fails(code, &format!("restore web1 {out}"), parts);
    }
    for address in ["web1#vda1", "web1:/etc/passwd", "a.raw#vda1", "a.raw:/etc"] {
        firn.fails(2, &format!("restore {address} out.raw"), &["restore gives whole disks", "--disk"]);
    }
    assert_eq!(firn.read("there"), b"precious");
    assert!(!firn.exists("out.raw") && !firn.exists("new"));
    firn.assert_tidy("");
    firn.assert_tidy("folder");
    // Even before the password: what can be told without the pool is told first.
    firn.set("FIRN_POOL", "nowhere");
    firn.fails(4, "restore web1 missing/out.raw", &["missing: there is no such folder"]);
    firn.set("FIRN_POOL", "pool");
    firn.ok("restore web1 link --force");
    assert!(firn.read("there") == content && firn.path("link").is_symlink());
    assert!(firn.raw("web1") == content);
}

#[test]
fn several_disks_become_a_folder() {
    let firn = with_two_disks();
    let text = firn.ok("restore db1 out");
    for part in ["vda -> out/vda.raw", "data -> out/data.raw", "kept with them -> out/vm.xml"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(firn.read("out/vda.raw") == firn.read("a.raw") && firn.read("out/data.raw") == firn.read("b.raw"));
    assert_eq!(firn.read("out/vm.xml"), b"<domain/>");
    firn.fails(1, "restore db1 out", &["out: the folder is not empty", "--force"]);
    let written = firn.json("restore db1 out --force --format vmdk");
    assert_eq!(
        crate::support::shape(&written),
        "config[]: string\ndisks[].bytes: number\ndisks[].bytes_written: number\ndisks[].damaged[]: nothing
disks[].disk: string\ndisks[].padding: number\ndisks[].path: string"
    );
    let mut names: Vec<_> = std::fs::read_dir(firn.path("out")).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["data.raw", "data.vmdk", "vda.raw", "vda.vmdk", "vm.xml"]);
    std::fs::create_dir(firn.path("empty")).unwrap();
    firn.ok("restore db1 empty --disk data --disk vda --disk data");
    assert_eq!(std::fs::read_dir(firn.path("empty")).unwrap().count(), 3);
    firn.fails(1, "restore db1 a.raw", &["a.raw: 2 disks need a folder", "--disk"]);
    firn.fails(1, "restore db1 a.raw --force", &["2 disks need a folder"]);
    firn.fails(2, "restore db1 -", &["several disks do not go to stdout", "--disk"]);
    assert!(firn.run("restore db1 - --disk data").stdout == firn.read("b.raw"));
    firn.fails(4, "restore db1 none --disk data --disk other", &["there is no disk other", "vda, data"]);
    assert!(!firn.exists("none"));
    firn.assert_tidy("out");
}

#[test]
fn a_kept_file_never_takes_the_place_of_a_disk() {
    let firn = with_two_disks();
    firn.write("vda.raw", "not a disk");
    firn.write("config-vda.raw", "nor this");
    firn.ok("snap db1 --config vda.raw --config config-vda.raw --config vm.xml");
    for arguments in ["restore db1 out", "restore db1 out --force"] {
        firn.ok(arguments);
        assert!(firn.read("out/vda.raw") == firn.read("a.raw"));
        assert_eq!(firn.read("out/config-vda.raw"), b"not a disk");
        assert_eq!(firn.read("out/config-config-vda.raw"), b"nor this");
    }
}

#[test]
fn a_folder_is_left_as_it_was_when_nothing_of_a_disk_can_be_read() {
    let firn = with_two_disks();
    std::fs::create_dir(firn.path("empty")).unwrap();
    for node in firn.objects("node") {
        std::fs::remove_file(node).unwrap();
    }
    for out in ["new", "empty", "empty --force"] {
        firn.fails(3, &format!("restore db1 {out}"), &["this object of the pool is missing"]);
    }
    assert!(!firn.exists("new"));
    let left: Vec<_> = std::fs::read_dir(firn.path("empty")).unwrap().map(|e| e.unwrap().file_name()).collect();
    // With --force there was no promise about the other files of the folder.
    assert!(left.iter().all(|name| Path::new(name) == Path::new("vda.raw")), "{left:?}");
}
