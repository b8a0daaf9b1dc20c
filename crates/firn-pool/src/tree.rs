//! Trees: a disk as a tree of blob ids.
//!
//! A leaf describes one region of 16 MiB, an inner node up to 256 children, so two levels of inner nodes reach
//! 1 TiB. A child that is nothing but hole, or nothing but zeros, is no node at all.
//!
//! ```text
//! leaf    0  2  count of runs
//!         2  …  runs, 2 bytes: bits 0..14 length in blocks (1 to 4096), 14..16 kind: 0 hole, 1 zeros, 2 chunk
//!            …  ids of the chunks, 32 bytes each, in the order of their runs
//! inner   0  2  count of children (1 to 256)
//!         2  …  kinds, 1 byte: 0 hole, 1 zeros, 2 node
//!            …  ids of the nodes, 32 bytes each, in order
//! ```
//! The runs of a leaf fill its region exactly; the region at the end of a disk may be shorter, and its last block
//! is filled up with zeros. Ids, never locations: nodes stay valid wherever packs move.

use crate::chunker::{BLOCK_BYTES, MOST_CHUNK_BLOCKS, REGION_BLOCKS, REGION_BYTES};
use crate::seal::BlobId;
use firn_disk::{Error, Record, Result};

/// Children of an inner node.
pub(crate) const FAN_OUT: u64 = 256;
/// No disk needs more: 2^64 bytes are 5 levels.
const MOST_LEVELS: u32 = 5;

/// What stands in the place of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Child {
    /// Nothing but hole.
    Hole,
    /// Nothing but zeros.
    Zero,
    /// A node.
    Node(BlobId),
}

/// What a run of a leaf is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RunKind {
    Hole,
    Zero,
    Chunk(BlobId),
}

/// A run of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) kind: RunKind,
    /// 1 to 4096.
    pub(crate) blocks: u16,
}

/// How many regions a disk of `length` bytes has.
pub(crate) fn region_count(length: u64) -> u64 {
    length.div_ceil(REGION_BYTES)
}

/// How many blocks region `region` of a disk of `length` bytes has.
pub(crate) fn region_blocks(length: u64, region: u64) -> usize {
    let rest = length.saturating_sub(region * REGION_BYTES);
    usize::try_from(rest.div_ceil(BLOCK_BYTES as u64)).unwrap_or(usize::MAX).min(REGION_BLOCKS)
}

/// How many levels of inner nodes stand above the leaves of a disk of `length` bytes.
pub(crate) fn level_count(length: u64) -> u32 {
    let mut levels = 0;
    let mut reach = 1_u64;
    while reach < region_count(length) && levels < MOST_LEVELS {
        reach = reach.saturating_mul(FAN_OUT);
        levels += 1;
    }
    levels
}

const KIND_HOLE: u8 = 0;
const KIND_ZERO: u8 = 1;
const KIND_NODE: u8 = 2;
const RUN_BITS: u32 = 14;

/// The bytes of a leaf, or what stands for it when it is all of one kind.
pub(crate) fn encode_leaf(runs: &[Run]) -> std::result::Result<Vec<u8>, Child> {
    if runs.iter().all(|run| run.kind == RunKind::Hole) {
        return Err(Child::Hole);
    }
    if runs.iter().all(|run| run.kind == RunKind::Zero) {
        return Err(Child::Zero);
    }
    let mut bytes = Vec::with_capacity(2 + runs.len() * 34);
    // At most one run a block, and a region has 4096.
    bytes.extend_from_slice(&u16::try_from(runs.len()).unwrap_or(u16::MAX).to_le_bytes());
    for run in runs {
        let kind = match run.kind {
            RunKind::Hole => KIND_HOLE,
            RunKind::Zero => KIND_ZERO,
            RunKind::Chunk(_) => KIND_NODE,
        };
        bytes.extend_from_slice(&(run.blocks | u16::from(kind) << RUN_BITS).to_le_bytes());
    }
    for run in runs {
        if let RunKind::Chunk(id) = run.kind {
            bytes.extend_from_slice(&id.0);
        }
    }
    Ok(bytes)
}

