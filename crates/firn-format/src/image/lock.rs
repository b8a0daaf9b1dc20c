//! QEMU's image locks: one byte per permission, as open-file-description locks (`block/file-posix.c`).
//!
//! ```text
//! byte 100 + p   held shared by who uses permission p        p: 0 consistent read  1 write
//! byte 200 + p   held shared by who does not let others           2 write unchanged  3 resize
//!                use permission p
//! ```
//!
//! Who wants permission p tests that nobody holds byte 200 + p; who cannot bear p in others tests that nobody
//! holds byte 100 + p. A reader of a file that must not change uses 0 and does not share 1 and 3, exactly as
//! `qemu-img convert` does: an image that a guest writes is refused, the backing file that many running guests
//! share is not, and a guest that starts while we read is refused by QEMU.

use firn_disk::{Error, ErrorKind, Result};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use std::fs::File;
use std::path::Path;

/// Shared by who uses permission p: this plus p.
const USED: i64 = 100;
/// Shared by who denies permission p to others: this plus p.
const DENIED: i64 = 200;

const CONSISTENT_READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;

/// Takes QEMU's locks of a reader on `file`, for as long as its description is open.
///
/// Where the file system knows no locks, nothing is locked and nothing is checked.
///
/// # Errors
/// `Unavailable` when a QEMU process writes to the file, or lets nobody read it.
pub(super) fn lock_for_reading(file: &File, path: &Path) -> Result<()> {
    let ours = [USED + CONSISTENT_READ, DENIED + WRITE, DENIED + RESIZE];
    let theirs = [DENIED + CONSISTENT_READ, USED + WRITE, USED + RESIZE];
    lock(file, &ours, &theirs).map_err(|Taken| {
        Error::new(ErrorKind::Unavailable, "a running QEMU writes to this image")
            .at_path(path)
            .hint("stop the guest, take it through QEMU, or read it as it is with --torn")
    })
}

/// Takes QEMU's locks of a writer who can bear neither readers nor writers beside it, as `qemu-img` does on an image
/// that it changes.
///
/// # Errors
/// `Unavailable` when any QEMU process has the file open.
pub(super) fn lock_for_writing(file: &File, path: &Path) -> Result<()> {
    let all = [CONSISTENT_READ, WRITE, RESIZE];
    let ours: Vec<i64> = all.iter().flat_map(|permission| [USED + permission, DENIED + permission]).collect();
    lock(file, &ours, &ours).map_err(|Taken| {
        Error::new(ErrorKind::Unavailable, "a running QEMU has this image open")
            .at_path(path)
            .hint("stop the guest first, or name another file")
    })
}

/// Somebody else holds a lock that excludes ours.
struct Taken;

fn lock(file: &File, ours: &[i64], theirs: &[i64]) -> Result<(), Taken> {
    // Our own locks first, then the look at those of others: of two that start at once at least one sees the other.
    for byte in ours {
        // Any other failure means that locks are not to be had here: on this file system, or for this process.
        if fcntl(file, FcntlArg::F_OFD_SETLK(&one_byte(libc::F_RDLCK, *byte))) == Err(Errno::EAGAIN) {
            return Err(Taken);
        }
    }
    for byte in theirs {
        let mut probe = one_byte(libc::F_WRLCK, *byte);
        if fcntl(file, FcntlArg::F_OFD_GETLK(&mut probe)).is_ok() && i32::from(probe.l_type) != libc::F_UNLCK {
            return Err(Taken);
        }
    }
    Ok(())
}

fn one_byte(kind: i32, byte: i64) -> libc::flock {
    libc::flock {
        l_type: i16::try_from(kind).unwrap_or_default(),
        l_whence: i16::try_from(libc::SEEK_SET).unwrap_or_default(),
        l_start: byte,
        l_len: 1,
        l_pid: 0,
    }
}
