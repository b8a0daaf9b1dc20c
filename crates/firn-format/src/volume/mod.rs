//! Volume managers: disks in, volumes out.

pub mod lvm;
