//! Images that firn writes: QEMU finds nothing wrong with them and reads the same disk.

use crate::support::{check_by_libvhdi, have, mixed_disk, open, qemu_img, run, skip};
use firn_disk::testing::{FaultDisk, check_disk, pattern};
use firn_disk::{Disk, ErrorKind, Extent, ExtentKind, FileDisk, MemDisk, Result};
use firn_format::image::{ClusterCompression, Destination, WriteFormat, WriteOptions, WriteSummary, write_image};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

const FORMATS: [(WriteFormat, &str); 9] = [
    (WriteFormat::Raw, "raw"),
    (WriteFormat::Qcow2(None), "qcow2"),
    (WriteFormat::Qcow2(Some(ClusterCompression::Zlib)), "qcow2"),
    (WriteFormat::Qcow2(Some(ClusterCompression::Zstd)), "qcow2"),
    (WriteFormat::VmdkMonolithicSparse, "vmdk"),
    (WriteFormat::VmdkStreamOptimized, "vmdk"),
    (WriteFormat::VhdDynamic, "vpc"),
    (WriteFormat::VhdxDynamic, "vhdx"),
    (WriteFormat::VdiDynamic, "vdi"),
];

fn write(source: &dyn Disk, path: &Path, format: WriteFormat, threads: usize) -> Result<WriteSummary> {
    let done = AtomicU64::new(0);
    let options = WriteOptions { threads, unique: *b"sixteen bytes !!", ..WriteOptions::default() };
    let output = FileDisk::create(path, 0)?;
    let summary = write_image(source, &output, format, &options, &|bytes| {
        done.fetch_add(bytes, Ordering::Relaxed);
    })?;
    assert_eq!(done.load(Ordering::Relaxed), source.len(), "progress adds up to the disk's length");
    assert_eq!(summary.file_size, std::fs::metadata(path).unwrap().len());
    Ok(summary)
}

/// Writes `bytes` as each format, and compares them by QEMU's eyes and by ours.
fn check_all(bytes: &[u8], folder: &Path) {
    let source = MemDisk::from(bytes.to_vec());
    let mut padded = bytes.to_vec();
    padded.resize(bytes.len().next_multiple_of(512), 0);
    std::fs::write(folder.join("padded.raw"), &padded).unwrap();
    for (index, (format, name)) in FORMATS.into_iter().enumerate() {
        let file = format!("{}-{index}.{name}", bytes.len());
        let path = folder.join(&file);
        let summary = write(&source, &path, format, 2).unwrap();
        let expected = if format == WriteFormat::Raw { bytes } else { &padded };
        assert_eq!(summary.virtual_size, expected.len() as u64);
        assert_eq!(summary.padding, (expected.len() - bytes.len()) as u64);
        // QEMU has no check for VHD.
        if !matches!(name, "raw" | "vpc") {
            // It fails when it finds leaks or errors.
            let report = qemu_img(folder, &["check", "-f", name, &file]);
            assert!(report.contains("No errors were found"), "{report}");
        }
        let compared = qemu_img(folder, &["compare", "-f", "raw", "-F", name, "padded.raw", &file]);
        assert!(compared.contains("identical"), "{compared}");
        check_disk(&open(&path).disk, expected, 7);
    }
}

#[test]
fn qemu_agrees_with_every_format() {
    if !have("qemu-img", "qemu_agrees_with_every_format") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    check_all(&mixed_disk((7 << 20) + 512, 3), folder.path());
    check_all(&mixed_disk((1 << 20) + 777, 4), folder.path());
    check_all(&pattern(200_000, 5), folder.path());
    check_all(&vec![0; 3 << 20], folder.path());
    check_all(&[9], folder.path());
}

#[test]
fn an_empty_disk_is_sound_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    for (index, (format, name)) in FORMATS.into_iter().enumerate() {
        let path = folder.path().join(index.to_string());
        match write(&MemDisk::zeroed(0), &path, format, 1) {
            Ok(summary) => assert_eq!((summary.virtual_size, open(&path).disk.len()), (0, 0), "{name}"),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Unsupported, "{name}: {error}");
                assert!(!matches!(name, "raw" | "qcow2"), "{error}");
                continue;
            }
        }
        if name == "qcow2" && have("qemu-img", "an_empty_disk_is_sound_or_refused") {
            let report = qemu_img(folder.path(), &["check", "-f", name, path.to_str().unwrap()]);
            assert!(report.contains("No errors were found"), "{report}");
        }
    }
}

