//! VHD and VHDX that `qemu-img` cannot make, built by hand after Microsoft's specifications: differencing disks, and
//! a VHDX whose log was not replayed. libvhdi, and QEMU's own replay, are the ground truth.

use crate::support::{check_by_libvhdi, have, mixed_disk, open, qemu_img, run};
use firn_disk::testing::{Random, check_disk, pattern};
use firn_disk::{ErrorKind, FileDisk, MemDisk};
use firn_format::image::{self, ImageFormat, OpenOptions, WriteFormat, WriteOptions, write_image};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const MIB: usize = 1 << 20;

fn refusal(path: &Path) -> firn_disk::Error {
    image::open(path, &OpenOptions::default()).unwrap_err()
}

/// Writes `bytes` as an image by our own writer, whose images the tests of writing check.
fn written(path: &Path, format: WriteFormat, bytes: &[u8], unique: u8) {
    let options = WriteOptions { unique: [unique; 16], ..WriteOptions::default() };
    let output = FileDisk::create(path, 0).unwrap();
    write_image(&MemDisk::from(bytes.to_vec()), &output, format, &options, &|_| ()).unwrap();
}

fn put(bytes: &mut [u8], at: usize, piece: &[u8]) {
    bytes[at..at + piece.len()].copy_from_slice(piece);
}

fn utf16(text: &str, to_bytes: fn(u16) -> [u8; 2]) -> Vec<u8> {
    text.encode_utf16().flat_map(to_bytes).collect()
}

fn vhd_sum(bytes: &mut [u8], at: usize) {
    bytes[at..at + 4].fill(0);
    let sum: u32 = bytes.iter().map(|byte| u32::from(*byte)).sum();
    bytes[at..at + 4].copy_from_slice(&(!sum).to_be_bytes());
}

/// A differencing VHD over `parent`, a dynamic one with blocks of 2 MiB: of each piece its first sector and bytes.
fn vhd_child(path: &Path, parent: &Path, names: [&str; 2], pieces: &[(usize, Vec<u8>)]) {
    let base = std::fs::read(parent).unwrap();
    let mut footer = base[..512].to_vec();
    let mut header = base[512..1536].to_vec();
    put(&mut footer, 60, &4_u32.to_be_bytes());
    put(&mut header, 40, &footer[68..84]);
    put(&mut footer, 68, &[0xc1; 16]);
    put(&mut header, 64, &utf16("parent.vhd", u16::to_be_bytes));
    let entries = u32::from_be_bytes(header[28..32].try_into().unwrap()) as usize;
    let table = 1536;
    let locators = (table + entries * 4).next_multiple_of(512);
    let mut file = vec![0; locators + 1024];
    for (number, (platform, name)) in [b"W2ku", b"W2ru"].into_iter().zip(names).enumerate() {
        let text = utf16(name, u16::to_le_bytes);
        let (entry, at) = (576 + number * 24, locators + number * 512);
        put(&mut header, entry, platform);
        put(&mut header, entry + 4, &1_u32.to_be_bytes());
        put(&mut header, entry + 8, &u32::try_from(text.len()).unwrap().to_be_bytes());
        put(&mut header, entry + 16, &(at as u64).to_be_bytes());
        put(&mut file, at, &text);
    }
    file[table..table + entries * 4].fill(0xff);
    for (first, bytes) in pieces {
        for (sector, content) in (*first..).zip(bytes.chunks(512)) {
            let slot = table + sector / 4096 * 4;
            if file[slot..slot + 4] == [0xff; 4] {
                let at = file.len();
                put(&mut file, slot, &u32::try_from(at / 512).unwrap().to_be_bytes());
                file.resize(at + 512 + 2 * MIB, 0);
            }
            let block = u32::from_be_bytes(file[slot..slot + 4].try_into().unwrap()) as usize * 512;
            file[block + sector % 4096 / 8] |= 0x80 >> (sector % 8);
            put(&mut file, block + 512 + sector % 4096 * 512, content);
        }
    }
    vhd_sum(&mut footer, 64);
    vhd_sum(&mut header, 36);
    put(&mut file, 0, &footer);
    put(&mut file, 512, &header);
    file.extend(footer);
    std::fs::write(path, file).unwrap();
}

