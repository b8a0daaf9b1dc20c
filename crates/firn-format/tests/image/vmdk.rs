//! VMDKs that `qemu-img` cannot make, built by hand after VMware's Virtual Disk Format 5.0, and damaged ones.

use crate::support::{check_image, have, mixed_disk, open, qemu_img, run, runs};
use firn_disk::testing::{Random, check_disk, pattern};
use firn_disk::{ErrorKind, ExtentKind, FileDisk, MemDisk};
use firn_format::image::{self, OpenOptions, WriteFormat, WriteOptions, write_image};
use std::path::Path;

const MIB: usize = 1 << 20;

fn refusal(path: &Path) -> firn_disk::Error {
    image::open(path, &OpenOptions::default()).unwrap_err()
}

/// A descriptor of ESX: VMFS extents, DOS line ends, an adapter in the disk database.
fn descriptor(cid: u32, parent: Option<(u32, &str)>, kind: &str, extents: &[String]) -> String {
    let hint = parent.map_or(String::new(), |(_, name)| format!("parentFileNameHint=\"{name}\"\r\n"));
    format!(
        "# Disk DescriptorFile\r\nversion=1\r\nencoding=\"UTF-8\"\r\nCID={cid:08x}\r\nparentCID={:08x}\r\n\
         isNativeSnapshot=\"no\"\r\ncreateType=\"{kind}\"\r\n{hint}\r\n# Extent description\r\n{}\r\n\r\n\
         # The Disk Data Base\r\n#DDB\r\n\r\nddb.adapterType = \"lsilogic\"\r\n",
        parent.map_or(0xffff_ffff, |(cid, _)| cid),
        extents.join("\r\n")
    )
}

/// A redo log: header, directory, tables of 4096 grains of one sector, in which `sectors` are present.
fn redo_log(capacity: u32, sectors: &[(u32, [u8; 512])]) -> Vec<u8> {
    let tables = capacity.div_ceil(4096);
    let directory_sectors = (tables * 4).div_ceil(512);
    let first_table = 4 + directory_sectors;
    let first_grain = first_table + tables * 32;
    let mut file = vec![0; usize::try_from(first_grain).unwrap() * 512];
    let mut put = |at: u32, value: u32| {
        let at = usize::try_from(at).unwrap();
        file[at..at + 4].copy_from_slice(&value.to_le_bytes());
    };
    put(0, u32::from_le_bytes(*b"COWD"));
    for (field, value) in [(4, 1), (8, 3), (12, capacity), (16, 1), (20, 4), (24, tables), (28, first_grain)] {
        put(field, value);
    }
    let present = |table: u32| sectors.iter().any(|(sector, _)| sector / 4096 == table);
    for table in (0..tables).filter(|table| present(*table)) {
        put(4 * 512 + table * 4, first_table + table * 32);
    }
    for (index, (sector, _)) in (0..).zip(sectors) {
        put((first_table + sector / 4096 * 32) * 512 + sector % 4096 * 4, first_grain + index);
    }
    file.extend(sectors.iter().flat_map(|(_, bytes)| *bytes));
    file
}

