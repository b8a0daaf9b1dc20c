//! The guests of a run: frozen and thawed all at the same time, and never left frozen.
//!
//! ```text
//!            ask           freeze                thaw
//!   Running ─────► Running ──────► Frozen ─────────────► Running
//!                            │                        │
//!                            └───► Unsure ────────────┴─► Lost: the watchdog goes on
//! ```
//! One that somebody else froze is left alone. One whose freeze failed is thawed, too: what was asked for may still come.
//! That waits until the others run again, so that none of them is frozen for longer because of it.

use super::undo;
use super::{Guest, Ticket};
use firn_disk::{Error, ErrorKind, Result};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

/// One answer to a thaw; asking again does no harm, so it need not be long.
const THAW_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the run itself tries to thaw, before it is left to the watchdog: one that was frozen, and one whose freeze
/// failed.
const THAW_PATIENCE: Duration = Duration::from_secs(30);
const SETTLE_PATIENCE: Duration = Duration::from_secs(10);

/// Time since a fixed moment.
pub(super) type Elapsed<'a> = &'a (dyn Fn() -> Duration + Sync);

/// How it stands with a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// As far as it is up to us.
    Running,
    /// That many file systems.
    Frozen(u64),
    /// It was asked to freeze, and nobody knows what came of it.
    Unsure,
    /// It could not be thawed for certain.
    Lost,
}

/// A guest that is to be frozen.
#[derive(Debug)]
pub(super) struct Subject {
    /// Whose guest it is, by its place among the members.
    pub member: usize,
    pub guest: Arc<dyn Guest>,
    pub mount_points: Vec<String>,
    pub state: State,
    /// Why it was not frozen, or not held over the cut, or not thawed.
    pub trouble: Option<Error>,
    /// When it was asked to freeze, and when it said that it was thawed. `None` where the freeze did not work.
    pub frozen: Option<(Duration, Duration)>,
}

impl Subject {
    pub fn new(member: usize, guest: Arc<dyn Guest>, mount_points: Vec<String>) -> Self {
        Self { member, guest, mount_points, state: State::Running, trouble: None, frozen: None }
    }

    /// Frozen from before the cut until after it, and running again.
    pub fn was_held(&self) -> bool {
        self.frozen.is_some() && self.trouble.is_none()
    }

    /// Leaves alone whoever is frozen by somebody else, or does not answer.
    fn ask(&mut self, timeout: Duration) {
        let trouble = match self.guest.is_frozen(timeout) {
            Ok(false) => return,
            Ok(true) => Error::new(ErrorKind::Unavailable, "it is frozen already, by somebody else, and was left so")
                .hint("wait for the other backup to end, or thaw the guest: `virsh domfsthaw`, `fsfreeze --unfreeze`"),
            Err(error) => error,
        };
        self.trouble = Some(trouble);
    }

    fn freeze(&mut self, timeout: Duration, elapsed: Elapsed<'_>) {
        let began = elapsed();
        // Until we know better.
        self.state = State::Unsure;
        let wanted = self.mount_points.len() as u64;
        let trouble = match self.guest.freeze(&self.mount_points, timeout) {
            Ok(count) if count > 0 && count >= wanted => {
                self.state = State::Frozen(count);
                self.frozen = Some((began, began));
                return;
            }
            Ok(count) if wanted > 0 => {
                let points = self.mount_points.join(", ");
                let message = format!("{count} file systems could be frozen, of the {wanted} mount points {points}");
                Error::invalid(message).hint("name each file system once, by where it is mounted in the guest")
            }
            Ok(_) => Error::unsupported("there is no file system in it that can be frozen"),
            // It says that it did nothing; and what is frozen may be so by somebody else.
            Err(error) if matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::NotFound | ErrorKind::Denied) => {
                self.state = State::Running;
                error
            }
            Err(error) => error,
        };
        self.trouble = Some(trouble);
    }

    fn thaw(&mut self, elapsed: Elapsed<'_>) {
        match self.state {
            State::Running | State::Lost => {}
            State::Unsure => {
                self.state = State::Lost;
                if undo::thaw(&*self.guest, THAW_TIMEOUT, SETTLE_PATIENCE).is_ok() {
                    self.state = State::Running;
                }
            }
            State::Frozen(count) => self.thaw_frozen(count, elapsed),
        }
    }

    fn thaw_frozen(&mut self, count: u64, elapsed: Elapsed<'_>) {
        self.state = State::Lost;
        let first = self.guest.thaw(THAW_TIMEOUT);
        let at_first = first.is_ok().then(elapsed);
        match undo::make_sure(&*self.guest, first, THAW_TIMEOUT, THAW_PATIENCE) {
            Ok(thawed) => {
                self.state = State::Running;
                if thawed < count {
                    let message =
                        format!("of {count} file systems that were frozen, {thawed} still were after the cut");
                    self.trouble = Some(Error::new(ErrorKind::Unavailable, message));
                }
            }
            Err(error) => self.trouble = Some(error),
        }
        let ended = at_first.unwrap_or_else(elapsed);
        self.frozen = self.frozen.map(|(began, _)| (began, ended));
    }
}