/// Pieces of a child, and the disk with them written over it. In a byte of the bitmap only the last bits are set:
/// libvhdi takes all bits of a VHD for set that follow a set one.
fn pieces(bytes: &mut [u8]) -> Vec<(usize, Vec<u8>)> {
    let last = bytes.len() / 512 - 1;
    let pieces = vec![
        (0, pattern(8 * 512, 1)),
        (13, pattern(3 * 512, 2)),
        (17, pattern(47 * 512, 3)),
        (2040, vec![0; 24 * 512]),
        (4095, pattern(9 * 512, 4)),
        (last, pattern(512, 5)),
    ];
    pieces.iter().for_each(|(first, piece)| put(bytes, first * 512, piece));
    pieces
}

#[test]
fn a_differencing_vhd_reads_through_its_parents() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let mut bytes = mixed_disk(7 * MIB + 512, 70);
    written(&at("parent.vhd"), WriteFormat::VhdDynamic, &bytes, 1);
    let changed = pieces(&mut bytes);
    vhd_child(&at("child.vhd"), &at("parent.vhd"), ["C:\\VMs\\parent.vhd", ".\\parent.vhd"], &changed);
    let mut grandchild = bytes.clone();
    put(&mut grandchild, 9 * 512, &[0x99; 1024]);
    put(&mut grandchild, 100 * 512, &[0x77; 512]);
    vhd_child(
        &at("top.vhd"),
        &at("child.vhd"),
        ["D:\\x\\child.vhd", "..\\elsewhere\\child.vhd"],
        &[(9, vec![0x99; 1024]), (100, vec![0x77; 512])],
    );
    let image = open(at("child.vhd"));
    check_disk(&image.disk, &bytes, 71);
    assert_eq!(image.details.subformat.as_deref(), Some("differencing"));
    assert_eq!(image.details.chain.iter().map(|link| link.format).collect::<Vec<_>>(), [ImageFormat::Vhd]);
    check_by_libvhdi("a_differencing_vhd_reads_through_its_parents", &[&at("child.vhd"), &at("parent.vhd")], &bytes);
    let top = open(at("top.vhd"));
    check_disk(&top.disk, &grandchild, 72);
    assert_eq!(top.details.chain.len(), 2);

    // Another disk under the parent's name, and none.
    let sound = std::fs::read(at("parent.vhd")).unwrap();
    std::fs::remove_file(at("parent.vhd")).unwrap();
    let error = refusal(&at("child.vhd"));
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    written(&at("parent.vhd"), WriteFormat::VhdDynamic, &bytes, 2);
    let error = refusal(&at("child.vhd"));
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    assert!(error.to_string().contains("UUID"), "{error}");
    // A chain that comes back to itself.
    std::fs::write(at("parent.vhd"), &sound).unwrap();
    let mut ring = std::fs::read(at("child.vhd")).unwrap();
    let id = ring[68..84].to_vec();
    put(&mut ring, 512 + 40, &id);
    vhd_sum(&mut ring[512..1536], 36);
    std::fs::write(at("parent.vhd"), &ring).unwrap();
    assert_eq!(refusal(&at("parent.vhd")).kind(), ErrorKind::Corrupt);
}