#[test]
fn each_copy_has_identifiers_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let source = MemDisk::from(pattern(5000, 1));
    for (index, (format, name)) in FORMATS.into_iter().enumerate() {
        let copy = |unique: u8| {
            let path = folder.path().join(format!("{index}-{unique}"));
            let options = WriteOptions { unique: [unique; 16], ..WriteOptions::default() };
            write_image(&source, &FileDisk::create(&path, 0).unwrap(), format, &options, &|_| ()).unwrap();
            open(&path).details.features
        };
        let has_none = matches!(name, "raw" | "qcow2");
        assert_eq!(copy(1) == copy(2), has_none, "{name}");
    }
}

/// QEMU knows no such disk; libvhdi does.
#[test]
fn vhdx_keeps_sectors_of_4096_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = mixed_disk((5 << 20) + 512, 31);
    let source = MemDisk::from(bytes.clone()).with_logical_block_size(4096);
    let path = folder.path().join("a.vhdx");
    let summary = write(&source, &path, WriteFormat::VhdxDynamic, 2).unwrap();
    assert_eq!(summary.padding, 4096 - 512);
    let image = open(&path);
    assert_eq!(image.disk.logical_block_size(), 4096);
    let mut padded = bytes;
    padded.resize((5 << 20) + 4096, 0);
    check_disk(&image.disk, &padded, 32);
    check_by_libvhdi("vhdx_keeps_sectors_of_4096_bytes", &[&path], &padded);
}

#[test]
fn threads_do_not_change_a_byte() {
    let folder = tempfile::tempdir().unwrap();
    let source = MemDisk::from(mixed_disk(20 << 20, 9));
    for (index, (format, _)) in FORMATS.into_iter().enumerate() {
        let path = |threads: usize| folder.path().join(threads.to_string()).join(index.to_string());
        let [one, many] = [1, 5].map(|threads| {
            std::fs::create_dir_all(path(threads).parent().unwrap()).unwrap();
            write(&source, &path(threads), format, threads).unwrap();
            std::fs::read(path(threads)).unwrap()
        });
        assert!(one == many, "{format:?}");
    }
}

/// A huge disk that is all hole but for a sector here and there.
#[derive(Debug)]
struct Scattered {
    length: u64,
    every: u64,
}

impl Disk for Scattered {
    fn len(&self) -> u64 {
        self.length
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        firn_disk::check_range(offset, buf.len() as u64, self.length)?;
        for (at, byte) in (offset..).zip(buf.iter_mut()) {
            *byte = if at % self.every < 512 { u8::try_from(at / self.every % 255).unwrap() + 1 } else { 0 };
        }
        Ok(())
    }
    fn extent_at(&self, offset: u64) -> Result<Extent> {
        firn_disk::check_range(offset, 1, self.length)?;
        let into = offset % self.every;
        let (kind, length) =
            if into < 512 { (ExtentKind::Data, 512 - into) } else { (ExtentKind::Hole, self.every - into) };
        Ok(Extent { kind, length: length.min(self.length - offset) })
    }
}

#[test]
fn a_terabyte_of_holes_takes_no_time_and_little_space() {
    if !have("qemu-img", "a_terabyte_of_holes_takes_no_time_and_little_space") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let source = Scattered { length: 1 << 40, every: (37 << 30) + 4096 };
    for (index, (format, name)) in FORMATS.into_iter().enumerate() {
        let path = folder.path().join(index.to_string());
        let summary = write(&source, &path, format, 2).unwrap();
        assert_eq!(summary.virtual_size, 1 << 40);
        assert!(summary.data_bytes <= 28 << 16, "{summary:?}");
        if !matches!(name, "raw" | "vpc") {
            run(folder.path(), "qemu-img", &["check", "-q", "-f", name, path.to_str().unwrap()]);
        }
        let image = open(&path);
        for number in 0..27 {
            let at = number * source.every;
            let (mut ours, mut expected) = ([0; 2048], [0; 2048]);
            image.disk.read_at(&mut ours, at).unwrap();
            source.read_at(&mut expected, at).unwrap();
            assert_eq!(ours, expected, "{format:?} at {at}");
        }
    }
}

