//! The pool: where snapshots are kept, deduplicated, compressed and encrypted, on an object store.
//!
//! A snapshot of a disk is the root of a tree of chunk ids; a manifest names the roots. So every snapshot is
//! full, every one after the first is incremental, and the difference of two is a walk of two trees. The bytes
//! of every object are drawn in `docs/format.md`.
//!
//! The way in: [`Pool::write_snapshot`] reads regions of a [`Disk`](firn_disk::Disk), cuts them into chunks,
//! seals what is new into packs, and publishes a manifest. The way out: [`Pool::disk`] gives a
//! [`PoolDisk`], which is a `Disk` like any other.
//!
//! All calls block. Object stores are asynchronous, so the pool owns a small runtime and never lets it out.

mod blobs;
mod chunker;
mod clock;
mod diff;
mod disk;
mod entropy;
mod fate;
mod fields;
mod header;
mod index;
mod key;
mod lease;
mod limits;
mod listing;
mod lock;
mod manifest;
#[allow(unsafe_code)]
mod mapping;
mod mutant;
mod names;
mod note;
mod object;
mod pack;
mod pool;
mod prune;
mod rebuild;
mod recut;
mod retention;
mod seal;
#[cfg(test)]
mod simulation;
mod snapshot;
mod store;
mod tombstone;
mod tree;
mod verify;

pub use chunker::CutParameters;
pub use disk::PoolDisk;
pub use entropy::{Entropy, SystemEntropy};
pub use key::{Credential, KeySlotInfo, NewCredential, RecoveryKey, Scope, SlotKind};
pub use limits::{Limits, WhenFull};
pub use listing::{Machine, Snapshot};
pub use lock::{Hold, Lock, Locks, Unlock};
pub use manifest::{Attachment, Consistency, DiskRecord, Manifest, SnapshotStatistics};
pub use pool::{InitOptions, OpenOptions, Pool, PoolInfo, PublicInfo, default_cache_folder};
pub use prune::{PruneOptions, PrunePhase, PruneProgress, PruneReport};
pub use retention::{Decision, KeepRules, retain};
pub use snapshot::{Changes, DiskInput, Published, SnapshotHooks, SnapshotOptions, SnapshotProgress};
pub use verify::{Depth, Problem, VerifyProgress, VerifyReport, scrub_location};
