//! qcow2: QEMU's own image format.
//!
//! ```text
//! guest offset:  | L1 index | L2 index | offset in cluster |
//! header -> L1 table -> L2 table -> data cluster, compressed cluster, zeros, or the backing file
//! ```
//! Refcounts are not read: they matter to writers only, so an image whose refcounts are wrong or dirty still
//! reads. The dirty and the corrupt bit are told in [`Details`](super::Details).

mod bitmap;
mod entry;
mod header;
mod snapshot;
mod unpack;

use super::access::ImageFile;
use super::layer::{Layer, Layered, Place, Run, Unit};
use super::name::{self, FileName};
use super::tables::Tables;
use super::{Details, ImageFormat, Opened, Opener};
pub(super) use bitmap::Bitmaps;
pub use bitmap::StoredBitmap;
use entry::{Cluster, Subcluster};
use firn_disk::{Error, ErrorKind, Result};
use header::Header;
pub(super) use header::MAGIC;
use std::sync::Arc;

/// Opens a qcow2 image, or one of its internal snapshots, with all that it stands on.
pub(super) fn open(opener: &mut Opener, file: &ImageFile, snapshot: Option<&str>) -> Result<Opened> {
    let header = Header::read(file)?;
    let entries = snapshot::read_table(file, &header)?;
    let (mut l1_offset, mut l1_entries, mut size) = (header.l1_offset, header.l1_entries, header.size);
    if let Some(wanted) = snapshot {
        let entry = snapshot::find(&entries, wanted)?;
        let bad = |message| Error::corrupt(message).in_structure("qcow2 snapshot table");
        header.check_l1(entry.l1_offset, entry.l1_entries).map_err(bad)?;
        (l1_offset, l1_entries, size) = (entry.l1_offset, entry.l1_entries, entry.public.disk_size);
        if size > i64::MAX.unsigned_abs() {
            return Err(bad(format!("a disk of {size} bytes")));
        }
    }
    let data = open_data_file(opener, file, &header)?;
    let backing = open_backing(opener, file, &header)?;
    let mut details = Details {
        virtual_size: size,
        subformat: None,
        cluster_size: Some(header.cluster_bytes()),
        features: header.features(),
        chain: Vec::new(),
        data_files: data.iter().map(|data| data.path().to_path_buf()).collect(),
        snapshots: entries.into_iter().map(|entry| entry.public).collect(),
        is_dirty: header.dirty,
        is_corrupt: header.corrupt,
    };
    let below = backing.map(|backing| {
        details.chain = backing.as_chain();
        backing.disk
    });
    let bitmaps = header.bitmaps.filter(|_| snapshot.is_none()).map(|directory| Bitmaps {
        file: file.clone(),
        directory,
        are_valid: header.bitmaps_are_valid,
        cluster_bytes: header.cluster_bytes(),
        disk_bytes: size,
    });
    let tables = Tables::new(file.clone(), &opener.tables);
    let data = data.unwrap_or_else(|| file.clone());
    let layer = Qcow2 { header, tables, data, l1_offset, l1_entries: u64::from(l1_entries), size };
    let disk = Arc::new(Layered::new(layer, below));
    Ok(Opened { disk, format: ImageFormat::Qcow2, file: file.clone(), details, bitmaps })
}

fn open_data_file(opener: &Opener, file: &ImageFile, header: &Header) -> Result<Option<ImageFile>> {
    if !header.has_data_file {
        return Ok(None);
    }
    let Some(name) = &header.data_file else {
        return Err(Error::unsupported("the image keeps its data in an external file but does not name it")
            .in_structure("qcow2 header"));
    };
    match name::parse(name, "data file")? {
        FileName { path, format: None | Some(ImageFormat::Raw) } => {
            opener.gate.open_named(file, &path, "data file").map(Some)
        }
        FileName { .. } => Err(Error::unsupported("a data file that is not raw").in_structure("qcow2 header")),
    }
}

fn open_backing(opener: &mut Opener, file: &ImageFile, header: &Header) -> Result<Option<Opened>> {
    let Some(name) = &header.backing else { return Ok(None) };
    if header.has_data_file && header.data_file_is_raw {
        return Err(Error::corrupt("a backing file beside a raw external data file").in_structure("qcow2 header"));
    }
    let FileName { path, format } = name::parse(name, "backing file")?;
    let recorded = match &header.backing_format {
        None => format,
        // What the name says in detail wins, as it does in QEMU; the two must not contradict each other.
        Some(word) => match (name::format_from_driver(word)?, format) {
            (recorded, Some(named)) if recorded != named => {
                return Err(Error::unsupported("the backing file's name and its recorded format differ")
                    .in_structure("qcow2 header"));
            }
            (recorded, _) => Some(recorded),
        },
    };
    let backing = opener.gate.open_named(file, &path, "backing file")?;
    opener.open_below(&backing, recorded).map(Some)
}

/// The mapping of one active table: of the image itself or of an internal snapshot.
#[derive(Debug)]
struct Qcow2 {
    header: Header,
    tables: Tables,
    /// The image itself, or its external data file.
    data: ImageFile,
    l1_offset: u64,
    l1_entries: u64,
    size: u64,
}