#[test]
fn the_copy_of_a_vhd_footer_helps_when_the_end_is_damaged() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.vhd");
    let bytes = mixed_disk(3 * MIB, 73);
    written(&path, WriteFormat::VhdDynamic, &bytes, 1);
    let sound = std::fs::read(&path).unwrap();
    for (what, at, kind) in [
        ("the footer", sound.len() - 400, None),
        ("the copy", 100, None),
        ("the dynamic header", 600, Some(ErrorKind::Corrupt)),
    ] {
        let mut damaged = sound.clone();
        damaged[at] ^= 1;
        std::fs::write(&path, damaged).unwrap();
        match kind {
            None => check_disk(&open(&path).disk, &bytes, 74),
            Some(kind) => assert_eq!(refusal(&path).kind(), kind, "{what}"),
        }
    }
    let mut damaged = sound;
    let end = damaged.len() - 400;
    (damaged[100], damaged[end]) = (9, 9);
    std::fs::write(&path, damaged).unwrap();
    let error = refusal(&path);
    assert!(error.kind() == ErrorKind::Corrupt && error.to_string().contains("checksum"), "{error}");
}

/// What of a VHDX as our writer and QEMU make them is where.
struct Layout {
    table: usize,
    metadata: usize,
}

fn layout(file: &[u8]) -> Layout {
    let place = |number: usize| {
        let at = (192 << 10) + 16 + number * 32;
        let guid = file[at];
        (guid, usize::try_from(u64::from_le_bytes(file[at + 16..at + 24].try_into().unwrap())).unwrap())
    };
    let find = |first: u8| (0..2).map(place).find(|(guid, _)| *guid == first).unwrap().1;
    Layout { table: find(0x66), metadata: find(0x06) }
}

fn vhdx_sum(bytes: &mut [u8]) {
    bytes[4..8].fill(0);
    let sum = crc32c::crc32c(bytes);
    bytes[4..8].copy_from_slice(&sum.to_le_bytes());
}

/// A GUID as text in a parent locator.
fn guid_text(bytes: &[u8]) -> String {
    let hex = |bytes: &mut dyn Iterator<Item = &u8>| bytes.map(|byte| format!("{byte:02x}")).collect::<String>();
    format!(
        "{{{}-{}-{}-{}-{}}}",
        hex(&mut bytes[..4].iter().rev()),
        hex(&mut bytes[4..6].iter().rev()),
        hex(&mut bytes[6..8].iter().rev()),
        hex(&mut bytes[8..10].iter()),
        hex(&mut bytes[10..].iter())
    )
}

/// A differencing VHDX over `parent`, one of our writer's: blocks of 1 MiB, of which 4096 share a bitmap.
fn vhdx_child(path: &Path, parent: &Path, relative: &str, pieces: &[(usize, Vec<u8>)]) {
    let base = std::fs::read(parent).unwrap();
    let Layout { table, metadata } = layout(&base);
    let mut file = base[..table + MIB].to_vec();
    let parent_writes = guid_text(&base[(128 << 10) + 32..(128 << 10) + 48]);
    for header in [64 << 10, 128 << 10] {
        put(&mut file, header + 32, &[0xd1; 16]);
        vhdx_sum(&mut file[header..header + 4096]);
    }
    // The file has a parent; the locator is an item more.
    file[metadata + (64 << 10) + 4] |= 2;
    let mut locator: Vec<u8> = vec![
        0xb7, 0xef, 0x4a, 0xb0, 0x9e, 0xd1, 0x81, 0x4a, 0xb7, 0x89, 0x25, 0xb8, 0xe9, 0x44, 0x59, 0x13, 0, 0, 3, 0,
    ];
    let pairs = [
        ("parent_linkage", parent_writes.as_str()),
        ("absolute_win32_path", "C:\\VMs\\parent.vhdx"),
        ("relative_path", relative),
    ];
    let mut text: Vec<u8> = Vec::new();
    for (key, value) in pairs {
        let [key, value] = [key, value].map(|text| utf16(text, u16::to_le_bytes));
        let start = 20 + 3 * 12 + text.len();
        locator.extend(u32::try_from(start).unwrap().to_le_bytes());
        locator.extend(u32::try_from(start + key.len()).unwrap().to_le_bytes());
        locator.extend(u16::try_from(key.len()).unwrap().to_le_bytes());
        locator.extend(u16::try_from(value.len()).unwrap().to_le_bytes());
        text.extend(key.into_iter().chain(value));
    }
    locator.extend(text);
    let entry = metadata + 32 + 5 * 32;
    file[metadata + 10] = 6;
    let guid = [0x2d, 0x5f, 0xd3, 0xa8, 0x0b, 0xb3, 0x4d, 0x45, 0xab, 0xf7, 0xd3, 0xd8, 0x48, 0x34, 0xab, 0x0c];
    put(&mut file, entry, &guid);
    put(&mut file, entry + 16, &(128_u32 << 10).to_le_bytes());
    put(&mut file, entry + 20, &u32::try_from(locator.len()).unwrap().to_le_bytes());
    put(&mut file, entry + 24, &4_u32.to_le_bytes());
    put(&mut file, metadata + (128 << 10), &locator);
    file[table..].fill(0);
    // One bitmap is enough for these disks.
    let bitmap = file.len();
    file.resize(bitmap + MIB, 0);
    put(&mut file, table + 4096 * 8, &(bitmap as u64 | 6).to_le_bytes());
    for (first, bytes) in pieces {
        for (sector, content) in (*first..).zip(bytes.chunks(512)) {
            let slot = table + sector / 2048 * 8;
            if file[slot] == 0 {
                let at = file.len();
                put(&mut file, slot, &(at as u64 | 7).to_le_bytes());
                file.resize(at + MIB, 0xee);
            }
            let block = u64::from_le_bytes(file[slot..slot + 8].try_into().unwrap());
            let block = usize::try_from(block & !7).unwrap();
            file[bitmap + sector / 8] |= 1 << (sector % 8);
            put(&mut file, block + sector % 2048 * 512, content);
        }
    }
    std::fs::write(path, file).unwrap();
}

