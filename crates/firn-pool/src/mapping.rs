//! The one place of this crate with `unsafe`: mapping a local index file into memory.
//!
//! An index of a large pool has hundreds of megabytes. Mapped, it costs no memory of our own, is shared by all
//! processes, and only the pages that are asked for are read.

use firn_disk::{Error, Result};
use memmap2::Mmap;
use std::fs::File;
use std::path::Path;

/// Maps a whole file for reading.
///
/// The files that are mapped here lie in firn's own cache folder and are written aside, renamed into place and
/// never changed or cut short afterwards, only unlinked.
///
/// # Errors
/// The system's own, with the path.
pub(crate) fn map(path: &Path) -> Result<Mmap> {
    let file = File::open(path).map_err(|error| Error::from_io("open", error).at_path(path))?;
    // SAFETY: the mapping is only ever read as bytes, any of which are valid. Changing the file underneath would
    // be undefined behaviour; run files are immutable once they have their name (see above), and truncation by a
    // stranger in the user's private cache folder is the same trust as in any mapped library.
    let mapping = unsafe { Mmap::map(&file) };
    mapping.map_err(|error| Error::from_io("map", error).at_path(path))
}
