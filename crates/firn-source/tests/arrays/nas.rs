//! `nas:` on folders that look as filers make them, and on snapshots that btrfs made for real.

use crate::support::{Btrfs, Taken, have, named, take, tool};
use firn_disk::ErrorKind;
use firn_disk::testing::pattern;
use firn_source::{Source, nas, open};
use jiff::Timestamp;
use std::path::{Path, PathBuf};

fn put(folder: &Path, name: &str, content: &[u8]) -> PathBuf {
    let file = folder.join(name);
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, content).unwrap();
    file
}

fn names(file: &Path) -> Vec<(String, String)> {
    let versions = nas::versions(file).unwrap();
    versions.iter().map(|version| (version.name.clone(), version.taken.to_string())).collect()
}

fn is_in_zone(zone: &str) -> bool {
    jiff::tz::TimeZone::system().iana_name() == Some(zone)
}

#[test]
fn versions_of_every_kind_of_filer_are_found_oldest_first() {
    let folder = tempfile::tempdir().unwrap();
    let top = folder.path();
    let file = put(top, "vm/web1/a.img", b"now");
    put(top, "vm/web1/.snapshot/hourly.2026-11-17_0305/a.img", b"netapp");
    put(top, "vm/.snapshot/daily.2026-11-16_0010/web1/a.img", b"netapp above");
    put(top, "vm/.snapshot/daily.2026-11-15_0010/other/a.img", b"not there then");
    put(top, ".zfs/snapshot/autosnap_2026-11-14_00:00:01_daily/vm/web1/a.img", b"zfs");
    put(top, ".snapshots/7/snapshot/vm/web1/a.img", b"snapper");
    put(
        top,
        ".snapshots/7/info.xml",
        b"<?xml version=\"1.0\"?>\n<snapshot>\n  <date>2026-11-13 23:30:00</date>\n</snapshot>",
    );
    put(top, "vm/@GMT-2026.11.12-03.05.09/web1/a.img", b"samba");
    put(top, ".snapshots/note", b"no folder");
    let found = nas::versions(&file).unwrap();
    let contents: Vec<_> = found.iter().map(|version| std::fs::read(&version.path).unwrap()).collect();
    let contents: Vec<_> = contents.iter().map(|content| std::str::from_utf8(content).unwrap()).collect();
    assert_eq!(contents, ["samba", "snapper", "zfs", "netapp above", "netapp"]);
    let certain: Vec<_> = found.iter().map(|version| version.remark.is_none()).collect();
    assert_eq!(certain, [true, true, false, false, false]);
    assert_eq!(found[0].taken.to_string(), "2026-11-12T03:05:09Z");
    assert_eq!(found[1].taken.to_string(), "2026-11-13T23:30:00Z");
    if is_in_zone("UTC") || is_in_zone("Etc/UTC") {
        assert_eq!(found[4].taken.to_string(), "2026-11-17T03:05:00Z");
    }
    // The file may be gone by now.
    std::fs::remove_file(&file).unwrap();
    assert_eq!(nas::versions(&file).unwrap(), found);
}

#[test]
fn each_version_is_taken_once_and_the_newest_by_default() {
    let folder = tempfile::tempdir().unwrap();
    let file = put(folder.path(), "a.img", &pattern(4096, 9));
    for (name, seed) in [("daily.2026-11-16_0010", 1), ("hourly.2026-11-17_0305", 2), ("@x", 3)] {
        put(folder.path(), &format!(".snapshot/{name}/a.img"), &pattern(4096, seed));
    }
    // A name without a date: its last change tells when.
    let undated = folder.path().join(".snapshot/@x");
    for path in [undated.join("a.img"), undated.clone()] {
        tool("touch", &["-d", "2026-11-01T00:00:00Z", path.to_str().unwrap()]);
    }
    let uri = format!("nas:{}", file.display());
    let sources = nas::each(&uri, &named("vda")).unwrap();
    let mut generations: Vec<_> = sources.iter().map(|source| source.generation().to_owned()).collect();
    let again = nas::each(&uri, &named("vda")).unwrap();
    assert_eq!(generations, again.iter().map(|source| source.generation().to_owned()).collect::<Vec<_>>());
    let mut seeds = vec![1, 2, 3];
    for mut source in sources {
        let taken = take(&mut source, 0, &Taken::default()).unwrap();
        seeds.retain(|seed| pattern(4096, *seed) != taken.contents[0]);
        assert_eq!(taken.previous[0].generation.as_deref(), Some(source.generation()));
        assert_eq!((taken.previous[0].source.as_str(), Some(source.version().taken)), (uri.as_str(), source.taken()));
    }
    generations.sort();
    generations.dedup();
    assert!(seeds.is_empty() && generations.len() == 3, "{seeds:?} {generations:?}");
    let newest = nas::versions(&file).unwrap().pop().unwrap();
    let mut source = open(&uri, &named("vda")).unwrap();
    assert_eq!(source.taken(), Some(newest.taken));
    let taken = take(&mut *source, 0, &Taken::default()).unwrap();
    assert!(taken.contents[0] == std::fs::read(newest.path).unwrap());
    let version = format!("{uri}?version=daily.2026-11-16_0010");
    assert!(
        take(&mut *open(&version, &named("vda")).unwrap(), 0, &Taken::default()).unwrap().contents[0]
            == pattern(4096, 1)
    );
    let missing = open(&format!("{uri}?version=weekly"), &named("vda")).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
}

