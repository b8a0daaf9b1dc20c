//! Images that `qemu-img` made, read back: the bytes and the runs are QEMU's.

use crate::support::{check_image, have, mixed_disk, open, qemu_img, run};
use firn_disk::testing::{Random, check_disk};
use firn_format::image::ImageFormat;
use std::path::Path;

/// An odd number of sectors, so that the last cluster and the last grain are cut by the end of the disk.
const LENGTH: usize = (5 << 20) + 3 * 512;

fn convert(folder: &Path, format: &str, options: &[&str], output: &str) {
    let mut arguments = vec!["convert", "-q", "-f", "raw", "-O", format];
    arguments.extend(options);
    arguments.extend(["source.raw", output]);
    qemu_img(folder, &arguments);
}

/// What QEMU calls the format.
fn driver(format: ImageFormat) -> &'static str {
    if format == ImageFormat::Vhd { "vpc" } else { format.as_str() }
}

fn check_each(test: &str, format: ImageFormat, cases: &[&[&str]]) {
    if !have("qemu-img", test) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let bytes = mixed_disk(LENGTH, 1);
    std::fs::write(folder.path().join("source.raw"), &bytes).unwrap();
    for (seed, options) in (1..).zip(cases) {
        let name = format!("image{seed}");
        convert(folder.path(), driver(format), options, &name);
        eprintln!("{options:?}");
        let path = folder.path().join(&name);
        let image = open(&path);
        assert_eq!(image.format, format, "{options:?}");
        // A VHD by its geometry, and some VHDX, are a little longer than what went in.
        let mut bytes = bytes.clone();
        bytes.resize(virtual_size(folder.path(), format, &name), 0);
        if maps_its_holes(format, options) {
            check_image(&path, &bytes, seed);
        } else {
            check_disk(&image.disk, &bytes, seed);
        }
    }
}

#[test]
fn qcow2_of_every_cluster_size() {
    let sizes: Vec<String> = (9..=21).map(|bits| format!("cluster_size={}", 1 << bits)).collect();
    let cases: Vec<Vec<&str>> = sizes.iter().map(|size| vec!["-o", size]).collect();
    check_each("qcow2_of_every_cluster_size", ImageFormat::Qcow2, &cases.iter().map(Vec::as_slice).collect::<Vec<_>>());
}

#[test]
fn qcow2_compressed_old_and_with_subclusters() {
    check_each(
        "qcow2_compressed_old_and_with_subclusters",
        ImageFormat::Qcow2,
        &[
            &["-o", "compat=0.10"],
            &["-c"],
            &["-c", "-o", "compat=0.10"],
            &["-c", "-o", "compression_type=zstd"],
            &["-c", "-o", "cluster_size=512"],
            &["-c", "-o", "cluster_size=4k,compression_type=zstd"],
            &["-c", "-o", "cluster_size=2M"],
            &["-c", "-o", "cluster_size=2M,compression_type=zstd"],
            &["-o", "extended_l2=on,cluster_size=16k"],
            &["-o", "extended_l2=on,cluster_size=128k"],
            &["-o", "extended_l2=on,cluster_size=2M"],
            &["-c", "-o", "extended_l2=on"],
            &["-o", "preallocation=metadata"],
            &["-o", "preallocation=falloc"],
            &["-o", "lazy_refcounts=on,refcount_bits=64"],
        ],
    );
}

#[test]
fn vmdk_of_every_kind() {
    check_each(
        "vmdk_of_every_kind",
        ImageFormat::Vmdk,
        &[
            &["-o", "subformat=monolithicSparse"],
            &["-o", "subformat=monolithicFlat"],
            &["-o", "subformat=twoGbMaxExtentSparse"],
            &["-o", "subformat=twoGbMaxExtentFlat"],
            &["-o", "subformat=streamOptimized"],
            &["-o", "subformat=monolithicSparse,zeroed_grain=on"],
            &["-o", "subformat=monolithicSparse,compat6=on"],
        ],
    );
}

/// QEMU tells no holes of a VHDX, takes a fixed VHD for raw when asked for its map, and tells zeros for the unfilled
/// last block of a VDI.
fn maps_its_holes(format: ImageFormat, options: &[&str]) -> bool {
    match format {
        ImageFormat::Vhdx | ImageFormat::Vdi => false,
        _ => !options.iter().any(|option| option.contains("subformat=fixed")),
    }
}

