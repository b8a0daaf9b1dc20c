//! The QEMU guest agent behind its unix socket, as a [`Guest`].
//!
//! ```text
//!   -> FF {"execute":"guest-sync-delimited","arguments":{"id":N}}\n     FF makes the agent forget half a request
//!   <- …answers to whoever was connected before… FF {"return":N}\n
//!   -> {"execute":"guest-fsfreeze-freeze"}\n
//!   <- {"return":2}\n        or {"error":{"class":"GenericError","desc":"…"}}\n
//! ```
//! QEMU passes the bytes on to a serial port of the guest. It serves one client at a time: a second one connects and gets
//! no answer. Requests wait in the guest until the agent comes to them, in order, even when their client has gone. So a
//! freeze is sent only after the agent has answered, and a thaw is sent at once behind the `sync`, so that even an agent
//! that wakes up much later freezes and then thaws.
//!
//! What is not known here: a file system that somebody froze by hand in the guest. The agent tells of its own freezes
//! only. Windows is frozen and thawed by the same commands, but runs no hooks: they go to `/bin/sh`. A command whose start
//! is not answered in time may run on: nobody knows its number.
//!
//! Source: qga/qapi-schema.json, qga/main.c, qga/commands.c and qga/commands-posix.c of QEMU 7.2 to 10.

use super::channel::Channel;
use super::hooks::{last_part, quoted};
use super::{Ended, Guest, Ticket};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use firn_disk::{Error, ErrorKind, Result};
use serde_json::{Value, json};
use std::hash::{BuildHasher, RandomState};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The list of supported commands is about 8 KiB.
const MOST_ANSWER_BYTES: usize = 1 << 20;
/// Twice 16 MiB of output in base64, which is the agent's own limit, and its quotes.
const MOST_OUTPUT_BYTES: usize = 48 << 20;
/// Lines of others that are skipped before the answer to `sync`.
const MOST_STALE_LINES: usize = 10_000;
const SENTINEL: u8 = 0xFF;
/// Between two looks at whether a command in the guest has ended: at first, and at most.
const FIRST_LOOK: Duration = Duration::from_millis(10);
const LAST_LOOK: Duration = Duration::from_millis(250);
/// For the kill of a command that took too long.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// A guest by its QEMU guest agent. Every call makes a connection of its own: QEMU serves one at a time, and the
/// watchdog must get through.
#[derive(Debug, Clone)]
pub struct AgentGuest {
    socket: PathBuf,
    /// Tells the answer to a `sync` from all others; another one for each connection.
    next_number: Arc<AtomicU64>,
}

impl AgentGuest {
    /// The agent behind the unix socket of QEMU's character device; nothing is connected yet. The path should be
    /// absolute: the watchdog finds it by the same.
    pub fn new(socket: PathBuf) -> Self {
        // Nothing depends on it but that two clients differ.
        let number = RandomState::new().hash_one(std::process::id());
        Self::with_number(socket, number)
    }

    /// As [`new`](Self::new), with the number from which its `sync` requests count: far from those of other clients.
    pub fn with_number(socket: PathBuf, number: u64) -> Self {
        // JSON numbers above 2^53 are not safe with everybody.
        Self { socket, next_number: Arc::new(AtomicU64::new(number >> 12)) }
    }

    /// The names of the commands that the agent would carry out now; while it is frozen there are few.
    ///
    /// # Errors
    /// `Unavailable` when it does not answer in time.
    pub fn commands(&self, timeout: Duration) -> Result<Vec<String>> {
        let mut channel = self.connect(timeout)?;
        enabled_commands(&mut channel)
    }

    /// A connection on which the agent has answered.
    fn connect(&self, timeout: Duration) -> Result<Channel> {
        let mut channel = Channel::connect(&self.socket, Instant::now() + timeout)?;
        let (number, sync) = self.sync();
        channel.send(&sync)?;
        await_sync(&mut channel, number)?;
        Ok(channel)
    }

    fn sync(&self) -> (u64, Vec<u8>) {
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        let mut bytes = vec![SENTINEL];
        bytes.extend(request("guest-sync-delimited", &json!({ "id": number })));
        (number, bytes)
    }
}

