//! VHDX: the disk format of Hyper-V. Little endian, CRC-32C everywhere.
//!
//! ```text
//! 0 "vhdxfile"   64 KiB two headers, 64 KiB each   192 KiB two region tables, 64 KiB each   then, where those say:
//! log | metadata: block size, length, sector size, parent | BAT | blocks and sector bitmaps
//!
//! BAT   u64: bits 0-2 state, 20-63 the MiB where it lies; after each `ratio` blocks one entry for their bitmap
//! ```
//! `ratio` is as many blocks as 2^23 sectors fill. What the log holds is replayed in memory first, as a write to the
//! file would; the file is not touched.
//!
//! Source: Microsoft, MS-VHDX (Virtual Hard Disk v2 File Format). Refused: unknown regions or metadata that are
//! required, other versions, a parent whose content is not the one that the child was made from.

mod header;
mod log;
mod metadata;

use super::access::ImageFile;
use super::bitmap::{self, BitOrder};
use super::layer::{Layer, Layered, Place, Run, Unit};
use super::tables::Tables;
use super::{Details, ImageFormat, Opened, Opener, parent};
use crate::table::Guid;
use firn_disk::{Error, Record, Result};
use header::{Header, Regions};
use metadata::{Locator, Metadata};
use std::sync::Arc;

pub(super) const MAGIC: &[u8; 8] = b"vhdxfile";
const MIB: u64 = 1 << 20;
/// Sectors that one bitmap, itself 1 MiB long, tells of.
const BITMAP_SECTORS: u64 = 1 << 23;

/// What a block's entry says.
mod state {
    pub(super) const NOT_PRESENT: u64 = 0;
    pub(super) const UNDEFINED: u64 = 1;
    pub(super) const ZERO: u64 = 2;
    pub(super) const UNMAPPED: u64 = 3;
    pub(super) const FULLY_PRESENT: u64 = 6;
    pub(super) const PARTIALLY_PRESENT: u64 = 7;
}

/// Opens a VHDX image with its parents.
pub(super) fn open(opener: &mut Opener, named: &ImageFile) -> Result<Opened> {
    let mut magic = [0; 8];
    if Record::read(named.disk(), &mut magic, 0, "VHDX header")?.slice(0, 8)? != MAGIC {
        return Err(Error::corrupt("this is no VHDX image: it does not begin as one").in_structure("VHDX header"));
    }
    let header = Header::read(named)?;
    let replayed = log::replay(named, &header)?;
    let is_dirty = replayed.is_some();
    let file = replayed.unwrap_or_else(|| named.clone());
    let regions = Regions::read(&file)?;
    let metadata = Metadata::read(&file, &regions)?;
    let layer = Vhdx::open(opener, &file, &regions, &metadata)?;
    let mut details = Details {
        virtual_size: metadata.size,
        subformat: Some(metadata.subformat().to_owned()),
        cluster_size: Some(metadata.block),
        features: vec![format!("UUID {}", Guid::from_disk(metadata.disk_id))],
        is_dirty,
        ..Details::default()
    };
    if metadata.sector != 512 {
        details.features.push(format!("sectors of {} bytes", metadata.sector));
    }
    let below = match &metadata.parent {
        None => None,
        Some(locator) => {
            let parent = open_parent(opener, named, locator)?;
            details.chain = parent.as_chain();
            Some(parent.disk)
        }
    };
    Ok(Opened {
        disk: Arc::new(Layered::new(layer, below)),
        format: ImageFormat::Vhdx,
        file: named.clone(),
        details,
        bitmaps: None,
    })
}

fn open_parent(opener: &mut Opener, file: &ImageFile, locator: &Locator) -> Result<Opened> {
    let parent = parent::open(opener, file, &locator.paths)?;
    let written = Header::read(&parent).map_err(|error| error.at_path(parent.path()))?.data_write;
    if !locator.linkage.contains(&written) {
        return Err(Error::corrupt("it is not in the state that its child was made from")
            .at_path(parent.path())
            .hint("it was written to since, or it is another disk of this name: take the parent as it was"));
    }
    opener.open_below(&parent, Some(ImageFormat::Vhdx))
}

/// Blocks by the BAT.
#[derive(Debug)]
struct Vhdx {
    tables: Tables,
    bat: u64,
    block: u64,
    /// Blocks that share a bitmap.
    ratio: u64,
    blocks: u64,
    size: u64,
    sector: u32,
    has_parent: bool,
}

