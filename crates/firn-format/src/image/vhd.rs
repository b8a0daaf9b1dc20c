//! VHD: the disk format of Virtual PC, early Hyper-V, Azure and XenServer. Big endian.
//!
//! ```text
//! fixed         the disk's bytes | footer
//! dynamic       footer's copy | dynamic header | BAT | block: sector bitmap, data | block | ... | footer
//! differencing  as dynamic, with the parent's UUID and names; a sector whose bit is not set is the parent's
//!
//! footer   0 "conectix"   16 dynamic header u64   28 creator   48 size u64   56 cylinders u16, heads u8, sectors u8
//!         60 type u32 (2 fixed, 3 dynamic, 4 differencing)   64 checksum   68 UUID
//! header   0 "cxsparse"   16 BAT u64   24 version   28 entries u32   32 block u32   36 checksum   40 parent's UUID
//!         64 parent's name, UTF-16   576 eight locators: platform, space, length, 0, offset u64
//! BAT      u32: the sector of the block's bitmap, or 0xffffffff
//! ```
//! A checksum is the inverse of the sum of all bytes without it. Where the footer at the end is damaged or missing,
//! its copy at the start counts; without that copy only a fixed disk is believed. The length is the recorded size, but
//! Virtual PC and old versions of QEMU mean the geometry, unless that is the largest there is: as QEMU 10 has it.
//!
//! Source: Microsoft, Virtual Hard Disk Image Format Specification 1.0; QEMU's block/vpc.c. In a dynamic disk a
//! sector whose bit is not set is zeros, as the specification says (QEMU sets all bits and looks at none). That a
//! parent was not written to since cannot be seen in this format. Refused: other types and versions.

use super::access::ImageFile;
use super::bitmap::{self, BitOrder};
use super::layer::{Layer, Layered, Place, Run, Unit};
use super::parent::{self, utf16};
use super::tables::Tables;
use super::{Details, ImageFormat, Opened, Opener};
use crate::table::Guid;
use firn_disk::{Disk, Error, Record, Result};
use std::sync::Arc;

pub(super) const MAGIC: &[u8; 8] = b"conectix";
const SECTOR: u64 = 512;
const FOOTER: u64 = 512;
const UNUSED: u32 = u32::MAX;
/// The largest geometry; a disk that has it may be larger.
const CYLINDERS_MAX: u16 = 65_535;
const LARGEST_GEOMETRY: u64 = CYLINDERS_MAX as u64 * 16 * 255;
/// Blocks are 2 MiB; 512 KiB are known, too. The limit bounds what a bitmap may be.
const BLOCK_MAX: u32 = 1 << 30;
/// Bytes of a parent's name in a locator.
const NAME_MAX: u32 = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Fixed,
    Dynamic,
    Differencing,
}

/// What a footer says, its checksum right.
struct Footer {
    kind: Kind,
    header: u64,
    size: u64,
    uuid: [u8; 16],
    creator: String,
}

impl Footer {
    /// The footer of `file`: the one at the end, or else its copy at the start.
    fn read(file: &ImageFile) -> Result<Self> {
        let disk = file.disk();
        let end = disk.len().checked_sub(FOOTER);
        let end = end.ok_or_else(|| Error::corrupt("the file is too short for one").in_structure("VHD footer"))?;
        let footer = Self::read_at(disk, end).or_else(|error| Self::read_at(disk, 0).map_err(|_| error))?;
        let mut magic = [0; 8];
        disk.read_at(&mut magic, 0)?;
        if footer.kind != Kind::Fixed && &magic != MAGIC {
            // A guest may write a footer into the last sector of its raw disk, which must not make us open files.
            return Err(Error::corrupt("its copy at the start of the file is missing").in_structure("VHD footer"));
        }
        Ok(footer)
    }

