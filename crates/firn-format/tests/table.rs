//! Partition tables made by sgdisk, sfdisk and parted, compared with what sfdisk and partx read of them.

// The helpers of tests are tests too.
#![allow(clippy::unwrap_used)]

use firn_disk::testing::Random;
use firn_disk::{Disk, ErrorKind, FileDisk, MemDisk, SharedDisk};
use firn_format::layers::{LayerKind, Layers};
use firn_format::table::{self, PartitionType, Table, TableKind};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

/// Whether all `tools` are there. Says so loudly when not.
fn have(test: &str, tools: &[&str]) -> bool {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let missing = tools.iter().find(|tool| !path.split(':').any(|folder| Path::new(folder).join(tool).exists()));
    if let Some(tool) = missing {
        assert!(std::env::var_os("FIRN_REQUIRE_ALL").is_none(), "{test}: {tool} is missing");
        eprintln!("SKIPPED: {test}: {tool} is missing");
    }
    missing.is_none()
}

/// Runs a tool with `input` and answers what it wrote.
fn run(tool: &str, arguments: &[&str], file: &Path, input: &str) -> String {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let mut child = Command::new("env")
        .arg(format!("PATH={path}"))
        .arg("LC_ALL=C.UTF-8")
        .arg(tool)
        .args(arguments)
        .arg(file)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{tool} {arguments:?}: {said} {}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stdout).unwrap()
}

struct Lab {
    folder: tempfile::TempDir,
}

impl Lab {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn file(&self, megabytes: u64) -> PathBuf {
        let path = self.folder.path().join("disk.img");
        File::create(&path).unwrap().set_len(megabytes << 20).unwrap();
        path
    }
}

fn disk(path: &Path) -> SharedDisk {
    Arc::new(FileDisk::open(path).unwrap())
}

fn read(path: &Path) -> Table {
    table::read(&disk(path)).unwrap().expect("there is a table")
}

/// Compares with partx's reading of the same file.
fn compare(path: &Path, sector: u32) -> Table {
    let ours = read(path);
    assert_eq!(ours.block_size, sector);
    let size = sector.to_string();
    let shown = run("partx", &["-S", &size, "--raw", "--noheadings", "-o", "NR,START,SECTORS,UUID"], path, "");
    for (own, line) in ours.partitions.iter().zip(shown.lines()) {
        let uuid = own.uuid.as_deref().unwrap_or_default();
        let expected = format!("{} {} {} {uuid}", own.number, own.start / 512, own.length / 512);
        assert_eq!(line.trim(), expected, "number, start, sectors, UUID");
    }
    assert_eq!(shown.lines().count(), ours.partitions.len(), "{shown}");
    ours
}

/// Compares with what sfdisk reads as well. It knows sectors of 512 bytes only.
fn compare_all(path: &Path) -> Table {
    let ours = compare(path, 512);
    let json: serde_json::Value = serde_json::from_str(&run("sfdisk", &["--json"], path, "")).unwrap();
    let theirs = &json["partitiontable"];
    let kind = if theirs["label"] == "gpt" { TableKind::Gpt } else { TableKind::Mbr };
    assert_eq!(ours.kind, kind);
    let id = theirs["id"].as_str().unwrap().trim_start_matches("0x").to_lowercase();
    assert_eq!(ours.uuid.as_deref(), Some(id.as_str()));
    let list = theirs["partitions"].as_array().unwrap();
    assert_eq!(ours.partitions.len(), list.len(), "{list:#?} {ours:#?}");
    for (own, their) in ours.partitions.iter().zip(list) {
        let text = |name: &str| their[name].as_str();
        assert_eq!(text("node").unwrap(), format!("{}{}", path.display(), own.number));
        assert_eq!(Some(own.start / 512), their["start"].as_u64());
        assert_eq!(Some(own.length / 512), their["size"].as_u64());
        assert_eq!(own.label.as_deref(), text("name"));
        match own.partition_type {
            PartitionType::Gpt(guid) => assert_eq!(guid.to_string(), text("type").unwrap().to_lowercase()),
            PartitionType::Mbr(byte) => {
                assert_eq!(format!("{byte:x}"), text("type").unwrap());
                assert_eq!(own.bootable, their["bootable"].as_bool().unwrap_or(false));
            }
        }
        assert!(own.health.is_empty(), "{own:?}");
        assert_eq!(own.open(&disk(path)).unwrap().len(), own.length);
    }
    ours
}

