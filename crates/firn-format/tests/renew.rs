//! New identifiers for copies: sgdisk, sfdisk, blkid, e2fsck, LVM and mkfs are the ground truth.

// The helpers of tests are tests too.
#![allow(clippy::unwrap_used)]

use firn_disk::testing::{Random, skip};
use firn_disk::{Disk, ErrorKind, MemDisk, SharedDisk};
use firn_format::fs::OpenOptions;
use firn_format::layers::{LayerKind, Layers, RenewOptions, Renewed};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

fn have(tools: &[&str], test: &str) -> bool {
    let missing = tools.iter().find(|tool| {
        let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
        !path.split(':').any(|folder| Path::new(folder).join(tool).exists())
    });
    if let Some(tool) = missing {
        skip(test, &format!("{tool} is missing"));
    }
    missing.is_none()
}

fn run(folder: &Path, tool: &str, arguments: &[&str]) -> String {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let output = Command::new(tool).args(arguments).current_dir(folder).env("PATH", path).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{tool} {arguments:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

fn bytes_of(disk: &SharedDisk) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(disk.len()).unwrap()];
    disk.read_at(&mut bytes, 0).unwrap();
    bytes
}

fn layers(disks: &[Vec<u8>]) -> Layers {
    let disks = ('a'..='z')
        .zip(disks)
        .map(|(letter, bytes)| (format!("vd{letter}"), Arc::new(MemDisk::from(bytes.clone())) as SharedDisk));
    Layers::probe(disks.collect())
}

fn renew(layers: &Layers, options: &RenewOptions, seed: u64) -> firn_disk::Result<Renewed> {
    let mut random = Random::new(seed);
    layers.renewed(options, &mut |buf| {
        random.fill(buf);
        Ok(())
    })
}

/// The disks with new identifiers, and what changed.
fn renewed(disks: &[Vec<u8>], options: &RenewOptions) -> (Vec<Vec<u8>>, Renewed) {
    let renewed = renew(&layers(disks), options, 1).unwrap();
    (renewed.disks.iter().map(|(_, disk)| bytes_of(disk)).collect(), renewed)
}

/// The layers' kinds, names and sizes, without their identifiers.
fn shape(layers: &Layers) -> Vec<(LayerKind, String, u64)> {
    layers.iter().map(|(_, node)| (node.kind, node.name.clone(), node.size)).collect()
}

/// That every identifier is as it was said, and no old one is left.
fn check_changes(before: &[Vec<u8>], after: &[Vec<u8>], renewed: &Renewed) {
    let (old, new) = (layers(before), layers(after));
    assert_eq!(shape(&old), shape(&new));
    assert_eq!(
        old.iter().map(|(_, node)| node.health.clone()).collect::<Vec<_>>(),
        new.iter().map(|(_, node)| node.health.clone()).collect::<Vec<_>>()
    );
    for ((_, old), (_, new)) in old.iter().zip(new.iter()) {
        let (Some(old), Some(new), false) = (&old.uuid, &new.uuid, old.kind == LayerKind::LogicalVolume) else {
            continue;
        };
        assert_ne!(old, new);
        assert!(renewed.changes.iter().any(|change| change.old == *old && change.new == *new), "{old} {new}");
    }
}

/// A file with `mkfs` run on it.
fn made(folder: &Path, name: &str, length: u64, tool: &str, arguments: &[&str]) -> Vec<u8> {
    let path = folder.join(name);
    std::fs::File::create(&path).unwrap().set_len(length).unwrap();
    let mut all = arguments.to_vec();
    all.push(name);
    run(folder, tool, &all);
    std::fs::read(path).unwrap()
}

fn blkid(folder: &Path, name: &str) -> BTreeMap<String, String> {
    let text = run(folder, "blkid", &["-p", "-o", "export", name]);
    text.lines().filter_map(|line| line.split_once('=')).map(|(key, value)| (key.into(), value.into())).collect()
}

const MIB: u64 = 1 << 20;

