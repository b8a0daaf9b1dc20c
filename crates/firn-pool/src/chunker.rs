//! Where a disk is cut into chunks: by content, at 4 KiB blocks, within regions of 16 MiB.
//!
//! File systems place the same files at other offsets on every machine, but always on block boundaries. So a cut
//! follows a block whose keyed hash has its low bits zero; it also stands where a hole or a run of zeros begins
//! or ends, at the longest chunk, and at the end of each region. Cutting begins afresh at every region and after
//! every such run, so that the state never reaches past them. The key keeps the lengths from telling a stranger
//! which files a disk holds. Measured and chosen in `docs/design/0001-where-to-cut.md`.

use crate::fields::{FieldWriter, Fields};
use firn_disk::{Error, Result};
use std::ops::Range;

/// Bytes in a block, the unit of everything in a tree.
pub(crate) const BLOCK_BYTES: usize = 4096;
/// Blocks in a region, what one leaf of a tree describes.
pub(crate) const REGION_BLOCKS: usize = 4096;
/// Bytes in a region: 16 MiB.
pub(crate) const REGION_BYTES: u64 = (BLOCK_BYTES * REGION_BLOCKS) as u64;
/// The longest chunk that any parameters may give, in blocks.
pub(crate) const MOST_CHUNK_BLOCKS: u16 = 32;

/// How chunks are cut. Frozen when a pool is made, and kept in its header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CutParameters {
    /// A cut follows a block whose hash has this many low bits zero: 2^n blocks on average.
    pub mask_bits: u8,
    /// The shortest chunk that a cut by content makes, in blocks.
    pub least_blocks: u16,
    /// The longest chunk, in blocks.
    pub most_blocks: u16,
}

impl Default for CutParameters {
    fn default() -> Self {
        Self { mask_bits: 4, least_blocks: 1, most_blocks: 32 }
    }
}

impl CutParameters {
    const MASK_BITS: u16 = 1;
    const LEAST: u16 = 2;
    const MOST: u16 = 3;

    /// # Errors
    /// `Unsupported` for parameters that this program cannot cut by.
    pub(crate) fn check(self) -> Result<Self> {
        let sound = self.mask_bits <= 16
            && (1..=self.most_blocks).contains(&self.least_blocks)
            && self.most_blocks <= MOST_CHUNK_BLOCKS;
        if sound { Ok(self) } else { Err(Error::unsupported(format!("chunks cannot be cut by {self:?}"))) }
    }

    pub(crate) fn to_bytes(self) -> Vec<u8> {
        let mut fields = FieldWriter::default();
        fields
            .u64(Self::MASK_BITS, u64::from(self.mask_bits))
            .u64(Self::LEAST, u64::from(self.least_blocks))
            .u64(Self::MOST, u64::from(self.most_blocks));
        fields.finish()
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let fields = Fields::parse(bytes, "cut parameters", &[])?;
        let small = |tag: u16| u16::try_from(fields.u64(tag)?).map_err(|_| Error::corrupt("a cut parameter is absurd"));
        let mask_bits =
            u8::try_from(small(Self::MASK_BITS)?).map_err(|_| Error::corrupt("a cut parameter is absurd"))?;
        Self { mask_bits, least_blocks: small(Self::LEAST)?, most_blocks: small(Self::MOST)? }.check()
    }
}

/// What a block of a region is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Block {
    Hole,
    Zero,
    Data,
}

/// A run of blocks of a region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cut {
    pub(crate) kind: Block,
    /// Blocks within the region.
    pub(crate) blocks: Range<usize>,
}

/// Cuts by the parameters of one pool.
#[derive(Debug, Clone)]
pub(crate) struct Chunker {
    key: crate::key::Secret,
    parameters: CutParameters,
}

impl Chunker {
    pub(crate) fn new(key: crate::key::Secret, parameters: CutParameters) -> Self {
        Self { key, parameters }
    }

    /// Whether a chunk that holds `length` blocks so far, `block` being the last, ends here.
    pub(crate) fn ends_after(&self, block: &[u8], length: usize) -> bool {
        if length >= usize::from(self.parameters.most_blocks) {
            return true;
        }
        if length < usize::from(self.parameters.least_blocks) {
            return false;
        }
        let hash = blake3::keyed_hash(&self.key, block);
        let [a, b, c, d, ..] = *hash.as_bytes();
        u32::from_le_bytes([a, b, c, d]).trailing_zeros() >= u32::from(self.parameters.mask_bits)
    }

