//! The pool from the command line: the built program, used as a stranger would use it.
//!
//! Ground truth is what no code of ours made: the bytes of a file, `qemu-img compare` and `check`, the kernel's loop
//! devices, mounts and full file systems.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod commands;
mod define;
mod faults;
mod full_disk;
mod history;
mod import;
mod in_place;
mod keys;
mod listings;
mod new_ids;
mod prune;
mod recover;
mod restore;
mod snap;
mod sources;
mod stopped;
mod support;
mod watchdog;
