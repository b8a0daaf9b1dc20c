//! Marking: which blobs are needed, and which packs they are in.

use super::roots::{Look, PackState};
use super::{Prune, PrunePhase};
use crate::index::{IndexView, Location};
use crate::lease::Tree;
use crate::mutant::Mutant;
use crate::names::{self, PackId};
use crate::seal::{BlobId, BlobType};
use crate::store::Store;
use crate::tree::{self, Child, FAN_OUT, RunKind};
use firn_disk::{Error, Result};
use std::collections::{HashMap, HashSet};
use uuid::Uuid;

/// A set of blobs, as a bit for each entry of an index. A blob that stands in several places is marked at its first.
#[derive(Debug)]
pub(super) struct Marks {
    view: IndexView,
    bits: Vec<u64>,
}

impl Marks {
    pub(super) fn new(view: IndexView) -> Self {
        let bits = vec![0; view.entry_count().div_ceil(64)];
        Self { view, bits }
    }

    /// Learns of what was indexed since.
    fn extend(&mut self, store: &Store, domain: Uuid) -> Result<()> {
        self.view.extend(store, domain)?;
        self.bits.resize(self.view.entry_count().div_ceil(64), 0);
        Ok(())
    }

    /// Every pack that was indexed when this was last extended.
    pub(super) fn packs(&self) -> HashSet<PackId> {
        self.view.packs()
    }

    /// Every place where a blob stands.
    pub(super) fn places(&self, prefix: &[u8; 16], places: &mut Vec<Location>) -> Result<()> {
        self.view.places(prefix, places)
    }

    fn contains(&self, number: usize) -> bool {
        self.bits.get(number / 64).is_some_and(|word| word >> (number % 64) & 1 == 1)
    }

    pub(super) fn contains_blob(&self, id: &BlobId) -> bool {
        self.view.number(id).is_some_and(|number| self.contains(number))
    }

    fn set(&mut self, number: usize) {
        self.bits[number / 64] |= 1 << (number % 64);
    }
}

/// What is needed of each pack.
#[derive(Debug, Default)]
pub(super) struct Survey {
    /// Stored bytes of what is needed in packs that may be relied on, or that nothing can replace.
    pub(super) live: HashMap<PackId, u64>,
    /// Stored bytes of all blobs, needed or not: a pack without what it has around them.
    pub(super) body: HashMap<PackId, u64>,
    /// Packs under a tombstone that hold something which is in no other pack.
    pub(super) needed: HashSet<PackId>,
    /// Needed blobs that no pack has.
    pub(super) missing: u64,
}

/// Where a blob is to be read from, and what else has to stay.
#[derive(Debug)]
pub(super) enum Place {
    /// In a pack that stays.
    Free(Location),
    /// Only in packs that have tombstones.
    Buried(Vec<Location>),
    /// Nowhere.
    Missing,
}

impl Look {
    /// Decides among the places of a blob. Whoever looks at the same things decides the same.
    pub(super) fn place(&self, places: &[Location], trust_tombstones: bool) -> Place {
        let mut buried = Vec::new();
        for location in places {
            let Some(pack) = self.packs.get(&location.pack) else { continue };
            if location.range().end > pack.size {
                continue;
            }
            match pack.state {
                PackState::Free => return Place::Free(*location),
                PackState::Buried if trust_tombstones => return Place::Free(*location),
                PackState::Buried => buried.push(*location),
            }
        }
        if buried.is_empty() { Place::Missing } else { Place::Buried(buried) }
    }
}

