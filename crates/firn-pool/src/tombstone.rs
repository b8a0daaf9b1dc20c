//! Tombstones: lists of packs that prune wants to delete.
//!
//! From the moment it is there, no writer that begins uses these packs for what it would otherwise store. Whether they
//! are deleted in the end is decided by the tombstone's [fate](crate::fate). `tomb/<random>` is sealed under the
//! structure key, with the random in the AAD. Field: `1` packs, 17 bytes each: kind (0 data, 1 node), pack id.

use crate::entropy::{Entropy, random_bytes};
use crate::fate::{self, Fate};
use crate::fields::{FieldWriter, Fields};
use crate::key::Keys;
use crate::manifest::{open_structure, seal_structure};
use crate::names::{self, PackId, PackKind};
use crate::object::ObjectKind;
use crate::store::{Store, StoreTime};
use firn_disk::{Error, ErrorKind, Result};

const PACKS: u16 = 1;
const PACK_BYTES: usize = 17;
/// So many packs share a tombstone, and so stay all when one of them is needed.
pub(crate) const MOST_PACKS: usize = 256;

/// A tombstone that stands in the pool.
#[derive(Debug, Clone)]
pub(crate) struct Tombstone {
    pub(crate) id: [u8; 16],
    pub(crate) put: StoreTime,
    pub(crate) packs: Vec<(PackKind, PackId)>,
    pub(crate) fate: Option<Fate>,
}

/// Puts a tombstone over at most [`MOST_PACKS`] packs.
///
/// # Errors
/// What the store says.
pub(crate) fn put(store: &Store, keys: &Keys, packs: &[(PackKind, PackId)], entropy: &dyn Entropy) -> Result<[u8; 16]> {
    let id: [u8; 16] = random_bytes(entropy)?;
    let mut bytes = Vec::with_capacity(packs.len() * PACK_BYTES);
    for (kind, pack) in packs {
        bytes.push(*kind as u8);
        bytes.extend_from_slice(&pack.0);
    }
    let mut fields = FieldWriter::default();
    fields.bytes(PACKS, &bytes);
    let object = seal_structure(keys, ObjectKind::Tombstone, &id, &fields.finish(), entropy)?;
    store.create_own(&names::tombstone(id), &object.into())?;
    Ok(id)
}

fn read(store: &Store, keys: &Keys, id: [u8; 16]) -> Result<Vec<(PackKind, PackId)>> {
    let object = store.get(&names::tombstone(id))?;
    let fields = open_structure(keys, ObjectKind::Tombstone, &id, &object)?;
    let fields = Fields::parse(&fields, "tombstone", &[])?;
    let bytes = fields.bytes(PACKS)?;
    let pack = |bytes: &[u8]| {
        let kind = PackKind::BOTH.into_iter().find(|kind| Some(&(*kind as u8)) == bytes.first());
        let id = bytes.get(1..).and_then(|id| id.try_into().ok());
        kind.zip(id.map(PackId)).ok_or_else(|| Error::corrupt("it names no pack").in_structure("tombstone"))
    };
    if bytes.len() % PACK_BYTES != 0 {
        return Err(Error::corrupt("its list of packs is cut short").in_structure("tombstone"));
    }
    bytes.chunks_exact(PACK_BYTES).map(pack).collect()
}

/// What stands in the folder of tombstones.
#[derive(Debug, Default)]
pub(crate) struct Tombstones {
    /// Those that can be read, with what became of them.
    pub(crate) sound: Vec<Tombstone>,
    /// Those that cannot.
    pub(crate) damaged: Vec<([u8; 16], StoreTime, Error)>,
    /// Fates whose tombstone is gone.
    pub(crate) stray_fates: Vec<([u8; 16], StoreTime)>,
}

/// Every tombstone and what became of it.
///
/// # Errors
/// What the store says.
pub(crate) fn list(store: &Store, keys: &Keys) -> Result<Tombstones> {
    let mut found = Tombstones::default();
    let objects = store.list("tomb")?;
    for object in &objects {
        let Some(id) = names::parse_tombstone(&object.name) else { continue };
        let put = object.modified;
        let read = read(store, keys, id).and_then(|packs| {
            let fate = fate::read_tombstone(store, keys, id)?;
            Ok(Tombstone { id, put, packs, fate })
        });
        match read {
            Ok(tombstone) => found.sound.push(tombstone),
            // Deleted since the listing, when its packs were gone.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Unsupported) => {
                found.damaged.push((id, put, error));
            }
            Err(error) => return Err(error),
        }
    }
    let stray = objects.iter().filter_map(|object| Some((names::parse_tombstone_fate(&object.name)?, object.modified)));
    found.stray_fates = stray
        .filter(|(id, _)| !objects.iter().any(|object| names::parse_tombstone(&object.name) == Some(*id)))
        .collect();
    Ok(found)
}

/// Whether the object called `name` is a sound tombstone.
pub(crate) fn check(store: &Store, keys: &Keys, name: &str) -> Result<()> {
    let id = names::parse_tombstone(name).ok_or_else(|| Error::corrupt("no tombstone has such a name"))?;
    read(store, keys, id).map(|_| ())
}
