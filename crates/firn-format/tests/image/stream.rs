//! Streams of virtnbdbackup, written and read by its own Python code.

use crate::support::{mixed_disk, skip};
use firn_disk::testing::{Random, check_disk};
use firn_disk::{Disk, ErrorKind, SharedDisk};
use firn_format::image::{StreamInfo, is_stream, open_stream, stream_info};
use std::path::{Path, PathBuf};
use std::process::Command;

const PYTHON: &str = "/usr/bin/python3";

/// Writes a stream with the tool's own writer: arguments are the raw disk, the stream, the level, the checkpoint's
/// number, and for each run its kind, start and length.
const WRITER: &str = r#"
import sys, os
from argparse import Namespace
from libvirtnbdbackup.sparsestream import types, streamer
raw, out, level, number = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
runs = [r.split(":") for r in sys.argv[5:]]
t = types.SparseStreamTypes()
s = streamer.SparseStream(types)
parent = "" if number == 0 else "virtnbdbackup.%d" % (number - 1)
args = Namespace(level=level, compress=False, cpt=Namespace(name="virtnbdbackup.%d" % number, parent=parent))
disk = Namespace(target="vda", format="qcow2")
data = sum(int(l) for k, _, l in runs if k == "data")
meta = s.dumpMetadata(args, os.path.getsize(raw), data, disk)
with open(raw, "rb") as r, open(out, "wb") as w:
    s.writeFrame(w, t.META, 0, len(meta)); w.write(meta); w.write(t.TERM)
    for kind, start, length in runs:
        start, length = int(start), int(length)
        if kind == "data":
            s.writeFrame(w, t.DATA, start, length)
            r.seek(start); w.write(r.read(length)); w.write(t.TERM)
        else:
            s.writeFrame(w, t.ZERO, start, length)
    s.writeFrame(w, t.STOP, 0, 0)
"#;

fn have_virtnbdbackup(test: &str) -> bool {
    let found = Command::new(PYTHON).args(["-c", "import libvirtnbdbackup.sparsestream"]).output();
    let is_there = found.is_ok_and(|output| output.status.success());
    if !is_there {
        skip(test, "virtnbdbackup is missing");
    }
    is_there
}

fn write(folder: &Path, name: &str, level: &str, number: u32, bytes: &[u8], runs: &[(&str, usize, usize)]) -> PathBuf {
    std::fs::write(folder.join("raw"), bytes).unwrap();
    let runs = runs.iter().map(|(kind, start, length)| format!("{kind}:{start}:{length}"));
    let output = Command::new(PYTHON)
        .args(["-c", WRITER, "raw", name, level, &number.to_string()])
        .args(runs)
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    folder.join(name)
}

const LENGTH: usize = 5 << 20;

/// A full stream of mixed content, and the content.
fn full(folder: &Path) -> (PathBuf, Vec<u8>) {
    let mut bytes = mixed_disk(LENGTH, 200);
    bytes[1 << 20..2 << 20].fill(0);
    let runs = [("data", 0, 1 << 20), ("zero", 1 << 20, 1 << 20), ("data", 2 << 20, 3 << 20)];
    (write(folder, "vda.full.data", "full", 0, &bytes, &runs), bytes)
}

#[test]
fn a_full_stream_and_what_changed_since() {
    let test = "a_full_stream_and_what_changed_since";
    if !have_virtnbdbackup(test) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (first, mut bytes) = full(folder.path());
    assert!(is_stream(&first).unwrap());
    let StreamInfo { virtual_size, disk, checkpoint, parent, .. } = stream_info(&first).unwrap();
    assert_eq!((virtual_size, disk.as_str(), checkpoint.as_str()), (LENGTH as u64, "vda", "virtnbdbackup.0"));
    assert_eq!(parent, None);
    let mut below: SharedDisk = open_stream(&first, None).unwrap().disk;
    check_disk(&below, &bytes, 201);
    let mut random = Random::new(202);
    for number in 1..4 {
        let mut runs = Vec::new();
        let mut at = 0;
        while at < LENGTH {
            let start = at + usize::try_from(random.below(200)).unwrap() * 4096;
            let end = (start + 65_536).min(LENGTH);
            if start >= end {
                break;
            }
            random.fill(&mut bytes[start..end]);
            runs.push(("data", start, end - start));
            at = end;
        }
        let name = format!("vda.inc.virtnbdbackup.{number}.data");
        let path = write(folder.path(), &name, "inc", number, &bytes, &runs);
        assert_eq!(stream_info(&path).unwrap().parent, Some(format!("virtnbdbackup.{}", number - 1)));
        assert_eq!(open_stream(&path, None).unwrap_err().kind(), ErrorKind::Invalid);
        below = open_stream(&path, Some(below)).unwrap().disk;
        check_disk(&below, &bytes, u64::from(number));
    }
    assert!(!is_stream(folder.path().join("raw")).unwrap());
}

#[test]
fn a_stream_that_is_cut_or_damaged_is_told() {
    let test = "a_stream_that_is_cut_or_damaged_is_told";
    if !have_virtnbdbackup(test) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (path, bytes) = full(folder.path());
    let sound = std::fs::read(&path).unwrap();
    for cut in [0, 3, 39, 41, 200, 600, 1 << 20, sound.len() - 41, sound.len() - 1] {
        std::fs::write(&path, &sound[..cut]).unwrap();
        assert_eq!(open_stream(&path, None).unwrap_err().kind(), ErrorKind::Corrupt, "{cut} bytes");
    }
    let text = String::from_utf8_lossy(&sound[..700]).into_owned();
    for (what, old, new, kind) in [
        ("compressed", "\"compressed\": false", "\"compressed\": 1,   ", ErrorKind::Unsupported),
        ("size", "\"virtualSize\": 5", "\"virtualSize\": 4", ErrorKind::Corrupt),
        ("data", "\"dataSize\": 4", "\"dataSize\": 3", ErrorKind::Corrupt),
    ] {
        let at = text.find(old).unwrap();
        let mut lie = sound.clone();
        lie[at..at + old.len()].copy_from_slice(&format!("{new:<width$}", width = old.len()).into_bytes()[..old.len()]);
        std::fs::write(&path, lie).unwrap();
        let error = open_stream(&path, None).unwrap_err();
        assert!(error.kind() == kind || error.kind() == ErrorKind::Corrupt, "{what}: {error}");
    }
    let mut random = Random::new(210);
    for _ in 0..600 {
        let mut damaged = sound.clone();
        for _ in 0..=random.below(3) {
            let frames = [0, 500, (1 << 20) + 500][usize::try_from(random.below(3)).unwrap()];
            let place = frames + usize::try_from(random.below(200)).unwrap();
            damaged[place] ^= 1 << random.below(8);
        }
        std::fs::write(&path, &damaged).unwrap();
        if let Ok(image) = open_stream(&path, None) {
            let mut read = vec![0; LENGTH];
            let most = usize::try_from(image.disk.len()).unwrap_or(usize::MAX).min(LENGTH);
            let _ = image.disk.read_at(&mut read[..most], 0);
        }
    }
    std::fs::write(&path, &sound).unwrap();
    check_disk(&open_stream(&path, None).unwrap().disk, &bytes, 211);
}
