//! File systems that were unmounted.

use crate::image::{Mount, can_mount, make, run};
use crate::populate::{Populate, attributes, everything, few, large_attributes, many};
use crate::walker::{differences, read_kernel, read_tree};
use firn_disk::FileDisk;
use firn_format::fs::FileTree;
use firn_format::fs::ext::{Ext, ExtOptions};
use std::path::Path;
use std::sync::Arc;

fn check(test: &str, megabytes: u64, options: &[&str], populate: Populate) {
    if !can_mount(test) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let image = make(folder.path(), megabytes, options);
    let point = folder.path().join("mount");
    {
        let mount = Mount::new(&image, &point, "");
        populate(mount.path());
    }
    let before = blake3::hash(&std::fs::read(&image).unwrap());
    let ours = open(&image);
    let facts = ours.facts();
    let read = read_tree(&*ours);
    assert_eq!(before, blake3::hash(&std::fs::read(&image).unwrap()), "the image was written to");
    let mount = Mount::new(&image, &point, "ro");
    let kernel = read_kernel(mount.path());
    let differences = differences(&kernel, &read, &[]);
    assert!(differences.is_empty(), "{test} ({facts:?}):\n{differences}");
}

fn open(image: &Path) -> Arc<Ext> {
    Ext::open(Arc::new(FileDisk::open(image).unwrap()), &ExtOptions::default()).unwrap()
}

macro_rules! clean {
    ($($name:ident: $megabytes:expr, $options:expr, $populate:expr;)*) => {$(
        #[test]
        fn $name() {
            check(stringify!($name), $megabytes, &$options, $populate);
        }
    )*};
}

clean! {
    the_default_ext4: 64, [], everything;
    blocks_of_1_kib: 48, ["-b", "1024"], everything;
    blocks_of_2_kib: 48, ["-b", "2048"], everything;
    ext2: 48, ["-t", "ext2"], everything;
    ext2_blocks_of_1_kib: 48, ["-t", "ext2", "-b", "1024"], everything;
    ext2_revision_0: 32, ["-t", "ext2", "-r", "0", "-b", "1024"], few;
    ext3: 48, ["-t", "ext3"], everything;
    inodes_of_128_bytes: 48, ["-I", "128"], few;
    inodes_of_1024_bytes: 48, ["-I", "1024", "-O", "inline_data"], everything;
    inline_data: 48, ["-O", "inline_data"], everything;
    inline_data_without_checksums: 48, ["-O", "inline_data,^metadata_csum"], few;
    bigalloc: 64, ["-O", "bigalloc", "-C", "16384"], few;
    bigalloc_blocks_of_1_kib: 64, ["-O", "bigalloc", "-b", "1024", "-C", "8192"], few;
    meta_bg: 64, ["-O", "meta_bg,^resize_inode", "-b", "1024", "-g", "1024"], few;
    meta_bg_32_bits: 64, ["-O", "meta_bg,^resize_inode,^64bit", "-b", "1024", "-g", "512"], few;
    uninit_bg_32_bits: 48, ["-O", "uninit_bg,^metadata_csum,^64bit"], few;
    uninit_bg_64_bits: 48, ["-O", "uninit_bg,^metadata_csum,64bit"], few;
    no_flex_bg: 48, ["-O", "^flex_bg"], few;
    no_journal: 48, ["-O", "^has_journal"], few;
    no_index: 48, ["-O", "^dir_index"], everything;
    no_extents: 48, ["-O", "^extent,^64bit"], everything;
    sparse_super2: 48, ["-O", "sparse_super2,^resize_inode"], few;
    superblocks_in_all_groups: 48, ["-O", "^sparse_super,^resize_inode,^large_file", "-b", "1024"], few;
    csum_seed: 48, ["-O", "metadata_csum_seed"], few;
    ea_inode: 48, ["-O", "ea_inode"], large_attributes;
    ea_inode_without_checksums: 48, ["-O", "ea_inode,^metadata_csum"], large_attributes;
    xattrs_in_blocks: 48, [], attributes;
    xattrs_beside_inodes_of_128_bytes: 48, ["-I", "128"], attributes;
    orphan_file: 48, ["-O", "orphan_file"], few;
    large_dir: 96, ["-O", "large_dir", "-b", "1024", "-N", "40000"], many;
    mmp_verity_stable_inodes: 48, ["-O", "mmp,verity,stable_inodes"], few;
}

