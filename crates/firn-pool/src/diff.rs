//! The difference of two disks in the pool as ranges, by walking two trees and skipping what they share.

use crate::chunker::{BLOCK_BYTES, REGION_BYTES};
use crate::disk::{PlacedRun, PoolDisk};
use crate::tree::{self, Child, RunKind};
use firn_disk::{Disk, Result};
use std::ops::Range;

/// Calls `visit` with each range of bytes in which `a` and `b` may differ, in order, neighbours joined.
///
/// What is not visited is equal. A visited range may hold equal bytes, as chunks are compared whole. What only the
/// longer disk has is visited whole.
///
/// # Errors
/// What reading the trees says, and what `visit` says.
pub(crate) fn changed_ranges(
    a: &PoolDisk,
    b: &PoolDisk,
    mut visit: impl FnMut(Range<u64>) -> Result<()>,
) -> Result<()> {
    let (shorter, longer) = (a.len().min(b.len()), a.len().max(b.len()));
    let mut pending: Option<Range<u64>> = None;
    let mut add = |range: Range<u64>| match &mut pending {
        Some(last) if last.end >= range.start => {
            last.end = last.end.max(range.end);
            Ok(())
        }
        _ => pending.replace(range).map_or(Ok(()), &mut visit),
    };
    for region in 0..tree::region_count(shorter) {
        let start = region * REGION_BYTES;
        let (left, right) = (a.leaf_child(region)?, b.leaf_child(region)?);
        if left == right || !matches!(left, Child::Node(_)) && !matches!(right, Child::Node(_)) {
            continue;
        }
        for blocks in differing_blocks(&a.leaf(region)?, &b.leaf(region)?) {
            let bytes = start + (blocks.start * BLOCK_BYTES) as u64..start + (blocks.end * BLOCK_BYTES) as u64;
            let bytes = bytes.start..bytes.end.min(shorter);
            if !bytes.is_empty() {
                add(bytes)?;
            }
        }
    }
    if shorter < longer {
        add(shorter..longer)?;
    }
    pending.map_or(Ok(()), visit)
}

/// The blocks of one region in which two leaves differ. Both lists begin at block 0; one may end earlier.
fn differing_blocks(a: &[PlacedRun], b: &[PlacedRun]) -> Vec<Range<usize>> {
    let mut different: Vec<Range<usize>> = Vec::new();
    let (mut left, mut right) = (a.iter().peekable(), b.iter().peekable());
    while let (Some(x), Some(y)) = (left.peek(), right.peek()) {
        let (x_blocks, y_blocks) = (x.blocks(), y.blocks());
        let common = x_blocks.start.max(y_blocks.start)..x_blocks.end.min(y_blocks.end);
        let same = match (x.run.kind, y.run.kind) {
            (RunKind::Chunk(one), RunKind::Chunk(other)) => one == other && x_blocks == y_blocks,
            (RunKind::Chunk(_), _) | (_, RunKind::Chunk(_)) => false,
            // Holes and zeros read alike.
            _ => true,
        };
        if !same {
            match different.last_mut() {
                Some(last) if last.end == common.start => last.end = common.end,
                _ => different.push(common),
            }
        }
        if x_blocks.end <= y_blocks.end {
            left.next();
        }
        if y_blocks.end <= x_blocks.end {
            right.next();
        }
    }
    different
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::BlobId;
    use crate::tree::Run;

    fn runs(list: &[(u8, u16)]) -> Vec<PlacedRun> {
        let mut start = 0;
        let place = |(kind, blocks): &(u8, u16)| {
            let kind = match kind {
                0 => RunKind::Hole,
                1 => RunKind::Zero,
                id => RunKind::Chunk(BlobId([*id; 32])),
            };
            let placed = PlacedRun { start, run: Run { kind, blocks: *blocks } };
            start += usize::from(*blocks);
            placed
        };
        list.iter().map(place).collect()
    }

    fn one(range: Range<usize>) -> Vec<Range<usize>> {
        std::iter::once(range).collect()
    }

    #[test]
    fn chunks_differ_by_id_and_place_and_zeros_do_not_differ_from_holes() {
        let a = runs(&[(0, 4), (5, 4), (6, 2), (7, 2)]);
        assert!(differing_blocks(&a, &a).is_empty());
        assert!(differing_blocks(&a, &runs(&[(1, 4), (5, 4), (6, 2), (7, 2)])).is_empty());
        assert_eq!(differing_blocks(&a, &runs(&[(0, 4), (5, 4), (9, 3), (7, 1)])), one(8..12));
        assert_eq!(differing_blocks(&a, &runs(&[(0, 2), (5, 4), (6, 6)])), one(2..12));
        assert_eq!(differing_blocks(&a, &runs(&[(0, 4), (0, 4), (6, 2), (7, 2)])), one(4..8));
    }
}