#[test]
fn a_differencing_vhdx_reads_through_its_parents() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let mut bytes = mixed_disk(7 * MIB + 512, 80);
    written(&at("parent.vhdx"), WriteFormat::VhdxDynamic, &bytes, 1);
    let changed = pieces(&mut bytes);
    vhdx_child(&at("child.avhdx"), &at("parent.vhdx"), ".\\parent.vhdx", &changed);
    let image = open(at("child.avhdx"));
    check_disk(&image.disk, &bytes, 81);
    assert_eq!(image.details.subformat.as_deref(), Some("differencing"));
    assert_eq!(image.details.chain.iter().map(|link| link.format).collect::<Vec<_>>(), [ImageFormat::Vhdx]);
    check_by_libvhdi(
        "a_differencing_vhdx_reads_through_its_parents",
        &[&at("child.avhdx"), &at("parent.vhdx")],
        &bytes,
    );

    // States of whole blocks: what is undefined, zero or unmapped here is not the parent's.
    let sound = std::fs::read(at("child.avhdx")).unwrap();
    let table = layout(&sound).table;
    for (state, expected) in [(0, Some(false)), (1, Some(true)), (2, Some(true)), (3, Some(true)), (4, None), (5, None)]
    {
        let mut other = sound.clone();
        put(&mut other, table + 3 * 8, &[state, 0, 0, 0, 0, 0, 0, 0]);
        std::fs::write(at("child.avhdx"), other).unwrap();
        let mut block = vec![1; MIB];
        match (open(at("child.avhdx")).disk.read_at(&mut block, 3 * MIB as u64), expected) {
            (Ok(()), Some(true)) => assert!(block.iter().all(|byte| *byte == 0), "{state}"),
            (Ok(()), Some(false)) => assert!(block == bytes[3 * MIB..4 * MIB], "{state}"),
            (Err(error), None) => assert_eq!(error.kind(), ErrorKind::Corrupt),
            (read, _) => panic!("state {state}: {read:?}"),
        }
    }
    std::fs::write(at("child.avhdx"), &sound).unwrap();
    std::fs::remove_file(at("parent.vhdx")).unwrap();
    assert_eq!(refusal(&at("child.avhdx")).kind(), ErrorKind::NotFound);
    written(&at("parent.vhdx"), WriteFormat::VhdxDynamic, &bytes, 2);
    let error = refusal(&at("child.avhdx"));
    assert!(error.kind() == ErrorKind::Corrupt && error.to_string().contains("state"), "{error}");
}

