//! seSparse: what ESXi 6.5 and newer write a snapshot into. Little endian, in sectors of 512 bytes.
//!
//! ```text
//! constant header   0 0xcafebabe u64   8 version 0x200000001   16 capacity   24 grain   32 grain table   40 flags
//!                  80 volatile header   96 journal header  112 journal   128 directory   144 tables   160 free bitmap
//!                 176 back map   192 grains; each as first sector and sectors, u64
//! volatile header   0 0xcafecafe u64   24 whether the journal must be replayed
//! directory         u64: 0, or 0x1000_0000_TTTT_TTTT for table T
//! table             u64: 0 below, 0x1... unmapped and 0x2... zero: zeros,
//!                   0x3HHH_LLLL_LLLL_LLLL: grain L << 12 | H
//! ```
//! VMware has not published the format. Source: QEMU's block/vmdk.c and Fox-IT's dissect.hypervisor; no program of
//! VMware's was at hand to test with. So what differs from what those know is refused: other versions, grains and
//! tables of other sizes, any flag, a journal that must be replayed. QEMU takes unmapped grains for zeros, and so
//! does firn.

use crate::image::access::ImageFile;
use crate::image::layer::{Place, Run};
use crate::image::tables::{TableCache, Tables};
use firn_disk::{Error, Record, Result};
use std::sync::Arc;

pub(in crate::image) const MAGIC: &[u8; 8] = &[0xbe, 0xba, 0xfe, 0xca, 0, 0, 0, 0];
const VOLATILE_MAGIC: u64 = 0xcafe_cafe;
const VERSION: u64 = 0x2_0000_0001;
const SECTOR: u64 = 512;
const GRAIN: u64 = 4096;
const TABLE_SECTORS: u64 = 64;
const ENTRIES: u64 = TABLE_SECTORS * SECTOR / 8;
const COVERAGE: u64 = GRAIN * ENTRIES;
const KIND: u64 = 0xf << 60;
/// 64 TB, the largest disk of ESXi.
const CAPACITY_MAX: u64 = 64 << 40;

/// The tables of one seSparse extent.
#[derive(Debug)]
pub(super) struct SeSparse {
    tables: Tables,
    pub(super) capacity: u64,
    directory: u64,
    grain_tables: u64,
    grain_tables_end: u64,
    grains: u64,
}

impl SeSparse {
    pub(super) const GRAIN: u64 = GRAIN;

    /// Reads the headers of `file`.
    pub(super) fn open(file: &ImageFile, cache: &Arc<TableCache>) -> Result<Self> {
        Self::open_inner(file, cache).map_err(|error| error.at_path(file.path()))
    }

    fn open_inner(file: &ImageFile, cache: &Arc<TableCache>) -> Result<Self> {
        let mut buf = [0; 512];
        let record = Record::read(file.disk(), &mut buf, 0, "seSparse header")?;
        if record.slice(0, 8)? != MAGIC {
            return Err(record.corrupt(0, "this is no seSparse extent"));
        }
        for (at, expected, what) in [(8, VERSION, "version"), (24, 8, "grain size"), (32, TABLE_SECTORS, "table size")]
        {
            let found = record.le_u64(at)?;
            if found != expected {
                return Err(record.unsupported(at, format!("{what} {found:#x}; {expected:#x} is known")));
            }
        }
        // Flags, and four fields that are reserved.
        if record.slice(40, 40)?.iter().any(|byte| *byte != 0) {
            return Err(record.unsupported(40, "flags that are not known"));
        }
        refuse_journal(file, bytes_at(&record, 80)?)?;
        let capacity = bytes_at(&record, 16)?;
        let tables_needed = capacity.div_ceil(COVERAGE);
        let (directory, directory_length) = (bytes_at(&record, 128)?, bytes_at(&record, 136)?);
        let (grain_tables, tables_length) = (bytes_at(&record, 144)?, bytes_at(&record, 152)?);
        if capacity > CAPACITY_MAX || directory_length < tables_needed * 8 {
            return Err(record.corrupt(16, format!("a disk of {capacity} bytes, too large for its directory")));
        }
        file.check_stored(directory, tables_needed * 8).map_err(|error| error.in_structure("seSparse directory"))?;
        Ok(Self {
            tables: Tables::new(file.clone(), cache),
            capacity,
            directory,
            grain_tables,
            grain_tables_end: grain_tables.saturating_add(tables_length),
            grains: bytes_at(&record, 192)?,
        })
    }

