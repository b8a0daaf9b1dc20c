//! What is refused, what is said, and what only some file systems have.

use crate::image::{Mount, Recipe, can_mount, change_superblock, kernel_tree, run};
use crate::load::Load;
use crate::populate::few;
use crate::walker::{differences, read_tree};
use firn_disk::{ErrorKind, FileDisk, SharedDisk};
use firn_format::fs::xfs::{Xfs, XfsOptions};
use firn_format::fs::{FileTree, OpenOptions};
use std::path::Path;
use std::sync::Arc;

const PLAIN: Recipe<'static> = Recipe { mebibytes: 320, mkfs: &[], mount: "", incompat: 0, external_log: 0 };

fn disk(path: &Path) -> SharedDisk {
    Arc::new(FileDisk::open(path).unwrap())
}

fn open(path: &Path) -> firn_disk::Result<Arc<Xfs>> {
    Xfs::open(disk(path), &XfsOptions::default())
}

/// Stops a file system as a crash would, with what is logged on its disk.
fn shut_down(mount: &Mount, is_flushed: bool) {
    let command = if is_flushed { "shutdown -f" } else { "shutdown" };
    run("xfs_io", &["-x", "-c", command, mount.path().to_str().unwrap()]);
}

#[test]
fn an_external_log_is_replayed_from_its_disk() {
    let test = "an_external_log_is_replayed_from_its_disk";
    if !can_mount(test) {
        return;
    }
    for seed in 0..4 {
        let folder = tempfile::tempdir().unwrap();
        let (image, point) = (folder.path().join("image"), folder.path().join("mount"));
        let log = Recipe { external_log: 32, ..PLAIN }.make(&image).unwrap();
        {
            let mount = Mount::new(&image, Some(&log), &point, "");
            let mut load = Load::new(mount.path(), seed);
            (0..600).for_each(|_| load.step());
            shut_down(&mount, seed % 2 == 0);
        }
        let missing = open(&image).unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::Unavailable, "{missing}");
        let options = XfsOptions { replay: false, external_log: None };
        let health = Xfs::open(disk(&image), &options).unwrap().facts().health;
        assert!(health.contains("may be missing"), "{health}");
        let options = OpenOptions { replay: true, external_journal: Some(disk(&log)) };
        let ours = firn_format::fs::open(&disk(&image), &options).unwrap().unwrap();
        let health = ours.facts().health;
        assert!(health.starts_with("replayed"), "{health}");
        let read = read_tree(&*ours);
        let kernel = kernel_tree(Mount::new(&image, Some(&log), &point, "").path());
        assert_eq!(differences(&kernel, &read, &[]), "", "{test} (seed {seed}), {health}");
    }
}

#[test]
fn without_replay_it_says_so_and_with_it_the_newest_files_are_there() {
    let test = "without_replay_it_says_so_and_with_it_the_newest_files_are_there";
    if !can_mount(test) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (image, point) = (folder.path().join("image"), folder.path().join("mount"));
    PLAIN.make(&image);
    {
        let mount = Mount::new(&image, None, &point, "");
        for number in 0..50 {
            let file = std::fs::File::create(mount.path().join(format!("file{number}"))).unwrap();
            std::os::unix::fs::FileExt::write_all_at(&file, b"synced", 0).unwrap();
            file.sync_all().unwrap();
        }
        shut_down(&mount, false);
    }
    let names = |options: &OpenOptions| {
        let tree = firn_format::fs::open(&disk(&image), options).unwrap().unwrap();
        let mut names = 0;
        tree.list(tree.root(), &mut |_| {
            names += 1;
            Ok(())
        })
        .unwrap();
        (names, tree.facts().health)
    };
    let (count, health) = names(&OpenOptions { replay: false, external_journal: None });
    assert!(count < 50 && health.contains("log not replayed: the newest changes are missing"), "{count}, {health}");
    let (count, health) = names(&OpenOptions::default());
    assert!(count == 50 && health.starts_with("replayed"), "{count}, {health}");
    let error = firn_format::fs::replayed(&disk(&image), &OpenOptions::default()).unwrap_err();
    assert!(error.kind() == ErrorKind::Unsupported && error.to_string().contains("log of XFS"), "{error}");
}

