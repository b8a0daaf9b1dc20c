//! Hooks: the user's commands before the freeze and after the thaw, in the guest, on this host, or over ssh.
//!
//! ```text
//!   FIRN_MACHINE   the machine's name
//!   FIRN_PHASE     pre-freeze | post-thaw
//!   FIRN_OUTCOME   post-thaw only: application | filesystem | crash | torn, or failed: what became of the cut
//! ```
//! On the host a command runs by `sh -c` in the folder where firn was started; over ssh by `sh -c` there, with `ssh -o
//! BatchMode=yes HOST`, so that nothing is ever asked. In the guest it runs by `/bin/sh -c`, through the
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

impl Hook {
    /// A hook that may take 60 s.
    pub fn new(place: Place, phase: Phase, command: impl Into<String>) -> Self {
        Self { place, phase, command: command.into(), timeout: Duration::from_secs(60) }
    }
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

    /// The last line of its output that says something.
    pub fn last_line(&self) -> &str {
        self.output.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default()
    }
}

/// The last 64 KiB of what was printed, as text.
pub(super) fn last_part(bytes: &[u8]) -> String {
    let start = bytes.len().saturating_sub(MOST_OUTPUT_BYTES);
    String::from_utf8_lossy(&bytes[start..]).into_owned()
}

/// What a hook is run with.
pub(super) struct Setting<'a> {
    pub machine: &'a str,
    /// For `FIRN_OUTCOME`, after the thaw.
    pub outcome: Option<&'a str>,
    /// Where hooks in the guest run.
    pub guest: Option<&'a dyn Guest>,
    /// Where hooks on the host run.
    pub folder: &'a Path,
    pub elapsed: &'a dyn Fn() -> Duration,
}

impl Setting<'_> {
    fn environment(&self, phase: Phase) -> Vec<(String, String)> {
        let outcome = self.outcome.map(|outcome| ("FIRN_OUTCOME", outcome));
        let all = [("FIRN_MACHINE", self.machine), ("FIRN_PHASE", phase.as_str())].into_iter().chain(outcome);
        all.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }
}

/// Runs a hook to its end or until its time is over.
pub(super) fn run(hook: &Hook, setting: &Setting<'_>) -> HookOutcome {
    let environment = setting.environment(hook.phase);
    let began = (setting.elapsed)();
    let ended = match &hook.place {
        Place::Guest => setting
            .guest
            .ok_or_else(|| Error::unsupported("there is no guest to run it in"))
            .and_then(|guest| guest.run(&hook.command, &environment, hook.timeout)),
        Place::Host => {
            let mut command = Command::new("sh");
            command.args(["-c", &hook.command]).envs(environment).current_dir(setting.folder);
            run_program(&mut command, hook.timeout)
        }
        Place::Ssh(host) => run_by_ssh(host, &hook.command, &environment, hook.timeout),
    };
    let milliseconds = (setting.elapsed)().saturating_sub(began).as_millis();
    let (code, output) = match ended {
        Ok(ended) => (Some(ended.code), ended.output),
        Err(error) => (None, error.to_string()),
    };
    HookOutcome {
        place: hook.place.clone(),
        phase: hook.phase,
        command: hook.command.clone(),
        code,
        milliseconds: u64::try_from(milliseconds).unwrap_or(u64::MAX),
        output,
    }
}

/// The login shell there may be any; of what it is given here all of them think the same.
fn run_by_ssh(host: &str, command: &str, environment: &[(String, String)], timeout: Duration) -> Result<Ended> {
    if host.is_empty() || host.starts_with('-') {
        return Err(Error::invalid(format!("{host:?} is no host")));
    }
    let mut ssh = Command::new("ssh");
    ssh.args(["-o", "BatchMode=yes", host, &remote_command(command, environment)]);
    run_program(&mut ssh, timeout)
}

fn remote_command(command: &str, environment: &[(String, String)]) -> String {
    let variables = environment.iter().map(|(name, value)| format!("{name}={} ", quoted(value))).collect::<String>();
    format!("env {variables}sh -c {}", quoted(command))
}

fn run_program(command: &mut Command, timeout: Duration) -> Result<Ended> {
    let finished = process::run(command, &[], timeout)?;
    let output = [finished.stdout, finished.stderr].concat();
    Ok(Ended { code: finished.code, output: last_part(&output) })
}

/// A word for `sh` that stands for exactly `value`.
pub(super) fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting<'a>(folder: &'a Path, elapsed: &'a dyn Fn() -> Duration) -> Setting<'a> {
        Setting { machine: "web1", outcome: Some("crash"), guest: None, folder, elapsed }
    }

    #[test]
    fn on_the_host_it_runs_in_the_folder_of_the_run() {
        let folder = tempfile::tempdir().unwrap();
        let script = "pwd; echo $FIRN_MACHINE $FIRN_PHASE $FIRN_OUTCOME; echo last words >&2; exit 7";
        let hook = Hook::new(Place::Host, Phase::PostThaw, script);
        let outcome = run(&hook, &setting(folder.path(), &|| Duration::ZERO));
        let folder = folder.path().canonicalize().unwrap();
        assert_eq!((outcome.code, outcome.is_good(), outcome.last_line()), (Some(7), false, "last words"));
        assert_eq!(outcome.output, format!("{}\nweb1 post-thaw crash\nlast words\n", folder.display()));
    }

    #[test]
    fn what_the_shell_over_there_gets_is_what_was_meant() {
        let environment = [("FIRN_MACHINE".to_owned(), "a'b $c".to_owned())];
        let remote = remote_command("printf '%s|' \"$FIRN_MACHINE\" \"it's\"; exit 3", &environment);
        // sshd gives it to the login shell by -c.
        let mut shell = Command::new("sh");
        let ended = run_program(shell.args(["-c", &remote]), Duration::from_secs(60)).unwrap();
        assert_eq!(ended, Ended { code: 3, output: "a'b $c|it's|".to_owned() });
    }

    #[test]
    fn a_host_is_never_an_option_and_no_guest_is_no_success() {
        for place in [Place::Ssh("-oProxyCommand=x".to_owned()), Place::Ssh(String::new()), Place::Guest] {
            let hook = Hook::new(place, Phase::PreFreeze, "true");
            let outcome = run(&hook, &setting(Path::new("/"), &|| Duration::ZERO));
            assert!(outcome.code.is_none() && !outcome.is_good() && !outcome.output.is_empty());
        }
    }
}
