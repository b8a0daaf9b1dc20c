//! The orchestrator: from prepared sources to one instant of all of them, with every guest running again.
//!
//! ```text
//!   record, watchdog ─ prepare ─ pre-freeze hooks ─ freeze ─ cut ─ thaw ─ post-thaw hooks ─ (caller reads, publishes,
//!                                                                          finishes the sources) ─ Watch::done
//! ```
//! Whatever fails: the guests are thawed first, then the post-thaw hooks run, then the sources are finished as failed.
//! What is claimed for what was taken stands in `judge.rs`.

use super::Guest;
use super::freeze::{Subject, Subjects, guarded};
use super::hooks::{self, Hook, HookOutcome, Phase, Place, Setting};
use super::judge::{are_past, is_cut, widen};
use super::record::{Record, RecordedMachine};
use super::watch::{Watch, WatchdogProgram};
use crate::source::{Outcome, Request, Source};
use firn_disk::{Error, ErrorKind, Result};
use jiff::Timestamp;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
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
/// When there is nothing to publish; the guests run then, and the caller must not finish the sources: those that were
/// prepared are finished as failed. `Unavailable` when another run of the same owner is at work or its watchdog still
/// cleans up, when the watchdog does not come up, when a guest does not freeze although it has to, and when one cannot
/// be thawed (the watchdog then keeps trying); `Denied` when the state folder is not safe; `Invalid` for a hook that has nowhere to run;
/// `Interrupted` when the user wants it to end; `Io` for a hook that failed; what the sources say.
pub fn take(members: &mut [Member], options: &CutOptions, around: &Surroundings<'_>) -> Result<(Vec<Taken>, Watch)> {
    let mut run = Run::new(members, options, around);
    let taken = run.go();
    let Run { members, mut watch, prepared, .. } = run;
    let error = match taken {
        Ok(taken) => return Ok((taken, watch.take().unwrap_or_else(Watch::nothing))),
        Err(error) => error,
    };
    // One that was never asked to prepare made nothing, and what is there may be another run's.
    let sources = members.iter_mut().flat_map(|member| &mut member.sources).take(prepared);
    // Every one is finished, whatever the others say.
    let failures: Vec<_> = sources.filter_map(|source| guarded(|| source.finish(Outcome::Failed)).err()).collect();
    match failures.first() {
        // What is left behind then is the watchdog's business, now.
        Some(failure) => {
            drop(watch);
            Err(error.hint(format!("what was made for it could not be removed either: {failure}")))
        }
        None => {
            // A record that cannot be removed is one more sweep at the next start.
            drop(watch.map(Watch::done));
            Err(error)
        }
    }
}

/// What is known of a member so far.
#[derive(Debug, Default)]
pub(super) struct Notes {
    pub remarks: Vec<String>,
    pub hooks: Vec<HookOutcome>,
    /// The post-thaw hooks have to run.
    pub is_owed: bool,
    /// When its cuts began and ended.
    pub cuts: Option<(Duration, Duration)>,
}

pub(super) struct Run<'a> {
    pub members: &'a mut [Member],
    pub options: &'a CutOptions,
    pub around: &'a Surroundings<'a>,
    pub guests: Vec<Vec<Arc<dyn Guest>>>,
    pub notes: Vec<Notes>,
    pub watch: Option<Watch>,
    /// How many sources were asked to prepare, in order.
    prepared: usize,
    folder: PathBuf,
}

impl<'a> Run<'a> {
    fn new(members: &'a mut [Member], options: &'a CutOptions, around: &'a Surroundings<'a>) -> Self {
        let notes = members.iter().map(|_| Notes::default()).collect();
        let folder = PathBuf::from("/");
        Self { members, options, around, guests: Vec::new(), notes, watch: None, prepared: 0, folder }
    }

