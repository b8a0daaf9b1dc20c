//! Packs: immutable objects that hold many blobs.
//!
//! ```text
//!  0  48  frame (kind data pack or node pack)
//! 48  16  pack id, which is also the salt of its key
//! 64   …  blobs, back to back
//!      …  directory, 72 bytes a blob:  0 1 type   1 3 zero   4 4 stored length
//!                                      8 32 id   40 32 BLAKE3 of the stored bytes
//! -40  4  count of blobs
//! -36  4  length of the directory in bytes
//! -32 32  BLAKE3 of the first 64 bytes, the directory, count and length
//! ```
//! The directory needs no key, so a pool can be scrubbed, and its index rebuilt, by someone who cannot read it.

use crate::entropy::{Entropy, random_bytes};
use crate::key::Keys;
use crate::names::{self, Copy, PackId, PackKind};
use crate::object::{self, FRAME_BYTES, ObjectKind};
use crate::seal::{BlobId, BlobType, MOST_CONTENT_BYTES, PackCipher, SEAL_BYTES};
use crate::store::Store;
use bytes::Bytes;
use firn_disk::{Error, Record, Result};
use std::ops::Range;
use uuid::Uuid;

/// Where the first blob stands.
pub(crate) const HEAD_BYTES: usize = FRAME_BYTES + 16;
const ENTRY_BYTES: usize = 72;
const TRAILER_BYTES: usize = 40;
/// Packs in a folder are closed when they reach this many bytes.
pub(crate) const PACK_BYTES: usize = 16 << 20;
/// The longest pack that a reader believes in; the index has 25 bits for an offset.
pub(crate) const MOST_PACK_BYTES: u64 = 32 << 20;

fn object_kind(kind: PackKind) -> ObjectKind {
    match kind {
        PackKind::Data => ObjectKind::DataPack,
        PackKind::Node => ObjectKind::NodePack,
    }
}

/// A blob as its pack's directory has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PackEntry {
    pub(crate) kind: BlobType,
    pub(crate) id: BlobId,
    pub(crate) offset: u32,
    /// Stored length in bytes.
    pub(crate) length: u32,
    pub(crate) hash: [u8; 32],
}

impl PackEntry {
    pub(crate) fn range(&self) -> Range<u64> {
        u64::from(self.offset)..u64::from(self.offset) + u64::from(self.length)
    }
}

/// A pack that is being filled.
#[derive(Debug)]
pub(crate) struct PackBuilder {
    kind: PackKind,
    id: PackId,
    cipher: PackCipher,
    bytes: Vec<u8>,
    entries: Vec<PackEntry>,
}

/// A pack that is ready to be stored.
#[derive(Debug)]
pub(crate) struct FinishedPack {
    pub(crate) kind: PackKind,
    pub(crate) id: PackId,
    pub(crate) bytes: Vec<u8>,
    pub(crate) entries: Vec<PackEntry>,
}

impl PackBuilder {
    pub(crate) fn new(keys: &Keys, kind: PackKind, entropy: &dyn Entropy) -> Result<Self> {
        let id = PackId(random_bytes(entropy)?);
        let cipher = PackCipher::new(keys, kind, id)?;
        let mut bytes = Vec::with_capacity(PACK_BYTES + (1 << 18));
        bytes.extend_from_slice(&object::frame(object_kind(kind), keys.domain));
        bytes.extend_from_slice(&id.0);
        Ok(Self { kind, id, cipher, bytes, entries: Vec::new() })
    }

    /// Whether a blob whose plain form has `plain_length` bytes would make the pack too long.
    pub(crate) fn is_full_for(&self, plain_length: usize) -> bool {
        let directory = (self.entries.len() + 1) * ENTRY_BYTES + TRAILER_BYTES;
        !self.entries.is_empty() && self.bytes.len() + plain_length + SEAL_BYTES + directory > PACK_BYTES
    }

    /// Seals a blob into the pack; `plain` is what [`crate::seal::Compressor`] made of it.
    pub(crate) fn append(&mut self, kind: BlobType, id: BlobId, plain: &[u8]) -> Result<()> {
        let start = self.bytes.len();
        self.cipher.append_sealed(&mut self.bytes, kind, &id, plain)?;
        let too_long = || Error::invalid("a pack grew too long");
        let offset = u32::try_from(start).map_err(|_| too_long())?;
        let length = u32::try_from(self.bytes.len() - start).map_err(|_| too_long())?;
        let hash = *blake3::hash(&self.bytes[start..]).as_bytes();
        self.entries.push(PackEntry { kind, id, offset, length, hash });
        Ok(())
    }

