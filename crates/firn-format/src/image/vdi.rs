//! VDI: VirtualBox's disk format. Little endian.
//!
//! ```text
//!  64 signature 0xbeda107f   68 version 0x00010001   72 header's length   76 type: 1 dynamic, 2 fixed, 4 differencing
//! 340 block map u32         344 data u32            368 size u64         376 block u32   380 extra bytes of a block
//! 384 blocks u32            392 UUID  408 UUID of the last write  424 parent's UUID  440 parent's last write
//! block map: u32 for each block: its number in the data, 0xfffffffe zeros, 0xffffffff not there
//! ```
//! The parent is the image in the same folder, one `Snapshots` below, or an allowed folder, whose UUID the child
//! gives: the format has no name for it. A parent that was written to since is refused.
//!
//! Source: VirtualBox's VDICore.h; QEMU's block/vdi.c. Refused: versions below 1.1, undo images, damaged maps.

use super::access::ImageFile;
use super::layer::{Layer, Layered, Place, Run, Unit};
use super::tables::Tables;
use super::{Details, ImageFormat, Opened, Opener};
use crate::table::Guid;
use firn_disk::{Error, ErrorKind, Record, Result};
use std::sync::Arc;

/// Where the signature stands, and what it is.
pub(super) const MAGIC_AT: usize = 64;
pub(super) const MAGIC: &[u8; 4] = &[0x7f, 0x10, 0xda, 0xbe];

const NONE: u32 = u32::MAX;
const ZERO: u32 = u32::MAX - 1;
const DIFFERENCING: u32 = 4;
/// VirtualBox makes blocks of 1 MiB; larger ones than this make no sense.
const BLOCK_MAX: u32 = 1 << 28;

/// What the header says, checked.
struct Header {
    kind: u32,
    map: u64,
    data: u64,
    size: u64,
    block: u64,
    extra: u64,
    uuid: [u8; 16],
    written: [u8; 16],
    parent: [u8; 16],
    parent_written: [u8; 16],
}

impl Header {
    fn read(file: &ImageFile) -> Result<Self> {
        let mut buf = [0; 512];
        let record = Record::read(file.disk(), &mut buf, 0, "VDI header")?;
        if record.slice(MAGIC_AT, 4)? != MAGIC {
            return Err(record.corrupt(MAGIC_AT, "this is no VDI image"));
        }
        let version = record.le_u32(68)?;
        if version != 0x0001_0001 {
            let shown = format!("version {}.{}; 1.1 is known", version >> 16, version & 0xffff);
            return Err(record.unsupported(68, shown).hint("open it once in a newer VirtualBox, which converts it"));
        }
        let kind = record.le_u32(76)?;
        if !matches!(kind, 1 | 2 | DIFFERENCING) {
            return Err(record.unsupported(76, format!("image type {kind}; 1, 2 and 4 are known")));
        }
        let (size, block) = (record.le_u64(368)?, record.le_u32(376)?);
        if !block.is_power_of_two() || !(512..=BLOCK_MAX).contains(&block) {
            return Err(record.corrupt(376, format!("blocks of {block} bytes")));
        }
        let blocks = u64::from(record.le_u32(384)?);
        if i64::try_from(size).is_err() || size.div_ceil(u64::from(block)) > blocks {
            return Err(record.corrupt(368, format!("a disk of {size} bytes in {blocks} blocks of {block}")));
        }
        let (map, data) = (u64::from(record.le_u32(340)?), u64::from(record.le_u32(344)?));
        if !map.is_multiple_of(4) || map < 456 || data < map {
            return Err(record.corrupt(340, format!("a block map at byte {map}, data at byte {data}")));
        }
        file.check_stored(map, size.div_ceil(u64::from(block)) * 4)
            .map_err(|error| error.in_structure("VDI block map"))?;
        let extra = u64::from(record.le_u32(380)?);
        let (uuid, written) = (record.array(392)?, record.array(408)?);
        let (parent, parent_written) = (record.array(424)?, record.array(440)?);
        Ok(Self { kind, map, data, size, block: u64::from(block), extra, uuid, written, parent, parent_written })
    }
}

