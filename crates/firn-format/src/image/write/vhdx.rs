//! VHDX, dynamic, blocks of 1 MiB: what Microsoft advises for Linux guests.
//!
//! ```text
//! 0 "vhdxfile", headers, region tables | 1 MiB log, empty | 2 MiB metadata | 3 MiB BAT | blocks
//! ```
//! The sector size is the source's. The physical sector size is 4096. Source: MS-VHDX; the fields are drawn in the
//! reader.

use super::pipeline::{Pipeline, UNIT};
use super::raw::write_unit;
use super::table::TableWriter;
use super::{is_zero, random_id, too_large, write_growing};
use crate::table::Guid;
use firn_disk::{FileDisk, Result, WriteDisk};

const MIB: u64 = 1 << 20;
const BLOCK: u64 = MIB;
const LOG: u64 = MIB;
const METADATA: u64 = 2 * MIB;
const TABLE: u64 = 3 * MIB;
const KIB64: u64 = 64 << 10;
/// The largest disk that the format has.
const SIZE_MAX: u64 = 64 << 40;
const FULLY_PRESENT: u64 = 6;
const PHYSICAL_SECTOR: u32 = 4096;

const REGION_BAT: &str = "2dc27766-f623-4200-9d64-115e9bfd4a08";
const REGION_METADATA: &str = "8b7ca206-4790-4b9a-b8fe-575f050f886e";
const FILE_PARAMETERS: &str = "caa16737-fa36-4d43-b3b6-33f0aa44e76b";
const DISK_SIZE: &str = "2fa54224-cd1b-4876-b211-5dbed83bf4b8";
const DISK_ID: &str = "beca12ab-b2e6-4523-93ef-c309e000c746";
const LOGICAL_SECTOR: &str = "8141bf1d-a96f-4709-ba47-f233a8faab5f";
const PHYSICAL_SECTOR_ID: &str = "cda348c7-445d-4471-9cc9-e9885251c556";

/// Writes the whole disk, whose padded length is `size`; answers the bytes that are not zero.
pub(super) fn write(pipeline: &Pipeline<'_>, output: &FileDisk, size: u64, unique: &[u8; 16]) -> Result<u64> {
    if size > SIZE_MAX {
        return Err(too_large(size, "VHDX, which ends at 64 TiB"));
    }
    let sector = pipeline.source.logical_block_size();
    // One entry for a bitmap follows the blocks that share it; without a parent there is no bitmap.
    let ratio = (1 << 23) * u64::from(sector) / BLOCK;
    let blocks = size.div_ceil(BLOCK);
    let entries = blocks + blocks.saturating_sub(1) / ratio;
    let table_bytes = (entries * 8).next_multiple_of(MIB);
    let mut end = TABLE + table_bytes;
    output.resize(end)?;
    let mut table = TableWriter::<8>::new(output, TABLE, entries, 0)?;
    let mut stored = 0;
    pipeline.run(
        |_, bytes| Ok((!is_zero(&bytes)).then_some(bytes)),
        |offset, bytes| {
            debug_assert_eq!(UNIT, BLOCK);
            let Some(bytes) = bytes else { return Ok(()) };
            let (index, at) = (offset / BLOCK, end);
            end += BLOCK;
            output.resize(end)?;
            stored += write_unit(output, at, &bytes)?;
            table.set(index + index / ratio, (at | FULLY_PRESENT).to_le_bytes())
        },
    )?;
    table.flush()?;
    let metadata = metadata(size, sector, unique);
    for (at, piece) in metadata {
        write_growing(output, &piece, METADATA + at)?;
    }
    let regions = regions(table_bytes);
    for number in 0..2 {
        write_growing(output, &header(number, unique), (1 + number) * KIB64)?;
        write_growing(output, &regions, (3 + number) * KIB64)?;
    }
    let creator = "firn".encode_utf16().flat_map(u16::to_le_bytes);
    let identifier: Vec<u8> = b"vhdxfile".iter().copied().chain(creator).collect();
    write_growing(output, &identifier, 0)?;
    Ok(stored)
}

/// The bytes of a GUID on disk; the constants above are all good.
fn guid(text: &str) -> [u8; 16] {
    Guid::parse(text).unwrap_or(Guid::NIL).to_disk()
}

fn with_checksum(mut bytes: Vec<u8>) -> Vec<u8> {
    let sum = crc32c::crc32c(&bytes);
    if let Some(field) = bytes.get_mut(4..8) {
        field.copy_from_slice(&sum.to_le_bytes());
    }
    bytes
}

fn header(sequence: u64, unique: &[u8; 16]) -> Vec<u8> {
    let mut header = b"head\0\0\0\0".to_vec();
    header.extend(sequence.to_le_bytes());
    header.extend(random_id(unique, "VHDX file write"));
    header.extend(random_id(unique, "VHDX data write"));
    // No log GUID: the log is empty. Log version 0, version 1.
    header.extend([0; 16]);
    header.extend(0_u16.to_le_bytes());
    header.extend(1_u16.to_le_bytes());
    header.extend(u32::try_from(MIB).unwrap_or_default().to_le_bytes());
    header.extend(LOG.to_le_bytes());
    header.resize(4096, 0);
    with_checksum(header)
}

fn regions(table_bytes: u64) -> Vec<u8> {
    let mut regions = b"regi\0\0\0\0".to_vec();
    regions.extend(2_u32.to_le_bytes());
    regions.extend([0; 4]);
    for (name, at, length) in [(REGION_BAT, TABLE, table_bytes), (REGION_METADATA, METADATA, MIB)] {
        regions.extend(guid(name));
        regions.extend(at.to_le_bytes());
        regions.extend(u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
        // A reader must know it.
        regions.extend(1_u32.to_le_bytes());
    }
    regions.resize(64 << 10, 0);
    with_checksum(regions)
}

/// The table of items and the items, each with its place in the region.
fn metadata(size: u64, sector: u32, unique: &[u8; 16]) -> [(u64, Vec<u8>); 2] {
    let block = u32::try_from(BLOCK).unwrap_or_default();
    let parameters: Vec<u8> = [block.to_le_bytes(), [0; 4]].concat();
    let of_disk = 6;
    let items = [
        (FILE_PARAMETERS, 4_u32, parameters),
        (DISK_SIZE, of_disk, size.to_le_bytes().to_vec()),
        (DISK_ID, of_disk, random_id(unique, "VHDX disk").to_vec()),
        (LOGICAL_SECTOR, of_disk, sector.to_le_bytes().to_vec()),
        (PHYSICAL_SECTOR_ID, of_disk, PHYSICAL_SECTOR.to_le_bytes().to_vec()),
    ];
    let field = |value: usize| u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes();
    let mut table = b"metadata\0\0".to_vec();
    table.extend(u16::try_from(items.len()).unwrap_or_default().to_le_bytes());
    table.resize(32, 0);
    let (first, mut content) = (64 << 10, Vec::new());
    for (name, flags, item) in items {
        table.extend(guid(name));
        table.extend(field(first + content.len()));
        table.extend(field(item.len()));
        table.extend(flags.to_le_bytes());
        table.extend([0; 4]);
        content.extend(item);
    }
    [(0, table), (KIB64, content)]
}
