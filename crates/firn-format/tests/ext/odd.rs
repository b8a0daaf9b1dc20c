//! What is not everyday: journals that debugfs writes, journals on other disks, encrypted folders, damaged superblocks.

use crate::dirty::{Arena, Case, check_cut, write_differences};
use crate::image::{Mount, can_mount, has_tool, make, output, run, skip};
use crate::populate::few;
use crate::walker::{differences, read_kernel, read_tree};
use firn_disk::testing::pattern;
use firn_disk::{Disk, Error, ErrorKind, FileDisk, MemDisk, SharedDisk};
use firn_format::fs::FileTree;
use firn_format::fs::ext::{Ext, ExtOptions};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

fn disk(path: &Path) -> SharedDisk {
    Arc::new(FileDisk::open(path).unwrap())
}

fn open(path: &Path) -> Result<Arc<Ext>, Error> {
    Ext::open(disk(path), &ExtOptions::default())
}

fn debugfs(image: &Path, commands: &str) -> String {
    let mut child = Command::new("debugfs")
        .args(["-w", "-f", "-", image.to_str().unwrap()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(commands.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Transactions, revocations and escaped blocks as e2fsprogs writes them, with every kind of checksum; e2fsck's own
/// replay is the truth.
#[test]
fn journals_written_by_debugfs() {
    let test = "journals_written_by_debugfs";
    if !can_mount(test) {
        return;
    }
    for (mkfs, open_options) in [
        (&["-b", "1024"][..], "-c -v 3"),
        (&["-b", "1024"], "-c -v 2"),
        (&["-b", "4096", "-O", "^64bit"], "-c -v 2"),
        (&["-b", "1024", "-O", "^64bit"], "-c -v 3"),
        (&["-b", "1024", "-O", "^metadata_csum,^64bit"], ""),
        (&["-b", "4096", "-O", "^metadata_csum"], ""),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let image = make(folder.path(), 16, mkfs);
        let size = if mkfs.contains(&"4096") { 4096 } else { 1024 };
        let mut magic = pattern(size * 3, 9);
        magic[size..size + 4].copy_from_slice(&0xC03B_3998_u32.to_be_bytes());
        std::fs::write(folder.path().join("three"), &magic).unwrap();
        std::fs::write(folder.path().join("other"), pattern(size * 3, 10)).unwrap();
        let free = 16 * 1024 * 1024 / size - 200;
        let said = debugfs(
            &image,
            &format!(
                "jo {open_options}\njw -b {free},{a},{b} {three}\njw -b {c},{d},{e} {three}\njw -r {a},{d}\njw -b {d},{f},{g} {other}\njc\n",
                a = free + 1,
                b = free + 2,
                c = free + 10,
                d = free + 11,
                e = free + 12,
                f = free + 20,
                g = free + 21,
                three = folder.path().join("three").display(),
                other = folder.path().join("other").display(),
            ),
        );
        let ours = open(&image).unwrap_or_else(|error| panic!("{mkfs:?} {open_options}: {error}\n{said}"));
        assert!(ours.facts().health.starts_with("replayed 4 transactions"), "{} {said}", ours.facts().health);
        let kept = folder.path().join("kept");
        std::fs::copy(&image, &kept).unwrap();
        let said = output("e2fsck", &["-fy", "-E", "journal_only", image.to_str().unwrap()]);
        assert!(said.status.code().is_some_and(|code| code <= 1), "{said:?}");
        let replayed = ours.replayed_disk().unwrap();
        for block in free..free + 30 {
            let offset = (block * size) as u64;
            let (mut a, mut b) = (vec![0; size], vec![0; size]);
            replayed.read_at(&mut a, offset).unwrap();
            File::open(&image).unwrap().read_exact_at(&mut b, offset).unwrap();
            assert_eq!(a, b, "{mkfs:?} {open_options}: block {block}");
        }
        write_differences(&*replayed, &kept);
        let said = output("e2fsck", &["-fn", kept.to_str().unwrap()]);
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stdout));
    }
}

/// Blocks of a file that begin with the journal's magic number, in a journal that holds data.
#[test]
fn data_that_looks_like_the_journal() {
    let Some(arena) = Arena::new("escape") else { return };
    let image = arena.path("image");
    File::create(&image).unwrap().set_len(32 << 20).unwrap();
    run("mkfs.ext4", &["-q", "-F", "-b", "1024", "-J", "size=2", image.to_str().unwrap()]);
    let mut data = pattern(40_000, 3);
    for block in data.chunks_mut(1024).step_by(2) {
        block[..4].copy_from_slice(&0xC03B_3998_u32.to_be_bytes());
    }
    let cut = {
        let mount = Mount::new(&image, &arena.mount_point(), "data=journal");
        for name in ["a", "b"] {
            let file = File::create(mount.path().join(name)).unwrap();
            file.write_all_at(&data, 0).unwrap();
            file.sync_all().unwrap();
        }
        arena.clone(&image, "cut")
    };
    let ours = open(&cut).unwrap();
    let file = ours.open(ours.lookup(2, b"b").unwrap()).unwrap();
    let mut read = vec![0; data.len()];
    file.read_at(&mut read, 0).unwrap();
    assert_eq!(read, data);
    check_cut(&arena, &cut, &Case::named("escape"));
}

#[test]
fn an_external_journal() {
    let Some(arena) = Arena::new("external") else { return };
    for size in ["1024", "4096"] {
        let (image, journal) = (arena.path("image"), arena.path("journal"));
        File::create(&image).unwrap().set_len(32 << 20).unwrap();
        File::create(&journal).unwrap().set_len(8 << 20).unwrap();
        let device = run("losetup", &["-f", "--show", journal.to_str().unwrap()]);
        let device = device.trim();
        run("mkfs.ext4", &["-q", "-F", "-b", size, "-O", "journal_dev", device]);
        let option = format!("device={device}");
        run("mkfs.ext4", &["-q", "-F", "-b", size, "-J", &option, image.to_str().unwrap()]);
        let (cut, journal_cut) = {
            let mount = Mount::new(&image, &arena.mount_point(), "");
            few(mount.path());
            File::open(mount.path()).unwrap().sync_all().unwrap();
            // Nothing is written now, so that both clones are of one instant.
            run("fsfreeze", &["--freeze", mount.path().to_str().unwrap()]);
            run("fsfreeze", &["--unfreeze", mount.path().to_str().unwrap()]);
            std::fs::write(mount.path().join("newest"), "newest").unwrap();
            File::open(mount.path().join("newest")).unwrap().sync_all().unwrap();
            (arena.clone(&image, "cut"), arena.clone(&journal, "journal-cut"))
        };
        assert_eq!(open(&cut).unwrap_err().kind(), ErrorKind::Unavailable, "the journal is needed");
        assert_eq!(open(&journal_cut).unwrap_err().kind(), ErrorKind::Unsupported, "a journal is no file system");
        let wrong = ExtOptions { external_journal: Some(disk(&cut)), ..ExtOptions::default() };
        assert!(Ext::open(disk(&cut), &wrong).is_err());
        let options = ExtOptions { external_journal: Some(disk(&journal_cut)), ..ExtOptions::default() };
        let ours = Ext::open(disk(&cut), &options).unwrap();
        assert!(ours.facts().health.starts_with("replayed "), "{}", ours.facts().health);
        assert!(ours.lookup(2, b"newest").is_ok());
        let read = read_tree(&*ours);
        let replayed = arena.clone(&cut, "replayed");
        write_differences(&*ours.replayed_disk().unwrap(), &replayed);
        // The kernel finds the journal by its device: give it back the cut's journal.
        std::fs::copy(&journal_cut, &journal).unwrap();
        let kernel = read_kernel(Mount::new(&cut, &arena.mount_point(), "").path());
        assert_eq!(differences(&kernel, &read, &[]), "");
        let said = output("e2fsck", &["-fn", "-j", device, replayed.to_str().unwrap()]);
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stdout));
        run("losetup", &["-d", device]);
    }
}

