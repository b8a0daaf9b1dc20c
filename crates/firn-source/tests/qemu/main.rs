//! The source `qemu:` against a real QEMU.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod chain;
mod faults;
mod guest;
mod machine;
mod proxy;
mod refusals;
mod taking;
