//! [`RunLock`]: one run at a time for a machine and domain, from this host.
//!
//! The lock is the kernel's, on a file in the user's runtime folder, so it ends with the process that holds it. The file
//! says which run held it last: what that run left at libvirt may then be removed, while a job of the same owner but of
//! another run is at work from another host.

use super::host::runtime_folder;
use firn_disk::{Error, ErrorKind, Result};
use rustix::fs::OFlags;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;

/// Held until it is dropped.
#[derive(Debug)]
pub struct RunLock {
    file: File,
    /// The run that held it last.
    pub last: Option<String>,
}

impl RunLock {
    /// Takes the lock for what `owner` does with the domain `tag`.
    ///
    /// # Errors
    /// `Unavailable` when another process holds it; the system's own.
    pub fn take(owner: &str, tag: &str) -> Result<Self> {
        let path = runtime_folder().join(format!("firn-{owner}-{tag}.lock"));
        let failed = |what| move |error| Error::from_io(what, error);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        // In a folder that others may write to, nobody shall lead this elsewhere.
        options.custom_flags(i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or(0));
        let mut file = options.open(&path).map_err(failed("open the lock")).map_err(|error| error.at_path(&path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::new(ErrorKind::Unavailable, "another firn takes a snapshot of this domain already")
                    .hint("wait for its end"));
            }
            Err(TryLockError::Error(error)) => return Err(failed("lock")(error).at_path(&path)),
        }
        let mut last = String::new();
        // A file that is no text tells of no run.
        let read = (&mut file).take(64).read_to_string(&mut last).is_ok();
        let last = Some(last).filter(|last| read && super::is_hexadecimal(last, 8));
        Ok(Self { file, last })
    }

    /// Notes the run that holds it now.
    ///
    /// # Errors
    /// The system's own.
    pub fn note(&mut self, run: &str) -> Result<()> {
        let noted = self.file.seek(SeekFrom::Start(0)).and_then(|_| self.file.write_all(run.as_bytes()));
        noted.map_err(|error| Error::from_io("write to the lock", error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_and_who_was_last() {
        let owner = format!("{:016x}", std::process::id());
        let mut lock = RunLock::take(&owner, "test").unwrap();
        assert_eq!(lock.last, None);
        lock.note("0123abcd").unwrap();
        assert_eq!(RunLock::take(&owner, "test").unwrap_err().kind(), ErrorKind::Unavailable);
        drop(lock);
        assert_eq!(RunLock::take(&owner, "test").unwrap().last.as_deref(), Some("0123abcd"));
        std::fs::remove_file(runtime_folder().join(format!("firn-{owner}-test.lock"))).unwrap();
    }
}
