//! Putting the log's blocks in their places.

use super::log::{Event, Tag};
use super::superblock::MAGIC;
use super::{Journal, Replayed};
use firn_disk::{Disk, Error, Overlay, Result, SharedDisk, Window};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Blocks that one replay may change; a log of more is refused, as it would not fit in memory.
const MAX_BLOCKS: usize = 4 << 20;

/// The newest copy of a block in the log.
struct Copy {
    log_block: u32,
    sequence: u32,
    tag: Tag,
}

impl Journal {
    /// Replays all whole transactions and finds the fast commits behind them. `length` is the file system's disk's.
    pub fn replay(&self, length: u64) -> Result<Replayed> {
        let start = self.superblock.sequence;
        let (end, copies) = if self.is_clean() {
            (start, BTreeMap::new())
        } else {
            let end = self.scan()?;
            (end, self.copies(end)?)
        };
        self.check(&copies)?;
        let fast = if self.is_clean() { super::FastCommits::default() } else { self.fast_commits(end)? };
        let overlay = self.overlay(&copies, length)?;
        let disk: SharedDisk =
            if self.base > 0 { Arc::new(Window::new(overlay, 0, length)?) } else { Arc::new(overlay) };
        let emptied = (self.base == 0)
            .then(|| Ok::<_, Error>((self.offset(0)?, self.superblock.emptied(end.wrapping_add(1)))))
            .transpose()?;
        Ok(Replayed { disk, transactions: end.wrapping_sub(start), fast, emptied })
    }

    /// The newest copy of every block, without those that were revoked later.
    ///
    /// A revocation concerns all copies up to its transaction, so looking at the newest one is enough.
    fn copies(&self, end: u32) -> Result<BTreeMap<u64, Copy>> {
        let mut copies: BTreeMap<u64, Copy> = BTreeMap::new();
        self.visit(end, &mut |event| {
            if let Event::Data { tag, log_block, sequence } = event {
                copies.insert(tag.block, Copy { log_block, sequence, tag });
                if copies.len() > MAX_BLOCKS {
                    return Err(Error::unsupported(format!("a journal of more than {MAX_BLOCKS} blocks to replay")));
                }
            }
            Ok(())
        })?;
        self.visit(end, &mut |event| {
            if let Event::Revoke { block, sequence } = event
                && copies.get(&block).is_some_and(|copy| !is_later(copy.sequence, sequence))
            {
                copies.remove(&block);
            }
            Ok(())
        })?;
        Ok(copies)
    }

    /// Checks every copy that will be used, in the order of the log.
    fn check(&self, copies: &BTreeMap<u64, Copy>) -> Result<()> {
        if !self.superblock.has_block_checksums() {
            return Ok(());
        }
        let mut order: Vec<&Copy> = copies.values().collect();
        order.sort_unstable_by_key(|copy| copy.log_block);
        for copy in order {
            let bytes = self.read(copy.log_block)?;
            if !self.data_is_right(&bytes, copy.sequence, copy.tag.checksum) {
                return Err(Error::corrupt(format!(
                    "the copy of block {} in transaction {} has a bad checksum",
                    copy.tag.block, copy.sequence
                ))
                .in_structure("journal")
                .at_offset(self.offset(copy.log_block).unwrap_or(0)));
            }
        }
        Ok(())
    }

    fn overlay(&self, copies: &BTreeMap<u64, Copy>, length: u64) -> Result<Overlay<SharedDisk>> {
        let size = u64::from(self.superblock.block_size);
        let mut overlay = Overlay::new(self.disk.clone());
        // A run of blocks whose copies stand next to each other too: where to, how long, where from.
        let mut run: Option<(u64, u64, u64)> = None;
        for (block, copy) in copies {
            let from = self.offset(copy.log_block)?;
            let to = block.checked_mul(size).filter(|to| to.checked_add(size).is_some_and(|end| end <= length));
            let Some(to) = to else {
                return Err(Error::corrupt(format!("the log has block {block}, which is not on the disk"))
                    .in_structure("journal")
                    .at_offset(from));
            };
            run = match run {
                Some((start, count, first)) if start + count == to && first + count == from => {
                    Some((start, count + size, first))
                }
                other => {
                    redirect(&mut overlay, other)?;
                    Some((to, size, from))
                }
            };
        }
        redirect(&mut overlay, run)?;
        for (block, _) in copies.iter().filter(|(_, copy)| copy.tag.escaped) {
            overlay.replace(block * size, MAGIC.to_be_bytes().as_slice().into())?;
        }
        Ok(overlay)
    }
}

fn redirect(overlay: &mut Overlay<impl Disk>, run: Option<(u64, u64, u64)>) -> Result<()> {
    match run {
        Some((to, count, from)) => overlay.redirect(to, count, from),
        None => Ok(()),
    }
}

/// Whether sequence `a` is after `b`; sequences wrap around.
fn is_later(a: u32, b: u32) -> bool {
    a.wrapping_sub(b).cast_signed() > 0
}