#[test]
fn ext_of_every_kind_of_checksum() {
    if !have(&["mkfs.ext4", "e2fsck", "blkid", "debugfs"], "ext_of_every_kind_of_checksum") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source");
    std::fs::create_dir(&source).unwrap();
    for number in 0..300 {
        std::fs::write(source.join(format!("file {number}")), vec![7; number * 31]).unwrap();
    }
    for (options, tool) in [
        (&["-q", "-F", "-d", "source"][..], "mkfs.ext4"),
        (&["-q", "-F", "-d", "source", "-O", "metadata_csum_seed"], "mkfs.ext4"),
        (&["-q", "-F", "-d", "source", "-O", "^metadata_csum,uninit_bg"], "mkfs.ext4"),
        (&["-q", "-F", "-d", "source", "-O", "^metadata_csum,uninit_bg,^64bit", "-b", "1024"], "mkfs.ext4"),
        (&["-q", "-F", "-d", "source", "-O", "bigalloc"], "mkfs.ext4"),
        (&["-q", "-F", "-d", "source", "-O", "^metadata_csum,^uninit_bg"], "mkfs.ext4"),
        (&["-q", "-F", "-d", "source", "-O", "meta_bg,^resize_inode"], "mkfs.ext4"),
        (&["-q", "-F", "-d", "source", "-O", "sparse_super2"], "mkfs.ext4"),
        (&["-q", "-F", "-d", "source"], "mkfs.ext3"),
        (&["-q", "-F", "-d", "source"], "mkfs.ext2"),
    ] {
        let is_small = options.contains(&"1024");
        let mut all = options.to_vec();
        if !is_small {
            all.extend(["-b", "4096"]);
        }
        let before = made(folder.path(), "a", 140 * MIB, tool, &all);
        let (after, changes) = renewed(std::slice::from_ref(&before), &RenewOptions::default());
        check_changes(&[before], &after, &changes);
        std::fs::write(folder.path().join("a"), &after[0]).unwrap();
        let report = run(folder.path(), "e2fsck", &["-f", "-n", "a"]);
        assert!(!report.contains("Fix"), "{options:?}: {report}");
        assert_eq!(blkid(folder.path(), "a")["UUID"], changes.changes[0].new);
        // The copies of the superblock, too: what e2fsck would take if the first were lost.
        let blocks = if is_small { "8193" } else { "32768" };
        if !options.iter().any(|option| option.contains("sparse_super2") || option.contains("bigalloc")) {
            let dump = run(folder.path(), "dumpe2fs", &["-h", "-o", &format!("superblock={blocks}"), "a"]);
            assert!(dump.contains(&changes.changes[0].new), "{options:?}: {dump}");
        }
        // The content is what it was.
        run(folder.path(), "debugfs", &["-R", "dump \"file 299\" out", "a"]);
        assert_eq!(std::fs::read(folder.path().join("out")).unwrap(), vec![7; 299 * 31], "{options:?}");
    }
}

#[test]
fn a_dirty_journal_must_be_replayed_first() {
    if !have(&["mkfs.ext4", "e2fsck", "debugfs"], "a_dirty_journal_must_be_replayed_first") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    made(folder.path(), "a", 64 * MIB, "mkfs.ext4", &["-q", "-F"]);
    // A transaction that was committed and not written back, with a block of the file system in it.
    std::fs::write(folder.path().join("block"), vec![0x11; 4096]).unwrap();
    run(folder.path(), "debugfs", &["-w", "-R", "jo", "a"]);
    std::fs::write(folder.path().join("commands"), "jo\njw -b 9000 block\njc\n").unwrap();
    run(folder.path(), "debugfs", &["-w", "-f", "commands", "a"]);
    let before = std::fs::read(folder.path().join("a")).unwrap();
    let dirty = layers(std::slice::from_ref(&before));
    let error = renew(&dirty, &RenewOptions::default(), 2).unwrap_err();
    assert!(error.to_string().contains("replayed"), "{error}");
    let clean = Layers::probe(dirty.replayed(&OpenOptions::default()).unwrap().disks);
    let renewed = renew(&clean, &RenewOptions::default(), 3).unwrap();
    std::fs::write(folder.path().join("a"), bytes_of(&renewed.disks[0].1)).unwrap();
    run(folder.path(), "e2fsck", &["-f", "-n", "a"]);
}

