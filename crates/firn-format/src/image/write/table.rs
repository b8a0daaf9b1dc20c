//! A table of entries that is written while its entries come, in order, with little of it in memory.

use firn_disk::{FileDisk, Fua, Result, WriteDisk};

/// Bytes of the table that are in memory.
const WINDOW: u64 = 64 << 10;

/// A table of entries of `N` bytes in a file that is long enough to hold it.
pub(super) struct TableWriter<'a, const N: usize> {
    output: &'a FileDisk,
    at: u64,
    /// Bytes of the whole table.
    length: u64,
    fill: u8,
    /// Where in the table the window begins.
    start: u64,
    window: Vec<u8>,
}

impl<'a, const N: usize> TableWriter<'a, N> {
    /// A table of `entries` at byte `at` of `output`, whose bytes are `fill` for what is never set.
    ///
    /// # Errors
    /// What writing says.
    pub(super) fn new(output: &'a FileDisk, at: u64, entries: u64, fill: u8) -> Result<Self> {
        let table = Self { output, at, length: entries * N as u64, fill, start: 0, window: Vec::new() };
        let mut start = 0;
        // Zeros are there already.
        while fill != 0 && start < table.length {
            let count = WINDOW.min(table.length - start);
            output.write_at(&vec![fill; usize::try_from(count).unwrap_or_default()], at + start, Fua::No)?;
            start += count;
        }
        Ok(table)
    }

    /// Sets entry `index`, which is not before the one that was set last.
    ///
    /// # Errors
    /// What writing says.
    pub(super) fn set(&mut self, index: u64, entry: [u8; N]) -> Result<()> {
        let place = index * N as u64;
        if self.window.is_empty() || place >= self.start + self.window.len() as u64 {
            self.flush()?;
            self.start = place - place % WINDOW;
            let count = WINDOW.min(self.length - self.start);
            self.window = vec![self.fill; usize::try_from(count).unwrap_or_default()];
        }
        let from = usize::try_from(place - self.start).unwrap_or(usize::MAX);
        if let Some(slot) = self.window.get_mut(from..).and_then(|rest| rest.get_mut(..N)) {
            slot.copy_from_slice(&entry);
        }
        Ok(())
    }

    /// Writes what is still in memory.
    ///
    /// # Errors
    /// What writing says.
    pub(super) fn flush(&mut self) -> Result<()> {
        self.output.write_at(&self.window, self.at + self.start, Fua::No)?;
        self.window.clear();
        Ok(())
    }
}
