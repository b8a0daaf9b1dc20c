//! Images and destinations that want to lead us astray.

use crate::support::{firn, firn_ok, has, make_ext4, make_tree, shell};
use std::path::Path;

#[test]
fn planted_links_do_not_redirect_what_is_written() {
    if !has("planted_links_do_not_redirect_what_is_written", &["mkfs.ext4"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let tree = make_tree(at);
    make_ext4(&tree, &at.join("fs.img"), 48, "");
    shell(
        at,
        "mkdir -p outside dest/tree; echo kept >outside/hosts; echo kept >outside/file
         ln -s ../../outside dest/tree/etc; ln -s ../../outside/file 'dest/tree/name with spaces'
         ln -s ../../outside/new dest/tree/größe",
    );
    let outside = || shell(at, "cd outside; ls; cat *");
    let before = outside();
    for force in [false, true] {
        let mut arguments = vec!["cp", "-r", "fs.img:/", "dest/tree"];
        arguments.extend(force.then_some("--force"));
        let run = firn(at, &arguments);
        assert_eq!(run.code, 1, "{}", run.err);
        assert!(run.err.contains("no folder is in its place"), "{}", run.err);
        assert_eq!(outside(), before);
        assert!(at.join("dest/tree/etc").is_symlink());
        assert_eq!(std::fs::read_to_string(at.join("dest/tree/var/log/7")).unwrap(), "file 7\n");
        assert_eq!(at.join("dest/tree/name with spaces").is_symlink(), !force);
    }
    // A single file, too.
    shell(at, "ln -s outside/file single");
    assert_eq!(firn(at, &["cp", "fs.img:/etc/hosts", "single"]).code, 1);
    firn_ok(at, &["cp", "--force", "fs.img:/etc/hosts", "single"]);
    assert_eq!(outside(), before);
    assert!(!at.join("single").is_symlink());
}

/// Replaces each `from` in a file by `to`, which is as long.
fn patch(image: &Path, from: &[u8], to: &[u8]) {
    let mut bytes = std::fs::read(image).unwrap();
    let places: Vec<usize> =
        bytes.windows(from.len()).enumerate().filter(|(_, part)| *part == from).map(|(at, _)| at).collect();
    assert!(!places.is_empty());
    for at in places {
        bytes[at..at + from.len()].copy_from_slice(to);
    }
    std::fs::write(image, bytes).unwrap();
}

#[test]
fn names_that_lead_out_are_refused_and_the_rest_is_copied() {
    if !has("names_that_lead_out_are_refused_and_the_rest_is_copied", &["mkfs.ext4"]) {
        return;
    }
    for to in [b"../escape".as_slice(), b"a/../../b", b"/tmp/evil"] {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        shell(
            at,
            "mkdir -p tree/sub/below work/dest; echo out >tree/sub/ZZZescape; echo fine >tree/fine; echo x >tree/sub/below/x",
        );
        make_ext4(&at.join("tree"), &at.join("work/fs.img"), 8, "-O ^metadata_csum,^dir_index");
        patch(&at.join("work/fs.img"), b"ZZZescape", to);
        let run = firn(&at.join("work"), &["cp", "-r", "fs.img:/", "dest"]);
        assert_eq!(run.code, 3, "{}", run.err);
        assert_eq!(std::fs::read_to_string(at.join("work/dest/fine")).unwrap(), "fine\n");
        let all = shell(
            at,
            "find . -path ./tree -prune -o -name '*escape*' -print -o -name b -print; ls /tmp/evil 2>&1 || true",
        );
        assert!(all.starts_with("ls: "), "{all}");
    }
}

#[test]
fn damage_costs_the_file_that_it_is_in() {
    if !has("damage_costs_the_file_that_it_is_in", &["mkfs.ext4", "debugfs"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let tree = make_tree(at);
    make_ext4(&tree, &at.join("fs.img"), 48, "");
    // An inode whose bytes do not fit its checksum, and a file whose extent tree points outside.
    let place = shell(at, "debugfs -R 'imap /var/log/17' fs.img 2>/dev/null");
    let number = |after: &str| -> u64 {
        let text = place.split(after).nth(1).unwrap().trim_start();
        let text = text.split(|c: char| !c.is_ascii_hexdigit() && c != 'x').next().unwrap();
        text.strip_prefix("0x").map_or_else(|| text.parse().unwrap(), |hex| u64::from_str_radix(hex, 16).unwrap())
    };
    let (block, offset) = (number("located at block"), number("offset"));
    let block_bytes: u64 =
        shell(at, "dumpe2fs -h fs.img 2>/dev/null | sed -n 's/^Block size: *//p'").trim().parse().unwrap();
    let byte = usize::try_from(block * block_bytes + offset + 4).unwrap();
    let mut bytes = std::fs::read(at.join("fs.img")).unwrap();
    bytes[byte] ^= 1;
    std::fs::write(at.join("fs.img"), bytes).unwrap();

    let run = firn(at, &["--json", "cp", "-r", "fs.img:/", "out"]);
    assert_eq!(run.code, 3, "{}", run.err);
    assert!(run.err.contains("var/log/17: ") && run.err.contains("checksum"), "{}", run.err);
    assert_eq!(run.json()["error_count"], 1);
    assert!(!at.join("out/var/log/17").exists());
    for number in [16, 18, 299] {
        let text = std::fs::read_to_string(at.join(format!("out/var/log/{number}"))).unwrap();
        assert_eq!(text, format!("file {number}\n"));
    }
    let hashed = firn(at, &["hash", "fs.img:/var/log"]);
    assert_eq!((hashed.code, hashed.text().lines().count()), (3, 300));
    let listed = firn(at, &["ls", "-l", "fs.img:/var/log"]);
    assert_eq!((listed.code, listed.text().lines().count()), (3, 301));
    assert!(listed.text().contains("?????????? "), "{}", listed.text());
    assert_eq!(firn(at, &["cat", "fs.img:/var/log/17"]).code, 3);
}

#[test]
fn escape_sequences_reach_no_terminal() {
    if !has("escape_sequences_reach_no_terminal", &["mkfs.ext4", "script"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let tree = make_tree(at);
    make_ext4(&tree, &at.join("fs.img"), 48, "-L \"$(printf 'l\\033[31m')\"");
    for arguments in ["ls", "ls -l", "ls -R", "stat"] {
        let path = if arguments == "stat" { "$'fs.img:/esc\\e[31m'" } else { "fs.img:/" };
        let shown = shell(
            at,
            &format!("script -qec \"{} {arguments} {path}\" /dev/null </dev/null", env!("CARGO_BIN_EXE_firn")),
        );
        assert!(!shown.contains('\u{1b}'), "{arguments}: {shown:?}");
        assert!(shown.contains("$'esc\\x1b[31m'") || shown.contains("esc\\x1b[31m'"), "{arguments}: {shown:?}");
    }
    for arguments in [["look", "fs.img"], ["stat", "fs.img:/esc\u{1b}[31m/x"], ["cat", "fs.img:/no\u{1b}[31m"]] {
        let run = firn(at, &arguments);
        assert!(!run.err.contains('\u{1b}') && !run.out.contains(&0x1b), "{arguments:?}: {run:?}");
    }
    // In a pipe names are bytes.
    assert!(firn_ok(at, &["ls", "fs.img"]).out.windows(9).any(|part| part == b"esc\x1b[31m\n"));
}