#[test]
fn fat_ntfs_and_swap() {
    let test = "fat_ntfs_and_swap";
    let folder = tempfile::tempdir().unwrap();
    let cases: [(&str, &[&str], u64); 4] = [
        ("mkfs.vfat", &["-F", "32"], 64 * MIB),
        ("mkfs.vfat", &["-F", "16"], 16 * MIB),
        ("mkfs.ntfs", &["-q", "-F"], 16 * MIB),
        ("mkswap", &["-q"], 8 * MIB),
    ];
    for (tool, options, length) in cases {
        if !have(&[tool, "blkid"], test) {
            continue;
        }
        let before = made(folder.path(), "a", length, tool, options);
        let (after, changes) = renewed(std::slice::from_ref(&before), &RenewOptions::default());
        check_changes(&[before], &after, &changes);
        std::fs::write(folder.path().join("a"), &after[0]).unwrap();
        assert_eq!(blkid(folder.path(), "a")["UUID"], changes.changes[0].new, "{tool}");
        match tool {
            // It compares the boot sector with its copy.
            "mkfs.vfat" => drop(run(folder.path(), "fsck.vfat", &["-n", "a"])),
            "mkfs.ntfs" => drop(run(folder.path(), "ntfsfix", &["-n", "a"])),
            _ => {}
        }
        std::fs::remove_file(folder.path().join("a")).unwrap();
    }
}

#[test]
fn gpt_and_mbr_with_what_is_on_them() {
    let test = "gpt_and_mbr_with_what_is_on_them";
    if !have(&["sgdisk", "sfdisk", "blkid", "mkfs.ext4", "mkswap", "e2fsck"], test) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let ext = made(folder.path(), "ext", 16 * MIB, "mkfs.ext4", &["-q", "-F"]);
    let swap = made(folder.path(), "swap", 8 * MIB, "mkswap", &["-q"]);
    for label in ["gpt", "dos"] {
        let path = folder.path().join("disk");
        let _ = std::fs::remove_file(&path);
        std::fs::File::create(&path).unwrap().set_len(64 * MIB).unwrap();
        let layout = format!("label: {label}\n2048 32768\n34816 16384\n51200\n");
        std::fs::write(folder.path().join("layout"), layout).unwrap();
        run(folder.path(), "sh", &["-c", "sfdisk -q disk < layout"]);
        let mut before = std::fs::read(&path).unwrap();
        before[1 << 20..17 << 20].copy_from_slice(&ext);
        before[17 << 20..25 << 20].copy_from_slice(&swap);
        let (after, changes) = renewed(std::slice::from_ref(&before), &RenewOptions::default());
        check_changes(std::slice::from_ref(&before), &after, &changes);
        std::fs::write(&path, &after[0]).unwrap();
        let ids = blkid(folder.path(), "disk");
        let of = |what: &str| changes.changes.iter().find(|change| change.what == what).unwrap();
        let disk = of(if label == "gpt" { "disk" } else { "disk signature" });
        assert_eq!(ids["PTUUID"], disk.new);
        let table: serde_json::Value = serde_json::from_str(&run(folder.path(), "sfdisk", &["-J", "disk"])).unwrap();
        if label == "gpt" {
            let verified = run(folder.path(), "sgdisk", &["-v", "disk"]);
            assert!(verified.contains("No problems found"), "{verified}");
            for number in 1..=3_usize {
                let uuid = table["partitiontable"]["partitions"][number - 1]["uuid"].as_str().unwrap();
                assert_eq!(uuid.to_lowercase(), of(&format!("partition {number}")).new);
            }
            // The backup alone gives the same.
            let mut lost = after[0].clone();
            lost[512..17_408].fill(0);
            let uuids = |layers: Layers| -> Vec<_> { layers.iter().map(|(_, node)| node.uuid.clone()).collect() };
            assert_eq!(uuids(layers(&[lost])), uuids(layers(&after)));
        }
        std::fs::write(folder.path().join("part"), &after[0][1 << 20..17 << 20]).unwrap();
        run(folder.path(), "e2fsck", &["-f", "-n", "part"]);
        // A table of which one copy is damaged is not touched.
        if label == "gpt" {
            let mut damaged = before.clone();
            let end = damaged.len();
            damaged[end - 512 + 60] ^= 1;
            let error = renew(&layers(&[damaged]), &RenewOptions::default(), 4).unwrap_err();
            assert!(error.kind() == ErrorKind::Unsupported && error.to_string().contains("copies"), "{error}");
        }
    }
}

