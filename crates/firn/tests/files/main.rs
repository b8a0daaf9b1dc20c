//! The commands on files, run as a user runs them, on images that real tools made.

#![allow(clippy::unwrap_used)]

mod commands;
mod copy;
mod hostile;
mod support;
