//! Taking a snapshot: regions of disks in, packs, trees and a manifest out.
//!
//! ```text
//! region ── read ── cut ── name ── known? ── compress ──┐            (workers, one region each)
//!                                                       ├─ seal into a pack ── store ── index   (uploaders)
//! leaf of the region ───────────────────────────────────┘
//! ```
//! Order of durability: packs, then the index segment that names them, then the manifest, then its confirmation. A
//! snapshot exists when that is there; whatever happens before costs nothing but space, and what is in the index by then
//! is used by the next attempt. How that goes together with prune stands in [`publish`].

mod publish;
mod region;
mod session;

use crate::disk::PoolDisk;
use crate::lease::Lease;
use crate::manifest::{Attachment, Consistency, DiskRecord, Manifest, SnapshotStatistics};
use crate::mutant::Mutant;
use crate::names;
use crate::pool::Pool;
use crate::seal::BlobType;
use crate::tree::{self, Child, FAN_OUT};
use firn_disk::{Disk, Error, ErrorKind, Result};
use jiff::Timestamp;
use region::RegionWorker;
use session::{Session, Terms};
use std::collections::{BTreeSet, HashSet};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use uuid::Uuid;

/// More disks than any machine has.
const MOST_DISKS: usize = 1024;
/// Attachments are small files.
const MOST_ATTACHMENT_BYTES: usize = 16 << 20;
/// Remarks are lines for people.
const MOST_REMARKS: usize = 256;
const MOST_REMARK_BYTES: usize = 64 << 10;

/// Which bytes of a disk may differ from what the pool has.
#[derive(Debug)]
pub enum Changes<'a> {
    /// All: the whole disk is read.
    All,
    /// Those in `ranges`, and no other, since `base` was taken. Only they are read.
    Since {
        /// The same disk in an earlier snapshot of this pool.
        base: &'a DiskRecord,
        /// Ranges of bytes in any order; what the disk has beyond the length of `base` counts as changed, too.
        ranges: &'a [Range<u64>],
    },
}

/// A disk to be taken into a snapshot.
#[derive(Debug)]
pub struct DiskInput<'a> {
    /// `vda` and so on, unique in its snapshot.
    pub name: String,
    /// The disk, which must not change while it is read.
    pub disk: &'a dyn Disk,
    /// What of it has to be read.
    pub changes: Changes<'a>,
    /// Where it comes from, for people.
    pub source: String,
    /// What the source calls this state.
    pub generation: Option<String>,
}

/// What else is said of a snapshot.
#[derive(Debug)]
pub struct SnapshotOptions {
    /// The instant that the snapshot shows.
    pub created: Timestamp,
    /// What can be said of that state.
    pub consistency: Consistency,
    /// How long the guest was frozen, in milliseconds.
    pub frozen_milliseconds: Option<u64>,
    /// Machines that were taken together share this.
    pub group: Option<Uuid>,
    /// Small files kept with it.
    pub attachments: Vec<Attachment>,
    /// What has to be known of how it was taken, a line each; at most 256 lines of 64 KiB.
    pub remarks: Vec<String>,
}

/// What is going on, for those who watch; and the way to stop it.
#[derive(Debug, Default)]
pub struct SnapshotProgress {
    /// Bytes of the disks that are done with, holes included.
    pub bytes_done: AtomicU64,
    /// Bytes read from the source.
    pub bytes_read: AtomicU64,
    /// Bytes of those that are neither hole nor zero.
    pub bytes_data: AtomicU64,
    /// Bytes that went into packs.
    pub bytes_stored: AtomicU64,
    /// Set it to stop: the call ends with `Interrupted`, and what was stored is used next time.
    pub cancel: Arc<AtomicBool>,
}

impl SnapshotProgress {
    /// # Errors
    /// `Interrupted` when the user asked to stop.
    fn go_on(&self) -> Result<()> {
        if self.cancel.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Interrupted, "stopped before the snapshot was complete")
                .hint("run the same command again; what was stored already is used"));
        }
        Ok(())
    }
}

/// What the caller gives along: eyes, a clock, and a last word.
#[derive(Clone, Copy)]
pub struct SnapshotHooks<'a> {
    /// Filled in while the snapshot is taken.
    pub progress: &'a SnapshotProgress,
    /// The time since some moment, for the statistics and so that the snapshot says now and then that it is alive.
    pub elapsed: &'a (dyn Fn() -> Duration + Sync),
    /// Called when everything is stored and before the snapshot exists: an error here, as that the source was written
    /// to meanwhile, and there is none.
    pub before_publish: &'a dyn Fn() -> Result<()>,
}

/// A snapshot that was just taken.
#[derive(Debug, Clone)]
pub struct Published {
    /// Its manifest.
    pub manifest: Manifest,
}