/// All guests of a run. Whatever happens, dropping it thaws those that are or may be frozen.
pub(super) struct Subjects<'a> {
    pub all: Vec<Subject>,
    elapsed: Elapsed<'a>,
}

impl fmt::Debug for Subjects<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.all.fmt(f)
    }
}

impl<'a> Subjects<'a> {
    pub fn new(all: Vec<Subject>, elapsed: Elapsed<'a>) -> Self {
        Self { all, elapsed }
    }

    /// Asks all whether they can be frozen; those with a trouble afterwards cannot.
    pub fn ask(&mut self, timeout: Duration) {
        at_once(&mut self.all, |subject| subject.ask(timeout));
    }

    /// Freezes those without a trouble.
    pub fn freeze(&mut self, timeout: Duration) {
        let elapsed = self.elapsed;
        at_once(&mut self.all, |subject| {
            if subject.trouble.is_none() {
                subject.freeze(timeout, elapsed);
            }
        });
    }

    /// Thaws those that are or may be frozen.
    pub fn thaw(&mut self) {
        let elapsed = self.elapsed;
        at_once(&mut self.all, |subject| subject.thaw(elapsed));
    }

    /// When the first one was asked to freeze, of those that are frozen.
    pub fn frozen_since(&self) -> Option<Duration> {
        let frozen = self.all.iter().filter(|subject| matches!(subject.state, State::Frozen(_)));
        frozen.filter_map(|subject| subject.frozen).map(|(began, _)| began).min()
    }

    /// By what those would be thawed that are going to be frozen now.
    pub fn tickets(&self) -> Vec<Ticket> {
        let willing = self.all.iter().filter(|subject| subject.trouble.is_none());
        willing.map(|subject| subject.guest.ticket()).collect()
    }

    /// By what those are thawed that may still be frozen.
    pub fn lost(&self) -> Vec<Ticket> {
        let lost = self.all.iter().filter(|subject| subject.state != State::Running);
        lost.map(|subject| subject.guest.ticket()).collect()
    }
}

impl Drop for Subjects<'_> {
    fn drop(&mut self) {
        self.thaw();
    }
}

/// Does it to all at the same time. One that panics keeps the state that it had.
fn at_once(subjects: &mut [Subject], work: impl Fn(&mut Subject) + Sync) {
    let guarded = |subject: &mut Subject| {
        if catch_unwind(AssertUnwindSafe(|| work(subject))).is_err() {
            subject.trouble = Some(Error::new(ErrorKind::Io, "asking the guest went wrong: this is a bug of firn"));
        }
    };
    match subjects {
        [] => {}
        [one] => guarded(one),
        many => std::thread::scope(|scope| {
            for subject in many {
                scope.spawn(|| guarded(subject));
            }
        }),
    }
}

/// Calls what may panic, and makes an error of that.
///
/// # Errors
/// The call's own; `Io` when it panicked.
pub(super) fn guarded<T>(call: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(call))
        .unwrap_or_else(|_| Err(Error::new(ErrorKind::Io, "a source panicked: this is a bug of firn")))
}
