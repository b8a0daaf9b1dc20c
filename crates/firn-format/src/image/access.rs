//! Which files an image may make us open.
//!
//! An image names other files: backing files, data files, extents, parents. An image from a stranger must not
//! read `/etc/shadow` by naming it, so such a file is opened only when it really lies (symbolic links resolved)
//! under the folder of the image that the user named, or under a folder that the user allowed. Hidden files and
//! folders (`.ssh`) count as outside the image's folder, and so does every folder when the image lies in `/`.
//! What is opened is a regular file; a block device only where the user allowed its folder; never a FIFO or
//! anything else.
//!
//! An image in a frozen copy of a folder ([`Moved`]) still names its files where they were. Those are opened in the copy,
//! and nothing outside of it is: what lies elsewhere is not of the same instant.

use super::OpenOptions;
use super::lock::lock_for_reading;
use firn_disk::{Disk, Error, ErrorKind, FileDisk, Result, SharedDisk};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};
use std::fs::{File, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Entries of a folder that are looked at for a parent.
const CANDIDATES_MAX: usize = 10_000;

/// A folder and the frozen copy of it that an image is read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moved {
    /// Where the folder is while it is in use: what an image names below it is meant to be in the copy.
    pub from: PathBuf,
    /// The copy, in which everything has to lie.
    pub to: PathBuf,
}

impl Moved {
    /// With symbolic links of both folders resolved.
    fn resolve(&self) -> Result<Self> {
        let real = |folder: &Path| {
            folder.canonicalize().map_err(|error| Error::from_io("open the folder", error).at_path(folder))
        };
        Ok(Self { from: real(&self.from)?, to: real(&self.to)? })
    }

    /// Where `path` is in the copy, if it is meant to be there and is not yet.
    fn lead(&self, path: &Path) -> Option<PathBuf> {
        let below = path.strip_prefix(&self.from).ok().filter(|_| !path.starts_with(&self.to))?;
        Some(self.to.join(below))
    }

    /// # Errors
    /// `Denied` for a file outside the copy.
    fn check(&self, real: &Path) -> Result<()> {
        if real.starts_with(&self.to) {
            return Ok(());
        }
        let message = format!("it is at {}, outside the frozen copy, and not of its instant", real.display());
        let hint = format!("every file of the image has to lie below {}", self.from.display());
        Err(Error::new(ErrorKind::Denied, message).hint(hint))
    }
}

/// An open file of an image. Cheap to clone; QEMU's locks are held until the last clone is gone.
#[derive(Debug, Clone)]
pub(super) struct ImageFile(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// The file, or what a log makes of it; the file below stays open either way.
    disk: SharedDisk,
    path: PathBuf,
    /// Device and inode number.
    identity: (u64, u64),
    /// Where names that this file holds are looked for, in order.
    folders: Vec<PathBuf>,
}

impl ImageFile {
    pub(super) fn disk(&self) -> &dyn Disk {
        &*self.0.disk
    }

    /// The same disk, to build another one over it.
    pub(super) fn shared_disk(&self) -> SharedDisk {
        self.0.disk.clone()
    }

    /// The same file with other content: `disk` is made of [`shared_disk`](Self::shared_disk), by a log's replay.
    pub(super) fn with_content(&self, disk: SharedDisk) -> Self {
        let Inner { path, identity, folders, .. } = &*self.0;
        Self(Arc::new(Inner { disk, path: path.clone(), identity: *identity, folders: folders.clone() }))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0.path
    }

    pub(super) fn identity(&self) -> (u64, u64) {
        self.0.identity
    }

    /// Fills `buf` from byte `at`.
    ///
    /// # Errors
    /// `Corrupt` when the range lies past the end: what an image says is there must be there; what reading says.
    pub(super) fn read_stored(&self, buf: &mut [u8], at: u64) -> Result<()> {
        self.check_stored(at, buf.len() as u64)?;
        self.0.disk.read_at(buf, at)
    }

    /// `Ok` when [`read_stored`](Self::read_stored) of that range would not run past the end.
    pub(super) fn check_stored(&self, at: u64, length: u64) -> Result<()> {
        match at.checked_add(length) {
            Some(end) if end <= self.0.disk.len() => Ok(()),
            _ => Err(Error::corrupt(format!(
                "{length} bytes are said to lie past the end of the file at byte {}",
                self.0.disk.len()
            ))
            .at_path(self.path())
            .at_offset(at)
            .hint("the file is cut short, or its tables are damaged: take another copy")),
        }
    }
}