    /// The byte of grain table `index`; `None` when there is none.
    fn table(&self, index: u64) -> Result<Option<u64>> {
        let at = self.directory + index * 8;
        let entry = u64::from_le_bytes(self.tables.entry(at)?);
        let bad = |message: String| Err(Error::corrupt(message).in_structure("seSparse directory").at_offset(at));
        if entry == 0 {
            return Ok(None);
        }
        if entry >> 32 != 0x1000_0000 {
            return bad(format!("an entry that is none: {entry:#x}"));
        }
        let table = self.grain_tables.saturating_add((entry & 0xffff_ffff) * TABLE_SECTORS * SECTOR);
        if table >= self.grain_tables_end {
            return bad(format!("a grain table at byte {table}, outside of where they are"));
        }
        Ok(Some(table))
    }

    /// What a grain table's entry says.
    fn grain(&self, entry: u64) -> Result<Place<'_>> {
        match (entry & KIND) >> 60 {
            0 if entry == 0 => Ok(Place::Below),
            1 | 2 => Ok(Place::Zero),
            3 => {
                let number = (entry & 0x0fff_0000_0000_0000) >> 48 | (entry & 0x0000_ffff_ffff_ffff) << 12;
                let at = number.checked_mul(GRAIN).and_then(|at| at.checked_add(self.grains));
                let at = at.filter(|at| i64::try_from(*at).is_ok());
                let at = at.ok_or_else(|| Error::corrupt(format!("grain number {number}")))?;
                Ok(Place::Stored { file: self.tables.file(), at })
            }
            _ => Err(Error::corrupt(format!("an entry that is none: {entry:#x}"))),
        }
    }

    /// Where the bytes from `offset` of this extent on are.
    pub(super) fn map(&self, offset: u64) -> Result<Run<'_>> {
        let explain = |error: Error| error.in_structure("seSparse grain table").at_path(self.tables.file().path());
        self.map_inner(offset).map_err(explain)
    }

    fn map_inner(&self, offset: u64) -> Result<Run<'_>> {
        let Some(table) = self.table(offset / COVERAGE)? else {
            return Ok(Run { place: Place::Below, length: COVERAGE - offset % COVERAGE });
        };
        let (first, into) = (offset % COVERAGE / GRAIN, offset % GRAIN);
        let page = self.tables.page(table + first * 8)?;
        let mut entries = page.entries((ENTRIES - first) * 8).chunks_exact(8).map(le_u64);
        let head = entries.next().ok_or_else(|| Error::corrupt("it is cut off by the end of the file"))?;
        let place = match self.grain(head)? {
            Place::Stored { file, at } => {
                return Ok(Run { place: Place::Stored { file, at: at + into }, length: GRAIN - into });
            }
            place => place,
        };
        let is_zero = matches!(place, Place::Zero);
        let is_same = |entry: &u64| match self.grain(*entry) {
            Ok(Place::Below) => !is_zero,
            Ok(Place::Zero) => is_zero,
            _ => false,
        };
        let more = entries.take_while(is_same).count() as u64;
        Ok(Run { place, length: (1 + more) * GRAIN - into })
    }
}

/// `Unsupported` for an extent whose journal was not applied.
fn refuse_journal(file: &ImageFile, at: u64) -> Result<()> {
    let mut buf = [0; 512];
    let record = Record::read(file.disk(), &mut buf, at, "seSparse volatile header")?;
    if record.le_u64(0)? != VOLATILE_MAGIC {
        return Err(record.corrupt(0, "there is none"));
    }
    if record.le_u64(24)? != 0 {
        return Err(record
            .unsupported(24, "its journal must be replayed first")
            .hint("start and stop the machine once in ESXi, or clone the disk there with vmkfstools -i"));
    }
    Ok(())
}

/// A field that counts sectors, in bytes.
fn bytes_at(record: &Record<'_>, at: usize) -> Result<u64> {
    let count = record.le_u64(at)?;
    let bytes = count.checked_mul(SECTOR).filter(|bytes| i64::try_from(*bytes).is_ok());
    bytes.ok_or_else(|| record.corrupt(at, format!("{count} sectors are past every limit")))
}

fn le_u64(word: &[u8]) -> u64 {
    word.first_chunk().map_or(0, |word| u64::from_le_bytes(*word))
}
