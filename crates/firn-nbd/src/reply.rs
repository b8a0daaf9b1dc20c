//! Replies: which request they belong to, whether they keep to what was asked, and what they bring.
//!
//! A request waits in a [`Table`] under its cookie. The connection's reader thread takes it out for each chunk, so the
//! buffer has one owner at any time, and puts it back until the last chunk. What is checked: the cookie, the kind of
//! chunk, its length before anything is allocated for it, that data lies within the request and nothing comes twice,
//! and in the end that all of it came.

use crate::error::{Failure, reply_error, transport, violation};
use crate::wire::{self, Fields, chunk};
use firn_disk::Error;
use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::sync::mpsc::SyncSender;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Separate pieces in which the data of one read may lie around at any time.
const MAX_PIECES: usize = 4096;
/// Runs in one block status: what nbdkit sends at most, eight times as many as QEMU.
const MAX_RUNS: u32 = 1 << 20;
/// Bytes of an error chunk: number, length of the message, the message of at most 4096 bytes, an offset.
const MAX_ERROR_BYTES: u32 = 4 + 2 + 4096 + 8;
/// Error chunks in one reply.
const MAX_ERRORS: u32 = 1024;

/// A run in a metadata context: its length in bytes and its flags.
pub(crate) type Run = (u32, u32);

/// What a request asked for.
#[derive(Debug)]
pub(crate) enum Asked {
    /// The bytes from this offset on, as many as the buffer is long.
    Read(u64),
    /// The status in at most so many contexts.
    Status(usize),
    /// That something be done.
    Done,
}

/// What a good reply brought.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    /// The bytes of a read.
    pub(crate) bytes: Vec<u8>,
    /// The runs of a block status, by the server's number of the context.
    pub(crate) runs: Vec<(u32, Vec<Run>)>,
}

/// A request that waits for its reply.
#[derive(Debug)]
pub(crate) struct Pending {
    asked: Asked,
    answer: Answer,
    covered: Covered,
    error: Option<Error>,
    errors: u32,
    /// Gets the answer. Dropped without one when the connection broke.
    done: SyncSender<Result<Answer, Error>>,
}

impl Pending {
    /// A request that gets `length` bytes of data.
    pub(crate) fn new(asked: Asked, length: usize, done: SyncSender<Result<Answer, Error>>) -> Self {
        let answer = Answer { bytes: vec![0; length], runs: Vec::new() };
        Self { asked, answer, covered: Covered::default(), error: None, errors: 0, done }
    }

    /// What the reply comes to, after its last chunk.
    fn settle(&mut self) -> Result<Result<Answer, Error>, Failure> {
        if let Some(error) = self.error.take() {
            return Ok(Err(error));
        }
        if matches!(self.asked, Asked::Read(_)) && !self.covered.is_whole(self.answer.bytes.len()) {
            return Err(Failure::last(violation("a read was not answered in full")));
        }
        Ok(Ok(std::mem::take(&mut self.answer)))
    }
}

/// The ranges of a read's buffer that have been filled: start to end, apart from each other.
#[derive(Debug, Default)]
struct Covered(BTreeMap<usize, usize>);

impl Covered {
    fn add(&mut self, mut start: usize, mut end: usize) -> Result<(), Error> {
        let before = self.0.range(..end).next_back().map(|(&start, &end)| (start, end));
        if let Some((before_start, before_end)) = before {
            if before_end > start {
                return Err(violation("the same bytes came twice in one reply"));
            }
            if before_end == start {
                self.0.remove(&before_start);
                start = before_start;
            }
        }
        if let Some(after_end) = self.0.remove(&end) {
            end = after_end;
        }
        if self.0.len() >= MAX_PIECES {
            return Err(violation("one reply came in too many pieces out of order"));
        }
        self.0.insert(start, end);
        Ok(())
    }

    fn is_whole(&self, length: usize) -> bool {
        length == 0 || self.0.get(&0) == Some(&length)
    }
}

/// The requests in flight on one connection.
#[derive(Debug, Default)]
pub(crate) struct Table(Mutex<Entries>);

#[derive(Debug, Default)]
struct Entries {
    waiting: HashMap<u64, Pending>,
    next_cookie: u64,
    broken: Option<Failure>,
}

impl Table {
    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a request in and answers its cookie.
    ///
    /// # Errors
    /// Why the connection is broken.
    pub(crate) fn insert(&self, pending: Pending) -> Result<u64, Failure> {
        let mut entries = self.entries();
        if let Some(failure) = &entries.broken {
            return Err(failure.clone());
        }
        let cookie = entries.next_cookie;
        entries.next_cookie = cookie.wrapping_add(1);
        entries.waiting.insert(cookie, pending);
        Ok(cookie)
    }