#[test]
fn esx_disks_and_their_redo_logs() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let mut bytes = mixed_disk(5 * MIB, 50);
    std::fs::write(at.join("base-flat.vmdk"), &bytes).unwrap();
    let sectors = bytes.len() / 512;
    let base = descriptor(0xcafe, None, "vmfs", &[format!("RW {sectors} VMFS \"base-flat.vmdk\"")]);
    std::fs::write(at.join("base.vmdk"), base).unwrap();
    let mut present = Vec::new();
    for (index, sector) in [0, 1, 2, 7, 4095, 4096, 8191, 10_239].into_iter().enumerate() {
        let content: [u8; 512] = pattern(512, index as u64).try_into().unwrap();
        present.push((sector, content));
        let start = usize::try_from(sector).unwrap() * 512;
        bytes[start..start + 512].copy_from_slice(&content);
    }
    std::fs::write(at.join("base-000001-delta.vmdk"), redo_log(10_240, &present)).unwrap();
    let extent = format!("RW {sectors} VMFSSPARSE \"base-000001-delta.vmdk\"");
    // The hint is of the host where it was made; the parent lies beside.
    let hint = "/vmfs/volumes/5f1e/vm/base.vmdk";
    let child = descriptor(0xbeef, Some((0xcafe, hint)), "vmfsSparse", std::slice::from_ref(&extent));
    std::fs::write(at.join("base-000001.vmdk"), child).unwrap();
    let image = open(at.join("base-000001.vmdk"));
    check_disk(&image.disk, &bytes, 51);
    assert_eq!(image.details.subformat.as_deref(), Some("vmfsSparse"));
    assert_eq!(image.details.chain.len(), 1);
    assert_eq!(image.details.cluster_size, Some(512));

    if have("qemu-img", "esx_disks_and_their_redo_logs") {
        // QEMU takes the hint as it stands.
        let child = descriptor(0xbeef, Some((0xcafe, "base.vmdk")), "vmfsSparse", &[extent]);
        std::fs::write(at.join("base-000001.vmdk"), child).unwrap();
        std::fs::write(at.join("expected.raw"), &bytes).unwrap();
        qemu_img(at, &["compare", "-f", "raw", "-F", "vmdk", "expected.raw", "base-000001.vmdk"]);
        check_image(&at.join("base-000001.vmdk"), &bytes, 52);
    }
    let error = refusal(&at.join("base-000001-delta.vmdk"));
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.next_step().unwrap().contains("descriptor"));
}

#[test]
fn extents_of_all_kinds_follow_one_another() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let file = pattern(40 * 512, 60);
    std::fs::write(at.join("a b.bin"), &file).unwrap();
    std::fs::write(at.join("grains"), redo_log(6, &[(2, [5; 512])])).unwrap();
    let extents = [
        "RW 3 FLAT \"a b.bin\" 10".to_owned(),
        "RDONLY 100 ZERO".to_owned(),
        "RW 40 VMFS \"a b.bin\"".to_owned(),
        "RW 6 VMFSSPARSE \"grains\"".to_owned(),
        "RW 2 VMFS \"a b.bin\" 38".to_owned(),
    ];
    let text = descriptor(1, None, "custom", &extents);
    std::fs::write(at.join("a.vmdk"), &text).unwrap();
    let mut expected = file[10 * 512..13 * 512].to_vec();
    expected.resize(103 * 512, 0);
    expected.extend(&file);
    expected.extend([0; 1024]);
    expected.extend([5; 512]);
    expected.extend([0; 3 * 512]);
    expected.extend(&file[38 * 512..]);
    let image = open(at.join("a.vmdk"));
    check_disk(&image.disk, &expected, 61);
    let kinds: Vec<(ExtentKind, u64)> =
        runs(&image.disk).into_iter().map(|(kind, run)| (kind, (run.end - run.start) / 512)).collect();
    let [data, zero, hole] = [ExtentKind::Data, ExtentKind::Zero, ExtentKind::Hole];
    assert_eq!(kinds, [(data, 3), (zero, 100), (data, 40), (hole, 2), (data, 1), (hole, 3), (data, 2)]);
    // An extent that is shorter than the descriptor says is told at once.
    std::fs::write(at.join("a.vmdk"), text.replace("RW 40", "RW 41")).unwrap();
    assert_eq!(refusal(&at.join("a.vmdk")).kind(), ErrorKind::Corrupt);
    std::fs::write(at.join("a.vmdk"), text.replace("RW 6 ", "RW 7 ")).unwrap();
    assert_eq!(refusal(&at.join("a.vmdk")).kind(), ErrorKind::Corrupt);
}

