//! Guests are frozen, cut and thawed, whatever fails and whoever is killed.

#![allow(clippy::unwrap_used, reason = "tests")]

mod agent;
mod guest;
mod killed;
mod support;
mod take;