#[test]
fn features_that_are_not_read_are_refused_by_name() {
    let test = "features_that_are_not_read_are_refused_by_name";
    if !can_mount(test) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    for (at, bit, word) in [
        (216, 0x8000_0000_u32, "0x80000000"),
        (216, 0x10, "needsrepair"),
        (216, 0x100, "metadir"),
        (216, 0x200, "zoned"),
    ] {
        PLAIN.make(&image);
        change_superblock(&image, |sector| {
            let bits = u32::from_be_bytes(sector[at..at + 4].try_into().unwrap()) | bit;
            sector[at..at + 4].copy_from_slice(&bits.to_be_bytes());
        });
        let error = open(&image).unwrap_err();
        assert!(error.kind() == ErrorKind::Unsupported && error.to_string().contains(word), "{error}");
    }
    // What only writers must know does not keep from reading.
    PLAIN.make(&image);
    change_superblock(&image, |sector| sector[212] |= 0x80);
    assert!(open(&image).unwrap().facts().features.iter().any(|name| name.contains("0x8000")));
}

#[test]
fn a_damaged_structure_costs_what_it_holds_and_no_more() {
    let test = "a_damaged_structure_costs_what_it_holds_and_no_more";
    if !can_mount(test) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (image, point) = (folder.path().join("image"), folder.path().join("mount"));
    PLAIN.make(&image);
    few(Mount::new(&image, None, &point, "").path());
    let tree = open(&image).unwrap();
    let many = tree.lookup(tree.root(), b"many").unwrap();
    let text = run("xfs_db", &["-r", "-c", &format!("inode {many}"), "-c", "bmap", image.to_str().unwrap()]);
    let inode = tree.lookup(many, b"a file with the number 1").unwrap();
    // The first data block of the folder: "data offset 0 startblock 27 (0/27) ..."
    let block: u64 = text.split("startblock ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    let place = run("xfs_db", &["-r", "-c", &format!("convert fsblock {block} byte"), image.to_str().unwrap()]);
    let place = place.split('(').nth(1).unwrap().split(')').next().unwrap().parse::<u64>().unwrap();
    let file = std::fs::File::options().write(true).open(&image).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"?", place + 3000).unwrap();
    let tree = open(&image).unwrap();
    let error = tree.list(many, &mut |_| Ok(())).unwrap_err();
    assert!(error.kind() == ErrorKind::Corrupt && error.to_string().contains("checksum"), "{error}");
    assert_eq!(tree.stat(inode).unwrap().size, 1);
    let a = tree.lookup(tree.root(), b"a").unwrap();
    tree.list(a, &mut |_| Ok(())).unwrap();
}

#[test]
fn realtime_files_are_refused_one_by_one() {
    let test = "realtime_files_are_refused_one_by_one";
    if !can_mount(test) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (image, point) = (folder.path().join("image"), folder.path().join("mount"));
    PLAIN.make(&image);
    few(Mount::new(&image, None, &point, "").path());
    let tree = open(&image).unwrap();
    let a = tree.lookup(tree.root(), b"a").unwrap();
    let small = tree.lookup(a, b"small").unwrap();
    let path = image.to_str().unwrap();
    run("xfs_db", &["-x", "-c", &format!("inode {small}"), "-c", "write core.realtime 1", path]);
    let tree = open(&image).unwrap();
    let error = tree.open(small).unwrap_err();
    assert!(error.kind() == ErrorKind::Unsupported && error.to_string().contains("realtime"), "{error}");
    assert_eq!(tree.stat(small).unwrap().size, 100);
    tree.open(tree.lookup(a, b"random").unwrap()).unwrap();
}

/// Made by mkfs from a list, as this kernel does not mount it.
#[test]
fn exact_names_are_found_where_case_is_ignored() {
    let test = "exact_names_are_found_where_case_is_ignored";
    if !can_mount(test) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (image, list, content) =
        (folder.path().join("image"), folder.path().join("list"), folder.path().join("content"));
    std::fs::write(&content, "content").unwrap();
    let names: Vec<_> = (0..120).map(|number| format!("A-Name-{number}")).collect();
    let files: String = names.iter().map(|name| format!("{name} ---644 7 8 {}\n", content.display())).collect();
    std::fs::write(&list, format!("boot\n0 0\nd--755 0 0\n{files}$\n")).unwrap();
    for mkfs in [&["-n", "version=ci"][..], &["-m", "crc=0", "-n", "version=ci,ftype=0"]] {
        Recipe { mkfs: &[mkfs, &["-p", list.to_str().unwrap()]].concat(), ..PLAIN }.make(&image);
        let ours = open(&image).unwrap();
        let tree = read_tree(&*ours);
        assert_eq!(tree.len(), names.len() + 1);
        for name in &names {
            let inode = ours.lookup(ours.root(), name.as_bytes()).unwrap();
            let stat = ours.stat(inode).unwrap();
            assert_eq!((stat.size, stat.user, stat.group, stat.permissions), (7, 7, 8, 0o644));
            let mut bytes = [0; 7];
            ours.open(inode).unwrap().read_at(&mut bytes, 0).unwrap();
            assert_eq!(&bytes, b"content");
        }
        assert!(ours.lookup(ours.root(), b"a-name-1").is_err());
    }
}
