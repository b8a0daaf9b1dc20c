//! look, ls, cat, hash, stat, and what ties them together.

use crate::support::{Mounted, can_mount, file_sum, firn, firn_ok, has, make_ext4, make_tree, shell};
use serde_json::Value;
use std::path::{Path, PathBuf};

fn lvm_data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../firn-format/tests/data/lvm")
}

#[test]
fn every_listing_tells_the_same_as_the_tree_that_was_put_in() {
    if !has("every_listing_tells_the_same_as_the_tree_that_was_put_in", &["mkfs.ext4", "sha256sum", "find"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let tree = make_tree(at);
    make_ext4(&tree, &at.join("fs.img"), 48, "");
    let before = file_sum(&at.join("fs.img"));

    let theirs = shell(&tree, "LC_ALL=C ls -A --show-control-chars -N");
    let ours = String::from_utf8_lossy(&firn_ok(at, &["ls", "fs.img"]).out).replace("lost+found\n", "");
    assert_eq!(ours, theirs);
    let theirs = shell(&tree, "LC_ALL=C ls -AR var");
    let ours = firn_ok(at, &["ls", "-R", "fs.img:/var"]);
    assert_eq!(ours.text().replace("/var", "var"), theirs);

    // sha256sum itself accepts the list, strange names included, and it is sorted and complete.
    let hashed = firn_ok(at, &["hash", "fs.img"]);
    std::fs::write(at.join("list"), &hashed.out).unwrap();
    shell(&tree, "sha256sum --quiet --strict -c ../list");
    let count = shell(&tree, "find . -type f -printf x").len();
    assert_eq!(hashed.out.iter().filter(|byte| **byte == b'\n').count(), count);
    let paths: Vec<&[u8]> = hashed.out.split(|byte| *byte == b'\n').filter_map(|line| line.get(66..)).collect();
    let plain: Vec<_> = paths.into_iter().filter(|path| path.starts_with(b"./var")).collect();
    assert!(plain.is_sorted() && plain.len() > 300);

    let long = firn_ok(at, &["ls", "-l", "fs.img:/etc"]);
    let hosts = long.text().lines().find(|line| line.ends_with(" hosts")).unwrap();
    assert!(hosts.starts_with("-rw-r----- 1 ") && hosts.contains(" 6 2001-02-03 04:05:06 "), "{hosts}");
    assert!(long.text().contains(" os-release -> ../usr/lib/os-release\n"));
    assert_eq!(
        firn_ok(at, &["cat", "fs.img:/etc/os-release", "fs.img:/var/nothing", "fs.img:/etc/hosts"]).text(),
        "NAME=\"Test\"\nhello\n"
    );
    assert_eq!(firn_ok(at, &["cat", "fs.img:/var/sparse"]).out, std::fs::read(tree.join("var/sparse")).unwrap());

    let stat = firn_ok(at, &["--json", "stat", "fs.img:/var/sparse"]).json();
    assert_eq!((&stat["size"], &stat["type"]), (&Value::from(20 << 20), &Value::from("file")));
    assert_eq!(stat["extents"]["data"]["count"], 1);
    let stat = firn_ok(at, &["stat", "fs.img:/absolute"]);
    assert!(stat.text().contains("/absolute -> /usr/lib/os-release"), "{}", stat.text());

    let listed = firn_ok(at, &["--json", "ls", "-R", "fs.img:/"]).json();
    let entries = listed["entries"].as_array().unwrap();
    let odd = entries.iter().find(|entry| entry["name_hex"].is_string()).unwrap();
    assert_eq!((&odd["name"], &odd["name_hex"]), (&Value::from("bytes\\xff"), &Value::from("6279746573ff")));
    let hosts = entries.iter().find(|entry| entry["path"] == "etc/hosts").unwrap();
    assert_eq!((&hosts["mode"], &hosts["modified"]), (&"0640".into(), &"2001-02-03T04:05:06.000000000Z".into()));
    assert_eq!(file_sum(&at.join("fs.img")), before);
}

#[test]
fn lvm_in_a_vmdk_with_its_journals_replayed() {
    let data = lvm_data();
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    std::fs::copy(data.join("web1.vmdk"), at.join("web1.vmdk")).unwrap();
    let list = |name: &str| std::fs::read_to_string(data.join(name)).unwrap();
    let hash = |address: &str| firn_ok(at, &["hash", address]).text().to_owned();
    // Two file systems; the one that a Linux is on is found.
    assert_eq!(hash("web1.vmdk"), list("root.sha256"));
    assert_eq!(hash("web1.vmdk#system/old"), list("old.sha256"));
    assert_ne!(firn(at, &["hash", "--no-replay", "web1.vmdk#system/old"]).text(), list("old.sha256"));
    let look = firn_ok(at, &["look", "web1.vmdk"]);
    for word in ["streamOptimized", "system/root", "ext4", "replayed ", "LVM2 PV", "32.0 MiB"] {
        assert!(look.text().contains(word), "{word}: {}", look.text());
    }
    assert!(look.text().lines().all(|line| line.chars().count() <= 100), "{}", look.text());
    let look = firn_ok(at, &["--json", "look", "web1.vmdk"]).json();
    assert_eq!(look["images"][0]["subformat"], "streamOptimized");
    assert_eq!(look["layers"][0]["children"][0]["children"][0]["address"], "#vda1");

    // Written with the journals replayed, nothing is left to replay, and the files are the same.
    let restored = firn_ok(at, &["restore", "--replayed", "web1.vmdk", "out.qcow2"]);
    assert!(restored.err.contains("replayed "), "{}", restored.err);
    for (layer, name) in [("system/root", "root.sha256"), ("system/old", "old.sha256")] {
        let address = format!("out.qcow2#{layer}");
        assert_eq!(firn_ok(at, &["hash", "--no-replay", &address]).text(), list(name));
        assert!(!firn_ok(at, &["look", &address]).text().contains("replayed "));
    }
}

#[test]
fn e2fsck_accepts_what_was_restored_with_its_journal_replayed() {
    let name = "e2fsck_accepts_what_was_restored_with_its_journal_replayed";
    if !can_mount(name) || !has(name, &["e2fsck", "sfdisk"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    shell(
        at,
        "truncate -s 34M disk.raw; printf 'label: dos\nstart=2048, size=65536\n' | sfdisk -q disk.raw
               mkfs.ext4 -q -F -E offset=1048576 disk.raw 32M",
    );
    {
        let mounted = Mounted::new(&at.join("disk.raw"), at.join("mnt"), "loop,offset=1048576,commit=300");
        shell(&mounted.0, "mkdir a; for n in $(seq 50); do echo $n >a/$n; sync a/$n; done; sync a; rm a/7; sync a");
        // While it is mounted, as after a power cut.
        shell(at, "cp disk.raw dirty.raw");
    }
    let before = file_sum(&at.join("dirty.raw"));
    assert_eq!(firn_ok(at, &["cat", "dirty.raw:/a/50"]).text(), "50\n");
    firn_ok(at, &["restore", "--replayed", "dirty.raw", "out.raw"]);
    shell(at, "e2fsck -fn 'out.raw?offset=1048576'");
    assert_eq!(firn_ok(at, &["ls", "--no-replay", "out.raw:/a"]).text().lines().count(), 49);
    assert_eq!(file_sum(&at.join("dirty.raw")), before);
}

#[test]
fn a_choice_between_file_systems_is_the_users() {
    if !has("a_choice_between_file_systems_is_the_users", &["mkfs.ext4", "sfdisk"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    shell(
        at,
        "mkdir one two; echo 1 >one/file; echo 2 >two/file; truncate -s 20M disk.raw
         printf 'label: gpt\nstart=2048, size=16384\nsize=16384\n' | sfdisk -q disk.raw",
    );
    make_ext4(&at.join("one"), &at.join("one.img"), 8, "-L first -U 11111111-2222-3333-4444-555555555555");
    make_ext4(&at.join("two"), &at.join("two.img"), 8, "-L second");
    shell(
        at,
        "dd if=one.img of=disk.raw bs=1M seek=1 conv=notrunc status=none; dd if=two.img of=disk.raw bs=1M seek=9 conv=notrunc status=none",
    );
    let run = firn(at, &["cat", "disk.raw:/file"]);
    assert_eq!(run.code, 2, "{}", run.err);
    assert!(run.err.contains("#vda1") && run.err.contains("#vda2") && run.err.contains("\"second\""), "{}", run.err);
    for (address, expected) in [
        ("disk.raw#vda2:/file", "2\n"),
        ("disk.raw#first:/file", "1\n"),
        ("disk.raw#11111111-2222-3333-4444-555555555555:/file", "1\n"),
        ("one.img,two.img#vdb:/file", "2\n"),
    ] {
        assert_eq!(firn_ok(at, &["cat", address]).text(), expected, "{address}");
    }
    let run = firn_ok(at, &["cat", "--image", "disk.raw", "--layer", "vda2", "--path", "/file"]);
    assert_eq!(run.text(), "2\n");
    for (arguments, code) in [
        (["ls", "disk.raw#vda9"], 4),
        (["ls", "nothing.raw"], 4),
        (["ls", "./nothing.raw:/etc"], 4),
        (["ls", "disk.raw#vda1:/nope"], 4),
        (["cat", "disk.raw#vda1:/"], 2),
        (["stat", "disk.raw#vda1:C:/x"], 7),
        (["look", "disk.raw:/file"], 2),
    ] {
        let run = firn(at, &arguments);
        assert_eq!(run.code, code, "{arguments:?}: {}", run.err);
        let json = firn(at, &["--json", arguments[0], arguments[1]]);
        let document: Value = serde_json::from_str(json.err.lines().last().unwrap()).unwrap();
        assert!(document["error"]["message"].is_string());
    }
}

#[test]
fn what_is_broken_is_shown_beside_the_rest() {
    if !has("what_is_broken_is_shown_beside_the_rest", &["mkfs.ext4", "sfdisk", "mkswap"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    shell(
        at,
        "mkdir one; truncate -s 32M disk.raw
         printf 'label: gpt\nstart=2048, size=16384\nsize=16384\nsize=16384\n' | sfdisk -q disk.raw
         truncate -s 8M swap; mkswap -q -L sleepy swap; dd if=swap of=disk.raw bs=1M seek=17 conv=notrunc status=none",
    );
    make_ext4(&at.join("one"), &at.join("one.img"), 8, "-L good");
    make_ext4(&at.join("one"), &at.join("two.img"), 8, "-L bad");
    // The feature bits of what nobody knows yet.
    shell(
        at,
        "printf '\\x80' | dd of=two.img bs=1 seek=1123 conv=notrunc status=none
               dd if=one.img of=disk.raw bs=1M seek=1 conv=notrunc status=none
               dd if=two.img of=disk.raw bs=1M seek=9 conv=notrunc status=none",
    );
    let look = firn_ok(at, &["look", "disk.raw"]);
    for word in ["ext4 \"good\"", "ext4 \"bad\"", "! ", "swap \"sleepy\"", "vda3"] {
        assert!(look.text().contains(word), "{word}: {}", look.text());
    }
    shell(at, "head -c 1000000 /dev/zero >zeros");
    assert!(firn_ok(at, &["look", "zeros"]).text().contains("nothing recognised"));
}
