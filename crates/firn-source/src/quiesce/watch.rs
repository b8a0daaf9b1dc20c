//! The watchdog as seen by the run that it watches over.
//!
//! ```text
//!   run                                  watchdog (its own session)
//!   record durable, then `__watchdog` ->
//!                                     <- ready
//!   tickets into the record
//!   frozen MILLISECONDS               ->           from now on the clock runs
//!                                     <- ok
//!   thawed                            ->
//!   tickets out of the record
//!   record removed, then `done`       ->           ends
//!   (end of the pipe without it)      ->           undoes what the record says
//! ```

use super::Ticket;
use super::hooks::Hook;
use super::record::{Record, RecordFolder};
use firn_disk::{Error, ErrorKind, Result};
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// How long the watchdog may take to start, and to answer.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(2);

/// How the watchdog is started: a program and its first arguments; the path of the record comes last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchdogProgram {
    /// The program.
    pub program: PathBuf,
    /// What comes before the path of the record.
    pub arguments: Vec<OsString>,
}

impl Default for WatchdogProgram {
    /// The running program itself, even if its file was replaced meanwhile, with the argument `__watchdog`.
    fn default() -> Self {
        Self { program: PathBuf::from("/proc/self/exe"), arguments: vec![OsString::from("__watchdog")] }
    }
}

/// Held by whoever has sources prepared: if it goes without [`done`](Self::done), by whatever end of this process, the
/// watchdog undoes what has to be undone and sweeps the sources.
#[derive(Debug)]
pub struct Watch {
    /// None where nothing has to be undone.
    active: Option<Active>,
}

#[derive(Debug)]
struct Active {
    folder: RecordFolder,
    record: Record,
    /// None once the watchdog is left to itself.
    watchdog: Option<Watchdog>,
}

#[derive(Debug)]
struct Watchdog {
    child: Child,
    words: ChildStdin,
    answers: mpsc::Receiver<String>,
}

impl Watch {
    /// For a run that leaves nothing.
    pub(super) fn nothing() -> Self {
        Self { active: None }
    }

    /// Writes the record and starts the watchdog; both are there when this returns.
    ///
    /// # Errors
    /// As [`RecordFolder::create`]; `Unavailable` when the watchdog does not come up.
    pub(super) fn start(state: &Path, record: Record, run: &str, program: &WatchdogProgram) -> Result<Self> {
        let folder = RecordFolder::create(state, &record, run)?;
        match Watchdog::start(program, folder.path()) {
            Ok(watchdog) => Ok(Self { active: Some(Active { folder, record, watchdog: Some(watchdog) }) }),
            Err(error) => {
                folder.remove()?;
                Err(error.context("start the thaw watchdog"))
            }
        }
    }

    /// Machines are about to be frozen or paused for at most `limit`: `tickets` undo it.
    ///
    /// # Errors
    /// When the record cannot be written or the watchdog does not answer; then nothing may be frozen.
    pub(super) fn arm(&mut self, tickets: Vec<Ticket>, limit: Duration) -> Result<()> {
        let Some(active) = &mut self.active else {
            return Err(Error::invalid("nobody watches over this run, so that nothing may be frozen"));
        };
        active.record.tickets = tickets;
        active.folder.write(&active.record)?;
        let watchdog = active.watchdog.as_mut().ok_or_else(|| Watchdog::silent("it was left alone"))?;
        watchdog.say(&format!("frozen {}", limit.as_millis()))?;
        watchdog.expect("ok")
    }

    /// What was armed is undone but for `left`, which the watchdog goes on with.
    ///
    /// # Errors
    /// When the record cannot be written: then the next start of firn undoes once more what is undone.
    pub(super) fn disarm(&mut self, left: Vec<Ticket>) -> Result<()> {
        let Some(active) = &mut self.active else { return Ok(()) };
        if left.is_empty()
            && let Some(watchdog) = &mut active.watchdog
        {
            // One that has died meanwhile need not know.
            drop(watchdog.say("thawed"));
        }
        active.record.tickets = left;
        active.folder.write(&active.record)
    }

