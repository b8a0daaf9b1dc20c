//! Dirty bitmaps inside qcow2 images, made and filled by QEMU's own tools.

use super::support::{have, run, try_run};
use firn_disk::ErrorKind;
use firn_format::image::{OpenOptions, StoredBitmap, open};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

fn read(image: &Path, name: &str) -> StoredBitmap {
    open(image, &OpenOptions::default()).unwrap().stored_bitmap(name).unwrap()
}

fn write(folder: &Path, ranges: &[Range<u64>]) {
    let commands: Vec<String> =
        ranges.iter().map(|range| format!("write -P 7 {} {}", range.start, range.end - range.start)).collect();
    let mut arguments = vec!["-f", "qcow2", "a.qcow2"];
    commands.iter().for_each(|command| arguments.extend(["-c", command]));
    run(folder, "qemu-io", &arguments);
}

#[test]
fn what_qemu_recorded_is_read() {
    if !have("qemu-img", "what_qemu_recorded_is_read") || !have("qemu-io", "what_qemu_recorded_is_read") {
        return;
    }
    for (options, granularity, length) in [
        ("cluster_size=64k", 64 * KIB, 100 * MIB + 512),
        ("cluster_size=512", 512, 5 * MIB),
        ("cluster_size=2M,extended_l2=on", 4 * KIB, 9 * MIB),
        ("cluster_size=4k", 64 * KIB, 20 * 1024 * MIB),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let (folder, image) = (folder.path(), folder.path().join("a.qcow2"));
        run(folder, "qemu-img", &["create", "-q", "-f", "qcow2", "-o", options, "a.qcow2", &length.to_string()]);
        assert_eq!(read(&image, "b"), StoredBitmap::Missing);
        run(folder, "qemu-img", &["bitmap", "--add", "-g", &granularity.to_string(), "a.qcow2", "other"]);
        run(folder, "qemu-img", &["bitmap", "--add", "-g", &granularity.to_string(), "a.qcow2", "b"]);
        assert_eq!(read(&image, "b"), StoredBitmap::Dirty(Vec::new()));
        let written = [0..512, 3 * granularity + 512..5 * granularity, MIB..4 * MIB, length - 512..length];
        write(folder, &written);
        let mut dirty: Vec<Range<u64>> = Vec::new();
        for range in written {
            let start = range.start / granularity * granularity;
            let end = range.end.next_multiple_of(granularity).min(length);
            match dirty.last_mut() {
                Some(last) if last.end >= start => last.end = end,
                _ => dirty.push(start..end),
            }
        }
        assert_eq!(read(&image, "b"), StoredBitmap::Dirty(dirty), "{options}");
        assert_eq!(read(&image, "c"), StoredBitmap::Missing);
        run(folder, "qemu-img", &["check", "-q", "a.qcow2"]);
    }
}

#[test]
fn what_does_not_count_is_told() {
    if !have("qemu-img", "what_does_not_count_is_told") || !have("qemu-io", "what_does_not_count_is_told") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (folder, image) = (folder.path(), folder.path().join("a.qcow2"));
    run(folder, "qemu-img", &["create", "-q", "-f", "qcow2", "a.qcow2", "1M"]);
    run(folder, "qemu-img", &["bitmap", "--add", "--disable", "a.qcow2", "idle"]);
    assert_eq!(read(&image, "idle"), StoredBitmap::Unusable("it does not record"));
    run(folder, "qemu-img", &["bitmap", "--add", "a.qcow2", "b"]);
    // Killed while it was open for writing.
    try_run(folder, "qemu-io", &["-f", "qcow2", "a.qcow2", "-c", "write 0 512", "-c", "abort"]);
    assert_eq!(read(&image, "b"), StoredBitmap::Unusable("it was not saved when QEMU ended"));

    run(folder, "qemu-img", &["bitmap", "--remove", "a.qcow2", "b"]);
    run(folder, "qemu-img", &["bitmap", "--add", "a.qcow2", "b"]);
    assert!(matches!(read(&image, "b"), StoredBitmap::Dirty(_)));
    // What does not know bitmaps clears the autoclear bits when it writes.
    let file = std::fs::File::options().read(true).write(true).open(&image).unwrap();
    file.write_all_at(&[0; 8], 88).unwrap();
    assert!(matches!(read(&image, "b"), StoredBitmap::Unusable(why) if why.contains("wrote")));
    file.write_all_at(&[0, 0, 0, 0, 0, 0, 0, 1], 88).unwrap();

    // A table entry that is no cluster, and one that stands for a cluster of ones.
    let bytes = std::fs::read(&image).unwrap();
    let name = bytes.windows(25).rposition(|window| &window[16..] == b"\x01\x10\x00\x01\x00\x00\x00\x00b").unwrap();
    let table = u64::from_be_bytes(bytes[name..name + 8].try_into().unwrap());
    file.write_all_at(&1_u64.to_be_bytes(), table).unwrap();
    assert_eq!(read(&image, "b"), StoredBitmap::Dirty(std::iter::once(0..MIB).collect()));
    file.write_all_at(&0x8000_0000_0000_0200_u64.to_be_bytes(), table).unwrap();
    let error = open(&image, &OpenOptions::default()).unwrap().stored_bitmap("b").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    file.write_all_at(&u32::MAX.to_be_bytes(), name as u64 + 8).unwrap();
    let error = open(&image, &OpenOptions::default()).unwrap().stored_bitmap("b").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
}
