//! [`Monitor`]: a client of QMP, the protocol of QEMU's monitor, over its unix socket.
//!
//! ```text
//!   <- {"QMP": {"version": {"qemu": {"major": 7, ...}}, ...}}      once, when the connection is ours
//!   -> {"execute": "qmp_capabilities", "id": 0}
//!   -> {"execute": COMMAND, "arguments": {...}, "id": N}           a file descriptor may come along (SCM_RIGHTS)
//!   <- {"return": ..., "id": N}   or   {"error": {"class": ..., "desc": ...}, "id": N}
//!   <- {"event": NAME, "data": {...}, "timestamp": {...}}          at any time
//! ```
//! One JSON object a line. A socket serves one client: who comes second is not greeted until the first leaves.
//! A thread reads whatever comes, so that QEMU never has to keep it for us. The other side is not trusted: lines have a
//! limit, every wait has an end, and an answer that nobody asked for ends the connection.
//!
//! Source: QEMU, docs/interop/qmp-spec.

use firn_disk::{Error, ErrorKind, Result};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::io::{BufRead, BufReader, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The longest line that is read: machines with hundreds of disks and bitmaps fill some MiB.
const LINE_BYTES: u64 = 16 << 20;
/// Events that are kept for whoever asks; older ones are dropped.
const EVENTS: usize = 1024;
/// Answers that may wait at a time. We ask for one at a time, so that more than a few is nonsense.
const ANSWERS: usize = 16;

/// How long an answer is waited for, where nothing else is said.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// QEMU's version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub(super) struct Version {
    pub(super) major: u32,
    pub(super) minor: u32,
    pub(super) micro: u32,
}

/// What QEMU tells without being asked.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Event {
    pub(super) name: String,
    pub(super) data: Value,
}

/// A line from QEMU.
#[derive(Debug, Deserialize)]
struct Message {
    event: Option<String>,
    #[serde(default)]
    data: Value,
    id: Option<Value>,
    #[serde(default, rename = "return", deserialize_with = "present")]
    answer: Option<Value>,
    error: Option<Refusal>,
}

/// `"return": null` is an answer as well.
fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

#[derive(Debug, Deserialize)]
struct Refusal {
    #[serde(default)]
    class: String,
    #[serde(default)]
    desc: String,
}

/// What the reading thread hands over.
#[derive(Debug)]
enum Incoming {
    Greeting(Version),
    Answer(Message),
    /// Nothing comes any more, and why.
    End(Error),
}

/// The events that have come and were not taken yet.
#[derive(Debug, Default)]
pub(super) struct Events {
    queue: Mutex<VecDeque<Event>>,
    came: Condvar,
}

impl Events {
    fn push(&self, event: Event) {
        let mut queue = locked(&self.queue);
        if queue.len() >= EVENTS {
            queue.pop_front();
        }
        queue.push_back(event);
        self.came.notify_all();
    }

    /// Takes what has come; waits for it at most for `timeout` while there is nothing.
    pub(super) fn take(&self, timeout: Duration) -> Vec<Event> {
        let (mut queue, _) = self
            .came
            .wait_timeout_while(locked(&self.queue), timeout, |queue| queue.is_empty())
            .unwrap_or_else(PoisonError::into_inner);
        queue.drain(..).collect()
    }

    /// Lets whoever waits look at something else.
    pub(super) fn wake(&self) {
        self.push(Event { name: String::new(), data: Value::Null });
    }
}

/// A connection to QEMU's monitor. Commands of several threads wait for one another.
#[derive(Debug)]
pub(super) struct Monitor {
    path: PathBuf,
    version: Version,
    line: Mutex<Line>,
    events: Arc<Events>,
}

#[derive(Debug)]
struct Line {
    socket: UnixStream,
    incoming: Receiver<Incoming>,
    next_id: u64,
    /// The end, once it was told.
    end: Option<Error>,
}

impl Monitor {
    /// Connects and waits for the greeting.
    ///
    /// # Errors
    /// `NotFound` when there is no such socket, `Unavailable` when nobody listens there, or when no greeting comes
    /// within `timeout` since another client has the monitor; `Io` when it is no QMP.
    pub(super) fn connect(path: &Path, timeout: Duration) -> Result<Self> {
        let io = |what: &str| {
            let what = what.to_owned();
            move |error| Error::from_io(what, error).at_path(path)
        };
        let socket = UnixStream::connect(path).map_err(io("connect to QEMU's monitor"))?;
        socket.set_write_timeout(Some(timeout)).map_err(io("set up the connection"))?;
        let reader = socket.try_clone().map_err(io("set up the connection"))?;
        let (sender, incoming) = sync_channel(ANSWERS);
        let events = Arc::new(Events::default());
        let for_thread = events.clone();
        std::thread::Builder::new()
            .name("qmp".to_owned())
            .spawn(move || listen(reader, &sender, &for_thread))
            .map_err(io("start a thread"))?;
        let mut line = Line { socket, incoming, next_id: 0, end: None };
        let version = line.greeting(timeout).map_err(|error| error.at_path(path))?;
        let monitor = Self { path: path.to_path_buf(), version, line: Mutex::new(line), events };
        monitor.execute_within("qmp_capabilities", Value::Null, timeout)?;
        Ok(monitor)
    }

