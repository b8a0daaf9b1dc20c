//! Undoing what a run did to running machines: by its guest, or by the ticket that stands for it.

use super::channel::Channel;
use super::{AgentGuest, Guest, Ticket};
use crate::libvirt;
use firn_disk::{Error, ErrorKind, Result};
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};

/// An answer of QEMU's monitor to what is asked here.
const MOST_ANSWER_BYTES: usize = 1 << 20;
/// Events between an answer and the next.
const MOST_EVENTS: usize = 10_000;
/// Between two tries: at first, and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(2);

/// Thaws a guest, with retries, until it says that it is not frozen. Returns how many file systems were thawed. Each
/// question may take `timeout`; after `patience` no further one is asked.
///
/// The agent does what it is told in order, so that after an answer no freeze from before can still come.
///
/// # Errors
/// What the guest answered last.
pub(super) fn thaw(guest: &dyn Guest, timeout: Duration, patience: Duration) -> Result<u64> {
    thaw_by(|timeout| guest.thaw(timeout), guest, timeout, patience)
}

/// As [`thaw`], where the first answer has been had already.
pub(super) fn make_sure(guest: &dyn Guest, first: Result<u64>, timeout: Duration, patience: Duration) -> Result<u64> {
    let mut first = Some(first);
    thaw_by(|timeout| first.take().unwrap_or_else(|| guest.thaw(timeout)), guest, timeout, patience)
}

fn thaw_by(
    mut thaw: impl FnMut(Duration) -> Result<u64>,
    guest: &dyn Guest,
    timeout: Duration,
    patience: Duration,
) -> Result<u64> {
    let deadline = Instant::now() + patience;
    let mut thawed: u64 = 0;
    let mut pause = FIRST_PAUSE;
    loop {
        let answer = thaw(timeout);
        thawed = thawed.saturating_add(*answer.as_ref().unwrap_or(&0));
        let error = match (guest.is_frozen(timeout), answer) {
            (Ok(false), _) => return Ok(thawed),
            (Ok(true), Ok(_)) => Error::new(ErrorKind::Unavailable, "it says that it thawed, and is still frozen"),
            (_, Err(error)) | (Err(error), _) => error,
        };
        if Instant::now() + pause >= deadline || is_gone(&error) {
            return Err(error);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(LAST_PAUSE);
    }
}

/// Whether nobody listens at a socket: the machine has ended, and its freeze with it.
fn is_gone(error: &Error) -> bool {
    use std::error::Error as _;
    let system = error.source().and_then(|source| source.downcast_ref::<std::io::Error>());
    error.kind() == ErrorKind::NotFound
        || system.is_some_and(|system| system.kind() == std::io::ErrorKind::ConnectionRefused)
}

/// Undoes what `ticket` stands for; what is undone already, or whose machine has ended, is fine. Says what it did, or
/// nothing if there was nothing to do.
///
/// # Errors
/// When it may still be in force.
pub(super) fn undo(ticket: &Ticket, timeout: Duration, patience: Duration) -> Result<Option<String>> {
    let undone = match ticket {
        Ticket::Agent { socket } => {
            let guest = AgentGuest::new(socket.clone());
            let thawed = thaw(&guest, timeout, patience);
            thawed.map(|thawed| (thawed > 0).then(|| format!("thawed the guest by {}", guest.describe())))
        }
        Ticket::Libvirt { connection, domain } => {
            let thawed = libvirt::thaw(connection, domain, timeout);
            thawed.map(|thawed| (thawed > 0).then(|| format!("thawed the domain {domain} of {connection}")))
        }
        Ticket::Monitor { socket } => resume(socket, timeout),
    };
    match undone {
        Err(error) if is_gone(&error) => Ok(None),
        other => other,
    }
}

/// Lets a virtual machine run again that is paused. QEMU serves one client of a monitor at a time.
fn resume(socket: &Path, timeout: Duration) -> Result<Option<String>> {
    let mut channel = Channel::connect(socket, Instant::now() + timeout)?;
    let greeting = channel.json(MOST_ANSWER_BYTES)?;
    if greeting.get("QMP").is_none() {
        return Err(Error::new(ErrorKind::Io, "this is no monitor of QEMU").at_path(socket));
    }
    execute(&mut channel, "qmp_capabilities")?;
    if execute(&mut channel, "query-status")?["status"] != "paused" {
        return Ok(None);
    }
    execute(&mut channel, "cont")?;
    Ok(Some(format!("let the machine behind {} run again", socket.display())))
}

fn execute(channel: &mut Channel, command: &str) -> Result<Value> {
    let mut request = json!({ "execute": command }).to_string();
    request.push('\n');
    channel.send(request.as_bytes())?;
    for _ in 0..MOST_EVENTS {
        let mut answer = channel.json(MOST_ANSWER_BYTES)?;
        if let Some(value) = answer.get_mut("return") {
            return Ok(value.take());
        }
        if let Some(error) = answer.get("error") {
            let words = error["desc"].as_str().unwrap_or_default();
            return Err(Error::new(ErrorKind::Io, format!("{command} failed: {words}")).at_path(channel.path()));
        }
    }
    Err(Error::new(ErrorKind::Io, format!("no answer to {command} among many events")).at_path(channel.path()))
}
