//! [`Finished`]: what replaying the log did that is not in the blocks of the disk.

use super::super::inode::Inode;
use super::super::map::Run;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// A file whose map was changed by finishing what the log says was begun.
#[derive(Debug, Clone)]
pub(in super::super) struct ChangedMap {
    /// The whole map of the data fork.
    pub runs: Arc<[Run]>,
    /// The inode's count of blocks.
    pub blocks: u64,
    /// The inode's size.
    pub size: u64,
}

/// An attribute that the log says was being set or removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct AttributeChange {
    /// The flags that tell two attributes of one name apart.
    pub namespace: u8,
    /// Name without prefix.
    pub name: Vec<u8>,
    /// The new value; `None` when it is removed.
    pub value: Option<Vec<u8>>,
}

/// What replaying the log did that is not in the blocks of the disk.
#[derive(Debug, Default)]
pub(in super::super) struct Finished {
    /// The units of 512 bytes that the log was replayed over, whose checksums are not up to date.
    pub patched: BTreeSet<u64>,
    /// Changed maps by inode.
    pub maps: HashMap<u64, ChangedMap>,
    /// Changed attributes by inode, in the order they were begun.
    pub attributes: HashMap<u64, Vec<AttributeChange>>,
}

impl Finished {
    /// Whether the log was replayed over a part of these bytes.
    pub fn is_patched(&self, offset: u64, length: u64) -> bool {
        self.patched.range(offset / 512..(offset + length).div_ceil(512)).next().is_some()
    }

    /// Gives an inode what was changed of it.
    pub fn amend(&self, inode: &mut Inode) {
        if let Some(changed) = self.maps.get(&inode.number) {
            inode.replaced_map = Some(changed.runs.clone());
            inode.blocks = changed.blocks;
            inode.size = changed.size;
        }
    }

    /// The changed attributes of an inode.
    pub fn attribute_changes(&self, inode: u64) -> &[AttributeChange] {
        self.attributes.get(&inode).map_or(&[], Vec::as_slice)
    }
}
