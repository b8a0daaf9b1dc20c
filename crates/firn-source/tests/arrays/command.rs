//! `command:` with an array of our own: a folder of files, whose snapshots are copies. And btrfs by the guide's own example.

use crate::support::{Btrfs, Taken, have, named, request, steps, take, tool};
use firn_disk::testing::pattern;
use firn_disk::{Disk, ErrorKind, Result};
use firn_source::{CommandSource, Outcome, Source, open};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const OWNER: &str = "0123456789abcdef";

/// A folder with the disk `live`, and `snaps`, where a snapshot is a file.
struct Array(TempDir);

impl Array {
    /// With keys that come before those of the least file, and with `$A` for the folder.
    fn new(more: &str) -> Self {
        let array = Self(tempfile::tempdir().unwrap());
        std::fs::create_dir(array.path("snaps")).unwrap();
        std::fs::write(array.path("live"), pattern(1 << 20, 1)).unwrap();
        array.say(more);
        array
    }

    /// Writes the command file.
    fn say(&self, more: &str) {
        let keys = [
            ("create", "cp $A/live $A/snaps/{name}"),
            ("path", "echo $A/snaps/{name}"),
            ("delete", "rm $A/snaps/{name}"),
            ("list", "ls -tr $A/snaps"),
        ];
        let missing = keys.iter().filter(|(key, _)| !more.contains(&format!("{key} =")));
        let text: String = missing.map(|(key, command)| format!("{key} = '''{command}'''\n")).collect();
        let text = format!("{text}{more}\n").replace("$A", self.0.path().to_str().unwrap());
        std::fs::write(self.path("array.toml"), text).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn source(&self) -> Box<dyn Source> {
        open(&format!("command:{}", self.path("array.toml").display()), &named("vda")).unwrap()
    }

    fn take(&self, run: u32, last: &Taken) -> Result<Taken> {
        take(&mut *self.source(), run, last)
    }

    fn snapshots(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.path("snaps")).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn change(&self, at: usize) {
        let mut bytes = std::fs::read(self.path("live")).unwrap();
        bytes[at] ^= 1;
        std::fs::write(self.path("live"), bytes).unwrap();
    }
}

fn name(run: u32) -> String {
    format!("firn-{OWNER}-{run:08x}")
}

#[test]
fn a_snapshot_is_made_read_and_deleted() {
    let array = Array::new("check = 'test -f $A/live'");
    std::fs::write(array.path("snaps").join("hourly"), "not ours").unwrap();
    let taken = array.take(0, &Taken::default()).unwrap();
    assert!(taken.contents[0] == pattern(1 << 20, 1) && taken.reasons[0].contains("no command"), "{:?}", taken.reasons);
    assert_eq!((array.snapshots(), taken.previous[0].generation.as_ref()), (vec!["hourly".to_owned()], None));
    std::fs::remove_file(array.path("live")).unwrap();
    let error = array.take(1, &taken).unwrap_err().to_string();
    assert!(error.contains("the command check failed with code 1"), "{error}");
}

#[test]
fn what_changed_is_asked_of_the_array_while_it_has_the_last_snapshot() {
    let changed = "keep = 1
changed = '''cmp -l $A/snaps/{previous} $A/snaps/{name} | while read at rest; do echo vda $((at - 1)) 1; done'''";
    let array = Array::new(changed);
    let last = array.take(0, &Taken::default()).unwrap();
    assert_eq!((array.snapshots(), last.changed.clone()), (vec![name(0)], vec![None]));
    for (run, at) in [(1, 5), (2, 700_000)] {
        array.change(at);
        let taken = array.take(run, &last).unwrap();
        assert!(taken.contents[0] == std::fs::read(array.path("live")).unwrap());
        if run == 1 {
            assert_eq!(taken.changed, [Some(1)]);
            // The last one of these counts, and its snapshot alone is kept.
            assert_eq!(array.snapshots(), [name(1)]);
        } else {
            assert!(taken.reasons[0].contains("no longer has"), "{:?}", taken.reasons);
        }
    }
    // Whatever it says that is not understood, everything is read.
    let last = array.take(3, &Taken::default()).unwrap();
    for (run, says) in [(4, "echo vda 1"), (5, "echo vda 1 2; false"), (6, "echo vda 1 18446744073709551615")] {
        array.say(&format!("keep = 1\nchanged = '{says}'"));
        let failing = &mut *array.source();
        let taken = steps(failing, run, &last).unwrap();
        failing.finish(Outcome::Failed).unwrap();
        assert!(taken.changed == [None] && taken.reasons[0].contains("changed"), "{:?}", taken.reasons);
        assert_eq!(array.snapshots(), [name(3)], "the base of the next run stays");
    }
}

#[test]
fn as_many_stay_as_should_under_names_of_their_own() {
    let array = Array::new("rename = 'mv $A/snaps/{name} $A/snaps/{kept}'\nkeep = 3");
    let mut last = Taken::default();
    for run in 0..5 {
        last = array.take(run, &last).unwrap();
    }
    assert_eq!(array.snapshots(), [2, 3, 4].map(|run| format!("web1-{}", name(run))));
    assert_eq!(last.previous[0].generation, Some(format!("web1-{}", name(4))));
}

#[test]
fn what_a_dead_run_left_is_removed_by_the_next() {
    let array = Array::new("");
    steps(&mut *array.source(), 1, &Taken::default()).unwrap();
    let foreign = ["firn-fedcba9876543210-00000001", "firn-0123456789abcdef-0000000g", "web1"];
    for name in foreign {
        std::fs::write(array.path("snaps").join(name), "").unwrap();
    }
    array.source().sweep(&request(2, &Taken::default())).unwrap();
    assert_eq!(array.snapshots().len(), foreign.len());
    steps(&mut *array.source(), 3, &Taken::default()).unwrap();
    array.take(4, &Taken::default()).unwrap();
    assert_eq!(array.snapshots().len(), foreign.len());
}

#[test]
fn a_create_that_fails_is_cleaned_up_after() {
    let half = "cp $A/live $A/snaps/{name}; echo volume is offline >&2; exit 7";
    let array = Array::new(&format!("create = '{half}'"));
    let error = array.take(0, &Taken::default()).unwrap_err();
    assert!(error.to_string().contains("the command create failed with code 7: volume is offline"), "{error}");
    assert_eq!(array.snapshots(), [""; 0]);
    // One that makes nothing: delete fails, and nothing is left, so only the cause is told.
    array.say("create = 'exit 7'");
    assert!(array.take(1, &Taken::default()).unwrap_err().to_string().contains("create"));
    array.say("create = 'cp $A/live $A/snaps/{name}; sleep 600'\ntimeout = 1");
    let error = array.take(2, &Taken::default()).unwrap_err();
    assert_eq!((error.kind(), array.snapshots()), (ErrorKind::Unavailable, vec![]), "{error}");
}

#[test]
fn a_delete_that_fails_is_told_and_tried_again() {
    let array = Array::new("delete = 'echo busy >&2; exit 1'");
    let error = array.take(1, &Taken::default()).unwrap_err();
    let said = format!("{error}");
    assert!(said.contains(&name(1)) && said.contains("busy"), "{said}");
    // The next one is made all the same, and says again what is left.
    let mut source = array.source();
    let taken = steps(&mut *source, 2, &Taken::default()).unwrap();
    assert_eq!(taken.contents.len(), 1);
    let error = source.finish(Outcome::Published).unwrap_err().to_string();
    assert!(error.contains(&name(2)), "{error}");
    let error = array.source().sweep(&request(3, &Taken::default())).unwrap_err().to_string();
    assert!(error.contains("is still on the array"), "{error}");
    array.say("");
    array.take(3, &Taken::default()).unwrap();
    assert_eq!(array.snapshots(), [""; 0]);
}

#[test]
fn what_path_prints_is_taken_or_refused_with_a_reason() {
    let array = Array::new("");
    for (path, words) in [
        ("true", "printed 0 lines"),
        ("echo relative", "no absolute path"),
        ("echo $A/nothing", "No such file"),
        ("echo $A/live; echo $A/live", "NAME="),
        ("echo vda=$A/live; echo vda=$A/live", "two disks"),
        ("exit 3", "code 3"),
        ("echo $A", "this is a folder"),
    ] {
        array.say(&format!("path = '{path}'"));
        let error = array.take(0, &Taken::default()).unwrap_err().to_string();
        assert!(error.contains(words), "{path}: {error}");
        assert_eq!(array.snapshots(), [""; 0], "{path}");
    }
    array.say("path = 'echo root=$A/snaps/{name}; echo data=$A/live'");
    let taken = array.take(1, &Taken::default()).unwrap();
    let names: Vec<_> = taken.previous.iter().map(|disk| disk.name.as_str()).collect();
    assert_eq!(names, ["root", "data"]);
    array.say("path = 'printf \"%s\" vda=$A/snaps/$FIRN_NAME'\natomic = false");
    assert!(!array.source().is_atomic());
    array.take(2, &Taken::default()).unwrap();
}

#[test]
fn a_snapshot_that_the_array_loses_gives_none() {
    let array = Array::new("");
    let mut source = array.source();
    let request = request(1, &Taken::default());
    source.prepare(&request).unwrap();
    source.cut().unwrap();
    let opened = source.open().unwrap();
    std::fs::remove_file(array.path("snaps").join(name(1))).unwrap();
    let error = source.check().unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::NotFound), "{error}");
    drop(opened);
    source.finish(Outcome::Failed).unwrap();
}

