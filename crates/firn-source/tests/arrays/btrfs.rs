//! `btrfs:` on a real btrfs: what is said to have changed, put onto the last snapshot, has to give the bytes that the kernel
//! shows in the new one.

use crate::support::{Btrfs, Taken, have, named, request, steps, take, tool};
use firn_disk::ErrorKind;
use firn_disk::testing::{Random, pattern};
use firn_source::{Outcome, Source, open};
use rustix::fs::{FallocateFlags, fallocate};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

const MIB: u64 = 1 << 20;

fn source(uri: &str) -> Box<dyn Source> {
    open(uri, &named("vda")).unwrap()
}

fn write(file: &Path, offset: u64, length: u64, seed: u64) {
    let bytes = pattern(usize::try_from(length).unwrap(), seed);
    File::options().write(true).create(true).truncate(false).open(file).unwrap().write_all_at(&bytes, offset).unwrap();
}

/// One thing that may be done to an image while it is in use.
fn disturb(random: &mut Random, file: &Path, other: &Path) -> String {
    let opened = File::options().read(true).write(true).open(file).unwrap();
    let length = opened.metadata().unwrap().len();
    let offset = random.below(length);
    let size = 1 + random.below(200_000);
    let (block, blocks) = (offset / 4096 * 4096, size.div_ceil(4096) * 4096);
    let allocate = |mode| fallocate(&opened, mode, offset, size).unwrap();
    let what = random.below(10);
    match what {
        0..4 => write(file, offset, size, random.next_u64()),
        4 => allocate(FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE),
        5 => allocate(FallocateFlags::ZERO_RANGE),
        6 => allocate(FallocateFlags::KEEP_SIZE),
        7 => opened.set_len(length / 2 + random.below(length)).unwrap(),
        8 => {
            // Shorter and as long as before: what lies between is a hole now.
            opened.set_len(offset).unwrap();
            opened.set_len(length).unwrap();
        }
        _ => {
            let room = std::fs::metadata(other).unwrap().len() / 4096 * 4096;
            let from = random.below(room.saturating_sub(blocks).max(4096)) / 4096 * 4096;
            let clone = format!("reflink {} {from} {block} {}", other.display(), blocks.min(room - from));
            tool("xfs_io", &["-c", &clone, file.to_str().unwrap()]);
        }
    }
    format!("{what} at {offset} of {size} in {}", file.display())
}