#[test]
fn without_replay_the_newest_files_are_missing_and_it_says_so() {
    let Some(arena) = Arena::new("unreplayed") else { return };
    let image = arena.path("image");
    File::create(&image).unwrap().set_len(32 << 20).unwrap();
    run("mkfs.ext4", &["-q", "-F", image.to_str().unwrap()]);
    let cut = {
        let mount = Mount::new(&image, &arena.mount_point(), "");
        let file = File::create(mount.path().join("newest")).unwrap();
        file.sync_all().unwrap();
        arena.clone(&image, "cut")
    };
    let options = ExtOptions { replay: false, ..ExtOptions::default() };
    let ours = Ext::open(disk(&cut), &options).unwrap();
    assert_eq!(ours.lookup(2, b"newest").unwrap_err().kind(), ErrorKind::NotFound);
    assert!(ours.facts().health.starts_with("journal not replayed"), "{}", ours.facts().health);
    assert_eq!(ours.replayed_disk().unwrap_err().kind(), ErrorKind::Invalid);
    let ours = open(&cut).unwrap();
    assert!(ours.lookup(2, b"newest").is_ok());
    assert_eq!(ours.facts().health, "replayed 1 transaction");
}

/// Files in the orphan list that have links are cut to their size.
#[test]
fn orphans_that_are_to_be_shortened() {
    let Some(arena) = Arena::new("shortened") else { return };
    for mkfs in [
        &["-b", "1024"][..],
        &["-b", "4096"],
        &["-t", "ext3", "-b", "1024"],
        &["-O", "bigalloc", "-C", "16384"],
        &["-O", "bigalloc,^metadata_csum", "-b", "1024", "-C", "8192"],
    ] {
        for size in [1, 250_000, 1_200_000, 79_000_000] {
            let image = arena.path("image");
            let _ = std::fs::remove_file(&image);
            File::create(&image).unwrap().set_len(48 << 20).unwrap();
            run("mkfs.ext4", &[&["-q", "-F"], mkfs, &[image.to_str().unwrap()]].concat());
            {
                let mount = Mount::new(&image, &arena.mount_point(), "");
                let file = File::create(mount.path().join("f")).unwrap();
                file.write_all_at(&pattern(300_000, 1), 0).unwrap();
                for index in 0..200 {
                    file.write_all_at(&pattern(2000, index), 400_000 + index * 9000).unwrap();
                }
                file.write_all_at(b"far", 80_000_000).unwrap();
            }
            debugfs(&image, &format!("sif /f size {size}\nssv last_orphan 12\n"));
            let case = Case { ignored: &["modified", "changed"], ..Case::named("shortened") };
            check_cut(&arena, &image, &case);
            assert_eq!(open(&image).unwrap().facts().health, "journal clean, 1 orphan");
        }
    }
}

