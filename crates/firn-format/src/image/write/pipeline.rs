//! Several threads read and transform units of a disk; one takes the results in order.
//!
//! ```text
//! planner (locked): next unit that is not all hole ----> worker: read, work(unit) --.
//!                   number 0, 1, 2, ...            `---> worker: read, work(unit) --+-> ready -> take(unit), by number
//! ```
//! At most a few units per thread are in flight, so memory does not depend on the length of the disk.

use super::interrupted;
use firn_disk::{Disk, Error, ExtentKind, Result, visit_extents};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Bytes in a unit of work; a multiple of every cluster and grain that is written.
pub(super) const UNIT: u64 = 1 << 20;
/// Units in flight per thread.
const AHEAD: u64 = 4;

/// Where the units come from, and how many threads work on them.
pub(super) struct Pipeline<'a> {
    pub(super) source: &'a dyn Disk,
    pub(super) threads: usize,
    pub(super) cancel: &'a AtomicBool,
    pub(super) progress: &'a (dyn Fn(u64) + Sync),
}

/// What the threads share.
struct State<T> {
    /// Where the planner is on the disk.
    offset: u64,
    planned: u64,
    taken: u64,
    ready: BTreeMap<u64, (u64, T)>,
    is_planned: bool,
    failure: Option<Error>,
}

struct Shared<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, error: Error) {
        self.lock().failure.get_or_insert(error);
        self.changed.notify_all();
    }
}

/// Tells the others when a thread ends by a panic, so that nobody waits for it for ever.
struct Watch<'a, T>(&'a Shared<T>);

impl<T> Drop for Watch<'_, T> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail(Error::new(firn_disk::ErrorKind::Io, "a thread failed"));
        }
    }
}

