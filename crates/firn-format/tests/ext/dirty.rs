//! File systems that were cut off while they were written to.
//!
//! The image is a file on XFS, and a cut is a clone of it (FICLONE): XFS holds the file's lock while it clones, so that
//! the clone has exactly the writes that the loop device had finished at one instant. That is what is left after a
//! power cut of a disk without a write cache: jbd2 waits for what must be there before what follows.

use crate::image::{Mount, can_mount, has_tool, output, run, skip};
use crate::load::Load;
use crate::walker::{differences, read_kernel, read_tree};
use firn_disk::{Disk, FileDisk, Fua, WriteDisk};
use firn_format::fs::FileTree;
use firn_format::fs::ext::{Ext, ExtOptions};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;
use tempfile::TempDir;

/// A folder on XFS, where files can be cloned in an instant. Tests that run at the same time share it.
struct Disks {
    // Dropped in this order: what is mounted in the folder, then the folder.
    _mount: Mount,
    xfs: PathBuf,
    folder: TempDir,
}

impl Disks {
    fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<Disks>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(disks) = shared.upgrade() {
            return disks;
        }
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("xfs.image");
        File::create(&image).unwrap().set_len(4 << 30).unwrap();
        run("mkfs.xfs", &["-q", "-m", "reflink=1", image.to_str().unwrap()]);
        let xfs = folder.path().join("xfs");
        let mount = Mount::of_type("xfs", &image, &xfs);
        let disks = Arc::new(Self { _mount: mount, xfs, folder });
        *shared = Arc::downgrade(&disks);
        disks
    }
}

/// One test's part of the disks.
pub struct Arena {
    disks: Arc<Disks>,
    test: String,
}

impl Arena {
    pub fn new(test: &str) -> Option<Self> {
        if !can_mount(test) {
            return None;
        }
        if !has_tool("mkfs.xfs") {
            skip(test, "needs mkfs.xfs");
            return None;
        }
        Some(Self { disks: Disks::shared(), test: test.into() })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.disks.xfs.join(format!("{}-{name}", self.test))
    }

    pub fn mount_point(&self) -> PathBuf {
        self.disks.folder.path().join(&self.test)
    }

    /// A clone of `from` as it is at one instant.
    pub fn clone(&self, from: &Path, to: &str) -> PathBuf {
        let path = self.path(to);
        let (source, target) = (File::open(from).unwrap(), File::create(&path).unwrap());
        rustix::fs::ioctl_ficlone(&target, &source).unwrap();
        path
    }
}

pub struct Case<'a> {
    pub name: &'a str,
    pub mebibytes: u64,
    pub mkfs: &'a [&'a str],
    pub mount: &'a str,
    pub seed: u64,
    pub cuts: u32,
    pub ignored: &'a [&'a str],
}

impl<'a> Case<'a> {
    /// A case without a load of its own.
    pub fn named(name: &'a str) -> Self {
        Self { name, mebibytes: 0, mkfs: &[], mount: "", seed: 0, cuts: 0, ignored: &[] }
    }
}

/// Runs the load and cuts it off at random points.
fn run_case(case: &Case<'_>) {
    let Some(arena) = Arena::new(case.name) else { return };
    let image = arena.path("image");
    File::create(&image).unwrap().set_len(case.mebibytes << 20).unwrap();
    run("mkfs.ext4", &[&["-q", "-F", "-E", "nodiscard"], case.mkfs, &[image.to_str().unwrap()]].concat());
    let cuts = cut(&arena, &image, case);
    for path in cuts {
        check_cut(&arena, &path, case);
        std::fs::remove_file(path).unwrap();
    }
}

pub fn cut(arena: &Arena, image: &Path, case: &Case<'_>) -> Vec<PathBuf> {
    let mount = Mount::new(image, &arena.mount_point(), case.mount);
    let stop = AtomicBool::new(false);
    let mut random = firn_disk::testing::Random::new(case.seed);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut load = Load::new(mount.path(), case.seed);
            while !stop.load(Ordering::Relaxed) {
                load.step();
            }
        });
        let cuts = (0..case.cuts)
            .map(|number| {
                std::thread::sleep(Duration::from_millis(40 + random.below(200)));
                arena.clone(image, &format!("cut{number}"))
            })
            .collect();
        stop.store(true, Ordering::Relaxed);
        cuts
    })
}

