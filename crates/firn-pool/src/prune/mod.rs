//! Prune: the space of what no snapshot needs comes back, while anybody reads and writes.
//!
//! ```text
//! look    tombstones, packs, snapshots, leases, snapshots again                      (roots)
//! mark    every blob that the roots reach: a bitmap over the index                   (mark)
//! repack  out of packs that are mostly dead, what lives goes into new packs          (repack)
//! bury    tombstones over packs that nothing needs
//! look    again, and mark what is new
//! sweep   what is older than the grace and than every lease: index, packs, tombstone (sweep)
//! ```
//! No lock is taken, and none is needed: why nothing is lost beside writers and other prunes stands in
//! `snapshot/publish.rs`. Two prunes that move the same blob rely on no place that has a tombstone: both put theirs
//! before they look again, so one of them sees the other's.
//!
//! Times only decide how long things wait. They are the store's own. A clock that goes wrong can make prune wait too
//! long, or take the grace from a reader, which then fails with an error; it cannot make prune delete what is needed.
//!
//! Memory: a bit for each entry of the index, a few dozen bytes for each pack, one pack that is filled.

mod mark;
mod repack;
mod roots;
mod sweep;

use crate::lease::Tree;
use crate::mutant::Mutant;
use crate::names::{PackId, PackKind};
use crate::pool::Pool;
use crate::store::StoreTime;
use crate::tombstone;
use crate::verify::Problem;
use firn_disk::{Error, ErrorKind, Result};
use mark::{Marks, Survey};
use roots::Look;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

/// How prune works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PruneOptions {
    /// For so long a pack that nothing needs any more stays where it is, so that readers which began before can finish.
    /// Packs that are younger are left alone: an interrupted snapshot goes on with them.
    pub grace: Duration,
    /// Packs are copied together of which less than this percentage is needed.
    pub repack_below_percent: u8,
    /// Only say what would be done.
    pub dry_run: bool,
}

impl Default for PruneOptions {
    /// A day, 70 percent.
    fn default() -> Self {
        Self { grace: Duration::from_secs(24 * 3600), repack_below_percent: 70, dry_run: false }
    }
}

/// What prune is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PrunePhase {
    /// Finding out what is needed; counts trees.
    Marking,
    /// Copying out of packs that are mostly dead; counts bytes of those packs.
    Repacking,
    /// Removing; counts packs.
    Deleting,
}

/// What is going on, and the way to stop it.
#[derive(Debug, Default)]
pub struct PruneProgress {
    /// What [`phase`](Self::phase) reads.
    pub phase: AtomicU8,
    /// How much of this phase is done.
    pub done: AtomicU64,
    /// How much this phase has.
    pub total: AtomicU64,
    /// Set it to stop: the call ends with `Interrupted`. What was done so far is used by the next prune.
    pub cancel: Arc<AtomicBool>,
}

impl PruneProgress {
    /// What is being done now.
    pub fn phase(&self) -> PrunePhase {
        match self.phase.load(Ordering::Relaxed) {
            0 => PrunePhase::Marking,
            1 => PrunePhase::Repacking,
            _ => PrunePhase::Deleting,
        }
    }

    fn begin(&self, phase: PrunePhase, total: u64) {
        self.done.store(0, Ordering::Relaxed);
        self.total.store(total, Ordering::Relaxed);
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    fn add(&self, more: u64) {
        self.done.fetch_add(more, Ordering::Relaxed);
    }

    fn go_on(&self) -> Result<()> {
        if self.cancel.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Interrupted, "stopped before prune was through")
                .hint("run it again; nothing is lost, and what was done is not done twice"));
        }
        Ok(())
    }
}

/// What prune found and did. Bytes are those of packs with all their copies.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PruneReport {
    /// All packs that were there.
    pub packs: u64,
    /// Their bytes.
    pub pack_bytes: u64,
    /// Bytes of blobs that are needed, in packs that stay (each once).
    pub live_bytes: u64,
    /// Packs that nothing needs, or would need once the rest of them is copied, found by this run.
    pub buried_packs: u64,
    /// Their bytes.
    pub buried_bytes: u64,
    /// Packs of which what lives was (or would be) copied.
    pub repacked_packs: u64,
    /// Bytes of blobs that were (or would be) copied.
    pub repacked_bytes: u64,
    /// Packs that were deleted.
    pub deleted_packs: u64,
    /// Their bytes.
    pub deleted_bytes: u64,
    /// Packs that wait for the grace or a running snapshot to end.
    pub waiting_packs: u64,
    /// Their bytes.
    pub waiting_bytes: u64,
    /// Whether some wait for a running snapshot.
    pub waits_for_snapshots: bool,
    /// Packs that were to be deleted and are needed after all.
    pub undone_packs: u64,
    /// Snapshots that were never completed and were removed.
    pub abandoned: u64,
    /// Small objects whose second copy was put again.
    pub completed_copies: u64,
    /// Chunks that snapshots need and no pack has: damage, which prune leaves as it is.
    pub missing_chunks: u64,
    /// What is damaged and was therefore left alone.
    pub problems: Vec<Problem>,
}