/// Opens files for an image, as far as the user lets it.
#[derive(Debug)]
pub(super) struct Gate {
    /// Folders, with symbolic links resolved, whose regular files may be opened.
    own: Vec<PathBuf>,
    /// Folders that the user allowed by name.
    allowed: Vec<PathBuf>,
    moved: Option<Moved>,
    torn: bool,
}

impl Gate {
    /// Opens the image that the user named, and the gate that the files it names must pass.
    ///
    /// # Errors
    /// The system's own; `Unsupported` for what is neither a file nor a block device; `Unavailable` when a
    /// running QEMU writes to it; `NotFound` when an allowed folder does not exist.
    pub(super) fn open(path: &Path, options: &OpenOptions, moved: Option<&Moved>) -> Result<(Self, ImageFile)> {
        let moved = moved.map(Moved::resolve).transpose()?;
        let mut allowed = Vec::new();
        for folder in &options.allow_backing {
            let real = folder.canonicalize();
            let real = real.map_err(|error| Error::from_io("open the allowed folder", error).at_path(folder))?;
            allowed.push(moved.as_ref().and_then(|moved| moved.lead(&real)).unwrap_or(real));
        }
        let real = resolve(moved.as_ref(), path).map_err(|error| Error::from_io("open", error).at_path(path))?;
        let file = open_checked(&real, true).map_err(|error| error.at_path(path))?;
        if let Some(moved) = &moved {
            moved.check(&real).map_err(|error| error.at_path(path))?;
        }
        let named_in = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder.to_path_buf(),
            _ => PathBuf::from("."),
        };
        let mut folders = vec![named_in];
        folders.extend(real.parent().map(Path::to_path_buf));
        // A device's folder is /dev: being next to it permits nothing.
        let own = if file.metadata().is_ok_and(|metadata| metadata.is_file()) {
            folders.iter().filter_map(|folder| folder.canonicalize().ok()).collect()
        } else {
            Vec::new()
        };
        let gate = Self { own, allowed, moved, torn: options.torn };
        let file = gate.admit(file, path, folders)?;
        Ok((gate, file))
    }

    /// Opens the file called `name` that `from` holds as its `role` ("backing file").
    ///
    /// # Errors
    /// `Denied` when it lies outside what the user lets the image open; `NotFound`; otherwise as
    /// [`open`](Self::open).
    pub(super) fn open_named(&self, from: &ImageFile, name: &Path, role: &str) -> Result<ImageFile> {
        let explain = |error: Error| error.context(format!("the {role} of {}", from.path().display())).at_path(name);
        let (path, real) = self.locate(from, name).map_err(explain)?;
        self.moved.as_ref().map_or(Ok(()), |moved| moved.check(&real)).map_err(explain)?;
        let is_allowed = self.allowed.iter().any(|folder| real.starts_with(folder));
        if !is_allowed && !self.own.iter().any(|folder| is_beside(&real, folder)) {
            let folder = real.parent().unwrap_or(&real).display().to_string();
            return Err(explain(
                Error::new(ErrorKind::Denied, format!("it lies outside the image's own folder, at {}", real.display()))
                    .hint(format!("if you trust the image, allow it with --allow-backing {folder}")),
            ));
        }
        let file = open_checked(&real, is_allowed).map_err(explain)?;
        let mut folders: Vec<PathBuf> = path.parent().map(Path::to_path_buf).into_iter().collect();
        folders.extend(real.parent().map(Path::to_path_buf));
        self.admit(file, &path, folders).map_err(explain)
    }

    /// Where `name` is, as written and with symbolic links resolved.
    fn locate(&self, from: &ImageFile, name: &Path) -> Result<(PathBuf, PathBuf)> {
        let mut missing = None;
        for folder in &from.0.folders {
            // Joining an absolute name gives that name.
            let path = folder.join(name);
            match resolve(self.moved.as_ref(), &path) {
                Ok(real) => return Ok((path, real)),
                Err(error) => missing = missing.or(Some(error)),
            }
        }
        match missing {
            Some(error) if error.kind() == std::io::ErrorKind::NotFound => Err(Error::not_found("it is not there")),
            Some(error) => Err(Error::from_io("open", error)),
            None => Err(Error::not_found("it is not there")),
        }
    }

    /// Files with `extension` that a child without a name for its parent may stand on: those in the folders of
    /// `from`, in the allowed ones, and in a folder `Snapshots` of each. Their names only; opening them is
    /// [`open_named`](Self::open_named)'s.
    pub(super) fn candidates(&self, from: &ImageFile, extension: &str) -> Vec<PathBuf> {
        let folders = from.0.folders.iter().chain(&self.own).chain(&self.allowed);
        let folders = folders.flat_map(|folder| [folder.clone(), folder.join("Snapshots")]);
        let has_extension =
            |path: &PathBuf| path.extension().is_some_and(|given| given.eq_ignore_ascii_case(extension));
        let mut found: Vec<PathBuf> = folders
            .filter_map(|folder| std::fs::read_dir(folder).ok())
            .flat_map(|entries| entries.flatten().take(CANDIDATES_MAX).map(|entry| entry.path()))
            .filter(has_extension)
            .filter_map(|path| path.canonicalize().ok())
            .collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    fn admit(&self, file: File, path: &Path, folders: Vec<PathBuf>) -> Result<ImageFile> {
        let metadata = file.metadata().map_err(|error| Error::from_io("stat", error).at_path(path))?;
        if !self.torn {
            lock_for_reading(&file, path)?;
        }
        let disk = Arc::new(FileDisk::from_file(file, path)?);
        let identity = (metadata.dev(), metadata.ino());
        Ok(ImageFile(Arc::new(Inner { disk, path: path.to_path_buf(), identity, folders })))
    }
}