impl Pipeline<'_> {
    /// Calls `work` for each unit with data, on several threads, with its offset and its bytes; and `take` with
    /// the results, on this thread, in the order of the disk. The last unit may be short.
    ///
    /// # Errors
    /// The first error of reading, `work` or `take`; `Interrupted`.
    pub(super) fn run<T: Send>(
        &self,
        work: impl Fn(u64, Vec<u8>) -> Result<T> + Sync,
        mut take: impl FnMut(u64, T) -> Result<()>,
    ) -> Result<()> {
        let state = State { offset: 0, planned: 0, taken: 0, ready: BTreeMap::new(), is_planned: false, failure: None };
        let shared = Shared { state: Mutex::new(state), changed: Condvar::new() };
        std::thread::scope(|scope| {
            for number in 0..self.threads {
                let worker = || {
                    let _watch = Watch(&shared);
                    if let Err(error) = self.work_off(&shared, &work) {
                        shared.fail(error);
                    }
                };
                match std::thread::Builder::new().spawn_scoped(scope, worker) {
                    Ok(_) => {}
                    // One is enough to do the work.
                    Err(_) if number > 0 => break,
                    Err(error) => shared.fail(Error::from_io("start a thread", error)),
                }
            }
            let _watch = Watch(&shared);
            while let Some((offset, result)) = self.next_in_order(&shared) {
                if let Err(error) = take(offset, result) {
                    shared.fail(error);
                    break;
                }
            }
        });
        let failure = shared.lock().failure.take();
        failure.map_or(Ok(()), Err)
    }

    fn work_off<T>(&self, shared: &Shared<T>, work: &(impl Fn(u64, Vec<u8>) -> Result<T> + Sync)) -> Result<()> {
        while let Some((number, offset, length)) = self.plan(shared)? {
            let mut bytes = vec![0; usize::try_from(length).unwrap_or_default()];
            self.read(&mut bytes, offset)?;
            let result = work(offset, bytes)?;
            shared.lock().ready.insert(number, (offset, result));
            shared.changed.notify_all();
            (self.progress)(length);
        }
        Ok(())
    }

    /// The next unit that is not all hole or zero, as number, offset and length.
    fn plan<T>(&self, shared: &Shared<T>) -> Result<Option<(u64, u64, u64)>> {
        let end = self.source.len();
        let most = AHEAD * self.threads as u64;
        let mut state = shared.lock();
        while state.failure.is_none() && state.planned - state.taken >= most {
            state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let mut skipped = 0;
        let planned = loop {
            if self.cancel.load(Ordering::Relaxed) {
                return Err(interrupted());
            }
            if state.failure.is_some() || state.offset >= end {
                state.is_planned = true;
                break None;
            }
            let offset = state.offset;
            let extent = self.source.extent_at(offset)?;
            let stop = offset.saturating_add(extent.length).min(end);
            // A run that ends inside a later unit is skipped up to that unit.
            let next = if stop == end { end } else { stop - stop % UNIT };
            if extent.kind != ExtentKind::Data && next > offset {
                skipped += next - offset;
                state.offset = next;
                continue;
            }
            let length = UNIT.min(end - offset);
            state.offset = offset + length;
            state.planned += 1;
            break Some((state.planned - 1, offset, length));
        };
        drop(state);
        shared.changed.notify_all();
        if skipped > 0 {
            (self.progress)(skipped);
        }
        Ok(planned)
    }

    /// Fills `bytes`, which are zeros, with what is data in the source.
    fn read(&self, bytes: &mut [u8], offset: u64) -> Result<()> {
        visit_extents(self.source, offset..offset + bytes.len() as u64, |kind, run| {
            let start = usize::try_from(run.start - offset).unwrap_or(usize::MAX);
            let end = usize::try_from(run.end - offset).unwrap_or(usize::MAX);
            match (kind, bytes.get_mut(start..end)) {
                (ExtentKind::Data, Some(piece)) => self.source.read_at(piece, run.start),
                _ => Ok(()),
            }
        })
    }

    fn next_in_order<T>(&self, shared: &Shared<T>) -> Option<(u64, T)> {
        let mut state = shared.lock();
        loop {
            if state.failure.is_some() {
                return None;
            }
            let number = state.taken;
            if let Some(result) = state.ready.remove(&number) {
                state.taken += 1;
                drop(state);
                shared.changed.notify_all();
                return Some(result);
            }
            if state.is_planned && state.taken == state.planned {
                return None;
            }
            state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use firn_disk::testing::FaultDisk;
    use firn_disk::{ErrorKind, FileDisk, Fua, MemDisk, WriteDisk};
    use std::sync::atomic::AtomicU64;

    fn collect(source: &dyn Disk, threads: usize) -> (Vec<(u64, usize)>, u64, Result<()>) {
        let done = AtomicU64::new(0);
        let progress = |bytes| {
            done.fetch_add(bytes, Ordering::Relaxed);
        };
        let cancel = AtomicBool::new(false);
        let pipeline = Pipeline { source, threads, cancel: &cancel, progress: &progress };
        let mut units = Vec::new();
        let result = pipeline.run(
            |_, bytes| Ok(bytes.len()),
            |offset, length| {
                units.push((offset, length));
                Ok(())
            },
        );
        (units, done.load(Ordering::Relaxed), result)
    }

    #[test]
    fn units_come_in_order_and_holes_are_skipped() {
        let folder = tempfile::tempdir().unwrap();
        let disk = FileDisk::create(folder.path().join("a"), 100 * UNIT + 700).unwrap();
        for at in [0, 3 * UNIT + 5, 50 * UNIT - 1, 100 * UNIT + 600] {
            disk.write_at(&[1; 2], at, Fua::No).unwrap();
        }
        for threads in [1, 3] {
            let (units, done, result) = collect(&disk, threads);
            result.unwrap();
            assert_eq!(done, disk.len());
            let offsets: Vec<u64> = units.iter().map(|(offset, _)| offset / UNIT).collect();
            assert_eq!(offsets, [0, 3, 49, 50, 100]);
            assert_eq!(units.last().unwrap().1, 700);
        }
        assert_eq!(collect(&MemDisk::zeroed(0), 2).0, []);
    }

    #[test]
    fn the_first_failure_ends_everything() {
        let disk = FaultDisk::new(MemDisk::from(vec![1; 40 << 20]));
        disk.fail_reads_in(20 << 20..(20 << 20) + 1, ErrorKind::Corrupt);
        assert_eq!(collect(&disk, 3).2.unwrap_err().kind(), ErrorKind::Corrupt);
        let cancel = AtomicBool::new(false);
        let source = MemDisk::from(vec![1; 40 << 20]);
        let pipeline = Pipeline { source: &source, threads: 2, cancel: &cancel, progress: &|_| () };
        let result = pipeline.run(
            |_, _| Ok(()),
            |offset, ()| {
                cancel.store(offset >= 5 << 20, Ordering::Relaxed);
                Ok(())
            },
        );
        assert_eq!(result.unwrap_err().kind(), ErrorKind::Interrupted);
    }
}
