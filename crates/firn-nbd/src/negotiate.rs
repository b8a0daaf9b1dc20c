//! The beginning of a connection: greeting, TLS, structured replies, metadata contexts, the export.
//!
//! ```text
//!   server  NBDMAGIC IHAVEOPT flags u16
//!   client  flags u32
//!   client  IHAVEOPT option u32 length u32 data                            one option after another
//!   server  0003e889045565a9 option u32 reply u32 length u32 data          ACK or an error ends the replies
//! ```
//!
//! `GO` picks the export; a server that does not know it is asked by `EXPORT_NAME`, which has no error replies. The
//! number of replies and their lengths are limited; oldstyle servers are refused.

use crate::error::{transport, violation};
use crate::wire::{self, Fields, handshake, info, option, option_reply};
use firn_disk::{Error, ErrorKind, Result};
use std::io::{Read, Write};

/// Replies to one option; far more than there are contexts to ask for.
const MAX_REPLIES: usize = 128;
/// Exports that are listed.
const MAX_EXPORTS: usize = 10_000;
/// Bytes of one reply: a name and a description of 4096 bytes each, with room.
const MAX_REPLY_BYTES: u32 = 16 << 10;
/// The largest block size that the protocol lets a server insist on.
const MAX_MIN_BLOCK: u32 = 64 << 10;

/// What was agreed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Export {
    /// In bytes.
    pub(crate) length: u64,
    /// [`wire::export_flag`]s.
    pub(crate) flags: u16,
    /// Offsets and lengths are multiples of it.
    pub(crate) min_block: u32,
    /// The longest request with data, in bytes.
    pub(crate) max_block: u32,
    /// Whether replies are structured.
    pub(crate) structured: bool,
    /// The contexts that were asked for and are there: the server's number, the index in what was asked for.
    pub(crate) contexts: Vec<(u32, usize)>,
}

/// An export that a server offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedExport {
    /// Its name; empty for the default one.
    pub name: String,
    /// What the server says about it, often nothing.
    pub description: String,
}

/// What the server says of itself at the start.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Greeting {
    /// Whether the server understands options other than `EXPORT_NAME`.
    pub(crate) fixed: bool,
    no_zeroes: bool,
}

/// Reads the greeting and answers it.
pub(crate) fn greet(stream: &mut (impl Read + Write)) -> Result<Greeting> {
    let mut bytes = [0; 18];
    receive(stream, &mut bytes[..16])?;
    let mut fields = Fields(&bytes);
    if fields.u64() != Some(wire::GREETING) {
        return Err(violation("it does not begin with NBDMAGIC").hint("is this the port of an NBD server?"));
    }
    match fields.u64() {
        Some(wire::NEWSTYLE) => {}
        Some(wire::OLDSTYLE) => return Err(Error::unsupported("this NBD server speaks the oldstyle protocol")),
        _ => return Err(violation("its greeting is neither oldstyle nor newstyle")),
    }
    receive(stream, &mut bytes[16..])?;
    let flags = Fields(&bytes[16..]).u16().unwrap_or(0);
    let ours = flags & (handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES);
    send(stream, &u32::from(ours).to_be_bytes())?;
    Ok(Greeting { fixed: flags & handshake::FIXED_NEWSTYLE != 0, no_zeroes: flags & handshake::NO_ZEROES != 0 })
}

/// Asks for TLS; what follows on the stream is the TLS handshake.
pub(crate) fn start_tls(stream: &mut (impl Read + Write), greeting: Greeting) -> Result<()> {
    let refused = |reason: &str| {
        Error::new(ErrorKind::Denied, format!("the NBD server does not offer TLS: {reason}"))
            .hint("nothing is sent without TLS; use nbd:// if that is meant")
    };
    if !greeting.fixed {
        return Err(refused("it is too old"));
    }
    send(stream, &wire::option_request(option::STARTTLS, &[]))?;
    let reply = receive_reply(stream, option::STARTTLS)?;
    match reply.kind {
        option_reply::ACK if reply.data.is_empty() => Ok(()),
        kind if kind & option_reply::ERROR != 0 => Err(refused(&reply.error("STARTTLS").to_string())),
        _ => Err(violation("its answer to STARTTLS makes no sense")),
    }
}

/// Picks the export `name`, with structured replies and those of `contexts` that are there.
pub(crate) fn choose(
    stream: &mut (impl Read + Write),
    greeting: Greeting,
    name: &str,
    contexts: &[String],
) -> Result<Export> {
    if !greeting.fixed {
        return export_name(stream, greeting, name, false, Vec::new());
    }
    let structured = simple_option(stream, option::STRUCTURED_REPLY)?;
    let agreed = if structured && !contexts.is_empty() { set_contexts(stream, name, contexts)? } else { Vec::new() };
    match go(stream, name, structured, &agreed)? {
        Some(export) => Ok(export),
        None => export_name(stream, greeting, name, structured, agreed),
    }
}

