//! Linux software RAID (md), put together from the superblocks of its members.
//!
//! ```text
//! member   superblock (0.90, 1.0, 1.1 or 1.2), its part of the array, bitmap, list of bad blocks
//! array    linear, raid0, raid1, raid4, raid5, raid6, raid10 over the slots of its members
//! ```
//! Members are told to be one array by its UUID, and to be up to date by how often the array changed (*events*): one
//! that is behind by more than md itself allows, or that the newest superblock calls failed, is not read. What is
//! missing is read from copies or computed from parity. After an unclean stop parity is believed only where a bitmap
//! says that nothing was being written. The bitmap has no other use here.
//!
//! Refused by name: arrays that are being reshaped, those with a journal device or of a cluster, containers (DDF, IMSM),
//! multipath and faulty. Source: Linux, drivers/md/md.c, raid0.c, raid1.c, raid5.c, raid10.c, md-linear.c.

mod array;
mod superblock;

pub use array::{MdArray, MdMember, assemble};
