//! Stands between firn and QEMU's monitor and spoils one command.
//!
//! ```text
//!   firn ── p.sock ── proxy ── q.sock ── QEMU
//! ```
//! What is spoiled is counted over all connections, so that every command of a run can be, one run after the other.

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// What happens to the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// QEMU carries it out, and the connection is gone before the answer comes: as if firn had been killed there.
    Lost,
    /// QEMU never sees it and says no.
    Refused,
    /// QEMU never sees it; what comes back is no JSON.
    Garbage,
    /// QEMU carries it out; its answer carries another id.
    WrongId,
    /// QEMU carries it out and does not answer.
    Silence,
}

#[derive(Debug, Default)]
struct State {
    fault: Option<(Fault, u64)>,
    commands: u64,
    /// The name of the command that was spoiled.
    spoiled: Option<String>,
    /// The id of the command whose answer is spoiled.
    answer: Option<(Fault, Value)>,
    /// In place of QEMU's own version.
    version: Option<(u32, u32)>,
}

#[derive(Debug)]
pub struct Proxy {
    pub socket: PathBuf,
    state: Arc<Mutex<State>>,
}

impl Proxy {
    pub fn start(socket: &Path, behind: &Path) -> Self {
        let listener = UnixListener::bind(socket).unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let (shared, behind) = (state.clone(), behind.to_path_buf());
        std::thread::spawn(move || {
            // One client at a time, as QEMU has it.
            for client in listener.incoming() {
                let Ok(server) = UnixStream::connect(&behind) else { continue };
                serve(client.unwrap(), server, &shared);
            }
        });
        Self { socket: socket.to_path_buf(), state }
    }

    /// Spoils the command number `index` from now on, the first being 0.
    pub fn spoil(&self, fault: Fault, index: u64) {
        let mut state = self.state.lock().unwrap();
        *state = State { fault: Some((fault, state.commands + index)), commands: state.commands, ..State::default() };
    }

    /// The command that was spoiled, if it came to that.
    pub fn spoiled(&self) -> Option<String> {
        self.state.lock().unwrap().spoiled.clone()
    }

    pub fn pretend_version(&self, major: u32, minor: u32) {
        self.state.lock().unwrap().version = Some((major, minor));
    }

    pub fn uri(&self) -> String {
        format!("qemu:{}", self.socket.display())
    }
}

fn serve(client: UnixStream, server: UnixStream, state: &Arc<Mutex<State>>) {
    let answers = {
        let (client, server, state) = (client.try_clone().unwrap(), server.try_clone().unwrap(), state.clone());
        std::thread::spawn(move || pass_answers(client, server, &state))
    };
    pass_commands(&client, &server, state);
    let _ = client.shutdown(Shutdown::Both);
    let _ = server.shutdown(Shutdown::Both);
    answers.join().unwrap();
}

fn pass_commands(mut client: &UnixStream, mut server: &UnixStream, state: &Mutex<State>) {
    let mut pending = Vec::new();
    loop {
        let (bytes, descriptors) = receive(client);
        if bytes.is_empty() {
            return;
        }
        pending.extend(bytes);
        while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = pending.drain(..=end).collect();
            let command: Value = serde_json::from_slice(&line).unwrap();
            match note(state, &command) {
                Some(Fault::Refused) => {
                    let answer = json!({"error": {"class": "GenericError", "desc": "not today"}, "id": command["id"]});
                    let _ = client.write_all(format!("{answer}\n").as_bytes());
                    continue;
                }
                Some(Fault::Garbage) => {
                    let _ = client.write_all(b"\x00}{ nonsense\n");
                    continue;
                }
                _ => {}
            }
            if descriptors.is_empty() {
                let _ = server.write_all(&line);
            } else {
                send(server, &line, &descriptors);
            }
        }
    }
}

/// Counts a command; returns what happens to it.
fn note(state: &Mutex<State>, command: &Value) -> Option<Fault> {
    let mut state = state.lock().unwrap();
    let index = state.commands;
    state.commands += 1;
    let (fault, _) = state.fault.filter(|(_, at)| *at == index)?;
    state.spoiled = command["execute"].as_str().map(str::to_owned);
    state.answer = Some((fault, command["id"].clone()));
    Some(fault)
}

fn pass_answers(mut client: UnixStream, server: UnixStream, state: &Mutex<State>) {
    for line in BufReader::new(server).lines() {
        let Ok(mut line) = line else { break };
        let mut message: Value = serde_json::from_str(&line).unwrap();
        let state = state.lock().unwrap();
        if let (Some((major, minor)), false) = (state.version, message["QMP"].is_null()) {
            message["QMP"]["version"]["qemu"] = json!({"major": major, "minor": minor, "micro": 0});
            line = message.to_string();
        }
        let spoiled = state.answer.as_ref().filter(|(_, id)| message["id"] == *id && message["event"].is_null());
        let spoiled = spoiled.filter(|_| message["QMP"].is_null()).map(|(fault, _)| *fault);
        let spoiled = spoiled.filter(|_| state.spoiled.is_some());
        drop(state);
        match spoiled {
            Some(Fault::Lost) => break,
            Some(Fault::Silence) => continue,
            Some(Fault::WrongId) => {
                message["id"] = json!(999_999);
                line = message.to_string();
            }
            _ => {}
        }
        if client.write_all(format!("{line}\n").as_bytes()).is_err() {
            break;
        }
    }
    let _ = client.shutdown(Shutdown::Both);
}

fn receive(socket: &UnixStream) -> (Vec<u8>, Vec<OwnedFd>) {
    let mut bytes = vec![0; 65536];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC);
    bytes.truncate(received.map_or(0, |received| received.bytes));
    let descriptors = ancillary.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect::<Vec<_>>(),
        _ => Vec::new(),
    });
    (bytes, descriptors.collect())
}

fn send(socket: &UnixStream, line: &[u8], descriptors: &[OwnedFd]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    let sent = sendmsg(socket, &[IoSlice::new(line)], &mut ancillary, SendFlags::NOSIGNAL).unwrap();
    assert_eq!(sent, line.len());
}