    fn read_at(disk: &dyn Disk, at: u64) -> Result<Self> {
        let mut buf = [0; 512];
        let record = Record::read(disk, &mut buf, at, "VHD footer")?;
        if record.slice(0, 8)? != MAGIC {
            return Err(record.corrupt(0, "there is none").hint("the file is cut short, or it is no VHD"));
        }
        check_sum(&record, 64)?;
        let version = record.be_u32(12)?;
        if version >> 16 != 1 {
            return Err(record.unsupported(12, format!("version {:#x}; 1.0 is known", version)));
        }
        let kind = match record.be_u32(60)? {
            2 => Kind::Fixed,
            3 => Kind::Dynamic,
            4 => Kind::Differencing,
            other => return Err(record.unsupported(60, format!("disk type {other}"))),
        };
        let creator = record.array::<4>(28)?;
        let (cylinders, heads, sectors) = (record.be_u16(56)?, record.u8(58)?, record.u8(59)?);
        let geometry = u64::from(cylinders) * u64::from(heads) * u64::from(sectors);
        let by_geometry = matches!(&creator, b"vpc " | b"qemu") && geometry != LARGEST_GEOMETRY;
        let size = if by_geometry { geometry * SECTOR } else { record.be_u64(48)? / SECTOR * SECTOR };
        if i64::try_from(size).is_err() {
            return Err(record.corrupt(48, format!("a disk of {size} bytes")));
        }
        let creator = String::from_utf8_lossy(&creator).trim_end_matches(['\0', ' ']).to_owned();
        Ok(Self { kind, header: record.be_u64(16)?, size, uuid: record.array(68)?, creator })
    }
}

/// `Ok` when the checksum at `at` of `record` is right.
fn check_sum(record: &Record<'_>, at: usize) -> Result<()> {
    let sum = |bytes: &[u8]| bytes.iter().fold(0_u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
    let without = sum(record.bytes()).wrapping_sub(sum(record.slice(at, 4)?));
    if !without != record.be_u32(at)? {
        return Err(record.corrupt(at, "its checksum is wrong").hint("take another copy of the file"));
    }
    Ok(())
}

/// Opens a VHD image with its parents.
pub(super) fn open(opener: &mut Opener, file: &ImageFile) -> Result<Opened> {
    let footer = Footer::read(file)?;
    let mut details = Details { virtual_size: footer.size, ..Details::default() };
    details.features.push(format!("UUID {}", Guid::from_printed_order(footer.uuid)));
    if footer.creator.chars().all(|letter| letter.is_ascii_graphic()) && !footer.creator.is_empty() {
        details.features.push(format!("made by {:?}", footer.creator));
    }
    let done =
        |disk, details| Ok(Opened { disk, format: ImageFormat::Vhd, file: file.clone(), details, bitmaps: None });
    if footer.kind == Kind::Fixed {
        details.subformat = Some("fixed".to_owned());
        file.check_stored(0, footer.size.saturating_add(FOOTER))?;
        return done(Arc::new(Layered::new(Fixed { file: file.clone(), size: footer.size }, None)), details);
    }
    let mut buf = [0; 1024];
    let record = Record::read(file.disk(), &mut buf, footer.header, "VHD dynamic header")?;
    let layer = Blocks::open(opener, file, &footer, &record)?;
    details.cluster_size = Some(layer.block);
    details.subformat = Some(if footer.kind == Kind::Dynamic { "dynamic" } else { "differencing" }.to_owned());
    let below = match footer.kind {
        Kind::Differencing => {
            let parent = open_parent(opener, file, &record)?;
            details.chain = parent.as_chain();
            Some(parent.disk)
        }
        _ => None,
    };
    done(Arc::new(Layered::new(layer, below)), details)
}

fn open_parent(opener: &mut Opener, file: &ImageFile, header: &Record<'_>) -> Result<Opened> {
    let uuid = header.array::<16>(40)?;
    let parent = parent::open(opener, file, &parent_names(file, header)?)?;
    let found = Footer::read(&parent).map_err(|error| error.at_path(parent.path()))?.uuid;
    if found != uuid {
        let (found, uuid) = (Guid::from_printed_order(found), Guid::from_printed_order(uuid));
        return Err(Error::corrupt(format!("this disk's UUID is {found}, but the child was made from {uuid}"))
            .at_path(parent.path())
            .hint("this is another disk of the same name: put the child's own parent there"));
    }
    opener.open_below(&parent, Some(ImageFormat::Vhd))
}

/// Every name that the header has for the parent, the most useful first.
fn parent_names(file: &ImageFile, header: &Record<'_>) -> Result<Vec<String>> {
    let (mut relative, mut others) = (Vec::new(), vec![utf16(header.slice(64, 512)?, true)]);
    for number in 0..8 {
        let at = 576 + number * 24;
        let platform = header.array::<4>(at)?;
        let length = header.be_u32(at + 8)?;
        if platform == [0; 4] || length == 0 || length > NAME_MAX {
            continue;
        }
        let mut name = vec![0; usize::try_from(length).unwrap_or_default()];
        let record = Record::read(file.disk(), &mut name, header.be_u64(at + 16)?, "VHD parent locator")?;
        match &platform {
            b"W2ru" => relative.push(utf16(record.bytes(), false)),
            b"W2ku" => others.push(utf16(record.bytes(), false)),
            b"MacX" => others.push(String::from_utf8_lossy(record.bytes()).trim_end_matches('\0').to_owned()),
            // Deprecated ones, and the Mac's own aliases, which mean nothing elsewhere.
            _ => {}
        }
    }
    relative.extend(others);
    Ok(relative)
}

/// The whole disk in one piece.
#[derive(Debug)]
struct Fixed {
    file: ImageFile,
    size: u64,
}

impl Layer for Fixed {
    fn len(&self) -> u64 {
        self.size
    }

    fn unit_bytes(&self) -> u64 {
        0
    }

    fn map(&self, offset: u64) -> Result<Run<'_>> {
        // Holes of the file are holes of the disk.
        let extent = self.file.disk().extent_at(offset)?;
        let place = match extent.kind {
            firn_disk::ExtentKind::Data => Place::Stored { file: &self.file, at: offset },
            _ => Place::Below,
        };
        Ok(Run { place, length: extent.length })
    }

    fn unpack(&self, _: Unit, _: &mut [u8]) -> Result<()> {
        Err(Error::corrupt("nothing in a VHD is compressed"))
    }
}

