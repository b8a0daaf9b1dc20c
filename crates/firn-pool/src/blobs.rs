//! Reading blobs: find them in the index, fetch them in few and large pieces, open them.

use crate::index::{Index, Location};
use crate::key::Keys;
use crate::names::{self, Copy};
use crate::seal::{BlobId, BlobType, Opener, PackCipher};
use crate::store::Store;
use bytes::Bytes;
use firn_disk::{Error, Result};
use std::ops::Range;

/// Neighbours in a pack that are no further apart than this are fetched as one.
const GAP_BYTES: u64 = 64 << 10;
/// A single fetch is no longer than this.
const FETCH_BYTES: u64 = 4 << 20;

/// Store, index and keys: what it takes to turn an id into content.
#[derive(Debug)]
pub(crate) struct Blobs {
    pub(crate) store: Store,
    pub(crate) index: Index,
    pub(crate) keys: Keys,
}

/// A chunk that is wanted, and where its content goes. The length of `content` is the chunk's.
#[derive(Debug)]
pub(crate) struct WantedChunk<'a> {
    pub(crate) id: BlobId,
    pub(crate) content: &'a mut [u8],
}

/// A piece of a pack that holds one or more wanted chunks.
#[derive(Debug)]
struct Fetch {
    first: Location,
    range: Range<u64>,
    /// Indexes into the list of what is wanted.
    wanted: Vec<usize>,
}

impl Blobs {
    /// Where a blob stands that must be there. A snapshot may be newer than what this process knows of the index, so
    /// the index is looked at again before the blob is given up.
    ///
    /// # Errors
    /// `Corrupt` when it is in no pack.
    pub(crate) fn locate(&self, id: &BlobId) -> Result<Location> {
        let find = || match self.index.find_usable(id)? {
            Some(location) => Ok(Some(location)),
            None => Ok(self.index.find_all(id)?.into_iter().next()),
        };
        if let Some(location) = find()? {
            return Ok(location);
        }
        let newer = self.index.refresh(&self.store, self.keys.domain)?;
        let found = if newer { find()? } else { None };
        found.ok_or_else(|| {
            Error::corrupt(format!("blob {id:?} is in no pack that the index knows"))
                .hint("`firn pool rebuild-index` makes the index again from the packs")
        })
    }

    /// The content of a tree node; when one copy is damaged or gone, of another.
    ///
    /// # Errors
    /// What went wrong with the first copy, when none can be read.
    pub(crate) fn node(&self, kind: BlobType, id: &BlobId) -> Result<Vec<u8>> {
        let first = match self.node_anywhere(kind, id)? {
            Ok(content) => return Ok(content),
            Err(first) => first,
        };
        // Prune may have moved it since this process looked at the index.
        if first.is_none() || self.index.refresh(&self.store, self.keys.domain)? {
            self.locate(id)?;
            if let Ok(content) = self.node_anywhere(kind, id)? {
                return Ok(content);
            }
        }
        Err(first.unwrap_or_else(|| Error::corrupt(format!("node {id:?} cannot be read"))))
    }

    /// The content of a node from any place that is known; the inner error is what went wrong with the first.
    fn node_anywhere(&self, kind: BlobType, id: &BlobId) -> Result<std::result::Result<Vec<u8>, Option<Error>>> {
        let mut first = None;
        for location in self.index.find_all(id)? {
            for copy in Copy::BOTH {
                match self.node_at(kind, id, &location, copy) {
                    Ok(content) => return Ok(Ok(content)),
                    Err(error) => first = first.or(Some(error)),
                }
            }
        }
        Ok(Err(first))
    }

    fn node_at(&self, kind: BlobType, id: &BlobId, location: &Location, copy: Copy) -> Result<Vec<u8>> {
        let cipher = PackCipher::new(&self.keys, location.kind, location.pack)?;
        let name = names::pack(location.kind, location.pack, Some(copy));
        let stored = self.store.get_range(&name, location.range())?;
        exactly(stored, location)
            .and_then(|stored| {
                Opener::new()?.content(&self.keys, &cipher, &mut stored.to_vec(), location.offset, kind, id)
            })
            .map_err(|error| error.at_path(self.path(&name)))
    }

