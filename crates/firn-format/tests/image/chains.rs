//! What a qcow2 image stands on: backing files, data files, its own snapshots; and what it says of itself.

use crate::support::{check_image, have, mixed_disk, open, qemu_img, qemu_map, run, runs};
use firn_disk::ErrorKind;
use firn_disk::testing::check_disk;
use firn_format::image::{self, ImageFormat, OpenOptions};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

const MIB: usize = 1 << 20;

/// Writes `byte` over `length` bytes at `at` of an image, through QEMU.
fn qemu_write(folder: &Path, image: &str, byte: u8, at: usize, length: usize) {
    run(folder, "qemu-io", &["-c", &format!("write -P {byte} {at} {length}"), image]);
}

#[test]
fn a_chain_of_every_format_reads_as_in_qemu() {
    if !have("qemu-img", "a_chain_of_every_format_reads_as_in_qemu") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let mut bytes = mixed_disk(4 * MIB, 20);
    std::fs::write(at.join("base.raw"), &bytes).unwrap();
    std::fs::create_dir(at.join("sub")).unwrap();
    // Names are relative to the image that holds them, and the chain ends longer than it begins.
    qemu_img(at, &["create", "-q", "-f", "qcow2", "-b", "../base.raw", "-F", "raw", "sub/one.qcow2"]);
    let json = r#"json:{"driver":"qcow2","file":{"driver":"file","filename":"sub/one.qcow2"}}"#;
    qemu_img(
        at,
        &["create", "-q", "-f", "qcow2", "-o", "extended_l2=on", "-b", json, "-F", "qcow2", "two.qcow2", "6M"],
    );
    qemu_img(
        at,
        &["create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", "-b", "file:two.qcow2", "-F", "qcow2", "top", "7M"],
    );
    bytes.resize(7 * MIB, 0);
    for (image, byte, start, length) in [
        ("sub/one.qcow2", 1, MIB, 70_000 / 512 * 512),
        ("two.qcow2", 2, MIB + 8192, 4096),
        ("two.qcow2", 3, 5 * MIB, 512),
        ("top", 4, MIB + 12288, 4096),
        ("top", 5, 7 * MIB - 4096, 4096),
    ] {
        qemu_write(at, image, byte, start, length);
        bytes[start..start + length].fill(byte);
    }
    run(at, "qemu-io", &["-c", "write -z 2M 64k", "top"]);
    bytes[2 * MIB..2 * MIB + 65536].fill(0);
    check_image(&at.join("top"), &bytes, 21);
    let details = open(at.join("top")).details;
    let formats: Vec<ImageFormat> = details.chain.iter().map(|link| link.format).collect();
    assert_eq!(formats, [ImageFormat::Qcow2, ImageFormat::Qcow2, ImageFormat::Raw]);
    assert!(details.chain[2].path.ends_with("base.raw"));
}

#[test]
fn a_recorded_raw_format_is_not_questioned_and_a_missing_one_is_found() {
    if !have("qemu-img", "a_recorded_raw_format_is_not_questioned_and_a_missing_one_is_found") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    qemu_img(at, &["create", "-q", "-f", "qcow2", "inner.qcow2", "1M"]);
    qemu_write(at, "inner.qcow2", 7, 0, 4096);
    let raw = std::fs::read(at.join("inner.qcow2")).unwrap();
    qemu_img(at, &["create", "-q", "-f", "qcow2", "-b", "inner.qcow2", "-F", "raw", "raw.qcow2"]);
    check_disk(&open(at.join("raw.qcow2")).disk, &raw, 1);
    qemu_img(at, &["rebase", "-q", "-u", "-f", "qcow2", "-b", "inner.qcow2", "-F", "qcow2", "raw.qcow2"]);
    let mut first = [0; 1];
    open(at.join("raw.qcow2")).disk.read_at(&mut first, 0).unwrap();
    assert_eq!(first, [7]);
    // The extension's type is overwritten by an unknown one: now the format is not recorded.
    let mut image = std::fs::read(at.join("raw.qcow2")).unwrap();
    let extension = image.windows(4).position(|word| word == [0xe2, 0x79, 0x2a, 0xca]).unwrap();
    image[extension] = 0x11;
    std::fs::write(at.join("raw.qcow2"), image).unwrap();
    let found = open(at.join("raw.qcow2"));
    assert_eq!(found.details.chain[0].format, ImageFormat::Qcow2);
    // The user's word wins for the image itself too.
    let options = OpenOptions { format: Some(ImageFormat::Raw), ..OpenOptions::default() };
    let image = image::open(at.join("inner.qcow2"), &options).unwrap();
    check_disk(&image.disk, &raw, 2);
}

