//! Quiescing: a guest is brought to a consistent point, the instant is cut, and the guest goes on, whatever happens.

mod agent;
mod channel;
mod cut;
mod freeze;
mod hooks;
mod judge;
mod record;
mod undo;
mod watch;
mod watchdog;

pub use agent::AgentGuest;
pub use cut::{Consistency, CutOptions, FailedHook, Freeze, Member, Surroundings, Taken, take};
pub use hooks::{Hook, HookOutcome, Phase, Place};
pub use record::state_folder;
pub use watch::{Watch, WatchdogProgram};
pub use watchdog::{Opener, Teller, recover, watch};

use firn_disk::Result;
use serde::{Deserialize, Serialize};
use std::fmt::Debug;
use std::path::PathBuf;
use std::time::Duration;

/// A guest that can be asked to hold still. Implementations never wait longer than they are told.
pub trait Guest: Debug + Send + Sync {
    /// For people: `the guest agent at /run/web1/ga.sock`.
    fn describe(&self) -> String;

    /// Whether file systems of the guest are frozen now, by whomever.
    ///
    /// # Errors
    /// `Unavailable` when it does not answer in time.
    fn is_frozen(&self, timeout: Duration) -> Result<bool>;

    /// Freezes these mount points, all where none are named. Returns how many file systems were frozen.
    ///
    /// After an error, the time running out included, the guest may be frozen: the caller thaws it.
    ///
    /// # Errors
    /// `Unavailable` when it does not answer in time, `Unsupported` when it cannot freeze, `Io` when it says that it failed.
    fn freeze(&self, mount_points: &[String], timeout: Duration) -> Result<u64>;

    /// Thaws all file systems. Returns how many were thawed; none is no error.
    ///
    /// # Errors
    /// As [`freeze`](Self::freeze).
    fn thaw(&self, timeout: Duration) -> Result<u64>;

    /// Runs a command inside the guest by its shell and waits for its end.
    ///
    /// # Errors
    /// `Unavailable` when it does not end in time, `Unsupported` when the guest runs no commands. A command that ends
    /// with another code than 0 is no error here.
    fn run(&self, command: &str, environment: &[(String, String)], timeout: Duration) -> Result<Ended>;

    /// By what another process can thaw it.
    fn ticket(&self) -> Ticket;
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Its exit code; 128 and the signal's number if one killed it.
    pub code: i32,
    /// The last 64 KiB of what it printed, stdout before stderr.
    pub output: String,
}

/// What undoes a freeze or pause, written down so that any process can do it. Undoing twice does no harm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ticket {
    /// `guest-fsfreeze-thaw` to the QEMU guest agent behind this socket.
    Agent {
        /// Absolute path of the socket.
        socket: PathBuf,
    },
    /// `virsh domfsthaw`.
    Libvirt {
        /// The connection, as `qemu:///system`.
        connection: String,
        /// The domain's name or UUID.
        domain: String,
    },
    /// `cont` to the QMP monitor behind this socket: the virtual machine was paused for the cut.
    Monitor {
        /// Absolute path of the socket.
        socket: PathBuf,
    },
}
