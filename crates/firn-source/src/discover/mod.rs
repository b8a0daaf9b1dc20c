//! What can be found on this host to take snapshots of: only looked at, and quickly.
//!
//! Each finder runs by itself: one that fails or hangs hides no other. What cannot be taken is told with the reason.

mod programs;
mod storage;

use std::sync::mpsc;
use std::time::{Duration, Instant};

/// How long a program is waited for that is asked what it knows.
const PATIENCE: Duration = Duration::from_millis(700);
/// How long all finders are waited for.
const LONGEST: Duration = Duration::from_secs(1);
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

/// One kind of thing that is looked for, and what finds it.
type Finder = (&'static str, fn() -> Vec<Found>);

const FINDERS: [Finder; 7] = [
    ("QEMU", programs::qemus),
    ("libvirt domain", programs::domains),
    ("btrfs subvolume", storage::btrfs_images),
    ("older versions", storage::versions),
    ("your commands", programs::commands),
    ("logical volume", programs::logical_volumes),
    ("block device", storage::block_devices),
];

/// Everything that the finders found, in their order: running QEMUs, domains of libvirt, images on btrfs, versions on a
/// filer of the images in the current folder, command files, logical volumes, block devices. Blocks for a second at most;
/// a finder that takes longer is told of, and left behind.
pub fn discover() -> Vec<Found> {
    let (sender, receiver) = mpsc::channel();
    for (number, (_, finder)) in FINDERS.into_iter().enumerate() {
        let sender = sender.clone();
        // Nobody listens any more to one that is late.
        std::thread::spawn(move || drop(sender.send((number, finder()))));
    }
    drop(sender);
    let end = Instant::now() + LONGEST;
    let mut found = FINDERS.map(|_| None);
    while let Ok((number, of_one)) = receiver.recv_timeout(end.saturating_duration_since(Instant::now())) {
        found[number] = Some(of_one);
    }
    let late = |what| vec![Found::refused(what, "all of them".to_owned(), "looking for them took too long or failed")];
    let found = FINDERS.into_iter().zip(found).flat_map(|((what, _), found)| found.unwrap_or_else(|| late(what)));
    found.take(MOST_FOUND).collect()
}

/// Whether the name of a file is that of a disk image.
fn is_image(name: &std::path::Path) -> bool {
    name.extension().and_then(|ending| ending.to_str()).is_some_and(|ending| IMAGE_ENDINGS.contains(&ending))
}

/// `3 images`.
fn count(number: usize, one: &str) -> String {
    if number == 1 { format!("1 {one}") } else { format!("{number} {one}s") }
}
