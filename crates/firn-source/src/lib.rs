//! Where a machine's disks come from, and how one instant of all of them is taken.
//!
//! ```text
//!   sources ── plan ── prepare ─┬─ freeze ── cut ── thaw ─┬─ open ── (read) ── check ── (publish) ── finish
//!             (reads only)      └── quiesce: hooks, agent ─┘
//! ```
//! Each kind of [`Source`] is a module; [`open`] finds it by its URI. What is read is a [`Disk`](firn_disk::Disk) like
//! any other, with the ranges that changed since the last snapshot where the source knows them. Nothing here knows the
//! pool: what it already has is told by [`Request`].

#![forbid(unsafe_code)]

mod btrfs;
mod command;
mod copy;
mod discover;
mod file;
mod in_use;
pub mod libvirt;
pub mod nas;
mod nbd;
pub mod process;
mod qemu;
pub mod quiesce;
mod source;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod uri;

pub use btrfs::BtrfsSource;
pub use command::CommandSource;
pub use discover::{Found, discover};
pub use file::{FileOptions, FileSource};
pub use in_use::{O_EXCL, refuse_mounted};
pub use nbd::{NbdSource, open_export};
pub use qemu::{QemuSource, resume_machine};
pub use source::{
    Attachment, Changed, Finding, FrozenDisk, Health, Outcome, Plan, PlannedDisk, PreviousDisk, Request, Source,
};
pub use uri::{SourceOptions, open, source_of_disk};