/// A log entry: `sectors` of the file by their places, and ranges to zero.
fn log_entry(
    sequence: u64,
    tail: u32,
    guid: [u8; 16],
    length: u64,
    sectors: &[(u64, &[u8])],
    zeros: &[(u64, u64)],
) -> Vec<u8> {
    let descriptors = sectors.len() + zeros.len();
    let head = (64 + descriptors * 32).next_multiple_of(4096);
    let mut entry = vec![0; head];
    put(&mut entry, 0, b"loge");
    put(&mut entry, 8, &u32::try_from(head + sectors.len() * 4096).unwrap().to_le_bytes());
    put(&mut entry, 12, &tail.to_le_bytes());
    put(&mut entry, 16, &sequence.to_le_bytes());
    put(&mut entry, 24, &u32::try_from(descriptors).unwrap().to_le_bytes());
    put(&mut entry, 32, &guid);
    put(&mut entry, 48, &length.to_le_bytes());
    put(&mut entry, 56, &length.to_le_bytes());
    for (number, (place, bytes)) in sectors.iter().enumerate() {
        let at = 64 + number * 32;
        put(&mut entry, at, b"desc");
        put(&mut entry, at + 4, &bytes[4092..]);
        put(&mut entry, at + 8, &bytes[..8]);
        put(&mut entry, at + 16, &place.to_le_bytes());
        put(&mut entry, at + 24, &sequence.to_le_bytes());
    }
    for (number, (place, count)) in zeros.iter().enumerate() {
        let at = 64 + (sectors.len() + number) * 32;
        put(&mut entry, at, b"zero");
        put(&mut entry, at + 8, &count.to_le_bytes());
        put(&mut entry, at + 16, &place.to_le_bytes());
        put(&mut entry, at + 24, &sequence.to_le_bytes());
    }
    for (_, bytes) in sectors {
        entry.extend(b"data");
        entry.extend(u32::try_from(sequence >> 32).unwrap().to_le_bytes());
        entry.extend(&bytes[8..4092]);
        entry.extend(u32::try_from(sequence & 0xffff_ffff).unwrap().to_le_bytes());
    }
    vhdx_sum(&mut entry);
    entry
}

/// Puts `entry` at `at` of the ring, over its end if need be.
fn put_in_ring(file: &mut [u8], at: usize, entry: &[u8]) {
    for (number, byte) in entry.iter().enumerate() {
        file[MIB + (at + number) % MIB] = *byte;
    }
}

