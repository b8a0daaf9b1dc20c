//! A private folder of this user for what lives no longer than a run: locks, and the sockets of exports.
//!
//! ```text
//!   $XDG_RUNTIME_DIR/firn, for root /run/firn, else TMP/firn-UID     mode 0700, ours
//!     %run%web1%qmp.sock.lock                          flock while a run is at this monitor
//!     firn-OWNER-RUN.sock                              where QEMU exports the disks
//! ```

use super::names::Names;
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
        let path = folder()?.join(lock_name(socket));
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

/// One file name for each path, as long as paths of sockets are.
fn lock_name(socket: &Path) -> std::ffi::OsString {
    use std::os::unix::ffi::OsStringExt;
    let real = socket.parent().and_then(|folder| folder.canonicalize().ok());
    let real = real.zip(socket.file_name()).map_or_else(|| socket.to_path_buf(), |(folder, name)| folder.join(name));
    let mut name = Vec::new();
    for byte in real.as_os_str().as_bytes() {
        match byte {
            b'/' => name.push(b'%'),
            b'%' => name.extend(b"%%"),
            _ => name.push(*byte),
        }
    }
    // Only the end tells sockets apart, if any has so long a path that it must have been reached in another way.
    let start = name.len().saturating_sub(240);
    name.drain(..start);
    name.extend(b".lock");
    std::ffi::OsString::from_vec(name)
}

/// Where a run's exports are served.
///
/// # Errors
/// `Unsupported` when the folder's path is too long for a socket.
pub(super) fn export_socket(names: &Names) -> Result<PathBuf> {
    let path = folder()?.join(format!("{}.sock", names.bitmap()));
    if path.as_os_str().len() > SOCKET_PATH_BYTES {
        return Err(Error::unsupported("the path is too long for a socket")
            .at_path(&path)
            .hint("set XDG_RUNTIME_DIR to a shorter one"));
    }
    Ok(path)
}

/// Removes the sockets that dead runs of this owner left.
///
/// # Errors
/// The system's own.
pub(super) fn remove_sockets(names: &Names) -> Result<()> {
    let folder = folder()?;
    let io = |error| Error::from_io("remove a socket", error).at_path(&folder);
    for entry in std::fs::read_dir(&folder).map_err(io)? {
        let entry = entry.map_err(io)?;
        let name = entry.file_name();
        if name.to_str().is_some_and(|name| name.starts_with(&names.owner_prefix()) && name.ends_with(".sock")) {
            match std::fs::remove_file(entry.path()) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io(error)),
                _ => {}
            }
        }
    }
    Ok(())
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
        assert_ne!(lock_name(Path::new("/no/such%/x")), lock_name(Path::new("/no/such/x")));
    }
}
