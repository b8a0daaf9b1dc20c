//! Replaying: what is committed in the log goes over the disk, in memory.
//!
//! The log is read twice, as the kernel does: first for the buffers that were freed, which are not replayed before that
//! (the space may be in other use already), then for what is replayed.

use super::super::superblock::Superblock;
use super::super::volume::Volume;
use super::buffer::{Buffer, Key, sequence_number};
use super::finished::Finished;
use super::head::Span;
use super::inode_item::{InodeItem, NewInodes};
use super::intent::Intents;
use super::transaction::{self, Item, Transaction};
use super::{Log, STRUCTURE, UNIT};
use firn_disk::{Disk, Error, Overlay, Record, Result, SharedDisk};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// What is kept in memory of a log, in bytes.
const MAX_BYTES: u64 = 1 << 30;
/// What a patch takes beside its bytes, about.
const PATCH_BYTES: u64 = 128;

const BUFFER: u16 = 0x123C;
const INODE: u16 = 0x123B;
const NEW_INODES: u16 = 0x123F;
/// Quotas, and their being switched off.
const QUOTAS: [u16; 2] = [0x123D, 0x123E];
/// Freed extents, reverse maps and reference counts, begun and done; and those of a realtime device.
const NOT_READ: [u16; 12] =
    [0x1236, 0x1237, 0x1240, 0x1241, 0x1242, 0x1243, 0x124A, 0x124B, 0x124C, 0x124D, 0x124E, 0x124F];

/// A file system with its log replayed.
pub(in super::super) struct Replayed {
    pub volume: Volume,
    transactions: u64,
    finished: u64,
}

impl Replayed {
    /// What was done, in words.
    pub fn note(&self) -> String {
        let plural = |count: u64, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
        let mut note = format!("replayed {}", plural(self.transactions, "transaction"));
        if self.finished > 0 {
            note += &format!(", finished {}", plural(self.finished, "change"));
        }
        note
    }
}

impl Log {
    /// Replays `span` over `disk`.
    pub fn replay(&self, disk: &SharedDisk, superblock: &Superblock, span: Span) -> Result<Replayed> {
        let mut replay = Replay {
            superblock,
            overlay: Overlay::new(disk.clone()),
            patched: BTreeSet::new(),
            cancelled: HashMap::new(),
            sequence: HashMap::new(),
            intents: Intents::default(),
            bytes: 0,
            transactions: 0,
        };
        transaction::visit(self, span, &mut |transaction| replay.note_cancelled(&transaction))?;
        transaction::visit(self, span, &mut |transaction| replay.transaction(transaction))?;
        replay.finish()
    }
}

struct Replay<'a> {
    superblock: &'a Superblock,
    overlay: Overlay<SharedDisk>,
    patched: BTreeSet<u64>,
    /// How often each buffer is freed in what is still to come.
    cancelled: HashMap<Key, u64>,
    /// The sequence number of each patched buffer: before the transactions of the second number, and that.
    sequence: HashMap<u64, (Option<u64>, u64)>,
    intents: Intents,
    bytes: u64,
    transactions: u64,
}

