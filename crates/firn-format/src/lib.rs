//! Bytes to meaning: image formats, partition tables, volumes and file systems, as pure parsers over
//! [`Disk`](firn_disk::Disk).
//!
//! Every parser takes bytes from an enemy: arithmetic is checked, every loop and allocation over disk data has
//! a limit, and what is not understood is refused rather than guessed. Nothing here ever writes to the disk
//! that it reads.

#![forbid(unsafe_code)]

pub mod fs;
pub mod identity;
pub mod image;
pub mod layers;
pub mod table;
pub mod volume;
