//! Runs: a sorted index of many segments in one file of the cache folder, mapped into memory.
//!
//! ```text
//!  0  8  magic "FIRNRUN0"
//!  8  4  count of segments    12 4 count of packs    16 8 count of entries
//! 24 32  BLAKE3 of the first 24 bytes, the segments and the packs
//! 56  …  segments, 16 bytes: the random names of the segments it was made of
//!     …  packs and entries as in a segment
//! ```
//! A run only saves fetching; whatever is wrong with one, it is thrown away and made again. The entries are not
//! under the checksum, as reading hundreds of megabytes at every start would cost more than the run saves: an
//! entry that is wrong leads to a blob that does not open, never to wrong data.

use super::Location;
use super::segment::{
    self, ENTRY_BYTES, Entry, IndexedPack, MOST_PACKS, PACK_BYTES, Segment, entry_to_bytes, pack_number, renumber,
};
use crate::mapping;
use crate::names::hex;
use firn_disk::{Error, Record, Result};
use memmap2::Mmap;
use std::io::{BufWriter, Write};
use std::ops::Deref;
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 8] = b"FIRNRUN0";
const HEAD_BYTES: usize = 56;
const SUFFIX: &str = "run";

#[derive(Debug)]
enum Bytes {
    Mapped(Mmap, PathBuf),
    Owned(Vec<u8>),
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(mapping, _) => mapping,
            Self::Owned(bytes) => bytes,
        }
    }
}

/// A sorted index of some segments.
#[derive(Debug)]
pub(super) struct Run {
    bytes: Bytes,
    segments: Vec<[u8; 16]>,
    packs_at: usize,
    entries_at: usize,
    entry_count: usize,
}

impl Run {
    /// Every sound run in `folder`, no two of which share a segment. What is not sound is removed.
    pub(super) fn load_all(folder: &Path) -> Vec<Self> {
        let files = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
        let mut runs: Vec<Self> = Vec::new();
        for path in files.filter(|path| path.extension().is_some_and(|suffix| suffix == SUFFIX)) {
            // Another process may have merged and unlinked it meanwhile.
            let Ok(mapping) = mapping::map(&path) else { continue };
            match Self::parse(Bytes::Mapped(mapping, path.clone())) {
                Ok(run) if runs.iter().all(|other| other.shares_nothing_with(&run)) => runs.push(run),
                // Removing is only tidying up: a file that cannot be removed is passed over again next time.
                _ => drop(std::fs::remove_file(path)),
            }
        }
        runs
    }

    fn shares_nothing_with(&self, other: &Self) -> bool {
        self.segments.iter().all(|segment| !other.segments.contains(segment))
    }

    fn parse(bytes: Bytes) -> Result<Self> {
        let record = Record::new(&bytes, "index run", 0);
        if &record.array::<8>(0)? != MAGIC {
            return Err(record.corrupt(0, "wrong magic"));
        }
        let (segments, packs) = (record.le_u32(8)? as usize, record.le_u32(12)? as usize);
        let absurd = || record.corrupt(8, "its counts make no sense");
        let entry_count = usize::try_from(record.le_u64(16)?).map_err(|_| absurd())?;
        let packs_at = HEAD_BYTES + segments * 16;
        let entries_at = packs_at + packs * PACK_BYTES;
        let length = entry_count.checked_mul(ENTRY_BYTES).and_then(|length| length.checked_add(entries_at));
        if packs > MOST_PACKS || length != Some(bytes.len()) {
            return Err(absurd());
        }
        let checksum = checksum(&bytes[..24], &bytes[HEAD_BYTES..entries_at]);
        if checksum != record.array(24)? {
            return Err(record.corrupt(24, "the checksum does not hold"));
        }
        let segments = (0..segments).map(|at| record.array(HEAD_BYTES + at * 16)).collect::<Result<_>>()?;
        Ok(Self { segments, packs_at, entries_at, entry_count, bytes })
    }

    pub(super) fn segments(&self) -> &[[u8; 16]] {
        &self.segments
    }

