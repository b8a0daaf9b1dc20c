//! [`LibvirtGuest`]: a guest frozen and thawed through libvirt, which owns its agent's channel.
//!
//! `domfsfreeze` and `domfsthaw` freeze and thaw. Whether it is frozen, and commands inside, go by `qemu-agent-command`,
//! which needs the same rights; libvirt then marks the run as tainted (`custom-ga-command`), which has no effect.
//!
//! A virsh that takes too long is killed, but libvirt goes on waiting for the agent, and others that want it wait behind.
//! So after a freeze that came too late the thaw is tried again until it is through or its own time is over. An agent that
//! is missing answers at once, one that hangs in 5 s.

use super::virsh::Virsh;
use crate::quiesce::{Ended, Guest, Ticket};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use firn_disk::{Error, ErrorKind, Result};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Of a command's output so much is kept.
const MOST_OUTPUT: usize = 64 << 10;

/// A guest behind libvirt.
#[derive(Debug, Clone)]
pub struct LibvirtGuest {
    virsh: Virsh,
    domain: String,
}

/// Thaws the guest of `domain` at libvirt's URI `connection`, for whoever has a [`Ticket::Libvirt`]. Returns how many file
/// systems were thawed; a domain that does not run has none. Blocks for at most `timeout`.
///
/// # Errors
/// As [`Guest::thaw`].
pub fn thaw(connection: &str, domain: &str, timeout: Duration) -> Result<u64> {
    LibvirtGuest::new(Virsh::new(connection), domain).thaw(timeout)
}

impl LibvirtGuest {
    /// The guest of `domain`, by name or UUID.
    pub fn new(virsh: Virsh, domain: &str) -> Self {
        Self { virsh, domain: domain.to_owned() }
    }

    fn agent(&self, command: &Value, deadline: Instant) -> Result<Value> {
        let left = deadline.saturating_duration_since(Instant::now());
        let seconds = left.as_secs().max(1).to_string();
        let command = command.to_string();
        let arguments = ["qemu-agent-command", "--domain", &self.domain, "--timeout", &seconds, "--cmd", &command];
        let text = self.virsh.run(&arguments, left)?;
        let answer: Option<Value> = serde_json::from_str(&text).ok();
        answer.and_then(|mut answer| answer.get_mut("return").map(Value::take)).ok_or_else(nonsense)
    }

    fn is_off(&self, timeout: Duration) -> bool {
        let state = self.virsh.run(&["domstate", "--domain", &self.domain], timeout);
        state.is_ok_and(|state| state.trim() == "shut off" || state.trim() == "crashed")
    }
}

impl Guest for LibvirtGuest {
    fn describe(&self) -> String {
        format!("the guest agent of domain {} at {}", self.domain, self.virsh.connection())
    }

    fn is_frozen(&self, timeout: Duration) -> Result<bool> {
        let answer = self.agent(&json!({"execute": "guest-fsfreeze-status"}), Instant::now() + timeout)?;
        match answer.as_str() {
            Some("frozen") => Ok(true),
            Some("thawed") => Ok(false),
            _ => Err(nonsense()),
        }
    }

    fn freeze(&self, mount_points: &[String], timeout: Duration) -> Result<u64> {
        let mut arguments = vec!["domfsfreeze", "--domain", &self.domain];
        for mount_point in mount_points {
            arguments.extend(["--mountpoint", mount_point]);
        }
        count(&self.virsh.run(&arguments, timeout)?)
    }

    fn thaw(&self, timeout: Duration) -> Result<u64> {
        let deadline = Instant::now() + timeout;
        let mut pause = Duration::from_millis(50);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let error = match self.virsh.run(&["domfsthaw", "--domain", &self.domain], left) {
                Ok(text) => return count(&text),
                Err(error) => error,
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if error.kind() != ErrorKind::Unavailable || left < pause {
                return Err(error);
            }
            if self.is_off(left) {
                return Ok(0);
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_secs(1));
        }
    }

    fn run(&self, command: &str, environment: &[(String, String)], timeout: Duration) -> Result<Ended> {
        let deadline = Instant::now() + timeout;
        let environment: Vec<_> = environment.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let arguments = json!({"path": "/bin/sh", "arg": ["-c", command], "env": environment, "capture-output": true});
        let started = self.agent(&json!({"execute": "guest-exec", "arguments": arguments}), deadline)?;
        let number = started.get("pid").and_then(Value::as_i64).ok_or_else(nonsense)?;
        let question = json!({"execute": "guest-exec-status", "arguments": {"pid": number}});
        let mut pause = Duration::from_millis(20);
        loop {
            let answer = self.agent(&question, deadline)?;
            if answer.get("exited").and_then(Value::as_bool) == Some(true) {
                return ended(&answer);
            }
            if Instant::now() + pause >= deadline {
                return Err(Error::new(ErrorKind::Unavailable, "the command in the guest did not end in time"));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(500));
        }
    }

    fn ticket(&self) -> Ticket {
        Ticket::Libvirt { connection: self.virsh.connection().to_owned(), domain: self.domain.clone() }
    }
}

/// `Froze 2 filesystem(s)`.
fn count(text: &str) -> Result<u64> {
    text.split_whitespace().find_map(|word| word.parse().ok()).ok_or_else(nonsense)
}

fn nonsense() -> Error {
    Error::new(ErrorKind::Io, "virsh gave an answer that makes no sense")
}

fn ended(answer: &Value) -> Result<Ended> {
    let code = answer.get("exitcode").and_then(Value::as_i64);
    let signal = answer.get("signal").and_then(Value::as_i64).map(|signal| signal.saturating_add(128));
    let code = code.or(signal).and_then(|code| i32::try_from(code).ok()).ok_or_else(nonsense)?;
    let mut bytes = Vec::new();
    for key in ["out-data", "err-data"] {
        if let Some(text) = answer.get(key).and_then(Value::as_str) {
            bytes.extend(STANDARD.decode(text).map_err(|_| nonsense())?);
        }
    }
    let tail = bytes.split_at(bytes.len().saturating_sub(MOST_OUTPUT)).1;
    Ok(Ended { code, output: String::from_utf8_lossy(tail).into_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_command_in_the_guest_said() {
        let answer = json!({"exited": true, "exitcode": 3, "out-data": "aGkK", "err-data": "bm8="});
        assert_eq!(ended(&answer).unwrap(), Ended { code: 3, output: "hi\nno".to_owned() });
        assert_eq!(ended(&json!({"exited": true, "signal": 9})).unwrap().code, 137);
        for answer in [json!({}), json!({"exitcode": 1_u64 << 40}), json!({"exitcode": 0, "out-data": "a!"})] {
            assert_eq!(ended(&answer).unwrap_err().kind(), ErrorKind::Io);
        }
        assert_eq!((count("Froze 2 filesystem(s)\n").unwrap(), count("").is_err()), (2, true));
    }
}
