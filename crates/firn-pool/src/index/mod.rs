//! The index: where in which pack a blob stands.
//!
//! In the pool it is a set of *segments* ([`segment`]), written once each and rebuildable from the packs alone. On
//! this machine it is a few sorted *runs* ([`run`]), files in the user's cache folder that are mapped into memory.
//! A run remembers which segments it was made of, so that it is thrown away when one of them is gone, and only
//! segments that no run has are fetched. Runs are merged so that there are few of them.

mod run;
mod segment;
mod view;

pub(crate) use segment::{IndexedPack, SegmentBuilder};
pub(crate) use view::IndexView;

use crate::entropy::{Entropy, random_bytes};
use crate::names::{self, PackId, PackKind};
use crate::seal::BlobId;
use crate::store::Store;
use crate::verify::Problem;
use firn_disk::{ErrorKind, Result};
use run::Run;
use segment::Segment;
use std::collections::{BTreeSet, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use uuid::Uuid;

/// Entries that are gathered from small segments before they become a run: 6 MB of memory.
const BATCH_ENTRIES: usize = 1 << 18;

/// Where a blob stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Location {
    pub(crate) kind: PackKind,
    pub(crate) pack: PackId,
    /// Byte offset in the pack.
    pub(crate) offset: u64,
    /// Stored length in bytes.
    pub(crate) length: u64,
}

impl Location {
    pub(crate) fn range(&self) -> Range<u64> {
        self.offset..self.offset + self.length
    }
}

/// The index as this process sees it.
#[derive(Debug)]
pub(crate) struct Index {
    /// Where runs are kept; `None` keeps them in memory.
    folder: Option<PathBuf>,
    runs: RwLock<Vec<Arc<Run>>>,
    /// Segments that could not be read. What only they name is not found until the index is rebuilt.
    damaged: RwLock<Vec<Problem>>,
    /// Packs that a writer may build on; `None` while nobody said.
    usable: RwLock<Option<HashSet<PackId>>>,
}

impl Index {
    /// Brings the local runs up to date with the pool's segments.
    ///
    /// A `folder` that cannot be written to, or is full, is done without. A damaged segment is remembered and passed over: for a
    /// writer it costs only space, and a reader that misses a blob is told the way out.
    ///
    /// # Errors
    /// What the store says.
    pub(crate) fn open(store: &Store, domain: Uuid, folder: Option<&Path>) -> Result<Self> {
        let folder = folder.filter(|folder| std::fs::create_dir_all(folder).is_ok()).map(Path::to_path_buf);
        let mut missing = listed(store)?;
        let mut runs = Vec::new();
        for run in folder.as_deref().map(Run::load_all).unwrap_or_default() {
            if run.segments().iter().all(|segment| missing.contains(segment)) {
                missing.retain(|segment| !run.segments().contains(segment));
                runs.push(Arc::new(run));
            } else {
                run.forget();
            }
        }
        runs.sort_by_key(|run| std::cmp::Reverse(run.entry_count()));
        let index = Self { folder, runs: RwLock::new(runs), damaged: RwLock::default(), usable: RwLock::default() };
        index.fetch(store, domain, missing)?;
        Ok(index)
    }

    /// An index of nothing, which keeps its runs in memory.
    fn in_memory() -> Self {
        Self { folder: None, runs: RwLock::default(), damaged: RwLock::default(), usable: RwLock::default() }
    }

