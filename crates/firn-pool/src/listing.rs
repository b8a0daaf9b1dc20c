//! Machines and snapshots: what is in the pool, by name.

use crate::fate::{self, Fate};
use crate::lock::{LockNames, Locks};
use crate::manifest::{self, Manifest, open_structure};
use crate::mutant::Mutant;
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
    /// How many more are being written, or were when their writer was killed.
    pub pending: u64,
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
    /// What keeps it from being forgotten.
    pub locks: Locks,
}

/// What a manifest stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// A snapshot.
    Published,
    /// What may become one.
    Pending,
    /// What will never be one, or is none any more.
    Gone,
}

/// Machine, sequence and UUID: what the name of a manifest says.
pub(crate) type SnapshotName = (Uuid, u64, Uuid);

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
        let mut counts: BTreeMap<Uuid, BTreeSet<Uuid>> = BTreeMap::new();
        for (machine, _, snapshot) in self.snapshot_names("snap")? {
            counts.entry(machine).or_default().insert(snapshot);
        }
        let fates = blobs.store.list("fate")?;
        let decided: BTreeSet<Uuid> =
            fates.iter().filter_map(|object| Some(names::parse_fate(&object.name)?.0)).collect();
        let machine = |(uuid, snapshots): (Uuid, BTreeSet<Uuid>)| {
            let name = notes.get(&uuid).map(|note| note.name.clone());
            let is_snapshot = |snapshot: &&Uuid| !self.header().two_phase || decided.contains(*snapshot);
            let count = snapshots.iter().filter(is_snapshot).count() as u64;
            Machine {
                uuid,
                snapshots: count,
                pending: snapshots.len() as u64 - count,
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

    /// The names of all manifests below a folder, in order, each once.
    ///
    /// # Errors
    /// What the store says.
    pub(crate) fn snapshot_names(&self, folder: &str) -> Result<BTreeSet<SnapshotName>> {
        let objects = self.blobs().store.list(folder)?;
        let names = objects.iter().filter_map(|object| names::parse_manifest(&object.name));
        Ok(names.map(|(machine, sequence, snapshot, _)| (machine, sequence, snapshot)).collect())
    }

    /// What each of these manifests stands for, with the locks on it. One whose fate was decided but cannot be read
    /// counts as published: to hide a snapshot would be worse than to show one that never was.
    ///
    /// # Errors
    /// What the store says.
    pub(crate) fn standings(&self, names: &[SnapshotName]) -> Result<Vec<(Standing, Locks)>> {
        let blobs = self.blobs();
        if !self.header().two_phase {
            return Ok(vec![(Standing::Published, Locks::default()); names.len()]);
        }
        let locks = LockNames::list(&blobs.store)?;
        let snapshots: Vec<Uuid> = names.iter().map(|(.., snapshot)| *snapshot).collect();
        let fates = fate::read_each(&blobs.store, &blobs.keys, &snapshots);
        let standing = |(snapshot, fate): (&Uuid, Result<Option<Fate>>)| {
            let noted = locks.read(&blobs.store, &blobs.keys, *snapshot);
            let standing = match fate {
                _ if noted.is_forgotten => Standing::Gone,
                Ok(None) => Standing::Pending,
                Ok(Some(Fate::Lost)) => Standing::Gone,
                Ok(Some(_)) => Standing::Published,
                Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Unsupported) => {
                    Standing::Published
                }
                Err(error) => return Err(error),
            };
            Ok((standing, noted.locks))
        };
        snapshots.iter().zip(fates).map(standing).collect()
    }

    /// All snapshots of a machine, oldest first: by the instant that they show, then by sequence. One whose
    /// manifest cannot be read stands where its sequence puts it. What is not published yet is not among them.
    ///
    /// # Errors
    /// What the store says to the listing.
    pub fn snapshots(&self, machine: Uuid) -> Result<Vec<Snapshot>> {
        self.snapshots_standing(machine, Standing::Published)
    }

    /// What somebody is writing of a machine just now, or was when he was killed: a manifest is there, but it is not
    /// decided yet that it will be a snapshot. Prune removes it when its writer does not live any more.
    ///
    /// # Errors
    /// As [`snapshots`](Self::snapshots).
    pub fn pending_snapshots(&self, machine: Uuid) -> Result<Vec<Snapshot>> {
        self.snapshots_standing(machine, Standing::Pending)
    }

    fn snapshots_standing(&self, machine: Uuid, wanted: Standing) -> Result<Vec<Snapshot>> {
        let names: Vec<_> = self.snapshot_names(&format!("snap/{}", machine.simple()))?.into_iter().collect();
        let standings = self.standings(&names)?;
        let (names, locks): (Vec<_>, Vec<_>) = names
            .into_iter()
            .zip(standings)
            .filter(|(_, (standing, _))| *standing == wanted)
            .map(|(name, (_, locks))| (name, locks))
            .unzip();
        let manifests = self.read_manifests(&names);
        let snapshot = |((name, manifest), locks): ((SnapshotName, Result<Manifest>), Locks)| {
            let (machine, sequence, uuid) = name;
            Snapshot { machine, sequence, uuid, manifest, locks }
        };
        let mut snapshots: Vec<_> = names.into_iter().zip(manifests).zip(locks).map(snapshot).collect();
        // One that was forgotten since the listing is no damage.
        snapshots.retain(|snapshot| !matches!(&snapshot.manifest, Err(e) if e.kind() == ErrorKind::NotFound));
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

    /// Each manifest from whichever copy is sound; the second is looked at only where the first is not.
    pub(crate) fn read_manifests(&self, names: &[SnapshotName]) -> Vec<Result<Manifest>> {
        let name =
            |(machine, sequence, snapshot): &SnapshotName| names::manifest(*machine, *sequence, *snapshot, Copy::A);
        let objects = self.blobs().store.get_each(names.iter().map(name).collect());
        let read =
            |(name, object): (&SnapshotName, Result<bytes::Bytes>)| match self.open_manifest(name, Copy::A, object) {
                Ok(manifest) => Ok(manifest),
                Err(first) => self
                    .read_manifest_copy(name.0, name.1, name.2, Copy::B)
                    .map_err(|second| if first.kind() == ErrorKind::NotFound { second } else { first }),
            };
        names.iter().zip(objects).map(read).collect()
    }

    pub(crate) fn read_manifest_copy(
        &self,
        machine: Uuid,
        sequence: u64,
        snapshot: Uuid,
        copy: Copy,
    ) -> Result<Manifest> {
        let object = self.blobs().store.get(&names::manifest(machine, sequence, snapshot, copy));
        self.open_manifest(&(machine, sequence, snapshot), copy, object)
    }

    fn open_manifest(&self, name: &SnapshotName, copy: Copy, object: Result<bytes::Bytes>) -> Result<Manifest> {
        let blobs = self.blobs();
        let &(machine, sequence, snapshot) = name;
        let name = names::manifest(machine, sequence, snapshot, copy);
        let context = manifest::context(machine, sequence, snapshot);
        object
            .and_then(|object| open_structure(&blobs.keys, ObjectKind::Manifest, &context, &object))
            .and_then(|fields| Manifest::from_fields(&fields))
            .map_err(|error| error.at_path(std::path::Path::new(blobs.store.location()).join(name)))
    }

    /// Removes a snapshot. Its space comes back with a later prune; other snapshots are not touched.
    ///
    /// # Errors
    /// `Denied` when it is locked; what the store says.
    pub fn forget(&self, snapshot: &Snapshot) -> Result<()> {
        self.forget_despite(snapshot, false)
    }

    /// As [`forget`](Self::forget), and a damaged note on the snapshot is no reason to keep it.
    ///
    /// # Errors
    /// As [`forget`](Self::forget).
    pub fn forget_damaged(&self, snapshot: &Snapshot) -> Result<()> {
        self.forget_despite(snapshot, true)
    }

    fn forget_despite(&self, snapshot: &Snapshot, damage: bool) -> Result<()> {
        self.shared()?;
        // From here on it is no snapshot any more, and can neither be locked nor completed.
        if !self.mutates(Mutant::ForgetWithoutNote) {
            self.note_forgotten(snapshot.uuid, damage)?;
        }
        self.remove_manifest(&(snapshot.machine, snapshot.sequence, snapshot.uuid))?;
        self.blobs().store.delete_all(&[Copy::B, Copy::A].map(|copy| names::fate(snapshot.uuid, copy)))
    }

    /// Removes the manifest of what is no snapshot any more, or never was one.
    pub(crate) fn remove_manifest(&self, name: &SnapshotName) -> Result<()> {
        let &(machine, sequence, snapshot) = name;
        let backwards = [Copy::B, Copy::A];
        self.blobs().store.delete_all(&backwards.map(|copy| names::manifest(machine, sequence, snapshot, copy)))
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