#[test]
fn a_dirty_journal_behind_a_damaged_superblock() {
    let Some(arena) = Arena::new("both") else { return };
    let image = arena.path("image");
    File::create(&image).unwrap().set_len(32 << 20).unwrap();
    run("mkfs.ext4", &["-q", "-F", "-b", "1024", image.to_str().unwrap()]);
    let cut = {
        let mount = Mount::new(&image, &arena.mount_point(), "");
        std::fs::write(mount.path().join("newest"), "x").unwrap();
        File::open(mount.path().join("newest")).unwrap().sync_all().unwrap();
        arena.clone(&image, "cut")
    };
    let sound = read_tree(&*open(&cut).unwrap());
    File::options().write(true).open(&cut).unwrap().write_all_at(&[0; 1024], 1024).unwrap();
    let ours = open(&cut).unwrap();
    assert_eq!(read_tree(&*ours), sound);
    assert!(ours.facts().health.starts_with("replayed "), "{}", ours.facts().health);
    write_differences(&*ours.replayed_disk().unwrap(), &cut);
    let said = output("e2fsck", &["-fn", cut.to_str().unwrap()]);
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stdout));
}

/// A copy of the journal in which one byte of a transaction is wrong is refused, as the kernel does.
#[test]
fn a_damaged_transaction_is_refused() {
    let Some(arena) = Arena::new("damaged") else { return };
    let image = arena.path("image");
    File::create(&image).unwrap().set_len(32 << 20).unwrap();
    run("mkfs.ext4", &["-q", "-F", "-b", "4096", image.to_str().unwrap()]);
    let cut = {
        let mount = Mount::new(&image, &arena.mount_point(), "");
        for name in ["a", "b", "c"] {
            File::create(mount.path().join(name)).unwrap().sync_all().unwrap();
        }
        arena.clone(&image, "cut")
    };
    let bytes = std::fs::read(&cut).unwrap();
    // The last descriptor block, and a data block behind it. (A copy that a later transaction replaces is not looked at
    // by us, but by the kernel.)
    let is_descriptor = |at: &usize| bytes[*at..].starts_with(&[0xC0, 0x3B, 0x39, 0x98, 0, 0, 0, 1]);
    let descriptor = (0..bytes.len()).step_by(4096).rfind(is_descriptor).unwrap();
    for at in [descriptor + 20, descriptor + 4096 + 100] {
        let mut bytes = bytes.clone();
        bytes[at] ^= 0x10;
        std::fs::write(&cut, &bytes).unwrap();
        let error = open(&cut).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        let kernel = arena.clone(&cut, "kernel");
        assert!(Mount::try_new(&kernel, &arena.mount_point(), "").is_err(), "the kernel takes byte {at}");
    }
}

