//! Images on mounted btrfs, versions that a filer keeps of the images in the current folder, and block devices.
//!
//! Sources: proc(5) for mountinfo, the kernel's Documentation/ABI/stable/sysfs-block.

use super::programs::is_installed;
use super::{Found, MOST_FOUND, count, is_image};
use crate::{in_use, nas};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Of a folder that is larger the rest is not looked at.
const MOST_ENTRIES: usize = 10_000;
/// The top folder of a btrfs subvolume.
const TOP_INODE: u64 = 256;

/// The paths in a folder, in order; none of what cannot be read.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().take(MOST_ENTRIES);
    let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

/// Names of the images in a folder.
fn images(folder: &Path) -> Vec<String> {
    let paths = entries(folder).into_iter().filter(|path| is_image(path) && path.is_file());
    let name = |path: PathBuf| path.file_name().and_then(|name| name.to_str()).map(str::to_owned);
    // A comma would end the name in a list.
    paths.filter_map(name).filter(|name| !name.contains([',', '='])).collect()
}

pub(super) fn btrfs_images() -> Vec<Found> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut folders: Vec<_> = mounts.lines().filter_map(btrfs_mount).collect();
    folders.sort();
    folders.dedup();
    let is_subvolume =
        |path: &PathBuf| std::fs::symlink_metadata(path).is_ok_and(|found| found.is_dir() && found.ino() == TOP_INODE);
    let is_hidden = |path: &Path| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
    let below: Vec<_> = folders
        .iter()
        .flat_map(|folder| entries(folder))
        .filter(|path| is_subvolume(path) && !is_hidden(path))
        .collect();
    let reason = if !rustix::process::geteuid().is_root() {
        Some("snapshots of btrfs subvolumes take root".to_owned())
    } else if !is_installed("btrfs") {
        Some("the program btrfs is not installed (package btrfs-progs)".to_owned())
    } else {
        None
    };
    let found = folders.into_iter().chain(below).filter_map(|folder| {
        let images = images(&folder);
        let uri = format!("btrfs:{}?images={}", folder.display(), images.join(","));
        let found =
            Found::new("btrfs subvolume", uri, format!("{}, {}", folder.display(), count(images.len(), "image")));
        (!images.is_empty()).then(|| found.unless(reason.clone()))
    });
    found.take(MOST_FOUND).collect()
}

/// Where a line of mountinfo mounts a btrfs.
fn btrfs_mount(line: &str) -> Option<PathBuf> {
    let (mount, kind) = line.split_once(" - ")?;
    let folder = mount.split(' ').nth(4)?;
    // The kernel writes four characters so, that would end a field.
    let folder = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(folder.to_owned(), |folder, (code, character)| folder.replace(code, character));
    kind.starts_with("btrfs ").then(|| PathBuf::from(folder))
}

pub(super) fn versions() -> Vec<Found> {
    let Ok(folder) = std::env::current_dir() else { return Vec::new() };
    let found = images(&folder).into_iter().filter_map(|name| {
        let path = folder.join(name);
        let versions = nas::versions(&path).ok()?;
        let newest = versions.last()?;
        let detail = format!("{}, the newest {} of {}", count(versions.len(), "version"), newest.name, newest.taken);
        Some(Found::new("older versions", format!("nas:{}", path.display()), detail))
    });
    found.take(MOST_FOUND).collect()
}

pub(super) fn block_devices() -> Vec<Found> {
    let found = entries(Path::new("/sys/block")).into_iter().filter_map(|block| {
        let name = block.file_name()?.to_str()?.to_owned();
        let read = |name: &str| std::fs::read_to_string(block.join(name)).ok().map(|text| text.trim().to_owned());
        let sectors: u64 = read("size")?.parse().ok().filter(|sectors| *sectors > 0)?;
        if ["ram", "zram"].iter().any(|prefix| name.starts_with(prefix)) {
            return None;
        }
        // sysfs writes a slash in a name so.
        let device = Path::new("/dev").join(name.replace('!', "/"));
        let about = read("loop/backing_file").or_else(|| read("device/model")).unwrap_or_default();
        let mebibytes = sectors / 2048;
        let detail = format!("{}, {mebibytes} MiB, {about}", device.display());
        let detail = detail.trim_end_matches(", ").to_owned();
        let reason = in_use::refuse_mounted(&device).err().map(|error| error.to_string()).or_else(|| {
            let opened = std::fs::File::open(&device);
            opened.err().map(|error| format!("it cannot be read: {error}"))
        });
        Some(Found::new("block device", device.display().to_string(), detail).unless(reason))
    });
    found.take(MOST_FOUND).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_of_btrfs_are_found_by_their_type() {
        let line = "68 27 0:41 / /srv/my\\040vms rw,relatime shared:1 - btrfs /dev/loop0 rw,subvol=/";
        assert_eq!(btrfs_mount(line), Some("/srv/my vms".into()));
        assert_eq!(btrfs_mount("22 1 8:1 / / rw - ext4 /dev/sda1 rw"), None);
        assert_eq!(btrfs_mount("x"), None);
    }

    #[test]
    fn images_are_known_by_their_names() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a.img", "b.qcow2", "c.txt", "d,e.img", "img"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        assert_eq!(images(folder.path()), ["a.img", "b.qcow2"]);
        assert_eq!(images(Path::new("/no/such/folder")), [""; 0]);
    }
}
