//! Hooks: the user's commands before the freeze and after the thaw, in the guest, on this host, or over ssh.
//!
//! ```text
//!   FIRN_MACHINE   the machine's name
//!   FIRN_PHASE     pre-freeze | post-thaw
//!   FIRN_OUTCOME   post-thaw only: application | filesystem | crash | torn, or failed: what became of the cut
//! ```
//! On the host a command runs by `sh -c` in the folder where firn was started. Over ssh it is given to the user's login
//! shell by `ssh -o BatchMode=yes HOST`, so that nothing is ever asked. In the guest it runs by `/bin/sh -c`, through the
//! guest's agent. Once the first pre-freeze hook of a machine was started, all its post-thaw hooks run, whatever happens.

use super::{Ended, Guest};
use crate::process;
use firn_disk::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// The most that is kept of what a hook printed.
pub const MOST_OUTPUT_BYTES: usize = 64 << 10;

/// Where a hook runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// In the guest, through its agent.
    Guest,
    /// On this host, by `sh -c`.
    Host,
    /// On another host, by ssh: `HOST` or `USER@HOST`. It must let us in without a question.
    Ssh(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Guest => f.write_str("guest"),
            Self::Host => f.write_str("host"),
            Self::Ssh(host) => write!(f, "ssh {host}"),
        }
    }
}

/// When a hook runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Before the guest is frozen.
    PreFreeze,
    /// After it was thawed, whatever became of the snapshot.
    PostThaw,
}

impl Phase {
    /// As in `FIRN_PHASE`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PreFreeze => "pre-freeze",
            Self::PostThaw => "post-thaw",
        }
    }
}

/// A command of the user's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    /// Where it runs.
    pub place: Place,
    /// When it runs.
    pub phase: Phase,
    /// For the shell there.
    pub command: String,
    /// When this is over, it is killed; in the guest and over ssh as far as that can be done from here.
    pub timeout: Duration,
}

/// What became of a hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookOutcome {
    /// Where it ran.
    pub place: Place,
    /// When it ran.
    pub phase: Phase,
    /// What ran.
    pub command: String,
    /// Its exit code, 128 and the signal's number if one killed it; `None` where it did not run or did not end in time.
    pub code: Option<i32>,
    /// How long it took.
    pub milliseconds: u64,
    /// The last 64 KiB of what it printed, stdout before stderr; or why there is no exit code.
    pub output: String,
}

impl HookOutcome {
    /// Whether it ended with code 0.
    pub fn is_good(&self) -> bool {
        self.code == Some(0)
    }
}

/// The last 64 KiB of what was printed, as text.
pub(super) fn last_part(bytes: &[u8]) -> String {
    let start = bytes.len().saturating_sub(MOST_OUTPUT_BYTES);
    String::from_utf8_lossy(&bytes[start..]).into_owned()
}
