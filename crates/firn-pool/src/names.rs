//! Names of the objects in a pool. No machine's name stands in any of them.
//!
//! ```text
//! header-a  header-b                       the pool's header, twice
//! key/<slot uuid>-a  -b                    a key slot, twice
//! data/<xx>/<pack id>                      a pack of chunks; xx = first two hex digits of the id
//! node/<xx>/<pack id>-a  -b                a pack of tree nodes, twice
//! idx/<random>                             an index segment
//! snap/<machine uuid>/<sequence>-<snapshot uuid>-a  -b     a manifest, twice
//! note/<uuid>/<n>                          what is said of a machine later; the highest valid n wins
//! lock/<snapshot uuid>-<n>                 what is said of a snapshot later: locks, and that it was forgotten
//! setting/<n>                              what is said of the pool: its limits; the highest valid n wins
//! lease/<snapshot uuid>-<n>                held by whoever writes that snapshot; renewed by the next n
//! fate/<snapshot uuid>-a  -b               whether that snapshot was confirmed or lost; the first copy decides
//! tomb/<random>                            packs that prune wants to delete
//! tomb/<random>-fate                       whether they are doomed, or the tombstone was undone
//! time/<random>                            put to learn the store's time, and deleted at once
//! ```
//! UUIDs, pack ids and randoms are 32 hex digits, sequences and n are 16, so that names sort by number.

use std::fmt;
use uuid::Uuid;

/// The two places of an object that is stored twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Copy {
    A,
    B,
}

impl Copy {
    pub(crate) const BOTH: [Self; 2] = [Self::A, Self::B];
}

impl fmt::Display for Copy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::A => "-a",
            Self::B => "-b",
        })
    }
}

/// What a pack holds; decides its folder, its key and whether it is stored twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum PackKind {
    Data,
    Node,
}

impl PackKind {
    pub(crate) const BOTH: [Self; 2] = [Self::Data, Self::Node];

    pub(crate) fn folder(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Node => "node",
        }
    }

    pub(crate) fn copies(self) -> &'static [Option<Copy>] {
        match self {
            Self::Data => &[None],
            Self::Node => &[Some(Copy::A), Some(Copy::B)],
        }
    }
}

/// 16 random bytes that name a pack and are the salt of its key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PackId(pub(crate) [u8; 16]);

impl fmt::Debug for PackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// 16 bytes out of exactly 32 lower-case hex digits.
pub(crate) fn unhex(text: &str) -> Option<[u8; 16]> {
    let digits = text.as_bytes();
    let value = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    if digits.len() != 32 {
        return None;
    }
    let mut bytes = [0; 16];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = value(pair[0])? << 4 | value(pair[1])?;
    }
    Some(bytes)
}

/// A number out of exactly 16 lower-case hex digits.
fn unhex_number(text: &str) -> Option<u64> {
    let plain = text.len() == 16 && text.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
    plain.then(|| u64::from_str_radix(text, 16).ok()).flatten()
}

pub(crate) fn header(copy: Copy) -> String {
    format!("header{copy}")
}

pub(crate) fn key_slot(slot: Uuid, copy: Copy) -> String {
    format!("key/{}{copy}", slot.simple())
}

pub(crate) fn pack(kind: PackKind, id: PackId, copy: Option<Copy>) -> String {
    let id = hex(&id.0);
    let copy = copy.map_or(String::new(), |copy| copy.to_string());
    format!("{}/{}/{id}{copy}", kind.folder(), &id[..2])
}

/// The pack that an object's name stands for, with which copy it is.
pub(crate) fn parse_pack(name: &str) -> Option<(PackKind, PackId, Option<Copy>)> {
    let (folder, rest) = name.split_once('/')?;
    let (_, file) = rest.split_once('/')?;
    let kind = PackKind::BOTH.into_iter().find(|kind| kind.folder() == folder)?;
    let (id, copy) = split_copy(file);
    let id = PackId(unhex(id)?);
    let known = kind.copies().contains(&copy) && pack(kind, id, copy) == name;
    known.then_some((kind, id, copy))
}

pub(crate) fn split_copy(name: &str) -> (&str, Option<Copy>) {
    if let Some(stem) = name.strip_suffix("-a") {
        (stem, Some(Copy::A))
    } else if let Some(stem) = name.strip_suffix("-b") {
        (stem, Some(Copy::B))
    } else {
        (name, None)
    }
}

pub(crate) fn segment(id: [u8; 16]) -> String {
    format!("idx/{}", hex(&id))
}

pub(crate) fn parse_segment(name: &str) -> Option<[u8; 16]> {
    unhex(name.strip_prefix("idx/")?)
}

pub(crate) fn manifest(machine: Uuid, sequence: u64, snapshot: Uuid, copy: Copy) -> String {
    format!("snap/{}/{sequence:016x}-{}{copy}", machine.simple(), snapshot.simple())
}

