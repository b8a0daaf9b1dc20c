//! How what a server says, or does not say, becomes an [`Error`].
//!
//! Nothing here is ever `Corrupt`: a server that talks nonsense says nothing of the disk behind it.

use firn_disk::{Error, ErrorKind};
use std::io;
use std::time::Duration;

/// Why a request failed.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    /// What the caller is told.
    pub(crate) error: Error,
    /// Whether the connection went away without the server having said anything wrong, so that another one may do.
    pub(crate) lost: bool,
}

impl Failure {
    /// The connection is gone.
    pub(crate) fn lost(error: Error) -> Self {
        Self { error, lost: true }
    }

    /// Trying again is of no use.
    pub(crate) fn last(error: Error) -> Self {
        Self { error, lost: false }
    }
}

/// The server broke the protocol.
pub(crate) fn violation(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Io, format!("the NBD server broke the protocol: {}", message.into()))
}

/// The system's error while doing `what` with a connection.
pub(crate) fn transport(what: &str, error: io::Error) -> Error {
    use io::ErrorKind as Os;
    let kind = match error.kind() {
        Os::NotFound => ErrorKind::NotFound,
        Os::PermissionDenied => ErrorKind::Denied,
        // What TLS says about the other side's certificate or ours; see `tls`.
        Os::InvalidData => ErrorKind::Denied,
        _ => ErrorKind::Unavailable,
    };
    Error::new(kind, what).because(error)
}

/// Whether another connection may do better than the one that ended with `error`.
pub(crate) fn may_pass(error: &Error) -> bool {
    // NotFound is a Unix socket that a server which is being restarted has not yet made again.
    matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::NotFound)
}

/// Nothing came for `time`.
pub(crate) fn silence(time: Duration) -> Error {
    Error::new(ErrorKind::Unavailable, format!("no answer from the NBD server within {} s", time.as_secs_f32()))
}

/// The error number of a reply; `message` is the server's own, if it had one.
pub(crate) fn reply_error(number: u32, message: &str) -> Error {
    let (kind, name) = match number {
        1 => (ErrorKind::Denied, "not permitted (EPERM)"),
        5 => (ErrorKind::Io, "input or output error (EIO)"),
        12 => (ErrorKind::Unavailable, "out of memory (ENOMEM)"),
        22 => (ErrorKind::Io, "invalid request (EINVAL)"),
        28 => (ErrorKind::Unavailable, "no space left (ENOSPC)"),
        75 => (ErrorKind::Io, "request too large (EOVERFLOW)"),
        95 => (ErrorKind::Unsupported, "not supported (ENOTSUP)"),
        108 => (ErrorKind::Unavailable, "shutting down (ESHUTDOWN)"),
        _ => (ErrorKind::Io, "an error without a name"),
    };
    let said = if message.is_empty() { String::new() } else { format!(": {}", message.escape_debug()) };
    Error::new(kind, format!("the NBD server answers {number}, {name}{said}"))
}
