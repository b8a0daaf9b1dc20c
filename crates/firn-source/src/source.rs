//! [`Source`]: what every kind of source does, step by step.
//!
//! ```text
//!   plan      looks, changes nothing                                 may fail, may be slow
//!   prepare   removes leftovers, makes what the cut needs            may fail, may be slow
//!   cut       the instant: nothing else, while the guest is frozen   milliseconds
//!   open      the frozen disks, and what changed on them             after the thaw
//!   check     whether the frozen copy is still whole                 before the snapshot is published
//!   finish    removes all that was made; keeps what the next one needs
//! ```
//! Whoever dies between `prepare` and `finish` leaves things behind; they carry [`Request::owner`] in their names, so
//! that [`Source::sweep`] finds them: in the watchdog at once, and in the next `prepare`.

use crate::quiesce::{Guest, Ticket};
use firn_disk::{Error, Result, SharedDisk};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt::Debug;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

/// Whose snapshot it is, and what the pool already has of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The machine's name in the pool: `[A-Za-z0-9][A-Za-z0-9._-]*`.
    pub machine: String,
    /// 16 hexadecimal digits that tell this pool and machine from all others. They stand in the name of whatever a
    /// source makes.
    pub owner: String,
    /// 8 hexadecimal digits, random, of this run: new names end in them.
    pub run: String,
    /// The disks of the machine's last snapshot in this pool; empty where there is none.
    #[serde(default)]
    pub previous: Vec<PreviousDisk>,
    /// Where scratch files are made, if the user said.
    pub scratch_folder: Option<PathBuf>,
}

/// A disk of the last snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreviousDisk {
    /// `vda` and so on.
    pub name: String,
    /// Length in bytes.
    pub length: u64,
    /// The URI of the source that it was taken from.
    pub source: String,
    /// What that source called the state.
    pub generation: Option<String>,
}

/// What a snapshot would take, and how.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// The disks that are there now.
    pub disks: Vec<PlannedDisk>,
    /// What would be done, in order, a line each, for people.
    pub steps: Vec<String>,
    /// What the user should know before it is done: an image that is marked as corrupt.
    pub warnings: Vec<String>,
    /// Small files that are kept with the snapshot: domain XML, NVRAM.
    pub attachments: Vec<Attachment>,
}

/// A disk that a snapshot would take.
#[derive(Debug, Clone)]
pub struct PlannedDisk {
    /// `vda` and so on, unique within the source.
    pub name: String,
    /// Length in bytes.
    pub length: u64,
    /// Bytes that changed since the last snapshot, as far as the source can tell beforehand.
    pub dirty_bytes: Option<u64>,
    /// Why all of it would be read, where it would.
    pub why_all: Option<String>,
}

/// A small file kept with the snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// File name, without a folder.
    pub name: String,
    /// Its content, at most 16 MiB.
    pub bytes: Vec<u8>,
}

/// A disk at the instant of the cut.
#[derive(Debug)]
pub struct FrozenDisk {
    /// As in the [`Plan`].
    pub name: String,
    /// It does not change while it is read.
    pub disk: SharedDisk,
    /// What has to be read of it.
    pub changed: Changed,
    /// What the source calls this state, for the next snapshot's [`PreviousDisk::generation`].
    pub generation: Option<String>,
    /// The URI that finds this disk again; for people, and for [`PreviousDisk::source`].
    pub source: String,
}

/// What changed on a disk since the snapshot that [`Request::previous`] tells of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changed {
    /// Nobody knows: all of it is read. The reason is for people: `there is no dirty bitmap yet`.
    Unknown(String),
    /// These ranges of bytes, in any order, and no others; what lies beyond the old length need not be named.
    Since(Vec<Range<u64>>),
}

/// What an examination of a source found, for `firn doctor`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at: `QEMU's version`.
    pub what: String,
    /// How it is.
    pub state: Health,
    /// What was found: `10.0.2`.
    pub detail: String,
    /// What to do about it, where there is something.
    pub hint: Option<String>,
}