#[test]
fn whatever_is_done_to_images_the_changed_ranges_cover_it() {
    let test = "whatever_is_done_to_images_the_changed_ranges_cover_it";
    let Some(disk) = Btrfs::mount(test).filter(|_| have(test, &["xfs_io", "chattr", "qemu-img"])) else { return };
    let folder = disk.subvolume("vms");
    let file = |name: &str| folder.join(name);
    let seed = 20_261_121;
    println!("seed {seed}");
    let mut random = Random::new(seed);
    // One that is not copied on write by itself, as images on btrfs often are, and a compressed one.
    File::create(file("b.img")).unwrap();
    tool("chattr", &["+C", file("b.img").to_str().unwrap()]);
    File::create(file("c.img")).unwrap();
    tool("btrfs", &["property", "set", file("c.img").to_str().unwrap(), "compression", "zstd"]);
    let names = ["a.img", "b.img", "c.img"];
    for (name, number) in names.iter().zip(0..) {
        write(&file(name), 0, 6 * MIB + number * 512, number);
    }
    tool("qemu-img", &["create", "-q", "-f", "qcow2", file("d.qcow2").to_str().unwrap(), "4M"]);
    let uri = format!("btrfs:{}?images=a.img,b.img,c.img,d.qcow2", folder.display());
    let mut last = Taken::default();
    let mut partial = 0;
    for round in 0..24 {
        let mut done = Vec::new();
        for _ in 0..random.below(6) {
            let mut any = || names[usize::try_from(random.below(3)).unwrap()];
            let (one, other) = (any(), any());
            // btrfs clones only between files that are both copied on write, or both not.
            let other = if (one == "b.img") == (other == "b.img") { other } else { one };
            done.push(disturb(&mut random, &file(one), &file(other)));
            // Sometimes in one transaction of the file system, sometimes in several.
            if random.below(2) == 0 {
                tool("btrfs", &["filesystem", "sync", folder.to_str().unwrap()]);
            }
        }
        let truth: Vec<_> = names.iter().map(|name| std::fs::read(file(name)).unwrap()).collect();
        let taken = take(&mut *source(&uri), round, &last).unwrap();
        for (number, (name, truth)) in names.iter().zip(&truth).enumerate() {
            let found = &taken.contents[number];
            let wrong = found.iter().zip(truth).position(|(found, truth)| found != truth);
            let equal = found.len() == truth.len() && wrong.is_none();
            assert!(equal, "seed {seed} round {round} {name}: differs at {wrong:?} after {done:?}");
            assert_eq!(taken.changed[number].is_some(), round > 0, "{name}: {}", taken.reasons[number]);
            partial += u64::from(taken.changed[number].is_some_and(|bytes| bytes < MIB));
        }
        assert!(round == 0 || taken.reasons[3].contains("image file"), "{}", taken.reasons[3]);
        assert_eq!(disk.snapshots("").len(), 1);
        last = taken;
    }
    assert!(partial > 20, "only {partial} of 72 images were read in part");
    // Nothing happened: nothing is read.
    let taken = take(&mut *source(&uri), 99, &last).unwrap();
    assert_eq!(taken.changed[..3], [Some(0); 3]);
}

#[test]
fn what_cannot_be_compared_is_read_whole() {
    let test = "what_cannot_be_compared_is_read_whole";
    let Some(disk) = Btrfs::mount(test) else { return };
    let folder = disk.subvolume("vms");
    let file = folder.join("a.img");
    let uri = format!("btrfs:{}", file.display());
    write(&file, 0, MIB, 1);
    let mut last = take(&mut *source(&uri), 0, &Taken::default()).unwrap();
    assert!(last.reasons[0].contains("no snapshot of this source"), "{last:?}");
    let mut run = 0;
    let mut check = |what: &str, reason: &str, change: &dyn Fn(&Taken)| {
        change(&last);
        run += 1;
        let taken = take(&mut *source(&uri), run, &last).unwrap();
        assert!(taken.reasons[0].contains(reason), "{what}: {}", taken.reasons[0]);
        assert!(taken.contents[0] == std::fs::read(&file).unwrap(), "{what}");
        assert_eq!(disk.snapshots("").len(), 1, "{what}");
        last = taken;
    };
    let write_one = |seed| write(&file, 8192, 4096, seed);
    check("in between", "", &|_| write_one(2));
    check("another file in its place", "replaced", &|_| {
        std::fs::copy(&file, folder.join("new")).unwrap();
        std::fs::rename(folder.join("new"), &file).unwrap();
        write_one(3);
    });
    check("a second name", "several names", &|_| {
        std::fs::hard_link(&file, folder.join("0.img")).unwrap();
        write(&folder.join("0.img"), 0, 4096, 4);
    });
    check("one name again", "several names", &|_| std::fs::remove_file(folder.join("0.img")).unwrap());
    check("renamed and back", "", &|_| {
        std::fs::rename(&file, folder.join("b.img")).unwrap();
        write(&folder.join("b.img"), 0, 4096, 5);
        std::fs::rename(folder.join("b.img"), &file).unwrap();
    });
    let base = || disk.text(&disk.snapshots("")[0]);
    check("the base gone", "is gone", &|_| drop(tool("btrfs", &["subvolume", "delete", &base()])));
    check("the base written to", "is gone, or was written to", &|_| {
        tool("btrfs", &["property", "set", &base(), "ro", "false"]);
        write(&Path::new(&base()).join("a.img"), 0, 4096, 6);
        tool("btrfs", &["property", "set", &base(), "ro", "true"]);
        write_one(7);
    });
    check("in between again", "", &|_| write_one(8));
    // The pool has another state than any snapshot.
    let mut other = last.clone();
    other.previous[0].generation = Some("63c1b80a-6789-9f49-91ad-4e97e0967aa3:10".into());
    assert!(take(&mut *source(&uri), 77, &other).unwrap().reasons[0].contains("is gone"));
}

