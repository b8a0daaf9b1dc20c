//! A pool that is damaged, too new, read-only or somebody else's; a cache that cannot be used.
//!
//! Each ends in one clear error, and every snapshot that can be read still is.

use crate::support::{Firn, check_failure, finish, have, mixed_disk, mount, tool};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// web1 with two snapshots that share nothing, and what they hold.
fn two_snapshots() -> (Firn, [Vec<u8>; 2]) {
    let firn = Firn::with_pool();
    let contents = [1, 2].map(|seed| mixed_disk(3 << 20, seed));
    for content in &contents {
        firn.write("a.raw", content);
        firn.ok("snap web1 a.raw");
    }
    (firn, contents)
}

/// Changes an object in place.
fn change(object: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(object).unwrap();
    change(&mut bytes);
    std::fs::write(object, bytes).unwrap();
}

fn flip(object: &Path, part: f64) {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "about there"
    )]
    change(object, |bytes| {
        let at = (bytes.len() as f64 * part) as usize;
        bytes[at] ^= 0x10;
    });
}

/// Sets a bit of the frame of a small object, and makes its checksum hold again.
fn set_bit(object: &Path, at: usize, bit: u8) {
    change(object, |bytes| {
        bytes[at] |= bit;
        let end = bytes.len() - 32;
        let checksum = blake3::hash(&bytes[..end]);
        bytes[end..].copy_from_slice(checksum.as_bytes());
    });
}

/// Both copies of the manifest of web1's snapshot `number`, from 1.
fn manifests(firn: &Firn, number: u64) -> Vec<PathBuf> {
    let start = format!("{number:016x}-");
    let is_it = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with(&start);
    let found: Vec<_> = firn.objects("snap").into_iter().filter(is_it).collect();
    assert_eq!(found.len(), 2);
    found
}

/// The packs of chunks that the second snapshot made.
fn second_pack(firn: &Firn) -> PathBuf {
    let packs = firn.objects("data");
    assert_eq!(packs.len(), 2);
    packs.into_iter().max_by_key(|pack| pack.metadata().unwrap().modified().unwrap()).unwrap()
}

#[test]
fn features_that_are_not_known_are_refused_by_name() {
    let (firn, contents) = two_snapshots();
    let headers = [firn.path("pool/header-a"), firn.path("pool/header-b")];
    let sound = headers.each_ref().map(|header| std::fs::read(header).unwrap());
    // Compat features do not matter, rocompat ones forbid writing, incompat ones everything.
    headers.iter().for_each(|header| set_bit(header, 23, 0x80));
    firn.ok("snap web1");
    headers.iter().for_each(|header| set_bit(header, 19, 0x80));
    assert!(firn.raw("web1") == contents[1]);
    firn.ok("verify --read-data");
    for arguments in ["snap web1", "snap web2 a.raw", "pool rebuild-index"] {
        firn.fails(7, arguments, &["features that this firn can read but not write", "newer firn"]);
    }
    headers.iter().for_each(|header| set_bit(header, 15, 0x80));
    for arguments in ["list", "snap web1", "restore web1 out", "verify", "verify --scrub", "key list", "pool info"] {
        firn.fails(7, arguments, &["pool", "unknown features 0x80000000", "a newer firn wrote this pool"]);
    }
    for (header, bytes) in headers.iter().zip(&sound) {
        std::fs::write(header, bytes).unwrap();
        set_bit(header, 9, 1);
    }
    firn.fails(7, "list", &["format version 1 is not known", "newer firn"]);
    for (header, bytes) in headers.iter().zip(sound) {
        std::fs::write(header, bytes).unwrap();
    }
    firn.ok("list");
    // A snapshot of a newer firn among others.
    manifests(&firn, 2).iter().for_each(|manifest| set_bit(manifest, 12, 1));
    firn.fails(7, "restore web1@latest~1 out", &["web1@latest~1 names cannot be read", "unknown features 0x1"]);
    assert!(firn.raw("web1@first") == contents[0]);
}

