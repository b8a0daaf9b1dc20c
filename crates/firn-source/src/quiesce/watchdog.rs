//! The thaw watchdog: a process of its own session that undoes a freeze when the one who asked for it dies or stalls; and
//! what every start of firn does for those whose watchdog died, too.
//!
//! Undoing means, in this order: every ticket, at the same time, with retries; the post-thaw hooks that are owed; the
//! sources are swept. What they say to each other stands in `watch.rs`, what is on disk in `record.rs`.

use super::hooks::{self, Place, Setting};
use super::record::{Record, RecordFolder, RecordedMachine, leftovers};
use super::undo::undo;
use super::watch::lines;
use super::{Guest, Ticket};
use crate::source::{Request, Source};
use firn_disk::{Error, ErrorKind, Result};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

/// One answer of a guest or monitor.
const ANSWER: Duration = Duration::from_secs(5);
/// How long the watchdog keeps trying to undo a ticket.
const PATIENCE: Duration = Duration::from_secs(600);
/// How long a start of firn is held up by one.
const PATIENCE_AT_START: Duration = Duration::from_secs(10);
/// The run itself thaws when the limit is over; the watchdog comes after, so as not to get in its way.
const AFTER_THE_LIMIT: Duration = Duration::from_secs(2);
/// How often a source is asked to sweep, and the pause between.
const SWEEPS: u32 = 3;
const SWEEP_PAUSE: Duration = Duration::from_secs(1);
/// A record that so many starts of firn could not undo is of a machine that is no more.
const MOST_TRIES: u32 = 50;
/// No end of the waiting.
const FOR_EVER: Duration = Duration::from_secs(1 << 30);

/// From a source's URI to the source: [`open`](crate::open) with default options.
pub type Opener<'a> = &'a (dyn Fn(&str) -> Result<Box<dyn Source>> + Sync);
/// Gets lines for people. Must not fail when nobody reads them.
pub type Teller<'a> = &'a (dyn Fn(&str) + Sync);

