//! [`FileDisk`]: a regular file or a block device as a disk.
//!
//! Holes of a file are found by `SEEK_HOLE`; where the file system cannot tell, everything is data. The length
//! is taken once, at opening: a file that is cut short afterwards fails the read that runs past its end.

use crate::{Disk, Error, ErrorKind, Extent, ExtentKind, Fua, MayUnmap, Result, WriteDisk, check_range};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, lseek};
use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Zeros that are written where a range cannot be zeroed otherwise.
static ZEROS: [u8; 1 << 16] = [0; 1 << 16];

/// A regular file or block device.
#[derive(Debug)]
pub struct FileDisk {
    file: File,
    path: PathBuf,
    length: AtomicU64,
    block_size: u32,
    is_device: bool,
}

impl FileDisk {
    /// Opens `path` for reading only.
    ///
    /// # Errors
    /// The system's own, with the path; `Unsupported` for what is neither a file nor a block device.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        // A FIFO or a terminal would block the open itself.
        Self::check_type(&std::fs::metadata(path).map_err(|error| Error::from_io("open", error).at_path(path))?, path)?;
        let file = File::open(path).map_err(|error| Error::from_io("open", error).at_path(path))?;
        Self::from_file(file, path)
    }

    /// Opens an existing `path` for reading and writing.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_writable(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = OpenOptions::new().read(true).write(true).open(path);
        Self::from_file(file.map_err(|error| Error::from_io("open for writing", error).at_path(path))?, path)
    }

    /// Creates `path`, which must not exist, as a hole of `length` bytes.
    ///
    /// # Errors
    /// `Exists`, and the system's own.
    pub fn create(path: impl AsRef<Path>, length: u64) -> Result<Self> {
        let path = path.as_ref();
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path);
        let file = file.map_err(|error| Error::from_io("create", error).at_path(path))?;
        file.set_len(length).map_err(|error| Error::from_io("set the length", error).at_path(path))?;
        Self::from_file(file, path)
    }

    /// Takes over an open file; `path` is what errors call it.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_file(mut file: File, path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let metadata = file.metadata().map_err(|error| Error::from_io("stat", error).at_path(path))?;
        Self::check_type(&metadata, path)?;
        let is_device = metadata.file_type().is_block_device();
        let (length, block_size) = if is_device {
            let end =
                file.seek(SeekFrom::End(0)).map_err(|error| Error::from_io("find the end", error).at_path(path))?;
            (end, device_block_size(metadata.rdev()))
        } else {
            (metadata.len(), 512)
        };
        Ok(Self { file, path: path.to_path_buf(), length: AtomicU64::new(length), block_size, is_device })
    }

    fn check_type(metadata: &std::fs::Metadata, path: &Path) -> Result<()> {
        let kind = metadata.file_type();
        if kind.is_file() || kind.is_block_device() {
            return Ok(());
        }
        let what = if kind.is_dir() { "a folder" } else { "neither a regular file nor a block device" };
        Err(Error::unsupported(format!("this is {what}")).at_path(path).hint("name a disk image or a block device"))
    }

    /// What errors call it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open file below.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Whether it is a block device.
    pub fn is_device(&self) -> bool {
        self.is_device
    }

    fn io(&self, what: &str, error: std::io::Error, offset: u64) -> Error {
        Error::from_io(what, error).at_path(&self.path).at_offset(offset)
    }

    fn seek(&self, offset: u64, whence: Whence) -> nix::Result<u64> {
        let offset = i64::try_from(offset).map_err(|_| Errno::EOVERFLOW)?;
        lseek(&self.file, offset, whence).map(i64::cast_unsigned)
    }

    /// `fallocate` over a range; `Ok(false)` where the file system or device cannot.
    fn allocate(&self, flags: FallocateFlags, range: &Range<u64>) -> Result<bool> {
        let (Ok(start), Ok(length)) = (i64::try_from(range.start), i64::try_from(range.end - range.start)) else {
            return Ok(false);
        };
        match fallocate(&self.file, flags, start, length) {
            Ok(()) => Ok(true),
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL | Errno::ENODEV) => Ok(false),
            Err(error) => Err(self.io("zero a range", error.into(), range.start)),
        }
    }
}

/// What sysfs says of a device or of the disk that holds a partition; 512 where it says nothing.
fn device_block_size(device: u64) -> u32 {
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    ["queue", "../queue"]
        .iter()
        .find_map(|queue| {
            let path = format!("/sys/dev/block/{major}:{minor}/{queue}/logical_block_size");
            std::fs::read_to_string(path).ok()?.trim().parse().ok()
        })
        .unwrap_or(512)
}

impl Disk for FileDisk {
    fn len(&self) -> u64 {
        self.length.load(Ordering::Acquire)
    }

