//! An image file or block device as a source: one disk that nobody may write to meanwhile.
//!
//! A file that a running QEMU holds, that is mounted, or that changes between its opening and the end of the reading, is
//! refused. With `torn` it is taken all the same, and nothing is claimed for it.

use crate::in_use;
use crate::source::{Changed, FrozenDisk, Outcome, Plan, PlannedDisk, Request, Source};
use firn_disk::{Disk, Error, ErrorKind, Result, SharedDisk};
use firn_format::image::{self, Image, ImageFormat, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// How an image is taken.
#[derive(Debug, Clone, Default)]
pub struct FileOptions {
    /// Format, internal snapshot, where backing files may lie, and whether it may be torn.
    pub image: OpenOptions,
    /// The image is a frozen copy of somebody else's making: that it is mounted does not count.
    pub is_copy: bool,
}

/// What changes when somebody writes to a file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct FileState {
    length: u64,
    inode: (u64, u64),
    modified: (i64, i64),
}

impl FileState {
    /// # Errors
    /// The system's own.
    pub(crate) fn of(path: &Path) -> Result<Self> {
        let metadata = std::fs::metadata(path).map_err(|error| Error::from_io("stat", error).at_path(path))?;
        Ok(Self {
            length: metadata.len(),
            inode: (metadata.dev(), metadata.ino()),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        })
    }
}

/// One image with all files that it stands on.
#[derive(Debug)]
pub struct FileSource {
    file: PathBuf,
    name: String,
    options: FileOptions,
    opened: Option<Opened>,
}

#[derive(Debug)]
struct Opened {
    disk: SharedDisk,
    watched: Vec<(PathBuf, FileState)>,
    is_marked_corrupt: bool,
    is_raw: bool,
}

impl FileSource {
    /// The image `file`, whose disk is called `name`.
    ///
    /// # Errors
    /// The system's own when there is no current folder.
    pub fn new(file: &Path, name: String, options: FileOptions) -> Result<Self> {
        let file = std::path::absolute(file).map_err(|error| Error::from_io("find", error).at_path(file))?;
        Ok(Self { file, name, options, opened: None })
    }

    /// Whether the disk's bytes are those of the file.
    pub(crate) fn is_raw(&mut self) -> Result<bool> {
        self.opened().map(|opened| opened.is_raw)
    }

    fn opened(&mut self) -> Result<&Opened> {
        if self.opened.is_none() {
            self.opened = Some(self.open_image()?);
        }
        self.opened.as_ref().ok_or_else(|| Error::invalid("the image is not open"))
    }

    /// Opened twice: what is written after the files' states are taken is noticed in the end, what was written before
    /// is in the second view.
    fn open_image(&self) -> Result<Opened> {
        let options = &self.options.image;
        if self.file.is_dir() {
            let error = Error::invalid("this is a folder").at_path(&self.file);
            return Err(error.hint("name an image file or a block device"));
        }
        let first = image::open(&self.file, options)?;
        let files = self.files_of(&first);
        if !options.torn && !self.options.is_copy {
            files.iter().try_for_each(|file| in_use::refuse_mounted(file))?;
        }
        let watched = files.iter().map(|path| Ok((path.clone(), FileState::of(path)?))).collect::<Result<_>>()?;
        let opened = image::open(&self.file, options)?;
        if self.files_of(&opened) != files {
            return Err(changed(&self.file));
        }
        let is_raw = opened.format == ImageFormat::Raw;
        Ok(Opened { disk: opened.disk, watched, is_marked_corrupt: opened.details.is_corrupt, is_raw })
    }

    /// Every file that the image consists of, itself first.
    fn files_of(&self, opened: &Image) -> Vec<PathBuf> {
        let details = &opened.details;
        let others = details.chain.iter().map(|link| &link.path).chain(&details.data_files);
        std::iter::once(self.file.clone()).chain(others.cloned()).collect()
    }

    fn reads_all() -> String {
        "a file does not tell what changed".to_owned()
    }
}

fn changed(path: &Path) -> Error {
    Error::new(ErrorKind::Unavailable, "the image was written to while it was read; there is no snapshot")
        .at_path(path)
        .hint("stop what writes to it, or take it with --torn, knowing that it may not be of one instant")
}

impl Source for FileSource {
    fn uri(&self) -> String {
        let file = self.file.to_string_lossy();
        match &self.options.image.snapshot {
            Some(snapshot) => format!("{file}@{snapshot}"),
            None => file.into_owned(),
        }
    }

    fn is_atomic(&self) -> bool {
        !self.options.image.torn
    }

    fn leaves_things(&self) -> bool {
        false
    }

    fn plan(&mut self, _request: &Request) -> Result<Plan> {
        let opened = self.opened()?;
        let length = opened.disk.len();
        let is_marked_corrupt = opened.is_marked_corrupt;
        let why_all = Some(Self::reads_all());
        let disk = PlannedDisk { name: self.name.clone(), length, dirty_bytes: None, why_all };
        let steps = vec![format!("read {} under its lock", self.uri())];
        let warning = || format!("{} is marked as corrupt by the program that wrote it", self.uri());
        let warnings = is_marked_corrupt.then(warning).into_iter().collect();
        Ok(Plan { disks: vec![disk], steps, warnings, attachments: Vec::new() })
    }

    fn prepare(&mut self, _request: &Request) -> Result<()> {
        self.opened().map(drop)
    }

    fn cut(&mut self) -> Result<()> {
        Ok(())
    }

    fn open(&mut self) -> Result<Vec<FrozenDisk>> {
        let (name, source) = (self.name.clone(), self.uri());
        let disk = self.opened()?.disk.clone();
        Ok(vec![FrozenDisk { name, disk, changed: Changed::Unknown(Self::reads_all()), generation: None, source }])
    }

    fn check(&mut self) -> Result<()> {
        let is_torn = self.options.image.torn;
        for (path, before) in self.opened.iter().filter(|_| !is_torn).flat_map(|opened| &opened.watched) {
            if FileState::of(path)? != *before {
                return Err(changed(path));
            }
        }
        Ok(())
    }

    fn finish(&mut self, _outcome: Outcome) -> Result<()> {
        self.opened = None;
        Ok(())
    }

    fn sweep(&mut self, _request: &Request) -> Result<()> {
        Ok(())
    }
}