    /// Breaks the connection: who waits is told, nobody gets in any more. The first reason stays.
    pub(crate) fn break_with(&self, failure: Failure) {
        let mut entries = self.entries();
        entries.broken.get_or_insert(failure);
        // Dropping what waits wakes those who wait for it.
        let waiting = std::mem::take(&mut entries.waiting);
        drop(entries);
        drop(waiting);
    }

    /// Why the connection is broken, if it is.
    pub(crate) fn failure(&self) -> Option<Failure> {
        self.entries().broken.clone()
    }

    fn take(&self, cookie: u64) -> Result<Pending, Error> {
        let pending = self.entries().waiting.remove(&cookie);
        pending.ok_or_else(|| violation(format!("it answers a request that was not made (cookie {cookie:#x})")))
    }

    fn put_back(&self, cookie: u64, pending: Pending) {
        let mut entries = self.entries();
        if entries.broken.is_none() {
            entries.waiting.insert(cookie, pending);
        }
    }
}

/// Reads one reply or one chunk of one, and does what it says.
///
/// # Errors
/// The connection cannot be used after an error: it ended, or the server broke the protocol.
pub(crate) fn read_one(reader: &mut impl Read, table: &Table, structured: bool) -> Result<(), Failure> {
    let mut magic = [0; 4];
    receive(reader, &mut magic)?;
    match u32::from_be_bytes(magic) {
        wire::SIMPLE_REPLY => read_simple(reader, table, structured),
        wire::STRUCTURED_REPLY if structured => read_chunk(reader, table),
        other => Err(Failure::last(violation(format!("a reply begins with {other:#010x}")))),
    }
}

fn read_simple(reader: &mut impl Read, table: &Table, structured: bool) -> Result<(), Failure> {
    let mut header = [0; 12];
    receive(reader, &mut header)?;
    let mut fields = Fields(&header);
    let (number, cookie) = fields.u32().zip(fields.u64()).unwrap_or_default();
    let mut pending = table.take(cookie).map_err(Failure::last)?;
    let filled = fill_simple(reader, &mut pending, number, structured);
    conclude(table, cookie, pending, filled.map(|()| true))
}

fn fill_simple(reader: &mut impl Read, pending: &mut Pending, number: u32, structured: bool) -> Result<(), Failure> {
    if number != 0 {
        pending.error = Some(reply_error(number, ""));
        return Ok(());
    }
    match pending.asked {
        Asked::Done => Ok(()),
        Asked::Read(_) if !structured => {
            receive(reader, &mut pending.answer.bytes)?;
            pending.covered.add(0, pending.answer.bytes.len()).map_err(Failure::last)
        }
        _ => Err(Failure::last(violation("a simple reply where a structured one was agreed on"))),
    }
}

fn read_chunk(reader: &mut impl Read, table: &Table) -> Result<(), Failure> {
    let mut header = [0; 16];
    receive(reader, &mut header)?;
    let mut fields = Fields(&header);
    let (flags, kind) = fields.u16().zip(fields.u16()).unwrap_or_default();
    let (cookie, length) = fields.u64().zip(fields.u32()).unwrap_or_default();
    let mut pending = table.take(cookie).map_err(Failure::last)?;
    let last = flags & chunk::DONE != 0;
    let filled = match kind {
        chunk::NONE if length == 0 && last => Ok(()),
        chunk::OFFSET_DATA => read_data(reader, &mut pending, length),
        chunk::OFFSET_HOLE => read_hole(reader, &mut pending, length),
        chunk::BLOCK_STATUS => read_status(reader, &mut pending, length),
        kind if kind & chunk::ERROR_BIT != 0 => read_error(reader, &mut pending, kind, length),
        _ => Err(Failure::last(violation(format!("a chunk of type {kind} and {length} bytes is out of place")))),
    };
    conclude(table, cookie, pending, filled.map(|()| last))
}

/// Hands the answer over if it is complete, or lets the request wait on.
fn conclude(table: &Table, cookie: u64, mut pending: Pending, filled: Result<bool, Failure>) -> Result<(), Failure> {
    let settled = match filled {
        Ok(false) => {
            table.put_back(cookie, pending);
            return Ok(());
        }
        Ok(true) => pending.settle(),
        Err(failure) => Err(failure),
    };
    match settled {
        Ok(outcome) => {
            // The one who asked may have given up.
            let _ = pending.done.send(outcome);
            Ok(())
        }
        Err(failure) => {
            // Before the request is dropped, so that who wakes up by that finds the reason.
            table.break_with(failure.clone());
            Err(failure)
        }
    }
}

