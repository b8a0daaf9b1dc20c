//! XFS against the kernel's own mount.

#![allow(clippy::unwrap_used)]

#[path = "../ext/load.rs"]
#[expect(dead_code, reason = "what fast commits need is for ext4 alone")]
mod load;
#[path = "../ext/populate.rs"]
mod populate;
#[path = "../support/walker.rs"]
mod walker;

mod churn;
mod clean;
mod dirty;
mod grow;
mod image;
mod mutate;
mod odd;
mod v4;
