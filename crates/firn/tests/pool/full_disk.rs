//! A full disk in every phase: the error says so, what was there before is there still, and with a little more space
//! the same command works.
//!
//! A small tmpfs is filled. It is made larger page by page, so that each object in turn is the one that does not fit.

use crate::support::{Firn, Undo, check_failure, have, mixed_disk, mount, tool};
use firn_disk::testing::pattern;
use std::collections::BTreeSet;

const FULL: &str = "the pool's file system is full; free space there and run the command again";

/// A firn whose pool lies on a tmpfs of a size that can be changed.
fn on_tmpfs() -> (Firn, Undo) {
    let firn = Firn::new();
    std::fs::create_dir(firn.path("pool")).unwrap();
    let mounted = mount(firn.folder(), &["-t", "tmpfs", "-o", "size=16m", "tmpfs", "pool"]);
    (firn, mounted)
}

/// Pages of 4 KiB that are in use in `folder`.
fn used_pages(firn: &Firn, folder: &str) -> u64 {
    let status = rustix::fs::statvfs(firn.path(folder)).unwrap();
    (status.f_blocks - status.f_bfree) * status.f_frsize / 4096
}

fn resize(firn: &Firn, folder: &str, size: &str) {
    tool(firn.folder(), "mount", &["-o", &format!("remount,{size}"), folder]);
}

/// The kind of object that the error is about: folder and copy.
fn phase(stderr: &str) -> String {
    let first = stderr.lines().find(|line| line.starts_with("firn: pool/")).unwrap_or_else(|| panic!("{stderr}"));
    let object = first.trim_start_matches("firn: pool/").split(':').next().unwrap();
    let folder = object.split('/').next().unwrap();
    let copy = [("-a", " a"), ("-b", " b")].iter().find(|(end, _)| object.ends_with(end)).map_or("", |(_, copy)| copy);
    format!("{}{copy}", folder.trim_end_matches("-a").trim_end_matches("-b"))
}

/// Runs a command with a page more each time until it works; answers in which phases it failed.
fn run_until_it_fits(firn: &Firn, arguments: &str, after_failure: impl Fn()) -> BTreeSet<String> {
    let mut phases = BTreeSet::new();
    // No page at all would be no limit.
    let used = used_pages(firn, "pool").max(1);
    for more in 0..100 {
        resize(firn, "pool", &format!("nr_blocks={}", used + more));
        let run = firn.run(arguments);
        if run.code == 0 {
            return phases;
        }
        check_failure(&run, 6, arguments, &["No space left on device", FULL]);
        phases.insert(phase(&run.stderr));
        after_failure();
    }
    panic!("it never fits: {phases:?}");
}

#[test]
fn a_full_pool_in_every_phase_of_a_snapshot() {
    if !have("a_full_pool_in_every_phase_of_a_snapshot", &["root", "mount"]) {
        return;
    }
    let (firn, _mounted) = on_tmpfs();
    firn.ok("init pool --no-password");
    let first = mixed_disk(1 << 20, 1);
    firn.write("a.raw", &first);
    firn.ok("snap web1 a.raw");
    let second = pattern(60 << 10, 2);
    firn.write("b.raw", &second);
    // A new machine, so that its note is written, too; and a kept file, so that the manifest is longer than a page.
    firn.write("vm.xml", pattern(9000, 3));
    let phases = run_until_it_fits(&firn, "snap web2 b.raw --config vm.xml", || {
        assert_eq!(firn.snapshots("web1").len(), 1);
        firn.fails(4, "show web2", &["there is no machine web2"]);
    });
    // Packs of chunks and of nodes are stored side by side, so the latter may fit before the former does.
    for expected in ["data", "idx", "note", "lease", "snap a", "snap b", "fate a"] {
        assert!(phases.contains(expected), "{expected}: {phases:?}");
    }
    // Zeros that are written, then a hole: nodes and no chunks.
    let third = firn.write("c.raw", [0; 8192]);
    std::fs::File::options().write(true).open(third).unwrap().set_len(1 << 20).unwrap();
    let phases = run_until_it_fits(&firn, "snap web2 c.raw", || assert_eq!(firn.snapshots("web2").len(), 1));
    // The second copy of the fate is that of the snapshot before, which did without.
    let expected = ["fate a", "fate b", "idx", "lease", "node a", "node b", "snap a", "snap b"];
    assert_eq!(phases.iter().map(String::as_str).collect::<Vec<_>>(), expected);
    assert!(firn.raw("web1") == first && firn.raw("web2@first") == second && firn.raw("web2") == [0; 1 << 20]);
    assert_eq!(firn.snapshots("web2").len(), 2);
    resize(&firn, "pool", "nr_blocks=10000");
    firn.ok("snap web2 c.raw");
    firn.ok("verify --read-data");
}

