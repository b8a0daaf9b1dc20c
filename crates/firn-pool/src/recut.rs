//! Cutting a region again in which only some blocks changed, so that the source is read for those blocks only.
//!
//! The result is the same as if the whole region had been cut afresh: cutting starts at a boundary of the old runs
//! before the change and goes on until it meets one of them again. Unchanged content that is passed on the way is
//! read from the pool.

use crate::chunker::{BLOCK_BYTES, Block, Chunker};
use crate::disk::PlacedRun;
use crate::tree::{Run, RunKind};
use firn_disk::Result;
use std::ops::Range;

/// What a region is made of after a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Piece {
    /// A run of the old leaf, as it was.
    Kept(Run),
    /// A run that was cut anew; its bytes, when it is data, are in the region's buffer.
    New { kind: Block, blocks: Range<usize> },
}

/// A region that is cut again.
pub(crate) struct Recut<'a> {
    /// The old runs, which tile the region.
    pub(crate) old: &'a [PlacedRun],
    /// For each block its new kind where it changed, `None` where it did not.
    pub(crate) changed: &'a [Option<Block>],
    /// The region's bytes; those of changed data blocks are there, others come by `read_old`.
    pub(crate) bytes: &'a mut [u8],
}

impl Recut<'_> {
    /// Cuts. `read_old` fills in the content of an old run, which is then in `bytes` whole, except that blocks
    /// which changed keep their new content.
    ///
    /// # Errors
    /// What `read_old` says.
    pub(crate) fn run(
        mut self,
        chunker: &Chunker,
        mut read_old: impl FnMut(&PlacedRun, &mut [u8]) -> Result<()>,
    ) -> Result<Vec<Piece>> {
        let mut pieces: Vec<Piece> = Vec::new();
        let mut number = 0;
        while let Some(placed) = self.old.get(number) {
            let blocks = placed.blocks();
            if self.changed[blocks.clone()].iter().all(Option::is_none) {
                pieces.push(Piece::Kept(placed.run));
                number += 1;
                continue;
            }
            // A run may have ended only because of what followed it, and that is what changed. Step back over it.
            let mut start = blocks.start;
            if self.changed[start].is_some() && pieces.pop().is_some() {
                number -= 1;
                start = self.old[number].start;
                // What was cut anew may reach further back than one old run.
                while let Some(Piece::New { blocks, .. }) = pieces.last()
                    && blocks.end > start
                {
                    start = blocks.start;
                    pieces.pop();
                }
            }
            number = self.feed(chunker, start, number, &mut pieces, &mut read_old)?;
        }
        Ok(pieces)
    }

    /// Cuts from block `start`, which lies in old run `number`, until a cut falls on the start of an old run that
    /// did not change. Answers the number of that run.
    fn feed(
        &mut self,
        chunker: &Chunker,
        start: usize,
        first: usize,
        pieces: &mut Vec<Piece>,
        read_old: &mut impl FnMut(&PlacedRun, &mut [u8]) -> Result<()>,
    ) -> Result<usize> {
        let mut number = first;
        let mut piece_start = start;
        let mut loaded = first;
        for block in start..self.changed.len() {
            while self.old[number].blocks().end <= block {
                number += 1;
            }
            let kind = self.kind(block, number);
            if kind == Block::Data && self.changed[block].is_none() && loaded <= number {
                self.load(number, read_old)?;
                loaded = number + 1;
            }
            let next_number = if self.old[number].blocks().end == block + 1 { number + 1 } else { number };
            let next = (block + 1 < self.changed.len()).then(|| self.kind(block + 1, next_number));
            let bytes = &self.bytes[block * BLOCK_BYTES..(block + 1) * BLOCK_BYTES];
            let ends = next != Some(kind) || kind == Block::Data && chunker.ends_after(bytes, block + 1 - piece_start);
            if ends {
                pieces.push(Piece::New { kind, blocks: piece_start..block + 1 });
                piece_start = block + 1;
                let met = next_number > number
                    && self.old.get(next_number).is_none_or(|old| self.changed[old.start].is_none());
                if met {
                    return Ok(next_number);
                }
            }
        }
        Ok(self.old.len())
    }

    fn kind(&self, block: usize, number: usize) -> Block {
        self.changed[block].unwrap_or(match self.old[number].run.kind {
            RunKind::Hole => Block::Hole,
            RunKind::Zero => Block::Zero,
            RunKind::Chunk(_) => Block::Data,
        })
    }

    /// Brings the content of an old chunk into the buffer, around the blocks that changed.
    fn load(&mut self, number: usize, read_old: &mut impl FnMut(&PlacedRun, &mut [u8]) -> Result<()>) -> Result<()> {
        let placed = &self.old[number];
        let mut content = vec![0; usize::from(placed.run.blocks) * BLOCK_BYTES];
        read_old(placed, &mut content)?;
        for (old, block) in content.chunks_exact(BLOCK_BYTES).zip(placed.blocks()) {
            if self.changed[block].is_none() {
                self.bytes[block * BLOCK_BYTES..(block + 1) * BLOCK_BYTES].copy_from_slice(old);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunker::{CutParameters, is_zero};
    use crate::seal::BlobId;
    use firn_disk::testing::{Random, pattern};
    use proptest::prelude::*;
    use std::collections::HashMap;
    use zeroize::Zeroizing;

    type Contents = HashMap<BlobId, Vec<u8>>;

    fn kinds(bytes: &[u8]) -> Vec<Block> {
        bytes.chunks(BLOCK_BYTES).map(|block| if is_zero(block) { Block::Zero } else { Block::Data }).collect()
    }

    fn place(chunker: &Chunker, bytes: &[u8], contents: &mut Contents) -> Vec<PlacedRun> {
        let cut = |cut: crate::chunker::Cut| {
            let content = &bytes[cut.blocks.start * BLOCK_BYTES..cut.blocks.end * BLOCK_BYTES];
            let id = BlobId(*blake3::hash(content).as_bytes());
            contents.insert(id, content.to_vec());
            let kind = if cut.kind == Block::Data { RunKind::Chunk(id) } else { RunKind::Zero };
            PlacedRun { start: cut.blocks.start, run: Run { kind, blocks: u16::try_from(cut.blocks.len()).unwrap() } }
        };
        chunker.cut(&kinds(bytes), bytes).into_iter().map(cut).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn equals_cutting_the_whole_region_afresh(seed in any::<u64>(), changes in 1_usize..12, mask_bits in 1_u8..5) {
            let parameters = CutParameters { mask_bits, least_blocks: 1, most_blocks: 32 };
            let chunker = Chunker::new(Zeroizing::new([1; 32]), parameters);
            let mut random = Random::new(seed);
            let blocks = 300;
            let mut old_bytes = pattern(blocks * BLOCK_BYTES, seed);
            let zero_some = |bytes: &mut [u8], random: &mut Random| {
                let start = usize::try_from(random.below(blocks as u64)).unwrap();
                let end = (start + usize::try_from(random.below(40)).unwrap() + 1).min(blocks);
                bytes[start * BLOCK_BYTES..end * BLOCK_BYTES].fill(0);
                start..end
            };
            for _ in 0..6 {
                zero_some(&mut old_bytes, &mut random);
            }
            let mut new_bytes = old_bytes.clone();
            let mut dirty = vec![false; blocks];
            for _ in 0..changes {
                let range = zero_some(&mut new_bytes, &mut random);
                if random.below(3) > 0 {
                    random.fill(&mut new_bytes[range.start * BLOCK_BYTES..range.end * BLOCK_BYTES]);
                }
                dirty[range].fill(true);
            }
            let mut contents = Contents::new();
            let old = place(&chunker, &old_bytes, &mut contents);
            let expected = place(&chunker, &new_bytes, &mut Contents::new());
            let new_kinds = kinds(&new_bytes);
            let changed: Vec<_> = dirty.iter().zip(&new_kinds).map(|(dirty, kind)| dirty.then_some(*kind)).collect();
            // Only what is dirty is there; a read of anything else would show.
            let mut buffer = vec![0xEE; blocks * BLOCK_BYTES];
            for block in (0..blocks).filter(|block| dirty[*block]) {
                buffer[block * BLOCK_BYTES..(block + 1) * BLOCK_BYTES].copy_from_slice(&new_bytes[block * BLOCK_BYTES..(block + 1) * BLOCK_BYTES]);
            }
            let recut = Recut { old: &old, changed: &changed, bytes: &mut buffer };
            let mut loads = 0;
            let pieces = recut.run(&chunker, |placed, content| {
                let RunKind::Chunk(id) = placed.run.kind else { panic!("only chunks have content") };
                loads += 1;
                content.copy_from_slice(&contents[&id]);
                Ok(())
            }).unwrap();
            let mut at = 0;
            let runs: Vec<Run> = pieces.iter().map(|piece| match piece {
                Piece::Kept(run) => {
                    at += usize::from(run.blocks);
                    *run
                }
                Piece::New { kind, blocks } => {
                    assert_eq!(blocks.start, at);
                    at = blocks.end;
                    let content = &buffer[blocks.start * BLOCK_BYTES..blocks.end * BLOCK_BYTES];
                    let kind = match kind {
                        Block::Data => RunKind::Chunk(BlobId(*blake3::hash(content).as_bytes())),
                        _ => RunKind::Zero,
                    };
                    Run { kind, blocks: u16::try_from(blocks.len()).unwrap() }
                }
            }).collect();
            let expected: Vec<Run> = expected.into_iter().map(|placed| placed.run).collect();
            prop_assert_eq!(runs, expected, "seed {}", seed);
            prop_assert!(loads <= changes * 8, "{} chunks were read from the pool for {} changes", loads, changes);
        }
    }
}
