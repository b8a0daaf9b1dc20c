//! The frame that every object of a pool starts with, and the checksum that small objects end with.
//!
//! ```text
//!  0  8  magic "FIRNPOOL"
//!  8  1  kind: 1 header, 2 key slot, 3 data pack, 4 node pack, 5 index segment, 6 manifest, 7 note,
//!                8 lease, 9 fate, 10 tombstone, 11 probe
//!  9  1  format version: 0
//! 10  2  zero
//! 12  4  incompat features    an unknown bit: refuse to read
//! 16  4  rocompat features    an unknown bit: refuse to write
//! 20  4  compat features      unknown bits do not matter
//! 24  8  zero
//! 32 16  key domain
//! 48  …  payload
//! -32 32 BLAKE3 of everything before it (small objects; a pack has its own trailer)
//! ```
//! Numbers are little endian throughout the pool.

use firn_disk::{Error, Record, Result};
use uuid::Uuid;

/// The format version that this program writes and reads. Version 0 is not frozen.
pub(crate) const FORMAT_VERSION: u8 = 0;
/// Length in bytes of the frame in front of the payload.
pub(crate) const FRAME_BYTES: usize = 48;
/// Length in bytes of the checksum after the payload.
pub(crate) const CHECKSUM_BYTES: usize = 32;

const MAGIC: &[u8; 8] = b"FIRNPOOL";
/// In the header: a manifest is a snapshot only when its fate says so, and writers hold leases.
pub(crate) const TWO_PHASE: u32 = 1;
/// Features of objects other than the header that this program knows: none yet.
const KNOWN_INCOMPAT: u32 = 0;
const KNOWN_ROCOMPAT: u32 = 0;

/// What an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ObjectKind {
    Header = 1,
    KeySlot = 2,
    DataPack = 3,
    NodePack = 4,
    IndexSegment = 5,
    Manifest = 6,
    Note = 7,
    Lease = 8,
    Fate = 9,
    Tombstone = 10,
    Probe = 11,
}

impl ObjectKind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Header => "pool header",
            Self::KeySlot => "key slot",
            Self::DataPack => "data pack",
            Self::NodePack => "node pack",
            Self::IndexSegment => "index segment",
            Self::Manifest => "manifest",
            Self::Note => "note",
            Self::Lease => "lease",
            Self::Fate => "fate",
            Self::Tombstone => "tombstone",
            Self::Probe => "probe",
        }
    }
}

/// The frame of a new object.
pub(crate) fn frame(kind: ObjectKind, domain: Uuid) -> [u8; FRAME_BYTES] {
    let mut frame = [0; FRAME_BYTES];
    frame[..8].copy_from_slice(MAGIC);
    frame[8] = kind as u8;
    frame[9] = FORMAT_VERSION;
    frame[32..].copy_from_slice(domain.as_bytes());
    frame
}

/// What a frame says beyond its kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) domain: Uuid,
    /// Whether an unknown feature forbids writing to what this object describes.
    pub(crate) read_only: bool,
    /// The features without which it cannot be read, all of them known.
    pub(crate) incompat: u32,
}

/// Reads the frame of an object that should be of `kind`.
///
/// # Errors
/// `Corrupt` when it is something else, `Unsupported` for a later version or an unknown feature.
pub(crate) fn read_frame(bytes: &[u8], kind: ObjectKind) -> Result<Frame> {
    let record = Record::new(bytes, kind.name(), 0);
    if &record.array::<8>(0)? != MAGIC {
        return Err(record.corrupt(0, "this is no object of a pool"));
    }
    let newer = |error: Error| error.hint("a newer firn wrote this pool; use that one");
    if record.u8(9)? != FORMAT_VERSION {
        let message = format!("format version {} is not known", record.u8(9)?);
        return Err(newer(record.unsupported(9, message)));
    }
    if record.u8(8)? != kind as u8 {
        return Err(record.corrupt(8, format!("an object of kind {} stands here", record.u8(8)?)));
    }
    let incompat = record.le_u32(12)?;
    let known = if kind == ObjectKind::Header { TWO_PHASE } else { KNOWN_INCOMPAT };
    let unknown = incompat & !known;
    if unknown != 0 {
        return Err(newer(record.unsupported(12, format!("unknown features {unknown:#x}"))));
    }
    let read_only = record.le_u32(16)? & !KNOWN_ROCOMPAT != 0;
    Ok(Frame { domain: Uuid::from_bytes(record.array(32)?), read_only, incompat })
}

