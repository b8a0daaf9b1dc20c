//! Fates: what became of something that two may decide about, decided once.
//!
//! A fate is an object under a name that is known beforehand, and only the first who creates it has his way. No clock
//! is asked, so it does not matter how long anybody slept in between.
//!
//! - Of a snapshot, `fate/<uuid>-a` and `-b`: its writer says *confirmed* when everything is stored; prune says *lost*
//!   when the writer's lease was not renewed. A manifest is a snapshot when its fate says confirmed. The first copy
//!   decides; the second is there for the day the first is damaged.
//! - Of a tombstone, `tomb/<id>-fate`: prune says *doomed* before it deletes the packs; whoever needs one of them says
//!   *undone*.
//!
//! Field: `1` one byte: 0 lost, 1 confirmed, 2 undone, 3 doomed. Sealed under the structure key; the AAD has the UUID of
//! the snapshot, or the id of the tombstone.

use crate::entropy::Entropy;
use crate::fields::{FieldWriter, Fields};
use crate::key::Keys;
use crate::manifest::{open_structure, seal_structure};
use crate::names::{self, Copy};
use crate::object::ObjectKind;
use crate::store::Store;
use bytes::Bytes;
use firn_disk::{Error, ErrorKind, Result};
use uuid::Uuid;

const FATE: u16 = 1;

/// What was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// This snapshot will never be: its writer lost the lease, or gave up.
    Lost = 0,
    /// This snapshot is.
    Confirmed = 1,
    /// These packs are needed; they stay.
    Undone = 2,
    /// These packs are being deleted.
    Doomed = 3,
}

impl Fate {
    const ALL: [Self; 4] = [Self::Lost, Self::Confirmed, Self::Undone, Self::Doomed];

    fn seal(self, keys: &Keys, subject: &[u8; 16], entropy: &dyn Entropy) -> Result<Bytes> {
        let mut fields = FieldWriter::default();
        fields.bytes(FATE, &[self as u8]);
        Ok(seal_structure(keys, ObjectKind::Fate, subject, &fields.finish(), entropy)?.into())
    }

    fn open(keys: &Keys, subject: &[u8; 16], object: &[u8]) -> Result<Self> {
        let fields = open_structure(keys, ObjectKind::Fate, subject, object)?;
        let [byte] = Fields::parse(&fields, "fate", &[])?.array(FATE)?;
        let known = Self::ALL.into_iter().find(|fate| *fate as u8 == byte);
        known.ok_or_else(|| Error::unsupported(format!("fate {byte} is not known")))
    }
}