pub fn check_cut(arena: &Arena, image: &Path, case: &Case<'_>) {
    let before = hash(image);
    let disk = Arc::new(FileDisk::open(image).unwrap());
    let ours = Ext::open(disk, &ExtOptions::default())
        .unwrap_or_else(|error| panic!("{} (seed {}), {}: {error}", case.name, case.seed, image.display()));
    let health = ours.facts().health;
    let read = read_tree(&*ours);
    let kernel = {
        let copy = arena.clone(image, "kernel");
        match Mount::try_new(&copy, &arena.mount_point(), "") {
            Ok(mount) => read_kernel(mount.path()),
            // The kernel gives up when the first fast commit behind the log was being written, and when one has the
            // inode of a file that had no name any more. We do not.
            Err(error) if health.contains("fast commit") => return eprintln!("{}: {health}: {error}", case.name),
            Err(error) => panic!("{} (seed {}): the kernel mounts not: {error}", case.name, case.seed),
        }
    };
    let differences = differences(&kernel, &read, case.ignored);
    assert!(
        differences.is_empty(),
        "{} (seed {}), {}, {health}:\n{differences}",
        case.name,
        case.seed,
        image.display()
    );
    check_replayed(arena, image, &ours, case, &health);
    assert_eq!(before, hash(image), "the image was written to");
    eprintln!("{}: {} paths, {health}", case.name, read.len());
}

/// Writes the replay into a copy, and lets e2fsck look at it.
fn check_replayed(arena: &Arena, image: &Path, ours: &Ext, case: &Case<'_>, health: &str) {
    let copy = arena.clone(image, "replayed");
    let replayed = ours.replayed_disk().unwrap();
    write_differences(&*replayed, &copy);
    let output = output("e2fsck", &["-fn", copy.to_str().unwrap()]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{} (seed {}), {health}: e2fsck says:\n{text}", case.name, case.seed);
}

pub fn write_differences(disk: &dyn Disk, path: &Path) {
    let target = FileDisk::open_writable(path).unwrap();
    let (mut a, mut b) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    for at in (0..disk.len()).step_by(1 << 20) {
        let count = usize::try_from((disk.len() - at).min(1 << 20)).unwrap();
        disk.read_at(&mut a[..count], at).unwrap();
        target.read_at(&mut b[..count], at).unwrap();
        if a[..count] != b[..count] {
            target.write_at(&a[..count], at, Fua::No).unwrap();
        }
    }
}

fn hash(path: &Path) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open(path).unwrap()).unwrap();
    hasher.finalize()
}

macro_rules! dirty {
    ($($name:ident: $mebibytes:expr, $mkfs:expr, $mount:expr;)*) => {$(
        #[test]
        fn $name() {
            run_case(&Case {
                name: stringify!($name),
                mebibytes: $mebibytes,
                mkfs: &$mkfs,
                mount: $mount,
                seed: u64::from(line!()),
                cuts: 2,
                ignored: &[],
            });
        }
    )*};
}

