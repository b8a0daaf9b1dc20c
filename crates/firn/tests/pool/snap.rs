//! Taking snapshots: names, formats, several disks, what is kept with them.

use crate::support::{Firn, have, mixed_disk, pattern_file, sprinkled, tool};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

#[test]
fn names_are_plain_and_a_wrong_one_says_what_a_name_is() {
    let firn = Firn::with_pool();
    firn.write("a.raw", [1; 4096]);
    let long = "x".repeat(300);
    for name in
        ["a/b", "/etc", "..", "../x", "a..b", ".a", "-", "a b", "ä", "a\nb", "a:b", "a@b", "a#b", "a,b", "", &long]
    {
        firn.words_fail(
            2,
            &["snap", "--", name, "a.raw"],
            &["is no name for a machine", "begins with a letter or digit"],
        );
    }
    for name in ["", "..", "../x", "a/b", "a b", ".x", "-x", "ä", "a\u{1b}b", &long] {
        let disk = format!("{name}=a.raw");
        firn.words_fail(2, &["snap", "web1", "--", &disk], &["is no name for a disk", "begins with a letter or digit"]);
    }
    firn.fails(2, "snap web1 a=a.raw a=a.raw", &["two disks are called a", "NAME=SOURCE"]);
    firn.fails(2, "snap web1 a.raw vda=a.raw", &["two disks are called vda"]);
    // The pool is as it was: no machine, no note of one.
    assert!(firn.objects("note").is_empty() && firn.objects("snap").is_empty());
    for name in ["0", "Web-1.example.org", "a_b", "latest", "pool"] {
        firn.ok(&format!("snap {name} a.raw"));
    }
    // Files whose names have what addresses are made of.
    for file in ["x=y", "a,b.raw", "a@b", "a#b:", "ä b", "c:/d"] {
        if let Some((folder, _)) = file.rsplit_once('/') {
            std::fs::create_dir(firn.path(folder)).unwrap();
        }
        firn.write(file, pattern_file(file));
        let run = firn.run_words(["snap", "odd", file]);
        assert_eq!(run.code, 0, "{file}: {}", run.stderr);
        assert_eq!(firn.raw("odd"), pattern_file(file), "{file}");
        // And again from the name that the pool keeps.
        firn.ok("snap odd");
        assert_eq!(firn.raw("odd"), pattern_file(file), "{file}");
    }
    let bytes = OsStr::from_bytes(b"\xFF.raw");
    std::fs::write(firn.folder().join(bytes), [3; 100]).unwrap();
    assert_eq!(firn.run_words([OsStr::new("snap"), OsStr::new("odd"), bytes]).code, 0);
    assert_eq!(firn.raw("odd"), [3; 100]);
}

#[test]
fn what_is_no_disk_is_refused_with_the_reason() {
    let firn = Firn::with_pool();
    firn.write("a.raw", [1; 4096]);
    std::fs::create_dir(firn.path("folder")).unwrap();
    tool(firn.folder(), "mkfifo", &["fifo"]);
    std::os::unix::fs::symlink("nothing", firn.path("dangling")).unwrap();
    for (code, disk, part) in [
        (2, "folder", "folder: this is a folder"),
        (2, "./folder", "this is a folder"),
        (2, "vda=folder", "this is a folder"),
        (7, "/dev/null", "neither a regular file nor a block device"),
        (7, "fifo", "neither a regular file nor a block device"),
        (4, "nothing", "there is no file nothing"),
        (4, "dangling", "there is no file dangling"),
        (4, "./nothing", "there is no file ./nothing"),
        (4, "vda=nothing", "there is no file nothing"),
        (2, "a.raw,a.raw", "is not one whole disk"),
        (2, "a.raw#vda1", "is not one whole disk"),
        (2, "a.raw:/etc", "is not one whole disk"),
        (2, "a.raw@s1", "a raw image has no internal snapshots"),
        (7, "ebs:vol-1", "firn knows no such source"),
        (4, "nbd+unix:///x?socket=none", "No such file"),
        (2, "a.raw@", "the snapshot's name is missing"),
    ] {
        firn.fails(code, &format!("snap web1 {disk}"), &[part]);
    }
    firn.fails(2, "snap web1", &["web1 has no snapshot yet", "firn snap web1 disk.qcow2"]);
    firn.fails(2, "snap a.raw", &["the name of a machine comes first: `firn snap MACHINE a.raw`"]);
    firn.fails(2, "snap ./a.raw", &["the name of a machine comes first"]);
    assert!(firn.objects("snap").is_empty());
}