    /// Guests run again when this returns, or their tickets are with the watchdog.
    fn go(&mut self) -> Result<Vec<Taken>> {
        self.guests = self.members.iter().map(guests_of).collect::<Result<_>>()?;
        self.check()?;
        if let Ok(folder) = std::env::current_dir() {
            self.folder = folder;
        }
        self.start_watch()?;
        let result = self.prepare().and_then(|()| self.run_pre_hooks()).and_then(|()| self.freeze_and_cut());
        let words = match &result {
            Ok(taken) => taken.iter().map(|taken| taken.consistency.as_str()).collect(),
            Err(_) => vec!["failed"; self.members.len()],
        };
        self.run_post_hooks(&words);
        let mut taken = result?;
        for (taken, notes) in taken.iter_mut().zip(&mut self.notes) {
            taken.remarks = std::mem::take(&mut notes.remarks);
            taken.hooks = std::mem::take(&mut notes.hooks);
        }
        Ok(taken)
    }

    fn check(&self) -> Result<()> {
        if self.members.is_empty() {
            return Err(Error::invalid("there is no machine to be taken"));
        }
        for (member, guests) in self.members.iter().zip(&self.guests) {
            let name = &member.machine;
            if guests.is_empty() && member.hooks.iter().any(|hook| hook.place == Place::Guest) {
                return Err(Error::invalid(format!("{name}: there is no guest agent to run a hook by"))
                    .hint("run it on the host or over ssh, or name the agent's socket in the source"));
            }
            if self.options.freeze == Freeze::Require && guests.is_empty() && !are_past(member) {
                let message = format!("{name}: there is no guest agent to freeze it by");
                let hint = "name the agent's socket in the source, or go without --freeze require";
                return Err(Error::new(ErrorKind::Unavailable, message).hint(hint));
            }
        }
        let mut tickets: Vec<_> = self.guests.iter().flatten().map(|guest| guest.ticket()).collect();
        while let Some(ticket) = tickets.pop() {
            if tickets.contains(&ticket) {
                return Err(Error::invalid("two machines of the group have one guest between them")
                    .hint("name the guest once, with all of its disks"));
            }
        }
        Ok(())
    }

    fn start_watch(&mut self) -> Result<()> {
        let mut sources = self.members.iter().flat_map(|member| &member.sources);
        let is_needed = sources.any(|source| source.leaves_things())
            || self.guests.iter().any(|guests| !guests.is_empty())
            || self.members.iter().any(|member| !member.hooks.is_empty());
        if !is_needed {
            return Ok(());
        }
        let machines = self.members.iter().map(|member| RecordedMachine {
            machine: member.machine.clone(),
            request: member.request.clone(),
            sources: member.sources.iter().filter(|source| source.leaves_things()).map(|source| source.uri()).collect(),
            owed: Vec::new(),
        });
        let created = (self.around.now)().to_string();
        let record = Record::new(machines.collect(), created, self.folder.clone());
        let run = &self.members[0].request.run;
        self.watch = Some(Watch::start(&self.options.state_folder, record, run, &self.options.watchdog)?);
        Ok(())
    }

    fn prepare(&mut self) -> Result<()> {
        for member in &mut *self.members {
            for source in &mut member.sources {
                refuse_cancelled(self.around)?;
                self.prepared += 1;
                guarded(|| source.prepare(&member.request))?;
            }
        }
        Ok(())
    }

    fn run_pre_hooks(&mut self) -> Result<()> {
        for index in 0..self.members.len() {
            refuse_cancelled(self.around)?;
            let hooks = &self.members[index].hooks;
            if hooks.is_empty() {
                continue;
            }
            self.notes[index].is_owed = true;
            if let Some(watch) = &mut self.watch {
                watch.owe(index, hooks.iter().filter(|hook| hook.phase == Phase::PostThaw).cloned().collect())?;
            }
            self.run_hooks(index, Phase::PreFreeze, None)?;
        }
        Ok(())
    }

    /// All of them, whatever becomes of each; what failed is a remark.
    fn run_post_hooks(&mut self, outcomes: &[&str]) {
        for (index, outcome) in outcomes.iter().enumerate() {
            if !self.notes[index].is_owed {
                continue;
            }
            // None of these is an error.
            drop(self.run_hooks(index, Phase::PostThaw, Some(outcome)));
            if let Some(watch) = &mut self.watch {
                // They run once more after a crash then, which is better than not at all.
                drop(watch.owe(index, Vec::new()));
            }
        }
    }

