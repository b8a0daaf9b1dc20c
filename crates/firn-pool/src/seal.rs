//! Blobs: a chunk or node named by its content, compressed, and sealed in its place in a pack.
//!
//! ```text
//! id     = BLAKE3 keyed by the id key, over content, type (1), length (4)
//! plain  = codec (1: 0 raw, 1 zstd) and the content as that codec has it
//! stored = AES-256-GCM of plain, 16 bytes of tag last
//!          key   = HKDF-SHA256(data or structure key, salt = pack id, "firn 0 pack")
//!          nonce = offset of the blob in its pack, 8 bytes, and 4 zero bytes
//!          AAD   = key domain (16), type (1), id (32)
//! ```
//! A pack's id is random and new whenever a pack is written, and no two blobs of a pack share an offset, so no
//! nonce is used twice under a key. Reading checks the tag, then the id again: what comes out is what was named.

use crate::key::{Keys, Secret, derive};
use crate::names::{PackId, PackKind};
use crate::pack::PackEntry;
use firn_disk::{Error, ErrorKind, Result};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use std::fmt;
use uuid::Uuid;

/// Bytes that sealing adds to what compression leaves: codec and tag.
pub(crate) const SEAL_BYTES: usize = 1 + 16;
/// The longest content of any blob: a leaf of 4096 one-block runs is below 144 KiB, a chunk at most 128 KiB.
pub(crate) const MOST_CONTENT_BYTES: usize = 192 << 10;

const CODEC_RAW: u8 = 0;
const CODEC_ZSTD: u8 = 1;

/// What a blob holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BlobType {
    /// A piece of a disk.
    Chunk = 1,
    /// A leaf of a tree.
    Leaf = 2,
    /// An inner node of a tree.
    Inner = 3,
}

impl BlobType {
    pub(crate) fn pack_kind(self) -> PackKind {
        match self {
            Self::Chunk => PackKind::Data,
            Self::Leaf | Self::Inner => PackKind::Node,
        }
    }

    pub(crate) fn from_byte(byte: u8) -> Option<Self> {
        [Self::Chunk, Self::Leaf, Self::Inner].into_iter().find(|kind| *kind as u8 == byte)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Chunk => "chunk",
            Self::Leaf => "leaf",
            Self::Inner => "inner node",
        }
    }
}

/// The name of a blob: a keyed hash of its content.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct BlobId(pub(crate) [u8; 32]);

impl fmt::Debug for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crate::names::hex(&self.0[..8]))
    }
}

impl BlobId {
    /// The part of the id that the index goes by. 128 bits of a keyed hash do not collide.
    pub(crate) fn prefix(&self) -> [u8; 16] {
        let mut prefix = [0; 16];
        prefix.copy_from_slice(&self.0[..16]);
        prefix
    }

    /// The id of a content.
    pub(crate) fn of(key: &Secret, kind: BlobType, content: &[u8]) -> Self {
        let mut hasher = blake3::Hasher::new_keyed(key);
        // The content comes first, so that its hashing is aligned; the length keeps the three apart.
        hasher.update(content);
        hasher.update(&[kind as u8]);
        hasher.update(&u32::try_from(content.len()).unwrap_or(u32::MAX).to_le_bytes());
        Self(*hasher.finalize().as_bytes())
    }
}

/// A thread's compressor, with its buffer.
pub(crate) struct Compressor(zstd::bulk::Compressor<'static>);

impl fmt::Debug for Compressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Compressor")
    }
}

impl Compressor {
    pub(crate) fn new(level: i32) -> Result<Self> {
        let compressor = zstd::bulk::Compressor::new(level);
        Ok(Self(compressor.map_err(|error| Error::from_io("start the compressor", error))?))
    }

    /// Appends the plain form of `content` (codec and bytes) to `out`: compressed, or raw when that is not longer.
    pub(crate) fn append_plain(&mut self, content: &[u8], out: &mut Vec<u8>) {
        let start = out.len();
        out.push(CODEC_ZSTD);
        // One byte less than the content, so that what does not shrink fails and is stored raw.
        let room = content.len().saturating_sub(1);
        out.resize(start + 1 + room, 0);
        if let Ok(length) = self.0.compress_to_buffer(content, &mut out[start + 1..]) {
            out.truncate(start + 1 + length);
        } else {
            out.truncate(start);
            out.push(CODEC_RAW);
            out.extend_from_slice(content);
        }
    }
}