#[test]
fn several_disks_and_what_is_kept_with_them() {
    let firn = Firn::with_pool();
    let disks: Vec<_> = (0..3).map(|seed| mixed_disk((1 << 20) + 512 * usize::try_from(seed).unwrap(), seed)).collect();
    for (name, bytes) in ["a.raw", "b.raw", "c.raw"].iter().zip(&disks) {
        firn.write(name, bytes);
    }
    firn.write("vm.xml", "<domain/>");
    firn.write("nvram", mixed_disk(70_000, 5));
    let text = firn.ok("snap db1 a.raw data=b.raw c.raw --config vm.xml --config nvram");
    assert!(text.starts_with("db1@2") && text.contains("3 disks") && text.contains("new in the pool"), "{text}");
    let names: Vec<_> = firn.json("show db1")["disks"].as_array().unwrap().iter().map(|d| d["name"].clone()).collect();
    assert_eq!(names, ["vda", "data", "vdc"]);
    for (name, bytes) in ["vda", "data", "vdc"].iter().zip(&disks) {
        firn.ok(&format!("restore db1 {name}.out --disk {name}"));
        assert!(firn.read(&format!("{name}.out")) == *bytes, "{name}");
    }
    assert_eq!(firn.run("show db1 --config nvram").stdout, mixed_disk(70_000, 5));
    // The same disks again, from another folder: nothing new, and nothing is kept that was not named.
    std::fs::create_dir(firn.path("elsewhere")).unwrap();
    let mut command = firn.command(["snap", "db1", "--json", "--pool", "../pool"]);
    let output = command.current_dir(firn.path("elsewhere")).output().unwrap();
    let again: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((again["bytes_stored"].as_u64(), again["sequence"].as_u64()), (Some(0), Some(2)));
    assert_eq!(again["config"].as_array().unwrap().len(), 0);

    std::fs::create_dir(firn.path("other")).unwrap();
    firn.write("other/vm.xml", "<other/>");
    firn.write(".hidden", "");
    firn.fails(2, "snap db1 --config vm.xml --config other/vm.xml", &["two files called \"vm.xml\"", "rename"]);
    firn.fails(2, "snap db1 --config .hidden", &[".hidden", "does not begin with a dot"]);
    firn.fails(2, "snap db1 --config other", &["other: only a regular file of at most 16 MiB"]);
    firn.fails(2, "snap db1 --config /dev/zero", &["only a regular file"]);
    firn.fails(4, "snap db1 --config nothing", &["nothing"]);
    sprinkled(&firn.path("large"), (16 << 20) + 1, 8 << 20);
    firn.fails(2, "snap db1 --config large", &["at most 16 MiB"]);
    std::fs::remove_file(firn.path("b.raw")).unwrap();
    firn.fails(4, "snap db1", &["b.raw"]);
    assert_eq!(firn.snapshots("db1").len(), 2);
}

#[test]
fn lengths_of_any_kind_come_back_as_they_were() {
    let firn = Firn::with_pool();
    for length in [0, 1, 511, 512, 4095, 4097, (16 << 20) - 1, (16 << 20) + 1] {
        let bytes = mixed_disk(length, length as u64);
        firn.write("a.raw", &bytes);
        firn.ok("snap web1 a.raw");
        assert!(firn.raw("web1") == bytes, "{length}");
        firn.ok("restore web1 out.raw --force");
        assert!(firn.read("out.raw") == bytes, "{length}");
    }
    firn.ok("verify --read-data");
}

#[test]
fn a_sparse_tebibyte_takes_seconds_and_stays_sparse() {
    use std::os::unix::fs::MetadataExt;
    let firn = Firn::with_pool();
    sprinkled(&firn.path("big.raw"), 1 << 40, 1 << 36);
    let taken = firn.json("snap big big.raw");
    assert_eq!(taken["bytes"], 1_u64 << 40);
    assert!(taken["bytes_read"].as_u64().unwrap() < 1 << 20, "{taken}");
    firn.ok("restore big out.raw");
    let restored = firn.path("out.raw").metadata().unwrap();
    assert!(restored.len() == 1 << 40 && restored.blocks() < 4096, "{restored:?}");
    if have("a_sparse_tebibyte_takes_seconds_and_stays_sparse", &["qemu-img"]) {
        firn.ok("restore big out.qcow2");
        tool(firn.folder(), "qemu-img", &["check", "-q", "out.qcow2"]);
        let image = "driver=qcow2,file.filename=out.qcow2";
        tool(firn.folder(), "qemu-img", &["compare", "-q", "--image-opts", image, "driver=raw,file.filename=big.raw"]);
    }
}

