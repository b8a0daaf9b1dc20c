//! The client against servers: real ones, and one that follows a script.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;
mod fake;
mod scripted;
mod servers;
mod tls;
