//! QEMU's own NBD server, and the disks of the instant as it exports them.
//!
//! QEMU gets the listening socket as a file descriptor, so that it needs no right to the folder and nobody else has one.
//! It has one NBD server at a time: where somebody else's runs already, firn does not meddle.

use super::bitmap::Base;
use super::blocks::Drive;
use super::leftovers::Server;
use super::monitor::Monitor;
use super::names::Names;
use super::watch::Loss;
use crate::source::Changed;
use firn_disk::{Disk, Error, ErrorKind, Extent, Result};
use firn_nbd::{NbdDisk, Options, QEMU_DIRTY_BITMAP, Uri};
use serde_json::json;
use std::fs::Permissions;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;

/// Starts the server behind `socket`, which must not be there yet. `server` becomes what has to be done with it in the
/// end: an answer that was lost does not tell whether it runs.
///
/// # Errors
/// `Unavailable` when QEMU runs one already; what QEMU and the system say.
pub(super) fn start_server(monitor: &Monitor, socket: &Path, server: &mut Server) -> Result<()> {
    let io = |error| Error::from_io("make the socket for QEMU's exports", error).at_path(socket);
    let listener = UnixListener::bind(socket).map_err(io)?;
    std::fs::set_permissions(socket, Permissions::from_mode(0o600)).map_err(io)?;
    monitor.execute_with("getfd", json!({"fdname": "firn-exports"}), listener.as_fd())?;
    let address = json!({"type": "fd", "data": {"str": "firn-exports"}});
    *server = Server::Stop;
    monitor.execute("nbd-server-start", json!({"addr": address, "max-connections": 0})).map(drop).map_err(|error| {
        if error.kind() == ErrorKind::Unavailable || monitor.has_ended() {
            return error;
        }
        *server = Server::Leave;
        // What QEMU did not take would stay until the connection ends.
        let _ = monitor.execute("closefd", json!({"fdname": "firn-exports"}));
        Error::new(ErrorKind::Unavailable, format!("QEMU's NBD server is not to be had: {error}")).hint(
            "if a backup by another program is at work, wait for its end; else send nbd-server-stop to QEMU's monitor",
        )
    })
}

/// A disk to be exported.
#[derive(Debug)]
pub(super) struct Frozen<'a> {
    pub(super) drive: &'a Drive,
    pub(super) base: &'a Base,
    /// What shows the instant.
    pub(super) node: String,
    /// The export's name and id.
    pub(super) export: String,
    /// Whether the bitmap has to be named with its node: it cannot be found below `node` then.
    pub(super) bitmap_by_node: bool,
}

impl Frozen<'_> {
    /// Exports it and opens the export.
    ///
    /// # Errors
    /// What QEMU and the export say.
    pub(super) fn open(
        &self,
        monitor: &Monitor,
        names: &Names,
        socket: &Path,
        loss: &Arc<Loss>,
    ) -> Result<(Arc<FrozenExport>, Changed)> {
        let bitmap = names.dirty_bitmap();
        let mut export = json!({"type": "nbd", "id": self.export, "node-name": self.node, "name": self.export,
            "writable": false});
        let mut options = Options { reconnect: 0, ..Options::default() };
        let context = format!("{QEMU_DIRTY_BITMAP}{bitmap}");
        if let Base::Since { .. } = self.base {
            export["bitmaps"] =
                if self.bitmap_by_node { json!([{"node": self.drive.node, "name": bitmap}]) } else { json!([bitmap]) };
            options.contexts.push(context.clone());
        }
        monitor.execute("block-export-add", export)?;
        let disk = firn_nbd::open(&Uri::unix(socket, self.export.clone()), &options)?;
        let frozen = FrozenExport { disk, name: self.drive.name.clone(), loss: loss.clone() };
        let disk = &frozen.disk;
        if disk.len() != self.drive.length {
            let message = format!("it has {} bytes now, and had {} before the instant", disk.len(), self.drive.length);
            return Err(Error::new(ErrorKind::Unavailable, message));
        }
        let changed = match self.base {
            Base::Nothing(reason) => Changed::Unknown(reason.clone()),
            Base::Since { .. } => {
                let mut ranges = Vec::new();
                let listed = disk.changed(&context, |range| {
                    ranges.push(range);
                    Ok(())
                });
                listed.map_err(|error| frozen.explain(error))?;
                Changed::Since(ranges)
            }
        };
        Ok((Arc::new(frozen), changed))
    }
}

/// An export that tells why it was lost.
#[derive(Debug)]
pub(super) struct FrozenExport {
    disk: NbdDisk,
    name: String,
    loss: Arc<Loss>,
}

impl FrozenExport {
    /// # Errors
    /// `Unavailable` when it does not show the instant any more.
    pub(super) fn check(&self) -> Result<()> {
        // QEMU refuses every read once the filter has given up.
        let mut first = vec![0; usize::try_from(self.disk.len().min(512)).unwrap_or(512)];
        self.read_at(&mut first, 0)
    }

    fn explain(&self, error: Error) -> Error {
        if let Err(loss) = self.loss.check() {
            return loss;
        }
        let message = format!("QEMU gave up the frozen copy of {}: {error}", self.name);
        Error::new(ErrorKind::Unavailable, message).hint(
            "its scratch file was full or too slow, or QEMU has ended; name a folder with more room for scratch files",
        )
    }
}

impl Disk for FrozenExport {
    fn len(&self) -> u64 {
        self.disk.len()
    }
    fn logical_block_size(&self) -> u32 {
        self.disk.logical_block_size()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.loss.check()?;
        self.disk.read_at(buf, offset).map_err(|error| match error.kind() {
            ErrorKind::OutOfBounds => error,
            _ => self.explain(error),
        })
    }
    fn extent_at(&self, offset: u64) -> Result<Extent> {
        self.disk.extent_at(offset).map_err(|error| match error.kind() {
            ErrorKind::OutOfBounds => error,
            _ => self.explain(error),
        })
    }
}