impl Vhdx {
    fn open(opener: &Opener, file: &ImageFile, regions: &Regions, metadata: &Metadata) -> Result<Self> {
        let ratio = BITMAP_SECTORS * u64::from(metadata.sector) / metadata.block;
        let blocks = metadata.size.div_ceil(metadata.block);
        let entries = if metadata.parent.is_some() {
            blocks.div_ceil(ratio) * (ratio + 1)
        } else {
            blocks + blocks.saturating_sub(1) / ratio
        };
        let bad = |message: String| Err(Error::corrupt(message).in_structure("VHDX block allocation table"));
        if entries * 8 > regions.bat_length {
            return bad(format!("{} bytes are too few for a disk of {} bytes", regions.bat_length, metadata.size));
        }
        file.check_stored(regions.bat, entries * 8)
            .map_err(|error| error.in_structure("VHDX block allocation table"))?;
        Ok(Self {
            tables: Tables::new(file.clone(), &opener.tables),
            bat: regions.bat,
            block: metadata.block,
            ratio,
            blocks,
            size: metadata.size,
            sector: metadata.sector,
            has_parent: metadata.parent.is_some(),
        })
    }

    /// The byte where an entry says that something lies; `0` is no place.
    fn place_of(&self, entry: u64, length: u64) -> Result<u64> {
        let at = (entry >> 20).checked_mul(MIB).filter(|at| *at != 0);
        let at = at.ok_or_else(|| Error::corrupt(format!("an entry that leads nowhere: {entry:#x}")))?;
        self.tables.file().check_stored(at, length)?;
        Ok(at)
    }

    /// Which sectors of the block at `offset` are here.
    fn partial(&self, index: u64, into: u64, at: u64) -> Result<Run<'_>> {
        if !self.has_parent {
            return Err(Error::corrupt("a block is partly the parent's, and there is no parent"));
        }
        let chunk = index / self.ratio;
        let entry = u64::from_le_bytes(self.tables.entry(self.bat + ((chunk + 1) * (self.ratio + 1) - 1) * 8)?);
        if entry & 7 != state::FULLY_PRESENT {
            return Err(Error::corrupt("a block that is partly present has no sector bitmap"));
        }
        let bitmap = self.place_of(entry, MIB)?;
        let sector = u64::from(self.sector);
        let first = (index % self.ratio * self.block + into) / sector;
        let most = (self.block - into).div_ceil(sector);
        let (is_here, count) = bitmap::run(&self.tables, bitmap, first, most, BitOrder::LowFirst)
            .map_err(|error| error.in_structure("VHDX sector bitmap"))?;
        let length = count * sector - into % sector;
        let place = if is_here { Place::Stored { file: self.tables.file(), at: at + into } } else { Place::Below };
        Ok(Run { place, length })
    }

    fn map_inner(&self, offset: u64) -> Result<Run<'_>> {
        let (index, into) = (offset / self.block, offset % self.block);
        // Entries of blocks up to the next bitmap's stand side by side.
        let until_bitmap = (self.ratio - index % self.ratio).min(self.blocks - index);
        let page = self.tables.page(self.bat + (index + index / self.ratio) * 8)?;
        let mut entries = page.entries(until_bitmap * 8).chunks_exact(8).map(le_u64);
        let entry = entries.next().ok_or_else(|| Error::corrupt("it is cut off"))?;
        let place = match entry & 7 {
            state::NOT_PRESENT => Place::Below,
            // In these the parent is not asked, whatever they once held.
            state::UNDEFINED | state::ZERO | state::UNMAPPED => Place::Zero,
            state::FULLY_PRESENT => {
                let at = self.place_of(entry, self.block.min(self.size - offset + into))? + into;
                return Ok(Run { place: Place::Stored { file: self.tables.file(), at }, length: self.block - into });
            }
            state::PARTIALLY_PRESENT => {
                let at = self.place_of(entry, self.block.min(self.size - offset + into))?;
                return self.partial(index, into, at);
            }
            other => return Err(Error::corrupt(format!("a block in state {other}"))),
        };
        let more = entries.take_while(|next| next & 7 == entry & 7).count() as u64;
        Ok(Run { place, length: (1 + more) * self.block - into })
    }
}

impl Layer for Vhdx {
    fn len(&self) -> u64 {
        self.size
    }

    fn logical_block_size(&self) -> u32 {
        self.sector
    }

    fn unit_bytes(&self) -> u64 {
        0
    }

    fn map(&self, offset: u64) -> Result<Run<'_>> {
        self.map_inner(offset)
            .map_err(|error| error.in_structure("VHDX block allocation table").at_path(self.tables.file().path()))
    }

    fn unpack(&self, _: Unit, _: &mut [u8]) -> Result<()> {
        Err(Error::corrupt("nothing in a VHDX is compressed"))
    }
}

fn le_u64(word: &[u8]) -> u64 {
    word.first_chunk().map_or(0, |word| u64::from_le_bytes(*word))
}
