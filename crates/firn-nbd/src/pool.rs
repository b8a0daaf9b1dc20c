//! [`Pool`]: the connections to one export, opened again when they are lost.
//!
//! A connection that comes after the first has to find the same export: its length, its block sizes, its contexts. The
//! content is not compared; see [`Options::reconnect`].

use crate::connection::{Connection, Request, Ticket, deadline, meet};
use crate::error::{Failure, may_pass, violation};
use crate::negotiate::{self, Export, ListedExport};
use crate::reply::{Answer, Run};
use crate::wire::{command, export_flag};
use crate::{BASE_ALLOCATION, Options, Uri};
use firn_disk::{Error, ErrorKind, Result};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A connection beyond the first is waited for at most so long: some servers take a client and then leave it waiting.
const SPARE_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest pause before a reconnection.
const MAX_DELAY: Duration = Duration::from_secs(5);
/// More connections than this help nobody.
const MAX_CONNECTIONS: usize = 64;
/// Contexts that may be asked for at once.
const MAX_CONTEXTS: usize = 64;

/// The connections to one export.
#[derive(Debug)]
pub(crate) struct Pool {
    uri: Uri,
    options: Options,
    /// What is asked for: `base:allocation` and those of the options.
    contexts: Vec<String>,
    export: Export,
    slots: Vec<Mutex<Slot>>,
    next: AtomicUsize,
}

#[derive(Debug)]
struct Slot {
    connection: Arc<Connection>,
    /// When opening it again failed last, and why: those who waited meanwhile need not try for themselves.
    failed: Option<(Instant, Error)>,
}

impl Pool {
    /// Connects as often as the server and the options allow.
    pub(crate) fn open(uri: &Uri, options: &Options) -> Result<Self> {
        let mut contexts = vec![BASE_ALLOCATION.to_owned()];
        for name in &options.contexts {
            if name.is_empty() || name.len() > 4096 || contexts.len() >= MAX_CONTEXTS {
                return Err(Error::invalid(
                    "a metadata context without a name or with too long a one, or too many of them",
                ));
            }
            if !contexts.contains(name) {
                contexts.push(name.clone());
            }
        }
        let first = Connection::open(uri, options, &contexts, options.timeout)?;
        let export = first.export().clone();
        check_contexts(&export, &contexts)?;
        let mut connections = vec![first];
        let several = export.flags & export_flag::CAN_MULTI_CONN != 0;
        let wanted = if several { options.connections.clamp(1, MAX_CONNECTIONS) } else { 1 };
        while connections.len() < wanted {
            // A server that takes no more is used through those that it took.
            let Ok(next) = Connection::open(uri, options, &contexts, options.timeout.min(SPARE_TIMEOUT)) else { break };
            check_same(&export, next.export())?;
            connections.push(next);
        }
        let slots = connections.into_iter().map(|connection| Mutex::new(Slot { connection, failed: None })).collect();
        Ok(Self { uri: uri.clone(), options: options.clone(), contexts, export, slots, next: AtomicUsize::new(0) })
    }

    /// What the first connection agreed on. The numbers of contexts are those of that connection alone.
    pub(crate) fn export(&self) -> &Export {
        &self.export
    }

    /// How many connections there are.
    pub(crate) fn connections(&self) -> usize {
        self.slots.len()
    }

    /// What errors call the export.
    pub(crate) fn uri(&self) -> &Uri {
        &self.uri
    }

    /// The index of a context that the server has.
    pub(crate) fn context(&self, name: &str) -> Option<usize> {
        let index = self.contexts.iter().position(|context| context == name)?;
        self.export.contexts.iter().any(|&(_, agreed)| agreed == index).then_some(index)
    }

    /// The next connection in turn, opened again if it broke and `again` allows it.
    pub(crate) fn connection(&self, again: bool) -> Result<Arc<Connection>, Failure> {
        let began = Instant::now();
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        let slot = self.slots.get(turn % self.slots.len().max(1));
        let slot = slot.ok_or_else(|| Failure::last(Error::invalid("no connections")))?;
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.connection.is_alive() {
            return Ok(slot.connection.clone());
        }
        if !again {
            return Err(Failure::lost(slot.connection.failure().error));
        }
        if let Some((_, error)) = slot.failed.as_ref().filter(|(when, _)| *when >= began) {
            return Err(Failure { lost: may_pass(error), error: error.clone() });
        }
        let opened = Connection::open(&self.uri, &self.options, &self.contexts, self.options.timeout)
            .and_then(|connection| check_same(&self.export, connection.export()).map(|()| connection));
        match opened {
            Ok(connection) => {
                *slot = Slot { connection: connection.clone(), failed: None };
                Ok(connection)
            }
            Err(error) => {
                slot.failed = Some((Instant::now(), error.clone()));
                Err(Failure { lost: may_pass(&error), error })
            }
        }
    }

