//! Verifying a pool: what is stored, what belongs together, and whether it opens.
//!
//! - [`Depth::Structure`]: every manifest and tree node opens, and every chunk they name is in a pack that is there
//!   with its right length. Reads only the small part of the pool.
//! - [`Depth::Scrub`], the default: also every byte of every object against its checksum, which needs no key.
//! - [`Depth::Data`]: also opens every chunk and compares it with its name.
//!
//! Nothing is changed. Damage is reported by object and by the snapshots that it reaches.

use crate::disk::PoolDisk;
use crate::fate;
use crate::header::Header;
use crate::index::{Index, Location};
use crate::key::slot::Slot;
use crate::lease;
use crate::lock;
use crate::manifest::Manifest;
use crate::names::{self, Copy, PackId, PackKind};
use crate::note;
use crate::object::{self, ObjectKind};
use crate::pack::{MOST_PACK_BYTES, read_directory};
use crate::pool::Pool;
use crate::rebuild::stored_packs;
use crate::seal::{BlobId, Opener, PackCipher};
use crate::store::{ObjectInfo, Store};
use crate::tombstone;
use crate::tree::{self, Child, RunKind};
use firn_disk::{Error, ErrorKind, Result};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use uuid::Uuid;

/// How deep to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Depth {
    /// Manifests, trees, and that every chunk has its place.
    Structure,
    /// And every stored byte against its checksum.
    Scrub,
    /// And every chunk against its name.
    Data,
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The object or snapshot that it is about.
    pub what: String,
    /// What is wrong with it.
    pub message: String,
}

impl Problem {
    pub(crate) fn object(name: &str, message: impl Into<String>) -> Self {
        Self { what: name.to_owned(), message: message.into() }
    }
}

/// What verifying found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Objects looked at.
    pub objects: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Snapshots walked through; none without a key.
    pub snapshots: u64,
    /// Damaged objects, sorted. One whose other copy is sound costs nothing yet.
    pub problems: Vec<Problem>,
    /// Snapshots that cannot be read whole, sorted.
    pub damaged_snapshots: Vec<Problem>,
}

impl VerifyReport {
    /// Whether nothing is wrong.
    pub fn is_sound(&self) -> bool {
        self.problems.is_empty() && self.damaged_snapshots.is_empty()
    }
}

/// What is going on, and the way to stop it.
#[derive(Debug, Default)]
pub struct VerifyProgress {
    /// Bytes of objects that are to be read.
    pub bytes_total: AtomicU64,
    /// Bytes of objects that were read.
    pub bytes_done: AtomicU64,
    /// Set it to stop: the call ends with `Interrupted`.
    pub cancel: Arc<AtomicBool>,
}

impl VerifyProgress {
    fn go_on(&self) -> Result<()> {
        if self.cancel.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Interrupted, "stopped before everything was looked at"));
        }
        Ok(())
    }
}

/// Scrubs the pool at `location` without a key.
///
/// # Errors
/// `NotFound` when there is no pool; what the store says to a listing. Damage is no error but part of the report.
pub fn scrub_location(location: &str, progress: &VerifyProgress) -> Result<VerifyReport> {
    let store = Store::open(location)?;
    let header = Header::read(&store)?;
    let mut report = VerifyReport::default();
    let index = Index::open(&store, header.domain, None)?;
    scrub(&store, &header, &index, None, progress, &mut report)?;
    report.problems.sort();
    Ok(report)
}

impl Pool {
    /// Verifies the pool to a depth.
    ///
    /// # Errors
    /// `Interrupted`; `Denied` for [`Depth::Data`] with a key that opens only the structure; what the store says to
    /// a listing. Damage is no error but part of the report.
    pub fn verify(&self, depth: Depth, progress: &VerifyProgress) -> Result<VerifyReport> {
        let mut report = VerifyReport::default();
        let mut damaged = HashSet::new();
        if depth >= Depth::Scrub {
            let open = (depth == Depth::Data).then_some(self);
            if open.is_some() {
                self.blobs().keys.full()?;
            }
            let (store, index) = (&self.blobs().store, &self.blobs().index);
            damaged = scrub(store, &Header::read(store)?, index, open, progress, &mut report)?;
        }
        Walk::new(self, damaged, progress)?.machines(&mut report)?;
        self.check_sealed(&mut report)?;
        for problem in self.blobs().index.damaged() {
            report.problems.push(problem);
        }
        report.problems.sort();
        report.problems.dedup_by(|a, b| a.what == b.what);
        report.damaged_snapshots.sort();
        Ok(report)
    }
}

