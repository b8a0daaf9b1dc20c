//! A guest agent behind a unix socket that keeps its frozen state, whoever connects and whatever became of them.
//!
//! ```text
//!   client ─► socket ─► one client at a time ("QEMU") ─► queue ─► agent, one command after the other
//! ```
//! As with the real one, what a client sent is done even when it has gone, in order; an answer that finds no client goes
//! to the next one. Commands run on this host.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

/// What it does in place of what it should.
#[derive(Debug, Clone)]
pub enum Reaction {
    /// It neither does it nor answers.
    Ignore,
    /// It does it and does not answer.
    Mute,
    /// It is busy for that long, then does it and answers.
    Late(Duration),
    /// It answers with an error of this class and description, and does nothing.
    Error(&'static str, &'static str),
    /// It does nothing and writes these bytes.
    Bytes(Vec<u8>),
    /// It does it and closes the connection.
    HangUp,
}

/// The agent. It runs until the test ends; clones are the same one.
#[derive(Debug, Clone)]
pub struct FakeAgent {
    socket: PathBuf,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    frozen: bool,
    log: Vec<String>,
    reactions: HashMap<String, Vec<Reaction>>,
    forbidden: Vec<String>,
    client: Option<UnixStream>,
    unheard: Vec<u8>,
    ended: Vec<Option<std::process::Output>>,
}

const COMMANDS: [&str; 8] = [
    "guest-sync-delimited",
    "guest-info",
    "guest-fsfreeze-status",
    "guest-fsfreeze-thaw",
    "guest-fsfreeze-freeze",
    "guest-fsfreeze-freeze-list",
    "guest-exec",
    "guest-exec-status",
];
/// Those that it does while it is frozen.
const WHILE_FROZEN: usize = 4;
/// What is mounted in the guest.
const MOUNT_POINTS: [&str; 2] = ["/", "/srv"];

impl FakeAgent {
    /// Listens at `socket`.
    ///
    /// # Panics
    /// When it cannot.
    pub fn start(socket: &Path) -> Self {
        let listener = UnixListener::bind(socket).unwrap_or_else(|error| panic!("{}: {error}", socket.display()));
        let shared = Arc::new(Mutex::new(Shared::default()));
        let (sender, receiver) = mpsc::channel();
        let for_qemu = shared.clone();
        std::thread::spawn(move || pass_on(&listener, &for_qemu, &sender));
        let for_agent = shared.clone();
        std::thread::spawn(move || serve(&receiver, &for_agent));
        Self { socket: socket.to_path_buf(), shared }
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        lock(&self.shared)
    }

    /// The next times that it is given `command`, it reacts so, one after the other.
    pub fn react(&self, command: &str, reactions: impl IntoIterator<Item = Reaction>) {
        self.lock().reactions.entry(command.to_owned()).or_default().extend(reactions);
    }

    /// From now on it does not carry out `command`, as by the settings of some distributions.
    pub fn forbid(&self, command: &str) {
        self.lock().forbidden.push(command.to_owned());
    }

    /// Freezes or thaws it as somebody else would.
    pub fn set_frozen(&self, frozen: bool) {
        self.lock().frozen = frozen;
    }

    /// Whether it is frozen now.
    pub fn is_frozen(&self) -> bool {
        self.lock().frozen
    }

    /// What it did that changes something, in order: `freeze`, `freeze /srv`, `thaw`, `exec SCRIPT`.
    pub fn log(&self) -> Vec<String> {
        self.lock().log.clone()
    }