#[test]
fn disks_of_several_two_gigabyte_extents() {
    if !have("qemu-img", "disks_of_several_two_gigabyte_extents") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    for kind in ["twoGbMaxExtentSparse", "twoGbMaxExtentFlat"] {
        let name = format!("{kind}.vmdk");
        qemu_img(at, &["create", "-q", "-f", "vmdk", "-o", &format!("subformat={kind}"), &name, "5G"]);
        // An extent ends 2 GiB less 64 KiB after it begins.
        let edges = [0, 2_147_418_112 - 1024, 2_147_418_112 * 2 - 512, (5 << 30) - 4096];
        for (byte, edge) in (1..).zip(edges) {
            run(at, "qemu-io", &["-c", &format!("write -P {byte} {edge} 2048"), &name]);
        }
        let image = open(at.join(&name));
        assert_eq!((image.disk.len(), image.details.data_files.len()), (5 << 30, 3));
        for (byte, edge) in (1..).zip(edges) {
            let mut read = [0; 4096];
            let before = edge.min(2048);
            image.disk.read_at(&mut read[..usize::try_from(before + 2048).unwrap()], edge - before).unwrap();
            let mut expected = [0; 4096];
            let start = usize::try_from(before).unwrap();
            expected[start..start + 2048].fill(byte);
            assert_eq!(read, expected, "{kind} at {edge}");
        }
    }
}

#[test]
fn grains_may_lie_in_any_order() {
    if !have("qemu-img", "grains_may_lie_in_any_order") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    qemu_img(at, &["create", "-q", "-f", "vmdk", "a.vmdk", "2M"]);
    let mut bytes = vec![0; 2 * MIB];
    for grain in [9, 8, 7, 20, 3, 4, 5, 6, 22, 21, 31, 0_u8] {
        let start = usize::from(grain) << 16;
        run(at, "qemu-io", &["-c", &format!("write -P {} {start} 64k", grain + 1), "a.vmdk"]);
        bytes[start..start + 65536].fill(grain + 1);
    }
    check_image(&at.join("a.vmdk"), &bytes, 65);
}

#[test]
fn parents_are_known_by_their_cid() {
    if !have("qemu-img", "parents_are_known_by_their_cid") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let mut bytes = mixed_disk(3 * MIB, 70);
    std::fs::write(at.join("a.raw"), &bytes).unwrap();
    qemu_img(at, &["convert", "-f", "raw", "-O", "vmdk", "a.raw", "parent.vmdk"]);
    qemu_img(at, &["create", "-q", "-f", "vmdk", "-b", "parent.vmdk", "-F", "vmdk", "child.vmdk"]);
    run(at, "qemu-io", &["-c", &format!("write -P 9 {MIB} 64k"), "child.vmdk"]);
    bytes[MIB..MIB + 65536].fill(9);
    check_image(&at.join("child.vmdk"), &bytes, 71);
    // The child's parent is written to: QEMU gives it a new CID.
    run(at, "qemu-io", &["-c", "write -P 1 0 512", "parent.vmdk"]);
    let error = refusal(&at.join("child.vmdk"));
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.next_step().unwrap().contains("parent"), "{error:?}");
    // Its name is lost altogether.
    std::fs::remove_file(at.join("parent.vmdk")).unwrap();
    assert_eq!(refusal(&at.join("child.vmdk")).kind(), ErrorKind::NotFound);
}

fn sectors_at(bytes: &[u8], at: usize) -> usize {
    usize::try_from(u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())).unwrap() * 512
}

#[test]
fn the_redundant_directory_stands_in_for_a_damaged_one() {
    if !have("qemu-img", "the_redundant_directory_stands_in_for_a_damaged_one") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let bytes = mixed_disk(70 * MIB, 80);
    std::fs::write(at.join("a.raw"), &bytes).unwrap();
    qemu_img(at, &["convert", "-f", "raw", "-O", "vmdk", "a.raw", "a.vmdk"]);
    let sound = std::fs::read(at.join("a.vmdk")).unwrap();
    let directory = sectors_at(&sound, 56);
    let table = usize::try_from(u32::from_le_bytes(sound[directory..directory + 4].try_into().unwrap())).unwrap() * 512;
    for (what, range) in [
        ("directory", directory..directory + 12),
        ("directory entry", directory + 4..directory + 8),
        ("table", table..table + 2048),
        ("some of the table", table + 40..table + 400),
    ] {
        let mut damaged = sound.clone();
        damaged[range].fill(0xf7);
        std::fs::write(at.join("damaged.vmdk"), &damaged).unwrap();
        let mut read = vec![0; bytes.len()];
        open(at.join("damaged.vmdk")).disk.read_at(&mut read, 0).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(read == bytes, "{what}");
        // Without the redundant one it is an error, not zeros.
        damaged[8] &= !2;
        std::fs::write(at.join("damaged.vmdk"), &damaged).unwrap();
        let error = open(at.join("damaged.vmdk")).disk.read_at(&mut read, 0).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}");
    }
    // A directory entry of zero would read as a hole.
    let mut damaged = sound.clone();
    damaged[directory..directory + 8].fill(0);
    std::fs::write(at.join("damaged.vmdk"), &damaged).unwrap();
    check_disk(&open(at.join("damaged.vmdk")).disk, &bytes, 81);
}

