//! Histories that other tools kept: which states of a machine there are, and of when.
//!
//! ```text
//! qcow2, VMDK, VHD, VHDX, VDI with what they stand on   a state for each image, as of its last write
//! qcow2 with internal snapshots                         a state for each, as of when it was taken
//! a folder of dated images                              a state for each, as its name says
//! a folder of virtnbdbackup                             a state for each checkpoint, of all its disks
//! ```
//! Nothing is read here but names, headers and times. Opening a state is left to when it is taken.

mod chain;
pub mod dates;
mod folder;
mod virtnbd;

use firn_disk::{Error, ErrorKind, Result, SharedDisk};
use firn_format::image::{self, OpenOptions};
use jiff::Timestamp;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where a disk's state is.
#[derive(Debug, Clone)]
pub enum Origin {
    /// An image, or an internal snapshot of one, by its id.
    Image {
        /// The image.
        file: PathBuf,
        /// Its internal snapshot.
        snapshot: Option<String>,
        /// The format that its child records for it.
        format: Option<image::ImageFormat>,
    },
    /// Streams of virtnbdbackup, each on the one before; the first may be a raw disk.
    Streams(Vec<PathBuf>),
}

/// One state of one disk.
#[derive(Debug, Clone)]
pub struct DiskState {
    /// `vda` and so on.
    pub disk: String,
    /// Where it is.
    pub origin: Origin,
}

/// The state of a machine at one instant.
#[derive(Debug, Clone)]
pub struct State {
    /// The instant.
    pub created: Timestamp,
    /// What it is called where it comes from, for people.
    pub name: String,
    /// Its disks.
    pub disks: Vec<DiskState>,
    /// Small files that belong to it.
    pub config: Vec<PathBuf>,
    /// Whether its disks are known to be of one instant.
    pub is_one_instant: bool,
}

/// How to look.
#[derive(Debug, Default)]
pub struct FindOptions {
    /// How images are opened.
    pub open: OpenOptions,
    /// Times that the user knows better, by the name of a file or internal snapshot.
    pub dates: Vec<(String, Timestamp)>,
}

impl FindOptions {
    fn date(&self, name: &str) -> Option<Timestamp> {
        self.dates.iter().find(|(known, _)| known == name).map(|(_, date)| *date)
    }
}

/// What is open to read a state of a disk.
#[derive(Debug)]
pub struct Opened {
    /// The disk.
    pub disk: SharedDisk,
    /// Every file that it is read from.
    pub files: Vec<PathBuf>,
}

impl Origin {
    /// Opens the state.
    ///
    /// # Errors
    /// As [`image::open`] and [`image::open_stream`].
    pub fn open(&self, options: &OpenOptions) -> Result<Opened> {
        match self {
            Self::Image { file, snapshot, format } => {
                let format = format.or(options.format);
                let image = image::open(file, &OpenOptions { format, snapshot: snapshot.clone(), ..options.clone() })?;
                let others = image.details.chain.iter().map(|link| &link.path).chain(&image.details.data_files);
                let files = std::iter::once(file).chain(others).cloned().collect();
                Ok(Opened { disk: image.disk, files })
            }
            Self::Streams(streams) => {
                let mut below: Option<SharedDisk> = None;
                for path in streams {
                    let image = if image::is_stream(path)? {
                        image::open_stream(path, below.take())?
                    } else {
                        let raw = OpenOptions { format: Some(image::ImageFormat::Raw), ..options.clone() };
                        image::open(path, &raw)?
                    };
                    below = Some(image.disk);
                }
                let disk = below.ok_or_else(|| Error::invalid("a state of no stream"))?;
                Ok(Opened { disk: Arc::new(disk), files: streams.clone() })
            }
        }
    }

    /// What the pool keeps of where it comes from.
    pub fn source(&self) -> String {
        let (file, snapshot) = match self {
            Self::Image { file, snapshot, .. } => (Some(file), snapshot.as_deref()),
            Self::Streams(streams) => (streams.last(), None),
        };
        let file = file.map(|file| std::path::absolute(file).unwrap_or_else(|_| file.clone())).unwrap_or_default();
        let file = file.to_string_lossy();
        snapshot.map_or_else(|| file.to_string(), |snapshot| format!("{file}@{snapshot}"))
    }
}

/// Every state that `path` has of the disk `disk` (of all disks of its machine in a folder of virtnbdbackup, which
/// has names for them), oldest first.
///
/// # Errors
/// `NotFound`; `Invalid` for a folder that cannot be one history; what images say.
pub fn find(path: &Path, disk: &str, options: &FindOptions) -> Result<Vec<State>> {
    let metadata = std::fs::metadata(path).map_err(|error| Error::from_io("open", error).at_path(path))?;
    let mut states = if !metadata.is_dir() {
        chain::find(path, disk, options)?
    } else if virtnbd::is_one(path)? {
        virtnbd::find(path, options)?
    } else {
        folder::find(path, disk, options)?
    };
    states.sort_by_key(|state| state.created);
    Ok(states)
}

/// The histories of several disks as one of a machine: the states of each, by their order.
///
/// # Errors
/// `Invalid` when disks have different numbers of states, or a disk comes twice.
pub fn together(histories: Vec<Vec<State>>) -> Result<Vec<State>> {
    let mut histories = histories.into_iter();
    let mut all = histories.next().unwrap_or_default();
    for history in histories {
        if history.len() != all.len() {
            let what = format!("the disks have different numbers of states: {} and {}", all.len(), history.len());
            return Err(Error::invalid(what).hint("import each disk as a machine of its own"));
        }
        for (state, other) in all.iter_mut().zip(history) {
            if let Some(twice) = other.disks.iter().find(|new| state.disks.iter().any(|disk| disk.disk == new.disk)) {
                return Err(Error::invalid(format!("the disk {} comes twice", twice.disk)));
            }
            // Two files are of one instant only if something says so.
            state.is_one_instant = false;
            state.created = state.created.max(other.created);
            state.disks.extend(other.disks);
            state.config.extend(other.config);
        }
    }
    Ok(all)
}

/// When `path` was last written to.
fn modified(path: &Path) -> Result<Timestamp> {
    let time = std::fs::metadata(path).and_then(|metadata| metadata.modified());
    let time = time.map_err(|error| Error::from_io("stat", error).at_path(path))?;
    Timestamp::try_from(time).map_err(|error| {
        Error::new(ErrorKind::Invalid, "its time is outside of the calendar").at_path(path).because(error)
    })
}

/// The last part of a path, for people and for options.
fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// A state of a single disk.
fn single(created: Timestamp, name: String, disk: &str, origin: Origin) -> State {
    let disks = vec![DiskState { disk: disk.to_owned(), origin }];
    State { created, name, disks, config: Vec::new(), is_one_instant: true }
}