/// Where `length` bytes from the disk's `offset` lie in the buffer of a read.
fn place(pending: &Pending, offset: u64, length: u64) -> Result<(usize, usize), Failure> {
    let outside = || Failure::last(violation(format!("{length} bytes at {offset} were not asked for")));
    let Asked::Read(asked) = pending.asked else { return Err(outside()) };
    let start = offset.checked_sub(asked).ok_or_else(outside)?;
    let end = start.checked_add(length).ok_or_else(outside)?;
    match (usize::try_from(start), usize::try_from(end)) {
        (Ok(start), Ok(end)) if start < end && end <= pending.answer.bytes.len() => Ok((start, end)),
        _ => Err(outside()),
    }
}

fn read_data(reader: &mut impl Read, pending: &mut Pending, length: u32) -> Result<(), Failure> {
    let Some(data_length) = length.checked_sub(8) else {
        return Err(Failure::last(violation("a data chunk is too short")));
    };
    let mut offset = [0; 8];
    receive(reader, &mut offset)?;
    let (start, end) = place(pending, u64::from_be_bytes(offset), data_length.into())?;
    pending.covered.add(start, end).map_err(Failure::last)?;
    receive(reader, pending.answer.bytes.get_mut(start..end).unwrap_or_default())
}

fn read_hole(reader: &mut impl Read, pending: &mut Pending, length: u32) -> Result<(), Failure> {
    if length != 12 {
        return Err(Failure::last(violation("a hole chunk has the wrong length")));
    }
    let mut payload = [0; 12];
    receive(reader, &mut payload)?;
    let mut fields = Fields(&payload);
    let (offset, size) = fields.u64().zip(fields.u32()).unwrap_or_default();
    let (start, end) = place(pending, offset, size.into())?;
    pending.covered.add(start, end).map_err(Failure::last)?;
    pending.answer.bytes.get_mut(start..end).unwrap_or_default().fill(0);
    Ok(())
}

fn read_status(reader: &mut impl Read, pending: &mut Pending, length: u32) -> Result<(), Failure> {
    let Asked::Status(contexts) = pending.asked else {
        return Err(Failure::last(violation("a block status was not asked for")));
    };
    let runs = length.checked_sub(4).filter(|bytes| bytes.is_multiple_of(8)).map(|bytes| bytes / 8);
    if !runs.is_some_and(|runs| (1..=MAX_RUNS).contains(&runs)) || pending.answer.runs.len() >= contexts {
        return Err(Failure::last(violation(format!("a block status of {length} bytes is out of place"))));
    }
    // Grows with what really comes.
    let mut payload = Vec::new();
    let got = reader.take(length.into()).read_to_end(&mut payload);
    let got = got.map_err(|error| Failure::lost(transport("receive from the NBD server", error)))?;
    if got as u64 != u64::from(length) {
        return Err(hung_up());
    }
    let mut fields = Fields(&payload);
    let id = fields.u32().unwrap_or(0);
    let runs: Vec<Run> = std::iter::from_fn(|| fields.u32().zip(fields.u32())).collect();
    if runs.iter().any(|&(length, _)| length == 0) || pending.answer.runs.iter().any(|(other, _)| *other == id) {
        return Err(Failure::last(violation("a block status has a run of no length, or came twice")));
    }
    pending.answer.runs.push((id, runs));
    Ok(())
}

fn read_error(reader: &mut impl Read, pending: &mut Pending, kind: u16, length: u32) -> Result<(), Failure> {
    pending.errors += 1;
    if !(6..=MAX_ERROR_BYTES).contains(&length) || pending.errors > MAX_ERRORS {
        return Err(Failure::last(violation(format!("an error chunk of {length} bytes, or too many of them"))));
    }
    let mut payload = vec![0; usize::try_from(length).unwrap_or(0)];
    receive(reader, &mut payload)?;
    let mut fields = Fields(&payload);
    let number = fields.u32().unwrap_or(0);
    let message = fields.u16().and_then(|length| fields.bytes(length.into()));
    let Some(message) = message.filter(|_| number != 0) else {
        return Err(Failure::last(violation("an error chunk contradicts itself")));
    };
    let mut error = reply_error(number, &String::from_utf8_lossy(message));
    if kind == chunk::ERROR_OFFSET {
        error = error.at_offset(fields.u64().ok_or_else(|| Failure::last(violation("an error chunk is too short")))?);
    }
    pending.error.get_or_insert(error);
    Ok(())
}

fn receive(reader: &mut impl Read, buf: &mut [u8]) -> Result<(), Failure> {
    reader.read_exact(buf).map_err(|error| {
        if error.kind() == std::io::ErrorKind::UnexpectedEof {
            return hung_up();
        }
        Failure::lost(transport("receive from the NBD server", error))
    })
}

