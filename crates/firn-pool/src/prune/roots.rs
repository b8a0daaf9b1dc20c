//! What is there: tombstones, packs, leases, and the trees from which everything needed is reached.

use super::Prune;
use crate::fate::{self, Fate};
use crate::lease::{self, LeaseSeen, Tree};
use crate::listing::{SnapshotName, Standing};
use crate::mutant::Mutant;
use crate::names::{self, PackId, PackKind};
use crate::rebuild::stored_packs;
use crate::store::StoreTime;
use crate::tombstone::{self, Tombstones};
use firn_disk::{Error, ErrorKind, Result};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;
use uuid::Uuid;

/// What may be relied on of a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PackState {
    /// It stays.
    Free,
    /// Somebody wants to delete it.
    Buried,
}

/// A pack that is stored.
#[derive(Debug, Clone, Copy)]
pub(super) struct PackSeen {
    pub(super) kind: PackKind,
    /// Length of its longest copy.
    pub(super) size: u64,
    /// Length of all copies.
    pub(super) stored_bytes: u64,
    /// When its newest copy was put.
    pub(super) modified: StoreTime,
    pub(super) state: PackState,
}

/// The pool as it was at one moment, or rather over a short while, in an order that makes that good enough.
#[derive(Debug)]
pub(super) struct Look {
    pub(super) tombstones: Tombstones,
    pub(super) packs: BTreeMap<PackId, PackSeen>,
    /// Those that have not ended.
    pub(super) leases: Vec<LeaseSeen>,
    pub(super) roots: HashSet<Tree>,
}

impl Look {
    /// Sets what may be relied on of each pack.
    pub(super) fn judge_packs(&mut self) {
        self.packs.values_mut().for_each(|pack| pack.state = PackState::Free);
        for tombstone in self.tombstones.sound.iter().filter(|tombstone| tombstone.fate != Some(Fate::Undone)) {
            for (_, id) in &tombstone.packs {
                if let Some(pack) = self.packs.get_mut(id) {
                    pack.state = PackState::Buried;
                }
            }
        }
    }
}

