//! [`Ext`] as a [`FileTree`].

use super::content::{Content, read_whole};
use super::folder::{self, RawEntry};
use super::hash::Hasher;
use super::inode::{BLOCK_MAP_LENGTH, Inode, flag};
use super::{Ext, index, nokey, xattr};
use crate::fs::{Entry, Facts, FileTree, Stat, Xattr};
use firn_disk::{Error, MemDisk, Result, SharedDisk};
use std::ops::ControlFlow;
use std::sync::Arc;

const ROOT: u64 = 2;
/// The free space is counted group by group up to this many groups, and taken from the superblock above.
const COUNTED_GROUPS: u32 = 1 << 14;

impl Ext {
    /// An inode that a name may lead to.
    fn named(&self, number: u64) -> Result<Inode> {
        let superblock = &self.volume.superblock;
        let missing = || Error::not_found(format!("there is no inode {number} in use")).in_structure("ext");
        let number = u32::try_from(number).map_err(|_| missing())?;
        if superblock.is_own_inode(number) {
            return Err(missing());
        }
        let inode = self.volume.inode(number)?;
        if inode.is_in_use() { Ok(inode) } else { Err(missing()) }
    }

    fn folder(&self, number: u64) -> Result<Inode> {
        let inode = self.named(number)?;
        folder::check_is_folder(&inode)?;
        Ok(inode)
    }

    /// The name to show for an entry of `folder`.
    fn shown_name(&self, folder: &Inode, entry: &RawEntry<'_>) -> Vec<u8> {
        if !folder.has(flag::ENCRYPTED) {
            return entry.name.to_vec();
        }
        let superblock = &self.volume.superblock;
        let hash = entry.stored_hash.unwrap_or_else(|| {
            let indexed = folder::is_indexed(&self.volume, folder);
            let small = indexed || folder.size == superblock.block_bytes() || folder.has(flag::INLINE_DATA);
            let hasher = Hasher::new(superblock.hash_version, superblock.flags, superblock.hash_seed);
            // Linux counts the hash only where it reads by hash.
            hasher.filter(|_| small).map_or((0, 0), |hasher| hasher.hash(entry.name))
        });
        nokey::encode(entry.name, hash)
    }

    fn find(&self, folder: &Inode, name: &[u8]) -> Result<Option<u32>> {
        if folder.has(flag::ENCRYPTED) {
            let mut found = None;
            folder::visit(&self.volume, folder, &mut |entry| {
                if self.shown_name(folder, &entry) != name {
                    return Ok(ControlFlow::Continue(()));
                }
                found = Some(entry.inode);
                Ok(ControlFlow::Break(()))
            })?;
            return Ok(found);
        }
        // The index of a folder that ignores case is over folded names.
        if folder::is_indexed(&self.volume, folder)
            && !folder.has(flag::INLINE_DATA | flag::CASEFOLD)
            && let Ok(found) = index::find(&self.volume, folder, name)
        {
            return Ok(found);
        }
        folder::find(&self.volume, folder, name)
    }

    /// The content of an inode whose data is within itself.
    fn inline_content(&self, inode: &Inode) -> Result<Vec<u8>> {
        let mut bytes = inode.block_map()?.to_vec();
        if inode.size > BLOCK_MAP_LENGTH as u64 {
            bytes.extend(xattr::inline_data(&self.volume, inode)?);
        }
        let size = usize::try_from(inode.size).unwrap_or(usize::MAX);
        if size > bytes.len() {
            return Err(inode.corrupt(format!("{size} bytes of inline data, but there are only {}", bytes.len())));
        }
        bytes.truncate(size);
        Ok(bytes)
    }

    fn free_bytes(&self) -> u64 {
        let superblock = &self.volume.superblock;
        let cluster = superblock.block_bytes() * u64::from(superblock.cluster_blocks);
        let counted = (superblock.groups <= COUNTED_GROUPS).then(|| {
            (0..superblock.groups).try_fold(0_u64, |sum, group| {
                self.volume.group(group).map(|group| sum + u64::from(group.free_clusters) * cluster)
            })
        });
        match counted {
            Some(Ok(free)) => free,
            _ => superblock.free_blocks.saturating_mul(superblock.block_bytes()),
        }
        .min(superblock.blocks * superblock.block_bytes())
    }
}

fn not_with_key(inode: &Inode, what: &str) -> Error {
    Error::unsupported(format!("{what} is encrypted by its owner (fscrypt)"))
        .in_structure(inode.name())
        .hint("read it in the running machine, where its key is")
}

impl FileTree for Ext {
    fn facts(&self) -> Facts {
        let superblock = &self.volume.superblock;
        let label = String::from_utf8_lossy(&superblock.label).into_owned();
        Facts {
            kind: superblock.features.kind(),
            label: (!label.is_empty()).then_some(label),
            uuid: Some(superblock.uuid_text()),
            size: superblock.blocks * superblock.block_bytes(),
            free: Some(self.free_bytes()),
            block_size: superblock.block_size,
            features: superblock.features.names(),
            health: self.health(),
        }
    }

    fn root(&self) -> u64 {
        ROOT
    }

    fn lookup(&self, folder: u64, name: &[u8]) -> Result<u64> {
        let folder = self.folder(folder)?;
        match self.find(&folder, name)? {
            Some(inode) => Ok(u64::from(inode)),
            None => Err(Error::not_found(format!("no {:?} here", String::from_utf8_lossy(name)))
                .in_structure(format!("folder {}", folder.number))),
        }
    }

    fn list(&self, folder: u64, visit: &mut dyn FnMut(Entry) -> Result<()>) -> Result<()> {
        let folder = self.folder(folder)?;
        folder::visit(&self.volume, &folder, &mut |entry| {
            let name = self.shown_name(&folder, &entry);
            visit(Entry { name, inode: u64::from(entry.inode), file_type: entry.file_type })?;
            Ok(ControlFlow::Continue(()))
        })
    }

    fn stat(&self, inode: u64) -> Result<Stat> {
        self.named(inode)?.stat()
    }

    fn open(&self, inode: u64) -> Result<SharedDisk> {
        let inode = self.named(inode)?;
        if !inode.is_file() {
            return Err(Error::invalid("this is not a regular file").in_structure(inode.name()));
        }
        if inode.has(flag::ENCRYPTED) {
            return Err(not_with_key(&inode, "the content"));
        }
        if inode.has(flag::INLINE_DATA) {
            return Ok(Arc::new(MemDisk::from(self.inline_content(&inode)?)));
        }
        Ok(Arc::new(Content::new(self.volume.clone(), inode)))
    }

    fn read_link(&self, inode: u64) -> Result<Vec<u8>> {
        let inode = self.named(inode)?;
        if !inode.is_symlink() {
            return Err(Error::invalid("this is not a symbolic link").in_structure(inode.name()));
        }
        if inode.has(flag::ENCRYPTED) {
            return Err(not_with_key(&inode, "the target"));
        }
        if inode.has(flag::INLINE_DATA) {
            return self.inline_content(&inode);
        }
        if inode.is_short_symlink(&self.volume.superblock) {
            let map = inode.block_map()?;
            return Ok(map.iter().copied().take(usize::try_from(inode.size).unwrap_or(usize::MAX)).collect());
        }
        if inode.size > self.volume.superblock.block_bytes() {
            return Err(inode.corrupt(format!("a symbolic link of {} bytes", inode.size)));
        }
        read_whole(&self.volume, &inode, inode.size)
    }

    fn xattrs(&self, inode: u64) -> Result<Vec<Xattr>> {
        xattr::read(&self.volume, &self.named(inode)?)
    }
}
