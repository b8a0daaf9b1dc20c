//! Shortening a file's map, and building one anew.
//!
//! A map is shortened as the kernel does: from the end, leaving the shape of what stays. Fast commits change maps in
//! the middle; their extent trees are built anew from all runs.
//!
//! Source: the kernel's `fs/ext4/extents.c` (`ext4_ext_remove_space`), `fs/ext4/indirect.c` (`ext4_ind_truncate`).

use super::super::checksum::{crc32c, high32, low16, low32};
use super::super::extent::{ENTRY, MAGIC, MAX_BLOCKS, MAX_LENGTH, Node, read_node};
use super::super::inode::{BLOCK_MAP, BLOCK_MAP_LENGTH, Inode, flag};
use super::super::map::{Run, RunKind, leaf_at};
use super::space::Blocks;
use super::{Workbench, put16, put32};
use firn_disk::{Error, Record, Result};

/// Runs of a file whose map is built anew; a file in more pieces is refused.
const MAX_RUNS: usize = 1 << 17;
/// Entries in the inode.
const ROOT_ENTRIES: usize = 4;

/// A file's map in memory.
#[derive(Debug, Default, Clone)]
pub(super) struct FileMap {
    /// In order, not overlapping, without holes.
    pub runs: Vec<Run>,
    /// The blocks of the tree itself.
    pub nodes: Vec<u64>,
}

impl FileMap {
    /// Makes `run` what the file has there.
    pub fn set(&mut self, run: Run) {
        self.clear(run.start, run.end());
        let index = self.runs.partition_point(|other| other.start < run.start);
        self.runs.insert(index, run);
    }

    /// Makes `start..end` a hole.
    pub fn clear(&mut self, start: u64, end: u64) {
        let mut kept = Vec::with_capacity(self.runs.len() + 1);
        for run in self.runs.drain(..) {
            kept.extend(cut(run, run.start, start.min(run.end())));
            kept.extend(cut(run, end.max(run.start), run.end()));
        }
        self.runs = kept;
    }

    /// Everything that it takes on the disk.
    pub fn blocks(&self, blocks: &mut Blocks) -> Result<()> {
        for run in &self.runs {
            if let RunKind::Data(block) | RunKind::Unwritten(block) = run.kind {
                blocks.add(block, run.length)?;
            }
        }
        self.nodes.iter().try_for_each(|node| blocks.add(*node, 1))
    }

    /// Neighbours that continue each other are joined, as far as one extent reaches.
    fn joined(&self) -> Vec<Run> {
        let mut joined: Vec<Run> = Vec::with_capacity(self.runs.len());
        for run in &self.runs {
            match joined.last_mut() {
                Some(last) if continues(last, run) => last.length += run.length,
                _ => joined.push(*run),
            }
        }
        joined
    }
}

/// Where a map is cut off.
#[derive(Debug, Clone, Copy)]
struct Cut {
    /// Blocks that stay.
    keep: u64,
    /// The first block whose space is given back.
    free: u64,
}

/// The part of `run` within `start..end`, if there is any.
fn cut(run: Run, start: u64, end: u64) -> Option<Run> {
    if start >= end {
        return None;
    }
    let skip = start - run.start;
    let kind = match run.kind {
        RunKind::Data(block) => RunKind::Data(block + skip),
        RunKind::Unwritten(block) => RunKind::Unwritten(block + skip),
        RunKind::Hole => RunKind::Hole,
    };
    Some(Run { start, length: end - start, kind })
}

fn continues(last: &Run, run: &Run) -> bool {
    let most = u64::from(MAX_LENGTH);
    let fits = last.end() == run.start;
    match (last.kind, run.kind) {
        (RunKind::Data(a), RunKind::Data(b)) => fits && a + last.length == b && last.length + run.length <= most,
        (RunKind::Unwritten(a), RunKind::Unwritten(b)) => {
            fits && a + last.length == b && last.length + run.length < most
        }
        _ => false,
    }
}

impl Workbench {
    /// Reads the whole extent tree of an inode.
    pub(super) fn load_map(&self, inode: &Inode) -> Result<FileMap> {
        let mut map = FileMap::default();
        let root = inode.block_map()?;
        let node = Node::new(Record::new(&root, "extent tree", inode.offset), None)?;
        // Nodes that are still to be read, the next one last.
        let mut waiting = Vec::new();
        collect(&node, &mut map.runs, &mut waiting)?;
        while let Some((block, depth)) = waiting.pop() {
            map.nodes.push(block);
            let bytes = read_node(&self.volume, inode, block)?;
            collect(&Node::new(Record::new(&bytes, "extent block", 0), Some(depth))?, &mut map.runs, &mut waiting)?;
            if map.runs.len() + map.nodes.len() > MAX_RUNS {
                return Err(Error::unsupported(format!("a file of more than {MAX_RUNS} pieces in a fast commit")));
            }
        }
        let sound = map.runs.is_sorted_by(|a, b| a.end() <= b.start)
            && map.runs.last().is_none_or(|run| run.end() <= MAX_BLOCKS);
        if sound { Ok(map) } else { Err(inode.corrupt("the extents are not in order")) }
    }

