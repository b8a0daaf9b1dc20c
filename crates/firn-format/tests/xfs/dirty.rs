//! File systems that were cut off while they were written to.
//!
//! The image is a file on XFS, and a cut is a clone of it (FICLONE): XFS holds the file's lock while it clones, so that
//! the clone has exactly the writes that the loop device had finished at one instant. The truth is what the kernel's
//! recovery makes of another clone.

use crate::churn::Churn;
use crate::image::{Mount, Recipe, can_mount, kernel_tree};
use crate::load::Load;
use crate::walker::{Tree, differences, read_tree};
use firn_disk::{FileDisk, SharedDisk};
use firn_format::fs::FileTree;
use firn_format::fs::xfs::{Xfs, XfsOptions};
use std::fs::File;
use std::os::unix::fs::FileExt;
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
        PLAIN.make_sized(&image, 8 << 10);
        let xfs = folder.path().join("xfs");
        let mount = Mount::new(&image, None, &xfs, "");
        let disks = Arc::new(Self { _mount: mount, xfs, folder });
        *shared = Arc::downgrade(&disks);
        disks
    }
}

const PLAIN: Recipe<'static> = Recipe { mebibytes: 320, mkfs: &[], mount: "", incompat: 0, external_log: 0 };

impl Recipe<'_> {
    fn make_sized(&self, path: &Path, mebibytes: u64) {
        Recipe { mebibytes, ..*self }.make(path);
    }
}

/// One test's part of the disks.
pub struct Arena {
    disks: Arc<Disks>,
    test: String,
}

impl Arena {
    pub fn new(test: &str) -> Option<Self> {
        can_mount(test).then(|| Self { disks: Disks::shared(), test: test.into() })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.disks.xfs.join(format!("{}-{name}", self.test))
    }

    pub fn mount_point(&self) -> PathBuf {
        self.disks.folder.path().join(&self.test)
    }

    /// A clone of `from` as it is at one instant.
    fn clone(&self, from: &Path, to: &str) -> PathBuf {
        let path = self.path(to);
        let (source, target) = (File::open(from).unwrap(), File::create(&path).unwrap());
        rustix::fs::ioctl_ficlone(&target, &source).unwrap();
        path
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        let Ok(entries) = std::fs::read_dir(&self.disks.xfs) else { return };
        for entry in entries.flatten().filter(|_| !std::thread::panicking()) {
            if entry.file_name().to_string_lossy().starts_with(&format!("{}-", self.test)) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}

/// A load that goes on until it is told to stop.
fn load(root: &Path, seed: u64, stop: &AtomicBool) {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::fs::create_dir_all(root.join("load")).unwrap();
            let mut load = Load::new(&root.join("load"), seed);
            while !stop.load(Ordering::Relaxed) {
                load.step();
            }
        });
        scope.spawn(|| {
            let mut churn = Churn::new(&root.join("churn"), seed);
            while !stop.load(Ordering::Relaxed) {
                churn.step();
            }
        });
    });
}

/// Runs the load on a new file system, and gives clones of it at `cuts` random instants.
pub fn cut(arena: &Arena, recipe: &Recipe<'_>, seed: u64, cuts: u32) -> Vec<PathBuf> {
    let image = arena.path("image");
    recipe.make(&image);
    let has_small_log = recipe.mkfs.iter().any(|option| option.starts_with("size=") && option.ends_with('m'));
    let mount = Mount::new(&image, None, &arena.mount_point(), recipe.mount);
    let stop = AtomicBool::new(false);
    let mut random = firn_disk::testing::Random::new(seed);
    std::thread::scope(|scope| {
        scope.spawn(|| load(mount.path(), seed, &stop));
        if has_small_log {
            wait_until_wrapped(&image);
        }
        let cuts = (0..cuts)
            .map(|number| {
                std::thread::sleep(Duration::from_millis(60 + random.below(500)));
                arena.clone(&image, &format!("cut{number}"))
            })
            .collect();
        stop.store(true, Ordering::Relaxed);
        cuts
    })
}

