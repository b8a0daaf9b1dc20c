//! Leases: what a writer holds while it writes, so that prune lets it live.
//!
//! `lease/<snapshot>-<n>` is put before the writer looks at anything. It names the trees that the snapshot builds on,
//! which prune takes for roots even if their snapshots are forgotten meanwhile. Number 0 stays until the lease is
//! released; the others follow one another: number 1 adds the tombstones that the writer found and so keeps off, and
//! each later one says again that the writer is alive. A lease that was not renewed for its life may be lost: prune then
//! decides the snapshot's [fate](crate::fate), and from there on the writer can never confirm, however late it wakes up.
//!
//! Sealed under the structure key; the AAD has the snapshot's UUID and the number. Fields: `1` life in seconds,
//! `2` (repeats) a tree: fields `1` length of the disk, `2` root (33 bytes); `3` ids of tombstones, 16 bytes each.

use crate::fate::{self, Fate};
use crate::fields::{FieldWriter, Fields};
use crate::key::Keys;
use crate::manifest::{open_structure, seal_structure};
use crate::names;
use crate::object::ObjectKind;
use crate::pool::Pool;
use crate::store::{Store, StoreTime};
use crate::tree::{self, Child};
use firn_disk::{Error, ErrorKind, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use uuid::Uuid;

const LIFE: u16 = 1;
const TREE: u16 = 2;
const KEEPS_OFF: u16 = 3;
/// A writer that did not renew its lease for so long may be taken for dead.
const LIFE_SECONDS: u64 = 3600;
/// A lease is renewed when so much time went by.
const RENEWAL: Duration = Duration::from_secs(LIFE_SECONDS / 6);
/// No writer may claim a longer life: a dead one would stop prune for as long.
const MOST_LIFE_SECONDS: u64 = 24 * 3600;

/// The root of a disk's tree, and the disk's length in bytes, which gives the tree its shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Tree {
    pub(crate) length: u64,
    pub(crate) root: Child,
}

/// What a lease says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Content {
    life_seconds: u64,
    trees: Vec<Tree>,
    keeps_off: BTreeSet<[u8; 16]>,
}

impl Content {
    fn to_fields(&self) -> Vec<u8> {
        let mut fields = FieldWriter::default();
        fields.u64(LIFE, self.life_seconds);
        for tree in &self.trees {
            let mut inner = FieldWriter::default();
            inner.u64(1, tree.length).bytes(2, &tree::child_to_bytes(tree.root));
            fields.bytes(TREE, &inner.finish());
        }
        let ids: Vec<u8> = self.keeps_off.iter().flatten().copied().collect();
        fields.bytes(KEEPS_OFF, &ids);
        fields.finish()
    }

    fn from_fields(bytes: &[u8]) -> Result<Self> {
        let fields = Fields::parse(bytes, "lease", &[])?;
        let tree = |bytes| {
            let fields = Fields::parse(bytes, "lease's tree", &[])?;
            Ok(Tree { length: fields.u64(1)?, root: tree::child_from_bytes(fields.array(2)?)? })
        };
        let ids = fields.bytes(KEEPS_OFF)?.chunks_exact(16);
        Ok(Self {
            life_seconds: fields.u64(LIFE)?,
            trees: fields.all(TREE).map(tree).collect::<Result<_>>()?,
            keeps_off: ids.filter_map(|id| id.try_into().ok()).collect(),
        })
    }
}

fn context(snapshot: Uuid, number: u64) -> Vec<u8> {
    [snapshot.as_bytes().as_slice(), &number.to_le_bytes()].concat()
}

fn read(store: &Store, keys: &Keys, snapshot: Uuid, number: u64) -> Result<Content> {
    let object = store.get(&names::lease(snapshot, number))?;
    Content::from_fields(&open_structure(keys, ObjectKind::Lease, &context(snapshot, number), &object)?)
}

