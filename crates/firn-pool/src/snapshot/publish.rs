//! From what is stored to a snapshot, in two phases, with prune at work beside it.
//!
//! ```text
//! writer   lease ─ look for tombstones ─ store ─ manifest, pending ─ look again ─ confirmed ─ lease back
//! prune      mark ─ tombstones ─ look at leases and snapshots, mark again ─ doomed ─ delete
//! ```
//! Both sides write, then look. A tombstone that was put before the lease is seen by the writer, who keeps off its packs
//! and says so in the lease. One that was put later finds the lease, and is not doomed before that has ended: then the
//! snapshot is confirmed, and the mark that follows finds it, or it is lost and never will be confirmed, as confirmed and
//! lost are one object that only one of both can create. No step depends on anybody's clock.
//!
//! The writer undoes tombstones over what it used. It need not, for the next mark would; but so other writers may use
//! those packs at once.

use super::{Changes, DiskInput};
use crate::fate::{self, Fate};
use crate::lease::Lease;
use crate::listing::{SnapshotName, Standing};
use crate::manifest::{Manifest, seal_structure};
use crate::mutant::Mutant;
use crate::names::{self, Copy, PackId};
use crate::object::ObjectKind;
use crate::pool::Pool;
use crate::tombstone;
use firn_disk::{Error, ErrorKind, Result};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use uuid::Uuid;

impl Pool {
    /// Makes `manifest` a snapshot. `used` are the packs that it needs beside those of its bases.
    ///
    /// # Errors
    /// `Unavailable` when the lease is lost; what the store says. Then there is no snapshot.
    pub(super) fn publish(&self, manifest: &Manifest, lease: &Lease<'_>, used: &HashSet<PackId>) -> Result<()> {
        let blobs = self.blobs();
        let name = (manifest.machine, manifest.sequence, manifest.snapshot);
        let published = self.put_manifest(manifest).and_then(|()| {
            if !self.mutates(Mutant::ConfirmLostLease) {
                lease.check()?;
            }
            self.undo_tombstones(used)?;
            if self.mutates(Mutant::ReleaseBeforeConfirm) {
                lease.release();
            }
            if self.mutates(Mutant::ConfirmLostLease) {
                blobs.store.delete_all(&Copy::BOTH.map(|copy| names::fate(manifest.snapshot, copy)))?;
            }
            lease.confirm()?;
            // After a very long sleep not even the word that it was lost is left; but the manifest went before that.
            let is_there = blobs.store.exists(&names::manifest(name.0, name.1, name.2, Copy::A))?;
            // Somebody may have seen and forgotten it already.
            if is_there || self.is_forgotten(manifest.snapshot)? {
                return Ok(());
            }
            Err(Error::new(ErrorKind::Unavailable, "the snapshot was removed while it was being published"))
        });
        // In a full store there may be no room to say so; but if nothing is decided, nobody but this writer would confirm.
        let is_given_up =
            || lease.give_up() || matches!(fate::read(&blobs.store, &blobs.keys, manifest.snapshot), Ok(None));
        if published.is_err() && is_given_up() && self.remove_manifest(&name).is_ok() {
            // Nobody is left who could confirm it.
            let _ = blobs.store.delete_all(&[Copy::B, Copy::A].map(|copy| names::fate(manifest.snapshot, copy)));
        }
        published
    }

    fn put_manifest(&self, manifest: &Manifest) -> Result<()> {
        let blobs = self.blobs();
        let fields = manifest.to_fields()?;
        let kind = ObjectKind::Manifest;
        let object = seal_structure(&blobs.keys, kind, &manifest.context(), &fields, self.entropy())?;
        let name = |copy| names::manifest(manifest.machine, manifest.sequence, manifest.snapshot, copy);
        blobs.store.create_both(Copy::BOTH.map(name), &object.into())
    }

    /// Undoes every tombstone over one of `used`.
    ///
    /// # Errors
    /// `Unavailable` when one of them is being deleted, which cannot happen while the lease lives.
    fn undo_tombstones(&self, used: &HashSet<PackId>) -> Result<()> {
        let blobs = self.blobs();
        for tombstone in tombstone::list(&blobs.store, &blobs.keys)?.sound {
            if !tombstone.packs.iter().any(|(_, pack)| used.contains(pack)) {
                continue;
            }
            let fate = fate::decide_tombstone(&blobs.store, &blobs.keys, tombstone.id, Fate::Undone, self.entropy())?;
            if fate != Fate::Undone {
                return Err(Error::new(ErrorKind::Unavailable, "prune deletes what this snapshot was built on")
                    .hint("run the same command again"));
            }
        }
        Ok(())
    }