#[test]
fn images_of_each_format_with_their_chains() {
    if !have("images_of_each_format_with_their_chains", &["qemu-img", "qemu-io"]) {
        return;
    }
    let firn = Firn::with_pool();
    let qemu = |words: &str| tool(firn.folder(), "qemu-img", &words.split(' ').collect::<Vec<_>>());
    let write =
        |image: &str, format: &str, what: &str| tool(firn.folder(), "qemu-io", &["-f", format, "-c", what, image]);
    let first = mixed_disk(4 << 20, 1);
    firn.write("a.raw", &first);
    qemu("convert -f raw -O qcow2 a.raw base.qcow2");
    qemu("snapshot -c before base.qcow2");
    write("base.qcow2", "qcow2", "write -P 9 1M 64k");
    std::fs::create_dir(firn.path("top")).unwrap();
    qemu("create -q -f qcow2 -b base.qcow2 -F qcow2 near.qcow2");
    qemu("create -q -f qcow2 -b ../base.qcow2 -F qcow2 top/far.qcow2");
    write("near.qcow2", "qcow2", "write -P 5 3M 4k");
    let mut second = first.clone();
    second[1 << 20..(1 << 20) + 65536].fill(9);
    let mut third = second.clone();
    third[3 << 20..(3 << 20) + 4096].fill(5);
    for subformat in ["monolithicSparse", "monolithicFlat", "twoGbMaxExtentSparse", "streamOptimized"] {
        qemu(&format!("convert -f raw -O vmdk -o subformat={subformat} a.raw {subformat}.vmdk"));
        firn.ok(&format!("snap web1 {subformat}.vmdk"));
        assert!(firn.raw("web1") == first, "{subformat}");
    }
    for (disk, expected) in [
        ("a.raw", &first),
        ("base.qcow2", &second),
        ("base.qcow2@before", &first),
        ("base.qcow2@1", &first),
        ("near.qcow2", &third),
    ] {
        firn.ok(&format!("snap web1 root={disk}"));
        assert!(firn.raw("web1") == *expected, "{disk}");
        // Again, from the source that the pool remembers.
        firn.ok("snap web1");
        assert!(firn.raw("web1") == *expected, "{disk}");
    }
    // From outside of its folder only what the user allows.
    firn.fails(5, "snap web1 top/far.qcow2", &["outside the image's own folder", "--allow-backing"]);
    firn.ok("snap web1 top/far.qcow2 --allow-backing .");
    assert!(firn.raw("web1") == second);
    firn.fails(5, "snap web1", &["--allow-backing"]);
    firn.fails(4, "snap web1 top/far.qcow2 --allow-backing nowhere", &["nowhere"]);
    firn.fails(4, "snap web1 base.qcow2@after", &["no internal snapshot \"after\"", "before"]);
    // The file as it is, whatever stands in it.
    firn.ok("snap file base.qcow2 --input-format raw");
    assert!(firn.raw("file") == firn.read("base.qcow2"));
    let run = firn.run("snap file a.raw --input-format qcow2");
    assert!(matches!(run.code, 3 | 7) && run.stderr.contains("a.raw: qcow2 header"), "{}", run.stderr);
    firn.fails(2, "snap file a.raw --input-format qed", &["the formats are raw, qcow2, vmdk, vhd, vhdx and vdi"]);
    std::fs::remove_file(firn.path("base.qcow2")).unwrap();
    firn.fails(4, "snap web1 near.qcow2", &["backing file", "base.qcow2"]);
    assert!(firn.raw("web1") == second, "what is in the pool does not need the image");
    firn.ok("verify --read-data");
}

#[test]
fn a_chain_that_loops_and_headers_that_overflow_are_refused() {
    if !have("a_chain_that_loops_and_headers_that_overflow_are_refused", &["qemu-img"]) {
        return;
    }
    let firn = Firn::with_pool();
    let qemu = |words: &str| tool(firn.folder(), "qemu-img", &words.split(' ').collect::<Vec<_>>());
    qemu("create -q -f qcow2 a.qcow2 1M");
    qemu("create -q -f qcow2 -b a.qcow2 -F qcow2 b.qcow2");
    qemu("rebase -u -b b.qcow2 -F qcow2 a.qcow2");
    firn.fails(3, "snap web1 b.qcow2", &["qcow2"]);
    firn.fails(3, "restore a.qcow2 out.raw", &["qcow2"]);
    qemu("create -q -f vmdk c.vmdk 1M");
    // qcow2: size at 24, L1 entries at 36, cluster bits at 20. VMDK: capacity at 12, grain at 20, all in sectors.
    for (image, at, bytes, what) in [
        ("a.qcow2", 24, &[0xFF_u8; 8][..], "size"),
        ("a.qcow2", 24, &[0x7F, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFE, 0][..], "size near 2^63"),
        ("a.qcow2", 36, &[0xFF; 4][..], "L1 entries"),
        ("a.qcow2", 40, &[0xFF; 8][..], "L1 offset"),
        ("a.qcow2", 20, &[0, 0, 0, 63][..], "cluster bits"),
        ("c.vmdk", 12, &[0xFF; 8][..], "capacity"),
        ("c.vmdk", 20, &[0xFF; 8][..], "grain size"),
        ("c.vmdk", 44, &[0xFF; 4][..], "entries in a grain table"),
        ("c.vmdk", 56, &[0xFF; 8][..], "grain directory"),
    ] {
        let mut image_bytes = firn.read(image);
        if image == "a.qcow2" {
            // Without its backing file.
            image_bytes[8..20].fill(0);
        }
        image_bytes[at..at + bytes.len()].copy_from_slice(bytes);
        firn.write("bad.img", image_bytes);
        let run = firn.run("snap web1 bad.img");
        assert!(matches!(run.code, 3 | 7), "{what}: {} {}", run.code, run.stderr);
        assert!(run.stderr.contains("bad.img"), "{what}: {}", run.stderr);
    }
    assert!(firn.objects("snap").is_empty());
}