#[test]
fn internal_snapshots_keep_their_own_size_and_content() {
    if !have("qemu-img", "internal_snapshots_keep_their_own_size_and_content") {
        return;
    }
    for options in ["cluster_size=64k", "compat=0.10", "extended_l2=on", "cluster_size=512"] {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        let first = mixed_disk(3 * MIB, 30);
        std::fs::write(at.join("a.raw"), &first).unwrap();
        qemu_img(at, &["convert", "-f", "raw", "-O", "qcow2", "-o", options, "a.raw", "a.qcow2"]);
        qemu_img(at, &["snapshot", "-c", "before", "a.qcow2"]);
        qemu_write(at, "a.qcow2", 9, MIB, 100 << 10);
        let mut second = first.clone();
        second[MIB..MIB + (100 << 10)].fill(9);
        qemu_img(at, &["snapshot", "-c", "1", "a.qcow2"]);
        // Version 2 cannot be resized while it has snapshots.
        let grows = options != "compat=0.10";
        if grows {
            qemu_img(at, &["resize", "-q", "a.qcow2", "40M"]);
        }
        qemu_write(at, "a.qcow2", 0, 0, 4096);
        let path = at.join("a.qcow2");
        let named = |name: &str| {
            let options = OpenOptions { snapshot: Some(name.to_owned()), ..OpenOptions::default() };
            image::open(&path, &options)
        };
        let before = named("before").unwrap();
        check_disk(&before.disk, &first, 31);
        // An id goes before a name: "1" is the id of the first and the name of the second.
        check_disk(&named("1").unwrap().disk, &first, 32);
        check_disk(&named("2").unwrap().disk, &second, 33);
        let error = named("nothing").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.next_step().unwrap().contains("before"), "{error:?}");
        let now = open(&path);
        let names: Vec<&str> = now.details.snapshots.iter().map(|snapshot| snapshot.name.as_str()).collect();
        assert_eq!(names, ["before", "1"]);
        assert!(now.details.snapshots.iter().all(|snapshot| snapshot.disk_size == 3 * MIB as u64));
        assert!(now.details.snapshots[0].seconds > 1_700_000_000);
        assert_eq!(now.details.virtual_size, if grows { 40 << 20 } else { 3 << 20 });
    }
}

#[test]
fn external_data_files_are_read() {
    if !have("qemu-img", "external_data_files_are_read") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let bytes = mixed_disk(3 * MIB + 512, 40);
    std::fs::write(at.join("a.raw"), &bytes).unwrap();
    for (name, options, feature) in [
        ("a", "data_file=a.data", "external data file"),
        ("b", "data_file=b.data,data_file_raw=on", "external raw data file"),
        ("c", "data_file=c.data,extended_l2=on", "external data file"),
    ] {
        qemu_img(at, &["convert", "-f", "raw", "-O", "qcow2", "-o", options, "a.raw", name]);
        let image = open(at.join(name));
        check_disk(&image.disk, &bytes, 41);
        assert!(image.details.features.iter().any(|word| word == feature), "{:?}", image.details);
        assert_eq!(image.details.data_files.len(), 1);
        let (ours, theirs) = (runs(&image.disk), qemu_map(&at.join(name)));
        assert_eq!(ours, theirs);
    }
    File::options().write(true).open(at.join("a.data")).unwrap().set_len(4096).unwrap();
    let mut buf = vec![0; bytes.len()];
    let error = open(at.join("a")).disk.read_at(&mut buf, 0).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    std::fs::remove_file(at.join("b.data")).unwrap();
    assert_eq!(image::open(at.join("b"), &OpenOptions::default()).unwrap_err().kind(), ErrorKind::NotFound);
}

fn patch(path: &Path, at: u64, bytes: &[u8]) {
    File::options().write(true).open(path).unwrap().write_all_at(bytes, at).unwrap();
}