#[test]
fn a_flipped_bit_of_a_stream_is_an_error_or_does_not_matter() {
    if !have("qemu-img", "a_flipped_bit_of_a_stream_is_an_error_or_does_not_matter") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let bytes = mixed_disk(3 * MIB, 95);
    std::fs::write(at.join("a.raw"), &bytes).unwrap();
    qemu_img(at, &["convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", "a.raw", "a.vmdk"]);
    let sound = std::fs::read(at.join("a.vmdk")).unwrap();
    let grains = 65536..sound.len() as u64;
    let mut random = Random::new(96);
    let (mut errors, mut read) = (0, vec![0; bytes.len()]);
    for _ in 0..300 {
        let mut flipped = sound.clone();
        let place = grains.start + random.below(grains.end - grains.start);
        flipped[usize::try_from(place).unwrap()] ^= 1 << random.below(8);
        std::fs::write(at.join("a.vmdk"), flipped).unwrap();
        match open(at.join("a.vmdk")).disk.read_at(&mut read, 0) {
            Ok(()) => assert!(read == bytes, "wrong bytes after a flip at {place}"),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Corrupt);
                errors += 1;
            }
        }
    }
    assert!(errors > 200, "{errors}");
}

#[test]
fn a_stream_that_was_cut_short_or_mixed_up_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.vmdk");
    let bytes = mixed_disk(40 * MIB, 90);
    let output = FileDisk::create(&path, 0).unwrap();
    let source = MemDisk::from(bytes.clone());
    write_image(&source, &output, WriteFormat::VmdkStreamOptimized, &WriteOptions::default(), &|_| ()).unwrap();
    check_disk(&open(&path).disk, &bytes, 91);
    let sound = std::fs::read(&path).unwrap();
    for cut in [1, 512, 1024, 1536, 4096, sound.len() / 2, sound.len() - 2000, sound.len() - 100] {
        std::fs::write(&path, &sound[..sound.len() - cut]).unwrap();
        let error = refusal(&path);
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{cut} bytes less: {error}");
    }
    // The first grain's marker names another grain.
    let mut damaged = sound.clone();
    damaged[65536] ^= 0x80;
    std::fs::write(&path, &damaged).unwrap();
    let mut read = vec![0; bytes.len()];
    assert_eq!(open(&path).disk.read_at(&mut read, 0).unwrap_err().kind(), ErrorKind::Corrupt);
    // A byte of the first grain's compressed data: its checksum does not fit.
    let mut damaged = sound.clone();
    damaged[65536 + 12 + 40] ^= 1;
    std::fs::write(&path, &damaged).unwrap();
    assert_eq!(open(&path).disk.read_at(&mut read, 0).unwrap_err().kind(), ErrorKind::Corrupt);
    // Transferred as text: line feeds became carriage return and line feed.
    let text: Vec<u8> = sound.iter().flat_map(|byte| if *byte == b'\n' { vec![13, 10] } else { vec![*byte] }).collect();
    std::fs::write(&path, text).unwrap();
    let error = refusal(&path);
    assert!(error.next_step().is_some_and(|hint| hint.contains("binary") || hint.contains("copy")), "{error:?}");
}
