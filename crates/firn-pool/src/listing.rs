//! Machines and snapshots: what is in the pool, by name.

use crate::manifest::{self, Manifest, open_structure};
use crate::names::{self, Copy};
use crate::note::{self, Note};
use crate::object::ObjectKind;
use crate::pool::Pool;
use firn_disk::{Error, ErrorKind, Result};
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// No name is longer, in bytes.
const MOST_NAME_BYTES: usize = 200;
/// Machines that may have had one name, one after the other.
const MOST_NAMESAKES: u32 = 1000;

/// A machine in the pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Stays when the name changes.
    pub uuid: Uuid,
    /// What it is called.
    pub name: String,
    /// How many snapshots it has, going by the names of their objects.
    pub snapshots: u64,
}

/// A snapshot in a listing: its manifest, or why that cannot be read.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The machine.
    pub machine: Uuid,
    /// Its place in the machine's history.
    pub sequence: u64,
    /// Its own name.
    pub uuid: Uuid,
    /// Its manifest, from whichever copy is sound.
    pub manifest: Result<Manifest>,
}

/// `[A-Za-z0-9][A-Za-z0-9._-]*` of at most 200 bytes.
///
/// # Errors
/// `Invalid`, with the rule.
pub(crate) fn check_name(name: &str, what: &str) -> Result<()> {
    let mut characters = name.chars();
    let first = characters.next().is_some_and(|c| c.is_ascii_alphanumeric());
    if first && characters.all(|c| c.is_ascii_alphanumeric() || "._-".contains(c)) && name.len() <= MOST_NAME_BYTES {
        return Ok(());
    }
    Err(Error::invalid(format!("{name:?} is no name for a {what}"))
        .hint("a name has letters, digits, dots, underscores and dashes, and begins with a letter or digit"))
}

impl Pool {
    /// Every machine that has a snapshot, by name.
    ///
    /// # Errors
    /// What the store says.
    pub fn machines(&self) -> Result<Vec<Machine>> {
        let blobs = self.blobs();
        let notes = note::read_all(&blobs.store, &blobs.keys)?;
        let mut counts: BTreeMap<Uuid, BTreeSet<(u64, Uuid)>> = BTreeMap::new();
        for object in blobs.store.list("snap")? {
            if let Some((machine, sequence, snapshot, _)) = names::parse_manifest(&object.name) {
                counts.entry(machine).or_default().insert((sequence, snapshot));
            }
        }
        let machine = |(uuid, snapshots): (Uuid, BTreeSet<_>)| {
            let name = notes.get(&uuid).map(|note| note.name.clone());
            Machine {
                uuid,
                snapshots: snapshots.len() as u64,
                name: name.unwrap_or_else(|| self.name_by_manifest(uuid)),
            }
        };
        let mut machines: Vec<_> = counts.into_iter().map(machine).collect();
        machines.sort_by(|a, b| (&a.name, a.uuid).cmp(&(&b.name, b.uuid)));
        Ok(machines)
    }

    /// A machine whose notes are lost is called what its newest readable manifest calls it.
    fn name_by_manifest(&self, machine: Uuid) -> String {
        let snapshots = self.snapshots(machine).unwrap_or_default();
        let name = snapshots.into_iter().rev().find_map(|snapshot| Some(snapshot.manifest.ok()?.machine_name));
        name.unwrap_or_else(|| machine.to_string())
    }

    /// The machine called `name`.
    ///
    /// # Errors
    /// `NotFound`, listing the machines there are.
    pub fn machine(&self, name: &str) -> Result<Machine> {
        let machines = self.machines()?;
        if let Some(machine) = machines.iter().find(|machine| machine.name == name) {
            return Ok(machine.clone());
        }
        let names: Vec<_> = machines.iter().take(20).map(|machine| machine.name.as_str()).collect();
        let hint = if names.is_empty() {
            "the pool is empty; `firn snap MACHINE IMAGE` takes a first snapshot".to_owned()
        } else {
            format!("the pool has {}", names.join(", "))
        };
        Err(Error::not_found(format!("there is no machine {name} in the pool")).hint(hint))
    }

