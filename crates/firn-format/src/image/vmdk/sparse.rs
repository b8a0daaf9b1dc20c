//! Files of grains: hosted sparse extents (`KDMV`, also stream-optimized) and redo logs of ESX (`COWD`).
//!
//! ```text
//! KDMV   4 version  8 flags  12 capacity u64  20 grain u64  28 descriptor u64  36 its size u64  44 entries per table
//!       48 redundant directory u64  56 directory u64  64 overhead u64  72 unclean  73 "\n \r\n"  77 compression u16
//! COWD   4 version  8 flags  12 capacity  16 grain  20 directory  24 its entries
//! directory -> table (u32 sector) -> grain (u32 sector; 0: below, 1: zeros when flag 2 is set)
//! compressed grain: [first sector u64, bytes u32 when there are markers] zlib stream
//! ```
//! All numbers are little endian and, where they are places or lengths, count sectors of 512 bytes. With the
//! directory at "end" a copy of the header stands 1024 bytes before the end. Source: VMware, Virtual Disk
//! Format 5.0, "Hosted Sparse Extents", "ESX Server Sparse Extents", "Stream-Optimized Compressed Sparse Extents".

use crate::image::access::ImageFile;
use crate::image::layer::{Place, Run, Unit};
use crate::image::tables::{TableCache, Tables};
use firn_disk::{Error, Record, Result};
use flate2::{Decompress, FlushDecompress, Status};
use std::sync::Arc;

pub(in crate::image) const HOSTED_MAGIC: &[u8; 4] = b"KDMV";
pub(in crate::image) const COWD_MAGIC: &[u8; 4] = b"COWD";

const SECTOR: u64 = 512;
const FLAG_LINE_ENDS: u32 = 1;
const FLAG_REDUNDANT: u32 = 1 << 1;
const FLAG_ZERO_GRAIN: u32 = 1 << 2;
const FLAG_COMPRESSED: u32 = 1 << 16;
const FLAG_MARKERS: u32 = 1 << 17;
const DIRECTORY_AT_END: u64 = u64::MAX;
/// Larger grains make no sense, and a compressed one is unpacked in memory.
const GRAIN_MAX: u64 = 16 << 20;
/// QEMU's limit on a grain directory's entries.
const DIRECTORY_MAX: u64 = 32 << 20;
/// A descriptor is a page of text; split disks have a line for each 2 GB.
pub(super) const DESCRIPTOR_MAX: u64 = 4 << 20;
/// Bytes of a grain's marker.
const MARKER: usize = 12;

/// The tables of one file of grains.
#[derive(Debug)]
pub(super) struct Sparse {
    tables: Tables,
    file_number: u32,
    pub(super) capacity: u64,
    pub(super) grain: u64,
    grains_per_table: u64,
    directory: u64,
    redundant: Option<u64>,
    has_zero_grains: bool,
    packing: Packing,
    pub(super) is_dirty: bool,
    /// Where an embedded descriptor lies, as byte and length.
    pub(super) descriptor: Option<(u64, u64)>,
}

/// How grains are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    No,
    Bare,
    Marked,
}

impl Sparse {
    /// Reads the header of `file`, the `file_number`-th of its image.
    pub(super) fn open(file: &ImageFile, file_number: u32, cache: &Arc<TableCache>) -> Result<Self> {
        let mut head = [0; 512];
        let record = Record::read(file.disk(), &mut head[..80], 0, "VMDK header")?;
        let tables = Tables::new(file.clone(), cache);
        let sparse = match &record.array::<4>(0)? {
            COWD_MAGIC => Self::open_cowd(&record, tables, file_number),
            HOSTED_MAGIC if record.le_u64(56)? == DIRECTORY_AT_END => {
                let mut footer = [0; 1536];
                Self::open_hosted(&read_footer(file, &mut footer)?, Some(&record), tables, file_number)
            }
            HOSTED_MAGIC => Self::open_hosted(&record, None, tables, file_number),
            _ => Err(record.corrupt(0, "this is no VMDK extent")),
        };
        sparse.and_then(Self::checked).map_err(|error| error.at_path(file.path()))
    }