/// Restores `web1` to `out`: zeros stand where it says so, and `wanted` everywhere else.
fn restored_but_for_damage(firn: &Firn, out: &str, wanted: &[u8], pack: &str) {
    let run = firn.run(&format!("restore web1 {out} --json"));
    assert!(run.code == 3 && run.stderr.contains(pack), "{out}: {}", run.stderr);
    let document: serde_json::Value = serde_json::from_str(run.text()).unwrap();
    let mut expected = wanted.to_vec();
    let ranges = document["disks"][0]["damaged"].as_array().unwrap();
    for range in ranges {
        let bound = |name: &str| usize::try_from(range[name].as_u64().unwrap()).unwrap();
        assert!(expected[bound("start")..bound("end")].iter().any(|byte| *byte != 0), "{out}: {range}");
        expected[bound("start")..bound("end")].fill(0);
    }
    assert!(!ranges.is_empty() && expected != wanted, "{out}");
    assert!(firn.raw(out) == expected, "{out}");
}

#[test]
fn a_damaged_missing_or_cut_pack_fails_what_needs_it_and_nothing_else() {
    type Damage = fn(&Path);
    let damages: [(&str, Damage, bool); 4] = [
        ("flipped", |pack| flip(pack, 0.5), false),
        ("directory", |pack| change(pack, |bytes| bytes[0] ^= 1), false),
        ("cut", |pack| change(pack, |bytes| bytes.truncate(bytes.len() / 2)), true),
        ("missing", |pack| std::fs::remove_file(pack).unwrap(), true),
    ];
    for (what, damage, heals) in damages {
        let (firn, contents) = two_snapshots();
        let pack = second_pack(&firn);
        let name = pack.strip_prefix(firn.path("pool")).unwrap().to_str().unwrap().to_owned();
        damage(&pack);
        if what != "directory" {
            for out in ["out.raw", "out.qcow2", "out.vmdk"] {
                restored_but_for_damage(&firn, out, &contents[1], &name);
            }
            let run = firn.run("restore web1 -");
            assert!(run.code == 3 && run.stderr.contains(&name), "{what}: {}", run.stderr);
            assert!(run.stdout == firn.read("out.raw"), "{what}");
            firn.fails(3, "restore web1 out.raw --in-place", &[&name]);
        }
        firn.assert_tidy("");
        assert!(firn.raw("web1@first") == contents[0], "{what}");
        for arguments in ["verify", "verify --read-data", "verify --scrub"] {
            let run = firn.run(&format!("{arguments} --json"));
            assert_eq!(
                run.code,
                if arguments.contains("scrub") && what == "missing" { 0 } else { 3 },
                "{what} {arguments}"
            );
            let report: serde_json::Value = serde_json::from_str(run.text()).unwrap();
            let snapshots = report["damaged_snapshots"].as_array().unwrap();
            let expected = usize::from(!arguments.contains("scrub") && what != "directory");
            assert_eq!(snapshots.len(), expected, "{what} {arguments}: {report}");
            if let Some(damaged) = snapshots.first() {
                // What verify calls it is an address.
                let address = damaged["snapshot"].as_str().unwrap();
                assert_eq!(firn.json(&format!("show {address}"))["uuid"], firn.snapshots("web1")[1].as_str());
            }
        }
        let text = firn.run("verify");
        assert!(text.code == 3 && text.text().contains("Damage was found"), "{what}: {}", text.text());
        // The source still has the data: the next snapshot brings it back, for the old one, too.
        if heals {
            let again = firn.json("snap web1");
            assert!(again["bytes_stored"].as_u64().unwrap() > 0, "{what}: {again}");
            assert!(firn.raw("web1@latest~1") == contents[1] && firn.raw("web1") == contents[1], "{what}");
            let run = firn.run("verify --read-data --json");
            let report: serde_json::Value = serde_json::from_str(run.text()).unwrap();
            assert_eq!(report["damaged_snapshots"].as_array().unwrap().len(), 0, "{what}: {report}");
            firn.ok("verify --quick");
        }
    }
}