    /// Builds the tree of `map` with its nodes, and others from `take`; gives what to put into the inode.
    pub(super) fn store_map(
        &self,
        inode: &Inode,
        map: &mut FileMap,
        mut take: impl FnMut() -> Result<u64>,
    ) -> Result<[u8; BLOCK_MAP_LENGTH]> {
        let mut spare = std::mem::take(&mut map.nodes);
        let mut entries: Vec<[u8; ENTRY]> = map.joined().iter().map(leaf_entry).collect();
        let room = (self.volume.superblock.block_len() - ENTRY) / ENTRY;
        let mut depth = 0;
        while entries.len() > ROOT_ENTRIES {
            let mut above = Vec::with_capacity(entries.len().div_ceil(room));
            for piece in entries.chunks(room) {
                let block = match spare.pop() {
                    Some(block) => block,
                    None => take()?,
                };
                let bytes = node_bytes(inode, piece, room, depth, self.volume.superblock.block_len());
                self.put_block(block, bytes)?;
                map.nodes.push(block);
                above.push(index_entry(piece, block));
            }
            entries = above;
            depth += 1;
        }
        let root = node_bytes(inode, &entries, ROOT_ENTRIES, depth, BLOCK_MAP_LENGTH);
        Record::new(&root, "extent tree", 0).array(0)
    }

    /// Shortens the map in `raw` to `keep` blocks and notes what that frees.
    pub(super) fn shorten(&self, inode: &Inode, raw: &mut [u8], keep: u64, freed: &mut Blocks) -> Result<()> {
        let mut root = inode.block_map()?.to_vec();
        if inode.has(flag::EXTENTS) {
            let depth = Node::new(Record::new(&root, "extent tree", inode.offset), None)?.depth;
            let to = Cut { keep, free: self.first_free(inode, keep)? };
            let empty = self.shorten_node(inode, &mut root, depth, to, freed)?;
            if empty {
                put16(&mut root, 6, 0);
            }
        } else {
            self.shorten_indirect(&mut root, keep, freed)?;
        }
        raw.get_mut(BLOCK_MAP..BLOCK_MAP + BLOCK_MAP_LENGTH).unwrap_or_default().copy_from_slice(&root);
        Ok(())
    }

    /// Shortens one node in memory, and its children on the disk; says whether nothing is left of it.
    ///
    /// Goes down at most as many levels as the root says, which is bounded.
    fn shorten_node(&self, inode: &Inode, bytes: &mut [u8], depth: u16, to: Cut, freed: &mut Blocks) -> Result<bool> {
        let keep = to.keep;
        let node = Node::new(Record::new(bytes, "extent tree", 0), Some(depth))?;
        let mut left = node.entries;
        let mut shorter = None;
        for index in (0..node.entries).rev() {
            if depth == 0 {
                let run = node.run(index)?;
                self.free_run(&run, to.free, freed)?;
                if run.start >= keep {
                    left = index;
                    continue;
                }
                if run.end() > keep {
                    shorter = Some((index, leaf_entry(&Run { length: keep - run.start, ..run })));
                }
                break;
            }
            let (first, child) = node.child(index)?;
            let mut below = read_node(&self.volume, inode, child)?;
            if self.shorten_node(inode, &mut below, depth - 1, to, freed)? {
                freed.add(child, 1)?;
                left = index;
            } else {
                seal_node(inode, &mut below);
                self.put_block(child, below)?;
            }
            if first < keep {
                break;
            }
        }
        put16(bytes, 2, u16::try_from(left).unwrap_or(0));
        if let Some((index, entry)) = shorter {
            let at = (index + 1) * ENTRY;
            bytes.get_mut(at..at + ENTRY).unwrap_or_default().copy_from_slice(&entry);
        }
        Ok(left == 0)
    }

    /// The first block that is given back when `keep` are kept: a cluster of which something is kept stays whole.
    fn first_free(&self, inode: &Inode, keep: u64) -> Result<u64> {
        let size = u64::from(self.volume.superblock.cluster_blocks);
        let start = keep - keep % size;
        let mut block = start;
        while block < keep {
            let run = leaf_at(&self.volume, inode, block)?.run_at(block);
            if run.kind != RunKind::Hole {
                return Ok(start + size);
            }
            block = run.end();
        }
        Ok(keep)
    }

    /// Notes what of a run is from block `free` on.
    fn free_run(&self, run: &Run, free: u64, freed: &mut Blocks) -> Result<()> {
        match cut(*run, free.max(run.start), run.end()).map(|run| (run.kind, run.length)) {
            Some((RunKind::Data(block) | RunKind::Unwritten(block), length)) => {
                self.volume.block_offset(block, length, "ext extent")?;
                freed.add(block, length)
            }
            _ => Ok(()),
        }
    }

    fn shorten_indirect(&self, root: &mut [u8], keep: u64, freed: &mut Blocks) -> Result<()> {
        let per_block = self.volume.superblock.block_bytes() / 4;
        let mut first = 0;
        for index in 0..15_usize {
            let level = u32::try_from(index.saturating_sub(11)).unwrap_or(0);
            let span = per_block.pow(level);
            self.shorten_pointer(root, index, level, first, keep, freed)?;
            first += span;
        }
        Ok(())
    }

