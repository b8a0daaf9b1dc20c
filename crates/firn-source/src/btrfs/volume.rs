//! btrfs through its own tool: which subvolume a file is in, snapshots of it, and what differs between two.
//!
//! The top folder of a subvolume has the inode number 256 and no other folder has it (BTRFS_FIRST_FREE_OBJECTID in
//! include/uapi/linux/btrfs_tree.h). What the tool prints is read in the C locale.

use crate::process::{self, Finished};
use firn_disk::{Error, ErrorKind, Result};
use rustix::fs::{AtFlags, CWD, StatxFlags};
use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// `BTRFS_SUPER_MAGIC` of include/uapi/linux/magic.h.
const MAGIC: u64 = 0x9123_683E;
/// `BTRFS_FIRST_FREE_OBJECTID`.
const TOP_INODE: u64 = 256;
/// For what only looks.
const LOOK: Duration = Duration::from_secs(20);
/// For what changes something; a commit of a busy file system waits for its disks.
const CHANGE: Duration = Duration::from_secs(120);
/// For the comparison of two snapshots; reading everything takes longer.
const COMPARE: Duration = Duration::from_secs(1800);

/// What `btrfs subvolume show` says of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Subvolume {
    /// Its number in the file system; never used again for another.
    pub(super) id: u64,
    pub(super) uuid: Option<[u8; 16]>,
    /// What it was snapshot from.
    pub(super) parent: Option<[u8; 16]>,
    /// By which `btrfs send` calls it if there is one.
    pub(super) received: Option<[u8; 16]>,
    /// Of the last transaction that changed it.
    pub(super) generation: u64,
    pub(super) is_read_only: bool,
}

impl Subvolume {
    /// Reads `btrfs subvolume show`.
    fn parse(text: &str) -> Option<Self> {
        let value = |key: &str| {
            let mut lines = text.lines().filter_map(|line| line.trim().split_once(':'));
            lines.find(|(name, _)| *name == key).map(|(_, value)| value.trim())
        };
        Some(Self {
            id: value("Subvolume ID")?.parse().ok()?,
            uuid: parse_uuid(value("UUID")?),
            parent: parse_uuid(value("Parent UUID")?),
            received: parse_uuid(value("Received UUID")?),
            generation: value("Generation")?.parse().ok()?,
            is_read_only: value("Flags")?.split(',').any(|flag| flag.trim() == "readonly"),
        })
    }

    /// By what `btrfs send` may call it.
    pub(super) fn names_in_stream(&self) -> Vec<[u8; 16]> {
        self.received.or(self.uuid).into_iter().collect()
    }
}

/// `63c1b80a-6789-9f49-91ad-4e97e0967aa3`; `-` is none.
pub(super) fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b'-').collect();
    let number = u128::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?;
    (digits.len() == 32).then(|| number.to_be_bytes())
}

/// As [`parse_uuid`] reads it.
pub(super) fn uuid_text(uuid: [u8; 16]) -> String {
    let digits = format!("{:032x}", u128::from_be_bytes(uuid));
    [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]].join("-")
}

fn run(arguments: &[&OsStr], timeout: Duration) -> Result<Finished> {
    let mut command = Command::new("btrfs");
    let path = std::env::var("PATH").unwrap_or_default();
    command.args(arguments).env("LC_ALL", "C").env("PATH", format!("{path}:/usr/sbin:/sbin"));
    match process::run_well(&mut command, b"", timeout) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Err(Error::unsupported("the program btrfs is not installed").hint("install the package btrfs-progs"))
        }
        Err(error) if !rustix::process::geteuid().is_root() => {
            Err(error.hint("snapshots of btrfs subvolumes take root"))
        }
        other => other,
    }
}

/// The top folder of the subvolume that `path` lies in; `path` has no symbolic links.
///
/// # Errors
/// `Invalid` when that is not on btrfs; the system's own.
pub(super) fn top_of(path: &Path) -> Result<PathBuf> {
    let folder = if path.is_dir() { path } else { path.parent().unwrap_or(path) };
    if !is_btrfs(folder)? {
        let error = Error::invalid("this does not lie on btrfs").at_path(path);
        return Err(error.hint("name the image file by itself, or use command: for what can make snapshots of it"));
    }
    let inode = |folder: &Path| std::fs::metadata(folder).map(|metadata| metadata.ino());
    let top = folder.ancestors().find(|folder| inode(folder).is_ok_and(|inode| inode == TOP_INODE));
    top.map(Path::to_path_buf).ok_or_else(|| {
        Error::unsupported("the top of its subvolume is not reachable, as in a bind mount of a folder").at_path(path)
    })
}

