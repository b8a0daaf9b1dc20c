//! Compares a tree that the kernel mounted with any [`FileTree`]: names, types, all of stat, link targets, attributes
//! and content.
//!
//! Mount with `noatime`, or looking at a file changes it.

#![allow(clippy::cast_sign_loss, clippy::cast_possible_truncation, clippy::unwrap_used)]

use firn_disk::{Disk, ExtentKind};
use firn_format::fs::{FileTree, FileType, Timestamp};
use rustix::fs::{AtFlags, CWD, StatxFlags};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// What a tree says of one path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Every field of stat by its name, so that a difference can be told.
    pub stat: Vec<(&'static str, String)>,
    /// Extended attributes.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// blake3 of a file's content, or a link's target.
    pub content: Vec<u8>,
}

/// A whole tree by path, the root being empty.
pub type Tree = BTreeMap<Vec<u8>, Item>;

/// Which fields of stat are left out of a comparison, by name; `xattrs`; or `folder times`,
/// `folder links` and `folder sizes` for those of folders only; or `only ours` for paths that the kernel does not have.
pub type Ignored<'a> = &'a [&'a str];

fn stat_fields(
    numbers: [(&'static str, u64); 8],
    file_type: FileType,
    device: Option<(u32, u32)>,
    times: [Option<Timestamp>; 4],
) -> Vec<(&'static str, String)> {
    let mut fields: Vec<_> = numbers.into_iter().map(|(name, value)| (name, format!("{value:#o} ({value})"))).collect();
    fields.push(("type", file_type.letter().to_string()));
    fields.push(("device", format!("{device:?}")));
    for (name, time) in ["accessed", "modified", "changed", "created"].into_iter().zip(times) {
        fields.push((name, time.map_or("-".into(), |time| format!("{}.{:09}", time.seconds, time.nanoseconds))));
    }
    fields
}

/// Reads the tree under a mount point.
pub fn read_kernel(root: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut folders = vec![(root.to_path_buf(), Vec::new())];
    tree.insert(Vec::new(), kernel_item(root));
    while let Some((folder, prefix)) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let entry = entry.unwrap();
            let path = join(&prefix, &entry.file_name().into_vec());
            tree.insert(path.clone(), kernel_item(&entry.path()));
            if entry.file_type().unwrap().is_dir() {
                folders.push((entry.path(), path));
            }
        }
    }
    tree
}

fn join(prefix: &[u8], name: &[u8]) -> Vec<u8> {
    if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
}

fn kernel_item(path: &Path) -> Item {
    let stat = rustix::fs::statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::ALL).unwrap();
    let file_type = match stat.stx_mode & 0o170_000 {
        0o010_000 => FileType::Fifo,
        0o020_000 => FileType::CharDevice,
        0o040_000 => FileType::Folder,
        0o060_000 => FileType::BlockDevice,
        0o100_000 => FileType::File,
        0o120_000 => FileType::Symlink,
        _ => FileType::Socket,
    };
    let time = |time: rustix::fs::StatxTimestamp| Some(Timestamp { seconds: time.tv_sec, nanoseconds: time.tv_nsec });
    let born = stat.stx_mask & StatxFlags::BTIME.bits() != 0;
    let device = matches!(file_type, FileType::CharDevice | FileType::BlockDevice)
        .then_some((stat.stx_rdev_major, stat.stx_rdev_minor));
    let content = match file_type {
        FileType::File => {
            let mut hasher = blake3::Hasher::new();
            hasher.update_reader(std::fs::File::open(path).unwrap()).unwrap();
            hasher.finalize().as_bytes().to_vec()
        }
        FileType::Symlink => std::fs::read_link(path).unwrap().as_os_str().as_bytes().to_vec(),
        _ => Vec::new(),
    };
    Item {
        stat: stat_fields(
            [
                ("inode", stat.stx_ino),
                ("permissions", u64::from(stat.stx_mode & 0o7777)),
                ("user", u64::from(stat.stx_uid)),
                ("group", u64::from(stat.stx_gid)),
                ("size", stat.stx_size),
                ("allocated", stat.stx_blocks * 512),
                ("links", u64::from(stat.stx_nlink)),
                ("-", 0),
            ],
            file_type,
            device,
            [
                time(stat.stx_atime),
                time(stat.stx_mtime),
                time(stat.stx_ctime),
                if born { time(stat.stx_btime) } else { None },
            ],
        ),
        xattrs: kernel_xattrs(path),
        content,
    }
}

fn kernel_xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; 65536];
    let length = match rustix::fs::llistxattr(path, names.as_mut_slice()) {
        Ok(length) => length,
        // Encrypted files without their key, file systems without attributes.
        Err(_) => return BTreeMap::new(),
    };
    names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let mut value = vec![0; 65536];
            let key = std::ffi::CString::new(name).unwrap();
            let length = rustix::fs::lgetxattr(path, &key, value.as_mut_slice()).unwrap();
            value.truncate(length);
            (name.to_vec(), value)
        })
        .collect()
}

