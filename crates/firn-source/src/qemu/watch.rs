//! Watches over the scratch while the snapshot is read, and gives the snapshot up before the guest could feel it.
//!
//! With a backup job a full scratch would fail the guest's writes: when half of what a scratch file may have is used, QEMU
//! sends an event and the job is cancelled. Both ways, somebody else may fill the file system that the guest's images are
//! on, too: when little is left, the scratch is given back.

use super::address::Way;
use super::blocks;
use super::leftovers;
use super::monitor::{Event, Events, Monitor};
use super::names::{Names, NodeKind};
use super::scratch::Scratch;
use firn_disk::{Error, ErrorKind, Result};
use serde_json::Value;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Between two looks at the free room.
const LOOK: Duration = Duration::from_millis(100);

/// Why a frozen copy is lost; nothing while it is whole.
#[derive(Debug, Default)]
pub(super) struct Loss(Mutex<Option<Error>>);

impl Loss {
    /// # Errors
    /// Why the frozen copy is lost, if it is.
    pub(super) fn check(&self) -> Result<()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone().map_or(Ok(()), Err)
    }

    fn set(&self, error: Error) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }
}

/// The thread that watches.
#[derive(Debug)]
pub(super) struct Watch {
    ends: Arc<AtomicBool>,
    events: Arc<Events>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread knows.
#[derive(Debug)]
struct Watcher {
    monitor: Arc<Monitor>,
    names: Names,
    way: Way,
    scratch: Vec<Scratch>,
    /// Less than this must not be free where the scratch file is; by the order of `scratch`.
    reserves: Vec<u64>,
    loss: Arc<Loss>,
    ends: Arc<AtomicBool>,
}

impl Watch {
    /// Begins to watch.
    ///
    /// # Errors
    /// The system's own.
    pub(super) fn start(
        monitor: &Arc<Monitor>,
        names: &Names,
        way: Way,
        scratch: Vec<Scratch>,
        loss: &Arc<Loss>,
    ) -> Result<Self> {
        let reserves = scratch.iter().map(|scratch| Ok(scratch.free_bytes()? / 16)).collect::<Result<_>>()?;
        let ends = Arc::new(AtomicBool::new(false));
        let events = monitor.events();
        let watcher = Watcher {
            monitor: monitor.clone(),
            names: names.clone(),
            way,
            scratch,
            reserves,
            loss: loss.clone(),
            ends: ends.clone(),
        };
        let thread = std::thread::Builder::new().name("scratch".to_owned()).spawn(move || watcher.run());
        let thread = thread.map_err(|error| Error::from_io("start a thread", error))?;
        Ok(Self { ends, events, thread: Some(thread) })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        self.events.wake();
        // A thread that panicked has nothing to say that its loss does not.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl Watcher {
    fn run(self) {
        let events = self.monitor.events();
        while !self.ends.load(Ordering::Relaxed) {
            let came = events.take(LOOK);
            let Some(error) = came.iter().find_map(|event| self.by_event(event)).or_else(|| self.by_room()) else {
                continue;
            };
            self.loss.set(error);
            self.give_up();
            return;
        }
    }

    fn by_event(&self, event: &Event) -> Option<Error> {
        let text = |field: &str| event.data.get(field).and_then(Value::as_str).unwrap_or_default();
        match event.name.as_str() {
            "BLOCK_WRITE_THRESHOLD" if self.names.owns_node(text("node-name"), NodeKind::File) => {
                let index = (0..self.scratch.len())
                    .find(|index| self.names.node(NodeKind::File, *index) == text("node-name"))?;
                let scratch = self.scratch.get(index)?;
                Some(lost(format!("half of the {} bytes for a scratch file are used", scratch.limit), scratch.folder()))
            }
            "BLOCK_JOB_ERROR" | "BLOCK_JOB_COMPLETED" | "BLOCK_JOB_CANCELLED" if self.is_own_job(text("device")) => {
                let why = if text("error").is_empty() { "something ended QEMU's backup job" } else { text("error") };
                Some(Error::new(ErrorKind::Unavailable, format!("the frozen copy is lost: {why}")))
            }
            _ => None,
        }
    }

    fn is_own_job(&self, id: &str) -> bool {
        (0..self.scratch.len()).any(|index| self.names.item(index) == id)
    }

    fn by_room(&self) -> Option<Error> {
        self.scratch.iter().zip(&self.reserves).find_map(|(scratch, reserve)| {
            // Who cannot be asked is not full; the next look may tell.
            let free = scratch.free_bytes().ok()?;
            (free < *reserve)
                .then(|| lost(format!("only {free} bytes are free beside the scratch files"), scratch.folder()))
        })
    }

    /// Takes everything apart, so that the room is free and no write of the guest waits for it.
    fn give_up(&self) {
        // The end of the run takes apart what stays, and tells of it.
        let _ = leftovers::remove_nodes(&self.monitor, &self.names, leftovers::Server::Leave);
        let is_stuck = || blocks::status(&self.monitor).is_ok_and(|status| status.status == "io-error");
        if self.way == Way::Backup && is_stuck() {
            // Its writes were quicker than the event. They are repeated, and find no filter in the way.
            let _ = self.monitor.execute("cont", Value::Null);
        }
    }
}

fn lost(why: String, folder: &std::path::Path) -> Error {
    let folder: PathBuf = folder.to_path_buf();
    Error::new(ErrorKind::Unavailable, format!("the snapshot was given up for the guest's sake: {why}"))
        .at_path(folder)
        .hint("name a folder with more room for scratch files, or take it when the guest writes less")
}
