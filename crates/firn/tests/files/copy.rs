//! cp: what comes out is what went in.

use crate::support::{
    Mounted, assert_same, can_mount, describe, file_sum, firn, firn_ok, has, make_ext4, make_tree, shell,
};
use std::os::unix::fs::MetadataExt;

#[test]
fn a_tree_comes_out_of_every_format_and_out_of_a_pool_as_it_went_in() {
    let name = "a_tree_comes_out_of_every_format_and_out_of_a_pool_as_it_went_in";
    if !has(name, &["mkfs.ext4", "sfdisk", "qemu-img"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let tree = make_tree(at);
    make_ext4(&tree, &at.join("fs.img"), 48, "-L root");
    shell(
        at,
        "truncate -s 50M disk.raw; printf 'label: gpt\nstart=2048, size=98304, name=data\n' | sfdisk -q disk.raw
         dd if=fs.img of=disk.raw bs=1M seek=1 conv=notrunc status=none
         for f in vmdk qcow2; do qemu-img convert -O $f disk.raw disk.$f; done
         qemu-img convert -O vmdk -o subformat=streamOptimized disk.raw stream.vmdk",
    );
    let pool = at.join("pool");
    let pool = pool.to_str().unwrap();
    firn_ok(at, &["init", "--no-password", pool]);
    firn_ok(at, &["--pool", pool, "snap", "web1", "disk.qcow2"]);
    // mkfs keeps whole seconds only.
    shell(&tree, "find . -print0 | while IFS= read -r -d '' f; do touch -h -d @$(stat -c %Y \"$f\") \"$f\"; done");
    let expected = describe(&tree, false);
    let before = file_sum(&at.join("disk.raw"));
    let images = ["fs.img", "disk.raw", "disk.vmdk", "disk.qcow2", "stream.vmdk", "disk.vmdk#vda1", "web1@latest"];
    for (number, image) in images.iter().enumerate() {
        let out = format!("out{number}");
        firn_ok(at, &["--pool", pool, "cp", "-r", &format!("{image}:/"), &out]);
        assert_same(&describe(&at.join(&out), false), &expected);
        let sparse = std::fs::metadata(at.join(&out).join("var/sparse")).unwrap();
        assert!(sparse.blocks() * 512 < 1 << 20, "{image}: {} blocks", sparse.blocks());
    }
    assert_eq!(file_sum(&at.join("disk.raw")), before);
}

#[test]
fn owners_times_lists_and_special_files_are_as_the_kernel_shows_them() {
    let name = "owners_times_lists_and_special_files_are_as_the_kernel_shows_them";
    if !can_mount(name) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let image = at.join("fs.img");
    shell(at, "truncate -s 32M fs.img; mkfs.ext4 -q -F fs.img");
    {
        let mounted = Mounted::new(&image, at.join("mnt"), "loop");
        make_tree(&mounted.0);
        shell(
            &mounted.0,
            "cd tree; chown 1234:70000 etc/hosts; chown -h 5:6 absolute; setfacl -m u:4321:rw etc/hosts
             setfacl -d -m g:99:rx var/log; mknod null c 1 3; mknod disk b 259 300000; mkfifo pipe
             cp /bin/true suid; chmod 6755 suid; chmod 2775 var/log; chmod 1777 empty
             setfattr -n user.note -v hello etc/hosts; setfattr -n trusted.secret -v x var/large
             touch -d '1950-01-01 00:00:00.123456789' var/nothing
             python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"socket\")' || true",
        );
    }
    let before = file_sum(&image);
    let plain = firn_ok(at, &["cp", "-r", "fs.img:/tree", "plain"]);
    assert!(plain.err.contains("/null: left out") || plain.err.contains("null: left out"), "{}", plain.err);
    assert!(plain.err.contains("without setuid"), "{}", plain.err);
    assert!(!at.join("plain/null").exists() && !at.join("plain/pipe").exists());
    let mode = |path: &str| std::fs::metadata(at.join(path)).unwrap().mode() & 0o7777;
    assert_eq!((mode("plain/suid"), mode("plain/var/log"), mode("plain/empty")), (0o755, 0o2775, 0o1777));

    let all = firn_ok(at, &["cp", "-r", "--devices", "--setuid", "fs.img:/tree", "all"]);
    assert_eq!(all.err, "");
    let mounted = Mounted::new(&image, at.join("mnt"), "loop,ro,noatime,noload");
    let expected = describe(&mounted.0.join("tree"), true);
    assert!(expected.len() > 320 && expected.values().any(|text| text.contains("posix_acl_default")));
    assert_same(&describe(&at.join("all"), true), &expected);
    drop(mounted);
    assert_eq!(file_sum(&image), before);

    // Into what exists: refused one by one, replaced by force, and the second time nothing differs.
    let again = firn(at, &["cp", "-r", "--devices", "--setuid", "fs.img:/tree", "."]);
    assert_eq!(again.code, 0, "{}", again.err);
    let again = firn(at, &["cp", "-r", "--devices", "--setuid", "fs.img:/tree", "."]);
    assert_eq!(again.code, 1);
    assert!(again.err.contains("it is there already"), "{}", again.err);
    firn_ok(at, &["cp", "-r", "--force", "--devices", "--setuid", "fs.img:/tree", "."]);
    assert_same(&describe(&at.join("tree"), true), &expected);
}

#[test]
fn one_file_goes_where_cp_would_put_it() {
    if !has("one_file_goes_where_cp_would_put_it", &["mkfs.ext4"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let tree = make_tree(at);
    make_ext4(&tree, &at.join("fs.img"), 48, "");
    std::fs::create_dir(at.join("into")).unwrap();
    let read = |path: &str| std::fs::read(at.join(path)).unwrap();
    firn_ok(at, &["cp", "fs.img:/etc/hosts", "into"]);
    firn_ok(at, &["cp", "fs.img:/etc/hosts", "into/other"]);
    firn_ok(at, &["cp", "-i", "fs.img", "--path", "/absolute", "into"]);
    assert_eq!((read("into/hosts"), read("into/other")), (b"hello\n".to_vec(), b"hello\n".to_vec()));
    assert_eq!(read("into/absolute"), b"NAME=\"Test\"\n");
    assert_eq!(firn_ok(at, &["cp", "fs.img:/var/large", "-"]).out, std::fs::read(tree.join("var/large")).unwrap());
    // A link by itself stays one with -r.
    firn_ok(at, &["cp", "-r", "fs.img:/absolute", "into/link"]);
    assert_eq!(std::fs::read_link(at.join("into/link")).unwrap().to_str(), Some("/usr/lib/os-release"));

    for (arguments, code, what) in [
        (vec!["cp", "fs.img:/etc/hosts", "into"], 1, "--force"),
        (vec!["cp", "fs.img:/etc", "into"], 2, "add -r"),
        (vec!["cp", "fs.img:/nope", "into"], 4, "/nope"),
        (vec!["cp", "fs.img:/etc/hosts", "no/such/folder"], 4, "no such folder"),
        (vec!["cp", "fs.img:/etc/hosts", "new/"], 4, "no such folder"),
        (vec!["cp", "fs.img", "into"], 2, "names no file"),
        (vec!["cp", "fs.img:/etc/hosts"], 2, "DEST"),
        (vec!["cp", "fs.img:/loop", "into"], 2, "40 symbolic links"),
        (vec!["cp", "fs.img:/dangling", "into"], 4, "/nowhere"),
    ] {
        let run = firn(at, &arguments);
        assert_eq!(run.code, code, "{arguments:?}: {}", run.err);
        assert!(run.err.contains(what), "{arguments:?}: {}", run.err);
    }
    std::fs::write(at.join("into/hosts"), "old").unwrap();
    firn_ok(at, &["cp", "--force", "fs.img:/etc/hosts", "into"]);
    assert_eq!(read("into/hosts"), b"hello\n");
    let left: Vec<_> = std::fs::read_dir(at.join("into")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().starts_with(".firn")), "{left:?}");
    let json = firn_ok(at, &["--json", "cp", "-r", "fs.img:/var", "into"]).json();
    assert_eq!((json["files"].as_u64(), json["hard_links"].as_u64()), (Some(303), Some(1)));
}
