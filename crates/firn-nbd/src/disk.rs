//! [`NbdDisk`]: an export as a disk that is read.
//!
//! A read is cut into pieces that the server takes, several of which are on their way at once, over all connections in
//! turn. A piece whose connection was lost is asked for again by itself.

use crate::connection::{Request, Ticket};
use crate::error::{Failure, violation};
use crate::extents::Extents;
use crate::pool::Pool;
use crate::wire::{self, command, export_flag};
use crate::{BASE_ALLOCATION, Options, Uri, reply::Answer};
use firn_disk::{Disk, Error, ErrorKind, Extent, Result, check_range};
use std::collections::VecDeque;
use std::ops::Range;

/// A read is asked for in pieces of at most so many bytes, so that they spread over the connections.
const PIECE_BYTES: u64 = 1 << 20;
/// Pieces of one read that are on their way at once.
const PIECES: usize = 8;
/// The longest range of one block status request: 4 GiB less the largest block.
const STATUS_BYTES: u64 = (1 << 32) - (64 << 10);

/// An export that is read. It never sends a request that changes anything.
///
/// The sector size that tables on it count in is not something that the protocol tells: it is taken to be 512 bytes.
#[derive(Debug)]
pub struct NbdDisk {
    pool: Pool,
    extents: Extents,
}

/// Opens the export that `uri` names, for reading.
///
/// # Errors
/// `Unavailable` when the server cannot be reached or does not answer, `NotFound` when there is no such socket, export
/// or metadata context, `Denied` when TLS or the server's policy stands against it, `Unsupported` for what the server or
/// firn cannot do, `Io` when the server breaks the protocol. Blocks for at most the timeout of the options, and some
/// seconds more where the server does not take as many connections as it promised.
pub fn open(uri: &Uri, options: &Options) -> Result<NbdDisk> {
    let pool = Pool::open(uri, options).map_err(|error| error.at_path(uri.to_string()))?;
    Ok(NbdDisk { pool, extents: Extents::default() })
}

impl NbdDisk {
    /// How many connections it is read over.
    pub fn connections(&self) -> usize {
        self.pool.connections()
    }

    /// Whether the server lets this export be written.
    pub fn is_read_only(&self) -> bool {
        self.pool.export().flags & export_flag::READ_ONLY != 0
    }

    /// Where it was opened.
    pub fn uri(&self) -> &Uri {
        self.pool.uri()
    }

    /// Calls `visit` with every range that is dirty in `context` (a `qemu:dirty-bitmap:NAME` that stood in
    /// [`Options::contexts`]), in order, neighbours joined.
    ///
    /// # Errors
    /// As [`visit_context`](Self::visit_context).
    pub fn changed(&self, context: &str, mut visit: impl FnMut(Range<u64>) -> Result<()>) -> Result<()> {
        self.visit_context(
            context,
            0..self.len(),
            |flags, range| {
                if flags & wire::DIRTY != 0 { visit(range) } else { Ok(()) }
            },
        )
    }

    /// Calls `visit` with the flags of every run of `range` in a metadata context, in order, neighbours with the same
    /// flags joined.
    ///
    /// # Errors
    /// `NotFound` when the context is not `base:allocation` and was not in [`Options::contexts`]; `OutOfBounds`; what
    /// `visit` or the server says.
    pub fn visit_context(
        &self,
        context: &str,
        range: Range<u64>,
        mut visit: impl FnMut(u32, Range<u64>) -> Result<()>,
    ) -> Result<()> {
        check_range(range.start, range.end.saturating_sub(range.start), self.len())?;
        let index = self.pool.context(context).ok_or_else(|| {
            Error::not_found(format!("the metadata context {context} was not opened")).at_path(self.uri().to_string())
        })?;
        let mut pending: Option<(u32, Range<u64>)> = None;
        let mut at = range.start;
        while at < range.end {
            for (flags, run) in self.runs(index, at)? {
                let run = run.start.max(at)..run.end.min(range.end);
                if run.start >= run.end {
                    continue;
                }
                at = run.end;
                match &mut pending {
                    Some((same, whole)) if *same == flags => whole.end = run.end,
                    _ => {
                        if let Some((flags, whole)) = pending.replace((flags, run)) {
                            visit(flags, whole)?;
                        }
                    }
                }
            }
        }
        match pending {
            Some((flags, whole)) => visit(flags, whole),
            None => Ok(()),
        }
    }

