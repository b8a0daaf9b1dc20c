//! Version 4, which not every kernel mounts any more.
//!
//! The images were made by `lab/make-xfs-v4.py` in a guest (Linux 6.1, xfsprogs 6.1): file systems that were shut down
//! in the middle of changes, and lists of what the guest's own recovery made of them.

use firn_disk::{MemDisk, SharedDisk};
use firn_format::fs::{FileTree, FileType, OpenOptions, Stat};
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

fn data(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/xfs").join(name);
    let mut bytes = Vec::new();
    zstd::Decoder::new(std::fs::File::open(path).unwrap()).unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

fn sha256(bytes: &[u8]) -> String {
    ring::digest::digest(&ring::digest::SHA256, bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A line for everything in the tree, as the guest wrote them.
fn listed(tree: &dyn FileTree) -> Vec<String> {
    let mut lines = vec![line(tree, "/", tree.root())];
    let mut folders = vec![(tree.root(), String::new())];
    while let Some((folder, prefix)) = folders.pop() {
        tree.list(folder, &mut |entry| {
            let path = format!("{prefix}/{}", String::from_utf8_lossy(&entry.name));
            assert_eq!(tree.lookup(folder, &entry.name).unwrap(), entry.inode, "{path}");
            lines.push(line(tree, &path, entry.inode));
            if tree.stat(entry.inode).unwrap().file_type == FileType::Folder {
                folders.push((entry.inode, path));
            }
            Ok(())
        })
        .unwrap();
    }
    lines.sort();
    lines
}

fn line(tree: &dyn FileTree, path: &str, inode: u64) -> String {
    let stat = tree.stat(inode).unwrap();
    let content = match stat.file_type {
        FileType::File => {
            let mut bytes = vec![0; usize::try_from(stat.size).unwrap()];
            tree.open(inode).unwrap().read_at(&mut bytes, 0).unwrap();
            sha256(&bytes)
        }
        FileType::Symlink => String::from_utf8(tree.read_link(inode).unwrap()).unwrap(),
        _ => "-".into(),
    };
    let mut xattrs = tree.xattrs(inode).unwrap();
    xattrs.sort();
    let pairs: Vec<_> = xattrs
        .iter()
        .map(|xattr| {
            let value: String = xattr.value.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("({}, {value})", String::from_utf8_lossy(&xattr.name))
        })
        .collect();
    let pairs =
        if pairs.is_empty() { "-".into() } else { sha256(format!("[{}]", pairs.join(", ")).as_bytes())[..16].into() };
    let device = stat.device.map_or("-".into(), |(major, minor)| format!("{major}:{minor}"));
    let nanoseconds = |time: firn_format::fs::Timestamp| time.seconds * 1_000_000_000 + i64::from(time.nanoseconds);
    [
        path.to_string(),
        inode.to_string(),
        format!("0o{:o}", mode(&stat)),
        stat.user.to_string(),
        stat.group.to_string(),
        stat.size.to_string(),
        stat.allocated.to_string(),
        stat.links.to_string(),
        device,
        nanoseconds(stat.modified).to_string(),
        nanoseconds(stat.changed).to_string(),
        pairs,
        content,
    ]
    .join("\t")
}

fn mode(stat: &Stat) -> u32 {
    let kind = match stat.file_type {
        FileType::Fifo => 0o1,
        FileType::CharDevice => 0o2,
        FileType::Folder => 0o4,
        FileType::BlockDevice => 0o6,
        FileType::File => 0o10,
        FileType::Symlink => 0o12,
        FileType::Socket => 0o14,
    };
    kind << 12 | stat.permissions
}

fn check(name: &str) {
    let disk: SharedDisk = Arc::new(MemDisk::from(data(&format!("{name}.image.zst"))));
    let tree = firn_format::fs::open(&disk, &OpenOptions::default()).unwrap().unwrap();
    let facts = tree.facts();
    assert!(facts.features.contains(&"v4".to_string()) && facts.health.starts_with("replayed"), "{facts:?}");
    let expected = String::from_utf8(data(&format!("{name}.list.zst"))).unwrap();
    // The guest's kernel freed what was reserved behind the end of a file when the file had been read by its other
    // name.
    let without_reserved = |line: &str| {
        let is_second = line.starts_with("/short/hard\t");
        let fields = line.split('\t').enumerate().filter(|(index, _)| !is_second || *index != 6);
        fields.map(|(_, field)| field).collect::<Vec<_>>().join("\t")
    };
    let ours: Vec<_> = listed(&*tree).iter().map(|line| without_reserved(line)).collect();
    let theirs: Vec<_> = expected.lines().map(without_reserved).collect();
    let differing: Vec<_> = theirs.iter().filter(|line| !ours.contains(line)).take(20).collect();
    let too_many: Vec<_> = ours.iter().filter(|line| !theirs.contains(line)).take(20).collect();
    assert!(differing.is_empty() && too_many.is_empty(), "{facts:?}\nguest: {differing:#?}\nours: {too_many:#?}");
    // What is on the disk alone is another state, and is not hidden.
    let unreplayed =
        firn_format::fs::open(&disk, &OpenOptions { replay: false, ..OpenOptions::default() }).unwrap().unwrap();
    assert!(unreplayed.facts().health.contains("newest changes are missing"));
}

#[test]
fn the_default_v4() {
    check("v4");
}

#[test]
fn v4_with_blocks_of_512_bytes_and_a_log_of_version_1() {
    check("v4-small-blocks");
}

#[test]
fn v4_with_large_folder_blocks_and_old_attributes() {
    check("v4-folders");
}
