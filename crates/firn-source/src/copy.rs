//! An image in a frozen copy of a folder: a snapshot that a file system or filer made.
//!
//! Nobody writes to such a copy, so it need be neither locked nor unmounted. But it may vanish while it is read, and what
//! its images name in the folder itself must be found in the copy: [`image::open_moved`].

use crate::file::FileState;
use firn_disk::{Error, ErrorKind, Result, SharedDisk};
use firn_format::image::{self, ImageFormat, Moved, OpenOptions};
use std::path::{Path, PathBuf};

/// An open image of a frozen copy.
#[derive(Debug)]
pub(crate) struct CopiedImage {
    /// What the guest saw.
    pub(crate) disk: SharedDisk,
    /// A raw one's bytes are those of the file.
    pub(crate) format: ImageFormat,
    watched: Vec<(PathBuf, FileState)>,
}

impl CopiedImage {
    /// The image at `path`, which lies in the copy.
    ///
    /// # Errors
    /// As [`image::open_moved`].
    pub(crate) fn open(path: &Path, options: &OpenOptions, moved: &Moved) -> Result<Self> {
        let opened = image::open_moved(path, options, moved)?;
        let details = &opened.details;
        let others = details.chain.iter().map(|link| link.path.as_path());
        let files = std::iter::once(path).chain(others).chain(details.data_files.iter().map(PathBuf::as_path));
        let watched = files.map(|file| Ok((file.to_path_buf(), FileState::of(file)?))).collect::<Result<_>>()?;
        Ok(Self { disk: opened.disk, format: opened.format, watched })
    }

    /// # Errors
    /// `Unavailable` when a file of it is gone or was written to.
    pub(crate) fn check(&self) -> Result<()> {
        for (path, before) in &self.watched {
            if FileState::of(path).ok().as_ref() != Some(before) {
                let message = "the frozen copy was changed or removed while it was read; there is no snapshot";
                return Err(Error::new(ErrorKind::Unavailable, message).at_path(path));
            }
        }
        Ok(())
    }
}