    /// The post-thaw hooks of the record's machine `machine` have to run from now on; none for one that had them.
    ///
    /// # Errors
    /// When the record cannot be written.
    pub(super) fn owe(&mut self, machine: usize, hooks: Vec<Hook>) -> Result<()> {
        let Some(active) = &mut self.active else { return Ok(()) };
        if let Some(machine) = active.record.machines.get_mut(machine) {
            machine.owed = hooks;
        }
        active.folder.write(&active.record)
    }

    /// All sources are finished: the record is removed and the watchdog ends. Blocks for a moment. Where a guest could
    /// not be thawed, the watchdog stays and keeps trying.
    ///
    /// # Errors
    /// The system's own when the record cannot be removed; then the next start of firn sweeps once more, which does no
    /// harm.
    pub fn done(mut self) -> Result<()> {
        let Some(mut active) = self.active.take() else { return Ok(()) };
        if !active.record.tickets.is_empty() {
            active.record.machines.iter_mut().for_each(|machine| machine.sources.clear());
            let written = active.folder.write(&active.record);
            active.leave();
            return written;
        }
        let Active { folder, watchdog, .. } = active;
        let removed = folder.remove();
        if let Some(watchdog) = watchdog {
            watchdog.dismiss();
        }
        removed
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(active) = self.active.take() {
            active.leave();
        }
    }
}

impl Active {
    /// Leaves all to the watchdog.
    fn leave(mut self) {
        if let Some(Watchdog { mut child, words, answers }) = self.watchdog.take() {
            // Our lock goes first: the watchdog goes on holding its own.
            drop(self.folder);
            drop((words, answers));
            // A daemon lives on and must not collect dead children.
            std::thread::spawn(move || child.wait());
        }
    }
}

impl Watchdog {
    fn start(program: &WatchdogProgram, record: &Path) -> Result<Self> {
        let mut command = Command::new(&program.program);
        command.args(&program.arguments).arg(record).env_remove("FIRN_PASSWORD");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = command.spawn().map_err(|error| Error::from_io("start", error).at_path(&program.program))?;
        let (Some(words), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Self::silent("it has no pipes"));
        };
        let mut watchdog = Self { child, words, answers: lines(answers) };
        if let Err(error) = watchdog.expect("ready") {
            drop(watchdog.child.kill().and_then(|()| watchdog.child.wait()));
            return Err(error);
        }
        Ok(watchdog)
    }

    fn say(&mut self, word: &str) -> Result<()> {
        self.words
            .write_all(format!("{word}\n").as_bytes())
            .map_err(|error| Self::silent("its pipe is closed").because(error))
    }

    fn expect(&mut self, word: &str) -> Result<()> {
        match self.answers.recv_timeout(PATIENCE) {
            Ok(answer) if answer == word => Ok(()),
            Ok(answer) => Err(Self::silent(&format!("it says {answer:?} in place of {word}"))),
            Err(mpsc::RecvTimeoutError::Timeout) => Err(Self::silent("it is silent")),
            Err(mpsc::RecvTimeoutError::Disconnected) => Err(Self::silent("it has ended")),
        }
    }

    fn silent(why: &str) -> Error {
        Error::new(ErrorKind::Unavailable, format!("the thaw watchdog does not answer: {why}"))
    }

    /// Lets it end. It has nothing to do any more, so it may be killed when it does not.
    fn dismiss(mut self) {
        drop(self.say("done"));
        drop(self.words);
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            match self.child.try_wait() {
                Ok(None) => std::thread::sleep(LOOK),
                Ok(Some(_)) | Err(_) => return,
            }
        }
        drop(self.child.kill().and_then(|()| self.child.wait()));
    }
}

/// The lines of a pipe, as they come; it ends with the pipe.
pub(super) fn lines(pipe: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines() {
            let Ok(line) = line else { break };
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    receiver
}
