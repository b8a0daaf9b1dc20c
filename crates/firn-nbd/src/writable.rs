//! [`WritableNbdDisk`]: an export as a disk that is written.
//!
//! It is never connected again by itself. What the server had acknowledged but not yet made durable may be gone with the
//! server, and a flush over a new connection would say that it is safe. So with the first lost connection every later
//! call fails, and the caller starts over.

use crate::connection::{Request, Ticket};
use crate::disk::NbdDisk;
use crate::wire::{command, command_flag, export_flag};
use crate::{Options, Uri};
use firn_disk::{Disk, Error, ErrorKind, Extent, Fua, MayUnmap, Result, WriteDisk, check_range};
use std::ops::Range;
use std::sync::{Mutex, PoisonError, RwLock};

/// The data of one request: what every server takes, and enough.
const PIECE_BYTES: u64 = 1 << 20;
/// A range to zero or discard goes in pieces of at most so many bytes, none of which takes the server too long.
const RANGE_BYTES: u64 = 32 << 20;

/// An export that is read and written.
///
/// Durability is the server's: [`flush`](WriteDisk::flush) returns when the server says so.
#[derive(Debug)]
pub struct WritableNbdDisk {
    disk: NbdDisk,
    /// Held for writing by who reads, changes and writes back a block of which only a part is written.
    blocks: RwLock<()>,
    /// Why nothing works any more.
    failed: Mutex<Option<Error>>,
}

/// Opens the export that `uri` names, for reading and writing. [`Options::reconnect`] does not count.
///
/// # Errors
/// As [`open`](crate::open); `Denied` for an export that is read-only, `Unsupported` for a server that has neither flush
/// nor FUA, since it could never say that something is durable.
pub fn open_writable(uri: &Uri, options: &Options) -> Result<WritableNbdDisk> {
    let disk = crate::open(uri, &Options { reconnect: 0, ..options.clone() })?;
    if disk.is_read_only() {
        return Err(Error::new(ErrorKind::Denied, "the export is read-only").at_path(uri.to_string()));
    }
    if disk.pool().export().flags & (export_flag::SEND_FLUSH | export_flag::SEND_FUA) == 0 {
        return Err(Error::unsupported(
            "this NBD server has neither flush nor FUA: nothing would be known to be durable",
        )
        .at_path(uri.to_string()));
    }
    Ok(WritableNbdDisk { disk, blocks: RwLock::new(()), failed: Mutex::new(None) })
}

impl WritableNbdDisk {
    /// The same export for reading.
    pub fn as_disk(&self) -> &NbdDisk {
        &self.disk
    }

    fn can(&self, flag: u16) -> bool {
        self.disk.pool().export().flags & flag != 0
    }

    fn check_alive(&self) -> Result<()> {
        match &*self.failed.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }

    /// Remembers that a connection was lost: from then on everything fails with that.
    fn note<T>(&self, result: Result<T>) -> Result<T> {
        if let Err(error) = &result
            && self.disk.pool().is_broken()
        {
            let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
            failed.get_or_insert_with(|| {
                error.clone().hint("what was not flushed may be gone; open the export again and start over")
            });
        }
        result
    }

    fn ask(&self, command: u16, flags: u16, range: Range<u64>, data: &[u8]) -> Result<()> {
        let pool = self.disk.pool();
        let length = u32::try_from(range.end - range.start).unwrap_or(u32::MAX);
        let request = Request { command, flags, offset: range.start, length, data };
        let answered = pool.send(request).and_then(Ticket::wait);
        answered.map(drop).map_err(|failure| pool.blame(failure.error, range.start))
    }

    fn min_block(&self) -> u64 {
        self.disk.pool().export().min_block.into()
    }

    /// The longest request of whole blocks within `most` bytes.
    fn step(&self, most: u64) -> u64 {
        let export = self.disk.pool().export();
        let min = u64::from(export.min_block);
        let most = u64::from(export.max_block).min(most.max(min));
        most - most % min
    }

    /// Calls `each` with `range` in pieces of at most `step` bytes.
    fn in_pieces(range: &Range<u64>, step: u64, mut each: impl FnMut(Range<u64>) -> Result<()>) -> Result<()> {
        let mut at = range.start;
        while at < range.end {
            let end = at.saturating_add(step).min(range.end);
            each(at..end)?;
            at = end;
        }
        Ok(())
    }

    /// The whole blocks of `range`; empty at its start if there are none. The last, short block of a disk counts as whole.
    fn whole_blocks(&self, range: &Range<u64>) -> Range<u64> {
        let min = self.min_block();
        let start = range.start.checked_next_multiple_of(min).unwrap_or(u64::MAX);
        let end = if range.end == self.len() { range.end } else { range.end - range.end % min };
        if start < end { start..end } else { range.start..range.start }
    }

    /// Runs `whole` over the whole blocks of `range`, and writes what of the first and last block lies in it with the
    /// bytes that `part` puts there.
    fn change(
        &self,
        range: Range<u64>,
        fua: u16,
        part: impl Fn(&mut [u8], u64),
        whole: impl FnOnce(Range<u64>) -> Result<()>,
    ) -> Result<()> {
        let middle = self.whole_blocks(&range);
        if middle.start < middle.end {
            let _shared = self.blocks.read().unwrap_or_else(PoisonError::into_inner);
            whole(middle.clone())?;
        }
        let parts =
            if middle.is_empty() { [range.clone(), 0..0] } else { [range.start..middle.start, middle.end..range.end] };
        for edge in parts.into_iter().filter(|edge| !edge.is_empty()) {
            Self::in_pieces(&edge, 1 << 20, |piece| self.change_edge(piece, fua, &part))?;
        }
        Ok(())
    }