impl Pool {
    /// Deletes what no snapshot needs, as far as the grace lets it; see the module. Any number of writers, readers and
    /// other prunes may be at work.
    ///
    /// # Errors
    /// `Corrupt` when it cannot be known what a snapshot needs, as its manifest or a node of its tree is damaged: then
    /// nothing is deleted. `Interrupted`; `Denied`, `Unsupported` when the pool cannot be written; what the store says.
    pub fn prune(&self, options: &PruneOptions, progress: &PruneProgress) -> Result<PruneReport> {
        self.shared()?;
        let blobs = self.blobs();
        blobs.index.refresh(&blobs.store, blobs.keys.domain)?;
        if let Some(problem) = blobs.index.damaged().first() {
            return Err(Error::corrupt(format!(
                "the index is damaged, so it is not known what is needed: {}",
                problem.what
            ))
            .hint("`firn pool rebuild-index` makes it again from the packs"));
        }
        let marks = Marks::new(blobs.index.view());
        Prune { pool: self, options, progress, marks, walked: HashSet::new(), report: PruneReport::default() }.run()
    }
}

/// One run.
struct Prune<'a> {
    pool: &'a Pool,
    options: &'a PruneOptions,
    progress: &'a PruneProgress,
    marks: Marks,
    /// Trees all of whose blobs are marked.
    walked: HashSet<Tree>,
    report: PruneReport,
}

impl Prune<'_> {
    fn run(mut self) -> Result<PruneReport> {
        let now = self.now()?;
        let first = self.look(now)?;
        self.mark(&first)?;
        let survey = self.survey(&first)?;
        self.report.packs = first.packs.len() as u64;
        self.report.pack_bytes = first.packs.values().map(|pack| pack.stored_bytes).sum();
        self.report.live_bytes = survey.live.values().sum();
        let mut dead = self.dead(&first, &survey, now);
        dead.extend(self.repack(&first, &survey, now)?);
        self.report.buried_packs = dead.len() as u64;
        self.report.buried_bytes =
            dead.iter().filter_map(|pack| first.packs.get(&pack.1)).map(|p| p.stored_bytes).sum();
        if self.options.dry_run {
            self.report.missing_chunks += survey.missing;
            self.count_waiting(&first);
            return Ok(self.report);
        }
        dead.sort_unstable();
        let blobs = self.pool.blobs();
        for packs in dead.chunks(tombstone::MOST_PACKS) {
            self.progress.go_on()?;
            tombstone::put(&blobs.store, &blobs.keys, packs, self.pool.entropy())?;
        }
        // Whatever is indexed by now was stored before the packs are listed again.
        let indexed = self.marks.packs();
        let second = self.look_again(first)?;
        let survey = self.survey(&second)?;
        let now = self.now()?;
        self.report.missing_chunks += survey.missing;
        let absent = indexed.into_iter().filter(|pack| !second.packs.contains_key(pack)).collect();
        self.sweep(&second, &survey, absent, now)?;
        self.tidy(&second, now)?;
        Ok(self.report)
    }

    fn now(&self) -> Result<StoreTime> {
        if self.options.dry_run {
            // Nothing may be put to learn the time, and nothing depends on it: everything is old enough.
            return Ok(StoreTime(i64::MAX));
        }
        let blobs = self.pool.blobs();
        blobs.store.now(blobs.keys.domain, self.pool.entropy())
    }

    fn look_again(&mut self, first: Look) -> Result<Look> {
        let now = self.now()?;
        let mut second = if self.pool.mutates(Mutant::CheckBeforeTombstone) {
            let blobs = self.pool.blobs();
            Look { tombstones: tombstone::list(&blobs.store, &blobs.keys)?, ..first }
        } else {
            let second = self.look(now)?;
            if !self.pool.mutates(Mutant::NoSecondMark) {
                self.mark(&second)?;
            }
            second
        };
        second.judge_packs();
        Ok(second)
    }

    /// Packs that nothing needs and that nobody may be about to need.
    fn dead(&self, look: &Look, survey: &Survey, now: StoreTime) -> Vec<(PackKind, PackId)> {
        let is_dead = |id: &PackId| !survey.live.contains_key(id);
        let dead = look.packs.iter().filter(|(id, pack)| is_dead(id) && self.is_settled(look, pack, now));
        dead.map(|(id, pack)| (pack.kind, *id)).collect()
    }

    /// Whether a pack without a tombstone is older than the grace and than every running snapshot.
    fn is_settled(&self, look: &Look, pack: &roots::PackSeen, now: StoreTime) -> bool {
        let began_before = |lease: &crate::lease::LeaseSeen| lease.taken <= pack.modified;
        pack.state == roots::PackState::Free
            && (now.since(pack.modified) >= self.options.grace || self.pool.mutates(Mutant::NoGrace))
            && !look.leases.iter().any(began_before)
    }
}
