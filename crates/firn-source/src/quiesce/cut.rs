//! The orchestrator: from prepared sources to one instant of all of them, with every guest running again.
//!
//! ```text
//!   record, watchdog ─ prepare ─ pre-freeze hooks ─ freeze ─ cut ─ thaw ─ post-thaw hooks ─ (caller reads, publishes,
//!                                                                          finishes the sources) ─ Watch::done
//! ```
//! Whatever fails: the guests are thawed first, then the post-thaw hooks run, then the sources are finished as failed.

use super::hooks::{Hook, HookOutcome};
use super::watchdog::{Watch, WatchdogProgram};
use crate::source::{Request, Source};
use firn_disk::{Error, Result};
use jiff::Timestamp;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// One machine of what is taken together.
#[derive(Debug)]
pub struct Member {
    /// The machine's name in the pool; hooks find it as `FIRN_MACHINE`.
    pub machine: String,
    /// What the sources are told; the same that their `plan` got.
    pub request: Request,
    /// Where its disks come from. The caller has called `plan` on each.
    pub sources: Vec<Box<dyn Source>>,
    /// What runs before and after, in this order.
    pub hooks: Vec<Hook>,
    /// What is frozen in the guest: mount points, as `/srv`; all file systems where none are named.
    pub mount_points: Vec<String>,
}

/// Whether guests are frozen for the cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Freeze {
    /// Where it works; else the snapshot is of `crash` consistency, with a remark that says why.
    #[default]
    Auto,
    /// There is no snapshot without a freeze.
    Require,
    /// Nobody is asked.
    No,
}

/// What a pre-freeze hook that fails means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FailedHook {
    /// There is no snapshot.
    #[default]
    Fail,
    /// The snapshot goes on and claims `filesystem` at most, with a remark.
    GoOn,
}

/// How a cut is made.
#[derive(Debug, Clone)]
pub struct CutOptions {
    /// Whether guests are frozen.
    pub freeze: Freeze,
    /// How long a guest may take to freeze.
    pub freeze_timeout: Duration,
    /// How long it may stay frozen: then it is thawed, done or not.
    pub frozen_limit: Duration,
    /// What a pre-freeze hook that fails means.
    pub failed_hook: FailedHook,
    /// Where the record of the freeze is kept: [`state_folder`](super::state_folder).
    pub state_folder: PathBuf,
    /// How the watchdog is started.
    pub watchdog: WatchdogProgram,
}

impl CutOptions {
    /// Auto, 10 s to freeze, 30 s frozen at most, failed hooks fail, and this program as its own watchdog.
    pub fn new(state_folder: PathBuf) -> Self {
        Self {
            freeze: Freeze::Auto,
            freeze_timeout: Duration::from_secs(10),
            frozen_limit: Duration::from_secs(30),
            failed_hook: FailedHook::Fail,
            state_folder,
            watchdog: WatchdogProgram::default(),
        }
    }
}

/// Clocks, and the user's Ctrl-C.
#[derive(Clone, Copy)]
pub struct Surroundings<'a> {
    /// The time of day, for [`Taken::created`].
    pub now: &'a (dyn Fn() -> Timestamp + Sync),
    /// Time since any fixed moment; never goes back.
    pub elapsed: &'a (dyn Fn() -> Duration + Sync),
    /// Set when the user wants it to end: `take` then undoes all and answers `Interrupted`.
    pub cancel: &'a AtomicBool,
}

/// What can be said of a snapshot; ordered from worst to best.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Consistency {
    /// A disk was or is read while something may write to it.
    Torn,
    /// As after pulling the plug. Several sources without a freeze are each so, at instants of their own; a remark says it.
    Crash,
    /// The guest's file systems were frozen over the cut.
    Filesystem,
    /// So they were, and all pre-freeze hooks, at least one, had succeeded.
    Application,
}

impl Consistency {
    /// A word for people and for `--json`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Torn => "torn",
            Self::Crash => "crash",
            Self::Filesystem => "filesystem",
            Self::Application => "application",
        }
    }
}

/// What was taken of a [`Member`].
#[derive(Debug, Clone)]
pub struct Taken {
    /// What can be said of it.
    pub consistency: Consistency,
    /// The instant: just before the first source was cut, or what [`Source::taken`] says where nothing was cut.
    pub created: Timestamp,
    /// From just before the guest was asked to freeze until it said that it was thawed; `None` where none was frozen.
    pub frozen: Option<Duration>,
    /// What the user must know, a line each: why it is less than was hoped for.
    pub remarks: Vec<String>,
    /// What became of the hooks, in the order in which they ran.
    pub hooks: Vec<HookOutcome>,
}

/// Takes one instant of all members: prepares their sources, freezes their guests, cuts, thaws.
///
/// Blocks for as long as the sources need to prepare, the hooks to run, and the guests to freeze; each has an end. The
/// sources were planned before. Afterwards the caller opens, reads, checks, publishes and finishes each source, and then
/// calls [`Watch::done`]; until then the watchdog sweeps the sources if this process dies. One [`Taken`] per member, in
/// their order.
///
/// # Errors
/// When there is nothing to publish; all sources are finished as failed then, and the guests run. `Unavailable` when
/// another run of the same owner is at work or its watchdog still cleans up, when a guest does not freeze although it
/// has to, and when one cannot be thawed (the watchdog then keeps trying); `Invalid` for a hook that has nowhere to run;
/// `Interrupted` when the user wants it to end; `Io` for a hook that failed; what the sources say.
pub fn take(members: &mut [Member], options: &CutOptions, around: &Surroundings<'_>) -> Result<(Vec<Taken>, Watch)> {
    let _ = (members, options, around);
    Err(Error::unsupported("this is being built"))
}