    /// Sends a request that may be repeated, and waits for its answer; with it comes the connection that brought it.
    pub(crate) fn ask(&self, request: Request<'_>) -> Result<(Answer, Arc<Connection>)> {
        self.try_once(request, false).or_else(|failure| self.ask_again(request, failure))
    }

    /// Goes on with a request that has failed: again over another connection, as often as the options allow, if its
    /// connection was lost.
    pub(crate) fn ask_again(&self, request: Request<'_>, mut failure: Failure) -> Result<(Answer, Arc<Connection>)> {
        let mut delay = self.options.reconnect_delay;
        for attempt in 0..self.options.reconnect {
            if !failure.lost {
                break;
            }
            if attempt > 0 {
                std::thread::sleep(delay.min(MAX_DELAY));
                delay = delay.saturating_mul(2);
            }
            match self.try_once(request, true) {
                Ok(answered) => return Ok(answered),
                Err(again) => failure = again,
            }
        }
        if failure.lost && failure.error.kind() == ErrorKind::NotFound {
            // The socket of a server that has ended. The export had been there.
            let lost = Error::new(ErrorKind::Unavailable, "the connection was lost and the NBD server is gone");
            return Err(self.blame(lost.because(failure.error), request.offset));
        }
        Err(self.blame(failure.error, request.offset))
    }

    fn try_once(&self, request: Request<'_>, again: bool) -> Result<(Answer, Arc<Connection>), Failure> {
        let connection = self.connection(again)?;
        let answer = connection.send(request)?.wait()?;
        Ok((answer, connection))
    }

    /// Sends a request without waiting for the answer and without a second try.
    pub(crate) fn send(&self, request: Request<'_>) -> Result<Ticket, Failure> {
        self.connection(false)?.send(request)
    }

    /// Whether a connection was lost and not opened again.
    pub(crate) fn is_broken(&self) -> bool {
        self.slots.iter().any(|slot| !slot.lock().unwrap_or_else(PoisonError::into_inner).connection.is_alive())
    }

    /// Names the export and the offset in an error.
    pub(crate) fn blame(&self, error: Error, offset: u64) -> Error {
        error.at_path(self.uri.to_string()).at_offset(offset)
    }

    /// A block status from `offset` on in the context with this index: its runs, the first of which begins there.
    pub(crate) fn status(&self, index: usize, offset: u64, length: u32) -> Result<Vec<Run>> {
        let request = Request { command: command::BLOCK_STATUS, flags: 0, offset, length, data: &[] };
        let (answer, connection) = self.ask(request)?;
        // Each connection has numbers of its own.
        let id = connection.export().contexts.iter().find(|&&(_, agreed)| agreed == index).map(|&(id, _)| id);
        let runs = answer.runs.into_iter().find(|(context, _)| Some(*context) == id).map(|(_, runs)| runs);
        runs.ok_or_else(|| self.blame(violation("a block status says nothing of a context"), offset))
    }
}

/// Everything that the caller named has to be there; `base:allocation`, the first, is welcome.
fn check_contexts(export: &Export, contexts: &[String]) -> Result<()> {
    let missing = (1..contexts.len()).find(|index| !export.contexts.iter().any(|(_, agreed)| agreed == index));
    match missing.and_then(|index| contexts.get(index)) {
        None => Ok(()),
        Some(_) if !export.structured => {
            Err(Error::unsupported("this NBD server has no structured replies, and so no metadata contexts"))
        }
        Some(name) => Err(Error::not_found(format!("the export has no metadata context {name}"))),
    }
}

/// A later connection has to find what the first one found.
fn check_same(first: &Export, later: &Export) -> Result<()> {
    let indexes = |export: &Export| {
        let mut indexes: Vec<_> = export.contexts.iter().map(|&(_, index)| index).collect();
        indexes.sort_unstable();
        indexes
    };
    let differs = if first.length != later.length {
        format!("its length went from {} to {} bytes", first.length, later.length)
    } else if first.flags != later.flags || first.structured != later.structured {
        "its abilities changed".to_owned()
    } else if (first.min_block, first.max_block) != (later.min_block, later.max_block) {
        "its block sizes changed".to_owned()
    } else if indexes(first) != indexes(later) {
        "its metadata contexts changed".to_owned()
    } else {
        return Ok(());
    };
    Err(Error::new(ErrorKind::Io, format!("the export is not what it was when it was opened: {differs}")))
}

/// The exports that the server of `uri` is willing to name; the export in the URI does not matter.
///
/// # Errors
/// As [`open`](crate::open), and `Denied` or `Unsupported` when the server does not list them.
pub fn list(uri: &Uri, options: &Options) -> Result<Vec<ListedExport>> {
    let deadline = deadline(options.timeout)?;
    let (mut stream, greeting) = meet(uri, options, deadline).map_err(|error| error.at_path(uri.to_string()))?;
    negotiate::list(&mut stream, greeting).map_err(|error| error.at_path(uri.to_string()))
}