#[test]
fn marks_are_told_and_unknown_features_are_refused_by_name() {
    if !have("qemu-img", "marks_are_told_and_unknown_features_are_refused_by_name") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.qcow2");
    qemu_img(folder.path(), &["create", "-q", "-f", "qcow2", "a.qcow2", "1M"]);
    patch(&path, 79, &[0b11]);
    let details = open(&path).details;
    assert!(details.is_dirty && details.is_corrupt);
    // Bits 5 and 40, of which QEMU's table of names knows neither; then one that the table names.
    let refusal = |bits: u64| {
        patch(&path, 72, &bits.to_be_bytes());
        image::open(&path, &OpenOptions::default()).unwrap_err()
    };
    let error = refusal(1 << 5 | 1 << 40);
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("bit 5, bit 40"), "{error}");
    let mut image = std::fs::read(&path).unwrap();
    let name = image.windows(9).position(|word| word == b"dirty bit").unwrap();
    image[name - 1] = 13;
    image[name..name + 9].copy_from_slice(b"moon bit!");
    std::fs::write(&path, image).unwrap();
    let error = refusal(1 << 13);
    assert!(error.to_string().contains("\"moon bit!\""), "{error}");
}

#[test]
fn encrypted_images_are_refused_as_such() {
    if !have("qemu-img", "encrypted_images_are_refused_as_such") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let secret = "secret,id=s,data=geheim";
    for (name, options) in [
        ("luks", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"),
        ("aes", "encrypt.format=aes,encrypt.key-secret=s"),
    ] {
        qemu_img(at, &["create", "-q", "--object", secret, "-f", "qcow2", "-o", options, name, "1M"]);
        let error = image::open(at.join(name), &OpenOptions::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().to_lowercase().contains(name), "{error}");
    }
}

#[test]
fn loops_and_endless_chains_end() {
    if !have("qemu-img", "loops_and_endless_chains_end") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    for (name, backing) in [("a", "b"), ("b", "a"), ("self", "./self")] {
        qemu_img(at, &["create", "-q", "-u", "-f", "qcow2", "-b", backing, "-F", "qcow2", name, "1M"]);
    }
    std::os::unix::fs::symlink("self", at.join("link")).unwrap();
    for name in ["a", "b", "self", "link"] {
        let error = image::open(at.join(name), &OpenOptions::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        assert!(error.to_string().contains("comes back"), "{error}");
    }
    // Long chains are fine up to the limit; one link more is refused.
    qemu_img(at, &["create", "-q", "-f", "qcow2", "link0", "1M"]);
    qemu_write(at, "link0", 5, 0, 512);
    qemu_img(at, &["create", "-q", "-u", "-f", "qcow2", "-b", "link000", "-F", "qcow2", "template", "1M"]);
    let template = std::fs::read(at.join("template")).unwrap();
    let name_at = template.windows(7).position(|word| word == b"link000").unwrap();
    std::fs::rename(at.join("link0"), at.join("link000")).unwrap();
    for number in 1..=200 {
        let mut image = template.clone();
        image[name_at..name_at + 7].copy_from_slice(format!("link{:03}", number - 1).as_bytes());
        std::fs::write(at.join(format!("link{number:03}")), image).unwrap();
    }
    let image = open(at.join("link199"));
    assert_eq!(image.details.chain.len(), 199);
    let mut byte = [0];
    image.disk.read_at(&mut byte, 511).unwrap();
    assert_eq!(byte, [5]);
    let error = image::open(at.join("link200"), &OpenOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

#[test]
fn other_formats_are_refused_by_name_unless_called_raw() {
    if !have("qemu-img", "other_formats_are_refused_by_name_unless_called_raw") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for (format, word) in [("qed", "QED"), ("parallels", "Parallels")] {
        qemu_img(folder.path(), &["create", "-q", "-f", format, format, "4M"]);
        let path = folder.path().join(format);
        let error = image::open(&path, &OpenOptions::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains(word), "{error}");
        let options = OpenOptions { format: Some(ImageFormat::Raw), ..OpenOptions::default() };
        assert_eq!(image::open(&path, &options).unwrap().format, ImageFormat::Raw);
    }
}