#[test]
fn a_run_that_fails_or_dies_leaves_only_what_the_next_one_needs() {
    let test = "a_run_that_fails_or_dies_leaves_only_what_the_next_one_needs";
    let Some(disk) = Btrfs::mount(test) else { return };
    let folder = disk.subvolume("vms");
    let file = folder.join("a.img");
    let uri = format!("btrfs:{}", file.display());
    write(&file, 0, MIB, 1);
    let last = take(&mut *source(&uri), 0, &Taken::default()).unwrap();
    write(&file, 0, 4096, 2);
    // It dies while it reads; another machine's snapshot is beside it.
    steps(&mut *source(&uri), 1, &last).unwrap();
    let strange = ".firn-fedcba9876543210-256-00000000";
    tool("btrfs", &["subvolume", "create", &disk.text(strange)]);
    assert_eq!(disk.snapshots("").len(), 3);
    source(&uri).sweep(&request(2, &last)).unwrap();
    assert_eq!(disk.snapshots("").len(), 2);
    // It fails: its own is removed, the base stays.
    let mut failing = source(&uri);
    steps(&mut *failing, 3, &last).unwrap();
    failing.finish(Outcome::Failed).unwrap();
    let taken = take(&mut *source(&uri), 4, &last).unwrap();
    assert_eq!(taken.changed, [Some(4096)]);
    // The frozen copy is lost while it is read.
    let mut losing = source(&uri);
    let request = request(5, &taken);
    losing.prepare(&request).unwrap();
    losing.cut().unwrap();
    let opened = losing.open().unwrap();
    let made = disk.snapshots("").into_iter().find(|name| name.ends_with("-00000005")).unwrap();
    tool("btrfs", &["subvolume", "delete", &disk.text(&made)]);
    assert_eq!(losing.check().unwrap_err().kind(), ErrorKind::Unavailable);
    drop(opened);
    losing.finish(Outcome::Failed).unwrap();
    let mut left = disk.snapshots("");
    left.sort();
    assert!(left.len() == 2 && left[0].ends_with("-00000004") && left[1] == strange, "{left:?}");
    // Two sources of one subvolume would be in each other's way.
    let (mut one, mut two) = (source(&uri), source(&uri));
    one.prepare(&request).unwrap();
    two.prepare(&request).unwrap();
    one.cut().unwrap();
    assert_eq!(two.cut().unwrap_err().kind(), ErrorKind::Exists);
    one.finish(Outcome::Failed).unwrap();
}