    /// Fills in every wanted chunk. Up to 16 fetches run at once. A chunk that cannot be read where it is looked for
    /// first is read from wherever else it stands.
    ///
    /// # Errors
    /// The first failure; the contents are then undefined.
    pub(crate) fn chunks(&self, mut wanted: Vec<WantedChunk<'_>>) -> Result<()> {
        if wanted.is_empty() {
            return Ok(());
        }
        let locations = wanted.iter().map(|chunk| self.locate(&chunk.id)).collect::<Result<Vec<_>>>()?;
        let Err(first) = self.chunks_at(&mut wanted, &locations) else { return Ok(()) };
        // Prune may have moved some of them since this process looked at the index.
        self.index.refresh(&self.store, self.keys.domain)?;
        for chunk in &mut wanted {
            let places = self.index.find_all(&chunk.id)?;
            let read = places
                .iter()
                .any(|place| self.chunks_at(std::slice::from_mut(chunk), std::slice::from_ref(place)).is_ok());
            if !read {
                return Err(first);
            }
        }
        Ok(())
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        std::path::Path::new(self.store.location()).join(name)
    }

    /// Fills in chunks that stand at `locations`.
    fn chunks_at(&self, wanted: &mut [WantedChunk<'_>], locations: &[Location]) -> Result<()> {
        let fetches = plan(locations);
        let names = fetches.iter().map(|f| (names::pack(f.first.kind, f.first.pack, None), f.range.clone()));
        let pieces = self.store.get_many(names.collect())?;
        let mut opener = Opener::new()?;
        let mut stored = Vec::new();
        for (fetch, piece) in fetches.iter().zip(pieces) {
            let cipher = PackCipher::new(&self.keys, fetch.first.kind, fetch.first.pack)?;
            for &number in &fetch.wanted {
                let location = &locations[number];
                let start = usize::try_from(location.offset - fetch.range.start).unwrap_or(usize::MAX);
                let length = usize::try_from(location.length).unwrap_or(usize::MAX);
                let bytes = start.checked_add(length).and_then(|end| piece.get(start..end)).ok_or_else(cut_short);
                let WantedChunk { id, content } = &mut wanted[number];
                bytes
                    .and_then(|bytes| {
                        stored.clear();
                        stored.extend_from_slice(bytes);
                        opener.chunk_into(&self.keys, &cipher, &mut stored, location.offset, id, content)
                    })
                    .map_err(|error| error.at_path(self.path(&names::pack(location.kind, location.pack, None))))?;
            }
        }
        Ok(())
    }
}

fn cut_short() -> Error {
    Error::corrupt("the pack is cut short").hint("`firn verify` lists what is damaged")
}

fn exactly(stored: Bytes, location: &Location) -> Result<Bytes> {
    if stored.len() as u64 == location.length { Ok(stored) } else { Err(cut_short()) }
}

/// Joins neighbours into fetches.
fn plan(locations: &[Location]) -> Vec<Fetch> {
    let mut order: Vec<usize> = (0..locations.len()).collect();
    order.sort_unstable_by_key(|&number| locations[number]);
    let mut fetches: Vec<Fetch> = Vec::new();
    for number in order {
        let location = locations[number];
        let range = location.range();
        match fetches.last_mut() {
            Some(last)
                if last.first.pack == location.pack
                    && range.start <= last.range.end + GAP_BYTES
                    && range.end - last.range.start <= FETCH_BYTES =>
            {
                last.range.end = last.range.end.max(range.end);
                last.wanted.push(number);
            }
            _ => fetches.push(Fetch { first: location, range, wanted: vec![number] }),
        }
    }
    fetches
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::{PackId, PackKind};

    #[test]
    fn neighbours_are_fetched_together_and_far_ones_apart() {
        let at = |pack: u8, offset: u64, length: u64| Location {
            kind: PackKind::Data,
            pack: PackId([pack; 16]),
            offset,
            length,
        };
        let far = 2 * GAP_BYTES;
        let fetches = plan(&[at(1, 100, 50), at(2, 0, 10), at(1, 0, 50), at(1, far + 200, 10), at(1, 0, 50)]);
        let shape: Vec<_> = fetches.iter().map(|f| (f.first.pack.0[0], f.range.clone(), f.wanted.len())).collect();
        assert_eq!(shape, [(1, 0..150, 3), (1, far + 200..far + 210, 1), (2, 0..10, 1)]);
        let long: Vec<_> = (0..100).map(|number| at(1, number * 100_000, 100_000)).collect();
        assert!(plan(&long).iter().all(|fetch| fetch.range.end - fetch.range.start <= FETCH_BYTES));
    }
}
