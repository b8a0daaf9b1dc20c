//! Disks that an NBD server exports, by their URI.

use super::output;
use firn_disk::{Error, ErrorKind, Result, SharedDisk};
use std::sync::Arc;

/// Opens the export that `uri` names. One that may be written to while it is read is opened only when `torn` is set.
///
/// # Errors
/// `Unsupported` for a URI of another kind; `Unavailable` for an export that is not read-only, unless `torn`; as
/// [`firn_nbd::open`].
pub fn open(uri: &str, torn: bool) -> Result<SharedDisk> {
    let scheme = uri.split(':').next().unwrap_or_default();
    if !matches!(scheme, "nbd" | "nbds" | "nbd+unix" | "nbds+unix") {
        let shown = output::plain(uri);
        return Err(Error::unsupported(format!("{shown}: this firn reads image files, block devices and NBD exports"))
            .hint("name a file, or an export as nbd://HOST/EXPORT or nbd+unix:///EXPORT?socket=PATH"));
    }
    let disk = firn_nbd::open(&firn_nbd::Uri::parse(uri)?, &firn_nbd::Options::default())?;
    if !disk.is_read_only() && !torn {
        return Err(Error::new(ErrorKind::Unavailable, "this export can be written to while it is read")
            .at_path(output::plain(uri))
            .hint("export it read-only, as by `qemu-nbd --read-only`, or add --torn if nobody writes to it"));
    }
    Ok(Arc::new(disk))
}
