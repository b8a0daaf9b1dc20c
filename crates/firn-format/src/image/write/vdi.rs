//! VDI, dynamic, blocks of 1 MiB.
//!
//! ```text
//! header | block map from byte 512 on | data from the next MiB on, a block each
//! ```
//! Source: VirtualBox's VDICore.h, QEMU's block/vdi.c; the fields are drawn in the reader.

use super::pipeline::{Pipeline, UNIT};
use super::raw::write_unit;
use super::table::TableWriter;
use super::{is_zero, random_id, too_large, write_growing};
use firn_disk::{FileDisk, Result, WriteDisk};

const BLOCK: u64 = 1 << 20;
const MAP: u64 = 512;
/// A number of a block is 32 bits, of which two values mean something else; QEMU ends at a quarter of that.
const BLOCKS_MAX: u64 = 0x3fff_ffff;

/// Writes the whole disk, whose padded length is `size`; answers the bytes that are not zero.
pub(super) fn write(pipeline: &Pipeline<'_>, output: &FileDisk, size: u64, unique: &[u8; 16]) -> Result<u64> {
    let blocks = size.div_ceil(BLOCK);
    if blocks > BLOCKS_MAX {
        return Err(too_large(size, "VDI"));
    }
    let data = (MAP + blocks * 4).next_multiple_of(BLOCK);
    output.resize(data)?;
    let mut map = TableWriter::<4>::new(output, MAP, blocks, 0xff)?;
    let (mut allocated, mut stored) = (0_u32, 0);
    pipeline.run(
        |_, bytes| Ok((!is_zero(&bytes)).then_some(bytes)),
        |offset, bytes| {
            debug_assert_eq!(UNIT, BLOCK);
            let Some(bytes) = bytes else { return Ok(()) };
            let at = data + u64::from(allocated) * BLOCK;
            output.resize(at + BLOCK)?;
            stored += write_unit(output, at, &bytes)?;
            map.set(offset / BLOCK, allocated.to_le_bytes())?;
            // At most as many as there are blocks.
            allocated += 1;
            Ok(())
        },
    )?;
    map.flush()?;
    write_growing(output, &header(size, blocks, data, allocated, unique), 0)?;
    Ok(stored)
}

fn header(size: u64, blocks: u64, data: u64, allocated: u32, unique: &[u8; 16]) -> Vec<u8> {
    let field = |value: u64| u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes();
    let mut header = b"<<< firn VirtualBox Disk Image >>>\n".to_vec();
    header.resize(64, 0);
    header.extend(0xbeda_107f_u32.to_le_bytes());
    // Version 1.1; the length of the header from here on; a dynamic image; no flags; no comment.
    for value in [0x0001_0001, 400, 1, 0] {
        header.extend(field(value));
    }
    header.resize(340, 0);
    header.extend(field(MAP));
    header.extend(field(data));
    // No geometry but the sector; an unused field.
    for value in [0, 0, 0, 512, 0] {
        header.extend(field(value));
    }
    header.extend(size.to_le_bytes());
    for value in [BLOCK, 0, blocks, u64::from(allocated)] {
        header.extend(field(value));
    }
    header.extend(random_id(unique, "VDI image"));
    header.extend(random_id(unique, "VDI last write"));
    // No parent.
    header.resize(512, 0);
    header
}
