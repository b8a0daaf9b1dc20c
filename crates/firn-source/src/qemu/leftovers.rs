//! Takes apart what runs of one owner made inside QEMU: at the end of a run, and after the death of one.
//!
//! What is there is looked for by name, so that it does not matter how far the run had come. Whoever uses something goes
//! before it: jobs, exports, readers of the instant, filters out of their devices, filters, scratch, bitmaps.

use super::blocks::{self, Device};
use super::monitor::Monitor;
use super::names::{self, Names, NodeKind, is_node};
use super::scratch::{Job, Note};
use firn_disk::{Error, ErrorKind, Result};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// What happens to QEMU's NBD server. There is one at most, and QEMU does not tell whether it runs, nor whose it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Server {
    /// It stays; only exports end.
    Leave,
    /// A run of this owner started it: it ends, unless others export by it, too.
    Stop,
    /// A run of this owner may have started it before it died: as `Stop` if anything of that run is there.
    StopIfOurs,
}

/// For a job and an export to end after it was cancelled.
const PATIENCE: Duration = Duration::from_secs(20);
/// For a node to be free after its user has gone.
const NODE_PATIENCE: Duration = Duration::from_secs(3);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(5);

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct DescriptorSet {
    fdset_id: i64,
    #[serde(default)]
    fds: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
struct Descriptor {
    opaque: Option<String>,
}

impl DescriptorSet {
    /// What firn wrote beside it, if it did.
    fn note(&self) -> Option<Note> {
        serde_json::from_str(self.fds.first()?.opaque.as_ref()?).ok()
    }
}

#[derive(Debug, Deserialize)]
struct Export {
    id: String,
    #[serde(rename = "type")]
    kind: String,
}

/// The notes of all runs of this owner, with the number of the descriptor set that each is beside.
fn notes(monitor: &Monitor, names: &Names) -> Result<Vec<(i64, Note)>> {
    let sets: Vec<DescriptorSet> = monitor.ask("query-fdsets", Value::Null)?;
    let notes = sets.iter().filter_map(|set| Some((set.fdset_id, set.note()?)));
    Ok(notes.filter(|(_, note)| names.owns_node(&note.filter, NodeKind::Filter)).collect())
}

fn own_nodes(monitor: &Monitor, names: &Names) -> Result<impl Iterator<Item = String>> {
    let nodes = blocks::nodes(monitor)?.into_iter().map(|node| node.node_name);
    Ok(nodes.filter(|node| NodeKind::REMOVAL.iter().any(|kind| names.owns_node(node, *kind))))
}

/// # Errors
/// `Unavailable` when runs of other owners have their nodes in this machine.
pub(super) fn refuse_others(monitor: &Monitor, names: &Names) -> Result<()> {
    let is_ours = |node: &str| NodeKind::REMOVAL.iter().any(|kind| names.owns_node(node, *kind));
    match blocks::nodes(monitor)?.iter().find(|node| is_node(&node.node_name) && !is_ours(&node.node_name)) {
        Some(node) => Err(Error::new(
            ErrorKind::Unavailable,
            format!(
                "a snapshot of this machine into another pool is being taken, or was broken off (node {})",
                node.node_name
            ),
        )
        .at_path(monitor.path())
        .hint(
            "wait until it has finished; if it was broken off, take a snapshot into that pool, which puts it in order",
        )),
        None => Ok(()),
    }
}

/// Removes everything but bitmaps, and lets a machine go on that a dead run paused. Safe to call again, and when there is
/// nothing. All is tried, whatever fails.
///
/// # Errors
/// The first thing that could not be removed.
pub(super) fn remove_nodes(monitor: &Monitor, names: &Names, server: Server) -> Result<()> {
    let mut trouble = Trouble::default();
    let notes = trouble.note(notes(monitor, names)).unwrap_or_default();
    let nodes: Vec<String> = own_nodes(monitor, names)?.collect();
    trouble.note(cancel_jobs(monitor, names));
    trouble.note(stop_exports(monitor, names, server, !nodes.is_empty()));
    let mut disks: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for node in &nodes {
        disks.entry(names::disk_of_node(node)).or_default().push(node);
    }
    for nodes in disks.values() {
        trouble.note(remove_disk(monitor, names, nodes, &notes));
    }
    // Before the instant's readers are made the run lets the machine go on: if there are some, somebody else paused it.
    let had_opened = nodes.iter().any(|node| names.owns_node(node, NodeKind::Access));
    let was_pausing = notes.iter().any(|(_, note)| note.pauses) && !had_opened;
    if was_pausing && blocks::status(monitor).is_ok_and(|status| status.status == "paused") {
        trouble.note(monitor.execute("cont", Value::Null).map(drop));
    }
    // What a filter's note says is needed as long as the filter is there.
    let left: Vec<String> = own_nodes(monitor, names)?.collect();
    for (set, note) in notes {
        if !left.iter().any(|node| names::disk_of_node(node) == names::disk_of_node(&note.filter)) {
            trouble.note(remove_descriptor(monitor, set));
        }
    }
    trouble.end()
}

/// Removes the nodes of one disk of one run, as far as it goes.
fn remove_disk(monitor: &Monitor, names: &Names, nodes: &[&str], notes: &[(i64, Note)]) -> Result<()> {
    for kind in NodeKind::REMOVAL {
        for node in nodes.iter().filter(|node| names.owns_node(node, kind)) {
            if kind == NodeKind::Filter {
                unplug_filter(monitor, node, notes)?;
            }
            remove_node(monitor, node)?;
        }
    }
    Ok(())
}

/// Removes this owner's bitmaps but those called as in `keep`.
///
/// # Errors
/// The first that could not be removed.
pub(super) fn remove_bitmaps(monitor: &Monitor, names: &Names, keep: &[&str]) -> Result<()> {
    let mut trouble = Trouble::default();
    for node in blocks::nodes(monitor)? {
        for bitmap in &node.dirty_bitmaps {
            if bitmap.name.starts_with(&names.owner_prefix()) && !keep.contains(&bitmap.name.as_str()) {
                let arguments = json!({"node": node.node_name, "name": bitmap.name});
                trouble.note(monitor.execute("block-dirty-bitmap-remove", arguments).map(drop));
            }
        }
    }
    trouble.end()
}

/// The first of several errors.
#[derive(Debug, Default)]
struct Trouble(Option<Error>);

impl Trouble {
    fn note<T>(&mut self, outcome: Result<T>) -> Option<T> {
        outcome.map_err(|error| self.0.get_or_insert(error).clone()).ok()
    }

    fn end(self) -> Result<()> {
        self.0.map_or(Ok(()), Err)
    }
}

fn own_jobs(monitor: &Monitor, names: &Names) -> Result<Vec<Job>> {
    let jobs: Vec<Job> = monitor.ask("query-jobs", Value::Null)?;
    Ok(jobs.into_iter().filter(|job| job.id.starts_with(&names.owner_prefix())).collect())
}

fn cancel_jobs(monitor: &Monitor, names: &Names) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let jobs = own_jobs(monitor, names)?;
        let Some(first) = jobs.first() else { return Ok(()) };
        if Instant::now() >= deadline {
            let message = format!("the job {} does not end", first.id);
            return Err(Error::new(ErrorKind::Unavailable, message).at_path(monitor.path()));
        }
        for job in &jobs {
            let command = if job.status == "concluded" { "job-dismiss" } else { "job-cancel" };
            // It may have ended this moment, or be about to: the next look tells.
            let _ = monitor.execute(command, json!({"id": job.id}));
        }
        if !own_jobs(monitor, names)?.is_empty() {
            std::thread::sleep(LOOK);
        }
    }
}