    fn open_hosted(record: &Record<'_>, first: Option<&Record<'_>>, tables: Tables, file_number: u32) -> Result<Self> {
        let version = record.le_u32(4)?;
        if !(1..=3).contains(&version) {
            return Err(record.unsupported(4, format!("VMDK version {version}; 1 to 3 are known")));
        }
        let flags = record.le_u32(8)?;
        if flags & FLAG_LINE_ENDS != 0 && record.slice(73, 4)? != b"\n \r\n" {
            return Err(record
                .corrupt(73, "line ends were changed on the way")
                .hint("the file was transferred as text: transfer it again in binary mode"));
        }
        let packing = match (record.le_u16(77)?, flags & FLAG_MARKERS != 0) {
            (0, _) if flags & FLAG_COMPRESSED == 0 => Packing::No,
            (1, false) => Packing::Bare,
            (1, true) => Packing::Marked,
            (other, _) => return Err(record.unsupported(77, format!("compression {other} of grains"))),
        };
        // Only the first header is sure to name the descriptor.
        let described = first.unwrap_or(record);
        let (at, length) = (sectors(described, 28)?, sectors(described, 36)?);
        let redundant = if flags & FLAG_REDUNDANT == 0 { 0 } else { sectors(record, 48)? };
        Ok(Self {
            tables,
            file_number,
            capacity: sectors(record, 12)?,
            grain: sectors(record, 20)?,
            grains_per_table: u64::from(record.le_u32(44)?),
            directory: sectors(record, 56)?,
            redundant: (redundant != 0).then_some(redundant),
            has_zero_grains: flags & FLAG_ZERO_GRAIN != 0,
            packing,
            is_dirty: record.u8(72)? != 0,
            descriptor: (at != 0 && length != 0).then_some((at, length.min(DESCRIPTOR_MAX))),
        })
    }

    fn open_cowd(record: &Record<'_>, tables: Tables, file_number: u32) -> Result<Self> {
        let version = record.le_u32(4)?;
        if version != 1 {
            return Err(record.unsupported(4, format!("redo log version {version}; 1 is known")));
        }
        let bytes = |at| -> Result<u64> { Ok(u64::from(record.le_u32(at)?) * SECTOR) };
        let sparse = Self {
            tables,
            file_number,
            capacity: bytes(12)?,
            grain: bytes(16)?,
            grains_per_table: 4096,
            directory: bytes(20)?,
            redundant: None,
            has_zero_grains: false,
            packing: Packing::No,
            is_dirty: false,
            descriptor: None,
        };
        let entries = u64::from(record.le_u32(24)?);
        if sparse.grain != 0 && sparse.tables_needed() > entries {
            return Err(record.corrupt(24, format!("{entries} directory entries are too few for its capacity")));
        }
        Ok(sparse)
    }

    fn checked(self) -> Result<Self> {
        let bad = |message: String| Err(Error::corrupt(message).in_structure("VMDK header"));
        if !self.grain.is_power_of_two() || self.grain < SECTOR || self.grain > GRAIN_MAX {
            return bad(format!("grains of {} bytes", self.grain));
        }
        if self.grains_per_table == 0 || self.grains_per_table > 4096 {
            return bad(format!("grain tables of {} entries", self.grains_per_table));
        }
        if self.directory == 0 {
            return bad("a grain directory at the start of the file".to_owned());
        }
        let needed = self.tables_needed();
        if needed > DIRECTORY_MAX {
            return bad(format!("a grain directory of {needed} entries"));
        }
        // A file that was cut short is told at once, not at the first read that misses something.
        for directory in [Some(self.directory), self.redundant].into_iter().flatten() {
            let end = directory.checked_add(needed * 4);
            if end.is_none_or(|end| end > self.tables.file().disk().len()) {
                return bad(format!("a grain directory at byte {directory}, past the end of the file"))
                    .map_err(|error| error.hint("the file is cut short: take another copy"));
            }
        }
        Ok(self)
    }

    /// How many grain tables the capacity needs.
    fn tables_needed(&self) -> u64 {
        let coverage = self.grain.saturating_mul(self.grains_per_table);
        self.capacity
            .checked_div(coverage)
            .map_or(0, |whole| whole.saturating_add(1))
            .min(self.capacity.div_ceil(coverage.max(1)))
    }

    pub(super) fn is_packed(&self) -> bool {
        self.packing != Packing::No
    }

    pub(super) fn has_redundant(&self) -> bool {
        self.redundant.is_some()
    }

    fn table_is_inside(&self, table: u64) -> bool {
        let end = table.checked_add(self.grains_per_table * 4);
        table >= SECTOR && end.is_some_and(|end| end <= self.tables.file().disk().len())
    }

    /// The byte of the grain table `index` by the directory at `directory`; `Ok(None)` when there is none.
    fn table_of(&self, directory: u64, index: u64) -> Result<Option<u64>> {
        let at = directory.saturating_add(index * 4);
        let table = u64::from(u32::from_le_bytes(self.tables.entry(at)?)) * SECTOR;
        if table != 0 && !self.table_is_inside(table) {
            return Err(Error::corrupt(format!("a grain table at byte {table}, outside the file"))
                .in_structure("VMDK grain directory")
                .at_offset(at));
        }
        Ok((table != 0).then_some(table))
    }

