//! [`Folder`]: an open folder of the destination, in which names are made and never followed.
//!
//! Everything goes by `openat` and its kin with a single name and `O_NOFOLLOW` or `O_EXCL`, so that a symbolic link
//! that somebody planted, before or meanwhile, is an error and not a way out.

use firn_disk::{Error, ErrorKind, Result};
use firn_format::fs::{FileType, Stat};
use rustix::fs::{AtFlags, CWD, FileType as Kind, Mode, OFlags, RenameFlags, ResolveFlags};
use rustix::io::Errno;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// How often a temporary name is tried; each try has another number.
const TRIES: u32 = 100;

/// An open folder.
#[derive(Debug)]
pub(super) struct Folder {
    descriptor: OwnedFd,
    /// Whether what is made in it gets a list of permissions from it.
    gives_lists: bool,
}

/// Something new, not yet in its place if that was taken.
#[derive(Debug)]
pub(super) struct Made<'a> {
    folder: &'a Folder,
    /// An `O_PATH` descriptor for what is no regular file.
    descriptor: OwnedFd,
    name: Vec<u8>,
    /// The name that it has until it is finished.
    temporary: Option<Vec<u8>>,
    force: bool,
}

fn failed(what: &str, error: Errno) -> Error {
    let error = Error::from_io(what, error.into());
    if error.kind() == ErrorKind::Exists {
        return Error::new(ErrorKind::Exists, "it is there already").hint("add --force to replace what exists");
    }
    error
}

impl Folder {
    /// Opens a folder that the user named; here alone links are followed.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(CWD, path, flags, Mode::empty());
        opened.map(Self::new).map_err(|error| failed("open the folder", error).at_path(path))
    }

    fn new(descriptor: OwnedFd) -> Self {
        // Where lists are not known there is none to be inherited.
        let list = rustix::fs::fgetxattr_query(&descriptor, c"system.posix_acl_default");
        Self { descriptor, gives_lists: list.is_ok() }
    }

    /// Whether what is made in it gets a list of permissions that its original may not have.
    pub(super) fn gives_lists(&self) -> bool {
        self.gives_lists
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }

    /// Makes a folder within, or opens the one that is there; answers whether it is new.
    pub(super) fn enter(&self, name: &[u8]) -> Result<(Self, bool)> {
        let is_new = match rustix::fs::mkdirat(&self.descriptor, name, Mode::RWXU) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(error) => return Err(failed("make the folder", error)),
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(&self.descriptor, name, flags, Mode::empty()) {
            Ok(descriptor) => Ok((Self::new(descriptor), is_new)),
            Err(Errno::NOTDIR | Errno::LOOP) => {
                Err(Error::new(ErrorKind::Exists, "something that is no folder is in its place")
                    .hint("remove it, or name another destination"))
            }
            Err(error) => Err(failed("open the folder", error)),
        }
    }

    /// Makes an empty file. Where the name is taken and `force` says so, or with `at_once`, it has another name until
    /// it is finished.
    pub(super) fn create_file(&self, name: &[u8], force: bool, at_once: bool) -> Result<Made<'_>> {
        self.make(name, force, at_once, &|name| {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(&self.descriptor, name, flags, Mode::RUSR | Mode::WUSR)
        })
    }

    pub(super) fn create_symlink(&self, name: &[u8], target: &[u8], force: bool) -> Result<Made<'_>> {
        if target.is_empty() || target.contains(&0) {
            return Err(Error::corrupt("the target of the symbolic link is empty or holds a NUL"));
        }
        self.make(name, force, false, &|name| {
            rustix::fs::symlinkat(target, &self.descriptor, name)?;
            self.open_path(name)
        })
    }

    /// A device node, FIFO or socket.
    pub(super) fn create_special(&self, name: &[u8], stat: &Stat, force: bool) -> Result<Made<'_>> {
        let kind = match stat.file_type {
            FileType::CharDevice => Kind::CharacterDevice,
            FileType::BlockDevice => Kind::BlockDevice,
            FileType::Fifo => Kind::Fifo,
            FileType::Socket => Kind::Socket,
            _ => return Err(Error::invalid("this is no special file")),
        };
        let device = stat.device.map_or(0, |(major, minor)| rustix::fs::makedev(major, minor));
        self.make(name, force, false, &|name| {
            rustix::fs::mknodat(&self.descriptor, name, kind, Mode::RUSR | Mode::WUSR, device)?;
            self.open_path(name)
        })
    }

    fn open_path(&self, name: &[u8]) -> rustix::io::Result<OwnedFd> {
        rustix::fs::openat(&self.descriptor, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
    }

    fn make(
        &self,
        name: &[u8],
        force: bool,
        at_once: bool,
        create: &dyn Fn(&[u8]) -> rustix::io::Result<OwnedFd>,
    ) -> Result<Made<'_>> {
        let made = |descriptor, temporary| Made { folder: self, descriptor, name: name.to_vec(), temporary, force };
        if at_once {
            // Better before the work than after it.
            let there = rustix::fs::statat(&self.descriptor, name, AtFlags::SYMLINK_NOFOLLOW);
            self.check_place(there.map(|stat| Kind::from_raw_mode(stat.st_mode)), force)?;
        } else {
            match create(name) {
                Ok(descriptor) => return Ok(made(descriptor, None)),
                Err(Errno::EXIST) if force => {
                    let there = rustix::fs::statat(&self.descriptor, name, AtFlags::SYMLINK_NOFOLLOW);
                    self.check_place(there.map(|stat| Kind::from_raw_mode(stat.st_mode)), force)?;
                }
                Err(error) => return Err(failed("create", error)),
            }
        }
        for number in 0..TRIES {
            let temporary = format!(".firn-{}-{number}", std::process::id()).into_bytes();
            match create(&temporary) {
                Ok(descriptor) => return Ok(made(descriptor, Some(temporary))),
                Err(Errno::EXIST) => {}
                Err(error) => return Err(failed("create", error)),
            }
        }
        Err(Error::new(ErrorKind::Exists, "files called .firn-… are in the way").hint("remove what earlier runs left"))
    }

    fn check_place(&self, there: rustix::io::Result<Kind>, force: bool) -> Result<()> {
        match there {
            Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(failed("look at the destination", error)),
            Ok(Kind::Directory) => Err(Error::new(ErrorKind::Exists, "a folder is in its place")),
            Ok(_) if force => Ok(()),
            Ok(_) => Err(failed("create", Errno::EXIST)),
        }
    }

    /// Gives what is at `first` below `top` another name in this folder; `false` when it cannot have one.
    pub(super) fn link(&self, name: &[u8], top: &Self, first: &Path, force: bool) -> Result<bool> {
        let (above, last) = (first.parent().unwrap_or(Path::new("")), first.file_name().unwrap_or_default());
        let above = if above.as_os_str().is_empty() { Path::new(".") } else { above };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let Ok(from) = rustix::fs::openat2(&top.descriptor, above, flags, Mode::empty(), resolve) else {
            return Ok(false);
        };
        let link = || rustix::fs::linkat(&from, last.as_bytes(), &self.descriptor, name, AtFlags::empty());
        let linked = match link() {
            Err(Errno::EXIST) if force => {
                let there = rustix::fs::statat(&self.descriptor, name, AtFlags::SYMLINK_NOFOLLOW);
                self.check_place(there.map(|stat| Kind::from_raw_mode(stat.st_mode)), force)?;
                rustix::fs::unlinkat(&self.descriptor, name, AtFlags::empty()).and_then(|()| link())
            }
            other => other,
        };
        match linked {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => Err(failed("create", Errno::EXIST)),
            // Too many links, or a file system without them: it becomes a file of its own.
            Err(_) => Ok(false),
        }
    }
}