#[test]
fn what_is_stored_twice_may_lose_one() {
    for (copy, is_lost) in [("-a", false), ("-b", false), ("-a", true), ("-b", true)] {
        let (firn, contents) = two_snapshots();
        let copies: Vec<_> =
            firn.objects("").into_iter().filter(|object| object.to_str().unwrap().ends_with(copy)).collect();
        assert!(copies.len() >= 6, "header, key, manifests and nodes: {copies:?}");
        for object in &copies {
            if is_lost { std::fs::remove_file(object).unwrap() } else { flip(object, 0.7) }
        }
        assert!(firn.raw("web1") == contents[1] && firn.raw("web1@first") == contents[0], "{copy}");
        let run = firn.run("verify");
        assert!(run.code == 3 && run.text().contains("Every snapshot can still be read whole"), "{}", run.text());
        assert!(run.text().contains("header") && !run.text().contains("damaged snapshot"), "{}", run.text());
        let document: serde_json::Value = serde_json::from_str(firn.run("verify --json").text()).unwrap();
        assert_eq!(document["damaged_objects"].as_array().unwrap().len(), copies.len(), "{document}");
        firn.ok("snap web1");
        assert!(firn.raw("web1") == contents[1]);
    }
}

#[test]
fn a_snapshot_that_cannot_be_read_is_not_replaced_by_another() {
    let (firn, contents) = two_snapshots();
    manifests(&firn, 2).iter().for_each(|manifest| flip(manifest, 0.9));
    for address in ["web1", "web1@latest", "web1@2999"] {
        let parts = ["cannot be read", "its checksum does not hold", "can be read is web1@latest~1"];
        firn.fails(3, &format!("restore {address} out.raw"), &parts);
        firn.fails(3, &format!("show {address}"), &parts);
    }
    firn.fails(3, "forget web1@latest", &["cannot be read"]);
    firn.fails(3, "snap web1", &["its checksum does not hold"]);
    for address in ["web1@first", "web1@latest~1"] {
        assert!(firn.raw(address) == contents[0]);
    }
    let run = firn.run("list --json");
    let list: serde_json::Value = serde_json::from_str(run.text()).unwrap();
    assert!(run.code == 3 && run.stderr.contains("warning: a snapshot of web1 cannot be read"), "{}", run.stderr);
    assert_eq!(list["machines"][0]["snapshots"].as_array().unwrap().len(), 1);
    assert_eq!(list["machines"][0]["unreadable"][0]["sequence"], 2);
    let run = firn.run("verify --quick");
    assert!(run.code == 3 && run.text().contains("damaged snapshot web1@"), "{}", run.text());
    // Rules leave alone what they cannot read.
    firn.ok("forget --keep-last 1");
    assert_eq!(firn.objects("snap").len(), 4);
    // Named disks are taken all the same, and the newest can be read again.
    firn.ok("snap web1 a.raw");
    assert!(firn.raw("web1") == contents[1]);
    firn.fails(3, "show web1@latest~1", &["can be read is web1@latest~2"]);
    assert!(firn.raw("web1@latest~2") == contents[0]);
}

#[test]
fn a_header_or_key_that_is_lost_in_both_copies_is_told() {
    let (firn, _) = two_snapshots();
    for object in firn.objects("key") {
        flip(&object, 0.5);
    }
    firn.fails(3, "list", &["pool/key/", "its checksum does not hold", "use another password"]);
    let (firn, _) = two_snapshots();
    for copy in ["a", "b"] {
        flip(&firn.path(&format!("pool/header-{copy}")), 0.5);
    }
    for arguments in ["list", "verify", "verify --scrub", "snap web1", "restore web1 out"] {
        firn.fails(3, arguments, &["pool: pool header: its checksum does not hold"]);
    }
    // A stranger's header under the right checksum is not believed.
    let (firn, other) = (Firn::with_pool(), Firn::with_pool());
    for copy in ["header-a", "header-b"] {
        std::fs::copy(other.path("pool").join(copy), firn.path("pool").join(copy)).unwrap();
    }
    let run = firn.run("list");
    assert!(matches!(run.code, 3 | 5), "{} {}", run.code, run.stderr);
}

