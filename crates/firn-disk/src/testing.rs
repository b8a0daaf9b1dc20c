//! What every test of a disk needs: the conformance suite that each [`Disk`](crate::Disk) of the project
//! runs, and disks that fail on purpose. Only with the feature `testing`.

mod conformance;
mod fault;
mod power;
mod skip;

pub use conformance::{Random, check_disk, check_write_disk, pattern};
pub use fault::FaultDisk;
pub use power::{PowerCutDisk, Survivors};
pub use skip::skip;