    /// The runs of a region whose blocks are of `kinds` and whose bytes, where they are data, are in `bytes`.
    pub(crate) fn cut(&self, kinds: &[Block], bytes: &[u8]) -> Vec<Cut> {
        let mut cuts: Vec<Cut> = Vec::new();
        let mut start = 0;
        for (index, &kind) in kinds.iter().enumerate() {
            let last_of_kind = kinds.get(index + 1) != Some(&kind);
            let ends = last_of_kind
                || kind == Block::Data
                    && self.ends_after(&bytes[index * BLOCK_BYTES..(index + 1) * BLOCK_BYTES], index + 1 - start);
            if ends {
                cuts.push(Cut { kind, blocks: start..index + 1 });
                start = index + 1;
            }
        }
        cuts
    }
}

/// Whether a block holds nothing but zeros.
pub(crate) fn is_zero(block: &[u8]) -> bool {
    static ZEROS: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];
    block.len() <= BLOCK_BYTES && block == &ZEROS[..block.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use firn_disk::testing::pattern;
    use zeroize::Zeroizing;

    fn chunker(key: u8) -> Chunker {
        Chunker::new(Zeroizing::new([key; 32]), CutParameters::default())
    }

    fn data_cuts(chunker: &Chunker, bytes: &[u8]) -> Vec<Range<usize>> {
        let kinds = vec![Block::Data; bytes.len() / BLOCK_BYTES];
        chunker.cut(&kinds, bytes).into_iter().map(|cut| cut.blocks).collect()
    }

    #[test]
    fn runs_tile_the_region_and_keep_within_limits() {
        let bytes = pattern(REGION_BLOCKS * BLOCK_BYTES, 1);
        let cuts = data_cuts(&chunker(1), &bytes);
        let mut at = 0;
        for blocks in &cuts {
            assert_eq!(blocks.start, at);
            assert!((1..=32).contains(&blocks.len()));
            at = blocks.end;
        }
        assert_eq!(at, REGION_BLOCKS);
        // 16 blocks on average before the limit of 32 cuts some short: (1 - (15/16)^32) * 16 = 14.
        assert!((220..380).contains(&cuts.len()), "{} chunks", cuts.len());
    }

    #[test]
    fn cuts_follow_the_content_when_it_moves_by_blocks() {
        let bytes = pattern(512 * BLOCK_BYTES, 2);
        let moved = [pattern(7 * BLOCK_BYTES, 3), bytes.clone()].concat();
        let pieces = |bytes: &[u8]| -> std::collections::HashSet<Vec<u8>> {
            data_cuts(&chunker(1), bytes)
                .into_iter()
                .map(|blocks| bytes[blocks.start * BLOCK_BYTES..blocks.end * BLOCK_BYTES].to_vec())
                .collect()
        };
        let (before, after) = (pieces(&bytes), pieces(&moved));
        assert!(before.intersection(&after).count() + 6 > before.len(), "nearly every chunk is found again");
    }

    #[test]
    fn another_key_cuts_elsewhere_and_holes_are_boundaries() {
        let bytes = pattern(256 * BLOCK_BYTES, 4);
        assert_ne!(data_cuts(&chunker(1), &bytes), data_cuts(&chunker(2), &bytes));
        let kinds = [Block::Hole, Block::Hole, Block::Zero, Block::Data, Block::Hole];
        let cuts = chunker(1).cut(&kinds, &bytes[..5 * BLOCK_BYTES]);
        let kinds: Vec<_> = cuts.iter().map(|cut| (cut.kind, cut.blocks.clone())).collect();
        assert_eq!(kinds, [(Block::Hole, 0..2), (Block::Zero, 2..3), (Block::Data, 3..4), (Block::Hole, 4..5)]);
    }

    #[test]
    fn parameters_are_read_back_and_absurd_ones_refused() {
        let parameters = CutParameters { mask_bits: 3, least_blocks: 2, most_blocks: 16 };
        assert_eq!(CutParameters::from_bytes(&parameters.to_bytes()).unwrap(), parameters);
        for (mask_bits, least_blocks, most_blocks) in [(17, 1, 32), (4, 0, 32), (4, 33, 32), (4, 1, 33)] {
            assert!(CutParameters { mask_bits, least_blocks, most_blocks }.check().is_err());
        }
    }
}