impl Pool {
    /// Opens the small sealed objects besides manifests.
    fn check_sealed(&self, report: &mut VerifyReport) -> Result<()> {
        let (store, keys) = (&self.blobs().store, &self.blobs().keys);
        for folder in ["note", "lock", "setting", "lease", "fate", "tomb"] {
            for object in store.list(folder)? {
                let name = &object.name;
                let checked = match folder {
                    "note" => note::check(store, keys, name),
                    "lock" => lock::check(store, keys, name),
                    "setting" => self.check_setting(name),
                    "lease" => lease::check(store, keys, name),
                    "tomb" if names::parse_tombstone_fate(name).is_none() => tombstone::check(store, keys, name),
                    _ => fate::check(store, keys, name),
                };
                match checked {
                    // Some of these come and go while the pool is looked at.
                    Err(error) if error.kind() != ErrorKind::NotFound => {
                        report.problems.push(Problem::object(name, error.to_string()));
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

/// Reads every object. Answers the chunks that are damaged.
fn scrub(
    store: &Store,
    header: &Header,
    index: &Index,
    open: Option<&Pool>,
    progress: &VerifyProgress,
    report: &mut VerifyReport,
) -> Result<HashSet<DamagedChunk>> {
    let objects = store.list("")?;
    progress.bytes_total.store(objects.iter().map(|object| object.size).sum(), Ordering::Relaxed);
    report.objects = objects.len() as u64;
    report.problems.extend(missing_copies(&objects, index));
    let found: Mutex<(Vec<Problem>, Damage)> = Mutex::default();
    let next = AtomicUsize::new(0);
    let work = || -> Result<()> {
        while let Some(object) = objects.get(next.fetch_add(1, Ordering::Relaxed)) {
            progress.go_on()?;
            let (problems, damage) = scrub_object(store, header, open, object);
            progress.bytes_done.fetch_add(object.size, Ordering::Relaxed);
            let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
            found.0.extend(problems);
            found.1.merge(damage);
        }
        Ok(())
    };
    let threads = std::thread::available_parallelism().map_or(2, usize::from).min(4);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| {
            worker.join().unwrap_or_else(|_| Err(Error::new(ErrorKind::Io, "a thread of verify panicked")))
        })
    })?;
    report.bytes = progress.bytes_done.load(Ordering::Relaxed);
    let (problems, damage) = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    report.problems.extend(problems);
    Ok(damage.chunks)
}

/// A chunk of one pack; the same chunk may be sound in another.
type DamagedChunk = (PackId, [u8; 16]);

/// Chunks that were found damaged. (A node is read by the walk, which tries both copies.)
#[derive(Debug, Default)]
struct Damage {
    chunks: HashSet<DamagedChunk>,
}

impl Damage {
    fn merge(&mut self, other: Self) {
        self.chunks.extend(other.chunks);
    }
}

/// Objects that should be stored twice and are not. A pack of nodes that the index does not know is half of what a
/// snapshot left that was stopped, or is being written: nothing needs it. Nor is a manifest needed that is not confirmed.
fn missing_copies(objects: &[ObjectInfo], index: &Index) -> Vec<Problem> {
    let known: HashSet<PackId> = index.packs().into_iter().map(|pack| pack.id).collect();
    let decided: HashSet<Uuid> = objects.iter().filter_map(|object| Some(names::parse_fate(&object.name)?.0)).collect();
    let is_needed = |name: &str| {
        names::parse_pack(name).is_none_or(|(_, id, _)| known.contains(&id))
            && names::parse_manifest(name).is_none_or(|(_, _, snapshot, _)| decided.contains(&snapshot))
    };
    let present: HashSet<&str> = objects.iter().map(|object| object.name.as_str()).collect();
    let other = |name: &str| {
        let doubled = name.starts_with("header")
            || ["key/", "node/", "snap/", "fate/"].iter().any(|folder| name.starts_with(folder));
        match names::split_copy(name) {
            (stem, Some(Copy::A)) if doubled => Some(format!("{stem}{}", Copy::B)),
            (stem, Some(Copy::B)) if doubled => Some(format!("{stem}{}", Copy::A)),
            _ => None,
        }
    };
    let missing =
        objects.iter().filter_map(|object| other(&object.name)).filter(|name| !present.contains(name.as_str()));
    let missing = missing.filter(|name| is_needed(name));
    missing.map(|name| Problem::object(&name, "this copy is missing; the other one is there")).collect()
}

fn scrub_object(store: &Store, header: &Header, open: Option<&Pool>, object: &ObjectInfo) -> (Vec<Problem>, Damage) {
    let mut damage = Damage::default();
    let name = &object.name;
    let problem = |message: String| vec![Problem::object(name, message)];
    if object.size > MOST_PACK_BYTES.max(1 << 30) {
        return (problem(format!("{} bytes are too long for any object", object.size)), damage);
    }
    let bytes = match store.get(name) {
        Ok(bytes) => bytes,
        // A snapshot or prune that was at work meanwhile was done with it.
        Err(error) if error.kind() == ErrorKind::NotFound => return (Vec::new(), damage),
        Err(error) => return (problem(error.to_string()), damage),
    };
    if let Some((kind, id, _)) = names::parse_pack(name) {
        return (scrub_pack(header, open, name, kind, id, &bytes, &mut damage), damage);
    }
    let kind = match name.split_once('/').map_or(name.as_str(), |(folder, _)| folder) {
        "header-a" | "header-b" => ObjectKind::Header,
        "key" => ObjectKind::KeySlot,
        "idx" => ObjectKind::IndexSegment,
        "snap" => ObjectKind::Manifest,
        "note" | "lock" | "setting" => ObjectKind::Note,
        "lease" => ObjectKind::Lease,
        "fate" => ObjectKind::Fate,
        "tomb" if names::parse_tombstone_fate(name).is_some() => ObjectKind::Fate,
        "tomb" => ObjectKind::Tombstone,
        "time" => ObjectKind::Probe,
        _ => return (problem("no pool has an object of this name".to_owned()), damage),
    };
    let checked = object::open_small(&bytes, kind).and_then(|(frame, _)| {
        if frame.domain != header.domain {
            return Err(Error::corrupt("it belongs to another key domain"));
        }
        match kind {
            ObjectKind::Header if Header::from_object(&bytes)? != *header => {
                Err(Error::corrupt("it differs from the other copy"))
            }
            ObjectKind::KeySlot => Slot::from_object(&bytes).map(|_| ()),
            _ => Ok(()),
        }
    });
    (checked.err().map(|error| problem(error.to_string())).unwrap_or_default(), damage)
}

fn scrub_pack(
    header: &Header,
    open: Option<&Pool>,
    name: &str,
    kind: PackKind,
    id: PackId,
    bytes: &[u8],
    damage: &mut Damage,
) -> Vec<Problem> {
    let problem = |message: String| Problem::object(name, message);
    let directory = match read_directory(bytes, kind) {
        Ok(directory) if directory.id == id && directory.domain == header.domain => directory,
        Ok(_) => return vec![problem("it is another pack than its name says".to_owned())],
        Err(error) => return vec![problem(error.to_string())],
    };
    let mut broken = 0_u64;
    for entry in &directory.entries {
        let range = entry.range();
        let (start, end) = (usize::try_from(range.start), usize::try_from(range.end));
        let stored = start.ok().zip(end.ok()).and_then(|(start, end)| bytes.get(start..end)).unwrap_or_default();
        let mut sound = blake3::hash(stored).as_bytes() == &entry.hash;
        if let Some(pool) = open.filter(|_| sound) {
            sound = opens(pool, kind, id, stored, range.start, entry.kind, &entry.id).is_ok();
        }
        if !sound {
            broken += 1;
            if kind == PackKind::Data {
                damage.chunks.insert((id, entry.id.prefix()));
            }
        }
    }
    if broken == 0 {
        return Vec::new();
    }
    vec![problem(format!("{broken} of its {} blobs are damaged", directory.entries.len()))]
}

fn opens(
    pool: &Pool,
    kind: PackKind,
    pack: PackId,
    stored: &[u8],
    offset: u64,
    blob: crate::seal::BlobType,
    id: &BlobId,
) -> Result<()> {
    let keys = &pool.blobs().keys;
    let cipher = PackCipher::new(keys, kind, pack)?;
    Opener::new()?.content(keys, &cipher, &mut stored.to_vec(), offset, blob, id).map(|_| ())
}

/// A walk through all trees, each node once.
struct Walk<'a> {
    pool: &'a Pool,
    progress: &'a VerifyProgress,
    /// Data packs that are stored, with their lengths.
    packs: HashMap<PackId, u64>,
    damaged: HashSet<DamagedChunk>,
    /// Leaves that were found sound.
    sound: HashSet<BlobId>,
}

impl<'a> Walk<'a> {
    fn new(pool: &'a Pool, damaged: HashSet<DamagedChunk>, progress: &'a VerifyProgress) -> Result<Self> {
        let packs = stored_packs(&pool.blobs().store)?
            .into_iter()
            .filter(|((kind, _), _)| *kind == PackKind::Data)
            .filter_map(|((_, id), copies)| Some((id, copies.first()?.1.size)))
            .collect();
        Ok(Self { pool, progress, packs, damaged, sound: HashSet::new() })
    }

    fn machines(&mut self, report: &mut VerifyReport) -> Result<()> {
        for machine in self.pool.machines()? {
            for snapshot in self.pool.snapshots(machine.uuid)? {
                report.snapshots += 1;
                let what = |time: String| format!("{}@{time}", machine.name);
                match &snapshot.manifest {
                    Err(error) => report
                        .damaged_snapshots
                        .push(Problem::object(&what(snapshot.uuid.to_string()), error.to_string())),
                    Ok(manifest) => {
                        let broken = self.snapshot(manifest)?;
                        if let Some(first) = broken.first() {
                            // As an address has it.
                            let time = manifest.created.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
                            let message = format!("{} regions of 16 MiB are damaged; the first: {first}", broken.len());
                            report.damaged_snapshots.push(Problem::object(&what(time), message));
                        }
                    }
                }
                for copy in Copy::BOTH {
                    let read = self.pool.read_manifest_copy(snapshot.machine, snapshot.sequence, snapshot.uuid, copy);
                    if let Err(error) = read {
                        let name = names::manifest(snapshot.machine, snapshot.sequence, snapshot.uuid, copy);
                        report.problems.push(Problem::object(&name, error.to_string()));
                    }
                }
            }
        }
        Ok(())
    }

    /// What is wrong with each region of a snapshot that is not sound.
    fn snapshot(&mut self, manifest: &Manifest) -> Result<BTreeSet<String>> {
        let mut broken = BTreeSet::new();
        for record in &manifest.disks {
            let disk = self.pool.disk(record);
            for region in 0..tree::region_count(record.length) {
                self.progress.go_on()?;
                if let Err(error) = self.region(&disk, region) {
                    broken.insert(format!("{} at region {region}: {error}", record.name));
                }
            }
        }
        Ok(broken)
    }

    fn region(&mut self, disk: &PoolDisk, region: u64) -> Result<()> {
        let Child::Node(id) = disk.leaf_child(region)? else { return Ok(()) };
        if self.sound.contains(&id) {
            return Ok(());
        }
        for placed in disk.leaf(region)?.iter() {
            if let RunKind::Chunk(chunk) = placed.run.kind {
                self.chunk(&chunk)?;
            }
        }
        self.sound.insert(id);
        Ok(())
    }

    /// Sound when it stands in one place at least where it can be read.
    fn chunk(&self, id: &BlobId) -> Result<()> {
        let blobs = self.pool.blobs();
        let mut first = None;
        for location in blobs.index.find_all(id)? {
            match self.chunk_at(id, &location) {
                Ok(()) => return Ok(()),
                Err(error) => first = first.or(Some(error)),
            }
        }
        Err(first.map_or_else(|| blobs.locate(id).err(), Some).unwrap_or_else(|| Error::corrupt("a chunk is lost")))
    }

    fn chunk_at(&self, id: &BlobId, location: &Location) -> Result<()> {
        let name = || names::pack(location.kind, location.pack, None);
        if location.kind != PackKind::Data {
            return Err(Error::corrupt(format!("chunk {id:?} is said to stand among tree nodes")));
        }
        match self.packs.get(&location.pack) {
            None => Err(Error::corrupt(format!("chunk {id:?} stood in {}, which is missing", name()))),
            Some(size) if location.range().end > *size => {
                Err(Error::corrupt(format!("chunk {id:?} stood in {}, which is cut short", name())))
            }
            Some(_) if self.damaged.contains(&(location.pack, id.prefix())) => {
                Err(Error::corrupt(format!("chunk {id:?} in {} is damaged", name())))
            }
            Some(_) => Ok(()),
        }
    }
}
