//! The index from the packs alone, and packs that a killed writer left without an index.

use crate::fate::Fate;
use crate::index::SegmentBuilder;
use crate::names::{self, Copy, PackId, PackKind};
use crate::pack::{Directory, DirectoryReader};
use crate::pool::Pool;
use crate::store::{ObjectInfo, Store};
use crate::tombstone;
use crate::verify::Problem;
use firn_disk::{Error, ErrorKind, Result};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;

/// Entries in one segment at most, so that reading it stays within 6 MB.
const SEGMENT_ENTRIES: usize = 1 << 18;

/// Packs with the objects that are their copies.
pub(crate) type StoredPacks = BTreeMap<(PackKind, PackId), Vec<(Option<Copy>, ObjectInfo)>>;

/// Every pack in the store with the sizes of its copies.
pub(crate) fn stored_packs(store: &Store) -> Result<StoredPacks> {
    let mut packs = StoredPacks::new();
    for kind in PackKind::BOTH {
        for object in store.list(kind.folder())? {
            if let Some((kind, id, copy)) = names::parse_pack(&object.name) {
                packs.entry((kind, id)).or_default().push((copy, object));
            }
        }
    }
    Ok(packs)
}

/// The directory of a stored pack, in one or two reads of its end and one of its head.
pub(crate) fn fetch_directory(store: &Store, kind: PackKind, object: &ObjectInfo) -> Result<Directory> {
    let fetch = || {
        let reader = DirectoryReader::new(object.size)?;
        let likely = reader.likely_tail();
        let start = likely.start;
        let pieces = store.get_many(vec![(object.name.clone(), reader.head()), (object.name.clone(), likely)])?;
        let [head, end] = pieces.as_slice() else { return Err(Error::corrupt("the pack is cut short")) };
        let tail = reader.tail(end)?;
        match tail.start.checked_sub(start).and_then(|skip| end.get(usize::try_from(skip).ok()?..)) {
            Some(bytes) => reader.read(kind, head, bytes),
            None => reader.read(kind, head, &store.get_range(&object.name, tail)?),
        }
    };
    fetch().map_err(|error| error.at_path(Path::new(store.location()).join(&object.name)))
}

impl Pool {
    /// Compares the index with the packs that are stored. Packs in no segment, the work of a snapshot that was killed,
    /// are made known; packs that are lost or cut short are kept in mind, and so are those under a tombstone: what stands
    /// in them is stored again. Answers the tombstones that may still take effect, and the bytes of all packs.
    ///
    /// The caller holds a lease already, so that no tombstone is put unseen that does not wait for it. Tombstones are
    /// listed before packs: one that is gone by then took its packs along.
    ///
    /// A pack that cannot be read is left alone; `firn verify` tells of it.
    pub(crate) fn reconcile_packs(&self) -> Result<(BTreeSet<[u8; 16]>, u64)> {
        let blobs = self.blobs();
        let tombstones = tombstone::list(&blobs.store, &blobs.keys)?;
        if let Some((id, _, error)) = tombstones.damaged.into_iter().next() {
            let hint =
                "`firn prune` removes it when it is a day old; until then it is not known which packs to keep off";
            return Err(error.at_path(Path::new(blobs.store.location()).join(names::tombstone(id))).hint(hint));
        }
        let standing: Vec<_> =
            tombstones.sound.into_iter().filter(|tombstone| tombstone.fate != Some(Fate::Undone)).collect();
        blobs.index.refresh(&blobs.store, blobs.keys.domain)?;
        let mut stored = stored_packs(&blobs.store)?;
        let bytes = stored.values().flatten().map(|(_, object)| object.size).sum();
        let doomed: HashSet<PackId> =
            standing.iter().flat_map(|tombstone| tombstone.packs.iter().map(|(_, id)| *id)).collect();
        stored.retain(|(_, id), _| !doomed.contains(id));
        let mut usable = HashSet::new();
        for pack in blobs.index.packs() {
            let copies = stored.remove(&(pack.kind, pack.id)).unwrap_or_default();
            if copies.iter().any(|(_, object)| object.size == u64::from(pack.size)) {
                usable.insert(pack.id);
            }
        }
        blobs.index.set_usable(usable);
        stored.retain(|(kind, _), copies| is_complete(*kind, copies));
        self.index_packs(stored, &mut |_| {})?;
        Ok((standing.into_iter().map(|tombstone| tombstone.id).collect(), bytes))
    }

    /// Makes the index again from the packs alone. Answers what could not be read.
    ///
    /// Safe beside writers: the new segments are there before the old ones go, and segments that were written
    /// meanwhile stay.
    ///
    /// # Errors
    /// What the store says; `Unsupported`, `Denied` when the pool cannot be written.
    pub fn rebuild_index(&self) -> Result<Vec<Problem>> {
        self.writable()?;
        rebuild(&self.blobs().store, |packs, report| self.index_packs(packs, report))
    }

    fn index_packs(&self, packs: StoredPacks, report: &mut dyn FnMut(Problem)) -> Result<()> {
        let blobs = self.blobs();
        let publish = |builder: SegmentBuilder| -> Result<()> {
            let id = crate::entropy::random_bytes(self.entropy())?;
            blobs.index.publish(&blobs.store, id, builder, blobs.keys.domain)
        };
        let mut builder = SegmentBuilder::default();
        let mut entries = 0;
        for ((kind, id), copies) in packs {
            let Some((size, directory)) = readable(&blobs.store, kind, id, &copies, blobs.keys.domain, report)? else {
                continue;
            };
            entries += directory.entries.len();
            builder.add(kind, id, size, &directory.entries);
            if entries >= SEGMENT_ENTRIES {
                publish(std::mem::take(&mut builder))?;
                entries = 0;
            }
        }
        if builder.is_empty() { Ok(()) } else { publish(builder) }
    }
}

fn is_complete(kind: PackKind, copies: &[(Option<Copy>, ObjectInfo)]) -> bool {
    copies.len() == kind.copies().len()
}

/// The directory of whichever copy can be read, if one can.
fn readable(
    store: &Store,
    kind: PackKind,
    id: PackId,
    copies: &[(Option<Copy>, ObjectInfo)],
    domain: uuid::Uuid,
    report: &mut dyn FnMut(Problem),
) -> Result<Option<(u64, Directory)>> {
    for (_, object) in copies {
        match fetch_directory(store, kind, object) {
            Ok(directory) if directory.id == id && directory.domain == domain => {
                return Ok(Some((object.size, directory)));
            }
            Ok(_) => report(Problem::object(&object.name, "it is another pack than its name says")),
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                report(Problem::object(&object.name, error.to_string()))
            }
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

fn rebuild(
    store: &Store,
    index: impl FnOnce(StoredPacks, &mut dyn FnMut(Problem)) -> Result<()>,
) -> Result<Vec<Problem>> {
    // In this order, every pack that an old segment names is in the listing of packs, unless it is gone.
    let old: Vec<_> =
        store.list("idx")?.into_iter().filter(|object| names::parse_segment(&object.name).is_some()).collect();
    let mut problems = Vec::new();
    index(stored_packs(store)?, &mut |problem| problems.push(problem))?;
    old.iter().try_for_each(|object| store.delete(&object.name))?;
    Ok(problems)
}