#[test]
fn what_cannot_be_written_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let huge = Scattered { length: 1 << 47, every: 1 << 46 };
    for format in [
        WriteFormat::VmdkMonolithicSparse,
        WriteFormat::VmdkStreamOptimized,
        WriteFormat::VhdDynamic,
        WriteFormat::VhdxDynamic,
    ] {
        let error = write(&huge, &folder.path().join(format!("{format:?}")), format, 1).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
    }
    let output = FileDisk::create(folder.path().join("full"), 512).unwrap();
    let options = WriteOptions::default();
    let error = write_image(&MemDisk::zeroed(5), &output, WriteFormat::Raw, &options, &|_| ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
}

#[test]
fn a_failing_source_fails_the_image_and_a_cancelled_one_is_interrupted() {
    let folder = tempfile::tempdir().unwrap();
    let source = FaultDisk::new(MemDisk::from(pattern(30 << 20, 11)));
    source.fail_reads_in(17 << 20..(17 << 20) + 1, ErrorKind::Unavailable);
    for (index, (format, _)) in FORMATS.into_iter().enumerate() {
        let target = folder.path().join(index.to_string());
        let destination = Destination::create(&target, false, [0; 4]).unwrap();
        let options = WriteOptions::default();
        let error = write_image(&source, destination.output(), format, &options, &|_| ()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{format:?}");
        drop(destination);
        let destination = Destination::create(&target, false, [0; 4]).unwrap();
        options.cancel.store(true, Ordering::Relaxed);
        let error = write_image(&source, destination.output(), format, &options, &|_| ()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Interrupted, "{format:?}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left behind");
}

#[test]
fn a_full_file_system_is_told_as_such() {
    let test = "a_full_file_system_is_told_as_such";
    let folder = tempfile::tempdir().unwrap();
    let Some(_mounted) = SmallMount::new(folder.path(), test) else { return };
    let source = MemDisk::from(pattern(8 << 20, 12));
    for (format, _) in FORMATS {
        let destination = Destination::create(folder.path().join("a"), false, [0; 4]).unwrap();
        let options = WriteOptions::default();
        let error = write_image(&source, destination.output(), format, &options, &|_| ()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{format:?}: {error}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// A file system of 2 MiB, until it is dropped.
struct SmallMount(std::path::PathBuf);

impl SmallMount {
    fn new(folder: &Path, test: &str) -> Option<Self> {
        let arguments = ["-t", "tmpfs", "-o", "size=2m", "tmpfs", folder.to_str().unwrap()];
        let is_mounted = std::process::Command::new("mount").args(arguments).output();
        if is_mounted.is_ok_and(|output| output.status.success()) {
            return Some(Self(folder.to_path_buf()));
        }
        skip(test, "mounting needs root");
        None
    }
}

impl Drop for SmallMount {
    fn drop(&mut self) {
        let done = std::process::Command::new("umount").arg(&self.0).status();
        assert!(done.unwrap().success() || std::thread::panicking());
    }
}

#[test]
fn the_extension_says_the_format() {
    for (name, format) in [
        ("a.qcow2", WriteFormat::Qcow2(None)),
        ("a.QCOW2", WriteFormat::Qcow2(None)),
        ("a.vmdk", WriteFormat::VmdkMonolithicSparse),
        ("a.vhd", WriteFormat::VhdDynamic),
        ("a.Vhdx", WriteFormat::VhdxDynamic),
        ("a.vdi", WriteFormat::VdiDynamic),
        ("a.img", WriteFormat::Raw),
        ("vmdk", WriteFormat::Raw),
    ] {
        assert_eq!(WriteFormat::from_extension(Path::new(name)), format, "{name}");
    }
}