#[test]
fn encrypted_folders_are_listed_as_linux_does_without_the_key() {
    let test = "encrypted_folders";
    if !can_mount(test) {
        return;
    }
    if !has_tool("xfs_io") {
        return skip(test, "needs xfs_io");
    }
    let folder = tempfile::tempdir().unwrap();
    let image = make(folder.path(), 32, &["-O", "encrypt"]);
    let point = folder.path().join("mount");
    std::fs::write(folder.path().join("key"), [7; 64]).unwrap();
    {
        let mount = Mount::new(&image, &point, "");
        let path = mount.path();
        let key = File::open(folder.path().join("key")).unwrap();
        let said = Command::new("xfs_io").args(["-c", "add_enckey"]).arg(path).stdin(key).output().unwrap();
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        let Some(id) = said.trim().rsplit(' ').next().filter(|id| id.len() == 32) else {
            return skip(test, "the kernel has no fscrypt");
        };
        for name in ["small", "large"] {
            std::fs::create_dir(path.join(name)).unwrap();
            run("xfs_io", &["-c", &format!("set_encpolicy -c 1 -n 4 -f 2 {id}"), path.join(name).to_str().unwrap()]);
        }
        for number in 0..300 {
            std::fs::write(path.join(format!("large/{number}")), "secret").unwrap();
        }
        for length in [1, 100, 149, 150, 240] {
            std::fs::write(path.join("small").join("s".repeat(length)), "secret").unwrap();
        }
        std::os::unix::fs::symlink("target", path.join("small/link")).unwrap();
        std::fs::write(path.join("plain"), "plain").unwrap();
    }
    let ours = open(&image).unwrap();
    let mount = Mount::new(&image, &point, "ro");
    for name in ["small", "large"] {
        let inode = ours.lookup(2, name.as_bytes()).unwrap();
        let mut names = Vec::new();
        ours.list(inode, &mut |entry| {
            assert_eq!(ours.lookup(inode, &entry.name).unwrap(), entry.inode);
            match ours.stat(entry.inode).unwrap().file_type {
                firn_format::fs::FileType::Symlink => {
                    assert_eq!(ours.read_link(entry.inode).unwrap_err().kind(), ErrorKind::Unsupported);
                }
                _ => assert_eq!(ours.open(entry.inode).unwrap_err().kind(), ErrorKind::Unsupported),
            }
            names.push(String::from_utf8(entry.name).unwrap());
            Ok(())
        })
        .unwrap();
        let mut kernel: Vec<_> = std::fs::read_dir(mount.path().join(name))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort_unstable();
        kernel.sort_unstable();
        assert_eq!(names, kernel);
    }
    let plain = ours.open(ours.lookup(2, b"plain").unwrap()).unwrap();
    assert_eq!(plain.len(), 5);
}