    pub(crate) fn finish(mut self) -> FinishedPack {
        let start = self.bytes.len();
        for entry in &self.entries {
            self.bytes.extend_from_slice(&[entry.kind as u8, 0, 0, 0]);
            self.bytes.extend_from_slice(&entry.length.to_le_bytes());
            self.bytes.extend_from_slice(&entry.id.0);
            self.bytes.extend_from_slice(&entry.hash);
        }
        let directory = self.bytes.len() - start;
        // Both are far below 4 GiB: the pack is at most a little over its target length.
        for number in [self.entries.len(), directory] {
            self.bytes.extend_from_slice(&u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes());
        }
        let checksum = trailer_checksum(&self.bytes[..HEAD_BYTES], &self.bytes[start..]);
        self.bytes.extend_from_slice(&checksum);
        FinishedPack { kind: self.kind, id: self.id, bytes: self.bytes, entries: self.entries }
    }
}

/// Stores the bytes of a finished pack, once or twice as its kind asks for.
///
/// # Errors
/// What the store says.
pub(crate) fn store(store: &Store, kind: PackKind, id: PackId, bytes: &Bytes) -> Result<()> {
    let name = |copy: &Option<Copy>| names::pack(kind, id, *copy);
    match kind.copies() {
        [first, second] => store.create_both([name(first), name(second)], bytes),
        copies => copies.iter().try_for_each(|copy| store.create_own(&name(copy), bytes)),
    }
}

/// `tail` is directory, count and length.
fn trailer_checksum(head: &[u8], tail: &[u8]) -> [u8; 32] {
    *blake3::Hasher::new().update(head).update(tail).finalize().as_bytes()
}

/// The part of a pack that a reader of its directory has to fetch: its head, and its end.
#[derive(Debug)]
pub(crate) struct DirectoryReader {
    size: u64,
}

impl DirectoryReader {
    /// For a pack of `size` bytes.
    ///
    /// # Errors
    /// `Corrupt` when no pack has that size.
    pub(crate) fn new(size: u64) -> Result<Self> {
        if size < (HEAD_BYTES + TRAILER_BYTES) as u64 || size > MOST_PACK_BYTES {
            return Err(Error::corrupt(format!("{size} bytes are not the length of a pack")).in_structure("pack"));
        }
        Ok(Self { size })
    }

    pub(crate) fn head(&self) -> Range<u64> {
        0..HEAD_BYTES as u64
    }

    /// A first guess at the end: enough for a pack of a thousand blobs.
    pub(crate) fn likely_tail(&self) -> Range<u64> {
        self.size.saturating_sub(1024 * ENTRY_BYTES as u64).max(HEAD_BYTES as u64)..self.size
    }

    /// Where directory and trailer stand, from the pack's last bytes.
    ///
    /// # Errors
    /// `Corrupt` when the lengths contradict each other.
    pub(crate) fn tail(&self, end: &[u8]) -> Result<Range<u64>> {
        let record = Record::new(end, "pack trailer", self.size - end.len() as u64);
        let at = end.len().checked_sub(TRAILER_BYTES).ok_or_else(|| record.corrupt(0, "it is cut short"))?;
        let (count, length) = (u64::from(record.le_u32(at)?), u64::from(record.le_u32(at + 4)?));
        let whole = length + TRAILER_BYTES as u64;
        if length != count * ENTRY_BYTES as u64 || whole > self.size - HEAD_BYTES as u64 {
            return Err(record.corrupt(at, format!("a directory of {count} blobs and {length} bytes cannot be")));
        }
        Ok(self.size - whole..self.size)
    }