/// Machine, sequence, snapshot and copy out of a manifest's name.
pub(crate) fn parse_manifest(name: &str) -> Option<(Uuid, u64, Uuid, Copy)> {
    let (machine, file) = name.strip_prefix("snap/")?.split_once('/')?;
    let (stem, copy) = split_copy(file);
    let (sequence, snapshot) = stem.split_once('-')?;
    Some((Uuid::from_bytes(unhex(machine)?), unhex_number(sequence)?, Uuid::from_bytes(unhex(snapshot)?), copy?))
}

fn parse_numbered(rest: &str, between: char) -> Option<(Uuid, u64)> {
    let (subject, number) = rest.split_once(between)?;
    Some((Uuid::from_bytes(unhex(subject)?), unhex_number(number)?))
}

pub(crate) fn lock(snapshot: Uuid, number: u64) -> String {
    format!("lock/{}-{number:016x}", snapshot.simple())
}

pub(crate) fn parse_lock(name: &str) -> Option<(Uuid, u64)> {
    parse_numbered(name.strip_prefix("lock/")?, '-')
}

pub(crate) fn lease(snapshot: Uuid, number: u64) -> String {
    format!("lease/{}-{number:016x}", snapshot.simple())
}

pub(crate) fn parse_lease(name: &str) -> Option<(Uuid, u64)> {
    parse_numbered(name.strip_prefix("lease/")?, '-')
}

pub(crate) fn setting(number: u64) -> String {
    format!("setting/{number:016x}")
}

pub(crate) fn parse_setting(name: &str) -> Option<u64> {
    unhex_number(name.strip_prefix("setting/")?)
}

pub(crate) fn fate(snapshot: Uuid, copy: Copy) -> String {
    format!("fate/{}{copy}", snapshot.simple())
}

pub(crate) fn parse_fate(name: &str) -> Option<(Uuid, Copy)> {
    let (snapshot, copy) = split_copy(name.strip_prefix("fate/")?);
    Some((Uuid::from_bytes(unhex(snapshot)?), copy?))
}

pub(crate) fn tombstone(id: [u8; 16]) -> String {
    format!("tomb/{}", hex(&id))
}

pub(crate) fn parse_tombstone(name: &str) -> Option<[u8; 16]> {
    unhex(name.strip_prefix("tomb/")?)
}

pub(crate) fn tombstone_fate(id: [u8; 16]) -> String {
    format!("tomb/{}-fate", hex(&id))
}

pub(crate) fn parse_tombstone_fate(name: &str) -> Option<[u8; 16]> {
    unhex(name.strip_prefix("tomb/")?.strip_suffix("-fate")?)
}

pub(crate) fn probe(id: [u8; 16]) -> String {
    format!("time/{}", hex(&id))
}

pub(crate) fn note(subject: Uuid, number: u64) -> String {
    format!("note/{}/{number:016x}", subject.simple())
}

pub(crate) fn parse_note(name: &str) -> Option<(Uuid, u64)> {
    parse_numbered(name.strip_prefix("note/")?, '/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        let (a, b) = (Uuid::from_bytes([7; 16]), Uuid::from_bytes([0xAB; 16]));
        assert_eq!(parse_manifest(&manifest(a, 12, b, Copy::B)), Some((a, 12, b, Copy::B)));
        assert_eq!(parse_note(&note(a, 3)), Some((a, 3)));
        assert_eq!(parse_lock(&lock(a, 3)), Some((a, 3)));
        assert_eq!(parse_lease(&lease(a, 0)), Some((a, 0)));
        assert_eq!(parse_setting(&setting(9)), Some(9));
        assert_eq!(parse_fate(&fate(a, Copy::A)), Some((a, Copy::A)));
        assert_eq!(parse_tombstone(&tombstone([5; 16])), Some([5; 16]));
        assert_eq!(parse_tombstone(&tombstone_fate([5; 16])), None);
        assert_eq!(parse_tombstone_fate(&tombstone_fate([5; 16])), Some([5; 16]));
        for kind in PackKind::BOTH {
            for copy in kind.copies() {
                let name = pack(kind, PackId([0x1F; 16]), *copy);
                assert_eq!(parse_pack(&name), Some((kind, PackId([0x1F; 16]), *copy)), "{name}");
            }
        }
        assert_eq!(parse_segment(&segment([5; 16])), Some([5; 16]));
    }

    #[test]
    fn strange_names_are_nobody() {
        for name in ["data/00/ff", "data/1f/00000000000000000000000000000000", "node/x", "other/aa/bb", "", "data//"] {
            assert_eq!(parse_pack(name), None, "{name}");
        }
        assert_eq!(parse_manifest("snap/x/y-z-a"), None);
        for number in ["+000000000000001", "00000000000000AB", "1"] {
            assert_eq!(parse_note(&format!("note/{}/{number}", "0".repeat(32))), None, "{number}");
        }
        assert_eq!(unhex("0000000000000000000000000000000G"), None);
        assert_eq!(unhex("ÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄ"), None);
    }
}