/// Skips everything up to the answer to our own `sync`.
fn await_sync(channel: &mut Channel, number: u64) -> Result<()> {
    for _ in 0..MOST_STALE_LINES {
        let line = channel.line(MOST_OUTPUT_BYTES).map_err(|error| match error.kind() {
            ErrorKind::Unavailable => error.context("the guest agent").hint(
                "is qemu-guest-agent running in the guest, and is no other program connected to this socket? \
                     libvirt is, for the machines that it runs: name those as libvirt://DOMAIN",
            ),
            _ => error,
        })?;
        let start = line.iter().rposition(|byte| *byte == SENTINEL).map_or(0, |at| at + 1);
        let answer: Option<Value> = serde_json::from_slice(&line[start..]).ok();
        if answer.is_some_and(|answer| answer["return"] == number) {
            return Ok(());
        }
    }
    Err(garbage(channel, "it does not come to an answer"))
}

impl Guest for AgentGuest {
    fn describe(&self) -> String {
        format!("the guest agent at {}", self.socket.display())
    }

    fn is_frozen(&self, timeout: Duration) -> Result<bool> {
        let mut channel = self.connect(timeout)?;
        let answer = call(&mut channel, "guest-fsfreeze-status", &Value::Null, MOST_ANSWER_BYTES)?;
        match answer.as_str() {
            Some("frozen") => Ok(true),
            Some("thawed") => Ok(false),
            _ => Err(garbage(&channel, "it is neither frozen nor thawed")),
        }
    }

    fn freeze(&self, mount_points: &[String], timeout: Duration) -> Result<u64> {
        let mut channel = self.connect(timeout)?;
        let answer = if mount_points.is_empty() {
            call(&mut channel, "guest-fsfreeze-freeze", &Value::Null, MOST_ANSWER_BYTES)
        } else {
            let arguments = json!({ "mountpoints": mount_points });
            call(&mut channel, "guest-fsfreeze-freeze-list", &arguments, MOST_ANSWER_BYTES)
        }?;
        answer.as_u64().ok_or_else(|| garbage(&channel, "it does not say how many file systems it froze"))
    }

    fn thaw(&self, timeout: Duration) -> Result<u64> {
        let mut channel = Channel::connect(&self.socket, Instant::now() + timeout)?;
        let (number, mut requests) = self.sync();
        requests.extend(request("guest-fsfreeze-thaw", &Value::Null));
        channel.send(&requests)?;
        await_sync(&mut channel, number)?;
        let answer = answer(&mut channel, "guest-fsfreeze-thaw", MOST_ANSWER_BYTES)?;
        answer.as_u64().ok_or_else(|| garbage(&channel, "it does not say how many file systems it thawed"))
    }

    fn run(&self, command: &str, environment: &[(String, String)], timeout: Duration) -> Result<Ended> {
        let mut channel = self.connect(timeout)?;
        // An environment given to the agent would replace all of its own, PATH included.
        let exports = environment.iter().map(|(name, value)| format!("export {name}={}\n", quoted(value)));
        let script = exports.chain([command.to_owned()]).collect::<String>();
        let arguments = json!({ "path": "/bin/sh", "arg": ["-c", script], "capture-output": true });
        let started = call(&mut channel, "guest-exec", &arguments, MOST_ANSWER_BYTES)?;
        let process = started["pid"].as_i64().ok_or_else(|| garbage(&channel, "it names no process"))?;
        let ended = await_end(&mut channel, process);
        // QEMU hears nobody else as long as this client is there.
        drop(channel);
        if ended.as_ref().is_err_and(|error| error.kind() == ErrorKind::Unavailable) {
            // Whether or not that helps: nobody waits for it any more.
            let arguments = json!({ "path": "/bin/sh", "arg": ["-c", format!("kill {process}")] });
            drop(
                self.connect(KILL_TIMEOUT)
                    .and_then(|mut channel| call(&mut channel, "guest-exec", &arguments, MOST_ANSWER_BYTES)),
            );
        }
        ended
    }

    fn ticket(&self) -> Ticket {
        Ticket::Agent { socket: self.socket.clone() }
    }
}

