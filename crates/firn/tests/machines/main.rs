//! Running machines: a real guest with two disks and an agent, under load, from the command line.
//!
//! Ground truth is the guest's own list of what it had made durable.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod qemu;
mod support;