/// Whether `file` lies in `folder` or, not hidden, below it.
fn is_beside(file: &Path, folder: &Path) -> bool {
    let Ok(below) = file.strip_prefix(folder) else { return false };
    let is_hidden = below.components().any(|part| part.as_os_str().as_bytes().starts_with(b"."));
    // In the root folder everything would be below.
    !is_hidden && (folder.parent().is_some() || below.components().count() == 1)
}

/// `path` with symbolic links resolved, in the copy where it is meant to be there.
fn resolve(moved: Option<&Moved>, path: &Path) -> std::io::Result<PathBuf> {
    let Some(moved) = moved else { return path.canonicalize() };
    let real = moved.lead(path).unwrap_or_else(|| path.to_path_buf()).canonicalize()?;
    // A symbolic link in the copy that leads to where the folder was is meant to stay in the copy, too.
    moved.lead(&real).map_or(Ok(real), |path| path.canonicalize())
}

/// Opens `real`, a path without symbolic links, without blocking on whatever it is.
fn open_checked(real: &Path, device_allowed: bool) -> Result<File> {
    // Opening some devices and pipes has effects; look before opening, and again at what was opened.
    let metadata = std::fs::metadata(real).map_err(|error| Error::from_io("open", error))?;
    check_type(&metadata, device_allowed)?;
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let how = OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
    let file = match openat2(AT_FDCWD, real, how) {
        Ok(descriptor) => File::from(descriptor),
        Err(Errno::ENOSYS | Errno::EPERM | Errno::EINVAL) => std::fs::OpenOptions::new()
            .read(true)
            .custom_flags((OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_NOFOLLOW).bits())
            .open(real)
            .map_err(|error| Error::from_io("open", error))?,
        Err(error) => return Err(Error::from_io("open", error.into())),
    };
    check_type(&file.metadata().map_err(|error| Error::from_io("stat", error))?, device_allowed)?;
    Ok(file)
}

fn check_type(metadata: &Metadata, device_allowed: bool) -> Result<()> {
    let kind = metadata.file_type();
    if kind.is_file() || (kind.is_block_device() && device_allowed) {
        return Ok(());
    }
    if kind.is_block_device() {
        return Err(Error::new(ErrorKind::Denied, "it is a block device")
            .hint("if you trust the image, allow the device's folder with --allow-backing"));
    }
    let what = if kind.is_dir() { "a folder" } else { "neither a regular file nor a block device" };
    Err(Error::unsupported(format!("this is {what}")).hint("name a disk image or a block device"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beside_is_neither_hidden_nor_all_of_the_root() {
        let is = |file: &str, folder: &str| is_beside(Path::new(file), Path::new(folder));
        assert!(is("/vm/a", "/vm") && is("/vm/sub/a", "/vm") && is("/.hidden/vm/a", "/.hidden/vm"));
        assert!(!is("/vm2/a", "/vm") && !is("/a", "/vm"));
        assert!(!is("/home/u/.ssh/id", "/home/u") && !is("/home/u/.netrc", "/home/u"));
        assert!(is("/a", "/") && !is("/etc/shadow", "/"));
    }
}