/// Whether the object called `name` is a sound lease.
pub(crate) fn check(store: &Store, keys: &Keys, name: &str) -> Result<()> {
    let (snapshot, number) = names::parse_lease(name).ok_or_else(|| Error::corrupt("no lease has such a name"))?;
    read(store, keys, snapshot, number).map(|_| ())
}

/// The error of a writer whose lease was lost.
fn lost() -> Error {
    Error::new(
        ErrorKind::Unavailable,
        "this snapshot stood still for so long that `firn prune` took its writer for dead; there is no snapshot",
    )
    .hint("run the same command again; what was stored and is still there is used")
}

/// A lease that this process holds.
#[derive(Debug)]
pub(crate) struct Lease<'p> {
    pool: &'p Pool,
    snapshot: Uuid,
    held: Mutex<Held>,
}

#[derive(Debug)]
struct Held {
    content: Content,
    number: u64,
    /// When it was put or renewed last, by the clock that the caller passes.
    renewed: Duration,
}

impl<'p> Lease<'p> {
    /// Takes the lease for `snapshot`, which builds on `trees`. Whoever holds it looks for tombstones next, and says so
    /// by [`keep_off`](Self::keep_off).
    ///
    /// # Errors
    /// What the store says.
    pub(crate) fn take(pool: &'p Pool, snapshot: Uuid, trees: Vec<Tree>, now: Duration) -> Result<Self> {
        let content = Content { life_seconds: LIFE_SECONDS, trees, keeps_off: BTreeSet::new() };
        let lease = Self { pool, snapshot, held: Mutex::new(Held { content, number: 0, renewed: now }) };
        lease.put(&lease.lock())?;
        Ok(lease)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, held: &Held) -> Result<()> {
        let blobs = self.pool.blobs();
        let context = context(self.snapshot, held.number);
        let fields = held.content.to_fields();
        let object = seal_structure(&blobs.keys, ObjectKind::Lease, &context, &fields, self.pool.entropy())?;
        blobs.store.create_own(&names::lease(self.snapshot, held.number), &object.into())
    }

    /// Says which tombstones the writer found after it had taken the lease. It uses none of their packs, so prune need
    /// not wait for it.
    ///
    /// # Errors
    /// What the store says.
    pub(crate) fn keep_off(&self, tombstones: BTreeSet<[u8; 16]>) -> Result<()> {
        let mut held = self.lock();
        held.content.keeps_off = tombstones;
        held.number += 1;
        self.put(&held)
    }

    /// Renews the lease when it is time to. Many threads may call this often.
    ///
    /// # Errors
    /// `Unavailable` when it is lost; what the store says.
    pub(crate) fn keep(&self, now: Duration) -> Result<()> {
        let Ok(mut held) = self.held.try_lock() else { return Ok(()) };
        if now.saturating_sub(held.renewed) < RENEWAL {
            return Ok(());
        }
        self.check()?;
        held.number += 1;
        self.put(&held)?;
        held.renewed = now;
        // Number 0 tells how old the lease is.
        if held.number > 1 {
            self.pool.blobs().store.delete(&names::lease(self.snapshot, held.number - 1))
        } else {
            Ok(())
        }
    }

    /// # Errors
    /// `Unavailable` when prune took the writer for dead.
    pub(crate) fn check(&self) -> Result<()> {
        let blobs = self.pool.blobs();
        match fate::read(&blobs.store, &blobs.keys, self.snapshot)? {
            Some(Fate::Lost) => Err(lost()),
            _ => Ok(()),
        }
    }

    /// Decides that the snapshot is confirmed.
    ///
    /// # Errors
    /// `Unavailable` when it is lost. What the store says, and then it is decided that there is no snapshot, as far as
    /// the store lets that be decided.
    pub(crate) fn confirm(&self) -> Result<()> {
        let blobs = self.pool.blobs();
        let decide = |fate| fate::decide(&blobs.store, &blobs.keys, self.snapshot, fate, self.pool.entropy());
        match decide(Fate::Confirmed) {
            Ok(Fate::Confirmed) => Ok(()),
            Ok(_) => Err(lost()),
            Err(error) => match decide(Fate::Lost) {
                Ok(Fate::Confirmed) => Ok(()),
                _ => Err(error),
            },
        }
    }

