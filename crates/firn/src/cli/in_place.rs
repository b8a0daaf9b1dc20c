//! `firn restore --in-place`: a disk over what is there already, where it differs.

use super::context::Context;
use super::output;
use crate::copy::{Difference, write_difference};
use firn_disk::{Disk, Error, FileDisk, Result, SharedDisk, WriteDisk};
use firn_format::image;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// Whether `out` is an NBD export.
pub fn is_export(out: &Path) -> bool {
    let scheme = out.to_str().and_then(|out| out.split_once("://")).map(|(scheme, _)| scheme);
    scheme.is_some_and(|scheme| matches!(scheme, "nbd" | "nbds" | "nbd+unix" | "nbds+unix"))
}

/// Writes `disk` over `out`: a raw image, a block device that nobody uses, or an NBD export. A file gets the length of
/// the disk; a longer device or export keeps what lies beyond. `is_raw` says that a file is raw whatever it looks like.
///
/// # Errors
/// `NotFound` when there is nothing yet; `Unavailable` for what is in use; `Invalid` for what is too short, or no raw
/// image; what reading and writing say. After an error in the middle `out` is partly old and partly new.
pub fn write(context: &Context, disk: &SharedDisk, out: &Path, is_raw: bool, done: &AtomicU64) -> Result<Difference> {
    let target = open(disk, out, is_raw)?;
    if target.len() < disk.len() {
        return Err(Error::invalid(format!("it has {} bytes, the disk {}", target.len(), disk.len()))
            .at_path(out)
            .hint("choose something that is large enough"));
    }
    let mut progress = |bytes| {
        done.fetch_add(bytes, Ordering::Relaxed);
    };
    write_difference(disk, target.as_ref(), &context.interrupted, &mut progress).map_err(|error| {
        let left = format!("{} is partly old and partly new now", output::plain(&out.to_string_lossy()));
        error.context(left).hint("run the same command again: it writes only what is not there yet")
    })
}

fn open(disk: &SharedDisk, out: &Path, is_raw: bool) -> Result<Box<dyn WriteDisk>> {
    if let Some(uri) = out.to_str().filter(|_| is_export(out)) {
        let uri = firn_nbd::Uri::parse(uri)?;
        return Ok(Box::new(firn_nbd::open_writable(&uri, &firn_nbd::Options::default())?));
    }
    let metadata = std::fs::metadata(out).map_err(|error| {
        let error = Error::from_io("look at", error).at_path(out);
        error.hint("--in-place changes what is there; without it firn makes a new file")
    })?;
    if metadata.file_type().is_block_device() {
        return Ok(Box::new(open_device(out)?));
    }
    firn_source::refuse_mounted(out)?;
    let file = image::open_in_place(out, is_raw)?;
    if file.len() != disk.len() {
        file.resize(disk.len())?;
    }
    Ok(Box::new(file))
}

/// A block device for writing that is neither mounted nor in use by LVM or md.
///
/// # Errors
/// The system's own.
pub fn open_device(path: &Path) -> Result<FileDisk> {
    let opened = std::fs::OpenOptions::new().read(true).write(true).custom_flags(firn_source::O_EXCL).open(path);
    let file = opened.map_err(|error| {
        Error::from_io("open for writing", error)
            .at_path(path)
            .hint("is it mounted, or in use by LVM or md? firn does not write to such a device")
    })?;
    FileDisk::from_file(file, path)
}
