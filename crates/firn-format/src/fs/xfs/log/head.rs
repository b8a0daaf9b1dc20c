//! Finding where the log begins and ends.
//!
//! The log is written round and round, and every 512 bytes begin with the number of the round. So the head is where a
//! round ends and what is left of the one before it goes on. As the last writes may have come to the disk in any order,
//! the units before the head are searched for such that are still of an older round, and the last records are checked.
//!
//! Source: the kernel's `fs/xfs/xfs_log_recover.c` (`xlog_find_head`, `xlog_find_tail`, `xlog_verify_head`,
//! `xlog_verify_tail`).

use super::record::{Header, MAGIC, MAX_RECORD};
use super::{Log, State, UNIT};
use firn_disk::{ErrorKind, Record, Result};

/// Records that can be under way at once.
const MAX_IN_FLIGHT: u64 = 8;
const UNMOUNT: u8 = 0x20;

/// What is to be replayed: from the tail up to the head, in units; the tail can be the larger number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Span {
    pub tail: u64,
    pub head: u64,
}

/// The last good record.
struct Last {
    at: u64,
    header: Header,
}

impl Log {
    /// What is to be replayed.
    pub fn state(&self) -> Result<State> {
        let clean = State { span: None, is_torn: false };
        let Some(head) = self.find_head()? else { return Ok(clean) };
        let last = self.last_record(head, head)?;
        if self.is_unmount(&last, head)? {
            return Ok(clean);
        }
        let (head, last, is_torn) = self.checked_head(head, last)?;
        if is_torn && self.is_unmount(&last, head)? {
            return Ok(State { span: None, is_torn });
        }
        if last.header.tail() >= self.units {
            return Err(self.corrupt(last.at, format!("a tail at {}", last.header.tail())));
        }
        if last.header.tail() == head {
            return Ok(State { span: None, is_torn });
        }
        let span = self.checked_tail(Span { tail: last.header.tail(), head })?;
        Ok(State { span: Some(span), is_torn })
    }

    /// Units from `from` on up to `to`.
    pub(super) fn distance(&self, from: u64, to: u64) -> u64 {
        if from < to { to - from } else { to + self.units - from }
    }

    /// The number of the round that each of `count` units is of.
    fn cycles(&self, start: u64, count: u64) -> Result<Vec<u32>> {
        let bytes = self.read(start, count)?;
        bytes.chunks(512).map(cycle_of).collect()
    }

    fn cycle(&self, at: u64) -> Result<u32> {
        cycle_of(&self.read(at, 1)?)
    }

    /// The first unit of `count` from `start` on that is of the round `cycle`.
    fn find_cycle(&self, start: u64, count: u64, cycle: u32) -> Result<Option<u64>> {
        if count == 0 {
            return Ok(None);
        }
        Ok((start..).zip(self.cycles(start, count)?).find(|(_, found)| *found == cycle).map(|(at, _)| at))
    }

    /// By halving, the first unit of the round `cycle`, which the unit `last` is of.
    fn cycle_start(&self, mut first: u64, mut last: u64, cycle: u32) -> Result<u64> {
        let mut middle = u64::midpoint(first, last);
        while middle != first && middle != last {
            if self.cycle(middle)? == cycle {
                last = middle;
            } else {
                first = middle;
            }
            middle = u64::midpoint(first, last);
        }
        Ok(last)
    }

    /// Where the next record would be written; `None` when nothing ever was.
    fn find_head(&self) -> Result<Option<u64>> {
        let end = self.units;
        let (first, last) = (self.cycle(0)?, self.cycle(end - 1)?);
        if first == 0 {
            return Ok(None);
        }
        let longest = if self.is_v2 { MAX_RECORD / UNIT } else { (32 << 10) / UNIT };
        let scan = (MAX_IN_FLIGHT * longest).min(end);
        if last == 0 {
            if first != 1 {
                return Err(self.corrupt(0, "this is no log"));
            }
            let mut head = self.cycle_start(0, end - 1, 0)?;
            let start = head.saturating_sub(scan);
            head = self.find_cycle(start, head - start, 0)?.unwrap_or(head);
            return self.end_of_record(start, head, 0)?.map(Some).ok_or_else(|| self.corrupt(head, "no record"));
        }
        let head = self.estimated_head(first, last, scan)?;
        let head = if head >= longest {
            self.end_of_record(head - longest, head, 0)?
        } else if let Some(found) = self.end_of_record(0, head, 0)? {
            Some(found)
        } else {
            let found = self.end_of_record(end - (longest - head), end, head)?;
            found.map(|found| if found == end { head } else { found })
        };
        head.map(|head| Some(head % end)).ok_or_else(|| self.corrupt(0, "no record before the head"))
    }

    /// The head by rounds alone, in a log that was written to its end.
    fn estimated_head(&self, first: u32, last: u32, scan: u64) -> Result<u64> {
        let end = self.units;
        // All of one round: the head is at the end, unless a unit before it is still of the round before.
        let (head, stop) =
            if first == last { (end, last.wrapping_sub(1)) } else { (self.cycle_start(0, end - 1, last)?, last) };
        if head >= scan {
            return Ok(self.find_cycle(head - scan, scan, stop)?.unwrap_or(head));
        }
        let before = scan - head;
        if let Some(found) = self.find_cycle(end - before, before, stop.wrapping_sub(1))? {
            return Ok(found);
        }
        Ok(self.find_cycle(0, head, stop)?.unwrap_or(head))
    }

