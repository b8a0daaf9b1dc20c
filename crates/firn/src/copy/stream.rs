//! The content of a file, piece by piece, in order.
//!
//! Of a large file a second thread reads ahead while the first one writes.

use firn_disk::{Disk, Error, ErrorKind, ExtentKind, Result, SharedDisk, visit_extents};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;

/// Bytes that are read at once: few enough to stay in the processor's cache until they are written, many enough for a
/// pool to fetch several chunks side by side.
const PIECE_BYTES: u64 = 512 << 10;
/// Pieces that are read ahead.
const AHEAD: usize = 6;
/// How far the map of a file is looked at before its bytes are read.
const WINDOW_BYTES: u64 = 256 << 20;
/// From this length on a second thread is worth its start.
const LARGE: u64 = 8 << 20;

/// A piece of a file.
#[derive(Debug)]
pub enum Piece<'a> {
    /// Bytes at an offset.
    Bytes(&'a [u8], u64),
    /// A range that reads as zeros and needs no place on a disk.
    Zeros(Range<u64>),
}

/// Calls `write` with every piece of `disk` in order, without gaps.
///
/// # Errors
/// `Interrupted` once `cancel` is set; what reading and `write` say.
pub fn for_each_piece(
    disk: &SharedDisk,
    cancel: &AtomicBool,
    write: &mut dyn FnMut(Piece<'_>) -> Result<()>,
) -> Result<()> {
    if disk.len() < LARGE {
        let mut buffer = Vec::new();
        return read_all(disk, cancel, &mut |kind, run| {
            if kind != ExtentKind::Data {
                return write(Piece::Zeros(run));
            }
            fill(disk, &mut buffer, &run)?;
            write(Piece::Bytes(&buffer, run.start))
        });
    }
    std::thread::scope(|scope| {
        let (full, filled) = sync_channel::<Result<(Range<u64>, Option<Vec<u8>>)>>(AHEAD);
        let (empty, emptied) = sync_channel::<Vec<u8>>(AHEAD + 2);
        scope.spawn(move || {
            let read = read_all(disk, cancel, &mut |kind, run| {
                let mut buffer = None;
                if kind == ExtentKind::Data {
                    let mut bytes = emptied.try_recv().unwrap_or_default();
                    fill(disk, &mut bytes, &run)?;
                    buffer = Some(bytes);
                }
                // Nobody waits for more once writing has failed.
                full.send(Ok((run, buffer))).map_err(|_| Error::new(ErrorKind::Interrupted, "no longer wanted"))
            });
            if let Err(error) = read {
                // As above.
                let _ = full.send(Err(error));
            }
        });
        // Moved in, so that the other side sees when this one is gone.
        let filled = filled;
        for piece in filled.iter() {
            match piece? {
                (run, None) => write(Piece::Zeros(run))?,
                (run, Some(bytes)) => {
                    write(Piece::Bytes(&bytes, run.start))?;
                    // A full channel has buffers enough.
                    let _ = empty.try_send(bytes);
                }
            }
        }
        Ok(())
    })
}

fn fill(disk: &SharedDisk, buffer: &mut Vec<u8>, run: &Range<u64>) -> Result<()> {
    buffer.resize(usize::try_from(run.end - run.start).unwrap_or(usize::MAX), 0);
    disk.read_at(buffer, run.start)
}

/// Calls `visit` with every run in order, data in pieces.
fn read_all(
    disk: &SharedDisk,
    cancel: &AtomicBool,
    visit: &mut dyn FnMut(ExtentKind, Range<u64>) -> Result<()>,
) -> Result<()> {
    let mut window = 0;
    while window < disk.len() {
        let end = disk.len().min(window + WINDOW_BYTES);
        visit_extents(disk, window..end, |kind, run| {
            let mut start = run.start;
            while start < run.end {
                if cancel.load(Ordering::Relaxed) {
                    return Err(Error::new(ErrorKind::Interrupted, "stopped before all of it was read"));
                }
                let end = if kind == ExtentKind::Data { run.end.min(start + PIECE_BYTES) } else { run.end };
                visit(kind, start..end)?;
                start = end;
            }
            Ok(())
        })?;
        window = end;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use firn_disk::MemDisk;
    use firn_disk::testing::{FaultDisk, pattern};
    use std::sync::Arc;

    fn collect(disk: &SharedDisk, cancel: &AtomicBool) -> Result<Vec<u8>> {
        let mut all = Vec::new();
        for_each_piece(disk, cancel, &mut |piece| {
            match piece {
                Piece::Bytes(bytes, at) => {
                    assert_eq!(at, all.len() as u64);
                    all.extend_from_slice(bytes);
                }
                Piece::Zeros(run) => {
                    assert_eq!(run.start, all.len() as u64);
                    all.resize(usize::try_from(run.end).unwrap(), 0);
                }
            }
            Ok(())
        })?;
        Ok(all)
    }

    #[test]
    fn small_and_large_come_whole_and_in_order() {
        for length in [0, 1, 4097, 3 << 20, (20 << 20) + 5] {
            let bytes = pattern(length, 7);
            let disk: SharedDisk = Arc::new(MemDisk::from(bytes.clone()));
            assert!(collect(&disk, &AtomicBool::new(false)).unwrap() == bytes, "{length}");
        }
    }

    #[test]
    fn what_cannot_be_read_fails_in_both_ways() {
        for length in [100_000, 20 << 20] {
            let fault = FaultDisk::new(MemDisk::from(pattern(length, 9)));
            fault.fail_reads_in(90_000..90_001, ErrorKind::Corrupt);
            let disk: SharedDisk = Arc::new(fault);
            assert_eq!(collect(&disk, &AtomicBool::new(false)).unwrap_err().kind(), ErrorKind::Corrupt);
        }
    }

    #[test]
    fn stopping_and_a_writer_that_fails_end_it() {
        let disk: SharedDisk = Arc::new(MemDisk::from(pattern(20 << 20, 8)));
        assert_eq!(collect(&disk, &AtomicBool::new(true)).unwrap_err().kind(), ErrorKind::Interrupted);
        let mut pieces = 0;
        let failed = for_each_piece(&disk, &AtomicBool::new(false), &mut |_| {
            pieces += 1;
            if pieces == 2 { Err(Error::new(ErrorKind::Unavailable, "full")) } else { Ok(()) }
        });
        assert_eq!(failed.unwrap_err().kind(), ErrorKind::Unavailable);
    }
}
