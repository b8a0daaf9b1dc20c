//! Files out of a tree into a folder.
//!
//! Nothing that the tree or the destination holds leads the writing elsewhere: every name is created relative to an
//! open folder, must not exist, and is never followed. What could give power to a file out of a stranger's disk
//! (device nodes, setuid, capabilities) is only made when asked for. A file that cannot be read to its end is not
//! left behind.

mod attributes;
mod difference;
mod place;
mod salvage;
mod stream;

pub use difference::{Difference, write_difference};
pub use salvage::Salvage;
pub use stream::{Piece, for_each_piece};

use crate::machine::{Item, Order, Step, Walk};
use attributes::Attributes;
use firn_disk::{Disk, Error, ErrorKind, Result};
use firn_format::fs::{FileTree, FileType, Stat};
use place::{Folder, Made};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What is copied, and how.
#[derive(Debug, Clone, Copy)]
pub struct CopyOptions {
    /// Replace what exists.
    pub force: bool,
    /// Make device nodes, FIFOs and sockets.
    pub devices: bool,
    /// Keep setuid and setgid of files, and file capabilities.
    pub setuid: bool,
    /// Whether owners and all attributes can be set.
    pub is_root: bool,
}

/// How far a copy has come; may be read while it goes on.
#[derive(Debug, Default)]
pub struct CopyProgress {
    /// Bytes of content, holes included.
    pub bytes: AtomicU64,
    /// Regular files.
    pub files: AtomicU64,
}

/// What a copy did.
#[derive(Debug, Default, Clone, Copy)]
pub struct CopySummary {
    /// Regular files written.
    pub files: u64,
    /// Folders made, or filled where they existed.
    pub folders: u64,
    /// Symbolic links.
    pub symlinks: u64,
    /// Further names of files that were written already.
    pub hard_links: u64,
    /// Device nodes, FIFOs and sockets.
    pub special: u64,
    /// Bytes of content that were written, without holes.
    pub bytes: u64,
    /// What was left out: device nodes, FIFOs and sockets that nobody asked for.
    pub skipped: u64,
    /// Files that were copied without their setuid, setgid or capabilities.
    pub weakened: u64,
}

/// Whom a copy tells about single files.
pub trait Report {
    /// Something was not copied.
    fn error(&mut self, error: &Error);
    /// Something was left out, or could not be set.
    fn warning(&mut self, what: String);
}

/// A copy on its way.
pub struct Copier<'a> {
    tree: &'a dyn FileTree,
    options: CopyOptions,
    cancel: &'a AtomicBool,
    progress: &'a CopyProgress,
    report: &'a mut dyn Report,
    summary: CopySummary,
    /// Where the first name of a file with several was written to, below the destination.
    links: HashMap<u64, PathBuf>,
}

/// An open folder of the destination.
struct Level {
    folder: Folder,
    /// Whether it takes on the attributes of its original.
    takes_attributes: bool,
}

impl<'a> Copier<'a> {
    /// A copy out of `tree`.
    pub fn new(
        tree: &'a dyn FileTree,
        options: CopyOptions,
        cancel: &'a AtomicBool,
        progress: &'a CopyProgress,
        report: &'a mut dyn Report,
    ) -> Self {
        Self { tree, options, cancel, progress, report, summary: CopySummary::default(), links: HashMap::new() }
    }

    /// Copies one file, or what else is no folder, to `name` in the folder `into`. It appears there all at once.
    ///
    /// # Errors
    /// `Exists` without force; what reading and writing say.
    pub fn copy_one(mut self, inode: u64, into: &Path, name: &OsStr) -> Result<CopySummary> {
        let folder = Folder::open(into)?;
        let stat = self.tree.stat(inode)?;
        let item = Item { path: name.as_bytes().to_vec(), name: name.as_bytes().to_vec(), stat };
        self.node(&folder, &item, true)?;
        Ok(self.summary)
    }