/// Opens a VDI image with its parents.
pub(super) fn open(opener: &mut Opener, file: &ImageFile) -> Result<Opened> {
    let header = Header::read(file)?;
    let subformat = match header.kind {
        1 => "dynamic",
        2 => "fixed",
        _ => "differencing",
    };
    let mut details = Details {
        virtual_size: header.size,
        subformat: Some(subformat.to_owned()),
        cluster_size: Some(header.block),
        features: vec![format!("UUID {}", Guid::from_disk(header.uuid))],
        ..Details::default()
    };
    let below = if header.kind == DIFFERENCING {
        let parent = open_parent(opener, file, &header)?;
        details.chain = parent.as_chain();
        Some(parent.disk)
    } else {
        None
    };
    let Header { map, data, size, block, extra, .. } = header;
    let layer = Vdi { tables: Tables::new(file.clone(), &opener.tables), map, data, size, block, extra };
    Ok(Opened {
        disk: Arc::new(Layered::new(layer, below)),
        format: ImageFormat::Vdi,
        file: file.clone(),
        details,
        bitmaps: None,
    })
}

fn open_parent(opener: &mut Opener, file: &ImageFile, header: &Header) -> Result<Opened> {
    if header.parent == [0; 16] {
        return Err(Error::corrupt("it is a differencing image without a parent's UUID").in_structure("VDI header"));
    }
    let wanted = Guid::from_disk(header.parent);
    let mut unavailable = None;
    for path in opener.gate.candidates(file, "vdi") {
        let candidate = match opener.gate.open_named(file, &path, "parent") {
            Ok(candidate) => candidate,
            Err(error) => {
                unavailable = unavailable.or(Some(error).filter(|error| error.kind() != ErrorKind::Denied));
                continue;
            }
        };
        // What is no VDI, or damaged, is not the one.
        let Ok(found) = Header::read(&candidate) else { continue };
        if found.uuid != header.parent || candidate.identity() == file.identity() {
            continue;
        }
        if header.parent_written != [0; 16] && found.written != header.parent_written {
            return Err(Error::corrupt("it was written to after its child was made")
                .at_path(candidate.path())
                .hint("take the parent as it was when the snapshot was taken"));
        }
        return opener.open_below(&candidate, Some(ImageFormat::Vdi));
    }
    // One that is held by a running machine may be the one.
    Err(unavailable.unwrap_or_else(|| {
        Error::not_found(format!("the parent, with UUID {wanted}, is not among the .vdi files in the image's folder"))
            .at_path(file.path())
            .hint("snapshots lie in a folder Snapshots: allow the folder of the machine with --allow-backing DIR")
    }))
}

/// Blocks by the map.
#[derive(Debug)]
struct Vdi {
    tables: Tables,
    map: u64,
    data: u64,
    size: u64,
    block: u64,
    extra: u64,
}

impl Vdi {
    /// Where the bytes of the block with this entry are.
    fn place(&self, entry: u32) -> Place<'_> {
        match entry {
            NONE => Place::Below,
            ZERO => Place::Zero,
            _ => {
                let at =
                    u64::from(entry).saturating_mul(self.block + self.extra).saturating_add(self.data + self.extra);
                Place::Stored { file: self.tables.file(), at }
            }
        }
    }

    fn map_inner(&self, offset: u64) -> Result<Run<'_>> {
        let (index, into) = (offset / self.block, offset % self.block);
        let page = self.tables.page(self.map + index * 4)?;
        let rest = self.size.div_ceil(self.block) - index;
        let mut entries = page.entries(rest * 4).chunks_exact(4).map(le_u32);
        let entry = entries.next().ok_or_else(|| Error::corrupt("the block map is cut off"))?;
        let place = match self.place(entry) {
            Place::Stored { file, at } => {
                return Ok(Run { place: Place::Stored { file, at: at + into }, length: self.block - into });
            }
            place => place,
        };
        let more = entries.take_while(|next| *next == entry).count() as u64;
        Ok(Run { place, length: (1 + more) * self.block - into })
    }
}

impl Layer for Vdi {
    fn len(&self) -> u64 {
        self.size
    }

    fn unit_bytes(&self) -> u64 {
        0
    }

    fn map(&self, offset: u64) -> Result<Run<'_>> {
        self.map_inner(offset).map_err(|error| error.in_structure("VDI block map").at_path(self.tables.file().path()))
    }

    fn unpack(&self, _: Unit, _: &mut [u8]) -> Result<()> {
        Err(Error::corrupt("nothing in a VDI is compressed"))
    }
}

fn le_u32(word: &[u8]) -> u32 {
    word.first_chunk().map_or(0, |word| u32::from_le_bytes(*word))
}