    /// The directory, from the head and the whole tail.
    ///
    /// # Errors
    /// `Corrupt`, `Unsupported` as [`object::read_frame`].
    pub(crate) fn read(&self, kind: PackKind, head: &[u8], tail: &[u8]) -> Result<Directory> {
        let frame = object::read_frame(head, object_kind(kind))?;
        let structure = object_kind(kind).name();
        let head = Record::new(head, structure, 0);
        let start = self.size - tail.len() as u64;
        let tail = Record::new(tail, structure, start);
        let checked = tail.bytes().len().saturating_sub(32);
        if trailer_checksum(head.slice(0, HEAD_BYTES)?, tail.slice(0, checked)?) != tail.array(checked)? {
            return Err(tail.corrupt(checked, "the checksum of the directory does not hold"));
        }
        let mut offset = HEAD_BYTES as u64;
        let mut entries = Vec::new();
        for at in (0..tail.bytes().len() - TRAILER_BYTES).step_by(ENTRY_BYTES) {
            let length = tail.le_u32(at + 4)?;
            let kind = BlobType::from_byte(tail.u8(at)?).ok_or_else(|| tail.corrupt(at, "unknown type of blob"))?;
            let place = u32::try_from(offset).map_err(|_| tail.corrupt(at, "a blob stands too far back"))?;
            if length as usize > MOST_CONTENT_BYTES + SEAL_BYTES {
                return Err(tail.corrupt(at, format!("a blob of {length} bytes")));
            }
            entries.push(PackEntry {
                kind,
                id: BlobId(tail.array(at + 8)?),
                offset: place,
                length,
                hash: tail.array(at + 40)?,
            });
            offset += u64::from(length);
        }
        if offset != start {
            return Err(tail.corrupt(0, "the blobs do not fill the pack"));
        }
        Ok(Directory { domain: frame.domain, id: PackId(head.array(FRAME_BYTES)?), entries })
    }
}

/// What stands in a pack.
#[derive(Debug)]
pub(crate) struct Directory {
    pub(crate) domain: Uuid,
    pub(crate) id: PackId,
    pub(crate) entries: Vec<PackEntry>,
}

/// Reads the directory of a pack that is in memory whole.
pub(crate) fn read_directory(bytes: &[u8], kind: PackKind) -> Result<Directory> {
    let reader = DirectoryReader::new(bytes.len() as u64)?;
    let tail = reader.tail(bytes)?;
    let start = usize::try_from(tail.start).unwrap_or(usize::MAX);
    reader.read(kind, &bytes[..HEAD_BYTES], &bytes[start..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entropy::tests::SeededEntropy;
    use crate::seal::{Compressor, Opener};
    use firn_disk::testing::pattern;
    use zeroize::Zeroizing;

    fn keys() -> Keys {
        Keys::from_master(Uuid::from_bytes([3; 16]), Zeroizing::new([42; 32])).unwrap()
    }

    fn small_pack() -> (FinishedPack, Vec<Vec<u8>>) {
        let keys = keys();
        let mut builder = PackBuilder::new(&keys, PackKind::Data, &SeededEntropy::new(1)).unwrap();
        let contents: Vec<_> = (0..3).map(|seed| pattern(20 + usize::try_from(seed).unwrap(), seed)).collect();
        for content in &contents {
            let mut plain = Vec::new();
            Compressor::new(1).unwrap().append_plain(content, &mut plain);
            let id = BlobId::of(&keys.full().unwrap().id, BlobType::Chunk, content);
            builder.append(BlobType::Chunk, id, &plain).unwrap();
        }
        (builder.finish(), contents)
    }

    #[test]
    fn the_directory_is_read_back_and_the_blobs_open() {
        let (pack, contents) = small_pack();
        let directory = read_directory(&pack.bytes, PackKind::Data).unwrap();
        assert_eq!((directory.id, directory.domain), (pack.id, keys().domain));
        assert_eq!(directory.entries, pack.entries);
        let cipher = PackCipher::new(&keys(), PackKind::Data, pack.id).unwrap();
        for (entry, content) in directory.entries.iter().zip(contents) {
            let range = usize::try_from(entry.range().start).unwrap()..usize::try_from(entry.range().end).unwrap();
            assert_eq!(blake3::hash(&pack.bytes[range.clone()]).as_bytes(), &entry.hash);
            let (mut stored, mut opened) = (pack.bytes[range].to_vec(), vec![0; content.len()]);
            let offset = u64::from(entry.offset);
            Opener::new().unwrap().chunk_into(&keys(), &cipher, &mut stored, offset, &entry.id, &mut opened).unwrap();
            assert_eq!(opened, content);
        }
    }

    #[test]
    fn every_flipped_bit_outside_the_blobs_and_every_cut_is_seen() {
        let (pack, _) = small_pack();
        let blobs = HEAD_BYTES..usize::try_from(pack.entries.last().unwrap().range().end).unwrap();
        for at in (0..pack.bytes.len()).filter(|at| !blobs.contains(at)) {
            let mut broken = pack.bytes.clone();
            broken[at] ^= 1 << (at % 8);
            assert!(read_directory(&broken, PackKind::Data).is_err(), "byte {at}");
        }
        for end in 0..pack.bytes.len() {
            assert!(read_directory(&pack.bytes[..end], PackKind::Data).is_err(), "cut at {end}");
        }
    }
}