    /// Shortens what one block number in `bytes` leads to. Goes down at most three levels.
    fn shorten_pointer(
        &self,
        bytes: &mut [u8],
        index: usize,
        level: u32,
        first: u64,
        keep: u64,
        freed: &mut Blocks,
    ) -> Result<()> {
        let per_block = self.volume.superblock.block_bytes() / 4;
        let span = per_block.pow(level);
        let pointer = u64::from(Record::new(bytes, "block map", 0).le_u32(index * 4)?);
        if pointer == 0 || first + span <= keep {
            return Ok(());
        }
        self.volume.block_offset(pointer, 1, "ext block map")?;
        if level > 0 {
            let mut below = self.volume.read_block(pointer, "indirect block")?;
            let step = span / per_block;
            for (child, start) in (0..below.len() / 4).zip((first..).step_by(usize::try_from(step).unwrap_or(1))) {
                self.shorten_pointer(&mut below, child, level - 1, start, keep, freed)?;
            }
            if first < keep && below.iter().any(|byte| *byte != 0) {
                return self.put_block(pointer, below);
            }
        }
        freed.add(pointer, 1)?;
        put32(bytes, index * 4, 0);
        Ok(())
    }
}

/// The runs of a leaf, or the children of an index with their depth, the first one last.
fn collect(node: &Node<'_>, runs: &mut Vec<Run>, waiting: &mut Vec<(u64, u16)>) -> Result<()> {
    match node.depth.checked_sub(1) {
        None => (0..node.entries).try_for_each(|index| {
            runs.push(node.run(index)?);
            Ok(())
        }),
        Some(depth) => (0..node.entries).rev().try_for_each(|index| {
            waiting.push((node.child(index)?.1, depth));
            Ok(())
        }),
    }
}

fn leaf_entry(run: &Run) -> [u8; ENTRY] {
    let (block, length) = match run.kind {
        RunKind::Data(block) => (block, run.length),
        RunKind::Unwritten(block) => (block, run.length + u64::from(MAX_LENGTH)),
        RunKind::Hole => (0, 0),
    };
    let mut entry = [0; ENTRY];
    put32(&mut entry, 0, low32(run.start));
    put16(&mut entry, 4, low16(low32(length)));
    put16(&mut entry, 6, low16(high32(block)));
    put32(&mut entry, 8, low32(block));
    entry
}

fn index_entry(piece: &[[u8; ENTRY]], block: u64) -> [u8; ENTRY] {
    let mut entry = [0; ENTRY];
    let first = piece.first().copied().unwrap_or_default();
    for (to, from) in entry.iter_mut().zip(first).take(4) {
        *to = from;
    }
    put32(&mut entry, 4, low32(block));
    put16(&mut entry, 8, low16(high32(block)));
    entry
}

fn node_bytes(inode: &Inode, entries: &[[u8; ENTRY]], room: usize, depth: u16, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; ENTRY];
    put16(&mut bytes, 0, MAGIC);
    put16(&mut bytes, 2, u16::try_from(entries.len()).unwrap_or(0));
    put16(&mut bytes, 4, u16::try_from(room).unwrap_or(0));
    put16(&mut bytes, 6, depth);
    bytes.extend(entries.concat());
    bytes.resize(length, 0);
    seal_node(inode, &mut bytes);
    bytes
}

/// Sets the checksum behind the entries of a node, where there is room for one; it does no harm without checksums.
fn seal_node(inode: &Inode, bytes: &mut [u8]) {
    let room = Record::new(bytes, "extent block", 0).le_u16(4).unwrap_or(0);
    let tail = (usize::from(room) + 1) * ENTRY;
    if let Some((body, rest)) = bytes.split_at_mut_checked(tail) {
        let sum = crc32c(inode.seed, body);
        put32(rest, 0, sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(start: u64, length: u64, block: u64) -> Run {
        Run { start, length, kind: RunKind::Data(block) }
    }

    #[test]
    fn runs_are_set_cleared_and_joined() {
        let mut map = FileMap::default();
        map.set(data(0, 10, 100));
        map.set(data(20, 5, 120));
        map.clear(3, 5);
        assert_eq!(map.runs, [data(0, 3, 100), data(5, 5, 105), data(20, 5, 120)]);
        map.set(Run { start: 2, length: 19, kind: RunKind::Unwritten(500) });
        let unwritten = Run { start: 2, length: 19, kind: RunKind::Unwritten(500) };
        assert_eq!(map.runs, [data(0, 2, 100), unwritten, data(21, 4, 121)]);
        map.clear(0, 1 << 32);
        assert!(map.runs.is_empty());
        for start in 0..5 {
            map.set(data(start * 16384, 16384, start * 16384 + 7));
        }
        assert_eq!(map.joined(), [data(0, 32768, 7), data(32768, 32768, 32775), data(65536, 16384, 65543)]);
    }
}