#[test]
fn gpt_of_sgdisk_with_gaps_and_names() {
    if !have("gpt_of_sgdisk_with_gaps_and_names", &["sgdisk", "sfdisk", "partx"]) {
        return;
    }
    let lab = Lab::new();
    let path = lab.file(64);
    let make = [
        "-o",
        "-n",
        "1:2048:+4M",
        "-t",
        "1:ef00",
        "-c",
        "1:EFI böot 😀",
        "-n",
        "5:0:+8M",
        "-t",
        "5:8e00",
        "-n",
        "9:0:+1M",
        "-t",
        "9:8200",
        "-A",
        "9:set:2",
        "-n",
        "128:0:0",
        "-c",
        "128:abcdefghijklmnopqrstuvwxyz0123456789",
    ];
    run("sgdisk", &make, &path, "");
    let table = compare_all(&path);
    assert!(table.health.is_empty() && table.features.is_empty(), "{table:?}");
    assert_eq!(table.partitions[1].partition_type.name(), Some("Linux LVM"));
    assert!(table.partitions[2].bootable);
}

#[test]
fn gpt_and_mbr_of_fdisk_and_parted_in_both_sector_sizes() {
    if !have("gpt_and_mbr_of_fdisk_and_parted_in_both_sector_sizes", &["fdisk", "sfdisk", "parted", "partx"]) {
        return;
    }
    let lab = Lab::new();
    for sector in [512, 4096] {
        let size = sector.to_string();
        let path = lab.file(80);
        run("fdisk", &["-b", &size], &path, "g\nn\n\n\n+10M\nn\n\n\n+20M\nn\n\n\n+1M\nt\n1\n1\nw\n");
        let table = compare(&path, sector);
        assert_eq!(table.health.is_empty(), sector == 512, "a table of 4096 on a disk of 512 is told");
        assert_eq!((table.partitions.len(), table.partitions[0].partition_type.name()), (3, Some("EFI system")));

        // An MBR has no word on its sector size: something recognisable in a partition tells.
        let path = lab.file(80);
        run("fdisk", &["-b", &size], &path, "o\nn\np\n1\n4096\n+100\nn\ne\n2\n6144\n\nn\nl\n8192\n+200\na\n1\nw\n");
        File::options().write(true).open(&path).unwrap().write_all_at(b"XFSB", 8192 * u64::from(sector)).unwrap();
        let table = compare(&path, sector);
        assert_eq!((table.partitions.len(), table.partitions[0].bootable), (3, true));
    }
    let path = lab.file(64);
    for command in [
        vec!["mklabel", "msdos"],
        vec!["mkpart", "primary", "ext4", "1MiB", "10MiB"],
        vec!["mkpart", "extended", "10MiB", "60MiB"],
        vec!["mkpart", "logical", "ext4", "11MiB", "20MiB"],
        vec!["mkpart", "logical", "linux-swap", "21MiB", "30MiB"],
        vec!["set", "1", "boot", "on"],
    ] {
        parted(&path, &command);
    }
    let table = compare_all(&path);
    assert_eq!(table.partitions.iter().map(|part| part.number).collect::<Vec<_>>(), [1, 2, 5, 6]);
}

