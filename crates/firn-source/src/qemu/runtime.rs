//! A private folder of this user for what lives no longer than a run: locks, and the sockets of exports.
//!
//! ```text
//!   $XDG_RUNTIME_DIR/firn, for root /run/firn, else TMP/firn-UID     mode 0700, ours
//!     qemu-KEY.lock    flock while a run is at this monitor      KEY: 64 bits of hash of the path of the monitor's socket
//!     qemu-KEY.sock    where QEMU exports the disks to the run that holds the lock
//! ```

use firn_disk::{Error, ErrorKind, Result};
use rustix::fs::{FlockOperation, flock};
use std::fs::{DirBuilder, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// The longest path of a unix socket that Linux takes, less the closing zero.
const SOCKET_PATH_BYTES: usize = 107;

/// The folder; made if it is not there.
///
/// # Errors
/// `Denied` when something is there that is not a private folder of this user; the system's own.
pub(super) fn folder() -> Result<PathBuf> {
    let user = rustix::process::geteuid();
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
    let folder = match runtime {
        Some(runtime) if runtime.is_dir() => runtime.join("firn"),
        _ if user.is_root() => PathBuf::from("/run/firn"),
        _ => std::env::temp_dir().join(format!("firn-{}", user.as_raw())),
    };
    let io = |what: &'static str| {
        let folder = folder.clone();
        move |error| Error::from_io(what, error).at_path(folder)
    };
    match DirBuilder::new().mode(0o700).create(&folder) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(io("make the folder")(error)),
        _ => {}
    }
    let metadata = std::fs::symlink_metadata(&folder).map_err(io("look at the folder"))?;
    if !metadata.is_dir() || metadata.uid() != user.as_raw() || metadata.mode() & 0o077 != 0 {
        return Err(Error::new(ErrorKind::Denied, "this is not a folder that belongs to this user alone")
            .at_path(&folder)
            .hint("remove it, or set XDG_RUNTIME_DIR to a folder of your own"));
    }
    Ok(folder)
}

/// Held while a run is at a monitor.
#[derive(Debug)]
pub(super) struct Lock(#[expect(dead_code, reason = "closing it gives the lock back")] File);

impl Lock {
    /// Takes the lock of the monitor behind `socket`.
    ///
    /// # Errors
    /// `Unavailable` when another run of this user holds it.
    pub(super) fn take(socket: &Path) -> Result<Self> {
        let path = path_of(socket, "lock")?;
        let io = |error| Error::from_io("lock the machine", error).at_path(&path);
        let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(io)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                Err(Error::new(ErrorKind::Unavailable, "another firn takes a snapshot of this machine")
                    .at_path(socket)
                    .hint("wait until it has finished"))
            }
            Err(error) => Err(io(error.into())),
        }
    }
}

/// The name of this monitor's file with this extension. By FNV-1a: two monitors that met in one would only have to wait
/// for one another.
fn path_of(socket: &Path, extension: &str) -> Result<PathBuf> {
    let real = socket.parent().and_then(|folder| folder.canonicalize().ok()).zip(socket.file_name());
    let real = real.map_or_else(|| socket.to_path_buf(), |(folder, name)| folder.join(name));
    let bytes = real.as_os_str().as_bytes();
    let key = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3));
    Ok(folder()?.join(format!("qemu-{key:016x}.{extension}")))
}

/// Where the exports of the machine behind this monitor are served.
///
/// # Errors
/// `Unsupported` when the folder's path is too long for a socket.
pub(super) fn export_socket(monitor: &Path) -> Result<PathBuf> {
    let path = path_of(monitor, "sock")?;
    if path.as_os_str().len() > SOCKET_PATH_BYTES {
        return Err(Error::unsupported("the path is too long for a socket")
            .at_path(&path)
            .hint("set XDG_RUNTIME_DIR to a shorter one"));
    }
    Ok(path)
}

/// Removes the socket that a run at this monitor left. For who holds the lock.
///
/// # Errors
/// The system's own.
pub(super) fn remove_export_socket(monitor: &Path) -> Result<()> {
    let path = path_of(monitor, "sock")?;
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::from_io("remove the socket of QEMU's exports", error).at_path(path))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_lock_for_one_socket() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("q.sock");
        let held = Lock::take(&socket).unwrap();
        let again = Lock::take(&folder.path().join(".").join("q.sock")).unwrap_err();
        assert_eq!(again.kind(), ErrorKind::Unavailable);
        Lock::take(&folder.path().join("r.sock")).unwrap();
        drop(held);
        Lock::take(&socket).unwrap();
        assert_ne!(export_socket(&socket).unwrap(), export_socket(&folder.path().join("r.sock")).unwrap());
    }
}
