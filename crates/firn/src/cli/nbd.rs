//! Disks that an NBD server exports, by their URI.

use super::output;
use firn_disk::{Error, Result, SharedDisk};

/// Opens the export that `uri` names. One that may be written to while it is read is opened only when `torn` is set.
///
/// # Errors
/// `Unsupported` for a URI of another kind; as [`firn_source::open_export`].
pub fn open(uri: &str, torn: bool) -> Result<SharedDisk> {
    let scheme = uri.split(':').next().unwrap_or_default();
    if !matches!(scheme, "nbd" | "nbds" | "nbd+unix" | "nbds+unix") {
        let shown = output::plain(uri);
        return Err(Error::unsupported(format!("{shown}: this firn reads image files, block devices and NBD exports"))
            .hint("name a file, or an export as nbd://HOST/EXPORT or nbd+unix:///EXPORT?socket=PATH"));
    }
    firn_source::open_export(uri, torn)
}