    /// The version that QEMU gave in its greeting.
    pub(super) fn version(&self) -> Version {
        self.version
    }

    /// The socket.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The events that come.
    pub(super) fn events(&self) -> Arc<Events> {
        self.events.clone()
    }

    /// Runs a command and waits for its answer, at most [`PATIENCE`].
    ///
    /// # Errors
    /// As [`execute_within`](Self::execute_within).
    pub(super) fn execute(&self, command: &str, arguments: Value) -> Result<Value> {
        self.execute_within(command, arguments, PATIENCE)
    }

    /// As [`execute`](Self::execute), with the answer read as `T`.
    ///
    /// # Errors
    /// As [`execute_within`](Self::execute_within); `Io` for an answer of another shape.
    pub(super) fn ask<T: serde::de::DeserializeOwned>(&self, command: &str, arguments: Value) -> Result<T> {
        let answer = self.execute(command, arguments)?;
        serde_json::from_value(answer).map_err(|error| {
            let message = format!("{command}: QEMU's answer has another shape than expected");
            Error::new(ErrorKind::Io, message).because(error).at_path(&self.path)
        })
    }

    /// Runs a command and waits for its answer.
    ///
    /// # Errors
    /// What QEMU says: `NotFound` for a device or node that is not there, `Unsupported` for a command that it does not
    /// have, else `Io`. `Unavailable` when no answer comes in time or the connection is lost: the command may have been
    /// carried out then.
    pub(super) fn execute_within(&self, command: &str, arguments: Value, timeout: Duration) -> Result<Value> {
        self.call(command, arguments, None, timeout)
    }

    /// Runs a command with a file descriptor beside it.
    ///
    /// # Errors
    /// As [`execute_within`](Self::execute_within).
    pub(super) fn execute_with(&self, command: &str, arguments: Value, descriptor: BorrowedFd<'_>) -> Result<Value> {
        self.call(command, arguments, Some(descriptor), PATIENCE)
    }

    /// Ends the connection, so that another client can have the monitor.
    pub(super) fn hang_up(&self) {
        let mut line = locked(&self.line);
        line.end.get_or_insert_with(closed);
        // That the other side is gone already is no error.
        let _ = line.socket.shutdown(std::net::Shutdown::Both);
    }

    /// Whether the connection has ended, as far as is known.
    pub(super) fn has_ended(&self) -> bool {
        locked(&self.line).end.is_some()
    }

    fn call(
        &self,
        command: &str,
        arguments: Value,
        descriptor: Option<BorrowedFd<'_>>,
        timeout: Duration,
    ) -> Result<Value> {
        let outcome = locked(&self.line).call(command, arguments, descriptor, timeout);
        outcome.map_err(|error| error.context(command).at_path(&self.path))
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        // The thread that reads sees the end and goes.
        self.hang_up();
    }
}

impl Line {
    fn greeting(&mut self, timeout: Duration) -> Result<Version> {
        match self.incoming.recv_timeout(timeout) {
            Ok(Incoming::Greeting(version)) => Ok(version),
            Ok(Incoming::Answer(_)) => Err(no_qmp("an answer in place of a greeting")),
            Ok(Incoming::End(error)) => Err(error),
            Err(_) => Err(Error::new(ErrorKind::Unavailable, "QEMU's monitor does not greet us")
                .hint("another program is connected to this socket, or QEMU hangs; give firn a monitor of its own by another -qmp option")),
        }
    }