    /// All snapshots of a machine, oldest first: by the instant that they show, then by sequence. One whose
    /// manifest cannot be read stands where its sequence puts it.
    ///
    /// # Errors
    /// What the store says to the listing.
    pub fn snapshots(&self, machine: Uuid) -> Result<Vec<Snapshot>> {
        let objects = self.blobs().store.list(&format!("snap/{}", machine.simple()))?;
        let names: BTreeSet<(u64, Uuid)> = objects
            .iter()
            .filter_map(|object| names::parse_manifest(&object.name))
            .map(|(_, sequence, snapshot, _)| (sequence, snapshot))
            .collect();
        let read = |(sequence, uuid)| Snapshot {
            machine,
            sequence,
            uuid,
            manifest: self.read_manifest(machine, sequence, uuid),
        };
        let mut snapshots: Vec<_> = names.into_iter().map(read).collect();
        let mut latest = jiff::Timestamp::MIN;
        let mut keys = BTreeMap::new();
        for snapshot in &snapshots {
            latest = snapshot.manifest.as_ref().map_or(latest, |manifest| manifest.created);
            keys.insert((snapshot.sequence, snapshot.uuid), latest);
        }
        snapshots.sort_by_key(|snapshot| {
            let key = (snapshot.sequence, snapshot.uuid);
            (keys.get(&key).copied(), key)
        });
        Ok(snapshots)
    }

    fn read_manifest(&self, machine: Uuid, sequence: u64, snapshot: Uuid) -> Result<Manifest> {
        let read = |copy| self.read_manifest_copy(machine, sequence, snapshot, copy);
        match read(Copy::A) {
            Ok(manifest) => Ok(manifest),
            Err(first) => {
                read(Copy::B).map_err(|second| if first.kind() == ErrorKind::NotFound { second } else { first })
            }
        }
    }

    pub(crate) fn read_manifest_copy(
        &self,
        machine: Uuid,
        sequence: u64,
        snapshot: Uuid,
        copy: Copy,
    ) -> Result<Manifest> {
        let blobs = self.blobs();
        let name = names::manifest(machine, sequence, snapshot, copy);
        let context = manifest::context(machine, sequence, snapshot);
        blobs
            .store
            .get(&name)
            .and_then(|object| open_structure(&blobs.keys, ObjectKind::Manifest, &context, &object))
            .and_then(|fields| Manifest::from_fields(&fields))
            .map_err(|error| error.at_path(std::path::Path::new(blobs.store.location()).join(name)))
    }

    /// Removes a snapshot. Its space comes back with a later prune; other snapshots are not touched.
    ///
    /// # Errors
    /// What the store says.
    pub fn forget(&self, snapshot: &Snapshot) -> Result<()> {
        // The first copy goes last: as long as it is there, so is the snapshot.
        [Copy::B, Copy::A].into_iter().try_for_each(|copy| {
            self.blobs().store.delete(&names::manifest(snapshot.machine, snapshot.sequence, snapshot.uuid, copy))
        })
    }

    /// The UUID of the machine called `name`, which is made when there is none.
    pub(crate) fn machine_named(&self, name: &str) -> Result<Uuid> {
        check_name(name, "machine")?;
        let blobs = self.blobs();
        let notes = note::read_all(&blobs.store, &blobs.keys)?;
        if let Some((uuid, _)) = notes.iter().find(|(_, note)| note.name == name) {
            return Ok(*uuid);
        }
        // A machine without readable notes still has its name in its manifests.
        if let Some(machine) = self.machines()?.into_iter().find(|machine| machine.name == name) {
            return Ok(machine.uuid);
        }
        for attempt in 0..MOST_NAMESAKES {
            let uuid = blobs.keys.machine_uuid(name, attempt)?;
            let note = Note { name: name.to_owned() };
            match note::write(&blobs.store, &blobs.keys, uuid, 1, &note, self.entropy()) {
                Ok(()) => return Ok(uuid),
                // Somebody else took the first snapshot of this machine just now, or the machine that had this
                // UUID was renamed since.
                Err(error) if error.kind() == ErrorKind::Exists => {
                    if note::read_all(&blobs.store, &blobs.keys)?.get(&uuid) == Some(&note) {
                        return Ok(uuid);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Err(Error::invalid(format!("too many machines were called {name}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain() {
        for good in ["web1", "0", "a.b_c-d", "Web-1.example.org"] {
            check_name(good, "machine").unwrap();
        }
        for bad in ["", ".", "..", "a/b", "../x", "-x", "a b", "ä", "a\n", &"a".repeat(201), "a@b", "a:b", "a#b"] {
            assert_eq!(check_name(bad, "machine").unwrap_err().kind(), ErrorKind::Invalid, "{bad:?}");
        }
    }
}
