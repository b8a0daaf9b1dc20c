//! The whole index, for prune: every entry has a number, so that a set of blobs is a bitmap.
//!
//! Numbers last. What comes into the pool later gets higher ones when the view is extended, and what goes stays.

use super::run::Run;
use super::{Index, Location, listed};
use crate::names::PackId;
use crate::seal::BlobId;
use crate::store::Store;
use firn_disk::Result;
use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use uuid::Uuid;

/// The runs of an index, which stay as they are however the index goes on.
#[derive(Debug)]
pub(crate) struct IndexView {
    runs: Vec<Arc<Run>>,
    /// The number of each run's first entry, and after the last one the number of entries.
    starts: Vec<usize>,
}

impl IndexView {
    pub(super) fn new(runs: Vec<Arc<Run>>) -> Self {
        let mut starts = vec![0];
        for run in &runs {
            starts.push(starts.last().copied().unwrap_or(0) + run.entry_count());
        }
        Self { runs, starts }
    }

    /// Adds the segments that were written since.
    ///
    /// # Errors
    /// What the store says.
    pub(crate) fn extend(&mut self, store: &Store, domain: Uuid) -> Result<()> {
        let mut missing: BTreeSet<[u8; 16]> = listed(store)?;
        for run in &self.runs {
            missing.retain(|segment| !run.segments().contains(segment));
        }
        if missing.is_empty() {
            return Ok(());
        }
        let newer = Index::in_memory();
        newer.fetch(store, domain, missing)?;
        for run in newer.view().runs {
            self.starts.push(self.entry_count() + run.entry_count());
            self.runs.push(run);
        }
        Ok(())
    }

    /// Every pack that is named.
    pub(crate) fn packs(&self) -> HashSet<PackId> {
        self.runs.iter().flat_map(|run| run.packs().map(|pack| pack.id).collect::<Vec<_>>()).collect()
    }

    /// How many entries there are.
    pub(crate) fn entry_count(&self) -> usize {
        self.starts.last().copied().unwrap_or(0)
    }

    /// The number that stands for a blob: that of its first entry.
    pub(crate) fn number(&self, id: &BlobId) -> Option<usize> {
        let prefix = id.prefix();
        self.runs.iter().zip(&self.starts).find_map(|(run, start)| Some(start + run.first(&prefix)?))
    }

    /// Calls `visit` with number, first half of the id, and place of every entry.
    ///
    /// # Errors
    /// `Corrupt` when the local index contradicts itself; what `visit` says.
    pub(crate) fn each(&self, mut visit: impl FnMut(usize, &[u8; 16], Location) -> Result<()>) -> Result<()> {
        for (run, start) in self.runs.iter().zip(&self.starts) {
            for number in 0..run.entry_count() {
                let (prefix, location) = run.place(number)?;
                visit(start + number, &prefix, location)?;
            }
        }
        Ok(())
    }

    /// Every place where a blob stands.
    ///
    /// # Errors
    /// As [`each`](Self::each).
    pub(crate) fn places(&self, prefix: &[u8; 16], found: &mut Vec<Location>) -> Result<()> {
        found.clear();
        self.runs.iter().try_for_each(|run| run.find(prefix, found))
    }
}