    /// Gives the snapshot up, unless it is confirmed. Answers whether there will never be one.
    pub(crate) fn give_up(&self) -> bool {
        let blobs = self.pool.blobs();
        let decided = fate::decide(&blobs.store, &blobs.keys, self.snapshot, Fate::Lost, self.pool.entropy());
        matches!(decided, Ok(Fate::Lost))
    }

    /// Lets go of it. What cannot be removed now is removed by a later prune.
    pub(crate) fn release(&self) {
        let held = self.lock();
        let numbers = BTreeSet::from([held.number, held.number.saturating_sub(1).max(1), 0]);
        let names: Vec<_> = numbers.into_iter().rev().map(|number| names::lease(self.snapshot, number)).collect();
        let _ = self.pool.blobs().store.delete_all(&names);
    }
}

/// A lease as prune sees it.
#[derive(Debug, Clone)]
pub(crate) struct LeaseSeen {
    pub(crate) snapshot: Uuid,
    /// Its oldest object.
    pub(crate) taken: StoreTime,
    /// Its newest object.
    pub(crate) renewed: StoreTime,
    /// What it builds on.
    pub(crate) trees: Vec<Tree>,
    /// Tombstones that do not concern it; none where that cannot be read.
    pub(crate) keeps_off: BTreeSet<[u8; 16]>,
    life: Duration,
    pub(crate) objects: Vec<String>,
}

impl LeaseSeen {
    /// Whether the writer did not renew it for so long that it may be taken for dead.
    pub(crate) fn is_expired(&self, now: StoreTime) -> bool {
        now.since(self.renewed) > self.life
    }
}

/// Every lease there is. Where the newest object of one cannot be read an older one counts; where none can be, it keeps
/// off nothing and so stops prune until it expires.
///
/// # Errors
/// What the store says to the listing.
pub(crate) fn list(store: &Store, keys: &Keys) -> Result<Vec<LeaseSeen>> {
    let mut found: BTreeMap<Uuid, Vec<(u64, StoreTime, String)>> = BTreeMap::new();
    for object in store.list("lease")? {
        if let Some((snapshot, number)) = names::parse_lease(&object.name) {
            found.entry(snapshot).or_default().push((number, object.modified, object.name));
        }
    }
    let seen = |(snapshot, mut objects): (Uuid, Vec<(u64, StoreTime, String)>)| {
        objects.sort();
        let content = objects.iter().rev().find_map(|(number, ..)| read(store, keys, snapshot, *number).ok());
        let is_read = content.is_some();
        let content = content.unwrap_or_default();
        let times = || objects.iter().map(|(_, time, _)| *time);
        LeaseSeen {
            snapshot,
            taken: times().min().unwrap_or(StoreTime(i64::MIN)),
            renewed: times().max().unwrap_or(StoreTime(i64::MIN)),
            trees: content.trees,
            keeps_off: content.keeps_off,
            life: Duration::from_secs(if is_read { content.life_seconds.min(MOST_LIFE_SECONDS) } else { LIFE_SECONDS }),
            objects: objects.into_iter().map(|(.., name)| name).collect(),
        }
    };
    Ok(found.into_iter().map(seen).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::BlobId;

    #[test]
    fn what_a_lease_says_is_read_back() {
        let content = Content {
            life_seconds: 7,
            trees: vec![Tree { length: 5, root: Child::Node(BlobId([3; 32])) }, Tree { length: 0, root: Child::Hole }],
            keeps_off: BTreeSet::from([[1; 16], [2; 16]]),
        };
        let bytes = content.to_fields();
        assert_eq!(Content::from_fields(&bytes).unwrap(), content);
        (0..bytes.len()).for_each(|end| drop(Content::from_fields(&bytes[..end])));
    }
}
