//! The instant of all disks, in two ways.
//!
//! ```text
//!   filter (QEMU 7.1 on)                            backup (before)
//!     device                                          device
//!       | qom-set drive                                 |
//!     filter c -- old bytes --> scratch s             job's filter -- old bytes --> scratch s, backed by the node
//!       |         ^                                     |                              ^
//!     node        access a: what is read              node                             what is read
//! ```
//! *filter*: `copy-before-write` with `on-cbw-error=break-snapshot`: whatever happens to the scratch, the guest's write is
//! carried out and the snapshot is lost. The filters are made beforehand and copy nothing until they stand in their
//! device's way. One after the other gets there, so that a machine with several disks is paused meanwhile, for some
//! milliseconds. With one disk it is not: the new bitmap begins before the filter stands, and the old one is copied after,
//! so that what was written in between is in both.
//!
//! *backup*: one transaction of `blockdev-backup` with `sync=none`. Here a full scratch would fail the guest's write, for
//! which reason [`watch`](super::watch) ends the job long before.

use super::address::Way;
use super::bitmap::{self, Base};
use super::blocks::{self, Drive};
use super::monitor::{Monitor, Version};
use super::names::{Names, NodeKind};
use super::scratch::{self, Job, Scratch};
use firn_disk::{Error, ErrorKind, Result};
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;

/// The first version with all that the filter needs.
const FIRST_WITH_FILTER: Version = Version { major: 7, minor: 1, micro: 0 };
/// The first version with `blockdev-backup` in a transaction as it is used here, and with exports by node.
const FIRST: Version = Version { major: 6, minor: 0, micro: 0 };
/// A guest's write waits for its old bytes to be saved at most that long, then the snapshot is given up. Drivers in guests
/// give a disk 30 s.
const FILTER_SECONDS: u32 = 10;
/// For a command while the machine is paused.
const BRIEF: Duration = Duration::from_secs(5);

/// What the instant is made of.
#[derive(Debug)]
pub(super) struct Cut<'a> {
    pub(super) monitor: &'a Monitor,
    pub(super) names: &'a Names,
    pub(super) drives: &'a [Drive],
    pub(super) bases: &'a [Base],
    pub(super) way: Way,
    /// Whether the machine is paused for it.
    pub(super) pauses: bool,
}

/// The way that this version takes, or that was asked for.
///
/// # Errors
/// `Unsupported` when the version is too old.
pub(super) fn choose(version: Version, wanted: Option<Way>) -> Result<Way> {
    let Version { major, minor, micro } = version;
    let least = if wanted == Some(Way::Filter) { FIRST_WITH_FILTER } else { FIRST };
    if version < least {
        let message = format!("QEMU {major}.{minor}.{micro} is too old: {}.{} is needed", least.major, least.minor);
        return Err(Error::unsupported(message));
    }
    Ok(wanted.unwrap_or(if version >= FIRST_WITH_FILTER { Way::Filter } else { Way::Backup }))
}

impl Cut<'_> {
    /// Makes all nodes that the instant needs.
    ///
    /// # Errors
    /// What QEMU says.
    pub(super) fn prepare(&self, scratch: &[Scratch]) -> Result<()> {
        for (index, (drive, scratch)) in self.drives.iter().zip(scratch).enumerate() {
            let item = (self.names, index);
            let made = scratch::add(self.monitor, scratch, item, drive, self.pauses, self.way == Way::Backup);
            made.and_then(|()| self.prepare_disk(index, drive, scratch))
                .map_err(|error| error.in_structure(drive.name.clone()))?;
        }
        Ok(())
    }

    fn prepare_disk(&self, index: usize, drive: &Drive, scratch: &Scratch) -> Result<()> {
        let node = |kind| self.names.node(kind, index);
        let (command, arguments) = match self.way {
            Way::Filter => (
                "blockdev-add",
                json!({
                "driver": "copy-before-write", "node-name": node(NodeKind::Filter), "file": drive.node,
                "target": node(NodeKind::Scratch), "on-cbw-error": "break-snapshot", "cbw-timeout": FILTER_SECONDS}),
            ),
            Way::Backup => (
                "block-set-write-threshold",
                json!({
                "node-name": node(NodeKind::File), "write-threshold": scratch.limit / 2}),
            ),
        };
        self.monitor.execute(command, arguments).map(drop)
    }

    /// The instant.
    ///
    /// # Errors
    /// What QEMU says. The machine goes on all the same.
    pub(super) fn cut(&self) -> Result<()> {
        let act = || match self.way {
            Way::Filter => self.cut_by_filter(),
            Way::Backup => self.cut_by_backup(),
        };
        // Somebody may have paused it since: then it must not go on for our sake.
        let pauses = self.pauses && blocks::status(self.monitor)?.running;
        if pauses { while_paused(self.monitor, act) } else { act() }
    }

    fn cut_by_filter(&self) -> Result<()> {
        self.transaction(self.drives.iter().map(|drive| bitmap::begin(drive, self.names)).collect())?;
        for (index, drive) in self.drives.iter().enumerate() {
            let filter = self.names.node(NodeKind::Filter, index);
            self.brief("qom-set", json!({"path": drive.device, "property": "drive", "value": filter}))?;
        }
        let disks = self.drives.iter().zip(self.bases);
        self.transaction(disks.flat_map(|(drive, base)| bitmap::copy(drive, base, self.names)).collect())
    }

    fn cut_by_backup(&self) -> Result<()> {
        let mut actions = Vec::new();
        for (index, (drive, base)) in self.drives.iter().zip(self.bases).enumerate() {
            actions.push(bitmap::begin(drive, self.names));
            actions.extend(bitmap::copy(drive, base, self.names));
            actions.push(json!({"type": "blockdev-backup", "data": {
                "job-id": self.names.item(index), "device": drive.node,
                "target": self.names.node(NodeKind::Scratch, index), "sync": "none"}}));
        }
        self.transaction(actions)
    }

    fn transaction(&self, actions: Vec<Value>) -> Result<()> {
        if actions.is_empty() {
            return Ok(());
        }
        self.brief("transaction", json!({"actions": actions}))
    }

    fn brief(&self, command: &str, arguments: Value) -> Result<()> {
        self.monitor.execute_within(command, arguments, BRIEF).map(drop)
    }
}