/// The key of one pack.
pub(crate) struct PackCipher {
    key: LessSafeKey,
    domain: Uuid,
}

impl fmt::Debug for PackCipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PackCipher")
    }
}

impl PackCipher {
    /// # Errors
    /// `Denied` for a data pack when only the structure key is known.
    pub(crate) fn new(keys: &Keys, kind: PackKind, id: PackId) -> Result<Self> {
        let above = match kind {
            PackKind::Data => &keys.full()?.data,
            PackKind::Node => &keys.structure,
        };
        let key = derive(above.as_ref(), &id.0, b"firn 0 pack")?;
        let key =
            UnboundKey::new(&AES_256_GCM, key.as_ref()).map_err(|_| Error::invalid("a key of the wrong length"))?;
        Ok(Self { key: LessSafeKey::new(key), domain: keys.domain })
    }

    fn nonce(offset: u64) -> Nonce {
        let mut nonce = [0; 12];
        nonce[..8].copy_from_slice(&offset.to_le_bytes());
        Nonce::assume_unique_for_key(nonce)
    }

    fn authenticated(&self, kind: BlobType, id: &BlobId) -> Aad<[u8; 49]> {
        let mut bytes = [0; 49];
        bytes[..16].copy_from_slice(self.domain.as_bytes());
        bytes[16] = kind as u8;
        bytes[17..].copy_from_slice(&id.0);
        Aad::from(bytes)
    }

    /// Appends `plain`, sealed, to `pack`, whose length is the blob's offset.
    pub(crate) fn append_sealed(&self, pack: &mut Vec<u8>, kind: BlobType, id: &BlobId, plain: &[u8]) -> Result<()> {
        let start = pack.len();
        pack.extend_from_slice(plain);
        let tag = self
            .key
            .seal_in_place_separate_tag(Self::nonce(start as u64), self.authenticated(kind, id), &mut pack[start..])
            .map_err(|_| Error::new(ErrorKind::Invalid, "a blob could not be sealed"))?;
        pack.extend_from_slice(tag.as_ref());
        Ok(())
    }

    /// Opens `stored` in place; what comes back is the plain form.
    fn open<'a>(&self, stored: &'a mut [u8], offset: u64, kind: BlobType, id: &BlobId) -> Result<&'a [u8]> {
        let opened = self.key.open_in_place(Self::nonce(offset), self.authenticated(kind, id), stored);
        opened.map(|plain| &*plain).map_err(|_| damaged(kind, id, "it does not open with the pool's key"))
    }
}

fn damaged(kind: BlobType, id: &BlobId, message: &str) -> Error {
    Error::corrupt(message)
        .in_structure(format!("{} {id:?}", kind.name()))
        .hint("`firn verify --read-data` lists what is damaged")
}

/// A thread's way from stored bytes back to content.
pub(crate) struct Opener(zstd::bulk::Decompressor<'static>);

impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Opener")
    }
}