#[test]
fn a_full_pool_when_it_is_made_and_when_keys_are_added() {
    if !have("a_full_pool_when_it_is_made_and_when_keys_are_added", &["root", "mount"]) {
        return;
    }
    let (firn, _mounted) = on_tmpfs();
    let phases = run_until_it_fits(&firn, "init pool --key-file the.key --quiet", || {
        assert!(firn.objects("").is_empty(), "a pool that could not be made leaves nothing");
    });
    assert_eq!(phases.iter().map(String::as_str).collect::<Vec<_>>(), ["header a", "header b", "key a", "key b"]);
    let before = firn.objects("");
    let phases = run_until_it_fits(&firn, "key add --recovery --key-file the.key", || {
        assert_eq!(firn.objects(""), before, "a key that was not printed opens nothing");
    });
    assert_eq!(phases.iter().map(String::as_str).collect::<Vec<_>>(), ["key a", "key b"]);
    firn.ok("verify --key-file the.key");
}

#[test]
fn a_full_pool_while_packs_are_written() {
    if !have("a_full_pool_while_packs_are_written", &["root", "mount"]) {
        return;
    }
    let (firn, _mounted) = on_tmpfs();
    firn.ok("init pool --no-password");
    let first = mixed_disk(2 << 20, 1);
    firn.write("a.raw", &first);
    firn.ok("snap web1 a.raw");
    // More than one pack, so that some are stored and some are not.
    let second = pattern(40 << 20, 2);
    firn.write("b.raw", &second);
    for size in ["4m", "20m", "37m"] {
        resize(&firn, "pool", &format!("size={size}"));
        firn.fails(6, "snap web2 b.raw", &["pool/", "No space left on device", FULL]);
        assert!(firn.raw("web1") == first, "{size}");
        firn.ok("list");
    }
    resize(&firn, "pool", "size=64m");
    firn.ok("verify --read-data");
    let taken = firn.json("snap web2 b.raw");
    assert!(taken["bytes_stored"].as_u64().unwrap() < 30 << 20, "the packs that fitted are used: {taken}");
    assert!(firn.raw("web2") == second);
    firn.ok("verify --read-data");
}

#[test]
fn a_full_pool_can_still_be_read_and_forgotten_from() {
    if !have("a_full_pool_can_still_be_read_and_forgotten_from", &["root", "mount"]) {
        return;
    }
    let (firn, _mounted) = on_tmpfs();
    firn.ok("init pool --no-password");
    let content = mixed_disk(1 << 20, 1);
    firn.write("a.raw", &content);
    for _ in 0..3 {
        firn.ok("snap web1 a.raw");
    }
    resize(&firn, "pool", &format!("nr_blocks={}", used_pages(&firn, "pool")));
    firn.fails(6, "snap web1", &["pool/lease/", FULL]);
    firn.ok("verify --read-data");
    assert!(firn.raw("web1") == content);
    firn.fails(6, "pool rebuild-index", &["pool/idx/", FULL]);
    assert!(firn.raw("web1") == content, "the old index goes only when the new one is there");
    firn.ok("forget web1 --keep-last 1");
    firn.ok("snap web1");
    assert_eq!(firn.snapshots("web1").len(), 2);
}

#[test]
fn a_full_target_leaves_nothing_and_takes_nothing() {
    if !have("a_full_target_leaves_nothing_and_takes_nothing", &["root", "mount"]) {
        return;
    }
    let firn = Firn::with_pool();
    let content = pattern(6 << 20, 7);
    firn.write("a.raw", &content);
    firn.ok("snap web1 a.raw");
    firn.ok("snap two a.raw b=a.raw");
    std::fs::create_dir(firn.path("out")).unwrap();
    let _mounted = mount(firn.folder(), &["-t", "tmpfs", "-o", "size=64k", "tmpfs", "out"]);
    firn.write("out/there.raw", "precious");
    let names = || {
        let names = std::fs::read_dir(firn.path("out")).unwrap();
        names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect::<BTreeSet<_>>()
    };
    for (size, fits_one) in [("64k", false), ("3m", false), ("5m", false), ("8m", true)] {
        resize(&firn, "out", &format!("size={size}"));
        for (arguments, out) in [
            ("restore web1", "out/a.raw"),
            ("restore web1", "out/a.qcow2"),
            ("restore web1", "out/a.vmdk"),
            ("restore web1 --format vmdk-stream", "out/s.vmdk"),
            ("restore web1 --force", "out/there.raw"),
        ] {
            if fits_one {
                firn.ok(&format!("{arguments} {out}"));
                std::fs::remove_file(firn.path(out)).unwrap();
                firn.write("out/there.raw", "precious");
                continue;
            }
            let parts = [out, "there is not enough space for it", "free space there"];
            firn.fails(6, &format!("{arguments} {out}"), &parts);
            assert_eq!(names(), BTreeSet::from(["there.raw".to_owned()]), "{size} {out}");
            assert_eq!(firn.read("out/there.raw"), b"precious");
        }
        // One of two disks fits: then neither is left.
        firn.fails(6, "restore two out/both", &["out/both/", "there is not enough space"]);
        assert_eq!(names().len(), 1);
    }
    resize(&firn, "out", "size=16m");
    firn.ok("restore two out/both");
    assert!(firn.read("out/both/vda.raw") == content && firn.read("out/both/b.raw") == content);
}
