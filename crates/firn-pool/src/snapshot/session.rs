//! A session of writing: packs that fill up, threads that store them, index segments that name them.

use super::SnapshotProgress;
use crate::index::{Index, SegmentBuilder};
use crate::lease::Lease;
use crate::limits::Room;
use crate::mutant::Mutant;
use crate::names::{PackId, PackKind};
use crate::pack::{self, FinishedPack, PackBuilder};
use crate::pool::Pool;
use crate::seal::{BlobId, BlobType, Compressor};
use firn_disk::{Error, ErrorKind, Result};
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Threads that store packs. Two keep a disk busy while one waits for its fsync.
const UPLOADERS: usize = 2;
/// A segment is written after so many packs, so that a killed snapshot's work is found again.
const SEGMENT_PACKS: usize = 64;
/// zstd level for everything; see `docs/design/0001-where-to-cut.md`.
const LEVEL: i32 = 3;

/// How many regions are worked on at once: one more than there are cores, as one of them waits for its source.
pub(super) fn worker_count(pool: &Pool) -> usize {
    if pool.is_simulated() {
        return 1;
    }
    // Each holds a region of 16 MiB and what it compresses to.
    std::thread::available_parallelism().map_or(2, usize::from).saturating_add(1).clamp(2, 5)
}

/// What a worker has made of a new blob.
#[derive(Debug)]
pub(super) struct NewBlob {
    pub(super) kind: BlobType,
    pub(super) id: BlobId,
    /// Where its plain form lies in the worker's buffer.
    pub(super) plain: std::ops::Range<usize>,
}

/// Under what a session writes.
#[derive(Clone, Copy)]
pub(crate) struct Terms<'a> {
    pub(crate) lease: &'a Lease<'a>,
    pub(crate) room: &'a Room,
    /// The time since some moment.
    pub(crate) elapsed: &'a (dyn Fn() -> Duration + Sync),
}

impl std::fmt::Debug for Terms<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Terms").field("lease", self.lease).field("room", self.room).finish_non_exhaustive()
    }
}

impl Terms<'_> {
    /// Renews the lease when it is time to.
    ///
    /// # Errors
    /// `Unavailable` when it is lost.
    pub(crate) fn keep_lease(&self) -> Result<()> {
        self.lease.keep((self.elapsed)())
    }
}