/// A VHDX whose table is as before a guest's writes, with a log that has what the writes made of it, in entries that
/// go over the ring's end. QEMU replays the same file when it opens it for writing.
#[test]
fn a_log_that_was_not_replayed_is_replayed_in_memory() {
    let test = "a_log_that_was_not_replayed_is_replayed_in_memory";
    if !have("qemu-img", test) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let bytes = mixed_disk(9 * MIB, 90);
    written(&at("a.vhdx"), WriteFormat::VhdxDynamic, &bytes, 1);
    let sound = std::fs::read(at("a.vhdx")).unwrap();
    let table = layout(&sound).table;
    let guid = [0x77; 16];
    let place = table as u64;
    // First the log says that blocks are where they are, and then that the second half of the table's sector is empty.
    let whole = sound[table..table + 4096].to_vec();
    let mut wrong = whole.clone();
    wrong[..64].fill(0);
    let (wiped, length) = (vec![0; 4096], sound.len() as u64);
    let stale = log_entry(3, 0, guid, length, &[(place, &wiped)], &[]);
    let first_at = MIB - 4096 * 3;
    let tail = u32::try_from(first_at).unwrap();
    let first = log_entry(41, tail, guid, length, &[(place, &wrong)], &[(place + 4096, 4096)]);
    let second = log_entry(42, tail, guid, length, &[(place, &whole)], &[]);
    let mut file = sound.clone();
    file[table..table + 4096].fill(0xab);
    file[table + 4096..table + 8192].fill(0xcd);
    put_in_ring(&mut file, 64 << 10, &stale);
    put_in_ring(&mut file, first_at, &first);
    put_in_ring(&mut file, first_at + first.len(), &second);
    put(&mut file, (128 << 10) + 48, &guid);
    vhdx_sum(&mut file[128 << 10..(128 << 10) + 4096]);
    std::fs::write(at("a.vhdx"), &file).unwrap();
    let image = open(at("a.vhdx"));
    assert!(image.details.is_dirty);
    check_disk(&image.disk, &bytes, 91);
    drop(image);
    assert!(std::fs::read(at("a.vhdx")).unwrap() == file, "nothing is written to the file");
    std::fs::copy(at("a.vhdx"), at("copy.vhdx")).unwrap();
    std::fs::write(at("expected.raw"), &bytes).unwrap();
    run(folder.path(), "qemu-io", &["-f", "vhdx", "-c", "length", "copy.vhdx"]);
    qemu_img(folder.path(), &["compare", "-f", "raw", "-F", "vhdx", "expected.raw", "copy.vhdx"]);
    assert!(!open(at("copy.vhdx")).details.is_dirty);

    // Where the last entry is torn, the one before it counts; where none is whole, the file is damaged.
    let last = MIB + (first_at + first.len()) % MIB + 5000 - MIB;
    let mut torn = file.clone();
    torn[MIB + last % MIB] ^= 1;
    std::fs::write(at("a.vhdx"), &torn).unwrap();
    let mut before = vec![0; 8 * MIB];
    open(at("a.vhdx")).disk.read_at(&mut before, 0).unwrap();
    assert!(before.iter().all(|byte| *byte == 0), "the first eight blocks are not there yet");
    torn[MIB + first_at + 100] ^= 1;
    torn[MIB + (64 << 10) + 100] ^= 1;
    std::fs::write(at("a.vhdx"), &torn).unwrap();
    assert_eq!(refusal(&at("a.vhdx")).kind(), ErrorKind::Corrupt);
}