#[test]
fn files_below_an_image_are_those_of_the_snapshot_or_it_is_refused() {
    let test = "files_below_an_image_are_those_of_the_snapshot_or_it_is_refused";
    let Some(disk) = Btrfs::mount(test).filter(|_| have(test, &["qemu-img"])) else { return };
    let folder = disk.subvolume("vms");
    let text = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    write(&folder.join("base.raw"), 0, MIB, 1);
    std::fs::write(disk.path("outside.raw"), pattern(1 << 20, 2)).unwrap();
    std::os::unix::fs::symlink(disk.path("outside.raw"), folder.join("link.raw")).unwrap();
    let image = |name: &str, base: &str| {
        tool("qemu-img", &["create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, &text(name)]);
    };
    image("relative.qcow2", "base.raw");
    image("absolute.qcow2", &text("base.raw"));
    image("outside.qcow2", &disk.text("outside.raw"));
    image("link.qcow2", "link.raw");
    image("above.qcow2", "../outside.raw");
    for name in ["relative.qcow2", "absolute.qcow2"] {
        let mut source = source(&format!("btrfs:{}", text(name)));
        let request = request(0, &Taken::default());
        source.prepare(&request).unwrap();
        source.cut().unwrap();
        // What is written now is not of the instant.
        let truth = std::fs::read(folder.join("base.raw")).unwrap();
        write(&folder.join("base.raw"), 4096, 4096, 9);
        let opened = source.open().unwrap().remove(0);
        let mut found = vec![0; 1 << 20];
        opened.disk.read_at(&mut found, 0).unwrap();
        assert!(found == truth, "{name}");
        source.check().unwrap();
        source.finish(Outcome::Published).unwrap();
        assert_eq!(disk.snapshots(""), [""; 0], "nothing to compare the next one with");
    }
    for name in ["outside.qcow2", "link.qcow2", "above.qcow2"] {
        let mut options = named("vda");
        options.file.image.allow_backing = vec![disk.path("")];
        let mut source = open(&format!("btrfs:{}", text(name)), &options).unwrap();
        let error = take(&mut *source, 1, &Taken::default()).unwrap_err();
        assert!(error.kind() == ErrorKind::Denied && error.to_string().contains("outside"), "{name}: {error}");
        assert_eq!(disk.snapshots(""), [""; 0]);
    }
}

#[test]
fn a_subvolume_that_is_mounted_by_itself_has_its_snapshots_inside() {
    let test = "a_subvolume_that_is_mounted_by_itself_has_its_snapshots_inside";
    let Some(disk) = Btrfs::mount(test) else { return };
    disk.subvolume("vms");
    let mount = tempfile::tempdir().unwrap();
    let device = tool("findmnt", &["-no", "SOURCE", &disk.text("")]);
    tool("mount", &["-o", "subvol=vms", device.trim(), mount.path().to_str().unwrap()]);
    let uri = format!("btrfs:{}/a.img", mount.path().display());
    let work = || {
        write(&mount.path().join("a.img"), 0, MIB, 1);
        let last = take(&mut *source(&uri), 0, &Taken::default()).unwrap();
        write(&mount.path().join("a.img"), 0, 4096, 2);
        take(&mut *source(&uri), 1, &last).unwrap()
    };
    let taken = std::panic::catch_unwind(work);
    let left = disk.snapshots("vms");
    tool("umount", &[mount.path().to_str().unwrap()]);
    assert_eq!((taken.unwrap().changed, left.len()), (vec![Some(4096)], 1));
}

#[test]
fn what_is_no_image_in_one_subvolume_is_refused_with_a_reason() {
    let test = "what_is_no_image_in_one_subvolume_is_refused_with_a_reason";
    let Some(disk) = Btrfs::mount(test) else { return };
    for name in ["one", "two"] {
        write(&disk.subvolume(name).join("a.img"), 0, 4096, 1);
    }
    let elsewhere = tempfile::NamedTempFile::new().unwrap();
    let (one, two) = (disk.text("one"), disk.text("two"));
    let on_btrfs = tool("stat", &["-fc", "%T", elsewhere.path().to_str().unwrap()]).contains("btrfs");
    for (uri, words) in [
        (format!("btrfs:{one}/a.img,{two}/a.img"), "a source for each subvolume"),
        (format!("btrfs:{one}"), "no image file"),
        ("btrfs:".to_owned(), "names no images"),
        (format!("btrfs:{one}/b.img"), "No such file"),
        (format!("btrfs:vda={one}/a.img,vda={one}/a.img"), "two disks vda"),
        (format!("btrfs:{}", elsewhere.path().display()), "does not lie on btrfs"),
    ] {
        if on_btrfs && words.contains("does not lie") {
            continue;
        }
        let error = open(&uri, &named("vda")).unwrap_err();
        let said = format!("{error} {}", error.next_step().unwrap_or_default());
        assert!(said.contains(words), "{uri}: {said}");
    }
}