#[test]
fn other_folder_hashes() {
    for (hash, flags) in [("tea", 1), ("legacy", 1), ("half_md4", 2), ("tea", 2), ("legacy", 2)] {
        let test = "other_folder_hashes";
        if !can_mount(test) {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let image = make(folder.path(), 16, &["-b", "1024"]);
        let path = image.to_str().unwrap();
        run("debugfs", &["-w", "-R", &format!("ssv def_hash_version {hash}"), path]);
        run("debugfs", &["-w", "-R", &format!("ssv flags {flags}"), path]);
        let point = folder.path().join("mount");
        {
            let mount = Mount::new(&image, &point, "");
            for number in 0..500 {
                std::fs::write(mount.path().join(format!("ünïcode-name-{number}")), "").unwrap();
            }
        }
        let ours = open(&image);
        let read = read_tree(&*ours);
        let mut names = 0;
        ours.list(2, &mut |entry| {
            names += 1;
            assert_eq!(ours.lookup(2, &entry.name).unwrap(), entry.inode);
            Ok(())
        })
        .unwrap();
        assert_eq!(names, 501);
        let kernel = read_kernel(Mount::new(&image, &point, "ro").path());
        assert_eq!(differences(&kernel, &read, &[]), "", "{hash} {flags}");
    }
}

/// Made by mkfs from a folder, for features that this machine's kernel may not mount to write.
#[test]
fn made_by_mkfs_from_a_folder() {
    let test = "made_by_mkfs_from_a_folder";
    if !can_mount(test) {
        return;
    }
    for (features, removed) in
        [("casefold,^resize_inode", "^casefold"), ("quota,project", ""), ("inline_data,casefold", "^casefold")]
    {
        let folder = tempfile::tempdir().unwrap();
        let tree = folder.path().join("tree");
        std::fs::create_dir(&tree).unwrap();
        few(&tree);
        // Blocks of 64 KiB are more than many kernels mount: there debugfs is the truth.
        let large = removed == "-b 65536";
        let options: &[&str] = if large { &["-b", "65536"] } else { &[] };
        let image = make(folder.path(), 48, &[options, &["-O", features, "-d", tree.to_str().unwrap()]].concat());
        let read = read_tree(&*open(&image));
        if large {
            let out = folder.path().join("out");
            std::fs::create_dir(&out).unwrap();
            run("debugfs", &["-R", &format!("rdump / {}", out.display()), image.to_str().unwrap()]);
            let dumped = read_kernel(&out);
            let stat = ["inode", "size", "allocated", "links", "permissions", "user", "group", "accessed", "modified"];
            let ignored = [&stat[..], &["changed", "created", "xattrs"]].concat();
            let special = |name: &[u8]| {
                [&b"char"[..], b"block", b"none", b"fifo", b"socket"].contains(&&name[2.min(name.len())..])
            };
            let read = read.into_iter().filter(|(name, _)| !special(name)).collect();
            let dumped = dumped.into_iter().filter(|(name, _)| !special(name)).collect();
            assert_eq!(differences(&dumped, &read, &ignored), "", "blocks of 64 KiB");
            continue;
        }
        if !removed.is_empty() {
            run("debugfs", &["-w", "-R", &format!("feature {removed}"), image.to_str().unwrap()]);
        }
        let kernel = read_kernel(Mount::new(&image, &folder.path().join("mount"), "ro").path());
        let differences = differences(&kernel, &read, &[]);
        assert!(differences.is_empty(), "{features}:\n{differences}");
    }
}