/// # Errors
/// The system's own.
pub(super) fn is_btrfs(path: &Path) -> Result<bool> {
    let stat = rustix::fs::statfs(path).map_err(|error| Error::from_io("look at", error.into()).at_path(path))?;
    // The kernel's type is signed or not, as wide as a word or not.
    #[expect(clippy::allow_attributes, reason = "the cast is needed on some architectures only")]
    #[allow(clippy::unnecessary_cast, clippy::cast_sign_loss, reason = "a magic number has no sign")]
    Ok(stat.f_type as u64 & 0xFFFF_FFFF == MAGIC)
}

/// Whether both lie on the same mount, and so in the same file system.
pub(super) fn is_same_mount(one: &Path, other: &Path) -> bool {
    let mount =
        |path: &Path| rustix::fs::statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID).map(|stat| stat.stx_mnt_id);
    matches!((mount(one), mount(other)), (Ok(one), Ok(other)) if one == other)
}

/// # Errors
/// `Unsupported` without the program; `Denied` or `Io` with what it says.
pub(super) fn show(folder: &Path) -> Result<Subvolume> {
    let arguments = ["subvolume".as_ref(), "show".as_ref(), folder.as_os_str()];
    let text = run(&arguments, LOOK).map_err(|error| error.at_path(folder))?.text();
    Subvolume::parse(&text)
        .ok_or_else(|| Error::unsupported("btrfs subvolume show says something unexpected").at_path(folder))
}

/// Whether the file system of `folder` has a subvolume of this number.
///
/// # Errors
/// As [`show`].
pub(super) fn has_id(folder: &Path, id: u64) -> Result<bool> {
    let text = run(&["subvolume".as_ref(), "list".as_ref(), folder.as_os_str()], LOOK)?.text();
    let is_it = |line: &str| line.strip_prefix("ID ").and_then(|rest| rest.split(' ').next()) == Some(&id.to_string());
    // The top of the whole file system is not listed.
    Ok(id == 5 || text.lines().any(is_it))
}

/// Writes out what is in memory, so that the snapshot has less to wait for.
///
/// # Errors
/// As [`show`].
pub(super) fn sync(folder: &Path) -> Result<()> {
    run(&["filesystem".as_ref(), "sync".as_ref(), folder.as_os_str()], CHANGE).map(drop)
}

/// Makes the read-only snapshot `to`, which must not be there yet.
///
/// # Errors
/// `Exists`; as [`show`].
pub(super) fn snapshot(of: &Path, to: &Path) -> Result<()> {
    // Into a folder that is there, the tool would make it inside.
    if to.symlink_metadata().is_ok() {
        let error = Error::new(ErrorKind::Exists, "there is a snapshot of this run already").at_path(to);
        return Err(error.hint("name all images of one subvolume in one source, as btrfs:/vms/a.img,/vms/b.img"));
    }
    let arguments = ["subvolume", "snapshot", "-r"].map(OsStr::new);
    run(&[&arguments[..], &[of.as_os_str(), to.as_os_str()]].concat(), CHANGE)
        .map(drop)
        .map_err(|error| error.at_path(of))
}

/// # Errors
/// As [`show`].
pub(super) fn delete(snapshot: &Path) -> Result<()> {
    let arguments = ["subvolume".as_ref(), "delete".as_ref(), snapshot.as_os_str()];
    run(&arguments, CHANGE).map(drop).map_err(|error| error.at_path(snapshot))
}

/// The stream that tells how `new` differs from `old`, without data.
///
/// # Errors
/// As [`show`]; `Io` when it is longer than 256 MiB.
pub(super) fn compare(old: &Path, new: &Path) -> Result<Vec<u8>> {
    let arguments = ["send", "-q", "--no-data", "-p"].map(OsStr::new);
    run(&[&arguments[..], &[old.as_os_str(), new.as_os_str()]].concat(), COMPARE).map(|finished| finished.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subvolume_is_what_the_tool_says_of_it() {
        let text = "\
vms/.s2
\tName: \t\t\t.s2
\tUUID: \t\t\t63c1b80a-6789-9f49-91ad-4e97e0967aa3
\tParent UUID: \t\t082701ff-b82b-654e-b891-bba5a5c42d2d
\tReceived UUID: \t\t-
\tCreation time: \t\t2026-11-21 14:28:49 +0000
\tSubvolume ID: \t\t258
\tGeneration: \t\t10
\tGen at creation: \t7
\tFlags: \t\t\treadonly
\tSnapshot(s):
";
        let found = Subvolume::parse(text).unwrap();
        assert_eq!((found.id, found.generation, found.is_read_only, found.received), (258, 10, true, None));
        assert_eq!(uuid_text(found.uuid.unwrap()), "63c1b80a-6789-9f49-91ad-4e97e0967aa3");
        assert_eq!(uuid_text(found.parent.unwrap()), "082701ff-b82b-654e-b891-bba5a5c42d2d");
        assert_eq!(Subvolume::parse("ERROR: not a subvolume"), None);
        assert_eq!(["-", "", "63c1b80a", "x"].map(parse_uuid), [None; 4]);
    }
}
