//! The spine of firn: [`Disk`], anything with a length in bytes that can be read at an offset.
//!
//! A raw file, a qcow2 image, a partition, a logical volume, a snapshot in the pool and an NBD export are
//! all a `Disk`; every part of firn reads one and serves another. This crate holds the trait, its writable
//! sibling [`WriteDisk`], the one error type, and the small adapters that know nothing of any format.
//!
//! Everything here is synchronous and positional: calls take `&self`, may be made from many threads at
//! once, block until they are done, and share no cursor.

#![forbid(unsafe_code)]

mod cache;
mod concat;
mod disk;
mod error;
mod file;
mod mem;
mod overlay;
mod record;
#[cfg(feature = "testing")]
pub mod testing;
mod window;

pub use cache::Cache;
pub use concat::Concat;
pub use disk::{Disk, Extent, ExtentKind, Fua, MayUnmap, SharedDisk, WriteDisk, check_range, visit_extents};
pub use error::{Error, ErrorKind, Result};
pub use file::FileDisk;
pub use mem::MemDisk;
pub use overlay::Overlay;
pub use record::Record;
pub use window::Window;
