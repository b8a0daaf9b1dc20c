//! XFS, with its log replayed in memory.
//!
//! ```text
//! group 0                                                        group 1 ...
//! superblock | free space | inodes | free list | trees, inodes, folders, files | the log (in the middle of one group)
//! ```
//!
//! What is read: versions 4 and 5 with every feature that the kernel of 2025 writes, but those named below; in version
//! 5 with every checksum, and with the owner, the place and the UUID that blocks carry. What is refused: version 1
//! folders, `metadir` and `zoned` file systems, unknown incompatible features, those marked `needsrepair`, and file by
//! file what is on a realtime device or contradicts itself. In file systems that ignore the case of ASCII letters,
//! [`FileTree::lookup`](crate::fs::FileTree::lookup) finds exact names only.
//!
//! The log is replayed as the kernel does when it mounts: see `log`. What only the kernel needs (free space, reverse
//! maps, reference counts, quotas) is not finished, so that a replayed disk cannot be written out.

mod acl;
mod checksum;
mod content;
mod features;
mod folder;
mod index;
mod inode;
mod log;
mod map;
mod recover;
mod superblock;
mod tree;
mod volume;
mod xattr;

use firn_disk::{Error, Result, SharedDisk};
use recover::Recovered;
use std::fmt;
use std::sync::Arc;
use volume::Volume;

/// How to open a file system.
#[derive(Debug, Clone)]
pub struct XfsOptions {
    /// Replay the log in memory, as mounting would. `true` unless changed.
    pub replay: bool,
    /// The disk of an external log.
    pub external_log: Option<SharedDisk>,
}

impl Default for XfsOptions {
    fn default() -> Self {
        Self { replay: true, external_log: None }
    }
}

/// An XFS file system.
pub struct Xfs {
    volume: Arc<Volume>,
    /// What was found and done at opening.
    notes: Vec<String>,
    is_clean: bool,
}

impl fmt::Debug for Xfs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let superblock = &self.volume.superblock;
        f.debug_struct("Xfs")
            .field("uuid", &superblock.uuid_text())
            .field("blocks", &superblock.blocks)
            .field("block_size", &superblock.block_size)
            .field("notes", &self.notes)
            .finish_non_exhaustive()
    }
}

impl Xfs {
    /// Opens the file system that begins at byte 0 of `disk`.
    ///
    /// A log that is not clean is replayed in memory, unless `options` say otherwise: files and folders are then as
    /// they would be after mounting. The disk is only read.
    ///
    /// # Errors
    /// `Corrupt` when there is no file system, or its superblock or log is damaged; `Unsupported` by the name of a
    /// feature, or of what the log has; `Unavailable` when the log is on another disk that was not given.
    pub fn open(disk: SharedDisk, options: &XfsOptions) -> Result<Arc<Self>> {
        let Recovered { volume, notes, is_clean } = recover::recover(disk, options)?;
        Ok(Arc::new(Self { volume: Arc::new(volume), notes, is_clean }))
    }

    /// The disk as it would be after mounting and unmounting, which is the disk itself when its log is clean.
    ///
    /// # Errors
    /// `Unsupported` when there is something to replay.
    pub fn replayed_disk(&self) -> Result<SharedDisk> {
        if self.is_clean {
            return Ok(self.volume.disk.clone());
        }
        Err(Error::unsupported("a disk with the log of XFS replayed cannot be written: its free space is not finished")
            .hint("restore it as it is: whoever mounts it first replays its log"))
    }
}
