//! From a URI to the source that it names.
//!
//! ```text
//!   qemu:QMP-SOCKET[?agent=SOCKET]   nbd://… nbds://… nbd+unix://…   file:PATH   PATH
//!   libvirt://DOMAIN  libvirt+ssh://HOST/DOMAIN   btrfs:PATH   nas:PATH   command:NAME
//! ```

use crate::btrfs::BtrfsSource;
use crate::command::CommandSource;
use crate::file::{FileOptions, FileSource};
use crate::libvirt::LibvirtSource;
use crate::nas::NasSource;
use crate::nbd::NbdSource;
use crate::qemu::QemuSource;
use crate::source::Source;
use firn_disk::{Error, Result};
use std::path::Path;

/// What is said beside the URI.
#[derive(Debug, Clone, Default)]
pub struct SourceOptions {
    /// The name of the disk, for a source that has just one and no names of its own.
    pub name: String,
    /// Whether `name` was asked for: a source that names its disks itself refuses it then.
    pub is_named: bool,
    /// How image files are opened, wherever the source comes to one.
    pub file: FileOptions,
}

/// The source that `uri` names. Nothing is connected or opened yet.
///
/// # Errors
/// `Invalid` for a URI that is none; `Unsupported` for one of a kind that is not known.
pub fn open(uri: &str, options: &SourceOptions) -> Result<Box<dyn Source>> {
    let scheme = uri.split_once(':').map_or("", |(scheme, _)| scheme);
    match scheme {
        "nbd" | "nbds" | "nbd+unix" | "nbds+unix" => {
            Ok(Box::new(NbdSource::new(uri.to_owned(), options.name.clone(), options.file.image.torn)))
        }
        "qemu" => Ok(Box::new(QemuSource::new(uri, options.file.clone())?)),
        "libvirt" | "libvirt+ssh" => Ok(Box::new(LibvirtSource::new(uri, options.file.clone())?)),
        "file" => {
            let path = uri.strip_prefix("file:").unwrap_or(uri);
            let path = path.strip_prefix("//").filter(|path| path.starts_with('/')).unwrap_or(path);
            Ok(Box::new(FileSource::new(Path::new(path), options.name.clone(), options.file.clone())?))
        }
        "command" => Ok(Box::new(CommandSource::new(uri.strip_prefix("command:").unwrap_or(uri), options)?)),
        "btrfs" => Ok(Box::new(BtrfsSource::new(uri, options)?)),
        "nas" => Ok(Box::new(NasSource::open(uri, options)?)),
        _ => Err(Error::unsupported(format!("{uri}: firn knows no such source"))
            .hint("name an image file, a block device, nbd://HOST/EXPORT, or a source that `firn snap --help` lists")),
    }
}

/// The URI by which the source of a disk is opened again, from [`FrozenDisk::source`](crate::FrozenDisk::source).
pub fn source_of_disk(uri: &str) -> String {
    match uri.split_once(':') {
        Some(("qemu", _)) => crate::qemu::machine_of(uri).unwrap_or_else(|_| uri.to_owned()),
        _ => uri.to_owned(),
    }
}