impl Prune<'_> {
    /// Looks. Tombstones come before packs: one that is gone took its packs along. Snapshots come before leases and
    /// after them: whoever builds on a snapshot has a lease before it can be forgotten, and gives it back only when his
    /// own snapshot is there.
    pub(super) fn look(&mut self, now: StoreTime) -> Result<Look> {
        let blobs = self.pool.blobs();
        let tombstones = tombstone::list(&blobs.store, &blobs.keys)?;
        let mut packs = BTreeMap::new();
        for ((kind, id), copies) in stored_packs(&blobs.store)? {
            let sizes = || copies.iter().map(|(_, object)| object.size);
            let modified = copies.iter().map(|(_, object)| object.modified).max().unwrap_or(now);
            let (size, stored_bytes) = (sizes().max().unwrap_or(0), sizes().sum());
            packs.insert(id, PackSeen { kind, size, stored_bytes, modified, state: PackState::Free });
        }
        let mut roots = HashSet::new();
        let mut known = BTreeSet::new();
        self.add_snapshots(None, &mut known, &mut roots)?;
        let leases = self.live_leases(now)?;
        roots.extend(leases.iter().flat_map(|lease| &lease.trees));
        if !self.pool.mutates(Mutant::RootsBeforeLeases) {
            self.add_snapshots(Some(&leases), &mut known, &mut roots)?;
        }
        let mut look = Look { tombstones, packs, leases, roots };
        look.judge_packs();
        Ok(look)
    }

    /// Ends the leases that have expired; answers the others.
    fn live_leases(&self, now: StoreTime) -> Result<Vec<LeaseSeen>> {
        let blobs = self.pool.blobs();
        let mut live = Vec::new();
        for lease in lease::list(&blobs.store, &blobs.keys)? {
            if self.options.dry_run || !lease.is_expired(now) {
                live.push(lease);
            } else {
                if !self.pool.mutates(Mutant::ExpiredWithoutFate) {
                    // Confirmed, it was only not given back. Lost, its writer will learn so.
                    fate::decide(&blobs.store, &blobs.keys, lease.snapshot, Fate::Lost, self.pool.entropy())?;
                }
                let newest_first: Vec<_> = lease.objects.iter().rev().collect();
                blobs.store.delete_all(&newest_first)?;
            }
        }
        Ok(live)
    }

    /// Adds the trees of all snapshots, but not of those in `known`, which were added before. With `leases` it is
    /// decided what becomes of manifests whose writer is gone, too.
    fn add_snapshots(
        &mut self,
        leases: Option<&[LeaseSeen]>,
        known: &mut BTreeSet<SnapshotName>,
        roots: &mut HashSet<Tree>,
    ) -> Result<()> {
        let names: Vec<_> =
            self.pool.snapshot_names("snap")?.into_iter().filter(|name| !known.contains(name)).collect();
        let mut counted = Vec::new();
        for (name, (standing, _)) in names.iter().zip(self.pool.standings(&names)?) {
            match (standing, leases) {
                (Standing::Published, _) => {
                    known.insert(*name);
                    counted.push(*name);
                }
                (Standing::Pending, None) => counted.push(*name),
                (Standing::Pending, Some(leases)) => {
                    if self.is_written(name.2, leases)? || !self.abandon(name)? {
                        counted.push(*name);
                    }
                }
                (Standing::Gone, _) if self.options.dry_run => {}
                (Standing::Gone, _) => self.pool.remove_manifest(name)?,
            }
        }
        for (name, manifest) in counted.iter().zip(self.pool.read_manifests(&counted)) {
            match manifest {
                Ok(manifest) => roots.extend(manifest.disks.iter().map(crate::manifest::DiskRecord::tree)),
                // Forgotten since.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(self.unknown_needs(name, error)),
            }
        }
        Ok(())
    }

    fn unknown_needs(&self, &(machine, sequence, snapshot): &SnapshotName, error: Error) -> Error {
        let name = names::manifest(machine, sequence, snapshot, names::Copy::A);
        error
            .context("it is not known what a snapshot needs, so nothing can be deleted")
            .at_path(Path::new(self.pool.blobs().store.location()).join(name))
            .hint(format!("`firn forget {snapshot} --force` gives this snapshot up; then prune again"))
    }

    /// Whether the writer of a manifest that was seen pending still holds its lease. It took the lease before it put
    /// the manifest, so a lease that is missing in an earlier listing may be there now.
    fn is_written(&self, snapshot: Uuid, leases: &[LeaseSeen]) -> Result<bool> {
        if leases.iter().any(|lease| lease.snapshot == snapshot) {
            return Ok(true);
        }
        let objects = self.pool.blobs().store.list("lease")?;
        Ok(objects.iter().any(|object| names::parse_lease(&object.name).is_some_and(|(id, _)| id == snapshot)))
    }

    /// Removes a manifest whose writer is gone, unless it was confirmed after all. Answers whether it is no snapshot.
    fn abandon(&mut self, name: &SnapshotName) -> Result<bool> {
        let blobs = self.pool.blobs();
        if self.options.dry_run {
            self.report.abandoned += 1;
            return Ok(true);
        }
        if fate::decide(&blobs.store, &blobs.keys, name.2, Fate::Lost, self.pool.entropy())? == Fate::Confirmed {
            return Ok(false);
        }
        self.pool.remove_manifest(name)?;
        self.report.abandoned += 1;
        Ok(true)
    }

    /// Whether a tree is still needed by anything, for one that cannot be read: it may have been forgotten and swept
    /// by another prune since it was listed.
    pub(super) fn is_still_root(&mut self, tree: &Tree) -> Result<bool> {
        let mut roots = HashSet::new();
        self.add_snapshots(None, &mut BTreeSet::new(), &mut roots)?;
        let blobs = self.pool.blobs();
        roots.extend(lease::list(&blobs.store, &blobs.keys)?.iter().flat_map(|lease| &lease.trees));
        Ok(roots.contains(tree))
    }
}
