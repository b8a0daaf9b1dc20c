//! ext2, ext3 and ext4 against the kernel's own mount.

#![allow(clippy::unwrap_used)]

#[path = "../support/walker.rs"]
mod walker;

mod clean;
mod dirty;
mod image;
mod load;
mod mutate;
mod odd;
mod populate;