fn lvm_data(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/lvm").join(format!("{name}.raw.zst"));
    let mut decoder = zstd::Decoder::new(std::fs::File::open(path).unwrap()).unwrap();
    decoder.window_log_max(27).unwrap();
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut decoder, &mut bytes).unwrap();
    bytes
}

/// What LVM itself says of physical volumes in files, without the kernel: it scans a folder of links to loop devices
/// where there are some, else only what firn reads is compared.
#[test]
fn lvm_groups_of_every_kind() {
    let sets: [&[&str]; 5] = [
        &["linear0", "linear1"],
        &["stripe0", "stripe1", "stripe2"],
        &["mirror0", "mirror1", "mirror2"],
        &["ring0", "ring1"],
        &["web1"],
    ];
    for names in sets {
        let before: Vec<_> = names.iter().map(|name| lvm_data(name)).collect();
        let found = layers(&before);
        let group = found.iter().find(|(_, node)| node.kind == LayerKind::VolumeGroup).unwrap().1.name.clone();
        let clean = Layers::probe(found.replayed(&OpenOptions::default()).unwrap().disks);
        let replayed: Vec<_> = clean
            .roots()
            .iter()
            .filter(|id| clean.node(**id).kind == LayerKind::Disk)
            .map(|id| bytes_of(&clean.disk(*id).unwrap()))
            .collect();
        let result = renew(&clean, &RenewOptions::default(), 5);
        let renewed_disks = match result {
            Ok(renewed) => renewed,
            // File systems in mirrors stand in two places.
            Err(error) => {
                assert!(names[0] == "mirror0" || names[0] == "stripe0", "{names:?}: {error}");
                continue;
            }
        };
        let after: Vec<_> = renewed_disks.disks.iter().map(|(_, disk)| bytes_of(disk)).collect();
        check_changes(&replayed, &after, &renewed_disks);
        // Another name, longer and shorter.
        for name in ["x", "a-much-longer-name-for-the-group"] {
            let options = RenewOptions { group_names: vec![(group.clone(), name.into())], ..RenewOptions::default() };
            let (after, changes) = renewed(&replayed, &options);
            let found = layers(&after);
            let node = found.iter().find(|(_, node)| node.kind == LayerKind::VolumeGroup).unwrap().1.clone();
            assert_eq!(node.name, name);
            assert!(node.health.is_empty(), "{:?}", node.health);
            check_by_lvm(&found, name, node.uuid.as_deref().unwrap());
            drop(changes);
        }
    }
    // One physical volume of a group cannot change without the others.
    let error = renew(&layers(&[lvm_data("linear0")]), &RenewOptions::default(), 6).unwrap_err();
    assert!(error.to_string().contains("missing"), "{error}");
    // Two of one UUID are told.
    let twins = [lvm_data("linear0"), lvm_data("linear1"), lvm_data("linear1")];
    assert_eq!(renew(&layers(&twins), &RenewOptions::default(), 7).unwrap_err().kind(), ErrorKind::Unsupported);
}

