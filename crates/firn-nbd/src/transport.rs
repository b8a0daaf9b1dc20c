//! A byte stream to a server: TCP or Unix socket, plain or within TLS, in two halves for two threads.
//!
//! While negotiating, every read and write ends at one deadline. Afterwards the reader waits as long as it takes (who
//! waits for an answer has its own clock and shuts the socket down), and each write ends after the timeout.

use crate::{Address, Options, error::transport as failed};
use firn_disk::{Error, ErrorKind, Result};
use rustls::ClientConnection;
use socket2::{Domain, SockAddr, Socket, Type};
use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, ToSocketAddrs};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

/// Encrypted bytes are taken from the socket in pieces of this size.
const RAW_BYTES: usize = 64 << 10;
/// One of a host's addresses is tried at least so long.
const MIN_CONNECT: Duration = Duration::from_millis(250);

/// What both halves share.
#[derive(Debug)]
struct Shared {
    socket: Socket,
    tls: Option<Mutex<ClientConnection>>,
    /// Bytes received so far: how one who waits sees that the other side is alive.
    received: AtomicU64,
}

/// A connection before it is split. Reads and writes end at the deadline.
#[derive(Debug)]
pub(crate) struct Stream {
    reader: ReadHalf,
    writer: WriteHalf,
}

/// The receiving half.
#[derive(Debug)]
pub(crate) struct ReadHalf {
    shared: Arc<Shared>,
    deadline: Option<Instant>,
    /// Encrypted bytes that the TLS session has not taken yet: `raw[taken..filled]`.
    raw: Vec<u8>,
    taken: usize,
    filled: usize,
}

/// The sending half.
#[derive(Debug)]
pub(crate) struct WriteHalf {
    shared: Arc<Shared>,
    limit: Limit,
    encrypted: Vec<u8>,
}

#[derive(Debug, Clone, Copy)]
enum Limit {
    Deadline(Instant),
    Each(Duration),
}

/// Ends a connection from outside, and sees whether bytes arrive.
#[derive(Debug, Clone)]
pub(crate) struct Control(Arc<Shared>);

impl Control {
    /// Wakes everyone who reads or writes, with an error or the end of the stream.
    pub(crate) fn shut_down(&self) {
        // It may be shut down already; there is nothing to be done about any other error.
        let _ = self.0.socket.shutdown(Shutdown::Both);
    }

    /// How many bytes have come so far.
    pub(crate) fn received(&self) -> u64 {
        self.0.received.load(Ordering::Relaxed)
    }
}

impl Stream {
    /// Connects to `address`; everything until [`split`](Self::split) has to be done by `deadline`.
    pub(crate) fn connect(address: &Address, deadline: Instant) -> Result<Self> {
        let socket = match address {
            Address::Tcp { host, port } => connect_tcp(host, *port, deadline)
                .map_err(|error| failed(&format!("connect to {host} port {port}"), error)),
            Address::Unix(path) => {
                connect_unix(path, deadline).map_err(|error| failed("connect to the Unix socket", error).at_path(path))
            }
        }?;
        Ok(Self::new(Shared { socket, tls: None, received: AtomicU64::new(0) }, deadline))
    }

    fn new(shared: Shared, deadline: Instant) -> Self {
        let shared = Arc::new(shared);
        let limit = Limit::Deadline(deadline);
        Self {
            reader: ReadHalf { shared: shared.clone(), deadline: Some(deadline), raw: Vec::new(), taken: 0, filled: 0 },
            writer: WriteHalf { shared, limit, encrypted: Vec::new() },
        }
    }

    /// The same connection within TLS, after the handshake.
    ///
    /// # Errors
    /// `Denied` when one side does not accept the other.
    pub(crate) fn start_tls(self, session: ClientConnection, deadline: Instant) -> Result<Self> {
        let Self { reader, writer } = self;
        drop(writer);
        let Ok(Shared { socket, .. }) = Arc::try_unwrap(reader.shared) else {
            return Err(Error::new(ErrorKind::Io, "the connection is in use"));
        };
        let mut stream =
            Self::new(Shared { socket, tls: Some(Mutex::new(session)), received: AtomicU64::new(0) }, deadline);
        stream.shake_hands().map_err(|error| {
            let hint = "the server's certificate must be signed by ca-cert.pem and be for its host name; the server \
                        may also want client-cert.pem and client-key.pem";
            failed("TLS handshake", error).hint(hint)
        })?;
        Ok(stream)
    }

    fn shake_hands(&mut self) -> io::Result<()> {
        loop {
            self.writer.flush()?;
            if !self.is_handshaking() {
                return Ok(());
            }
            match self.reader.receive() {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(error) => {
                    // The alert that tells the server why; the reason is returned in any case.
                    let _ = self.writer.flush();
                    return Err(error);
                }
            }
        }
    }

    fn is_handshaking(&self) -> bool {
        let Some(tls) = &self.reader.shared.tls else { return false };
        tls.lock().unwrap_or_else(PoisonError::into_inner).is_handshaking()
    }

    /// Negotiated: the two halves and the means to end them.
    pub(crate) fn split(mut self, options: &Options) -> Result<(ReadHalf, WriteHalf, Control)> {
        self.reader.deadline = None;
        self.writer.limit = Limit::Each(options.timeout);
        self.reader.shared.socket.set_read_timeout(None).map_err(|error| failed("set a timeout", error))?;
        let control = Control(self.reader.shared.clone());
        Ok((self.reader, self.writer, control))
    }
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.reader.read(buf)
    }
}