    fn call(
        &mut self,
        command: &str,
        arguments: Value,
        descriptor: Option<BorrowedFd<'_>>,
        timeout: Duration,
    ) -> Result<Value> {
        if let Some(end) = &self.end {
            return Err(end.clone());
        }
        let id = self.next_id;
        self.next_id += 1;
        let mut message = json!({"execute": command, "id": id});
        if !arguments.is_null() {
            message["arguments"] = arguments;
        }
        let deadline = Instant::now() + timeout;
        self.send(format!("{message}\n").as_bytes(), descriptor).map_err(|error| {
            // Half a line may be on its way: nothing more can be said.
            let error = Error::new(ErrorKind::Unavailable, "the connection to QEMU is lost").because(error);
            self.end.insert(error).clone()
        })?;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let end = match self.incoming.recv_timeout(left) {
                Ok(Incoming::Answer(message)) => match message.id.as_ref().and_then(Value::as_u64) {
                    Some(answered) if answered == id => return message.outcome(),
                    // It was given up, and comes late.
                    Some(answered) if answered < id => continue,
                    _ => no_qmp("an answer to what was never asked"),
                },
                Ok(Incoming::Greeting(_)) => no_qmp("a second greeting"),
                Ok(Incoming::End(error)) => error,
                Err(RecvTimeoutError::Timeout) => {
                    let message = format!("QEMU did not answer within {} s", timeout.as_secs_f32());
                    return Err(Error::new(ErrorKind::Unavailable, message));
                }
                Err(RecvTimeoutError::Disconnected) => closed(),
            };
            return Err(self.end.insert(end).clone());
        }
    }

    fn send(&mut self, bytes: &[u8], descriptor: Option<BorrowedFd<'_>>) -> std::io::Result<()> {
        let Some(descriptor) = descriptor else { return self.socket.write_all(bytes) };
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let descriptors = [descriptor];
        ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
        let sent = sendmsg(&self.socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)?;
        self.socket.write_all(bytes.get(sent..).unwrap_or_default())
    }
}

impl Message {
    fn outcome(self) -> Result<Value> {
        match (self.answer, self.error) {
            (_, Some(refusal)) => Err(Error::new(refusal.kind(), refusal.desc)),
            (Some(answer), None) => Ok(answer),
            (None, None) => Err(no_qmp("an answer that says nothing")),
        }
    }
}

impl Refusal {
    fn kind(&self) -> ErrorKind {
        match self.class.as_str() {
            "DeviceNotFound" => ErrorKind::NotFound,
            "CommandNotFound" => ErrorKind::Unsupported,
            _ => ErrorKind::Io,
        }
    }
}

/// Reads until the end and hands over what comes. Ends when the connection does, or when nobody listens any more.
fn listen(socket: UnixStream, answers: &SyncSender<Incoming>, events: &Events) {
    let mut lines = BufReader::new(socket);
    let end = loop {
        let incoming = match read_message(&mut lines) {
            Ok(Ok(event)) => {
                events.push(event);
                continue;
            }
            Ok(Err(incoming)) => incoming,
            Err(error) => break error,
        };
        if answers.try_send(incoming).is_err() {
            // Too many answers: the next call must not take one of them for its own.
            break no_qmp("answers that nobody asked for");
        }
    };
    // A full queue of nonsense is read before the end is: the sender's end tells it then.
    let _ = answers.try_send(Incoming::End(end));
    events.wake();
}

/// The next event, or something else.
fn read_message(lines: &mut BufReader<UnixStream>) -> Result<Result<Event, Incoming>> {
    let mut line = Vec::new();
    let read = lines.take(LINE_BYTES).read_until(b'\n', &mut line);
    read.map_err(|error| Error::new(ErrorKind::Unavailable, "the connection to QEMU is lost").because(error))?;
    if line.last() != Some(&b'\n') {
        return Err(if line.len() as u64 >= LINE_BYTES { no_qmp("a line of more than 16 MiB") } else { closed() });
    }
    let value: Value =
        serde_json::from_slice(&line).map_err(|error| no_qmp("a line that is no JSON").because(error))?;
    if let Some(version) = value.pointer("/QMP/version/qemu") {
        let version =
            Version::deserialize(version).map_err(|error| no_qmp("a greeting without a version").because(error))?;
        return Ok(Err(Incoming::Greeting(version)));
    }
    let message =
        Message::deserialize(value).map_err(|error| no_qmp("a line that is not of the protocol").because(error))?;
    match message.event {
        Some(name) => Ok(Ok(Event { name, data: message.data })),
        None => Ok(Err(Incoming::Answer(message))),
    }
}

fn no_qmp(what: &str) -> Error {
    Error::new(ErrorKind::Io, format!("this does not speak QMP: {what}"))
        .hint("name the socket of QEMU's -qmp option; the one of the guest agent is another")
}

