//! Differencing VDIs, built by hand after VirtualBox's header: no program of VirtualBox's is at hand to make or read
//! one.

use crate::support::{have, mixed_disk, open, qemu_img};
use firn_disk::ErrorKind;
use firn_disk::testing::{Random, check_disk, pattern};
use firn_format::image::{self, ImageFormat, OpenOptions};
use std::path::Path;

const MIB: usize = 1 << 20;

/// A child of `parent`: blocks of 1 MiB by their numbers, and blocks of zeros.
fn child(path: &Path, parent: &Path, id: u8, blocks: &[(usize, &[u8])], zeros: &[usize]) {
    let base = std::fs::read(parent).unwrap();
    let mut file = base[..512].to_vec();
    let count = u32::from_le_bytes(base[384..388].try_into().unwrap()) as usize;
    file[76] = 4;
    file[344..348].copy_from_slice(&u32::try_from(MIB).unwrap().to_le_bytes());
    file[388..392].copy_from_slice(&u32::try_from(blocks.len()).unwrap().to_le_bytes());
    file[392..408].fill(id);
    file[408..424].fill(id ^ 0xff);
    file[424..440].copy_from_slice(&base[392..408]);
    file[440..456].copy_from_slice(&base[408..424]);
    let mut map = vec![u32::MAX; count];
    for (number, (block, _)) in (0..).zip(blocks) {
        map[*block] = number;
    }
    zeros.iter().for_each(|block| map[*block] = u32::MAX - 1);
    file.extend(map.iter().flat_map(|entry| entry.to_le_bytes()));
    file.resize(MIB, 0);
    blocks.iter().for_each(|(_, bytes)| file.extend(*bytes));
    std::fs::write(path, file).unwrap();
}

fn refusal(path: &Path) -> firn_disk::Error {
    image::open(path, &OpenOptions::default()).unwrap_err()
}

#[test]
fn a_differencing_vdi_finds_its_parent_by_its_uuid() {
    if !have("qemu-img", "a_differencing_vdi_finds_its_parent_by_its_uuid") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let mut bytes = mixed_disk(6 * MIB, 110);
    std::fs::write(at("source.raw"), &bytes).unwrap();
    qemu_img(folder.path(), &["convert", "-q", "-f", "raw", "-O", "vdi", "source.raw", "web1.vdi"]);
    qemu_img(folder.path(), &["create", "-q", "-f", "vdi", "other.vdi", "6M"]);
    std::fs::write(at("broken.vdi"), "no image at all").unwrap();
    std::fs::create_dir(at("Snapshots")).unwrap();
    let (one, two) = (pattern(MIB, 1), pattern(MIB, 2));
    child(&at("Snapshots/first.vdi"), &at("web1.vdi"), 7, &[(4, &one), (1, &two)], &[2]);
    bytes[4 * MIB..5 * MIB].copy_from_slice(&one);
    bytes[MIB..2 * MIB].copy_from_slice(&two);
    bytes[2 * MIB..3 * MIB].fill(0);
    child(&at("second.vdi"), &at("Snapshots/first.vdi"), 8, &[(5, &two)], &[]);
    bytes[5 * MIB..].copy_from_slice(&two);
    // From the machine's folder all is found; from Snapshots the parent's folder must be allowed.
    let image = open(at("second.vdi"));
    check_disk(&image.disk, &bytes, 111);
    assert_eq!(image.details.chain.iter().map(|link| link.format).collect::<Vec<_>>(), [ImageFormat::Vdi; 2]);
    let error = refusal(&at("Snapshots/first.vdi"));
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    assert!(error.next_step().unwrap().contains("--allow-backing"));
    let allowed = OpenOptions { allow_backing: vec![folder.path().to_path_buf()], ..OpenOptions::default() };
    image::open(at("Snapshots/first.vdi"), &allowed).unwrap();

    // A parent that was written to since says so by the UUID of its last write.
    let mut changed = std::fs::read(at("web1.vdi")).unwrap();
    changed[410] ^= 1;
    std::fs::write(at("web1.vdi"), changed).unwrap();
    assert_eq!(refusal(&at("second.vdi")).kind(), ErrorKind::Corrupt);
}

#[test]
fn each_lie_of_a_vdi_header_is_told() {
    if !have("qemu-img", "each_lie_of_a_vdi_header_is_told") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    qemu_img(folder.path(), &["create", "-q", "-f", "vdi", "a.vdi", "6M"]);
    let path = folder.path().join("a.vdi");
    let sound = std::fs::read(&path).unwrap();
    use ErrorKind::{Corrupt, Unsupported};
    for (what, at, value, kind) in [
        ("version", 68, &[1, 0, 0, 0][..], Unsupported),
        ("type", 76, &[3], Unsupported),
        ("map in the header", 340, &[8, 0], Corrupt),
        ("map outside", 340, &[0, 0, 0, 0xf0, 0, 0, 0, 0xf1], Corrupt),
        ("size", 368, &[255; 8], Corrupt),
        ("more blocks than there are", 368, &[0, 0, 0, 1], Corrupt),
        ("block", 376, &[1, 0, 0, 0], Corrupt),
        ("no block", 376, &[0; 4], Corrupt),
        ("a child without parent", 76, &[4], Corrupt),
    ] {
        let mut lie = sound.clone();
        lie[at..at + value.len()].copy_from_slice(value);
        std::fs::write(&path, lie).unwrap();
        let error = refusal(&path);
        assert_eq!(error.kind(), kind, "{what}: {error}");
    }
    // A block outside the file is told when it is read.
    let mut lie = sound;
    lie[512..516].copy_from_slice(&[9, 0, 0, 0]);
    std::fs::write(&path, lie).unwrap();
    assert_eq!(open(&path).disk.read_at(&mut [0; 9], 0).unwrap_err().kind(), Corrupt);
}

#[test]
fn damaged_differencing_images_never_panic() {
    if !have("qemu-img", "damaged_differencing_images_never_panic") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    qemu_img(folder.path(), &["create", "-q", "-f", "vdi", "base.vdi", "6M"]);
    let block = pattern(MIB, 1);
    child(&at("a.vdi"), &at("base.vdi"), 7, &[(4, &block)], &[2]);
    let sound = std::fs::read(at("a.vdi")).unwrap();
    let mut random = Random::new(112);
    for _ in 0..600 {
        let mut damaged = sound.clone();
        for _ in 0..=random.below(3) {
            let place =
                usize::try_from([64 + random.below(408), 512 + random.below(24)][usize::from(random.below(2) == 0)]);
            damaged[place.unwrap()] = [0, 0xff, 1, 0x80][usize::try_from(random.below(4)).unwrap()];
        }
        std::fs::write(at("a.vdi"), &damaged).unwrap();
        if let Ok(image) = image::open(at("a.vdi"), &OpenOptions::default()) {
            let mut read = vec![0; 6 * MIB];
            let most = usize::try_from(image.disk.len()).unwrap_or(usize::MAX).min(read.len());
            let _ = image.disk.read_at(&mut read[..most], 0);
        }
    }
}
