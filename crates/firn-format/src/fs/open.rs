//! From a disk to its [`FileTree`]: every file system that firn reads is known here.

use super::FileTree;
use super::ext::{Ext, ExtOptions};
use super::probe::{self, Class, Signature};
use super::xfs::{Xfs, XfsOptions};
use firn_disk::{Error, Result, SharedDisk};
use std::sync::Arc;

/// How to open a file system.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// Replay the journal in memory, as mounting would. `true` unless changed.
    pub replay: bool,
    /// The disk of a journal that the file system keeps on another one.
    pub external_journal: Option<SharedDisk>,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self { replay: true, external_journal: None }
    }
}

/// Opens the file system on `disk`; `None` when nothing is recognised there.
///
/// # Errors
/// `Unsupported`, by name, for what is recognised and cannot be read; `Invalid` for swap space; what the file
/// system says.
pub fn open(disk: &SharedDisk, options: &OpenOptions) -> Result<Option<Arc<dyn FileTree>>> {
    let Some(signature) = probe::identify(disk)? else { return Ok(None) };
    open_as(&signature, disk, options).map(Some)
}

/// The disk as it would be after its file system was mounted and unmounted once, and what was done, in words; `None`
/// when what is there has no journal that firn replays. Changes are kept in memory.
///
/// # Errors
/// `Unsupported`, what replaying says.
pub fn replayed(disk: &SharedDisk, options: &OpenOptions) -> Result<Option<(SharedDisk, String)>> {
    match probe::identify(disk)? {
        Some(signature) if is_ext(&signature) => {
            let ext = Ext::open(disk.clone(), &ext_options(options))?;
            Ok(Some((ext.replayed_disk()?, ext.facts().health)))
        }
        Some(signature) if is_xfs(&signature) => {
            let xfs = Xfs::open(disk.clone(), &xfs_options(options))?;
            Ok(Some((xfs.replayed_disk()?, xfs.facts().health)))
        }
        _ => Ok(None),
    }
}

fn is_ext(signature: &Signature) -> bool {
    matches!(signature.kind, "ext2" | "ext3" | "ext4")
}

fn ext_options(options: &OpenOptions) -> ExtOptions {
    ExtOptions { replay: options.replay, external_journal: options.external_journal.clone() }
}

fn is_xfs(signature: &Signature) -> bool {
    signature.kind == "xfs"
}

fn xfs_options(options: &OpenOptions) -> XfsOptions {
    XfsOptions { replay: options.replay, external_log: options.external_journal.clone() }
}

fn open_as(signature: &Signature, disk: &SharedDisk, options: &OpenOptions) -> Result<Arc<dyn FileTree>> {
    if is_ext(signature) {
        return Ok(Ext::open(disk.clone(), &ext_options(options))?);
    }
    if is_xfs(signature) {
        return Ok(Xfs::open(disk.clone(), &xfs_options(options))?);
    }
    Err(refusal(signature))
}

/// Why what is recognised cannot be opened as a file system.
fn refusal(signature: &Signature) -> Error {
    let kind = signature.kind;
    match signature.class {
        Class::FileSystem => Error::unsupported(format!("reading {kind} is not built yet")),
        Class::Swap => Error::invalid(format!("this is swap space ({kind}): it holds no files")),
        Class::Encrypted => Error::unsupported(format!("opening {kind} encryption is not built yet")),
        Class::Member => Error::unsupported(format!("assembling {kind} is not built yet")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use firn_disk::{ErrorKind, MemDisk};

    fn disk_with(at: usize, magic: &[u8]) -> SharedDisk {
        let mut bytes = vec![0; 1 << 20];
        bytes[at..at + magic.len()].copy_from_slice(magic);
        Arc::new(MemDisk::from(bytes))
    }

    #[test]
    fn what_cannot_be_read_is_refused_by_name() {
        let open = |disk| open(&disk, &OpenOptions::default());
        assert!(open(disk_with(0, b"nothing")).unwrap().is_none());
        let error = open(disk_with(0x1_0040, b"_BHRfS_M")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("btrfs"), "{error}");
        assert_eq!(open(disk_with(4096 - 10, b"SWAPSPACE2")).unwrap_err().kind(), ErrorKind::Invalid);
        // A superblock with a magic number and nothing else is damage, not an empty file system.
        assert!(open(disk_with(1024 + 56, &[0x53, 0xEF])).is_err());
    }
}