/// A whole small object: frame, payload, checksum.
pub(crate) fn seal_small(kind: ObjectKind, domain: Uuid, payload: &[u8]) -> Vec<u8> {
    seal_with_features(kind, domain, 0, payload)
}

/// A small object that readers must refuse who do not know the features `incompat`.
pub(crate) fn seal_with_features(kind: ObjectKind, domain: Uuid, incompat: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(FRAME_BYTES + payload.len() + CHECKSUM_BYTES);
    bytes.extend_from_slice(&frame(kind, domain));
    bytes[12..16].copy_from_slice(&incompat.to_le_bytes());
    bytes.extend_from_slice(payload);
    let checksum = blake3::hash(&bytes);
    bytes.extend_from_slice(checksum.as_bytes());
    bytes
}

/// Frame and payload of a small object whose checksum holds.
///
/// # Errors
/// As [`read_frame`]; `Corrupt` when the checksum does not hold.
pub(crate) fn open_small(bytes: &[u8], kind: ObjectKind) -> Result<(Frame, &[u8])> {
    let corrupt = |message: &str| Error::corrupt(message).in_structure(kind.name());
    let Some(end) = bytes.len().checked_sub(CHECKSUM_BYTES).filter(|end| *end >= FRAME_BYTES) else {
        return Err(corrupt("it is cut short"));
    };
    // A later version may end differently, so it is told apart before the checksum is tried.
    let frame = read_frame(bytes, kind);
    if matches!(&frame, Err(error) if error.kind() == firn_disk::ErrorKind::Unsupported) && checksum_holds(bytes, end) {
        return frame.map(|frame| (frame, &[][..]));
    }
    if !checksum_holds(bytes, end) {
        return Err(corrupt("its checksum does not hold"));
    }
    Ok((frame?, &bytes[FRAME_BYTES..end]))
}

/// Whether a small object of whatever kind is as it was written.
pub(crate) fn checksum_of_any_holds(bytes: &[u8]) -> bool {
    bytes.len().checked_sub(CHECKSUM_BYTES).is_some_and(|end| end >= FRAME_BYTES && checksum_holds(bytes, end))
}

fn checksum_holds(bytes: &[u8], end: usize) -> bool {
    blake3::hash(&bytes[..end]).as_bytes() == &bytes[end..]
}

#[cfg(test)]
mod tests {
    use super::*;
    use firn_disk::ErrorKind;

    #[test]
    fn a_small_object_is_read_back_and_every_flipped_bit_is_seen() {
        let domain = Uuid::from_bytes([9; 16]);
        let object = seal_small(ObjectKind::Note, domain, b"payload");
        let (frame, payload) = open_small(&object, ObjectKind::Note).unwrap();
        assert_eq!((frame.domain, frame.read_only, payload), (domain, false, &b"payload"[..]));
        for bit in 0..object.len() * 8 {
            let mut broken = object.clone();
            broken[bit / 8] ^= 1 << (bit % 8);
            open_small(&broken, ObjectKind::Note).unwrap_err();
        }
        for end in 0..object.len() {
            open_small(&object[..end], ObjectKind::Note).unwrap_err();
        }
        assert_eq!(open_small(&object, ObjectKind::Manifest).unwrap_err().kind(), ErrorKind::Corrupt);
    }

    #[test]
    fn unknown_features_and_versions_are_refused_by_name() {
        let rewrite = |at: usize| {
            let mut object = seal_small(ObjectKind::Header, Uuid::nil(), b"x");
            object[at] |= 0x80;
            let end = object.len() - CHECKSUM_BYTES;
            let checksum = blake3::hash(&object[..end]);
            object[end..].copy_from_slice(checksum.as_bytes());
            object
        };
        for at in [9, 12, 15] {
            let error = open_small(&rewrite(at), ObjectKind::Header).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
            assert!(error.next_step().unwrap().contains("newer"));
        }
        assert!(open_small(&rewrite(16), ObjectKind::Header).unwrap().0.read_only);
        assert!(!open_small(&rewrite(20), ObjectKind::Header).unwrap().0.read_only);
    }
}
