//! The libvirt source against a real libvirtd with real QEMUs (`lab/libvirt.sh`), and against a virsh that lies.
//!
//! Most domains have no operating system: their disks are written through QEMU's monitor (`qemu-io`), so that what is on
//! them at each moment is known.
#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(clippy::single_range_in_vec_init, reason = "a list of ranges is meant")]

mod faults;
mod guest;
mod lab;
mod lying;
mod remote;
mod snapshots;
