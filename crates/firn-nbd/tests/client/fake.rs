//! A server within the test that does what its script says.

use firn_nbd::Uri;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

pub const ALLOCATION_ID: u32 = 7;
pub const FLUSH: u16 = 1 << 2;
pub const WRITE_FLAGS: u16 = 1 | FLUSH;
pub const MULTI: u16 = 1 | 1 << 8;

/// A listening socket; each connection runs the script in a thread of its own, with its number.
pub struct Fake {
    folder: tempfile::TempDir,
    connections: Arc<AtomicUsize>,
}

impl Fake {
    pub fn start(script: impl Fn(usize, &mut UnixStream) -> Option<()> + Send + Sync + 'static) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("s")).unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let (count, script) = (connections.clone(), Arc::new(script));
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                let number = count.fetch_add(1, Ordering::SeqCst);
                let script = script.clone();
                // `None` is a client that left.
                std::thread::spawn(move || script(number, &mut stream));
            }
        });
        Self { folder, connections }
    }

    pub fn uri(&self) -> Uri {
        Uri::unix(self.folder.path().join("s"), "disk")
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

pub fn get<const N: usize>(stream: &mut UnixStream) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).ok()?;
    Some(bytes)
}

pub fn put(stream: &mut UnixStream, parts: &[&[u8]]) -> Option<()> {
    stream.write_all(&parts.concat()).ok()
}

/// The greeting, and the client's answer.
pub fn greet(stream: &mut UnixStream) -> Option<()> {
    put(stream, &[b"NBDMAGICIHAVEOPT", &3_u16.to_be_bytes()])?;
    get::<4>(stream).map(drop)
}

/// The next option and its data.
pub fn option(stream: &mut UnixStream) -> Option<(u32, Vec<u8>)> {
    assert_eq!(&get::<8>(stream)?, b"IHAVEOPT");
    let option = u32::from_be_bytes(get(stream)?);
    let mut data = vec![0; u32::from_be_bytes(get(stream)?) as usize];
    stream.read_exact(&mut data).ok()?;
    Some((option, data))
}

pub fn option_reply(stream: &mut UnixStream, option: u32, kind: u32, data: &[u8]) -> Option<()> {
    let magic = 0x0003_e889_0455_65a9_u64.to_be_bytes();
    let length = u32::try_from(data.len()).unwrap().to_be_bytes();
    put(stream, &[&magic, &option.to_be_bytes(), &kind.to_be_bytes(), &length, data])
}

/// Negotiates an export of `length` bytes with these flags.
pub fn shake(stream: &mut UnixStream, length: u64, flags: u16, structured: bool) -> Option<()> {
    greet(stream)?;
    loop {
        let (number, data) = option(stream)?;
        match number {
            8 if structured => option_reply(stream, 8, 1, &[])?,
            10 => {
                assert!(data.windows(15).any(|name| name == b"base:allocation"));
                option_reply(stream, 10, 4, &[&ALLOCATION_ID.to_be_bytes()[..], b"base:allocation"].concat())?;
                option_reply(stream, 10, 1, &[])?;
            }
            7 => {
                let info = [&0_u16.to_be_bytes()[..], &length.to_be_bytes(), &flags.to_be_bytes()].concat();
                option_reply(stream, 7, 3, &info)?;
                return option_reply(stream, 7, 1, &[]);
            }
            _ => option_reply(stream, number, 0x8000_0001, &[])?,
        }
    }
}

/// A request as the server sees it.
#[derive(Debug, Clone, Copy)]
pub struct Request {
    pub flags: u16,
    pub command: u16,
    pub cookie: u64,
    pub offset: u64,
    pub length: u32,
}

/// The next request; the data of a write is read and dropped.
pub fn request(stream: &mut UnixStream) -> Option<Request> {
    assert_eq!(u32::from_be_bytes(get(stream)?), 0x2560_9513);
    let (flags, command) = (u16::from_be_bytes(get(stream)?), u16::from_be_bytes(get(stream)?));
    let (cookie, offset) = (u64::from_be_bytes(get(stream)?), u64::from_be_bytes(get(stream)?));
    let length = u32::from_be_bytes(get(stream)?);
    if command == 1 {
        stream.read_exact(&mut vec![0; length as usize]).ok()?;
    }
    (command != 2).then_some(Request { flags, command, cookie, offset, length })
}

pub fn simple(stream: &mut UnixStream, cookie: u64, error: u32, data: &[u8]) -> Option<()> {
    put(stream, &[&0x6744_6698_u32.to_be_bytes(), &error.to_be_bytes(), &cookie.to_be_bytes(), data])
}

/// A chunk as it should be.
pub fn chunk(cookie: u64, done: bool, kind: u16, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap();
    chunk_of(cookie, done, kind, length, payload)
}

/// A chunk that says it were `length` bytes long.
pub fn chunk_of(cookie: u64, done: bool, kind: u16, length: u32, payload: &[u8]) -> Vec<u8> {
    let flags = u16::from(done).to_be_bytes();
    let magic = 0x668e_33ef_u32.to_be_bytes();
    [&magic[..], &flags, &kind.to_be_bytes(), &cookie.to_be_bytes(), &length.to_be_bytes(), payload].concat()
}

pub fn data_chunk(cookie: u64, done: bool, offset: u64, data: &[u8]) -> Vec<u8> {
    chunk(cookie, done, 1, &[&offset.to_be_bytes()[..], data].concat())
}