dirty! {
    default_ext4: 64, [], "";
    ext3_dirty: 48, ["-t", "ext3"], "";
    ext3_data_journal: 48, ["-t", "ext3", "-b", "1024", "-J", "size=4"], "data=journal";
    ext4_data_journal: 64, ["-J", "size=8"], "data=journal";
    small_log_wraps: 48, ["-b", "1024", "-J", "size=1"], "";
    small_log_wraps_32_bits: 48, ["-b", "1024", "-J", "size=1", "-O", "^64bit,^metadata_csum"], "";
    blocks_of_2_kib_dirty: 48, ["-b", "2048"], "";
    checksum_v1: 48, ["-b", "1024", "-J", "size=1", "-O", "^metadata_csum,^64bit"], "journal_checksum";
    checksum_v1_64_bits: 48, ["-O", "^metadata_csum,64bit"], "journal_checksum";
    async_commit: 48, ["-J", "size=4"], "journal_async_commit,data=writeback";
    async_commit_v1: 48, ["-J", "size=4", "-O", "^metadata_csum"], "journal_async_commit,data=writeback";
    writeback: 48, ["-O", "^has_journal,has_journal"], "data=writeback";
    bigalloc_dirty: 96, ["-O", "bigalloc", "-C", "16384"], "";
    inline_data_dirty: 48, ["-O", "inline_data"], "";
    meta_bg_dirty: 48, ["-O", "meta_bg,^resize_inode", "-b", "1024", "-g", "1024"], "";
    inodes_of_128_bytes_dirty: 48, ["-I", "128"], "";
    ea_inode_dirty: 48, ["-O", "ea_inode"], "";
    orphan_file_dirty: 48, ["-O", "orphan_file"], "";
    orphan_file_without_checksums: 48, ["-O", "orphan_file,^metadata_csum"], "";
    sparse_super2_dirty: 48, ["-O", "sparse_super2,^resize_inode"], "";
    large_dir_dirty: 48, ["-O", "large_dir", "-b", "1024"], "";
    uninit_bg_dirty: 48, ["-O", "uninit_bg,^metadata_csum"], "";
    indirect_blocks_dirty: 48, ["-O", "^extent,^64bit", "-b", "1024"], "";
    csum_seed_dirty: 48, ["-O", "metadata_csum_seed"], "";
}

/// After everything was fsynced, fast commits give exactly what the guest saw at that instant, but for the times of
/// folders, and their blocks: a folder that outgrows its last block gets no index from us.
#[test]
fn fast_commits_give_what_the_guest_saw() {
    let test = "fast_commits_give_what_the_guest_saw";
    let Some(arena) = Arena::new(test) else { return };
    let mut commits = 0;
    for (seed, mkfs) in [
        (11, &["-b", "1024", "-O", "fast_commit"][..]),
        (12, &["-b", "4096", "-O", "fast_commit"]),
        (13, &["-b", "1024", "-O", "fast_commit,^metadata_csum"]),
        (14, &["-b", "4096", "-O", "fast_commit,bigalloc", "-C", "16384"]),
    ] {
        let image = arena.path("image");
        let _ = std::fs::remove_file(&image);
        File::create(&image).unwrap().set_len(64 << 20).unwrap();
        run("mkfs.ext4", &[&["-q", "-F"], mkfs, &[image.to_str().unwrap()]].concat());
        let mount = Mount::new(&image, &arena.mount_point(), "");
        let mut load = Load::new(mount.path(), seed);
        for round in 0..12 {
            (0..12).for_each(|_| load.light_step());
            load.sync();
            let guest = read_kernel(mount.path());
            let cut = arena.clone(&image, "cut");
            let ours = Ext::open(Arc::new(FileDisk::open(&cut).unwrap()), &ExtOptions::default()).unwrap();
            let health = ours.facts().health;
            let differences = differences(&guest, &read_tree(&*ours), &["folder times", "folder sizes"]);
            assert!(differences.is_empty(), "{mkfs:?} (seed {seed}, round {round}), {health}:\n{differences}");
            check_replayed(&arena, &cut, &ours, &Case { seed, ..Case::named(test) }, &health);
            eprintln!("{test}: {health}");
            commits += u32::from(health.contains("fast commit"));
        }
    }
    assert!(commits > 5, "only {commits} states had fast commits");
}

/// When a fast commit changes a folder's names, the kernel gives the folder the time of the mount, forgets its links
/// and the blocks that a removed folder had, indexes a folder that outgrows its block, gives new files the attributes of those that had their inodes before, and
/// loses a new folder that has the inode of an old one; e2fsck says that we are right.
#[test]
fn fast_commits() {
    for (seed, mkfs) in [
        (1, &["-O", "fast_commit"][..]),
        (2, &["-O", "fast_commit", "-b", "1024"]),
        (3, &["-O", "fast_commit,^metadata_csum"]),
    ] {
        let ignored = &["folder times", "folder links", "folder sizes", "allocated", "xattrs", "only ours"];
        run_case(&Case { name: "fast_commits", mebibytes: 64, mkfs, mount: "", seed, cuts: 8, ignored });
    }
}