impl Write for Stream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.writer.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

impl ReadHalf {
    /// What the socket gives, for at most as long as the deadline says.
    fn socket_read(shared: &Shared, deadline: Option<Instant>, buf: &mut [u8]) -> io::Result<usize> {
        if let Some(deadline) = deadline {
            shared.socket.set_read_timeout(Some(remaining(deadline)?))?;
        }
        loop {
            match (&shared.socket).read(buf) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(io::ErrorKind::TimedOut.into()),
                Ok(count) => {
                    shared.received.fetch_add(count as u64, Ordering::Relaxed);
                    return Ok(count);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Lets the TLS session take encrypted bytes, from the socket if none are left. Answers 0 at the end.
    fn receive(&mut self) -> io::Result<usize> {
        let Some(tls) = &self.shared.tls else { return Ok(0) };
        if self.taken == self.filled {
            self.raw.resize(RAW_BYTES, 0);
            self.taken = 0;
            self.filled = 0;
            // Not under the lock: the writer goes on while this waits.
            self.filled = Self::socket_read(&self.shared, self.deadline, &mut self.raw)?;
        }
        let mut session = tls.lock().unwrap_or_else(PoisonError::into_inner);
        let mut fresh = self.raw.get(self.taken..self.filled).unwrap_or_default();
        let count = session.read_tls(&mut fresh)?;
        self.taken += count;
        session.process_new_packets().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        Ok(count)
    }
}

impl Read for ReadHalf {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let shared = self.shared.clone();
        let Some(tls) = &shared.tls else { return Self::socket_read(&shared, self.deadline, buf) };
        loop {
            let read = tls.lock().unwrap_or_else(PoisonError::into_inner).reader().read(buf);
            match read {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return other,
            }
            if self.receive()? == 0 {
                return Ok(0);
            }
        }
    }
}

impl WriteHalf {
    fn socket_write(&self, mut bytes: &[u8]) -> io::Result<()> {
        let deadline = match self.limit {
            Limit::Deadline(deadline) => deadline,
            Limit::Each(time) => Instant::now().checked_add(time).ok_or(io::ErrorKind::InvalidInput)?,
        };
        while !bytes.is_empty() {
            self.shared.socket.set_write_timeout(Some(remaining(deadline)?))?;
            match (&self.shared.socket).write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(io::ErrorKind::TimedOut.into()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Sends what the TLS session has to say, encrypting `plain` first; answers how much of it was taken.
    fn send_tls(&mut self, tls: &Mutex<ClientConnection>, plain: &[u8]) -> io::Result<usize> {
        self.encrypted.clear();
        let mut session = tls.lock().unwrap_or_else(PoisonError::into_inner);
        let count = if plain.is_empty() { 0 } else { session.writer().write(plain)? };
        while session.wants_write() {
            session.write_tls(&mut self.encrypted)?;
        }
        drop(session);
        self.socket_write(&self.encrypted)?;
        Ok(count)
    }
}

impl Write for WriteHalf {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let shared = self.shared.clone();
        if let Some(tls) = &shared.tls {
            return self.send_tls(tls, buf);
        }
        self.socket_write(buf)?;
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let shared = self.shared.clone();
        match &shared.tls {
            Some(tls) => self.send_tls(tls, &[]).map(drop),
            None => Ok(()),
        }
    }
}

/// The time until `deadline`, more than none.
fn remaining(deadline: Instant) -> io::Result<Duration> {
    match deadline.checked_duration_since(Instant::now()) {
        Some(time) if !time.is_zero() => Ok(time.max(Duration::from_micros(1))),
        _ => Err(io::ErrorKind::TimedOut.into()),
    }
}

fn connect_unix(path: &std::path::Path, deadline: Instant) -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // Linux waits so long for a place in the server's queue.
    socket.set_write_timeout(Some(remaining(deadline)?))?;
    socket.connect(&SockAddr::unix(path)?)?;
    Ok(socket)
}

fn connect_tcp(host: &str, port: u16, deadline: Instant) -> io::Result<Socket> {
    let addresses = resolve(host, port, deadline)?;
    let mut last = io::Error::new(io::ErrorKind::AddrNotAvailable, "the host has no address");
    for (index, address) in addresses.iter().enumerate() {
        // Each gets its share of the time, so that one that does not answer leaves some for the next.
        let share = remaining(deadline)? / u32::try_from(addresses.len() - index).unwrap_or(u32::MAX).max(1);
        let socket = Socket::new(Domain::for_address(*address), Type::STREAM, None)?;
        match socket.connect_timeout(&(*address).into(), share.max(MIN_CONNECT)) {
            Ok(()) => {
                socket.set_tcp_nodelay(true)?;
                return Ok(socket);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// The addresses of a host. The system's resolver knows no deadline, so it runs in a thread of its own, which is left
/// to itself when it takes too long.
fn resolve(host: &str, port: u16, deadline: Instant) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![(address, port).into()]);
    }
    let (sender, receiver) = mpsc::channel();
    let target = (host.to_owned(), port);
    std::thread::Builder::new().name("nbd-resolve".to_owned()).spawn(move || {
        // Nobody may be listening any more.
        let _ = sender.send(target.to_socket_addrs().map(Iterator::collect));
    })?;
    receiver.recv_timeout(remaining(deadline)?).map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}