fn absent<T>(read: Result<T>) -> Result<Option<T>> {
    match read {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The fate out of the answers to asking for its two copies. The first one decides where it can be read.
fn of_copies(
    keys: &Keys,
    subject: &[u8; 16],
    first: Result<Bytes>,
    second: impl FnOnce() -> Result<Bytes>,
) -> Result<Option<Fate>> {
    let read = |object: Result<Bytes>| absent(object.and_then(|object| Fate::open(keys, subject, &object)));
    match read(first) {
        Ok(Some(fate)) => Ok(Some(fate)),
        Ok(None) => read(second()),
        Err(error) => read(second())?.map(Some).ok_or(error),
    }
}

/// What became of a snapshot; `None` while it is not decided.
///
/// # Errors
/// `Corrupt` when it was decided, but no copy can be read; what the store says.
pub(crate) fn read(store: &Store, keys: &Keys, snapshot: Uuid) -> Result<Option<Fate>> {
    let get = |copy| store.get(&names::fate(snapshot, copy));
    of_copies(keys, snapshot.as_bytes(), get(Copy::A), || get(Copy::B))
}

/// What became of each of many snapshots, as [`read`].
pub(crate) fn read_each(store: &Store, keys: &Keys, snapshots: &[Uuid]) -> Vec<Result<Option<Fate>>> {
    let first = store.get_each(snapshots.iter().map(|snapshot| names::fate(*snapshot, Copy::A)).collect());
    let read = |(snapshot, first): (&Uuid, Result<Bytes>)| {
        of_copies(keys, snapshot.as_bytes(), first, || store.get(&names::fate(*snapshot, Copy::B)))
    };
    snapshots.iter().zip(first).map(read).collect()
}

/// Decides what becomes of a snapshot, unless that is decided, and answers what it is. Durable when this returns.
///
/// # Errors
/// What the store says; then it may have been decided or not.
pub(crate) fn decide(store: &Store, keys: &Keys, snapshot: Uuid, fate: Fate, entropy: &dyn Entropy) -> Result<Fate> {
    let object = fate.seal(keys, snapshot.as_bytes(), entropy)?;
    let decided = match store.create_object(&names::fate(snapshot, Copy::A), object) {
        Ok(()) => fate,
        Err(error) => read(store, keys, snapshot)?.ok_or(error)?,
    };
    // The one who was too late completes the pair as well, should the first one have been killed in between.
    let second = decided.seal(keys, snapshot.as_bytes(), entropy)?;
    match store.create_object(&names::fate(snapshot, Copy::B), second) {
        Err(error) if error.kind() != ErrorKind::Exists => {
            // It is decided all the same; the next writer completes the pair.
        }
        _ => {}
    }
    Ok(decided)
}

/// What became of a tombstone.
///
/// # Errors
/// As [`read`].
pub(crate) fn read_tombstone(store: &Store, keys: &Keys, id: [u8; 16]) -> Result<Option<Fate>> {
    absent(store.get(&names::tombstone_fate(id)).and_then(|object| Fate::open(keys, &id, &object)))
}

/// Decides what becomes of a tombstone, unless that is decided, and answers what it is.
///
/// # Errors
/// What the store says; then it may have been decided or not.
pub(crate) fn decide_tombstone(
    store: &Store,
    keys: &Keys,
    id: [u8; 16],
    fate: Fate,
    entropy: &dyn Entropy,
) -> Result<Fate> {
    match store.create_object(&names::tombstone_fate(id), fate.seal(keys, &id, entropy)?) {
        Ok(()) => Ok(fate),
        Err(error) => read_tombstone(store, keys, id)?.ok_or(error),
    }
}

/// Whether the object called `name` is a sound fate.
pub(crate) fn check(store: &Store, keys: &Keys, name: &str) -> Result<()> {
    let subject = names::parse_fate(name)
        .map(|(snapshot, _)| *snapshot.as_bytes())
        .or_else(|| names::parse_tombstone_fate(name))
        .ok_or_else(|| Error::corrupt("no fate has such a name"))?;
    Fate::open(keys, &subject, &store.get(name)?).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entropy::tests::SeededEntropy;
    use zeroize::Zeroizing;

    #[test]
    fn the_first_one_decides_and_one_copy_is_enough() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::create(folder.path().join("pool").to_str().unwrap()).unwrap();
        let keys = Keys::from_master(Uuid::from_bytes([9; 16]), Zeroizing::new([1; 32])).unwrap();
        let entropy = SeededEntropy::new(1);
        let snapshot = Uuid::from_bytes([2; 16]);
        assert_eq!(read(&store, &keys, snapshot).unwrap(), None);
        for fate in [Fate::Confirmed, Fate::Lost] {
            assert_eq!(decide(&store, &keys, snapshot, fate, &entropy).unwrap(), Fate::Confirmed);
        }
        for copy in Copy::BOTH {
            let name = names::fate(snapshot, copy);
            let object = store.get(&name).unwrap();
            store.delete(&name).unwrap();
            assert_eq!(read_each(&store, &keys, &[snapshot])[0].as_ref().unwrap(), &Some(Fate::Confirmed));
            let mut flipped = object.to_vec();
            flipped[70] ^= 1;
            store.create_object(&name, flipped.into()).unwrap();
            assert_eq!(read(&store, &keys, snapshot).unwrap(), Some(Fate::Confirmed));
            check(&store, &keys, &name).unwrap_err();
            store.delete(&name).unwrap();
            store.create_object(&name, object).unwrap();
        }
        for fate in [Fate::Doomed, Fate::Undone] {
            assert_eq!(decide_tombstone(&store, &keys, [3; 16], fate, &entropy).unwrap(), Fate::Doomed);
        }
        check(&store, &keys, &names::tombstone_fate([3; 16])).unwrap();
    }
}