    /// The runs around and after `offset`, the last clipped to the disk; they reach past `offset`.
    fn runs(&self, index: usize, offset: u64) -> Result<Vec<(u32, Range<u64>)>> {
        let min = u64::from(self.pool.export().min_block);
        let start = offset - offset % min;
        let length = u32::try_from((self.len() - start).min(STATUS_BYTES)).unwrap_or(u32::MAX);
        let mut runs = Vec::new();
        let mut at = start;
        for (length, flags) in self.pool.status(index, start, length)? {
            let end = at.saturating_add(length.into()).min(self.len());
            if at < end {
                runs.push((flags, at..end));
            }
            at = end;
        }
        if at <= offset {
            return Err(self.pool.blame(violation("a block status ends before it begins"), offset));
        }
        Ok(runs)
    }

    /// The pieces that a read of `range` is asked for in: whole blocks, though never past the end.
    fn pieces(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> + use<> {
        let export = self.pool.export();
        let min = u64::from(export.min_block);
        let most = u64::from(export.max_block).min(PIECE_BYTES.max(min));
        let step = most - most % min;
        let mut at = range.start - range.start % min;
        let end = range.end.checked_next_multiple_of(min).unwrap_or(range.end).min(export.length);
        std::iter::from_fn(move || {
            let piece = at..at.saturating_add(step).min(end);
            at = piece.end;
            (piece.start < piece.end).then_some(piece)
        })
    }

    /// The answer to a piece that was sent, or that of a second try.
    fn finish(&self, piece: &Range<u64>, sent: Result<Ticket, Failure>) -> Result<Answer> {
        match sent.and_then(Ticket::wait) {
            Ok(answer) => Ok(answer),
            Err(failure) => self.pool.ask_again(read(piece), failure).map(|(answer, _)| answer),
        }
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    pub(crate) fn extents(&self) -> &Extents {
        &self.extents
    }
}

fn read(piece: &Range<u64>) -> Request<'static> {
    let length = u32::try_from(piece.end - piece.start).unwrap_or(u32::MAX);
    Request { command: command::READ, flags: 0, offset: piece.start, length, data: &[] }
}

/// Copies what `piece` brought to where it belongs in `buf`, which starts at `offset`.
fn deliver(buf: &mut [u8], offset: u64, piece: &Range<u64>, bytes: &[u8]) -> Option<()> {
    let end = offset + buf.len() as u64;
    let (start, stop) = (piece.start.max(offset), piece.end.min(end));
    let index = |at: u64, base: u64| usize::try_from(at.checked_sub(base)?).ok();
    let from = bytes.get(index(start, piece.start)?..index(stop, piece.start)?)?;
    buf.get_mut(index(start, offset)?..index(stop, offset)?)?.copy_from_slice(from);
    Some(())
}

impl Disk for NbdDisk {
    fn len(&self) -> u64 {
        self.pool.export().length
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(offset, buf.len() as u64, self.len())?;
        if buf.is_empty() {
            return Ok(());
        }
        let mut pieces = self.pieces(offset..offset + buf.len() as u64);
        let mut waiting: VecDeque<(Range<u64>, Result<Ticket, Failure>)> = VecDeque::with_capacity(PIECES);
        let mut outcome = Ok(());
        loop {
            // After an error nothing more is asked for, yet what is on its way is waited for, so that nothing piles up.
            while outcome.is_ok() && waiting.len() < PIECES {
                let Some(piece) = pieces.next() else { break };
                let sent = self.pool.send(read(&piece));
                waiting.push_back((piece, sent));
            }
            let Some((piece, sent)) = waiting.pop_front() else { return outcome };
            if outcome.is_err() {
                // Only the first error is told.
                let _ = sent.and_then(Ticket::wait);
                continue;
            }
            outcome = self.finish(&piece, sent).and_then(|answer| {
                deliver(buf, offset, &piece, &answer.bytes)
                    .ok_or_else(|| Error::new(ErrorKind::Io, "an answer of the wrong length").at_offset(piece.start))
            });
        }
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        check_range(offset, 1, self.len())?;
        let Some(index) = self.pool.context(BASE_ALLOCATION) else {
            return Ok(Extent { kind: firn_disk::ExtentKind::Data, length: self.len() - offset });
        };
        self.extents.at(offset, || self.runs(index, offset))
    }
}
