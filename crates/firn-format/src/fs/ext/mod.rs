//! ext2, ext3 and ext4, with the journal replayed in memory.
//!
//! ```text
//! group 0            group 1            ...
//! boot 1024 | superblock | descriptors | bitmaps | inode tables | blocks of files, folders, attributes, the journal
//! ```
//!
//! What is read: all revisions and every feature that the kernel and e2fsprogs write, with every checksum where there
//! is one. What is refused: unknown incompat features by their name, the content of files that their owner encrypted
//! (their names are given as Linux shows them without the key), and whatever contradicts itself, file by file.
//! In folders that ignore the case of names, [`FileTree::lookup`](crate::fs::FileTree::lookup) finds exact names only.

mod acl;
mod checksum;
mod content;
mod edit;
mod extent;
mod features;
mod folder;
mod hash;
mod index;
mod indirect;
mod inode;
mod journal;
mod map;
mod nokey;
mod recover;
mod renew;
mod superblock;
mod tree;
mod volume;
mod xattr;

use firn_disk::{Error, Result, SharedDisk};
use recover::Recovered;
pub(super) use renew::renew;
use std::fmt;
use std::sync::Arc;
use volume::Volume;

/// How to open a file system.
#[derive(Debug, Clone)]
pub struct ExtOptions {
    /// Replay the journal in memory and drop orphans, as mounting would. `true` unless changed.
    pub replay: bool,
    /// The disk of an external journal.
    pub external_journal: Option<SharedDisk>,
}

impl Default for ExtOptions {
    fn default() -> Self {
        Self { replay: true, external_journal: None }
    }
}

/// An ext2, ext3 or ext4 file system.
pub struct Ext {
    volume: Arc<Volume>,
    /// What was found and done at opening.
    notes: Vec<String>,
    /// Why [`replayed_disk`](Self::replayed_disk) cannot be given.
    unfinished: Option<Error>,
}

impl fmt::Debug for Ext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let superblock = &self.volume.superblock;
        f.debug_struct("Ext")
            .field("kind", &superblock.features.kind())
            .field("uuid", &superblock.uuid_text())
            .field("blocks", &superblock.blocks)
            .field("block_size", &superblock.block_size)
            .field("notes", &self.notes)
            .finish_non_exhaustive()
    }
}

impl Ext {
    /// Opens the file system that begins at byte 0 of `disk`.
    ///
    /// An unclean journal is replayed in memory, unless `options` say otherwise: files, folders and counts are then as
    /// they would be after mounting. The disk is only read.
    ///
    /// # Errors
    /// `Corrupt` when there is no file system, or its superblocks or journal are damaged; `Unsupported` by the name of
    /// a feature; `Unavailable` when the journal is on another disk that was not given.
    pub fn open(disk: SharedDisk, options: &ExtOptions) -> Result<Arc<Self>> {
        let Recovered { disk, superblock, notes, unfinished } = recover::recover(disk, options)?;
        Ok(Arc::new(Self { volume: Arc::new(Volume::cached(disk, superblock)), notes, unfinished }))
    }

    /// The disk as it would be after mounting and unmounting: journal replayed and empty, orphans gone, counts right.
    ///
    /// It is as long as the disk below. Changes are kept in memory; the disk below is only read. Quota files are not
    /// brought up to date.
    ///
    /// # Errors
    /// What kept the replay from being finished: `replay` was off, or an orphan is damaged.
    pub fn replayed_disk(&self) -> Result<SharedDisk> {
        match &self.unfinished {
            Some(error) => Err(error.clone()),
            None => recover::with_counts(&self.volume),
        }
    }

    fn health(&self) -> String {
        let mut notes = self.notes.clone();
        match self.volume.copies_used() {
            0 => {}
            count => notes.push(format!("{count} reads of damaged group descriptors taken from their copies")),
        }
        notes.join(", ")
    }
}
