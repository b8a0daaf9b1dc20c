//! The thaw watchdog: a process of its own session that undoes a freeze when the one who asked for it dies or stalls.

use crate::source::Source;
use firn_disk::{Error, Result};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// From a source's URI to the source: [`open`](crate::open) with default options.
pub type Opener<'a> = &'a (dyn Fn(&str) -> Result<Box<dyn Source>> + Sync);

/// How the watchdog is started: a program and its first arguments; the record's path comes last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchdogProgram {
    /// The program.
    pub program: PathBuf,
    /// What comes before the record's path.
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
    _private: (),
}

impl Watch {
    /// All sources are finished: the record is removed and the watchdog ends. Blocks for a moment.
    ///
    /// # Errors
    /// The system's own when the record cannot be removed; then the next start of firn sweeps once more, which does no
    /// harm.
    pub fn done(self) -> Result<()> {
        Err(Error::unsupported("this is being built"))
    }
}

/// What the watchdog does from its start to its end: `firn __watchdog RECORD`. Must be called by a process without other
/// threads, first of all; stdin and stdout are the other firn's. `tell` gets lines for people.
///
/// # Errors
/// What could not be undone, within 10 minutes; the record stays, and the next start of firn tries again.
pub fn watch(record: &Path, open: Opener<'_>, tell: &dyn Fn(&str)) -> Result<()> {
    let _ = (record, open, tell);
    Err(Error::unsupported("this is being built"))
}

/// Undoes what killed runs left behind: guests are thawed, post-thaw hooks run, sources swept. To be called at every
/// start of firn; costs one look into a folder when there is nothing to do. Records of the living are left alone.
/// `tell` gets a line for people for each thing that was done or could not be done.
///
/// # Errors
/// Only when the folder cannot be read or is not safe to be trusted (`Denied`). What could not be undone is told, and
/// tried again at the next start.
pub fn recover(state_folder: &Path, open: Opener<'_>, tell: &dyn Fn(&str)) -> Result<()> {
    let _ = (state_folder, open, tell);
    Ok(())
}
