//! Lines of JSON over a unix socket, with an end to every wait and a limit to every line.
//!
//! QEMU's monitor and the guest agent both speak so. The other side is an enemy: it may be silent, send garbage, or send
//! without end.

use firn_disk::{Error, ErrorKind, Result};
use serde_json::Value;
use socket2::{Domain, SockAddr, Socket, Type};
use std::io::{ErrorKind as Os, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Between two tries at a socket whose queue is full.
const AGAIN: Duration = Duration::from_millis(20);
const BLOCK: usize = 64 << 10;

/// A connection.
#[derive(Debug)]
pub(super) struct Channel {
    stream: UnixStream,
    path: PathBuf,
    deadline: Instant,
    /// What came after the last line that was given out.
    pending: Vec<u8>,
    /// How much of `pending` has no newline for certain.
    searched: usize,
}

impl Channel {
    /// Connects. QEMU serves one client and lets further ones wait, so that being connected means nothing yet.
    ///
    /// # Errors
    /// `NotFound`, `Denied`; `Unavailable` when nobody listens or the deadline is over.
    pub fn connect(path: &Path, deadline: Instant) -> Result<Self> {
        let failed = |error| Error::from_io("connect to", error).at_path(path);
        let address = SockAddr::unix(path).map_err(failed)?;
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(failed)?;
        // A blocking connect waits without an end when the listener's queue is full.
        socket.set_nonblocking(true).map_err(failed)?;
        loop {
            match socket.connect(&address) {
                Ok(()) => break,
                Err(error) if error.kind() == Os::WouldBlock && Instant::now() < deadline => std::thread::sleep(AGAIN),
                Err(error) if error.kind() == Os::Interrupted => {}
                Err(error) => return Err(failed(error)),
            }
        }
        socket.set_nonblocking(false).map_err(failed)?;
        let stream = UnixStream::from(std::os::fd::OwnedFd::from(socket));
        Ok(Self { stream, path: path.to_path_buf(), deadline, pending: Vec::new(), searched: 0 })
    }

    /// When every wait ends.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Where it is connected to.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// # Errors
    /// `Unavailable` when the deadline is over or the other side has gone.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        let left = self.left()?;
        let sent = self.stream.set_write_timeout(Some(left)).and_then(|()| self.stream.write_all(bytes));
        sent.map_err(|error| self.failed("write to", error))
    }

    /// The next line without its end.
    ///
    /// # Errors
    /// `Unavailable` when the deadline is over or the other side has gone; `Io` when the line is longer than `limit`.
    pub fn line(&mut self, limit: usize) -> Result<Vec<u8>> {
        let mut block = vec![0; BLOCK];
        loop {
            if let Some(at) = self.pending[self.searched..].iter().position(|byte| *byte == b'\n') {
                let rest = self.pending.split_off(self.searched + at + 1);
                let mut line = std::mem::replace(&mut self.pending, rest);
                self.searched = 0;
                line.pop();
                return Ok(line);
            }
            self.searched = self.pending.len();
            if self.pending.len() > limit {
                let message = format!("the answer is longer than {limit} bytes");
                return Err(Error::new(ErrorKind::Io, message).at_path(&self.path));
            }
            let left = self.left()?;
            let read = self.stream.set_read_timeout(Some(left)).and_then(|()| self.stream.read(&mut block));
            match read {
                Ok(0) => return Err(self.failed("read from", Os::ConnectionReset.into())),
                Ok(length) => self.pending.extend_from_slice(&block[..length]),
                Err(error) if error.kind() == Os::Interrupted => {}
                Err(error) => return Err(self.failed("read from", error)),
            }
        }
    }

    /// The next line as JSON.
    ///
    /// # Errors
    /// As [`line`](Self::line); `Io` when it is not JSON.
    pub fn json(&mut self, limit: usize) -> Result<Value> {
        let line = self.line(limit)?;
        serde_json::from_slice(&line)
            .map_err(|error| Error::new(ErrorKind::Io, "the answer is not JSON").at_path(&self.path).because(error))
    }

    /// Never zero, which the system takes for no end at all.
    fn left(&self) -> Result<Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(self.failed("wait for", Os::TimedOut.into())) } else { Ok(left) }
    }

    fn failed(&self, doing: &str, error: std::io::Error) -> Error {
        let message = match error.kind() {
            Os::TimedOut | Os::WouldBlock => "there was no answer in time".to_owned(),
            Os::ConnectionReset | Os::BrokenPipe | Os::UnexpectedEof => "the other side has gone".to_owned(),
            _ => return Error::from_io(doing, error).at_path(&self.path),
        };
        Error::new(ErrorKind::Unavailable, message).at_path(&self.path)
    }
}