    fn logical_block_size(&self) -> u32 {
        self.block_size
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(offset, buf.len() as u64, self.len()).map_err(|error| error.at_path(&self.path))?;
        self.file.read_exact_at(buf, offset).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => Error::new(ErrorKind::Io, "the file became shorter while it was read")
                .at_path(&self.path)
                .at_offset(offset),
            _ => self.io("read", error, offset),
        })
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        let length = self.len();
        check_range(offset, 1, length).map_err(|error| error.at_path(&self.path))?;
        let rest = |kind| Ok(Extent { kind, length: length - offset });
        if self.is_device {
            return rest(ExtentKind::Data);
        }
        match self.seek(offset, Whence::SeekData) {
            Ok(data) if data > offset => Ok(Extent { kind: ExtentKind::Hole, length: data.min(length) - offset }),
            Ok(_) => match self.seek(offset, Whence::SeekHole) {
                Ok(hole) if hole > offset => Ok(Extent { kind: ExtentKind::Data, length: hole.min(length) - offset }),
                _ => rest(ExtentKind::Data),
            },
            // No data up to the end, as long as the file still reaches there.
            Err(Errno::ENXIO) if self.file.metadata().is_ok_and(|metadata| metadata.len() >= length) => {
                rest(ExtentKind::Hole)
            }
            Err(_) => rest(ExtentKind::Data),
        }
    }
}

impl WriteDisk for FileDisk {
    fn write_at(&self, buf: &[u8], offset: u64, fua: Fua) -> Result<()> {
        check_range(offset, buf.len() as u64, self.len()).map_err(|error| error.at_path(&self.path))?;
        self.file.write_all_at(buf, offset).map_err(|error| self.io("write", error, offset))?;
        match fua {
            Fua::Yes => self.flush(),
            Fua::No => Ok(()),
        }
    }

    fn zero(&self, range: Range<u64>, may_unmap: MayUnmap) -> Result<()> {
        check_range(range.start, range.end.saturating_sub(range.start), self.len())?;
        if range.is_empty() {
            return Ok(());
        }
        let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        if may_unmap == MayUnmap::Yes && self.allocate(punch, &range)? {
            return Ok(());
        }
        if self.allocate(FallocateFlags::FALLOC_FL_ZERO_RANGE, &range)? {
            return Ok(());
        }
        let mut at = range.start;
        while at < range.end {
            let count = usize::try_from(range.end - at).unwrap_or(usize::MAX).min(ZEROS.len());
            self.write_at(&ZEROS[..count], at, Fua::No)?;
            at += count as u64;
        }
        Ok(())
    }

    fn discard(&self, range: Range<u64>) -> Result<()> {
        check_range(range.start, range.end.saturating_sub(range.start), self.len())?;
        if !range.is_empty() {
            let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            self.allocate(punch, &range)?;
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        self.file.sync_data().map_err(|error| Error::from_io("flush", error).at_path(&self.path))
    }

    fn resize(&self, length: u64) -> Result<()> {
        if self.is_device {
            return Err(Error::unsupported("a block device cannot be resized").at_path(&self.path));
        }
        self.file.set_len(length).map_err(|error| Error::from_io("resize", error).at_path(&self.path))?;
        self.length.store(length, Ordering::Release);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{testing, visit_extents};

    #[test]
    fn conforms() {
        let folder = tempfile::tempdir().unwrap();
        let bytes = testing::pattern(100_001, 10);
        let path = folder.path().join("a");
        std::fs::write(&path, &bytes).unwrap();
        testing::check_disk(&FileDisk::open(&path).unwrap(), &bytes, 11);
        let disk = FileDisk::create(folder.path().join("b"), 300_000).unwrap();
        testing::check_write_disk(&disk, 12, 500);
    }

    #[test]
    fn holes_are_seen() {
        let folder = tempfile::tempdir().unwrap();
        let disk = FileDisk::create(folder.path().join("a"), 16 << 20).unwrap();
        disk.write_at(&[1; 4096], 8 << 20, Fua::Yes).unwrap();
        let mut runs = Vec::new();
        visit_extents(&disk, 0..16 << 20, |kind, run| {
            runs.push((kind, run));
            Ok(())
        })
        .unwrap();
        let middle = (8 << 20)..(8 << 20) + 4096;
        assert_eq!(runs[0], (ExtentKind::Hole, 0..8 << 20));
        assert_eq!(runs[1], (ExtentKind::Data, middle));
        assert_eq!(runs[2].0, ExtentKind::Hole);
        let mut expected = vec![0; 16 << 20];
        expected[8 << 20..(8 << 20) + 4096].fill(1);
        testing::check_disk(&disk, &expected, 13);
    }

    #[test]
    fn a_file_that_shrinks_fails_the_read_and_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        std::fs::write(&path, vec![1; 10_000]).unwrap();
        let disk = FileDisk::open(&path).unwrap();
        File::options().write(true).open(&path).unwrap().set_len(5000).unwrap();
        let error = disk.read_at(&mut [0; 100], 9000).unwrap_err();
        assert!(error.to_string().contains("shorter"), "{error}");
    }

    #[test]
    fn what_is_no_disk_is_refused() {
        assert_eq!(FileDisk::open("/").unwrap_err().kind(), ErrorKind::Unsupported);
        assert_eq!(FileDisk::open("/dev/null").unwrap_err().kind(), ErrorKind::Unsupported);
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(FileDisk::open(folder.path().join("nothing")).unwrap_err().kind(), ErrorKind::NotFound);
    }
}