fn closed() -> Error {
    Error::new(ErrorKind::Unavailable, "QEMU closed the connection")
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What a thread that panicked left behind is no worse than a command whose answer was lost.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    const SHORT: Duration = Duration::from_millis(300);

    /// A monitor that answers each line that it gets with the next of `answers`; `N` in them is the id of the command.
    /// Then it waits for the end.
    fn fake(greeting: &'static str, answers: &'static [&'static str]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("q.sock");
        let listener = UnixListener::bind(&path).unwrap();
        std::thread::spawn(move || {
            let (mut client, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(client.try_clone().unwrap());
            // Whoever tests a refusal has gone by now.
            let _ = client.write_all(greeting.as_bytes());
            for answer in answers {
                let mut line = String::new();
                if lines.read_line(&mut line).unwrap_or(0) == 0 {
                    return;
                }
                let command: Value = serde_json::from_str(&line).unwrap();
                if *answer == "close" {
                    return;
                }
                let _ = client.write_all(answer.replace("\"N\"", &command["id"].to_string()).as_bytes());
            }
            let _ = lines.read_to_end(&mut Vec::new());
        });
        (folder, path)
    }

    fn connect(greeting: &'static str, answers: &'static [&'static str]) -> Result<Monitor> {
        let (_folder, path) = fake(greeting, answers);
        Monitor::connect(&path, SHORT)
    }

    const GREETED: &str =
        concat!(r#"{"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}}, "capabilities": []}}"#, "\n");
    const DONE: &str = "{\"return\": {}, \"id\": \"N\"}\n";

    #[test]
    fn answers_and_events_are_told_apart() {
        let monitor = connect(
            GREETED,
            &[
                DONE,
                "{\"event\": \"STOP\", \"timestamp\": {}}\n{\"return\": {\"a\": 1}, \"id\": \"N\"}\n{\"event\": \"RESUME\"}\n",
                "{\"error\": {\"class\": \"DeviceNotFound\", \"desc\": \"no such\"}, \"id\": \"N\"}\n",
                "{\"return\": null, \"id\": \"N\"}\n",
            ],
        );
        let monitor = monitor.unwrap();
        assert_eq!(monitor.version(), Version { major: 7, minor: 2, micro: 0 });
        assert_eq!(monitor.execute("x", Value::Null).unwrap(), json!({"a": 1}));
        let error = monitor.execute("y", Value::Null).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.to_string().contains("y: no such"), "{error}");
        assert_eq!(monitor.execute("z", Value::Null).unwrap(), Value::Null);
        let mut names = Vec::new();
        while names.len() < 2 {
            names.extend(monitor.events().take(PATIENCE).into_iter().map(|event| event.name));
        }
        assert_eq!(names, ["STOP", "RESUME"]);
    }

    #[test]
    fn what_is_no_qmp_is_refused() {
        for (greeting, answers) in [
            ("SSH-2.0-OpenSSH\n", &[][..]),
            ("{\"QMP\": {\"version\": {\"qemu\": {\"major\": \"x\"}}}}\n", &[]),
            ("{\"return\": {}, \"id\": 0}\n", &[]),
            (GREETED, &["[1,2]\n"]),
            (GREETED, &["{\"id\": \"N\"}\n"]),
            (GREETED, &["{\"return\": {}, \"id\": 77}\n"]),
            (GREETED, &["{\"return\": {}}\n"]),
            (GREETED, &["{\"return\": {}, \"id\": \"0\"}\n"]),
            (GREETED, &[GREETED]),
        ] {
            let error = connect(greeting, answers).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Io, "{greeting}{answers:?}: {error}");
        }
        // Deeper than any parser should go.
        let deep = Box::leak(format!("{}\n", "[".repeat(100_000)).into_boxed_str());
        assert_eq!(connect(deep, &[]).unwrap_err().kind(), ErrorKind::Io);
        let endless = Box::leak("x".repeat((16 << 20) + 1).into_boxed_str());
        let (_folder, path) = fake(endless, &[]);
        let error = Monitor::connect(&path, PATIENCE).unwrap_err();
        assert!(error.to_string().contains("16 MiB"), "{error}");
    }

    #[test]
    fn silence_and_ends_are_told() {
        let silent = connect("", &[]).unwrap_err();
        assert_eq!(silent.kind(), ErrorKind::Unavailable);
        assert!(silent.to_string().contains("greet"), "{silent}");
        assert_eq!(connect(GREETED.trim_end(), &[]).unwrap_err().kind(), ErrorKind::Unavailable);
        assert_eq!(connect(GREETED, &["close"]).unwrap_err().kind(), ErrorKind::Unavailable);
        let (folder, path) = fake(GREETED, &[]);
        assert_eq!(Monitor::connect(&path, SHORT).unwrap_err().kind(), ErrorKind::Unavailable);
        let error = Monitor::connect(&folder.path().join("no.sock"), SHORT).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
    }

    #[test]
    fn an_answer_that_comes_late_is_not_taken_for_the_next_one() {
        let answers = &[DONE, "", "{\"return\": 1, \"id\": 1}\n{\"return\": 2, \"id\": \"N\"}\n"];
        let monitor = connect(GREETED, answers).unwrap();
        let error = monitor.execute_within("slow", Value::Null, SHORT).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(!monitor.has_ended());
        assert_eq!(monitor.execute("next", Value::Null).unwrap(), json!(2));
        monitor.hang_up();
        assert!(monitor.has_ended() && monitor.execute("after", Value::Null).is_err());
    }
}