    pub(super) fn entry_count(&self) -> usize {
        self.entry_count
    }

    pub(super) fn packs(&self) -> impl Iterator<Item = IndexedPack> + '_ {
        let packs = &self.bytes[self.packs_at..self.entries_at];
        packs.chunks_exact(PACK_BYTES).filter_map(|pack| IndexedPack::from_bytes(pack).ok())
    }

    fn pack(&self, number: usize) -> Result<IndexedPack> {
        let at = self.packs_at + number * PACK_BYTES;
        if at >= self.entries_at {
            return Err(Error::corrupt("an entry names a pack that is not listed").in_structure("index run"));
        }
        IndexedPack::from_bytes(&self.bytes[at..at + PACK_BYTES])
    }

    /// The first half of the id of entry `number`, and where the blob stands.
    pub(super) fn place(&self, number: usize) -> Result<([u8; 16], Location)> {
        let (prefix, word) = self.entry(number);
        Ok((prefix, segment::location(word, self.pack(pack_number(word))?)))
    }

    /// The number of the first entry of a blob.
    pub(super) fn first(&self, prefix: &[u8; 16]) -> Option<usize> {
        let number = self.first_not_below(prefix);
        (number < self.entry_count && self.entry(number).0 == *prefix).then_some(number)
    }

    fn entry(&self, number: usize) -> Entry {
        let at = self.entries_at + number * ENTRY_BYTES;
        let (mut prefix, mut word) = ([0; 16], [0; 8]);
        prefix.copy_from_slice(&self.bytes[at..at + 16]);
        word.copy_from_slice(&self.bytes[at + 16..at + ENTRY_BYTES]);
        (prefix, u64::from_le_bytes(word))
    }

    /// Every place where the blob stands whose id begins with `prefix`; nearly always one.
    pub(super) fn find(&self, prefix: &[u8; 16], found: &mut Vec<Location>) -> Result<()> {
        for number in self.first_not_below(prefix)..self.entry_count {
            let (id, word) = self.entry(number);
            if id != *prefix {
                break;
            }
            found.push(segment::location(word, self.pack(pack_number(word))?));
        }
        Ok(())
    }

    /// The number of the first entry that is not below `prefix`.
    ///
    /// Ids are evenly spread, so the place is guessed and the search closes in from there: it touches one or two
    /// pages of a large run, where halving the whole would touch twenty.
    fn first_not_below(&self, prefix: &[u8; 16]) -> usize {
        let below = |number: usize| self.entry(number).0 < *prefix;
        let place = u128::from_be_bytes(*prefix) >> 64;
        let guess = usize::try_from((place * self.entry_count as u128) >> 64).unwrap_or(0);
        let (mut low, mut high) = (0, self.entry_count);
        let mut step = 16;
        if guess < self.entry_count && below(guess) {
            low = guess + 1;
            while low + step < self.entry_count && below(low + step) {
                low += step + 1;
                step *= 2;
            }
            high = (low + step).min(self.entry_count);
        } else {
            high = guess.min(high);
            while high > step && !below(high - step) {
                high -= step;
                step *= 2;
            }
            low = high.saturating_sub(step).max(low);
        }
        while low < high {
            let middle = low + (high - low) / 2;
            if below(middle) { low = middle + 1 } else { high = middle }
        }
        low
    }

    /// A run of a few segments that are in memory.
    pub(super) fn from_segments(folder: Option<&Path>, segments: Vec<([u8; 16], Segment)>) -> Result<Self> {
        let (mut names, mut packs, mut entries) = (Vec::new(), Vec::new(), Vec::new());
        for (name, segment) in segments {
            let first = packs.len();
            names.push(name);
            packs.extend(segment.packs);
            entries.extend(segment.entries.iter().map(|(id, word)| (*id, renumber(*word, first + pack_number(*word)))));
        }
        entries.sort_unstable();
        let count = entries.len();
        Self::write(folder, &names, &packs, count, || entries.iter().copied())
    }

    /// A run of all that is in two.
    pub(super) fn merge(folder: Option<&Path>, a: &Self, b: &Self) -> Result<Self> {
        let names = [a.segments(), b.segments()].concat();
        let packs: Vec<_> = a.packs().chain(b.packs()).collect();
        let first = a.packs().count();
        Self::write(folder, &names, &packs, a.entry_count + b.entry_count, || merged(a, b, first))
    }

    /// Writes a run into `folder`. Where that is not possible, as the folder belongs to somebody else or is full, the
    /// run stays in memory.
    fn write<E: Iterator<Item = Entry>>(
        folder: Option<&Path>,
        names: &[[u8; 16]],
        packs: &[IndexedPack],
        entry_count: usize,
        entries: impl Fn() -> E,
    ) -> Result<Self> {
        if packs.len() > MOST_PACKS {
            return Err(Error::unsupported(format!(
                "the index has {} packs, more than this program can number",
                packs.len()
            )));
        }
        let mut head = Vec::with_capacity(HEAD_BYTES + names.len() * 16 + packs.len() * PACK_BYTES);
        head.extend_from_slice(MAGIC);
        for count in [names.len(), packs.len()] {
            head.extend_from_slice(&u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes());
        }
        head.extend_from_slice(&(entry_count as u64).to_le_bytes());
        head.extend_from_slice(&[0; 32]);
        names.iter().for_each(|name| head.extend_from_slice(name));
        packs.iter().for_each(|pack| head.extend_from_slice(&pack.to_bytes()));
        let checksum = checksum(&head[..24], &head[HEAD_BYTES..]);
        head[24..HEAD_BYTES].copy_from_slice(&checksum);
        let in_folder = folder.and_then(|folder| {
            // The checksum covers the random names of the segments, so it names this run and no other.
            let path = folder.join(hex(&checksum[..16])).with_extension(SUFFIX);
            write_file(&path, &head, entries()).ok()?;
            Some(Bytes::Mapped(mapping::map(&path).ok()?, path))
        });
        Self::parse(in_folder.unwrap_or_else(|| {
            entries().for_each(|entry| head.extend_from_slice(&entry_to_bytes(&entry)));
            Bytes::Owned(head)
        }))
    }

    /// Removes the run's file; those who have it mapped keep it.
    pub(super) fn forget(&self) {
        if let Bytes::Mapped(_, path) = &self.bytes {
            // Only tidying up: a run that stays is recognised and passed over at the next start.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// The entries of both runs in order; the packs of `b` are numbered from `first` on.
fn merged<'r>(a: &'r Run, b: &'r Run, first: usize) -> impl Iterator<Item = Entry> + 'r {
    let (mut left, mut right) = (0, 0);
    std::iter::from_fn(move || {
        let from_a = (left < a.entry_count).then(|| a.entry(left));
        let from_b = (right < b.entry_count).then(|| {
            let (id, word) = b.entry(right);
            (id, renumber(word, first + pack_number(word)))
        });
        match (from_a, from_b) {
            (Some(entry), other) if other.is_none_or(|other| entry <= other) => {
                left += 1;
                Some(entry)
            }
            (_, entry) => {
                right += 1;
                entry
            }
        }
    })
}

fn checksum(head: &[u8], lists: &[u8]) -> [u8; 32] {
    *blake3::Hasher::new().update(head).update(lists).finalize().as_bytes()
}

/// Writes aside and renames, so that no other process ever sees half a run.
fn write_file(path: &Path, head: &[u8], entries: impl Iterator<Item = Entry>) -> std::io::Result<()> {
    let aside = path.with_extension(format!("aside-{}", std::process::id()));
    let written = (|| {
        let mut file = BufWriter::with_capacity(1 << 18, std::fs::File::create(&aside)?);
        file.write_all(head)?;
        for entry in entries {
            file.write_all(&entry_to_bytes(&entry))?;
        }
        file.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_data()?;
        std::fs::rename(&aside, path)
    })();
    if written.is_err() {
        // The failure that matters is the first one.
        let _ = std::fs::remove_file(&aside);
    }
    written
}
