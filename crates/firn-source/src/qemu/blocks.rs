//! Which disks the machine has: `query-block` for its devices, `query-named-block-nodes` for what is in them.
//!
//! A disk is a device of the machine with a writable medium that cannot be changed for another. CD-ROMs, floppies,
//! firmware flash, read-only and empty drives are left out.
//!
//! Names are those that the guest's kernel gives: `vda` on for virtio, `sda` on for SCSI, SATA, IDE and USB, `nvme0n1` on,
//! in the order of the devices. A disk whose file was in the last snapshot keeps the name that it had there.

use super::address::file_of_disk;
use super::leftovers;
use super::monitor::Monitor;
use super::names::MOST_DISKS;
use crate::source::{PreviousDisk, Request};
use firn_disk::{Error, ErrorKind, Result};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// A disk of the machine.
#[derive(Debug, Clone)]
pub(super) struct Drive {
    /// `vda` and so on.
    pub(super) name: String,
    /// The device's path in QEMU's object tree.
    pub(super) device: String,
    /// The node that the device reads and writes: the top of its chain.
    pub(super) node: String,
    /// Bytes.
    pub(super) length: u64,
    /// The file as QEMU names it; for some drivers no path, but `json:{...}` or a URI.
    pub(super) file: String,
    /// Whether a bitmap on it outlives QEMU's process.
    pub(super) keeps_bitmaps: bool,
    /// The dirty bitmaps on the node that have names, whoever made them.
    pub(super) bitmaps: Vec<Bitmap>,
}

/// A dirty bitmap, as QEMU tells of it.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Bitmap {
    #[serde(default)]
    pub(super) name: String,
    /// Dirty bytes.
    pub(super) count: u64,
    /// Bytes to a bit.
    pub(super) granularity: u64,
    pub(super) recording: bool,
    #[serde(default)]
    pub(super) inconsistent: bool,
    #[serde(default)]
    pub(super) busy: bool,
}

/// The machine's disks, and what was left out, a line each for people.
#[derive(Debug, Default)]
pub(super) struct Drives {
    pub(super) disks: Vec<Drive>,
    pub(super) left_out: Vec<String>,
}

/// A device with a drive in it, by `query-block`.
#[derive(Debug, Deserialize)]
pub(super) struct Device {
    #[serde(default)]
    qdev: String,
    pub(super) inserted: Option<Node>,
}

impl Device {
    /// The path of the device in QEMU's object tree.
    pub(super) fn object(&self) -> String {
        if self.qdev.starts_with('/') { self.qdev.clone() } else { format!("/machine/peripheral/{}", self.qdev) }
    }
}

/// A block node.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Node {
    #[serde(default)]
    pub(super) node_name: String,
    pub(super) file: String,
    ro: bool,
    drv: String,
    image: ImageInfo,
    #[serde(default)]
    pub(super) dirty_bitmaps: Vec<Bitmap>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct ImageInfo {
    virtual_size: u64,
    #[serde(default)]
    format_specific: Value,
}

/// All devices that a drive can be in.
pub(super) fn devices(monitor: &Monitor) -> Result<Vec<Device>> {
    let devices: Vec<Device> = monitor.ask("query-block", Value::Null)?;
    Ok(devices.into_iter().filter(|device| !device.qdev.is_empty()).collect())
}

/// All block nodes that have names.
pub(super) fn nodes(monitor: &Monitor) -> Result<Vec<Node>> {
    monitor.ask("query-named-block-nodes", json!({"flat": true}))
}

/// The machine's disks, of those that `images` names if it names any.
///
/// # Errors
/// `NotFound` when there is no disk, or none of a file that `images` names; what QEMU says.
pub(super) fn drives(monitor: &Monitor, request: &Request, images: &[PathBuf]) -> Result<Drives> {
    let mut nodes: BTreeMap<String, Node> =
        nodes(monitor)?.into_iter().map(|node| (node.node_name.clone(), node)).collect();
    let unfiltered = leftovers::unfiltered(monitor)?;
    let mut found = Drives::default();
    let mut kinds = Vec::new();
    let mut wanted: Vec<&PathBuf> = images.iter().collect();
    for device in devices(monitor)? {
        let object = device.object();
        // A device that was unplugged this moment has no type any more.
        let kind = monitor.execute("qom-get", json!({"path": object, "property": "type"})).unwrap_or_default();
        let kind = kind.as_str().unwrap_or_default().to_owned();
        let node = match (reason_to_leave_out(&kind, &device), device.inserted) {
            // A filter that a dead run left does not count. Only the list of nodes tells all bitmaps.
            (None, Some(top)) => nodes.remove(unfiltered.get(&top.node_name).unwrap_or(&top.node_name)).unwrap_or(top),
            (reason, _) => {
                found.left_out.push(format!("leave out {object}: {}", reason.unwrap_or("there is nothing in it")));
                continue;
            }
        };
        if !images.is_empty() {
            let Some(at) = wanted.iter().position(|image| is_same_file(image, &node.file)) else {
                found.left_out.push(format!("leave out {}: it was not asked for", node.file));
                continue;
            };
            wanted.remove(at);
        }
        kinds.push(kind);
        found.disks.push(Drive {
            name: String::new(),
            device: object,
            keeps_bitmaps: node.keeps_bitmaps(),
            length: node.image.virtual_size,
            bitmaps: node.dirty_bitmaps,
            node: node.node_name,
            file: node.file,
        });
    }
    if let Some(image) = wanted.first() {
        return Err(Error::not_found("the machine has no disk of this file").at_path(image));
    }
    if found.disks.is_empty() {
        return Err(Error::not_found("the machine has no disk that could be taken").at_path(monitor.path()));
    }
    if found.disks.len() > MOST_DISKS {
        let message = format!("a machine with {} disks; up to {MOST_DISKS} are known", found.disks.len());
        return Err(Error::unsupported(message).at_path(monitor.path()));
    }
    let files: Vec<&str> = found.disks.iter().map(|disk| disk.file.as_str()).collect();
    let names = names(&kinds, &files, &request.previous);
    found.disks.iter_mut().zip(names).for_each(|(disk, name)| disk.name = name);
    Ok(found)
}