    fn run_hooks(&mut self, index: usize, phase: Phase, outcome: Option<&str>) -> Result<()> {
        let member = &self.members[index];
        let setting = Setting {
            machine: &member.machine,
            outcome,
            guest: self.guests[index].first().map(|guest| &**guest),
            folder: &self.folder,
            elapsed: self.around.elapsed,
        };
        let must_succeed = phase == Phase::PreFreeze && self.options.failed_hook == FailedHook::Fail;
        for hook in member.hooks.iter().filter(|hook| hook.phase == phase) {
            let outcome = hooks::run(hook, &setting);
            let is_good = outcome.is_good();
            let message = describe_failure(&outcome);
            self.notes[index].hooks.push(outcome);
            match is_good {
                true => {}
                false if must_succeed => {
                    return Err(Error::new(ErrorKind::Io, format!("{}: {message}", member.machine)));
                }
                false => self.notes[index].remarks.push(message),
            }
        }
        Ok(())
    }

    fn freeze_and_cut(&mut self) -> Result<Vec<Taken>> {
        let mut subjects = Subjects::new(self.subjects(), self.around.elapsed);
        let frozen = self.freeze(&mut subjects);
        let cut = frozen.and_then(|()| refuse_cancelled(self.around)).and_then(|()| self.cut(&mut subjects));
        // After a failure above; otherwise they run already.
        subjects.thaw();
        if let Some(watch) = &mut self.watch
            && let Err(error) = watch.disarm(subjects.lost())
        {
            self.notes[0].remarks.push(format!("the record of the freeze: {error}"));
        }
        let created = self.refuse_not_thawed(&subjects).and(cut)?;
        self.judge(&subjects, created)
    }

    /// Those who are to be frozen.
    fn subjects(&self) -> Vec<Subject> {
        if self.options.freeze == Freeze::No {
            return Vec::new();
        }
        let members = self.members.iter().zip(&self.guests).enumerate();
        let live = members.filter(|(_, (member, _))| !are_past(member));
        live.flat_map(|(index, (member, guests))| {
            guests.iter().map(move |guest| Subject::new(index, guest.clone(), member.mount_points.clone()))
        })
        .collect()
    }

    /// Freezes who can be frozen; where all must be, one that is not is an error.
    fn freeze(&mut self, subjects: &mut Subjects<'_>) -> Result<()> {
        subjects.ask(self.options.freeze_timeout);
        self.refuse_trouble(subjects)?;
        let mut tickets = subjects.tickets();
        for source in self.members.iter().flat_map(|member| &member.sources) {
            tickets.extend(guarded(|| Ok(source.tickets()))?);
        }
        if tickets.is_empty() {
            return Ok(());
        }
        let watch = self.watch.as_mut().ok_or_else(|| Error::invalid("nobody watches over this run"))?;
        watch.arm(tickets, self.options.frozen_limit)?;
        subjects.freeze(self.options.freeze_timeout);
        self.refuse_trouble(subjects)
    }

    pub(super) fn refuse_trouble(&self, subjects: &Subjects<'_>) -> Result<()> {
        let trouble = subjects.all.iter().find_map(|subject| Some((subject, subject.trouble.clone()?)));
        match trouble {
            Some((subject, error)) if self.options.freeze == Freeze::Require => {
                let name = &self.members[subject.member].machine;
                Err(error.context(format!("{name} cannot be frozen by {}", subject.guest.describe())))
            }
            _ => Ok(()),
        }
    }

    /// Nothing is as bad as that, a snapshot that failed included.
    fn refuse_not_thawed(&self, subjects: &Subjects<'_>) -> Result<()> {
        let Some((subject, error)) = subjects.all.iter().find_map(not_thawed) else { return Ok(()) };
        let name = &self.members[subject.member].machine;
        let who = subject.guest.describe();
        Err(error.context(format!("{name} COULD NOT BE THAWED by {who}; the watchdog keeps trying")))
    }

