//! Disk images against the tools that everybody uses: what `qemu-img` makes we read as it does, and what we
//! write it finds sound. Damaged, hostile and locked images are refused for the right reason.

#![allow(clippy::unwrap_used)]

mod access;
mod bitmap;
mod chains;
mod damage;
mod microsoft;
mod read;
mod sesparse;
mod stream;
mod support;
mod vdi;
mod vmdk;
mod write;