fn hung_up() -> Failure {
    Failure::lost(Error::new(firn_disk::ErrorKind::Unavailable, "the NBD server hung up"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use firn_disk::testing::Random;
    use std::sync::mpsc::{Receiver, sync_channel};

    fn chunk_bytes(flags: u16, kind: u16, cookie: u64, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let magic = wire::STRUCTURED_REPLY.to_be_bytes();
        [&magic[..], &flags.to_be_bytes(), &kind.to_be_bytes(), &cookie.to_be_bytes(), &length, payload].concat()
    }

    /// A read, a status and a flush that wait, and good answers to them.
    fn scene(table: &Table) -> (Vec<Receiver<Result<Answer, Error>>>, Vec<u8>) {
        let mut receivers = Vec::new();
        for (asked, length) in [(Asked::Read(512), 64), (Asked::Status(2), 0), (Asked::Done, 0)] {
            let (sender, receiver) = sync_channel(1);
            table.insert(Pending::new(asked, length, sender)).unwrap();
            receivers.push(receiver);
        }
        let at = |offset: u64, rest: &[u8]| [&offset.to_be_bytes()[..], rest].concat();
        let bytes = [
            chunk_bytes(0, chunk::OFFSET_DATA, 0, &at(512, &[1; 32])),
            chunk_bytes(0, chunk::BLOCK_STATUS, 1, &[0, 0, 0, 7, 0, 0, 2, 0, 0, 0, 0, 3]),
            chunk_bytes(1, chunk::OFFSET_HOLE, 0, &at(544, &32_u32.to_be_bytes())),
            chunk_bytes(1, chunk::BLOCK_STATUS, 1, &[0, 0, 0, 8, 0, 0, 2, 0, 0, 0, 0, 1]),
            chunk_bytes(1, chunk::ERROR_OFFSET, 2, &[0, 0, 0, 5, 0, 1, b'x', 0, 0, 0, 0, 0, 0, 0, 9]),
        ];
        (receivers, bytes.concat())
    }

    #[test]
    fn good_replies_are_handed_over() {
        let table = Table::default();
        let (receivers, bytes) = scene(&table);
        let mut reader = &bytes[..];
        while !reader.is_empty() {
            read_one(&mut reader, &table, true).unwrap();
        }
        let read = receivers[0].try_recv().unwrap().unwrap();
        assert!(read.bytes[..32] == [1; 32] && read.bytes[32..] == [0; 32]);
        assert_eq!(receivers[1].try_recv().unwrap().unwrap().runs, [(7, vec![(512, 3)]), (8, vec![(512, 1)])]);
        assert!(receivers[2].try_recv().unwrap().unwrap_err().to_string().contains("at byte 9"));
        assert!(read_one(&mut reader, &table, true).unwrap_err().lost);
    }

    #[test]
    fn mutated_replies_neither_panic_nor_bring_data_that_did_not_come() {
        let mut random = Random::new(31);
        for round in 0..30_000 {
            let table = Table::default();
            let (receivers, mut bytes) = scene(&table);
            for _ in 0..=random.below(3) {
                let at = usize::try_from(random.below(bytes.len() as u64)).unwrap();
                match random.below(4) {
                    0 => bytes.truncate(at.max(1)),
                    1 => bytes[at] ^= 1 << random.below(8),
                    2 => bytes[at] = [0, 1, 0x7F, 0xFF][usize::try_from(random.below(4)).unwrap()],
                    _ => bytes.extend_from_within(at..),
                }
            }
            let mut reader = &bytes[..];
            // Each reply takes some bytes, so it ends.
            while read_one(&mut reader, &table, round % 8 != 0).is_ok() {}
            if let Ok(Ok(answer)) = receivers[0].try_recv() {
                assert_eq!(answer.bytes.len(), 64, "round {round}");
            }
        }
    }

    #[test]
    fn pieces_are_joined_and_never_overlap() {
        let mut covered = Covered::default();
        for (start, end) in [(10, 20), (30, 40), (20, 30), (0, 10)] {
            covered.add(start, end).unwrap();
        }
        assert!(covered.is_whole(40) && !covered.is_whole(41));
        for (start, end) in [(0, 1), (39, 50), (15, 16), (0, 100)] {
            assert!(covered.add(start, end).is_err());
        }
        let mut covered = Covered::default();
        let added = (0..10_000).try_for_each(|index| covered.add(index * 2, index * 2 + 1));
        assert!(added.is_err() && covered.0.len() <= MAX_PIECES);
    }
}