#[test]
fn a_name_that_moves_on_to_the_next_snapshot_is_another_version() {
    let folder = tempfile::tempdir().unwrap();
    let file = put(folder.path(), "a.img", b"0");
    let hourly = |number: u32| folder.path().join(format!(".snapshot/hourly.{number}"));
    let at = |path: &Path, time: &str| {
        put(path, "a.img", time.as_bytes());
        for path in [path.join("a.img"), path.to_path_buf()] {
            tool("touch", &["-d", time, path.to_str().unwrap()]);
        }
    };
    at(&hourly(0), "2026-11-17T01:00:00Z");
    let before = nas::versions(&file).unwrap().remove(0);
    std::fs::rename(hourly(0), hourly(1)).unwrap();
    at(&hourly(0), "2026-11-17T02:00:00Z");
    let after = nas::versions(&file).unwrap();
    let found = after.iter().find(|version| version.name == "hourly.0").unwrap();
    assert_ne!(found.generation, before.generation);
    assert!(after.iter().all(|version| version.remark.as_ref().is_some_and(|remark| remark.contains("no date"))));
}

#[test]
fn where_there_are_no_snapshots_it_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let file = put(folder.path(), "a.img", b"0");
    let error = open(&format!("nas:{}", file.display()), &named("vda")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    put(folder.path(), ".snapshot/hourly.2026-11-17_0305/b.img", b"0");
    assert_eq!(names(&file), []);
    let error = open(&format!("nas:{}", file.display()), &named("vda")).unwrap_err();
    assert!(error.to_string().contains("no snapshot with this file"), "{error}");
}

#[test]
fn an_image_is_read_with_the_files_of_its_own_snapshot() {
    let test = "an_image_is_read_with_the_files_of_its_own_snapshot";
    let Some(disk) = Btrfs::mount(test).filter(|_| have(test, &["qemu-img"])) else { return };
    let folder = disk.subvolume("vm");
    std::fs::write(folder.join("base.raw"), pattern(1 << 20, 1)).unwrap();
    let (base, top) = (disk.text("vm/base.raw"), disk.text("vm/a.qcow2"));
    tool("qemu-img", &["create", "-q", "-f", "qcow2", "-F", "raw", "-b", &base, &top]);
    // As snapper makes them.
    std::fs::create_dir_all(disk.path("vm/.snapshots/1")).unwrap();
    std::fs::write(disk.path("vm/.snapshots/1/info.xml"), "<date>2026-11-13 23:30:00</date>").unwrap();
    tool("btrfs", &["subvolume", "snapshot", "-r", &disk.text("vm"), &disk.text("vm/.snapshots/1/snapshot")]);
    std::fs::write(folder.join("base.raw"), pattern(1 << 20, 2)).unwrap();
    let uri = format!("nas:{top}");
    let mut source = open(&uri, &named("vda")).unwrap();
    assert_eq!(source.taken(), Some("2026-11-13T23:30:00Z".parse::<Timestamp>().unwrap()));
    let taken = take(&mut *source, 0, &Taken::default()).unwrap();
    assert!(taken.contents[0] == pattern(1 << 20, 1));
    // What lies outside of the snapshot is not of its instant.
    std::fs::write(disk.path("outside.raw"), pattern(1 << 20, 3)).unwrap();
    let outside = disk.text("outside.raw");
    tool("qemu-img", &["rebase", "-u", "-F", "raw", "-b", &outside, &top]);
    std::fs::create_dir(disk.path("vm/.snapshots/2")).unwrap();
    tool("btrfs", &["subvolume", "snapshot", "-r", &disk.text("vm"), &disk.text("vm/.snapshots/2/snapshot")]);
    let error =
        take(&mut *open(&format!("{uri}?version=2"), &named("vda")).unwrap(), 0, &Taken::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
}