/// Reads a leaf whose region has `blocks` blocks.
///
/// # Errors
/// `Corrupt` when the runs do not fill the region exactly.
pub(crate) fn decode_leaf(bytes: &[u8], blocks: usize) -> Result<Vec<Run>> {
    let record = Record::new(bytes, "leaf", 0);
    let count = usize::from(record.le_u16(0)?);
    let mut ids_at = 2 + count * 2;
    let mut filled = 0;
    let mut runs = Vec::with_capacity(count.min(REGION_BLOCKS));
    for number in 0..count {
        let at = 2 + number * 2;
        let word = record.le_u16(at)?;
        let length = word & ((1 << RUN_BITS) - 1);
        let kind = match (word >> RUN_BITS) as u8 {
            KIND_HOLE => RunKind::Hole,
            KIND_ZERO => RunKind::Zero,
            KIND_NODE if length <= MOST_CHUNK_BLOCKS => {
                ids_at += 32;
                RunKind::Chunk(BlobId(record.array(ids_at - 32)?))
            }
            _ => return Err(record.corrupt(at, "a run of unknown kind or length")),
        };
        if length == 0 {
            return Err(record.corrupt(at, "a run of no length"));
        }
        filled += usize::from(length);
        runs.push(Run { kind, blocks: length });
    }
    if filled != blocks || ids_at != bytes.len() {
        return Err(record.corrupt(0, format!("its runs fill {filled} blocks of a region of {blocks}")));
    }
    Ok(runs)
}

/// The bytes of an inner node, or what stands for it when all its children are of one kind.
pub(crate) fn encode_inner(children: &[Child]) -> std::result::Result<Vec<u8>, Child> {
    if let Some(first) = children.first()
        && !matches!(first, Child::Node(_))
        && children.iter().all(|child| child == first)
    {
        return Err(*first);
    }
    let mut bytes = Vec::with_capacity(2 + children.len() * 33);
    bytes.extend_from_slice(&u16::try_from(children.len()).unwrap_or(u16::MAX).to_le_bytes());
    bytes.extend(children.iter().map(|child| child_kind(*child)));
    for child in children {
        if let Child::Node(id) = child {
            bytes.extend_from_slice(&id.0);
        }
    }
    Ok(bytes)
}

fn child_kind(child: Child) -> u8 {
    match child {
        Child::Hole => KIND_HOLE,
        Child::Zero => KIND_ZERO,
        Child::Node(_) => KIND_NODE,
    }
}

/// Reads an inner node that must have `count` children.
///
/// # Errors
/// `Corrupt` when it has another number, or its length does not fit.
pub(crate) fn decode_inner(bytes: &[u8], count: usize) -> Result<Vec<Child>> {
    let record = Record::new(bytes, "inner node", 0);
    let stored = usize::from(record.le_u16(0)?);
    if stored != count {
        return Err(record.corrupt(0, format!("it has {stored} children where {count} belong")));
    }
    let mut ids_at = 2 + count;
    let children = record.slice(2, count)?.iter().map(|kind| match *kind {
        KIND_HOLE => Ok(Child::Hole),
        KIND_ZERO => Ok(Child::Zero),
        KIND_NODE => {
            ids_at += 32;
            Ok(Child::Node(BlobId(record.array(ids_at - 32)?)))
        }
        _ => Err(record.corrupt(2, "a child of unknown kind")),
    });
    let children = children.collect::<Result<_>>()?;
    if ids_at != bytes.len() {
        return Err(Error::corrupt("its length does not fit its children").in_structure("inner node"));
    }
    Ok(children)
}

/// A child as it stands in a manifest: kind and id, 33 bytes.
pub(crate) fn child_to_bytes(child: Child) -> [u8; 33] {
    let mut bytes = [0; 33];
    bytes[0] = child_kind(child);
    if let Child::Node(id) = child {
        bytes[1..].copy_from_slice(&id.0);
    }
    bytes
}

/// # Errors
/// `Corrupt` for an unknown kind.
pub(crate) fn child_from_bytes(bytes: [u8; 33]) -> Result<Child> {
    let [kind, id @ ..] = bytes;
    match kind {
        KIND_HOLE => Ok(Child::Hole),
        KIND_ZERO => Ok(Child::Zero),
        KIND_NODE => Ok(Child::Node(BlobId(id))),
        _ => Err(Error::corrupt("a root of unknown kind")),
    }
}

