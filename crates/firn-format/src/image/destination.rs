//! [`Destination`]: a file that appears whole, or not at all.

use firn_disk::{Error, ErrorKind, FileDisk, Result};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};

/// Names that are tried for the temporary file.
const ATTEMPTS: u32 = 100;

/// A new file beside its target under a temporary name, `.NAME.firn-XXXXXXXX`.
///
/// [`commit`](Self::commit) gives it its name, durably; dropping it before that removes it.
#[derive(Debug)]
pub struct Destination {
    output: FileDisk,
    temporary: PathBuf,
    target: PathBuf,
    force: bool,
    is_committed: bool,
}

impl Destination {
    /// Creates the temporary file for `target`. With `force` an existing file is replaced at
    /// [`commit`](Self::commit) (through a symbolic link, the file that it names); without, it is refused already
    /// here. `unique` are random bytes for the temporary name.
    ///
    /// # Errors
    /// `Exists`; `Unsupported` when the target is there and is no regular file; the system's own.
    pub fn create(target: impl AsRef<Path>, force: bool, unique: [u8; 4]) -> Result<Self> {
        let target = target.as_ref();
        let target = match target.symlink_metadata() {
            Ok(_) if !force => return Err(exists(target)),
            Ok(_) => real_file(target)?,
            Err(_) => target.to_path_buf(),
        };
        let Some(name) = target.file_name() else {
            return Err(Error::invalid("this names no file").at_path(&target));
        };
        let unique = u32::from_le_bytes(unique);
        for attempt in 0..ATTEMPTS {
            let mut hidden = OsString::from(".");
            hidden.push(name);
            hidden.push(format!(".firn-{:08x}", unique.wrapping_add(attempt)));
            let temporary = target.with_file_name(hidden);
            match FileDisk::create(&temporary, 0) {
                Ok(output) => return Ok(Self { output, temporary, target, force, is_committed: false }),
                Err(error) if error.kind() == ErrorKind::Exists => {}
                Err(error) => return Err(error),
            }
        }
        Err(Error::new(ErrorKind::Exists, "no temporary name beside it is free").at_path(&target))
    }

    /// The file to write to.
    pub fn output(&self) -> &FileDisk {
        &self.output
    }

    /// Where the file will be.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Makes the content durable, gives the file its name, and makes the name durable.
    ///
    /// # Errors
    /// `Exists` when without `force` something has got that name meanwhile; the system's own. The temporary
    /// file is then removed.
    pub fn commit(mut self) -> Result<()> {
        let at = |what: &'static str, target: &Path, error| Error::from_io(what, error).at_path(target);
        self.output.file().sync_all().map_err(|error| at("make the file durable", &self.target, error))?;
        if self.force {
            std::fs::rename(&self.temporary, &self.target).map_err(|error| at("rename", &self.target, error))?;
        } else {
            rename_new(&self.temporary, &self.target)?;
        }
        self.is_committed = true;
        let folder = match self.target.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(|error| at("make the file's name durable", &self.target, error))
    }
}

impl Drop for Destination {
    fn drop(&mut self) {
        if !self.is_committed {
            // Nothing can be done about a failure: the next run uses another name.
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}

fn exists(target: &Path) -> Error {
    Error::new(ErrorKind::Exists, "it is there already")
        .at_path(target)
        .hint("name another file, or replace it with --force")
}

/// What `target` leads to, which may be replaced only if it is a regular file.
fn real_file(target: &Path) -> Result<PathBuf> {
    match target.canonicalize() {
        // A link that leads nowhere is replaced itself.
        Err(_) => Ok(target.to_path_buf()),
        Ok(real) if real.is_file() => Ok(real),
        Ok(_) => Err(Error::unsupported("it is there and is not a regular file").at_path(target)),
    }
}

/// Renames only if nothing has the new name, without a moment in between.
fn rename_new(from: &Path, to: &Path) -> Result<()> {
    match renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE) {
        Ok(()) => Ok(()),
        Err(Errno::EEXIST) => Err(exists(to)),
        // Some file systems cannot; a hard link does not replace either.
        Err(Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => {
            std::fs::hard_link(from, to).map_err(|error| match error.kind() {
                std::io::ErrorKind::AlreadyExists => exists(to),
                _ => Error::from_io("rename", error).at_path(to),
            })?;
            // Both names are good; a temporary one that stays is only untidy.
            let _ = std::fs::remove_file(from);
            Ok(())
        }
        Err(error) => Err(Error::from_io("rename", error.into()).at_path(to)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use firn_disk::{Fua, WriteDisk};

    fn written(target: &Path, force: bool, byte: u8) -> Result<Destination> {
        let destination = Destination::create(target, force, [1, 2, 3, 4])?;
        destination.output().resize(3).unwrap();
        destination.output().write_at(&[byte; 3], 0, Fua::No).unwrap();
        Ok(destination)
    }

    fn names(folder: &Path) -> Vec<String> {
        let names = std::fs::read_dir(folder).unwrap();
        names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn appears_at_commit_and_leaves_nothing_when_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("a.raw");
        let first = written(&target, false, 1).unwrap();
        let second = written(&target, false, 2).unwrap();
        assert_eq!(names(folder.path()).len(), 2, "two at once have two temporary names");
        assert!(names(folder.path()).iter().all(|name| name.starts_with(".a.raw.firn-")));
        first.commit().unwrap();
        assert_eq!(second.commit().unwrap_err().kind(), ErrorKind::Exists);
        assert_eq!(std::fs::read(&target).unwrap(), [1; 3]);
        assert_eq!(names(folder.path()), ["a.raw"]);
        drop(written(&folder.path().join("b"), false, 3).unwrap());
        assert_eq!(names(folder.path()), ["a.raw"]);
    }

    #[test]
    fn only_force_replaces_and_only_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("a");
        std::fs::write(&target, "old").unwrap();
        assert_eq!(written(&target, false, 1).unwrap_err().kind(), ErrorKind::Exists);
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&target, &link).unwrap();
        written(&link, true, 7).unwrap().commit().unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), [7; 3]);
        assert!(link.is_symlink());
        assert_eq!(written(folder.path(), true, 1).unwrap_err().kind(), ErrorKind::Unsupported);
        assert_eq!(Destination::create("/", true, [0; 4]).unwrap_err().kind(), ErrorKind::Unsupported);
    }
}