/// Ends this owner's exports, and the server with them if it is ours and nobody else's are on it.
fn stop_exports(monitor: &Monitor, names: &Names, server: Server, has_nodes: bool) -> Result<()> {
    let exports: Vec<Export> = monitor.ask("query-block-exports", Value::Null)?;
    let is_ours = |export: &&Export| export.id.starts_with(&names.owner_prefix());
    let others = exports.iter().filter(|export| export.kind == "nbd" && !is_ours(export)).count();
    let is_ours_to_stop = match server {
        Server::Leave => false,
        Server::Stop => true,
        Server::StopIfOurs => has_nodes || exports.iter().any(|export| is_ours(&export)),
    };
    if others == 0 && is_ours_to_stop {
        // That none runs is no trouble: the run may have died before it started it.
        let stop = || monitor.execute("nbd-server-stop", Value::Null);
        let stopped = stop().or_else(|_| stop());
        stopped
            .map(drop)
            .or_else(|error| if error.to_string().contains("not running") { Ok(()) } else { Err(error) })?;
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        let exports: Vec<Export> = monitor.ask("query-block-exports", Value::Null)?;
        let Some(first) = exports.iter().find(is_ours) else { return Ok(()) };
        if Instant::now() >= deadline {
            let message = format!("the export {} does not end", first.id);
            return Err(Error::new(ErrorKind::Unavailable, message).at_path(monitor.path()));
        }
        for export in exports.iter().filter(is_ours) {
            // A second time QEMU says that it is ending already.
            let _ = monitor.execute("block-export-del", json!({"id": export.id, "mode": "hard"}));
        }
        std::thread::sleep(LOOK);
    }
}