impl Prune<'_> {
    /// Marks everything that the roots reach. They were listed before; so what they need is in the index by now.
    pub(super) fn mark(&mut self, look: &Look) -> Result<()> {
        let blobs = self.pool.blobs();
        self.marks.extend(&blobs.store, blobs.keys.domain)?;
        self.report.missing_chunks = 0;
        let mut trees: Vec<Tree> = look.roots.iter().filter(|tree| !self.walked.contains(*tree)).copied().collect();
        trees.sort_unstable();
        self.progress.begin(PrunePhase::Marking, trees.len() as u64);
        for tree in trees {
            self.progress.go_on()?;
            let level = tree::level_count(tree.length);
            if let Err(error) = self.walk(tree.length, level, 0, tree.root)
                && (error.kind() == firn_disk::ErrorKind::Interrupted || self.is_still_root(&tree)?)
            {
                return Err(error
                    .context("it is not known what a snapshot needs, so nothing can be deleted")
                    .hint("`firn verify --quick` names the snapshot; it can be forgotten"));
            }
            self.walked.insert(tree);
            self.progress.add(1);
        }
        Ok(())
    }

    /// Marks the node that stands at `level` over the regions from `first` on, and all below it.
    fn walk(&mut self, length: u64, level: u32, first: u64, child: Child) -> Result<()> {
        let Child::Node(id) = child else { return Ok(()) };
        let blobs = self.pool.blobs();
        let Some(number) = self.number(&id)? else {
            return Err(Error::corrupt(format!("node {id:?} is in no pack that the index knows")));
        };
        if self.marks.contains(number) {
            return Ok(());
        }
        self.progress.go_on()?;
        if level == 0 {
            let bytes = blobs.node(BlobType::Leaf, &id)?;
            for run in tree::decode_leaf(&bytes, tree::region_blocks(length, first))? {
                let RunKind::Chunk(chunk) = run.kind else { continue };
                match self.number(&chunk)? {
                    Some(number) => self.marks.set(number),
                    None => self.report.missing_chunks += 1,
                }
            }
        } else {
            let bytes = blobs.node(BlobType::Inner, &id)?;
            let span = FAN_OUT.saturating_pow(level - 1);
            let mut start = first;
            for child in tree::decode_inner(&bytes, tree::child_count(length, level, first))? {
                self.walk(length, level - 1, start, child)?;
                start = start.saturating_add(span);
            }
        }
        // Only now, so that whoever finds it marked need not go below.
        self.marks.set(number);
        Ok(())
    }

    /// The number of a blob. A segment may have been replaced just when they were listed, so before a blob is given up
    /// they are listed again.
    fn number(&mut self, id: &BlobId) -> Result<Option<usize>> {
        if let Some(number) = self.marks.view.number(id) {
            return Ok(Some(number));
        }
        let blobs = self.pool.blobs();
        self.marks.extend(&blobs.store, blobs.keys.domain)?;
        Ok(self.marks.view.number(id))
    }

    /// Counts what is needed of each pack.
    pub(super) fn survey(&self, look: &Look) -> Result<Survey> {
        let mut survey = Survey::default();
        let mut places = Vec::new();
        let mut missing = Vec::new();
        let trust = self.pool.mutates(Mutant::TrustTombstonedCopy);
        self.marks.view.each(|number, prefix, location| {
            *survey.body.entry(location.pack).or_default() += location.length;
            if !self.marks.contains(number) {
                return Ok(());
            }
            self.marks.places(prefix, &mut places)?;
            match look.place(&places, trust) {
                Place::Free(location) => *survey.live.entry(location.pack).or_default() += location.length,
                Place::Buried(all) => {
                    survey.needed.extend(all.iter().map(|location| location.pack));
                    *survey.live.entry(all[0].pack).or_default() += all[0].length;
                }
                Place::Missing => missing.push(*prefix),
            }
            Ok(())
        })?;
        survey.missing = self.count_missing(&missing)?;
        Ok(survey)
    }

    /// How many of these blobs are in no pack now: others are in packs that were stored since packs were listed, or
    /// moved by another prune.
    fn count_missing(&self, blobs: &[[u8; 16]]) -> Result<u64> {
        if blobs.is_empty() {
            return Ok(0);
        }
        let (store, domain) = (&self.pool.blobs().store, self.pool.blobs().keys.domain);
        self.pool.blobs().index.refresh(store, domain)?;
        let view = self.pool.blobs().index.view();
        let (mut places, mut stored, mut missing) = (Vec::new(), HashMap::new(), 0);
        for prefix in blobs {
            view.places(prefix, &mut places)?;
            let mut is_there = false;
            for location in &places {
                let exists = match stored.get(&location.pack) {
                    Some(exists) => *exists,
                    None => {
                        let copy = location.kind.copies().first().copied().flatten();
                        let exists = store.exists(&names::pack(location.kind, location.pack, copy))?;
                        stored.insert(location.pack, exists);
                        exists
                    }
                };
                is_there |= exists;
            }
            missing += u64::from(!is_there);
        }
        Ok(missing)
    }
}