impl Replay<'_> {
    fn note_cancelled(&mut self, transaction: &Transaction) -> Result<()> {
        for item in &transaction.items {
            if item.kind()? == BUFFER {
                let buffer = Buffer::parse(item)?;
                if buffer.is_cancel() {
                    *self.cancelled.entry(buffer.key).or_default() += 1;
                }
            }
        }
        Ok(())
    }

    fn transaction(&mut self, transaction: Transaction) -> Result<()> {
        self.transactions += 1;
        // Buffers first, as inodes stand in them; freed ones last, as inodes ask whether their buffer was freed.
        let mut others = Vec::new();
        let mut cancels = Vec::new();
        for item in &transaction.items {
            match item.kind()? {
                BUFFER => {
                    let buffer = Buffer::parse(item)?;
                    if buffer.is_cancel() {
                        cancels.push(buffer.key);
                    } else {
                        self.buffer(&buffer, transaction.lsn)?;
                    }
                }
                NEW_INODES => self.new_inodes(item)?,
                _ => others.push(item),
            }
        }
        for item in others {
            self.other(item, transaction.lsn)?;
        }
        for key in cancels {
            match self.cancelled.get_mut(&key) {
                Some(count) if *count > 1 => *count -= 1,
                _ => drop(self.cancelled.remove(&key)),
            }
        }
        Ok(())
    }

    fn other(&mut self, item: &Item, lsn: u64) -> Result<()> {
        let kind = item.kind()?;
        if kind == INODE {
            return self.inode(&InodeItem::parse(item)?, lsn);
        }
        if QUOTAS.contains(&kind) || NOT_READ.contains(&kind) || self.intents.add(kind, item)? {
            return Ok(());
        }
        Err(Error::unsupported(format!("the log has items of the unknown type {kind:#x}")).in_structure(STRUCTURE))
    }

    fn buffer(&mut self, buffer: &Buffer<'_>, lsn: u64) -> Result<()> {
        if self.cancelled.contains_key(&buffer.key) || buffer.is_unlinked_list() || buffer.is_quota() {
            return Ok(());
        }
        let offset = buffer.offset()?;
        let mut head = [0; 512];
        Record::read(&self.overlay, &mut head, offset, STRUCTURE)?;
        // The kernel writes buffers out, and puts the sequence number into them, when it comes to another number.
        let before = match self.sequence.get(&offset) {
            Some((before, patched)) if *patched == lsn => *before,
            Some((_, patched)) => Some(*patched),
            None => sequence_number(self.superblock, &head),
        };
        if before.is_some_and(|before| before >= lsn) {
            return Ok(());
        }
        let mut pieces = Vec::new();
        buffer.visit_pieces(|at, bytes| {
            pieces.push((offset + at, Arc::from(bytes)));
            Ok(())
        })?;
        for (at, bytes) in pieces {
            self.patch(at, bytes)?;
        }
        for unit in offset / UNIT..(offset + buffer.length()) / UNIT {
            self.patched.insert(unit);
        }
        self.sequence.insert(offset, (before, lsn));
        Ok(())
    }

    fn inode(&mut self, item: &InodeItem<'_>, lsn: u64) -> Result<()> {
        if self.cancelled.contains_key(&item.buffer) {
            return Ok(());
        }
        let offset = item.offset(self.superblock)?;
        let mut raw = vec![0; usize::from(self.superblock.inode_size)];
        Record::read(&self.overlay, &mut raw, offset, STRUCTURE)?;
        if item.is_newer(self.superblock, &raw, lsn)? {
            return Ok(());
        }
        item.apply(self.superblock, &mut raw, lsn)?;
        self.patch(offset, raw.into())
    }

    fn new_inodes(&mut self, item: &Item) -> Result<()> {
        let new = NewInodes::parse(self.superblock, item)?;
        let units = new.blocks * self.superblock.block_bytes() / UNIT;
        let start = new.offset / UNIT;
        // Their buffers are of a size that is not known here; freed ones within the chunk say that it went again.
        let is_cancelled = |(at, length): &Key| *at >= start && at + u64::from(*length) <= start + units;
        if self.cancelled.keys().any(is_cancelled) {
            return Ok(());
        }
        self.patch(new.offset, new.bytes(self.superblock)?.into())
    }

    fn patch(&mut self, offset: u64, bytes: Arc<[u8]>) -> Result<()> {
        self.bytes += bytes.len() as u64 + PATCH_BYTES;
        if self.bytes > MAX_BYTES {
            return Err(Error::unsupported(format!("replaying the log takes more than {MAX_BYTES} bytes of memory"))
                .in_structure(STRUCTURE));
        }
        if firn_disk::check_range(offset, bytes.len() as u64, self.overlay.len()).is_err() {
            return Err(Error::corrupt("what is logged is behind the end of the disk")
                .in_structure(STRUCTURE)
                .at_offset(offset));
        }
        self.overlay.replace(offset, bytes)
    }

    /// Reads the superblock anew, and finishes what was begun.
    fn finish(self) -> Result<Replayed> {
        let is_patched = self.patched.contains(&0);
        let disk: SharedDisk = Arc::new(self.overlay);
        let superblock = Superblock::read(&*disk, is_patched)?;
        let finished = Finished { patched: self.patched, ..Finished::default() };
        let mut volume = Volume::new(disk, superblock, finished);
        let finished = self.intents.finish(&mut volume)?;
        Ok(Replayed { volume, transactions: self.transactions, finished })
    }
}