    /// `last`, or the start of the record that it is in the middle of; `None` when there is no record between unit 0
    /// and it. `extra` units behind the end of the log belong to that record too.
    fn end_of_record(&self, start: u64, last: u64, extra: u64) -> Result<Option<u64>> {
        let Some((at, header)) = self.headers_before(start, last)?.next().transpose()? else {
            return if start == 0 { Ok(None) } else { Err(self.corrupt(last, "no record before the head")) };
        };
        if header.uuid != self.uuid && header.uuid != [0; 16] {
            return Err(self.corrupt(at, "a record of another file system's log"));
        }
        Ok(Some(if last - at + extra == header.units() { last } else { at }))
    }

    /// The headers in `start..end`, the last one first.
    fn headers_before(&self, start: u64, end: u64) -> Result<impl Iterator<Item = Result<(u64, Header)>>> {
        let bytes = if start < end { self.read(start, end - start)? } else { Vec::new() };
        let mut found = Vec::new();
        for (at, unit) in (start..).zip(bytes.chunks(512)) {
            if let Some(header) = Header::parse(self, unit, at)? {
                found.push(Ok((at, header)));
            }
        }
        Ok(found.into_iter().rev())
    }

    /// Up to `count` headers before `head`, going back not further than `tail`, the nearest first.
    fn seek_back(&self, head: u64, tail: u64, count: usize) -> Result<Vec<Last>> {
        let mut found = Vec::new();
        // Every record has a header within its length.
        let step = MAX_RECORD / UNIT + MAX_RECORD / (32 << 10);
        let mut left = self.distance(tail, head);
        let mut end = head;
        while left > 0 && found.len() < count {
            if end == 0 {
                end = self.units;
            }
            let length = step.min(left).min(end);
            for header in self.headers_before(end - length, end)? {
                let (at, header) = header?;
                if found.len() < count {
                    found.push(Last { at, header });
                }
            }
            end -= length;
            left -= length;
        }
        Ok(found)
    }

    /// The first header from `from` on, before `head`.
    fn seek_forward(&self, from: u64, head: u64) -> Result<Option<u64>> {
        let left = self.distance(from, head);
        // A record ends within this, however damaged.
        let step = (MAX_RECORD / UNIT * 2).min(left);
        let bytes = self.read(from, step)?;
        let at = bytes.chunks(512).position(|unit| unit.starts_with(&MAGIC.to_be_bytes()));
        Ok(at.map(|at| (from + at as u64) % self.units))
    }

    fn last_record(&self, head: u64, tail: u64) -> Result<Last> {
        let found = self.seek_back(head, tail, 1)?.into_iter().next();
        found.ok_or_else(|| self.corrupt(head, "no record before the head"))
    }

    /// Whether the last record says that the file system was unmounted.
    fn is_unmount(&self, last: &Last, head: u64) -> Result<bool> {
        let header = &last.header;
        if (last.at + header.units()) % self.units != head || header.operations != 1 {
            return Ok(false);
        }
        let operation = self.read((last.at + header.header_units) % self.units, 1)?;
        Ok(Record::new(&operation, super::STRUCTURE, 0).u8(9)? & UNMOUNT != 0)
    }

    /// Where the first bad record between `tail` and `head` is.
    fn first_bad(&self, span: Span) -> Result<Option<u64>> {
        let (mut at, mut left) = (span.tail, self.distance(span.tail, span.head));
        while left > 0 {
            match self.record(at, left) {
                Ok(record) => {
                    let units = record.header.units();
                    at = (at + units) % self.units;
                    left -= units;
                }
                Err(error) if error.kind() == ErrorKind::Corrupt => return Ok(Some(at)),
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// The head before the first of the last records that did not come to the disk whole, and whether that is another.
    fn checked_head(&self, head: u64, last: Last) -> Result<(u64, Last, bool)> {
        let tail = last.header.tail().min(self.units - 1);
        let in_flight = self.seek_back(head, tail, usize::try_from(MAX_IN_FLIGHT).unwrap_or(8))?;
        let Some(first) = in_flight.last() else { return Ok((head, last, false)) };
        let Some(bad) = self.first_bad(Span { tail: first.at, head })? else { return Ok((head, last, false)) };
        let before = self.last_record(bad, tail)?;
        if bad == before.header.tail() {
            return Err(self.corrupt(bad, "a damaged record that is not one of the last"));
        }
        Ok((bad, before, true))
    }

    /// The span without the records at its tail that newer ones were being written over.
    fn checked_tail(&self, mut span: Span) -> Result<Span> {
        let first = self.seek_forward(span.tail, span.head)?;
        span.tail = first.ok_or_else(|| self.corrupt(span.tail, "no record at the tail"))?;
        let limit = MAX_IN_FLIGHT * MAX_RECORD / UNIT;
        // Every time at least one record less.
        while let Some(bad) = self.first_bad(span)? {
            // Units from the head on to the bad record.
            if self.distance(span.head, bad) > limit {
                return Err(self.corrupt(bad, "a damaged record that is not one of the last"));
            }
            let next = self.seek_forward((bad + 1) % self.units, span.head)?;
            span.tail = next.ok_or_else(|| self.corrupt(bad, "no record behind a damaged one"))?;
        }
        Ok(span)
    }
}

/// The round that a unit was written in.
fn cycle_of(unit: &[u8]) -> Result<u32> {
    let record = Record::new(unit, super::STRUCTURE, 0);
    let first = record.be_u32(0)?;
    // A header has its own there, and the round behind it.
    if first == MAGIC { record.be_u32(4) } else { Ok(first) }
}