    /// As [`table_of`](Self::table_of), from the redundant directory where the primary one is damaged.
    fn table(&self, index: u64) -> Result<Option<u64>> {
        let primary = self.table_of(self.directory, index);
        match (&primary, self.redundant) {
            (Ok(Some(_)), _) | (_, None) => primary,
            // Both directories name a table, or none does.
            (Ok(None), Some(redundant)) => self.table_of(redundant, index),
            (Err(_), Some(redundant)) => match self.table_of(redundant, index) {
                Ok(Some(table)) => Ok(Some(table)),
                Ok(None) | Err(_) => primary,
            },
        }
    }

    /// What a grain table's entry says, or why it cannot be right.
    fn grain(&self, entry: u32) -> std::result::Result<Grain, String> {
        let at = u64::from(entry) * SECTOR;
        match entry {
            0 => Ok(Grain::Below),
            1 if self.has_zero_grains => Ok(Grain::Zero),
            1 => Err("a grain inside the header".to_owned()),
            _ if at >= self.tables.file().disk().len() => Err(format!("a grain at byte {at}, outside the file")),
            _ if self.is_packed() => Ok(Grain::Packed(u64::from(entry))),
            _ => Ok(Grain::Stored(at)),
        }
    }

    fn grain_by_redundant(&self, table: u64, index: u64, why: String) -> Result<Grain> {
        let damaged =
            || Error::corrupt(why).in_structure("VMDK grain table").at_offset(table.saturating_add(index * 4));
        let Some(directory) = self.redundant else { return Err(damaged()) };
        match self.table_of(directory, index / self.grains_per_table) {
            Ok(Some(second)) if second != table => {
                let at = second.saturating_add(index % self.grains_per_table * 4);
                let entry = u32::from_le_bytes(self.tables.entry(at)?);
                self.grain(entry).map_err(|_| damaged())
            }
            _ => Err(damaged()),
        }
    }

    /// Where the bytes from `offset` of this extent on are; `start` is the extent's own place on the disk.
    pub(super) fn map(&self, offset: u64, start: u64) -> Result<Run<'_>> {
        self.map_inner(offset, start).map_err(|error| error.at_path(self.tables.file().path()))
    }

    fn map_inner(&self, offset: u64, start: u64) -> Result<Run<'_>> {
        let coverage = self.grain * self.grains_per_table;
        let (index, into) = (offset / self.grain, offset % self.grain);
        let Some(table) = self.table(offset / coverage)? else {
            return Ok(Run { place: Place::Below, length: coverage - offset % coverage });
        };
        let first = index % self.grains_per_table;
        let page = self.tables.page(table + first * 4)?;
        let mut entries = page.entries((self.grains_per_table - first) * 4).chunks_exact(4).map(le_u32);
        let head = entries.next().ok_or_else(|| Error::corrupt("a grain table is cut off by the end of the file"))?;
        let grain = match self.grain(head) {
            Ok(grain) => grain,
            Err(why) => {
                let grain = self.grain_by_redundant(table, index, why)?;
                return Ok(Run { place: self.place(grain, index, into, start), length: self.grain - into });
            }
        };
        let follows = |entry: u32, count: u64| match (grain, self.grain(entry)) {
            (Grain::Below, Ok(Grain::Below)) | (Grain::Zero, Ok(Grain::Zero)) => true,
            (Grain::Stored(at), Ok(Grain::Stored(next))) => at + count * self.grain == next,
            _ => false,
        };
        let more = (1..).zip(entries).take_while(|(count, entry)| follows(*entry, *count)).count() as u64;
        Ok(Run { place: self.place(grain, index, into, start), length: (more + 1) * self.grain - into })
    }

    fn place(&self, grain: Grain, index: u64, into: u64, start: u64) -> Place<'_> {
        match grain {
            Grain::Below => Place::Below,
            Grain::Zero => Place::Zero,
            Grain::Stored(at) => Place::Stored { file: self.tables.file(), at: at + into },
            Grain::Packed(word) => {
                let begins = index * self.grain;
                let length = self.capacity.saturating_sub(begins).min(self.grain);
                let unit = Unit { file: self.file_number, word, start: start.saturating_add(begins), length };
                Place::Packed(unit, into)
            }
        }
    }

    /// Unpacks the grain of `unit`, whose extent begins at `start` of the disk.
    pub(super) fn unpack(&self, unit: Unit, start: u64, buf: &mut [u8]) -> Result<()> {
        let at = unit.word.saturating_mul(SECTOR);
        self.unpack_inner(at, unit.start.saturating_sub(start) / SECTOR, buf).map_err(|error| {
            error.in_structure("VMDK compressed grain").at_path(self.tables.file().path()).at_offset(at)
        })
    }

    fn unpack_inner(&self, at: u64, sector: u64, buf: &mut [u8]) -> Result<()> {
        let disk = self.tables.file().disk();
        let rest = disk.len().saturating_sub(at);
        let most = self.grain * 2 + SECTOR;
        let (mut packed, skip) = (Vec::new(), if self.packing == Packing::Marked { MARKER } else { 0 });
        let length = if self.packing == Packing::Marked {
            let mut head = [0; MARKER];
            let marker = Record::read(disk, &mut head, at, "VMDK grain marker")?;
            if marker.le_u64(0)? != sector {
                return Err(marker.corrupt(0, format!("the grain of sector {}, not {sector}", marker.le_u64(0)?)));
            }
            let length = u64::from(marker.le_u32(8)?);
            if length == 0 || length > most || length > rest.saturating_sub(MARKER as u64) {
                return Err(marker.corrupt(8, format!("a compressed grain of {length} bytes")));
            }
            length
        } else {
            most.min(rest)
        };
        packed.resize(usize::try_from(length).unwrap_or_default(), 0);
        disk.read_at(&mut packed, at.saturating_add(skip as u64))?;
        if buf.len() as u64 == self.grain {
            return inflate(&packed, buf);
        }
        // The last grain may hold more than the disk does; its checksum covers all of it.
        let mut whole = vec![0; usize::try_from(self.grain).unwrap_or_default()];
        let unpacked = inflate_some(&packed, &mut whole)?;
        match whole.get(..unpacked.min(buf.len())) {
            Some(bytes) if bytes.len() == buf.len() => buf.copy_from_slice(bytes),
            _ => return Err(Error::corrupt(format!("it unpacks to {unpacked} of {} bytes", buf.len()))),
        }
        Ok(())
    }
}

