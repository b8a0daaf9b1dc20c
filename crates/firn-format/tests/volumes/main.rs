//! Arrays, thin pools, snapshots and encrypted volumes that were made in a real guest (lab/make-volume-images.sh),
//! compared with what the guest read before it was killed.

// The helpers of tests are tests too.
#![allow(clippy::unwrap_used)]

mod luks;
mod lvm;
mod support;
