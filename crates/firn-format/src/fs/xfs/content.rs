//! [`Content`]: a file's bytes as a disk; and the targets of long symlinks.

use super::checksum;
use super::inode::{Fork, Format, Inode};
use super::map::{Cursor, Leaf, Run, RunKind, leaf_at};
use super::volume::Volume;
use firn_disk::{Disk, Error, ErrorKind, Extent, ExtentKind, Record, Result, check_range};
use std::sync::{Arc, Mutex, PoisonError};

/// The content of one inode. The leaf of the map that was used last is kept.
#[derive(Debug)]
pub(super) struct Content {
    volume: Arc<Volume>,
    inode: Inode,
    leaf: Mutex<Option<Arc<Leaf>>>,
}

impl Content {
    /// The content of a regular file.
    pub fn new(volume: Arc<Volume>, inode: Inode) -> Result<Self> {
        if inode.is_realtime() {
            return Err(
                Error::unsupported("the content is on the file system's realtime device").in_structure(inode.name())
            );
        }
        if !matches!(inode.format(Fork::Data), Some(Format::Extents | Format::Btree)) {
            return Err(inode.corrupt("a regular file without a map"));
        }
        Ok(Self { volume, inode, leaf: Mutex::new(None) })
    }

    fn leaf(&self, block: u64) -> Result<Arc<Leaf>> {
        let kept = self.leaf.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(leaf) = kept.filter(|leaf| (leaf.start..leaf.end).contains(&block)) {
            return Ok(leaf);
        }
        let leaf = Arc::new(leaf_at(&self.volume, &self.inode, Fork::Data, block)?);
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
        let at =
            self.volume.block_offset(block, run.length, "XFS extent")? + offset % self.volume.superblock.block_bytes();
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

/// "XSLM"
const SYMLINK_MAGIC: u32 = 0x5853_4C4D;
/// Bytes before a part of a target or of a value, in version 5.
const REMOTE_HEADER: usize = 56;
/// The longest target.
const MAX_TARGET: u64 = 1024;

/// The target of a symlink.
///
/// In version 5 every extent of a long one begins with: magic (4), where in the target it belongs (4), bytes (4),
/// crc32c (4), uuid (16), owner (8), place (8), lsn (8).
pub(super) fn read_target(volume: &Volume, inode: &Inode) -> Result<Vec<u8>> {
    if inode.size > MAX_TARGET || inode.size == 0 {
        return Err(inode.corrupt(format!("a symbolic link of {} bytes", inode.size)));
    }
    if inode.format(Fork::Data) == Some(Format::Local) {
        return Ok(inode.local_data()?.to_vec());
    }
    let name = format!("target of inode {}", inode.number);
    let size = usize::try_from(inode.size).unwrap_or(usize::MAX);
    let is_v5 = volume.superblock.features.is_v5();
    let mut target = Vec::with_capacity(size);
    let mut cursor = Cursor::new(volume, inode, Fork::Data);
    let mut block = 0;
    // Every extent has at least one byte of at most 1024.
    while target.len() < size {
        // Parts of at most 1024 bytes never take more than 3 blocks of the smallest size.
        let length = cursor.run_at(block)?.length.min(4);
        let part = cursor.read(block, length, &name)?;
        let record = Record::new(&part.bytes, &name, part.offset);
        let wanted = size - target.len();
        if is_v5 {
            checksum::check_stamp(
                &volume.superblock,
                &record,
                checksum::REMOTE,
                part.offset,
                inode.number,
                part.is_patched,
            )?;
            let count = usize::try_from(record.be_u32(8)?).unwrap_or(usize::MAX);
            let at = usize::try_from(record.be_u32(4)?).unwrap_or(usize::MAX);
            if record.be_u32(0)? != SYMLINK_MAGIC || at != target.len() || count == 0 || count > wanted {
                return Err(record.corrupt(0, format!("no part of a target of {size} bytes")));
            }
            target.extend(record.slice(REMOTE_HEADER, count)?);
        } else {
            target.extend(record.slice(0, wanted.min(part.bytes.len()))?);
        }
        block += length;
    }
    Ok(target)
}
