//! A file system of btrfs to work in, and a run of a source as `firn snap` makes it, into a pool that is a list of bytes.

use firn_disk::testing::skip;
use firn_disk::{Disk, Result};
use firn_source::{Changed, FrozenDisk, Outcome, PreviousDisk, Request, Source, SourceOptions};
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Runs a tool that has to succeed and answers what it printed.
pub fn tool(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).env("PATH", PATH).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {stderr}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Whether all `programs` are there, with the option that makes them do nothing; otherwise the test says so.
pub fn have(test: &str, programs: &[&str]) -> bool {
    let is_there = |program: &&&str| PATH.split(':').any(|folder| Path::new(folder).join(program).exists());
    let missing: Vec<_> = programs.iter().filter(|program| !is_there(program)).collect();
    if !missing.is_empty() {
        skip(test, &format!("it takes {missing:?}"));
    }
    missing.is_empty()
}

/// Whether this is root; otherwise the test says so.
pub fn is_root(test: &str) -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        skip(test, "it takes root");
    }
    is_root
}

/// A mounted btrfs, gone with this.
#[derive(Debug)]
pub struct Btrfs {
    folder: TempDir,
}

impl Btrfs {
    /// None where the test cannot run, which is said then.
    pub fn mount(test: &str) -> Option<Self> {
        if !is_root(test) || !have(test, &["btrfs", "mkfs.btrfs", "mount", "losetup"]) {
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        std::fs::File::create(&image).unwrap().set_len(400 << 20).unwrap();
        tool("mkfs.btrfs", &["-q", image.to_str().unwrap()]);
        let top = folder.path().join("top");
        std::fs::create_dir(&top).unwrap();
        let mounted =
            Command::new("mount").arg("-o").arg("loop").args([&image, &top]).env("PATH", PATH).output().unwrap();
        if !mounted.status.success() {
            skip(test, &format!("no loop mount: {}", String::from_utf8_lossy(&mounted.stderr)));
            return None;
        }
        Some(Self { folder })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("top").join(name)
    }

    pub fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    pub fn subvolume(&self, name: &str) -> PathBuf {
        tool("btrfs", &["subvolume", "create", &self.text(name)]);
        self.path(name)
    }

    /// What runs of firn left in a folder.
    pub fn snapshots(&self, name: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.path(name)).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with(".firn-")).collect()
    }
}

impl Drop for Btrfs {
    fn drop(&mut self) {
        tool("umount", &[self.path("").to_str().unwrap()]);
    }
}

/// What a snapshot in the pool would be: disks with their content, and what the next run is told of them.
#[derive(Debug, Default, Clone)]
pub struct Taken {
    pub previous: Vec<PreviousDisk>,
    pub contents: Vec<Vec<u8>>,
    /// Bytes that were read, for each disk; none where all were.
    pub changed: Vec<Option<u64>>,
    /// Why all of a disk was read.
    pub reasons: Vec<String>,
}

/// What is asked of a source in run `run`, after `last`.
pub fn request(run: u32, last: &Taken) -> Request {
    Request {
        machine: "web1".into(),
        owner: "0123456789abcdef".into(),
        run: format!("{run:08x}"),
        previous: last.previous.clone(),
        scratch_folder: None,
    }
}

pub fn named(name: &str) -> SourceOptions {
    SourceOptions { name: name.into(), ..SourceOptions::default() }
}

/// Takes a snapshot as `firn snap` does: reads what changed, and has the rest from the last one.
///
/// # Errors
/// The first of the source, after `finish`.
pub fn take(source: &mut dyn Source, run: u32, last: &Taken) -> Result<Taken> {
    let taken = steps(source, run, last);
    let outcome = if taken.is_ok() { Outcome::Published } else { Outcome::Failed };
    let finished = source.finish(outcome);
    let taken = taken?;
    finished.map(|()| taken)
}

/// Everything but `finish`.
///
/// # Errors
/// The first of the source.
pub fn steps(source: &mut dyn Source, run: u32, last: &Taken) -> Result<Taken> {
    let request = request(run, last);
    let plan = source.plan(&request)?;
    source.prepare(&request)?;
    source.cut()?;
    let disks = source.open()?;
    if !plan.disks.is_empty() {
        let lengths: Vec<_> = disks.iter().map(|disk| (&disk.name, disk.disk.len())).collect();
        assert_eq!(plan.disks.iter().map(|disk| (&disk.name, disk.length)).collect::<Vec<_>>(), lengths);
    }
    let mut taken = Taken::default();
    for disk in disks {
        add(&mut taken, disk, last)?;
    }
    source.check()?;
    Ok(taken)
}

fn add(taken: &mut Taken, frozen: FrozenDisk, last: &Taken) -> Result<()> {
    let length = frozen.disk.len();
    let old = last.previous.iter().position(|disk| disk.name == frozen.name);
    let mut content = old.map(|number| last.contents[number].clone()).unwrap_or_default();
    let grown = content.len() as u64..length;
    content.resize(usize::try_from(length).unwrap(), 0);
    let ranges = match frozen.changed {
        Changed::Since(mut ranges) => {
            taken.changed.push(Some(ranges.iter().map(|range| range.end - range.start).sum()));
            taken.reasons.push(String::new());
            ranges.push(grown);
            ranges
        }
        Changed::Unknown(reason) => {
            taken.changed.push(None);
            taken.reasons.push(reason);
            std::iter::once(0..length).collect()
        }
    };
    for range in ranges.into_iter().filter(|range| range.start < range.end) {
        let (start, end) = (usize::try_from(range.start).unwrap(), usize::try_from(range.end).unwrap());
        frozen.disk.read_at(&mut content[start..end], range.start)?;
    }
    taken.contents.push(content);
    let FrozenDisk { name, source, generation, .. } = frozen;
    taken.previous.push(PreviousDisk { name, length, source, generation });
    Ok(())
}