/// One run of writing into the pool.
#[derive(Debug)]
pub(crate) struct Session<'p> {
    pub(super) pool: &'p Pool,
    pub(super) terms: Terms<'p>,
    progress: &'p SnapshotProgress,
    open_packs: [Mutex<Option<PackBuilder>>; 2],
    /// Blobs that some worker of this session stores; they are not in the index yet.
    claimed: Mutex<HashSet<[u8; 16]>>,
    /// Packs that what is written here stands in, those that were there before as well as new ones.
    used: Mutex<HashSet<PackId>>,
    uploads: Mutex<Option<SyncSender<FinishedPack>>>,
    /// Packs that are stored but in no segment yet, with the claims to give up when they are.
    stored: Mutex<(SegmentBuilder, Vec<[u8; 16]>)>,
    failed: AtomicBool,
    failure: Mutex<Option<Error>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<'p> Session<'p> {
    /// Runs `work`; afterwards everything it stored is durable and in the index, also when it failed. Answers the packs
    /// that hold what was written, too.
    pub(crate) fn run<T>(
        pool: &'p Pool,
        terms: Terms<'p>,
        progress: &'p SnapshotProgress,
        work: impl FnOnce(&Self) -> Result<T>,
    ) -> Result<(T, HashSet<PackId>)> {
        let (sender, receiver) = sync_channel(1);
        let session = Self {
            pool,
            terms,
            progress,
            open_packs: [Mutex::default(), Mutex::default()],
            claimed: Mutex::default(),
            used: Mutex::default(),
            uploads: Mutex::new(Some(sender)),
            stored: Mutex::default(),
            failed: AtomicBool::new(false),
            failure: Mutex::default(),
        };
        let receiver = Mutex::new(receiver);
        let result = std::thread::scope(|scope| {
            for _ in 0..if pool.is_simulated() { 0 } else { UPLOADERS } {
                scope.spawn(|| session.upload_all(&receiver));
            }
            let result = work(&session);
            let flushed = session.finish_packs();
            // Closing the channel ends the uploaders.
            drop(lock(&session.uploads).take());
            result.and_then(|value| flushed.map(|()| value))
        });
        // What was stored is made known even when the work failed: the next attempt uses it.
        let indexed = session.publish_segment();
        session.check()?;
        let value = result?;
        indexed.map(|()| (value, std::mem::take(&mut *lock(&session.used))))
    }

    fn index(&self) -> &Index {
        &self.pool.blobs().index
    }

    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// # Errors
    /// The first failure of an uploader.
    pub(super) fn check(&self) -> Result<()> {
        match &*lock(&self.failure) {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }

    fn fail(&self, error: Error) {
        lock(&self.failure).get_or_insert(error);
        self.failed.store(true, Ordering::Relaxed);
    }

    /// Whether the caller has to store this blob: it is neither in the pool nor claimed by another worker.
    pub(super) fn claim(&self, id: &BlobId) -> Result<bool> {
        let prefix = id.prefix();
        // The claim is looked at first: it is given up only after the index has the blob.
        if lock(&self.claimed).contains(&prefix) {
            return Ok(false);
        }
        if let Some(location) = self.index().find_usable(id)? {
            lock(&self.used).insert(location.pack);
            return Ok(false);
        }
        Ok(lock(&self.claimed).insert(prefix))
    }

    /// Seals what a worker compressed; neighbours stay neighbours.
    pub(super) fn append(&self, kind: PackKind, blobs: &[NewBlob], plain: &[u8]) -> Result<()> {
        let mut open = lock(&self.open_packs[kind as usize]);
        for blob in blobs {
            let plain = plain.get(blob.plain.clone()).unwrap_or_default();
            if open.as_ref().is_some_and(|pack| pack.is_full_for(plain.len()))
                && let Some(full) = open.take()
            {
                self.upload(full.finish())?;
            }
            let pack = match &mut *open {
                Some(pack) => pack,
                None => open.insert(PackBuilder::new(&self.pool.blobs().keys, kind, self.pool.entropy())?),
            };
            pack.append(blob.kind, blob.id, plain)?;
        }
        Ok(())
    }

    /// Stores a tree node, unless it is in the pool.
    pub(super) fn store_node(&self, kind: BlobType, content: &[u8]) -> Result<BlobId> {
        let id = BlobId::of(&self.pool.blobs().keys.full()?.id, kind, content);
        if self.claim(&id)? {
            let mut plain = Vec::with_capacity(content.len() + 1);
            Compressor::new(LEVEL)?.append_plain(content, &mut plain);
            let blob = NewBlob { kind, id, plain: 0..plain.len() };
            self.append(kind.pack_kind(), &[blob], &plain)?;
        }
        Ok(id)
    }

    pub(super) fn compressor() -> Result<Compressor> {
        Compressor::new(LEVEL)
    }

    fn finish_packs(&self) -> Result<()> {
        for open in &self.open_packs {
            if let Some(pack) = lock(open).take() {
                self.upload(pack.finish())?;
            }
        }
        Ok(())
    }

    /// Hands a pack to the uploaders; waits while they are busy.
    fn upload(&self, pack: FinishedPack) -> Result<()> {
        self.check()?;
        if self.pool.is_simulated() {
            return self.store_pack(pack);
        }
        let gone = || Error::new(ErrorKind::Io, "the threads that store packs are gone");
        let sender = lock(&self.uploads).clone().ok_or_else(gone)?;
        sender.send(pack).map_err(|_| gone())
    }

    fn upload_all(&self, packs: &Mutex<Receiver<FinishedPack>>) {
        loop {
            let pack = lock(packs).recv();
            let Ok(pack) = pack else { return };
            // After a failure the channel is only emptied, so that no worker waits for ever.
            if !self.has_failed()
                && let Err(error) = self.store_pack(pack)
            {
                self.fail(error);
            }
        }
    }

    fn store_pack(&self, mut pack: FinishedPack) -> Result<()> {
        self.terms.keep_lease()?;
        let size = pack.bytes.len() as u64;
        let stored_size = size * pack.kind.copies().len() as u64;
        self.terms.room.take(self.pool, stored_size)?;
        lock(&self.used).insert(pack.id);
        let add = || {
            let mut stored = lock(&self.stored);
            stored.0.add(pack.kind, pack.id, size, &pack.entries);
            stored.1.extend(pack.entries.iter().map(|entry| entry.id.prefix()));
            stored.0.pack_count() >= SEGMENT_PACKS
        };
        let bytes = bytes::Bytes::from(std::mem::take(&mut pack.bytes));
        if self.pool.mutates(Mutant::IndexBeforePack) {
            add();
            self.publish_segment()?;
            return pack::store(&self.pool.blobs().store, pack.kind, pack.id, &bytes);
        }
        pack::store(&self.pool.blobs().store, pack.kind, pack.id, &bytes)?;
        self.progress.bytes_stored.fetch_add(stored_size, Ordering::Relaxed);
        if add() { self.publish_segment() } else { Ok(()) }
    }

    fn publish_segment(&self) -> Result<()> {
        let (builder, claims) = std::mem::take(&mut *lock(&self.stored));
        if builder.is_empty() {
            return Ok(());
        }
        let id = crate::entropy::random_bytes(self.pool.entropy())?;
        let blobs = self.pool.blobs();
        self.index().publish(&blobs.store, id, builder, blobs.keys.domain)?;
        let mut claimed = lock(&self.claimed);
        for claim in &claims {
            claimed.remove(claim);
        }
        Ok(())
    }
}
