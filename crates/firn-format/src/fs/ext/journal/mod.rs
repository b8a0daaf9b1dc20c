//! jbd2: the journal of ext3 and ext4, replayed in memory.
//!
//! ```text
//! block 0     first ..................................... end      end + 1 ........... blocks
//! superblock  the log, a ring of transactions                      fast commits, if any
//! ```
//!
//! Nothing is written: the blocks that the log has newer copies of are redirected to those copies, in an
//! [`Overlay`](firn_disk::Overlay) that costs a few bytes per run of blocks. Every copy that is used has its checksum
//! checked first, where the journal has checksums.

mod fast_commit;
mod log;
mod replay;
mod superblock;

pub(super) use fast_commit::{Change, FastCommits};

use super::features::{Features, incompat};
use super::inode::{BLOCK_MAP, BLOCK_MAP_LENGTH, Inode};
use super::map::{Run, RunKind, visit_leaves};
use super::superblock::{Superblock, spell_uuid};
use super::volume::Volume;
use firn_disk::{Concat, Disk, Error, Record, Result, SharedDisk};
use std::sync::Arc;
use superblock::JournalSuperblock;

/// A journal's runs of blocks; a journal in more pieces is refused.
const MAX_RUNS: usize = 1 << 16;

/// A journal that was found, and the disk that it and the file system are on.
#[derive(Debug)]
pub(super) struct Journal {
    /// The file system's disk; behind it the journal's, if that is another one.
    disk: SharedDisk,
    /// Where the journal's blocks are, in blocks of `disk` from byte `base` on.
    runs: Vec<Run>,
    base: u64,
    superblock: JournalSuperblock,
}

/// What replaying a journal gave.
#[derive(Debug)]
pub(super) struct Replayed {
    /// The file system with all whole transactions in place.
    pub disk: SharedDisk,
    pub transactions: u32,
    pub fast: FastCommits,
    /// Where the journal's superblock stands on the file system's disk, and what it is once all was replayed.
    pub emptied: Option<(u64, Vec<u8>)>,
}

impl Journal {
    /// Finds the journal inside of a file system.
    pub fn internal(volume: &Volume) -> Result<Self> {
        let number = volume.superblock.journal_inode;
        let inode = volume.inode(number).and_then(|inode| check_inode(volume, inode));
        let inode = match inode {
            Ok(inode) => inode,
            Err(error) => inode_from_copy(&volume.superblock).ok_or(error)?,
        };
        let blocks = inode.size / volume.superblock.block_bytes();
        let mut runs: Vec<Run> = Vec::new();
        visit_leaves(volume, &inode, blocks, |leaf| {
            runs.extend(leaf.runs);
            if runs.len() > MAX_RUNS { Err(inode.corrupt("a journal in too many pieces")) } else { Ok(()) }
        })?;
        Self::open(volume.disk.clone(), runs, 0, blocks, 0, &volume.superblock)
    }

    /// Finds the journal of `superblock` on a disk of its own.
    pub fn external(disk: SharedDisk, journal: SharedDisk, superblock: &Superblock) -> Result<Self> {
        let mut raw = vec![0; super::superblock::LENGTH];
        let name = "external journal";
        let record = Record::read(&*journal, &mut raw, super::superblock::OFFSET, name)?;
        let features = Features { incompat: record.le_u32(0x60)?, ..Features::default() };
        if record.le_u16(0x38)? != 0xEF53 || !features.incompat(incompat::JOURNAL_DEV) {
            return Err(record.corrupt(0x38, "no external journal is here"));
        }
        let uuid = record.array::<16>(0x68)?;
        if uuid != superblock.journal_uuid {
            return Err(Error::invalid(format!(
                "this is journal {}, but the file system's journal is {}",
                spell_uuid(&uuid),
                spell_uuid(&superblock.journal_uuid)
            ))
            .in_structure(name));
        }
        let shift = record.le_u32(0x18)?;
        if shift > 6 || 1024 << shift != superblock.block_size {
            return Err(record.corrupt(0x18, "its blocks are not as long as the file system's"));
        }
        let first = if superblock.block_size == 1024 { 2 } else { 1 };
        // The journal's blocks are counted from the start of its disk, though its superblock is not the first.
        let blocks = u64::from(record.le_u32(0x4)?);
        let base = disk.len();
        let disk: SharedDisk = Arc::new(Concat::new(vec![disk, journal])?);
        let run = Run { start: 0, length: blocks.max(1), kind: RunKind::Data(0) };
        let opened = Self::open(disk, vec![run], base, blocks, first, superblock)?;
        if opened.superblock.users > 1 {
            return Err(Error::unsupported(format!("a journal that {} file systems share", opened.superblock.users))
                .in_structure(name));
        }
        Ok(opened)
    }

