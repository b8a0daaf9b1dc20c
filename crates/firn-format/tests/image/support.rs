//! What the tests of images share: running `qemu-img`, making disks with all kinds of runs, comparing.

use firn_disk::testing::{Random, check_disk};
use firn_disk::{Disk, ExtentKind, visit_extents};
use firn_format::image::{Image, OpenOptions};
use serde_json::Value;
use std::ops::Range;
use std::path::Path;
use std::process::{Command, Output};

/// Whether `tool` can be run; says loudly when the test named `test` is skipped for want of it.
pub fn have(tool: &str, test: &str) -> bool {
    let found = Command::new(tool).arg("--version").output().is_ok_and(|output| output.status.success());
    if !found {
        skip(test, &format!("{tool} is missing"));
    }
    found
}

pub use firn_disk::testing::skip;

/// Runs a tool in `folder` and answers what it printed.
pub fn run(folder: &Path, tool: &str, arguments: &[&str]) -> String {
    let output = try_run(folder, tool, arguments);
    assert!(
        output.status.success(),
        "{tool} {arguments:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

pub fn try_run(folder: &Path, tool: &str, arguments: &[&str]) -> Output {
    Command::new(tool).args(arguments).current_dir(folder).output().unwrap()
}

pub fn qemu_img(folder: &Path, arguments: &[&str]) -> String {
    run(folder, "qemu-img", arguments)
}

/// A disk with runs of data, of text that compresses, of zeros, on and off the bounds of blocks.
pub fn mixed_disk(length: usize, seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut bytes = vec![0; length];
    let mut at = 0;
    while at < length {
        let most = usize::try_from(random.below(300 << 10)).unwrap() + 1;
        let unit = if random.below(3) == 0 { 512 } else { 4096 };
        let end = (at + most.next_multiple_of(unit)).min(length);
        match random.below(5) {
            // What repeats itself only far away.
            4 => {
                let period = (20 << 10).min(end - at);
                random.fill(&mut bytes[at..at + period]);
                for index in at + period..end {
                    bytes[index] = bytes[index - period];
                }
            }
            0 => random.fill(&mut bytes[at..end]),
            1 => {
                for (index, byte) in bytes[at..end].iter_mut().enumerate() {
                    *byte = b"the same words again and again. "[index % 32];
                }
            }
            _ => {}
        }
        at = end;
    }
    bytes
}

/// Checks that libvhdi, a reader of VHD and VHDX that we did not write, reads `expected` out of the first of `chain`,
/// each of which stands on the next.
pub fn check_by_libvhdi(test: &str, chain: &[&Path], expected: &[u8]) {
    // Debian's own Python has the module.
    let python = "/usr/bin/python3";
    if !Command::new(python).args(["-c", "import pyvhdi"]).output().is_ok_and(|output| output.status.success()) {
        skip(test, "python3-libvhdi is missing");
        return;
    }
    let script = "import sys, pyvhdi\n\
        files = []\n\
        for name in sys.argv[1:]:\n    file = pyvhdi.file()\n    file.open(name)\n    files.append(file)\n\
        for child, parent in zip(files, files[1:]): child.set_parent(parent)\n\
        left = files[0].get_media_size()\n\
        while left:\n    piece = files[0].read(min(left, 1 << 20))\n    left -= len(piece)\n    \
        sys.stdout.buffer.write(piece)\n";
    let output = Command::new(python).args(["-c", script]).args(chain).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.stdout.len(), expected.len());
    if let Some(at) = (0..expected.len()).find(|at| output.stdout[*at] != expected[*at]) {
        panic!("libvhdi reads something else from byte {at} on");
    }
}

pub fn open(path: impl AsRef<Path>) -> Image {
    firn_format::image::open(path, &OpenOptions::default()).unwrap()
}

/// Our runs, neighbours of one kind joined.
pub fn runs(disk: &dyn Disk) -> Vec<(ExtentKind, Range<u64>)> {
    let mut runs = Vec::new();
    visit_extents(disk, 0..disk.len(), |kind, run| {
        runs.push((kind, run));
        Ok(())
    })
    .unwrap();
    runs
}

/// What `qemu-img map` says, in our words, neighbours of one kind joined.
pub fn qemu_map(path: &Path) -> Vec<(ExtentKind, Range<u64>)> {
    // QEMU looks for data files and for what json: names in the current folder.
    let (folder, name) = (path.parent().unwrap(), path.file_name().unwrap().to_str().unwrap());
    let map: Value = serde_json::from_str(&qemu_img(folder, &["map", "--output=json", name])).unwrap();
    let mut runs: Vec<(ExtentKind, Range<u64>)> = Vec::new();
    for entry in map.as_array().unwrap() {
        let is = |key: &str| entry[key].as_bool().unwrap();
        let start = entry["start"].as_u64().unwrap();
        let end = start + entry["length"].as_u64().unwrap();
        let kind = match (is("data"), is("present")) {
            (true, _) => ExtentKind::Data,
            (false, true) => ExtentKind::Zero,
            (false, false) => ExtentKind::Hole,
        };
        match runs.last_mut() {
            Some((last, run)) if *last == kind && run.end == start => run.end = end,
            _ => runs.push((kind, start..end)),
        }
    }
    runs
}

/// Checks that `disk` is `expected` in every way, and that its runs are those of QEMU.
pub fn check_image(path: &Path, expected: &[u8], seed: u64) {
    let image = open(path);
    check_disk(&image.disk, expected, seed);
    assert_eq!(image.details.virtual_size, expected.len() as u64);
    let (ours, theirs) = (runs(&image.disk), qemu_map(path));
    if ours != theirs {
        let first = ours.iter().zip(&theirs).find(|(a, b)| a != b);
        panic!("{}: ours and QEMU's runs differ first at {first:?}", path.display());
    }
}
