//! The disks of a machine as they would be after every file system was mounted and unmounted once.
//!
//! A file system with its journal replayed is a disk of the same length. Its bytes are put where the originals
//! stand: on the disk itself, in a partition, in the pieces of a plain logical volume.

use super::{LayerKind, Layers, NodeId};
use crate::fs::{self, OpenOptions};
use firn_disk::{Disk, Error, Extent, Result, SharedDisk, check_range};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Deepest nesting that is followed down to a disk.
const MAX_DEPTH: usize = 32;

/// A run of bytes of a layer that stands in one piece in the layer below.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    /// Where it begins in the layer.
    pub(super) start: u64,
    pub(super) length: u64,
    /// The layer below.
    pub(super) below: NodeId,
    /// Where it begins there.
    pub(super) at: u64,
}

/// Disks with all journals replayed.
#[derive(Debug)]
pub struct Replayed {
    /// Each with its name.
    pub disks: Vec<(String, SharedDisk)>,
    /// What became of each file system, in words: its address, and what was done or why it stayed as it is.
    pub notes: Vec<(String, String)>,
}

impl Layers {
    /// The disks with the journals of all file systems replayed. File systems that firn does not replay stay as they
    /// are. Nothing is written.
    ///
    /// # Errors
    /// What replaying says; `Unsupported`, by name, for a file system on a volume that does not stand in one place;
    /// `Corrupt` when two file systems lie on each other.
    pub fn replayed(&self, options: &OpenOptions) -> Result<Replayed> {
        let mut changes: BTreeMap<NodeId, BTreeMap<u64, Change>> = BTreeMap::new();
        let mut notes = Vec::new();
        for id in self.file_systems() {
            let address = self.node(id).address.clone();
            let explain = |error: Error| error.in_structure(format!("{} on {address}", self.node(id).name));
            let Some((disk, note)) = fs::replayed(&self.disk(id)?, options).map_err(explain)? else {
                notes.push((address, format!("{} stays as it is", self.node(id).name)));
                continue;
            };
            let holder = self.holder(id).ok_or_else(|| explain(Error::invalid("nothing holds it")))?;
            self.place(holder, 0..disk.len(), 0, 0, &mut |id, at, start, length| {
                let change = Change { disk: disk.clone(), start, length };
                let all = changes.entry(id).or_default();
                let before = all.range(..=at).next_back().is_some_and(|(start, change)| start + change.length > at);
                let after = all.range(at..).next().is_some_and(|(start, _)| at.saturating_add(length) > *start);
                if before || after {
                    return Err(Error::corrupt("it lies on another file system"));
                }
                all.insert(at, change);
                Ok(())
            })
            .map_err(explain)?;
            notes.push((address, note));
        }
        let disks = self.roots.iter().filter(|id| self.node(**id).kind == LayerKind::Disk);
        let disks = disks.map(|id| {
            let below = self.disk(*id)?;
            let disk: SharedDisk = match changes.remove(id) {
                Some(changes) => Arc::new(Changed { below, changes }),
                None => below,
            };
            Ok((self.node(*id).name.clone(), disk))
        });
        Ok(Replayed { disks: disks.collect::<Result<_>>()?, notes })
    }

    /// The disk, partition or volume that a file system is in.
    pub(super) fn holder(&self, id: NodeId) -> Option<NodeId> {
        std::iter::successors(Some(id), |id| self.node(*id).parent).find(|id| self.node(*id).disk.is_some())
    }

    /// Calls `visit` with disk, offset, offset in the file system and length for each piece of `range` of a layer,
    /// which begins at byte `start` of the file system.
    pub(super) fn place(
        &self,
        id: NodeId,
        range: std::ops::Range<u64>,
        start: u64,
        depth: usize,
        visit: &mut dyn FnMut(NodeId, u64, u64, u64) -> Result<()>,
    ) -> Result<()> {
        let node = self.node(id);
        if node.kind == LayerKind::Disk {
            return visit(id, range.start, start, range.end - range.start);
        }
        if depth > MAX_DEPTH {
            return Err(Error::unsupported("it is nested too deeply"));
        }
        let parts = match self.parts.get(&id) {
            Some(Ok(parts)) => parts,
            Some(Err(error)) => return Err(error.clone()),
            None if node.kind == LayerKind::Encrypted => return Err(Error::unsupported("it is encrypted")),
            None => return Err(Error::unsupported(format!("{} does not stand in one place", node.name))),
        };
        let mut at = range.start;
        while at < range.end {
            let part = parts.iter().find(|part| at >= part.start && at - part.start < part.length);
            let part = part.ok_or_else(|| Error::corrupt(format!("byte {at} of {} stands nowhere", node.name)))?;
            let end = range.end.min(part.start + part.length);
            let below = part.at + (at - part.start);
            self.place(part.below, below..below + (end - at), start + (at - range.start), depth + 1, visit)?;
            at = end;
        }
        Ok(())
    }
}

/// `length` bytes of another disk from `start` on.
#[derive(Debug)]
struct Change {
    disk: SharedDisk,
    start: u64,
    length: u64,
}

/// A disk with ranges that are those of other disks.
#[derive(Debug)]
struct Changed {
    below: SharedDisk,
    /// By where they are put. They do not overlap.
    changes: BTreeMap<u64, Change>,
}

impl Changed {
    /// The disk and the offset where `offset` is to be read, and how far that holds.
    fn at(&self, offset: u64) -> (&SharedDisk, u64, u64) {
        if let Some((start, change)) = self.changes.range(..=offset).next_back()
            && offset - start < change.length
        {
            let into = offset - start;
            return (&change.disk, change.start + into, change.length - into);
        }
        let next = self.changes.range(offset..).next().map_or(self.below.len(), |(start, _)| *start);
        (&self.below, offset, next - offset)
    }
}

impl Disk for Changed {
    fn len(&self) -> u64 {
        self.below.len()
    }

    fn logical_block_size(&self) -> u32 {
        self.below.logical_block_size()
    }

    fn read_at(&self, mut buf: &mut [u8], mut offset: u64) -> Result<()> {
        check_range(offset, buf.len() as u64, self.len())?;
        while !buf.is_empty() {
            let (disk, at, length) = self.at(offset);
            let count = usize::try_from(length).unwrap_or(usize::MAX).min(buf.len());
            let (now, later) = buf.split_at_mut(count);
            disk.read_at(now, at)?;
            buf = later;
            offset += count as u64;
        }
        Ok(())
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        check_range(offset, 1, self.len())?;
        let (disk, at, length) = self.at(offset);
        let extent = disk.extent_at(at)?;
        Ok(Extent { length: extent.length.min(length), ..extent })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use firn_disk::{MemDisk, testing};

    #[test]
    fn conforms() {
        let mut bytes = testing::pattern(100_000, 1);
        let below = Arc::new(MemDisk::from(bytes.clone()));
        let other = testing::pattern(30_000, 2);
        let disk: SharedDisk = Arc::new(MemDisk::from(other.clone()));
        let mut changes = BTreeMap::new();
        for (at, start, length) in [(0, 5000, 100), (100, 0, 4096), (50_000, 10_000, 20_000), (99_999, 7, 1)] {
            bytes[at..at + length].copy_from_slice(&other[start..start + length]);
            changes.insert(at as u64, Change { disk: disk.clone(), start: start as u64, length: length as u64 });
        }
        testing::check_disk(&Changed { below, changes }, &bytes, 3);
    }
}
