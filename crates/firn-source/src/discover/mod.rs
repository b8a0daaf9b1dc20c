//! What can be found on this host to take snapshots of: only looked at, and quickly.
//!
//! Each finder runs by itself: one that fails or hangs hides no other. What cannot be taken is told with the reason.

mod programs;
mod storage;

use std::time::Duration;

/// How long a program is waited for that is asked what it knows.
const PATIENCE: Duration = Duration::from_millis(700);
/// More of anything is left out.
const MOST_FOUND: usize = 1000;
/// Files that are taken for disk images by their name.
const IMAGE_ENDINGS: [&str; 6] = ["img", "raw", "qcow2", "qcow", "vmdk", "dsk"];

/// Something that disks could be taken from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// What to give to `firn snap`; none where it cannot be taken.
    pub uri: Option<String>,
    /// What it is, in a word or two: `QEMU`, `block device`.
    pub what: &'static str,
    /// More of it, for people: its name, its disks, its size.
    pub detail: String,
    /// Why it cannot be taken, and what could be done about it.
    pub refused: Option<String>,
}

impl Found {
    fn new(what: &'static str, uri: String, detail: String) -> Self {
        Self { uri: Some(uri), what, detail, refused: None }
    }

    fn refused(what: &'static str, detail: String, reason: impl Into<String>) -> Self {
        Self { uri: None, what, detail, refused: Some(reason.into()) }
    }

    /// The same, if `reason` is none.
    fn unless(self, reason: Option<String>) -> Self {
        if reason.is_none() { self } else { Self { uri: None, refused: reason, ..self } }
    }
}

/// Everything that the finders found, in their order: running QEMUs, domains of libvirt, images on btrfs, versions on a
/// filer, command files, logical volumes, block devices. Blocks for about a second at most.
pub fn discover() -> Vec<Found> {
    let finders: [fn() -> Vec<Found>; 7] = [
        programs::qemus,
        programs::domains,
        storage::btrfs_images,
        storage::versions,
        programs::commands,
        programs::logical_volumes,
        storage::block_devices,
    ];
    std::thread::scope(|scope| {
        let running: Vec<_> = finders.map(|finder| scope.spawn(finder)).into();
        running.into_iter().flat_map(|finder| finder.join().unwrap_or_default()).take(MOST_FOUND).collect()
    })
}

/// Whether the name of a file is that of a disk image.
fn is_image(name: &std::path::Path) -> bool {
    name.extension().and_then(|ending| ending.to_str()).is_some_and(|ending| IMAGE_ENDINGS.contains(&ending))
}

/// `3 images`.
fn count(number: usize, one: &str) -> String {
    if number == 1 { format!("1 {one}") } else { format!("{number} {one}s") }
}