/// Compares with LVM's own tools, on loop devices.
fn check_by_lvm(layers: &Layers, name: &str, uuid: &str) {
    let test = "lvm_groups_of_every_kind";
    if !have(&["vgs", "losetup"], test) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut devices = Vec::new();
    // What is in a partition becomes a device of its own: nobody makes nodes for partitions of loop devices here.
    let physical = layers.iter().filter(|(_, node)| node.kind == LayerKind::PhysicalVolume);
    let disks: Vec<_> = physical.map(|(id, _)| bytes_of(&layers.disk(id).unwrap())).collect();
    for (number, bytes) in disks.iter().enumerate() {
        let path = folder.path().join(number.to_string());
        std::fs::write(&path, bytes).unwrap();
        let output = Command::new("losetup").args(["-r", "--find", "--show"]).arg(&path).output().unwrap();
        if !output.status.success() {
            skip(test, "loop devices need root");
            break;
        }
        devices.push(String::from_utf8(output.stdout).unwrap().trim().to_owned());
    }
    if devices.len() == disks.len() {
        let accept: Vec<_> = devices.iter().map(|device| format!("\"a|^{device}$|\"")).collect();
        let config = format!(
            "devices {{ filter = [ {}, \"r|.*|\" ] scan = [ \"/dev\" ] use_devicesfile = 0 }} global {{ locking_type = 0 use_lvmlockd = 0 }}",
            accept.join(", ")
        );
        let arguments =
            ["--config", &config, "--readonly", "--noheadings", "-o", "vg_name,vg_uuid,vg_missing_pv_count"];
        let output = Command::new("vgs").args(arguments).env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin").output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let words: Vec<_> = text.split_whitespace().collect();
        for device in &devices {
            Command::new("losetup").args(["-d", device]).status().unwrap();
        }
        assert_eq!(words, [name, uuid, "0"], "{text}{}", String::from_utf8_lossy(&output.stderr));
    } else {
        for device in &devices {
            Command::new("losetup").args(["-d", device]).status().unwrap();
        }
    }
}

#[test]
fn what_cannot_be_changed_is_refused_all_at_once_and_may_be_kept() {
    let test = "what_cannot_be_changed_is_refused_all_at_once_and_may_be_kept";
    if !have(&["mkfs.xfs", "mkfs.btrfs", "mkfs.ext4"], test) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let disks = [
        made(folder.path(), "xfs", 300 * MIB, "mkfs.xfs", &["-q"]),
        made(folder.path(), "btrfs", 200 * MIB, "mkfs.btrfs", &["-q"]),
        made(folder.path(), "ext", 16 * MIB, "mkfs.ext4", &["-q", "-F"]),
    ];
    let error = renew(&layers(&disks), &RenewOptions::default(), 8).unwrap_err();
    let text = error.to_string();
    assert!(error.kind() == ErrorKind::Unsupported && text.contains("#vda: ") && text.contains("#vdb: "), "{text}");
    assert!(text.contains("xfs_admin") && error.next_step().unwrap().contains("--keep-id"), "{text}");
    let keep = |names: &[&str]| RenewOptions {
        keep: names.iter().map(|name| (*name).into()).collect(),
        ..RenewOptions::default()
    };
    let (after, changes) = renewed(&disks, &keep(&["vda", "#vdb"]));
    assert_eq!(after[..2], disks[..2]);
    assert_eq!(changes.changes.iter().map(|change| change.what.as_str()).collect::<Vec<_>>(), ["ext4"]);
    assert_eq!(renew(&layers(&disks), &keep(&["vdz"]), 9).unwrap_err().kind(), ErrorKind::NotFound);
    let options = RenewOptions { group_names: vec![("vg".into(), "x".into())], ..RenewOptions::default() };
    assert_eq!(renew(&layers(&disks), &options, 9).unwrap_err().kind(), ErrorKind::NotFound);
}

/// Damaged disks: an error or other bytes, never a panic.
#[test]
fn damage_never_panics() {
    let sound = [lvm_data("linear0"), lvm_data("linear1")];
    let mut random = Random::new(10);
    for round in 0..400 {
        let mut disks = sound.clone();
        for _ in 0..=random.below(4) {
            let disk = &mut disks[usize::from(random.below(2) == 0)];
            let place = usize::try_from(
                [random.below(1024), 4096 + random.below(8192), random.below(disk.len() as u64)]
                    [usize::try_from(random.below(3)).unwrap()],
            )
            .unwrap();
            disk[place] ^= 1 << random.below(8);
        }
        drop(renew(&layers(&disks), &RenewOptions::default(), round));
    }
}
