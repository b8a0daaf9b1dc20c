//! File systems that were unmounted.

use crate::grow;
use crate::image::{Mount, Recipe, can_mount, kernel_tree};
use crate::populate::{Populate, attributes, everything, few, large_attributes, many};
use crate::walker::{differences, read_tree};
use firn_disk::{FileDisk, SharedDisk};
use firn_format::fs::FileTree;
use firn_format::fs::xfs::{Xfs, XfsOptions};
use std::path::Path;
use std::sync::Arc;

fn check(test: &str, recipe: &Recipe<'_>, populate: &[Populate]) {
    if !can_mount(test) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    let log = recipe.make(&image);
    let point = folder.path().join("mount");
    {
        let mount = Mount::new(&image, log.as_deref(), &point, recipe.mount);
        populate.iter().for_each(|populate| populate(mount.path()));
    }
    let before = hash(&image);
    let ours = open(&image, log.as_deref());
    let facts = ours.facts();
    assert_eq!(facts.health, "log clean", "{test}");
    assert!(ours.replayed_disk().is_ok());
    let read = read_tree(&*ours);
    assert_eq!(before, hash(&image), "the image was written to");
    let mount = Mount::new(&image, log.as_deref(), &point, "ro");
    let kernel = kernel_tree(mount.path());
    let differences = differences(&kernel, &read, &[]);
    assert!(differences.is_empty(), "{test} ({facts:?}):\n{differences}");
    let free = rustix::fs::statvfs(mount.path()).unwrap();
    // What the kernel sets aside for itself is free to nobody.
    assert!(facts.free.unwrap() >= free.f_bfree * free.f_frsize, "{facts:?}");
    eprintln!("{test}: {} paths, {}", read.len(), facts.features.join(" "));
}

fn hash(path: &Path) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(std::fs::File::open(path).unwrap()).unwrap();
    hasher.finalize()
}

/// Opens an image with replay.
pub fn open(image: &Path, log: Option<&Path>) -> Arc<Xfs> {
    let disk = |path: &Path| -> SharedDisk { Arc::new(FileDisk::open(path).unwrap()) };
    Xfs::open(disk(image), &XfsOptions { external_log: log.map(disk), ..XfsOptions::default() }).unwrap()
}

macro_rules! clean {
    ($($name:ident: $mebibytes:expr, $mkfs:expr, $incompat:expr, $external_log:expr, $populate:expr;)*) => {$(
        #[test]
        fn $name() {
            let recipe = Recipe {
                mebibytes: $mebibytes,
                mkfs: &$mkfs,
                mount: "",
                incompat: $incompat,
                external_log: $external_log,
            };
            check(stringify!($name), &recipe, &$populate);
        }
    )*};
}

const EXCHANGE: u32 = 0x40;
const PARENT: u32 = 0x80;

clean! {
    the_default_xfs: 320, [], 0, 0, [everything, grow::all, grow::shared];
    blocks_of_1_kib: 320, ["-b", "size=1024"], 0, 0, [everything, grow::all];
    blocks_of_2_kib: 320, ["-b", "size=2048"], 0, 0, [everything, grow::all];
    blocks_of_8_kib: 320, ["-b", "size=8192"], 0, 0, [everything, grow::all];
    blocks_of_16_kib: 400, ["-b", "size=16384"], 0, 0, [few, grow::all];
    blocks_of_32_kib: 600, ["-b", "size=32768"], 0, 0, [few, grow::all];
    blocks_of_64_kib: 800, ["-b", "size=65536"], 0, 0, [few, grow::all];
    sectors_of_4_kib: 320, ["-s", "size=4096"], 0, 0, [few];
    inodes_of_1024_bytes: 320, ["-i", "size=1024"], 0, 0, [everything, grow::links];
    inodes_of_2048_bytes: 320, ["-i", "size=2048"], 0, 0, [few, attributes];
    no_finobt: 320, ["-m", "finobt=0"], 0, 0, [few];
    no_sparse_inodes: 320, ["-i", "sparse=0"], 0, 0, [everything];
    no_bigtime: 320, ["-m", "bigtime=0"], 0, 0, [everything];
    no_reflink: 320, ["-m", "reflink=0"], 0, 0, [few];
    no_inobtcount: 320, ["-m", "inobtcount=0,finobt=0,reflink=0,bigtime=0"], 0, 0, [few];
    nrext64: 320, ["-i", "nrext64=1"], 0, 0, [everything, grow::all];
    rmapbt: 320, ["-m", "rmapbt=1"], 0, 0, [few, grow::all, grow::shared];
    rmapbt_with_small_blocks: 320, ["-m", "rmapbt=1", "-b", "size=1024", "-i", "nrext64=1"], 0, 0, [few, grow::pieces];
    folder_blocks_of_8_kib: 320, ["-n", "size=8192"], 0, 0, [everything, grow::folders];
    folder_blocks_of_64_kib: 320, ["-n", "size=65536", "-b", "size=1024"], 0, 0, [everything, grow::folders];
    folder_blocks_in_pieces: 320, ["-n", "size=16384", "-b", "size=1024"], 0, 0, [grow::pieces, many, grow::folders];
    external_log: 320, [], 0, 32, [few];
    small_internal_log: 64, ["-l", "size=8m"], 0, 0, [few];
    log_stripe: 320, ["-d", "su=64k,sw=2", "-l", "su=32k"], 0, 0, [few];
    many_groups: 320, ["-d", "agcount=17"], 0, 0, [everything];
    few_inodes: 320, ["-i", "maxpct=1"], 0, 0, [few];
    parent_pointers: 320, ["-i", "nrext64=1"], PARENT | EXCHANGE, 0, [everything, grow::all, large_attributes];
    exchange_range: 320, ["-m", "rmapbt=1"], EXCHANGE, 0, [few, grow::shared];
    large_values: 320, [], 0, 0, [large_attributes];
    large_values_in_small_blocks: 320, ["-b", "size=1024"], 0, 0, [large_attributes];
    label: 320, ["-L", "twelve bytes"], 0, 0, [few];
}
