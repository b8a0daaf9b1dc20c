//! File systems: a disk in, a [`FileTree`] out.

pub mod ext;
mod open;
pub mod probe;
mod renew;
mod run;
pub mod xfs;

pub use open::{OpenOptions, open, replayed};
pub(crate) use renew::{refusal as renew_refusal, renew};

use firn_disk::{Result, SharedDisk};
use std::fmt::Debug;

/// What a node of a [`FileTree`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileType {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link.
    Symlink,
    /// A character device node.
    CharDevice,
    /// A block device node.
    BlockDevice,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

impl FileType {
    /// A word for people and for `--json`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Folder => "folder",
            Self::Symlink => "symlink",
            Self::CharDevice => "char-device",
            Self::BlockDevice => "block-device",
            Self::Fifo => "fifo",
            Self::Socket => "socket",
        }
    }

    /// The letter that `ls -l` puts first.
    pub fn letter(self) -> char {
        match self {
            Self::File => '-',
            Self::Folder => 'd',
            Self::Symlink => 'l',
            Self::CharDevice => 'c',
            Self::BlockDevice => 'b',
            Self::Fifo => 'p',
            Self::Socket => 's',
        }
    }
}

/// A point in time as file systems keep it: seconds since 1970-01-01 UTC, and nanoseconds below 1,000,000,000.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp {
    /// Seconds since the epoch, negative before it.
    pub seconds: i64,
    /// Nanoseconds after that second.
    pub nanoseconds: u32,
}

/// What `stat` says of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    /// The inode number, unique in its file system.
    pub inode: u64,
    /// What it is.
    pub file_type: FileType,
    /// Permission bits with setuid, setgid and sticky: at most `0o7777`.
    pub permissions: u32,
    /// Owner.
    pub user: u32,
    /// Group.
    pub group: u32,
    /// Length in bytes; of a symlink, the length of its target.
    pub size: u64,
    /// Bytes taken on the disk, as `st_blocks * 512`.
    pub allocated: u64,
    /// Hard links.
    pub links: u64,
    /// Major and minor number of a device node.
    pub device: Option<(u32, u32)>,
    /// Last access.
    pub accessed: Timestamp,
    /// Last change of the content.
    pub modified: Timestamp,
    /// Last change of the inode.
    pub changed: Timestamp,
    /// Birth, where the file system keeps it.
    pub created: Option<Timestamp>,
}

/// One name in a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The name as it is on disk: any bytes but `/` and NUL, never empty, `.` or `..`.
    pub name: Vec<u8>,
    /// The inode it names.
    pub inode: u64,
    /// What the folder says it is, where it says so; [`FileTree::stat`] knows better.
    pub file_type: Option<FileType>,
}

/// An extended attribute with its full name, as `user.mime_type` or `system.posix_acl_access`.
///
/// The value is what `getxattr` answers on Linux.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Xattr {
    /// Name with its prefix.
    pub name: Vec<u8>,
    /// Value.
    pub value: Vec<u8>,
}

/// What `firn look` tells of a file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Its name: `ext4`.
    pub kind: &'static str,
    /// Label, if it has one.
    pub label: Option<String>,
    /// UUID or serial number in its usual spelling.
    pub uuid: Option<String>,
    /// Length in bytes as the file system counts it.
    pub size: u64,
    /// Bytes not in use, where it says.
    pub free: Option<u64>,
    /// Bytes in a block.
    pub block_size: u32,
    /// The features it uses, by their usual names.
    pub features: Vec<String>,
    /// What was found and done at opening, in words: `journal clean`, `replayed 12 transactions, 3 orphans`.
    pub health: String,
}

/// A file system, read only, as of the moment its disk was taken: journals are replayed in memory, orphans are
/// gone.
///
/// Calls may come from many threads. A corrupt structure fails the call that needs it, with an error that
/// names it; the rest stays readable.
pub trait FileTree: Debug + Send + Sync {
    /// What the file system says of itself.
    fn facts(&self) -> Facts;

    /// The inode number of the root folder.
    fn root(&self) -> u64;

    /// The inode that `name` names in `folder`.
    ///
    /// # Errors
    /// `NotFound` when there is no such name, `Invalid` when `folder` is not a folder, `Corrupt`, `Unsupported`.
    fn lookup(&self, folder: u64, name: &[u8]) -> Result<u64>;

    /// Calls `visit` with each name of `folder` once, without `.` and `..`, in the order of the disk.
    ///
    /// # Errors
    /// What `visit` says, at once; `Invalid` when it is not a folder; `Corrupt`, `Unsupported`.
    fn list(&self, folder: u64, visit: &mut dyn FnMut(Entry) -> Result<()>) -> Result<()>;

    /// What is known of an inode without its content.
    ///
    /// # Errors
    /// `NotFound` when the inode is not in use, `Corrupt`, `Unsupported`.
    fn stat(&self, inode: u64) -> Result<Stat>;

    /// The content of a regular file as a disk: its length, its bytes, its holes (unwritten extents are `Zero`).
    ///
    /// # Errors
    /// `Invalid` when it is no regular file; `Unsupported`, as for content encrypted by the guest; `Corrupt`.
    fn open(&self, inode: u64) -> Result<SharedDisk>;

    /// The target of a symbolic link, as it is on disk.
    ///
    /// # Errors
    /// `Invalid` when it is no symlink, `Corrupt`, `Unsupported`.
    fn read_link(&self, inode: u64) -> Result<Vec<u8>>;

    /// All extended attributes, in no particular order.
    ///
    /// # Errors
    /// `Corrupt`, `Unsupported`.
    fn xattrs(&self, inode: u64) -> Result<Vec<Xattr>>;
}