/// Makes what reads the instant out of a filter, and returns its name. QEMU lets nobody have it before the filter stands in
/// the device's way.
///
/// # Errors
/// What QEMU says.
pub(super) fn add_access(monitor: &Monitor, names: &Names, index: usize) -> Result<String> {
    let node = names.node(NodeKind::Access, index);
    let filter = names.node(NodeKind::Filter, index);
    monitor.execute("blockdev-add", json!({"driver": "snapshot-access", "node-name": node, "file": filter}))?;
    Ok(node)
}

/// # Errors
/// `Unavailable` when one of the first `count` disks' backup jobs does not run any more.
pub(super) fn check_jobs(monitor: &Monitor, names: &Names, count: usize) -> Result<()> {
    let jobs: Vec<Job> = monitor.ask("query-jobs", Value::Null)?;
    let is_running =
        |id: &str| jobs.iter().any(|job| job.id == id && matches!(job.status.as_str(), "running" | "ready"));
    match (0..count).map(|index| names.item(index)).find(|id| !is_running(id)) {
        Some(id) => Err(Error::new(
            ErrorKind::Unavailable,
            format!("the frozen copy is lost: the job {id} does not run any more"),
        )),
        None => Ok(()),
    }
}

/// Pauses the machine for as long as `act` takes.
fn while_paused(monitor: &Monitor, act: impl FnOnce() -> Result<()>) -> Result<()> {
    // An answer that does not come does not tell whether it was paused.
    let outcome = monitor.execute_within("stop", Value::Null, BRIEF).and_then(|_| act());
    let Err(error) = monitor.execute_within("cont", Value::Null, BRIEF) else { return outcome };
    // The monitor serves one client: ours has to go before another can say it.
    monitor.hang_up();
    resume_machine(monitor.path(), BRIEF).map_err(|second| {
        Error::new(ErrorKind::Unavailable, format!("the machine may still be paused: {error}; then: {second}"))
            .hint("send cont to QEMU's monitor at once")
    })?;
    outcome
}

/// Lets a paused machine go on, by QEMU's monitor behind `socket`. One that runs already just runs on. Blocks for at most
/// three times `timeout`.
///
/// # Errors
/// `NotFound` and `Unavailable` when the monitor cannot be reached or does not answer in time; what QEMU says.
pub fn resume_machine(socket: &Path, timeout: Duration) -> Result<()> {
    Monitor::connect(socket, timeout)?.execute_within("cont", Value::Null, timeout).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_follows_from_the_version() {
        let version = |major, minor| Version { major, minor, micro: 9 };
        assert_eq!(choose(version(6, 2), None).unwrap(), Way::Backup);
        assert_eq!(choose(version(7, 0), None).unwrap(), Way::Backup);
        assert_eq!(choose(version(7, 1), None).unwrap(), Way::Filter);
        assert_eq!(choose(version(10, 0), Some(Way::Backup)).unwrap(), Way::Backup);
        assert_eq!(choose(version(6, 2), Some(Way::Filter)).unwrap_err().kind(), ErrorKind::Unsupported);
        assert_eq!(choose(version(5, 2), None).unwrap_err().kind(), ErrorKind::Unsupported);
    }
}
