//! VHD, dynamic, blocks of 2 MiB.
//!
//! ```text
//! footer's copy | dynamic header | BAT | block: bitmap of 512 bytes, data | ... | footer
//! ```
//! Every bit of a bitmap is set, as QEMU does it. The creator is given as "qem2", QEMU's own mark for an image whose
//! recorded size counts and not its geometry, since older programs know a list of such marks. No time is recorded.
//! Source: Microsoft, Virtual Hard Disk Image Format Specification 1.0.

use super::pipeline::Pipeline;
use super::raw::write_unit;
use super::table::TableWriter;
use super::{is_zero, random_id, too_large, write_growing};
use firn_disk::{FileDisk, Fua, Result, WriteDisk};

const SECTOR: u64 = 512;
const BLOCK: u64 = 2 << 20;
const BITMAP: u64 = 512;
const HEADER: u64 = 512;
const TABLE: u64 = 1536;
/// The largest disk that Windows attaches.
const SIZE_MAX: u64 = 2040 << 30;

/// Writes the whole disk, whose padded length is `size`; answers the bytes that are not zero.
pub(super) fn write(pipeline: &Pipeline<'_>, output: &FileDisk, size: u64, unique: &[u8; 16]) -> Result<u64> {
    if size > SIZE_MAX {
        return Err(too_large(size, "VHD, which ends at 2040 GiB"));
    }
    let blocks = size.div_ceil(BLOCK);
    let mut end = (TABLE + blocks * 4).next_multiple_of(SECTOR);
    output.resize(end)?;
    let mut table = TableWriter::<4>::new(output, TABLE, blocks, 0xff)?;
    let (mut stored, mut current) = (0, None);
    pipeline.run(
        |_, bytes| Ok((!is_zero(&bytes)).then_some(bytes)),
        |offset, bytes| {
            let Some(bytes) = bytes else { return Ok(()) };
            let index = offset / BLOCK;
            let at = match current {
                Some((block, at)) if block == index => at,
                _ => {
                    let at = end;
                    end += BITMAP + BLOCK;
                    output.resize(end)?;
                    output.write_at(&[0xff; 512], at, Fua::No)?;
                    table.set(index, u32::try_from(at / SECTOR).unwrap_or(u32::MAX).to_be_bytes())?;
                    current = Some((index, at));
                    at
                }
            };
            stored += write_unit(output, at + BITMAP + offset % BLOCK, &bytes)?;
            Ok(())
        },
    )?;
    table.flush()?;
    let footer = footer(size, unique);
    write_growing(output, &footer, end)?;
    write_growing(output, &header(blocks), HEADER)?;
    write_growing(output, &footer, 0)?;
    Ok(stored)
}

fn with_checksum(mut bytes: Vec<u8>, at: usize) -> Vec<u8> {
    let sum = bytes.iter().fold(0_u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
    if let Some(field) = bytes.get_mut(at..at + 4) {
        field.copy_from_slice(&(!sum).to_be_bytes());
    }
    bytes
}

fn footer(size: u64, unique: &[u8; 16]) -> Vec<u8> {
    let mut footer = b"conectix".to_vec();
    // Reserved feature bit, version 1.0, where the dynamic header is, no time.
    footer.extend(2_u32.to_be_bytes());
    footer.extend(0x0001_0000_u32.to_be_bytes());
    footer.extend(HEADER.to_be_bytes());
    footer.extend([0; 4]);
    footer.extend(b"qem2");
    footer.extend(0x0001_0000_u32.to_be_bytes());
    footer.extend(b"Wi2k");
    footer.extend(size.to_be_bytes());
    footer.extend(size.to_be_bytes());
    footer.extend(geometry(size / SECTOR));
    // Dynamic; the checksum.
    footer.extend(3_u32.to_be_bytes());
    footer.extend([0; 4]);
    footer.extend(random_id(unique, "VHD image"));
    footer.resize(512, 0);
    with_checksum(footer, 64)
}

fn header(blocks: u64) -> Vec<u8> {
    let field = |value: u64| u32::try_from(value).unwrap_or(u32::MAX).to_be_bytes();
    let mut header = b"cxsparse".to_vec();
    header.extend(u64::MAX.to_be_bytes());
    header.extend(TABLE.to_be_bytes());
    header.extend(0x0001_0000_u32.to_be_bytes());
    header.extend(field(blocks));
    header.extend(field(BLOCK));
    header.resize(1024, 0);
    with_checksum(header, 36)
}

/// Cylinders, heads and sectors as the specification's appendix computes them.
fn geometry(sectors: u64) -> [u8; 4] {
    let sectors = sectors.min(65_535 * 16 * 255);
    let (mut track, mut heads, mut cylinder_heads);
    if sectors >= 65_535 * 16 * 63 {
        (track, heads, cylinder_heads) = (255, 16, sectors / 255);
    } else {
        (track, cylinder_heads) = (17, sectors / 17);
        heads = cylinder_heads.div_ceil(1024).max(4);
        if cylinder_heads >= heads * 1024 || heads > 16 {
            (track, heads, cylinder_heads) = (31, 16, sectors / 31);
        }
        if cylinder_heads >= heads * 1024 {
            (track, heads, cylinder_heads) = (63, 16, sectors / 63);
        }
    }
    let [high, low] = u16::try_from(cylinder_heads / heads).unwrap_or(u16::MAX).to_be_bytes();
    let byte = |value: u64| u8::try_from(value).unwrap_or(u8::MAX);
    [high, low, byte(heads), byte(track)]
}

#[cfg(test)]
mod tests {
    use super::geometry;

    #[test]
    fn geometry_is_that_of_the_specification() {
        // 2048 sectors: 4 heads of 17; the largest geometry there is for 2040 GiB.
        assert_eq!(geometry(2048), [0, 30, 4, 17]);
        assert_eq!(geometry(u64::MAX), [255, 255, 16, 255]);
        // 1 GiB: 2080 cylinders; 100 GiB: 51,400, and qemu-img one more, as it rounds up.
        assert_eq!(geometry(2_097_152), [8, 32, 16, 63]);
        assert_eq!(geometry(209_715_200), [200, 200, 16, 255]);
    }
}
