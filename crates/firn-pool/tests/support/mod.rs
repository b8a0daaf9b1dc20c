//! What the tests of the pool share: a small pool in a temporary folder, and short ways to write and read it.
#![allow(missing_docs, clippy::unwrap_used, reason = "test support may panic, and is read, not browsed")]

use firn_disk::testing::Random;
use firn_disk::{Disk, MemDisk, Result};
use firn_pool::{
    Changes, Consistency, CutParameters, DiskInput, Entropy, InitOptions, Manifest, NewCredential, OpenOptions, Pool,
    SnapshotHooks, SnapshotOptions, SnapshotProgress,
};
use jiff::Timestamp;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Repeatable random bytes.
#[derive(Debug)]
pub struct Seeded(Mutex<Random>);

impl Seeded {
    pub fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Random::new(seed))))
    }
}

impl Entropy for Seeded {
    fn fill(&self, buf: &mut [u8]) -> Result<()> {
        self.0.lock().unwrap().fill(buf);
        Ok(())
    }
}

pub struct Lab {
    pub folder: tempfile::TempDir,
    pub seed: u64,
}

impl Lab {
    /// A pool without a password.
    pub fn new(seed: u64) -> Self {
        let lab = Self { folder: tempfile::tempdir().unwrap(), seed };
        Pool::init(lab.location(), &init_options(NewCredential::Clear, seed)).unwrap();
        lab
    }

    pub fn path(&self) -> PathBuf {
        self.folder.path().join("pool")
    }

    pub fn location(&self) -> &str {
        Box::leak(self.path().to_str().unwrap().to_owned().into_boxed_str())
    }

    pub fn open(&self) -> Pool {
        self.try_open().unwrap()
    }

    pub fn try_open(&self) -> Result<Pool> {
        let cache_folder = Some(self.folder.path().join("cache"));
        let entropy = Seeded::new(self.seed ^ self.objects().len() as u64);
        Pool::open(self.location(), OpenOptions { credential: None, cache_folder, entropy })
    }

    /// Every object's file, sorted.
    pub fn objects(&self) -> Vec<PathBuf> {
        let mut files = Vec::new();
        let mut folders = vec![self.path()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() { folders.push(path) } else { files.push(path) }
            }
        }
        files.sort();
        files
    }

    pub fn name_of(&self, path: &Path) -> String {
        path.strip_prefix(self.path()).unwrap().to_str().unwrap().to_owned()
    }
}

pub fn init_options(credential: NewCredential, seed: u64) -> InitOptions<'static> {
    InitOptions {
        credential,
        same_keys_as: None,
        cut: CutParameters::default(),
        created: Timestamp::UNIX_EPOCH,
        entropy: Seeded::new(seed),
    }
}

pub fn input<'a>(name: &str, disk: &'a dyn Disk, changes: Changes<'a>) -> DiskInput<'a> {
    DiskInput { name: name.to_owned(), disk, changes, source: "test".to_owned(), generation: None }
}

pub fn options(second: i64) -> SnapshotOptions {
    SnapshotOptions {
        created: Timestamp::from_second(second).unwrap(),
        consistency: Consistency::Crash,
        frozen_milliseconds: None,
        group: None,
        attachments: Vec::new(),
        remarks: Vec::new(),
    }
}

pub fn hooks(progress: &SnapshotProgress) -> SnapshotHooks<'_> {
    SnapshotHooks { progress, elapsed: &|| Duration::ZERO, before_publish: &|| Ok(()) }
}

pub fn snap_inputs(pool: &Pool, inputs: &[DiskInput<'_>], second: i64) -> Result<Manifest> {
    Ok(pool.write_snapshot("web1", inputs, options(second), hooks(&SnapshotProgress::default()))?.manifest)
}

pub fn snap(pool: &Pool, bytes: &[u8], second: i64) -> Manifest {
    let disk = MemDisk::from(bytes.to_vec());
    snap_inputs(pool, &[input("vda", &disk, Changes::All)], second).unwrap()
}

pub fn read_all(pool: &Pool, manifest: &Manifest, disk: usize) -> Result<Vec<u8>> {
    let disk = pool.disk(&manifest.disks[disk]);
    let mut bytes = vec![0; usize::try_from(disk.len()).unwrap()];
    disk.read_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// Bytes as disks have them: random, repeated, compressible and zero runs of blocks.
pub fn disk_bytes(length: usize, seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut bytes = vec![0; length];
    let mut at = 0;
    while at < length {
        let run = (usize::try_from(random.below(60)).unwrap() + 1) * 4096;
        let end = (at + run).min(length);
        match random.below(4) {
            0 => {}
            1 => bytes[at..end].fill(u8::try_from(random.below(255)).unwrap()),
            _ => random.fill(&mut bytes[at..end]),
        }
        at = end;
    }
    bytes
}
