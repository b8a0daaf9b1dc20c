//! [`Connection`]: one negotiated connection with requests in flight.
//!
//! Any thread sends, one request at a time under a lock; one reader thread receives and hands each answer to the
//! thread that waits for it. Whoever waits too long breaks the connection for all, since a server that is silent for
//! so long is not there.

use crate::error::{Failure, silence, transport};
use crate::negotiate::{self, Export};
use crate::reply::{self, Answer, Asked, Pending, Table};
use crate::transport::{Control, Stream, WriteHalf};
use crate::wire::{self, command};
use crate::{Options, Uri, tls};
use firn_disk::{Error, ErrorKind, Result};
use std::io::{BufReader, Write};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Headers and small replies are received in pieces of this size.
const BUFFER_BYTES: usize = 64 << 10;
/// A request is given up after so many times the longest silence, whatever trickles in.
const PATIENCE: u32 = 20;

/// A connection.
#[derive(Debug)]
pub(crate) struct Connection {
    export: Export,
    writer: Mutex<WriteHalf>,
    table: Arc<Table>,
    control: Control,
    timeout: Duration,
    reader: Option<JoinHandle<()>>,
}

/// A request on its way.
#[derive(Debug)]
pub(crate) struct Ticket {
    connection: Arc<Connection>,
    answer: Receiver<Result<Answer, Error>>,
}

/// What a request says.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Request<'a> {
    pub(crate) command: u16,
    pub(crate) flags: u16,
    pub(crate) offset: u64,
    pub(crate) length: u32,
    /// The data of a write; otherwise empty.
    pub(crate) data: &'a [u8],
}

impl Connection {
    /// Connects and negotiates. `contexts` are asked for; which of them are there stands in [`Export::contexts`].
    pub(crate) fn open(uri: &Uri, options: &Options, contexts: &[String], time: Duration) -> Result<Arc<Self>> {
        let deadline = deadline(time)?;
        let (mut stream, greeting) = meet(uri, options, deadline)?;
        let export = negotiate::choose(&mut stream, greeting, &uri.export, contexts)?;
        let (reader, writer, control) = stream.split(options)?;
        let table = Arc::new(Table::default());
        let structured = export.structured;
        let (their_table, their_control) = (table.clone(), control.clone());
        let receive = move || {
            let mut reader = BufReader::with_capacity(BUFFER_BYTES, reader);
            loop {
                if let Err(failure) = reply::read_one(&mut reader, &their_table, structured) {
                    their_table.break_with(failure);
                    their_control.shut_down();
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("nbd-receive".to_owned()).spawn(receive);
        let thread = thread.map_err(|error| Error::from_io("start a thread", error))?;
        let timeout = options.timeout;
        Ok(Arc::new(Self { export, writer: Mutex::new(writer), table, control, timeout, reader: Some(thread) }))
    }

    /// What was agreed on.
    pub(crate) fn export(&self) -> &Export {
        &self.export
    }

    /// Whether it can still be used.
    pub(crate) fn is_alive(&self) -> bool {
        self.table.failure().is_none()
    }

    /// Sends a request.
    pub(crate) fn send(self: &Arc<Self>, request: Request<'_>) -> Result<Ticket, Failure> {
        let (done, answer) = sync_channel(1);
        let (asked, length) = match request.command {
            command::READ => (Asked::Read(request.offset), usize::try_from(request.length).unwrap_or(0)),
            command::BLOCK_STATUS => (Asked::Status(self.export.contexts.len()), 0),
            _ => (Asked::Done, 0),
        };
        let cookie = self.table.insert(Pending::new(asked, length, done))?;
        let header = wire::request(request.flags, request.command, cookie, request.offset, request.length);
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = writer.write_all(&header).and_then(|()| writer.write_all(request.data));
        drop(writer);
        if let Err(error) = sent {
            self.end(Failure::lost(transport("send to the NBD server", error)));
            return Err(self.failure());
        }
        Ok(Ticket { connection: self.clone(), answer })
    }

    /// Breaks the connection.
    fn end(&self, failure: Failure) {
        self.table.break_with(failure);
        self.control.shut_down();
    }

    /// Why it broke.
    pub(crate) fn failure(&self) -> Failure {
        let unknown = || Failure::lost(Error::new(ErrorKind::Unavailable, "the connection to the NBD server broke"));
        self.table.failure().unwrap_or_else(unknown)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if self.is_alive() {
            let writer = self.writer.get_mut().unwrap_or_else(PoisonError::into_inner);
            // A courtesy to the server, which otherwise notes that a client died.
            let _ = writer.write_all(&wire::request(0, command::DISCONNECT, u64::MAX, 0, 0));
        }
        self.control.shut_down();
        if let Some(thread) = self.reader.take() {
            // It ends at once, the socket being shut down, and has nothing to say.
            let _ = thread.join();
        }
    }
}

impl Ticket {
    /// The answer.
    ///
    /// # Errors
    /// The server's own error, or why the connection broke.
    pub(crate) fn wait(self) -> Result<Answer, Failure> {
        let timeout = self.connection.timeout;
        let started = Instant::now();
        let mut received = self.connection.control.received();
        loop {
            match self.answer.recv_timeout(timeout) {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => return Err(Failure::last(error)),
                Err(RecvTimeoutError::Disconnected) => return Err(self.connection.failure()),
                Err(RecvTimeoutError::Timeout) => {
                    let now = self.connection.control.received();
                    if now == received || started.elapsed() >= timeout.saturating_mul(PATIENCE) {
                        self.connection.end(Failure::lost(silence(timeout)));
                        return Err(self.connection.failure());
                    }
                    received = now;
                }
            }
        }
    }
}

/// A stream to the server that `uri` names, greeted, and within TLS if that is asked for.
pub(crate) fn meet(uri: &Uri, options: &Options, deadline: Instant) -> Result<(Stream, negotiate::Greeting)> {
    let mut stream = Stream::connect(&uri.address, deadline)?;
    let greeting = negotiate::greet(&mut stream)?;
    if uri.tls {
        let session = tls::session(uri, options)?;
        negotiate::start_tls(&mut stream, greeting)?;
        stream = stream.start_tls(session, deadline)?;
    }
    Ok((stream, greeting))
}

/// The end of a wait of `time` that begins now.
pub(crate) fn deadline(time: Duration) -> Result<Instant> {
    Instant::now().checked_add(time).ok_or_else(|| Error::invalid("the timeout is too long"))
}