impl Made<'_> {
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }

    /// The file, to be written to.
    pub(super) fn file(&self) -> Result<File> {
        let again = self.descriptor.try_clone();
        again.map(File::from).map_err(|error| Error::from_io("open the file once more", error))
    }

    /// Puts it in its place, or away when `written` says that it is not whole.
    pub(super) fn finish(self, written: Result<()>) -> Result<()> {
        let placed = written.and_then(|()| self.put_in_place());
        if placed.is_err() {
            let name = self.temporary.as_ref().unwrap_or(&self.name);
            // The first error is the one to tell.
            let _ = rustix::fs::unlinkat(&self.folder.descriptor, name.as_slice(), AtFlags::empty());
        }
        placed
    }

    fn put_in_place(&self) -> Result<()> {
        let Some(temporary) = &self.temporary else { return Ok(()) };
        let folder = &self.folder.descriptor;
        let (from, to) = (temporary.as_slice(), self.name.as_slice());
        if self.force {
            return rustix::fs::renameat(folder, from, folder, to).map_err(|error| failed("rename", error));
        }
        match rustix::fs::renameat_with(folder, from, folder, to, RenameFlags::NOREPLACE) {
            // Not every file system knows this; a new link does not replace either.
            Err(Errno::INVAL | Errno::NOSYS) => rustix::fs::linkat(folder, from, folder, to, AtFlags::empty())
                .and_then(|()| rustix::fs::unlinkat(folder, from, AtFlags::empty())),
            other => other,
        }
        .map_err(|error| failed("create", error))
    }
}