/// Reads the whole of any [`FileTree`], checking on the way that lookup finds what list gives, and that extents are
/// what they say.
pub fn read_tree(tree: &dyn FileTree) -> Tree {
    let mut items = Tree::new();
    let mut folders = vec![(tree.root(), Vec::new())];
    items.insert(Vec::new(), tree_item(tree, tree.root()));
    while let Some((folder, prefix)) = folders.pop() {
        let mut entries = Vec::new();
        tree.list(folder, &mut |entry| {
            entries.push(entry);
            Ok(())
        })
        .unwrap_or_else(|error| panic!("list {}: {error}", String::from_utf8_lossy(&prefix)));
        for (count, entry) in entries.iter().enumerate() {
            let path = join(&prefix, &entry.name);
            let item = tree_item(tree, entry.inode);
            let letter = entry.file_type.map(|kind| kind.letter().to_string());
            let stated = item.stat.iter().find(|(name, _)| *name == "type").map(|(_, value)| value.clone());
            assert!(letter.is_none() || letter == stated, "the folder's type of {}", String::from_utf8_lossy(&path));
            if count % 37 == 0 || entries.len() < 50 {
                assert_eq!(tree.lookup(folder, &entry.name).unwrap(), entry.inode, "lookup {entry:?}");
            }
            if stated.as_deref() == Some("d") {
                folders.push((entry.inode, path.clone()));
            }
            assert!(items.insert(path, item).is_none(), "listed twice: {entry:?}");
        }
        let missing = tree.lookup(folder, b"a name that is not there").unwrap_err();
        assert_eq!(missing.kind(), firn_disk::ErrorKind::NotFound);
    }
    items
}

fn tree_item(tree: &dyn FileTree, inode: u64) -> Item {
    let stat = tree.stat(inode).unwrap_or_else(|error| panic!("stat {inode}: {error}"));
    let content = match stat.file_type {
        FileType::File => {
            let disk = tree.open(inode).unwrap_or_else(|error| panic!("open {inode}: {error}"));
            assert_eq!(disk.len(), stat.size, "length of inode {inode}");
            hash_disk(&*disk, inode)
        }
        FileType::Symlink => tree.read_link(inode).unwrap_or_else(|error| panic!("read_link {inode}: {error}")),
        _ => Vec::new(),
    };
    let xattrs = tree.xattrs(inode).unwrap_or_else(|error| panic!("xattrs {inode}: {error}"));
    Item {
        stat: stat_fields(
            [
                ("inode", stat.inode),
                ("permissions", u64::from(stat.permissions)),
                ("user", u64::from(stat.user)),
                ("group", u64::from(stat.group)),
                ("size", stat.size),
                ("allocated", stat.allocated),
                ("links", stat.links),
                ("-", 0),
            ],
            stat.file_type,
            stat.device,
            [Some(stat.accessed), Some(stat.modified), Some(stat.changed), stat.created],
        ),
        xattrs: xattrs.into_iter().map(|xattr| (xattr.name, xattr.value)).collect(),
        content,
    }
}

/// Hashes a disk run by run: what it calls a hole is hashed as zeros, unread, so that a wrong hole shows.
fn hash_disk(disk: &dyn Disk, inode: u64) -> Vec<u8> {
    let zeros = vec![0; 1 << 20];
    let mut buf = vec![0; 1 << 20];
    let mut hasher = blake3::Hasher::new();
    let mut at = 0;
    while at < disk.len() {
        let extent = disk.extent_at(at).unwrap_or_else(|error| panic!("extent of inode {inode} at {at}: {error}"));
        let count = extent.length.min(1 << 20) as usize;
        if extent.kind == ExtentKind::Data {
            disk.read_at(&mut buf[..count], at).unwrap_or_else(|error| panic!("read inode {inode} at {at}: {error}"));
            hasher.update(&buf[..count]);
        } else {
            hasher.update(&zeros[..count]);
        }
        at += count as u64;
    }
    hasher.finalize().as_bytes().to_vec()
}

/// Everything that differs, a line each; empty when the trees are equal.
pub fn differences(kernel: &Tree, ours: &Tree, ignored: Ignored<'_>) -> String {
    let mut text = String::new();
    for (path, item) in kernel {
        let name = String::from_utf8_lossy(path);
        let Some(other) = ours.get(path) else {
            let _ = writeln!(text, "{name}: only the kernel has it");
            continue;
        };
        for ((field, value), (_, our)) in item.stat.iter().zip(&other.stat) {
            let is_folder = item.stat.contains(&("type", "d".into()));
            let of_folders = match *field {
                "modified" | "changed" => "folder times",
                "links" => "folder links",
                "size" | "allocated" => "folder sizes",
                _ => "",
            };
            let skipped = ignored.contains(field) || is_folder && ignored.contains(&of_folders);
            if value != our && !skipped {
                let _ = writeln!(text, "{name}: {field}: kernel {value}, ours {our}");
            }
        }
        if item.xattrs != other.xattrs && !ignored.contains(&"xattrs") {
            let _ = writeln!(text, "{name}: attributes: kernel {:?}, ours {:?}", item.xattrs, other.xattrs);
        }
        if item.content != other.content {
            let _ = writeln!(text, "{name}: the content differs");
        }
    }
    for path in ours.keys().filter(|path| !kernel.contains_key(*path) && !ignored.contains(&"only ours")) {
        let _ = writeln!(text, "{}: only we have it", String::from_utf8_lossy(path));
    }
    text
}