impl Opener {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self(zstd::bulk::Decompressor::new().map_err(|error| Error::from_io("start the decompressor", error))?))
    }

    /// Opens a chunk straight into `content`, whose length is the chunk's.
    ///
    /// # Errors
    /// `Corrupt` when a tag, a length or the id does not hold.
    pub(crate) fn chunk_into(
        &mut self,
        keys: &Keys,
        cipher: &PackCipher,
        stored: &mut [u8],
        offset: u64,
        id: &BlobId,
        content: &mut [u8],
    ) -> Result<()> {
        let kind = BlobType::Chunk;
        let plain = cipher.open(stored, offset, kind, id)?;
        match plain.split_first() {
            Some((&CODEC_RAW, raw)) if raw.len() == content.len() => content.copy_from_slice(raw),
            Some((&CODEC_ZSTD, packed)) => match self.0.decompress_to_buffer(packed, content) {
                Ok(length) if length == content.len() => {}
                _ => return Err(damaged(kind, id, "it does not unpack to its length")),
            },
            _ => return Err(damaged(kind, id, "its codec or length makes no sense")),
        }
        if BlobId::of(&keys.full()?.id, kind, content) != *id {
            return Err(damaged(kind, id, "its content is not what it is named by"));
        }
        Ok(())
    }

    /// The plain form of a blob as it stands in a pack, after its content was compared with its name as far as the keys
    /// allow. It can be sealed again into another pack.
    ///
    /// # Errors
    /// As [`chunk_into`](Self::chunk_into).
    pub(crate) fn checked_plain<'a>(
        &mut self,
        keys: &Keys,
        cipher: &PackCipher,
        stored: &'a mut [u8],
        entry: &PackEntry,
    ) -> Result<&'a [u8]> {
        let plain = cipher.open(stored, u64::from(entry.offset), entry.kind, &entry.id)?;
        self.unpack(keys, plain, entry.kind, &entry.id)?;
        Ok(plain)
    }

    /// Opens a blob whose length is not known. Its id is checked when the id key is known; the tag alone vouches for
    /// it otherwise.
    ///
    /// # Errors
    /// As [`chunk_into`](Self::chunk_into).
    pub(crate) fn content(
        &mut self,
        keys: &Keys,
        cipher: &PackCipher,
        stored: &mut [u8],
        offset: u64,
        kind: BlobType,
        id: &BlobId,
    ) -> Result<Vec<u8>> {
        let plain = cipher.open(stored, offset, kind, id)?;
        self.unpack(keys, plain, kind, id)
    }

    fn unpack(&mut self, keys: &Keys, plain: &[u8], kind: BlobType, id: &BlobId) -> Result<Vec<u8>> {
        let content = match plain.split_first() {
            Some((&CODEC_RAW, raw)) if raw.len() <= MOST_CONTENT_BYTES => raw.to_vec(),
            Some((&CODEC_ZSTD, packed)) => {
                self.0.decompress(packed, MOST_CONTENT_BYTES).map_err(|_| damaged(kind, id, "it does not unpack"))?
            }
            _ => return Err(damaged(kind, id, "its codec or length makes no sense")),
        };
        if let Ok(full) = keys.full()
            && BlobId::of(&full.id, kind, &content) != *id
        {
            return Err(damaged(kind, id, "its content is not what it is named by"));
        }
        Ok(content)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use firn_disk::testing::pattern;
    use zeroize::Zeroizing;

    fn keys() -> Keys {
        Keys::from_master(Uuid::from_bytes([3; 16]), Zeroizing::new([42; 32])).unwrap()
    }

    fn sealed(content: &[u8]) -> (Vec<u8>, BlobId, PackCipher) {
        let keys = keys();
        let id = BlobId::of(&keys.full().unwrap().id, BlobType::Chunk, content);
        let cipher = PackCipher::new(&keys, PackKind::Data, PackId([1; 16])).unwrap();
        let mut plain = Vec::new();
        Compressor::new(1).unwrap().append_plain(content, &mut plain);
        let mut pack = vec![0; 64];
        cipher.append_sealed(&mut pack, BlobType::Chunk, &id, &plain).unwrap();
        (pack.split_off(64), id, cipher)
    }

    fn open(stored: &[u8], offset: u64, id: &BlobId, cipher: &PackCipher, length: usize) -> Result<Vec<u8>> {
        let mut content = vec![0; length];
        let mut stored = stored.to_vec();
        Opener::new().unwrap().chunk_into(&keys(), cipher, &mut stored, offset, id, &mut content)?;
        Ok(content)
    }

    #[test]
    fn what_shrinks_is_compressed_and_what_does_not_is_raw() {
        for (content, most) in [(vec![7; 8192], 100), (pattern(8192, 1), 8192 + SEAL_BYTES)] {
            let (stored, id, cipher) = sealed(&content);
            assert!(stored.len() <= most);
            assert_eq!(open(&stored, 64, &id, &cipher, content.len()).unwrap(), content);
        }
    }

    #[test]
    fn any_flipped_bit_wrong_place_name_or_length_is_refused() {
        let content = pattern(300, 2);
        let (stored, id, cipher) = sealed(&content);
        for bit in 0..stored.len() * 8 {
            let mut broken = stored.clone();
            broken[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(open(&broken, 64, &id, &cipher, 300).unwrap_err().kind(), ErrorKind::Corrupt);
        }
        open(&stored, 65, &id, &cipher, 300).unwrap_err();
        open(&stored, 64, &BlobId([0; 32]), &cipher, 300).unwrap_err();
        open(&stored, 64, &id, &cipher, 299).unwrap_err();
        open(&stored, 64, &id, &cipher, 301).unwrap_err();
        open(&stored[..10], 64, &id, &cipher, 300).unwrap_err();
        let other = PackCipher::new(&keys(), PackKind::Data, PackId([2; 16])).unwrap();
        open(&stored, 64, &id, &other, 300).unwrap_err();
    }
}
