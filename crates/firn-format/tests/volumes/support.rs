//! The sets of disks that the lab made, and what the guest said of them.

use firn_disk::{Disk, Error, MemDisk, SharedDisk};
use firn_format::layers::{LayerKind, Layers, Node, NodeId};
use std::fmt::Write;
use std::path::PathBuf;
use std::sync::Arc;

pub fn data(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/volumes").join(name)
}

/// The disks of a set.
pub fn disks(set: &str) -> Vec<Vec<u8>> {
    let file = std::fs::read(data(&format!("{set}.raw.zst"))).unwrap();
    let mut decoder = zstd::Decoder::new(file.as_slice()).unwrap();
    decoder.window_log_max(27).unwrap();
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut decoder, &mut bytes).unwrap();
    let list = std::fs::read_to_string(data("sets.txt")).unwrap();
    let line = list.lines().find(|line| line.split(' ').next() == Some(set)).unwrap_or_else(|| panic!("no set {set}"));
    let mut rest = bytes.as_slice();
    let disks = line.split(' ').skip(1).map(|size| {
        let (disk, after) = rest.split_at(size.parse::<usize>().unwrap() << 20);
        rest = after;
        disk.to_vec()
    });
    let disks = disks.collect();
    assert!(rest.is_empty(), "{set} has more than its disks");
    disks
}

pub fn shared(bytes: Vec<u8>) -> SharedDisk {
    Arc::new(MemDisk::from(bytes))
}

/// The layers of disks, called vda, vdb…
pub fn probe(disks: Vec<Vec<u8>>) -> Layers {
    let letters = 'a'..='z';
    Layers::probe(letters.zip(disks).map(|(letter, bytes)| (format!("vd{letter}"), shared(bytes))).collect())
}

/// What the guest's sha256sum said of a whole volume.
pub fn expected(name: &str) -> String {
    let list = std::fs::read_to_string(data("volumes.sha256")).unwrap();
    let line = list.lines().rfind(|line| line.split("  ").nth(1) == Some(name));
    line.unwrap_or_else(|| panic!("{name} is not in the list")).split("  ").next().unwrap().to_owned()
}

pub fn hash(bytes: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

pub fn open(layers: &Layers, address: &str) -> Result<SharedDisk, Error> {
    let selectors: Vec<&str> = address.split('#').collect();
    layers.resolve(&selectors).and_then(|id| layers.disk(id))
}

pub fn read_all(disk: &dyn Disk) -> Result<Vec<u8>, Error> {
    let mut bytes = vec![0; usize::try_from(disk.len()).unwrap()];
    disk.read_at(&mut bytes, 0).map(|()| bytes)
}

/// Whether a volume reads as the guest read it.
#[track_caller]
pub fn check(layers: &Layers, address: &str, name: &str) {
    let bytes = open(layers, address).and_then(|disk| read_all(&disk));
    let bytes = bytes.unwrap_or_else(|error| panic!("{address} of {name}: {error}"));
    assert_eq!(hash(&bytes), expected(name), "{address} of {name}");
}

pub fn find<'a>(layers: &'a Layers, kind: LayerKind, name: &str) -> (NodeId, &'a Node) {
    layers.iter().find(|(_, node)| node.kind == kind && node.name == name).unwrap_or_else(|| panic!("{name}"))
}

/// Every file that the guest fsynced, by its list, in the file system at `address`.
#[track_caller]
pub fn check_files(layers: &Layers, address: &str, list: &str) {
    let selectors: Vec<&str> = address.split('#').collect();
    let id = layers.resolve(&selectors).unwrap();
    let tree = layers.open_files(id, &firn_format::fs::OpenOptions::default());
    let tree = tree.unwrap_or_else(|error| panic!("{address}: {error}"));
    let list = std::fs::read_to_string(data(&format!("{list}.sha256"))).unwrap();
    assert!(list.lines().count() >= 13);
    for line in list.lines() {
        let (sum, path) = line.split_once("  ./").unwrap();
        let node = path.split('/').try_fold(tree.root(), |at, name| tree.lookup(at, name.as_bytes()));
        let node = node.unwrap_or_else(|error| panic!("{address}: {path}: {error}"));
        let bytes = tree.open(node).and_then(|disk| read_all(&disk)).unwrap();
        assert_eq!(hash(&bytes), sum, "{address}: {path}");
    }
}
