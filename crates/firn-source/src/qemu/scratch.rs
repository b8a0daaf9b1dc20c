//! Scratch: where QEMU puts what the guest overwrites while the snapshot is read.
//!
//! ```text
//!   node s   qcow2, as long as the disk
//!   node l   raw, of fixed size: past it QEMU itself says that there is no room
//!   node f   file /dev/fdset/N: a file that firn opened and that has no name
//! ```
//! The file has no name from the beginning (`O_TMPFILE`), so that nothing of it stays behind, whoever dies, and nobody
//! else can open it; QEMU gets it as a file descriptor and needs no right to the folder. Beside the descriptor QEMU keeps
//! a note of what the disk was connected to ([`Note`]), by which [`leftovers`](super::leftovers) undo a dead run's work.
//!
//! Each disk may use its share of three quarters of the free room. The rest is for the guest's own image, which may lie
//! on the same file system.

use super::blocks::Drive;
use super::monitor::Monitor;
use super::names::{Names, NodeKind};
use firn_disk::{Error, ErrorKind, Result};
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Less than this for a disk is not worth to begin with.
const LEAST_BYTES: u64 = 4 << 20;
/// Where scratch goes when the image's own folder is not known or is no place for files.
const ELSEWHERE: &str = "/var/tmp";
/// For making an empty image.
const CREATE: Duration = Duration::from_secs(30);

/// A disk's scratch file.
#[derive(Debug)]
pub(super) struct Scratch {
    folder: PathBuf,
    file: File,
    /// The most bytes that it may have.
    pub(super) limit: u64,
}

/// What is kept beside a scratch file's descriptor inside QEMU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Note {
    /// The filter, or what would be called so.
    pub(super) filter: String,
    /// The device's path in QEMU's object tree.
    pub(super) device: String,
    /// The node that the device has without the filter.
    pub(super) node: String,
    /// Whether the run pauses the machine for the instant.
    pub(super) pauses: bool,
}

impl Scratch {
    /// Free bytes on its file system.
    ///
    /// # Errors
    /// The system's own.
    pub(super) fn free_bytes(&self) -> Result<u64> {
        free_bytes(&self.file).map_err(|error| error.at_path(&self.folder))
    }

    /// The folder that it is in, without a name.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }
}

fn free_bytes(file: &File) -> Result<u64> {
    let free = rustix::fs::fstatvfs(file).map_err(|error| Error::from_io("look for free room", error.into()))?;
    Ok(free.f_bavail.saturating_mul(free.f_frsize))
}

/// The folder for a disk's scratch, where the user named none: the image's own.
fn folder_of(drive: &Drive) -> PathBuf {
    let file = Path::new(&drive.file);
    let is_file = std::fs::metadata(file).is_ok_and(|metadata| !metadata.file_type().is_block_device());
    match file.parent() {
        Some(folder) if file.is_absolute() && is_file => folder.to_path_buf(),
        _ => PathBuf::from(ELSEWHERE),
    }
}

/// Opens a scratch file for each disk and shares the room among them.
///
/// # Errors
/// `Unavailable` when there is too little room; the system's own.
pub(super) fn open_all(drives: &[Drive], folder: Option<&Path>, names: &Names) -> Result<Vec<Scratch>> {
    let mut opened = Vec::new();
    for (index, drive) in drives.iter().enumerate() {
        let folder = folder.map_or_else(|| folder_of(drive), Path::to_path_buf);
        let file = open_nameless(&folder, &names.item(index))?;
        let system = file.metadata().map_err(|error| Error::from_io("stat", error).at_path(&folder))?.dev();
        opened.push((folder, file, system));
    }
    let systems: Vec<u64> = opened.iter().map(|(_, _, system)| *system).collect();
    let share = |(drive, (folder, file, system)): (&Drive, (PathBuf, File, u64))| {
        let sharers = systems.iter().filter(|other| **other == system).count().max(1) as u64;
        let free = free_bytes(&file).map_err(|error| error.at_path(&folder))?;
        let limit = (free / 4 * 3 / sharers).min(longest(drive.length));
        if limit < LEAST_BYTES.min(longest(drive.length)) {
            let message = format!("only {free} bytes are free for the scratch files of {sharers} disks");
            return Err(Error::new(ErrorKind::Unavailable, message)
                .at_path(&folder)
                .hint("make room there, or name another folder for scratch files"));
        }
        let limit = limit / 65536 * 65536;
        file.set_len(limit).map_err(|error| Error::from_io("make the scratch file", error).at_path(&folder))?;
        Ok(Scratch { folder, file, limit })
    };
    drives.iter().zip(opened).map(share).collect()
}