#[test]
fn what_does_not_belong_into_a_pool_does_not_disturb() {
    let (firn, contents) = two_snapshots();
    let machine = firn.objects("snap")[0].parent().unwrap().to_path_buf();
    // What a killed writer leaves, and what file systems have at their root.
    std::fs::write(machine.join("0000000000000009-00000000000000000000000000000000-a#1"), "half").unwrap();
    std::fs::write(firn.path("pool/header-a#1"), "half").unwrap();
    std::fs::create_dir(firn.path("pool/lost+found")).unwrap();
    std::fs::write(firn.path("pool/lost+found/#12345"), "lost").unwrap();
    firn.ok("verify --read-data");
    assert!(firn.raw("web1") == contents[1]);
    firn.ok("snap web1");
    std::fs::create_dir_all(firn.path("disk/lost+found")).unwrap();
    firn.ok("init disk --no-password");
    // A stranger's file is told of, and nothing else happens.
    std::fs::write(firn.path("pool/notes.txt"), "mine").unwrap();
    let run = firn.run("verify");
    assert!(run.code == 3 && run.text().contains("notes.txt: no pool has an object of this name"), "{}", run.text());
    assert!(firn.raw("web1") == contents[1]);
}

#[test]
fn a_cache_that_cannot_be_used_is_done_without() {
    let (mut firn, contents) = two_snapshots();
    firn.write("file", "");
    for (home, cache) in [("", ""), ("/nonexistent", ""), ("", "relative"), ("", "file"), ("", "file/below")] {
        let cache =
            if cache.starts_with("file") { firn.path(cache).to_str().unwrap().to_owned() } else { cache.to_owned() };
        firn.set("HOME", home);
        firn.set("XDG_CACHE_HOME", cache);
        assert!(firn.raw("web1") == contents[1]);
        firn.ok("snap web1");
        firn.ok("verify");
    }
    assert!(!firn.exists("relative"));
    // Damaged files in the cache are made again.
    firn.set("XDG_CACHE_HOME", firn.path("cache").to_str().unwrap());
    firn.ok("list");
    let cached = || {
        let pools = std::fs::read_dir(firn.path("cache/firn")).unwrap().flatten();
        pools.flat_map(|pool| std::fs::read_dir(pool.path()).unwrap().flatten()).map(|file| file.path())
    };
    assert!(cached().count() > 0);
    for file in cached() {
        flip(&file, 0.1);
    }
    assert!(firn.raw("web1") == contents[1]);
    for file in cached() {
        change(&file, |bytes| bytes.truncate(bytes.len() - 5));
    }
    assert!(firn.raw("web1@first") == contents[0]);
}

#[test]
fn a_cache_that_is_full_or_somebody_elses_is_done_without() {
    let test = "a_cache_that_is_full_or_somebody_elses_is_done_without";
    if !have(test, &["root", "mount", "setpriv"]) {
        return;
    }
    let (mut firn, contents) = two_snapshots();
    std::fs::create_dir(firn.path("cache")).unwrap();
    let _mounted = mount(firn.folder(), &["-t", "tmpfs", "-o", "size=64k", "tmpfs", "cache"]);
    std::fs::write(firn.path("cache/filler"), vec![0; 1 << 20]).unwrap_err();
    firn.set("XDG_CACHE_HOME", firn.path("cache").to_str().unwrap());
    assert!(firn.raw("web1") == contents[1]);
    firn.ok("snap web1");
    // As after `sudo firn`: the folder is there and belongs to root.
    std::fs::remove_file(firn.path("cache/filler")).unwrap();
    firn.ok("list");
    let run = as_nobody(&firn, "restore web1 -");
    assert!(run.code == 0 && run.stdout == contents[1], "{}", run.stderr);
}