    /// Copies the content of the folder `inode` into `name` in the folder `into`, or into the existing folder `into`
    /// itself. What fails inside is reported, and the rest is copied.
    ///
    /// # Errors
    /// When the destination cannot be made; `Interrupted`; when the destination is full.
    pub fn copy_folder(mut self, inode: u64, into: &Path, name: Option<&OsStr>) -> Result<CopySummary> {
        let top = Folder::open(into)?;
        let top = match name {
            Some(name) => {
                let (folder, is_new) = top.enter(name.as_bytes())?;
                Level { folder, takes_attributes: is_new || self.options.force }
            }
            None => Level { folder: top, takes_attributes: false },
        };
        let mut levels = vec![top];
        let mut walk = Walk::new(self.tree, inode, Order::Names)?;
        while let Some(step) = walk.next() {
            if self.cancel.load(Ordering::Relaxed) {
                self.close_all(levels, &mut walk);
                return Err(Error::new(ErrorKind::Interrupted, "stopped before everything was copied"));
            }
            let entered = matches!(step, Step::Enter(_));
            if let Err((path, error)) = self.step(step, &mut levels) {
                if entered {
                    walk.skip_folder();
                }
                let error = error.at_path(Path::new(OsStr::from_bytes(&path)));
                if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::Unavailable) {
                    self.close_all(levels, &mut walk);
                    return Err(error);
                }
                self.report.error(&error);
            }
        }
        Ok(self.summary)
    }

    fn step(&mut self, step: Step, levels: &mut Vec<Level>) -> Result<(), (Vec<u8>, Error)> {
        let (path, done) = match step {
            Step::Failed(path, error) => (path, Err(error)),
            Step::Enter(item) => (item.path.clone(), self.enter(&item, levels)),
            Step::Leave(item) => (item.path.clone(), self.leave(&item, levels)),
            Step::Node(item) => {
                let done = match levels.split_first() {
                    Some((top, rest)) => {
                        let folder = &rest.last().unwrap_or(top).folder;
                        self.node_or_link(&top.folder, folder, &item)
                    }
                    None => Ok(()),
                };
                (item.path, done)
            }
        };
        done.map_err(|error| (path, error))
    }

    fn enter(&mut self, item: &Item, levels: &mut Vec<Level>) -> Result<()> {
        self.summary.folders += 1;
        let Some(above) = levels.last().filter(|_| !item.path.is_empty()) else { return Ok(()) };
        let (folder, is_new) = above.folder.enter(&item.name)?;
        levels.push(Level { folder, takes_attributes: is_new || self.options.force });
        Ok(())
    }

    fn leave(&mut self, item: &Item, levels: &mut Vec<Level>) -> Result<()> {
        match levels.pop() {
            Some(level) if level.takes_attributes => {
                self.set_attributes(level.folder.as_fd(), level.folder.gives_lists(), item)
            }
            _ => Ok(()),
        }
    }

    /// Gives the folders that are still open their attributes, as far as that goes.
    fn close_all(&mut self, mut levels: Vec<Level>, walk: &mut Walk<'_>) {
        while let Some(item) = walk.leave_folder() {
            // The reason for stopping is told; this one would follow from it.
            let _ = self.leave(&item, &mut levels);
        }
    }

    /// Copies what is no folder, or links it to its first name when that was copied.
    fn node_or_link(&mut self, top: &Folder, folder: &Folder, item: &Item) -> Result<()> {
        if item.stat.links < 2 {
            return self.node(folder, item, false);
        }
        if let Some(first) = self.links.get(&item.stat.inode)
            && folder.link(&item.name, top, first, self.options.force)?
        {
            self.summary.hard_links += 1;
            return Ok(());
        }
        self.node(folder, item, false)?;
        self.links.insert(item.stat.inode, PathBuf::from(OsStr::from_bytes(&item.path)));
        Ok(())
    }

    fn node(&mut self, folder: &Folder, item: &Item, at_once: bool) -> Result<()> {
        match item.stat.file_type {
            FileType::File => {
                let made = folder.create_file(&item.name, self.options.force, at_once)?;
                let written = self
                    .content(&made, item)
                    .and_then(|()| self.set_attributes(made.as_fd(), folder.gives_lists(), item));
                made.finish(written)?;
                self.summary.files += 1;
                self.progress.files.fetch_add(1, Ordering::Relaxed);
            }
            FileType::Symlink => {
                let target = self.tree.read_link(item.stat.inode)?;
                let made = folder.create_symlink(&item.name, &target, self.options.force)?;
                let set = self.set_attributes(made.as_fd(), folder.gives_lists(), item);
                made.finish(set)?;
                self.summary.symlinks += 1;
            }
            FileType::Folder => return Err(Error::invalid("this is a folder")),
            FileType::CharDevice | FileType::BlockDevice | FileType::Fifo | FileType::Socket => {
                if !self.options.devices {
                    self.summary.skipped += 1;
                    let path = String::from_utf8_lossy(&item.path);
                    let kind = item.stat.file_type.as_str();
                    self.report.warning(format!("{path}: left out, a {kind}; --devices makes it"));
                    return Ok(());
                }
                let made = folder.create_special(&item.name, &item.stat, self.options.force)?;
                let set = self.set_attributes(made.as_fd(), folder.gives_lists(), item);
                made.finish(set)?;
                self.summary.special += 1;
            }
        }
        Ok(())
    }

    fn content(&mut self, made: &Made<'_>, item: &Item) -> Result<()> {
        let disk = self.tree.open(item.stat.inode)?;
        let file = made.file()?;
        let mut end = 0;
        for_each_piece(&disk, self.cancel, &mut |piece| {
            match piece {
                Piece::Bytes(bytes, at) => {
                    file.write_all_at(bytes, at).map_err(|error| Error::from_io("write", error))?;
                    end = at + bytes.len() as u64;
                    self.summary.bytes += bytes.len() as u64;
                    self.progress.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                }
                Piece::Zeros(run) => {
                    self.progress.bytes.fetch_add(run.end - run.start, Ordering::Relaxed);
                }
            }
            Ok(())
        })?;
        if end < disk.len() {
            file.set_len(disk.len()).map_err(|error| Error::from_io("set the length", error))?;
        }
        Ok(())
    }

    fn set_attributes(&mut self, at: BorrowedFd<'_>, inherits: bool, item: &Item) -> Result<()> {
        let Stat { inode, .. } = item.stat;
        let xattrs = self.tree.xattrs(inode)?;
        let attributes = Attributes::of(&item.stat, xattrs, inherits, &self.options);
        self.summary.weakened += u64::from(attributes.is_weakened);
        for failed in attributes.set(at) {
            self.report.warning(format!("{}: {failed}", String::from_utf8_lossy(&item.path)));
        }
        Ok(())
    }
}
