//! The one error type of firn's libraries.
//!
//! The [`ErrorKind`] says what the caller can do about it; the context says what it happened to. *Your disk
//! is bad* ([`ErrorKind::Corrupt`]) and *we cannot do that yet* ([`ErrorKind::Unsupported`]) are never mixed.

use std::fmt;
use std::path::{Path, PathBuf};

/// `Result` with firn's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What the caller can do about an [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The operating system failed a read, write or open. Trying again may help.
    Io,
    /// The bytes contradict their own format. Only another copy helps.
    Corrupt,
    /// The bytes are fine, but firn does not know this format or feature. A newer firn may.
    Unsupported,
    /// A read or write reached past the end. The caller's mistake.
    OutOfBounds,
    /// The named thing is not there.
    NotFound,
    /// The named thing is there already, and overwriting was not asked for.
    Exists,
    /// Something is there but cannot be used now: locked, busy, unreachable, full. Later it may be.
    Unavailable,
    /// Not allowed: permission, a wrong password, a key that opens less.
    Denied,
    /// The request makes no sense as it stands. The caller's mistake.
    Invalid,
    /// Stopped because the user asked for it.
    Interrupted,
}

impl ErrorKind {
    /// A lower-case word for people and for `--json`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Io => "io",
            Self::Corrupt => "corrupt",
            Self::Unsupported => "unsupported",
            Self::OutOfBounds => "out-of-bounds",
            Self::NotFound => "not-found",
            Self::Exists => "exists",
            Self::Unavailable => "unavailable",
            Self::Denied => "denied",
            Self::Invalid => "invalid",
            Self::Interrupted => "interrupted",
        }
    }
}

/// What failed, on what, where, and why. Built with [`Error::new`] and the `at_*` methods.
///
/// It is one pointer wide, so that `Result` stays small on hot paths.
#[derive(Clone)]
pub struct Error(Box<Inner>);

#[derive(Clone)]
struct Inner {
    kind: ErrorKind,
    message: String,
    path: Option<PathBuf>,
    offset: Option<u64>,
    structure: Option<String>,
    hint: Option<String>,
    source: Option<std::sync::Arc<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error of `kind`. `message` says what failed, in lower case, without a full stop.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            kind,
            message: message.into(),
            path: None,
            offset: None,
            structure: None,
            hint: None,
            source: None,
        }))
    }

    /// Shorthand for [`ErrorKind::Corrupt`].
    pub fn corrupt(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Corrupt, message)
    }

    /// Shorthand for [`ErrorKind::Unsupported`].
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsupported, message)
    }

    /// Shorthand for [`ErrorKind::NotFound`].
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, message)
    }

    /// Shorthand for [`ErrorKind::Invalid`].
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }

    /// An operating system error while doing `what` (for example "open", "read").
    ///
    /// The kind follows the system's own: not found, denied, exists, full and busy are told apart.
    pub fn from_io(what: impl Into<String>, error: std::io::Error) -> Self {
        use std::io::ErrorKind as Os;
        let kind = match error.kind() {
            Os::NotFound => ErrorKind::NotFound,
            Os::PermissionDenied | Os::ReadOnlyFilesystem => ErrorKind::Denied,
            Os::AlreadyExists => ErrorKind::Exists,
            Os::StorageFull
            | Os::QuotaExceeded
            | Os::FileTooLarge
            | Os::ResourceBusy
            | Os::WouldBlock
            | Os::ConnectionRefused
            | Os::ConnectionReset
            | Os::TimedOut => ErrorKind::Unavailable,
            Os::InvalidInput => ErrorKind::Invalid,
            _ => ErrorKind::Io,
        };
        Self::new(kind, what).because(error)
    }

    /// Out of bounds: `length` bytes at `offset` of something that is `end` bytes long.
    pub fn out_of_bounds(offset: u64, length: u64, end: u64) -> Self {
        Self::new(ErrorKind::OutOfBounds, format!("{length} bytes at offset {offset} reach past the end at {end}"))
    }

    /// Names the file or object it happened to. The innermost name stays.
    #[must_use]
    pub fn at_path(mut self, path: impl AsRef<Path>) -> Self {
        self.0.path.get_or_insert_with(|| path.as_ref().to_path_buf());
        self
    }

    /// Names the byte offset it happened at. The innermost offset stays.
    #[must_use]
    pub fn at_offset(mut self, offset: u64) -> Self {
        self.0.offset.get_or_insert(offset);
        self
    }

    /// Names the on-disk structure, as "qcow2 header" or "ext4 inode 12". The innermost name stays.
    #[must_use]
    pub fn in_structure(mut self, structure: impl Into<String>) -> Self {
        self.0.structure.get_or_insert_with(|| structure.into());
        self
    }

    /// Says what to do next, as a sentence without a full stop. The innermost hint stays.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint.get_or_insert_with(|| hint.into());
        self
    }

    /// Puts what was being done in front of the message: "read the boot sector: ...".
    #[must_use]
    pub fn context(mut self, doing: impl fmt::Display) -> Self {
        self.0.message = format!("{doing}: {}", self.0.message);
        self
    }

    /// Keeps the error that caused this one.
    #[must_use]
    pub fn because(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.0.source = Some(std::sync::Arc::new(source));
        self
    }

    /// What the caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// What to do next, if anything better than reading the message is known.
    pub fn next_step(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &self.0;
        if let Some(path) = &inner.path {
            write!(f, "{}: ", path.display())?;
        }
        if let Some(structure) = &inner.structure {
            write!(f, "{structure}: ")?;
        }
        f.write_str(&inner.message)?;
        if let Some(offset) = inner.offset {
            write!(f, " (at byte {offset})")?;
        }
        // One line with all of it is what people read.
        if let Some(source) = &inner.source {
            write!(f, ": {source}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} error: {self}", self.0.kind)
    }
}

impl std::error::Error for Error {
    /// The cause. [`Display`](fmt::Display) has printed it already.
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn innermost_context_stays_and_all_of_it_is_shown() {
        let error = Error::corrupt("bad magic")
            .in_structure("qcow2 header")
            .at_offset(0)
            .at_path("a.qcow2")
            .in_structure("image")
            .at_path("outer");
        assert_eq!(error.to_string(), "a.qcow2: qcow2 header: bad magic (at byte 0)");
        assert_eq!(error.kind(), ErrorKind::Corrupt);
    }

    #[test]
    fn system_errors_keep_their_meaning() {
        let error = Error::from_io("open", std::io::ErrorKind::StorageFull.into());
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        let error = Error::from_io("open", std::io::ErrorKind::PermissionDenied.into());
        assert_eq!(error.kind(), ErrorKind::Denied);
    }
}