fn reason_to_leave_out(kind: &str, device: &Device) -> Option<&'static str> {
    let node = device.inserted.as_ref();
    match kind {
        "ide-cd" | "scsi-cd" => Some("a CD-ROM"),
        "floppy" => Some("a floppy disk"),
        _ if kind.starts_with("cfi.pflash") => Some("firmware, no disk"),
        _ if node.is_some_and(|node| node.ro) => Some("it is read-only"),
        _ => None,
    }
}

fn is_same_file(image: &Path, file: &str) -> bool {
    let file = Path::new(file);
    image == file || image.canonicalize().is_ok_and(|image| file.canonicalize().is_ok_and(|file| image == file))
}

impl Node {
    /// Only qcow2 of version 3 has a place for bitmaps.
    fn keeps_bitmaps(&self) -> bool {
        self.drv == "qcow2" && self.image.format_specific.pointer("/data/compat").is_some_and(|compat| compat == "1.1")
    }
}

/// The names of disks of these kinds of device and files.
fn names(kinds: &[String], files: &[&str], previous: &[PreviousDisk]) -> Vec<String> {
    let mut taken = BTreeSet::new();
    let kept: Vec<Option<String>> = files
        .iter()
        .map(|file| {
            let before = previous.iter().find(|disk| file_of_disk(&disk.source).as_deref() == Some(file))?;
            taken.insert(before.name.clone()).then(|| before.name.clone())
        })
        .collect();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let mut named = Vec::with_capacity(kinds.len());
    for (kind, kept) in kinds.iter().zip(kept) {
        let bus = bus(kind);
        let position = counts.entry(bus).or_default();
        let first = *position;
        *position += 1;
        named.push(kept.unwrap_or_else(|| {
            let free = (first..).map(|index| name(bus, index)).find(|name| !taken.contains(name)).unwrap_or_default();
            taken.insert(free.clone());
            free
        }));
    }
    named
}

fn bus(kind: &str) -> &'static str {
    match kind {
        _ if kind.starts_with("virtio-blk") => "vd",
        _ if kind.starts_with("nvme") => "nvme",
        _ if kind.starts_with("sd-card") || kind == "emmc" => "mmcblk",
        _ if kind.starts_with("xen-") => "xvd",
        _ => "sd",
    }
}

fn name(bus: &str, index: usize) -> String {
    match bus {
        "nvme" => return format!("nvme{index}n1"),
        "mmcblk" => return format!("mmcblk{index}"),
        _ => {}
    }
    let mut letters = Vec::new();
    let mut left = index + 1;
    while left > 0 {
        letters.push(b"abcdefghijklmnopqrstuvwxyz"[(left - 1) % 26]);
        left = (left - 1) / 26;
    }
    letters.reverse();
    format!("{bus}{}", String::from_utf8_lossy(&letters))
}

/// What QEMU says of the machine.
#[derive(Debug, Deserialize)]
pub(super) struct Status {
    pub(super) status: String,
    pub(super) running: bool,
}

/// Whether the machine runs.
pub(super) fn status(monitor: &Monitor) -> Result<Status> {
    monitor.ask("query-status", Value::Null)
}

/// # Errors
/// `Unavailable` when the machine is about to leave for another host, or comes from one.
pub(super) fn refuse_migration(status: &Status, monitor: &Monitor) -> Result<()> {
    match status.status.as_str() {
        "inmigrate" | "postmigrate" | "finish-migrate" => {
            let message = format!("the machine is being migrated ({})", status.status);
            Err(Error::new(ErrorKind::Unavailable, message).at_path(monitor.path()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_guest_and_stay() {
        let kinds = ["virtio-blk-device", "scsi-hd", "ide-hd", "nvme", "virtio-blk-device"].map(str::to_owned);
        assert_eq!(names(&kinds, &["/a", "/b", "/c", "/d", "/e"], &[]), ["vda", "sda", "sdb", "nvme0n1", "vdb"]);
        // A disk came in front of the one that was called vda, and one that was called vdb went.
        let before = |name: &str, file: &str| PreviousDisk {
            name: name.to_owned(),
            length: 1,
            source: format!("qemu:/q?disk={file}"),
            generation: None,
        };
        let previous = [before("vda", "/a"), before("vdb", "/gone")];
        let kinds = ["virtio-blk-device", "virtio-blk-device"].map(str::to_owned);
        assert_eq!(names(&kinds, &["/new", "/a"], &previous), ["vdb", "vda"]);
        assert_eq!(
            [name("vd", 25), name("vd", 26), name("sd", 701), name("sd", 702)],
            ["vdz", "vdaa", "sdzz", "sdaaa"]
        );
    }
}
