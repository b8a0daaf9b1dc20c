//! The client's side of NBD, the network block device protocol: an export of a server is a
//! [`Disk`](firn_disk::Disk).
//!
//! ```text
//!   open(uri) -> NbdDisk  -- requests, many at once -->  up to Options::connections connections
//!                          <-- replies in any order --   one reader thread each, by cookie
//! ```
//!
//! What is spoken: fixed newstyle negotiation, TLS by certificates, simple and structured replies, block status
//! (`base:allocation` for holes, `qemu:dirty-bitmap:NAME` and any other context by name). Sources: the
//! [protocol](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md) and its
//! [URI](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/uri.md).
//!
//! A server is not trusted: every length it names is held against what was asked for, every wait has an end, and an
//! answer that breaks the protocol ends the connection with an error. What is refused: oldstyle servers, TLS by
//! anything but certificates, and going on without TLS where it was asked for.

#![forbid(unsafe_code)]

mod connection;
mod disk;
mod error;
mod extents;
mod negotiate;
mod options;
mod pool;
mod reply;
mod tls;
mod transport;
mod uri;
mod wire;
mod writable;

pub use disk::{NbdDisk, open};
pub use negotiate::ListedExport;
pub use options::Options;
pub use pool::list;
pub use uri::{Address, Uri};
pub use writable::{WritableNbdDisk, open_writable};

/// The metadata context that tells holes and zeros: asked for wherever the server has it.
pub const BASE_ALLOCATION: &str = "base:allocation";

/// What QEMU puts before the name of a dirty bitmap to make it a metadata context.
pub const QEMU_DIRTY_BITMAP: &str = "qemu:dirty-bitmap:";