    /// Opens a journal of at most `blocks` blocks, of which block number `at` is its superblock.
    fn open(
        disk: SharedDisk,
        runs: Vec<Run>,
        base: u64,
        blocks: u64,
        at: u32,
        superblock: &Superblock,
    ) -> Result<Self> {
        let offset = locate(&runs, base, superblock.block_size, at)?;
        let mut raw = vec![0; superblock::LENGTH];
        Record::read(&*disk, &mut raw, offset, "journal superblock")?;
        let journal = JournalSuperblock::parse(raw, offset, blocks)?;
        if journal.block_size != superblock.block_size {
            return Err(Error::corrupt(format!("the journal has blocks of {} bytes", journal.block_size))
                .in_structure("journal superblock"));
        }
        Ok(Self { disk, runs, base, superblock: journal })
    }

    /// Whether there is anything to replay.
    pub fn is_clean(&self) -> bool {
        self.superblock.start == 0
    }

    /// Where a block of the journal is on its disk, in bytes.
    fn offset(&self, block: u32) -> Result<u64> {
        locate(&self.runs, self.base, self.superblock.block_size, block)
    }

    /// Reads a block of the journal.
    fn read(&self, block: u32) -> Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(self.superblock.block_size).unwrap_or(usize::MAX)];
        Record::read(&*self.disk, &mut bytes, self.offset(block)?, "journal")?;
        Ok(bytes)
    }

    fn record<'a>(&self, bytes: &'a [u8], block: u32) -> Record<'a> {
        Record::new(bytes, "journal", self.offset(block).unwrap_or(0))
    }
}

fn locate(runs: &[Run], base: u64, block_size: u32, block: u32) -> Result<u64> {
    let block = u64::from(block);
    let index = runs.partition_point(|run| run.end() <= block);
    match runs.get(index) {
        Some(Run { start, kind: RunKind::Data(first), .. }) if *start <= block => first
            .checked_add(block - start)
            .and_then(|at| at.checked_mul(u64::from(block_size)))
            .and_then(|at| at.checked_add(base))
            .ok_or_else(|| Error::corrupt(format!("block {block} of the journal is nowhere"))),
        _ => Err(Error::corrupt(format!("block {block} of the journal is not there")).in_structure("journal")),
    }
}

fn check_inode(volume: &Volume, inode: Inode) -> Result<Inode> {
    if !inode.is_file() || inode.links == 0 || inode.size < volume.superblock.block_bytes() {
        return Err(inode.corrupt("not a journal"));
    }
    Ok(inode)
}

/// The journal's inode as the superblock has its block map and size once more.
fn inode_from_copy(superblock: &Superblock) -> Option<Inode> {
    const BLOCKS_KIND: u8 = 1;
    let record = Record::new(&superblock.raw, "ext superblock", superblock.offset);
    if record.u8(0xFD).ok()? != BLOCKS_KIND {
        return None;
    }
    let mut raw = vec![0; usize::from(superblock.inode_size)];
    raw.get_mut(BLOCK_MAP..BLOCK_MAP + BLOCK_MAP_LENGTH)?.copy_from_slice(record.slice(0x10C, BLOCK_MAP_LENGTH).ok()?);
    let is_tree = record.le_u16(0x10C).ok()? == super::extent::MAGIC;
    let mode_links_flags = [
        (0x0, &0x8180_u16.to_le_bytes()[..]),
        (0x1A, &[1, 0]),
        (0x20, &if is_tree { super::inode::flag::EXTENTS } else { 0 }.to_le_bytes()),
        (0x4, record.slice(0x10C + 64, 4).ok()?),
        (0x6C, record.slice(0x10C + 60, 4).ok()?),
    ];
    for (at, bytes) in mode_links_flags {
        raw.get_mut(at..at + bytes.len())?.copy_from_slice(bytes);
    }
    let raw = Inode::sealed(superblock, superblock.journal_inode, raw);
    Inode::parse(superblock, superblock.journal_inode, raw, superblock.offset).ok()
}