#[test]
fn a_file_that_others_may_write_to_is_not_run() {
    let array = Array::new("create = 'touch $A/ran'");
    std::fs::set_permissions(array.path("array.toml"), PermissionsExt::from_mode(0o666)).unwrap();
    let file = array.path("array.toml");
    let error = CommandSource::new(file.to_str().unwrap(), &named("vda")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert!(!array.path("ran").exists());
}

/// The example called `title` in the guide, as a command file.
fn example(title: &str) -> String {
    let guide = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/guide/sources.md");
    let guide = std::fs::read_to_string(guide).unwrap();
    let (_, rest) = guide.split_once(&format!("# {title}")).unwrap_or_else(|| panic!("no example {title}"));
    rest.split_once("```").unwrap().0.to_owned()
}

#[test]
fn the_guides_example_for_btrfs_works() {
    let test = "the_guides_example_for_btrfs_works";
    let Some(disk) = Btrfs::mount(test).filter(|_| have(test, &["btrfs"])) else { return };
    let folder = disk.subvolume("web1");
    let file = disk.path("btrfs.toml");
    std::fs::write(&file, example("btrfs.toml").replace("/vms", disk.path("").to_str().unwrap().trim_end_matches('/')))
        .unwrap();
    std::fs::write(folder.join("root.img"), pattern(1 << 20, 3)).unwrap();
    std::fs::write(folder.join("data.img"), pattern(1 << 16, 4)).unwrap();
    let source = || open(&format!("command:{}", file.display()), &named("vda")).unwrap();
    let taken = take(&mut *source(), 1, &Taken::default()).unwrap();
    assert!(taken.contents == [pattern(1 << 20, 3), pattern(1 << 16, 4)]);
    assert_eq!(disk.snapshots(""), [""; 0]);
    steps(&mut *source(), 2, &taken).unwrap();
    source().sweep(&request(3, &taken)).unwrap();
    let left: Vec<_> = std::fs::read_dir(disk.path("")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
}

/// A volume group on a loop device, gone with this.
struct Volumes {
    folder: TempDir,
    device: String,
    group: String,
}

impl Volumes {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("pv");
        std::fs::File::create(&image).unwrap().set_len(128 << 20).unwrap();
        let device = tool("losetup", &["-f", "--show", image.to_str().unwrap()]).trim().to_owned();
        let group = format!("firntest{}", std::process::id());
        tool("vgcreate", &["-q", "-y", &group, &device]);
        tool("lvcreate", &["-q", "-y", "-n", "web1", "-L", "32M", &group]);
        Self { folder, device, group }
    }
}

impl Drop for Volumes {
    fn drop(&mut self) {
        tool("vgremove", &["-q", "-y", "-f", &self.group]);
        tool("losetup", &["-d", &self.device]);
    }
}

#[test]
#[ignore = "takes a kernel with device-mapper, as a guest has: run this program there with --ignored"]
fn the_guides_example_for_lvm_works() {
    let volumes = Volumes::new();
    let origin = format!("/dev/{}/web1", volumes.group);
    let write = |seed| {
        let opened = std::fs::File::options().write(true).open(&origin).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&opened, &pattern(4 << 20, seed), 1 << 20).unwrap();
        opened.sync_all().unwrap();
    };
    write(1);
    let file = volumes.folder.path().join("lvm.toml");
    let text = example("lvm.toml").replace("vg0", &volumes.group).replace("-L 1G", "-L 16M").replace("-ge 1", "-ge 0");
    std::fs::write(&file, text).unwrap();
    let source = || open(&format!("command:{}", file.display()), &named("vda")).unwrap();
    let mut taking = source();
    let asked = request(1, &Taken::default());
    taking.plan(&asked).unwrap();
    taking.prepare(&asked).unwrap();
    taking.cut().unwrap();
    write(2);
    let disk = taking.open().unwrap().remove(0).disk;
    let mut found = vec![0; 4 << 20];
    disk.read_at(&mut found, 1 << 20).unwrap();
    assert!(disk.len() == 32 << 20 && found == pattern(4 << 20, 1), "the volume as it was at the cut");
    taking.check().unwrap();
    drop(disk);
    taking.finish(Outcome::Published).unwrap();
    let left = || tool("lvs", &["--noheadings", "-o", "lv_name", &volumes.group]).split_whitespace().count();
    assert_eq!(left(), 1);
    // One that died, and one that is full before it is read.
    steps(&mut *source(), 2, &Taken::default()).unwrap();
    assert_eq!(left(), 2);
    let mut full = source();
    let asked = request(3, &Taken::default());
    full.prepare(&asked).unwrap();
    assert_eq!(left(), 1);
    full.cut().unwrap();
    let opened = std::fs::File::options().write(true).open(&origin).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&opened, &pattern(24 << 20, 3), 0).unwrap();
    opened.sync_all().unwrap();
    let read = full.open().and_then(|mut disks| disks.remove(0).disk.read_at(&mut found, 0));
    assert!(read.is_err(), "a snapshot that is full is lost");
    full.finish(Outcome::Failed).unwrap();
    assert_eq!(left(), 1);
}