    /// Cuts all sources at the same time and thaws the guests, at the latest when the limit is over. Answers the
    /// instant.
    fn cut(&mut self, subjects: &mut Subjects<'_>) -> Result<Timestamp> {
        let elapsed = self.around.elapsed;
        let limit = subjects.frozen_since().map(|since| since + self.options.frozen_limit);
        let created = (self.around.now)();
        let cuts = std::thread::scope(|scope| {
            let (sender, receiver) = mpsc::channel();
            let sources = self.members.iter_mut().enumerate();
            for (index, source) in sources.flat_map(|(index, it)| it.sources.iter_mut().map(move |it| (index, it))) {
                let sender = sender.clone();
                scope.spawn(move || {
                    let began = elapsed();
                    let is_cut = is_cut(&**source);
                    let result = guarded(|| source.cut());
                    // Somebody waits for it for as long as this thread lives.
                    drop(sender.send(Cut { member: index, is_cut, began, ended: elapsed(), result }));
                });
            }
            drop(sender);
            let mut cuts = Vec::new();
            loop {
                let received = match limit {
                    Some(limit) => receiver.recv_timeout(limit.saturating_sub(elapsed())),
                    None => receiver.recv().map_err(|_| mpsc::RecvTimeoutError::Disconnected),
                };
                match received {
                    Ok(cut) => cuts.push(cut),
                    Err(_) => break,
                }
            }
            subjects.thaw();
            cuts.extend(receiver);
            cuts
        });
        let mut failure = None;
        for cut in cuts {
            let spread = cut.is_cut.then_some((cut.began, cut.ended));
            let known = &mut self.notes[cut.member].cuts;
            *known = widen(*known, spread);
            let name = &self.members[cut.member].machine;
            failure = failure.or(cut.result.err().map(|error| error.context(format!("cut {name}"))));
            for subject in subjects.all.iter_mut().filter(|subject| subject.member == cut.member && cut.is_cut) {
                // The limit was over before the cut was done.
                if subject.was_held() && subject.frozen.is_some_and(|(_, thawed)| thawed < cut.ended) {
                    let message = "it was thawed before the cut was done, since that took too long";
                    subject.trouble = Some(Error::new(ErrorKind::Unavailable, message));
                }
            }
        }
        failure.map_or(Ok(created), Err)
    }
}

/// What came of the cut of one source.
struct Cut {
    member: usize,
    is_cut: bool,
    began: Duration,
    ended: Duration,
    result: Result<()>,
}

impl fmt::Debug for Surroundings<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Surroundings").finish_non_exhaustive()
    }
}

/// Each guest once.
fn guests_of(member: &Member) -> Result<Vec<Arc<dyn Guest>>> {
    let mut guests: Vec<Arc<dyn Guest>> = Vec::new();
    for source in &member.sources {
        let guest = guarded(|| Ok(source.guest()))?;
        let is_new = |guest: &Arc<dyn Guest>| guests.iter().all(|known| known.ticket() != guest.ticket());
        guests.extend(guest.filter(is_new));
    }
    Ok(guests)
}

/// A guest that was frozen and does not thaw, which is worse than one that may freeze yet.
fn not_thawed(subject: &Subject) -> Option<(&Subject, Error)> {
    let is_it = subject.state == super::freeze::State::Lost && subject.frozen.is_some();
    is_it.then(|| subject.trouble.clone()).flatten().map(|error| (subject, error))
}

fn refuse_cancelled(around: &Surroundings<'_>) -> Result<()> {
    match around.cancel.load(Ordering::Relaxed) {
        true => Err(Error::new(ErrorKind::Interrupted, "stopped before the snapshot was taken")),
        false => Ok(()),
    }
}

fn describe_failure(outcome: &HookOutcome) -> String {
    let HookOutcome { place, phase, command, .. } = outcome;
    let how = outcome.code.map_or("failed".to_owned(), |code| format!("failed with code {code}"));
    format!("the {} hook ({place}) {command} {how}: {}", phase.as_str(), outcome.last_line())
}
