//! device-mapper's B-trees: blocks of 4 KiB with sorted keys.
//!
//! ```text
//! 0 CRC-32C  4 flags: 1 inner, 2 leaf  8 own place  16 entries  20 room for entries  24 bytes of a value
//! 32 keys of 8 bytes …   values, after the room for all keys
//! ```
//! An inner node's value is the block of the subtree whose first key stands beside it. Source: Linux,
//! drivers/md/persistent-data/dm-btree-internal.h and dm-btree-spine.c.

use firn_disk::{Error, Record, Result, SharedDisk};
use lru::LruCache;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of a block of metadata.
pub(super) const BLOCK: u64 = 4096;
const NODE_SALT: u32 = 121_107;
const HEADER: usize = 32;
/// Deepest tree; 16 levels of at least 126 entries are more than any pool has.
const MAX_DEPTH: usize = 16;
/// Most nodes of a pool that are kept in memory, 2 MiB.
pub(super) const CACHED_NODES: usize = 512;
/// Most nodes that are looked at for one next key.
const MAX_STEPS: usize = 64;

/// The kernel's checksum of a block: CRC-32C without its last inversion, with a number of its kind mixed in.
pub(super) fn checksum(bytes: &[u8], salt: u32) -> u32 {
    !crc32c::crc32c(bytes) ^ salt
}

/// A node, checked.
#[derive(Debug)]
struct Node {
    is_leaf: bool,
    keys: Vec<u64>,
    /// The first eight bytes of each value.
    values: Vec<u64>,
    value_bytes: usize,
}

impl Node {
    fn parse(block: &Record<'_>, place: u64) -> Result<Self> {
        if checksum(block.slice(4, block.bytes().len().saturating_sub(4))?, NODE_SALT) != block.le_u32(0)? {
            return Err(block.corrupt(0, "its checksum does not match"));
        }
        if block.le_u64(8)? != place {
            return Err(block.corrupt(8, "it is meant for another place"));
        }
        let flags = block.le_u32(4)?;
        let number = |at| -> Result<usize> { Ok(usize::try_from(block.le_u32(at)?).unwrap_or(usize::MAX)) };
        let (count, room, value_bytes) = (number(16)?, number(20)?, number(24)?);
        let end = value_bytes.checked_add(8).and_then(|entry| entry.checked_mul(room));
        let fits = end.and_then(|end| end.checked_add(HEADER)).is_some_and(|end| end <= block.bytes().len());
        if !matches!(flags, 1 | 2) || !fits || count > room || value_bytes < 8 {
            let what = format!("{count} entries of {room} with values of {value_bytes} bytes, flags {flags}");
            return Err(block.corrupt(4, what));
        }
        let keys = (0..count).map(|at| block.le_u64(HEADER + 8 * at)).collect::<Result<Vec<_>>>()?;
        if keys.windows(2).any(|pair| pair[0] >= pair[1]) {
            return Err(block.corrupt(HEADER, "its keys are not in order"));
        }
        let first = HEADER + 8 * room;
        let values = (0..count).map(|at| block.le_u64(first + value_bytes * at)).collect::<Result<Vec<_>>>()?;
        Ok(Self { is_leaf: flags == 2, keys, values, value_bytes })
    }

    /// The entry whose key is `key`, or the last one before it.
    fn at_or_before(&self, key: u64) -> Option<usize> {
        self.keys.partition_point(|own| *own <= key).checked_sub(1)
    }
}

/// The trees of a pool, with the nodes that were used last.
#[derive(Debug)]
pub(super) struct Trees {
    disk: SharedDisk,
    nodes: Mutex<LruCache<u64, Arc<Node>>>,
}

impl Trees {
    pub(super) fn new(disk: SharedDisk) -> Self {
        let room = NonZeroUsize::new(CACHED_NODES).unwrap_or(NonZeroUsize::MIN);
        Self { disk, nodes: Mutex::new(LruCache::new(room)) }
    }

    fn node(&self, place: u64) -> Result<Arc<Node>> {
        let known = self.nodes.lock().unwrap_or_else(PoisonError::into_inner).get(&place).cloned();
        if let Some(node) = known {
            return Ok(node);
        }
        let offset = place.saturating_mul(BLOCK);
        let mut buf = [0; 4096];
        let block = Record::read(&self.disk, &mut buf, offset, "thin pool metadata")?;
        let node = Arc::new(Node::parse(&block, place)?);
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner).put(place, node.clone());
        Ok(node)
    }

    /// The value of `key` in the tree at `root`, whose values have `value_bytes`; its first eight bytes.
    ///
    /// # Errors
    /// `Corrupt` when a node on the way is damaged; what the disk says.
    pub(super) fn find(&self, root: u64, key: u64, value_bytes: usize) -> Result<Option<u64>> {
        let mut place = root;
        for _ in 0..MAX_DEPTH {
            let node = self.node(place)?;
            let entry = node.at_or_before(key);
            let Some((own, value)) = entry.and_then(|at| node.keys.get(at).zip(node.values.get(at))) else {
                return Ok(None);
            };
            if node.is_leaf {
                if node.value_bytes != value_bytes {
                    return Err(damage(place, format!("values of {} bytes", node.value_bytes)));
                }
                return Ok((*own == key).then_some(*value));
            }
            place = *value;
        }
        Err(damage(root, "the tree is too deep"))
    }

    /// The first key of the tree at `root` that is not below `key`.
    ///
    /// # Errors
    /// As [`find`](Self::find).
    pub(super) fn next(&self, root: u64, key: u64) -> Result<Option<u64>> {
        self.next_below(root, key, MAX_DEPTH, &mut 0)
    }

    fn next_below(&self, place: u64, key: u64, depth: usize, steps: &mut usize) -> Result<Option<u64>> {
        *steps += 1;
        if depth == 0 || *steps > MAX_STEPS {
            return Err(damage(place, "the tree is too deep, or has empty nodes"));
        }
        let node = self.node(place)?;
        if node.is_leaf {
            return Ok(node.keys.get(node.keys.partition_point(|own| *own < key)).copied());
        }
        let first = node.at_or_before(key).unwrap_or(0);
        for child in node.values.iter().skip(first) {
            if let Some(found) = self.next_below(*child, key, depth - 1, steps)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
}

fn damage(place: u64, what: impl Into<String>) -> Error {
    Error::corrupt(what).in_structure("thin pool metadata").at_offset(place.saturating_mul(BLOCK))
}
