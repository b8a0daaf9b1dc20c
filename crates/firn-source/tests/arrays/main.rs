//! Sources against the real thing: btrfs on a loop device, the user's commands, folders of snapshots, NBD servers, devices.
#![allow(clippy::unwrap_used, reason = "tests")]

mod btrfs;
mod command;
mod found;
mod nas;
mod served;
mod support;