/// Gives the device with this filter the node that it had before; nothing if none has it.
fn unplug_filter(monitor: &Monitor, filter: &str, notes: &[(i64, Note)]) -> Result<()> {
    let has_it = |device: &Device| device.inserted.as_ref().is_some_and(|node| node.node_name == filter);
    let Some(device) = blocks::devices(monitor)?.into_iter().find(has_it) else { return Ok(()) };
    let object = device.object();
    let Some((_, note)) = notes.iter().find(|(_, note)| note.filter == filter) else {
        let message = format!("nothing tells which node {object} had before {filter}");
        return Err(Error::new(ErrorKind::Io, message).at_path(monitor.path()).hint(
            "set it back by qom-set, or shut the machine down and start it again: the filter is not part of its configuration",
        ));
    };
    monitor.execute("qom-set", json!({"path": object, "property": "drive", "value": note.node})).map(drop)
}

fn remove_descriptor(monitor: &Monitor, set: i64) -> Result<()> {
    match monitor.execute("remove-fd", json!({"fdset-id": set})) {
        // While the machine is paused QEMU lists sets that were removed already.
        Err(error) if !error.to_string().contains("not found") => Err(error),
        _ => Ok(()),
    }
}

/// Removes a node, waiting for what used it until now.
fn remove_node(monitor: &Monitor, node: &str) -> Result<()> {
    let deadline = Instant::now() + NODE_PATIENCE;
    loop {
        let Err(error) = monitor.execute("blockdev-del", json!({"node-name": node})) else { return Ok(()) };
        if !blocks::nodes(monitor)?.iter().any(|other| other.node_name == node) {
            return Ok(());
        }
        if error.kind() == ErrorKind::Unavailable || Instant::now() >= deadline {
            return Err(error);
        }
        std::thread::sleep(LOOK);
    }
}

/// The nodes that devices had before filters of firn's, by the filters' names.
///
/// # Errors
/// What QEMU says.
pub(super) fn unfiltered(monitor: &Monitor) -> Result<BTreeMap<String, String>> {
    let sets: Vec<DescriptorSet> = monitor.ask("query-fdsets", Value::Null)?;
    let notes = sets.iter().filter_map(DescriptorSet::note);
    Ok(notes.filter(|note| is_node(&note.filter)).map(|note| (note.filter, note.node)).collect())
}