/// Unpacks a zlib stream to its end, which the checksum follows; answers how many bytes it gave.
fn inflate_some(packed: &[u8], buf: &mut [u8]) -> Result<usize> {
    let mut stream = Decompress::new(true);
    match stream.decompress(packed, buf, FlushDecompress::Finish) {
        Err(error) => Err(Error::corrupt(format!("it does not unpack: {error}"))),
        Ok(Status::StreamEnd) => Ok(usize::try_from(stream.total_out()).unwrap_or(usize::MAX)),
        Ok(_) => Err(Error::corrupt(format!("it does not end after {} bytes", stream.total_out()))),
    }
}

fn inflate(packed: &[u8], buf: &mut [u8]) -> Result<()> {
    match inflate_some(packed, buf)? {
        count if count == buf.len() => Ok(()),
        count => Err(Error::corrupt(format!("it unpacks to {count} of {} bytes", buf.len()))),
    }
}

/// Where a grain is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Grain {
    Below,
    Zero,
    Stored(u64),
    /// At this sector.
    Packed(u64),
}

/// A field that counts sectors, in bytes.
fn sectors(record: &Record<'_>, at: usize) -> Result<u64> {
    let count = record.le_u64(at)?;
    let bytes = count.checked_mul(SECTOR).filter(|bytes| i64::try_from(*bytes).is_ok());
    bytes.ok_or_else(|| record.corrupt(at, format!("{count} sectors are past every limit")))
}

/// The header's copy at the end: footer marker, footer, end-of-stream marker, a sector each.
fn read_footer<'a>(file: &ImageFile, buf: &'a mut [u8; 1536]) -> Result<Record<'a>> {
    let length = file.disk().len();
    let cut = |message: &str| {
        Error::corrupt(message)
            .in_structure("VMDK footer")
            .at_path(file.path())
            .hint("the file is cut short, as by a transfer that did not finish: take another copy")
    };
    let at = length.checked_sub(1536).ok_or_else(|| cut("the file is too short for one"))?;
    file.read_stored(buf, at)?;
    let whole = Record::new(buf, "VMDK footer", at);
    let is_marked = whole.le_u32(8)? == 0 && whole.le_u32(12)? == 3;
    let is_ended = whole.slice(1024, 16)?.iter().all(|byte| *byte == 0);
    if !is_marked || !is_ended || whole.slice(512, 4)? != HOSTED_MAGIC {
        return Err(cut("there is none at the end of the file"));
    }
    let (_, footer) = buf.split_at(512);
    let record = Record::new(footer, "VMDK footer", at + 512);
    if record.le_u64(56)? == DIRECTORY_AT_END {
        return Err(record.corrupt(56, "the footer has no grain directory"));
    }
    Ok(record)
}

fn le_u32(word: &[u8]) -> u32 {
    word.first_chunk().map_or(0, |word| u32::from_le_bytes(*word))
}
