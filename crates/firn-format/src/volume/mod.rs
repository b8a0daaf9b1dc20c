//! Volume managers: disks in, volumes out.

pub mod lvm;
pub mod md;
mod raid;