    /// Waits until it is thawed.
    ///
    /// # Panics
    /// When it is not within `patience`.
    pub fn await_thaw(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        while self.is_frozen() {
            assert!(Instant::now() < deadline, "the guest is still frozen after {patience:?}: {:?}", self.log());
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// QEMU's part: one client at a time, whose bytes wait for the agent.
fn pass_on(listener: &UnixListener, shared: &Mutex<Shared>, queue: &mpsc::Sender<Vec<u8>>) {
    for mut client in listener.incoming().map_while(Result::ok) {
        {
            let mut shared = lock(shared);
            let unheard = std::mem::take(&mut shared.unheard);
            shared.client = client.try_clone().ok();
            drop(client.write_all(&unheard));
        }
        let mut block = [0; 4096];
        while let Ok(length @ 1..) = client.read(&mut block) {
            if queue.send(block[..length].to_vec()).is_err() {
                return;
            }
        }
        lock(shared).client = None;
    }
}

/// The agent's part.
fn serve(queue: &mpsc::Receiver<Vec<u8>>, shared: &Arc<Mutex<Shared>>) {
    let mut pending = Vec::new();
    for bytes in queue {
        for byte in bytes {
            match byte {
                0xFF => pending.clear(),
                b'\n' => {
                    if let Ok(request) = serde_json::from_slice::<Value>(&std::mem::take(&mut pending)) {
                        respond(&request, shared);
                    }
                }
                _ => pending.push(byte),
            }
        }
    }
}

fn respond(request: &Value, shared: &Arc<Mutex<Shared>>) {
    let command = request["execute"].as_str().unwrap_or_default().to_owned();
    let reaction = {
        let mut shared = lock(shared);
        let planned = shared.reactions.get_mut(&command).filter(|planned| !planned.is_empty());
        planned.map(|planned| planned.remove(0))
    };
    let error = |class: &str, description: &str| json!({ "error": { "class": class, "desc": description } });
    let answer = match &reaction {
        Some(Reaction::Ignore) => return,
        Some(Reaction::Bytes(bytes)) => return write(bytes, shared),
        Some(Reaction::Error(class, description)) => error(class, description),
        Some(Reaction::Late(time)) => {
            std::thread::sleep(*time);
            execute(&command, &request["arguments"], shared)
        }
        _ => execute(&command, &request["arguments"], shared),
    };
    match &reaction {
        Some(Reaction::Mute) => return,
        Some(Reaction::HangUp) => {
            let client = lock(shared).client.take();
            drop(client.map(|client| client.shutdown(std::net::Shutdown::Both)));
            return;
        }
        _ => {}
    }
    let mut bytes = if command == "guest-sync-delimited" { vec![0xFF] } else { Vec::new() };
    bytes.extend(answer.to_string().into_bytes());
    bytes.push(b'\n');
    write(&bytes, shared);
}

fn write(bytes: &[u8], shared: &Mutex<Shared>) {
    let client = lock(shared).client.as_ref().and_then(|client| client.try_clone().ok());
    match client {
        Some(mut client) => drop(client.write_all(bytes)),
        None => lock(shared).unheard.extend(bytes),
    }
}

fn execute(command: &str, arguments: &Value, shared: &Arc<Mutex<Shared>>) -> Value {
    let this = shared;
    let mut shared = lock(this);
    let place = COMMANDS.iter().position(|known| *known == command);
    let is_enabled = |shared: &Shared, name: &str| {
        let place = COMMANDS.iter().position(|known| *known == name);
        !shared.forbidden.iter().any(|forbidden| forbidden == name)
            && place.is_some_and(|place| place < WHILE_FROZEN || !shared.frozen)
    };
    if place.is_none() || !is_enabled(&shared, command) {
        let why = match place {
            None => format!("The command {command} has not been found"),
            Some(_) => format!("Command {command} has been disabled"),
        };
        return json!({ "error": { "class": "CommandNotFound", "desc": why } });
    }
    let value = match command {
        "guest-sync-delimited" => arguments["id"].clone(),
        "guest-info" => {
            let commands = COMMANDS.map(|name| json!({ "name": name, "enabled": is_enabled(&shared, name) }));
            json!({ "version": "7.2.0", "supported_commands": commands })
        }
        "guest-fsfreeze-status" => json!(if shared.frozen { "frozen" } else { "thawed" }),
        "guest-fsfreeze-thaw" => {
            shared.log.push("thaw".to_owned());
            json!(if std::mem::take(&mut shared.frozen) { MOUNT_POINTS.len() } else { 0 })
        }
        "guest-exec" => start(arguments, &mut shared, this),
        "guest-exec-status" => status(arguments, &shared),
        _ => {
            let named = arguments["mountpoints"].as_array().map(|named| named.iter().filter_map(Value::as_str));
            let named: Vec<_> = named.map_or(MOUNT_POINTS.to_vec(), Iterator::collect);
            shared.log.push(format!("freeze {}", named.join(" ")));
            let count = MOUNT_POINTS.iter().filter(|point| named.contains(point)).count();
            shared.frozen = count > 0;
            json!(count)
        }
    };
    json!({ "return": value })
}

fn start(arguments: &Value, shared: &mut Shared, this: &Arc<Mutex<Shared>>) -> Value {
    let words: Vec<_> = arguments["arg"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    shared.log.push(format!("exec {}", words.last().unwrap_or(&"")));
    let mut command = Command::new(arguments["path"].as_str().unwrap_or_default());
    command.args(words);
    let number = shared.ended.len();
    shared.ended.push(None);
    let this = this.clone();
    std::thread::spawn(move || {
        let output = command.output();
        lock(&this).ended[number] = output.ok();
    });
    json!({ "pid": number })
}

fn status(arguments: &Value, shared: &Shared) -> Value {
    use std::os::unix::process::ExitStatusExt;
    let number = arguments["pid"].as_u64().and_then(|number| usize::try_from(number).ok());
    let Some(Some(output)) = number.and_then(|number| shared.ended.get(number)) else {
        return json!({ "exited": false });
    };
    let mut status = json!({ "exited": true });
    if let Some(code) = output.status.code() {
        status["exitcode"] = json!(code);
    }
    if let Some(signal) = output.status.signal() {
        status["signal"] = json!(signal);
    }
    for (name, bytes) in [("out-data", &output.stdout), ("err-data", &output.stderr)] {
        if !bytes.is_empty() {
            status[name] = json!(STANDARD.encode(bytes));
        }
    }
    status
}