    /// Whether what the disks build on is in a snapshot now that the lease stands, which keeps it from here on.
    ///
    /// # Errors
    /// `NotFound` when it was forgotten.
    pub(super) fn check_bases(&self, machine: Uuid, disks: &[DiskInput<'_>]) -> Result<()> {
        let mut missing: Vec<_> = disks
            .iter()
            .filter_map(|input| match &input.changes {
                Changes::Since { base, .. } => Some(base.tree()),
                Changes::All => None,
            })
            .collect();
        if missing.is_empty() || self.mutates(Mutant::BaseNotInLease) {
            return Ok(());
        }
        // Nearly always it is in the last snapshot of the same machine.
        for folder in [format!("snap/{}", machine.simple()), "snap".to_owned()] {
            let names: Vec<_> = self.snapshot_names(&folder)?.into_iter().rev().collect();
            for names in names.chunks(16) {
                let standings = self.standings(names)?;
                let published =
                    names.iter().zip(standings).filter(|(_, (standing, _))| *standing == Standing::Published);
                let published: Vec<SnapshotName> = published.map(|(name, _)| *name).collect();
                for manifest in self.read_manifests(&published).into_iter().flatten() {
                    missing.retain(|tree| manifest.disks.iter().all(|disk| disk.tree() != *tree));
                }
                if missing.is_empty() {
                    return Ok(());
                }
            }
        }
        Err(Error::not_found("the snapshot that this one builds on is not in the pool any more")
            .hint("take it again; the disk is then read whole"))
    }

    /// Completes what is stored twice and lacks one copy, as a writer that was killed leaves it: the manifests of
    /// snapshots below a folder, and their fates.
    ///
    /// # Errors
    /// What the store says.
    pub(crate) fn complete_copies(&self, folder: &str) -> Result<u64> {
        let blobs = self.blobs();
        let mut copies: BTreeMap<SnapshotName, BTreeSet<Copy>> = BTreeMap::new();
        for object in blobs.store.list(folder)? {
            if let Some((machine, sequence, snapshot, copy)) = names::parse_manifest(&object.name) {
                copies.entry((machine, sequence, snapshot)).or_default().insert(copy);
            }
        }
        let mut fates: BTreeMap<Uuid, BTreeSet<Copy>> = BTreeMap::new();
        for (snapshot, copy) in blobs.store.list("fate")?.iter().filter_map(|object| names::parse_fate(&object.name)) {
            fates.entry(snapshot).or_default().insert(copy);
        }
        let is_half = |(name, copies): &(&SnapshotName, &BTreeSet<Copy>)| {
            fates.get(&name.2).is_some_and(|fates| fates.len() == 1 || copies.len() == 1)
        };
        let halves: Vec<SnapshotName> = copies.iter().filter(is_half).map(|(name, _)| *name).collect();
        let mut completed = 0;
        for (name, (standing, _)) in halves.iter().zip(self.standings(&halves)?) {
            if standing != Standing::Published {
                continue;
            }
            let both = |name: &dyn Fn(Copy) -> String| Copy::BOTH.map(name);
            completed += u64::from(self.complete(&both(&|copy| names::manifest(name.0, name.1, name.2, copy)))?);
            completed += u64::from(self.complete(&both(&|copy| names::fate(name.2, copy)))?);
        }
        Ok(completed)
    }

    /// Puts the one of two copies that is missing. Answers whether one was.
    fn complete(&self, names: &[String; 2]) -> Result<bool> {
        let store = &self.blobs().store;
        let (missing, present) = match (store.exists(&names[0])?, store.exists(&names[1])?) {
            (false, true) => (&names[0], &names[1]),
            (true, false) => (&names[1], &names[0]),
            _ => return Ok(false),
        };
        match store.get(present) {
            Ok(bytes) if crate::object::checksum_of_any_holds(&bytes) => match store.create_object(missing, bytes) {
                Ok(()) => Ok(true),
                // Somebody else was faster.
                Err(error) if error.kind() == ErrorKind::Exists => Ok(false),
                Err(error) => Err(error),
            },
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            // Forgotten meanwhile, or damaged: a damaged copy is not to be copied.
            _ => Ok(false),
        }
    }
}
