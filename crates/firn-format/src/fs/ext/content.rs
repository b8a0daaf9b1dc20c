//! [`Content`]: a file's bytes as a disk.

use super::inode::Inode;
use super::map::{Leaf, Run, RunKind, leaf_at, visit_leaves};
use super::volume::Volume;
use firn_disk::{Disk, Error, ErrorKind, Extent, ExtentKind, Result, check_range};
use std::sync::{Arc, Mutex, PoisonError};

/// The content of one inode. The leaf of the map that was used last is kept.
#[derive(Debug)]
pub(super) struct Content {
    volume: Arc<Volume>,
    inode: Inode,
    leaf: Mutex<Option<Arc<Leaf>>>,
}

impl Content {
    pub fn new(volume: Arc<Volume>, inode: Inode) -> Self {
        Self { volume, inode, leaf: Mutex::new(None) }
    }

    fn leaf(&self, block: u64) -> Result<Arc<Leaf>> {
        let kept = self.leaf.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(leaf) = kept.filter(|leaf| (leaf.start..leaf.end).contains(&block)) {
            return Ok(leaf);
        }
        let leaf = Arc::new(leaf_at(&self.volume, &self.inode, block)?);
        *self.leaf.lock().unwrap_or_else(PoisonError::into_inner) = Some(leaf.clone());
        Ok(leaf)
    }

    /// The run at a byte, and how many bytes of it there are from there on.
    fn run_at(&self, offset: u64) -> Result<(Run, u64)> {
        let size = self.volume.superblock.block_bytes();
        let block = offset / size;
        let run = self.leaf(block)?.run_at(block);
        Ok((run, (run.length.saturating_mul(size)).saturating_sub(offset % size).min(self.len() - offset)))
    }

    fn read_run(&self, run: Run, buf: &mut [u8], offset: u64) -> Result<()> {
        let RunKind::Data(block) = run.kind else {
            buf.fill(0);
            return Ok(());
        };
        let size = self.volume.superblock.block_bytes();
        // The map's blocks were checked to be within the file system.
        let at = block * size + offset % size;
        self.volume.disk.read_at(buf, at).map_err(|error| match error.kind() {
            ErrorKind::OutOfBounds => {
                Error::corrupt("the disk ends before this content").in_structure(self.inode.name()).at_offset(at)
            }
            _ => error.in_structure(self.inode.name()).at_offset(at),
        })
    }
}

impl Disk for Content {
    fn len(&self) -> u64 {
        self.inode.size
    }

    fn read_at(&self, mut buf: &mut [u8], mut offset: u64) -> Result<()> {
        check_range(offset, buf.len() as u64, self.len())?;
        while !buf.is_empty() {
            let (run, length) = self.run_at(offset)?;
            let count = usize::try_from(length).unwrap_or(usize::MAX).min(buf.len());
            let (now, later) = buf.split_at_mut(count);
            self.read_run(run, now, offset)?;
            buf = later;
            offset += count as u64;
        }
        Ok(())
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        check_range(offset, 1, self.len())?;
        let (run, length) = self.run_at(offset)?;
        let kind = match run.kind {
            RunKind::Data(_) => ExtentKind::Data,
            RunKind::Unwritten(_) => ExtentKind::Zero,
            RunKind::Hole => ExtentKind::Hole,
        };
        Ok(Extent { kind, length })
    }
}

/// Reads the first `length` bytes of a small file whole; what is not there reads as zeros.
pub(super) fn read_whole(volume: &Volume, inode: &Inode, length: u64) -> Result<Vec<u8>> {
    let size = volume.superblock.block_bytes();
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
    visit_leaves(volume, inode, length.div_ceil(size), |leaf| {
        for run in &leaf.runs {
            let RunKind::Data(block) = run.kind else { continue };
            let start = usize::try_from(run.start.saturating_mul(size)).unwrap_or(usize::MAX);
            let count = usize::try_from(run.length.saturating_mul(size)).unwrap_or(usize::MAX);
            let end = start.saturating_add(count).min(bytes.len());
            if let Some(part) = bytes.get_mut(start.min(end)..end) {
                part.copy_from_slice(&volume.read_bytes(block * size, part.len(), "ext file content")?);
            }
        }
        Ok(())
    })?;
    Ok(bytes)
}