/// What the watchdog does from its start to its end: `firn __watchdog RECORD`. The process gets a session of its own;
/// its stdin and stdout are the run's.
///
/// # Errors
/// What could not be undone within 10 minutes; the record stays then, and the next start of firn tries again.
pub fn watch(record: &Path, open: Opener<'_>, tell: Teller<'_>) -> Result<()> {
    // It fails for one that leads a group already, as when somebody starts it from a shell; then it stays where it is.
    let _ = rustix::process::setsid();
    let folder = RecordFolder::join(record)?;
    answer("ready");
    let words = lines(std::io::stdin());
    let mut deadline = None;
    loop {
        let left = deadline.map_or(FOR_EVER, |deadline: Instant| deadline.saturating_duration_since(Instant::now()));
        match words.recv_timeout(left) {
            Ok(word) if word == "done" => return Ok(()),
            Ok(word) if word == "thawed" => deadline = None,
            Ok(word) => {
                let limit = word.strip_prefix("frozen ").and_then(|limit| limit.parse().ok());
                let limit = limit.ok_or_else(|| Error::invalid(format!("the run says {word:?}")))?;
                deadline = Some(Instant::now() + Duration::from_millis(limit) + AFTER_THE_LIMIT);
                answer("ok");
            }
            Err(RecvTimeoutError::Timeout) => deadline = end_freeze(&folder, tell),
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    undo_run(folder, open, tell)
}

/// The run will miss it if it is there, and if not, nobody listens.
fn answer(word: &str) {
    let mut stdout = std::io::stdout().lock();
    drop(writeln!(stdout, "{word}").and_then(|()| stdout.flush()));
}

/// The freeze lasts too long. Says when to look again if it could not be ended.
fn end_freeze(folder: &RecordFolder, tell: Teller<'_>) -> Option<Instant> {
    let record = folder.read().ok()?;
    tell(&format!("the freeze of {} takes too long: the watchdog ends it", record.names()));
    let left = undo_tickets(&record.tickets, ANSWER, tell);
    (!left.is_empty()).then(|| Instant::now() + SWEEP_PAUSE)
}

/// The run has died, or left the rest to the watchdog.
fn undo_run(folder: RecordFolder, open: Opener<'_>, tell: Teller<'_>) -> Result<()> {
    let record = match folder.read() {
        Err(error) if error.kind() == ErrorKind::NotFound => return folder.remove(),
        read => read?,
    };
    if !record.owner.is_alive() {
        let process = record.owner.process;
        tell(&format!("firn (process {process}) died over a snapshot of {}: undoing what it left", record.names()));
    }
    undo_record(&folder, record, PATIENCE, open, tell)?;
    folder.remove()
}

/// Undoes what killed runs left behind whose watchdogs were killed, too: guests are thawed, post-thaw hooks run, sources
/// swept. To be called at every start of firn; costs one look into a folder when there is nothing to do. Records of the
/// living are left alone. Everything that is done or cannot be done is told.
///
/// # Errors
/// Only when the folder cannot be read or is not safe to be trusted (`Denied`). What could not be undone is told, and
/// tried again at the next start.
pub fn recover(state_folder: &Path, open: Opener<'_>, tell: Teller<'_>) -> Result<()> {
    let found = leftovers(state_folder)?;
    for record in &found.undone_by_watchdog {
        let process = record.owner.process;
        tell(&format!("firn (process {process}) died over a snapshot of {}; its watchdog is at work", record.names()));
    }
    for folder in found.dead {
        let path = folder.path().to_path_buf();
        if let Err(error) = recover_one(folder, open, tell) {
            tell(&format!("{}: a killed firn's freeze could not be undone: {error}", path.display()));
        }
    }
    Ok(())
}

fn recover_one(folder: RecordFolder, open: Opener<'_>, tell: Teller<'_>) -> Result<()> {
    let record = match folder.read() {
        Err(error) if error.kind() == ErrorKind::NotFound => return folder.remove(),
        read => read?,
    };
    let (names, tries) = (record.names(), record.tries);
    let (process, created) = (record.owner.process, &record.created);
    tell(&format!("firn (process {process}, {created}) was killed over a snapshot of {names}: undoing what it left"));
    match undo_record(&folder, record, PATIENCE_AT_START, open, tell) {
        Ok(()) => folder.remove(),
        Err(error) if tries >= MOST_TRIES => {
            tell(&format!("giving up after {tries} tries: if {names} runs, see to it that nothing in it is frozen"));
            folder.remove()?;
            Err(error)
        }
        Err(error) => {
            let mut record = folder.read()?;
            record.tries = tries + 1;
            folder.write(&record)?;
            Err(error)
        }
    }
}

/// Undoes all, goes on after what fails, and keeps the record true to what is left.
fn undo_record(
    folder: &RecordFolder,
    mut record: Record,
    patience: Duration,
    open: Opener<'_>,
    tell: Teller<'_>,
) -> Result<()> {
    record.tickets = undo_tickets(&record.tickets, patience, tell);
    let mut worst = record.tickets.first().map(|ticket| {
        Error::new(ErrorKind::Unavailable, format!("{} may still be frozen by {ticket:?}", record.names()))
    });
    folder.write(&record)?;
    for index in 0..record.machines.len() {
        run_owed(&record.machines[index], &record.folder, open, tell);
        // Once, whatever came of it.
        record.machines[index].owed.clear();
        folder.write(&record)?;
        let machine = &mut record.machines[index];
        let request = &machine.request;
        machine.sources.retain(|uri| match sweep(uri, request, open) {
            Ok(()) => false,
            Err(error) => {
                tell(&format!("{}: {uri} could not be swept: {error}", machine.machine));
                worst.get_or_insert(error);
                true
            }
        });
        folder.write(&record)?;
    }
    worst.map_or(Ok(()), Err)
}

/// All at the same time; returns those that may still be in force.
fn undo_tickets(tickets: &[Ticket], patience: Duration, tell: Teller<'_>) -> Vec<Ticket> {
    let undo_one = |ticket: &Ticket| match undo(ticket, ANSWER, patience) {
        Ok(done) => {
            done.iter().for_each(|done| tell(done));
            None
        }
        Err(error) => {
            tell(&format!("{ticket:?} could not be undone: {error}"));
            Some(ticket.clone())
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = tickets.iter().map(|ticket| (ticket, scope.spawn(move || undo_one(ticket)))).collect();
        let left = threads.into_iter().map(|(ticket, thread)| thread.join().unwrap_or_else(|_| Some(ticket.clone())));
        left.flatten().collect()
    })
}

fn run_owed(machine: &RecordedMachine, folder: &Path, open: Opener<'_>, tell: Teller<'_>) {
    if machine.owed.is_empty() {
        return;
    }
    let needs_guest = machine.owed.iter().any(|hook| hook.place == Place::Guest);
    let guest: Option<Arc<dyn Guest>> =
        machine.sources.iter().filter(|_| needs_guest).find_map(|uri| open(uri).ok()?.guest());
    let started = Instant::now();
    let setting = Setting {
        machine: &machine.machine,
        outcome: Some("failed"),
        guest: guest.as_deref(),
        folder,
        elapsed: &|| started.elapsed(),
    };
    for hook in &machine.owed {
        let outcome = hooks::run(hook, &setting);
        let ended = match outcome.code {
            Some(0) => "ran".to_owned(),
            Some(code) => format!("failed with code {code}: {}", outcome.last_line()),
            None => format!("failed: {}", outcome.last_line()),
        };
        tell(&format!("{}: the post-thaw hook ({}) {} {ended}", machine.machine, hook.place, hook.command));
    }
}

fn sweep(uri: &str, request: &Request, open: Opener<'_>) -> Result<()> {
    let mut tries = 0;
    loop {
        tries += 1;
        match open(uri).and_then(|mut source| source.sweep(request)) {
            Err(_) if tries < SWEEPS => std::thread::sleep(SWEEP_PAUSE),
            swept => return swept,
        }
    }
}