/// How many children the node at `level` (1 above the leaves) has that begins at region `first`.
pub(crate) fn child_count(length: u64, level: u32, first: u64) -> usize {
    let span = FAN_OUT.saturating_pow(level.saturating_sub(1));
    let rest = region_count(length).saturating_sub(first).div_ceil(span);
    usize::try_from(rest.min(FAN_OUT)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use firn_disk::testing::Random;
    use proptest::prelude::*;

    fn id(number: u8) -> BlobId {
        BlobId([number; 32])
    }

    #[test]
    fn shapes_follow_from_the_length() {
        let regions = |count: u64| count * REGION_BYTES;
        for (length, count, levels) in [
            (0, 0, 0),
            (1, 1, 0),
            (regions(1), 1, 0),
            (regions(1) + 1, 2, 1),
            (regions(256), 256, 1),
            (regions(257), 257, 2),
            (1 << 40, 65536, 2),
            ((1 << 40) + 1, 65537, 3),
        ] {
            assert_eq!((region_count(length), level_count(length)), (count, levels), "{length}");
        }
        assert_eq!(region_blocks(regions(1) + 4097, 1), 2);
        assert_eq!(child_count(regions(257), 2, 0), 2);
        assert_eq!(child_count(regions(257), 1, 256), 1);
        assert!(level_count(u64::MAX) <= MOST_LEVELS);
    }

    #[test]
    fn what_is_all_of_one_kind_is_no_node() {
        let run = |kind| Run { kind, blocks: 4 };
        assert_eq!(encode_leaf(&[run(RunKind::Hole), run(RunKind::Hole)]), Err(Child::Hole));
        assert_eq!(encode_leaf(&[run(RunKind::Zero)]), Err(Child::Zero));
        assert!(encode_leaf(&[run(RunKind::Zero), run(RunKind::Hole)]).is_ok());
        assert_eq!(encode_inner(&[Child::Zero, Child::Zero]), Err(Child::Zero));
        assert!(encode_inner(&[Child::Node(id(1)); 2]).is_ok());
    }

    proptest! {
        #[test]
        fn leaves_and_inner_nodes_are_read_back(kinds in prop::collection::vec((0_u8..3, 1_u16..=32), 1..256), seed in any::<u64>()) {
            let runs: Vec<_> = kinds.iter().map(|(kind, blocks)| Run {
                kind: [RunKind::Hole, RunKind::Zero, RunKind::Chunk(id(7))][usize::from(*kind)],
                blocks: *blocks,
            }).collect();
            let blocks = runs.iter().map(|run| usize::from(run.blocks)).sum();
            if let Ok(bytes) = encode_leaf(&runs) {
                prop_assert_eq!(decode_leaf(&bytes, blocks).unwrap(), runs);
                prop_assert!(decode_leaf(&bytes, blocks + 1).is_err());
                mutate(&bytes, seed, |bytes| drop(decode_leaf(bytes, blocks)));
            }
            let children: Vec<_> = kinds.iter().map(|(kind, _)| [Child::Hole, Child::Zero, Child::Node(id(9))][usize::from(*kind)]).collect();
            if let Ok(bytes) = encode_inner(&children) {
                prop_assert_eq!(decode_inner(&bytes, children.len()).unwrap(), children.clone());
                prop_assert!(decode_inner(&bytes, children.len() + 1).is_err());
                mutate(&bytes, seed, |bytes| drop(decode_inner(bytes, children.len())));
            }
        }
    }

    /// Must not panic, whatever the bytes.
    fn mutate(bytes: &[u8], seed: u64, parse: impl Fn(&[u8])) {
        let mut random = Random::new(seed);
        for _ in 0..20 {
            let mut bytes = bytes.to_vec();
            let at = usize::try_from(random.below(bytes.len() as u64)).unwrap();
            bytes[at] ^= u8::try_from(random.below(255)).unwrap() + 1;
            bytes.truncate(bytes.len() - usize::try_from(random.below(3)).unwrap().min(bytes.len()));
            parse(&bytes);
        }
    }
}