fn virtual_size(folder: &Path, format: ImageFormat, name: &str) -> usize {
    let info = qemu_img(folder, &["info", "-f", driver(format), "--output=json", name]);
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    usize::try_from(info["virtual-size"].as_u64().unwrap()).unwrap()
}

#[test]
fn vhd_of_every_kind() {
    check_each(
        "vhd_of_every_kind",
        ImageFormat::Vhd,
        &[
            &["-o", "subformat=dynamic"],
            &["-o", "subformat=fixed"],
            &["-o", "subformat=dynamic,force_size=on"],
            &["-o", "subformat=fixed,force_size=on"],
        ],
    );
}

#[test]
fn vhdx_of_every_kind() {
    check_each(
        "vhdx_of_every_kind",
        ImageFormat::Vhdx,
        &[
            &["-o", "subformat=dynamic"],
            &["-o", "subformat=fixed"],
            &["-o", "subformat=dynamic,block_size=1M"],
            &["-o", "subformat=dynamic,block_size=32M,log_size=2M"],
            &["-o", "subformat=dynamic,block_size=2M,block_state_zero=off"],
        ],
    );
}

#[test]
fn vdi_of_every_kind() {
    check_each("vdi_of_every_kind", ImageFormat::Vdi, &[&[], &["-o", "static=on"]]);
}

/// Blocks that a guest wrote in no order, over the ends of blocks, some of them twice.
#[test]
fn blocks_in_the_order_of_a_guest() {
    if !have("qemu-img", "blocks_in_the_order_of_a_guest") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let cases = [
        ("vpc", "subformat=dynamic,force_size=on", 300 << 20),
        ("vhdx", "block_size=1M", 300 << 20),
        ("vhdx", "block_size=16M", 300 << 20),
        ("vdi", "static=off", 300 << 20),
    ];
    for (seed, (driver, options, length)) in (1..).zip(cases) {
        let name = format!("{driver}-{seed}");
        qemu_img(folder.path(), &["create", "-q", "-f", driver, "-o", options, &name, &length.to_string()]);
        let mut bytes = vec![0; length];
        let mut random = Random::new(seed);
        let mut commands = Vec::new();
        for number in 0..60_usize {
            let byte = u8::try_from(number + 1).unwrap();
            let at = usize::try_from(random.below(length as u64 / 512 - 400)).unwrap() * 512;
            let count = (1 + usize::try_from(random.below(399)).unwrap()) * 512;
            bytes[at..at + count].fill(byte);
            commands.extend(["-c".to_owned(), format!("write -P {byte} {at} {count}")]);
        }
        let mut arguments: Vec<&str> = vec!["-f", driver];
        arguments.extend(commands.iter().map(String::as_str));
        arguments.push(&name);
        run(folder.path(), "qemu-io", &arguments);
        check_disk(&open(folder.path().join(&name)).disk, &bytes, seed);
    }
}

/// A guest's first writes into an image: parts of clusters at the very end of the file, discards, zeros.
#[test]
fn images_that_a_guest_has_just_begun_to_write() {
    if !have("qemu-img", "images_that_a_guest_has_just_begun_to_write") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for (seed, options) in (1..).zip(["cluster_size=64k", "cluster_size=2M", "extended_l2=on", "lazy_refcounts=on"]) {
        let path = folder.path().join("a.qcow2");
        qemu_img(folder.path(), &["create", "-q", "-f", "qcow2", "-o", options, "a.qcow2", "9M"]);
        let mut bytes = vec![0; 9 << 20];
        for (index, at) in [0, 5 << 20, (9 << 20) - 512, 4096, 70_144, (3 << 20) + 1024].into_iter().enumerate() {
            let byte = u8::try_from(index + 1).unwrap();
            run(folder.path(), "qemu-io", &["-c", &format!("write -P {byte} {at} 512"), "a.qcow2"]);
            bytes[at..at + 512].fill(byte);
            check_image(&path, &bytes, seed);
        }
        let commands = ["write -z 4096 512", "discard 4M 4M", "write -z -u 64k 64k"];
        run(
            folder.path(),
            "qemu-io",
            &["-d", "unmap", "-c", commands[0], "-c", commands[1], "-c", commands[2], "a.qcow2"],
        );
        bytes[4096..4608].fill(0);
        bytes[4 << 20..8 << 20].fill(0);
        bytes[64 << 10..128 << 10].fill(0);
        check_image(&path, &bytes, seed);
    }
}