/// Waits until the log was written to its end once, so that it goes on at its beginning.
fn wait_until_wrapped(image: &Path) {
    let file = File::open(image).unwrap();
    let mut head = [0; 512];
    file.read_exact_at(&mut head, 0).unwrap();
    let word = |at: usize| u64::from(u32::from_be_bytes(head[at..at + 4].try_into().unwrap()));
    let start = word(52);
    let (group, within) = (start >> head[124], start & ((1 << head[124]) - 1));
    let end = (group * word(84) + within + word(96)) * word(4);
    for _ in 0..3000 {
        let mut last = [0; 4];
        file.read_exact_at(&mut last, end - 512).unwrap();
        if last != [0; 4] {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("the log was not written to its end in a minute");
}

fn open(image: &Path, log: Option<&Path>, replay: bool) -> firn_disk::Result<Arc<Xfs>> {
    let disk = |path: &Path| -> SharedDisk { Arc::new(FileDisk::open(path).unwrap()) };
    Xfs::open(disk(image), &XfsOptions { replay, external_log: log.map(disk) })
}

fn kernel(image: &Path, log: Option<&Path>, point: &Path) -> Tree {
    kernel_tree(Mount::new(image, log, point, "").path())
}

fn compare(what: &str, health: &str, kernel: &Tree, ours: &Tree) {
    let differences = differences(kernel, ours, &[]);
    let lines: Vec<_> = differences.lines().take(40).collect();
    assert!(differences.is_empty(), "{what}, {health}:\n{}", lines.join("\n"));
    eprintln!("{what}: {} paths, {health}", ours.len());
}

fn check_cut(arena: &Arena, image: &Path, what: &str) {
    let before = hash(image);
    let ours = open(image, None, true).unwrap_or_else(|error| panic!("{what}, {}: {error}", image.display()));
    let health = ours.facts().health;
    let read = read_tree(&*ours);
    let copy = arena.clone(image, "kernel");
    compare(what, &health, &kernel(&copy, None, &arena.mount_point()), &read);
    assert_eq!(before, hash(image), "the image was written to");
    let refused = ours.replayed_disk();
    assert!(health == "log clean" || refused.is_err(), "a replay is not written");
}

fn hash(path: &Path) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open(path).unwrap()).unwrap();
    hasher.finalize()
}

macro_rules! dirty {
    ($($name:ident: $mebibytes:expr, $mkfs:expr, $incompat:expr, $mount:expr;)*) => {$(
        #[test]
        fn $name() {
            let Some(arena) = Arena::new(stringify!($name)) else { return };
            let seed = u64::from(crc32c::crc32c(stringify!($name).as_bytes()));
            let recipe = Recipe {
                mebibytes: $mebibytes,
                mkfs: &$mkfs,
                mount: $mount,
                incompat: $incompat,
                external_log: 0,
            };
            for (number, path) in cut(&arena, &recipe, seed, 3).iter().enumerate() {
                check_cut(&arena, path, &format!("{} (seed {seed}, cut {number})", stringify!($name)));
            }
        }
    )*};
}

const EXCHANGE: u32 = 0x40;
const PARENT: u32 = 0x80;

dirty! {
    default_xfs: 320, [], 0, "";
    dirty_blocks_of_1_kib: 320, ["-b", "size=1024"], 0, "";
    dirty_blocks_of_2_kib: 320, ["-b", "size=2048"], 0, "";
    dirty_blocks_of_16_kib: 400, ["-b", "size=16384"], 0, "";
    dirty_sectors_of_4_kib: 320, ["-s", "size=4096"], 0, "";
    dirty_inodes_of_1024_bytes: 320, ["-i", "size=1024"], 0, "";
    dirty_rmapbt: 320, ["-m", "rmapbt=1"], 0, "";
    dirty_nrext64: 320, ["-i", "nrext64=1", "-m", "rmapbt=1"], 0, "";
    dirty_without_new_features: 320, ["-m", "reflink=0,bigtime=0,inobtcount=0,finobt=0", "-i", "sparse=0"], 0, "";
    dirty_folder_blocks_of_64_kib: 320, ["-n", "size=65536"], 0, "";
    dirty_folder_blocks_in_pieces: 320, ["-n", "size=8192", "-b", "size=1024"], 0, "";
    dirty_parent_pointers: 320, ["-i", "nrext64=1"], PARENT | EXCHANGE, "";
    small_log_wraps: 128, ["-l", "size=6m"], 0, "";
    small_log_wraps_with_small_blocks: 128, ["-l", "size=6m", "-b", "size=1024"], 0, "";
    small_log_wraps_with_large_records: 128, ["-l", "size=8m"], 0, "logbsize=256k";
    small_log_wraps_with_rmapbt: 128, ["-l", "size=13m", "-m", "rmapbt=1"], 0, "logbsize=64k,logbufs=8";
    log_stripe_dirty: 320, ["-d", "su=64k,sw=2", "-l", "su=256k"], 0, "";
    log_stripe_small: 320, ["-l", "su=16k"], 0, "logbsize=32k";
    many_groups_dirty: 320, ["-d", "agcount=16"], 0, "";
    wsync: 320, [], 0, "wsync";
    discards: 320, [], 0, "discard";
}