#[test]
fn a_damaged_superblock_or_descriptor_is_read_from_its_copy() {
    let test = "a_damaged_superblock";
    if !can_mount(test) {
        return;
    }
    for options in [
        &["-b", "1024"][..],
        &["-b", "1024", "-O", "^metadata_csum,^64bit"],
        &["-b", "1024", "-O", "sparse_super2,^resize_inode"],
        &["-b", "1024", "-O", "meta_bg,^resize_inode"],
        &["-b", "4096", "-t", "ext2"],
    ] {
        let folder = tempfile::tempdir().unwrap();
        let tree = folder.path().join("tree");
        std::fs::create_dir(&tree).unwrap();
        std::fs::write(tree.join("file"), pattern(100_000, 1)).unwrap();
        let image = make(folder.path(), 160, &[options, &["-d", tree.to_str().unwrap()]].concat());
        let sound = read_tree(&*open(&image).unwrap());
        let file = File::options().write(true).open(&image).unwrap();
        // The first superblock goes, and with it, where they have checksums, the first descriptors.
        let lost = if options.contains(&"4096") { 1024 } else { 1500 };
        file.write_all_at(&vec![0xFF; lost], 1024).unwrap();
        let ours = open(&image).unwrap_or_else(|error| panic!("{options:?}: {error}"));
        assert_eq!(read_tree(&*ours), sound, "{options:?}");
        assert!(ours.facts().health.contains("superblock damaged"), "{}", ours.facts().health);
        let replayed = folder.path().join("replayed");
        std::fs::copy(&image, &replayed).unwrap();
        write_differences(&*ours.replayed_disk().unwrap(), &replayed);
        assert_eq!(read_tree(&*open(&replayed).unwrap()), sound, "{options:?}");
    }
}

#[test]
fn what_is_no_file_system_or_unknown_is_refused_by_name() {
    let test = "refused_by_name";
    let nothing = Ext::open(Arc::new(MemDisk::zeroed(1 << 20)), &ExtOptions::default()).unwrap_err();
    assert_eq!(nothing.kind(), ErrorKind::Corrupt);
    assert!(Ext::open(Arc::new(MemDisk::zeroed(100)), &ExtOptions::default()).is_err());
    if !can_mount(test) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let image = make(folder.path(), 16, &["-O", "^metadata_csum"]);
    let sound = std::fs::read(&image).unwrap();
    for (bit, name) in [(0x1, "compression"), (0x1000, "dirdata"), (0x0100_0000, "FEATURE_I24"), (0x8, "journal_dev")] {
        let mut bytes = sound.clone();
        let features = u32::from_le_bytes(bytes[1024 + 0x60..1024 + 0x64].try_into().unwrap()) | bit;
        bytes[1024 + 0x60..1024 + 0x64].copy_from_slice(&features.to_le_bytes());
        let error = Ext::open(Arc::new(MemDisk::from(bytes)), &ExtOptions::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains(name), "{error}");
    }
    // A disk that was cut short: what is there can be read.
    let short = MemDisk::from(sound[..15 << 20].to_vec());
    let ours = Ext::open(Arc::new(short), &ExtOptions::default()).unwrap();
    assert!(ours.facts().health.contains("the disk ends"), "{}", ours.facts().health);
    assert!(ours.lookup(2, b"lost+found").is_ok());
}

/// A file's disk keeps every promise of a disk.
#[test]
fn files_conform() {
    let test = "files_conform";
    if !can_mount(test) {
        return;
    }
    for options in [&[][..], &["-b", "1024", "-O", "inline_data"], &["-t", "ext2", "-b", "1024"]] {
        let folder = tempfile::tempdir().unwrap();
        let image = make(folder.path(), 32, options);
        let point = folder.path().join("mount");
        let mut expected = vec![0; 700_001];
        {
            let mount = Mount::new(&image, &point, "");
            let file = File::create(mount.path().join("f")).unwrap();
            for (at, length) in [(0, 10), (5000, 9000), (40_000, 1), (300_000, 100_000), (690_000, 10_001)] {
                let data = pattern(length, at as u64);
                file.write_all_at(&data, at as u64).unwrap();
                expected[at..at + length].copy_from_slice(&data);
            }
            std::fs::write(mount.path().join("tiny"), &expected[5000..5040]).unwrap();
        }
        let ours = open(&image).unwrap();
        let file = |name: &[u8]| ours.open(ours.lookup(2, name).unwrap()).unwrap();
        firn_disk::testing::check_disk(&*file(b"f"), &expected, 5);
        firn_disk::testing::check_disk(&*file(b"tiny"), &expected[5000..5040], 6);
        assert_eq!(ours.open(2).unwrap_err().kind(), ErrorKind::Invalid);
        assert_eq!(ours.list(ours.lookup(2, b"f").unwrap(), &mut |_| Ok(())).unwrap_err().kind(), ErrorKind::Invalid);
        for inode in [0, 1, 7, 8, 9999, u64::MAX] {
            assert_eq!(ours.stat(inode).unwrap_err().kind(), ErrorKind::NotFound, "{inode}");
        }
    }
}
