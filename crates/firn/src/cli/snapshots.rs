//! From an address to a snapshot in the pool.

use super::context::Context;
use super::output;
use crate::address::{Address, Target};
use crate::when::Moment;
use firn_disk::{Error, ErrorKind, Result};
use firn_pool::{Machine, Manifest, Pool, Snapshot};
use jiff::Timestamp;
use std::ffi::OsStr;
use std::path::Path;

/// Reads an address; files and block devices count as existing, folders do not.
///
/// # Errors
/// As [`Address::parse`].
pub fn parse_address(text: &OsStr) -> Result<Address> {
    Address::parse(text, &|path: &Path| std::fs::metadata(path).is_ok_and(|metadata| !metadata.is_dir()))
}

/// A machine's name and moment out of an address that can be nothing else.
///
/// # Errors
/// `Invalid` when the address is an image, or goes into a disk.
pub fn machine_address(text: &str) -> Result<(String, Option<Moment>)> {
    let hint = "write MACHINE or MACHINE@TIME, as web1@latest; `firn list` shows what there is";
    match Address::parse(OsStr::new(text), &|_| false) {
        Ok(Address { target: Target::Machine { name, moment }, selectors, path: None }) if selectors.is_empty() => {
            Ok((name, moment))
        }
        // What looks like a file is meant as one.
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Err(Error::invalid(format!("{text:?} is no snapshot in the pool")).hint(hint)),
    }
}

/// All snapshots of a machine, oldest first.
#[derive(Debug, Default)]
pub struct Snapshots {
    /// Those that can be read.
    pub readable: Vec<(Snapshot, Manifest)>,
    /// Those whose manifest is damaged, or too new.
    pub unreadable: Vec<Snapshot>,
}

/// The snapshots of a machine; those that cannot be read are told of on stderr.
///
/// # Errors
/// What the store says.
pub fn of_machine(pool: &Pool, machine: &Machine) -> Result<Snapshots> {
    let mut snapshots = Snapshots::default();
    for snapshot in pool.snapshots(machine.uuid)? {
        match &snapshot.manifest {
            Ok(manifest) => {
                let manifest = manifest.clone();
                snapshots.readable.push((snapshot, manifest));
            }
            Err(error) => {
                eprintln!("firn: warning: a snapshot of {} cannot be read: {error}", machine.name);
                snapshots.unreadable.push(snapshot);
            }
        }
    }
    Ok(snapshots)
}

/// The snapshot that `moment` names, the latest where none is; the pick is told on stderr.
///
/// # Errors
/// `NotFound` when there is no such machine or snapshot; what is wrong with the snapshot when it cannot be read: an
/// older one is never given in its place.
pub fn pick(context: &Context, pool: &Pool, name: &str, moment: Option<&Moment>) -> Result<(Snapshot, Manifest)> {
    let machine = pool.machine(name)?;
    let snapshots = pool.snapshots(machine.uuid)?;
    // When one that cannot be read was taken is not known but that it was after the one before it.
    let mut latest = Timestamp::MIN;
    let times: Vec<Timestamp> = snapshots
        .iter()
        .map(|snapshot| {
            latest = snapshot.manifest.as_ref().map_or(latest, |manifest| manifest.created);
            latest
        })
        .collect();
    let moment = moment.copied().unwrap_or(Moment::Latest { back: 0 });
    let number = moment.pick(&times, &context.now())?.ok_or_else(|| none_fits(name, &snapshots))?;
    let snapshot = snapshots.get(number).ok_or_else(|| none_fits(name, &snapshots))?;
    match &snapshot.manifest {
        Ok(manifest) => {
            if !context.quiet {
                eprintln!("firn: {name}@{} ({})", output::moment(manifest.created), manifest.consistency.as_str());
            }
            Ok((snapshot.clone(), manifest.clone()))
        }
        Err(error) => {
            let readable = snapshots.iter().take(number).rposition(|older| older.manifest.is_ok());
            let hint = readable.map_or_else(
                || format!("`firn list {name}` shows those that can be read"),
                |older| format!("the one before that can be read is {name}@latest~{}", snapshots.len() - 1 - older),
            );
            Err(error.clone().hint(hint).context(format!("the snapshot that {name}@{moment} names cannot be read")))
        }
    }
}

fn none_fits(name: &str, snapshots: &[Snapshot]) -> Error {
    let first = snapshots.iter().find_map(|snapshot| snapshot.manifest.as_ref().ok()).map_or_else(
        || "none can be read".to_owned(),
        |manifest| format!("the first is of {}", output::moment(manifest.created)),
    );
    Error::not_found(format!("{name} has no snapshot that fits; it has {}, {first}", snapshots.len()))
        .hint(format!("`firn list {name}` shows them"))
}