impl Qcow2 {
    /// The L2 table for `l1_index`, or how many tables from there on do not exist.
    fn l2_table(&self, l1_index: u64) -> Result<std::result::Result<u64, u64>> {
        if l1_index >= self.l1_entries {
            return Ok(Err(u64::MAX));
        }
        let page = self.tables.page(self.l1_offset.saturating_add(l1_index * 8))?;
        let mut absent = 0;
        for word in page.entries((self.l1_entries - l1_index) * 8).chunks_exact(8) {
            let table = entry::l2_table(be_u64(word), &self.header);
            match table {
                Ok(None) => absent += 1,
                // What is wrong further on is told when it is asked for.
                _ if absent > 0 => break,
                Ok(Some(at)) => return Ok(Ok(at)),
                Err(error) => return Err(error),
            }
        }
        if absent == 0 {
            return Err(Error::corrupt("the level 1 table is cut off by the end of the file"));
        }
        Ok(Err(absent))
    }

    /// The cluster at index `index` of the level 2 table at `table`, and how many from there on continue it.
    fn clusters(&self, table: u64, index: u64, guest: u64) -> Result<(Cluster, u64)> {
        let entry_bytes = self.header.l2_entry_bytes();
        let page = self.tables.page(table.saturating_add(index * entry_bytes))?;
        let words = page.entries((self.header.l2_entries() - index) * entry_bytes);
        let mut found: Option<(Cluster, u64)> = None;
        for words in words.chunks_exact(usize::try_from(entry_bytes).unwrap_or(8)) {
            let (first, second) = words.split_at(8);
            let bitmap = if second.is_empty() { 0 } else { be_u64(second) };
            let count = found.map_or(0, |(_, count)| count);
            let guest = guest.saturating_add(count << self.header.cluster_bits);
            let next = entry::cluster(be_u64(first), bitmap, guest, &self.header);
            match (found, next) {
                (None, next) => found = Some((next?, 1)),
                (Some((cluster, count)), Ok(next)) if self.continues(cluster, count, next) => {
                    found = Some((cluster, count + 1));
                }
                _ => break,
            }
        }
        found.ok_or_else(|| Error::corrupt("a level 2 table is cut off by the end of the file").at_offset(table))
    }

    /// Whether `next` is the cluster after `count` clusters from `first` on.
    fn continues(&self, first: Cluster, count: u64, next: Cluster) -> bool {
        match (first, next) {
            (Cluster::Below, Cluster::Below) | (Cluster::Zero, Cluster::Zero) => true,
            (Cluster::Stored(at), Cluster::Stored(next)) => {
                at.checked_add(count << self.header.cluster_bits) == Some(next)
            }
            _ => false,
        }
    }

    fn subclusters(&self, at: u64, bitmap: u64, into: u64) -> Run<'_> {
        let bits = self.header.cluster_bits - 5;
        let index = u32::try_from(into >> bits).unwrap_or(31).min(31);
        let (state, count) = entry::subcluster_run(bitmap, index);
        let length = (u64::from(index + count) << bits).saturating_sub(into);
        let place = match state {
            Subcluster::Below => Place::Below,
            Subcluster::Zero => Place::Zero,
            Subcluster::Stored => Place::Stored { file: &self.data, at: at.saturating_add(into) },
        };
        Run { place, length }
    }

    fn at_image(&self, error: Error) -> Error {
        error.at_path(self.tables.file().path())
    }
}

impl Layer for Qcow2 {
    fn len(&self) -> u64 {
        self.size
    }

    fn unit_bytes(&self) -> u64 {
        self.header.cluster_bytes()
    }

    fn map(&self, offset: u64) -> Result<Run<'_>> {
        let bits = self.header.cluster_bits;
        let coverage = self.header.l2_coverage();
        let table = match self.l2_table(offset / coverage).map_err(|error| self.at_image(error))? {
            Ok(table) => table,
            Err(absent) => {
                let end = (offset / coverage).saturating_add(absent).saturating_mul(coverage);
                return Ok(Run { place: Place::Below, length: end - offset });
            }
        };
        let index = (offset % coverage) >> bits;
        let into = offset % self.header.cluster_bytes();
        let guest = offset - into;
        let (cluster, count) = self.clusters(table, index, guest).map_err(|error| self.at_image(error))?;
        let length = (count << bits) - into;
        let place = match cluster {
            Cluster::Below => Place::Below,
            Cluster::Zero => Place::Zero,
            Cluster::Stored(at) => Place::Stored { file: &self.data, at: at.saturating_add(into) },
            Cluster::Packed(word) => {
                // The disk may end inside its last cluster; a unit is a whole cluster all the same.
                let unit = Unit { file: 0, word, start: guest, length: self.header.cluster_bytes() };
                return Ok(Run { place: Place::Packed(unit, into), length });
            }
            Cluster::Mixed(at, bitmap) => return Ok(self.subclusters(at, bitmap, into)),
        };
        Ok(Run { place, length })
    }

    fn unpack(&self, unit: Unit, buf: &mut [u8]) -> Result<()> {
        let (at, length) = entry::packed_at(unit.word, self.header.cluster_bits);
        let disk = self.tables.file().disk();
        // The last sector of the file may be cut short: what matters are the compressed bytes.
        let present = disk.len().saturating_sub(at).min(length);
        let mut packed = vec![0; usize::try_from(present).unwrap_or_default()];
        let read = if packed.is_empty() {
            Err(Error::new(ErrorKind::Corrupt, "a compressed cluster lies past the end of the file"))
        } else {
            disk.read_at(&mut packed, at)
        };
        read.and_then(|()| unpack::unpack(self.header.compression, &packed, buf))
            .map_err(|error| self.at_image(error.at_offset(at)))
    }
}

fn be_u64(word: &[u8]) -> u64 {
    word.first_chunk().map_or(0, |word| u64::from_be_bytes(*word))
}