/// Polls until the process in the guest has ended.
fn await_end(channel: &mut Channel, process: i64) -> Result<Ended> {
    let mut pause = FIRST_LOOK;
    loop {
        let status = call(channel, "guest-exec-status", &json!({ "pid": process }), MOST_OUTPUT_BYTES)?;
        match status["exited"].as_bool() {
            Some(true) => return to_ended(channel, &status),
            Some(false) => {}
            None => return Err(garbage(channel, "it does not say whether the command has ended")),
        }
        let left = channel.deadline().saturating_duration_since(Instant::now());
        if left.is_zero() {
            let message = "the command in the guest did not end in time";
            return Err(Error::new(ErrorKind::Unavailable, message).at_path(channel.path()));
        }
        std::thread::sleep(pause.min(left));
        pause = (pause * 2).min(LAST_LOOK);
    }
}

fn to_ended(channel: &Channel, status: &Value) -> Result<Ended> {
    let number = |name: &str| status[name].as_i64().and_then(|number| i32::try_from(number).ok());
    let code = number("exitcode").or_else(|| number("signal").map(|signal| 128_i32.saturating_add(signal)));
    let mut output = Vec::new();
    for name in ["out-data", "err-data"] {
        let text = status[name].as_str().unwrap_or_default();
        let bytes = STANDARD.decode(text).map_err(|_| garbage(channel, "the command's output is not base64"))?;
        output.extend(bytes);
    }
    let code = code.ok_or_else(|| garbage(channel, "it does not say how the command ended"))?;
    Ok(Ended { code, output: last_part(&output) })
}

fn request(command: &str, arguments: &Value) -> Vec<u8> {
    let mut message = json!({ "execute": command });
    if !arguments.is_null() {
        message["arguments"] = arguments.clone();
    }
    let mut bytes = message.to_string().into_bytes();
    bytes.push(b'\n');
    bytes
}

fn call(channel: &mut Channel, command: &str, arguments: &Value, limit: usize) -> Result<Value> {
    channel.send(&request(command, arguments))?;
    answer(channel, command, limit)
}

fn answer(channel: &mut Channel, command: &str, limit: usize) -> Result<Value> {
    let mut answer = channel.json(limit).map_err(|error| error.context(command))?;
    if let Some(value) = answer.get_mut("return") {
        return Ok(value.take());
    }
    let (class, words) = (answer["error"]["class"].as_str(), answer["error"]["desc"].as_str());
    let words = words.ok_or_else(|| garbage(channel, "it is neither a result nor an error"))?;
    if class == Some("CommandNotFound") {
        let message = format!("the guest agent does not do {command}: {words}");
        return Err(Error::unsupported(message).at_path(channel.path()).hint(why_not(channel, command)));
    }
    Err(Error::new(ErrorKind::Io, format!("{command} failed in the guest: {words}")).at_path(channel.path()))
}

/// What to do about a command that the agent has but does not carry out, or does not have.
fn why_not(channel: &mut Channel, command: &str) -> String {
    let status = call_plain(channel, "guest-fsfreeze-status");
    if status.is_some_and(|status| status == "frozen") {
        return "the guest is frozen already, by somebody else".to_owned();
    }
    let info = call_plain(channel, "guest-info");
    let listed =
        info.as_ref().and_then(|info| info["supported_commands"].as_array()?.iter().find(|it| it["name"] == command));
    match listed {
        Some(_) => format!(
            "the guest's own settings forbid it: take {command} off block-rpcs (or blacklist) in /etc/qemu/qemu-ga.conf, \
             /etc/sysconfig/qemu-ga or the agent's command line in the guest, and restart the agent there"
        ),
        None => "a newer qemu-guest-agent in the guest may know it".to_owned(),
    }
}

/// For an error's hint, which must not bring another error.
fn call_plain(channel: &mut Channel, command: &str) -> Option<Value> {
    channel.send(&request(command, &Value::Null)).ok()?;
    Some(channel.json(MOST_ANSWER_BYTES).ok()?.get_mut("return")?.take())
}

fn enabled_commands(channel: &mut Channel) -> Result<Vec<String>> {
    let info = call(channel, "guest-info", &Value::Null, MOST_ANSWER_BYTES)?;
    let listed = info["supported_commands"].as_array();
    let listed = listed.ok_or_else(|| garbage(channel, "it does not list its commands"))?;
    let enabled = listed.iter().filter(|command| command["enabled"] == true);
    Ok(enabled.filter_map(|command| command["name"].as_str().map(str::to_owned)).collect())
}

fn garbage(channel: &Channel, what: &str) -> Error {
    Error::new(ErrorKind::Io, format!("the guest agent answers nonsense: {what}")).at_path(channel.path())
}