/// A qcow2 image in which all of a disk was written is at most that long: its tables take less than a 1000th.
fn longest(length: u64) -> u64 {
    length.saturating_add(length / 1000).saturating_add(2 << 20)
}

fn open_nameless(folder: &Path, name: &str) -> Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    match rustix::fs::open(folder, flags, Mode::RUSR | Mode::WUSR) {
        Ok(file) => return Ok(File::from(file)),
        // The file system or the kernel does not know files without names.
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR | rustix::io::Errno::INVAL) => {}
        Err(error) => return Err(Error::from_io("make a scratch file", error.into()).at_path(folder)),
    }
    let path = folder.join(name);
    let io = |error| Error::from_io("make a scratch file", error).at_path(&path);
    let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(&path).map_err(io)?;
    std::fs::remove_file(&path).map_err(io)?;
    Ok(file)
}

/// Gives QEMU the scratch file and makes an empty image of it. With `backing`, what is not in it is read from there.
///
/// # Errors
/// What QEMU says. What was made is found by [`leftovers`](super::leftovers).
pub(super) fn add(
    monitor: &Monitor,
    scratch: &Scratch,
    (names, index): (&Names, usize),
    drive: &Drive,
    pauses: bool,
    backing: bool,
) -> Result<()> {
    let node = |kind| names.node(kind, index);
    let note = Note { filter: node(NodeKind::Filter), device: drive.device.clone(), node: drive.node.clone(), pauses };
    let note = serde_json::to_string(&note).map_err(|error| Error::invalid("write a note").because(error))?;
    #[derive(Deserialize)]
    #[serde(rename_all = "kebab-case")]
    struct Added {
        fdset_id: i64,
    }
    let added = monitor.execute_with("add-fd", json!({"opaque": note}), scratch.file.as_fd())?;
    let added: Added = serde_json::from_value(added).map_err(|error| {
        Error::new(ErrorKind::Io, "add-fd: QEMU's answer has another shape than expected").because(error)
    })?;
    // Nothing of it has to outlive a power cut, and the machine's pause waits for flushes of all nodes.
    let cache = json!({"no-flush": true});
    let descriptor = format!("/dev/fdset/{}", added.fdset_id);
    let file = json!({"driver": "file", "node-name": node(NodeKind::File), "filename": descriptor, "cache": cache});
    monitor.execute("blockdev-add", file)?;
    let limit = json!({"driver": "raw", "node-name": node(NodeKind::Limit), "file": node(NodeKind::File),
        "size": scratch.limit, "cache": cache});
    monitor.execute("blockdev-add", limit)?;
    let options = json!({"driver": "qcow2", "file": node(NodeKind::Limit), "size": drive.length});
    monitor.execute("blockdev-create", json!({"job-id": names.item(index), "options": options}))?;
    finish_job(monitor, &names.item(index))?;
    let mut image = json!({"driver": "qcow2", "node-name": node(NodeKind::Scratch), "file": node(NodeKind::Limit),
        "cache": cache});
    if backing {
        image["backing"] = Value::from(drive.node.clone());
    }
    monitor.execute("blockdev-add", image).map(drop)
}

/// A job, as QEMU tells of it.
#[derive(Debug, Deserialize)]
pub(super) struct Job {
    pub(super) id: String,
    pub(super) status: String,
    pub(super) error: Option<String>,
}

/// Waits for the end of a job that makes an image, and removes it.
fn finish_job(monitor: &Monitor, id: &str) -> Result<()> {
    let deadline = Instant::now() + CREATE;
    let events = monitor.events();
    loop {
        let jobs: Vec<Job> = monitor.ask("query-jobs", Value::Null)?;
        let Some(job) = jobs.into_iter().find(|job| job.id == id) else {
            return Err(Error::new(ErrorKind::Io, "the job that makes a scratch image is gone"));
        };
        if job.status == "concluded" {
            monitor.execute("job-dismiss", json!({"id": id}))?;
            return job
                .error
                .map_or(Ok(()), |error| Err(Error::new(ErrorKind::Io, format!("make a scratch image: {error}"))));
        }
        if Instant::now() >= deadline {
            return Err(Error::new(ErrorKind::Unavailable, "QEMU takes too long to make a scratch image"));
        }
        // An event comes with every step of the job.
        events.take(Duration::from_millis(20));
    }
}
