//! Classic snapshots: what an origin was before it changed, chunk by chunk, in a store.
//!
//! ```text
//! chunk 0                     0 "SnAp"  4 valid  8 version 1  12 sectors of a chunk
//! chunk 1                     exceptions: chunk of the origin, chunk of the store, 16 bytes each; 0 ends the list
//! chunk 2 …                   the chunks that the exceptions of chunk 1 name
//! chunk 1 + (n + 1) * area    the next n exceptions, when those before are all in use
//! ```
//! A snapshot that ran full says that it is not valid, and is refused. Source: Linux,
//! drivers/md/dm-snap-persistent.c.

use firn_disk::{Disk, Error, ErrorKind, Extent, ExtentKind, Record, Result, SharedDisk, check_range};

const MAGIC: u32 = 0x7041_6E53;
const SECTOR: u64 = 512;
/// Largest chunk; LVM2's own limit is 512 KiB.
const MAX_CHUNK: u64 = 16 << 20;
/// Most exceptions: 128 GiB in chunks of 4 KiB. They are kept in memory, 16 bytes each.
const MAX_EXCEPTIONS: usize = 1 << 25;

/// A snapshot as it was when it was taken, with what was written to it since.
#[derive(Debug)]
pub(super) struct Snapshot {
    origin: SharedDisk,
    store: SharedDisk,
    chunk: u64,
    length: u64,
    /// Chunk of the origin, chunk of the store; sorted.
    exceptions: Vec<(u64, u64)>,
}

impl Snapshot {
    /// The snapshot of the first `length` bytes of `origin` that `store` keeps.
    ///
    /// # Errors
    /// `Unavailable` when it ran full; `Corrupt` when the store makes no sense; `Unsupported` for a later version.
    pub(super) fn open(origin: SharedDisk, store: SharedDisk, length: u64) -> Result<Self> {
        let mut buf = [0; 16];
        let header = Record::read(&store, &mut buf, 0, "snapshot store")?;
        if header.le_u32(0)? != MAGIC {
            return Err(header.corrupt(0, "it has no magic"));
        }
        if header.le_u32(4)? != 1 {
            let what = "the snapshot is not valid any more: its store ran full";
            return Err(Error::new(ErrorKind::Unavailable, what));
        }
        if header.le_u32(8)? != 1 {
            return Err(header.unsupported(8, format!("version {}", header.le_u32(8)?)));
        }
        let chunk = u64::from(header.le_u32(12)?) * SECTOR;
        if !chunk.is_power_of_two() || chunk > MAX_CHUNK {
            return Err(header.corrupt(12, format!("chunks of {chunk} bytes")));
        }
        if length > origin.len() {
            return Err(Error::corrupt(format!("the snapshot has {length} bytes, its origin {}", origin.len())));
        }
        let exceptions = read_exceptions(&store, chunk)?;
        Ok(Self { origin, store, chunk, length, exceptions })
    }

    /// Where `offset` is to be read, and how far that holds.
    fn place_of(&self, offset: u64) -> (&SharedDisk, u64, u64) {
        let (chunk, within) = (offset / self.chunk, offset % self.chunk);
        let at = self.exceptions.partition_point(|(old, _)| *old < chunk);
        match self.exceptions.get(at) {
            Some((old, new)) if *old == chunk => {
                (&self.store, new.saturating_mul(self.chunk).saturating_add(within), self.chunk - within)
            }
            Some((next, _)) => (&self.origin, offset, next.saturating_mul(self.chunk).saturating_sub(offset)),
            None => (&self.origin, offset, u64::MAX),
        }
    }
}

fn read_exceptions(store: &SharedDisk, chunk: u64) -> Result<Vec<(u64, u64)>> {
    let mut exceptions: Vec<(u64, u64)> = Vec::new();
    let per_area = chunk / 16;
    let chunks = store.len() / chunk;
    let mut bytes = vec![0; usize::try_from(chunk).unwrap_or(0)];
    // Each turn begins a whole chunk further on in the store, which is not endless.
    'areas: for area in 0.. {
        let at = per_area.saturating_add(1).saturating_mul(area).saturating_add(1).saturating_mul(chunk);
        let record = Record::read(store, &mut bytes, at, "snapshot exceptions")?;
        for entry in 0..usize::try_from(per_area).unwrap_or(0) {
            let (old, new) = (record.le_u64(16 * entry)?, record.le_u64(16 * entry + 8)?);
            if new == 0 {
                break 'areas;
            }
            if new >= chunks {
                return Err(record.corrupt(16 * entry, format!("chunk {old} is to be at chunk {new} of {chunks}")));
            }
            exceptions.push((old, new));
        }
        if exceptions.len() > MAX_EXCEPTIONS {
            return Err(Error::unsupported("the snapshot has too many exceptions"));
        }
    }
    exceptions.sort_by_key(|(old, _)| *old);
    if let Some(pair) = exceptions.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return Err(Error::corrupt(format!("chunk {} is there twice", pair[0].0)).in_structure("snapshot exceptions"));
    }
    Ok(exceptions)
}

