//! Segments: the index as it is stored in the pool.
//!
//! ```text
//! frame (kind index segment)
//! 0  4  count of packs     4  4  count of entries
//! 8  …  packs, 32 bytes:   0 16 pack id   16 1 kind: 0 data, 1 node   17 3 zero   20 4 length in bytes   24 8 zero
//!    …  entries, 24 bytes, sorted:  0 16 first half of the blob id
//!                                  16  8 bits 0..25 offset, 25..43 stored length, 43..64 number of the pack
//! checksum
//! ```

use super::Location;
use crate::names::{PackId, PackKind};
use crate::object::{self, ObjectKind};
use crate::pack::PackEntry;
use firn_disk::{Error, Record, Result};
use std::collections::HashSet;
use uuid::Uuid;

pub(super) const PACK_BYTES: usize = 32;
pub(super) const ENTRY_BYTES: usize = 24;
const OFFSET_BITS: u32 = 25;
const LENGTH_BITS: u32 = 18;
/// How many packs one segment or run can number.
pub(super) const MOST_PACKS: usize = 1 << 21;

/// First half of a blob id, and where the blob stands: offset, length and number of the pack, in one word.
pub(super) type Entry = ([u8; 16], u64);

/// A pack that an index knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct IndexedPack {
    pub(crate) kind: PackKind,
    pub(crate) id: PackId,
    /// Length of the object in bytes.
    pub(crate) size: u32,
}

impl IndexedPack {
    pub(super) fn to_bytes(self) -> [u8; PACK_BYTES] {
        let mut bytes = [0; PACK_BYTES];
        bytes[..16].copy_from_slice(&self.id.0);
        bytes[16] = self.kind as u8;
        bytes[20..24].copy_from_slice(&self.size.to_le_bytes());
        bytes
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let record = Record::new(bytes, "indexed pack", 0);
        let kind = match record.u8(16)? {
            0 => PackKind::Data,
            1 => PackKind::Node,
            other => return Err(record.corrupt(16, format!("unknown kind of pack {other}"))),
        };
        Ok(Self { kind, id: PackId(record.array(0)?), size: record.le_u32(20)? })
    }
}

/// Packs `offset`, `length` and `pack` into one word. All three are below their limits.
pub(super) fn pack_word(offset: u64, length: u64, pack: usize) -> u64 {
    offset | length << OFFSET_BITS | (pack as u64) << (OFFSET_BITS + LENGTH_BITS)
}

/// The number of the pack in a word.
pub(super) fn pack_number(word: u64) -> usize {
    // 21 bits.
    (word >> (OFFSET_BITS + LENGTH_BITS)) as usize
}

/// The word with another number of the pack.
pub(super) fn renumber(word: u64, pack: usize) -> u64 {
    word & ((1 << (OFFSET_BITS + LENGTH_BITS)) - 1) | (pack as u64) << (OFFSET_BITS + LENGTH_BITS)
}

pub(super) fn location(word: u64, pack: IndexedPack) -> Location {
    Location {
        kind: pack.kind,
        pack: pack.id,
        offset: word & ((1 << OFFSET_BITS) - 1),
        length: word >> OFFSET_BITS & ((1 << LENGTH_BITS) - 1),
    }
}

pub(super) fn entry_to_bytes(entry: &Entry) -> [u8; ENTRY_BYTES] {
    let mut bytes = [0; ENTRY_BYTES];
    bytes[..16].copy_from_slice(&entry.0);
    bytes[16..].copy_from_slice(&entry.1.to_le_bytes());
    bytes
}

/// Gathers the directories of packs.
#[derive(Debug, Default)]
pub(crate) struct SegmentBuilder {
    packs: Vec<IndexedPack>,
    entries: Vec<Entry>,
}

