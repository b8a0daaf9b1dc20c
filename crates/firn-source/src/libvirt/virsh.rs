//! [`Virsh`]: libvirt asked by its own command, so that firn needs no library of it and works with any version.
//!
//! Each call is a process with an end to its wait. Messages are asked for in English (`LC_ALL=C`), since virsh's exit
//! code says no more than that it failed.

use crate::process::{self, Finished};
use firn_disk::{Error, ErrorKind, Result};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// The environment variable that names another program than `virsh`.
const PROGRAM: &str = "FIRN_VIRSH";
/// libvirt itself waits at most 30 s for a domain that is busy.
pub const PATIENCE: Duration = Duration::from_secs(40);

/// A connection to libvirt.
#[derive(Debug, Clone)]
pub struct Virsh {
    program: PathBuf,
    connection: String,
}

impl Virsh {
    /// By the program that `FIRN_VIRSH` names, else `virsh` on the `PATH`, at libvirt's URI `connection`.
    pub fn new(connection: &str) -> Self {
        let program = std::env::var_os(PROGRAM).filter(|program| !program.is_empty());
        Self::with_program(&program.map_or_else(|| "virsh".into(), PathBuf::from), connection)
    }

    /// By this program.
    pub fn with_program(program: &Path, connection: &str) -> Self {
        Self { program: program.to_owned(), connection: connection.to_owned() }
    }

    /// libvirt's URI.
    pub fn connection(&self) -> &str {
        &self.connection
    }

    /// Runs `virsh ARGUMENTS` and gives what it printed.
    ///
    /// # Errors
    /// `NotFound` without virsh or the domain, `Denied` when libvirt lets nobody in, `Unavailable` when it cannot be
    /// reached, is busy, or does not answer in time, `Unsupported`; `Io` with its words for all else.
    pub fn run(&self, arguments: &[&str], timeout: Duration) -> Result<String> {
        self.run_with(arguments, b"", timeout)
    }

    /// As [`run`](Self::run), with `input` to be read as `/dev/stdin`.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_with(&self, arguments: &[&str], input: &[u8], timeout: Duration) -> Result<String> {
        let mut command = Command::new(&self.program);
        command.args(["--connect", &self.connection]).args(arguments);
        command.env("LC_ALL", "C").env_remove("LANGUAGE");
        let finished = process::run(&mut command, input, timeout).map_err(|error| {
            if error.kind() == ErrorKind::NotFound {
                return Error::not_found("there is no virsh here").hint("install libvirt's clients (libvirt-clients)");
            }
            error
        })?;
        if finished.code == 0 {
            return Ok(finished.text());
        }
        let what = arguments.first().copied().unwrap_or_default();
        Err(explain(&finished, &self.connection).context(format!("virsh {what}")))
    }
}

/// virsh's words as an error.
fn explain(finished: &Finished, connection: &str) -> Error {
    let all = String::from_utf8_lossy(&finished.stderr);
    let words = finished.last_words();
    let words = words.strip_prefix("error: ").unwrap_or(&words);
    let has = |parts: &[&str]| parts.iter().any(|part| all.contains(part));
    let make = |kind| Error::new(kind, if words.is_empty() { "it failed without a word" } else { words });
    let is_unconnected = has(&["failed to connect to the hypervisor"]);
    let is_denied = has(&["Permission denied"]);
    if has(&["authentication unavailable", "access denied", "authentication failed"]) || is_unconnected && is_denied {
        return make(ErrorKind::Denied).hint(format!("who may use {connection} is root or in the group libvirt"));
    }
    if has(&["Domain not found", "failed to get domain", "no domain with matching"]) {
        return make(ErrorKind::NotFound).hint(format!("`virsh -c {connection} list --all` shows the domains"));
    }
    if is_denied {
        return make(ErrorKind::Denied).hint("libvirt and the user whom QEMU runs as have to get at this");
    }
    if is_unconnected || has(&["Cannot recv data", "client socket is closed"]) {
        return make(ErrorKind::Unavailable).hint("is libvirtd or virtqemud running?");
    }
    if has(&["guest agent is not configured"]) {
        return make(ErrorKind::Unsupported)
            .hint("give the domain a channel org.qemu.guest_agent.0, and install qemu-guest-agent in the guest");
    }
    if has(&["guest agent is not connected", "agent is not responding", "agent not available", "Guest agent"]) {
        return make(ErrorKind::Unavailable).hint("is qemu-guest-agent running in the guest?");
    }
    if has(&["cannot acquire state change lock", "Timed out during operation", "domain is not running"]) {
        return make(ErrorKind::Unavailable);
    }
    if has(&["unknown command", "not supported", "argument unsupported", "unsupported configuration"]) {
        return make(ErrorKind::Unsupported);
    }
    make(ErrorKind::Io)
}