/// Unlike the others it wants the file first.
fn parted(path: &Path, arguments: &[&str]) {
    let mut command = Command::new("env");
    command.args(["PATH=/usr/sbin:/sbin:/usr/bin:/bin", "parted", "-s"]).arg(path).args(arguments);
    let output = command.output().unwrap();
    assert!(output.status.success(), "parted {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn mbr_with_many_logical_partitions() {
    if !have("mbr_with_many_logical_partitions", &["sfdisk", "partx"]) {
        return;
    }
    let lab = Lab::new();
    let path = lab.file(128);
    let mut script = "label: dos\nstart=2048,size=2048\nstart=8192,size=200000,type=f\n".to_owned();
    for number in 0..40 {
        use std::fmt::Write;
        writeln!(script, "start={},size={},type=83", 8192 + 2048 + number * 4096, 1 + number * 50).unwrap();
    }
    run("sfdisk", &["-q"], &path, &script);
    let table = compare_all(&path);
    assert_eq!(table.partitions.len(), 42);
    assert!(table.partitions[1].partition_type.is_extended());
}

#[test]
fn a_hybrid_mbr_is_a_gpt() {
    if !have("a_hybrid_mbr_is_a_gpt", &["sgdisk", "sfdisk", "partx"]) {
        return;
    }
    let lab = Lab::new();
    let path = lab.file(64);
    run("sgdisk", &["-o", "-n", "1:0:+4M", "-n", "2:0:+8M", "-n", "3:0:+1M", "-h", "1:3"], &path, "");
    let table = compare_all(&path);
    assert_eq!(table.features, ["hybrid MBR"]);
}

#[test]
fn what_fills_a_whole_disk_is_no_table_and_is_called_as_blkid_calls_it() {
    let name = "what_fills_a_whole_disk_is_no_table_and_is_called_as_blkid_calls_it";
    let tools = ["mkfs.vfat", "mkfs.ntfs", "mkfs.ext4", "mkfs.xfs", "mkfs.btrfs", "mkswap", "cryptsetup", "blkid"];
    if !have(name, &tools) {
        return;
    }
    let luks = ["luksFormat", "-q", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--key-file=-", "--type"];
    for (tool, arguments, kind, layer) in [
        ("mkfs.vfat", vec!["-F", "12", "-n", "TINY"], "fat12", LayerKind::FileSystem),
        ("mkfs.vfat", vec!["-F", "16"], "fat16", LayerKind::FileSystem),
        ("mkfs.vfat", vec!["-F", "32", "-n", "BOOT"], "fat32", LayerKind::FileSystem),
        ("mkfs.ntfs", vec!["-q", "-F", "-Q"], "ntfs", LayerKind::FileSystem),
        ("mkfs.ext4", vec!["-q", "-F", "-L", "root"], "ext4", LayerKind::FileSystem),
        ("mkfs.ext4", vec!["-q", "-F", "-t", "ext3"], "ext3", LayerKind::FileSystem),
        ("mkfs.ext4", vec!["-q", "-F", "-t", "ext2"], "ext2", LayerKind::FileSystem),
        ("mkfs.xfs", vec!["-q", "-f", "-L", "home"], "xfs", LayerKind::FileSystem),
        ("mkfs.btrfs", vec!["-q", "-f", "-L", "pool"], "btrfs", LayerKind::FileSystem),
        ("mkswap", vec!["-L", "swap1"], "swap", LayerKind::Swap),
        ("cryptsetup", [&luks[..], &["luks1"]].concat(), "luks1", LayerKind::Encrypted),
        ("cryptsetup", [&luks[..], &["luks2", "--label", "safe"]].concat(), "luks2", LayerKind::Encrypted),
    ] {
        let lab = Lab::new();
        let path = lab.file(if kind == "fat12" { 4 } else { 400 });
        run(tool, &arguments, &path, "key");
        assert!(table::read(&disk(&path)).unwrap().is_none_or(|table| table.partitions.is_empty()), "{kind}");
        let layers = Layers::probe(vec![("vda".into(), disk(&path))]);
        let kinds: Vec<_> = layers.iter().map(|(_, node)| (node.kind, node.name.clone())).collect();
        assert_eq!(kinds, [(LayerKind::Disk, "vda".into()), (layer, kind.into())]);
        let id = layers.resolve(&["vda"]).unwrap();
        match layers.file_system_of(id) {
            Ok(found) => assert_eq!(layers.node(found).name, kind),
            Err(error) if layer == LayerKind::Swap => assert_eq!(error.kind(), ErrorKind::Invalid),
            Err(error) => assert_eq!((error.kind(), layer), (ErrorKind::Denied, LayerKind::Encrypted)),
        }
        // What blkid calls its UUID and label is what we call it.
        let blkid = run("blkid", &["-p", "-o", "export"], &path, "");
        let value = |name: &str| blkid.lines().find_map(|line| line.strip_prefix(name)).map(|v| v.replace('\\', ""));
        let (_, node) = layers.iter().last().unwrap();
        assert_eq!(node.uuid, value("UUID="), "{blkid}");
        assert_eq!(node.label, value("LABEL="), "{blkid}");
    }
}

#[test]
fn a_damaged_gpt_is_read_from_the_other_copy_and_says_so() {
    if !have("a_damaged_gpt_is_read_from_the_other_copy_and_says_so", &["sgdisk"]) {
        return;
    }
    let lab = Lab::new();
    let path = lab.file(16);
    run("sgdisk", &["-o", "-n", "1:0:+4M", "-c", "1:root", "-n", "2:0:+4M"], &path, "");
    let bytes = std::fs::read(&path).unwrap();
    let good = read(&path);
    let end = bytes.len();
    let damaged = |places: &[usize]| -> SharedDisk {
        let mut bytes = bytes.clone();
        for place in places {
            bytes[*place] ^= 0x40;
        }
        Arc::new(MemDisk::from(bytes))
    };
    for (places, told) in [
        (vec![512], "primary table is damaged"),
        (vec![512 + 40], "primary table is damaged"),
        (vec![1024 + 60], "primary table is damaged"),
        (vec![end - 512 + 20], "backup table is damaged"),
        (vec![end - 33 * 512 + 50], "backup table is damaged"),
    ] {
        let table = table::read(&damaged(&places)).unwrap().unwrap();
        assert_eq!(table.partitions, good.partitions);
        assert_eq!(table.health.len(), 1);
        assert!(table.health[0].contains(told), "{places:?}: {:?}", table.health);
    }
    let error = table::read(&damaged(&[512, end - 512])).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    // The protective entry lost: still a GPT, since nothing else claims the disk.
    let table = table::read(&damaged(&[0x1FE])).unwrap().unwrap();
    assert_eq!(table.partitions, good.partitions);
    assert!(table.health[0].contains("protective MBR is missing"), "{:?}", table.health);

    let longer: SharedDisk = Arc::new(MemDisk::from([bytes.clone(), vec![0; 1 << 20]].concat()));
    let table = table::read(&longer).unwrap().unwrap();
    assert!(table.health[0].contains("resized"), "{:?}", table.health);
    let shorter: SharedDisk = Arc::new(MemDisk::from(bytes[..6 << 20].to_vec()));
    let table = table::read(&shorter).unwrap().unwrap();
    assert!(table.partitions[1].health[0].contains("past the end"), "{:?}", table.partitions);
    assert!(table.partitions[0].health.is_empty());
    // A damaged table is a node with its error; the rest of the tree stays.
    let layers = Layers::probe(vec![("vda".into(), damaged(&[512, end - 512])), ("vdb".into(), damaged(&[]))]);
    assert!(layers.iter().any(|(_, node)| node.kind == LayerKind::Table && node.error.is_some()));
    layers.disk(layers.resolve(&["vdb2"]).unwrap()).unwrap();
}

#[test]
fn odd_chains_of_logical_partitions_end() {
    let record = |first: (u32, u32), next: (u32, u32)| {
        let mut sector = vec![0; 512];
        for (at, kind, (start, count)) in [(446, 0x83, first), (462, 0x05, next)] {
            sector[at + 4] = kind;
            sector[at + 8..at + 12].copy_from_slice(&u32::to_le_bytes(start));
            sector[at + 12..at + 16].copy_from_slice(&u32::to_le_bytes(count));
        }
        sector[510..].copy_from_slice(&[0x55, 0xAA]);
        sector
    };
    let probe = |records: &[(usize, Vec<u8>)]| {
        let mut bytes = vec![0; 1 << 20];
        for (sector, record) in records {
            bytes[sector * 512..][..512].copy_from_slice(record);
        }
        table::read(&(Arc::new(MemDisk::from(bytes)) as SharedDisk)).unwrap().unwrap()
    };
    let boot = record((1, 5), (100, 1000));
    // In a circle, to itself, past the end, without magic, and one that never ends but has no partitions.
    let table = probe(&[(0, boot.clone()), (100, record((1, 1), (50, 10))), (150, record((1, 1), (0, 10)))]);
    assert!(table.health[0].contains("circle"), "{:?}", table.health);
    assert_eq!(table.partitions.len(), 4);
    let table = probe(&[(0, boot.clone()), (100, record((1, 1), (u32::MAX, 10)))]);
    assert!(table.health[0].contains("past the end"), "{:?}", table.health);
    let table = probe(&[(0, boot.clone()), (100, record((1, 1), (50, 10)))]);
    assert!(table.health[0].contains("no magic"), "{:?}", table.health);
    let empty: Vec<_> = (0..900).map(|at| (100 + at, record((0, 0), (u32::try_from(at).unwrap() + 1, 10)))).collect();
    let table = probe(&[&[(0, boot)], empty.as_slice()].concat());
    assert!(table.health[0].contains("circle"), "{:?}", table.health);
}

#[test]
fn nested_tables_are_found_and_addressed() {
    if !have("nested_tables_are_found_and_addressed", &["sgdisk", "sfdisk"]) {
        return;
    }
    let (outer, inner) = (Lab::new(), Lab::new());
    let inner_path = inner.file(16);
    run("sfdisk", &["-q"], &inner_path, "label: dos\nstart=2048,size=4096\nstart=8192,size=2048,type=82\n");
    File::options().write(true).open(&inner_path).unwrap().write_all_at(b"XFSB", 8192 * 512).unwrap();
    let path = outer.file(32);
    run("sgdisk", &["-o", "-n", "1:2048:+20M"], &path, "");
    let bytes = std::fs::read(&inner_path).unwrap();
    File::options().write(true).open(&path).unwrap().write_all_at(&bytes, 2048 * 512).unwrap();
    let layers = Layers::probe(vec![("vdb".into(), disk(&path))]);
    let id = layers.resolve(&["vdb1", "vda2"]).unwrap();
    assert_eq!(layers.node(id).address, "#vdb1#vda2");
    assert_eq!(layers.disk(id).unwrap().len(), 2048 * 512);
    assert_eq!(layers.node(layers.file_system_of(id).unwrap()).name, "xfs");
    assert_eq!(layers.resolve(&["vda2"]).unwrap_err().kind(), ErrorKind::NotFound, "only inside of vdb1");
    let error = layers.resolve(&["vdb1", "vda3"]).unwrap_err();
    assert!(error.next_step().unwrap().contains("#vdb1#vda2"), "{error:?}");
}

#[test]
fn mutated_tables_never_panic_or_hang() {
    if !have("mutated_tables_never_panic_or_hang", &["sgdisk", "sfdisk"]) {
        return;
    }
    let lab = Lab::new();
    let gpt = lab.file(2);
    run("sgdisk", &["-o", "-n", "1:0:+500K", "-n", "2:0:0", "-h", "1"], &gpt, "");
    let gpt = std::fs::read(&gpt).unwrap();
    let mbr = lab.file(2);
    let script = "label: dos\nstart=64,size=64\nstart=128,size=3000,type=5\nstart=256,size=64\nstart=512,size=64\n";
    run("sfdisk", &["-q"], &mbr, script);
    let mbr = std::fs::read(&mbr).unwrap();
    let mut random = Random::new(3);
    let mut tables = 0;
    for round in 0..3000 {
        let mut bytes = if round % 2 == 0 { gpt.clone() } else { mbr.clone() };
        for _ in 0..=random.below(6) {
            // Mostly where tables are.
            let at = match random.below(5) {
                0 => random.below(bytes.len() as u64),
                1 => bytes.len() as u64 - 1 - random.below(512),
                2 => 440 + random.below(72),
                3 => 512 + random.below(1024),
                _ => (128 + 64 * random.below(8)) * 512 + 440 + random.below(72),
            };
            bytes[usize::try_from(at).unwrap()] = random.next_u64().to_le_bytes()[0];
        }
        if random.below(4) == 0 {
            fix_checksums(&mut bytes);
        }
        let disk: SharedDisk = Arc::new(MemDisk::from(bytes));
        if let Ok(Some(table)) = table::read(&disk) {
            tables += 1;
            assert!(table.partitions.len() <= 600);
            for partition in &table.partitions {
                if let Ok(window) = partition.open(&disk) {
                    assert!(window.len() <= disk.len());
                }
            }
        }
        if round % 10 == 0 {
            Layers::probe(vec![("vda".into(), disk)]);
        }
    }
    assert!(tables > 1000, "{tables}");
}

/// Makes the checksum of the primary GPT header right again, so that what it says is believed.
fn fix_checksums(bytes: &mut [u8]) {
    let crc = |bytes: &[u8]| {
        !bytes.iter().fold(u32::MAX, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ if crc & 1 == 1 { 0xEDB8_8320 } else { 0 })
        })
    };
    let entries = crc(&bytes[1024..1024 + 128 * 128]);
    bytes[512 + 88..512 + 92].copy_from_slice(&entries.to_le_bytes());
    bytes[512 + 16..512 + 20].fill(0);
    let header = crc(&bytes[512..512 + 92]);
    bytes[512 + 16..512 + 20].copy_from_slice(&header.to_le_bytes());
}
