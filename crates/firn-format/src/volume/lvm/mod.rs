//! LVM2, read from its own metadata on the physical volumes.
//!
//! ```text
//! physical volume    label | metadata area: text in a ring | extents … | (second metadata area)
//! volume group       the newest whole text that any of its physical volumes holds
//! logical volume     runs of extents: linear, striped, mirror, raid, thin, snapshot, zero, error
//! ```
//! Groups are told apart by UUID, so that several of one name do no harm. A physical volume that is missing
//! leaves the group *degraded*: reads of its extents fail with `Unavailable`, all others work. Two disks with
//! one physical volume's UUID, as a clone beside its original, are never guessed between: reads fail.
//!
//! A copy of a mirror or a member of an array is only read when the metadata on disk shows that it is in sync, and
//! nothing is computed from parity that may not be. Everything that maps in another way (cache, vdo, writecache,
//! integrity) is listed and refused by the name of its segment type.
//!
//! Source: LVM2, lib/format_text and lib/label; Linux, drivers/md/dm-raid.c and dm-log.c.

mod copies;
mod group;
mod label;
mod linear;
mod map;
mod metadata;
mod raid;
mod raid1;
mod renew;
mod snapshot;
mod state;
mod text;
mod thin;

pub use group::{LogicalVolume, Member, MemberState, OpenVolume, PhysicalVolume, VolumeGroup, assemble};
pub use linear::LinearPiece;
pub(crate) use renew::{Renaming, random_uuid, renew};