/// QEMU killed while a VHDX is open, after writes that it has confirmed.
#[test]
fn a_vhdx_whose_writer_was_killed_reads_as_qemu_repairs_it() {
    let test = "a_vhdx_whose_writer_was_killed_reads_as_qemu_repairs_it";
    if !have("qemu-img", test) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| -> PathBuf { folder.path().join(name) };
    qemu_img(folder.path(), &["create", "-q", "-f", "vhdx", "-o", "block_size=1M", "a.vhdx", "64M"]);
    let mut child = Command::new("qemu-io")
        .args(["-f", "vhdx", "a.vhdx"])
        .current_dir(folder.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut bytes = vec![0; 64 * MIB];
    for number in 0..40_usize {
        let start = number * 7 % 64 * MIB + number * 512;
        let byte = u8::try_from(number + 1).unwrap();
        bytes[start..start + 8192].fill(byte);
        input.write_all(format!("write -P {byte} {start} 8192\n").as_bytes()).unwrap();
        // It has written when it says so.
        assert!(lines.by_ref().any(|line| line.unwrap().contains("wrote")));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let image = open(at("a.vhdx"));
    check_disk(&image.disk, &bytes, 95);
    drop(image);
    std::fs::write(at("expected.raw"), &bytes).unwrap();
    run(folder.path(), "qemu-io", &["-f", "vhdx", "-c", "length", "a.vhdx"]);
    qemu_img(folder.path(), &["compare", "-f", "raw", "-F", "vhdx", "expected.raw", "a.vhdx"]);
}

/// Headers, logs, tables, bitmaps and names of parents with damage anywhere, and with checksums made right again so
/// that what is behind them is reached: an error or bytes, never a panic or an endless loop.
#[test]
fn damage_with_right_checksums_never_panics_or_hangs() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let mut bytes = mixed_disk(3 * MIB, 100);
    let changed = vec![(0, pattern(4096, 1)), (2047, pattern(1024, 2))];
    for name in ["parent.vhd", "parent.vhdx"] {
        written(&at(name), WriteFormat::from_extension(Path::new(name)), &bytes, 1);
    }
    changed.iter().for_each(|(first, piece)| put(&mut bytes, first * 512, piece));
    vhd_child(&at("child.vhd"), &at("parent.vhd"), ["C:\\parent.vhd", ".\\parent.vhd"], &changed);
    vhdx_child(&at("child.vhdx"), &at("parent.vhdx"), ".\\parent.vhdx", &changed);
    let guid = [0x55; 16];
    let mut logged = std::fs::read(at("child.vhdx")).unwrap();
    let Layout { table, metadata } = layout(&logged);
    let sector = logged[table..table + 4096].to_vec();
    let length = logged.len() as u64;
    let entry = log_entry(7, 4096, guid, length, &[(table as u64, &sector)], &[(table as u64 + 4096, 4096)]);
    put_in_ring(&mut logged, 4096, &entry);
    put(&mut logged, (128 << 10) + 48, &guid);
    vhdx_sum(&mut logged[128 << 10..(128 << 10) + 4096]);
    let vhd = std::fs::read(at("child.vhd")).unwrap();
    let mut random = Random::new(101);
    let mut opened = 0;
    for round in 0..1500 {
        let is_vhd = round % 2 == 0;
        let mut file = if is_vhd { vhd.clone() } else { logged.clone() };
        let places: &[(usize, usize)] = if is_vhd {
            &[(0, 512), (512, 1024), (1536, 64), (2048, 1024)]
        } else {
            &[
                (128 << 10, 80),
                (192 << 10, 80),
                (metadata, 256),
                (metadata + (64 << 10), 64),
                (metadata + (128 << 10), 300),
                (MIB + 4096, 160),
                (table, 32),
                (table + 4096 * 8, 8),
            ]
        };
        for _ in 0..=random.below(3) {
            let (start, count) = places[usize::try_from(random.below(places.len() as u64)).unwrap()];
            let place = start + usize::try_from(random.below(count as u64)).unwrap();
            match random.below(4) {
                0 => file[place] ^= 1 << random.below(8),
                1 => file[place] = 0xff,
                2 => file[place] = 0,
                _ => file[place] = file[place].wrapping_add(1),
            }
        }
        if is_vhd {
            vhd_sum(&mut file[..512], 64);
            vhd_sum(&mut file[512..1536], 36);
            let end = file.len() - 512;
            let copy = file[..512].to_vec();
            put(&mut file, end, &copy);
        } else {
            vhdx_sum(&mut file[128 << 10..(128 << 10) + 4096]);
            vhdx_sum(&mut file[192 << 10..256 << 10]);
            let entry_length = u32::from_le_bytes(file[MIB + 4104..MIB + 4108].try_into().unwrap()) as usize;
            vhdx_sum(&mut file[MIB + 4096..MIB + 4096 + entry_length.clamp(64, MIB / 2)]);
        }
        let path = at(if is_vhd { "child.vhd" } else { "child.vhdx" });
        std::fs::write(&path, &file).unwrap();
        let Ok(image) = image::open(&path, &OpenOptions::default()) else { continue };
        opened += 1;
        let mut read = vec![0; 3 * MIB];
        let most = usize::try_from(image.disk.len()).unwrap_or(usize::MAX).min(read.len());
        let _ = image.disk.read_at(&mut read[..most], 0);
        let _ = image.disk.extent_at(image.disk.len() / 2);
    }
    assert!(opened > 200, "the damage must not all be caught at opening: {opened}");
}