/// Runs firn as a user who owns nothing here but may look.
fn as_nobody(firn: &Firn, arguments: &str) -> crate::support::Run {
    let program = firn.path("firn-program");
    if !program.exists() {
        // By another process: while a descriptor of ours writes to it, a fork of another test may keep it busy.
        tool(firn.folder(), "cp", &[env!("CARGO_BIN_EXE_firn"), "firn-program"]);
        for folder in [firn.folder(), &firn.path("pool")] {
            std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
    }
    let mut command = Command::new("setpriv");
    firn.prepare(&mut command);
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(program);
    finish(command.args(arguments.split(' ')).spawn().unwrap())
}

#[test]
fn without_permission_the_object_is_named() {
    if !have("without_permission_the_object_is_named", &["root", "setpriv"]) {
        return;
    }
    let (mut firn, contents) = two_snapshots();
    firn.set("HOME", "/nonexistent");
    let fails = |arguments: &str, parts: &[&str]| check_failure(&as_nobody(&firn, arguments), 5, arguments, parts);
    let read = as_nobody(&firn, "restore web1 -");
    assert!(read.code == 0 && read.stdout == contents[1], "{}", read.stderr);
    assert_eq!(as_nobody(&firn, "verify").code, 0);
    let hint = "run it as a user to whom the pool's files belong";
    fails("snap web1", &["pool/lease/", "write: Permission denied", hint]);
    firn.write("a.raw", mixed_disk(1 << 20, 77));
    fails("snap web1", &["pool/", "write: Permission denied", hint]);
    fails("snap web2 a.raw", &["pool/note/", hint]);
    fails("forget web1@first", &["pool/lock/", "write: Permission denied", hint]);
    fails("key add --recovery", &["pool/key/", hint]);
    fails("init other --no-password", &["other: make the folder: Permission denied"]);
    fails("restore web1 out.raw", &["out.raw: you may not make files in its folder"]);
    let forbid = |name: &str, mode: u32| {
        std::fs::set_permissions(firn.path(name), std::fs::Permissions::from_mode(mode)).unwrap();
    };
    forbid("a.raw", 0o600);
    fails("snap web1", &["a.raw: open: Permission denied"]);
    fails("restore a.raw -", &["a.raw: open: Permission denied"]);
    for (folder, arguments) in
        [("pool", "list"), ("pool/data", "restore web1 -"), ("pool/snap", "list"), ("pool/idx", "verify")]
    {
        forbid(folder, 0o700);
        let run = as_nobody(&firn, arguments);
        forbid(folder, 0o755);
        let is_told = ["firn: pool", "Permission denied", hint].iter().all(|part| run.stderr.contains(part));
        assert!(run.code == 5 && is_told, "{folder}: {} {}", run.code, run.stderr);
    }
    // A file system's own folder at the root of a pool is nobody's business.
    std::fs::create_dir(firn.path("pool/lost+found")).unwrap();
    forbid("pool/lost+found", 0o700);
    assert_eq!(as_nobody(&firn, "verify").code, 0);
    assert_eq!(firn.snapshots("web1").len(), 2);
}

#[test]
fn a_pool_that_can_only_be_read_is_read() {
    if !have("a_pool_that_can_only_be_read_is_read", &["root", "mount"]) {
        return;
    }
    let (firn, contents) = two_snapshots();
    let before = firn.objects("");
    std::fs::create_dir(firn.path("here")).unwrap();
    let bound = mount(firn.folder(), &["--bind", "pool", "here"]);
    let _read_only = mount(firn.folder(), &["-o", "remount,bind,ro", "here"]);
    for arguments in ["list", "show web1", "verify --read-data", "verify --scrub", "pool info", "key list"] {
        firn.ok(&format!("{arguments} --pool here"));
    }
    firn.ok("restore web1 out.raw --pool here");
    assert!(firn.read("out.raw") == contents[1]);
    firn.write("a.raw", mixed_disk(1 << 20, 77));
    for arguments in ["snap web1", "snap web2 a.raw", "forget web1@first", "key add --recovery", "pool rebuild-index"] {
        firn.fails(
            5,
            &format!("{arguments} --pool here"),
            &["here/", "Read-only file system", "mount its file system for writing"],
        );
    }
    firn.fails(5, "restore web1 here/out.raw", &["here/out.raw: its folder can only be read"]);
    firn.fails(5, "init here/pool --no-password", &["here/pool", "Read-only file system"]);
    drop(bound);
    assert_eq!(firn.objects(""), before);
}