/// How good a [`Finding`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    /// As it should be.
    Good,
    /// Snapshots work, though less well than they could.
    Poor,
    /// Snapshots do not work.
    Bad,
}

impl Finding {
    /// What is as it should be.
    pub fn good(what: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { what: what.into(), state: Health::Good, detail: detail.into(), hint: None }
    }

    /// What makes snapshots less good, with what to do about it.
    pub fn poor(what: impl Into<String>, detail: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { what: what.into(), state: Health::Poor, detail: detail.into(), hint: Some(hint.into()) }
    }

    /// What makes snapshots impossible.
    pub fn bad(what: impl Into<String>, error: &Error) -> Self {
        let hint = error.next_step().map(str::to_owned);
        Self { what: what.into(), state: Health::Bad, detail: error.to_string(), hint }
    }
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The snapshot is in the pool: its generations are the next run's base.
    Published,
    /// There is no snapshot: what the last one left as its base is still needed.
    Failed,
}

/// Where disks come from. Calls come in the order that the module describes, `finish` after whatever failed.
pub trait Source: Debug + Send {
    /// The URI by which [`open`](crate::open) finds it again: with absolute paths, without secrets.
    fn uri(&self) -> String;

    /// The guest that runs on these disks, where there is one that can be asked to hold still.
    fn guest(&self) -> Option<Arc<dyn Guest>> {
        None
    }

    /// The instant that the disks show, where it is past already and there is nothing to freeze or to cut.
    fn taken(&self) -> Option<Timestamp> {
        None
    }

    /// Whether one [`cut`](Self::cut) gets all disks of this source at one instant, so that without a freeze the
    /// snapshot is still crash-consistent. `false` means that they may be torn.
    fn is_atomic(&self) -> bool {
        true
    }

    /// Whether a run that dies leaves things behind that [`sweep`](Self::sweep) has to remove.
    fn leaves_things(&self) -> bool {
        true
    }

    /// Looks at what is there. Changes nothing.
    ///
    /// # Errors
    /// Whatever would make a snapshot impossible, with what to do about it.
    fn plan(&mut self, request: &Request) -> Result<Plan>;

    /// Looks closer than `plan`, for `firn doctor`: versions, privileges, room for scratch files. Changes nothing.
    fn examine(&mut self, _request: &Request) -> Vec<Finding> {
        Vec::new()
    }

    /// Removes what a dead run of the same owner left behind, checks the room that is needed, and makes everything that
    /// can be made before the instant. What it makes hurts nobody when this process dies. Comes after `plan`.
    ///
    /// # Errors
    /// `Unavailable` when another run is at it, when there is no room, or when what is there changed since `plan`.
    fn prepare(&mut self, request: &Request) -> Result<()>;

    /// What has to be undone, beside the thaw of [`guest`](Self::guest), if this process dies during `cut`.
    fn tickets(&self) -> Vec<Ticket> {
        Vec::new()
    }

    /// The instant. Takes milliseconds and leaves the machine running, whether it succeeds or not.
    ///
    /// # Errors
    /// What the machine said. There is nothing to read then.
    fn cut(&mut self) -> Result<()>;

    /// The disks as they were at the instant, in the order of the plan.
    ///
    /// # Errors
    /// When the frozen copy cannot be opened.
    fn open(&mut self) -> Result<Vec<FrozenDisk>>;

    /// Whether everything that was read so far was of the instant.
    ///
    /// # Errors
    /// `Unavailable` when the frozen copy was lost or written to: there must be no snapshot.
    fn check(&mut self) -> Result<()>;

    /// Removes everything that was made for this run; after [`Outcome::Published`] also what served as the last run's
    /// base, and keeps this run's.
    ///
    /// # Errors
    /// What could not be removed. The snapshot stands all the same.
    fn finish(&mut self, outcome: Outcome) -> Result<()>;

    /// Removes what a dead run described by `request` left behind, and nothing else. Safe to call at any time while no
    /// run is at work.
    ///
    /// # Errors
    /// What could not be removed.
    fn sweep(&mut self, request: &Request) -> Result<()>;
}
