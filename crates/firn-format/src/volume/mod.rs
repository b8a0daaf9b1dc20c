//! Volume managers and encryption: disks in, volumes out.

pub mod luks;
pub mod lvm;
pub mod md;
mod raid;
