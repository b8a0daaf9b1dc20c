//! Raw: each worker writes what is not zero where it belongs; the rest stays a hole of the file.

use super::is_zero;
use super::pipeline::Pipeline;
use firn_disk::{FileDisk, Fua, Result, WriteDisk};

/// Zeros are found in blocks of this many bytes, the usual block of a file system.
const BLOCK: usize = 4096;

/// Writes the whole disk; answers the bytes that were not zero, in whole blocks.
pub(super) fn write(pipeline: &Pipeline<'_>, output: &FileDisk) -> Result<u64> {
    output.resize(pipeline.source.len())?;
    let mut written = 0;
    pipeline.run(
        |offset, bytes| write_unit(output, offset, &bytes),
        |_, count: u64| {
            written += count;
            Ok(())
        },
    )?;
    Ok(written)
}

/// Writes what of `bytes` is not zero where it belongs, into a file that is long enough; answers how much that was.
pub(super) fn write_unit(output: &FileDisk, offset: u64, bytes: &[u8]) -> Result<u64> {
    let mut written = 0;
    let mut at = offset;
    // Neighbouring blocks of data go out in one call.
    for run in bytes.chunks(BLOCK).collect::<Vec<_>>().chunk_by(|a, b| is_zero(a) == is_zero(b)) {
        let length: usize = run.iter().map(|block| block.len()).sum();
        let start = usize::try_from(at - offset).unwrap_or(usize::MAX);
        if let (Some(first), Some(piece)) = (run.first(), bytes.get(start..start + length))
            && !is_zero(first)
        {
            output.write_at(piece, at, Fua::No)?;
            written += length as u64;
        }
        at += length as u64;
    }
    Ok(written)
}