    /// Reads the blocks around `edge`, changes that part of them, writes them back.
    fn change_edge(&self, edge: Range<u64>, fua: u16, part: &impl Fn(&mut [u8], u64)) -> Result<()> {
        let min = self.min_block();
        let _alone = self.blocks.write().unwrap_or_else(PoisonError::into_inner);
        let around = edge.start - edge.start % min..edge.end.next_multiple_of(min).min(self.len());
        Self::in_pieces(&around, min, |block| {
            let mut bytes = vec![0; usize::try_from(block.end - block.start).unwrap_or(0)];
            self.disk.read_at(&mut bytes, block.start)?;
            let (start, end) = (edge.start.max(block.start), edge.end.min(block.end));
            let index = |at: u64| usize::try_from(at - block.start).unwrap_or(usize::MAX);
            part(bytes.get_mut(index(start)..index(end)).unwrap_or_default(), start);
            self.ask(command::WRITE, fua, block, &bytes)
        })
    }

    /// What `action` does changes the disk, and needs to be durable at its end if `fua` says so.
    fn changing(&self, fua: Fua, action: impl FnOnce(u16) -> Result<()>) -> Result<()> {
        self.check_alive()?;
        // A server that cannot flush gets everything with FUA.
        let durable = fua == Fua::Yes || !self.can(export_flag::SEND_FLUSH);
        let flag = if durable && self.can(export_flag::SEND_FUA) { command_flag::FUA } else { 0 };
        self.disk.extents().forget();
        let result = action(flag);
        self.disk.extents().forget();
        self.note(result)?;
        if fua == Fua::Yes && flag == 0 { self.flush() } else { Ok(()) }
    }
}

impl Disk for WritableNbdDisk {
    fn len(&self) -> u64 {
        self.disk.len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.check_alive()?;
        self.note(self.disk.read_at(buf, offset))
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        self.check_alive()?;
        self.note(self.disk.extent_at(offset))
    }
}

impl WriteDisk for WritableNbdDisk {
    fn write_at(&self, buf: &[u8], offset: u64, fua: Fua) -> Result<()> {
        check_range(offset, buf.len() as u64, self.len())?;
        let from = |at: u64, count: usize| {
            let start = usize::try_from(at - offset).unwrap_or(usize::MAX);
            buf.get(start..start.saturating_add(count)).unwrap_or_default()
        };
        let step = self.step(PIECE_BYTES);
        self.changing(fua, |flag| {
            let put = |bytes: &mut [u8], at: u64| bytes.copy_from_slice(from(at, bytes.len()));
            self.change(offset..offset + buf.len() as u64, flag, put, |whole| {
                Self::in_pieces(&whole, step, |piece| {
                    let count = usize::try_from(piece.end - piece.start).unwrap_or(0);
                    self.ask(command::WRITE, flag, piece.clone(), from(piece.start, count))
                })
            })
        })
    }

    fn zero(&self, range: Range<u64>, may_unmap: MayUnmap) -> Result<()> {
        check_range(range.start, range.end.saturating_sub(range.start), self.len())?;
        if range.is_empty() {
            return Ok(());
        }
        let put = |bytes: &mut [u8], _| bytes.fill(0);
        if self.can(export_flag::SEND_WRITE_ZEROES) {
            let keep = if may_unmap == MayUnmap::No { command_flag::NO_HOLE } else { 0 };
            let step = self.step(RANGE_BYTES);
            return self.changing(Fua::No, |flag| {
                self.change(range, flag, put, |whole| {
                    Self::in_pieces(&whole, step, |piece| self.ask(command::WRITE_ZEROES, flag | keep, piece, &[]))
                })
            });
        }
        let step = self.step(PIECE_BYTES);
        let zeros = vec![0; usize::try_from(step.min(range.end - range.start)).unwrap_or(0)];
        self.changing(Fua::No, |flag| {
            self.change(range, flag, put, |whole| {
                Self::in_pieces(&whole, step, |piece| {
                    let count = usize::try_from(piece.end - piece.start).unwrap_or(0);
                    self.ask(command::WRITE, flag, piece, zeros.get(..count).unwrap_or_default())
                })
            })
        })
    }

    fn discard(&self, range: Range<u64>) -> Result<()> {
        check_range(range.start, range.end.saturating_sub(range.start), self.len())?;
        let whole = self.whole_blocks(&range);
        if whole.is_empty() || !self.can(export_flag::SEND_TRIM) {
            return self.check_alive();
        }
        let step = self.step(RANGE_BYTES);
        self.changing(Fua::No, |flag| Self::in_pieces(&whole, step, |piece| self.ask(command::TRIM, flag, piece, &[])))
    }

    fn flush(&self) -> Result<()> {
        self.check_alive()?;
        if !self.can(export_flag::SEND_FLUSH) {
            // Everything went with FUA.
            return Ok(());
        }
        self.note(self.ask(command::FLUSH, 0, 0..0, &[]))
    }

    /// # Errors
    /// `Unsupported` always: the protocol has no such request.
    fn resize(&self, _length: u64) -> Result<()> {
        Err(Error::unsupported("the length of an NBD export is the server's to change"))
    }
}
