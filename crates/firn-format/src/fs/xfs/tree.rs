//! [`Xfs`] as a [`FileTree`].

use super::content::{Content, read_target};
use super::inode::Inode;
use super::{Xfs, folder, index, xattr};
use crate::fs::{Entry, Facts, FileTree, Stat, Xattr};
use firn_disk::{Error, Result, SharedDisk};
use std::ops::ControlFlow;
use std::sync::Arc;

/// The free space is counted group by group up to this many groups, and taken from the superblock above.
const COUNTED_GROUPS: u32 = 1 << 12;

impl Xfs {
    /// An inode that a name may lead to.
    fn named(&self, number: u64) -> Result<Inode> {
        let inode = self.volume.inode(number)?;
        if inode.is_in_use() {
            Ok(inode)
        } else {
            Err(Error::not_found(format!("there is no inode {number} in use")).in_structure("XFS"))
        }
    }

    fn folder(&self, number: u64) -> Result<Inode> {
        let inode = self.named(number)?;
        folder::check_is_folder(&inode)?;
        Ok(inode)
    }

    fn find(&self, folder: &Inode, name: &[u8]) -> Result<Option<u64>> {
        // A damaged index costs time, not names.
        if index::is_indexed(&self.volume, folder)
            && let Ok(found) = index::find(&self.volume, folder, name)
        {
            return Ok(found);
        }
        folder::find(&self.volume, folder, name)
    }

    fn free_bytes(&self) -> u64 {
        let superblock = &self.volume.superblock;
        let counted = if superblock.groups <= COUNTED_GROUPS { self.volume.counted_free_blocks() } else { None };
        let blocks = counted.unwrap_or(superblock.free_blocks).min(superblock.blocks);
        blocks * superblock.block_bytes()
    }
}

impl FileTree for Xfs {
    fn facts(&self) -> Facts {
        let superblock = &self.volume.superblock;
        let label = String::from_utf8_lossy(&superblock.label).into_owned();
        Facts {
            kind: "xfs",
            label: (!label.is_empty()).then_some(label),
            uuid: Some(superblock.uuid_text()),
            size: superblock.blocks * superblock.block_bytes(),
            free: Some(self.free_bytes()),
            block_size: superblock.block_size,
            features: superblock.features.names(),
            health: self.notes.join(", "),
        }
    }

    fn root(&self) -> u64 {
        self.volume.superblock.root
    }

    fn lookup(&self, folder: u64, name: &[u8]) -> Result<u64> {
        let folder = self.folder(folder)?;
        match self.find(&folder, name)? {
            Some(inode) => Ok(inode),
            None => Err(Error::not_found(format!("no {:?} here", String::from_utf8_lossy(name)))
                .in_structure(format!("folder {}", folder.number))),
        }
    }

    fn list(&self, folder: u64, visit: &mut dyn FnMut(Entry) -> Result<()>) -> Result<()> {
        let folder = self.folder(folder)?;
        folder::visit(&self.volume, &folder, &mut |entry| {
            visit(Entry { name: entry.name.to_vec(), inode: entry.inode, file_type: entry.file_type })?;
            Ok(ControlFlow::Continue(()))
        })
    }

    fn stat(&self, inode: u64) -> Result<Stat> {
        self.named(inode)?.stat(&self.volume.superblock)
    }

    fn open(&self, inode: u64) -> Result<SharedDisk> {
        let inode = self.named(inode)?;
        if !inode.is_file() {
            return Err(Error::invalid("this is not a regular file").in_structure(inode.name()));
        }
        Ok(Arc::new(Content::new(self.volume.clone(), inode)?))
    }

    fn read_link(&self, inode: u64) -> Result<Vec<u8>> {
        let inode = self.named(inode)?;
        if !inode.is_symlink() {
            return Err(Error::invalid("this is not a symbolic link").in_structure(inode.name()));
        }
        read_target(&self.volume, &inode)
    }

    fn xattrs(&self, inode: u64) -> Result<Vec<Xattr>> {
        xattr::read(&self.volume, &self.named(inode)?)
    }
}
