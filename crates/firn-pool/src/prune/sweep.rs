//! Sweeping: deleting what has waited long enough, and what others left.

use super::mark::Survey;
use super::roots::Look;
use super::{Prune, PrunePhase};
use crate::fate::{self, Fate};
use crate::listing::SnapshotName;
use crate::mutant::Mutant;
use crate::names::{self, PackId};
use crate::store::StoreTime;
use crate::tombstone::Tombstone;
use firn_disk::Result;
use std::collections::{BTreeSet, HashSet};
use std::time::Duration;
use uuid::Uuid;

/// What decided about something stays for so long after it is gone, for those who slept.
const MARKER_LIFE: Duration = Duration::from_secs(30 * 24 * 3600);
/// What a killed process leaves behind is removed when it is so old.
const LEFTOVER_LIFE: Duration = Duration::from_secs(24 * 3600);

impl Prune<'_> {
    /// Decides about every tombstone, and deletes what is doomed: out of the index, then the packs, then the tombstone.
    /// Packs that are `absent`, though the index names them, are taken out of it, too; unless some blob is missing, when
    /// the index still tells where it was.
    pub(super) fn sweep(
        &mut self,
        look: &Look,
        survey: &Survey,
        absent: HashSet<PackId>,
        now: StoreTime,
    ) -> Result<()> {
        let blobs = self.pool.blobs();
        let mut doomed = Vec::new();
        for tombstone in &look.tombstones.sound {
            let is_needed = tombstone.packs.iter().any(|(_, pack)| survey.needed.contains(pack));
            let wanted = match tombstone.fate {
                Some(Fate::Doomed) if !is_needed => Fate::Doomed,
                Some(_) => Fate::Undone,
                None if is_needed => Fate::Undone,
                None if !self.has_waited(look, tombstone, now) => {
                    self.count(look, tombstone);
                    continue;
                }
                None => Fate::Doomed,
            };
            let decide =
                || fate::decide_tombstone(&blobs.store, &blobs.keys, tombstone.id, wanted, self.pool.entropy());
            match tombstone.fate.map_or_else(decide, Ok)? {
                Fate::Doomed if !is_needed => doomed.push(tombstone),
                // Somebody doomed what is needed: that cannot be, but if it is, it stays.
                Fate::Doomed => self.count(look, tombstone),
                _ => {
                    if is_needed {
                        self.report.undone_packs += tombstone.packs.len() as u64;
                    }
                    // Its fate stays for a while.
                    blobs.store.delete(&names::tombstone(tombstone.id))?;
                }
            }
        }
        let absent = if self.report.missing_chunks == 0 { absent } else { HashSet::new() };
        self.delete(look, &doomed, absent)
    }

    fn delete(&mut self, look: &Look, doomed: &[&Tombstone], absent: HashSet<PackId>) -> Result<()> {
        let blobs = self.pool.blobs();
        let mut packs = absent;
        packs.extend(doomed.iter().flat_map(|tombstone| tombstone.packs.iter().map(|(_, id)| *id)));
        if packs.is_empty() {
            return Ok(());
        }
        self.progress.begin(PrunePhase::Deleting, packs.len() as u64);
        blobs.index.drop_packs(&blobs.store, blobs.keys.domain, &packs, self.pool.entropy())?;
        for tombstone in doomed {
            self.progress.go_on()?;
            let copies = |(kind, id): &(names::PackKind, PackId)| {
                let (kind, id) = (*kind, *id);
                kind.copies().iter().map(move |copy| names::pack(kind, id, *copy))
            };
            let objects: Vec<String> = tombstone.packs.iter().flat_map(copies).collect();
            blobs.store.delete_all(&objects)?;
            blobs.store.delete(&names::tombstone(tombstone.id))?;
            for pack in tombstone.packs.iter().filter_map(|(_, id)| look.packs.get(id)) {
                self.report.deleted_packs += 1;
                self.report.deleted_bytes += pack.stored_bytes;
            }
            self.progress.add(tombstone.packs.len() as u64);
        }
        blobs.index.refresh(&blobs.store, blobs.keys.domain).map(|_| ())
    }

    /// Whether the grace is over, and every writer that may not have seen the tombstone has ended.
    fn has_waited(&mut self, look: &Look, tombstone: &Tombstone, now: StoreTime) -> bool {
        let concerns = |lease: &crate::lease::LeaseSeen| !lease.keeps_off.contains(&tombstone.id);
        let is_free = !look.leases.iter().any(concerns) || self.pool.mutates(Mutant::IgnoreLeases);
        self.report.waits_for_snapshots |= !is_free;
        let is_old = now.since(tombstone.put) >= self.options.grace || self.pool.mutates(Mutant::NoGrace);
        is_free && is_old
    }

    fn count(&mut self, look: &Look, tombstone: &Tombstone) {
        for pack in tombstone.packs.iter().filter_map(|(_, id)| look.packs.get(id)) {
            self.report.waiting_packs += 1;
            self.report.waiting_bytes += pack.stored_bytes;
        }
    }

    /// Counts what other runs want to delete.
    pub(super) fn count_waiting(&mut self, look: &Look) {
        let waiting = look.tombstones.sound.iter().filter(|tombstone| tombstone.fate != Some(Fate::Undone));
        waiting.for_each(|tombstone| self.count(look, tombstone));
    }

    /// Removes what killed processes left, and completes what they left half.
    pub(super) fn tidy(&mut self, look: &Look, now: StoreTime) -> Result<()> {
        let store = &self.pool.blobs().store;
        let mut old: Vec<String> = Vec::new();
        let is_over = |put: StoreTime, life: Duration| now.since(put) > life.max(self.options.grace);
        for (id, put) in &look.tombstones.stray_fates {
            if is_over(*put, MARKER_LIFE) {
                old.push(names::tombstone_fate(*id));
            }
        }
        for (id, put, _) in &look.tombstones.damaged {
            if is_over(*put, LEFTOVER_LIFE) {
                old.push(names::tombstone(*id));
            }
        }
        // Markers are listed before what they speak of, so that none is taken for a stray whose snapshot comes just now.
        let mut markers: Vec<(Uuid, StoreTime, String)> = Vec::new();
        for folder in ["fate", "lock"] {
            for object in store.list(folder)? {
                let subject = names::parse_fate(&object.name).map(|(snapshot, _)| snapshot);
                if let Some(snapshot) =
                    subject.or_else(|| names::parse_lock(&object.name).map(|(snapshot, _)| snapshot))
                {
                    markers.push((snapshot, object.modified, object.name));
                }
            }
        }
        let leases = store.list("lease")?;
        let mut known: BTreeSet<Uuid> =
            leases.iter().filter_map(|object| Some(names::parse_lease(&object.name)?.0)).collect();
        known.extend(self.pool.snapshot_names("snap")?.iter().map(|(_, _, snapshot): &SnapshotName| *snapshot));
        let stray = markers.into_iter().filter(|(id, put, _)| !known.contains(id) && is_over(*put, MARKER_LIFE));
        old.extend(stray.map(|(.., name)| name));
        let probes = store.list("time")?;
        old.extend(probes.into_iter().filter(|probe| is_over(probe.modified, LEFTOVER_LIFE)).map(|probe| probe.name));
        store.delete_all(&old)?;
        store.remove_cut_uploads(self.options.grace.max(LEFTOVER_LIFE), now)?;
        self.report.completed_copies = self.pool.complete_copies("snap")?;
        Ok(())
    }
}
