//! Bitmaps of sectors, which say for each sector of a block whether this image holds it or the one below.

use super::tables::Tables;
use firn_disk::{Error, Result};

/// Which bit of a byte stands for its first sector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BitOrder {
    /// The highest, as in VHD.
    HighFirst,
    /// The lowest, as in VHDX.
    LowFirst,
}

/// The bit `first` of the bitmap at byte `at` of the file, and how many bits from there on are the same: at least
/// one, at most `most`, and no more than a page of the cache shows.
///
/// # Errors
/// `Corrupt` when the file ends before it; what reading says.
pub(super) fn run(tables: &Tables, at: u64, first: u64, most: u64, order: BitOrder) -> Result<(bool, u64)> {
    let page = tables.page(at.saturating_add(first / 8))?;
    let bytes = page.entries((first % 8 + most).div_ceil(8));
    let bit = |byte: u8, number: u64| {
        let shift = if order == BitOrder::HighFirst { 7 - number } else { number };
        byte >> shift & 1 == 1
    };
    let bits = bytes.iter().flat_map(|byte| (0..8).map(move |number| bit(*byte, number)));
    let skip = usize::try_from(first % 8).unwrap_or_default();
    let mut bits = bits.skip(skip).take(usize::try_from(most).unwrap_or(usize::MAX));
    let head = bits.next().ok_or_else(|| Error::corrupt("a sector bitmap is cut off by the end of the file"))?;
    Ok((head, 1 + bits.take_while(|bit| *bit == head).count() as u64))
}