impl Pool {
    /// Takes a snapshot of `machine`, which is made when there is none of that name.
    ///
    /// Blocks until the snapshot is durable.
    ///
    /// # Errors
    /// `Invalid` for bad names or duplicate disks, `Denied` for a pool or key that cannot write, `Interrupted`,
    /// and what source, store and hooks say. After an error there is no snapshot, and all earlier ones are as they were.
    pub fn write_snapshot(
        &self,
        machine: &str,
        disks: &[DiskInput<'_>],
        options: SnapshotOptions,
        hooks: SnapshotHooks<'_>,
    ) -> Result<Published> {
        check_inputs(disks, &options)?;
        self.writable()?;
        let started = (hooks.elapsed)();
        let machine_uuid = self.machine_named(machine)?;
        let snapshot = self.random_uuid()?;
        let trees = disks.iter().filter_map(|input| match &input.changes {
            Changes::Since { base, .. } if !self.mutates(Mutant::BaseNotInLease) => Some(base.tree()),
            _ => None,
        });
        let early = if self.mutates(Mutant::LookBeforeLease) { Some(self.reconcile_packs()?) } else { None };
        let lease = Lease::take(self, snapshot, trees.collect(), started)?;
        let written = self.write_under(&lease, early, (machine, machine_uuid, snapshot), disks, options, hooks);
        lease.release();
        written.map(|manifest| Published { manifest })
    }

    /// Stores and publishes; the caller holds the lease until this is over.
    fn write_under(
        &self,
        lease: &Lease<'_>,
        early: Option<(BTreeSet<[u8; 16]>, u64)>,
        (machine_name, machine, snapshot): (&str, Uuid, Uuid),
        disks: &[DiskInput<'_>],
        options: SnapshotOptions,
        hooks: SnapshotHooks<'_>,
    ) -> Result<Manifest> {
        let SnapshotHooks { progress, elapsed, before_publish } = hooks;
        let started = elapsed();
        let (tombstones, pack_bytes) = early.map_or_else(|| self.reconcile_packs(), Ok)?;
        lease.keep_off(tombstones)?;
        self.check_bases(machine, disks)?;
        self.complete_copies(&format!("snap/{}", machine.simple()))?;
        let room = self.make_room(pack_bytes)?;
        let manifest = |records| -> Result<Manifest> {
            let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
            let statistics = SnapshotStatistics {
                bytes_read: count(&progress.bytes_read),
                bytes_stored: count(&progress.bytes_stored),
                milliseconds: u64::try_from((elapsed() - started).as_millis()).unwrap_or(u64::MAX),
                bytes_data: count(&progress.bytes_data),
            };
            Ok(Manifest {
                machine,
                machine_name: machine_name.to_owned(),
                snapshot,
                sequence: self.next_sequence(machine)?,
                created: options.created,
                consistency: options.consistency,
                frozen_milliseconds: options.frozen_milliseconds,
                group: options.group,
                disks: records,
                attachments: options.attachments.clone(),
                statistics,
                remarks: options.remarks.clone(),
            })
        };
        let terms = Terms { lease, room: &room, elapsed };
        let (records, used) = Session::run(self, terms, progress, |session| {
            let records = self.store_disks(session, disks, progress)?;
            if self.mutates(Mutant::ManifestBeforePacks) {
                self.publish(&manifest(records.clone())?, lease, &HashSet::new())?;
            }
            Ok(records)
        })?;
        let manifest = manifest(records)?;
        progress.go_on()?;
        before_publish()?;
        if !self.mutates(Mutant::ManifestBeforePacks) {
            self.publish(&manifest, lease, &used)?;
        }
        Ok(manifest)
    }

    fn next_sequence(&self, machine: Uuid) -> Result<u64> {
        let objects = self.blobs().store.list(&format!("snap/{}", machine.simple()))?;
        let sequences = objects.iter().filter_map(|object| names::parse_manifest(&object.name));
        Ok(sequences.map(|(_, sequence, ..)| sequence).max().map_or(1, |last| last.saturating_add(1)))
    }

    fn store_disks(
        &self,
        session: &Session<'_>,
        disks: &[DiskInput<'_>],
        progress: &SnapshotProgress,
    ) -> Result<Vec<DiskRecord>> {
        let record = |input: &DiskInput<'_>| {
            let leaves = store_leaves(self, session, input, progress)?;
            Ok(DiskRecord {
                name: input.name.clone(),
                length: input.disk.len(),
                logical_block_size: input.disk.logical_block_size(),
                root: store_inner_nodes(session, leaves)?,
                source: input.source.clone(),
                generation: input.generation.clone(),
            })
        };
        disks.iter().map(record).collect()
    }
}

fn check_inputs(disks: &[DiskInput<'_>], options: &SnapshotOptions) -> Result<()> {
    if disks.is_empty() || disks.len() > MOST_DISKS {
        return Err(Error::invalid(format!("a snapshot has 1 to {MOST_DISKS} disks, not {}", disks.len())));
    }
    for (number, input) in disks.iter().enumerate() {
        crate::listing::check_name(&input.name, "disk")?;
        if disks[..number].iter().any(|other| other.name == input.name) {
            return Err(
                Error::invalid(format!("two disks are called {}", input.name)).hint("give each its own NAME=FILE")
            );
        }
        if !matches!(input.disk.logical_block_size(), 512 | 4096) {
            let size = input.disk.logical_block_size();
            return Err(Error::unsupported(format!("disk {} has sectors of {size} bytes", input.name)));
        }
    }
    if options.remarks.len() > MOST_REMARKS || options.remarks.iter().any(|line| line.len() > MOST_REMARK_BYTES) {
        return Err(Error::invalid(format!("a snapshot has at most {MOST_REMARKS} remarks of at most 64 KiB each")));
    }
    for (number, attachment) in options.attachments.iter().enumerate() {
        if options.attachments[..number].iter().any(|other| other.name == attachment.name) {
            return Err(Error::invalid(format!(
                "two files called {:?} cannot be kept with one snapshot",
                attachment.name
            ))
            .hint("rename one of them"));
        }
        if attachment.bytes.len() > MOST_ATTACHMENT_BYTES {
            return Err(Error::invalid(format!(
                "{} is larger than 16 MiB, too large to be kept with a snapshot",
                attachment.name
            )));
        }
        if attachment.name.is_empty() || attachment.name.contains(['/', '\0']) || attachment.name.starts_with('.') {
            return Err(Error::invalid(format!("{:?} is no name for a file kept with a snapshot", attachment.name))
                .hint("give it a name that does not begin with a dot"));
        }
    }
    Ok(())
}

/// Stores every region of a disk, a worker a core and one more, and gathers what stands for each.
fn store_leaves(
    pool: &Pool,
    session: &Session<'_>,
    input: &DiskInput<'_>,
    progress: &SnapshotProgress,
) -> Result<Vec<Child>> {
    let length = input.disk.len();
    let count = tree::region_count(length);
    let absurd = || Error::unsupported(format!("disk {} is too long: {length} bytes", input.name));
    let mut leaves = Vec::new();
    leaves.try_reserve_exact(usize::try_from(count).map_err(|_| absurd())?).map_err(|_| absurd())?;
    leaves.resize(usize::try_from(count).map_err(|_| absurd())?, Child::Hole);
    let base = match &input.changes {
        Changes::All => None,
        Changes::Since { base, ranges } => Some((pool.disk(base), dirty_ranges(base, ranges, length))),
    };
    let base = base.as_ref().map(|(disk, ranges)| (disk as &PoolDisk, ranges.as_slice()));
    let (leaves, next) = (Mutex::new(leaves), AtomicU64::new(0));
    let work = || -> Result<()> {
        let mut worker = RegionWorker::new(session, input.disk, base, progress)?;
        loop {
            let region = next.fetch_add(1, Ordering::Relaxed);
            if region >= count || session.has_failed() {
                return Ok(());
            }
            progress.go_on()?;
            session.terms.keep_lease()?;
            let child = worker.store(region)?;
            let mut leaves = leaves.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(leaf) = usize::try_from(region).ok().and_then(|region| leaves.get_mut(region)) {
                *leaf = child;
            }
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..session::worker_count(pool))
            .map(|_| {
                scope.spawn(|| {
                    work().inspect_err(|_| {
                        // Nobody starts another region.
                        next.store(u64::MAX / 2, Ordering::Relaxed);
                    })
                })
            })
            .collect();
        workers.into_iter().try_for_each(|worker| {
            worker.join().unwrap_or_else(|_| Err(Error::new(ErrorKind::Io, "a worker of the snapshot panicked")))
        })
    })?;
    session.check()?;
    Ok(leaves.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// Sorted, joined, clipped to the disk; what the disk has beyond its base is dirty, and so is the base's last,
/// partly filled block.
fn dirty_ranges(base: &DiskRecord, ranges: &[Range<u64>], length: u64) -> Vec<Range<u64>> {
    let mut dirty: Vec<_> = ranges.iter().map(|range| range.start..range.end.min(length)).collect();
    if base.length != length {
        let from = base.length.min(length);
        // A shorter disk ends a region earlier: that region's runs change, its bytes do not.
        dirty.push(from.saturating_sub(1)..length);
    }
    dirty.retain(|range| !range.is_empty());
    dirty.sort_unstable_by_key(|range| range.start);
    let mut joined: Vec<Range<u64>> = Vec::with_capacity(dirty.len());
    for range in dirty {
        match joined.last_mut() {
            Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

/// Stores the inner nodes above the leaves, level by level.
fn store_inner_nodes(session: &Session<'_>, mut children: Vec<Child>) -> Result<Child> {
    let fan_out = usize::try_from(FAN_OUT).unwrap_or(usize::MAX);
    while children.len() > 1 {
        let store = |group: &[Child]| match tree::encode_inner(group) {
            Ok(bytes) => Ok(Child::Node(session.store_node(BlobType::Inner, &bytes)?)),
            Err(uniform) => Ok(uniform),
        };
        children = children.chunks(fan_out).map(store).collect::<Result<_>>()?;
    }
    Ok(children.first().copied().unwrap_or(Child::Hole))
}