/// The exports that the server is willing to name.
pub(crate) fn list(stream: &mut (impl Read + Write), greeting: Greeting) -> Result<Vec<ListedExport>> {
    if !greeting.fixed {
        return Err(Error::unsupported("this NBD server cannot list its exports"));
    }
    send(stream, &wire::option_request(option::LIST, &[]))?;
    let mut exports = Vec::new();
    loop {
        let reply = receive_reply(stream, option::LIST)?;
        match reply.kind {
            option_reply::ACK => break,
            option_reply::SERVER if exports.len() < MAX_EXPORTS => {
                let mut fields = Fields(&reply.data);
                let length = fields.u32().and_then(|length| usize::try_from(length).ok());
                let name = length.and_then(|length| fields.bytes(length));
                let name = name.ok_or_else(|| violation("an export in its list has no name"))?;
                exports.push(ListedExport { name: text(name), description: text(fields.0) });
            }
            option_reply::SERVER => return Err(Error::unsupported(format!("more than {MAX_EXPORTS} exports"))),
            kind if kind & option_reply::ERROR != 0 => return Err(reply.error("LIST")),
            _ => return Err(violation("its list of exports makes no sense")),
        }
    }
    // A courtesy; whether the server hears it does not matter.
    let _ = send(stream, &wire::option_request(option::ABORT, &[]));
    Ok(exports)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// An option without data: whether the server has it.
fn simple_option(stream: &mut (impl Read + Write), option: u32) -> Result<bool> {
    send(stream, &wire::option_request(option, &[]))?;
    let reply = receive_reply(stream, option)?;
    match reply.kind {
        option_reply::ACK => Ok(true),
        option_reply::TLS_REQUIRED | option_reply::SHUTDOWN => Err(reply.error("STRUCTURED_REPLY")),
        kind if kind & option_reply::ERROR != 0 => Ok(false),
        _ => Err(violation(format!("its answer to option {option} makes no sense"))),
    }
}

/// Which of `wanted` the export has.
fn set_contexts(stream: &mut (impl Read + Write), name: &str, wanted: &[String]) -> Result<Vec<(u32, usize)>> {
    let mut data = counted(name);
    data.extend(u32::try_from(wanted.len()).unwrap_or(u32::MAX).to_be_bytes());
    wanted.iter().for_each(|context| data.extend(counted(context)));
    send(stream, &wire::option_request(option::SET_META_CONTEXT, &data))?;
    let mut agreed: Vec<(u32, usize)> = Vec::new();
    for _ in 0..MAX_REPLIES {
        let reply = receive_reply(stream, option::SET_META_CONTEXT)?;
        match reply.kind {
            option_reply::ACK => return Ok(agreed),
            option_reply::META_CONTEXT => {
                let mut fields = Fields(&reply.data);
                let id = fields.u32().ok_or_else(|| violation("a metadata context has no number"))?;
                let Some(index) = wanted.iter().position(|name| name.as_bytes() == fields.0) else { continue };
                if agreed.iter().any(|&(other, same)| other == id || same == index) {
                    return Err(violation("it names a metadata context twice"));
                }
                agreed.push((id, index));
            }
            option_reply::TLS_REQUIRED | option_reply::SHUTDOWN | option_reply::UNKNOWN_EXPORT => {
                return Err(reply.error("SET_META_CONTEXT"));
            }
            kind if kind & option_reply::ERROR != 0 => return Ok(Vec::new()),
            _ => return Err(violation("its metadata contexts make no sense")),
        }
    }
    Err(violation("it names metadata contexts without end"))
}

/// `GO`; `None` when the server does not know it.
fn go(
    stream: &mut (impl Read + Write),
    name: &str,
    structured: bool,
    contexts: &[(u32, usize)],
) -> Result<Option<Export>> {
    let mut data = counted(name);
    data.extend(1_u16.to_be_bytes());
    data.extend(info::BLOCK_SIZE.to_be_bytes());
    send(stream, &wire::option_request(option::GO, &data))?;
    let (mut export, mut blocks) = (None, None);
    for _ in 0..MAX_REPLIES {
        let reply = receive_reply(stream, option::GO)?;
        match reply.kind {
            option_reply::ACK => {
                let (length, flags) = export.ok_or_else(|| violation("it says nothing about the export"))?;
                return build(length, flags, blocks, structured, contexts.to_vec()).map(Some);
            }
            option_reply::INFO => {
                let short = || violation("its information about the export is too short");
                let mut fields = Fields(&reply.data);
                match fields.u16().ok_or_else(short)? {
                    info::EXPORT => export = Some(fields.u64().zip(fields.u16()).ok_or_else(short)?),
                    info::BLOCK_SIZE => {
                        let (min, _preferred) = fields.u32().zip(fields.u32()).ok_or_else(short)?;
                        blocks = Some((min, fields.u32().ok_or_else(short)?));
                    }
                    _ => {}
                }
            }
            option_reply::UNSUPPORTED => return Ok(None),
            kind if kind & option_reply::ERROR != 0 => {
                return Err(reply.error(&format!("open the export {name:?}")));
            }
            _ => return Err(violation("its answer to GO makes no sense")),
        }
    }
    Err(violation("it describes the export without end"))
}

/// The way of old servers: the answer is the export, or the end of the connection.
fn export_name(
    stream: &mut (impl Read + Write),
    greeting: Greeting,
    name: &str,
    structured: bool,
    contexts: Vec<(u32, usize)>,
) -> Result<Export> {
    send(stream, &wire::option_request(option::EXPORT_NAME, name.as_bytes()))?;
    let mut bytes = [0; 10 + 124];
    let used = if greeting.no_zeroes { 10 } else { bytes.len() };
    receive(stream, &mut bytes[..used]).map_err(|error| {
        error.hint(format!("a server this old hangs up when it has no export {name:?}, or wants TLS"))
    })?;
    let mut fields = Fields(&bytes);
    let (length, flags) = fields.u64().zip(fields.u16()).unwrap_or_default();
    build(length, flags, None, structured, contexts)
}

fn build(
    length: u64,
    flags: u16,
    blocks: Option<(u32, u32)>,
    structured: bool,
    contexts: Vec<(u32, usize)>,
) -> Result<Export> {
    if i64::try_from(length).is_err() {
        return Err(violation(format!("the export is {length} bytes long")));
    }
    // Without being told, sectors are what any server takes; they must reach the end, though.
    let fallback = if length.is_multiple_of(512) { 512 } else { 1 };
    let (min_block, max_block) = blocks.unwrap_or((fallback, wire::DEFAULT_MAX_BLOCK));
    if !min_block.is_power_of_two() || min_block > MAX_MIN_BLOCK || max_block < min_block {
        return Err(violation(format!("block sizes from {min_block} to {max_block}")));
    }
    Ok(Export { length, flags, min_block, max_block, structured, contexts })
}

/// A string as the protocol has it: its length, its bytes.
fn counted(text: &str) -> Vec<u8> {
    let mut bytes = u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}

/// One reply to an option.
struct Reply {
    kind: u32,
    data: Vec<u8>,
}

impl Reply {
    /// What an error reply means while `doing` something.
    fn error(&self, doing: &str) -> Error {
        let (kind, reason) = match self.kind {
            option_reply::UNSUPPORTED => (ErrorKind::Unsupported, "the NBD server does not know how"),
            option_reply::POLICY => (ErrorKind::Denied, "the NBD server's policy forbids it"),
            option_reply::PLATFORM => (ErrorKind::Unsupported, "the NBD server's platform cannot"),
            option_reply::TLS_REQUIRED => (ErrorKind::Denied, "the NBD server insists on TLS"),
            option_reply::UNKNOWN_EXPORT => (ErrorKind::NotFound, "the NBD server has no such export"),
            option_reply::SHUTDOWN => (ErrorKind::Unavailable, "the NBD server is shutting down"),
            option_reply::BLOCK_SIZE_REQUIRED => (ErrorKind::Unsupported, "the NBD server wants other block sizes"),
            _ => (ErrorKind::Io, "the NBD server refuses"),
        };
        let said = text(&self.data);
        let said = if said.is_empty() { String::new() } else { format!(" ({})", said.escape_debug()) };
        let error = Error::new(kind, format!("{doing}: {reason}{said}"));
        match self.kind {
            option_reply::TLS_REQUIRED => error.hint("use nbds:// or nbds+unix://"),
            _ => error,
        }
    }
}

fn receive_reply(stream: &mut impl Read, option: u32) -> Result<Reply> {
    let mut header = [0; 20];
    receive(stream, &mut header)?;
    let mut fields = Fields(&header);
    if fields.u64() != Some(wire::OPTION_REPLY) {
        return Err(violation("a reply to an option has the wrong magic number"));
    }
    let (answered, kind) = fields.u32().zip(fields.u32()).unwrap_or_default();
    if answered != option {
        return Err(violation(format!("it answers option {answered} instead of {option}")));
    }
    let length = fields.u32().unwrap_or(u32::MAX);
    if length > MAX_REPLY_BYTES {
        return Err(violation(format!("a reply to option {option} is {length} bytes long")));
    }
    let mut data = vec![0; usize::try_from(length).unwrap_or(0)];
    receive(stream, &mut data)?;
    Ok(Reply { kind, data })
}

fn receive(stream: &mut impl Read, buf: &mut [u8]) -> Result<()> {
    stream.read_exact(buf).map_err(|error| transport("negotiate with the NBD server", error))
}

fn send(stream: &mut impl Write, bytes: &[u8]) -> Result<()> {
    let sent = stream.write_all(bytes).and_then(|()| stream.flush());
    sent.map_err(|error| transport("negotiate with the NBD server", error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use firn_disk::testing::Random;
    use std::io;

    /// A server that has said everything beforehand.
    struct Told<'a>(&'a [u8]);

    impl Read for Told<'_> {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            self.0.read(buf)
        }
    }

    impl Write for Told<'_> {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            Ok(buf.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn reply(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
        let length = u32::try_from(data.len()).unwrap().to_be_bytes();
        [&wire::OPTION_REPLY.to_be_bytes()[..], &option.to_be_bytes(), &kind.to_be_bytes(), &length, data].concat()
    }

    fn negotiation() -> Vec<u8> {
        let info = [&[0, 0][..], &1_000_000_u64.to_be_bytes(), &[1, 1]].concat();
        [
            b"NBDMAGICIHAVEOPT\0\x03".to_vec(),
            reply(option::STRUCTURED_REPLY, option_reply::ACK, &[]),
            reply(option::SET_META_CONTEXT, option_reply::META_CONTEXT, b"\0\0\0\x07base:allocation"),
            reply(option::SET_META_CONTEXT, option_reply::ACK, &[]),
            reply(option::GO, option_reply::INFO, &info),
            reply(option::GO, option_reply::INFO, &[0, 3, 0, 0, 2, 0, 0, 0, 16, 0, 2, 0, 0, 0]),
            reply(option::GO, option_reply::ACK, &[]),
        ]
        .concat()
    }

    fn negotiate(bytes: &[u8]) -> Result<Export> {
        let mut stream = Told(bytes);
        let greeting = greet(&mut stream)?;
        choose(&mut stream, greeting, "disk", &["base:allocation".to_owned()])
    }

    #[test]
    fn a_good_negotiation() {
        let export = negotiate(&negotiation()).unwrap();
        let wanted = Export {
            length: 1_000_000,
            flags: 0x101,
            min_block: 512,
            max_block: 32 << 20,
            structured: true,
            contexts: vec![(7, 0)],
        };
        assert_eq!(export, wanted);
    }

    #[test]
    fn a_server_without_go_is_asked_by_export_name() {
        let mut bytes = b"NBDMAGICIHAVEOPT\0\x01".to_vec();
        bytes.extend(reply(option::STRUCTURED_REPLY, option_reply::UNSUPPORTED, &[]));
        bytes.extend(reply(option::GO, option_reply::UNSUPPORTED, &[]));
        bytes.extend([&777_u64.to_be_bytes()[..], &[0, 1], &[0; 124]].concat());
        let export = negotiate(&bytes).unwrap();
        assert_eq!((export.length, export.min_block, export.structured), (777, 1, false));
        assert!(negotiate(&bytes[..bytes.len() - 1]).is_err(), "without the zeros it is not over");
    }

    #[test]
    fn mutated_negotiations_neither_panic_nor_agree_on_nonsense() {
        let mut random = Random::new(32);
        for round in 0..30_000 {
            let mut bytes = negotiation();
            for _ in 0..=random.below(3) {
                let at = usize::try_from(random.below(bytes.len() as u64)).unwrap();
                match random.below(4) {
                    0 => bytes.truncate(at.max(1)),
                    1 => bytes[at] ^= 1 << random.below(8),
                    2 => bytes[at] = [0, 1, 0x7F, 0xFF][usize::try_from(random.below(4)).unwrap()],
                    _ => bytes.extend_from_within(at..),
                }
            }
            if let Ok(export) = negotiate(&bytes) {
                assert!(i64::try_from(export.length).is_ok(), "round {round}");
                assert!(export.min_block.is_power_of_two() && export.max_block >= export.min_block, "round {round}");
            }
            let mut stream = Told(&bytes);
            if let Ok(greeting) = greet(&mut stream) {
                let _ = list(&mut stream, greeting);
            }
        }
    }
}