/// Blocks by the BAT.
#[derive(Debug)]
struct Blocks {
    tables: Tables,
    bat: u64,
    entries: u64,
    block: u64,
    bitmap: u64,
    size: u64,
}

impl Blocks {
    fn open(opener: &Opener, file: &ImageFile, footer: &Footer, record: &Record<'_>) -> Result<Self> {
        if record.slice(0, 8)? != b"cxsparse" {
            return Err(record.corrupt(0, "there is none"));
        }
        check_sum(record, 36)?;
        let version = record.be_u32(24)?;
        if version >> 16 != 1 {
            return Err(record.unsupported(24, format!("version {version:#x}; 1.0 is known")));
        }
        let (bat, block) = (record.be_u64(16)?, record.be_u32(32)?);
        if !block.is_power_of_two() || u64::from(block) < SECTOR || block > BLOCK_MAX {
            return Err(record.corrupt(32, format!("blocks of {block} bytes")));
        }
        let entries = footer.size.div_ceil(u64::from(block));
        if entries > u64::from(record.be_u32(28)?) {
            return Err(record.corrupt(28, format!("too few blocks for a disk of {} bytes", footer.size)));
        }
        if bat % 4 != 0 {
            return Err(record.corrupt(16, format!("a table at byte {bat}")));
        }
        file.check_stored(bat, entries * 4).map_err(|error| error.in_structure("VHD block allocation table"))?;
        let bitmap = (u64::from(block) / SECTOR).div_ceil(8).next_multiple_of(SECTOR);
        let tables = Tables::new(file.clone(), &opener.tables);
        Ok(Self { tables, bat, entries, block: u64::from(block), bitmap, size: footer.size })
    }

    fn map_inner(&self, offset: u64) -> Result<Run<'_>> {
        let (index, into) = (offset / self.block, offset % self.block);
        let page = self.tables.page(self.bat + index * 4)?;
        let mut entries = page.entries((self.entries - index) * 4).chunks_exact(4).map(be_u32);
        let entry = entries.next().ok_or_else(|| Error::corrupt("the block allocation table is cut off"))?;
        if entry == UNUSED {
            let more = entries.take_while(|entry| *entry == UNUSED).count() as u64;
            return Ok(Run { place: Place::Below, length: (1 + more) * self.block - into });
        }
        let at = u64::from(entry) * SECTOR;
        let sectors = (self.block - into).div_ceil(SECTOR);
        let (is_here, count) = bitmap::run(&self.tables, at, into / SECTOR, sectors, BitOrder::HighFirst)
            .map_err(|error| error.in_structure("VHD sector bitmap"))?;
        let length = count * SECTOR - into % SECTOR;
        let place = if is_here {
            Place::Stored { file: self.tables.file(), at: at + self.bitmap + into }
        } else {
            Place::Below
        };
        Ok(Run { place, length })
    }
}

impl Layer for Blocks {
    fn len(&self) -> u64 {
        self.size
    }

    fn unit_bytes(&self) -> u64 {
        0
    }

    fn map(&self, offset: u64) -> Result<Run<'_>> {
        self.map_inner(offset).map_err(|error| error.at_path(self.tables.file().path()))
    }

    fn unpack(&self, _: Unit, _: &mut [u8]) -> Result<()> {
        Err(Error::corrupt("nothing in a VHD is compressed"))
    }
}

fn be_u32(word: &[u8]) -> u32 {
    word.first_chunk().map_or(0, |word| u32::from_be_bytes(*word))
}