    /// Looks for segments that were written since, and forgets those that are gone; answers whether there were new
    /// ones.
    ///
    /// # Errors
    /// What the store says.
    pub(crate) fn refresh(&self, store: &Store, domain: Uuid) -> Result<bool> {
        let listed = listed(store)?;
        let mut missing = listed.clone();
        {
            let mut runs = self.runs.write().unwrap_or_else(PoisonError::into_inner);
            runs.retain(|run| {
                let is_whole = run.segments().iter().all(|segment| listed.contains(segment));
                if is_whole {
                    missing.retain(|segment| !run.segments().contains(segment));
                } else {
                    run.forget();
                }
                is_whole
            });
        }
        let mut damaged = self.damaged.write().unwrap_or_else(PoisonError::into_inner);
        damaged.retain(|problem| names::parse_segment(&problem.what).is_some_and(|segment| listed.contains(&segment)));
        missing.retain(|segment| damaged.iter().all(|problem| problem.what != names::segment(*segment)));
        drop(damaged);
        let found = !missing.is_empty();
        self.fetch(store, domain, missing)?;
        Ok(found)
    }

    /// The segments that could not be read.
    pub(crate) fn damaged(&self) -> Vec<Problem> {
        self.damaged.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn fetch(&self, store: &Store, domain: Uuid, missing: BTreeSet<[u8; 16]>) -> Result<()> {
        let mut batch: Vec<([u8; 16], Segment)> = Vec::new();
        for id in missing {
            let name = names::segment(id);
            let bytes = match store.get(&name) {
                Ok(bytes) => bytes,
                // Somebody rebuilt the index since the listing; what this one named stands in a newer one.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            match Segment::from_object(&bytes, domain) {
                Ok(segment) => batch.push((id, segment)),
                Err(error) => {
                    let problem = Problem { what: name, message: error.to_string() };
                    self.damaged.write().unwrap_or_else(PoisonError::into_inner).push(problem);
                }
            }
            if batch.iter().map(|(_, segment)| segment.entry_count()).sum::<usize>() >= BATCH_ENTRIES {
                self.add(std::mem::take(&mut batch))?;
            }
        }
        if batch.is_empty() { Ok(()) } else { self.add(batch) }
    }

    /// Makes segments that are in the pool visible here.
    fn add(&self, segments: Vec<([u8; 16], Segment)>) -> Result<()> {
        let run = Run::from_segments(self.folder.as_deref(), segments)?;
        let mut runs = self.runs.write().unwrap_or_else(PoisonError::into_inner);
        runs.push(Arc::new(run));
        // Like a binary counter: a run is merged with one that is not much larger, so that each entry is copied
        // a logarithmic number of times and a logarithmic number of runs remains.
        while let [.., large, small] = runs.as_slice()
            && small.entry_count() * 2 >= large.entry_count()
        {
            let merged = Run::merge(self.folder.as_deref(), large, small)?;
            let kept = runs.len() - 2;
            for run in runs.drain(kept..) {
                run.forget();
            }
            runs.push(Arc::new(merged));
        }
        Ok(())
    }

    /// Stores a new segment in the pool, durable when this returns, and makes it visible here.
    pub(crate) fn publish(&self, store: &Store, id: [u8; 16], builder: SegmentBuilder, domain: Uuid) -> Result<()> {
        let segment = builder.finish();
        if let Some(usable) = &mut *self.usable.write().unwrap_or_else(PoisonError::into_inner) {
            usable.extend(segment.packs.iter().map(|pack| pack.id));
        }
        store.create_own(&names::segment(id), &segment.to_object(domain).into())?;
        self.add(vec![(id, segment)])
    }

    /// Every place where a blob stands; two writers at once may have stored it twice.
    ///
    /// # Errors
    /// `Corrupt` when the local index contradicts itself.
    pub(crate) fn find_all(&self, id: &BlobId) -> Result<Vec<Location>> {
        let (prefix, mut found) = (id.prefix(), Vec::new());
        for run in self.runs.read().unwrap_or_else(PoisonError::into_inner).iter() {
            run.find(&prefix, &mut found)?;
        }
        Ok(found)
    }

    /// Where a writer finds a blob that it need not store again, if it is in a pack that may be used for that.
    ///
    /// # Errors
    /// `Corrupt` when the local index contradicts itself.
    pub(crate) fn find_usable(&self, id: &BlobId) -> Result<Option<Location>> {
        let usable = self.usable.read().unwrap_or_else(PoisonError::into_inner);
        let may = |location: &Location| usable.as_ref().is_none_or(|usable| usable.contains(&location.pack));
        Ok(self.find_all(id)?.into_iter().find(may))
    }

    /// The packs that a writer may build on, besides those that it stores itself from now on: they are in the store
    /// whole, and prune does not want to delete them. What stands in others is stored again.
    pub(crate) fn set_usable(&self, packs: HashSet<PackId>) {
        *self.usable.write().unwrap_or_else(PoisonError::into_inner) = Some(packs);
    }

    /// The index as it is now, for who goes through all of it.
    pub(crate) fn view(&self) -> IndexView {
        IndexView::new(self.runs.read().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// Replaces segments that name any of `packs` by new ones that do not; the new ones are durable before the old ones
    /// go.
    ///
    /// # Errors
    /// What the store says. A segment that is damaged stays.
    pub(crate) fn drop_packs(
        &self,
        store: &Store,
        domain: Uuid,
        packs: &HashSet<PackId>,
        entropy: &dyn Entropy,
    ) -> Result<()> {
        let (mut rest, mut old) = (SegmentBuilder::default(), Vec::new());
        for id in listed(store)? {
            let segment = match store.get(&names::segment(id)) {
                Ok(bytes) => Segment::from_object(&bytes, domain),
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            let Ok(segment) = segment else { continue };
            if segment.packs.iter().any(|pack| packs.contains(&pack.id)) {
                rest.add_segment(&segment, packs);
                old.push(names::segment(id));
            }
            if rest.entry_count() >= BATCH_ENTRIES {
                self.replace(store, domain, std::mem::take(&mut rest), std::mem::take(&mut old), entropy)?;
            }
        }
        self.replace(store, domain, rest, old, entropy)
    }

    fn replace(
        &self,
        store: &Store,
        domain: Uuid,
        rest: SegmentBuilder,
        old: Vec<String>,
        entropy: &dyn Entropy,
    ) -> Result<()> {
        if !rest.is_empty() {
            let segment = rest.finish().to_object(domain);
            store.create_own(&names::segment(random_bytes(entropy)?), &segment.into())?;
        }
        store.delete_all(&old)
    }

    /// Every pack that the index knows.
    pub(crate) fn packs(&self) -> Vec<IndexedPack> {
        let runs = self.runs.read().unwrap_or_else(PoisonError::into_inner);
        runs.iter().flat_map(|run| run.packs().collect::<Vec<_>>()).collect()
    }

    /// How many blobs the index knows; one that stands in two packs counts twice.
    pub(crate) fn entry_count(&self) -> u64 {
        let runs = self.runs.read().unwrap_or_else(PoisonError::into_inner);
        runs.iter().map(|run| run.entry_count() as u64).sum()
    }
}

/// The segments that are stored.
fn listed(store: &Store) -> Result<BTreeSet<[u8; 16]>> {
    Ok(store.list("idx")?.iter().filter_map(|object| names::parse_segment(&object.name)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pack::PackEntry;
    use crate::seal::BlobType;
    use firn_disk::testing::Random;

    fn blob(number: u64) -> BlobId {
        BlobId(*blake3::hash(&number.to_le_bytes()).as_bytes())
    }

    fn segment(numbers: Range<u64>, pack: u8) -> SegmentBuilder {
        let mut builder = SegmentBuilder::default();
        let entries: Vec<_> = numbers
            .enumerate()
            .map(|(at, number)| PackEntry {
                kind: BlobType::Chunk,
                id: blob(number),
                offset: u32::try_from(at).unwrap() * 100,
                length: 100,
                hash: [0; 32],
            })
            .collect();
        builder.add(PackKind::Data, PackId([pack; 16]), 1 << 20, &entries);
        builder
    }

    fn store(folder: &Path) -> Store {
        Store::create(folder.join("pool").to_str().unwrap()).unwrap()
    }

    #[test]
    fn every_blob_is_found_after_any_number_of_segments_and_restarts() {
        let folder = tempfile::tempdir().unwrap();
        let (store, cache) = (store(folder.path()), folder.path().join("cache"));
        let mut random = Random::new(1);
        for cached in [None, Some(cache.as_path())] {
            let index = Index::open(&store, Uuid::nil(), cached).unwrap();
            let first = if cached.is_some() { 4000 } else { 0 };
            for number in 0..40_u64 {
                let mut id = [0; 16];
                random.fill(&mut id);
                let start = first + number * 100;
                let pack = u8::try_from(start / 100).unwrap();
                index.publish(&store, id, segment(start..start + 100, pack), Uuid::nil()).unwrap();
            }
            assert!(index.runs.read().unwrap().len() < 8);
        }
        for round in 0..3 {
            let index = Index::open(&store, Uuid::nil(), Some(&cache)).unwrap();
            assert_eq!(index.entry_count(), 8000, "round {round}");
            assert_eq!(index.packs().len(), 80);
            for number in 0..8000 {
                let found = index.find_usable(&blob(number)).unwrap().unwrap();
                assert_eq!(found.pack, PackId([u8::try_from(number / 100).unwrap(); 16]));
                assert_eq!(found.range(), number % 100 * 100..number % 100 * 100 + 100);
            }
            assert!(index.find_usable(&blob(8000)).unwrap().is_none());
            if round == 1 {
                // A segment that goes away takes its blobs along.
                store.delete(&store.list("idx").unwrap()[0].name).unwrap();
                let index = Index::open(&store, Uuid::nil(), Some(&cache)).unwrap();
                assert_eq!(index.entry_count(), 7900);
                break;
            }
        }
    }

    #[test]
    fn damaged_run_files_are_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let (store, cache) = (store(folder.path()), folder.path().join("cache"));
        Index::open(&store, Uuid::nil(), Some(&cache))
            .unwrap()
            .publish(&store, [1; 16], segment(0..1000, 1), Uuid::nil())
            .unwrap();
        for damage in [0, 10, 60, 100] {
            let file = std::fs::read_dir(&cache).unwrap().next().unwrap().unwrap().path();
            let mut bytes = std::fs::read(&file).unwrap();
            bytes[damage] ^= 1;
            std::fs::write(&file, &bytes).unwrap();
            let index = Index::open(&store, Uuid::nil(), Some(&cache)).unwrap();
            assert_eq!(index.entry_count(), 1000);
            assert!(index.find_usable(&blob(999)).unwrap().is_some());
        }
    }

    #[test]
    fn a_cache_that_cannot_be_written_is_done_without() {
        let folder = tempfile::tempdir().unwrap();
        let (store, cache) = (store(folder.path()), folder.path().join("cache"));
        // Root may write anywhere, but nobody can make a file below a file.
        std::fs::write(&cache, "").unwrap();
        let index = Index { folder: Some(cache.clone()), ..Index::open(&store, Uuid::nil(), None).unwrap() };
        for number in 0..3_u8 {
            let start = u64::from(number) * 10;
            index.publish(&store, [number; 16], segment(start..start + 10, number), Uuid::nil()).unwrap();
        }
        assert!(index.find_usable(&blob(29)).unwrap().is_some());
        assert_eq!(Index::open(&store, Uuid::nil(), Some(&cache)).unwrap().entry_count(), 30);
    }

    #[test]
    fn a_damaged_segment_is_told_of() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        store.create_object(&names::segment([1; 16]), vec![0; 200].into()).unwrap();
        let index = Index::open(&store, Uuid::nil(), None).unwrap();
        assert_eq!(index.damaged().len(), 1);
        assert!(!index.refresh(&store, Uuid::nil()).unwrap(), "it is told of once");
        assert_eq!(index.damaged().len(), 1);
    }
}