impl SegmentBuilder {
    /// Adds a pack of `size` bytes that holds `entries`.
    pub(crate) fn add(&mut self, kind: PackKind, id: PackId, size: u64, entries: &[PackEntry]) {
        let number = self.packs.len();
        // A pack is at most 32 MiB.
        self.packs.push(IndexedPack { kind, id, size: u32::try_from(size).unwrap_or(u32::MAX) });
        self.entries.extend(
            entries.iter().map(|e| (e.id.prefix(), pack_word(u64::from(e.offset), u64::from(e.length), number))),
        );
    }

    /// Adds what a segment says of all packs but `without`.
    pub(super) fn add_segment(&mut self, segment: &Segment, without: &HashSet<PackId>) {
        let mut numbers = Vec::with_capacity(segment.packs.len());
        for pack in &segment.packs {
            numbers.push((!without.contains(&pack.id)).then_some(self.packs.len()));
            if !without.contains(&pack.id) {
                self.packs.push(*pack);
            }
        }
        // `from_object` made sure that every entry names a pack that is there.
        let entries = segment.entries.iter().filter_map(|(id, word)| {
            let number = numbers.get(pack_number(*word)).copied().flatten()?;
            Some((*id, renumber(*word, number)))
        });
        self.entries.extend(entries);
    }

    pub(super) fn entry_count(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.packs.is_empty()
    }

    pub(crate) fn pack_count(&self) -> usize {
        self.packs.len()
    }

    pub(super) fn finish(mut self) -> Segment {
        self.entries.sort_unstable();
        Segment { packs: self.packs, entries: self.entries }
    }
}

/// A segment in memory.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) packs: Vec<IndexedPack>,
    pub(super) entries: Vec<Entry>,
}

impl Segment {
    pub(super) fn entry_count(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn to_object(&self, domain: Uuid) -> Vec<u8> {
        let mut payload = Vec::with_capacity(8 + self.packs.len() * PACK_BYTES + self.entries.len() * ENTRY_BYTES);
        for count in [self.packs.len(), self.entries.len()] {
            // Segments are closed long before 4 Gi of anything.
            payload.extend_from_slice(&u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes());
        }
        self.packs.iter().for_each(|pack| payload.extend_from_slice(&pack.to_bytes()));
        self.entries.iter().for_each(|entry| payload.extend_from_slice(&entry_to_bytes(entry)));
        object::seal_small(ObjectKind::IndexSegment, domain, &payload)
    }

    pub(super) fn from_object(bytes: &[u8], domain: Uuid) -> Result<Self> {
        let (frame, payload) = object::open_small(bytes, ObjectKind::IndexSegment)?;
        let record = Record::new(payload, "index segment", object::FRAME_BYTES as u64);
        if frame.domain != domain {
            return Err(Error::corrupt("it belongs to another key domain").in_structure("index segment"));
        }
        let (packs, entries) = (record.le_u32(0)? as usize, record.le_u32(4)? as usize);
        if packs > MOST_PACKS || payload.len() != 8 + packs * PACK_BYTES + entries * ENTRY_BYTES {
            return Err(record.corrupt(0, format!("{packs} packs and {entries} entries do not fill it")));
        }
        let (packs, entries) = payload[8..].split_at(packs * PACK_BYTES);
        let packs: Vec<_> = packs.chunks_exact(PACK_BYTES).map(IndexedPack::from_bytes).collect::<Result<_>>()?;
        let entries = entries
            .chunks_exact(ENTRY_BYTES)
            .map(|bytes| {
                let entry = Record::new(bytes, "index entry", 0);
                let (prefix, word) = (entry.array(0)?, entry.le_u64(16)?);
                if pack_number(word) >= packs.len() {
                    return Err(entry.corrupt(16, "it names a pack that the segment does not list"));
                }
                Ok((prefix, word))
            })
            .collect::<Result<Vec<_>>>()?;
        if !entries.is_sorted() {
            return Err(record.corrupt(8, "the entries are not sorted"));
        }
        Ok(Self { packs, entries })
    }
}