impl Disk for Snapshot {
    fn len(&self) -> u64 {
        self.length
    }

    fn logical_block_size(&self) -> u32 {
        self.origin.logical_block_size()
    }

    fn read_at(&self, mut buf: &mut [u8], mut offset: u64) -> Result<()> {
        check_range(offset, buf.len() as u64, self.length)?;
        while !buf.is_empty() {
            let (disk, at, left) = self.place_of(offset);
            let count = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
            let (now, later) = buf.split_at_mut(count);
            disk.read_at(now, at)?;
            buf = later;
            offset += count as u64;
        }
        Ok(())
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        check_range(offset, 1, self.length)?;
        let (disk, at, left) = self.place_of(offset);
        let left = left.min(self.length - offset);
        let known = disk.extent_at(at).unwrap_or(Extent { kind: ExtentKind::Data, length: left });
        Ok(Extent { length: known.length.min(left), ..known })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use firn_disk::MemDisk;
    use firn_disk::testing::{self, Random};
    use std::sync::Arc;

    const CHUNK: usize = 512;

    /// A store in which every third chunk of a hundred was saved, and the whole snapshot.
    fn store(origin: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let mut store = testing::pattern(120 * CHUNK, 9);
        let mut whole = origin.to_vec();
        for (at, word) in [0x7041_6E53_u32, 1, 1, 1].into_iter().enumerate() {
            store[4 * at..4 * at + 4].copy_from_slice(&word.to_le_bytes());
        }
        // 32 exceptions in each of the areas at chunks 1 and 34.
        store[CHUNK..2 * CHUNK].fill(0);
        store[34 * CHUNK..35 * CHUNK].fill(0);
        for number in 0..34 {
            let (area, entry) = (number / 32, number % 32);
            let (old, new) = (number * 3, 2 + number + usize::from(number >= 32));
            let at = (1 + 33 * area) * CHUNK + 16 * entry;
            store[at..at + 8].copy_from_slice(&(old as u64).to_le_bytes());
            store[at + 8..at + 16].copy_from_slice(&(new as u64).to_le_bytes());
            whole[old * CHUNK..(old + 1) * CHUNK].copy_from_slice(&store[new * CHUNK..(new + 1) * CHUNK]);
        }
        (store, whole)
    }

    fn open(origin: &[u8], store: Vec<u8>) -> Result<Snapshot> {
        let memory = |bytes: Vec<u8>| -> SharedDisk { Arc::new(MemDisk::from(bytes)) };
        Snapshot::open(memory(origin.to_vec()), memory(store), origin.len() as u64)
    }

    #[test]
    fn saved_chunks_come_from_the_store_and_others_from_the_origin() {
        let origin = testing::pattern(100 * CHUNK, 8);
        let (bytes, whole) = store(&origin);
        testing::check_disk(&open(&origin, bytes.clone()).unwrap(), &whole, 4);
        let mut full = bytes.clone();
        full[4] = 0;
        let error = open(&origin, full).unwrap_err();
        assert_eq!((error.kind(), error.to_string().contains("ran full")), (ErrorKind::Unavailable, true), "{error}");
        let mut twice = bytes.clone();
        twice[CHUNK] = 3;
        assert!(open(&origin, twice).unwrap_err().to_string().contains("there twice"));
    }

    #[test]
    fn damaged_stores_never_panic_or_hang() {
        let origin = testing::pattern(100 * CHUNK, 8);
        let (bytes, _) = store(&origin);
        let seed = 61;
        eprintln!("seed {seed}");
        let mut random = Random::new(seed);
        for _ in 0..3000 {
            let mut changed = bytes.clone();
            for _ in 0..=random.below(4) {
                let at = [0, 16, CHUNK as u64 * 2, 35 * CHUNK as u64][usize::try_from(random.below(4)).unwrap()];
                let at = usize::try_from(random.below(at.max(16))).unwrap();
                changed[at] = random.next_u64().to_le_bytes()[0];
            }
            let Ok(snapshot) = open(&origin, changed) else { continue };
            let _ = snapshot.read_at(&mut vec![0; origin.len()], 0);
            let _ = snapshot.extent_at(random.below(snapshot.len()));
        }
    }
}
