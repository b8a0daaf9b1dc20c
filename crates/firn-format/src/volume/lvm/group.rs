//! From physical volumes to groups, and what is told of them.

use super::label::{self, Area, Label};
use super::map::{Mapped, Mapper, OpenPool};
use super::metadata::{Group, Kind, Logical, Physical};
use firn_disk::{Error, ErrorKind, Result, SharedDisk};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// A disk with an LVM2 label.
#[derive(Debug, Clone)]
pub struct PhysicalVolume {
    disk: SharedDisk,
    label: Label,
    copies: Vec<Group>,
    metadata_bytes: u64,
    name: String,
    /// What is wrong with its metadata areas, in words.
    pub health: Vec<String>,
}

impl PhysicalVolume {
    /// The physical volume on `disk`, if it is one; `name` is what messages call it.
    ///
    /// # Errors
    /// `Corrupt` when the label is damaged; what the disk says. A damaged metadata area is told in `health`.
    pub fn read(disk: &SharedDisk, name: impl Into<String>) -> Result<Option<Self>> {
        let Some(label) = label::read(disk)? else { return Ok(None) };
        let mut physical =
            Self { disk: disk.clone(), label, copies: vec![], metadata_bytes: 0, name: name.into(), health: vec![] };
        for area in physical.label.metadata_areas.clone() {
            if let Err(error) = physical.read_area(area) {
                physical.health.push(format!("the metadata area at byte {} is damaged: {error}", area.offset));
            }
        }
        Ok(Some(physical))
    }

    fn read_area(&mut self, area: Area) -> Result<()> {
        if let Some((text, length)) = label::read_area(&self.disk, area)? {
            self.metadata_bytes = self.metadata_bytes.saturating_add(length);
            self.copies.push(Group::parse(&text)?);
        }
        Ok(())
    }

    /// Its UUID as LVM2 spells it.
    pub fn uuid(&self) -> &str {
        &self.label.uuid
    }

    /// What messages call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The disk it was found on.
    pub fn disk(&self) -> &SharedDisk {
        &self.disk
    }

    /// Whether its label says that it belongs to a group.
    pub fn is_used(&self) -> bool {
        self.label.is_used
    }

    /// Bytes of metadata that were read from it.
    pub fn metadata_bytes(&self) -> u64 {
        self.metadata_bytes
    }

    /// How long its device was when it was labelled, in bytes; `None` when the label does not say.
    pub fn device_size(&self) -> Option<u64> {
        Some(self.label.device_size).filter(|size| *size > 0)
    }
}

/// Where a group's physical volume is.
#[derive(Debug, Clone)]
pub enum MemberState {
    /// Found once: its place in the list that was assembled.
    Present(usize),
    /// Not found.
    Missing,
    /// Found, but the group went on without it: its data is old and is not read.
    Outdated(usize),
    /// Found more than once.
    Duplicate(Vec<usize>),
}

/// A physical volume as its group knows it.
#[derive(Debug, Clone)]
pub struct Member {
    /// UUID as LVM2 spells it.
    pub uuid: String,
    /// The name of its device in the machine that it comes from.
    pub device: Option<String>,
    /// Where it is.
    pub state: MemberState,
    /// Why it is not read, in words; `None` when it is.
    pub problem: Option<String>,
    /// Its extents' disk, when they can be read.
    pub(super) disk: Option<SharedDisk>,
}

/// A volume group.
#[derive(Debug, Clone)]
pub struct VolumeGroup {
    pub(super) group: Group,
    /// Its physical volumes in the order of the metadata.
    pub members: Vec<Member>,
    /// Its logical volumes in the order of the metadata, hidden ones included.
    pub volumes: Vec<LogicalVolume>,
    /// What is wrong or special, in words.
    pub health: Vec<String>,
    conflict: Option<String>,
    snapshots: Vec<Snapshot>,
    /// Thin volumes that one of their snapshots is being merged into, with that snapshot.
    merging: BTreeMap<String, String>,
    /// The places of physical and logical volumes in the group, by name.
    physical_places: BTreeMap<String, usize>,
    logical_places: BTreeMap<String, usize>,
    /// Volumes that were mapped already, so that however they share parts each is mapped once.
    pub(super) mapped: Arc<Mutex<BTreeMap<String, Mapped>>>,
    /// Thin pools that were opened already, so that all their volumes share what is kept in memory.
    pub(super) pools: Arc<Mutex<BTreeMap<String, OpenPool>>>,
}

/// A classic snapshot.
#[derive(Debug, Clone)]
struct Snapshot {
    origin: String,
    store: String,
    /// Whether the store is being merged into the origin, which reads as a mix of both meanwhile.
    is_merging: bool,
    /// Bytes of the snapshot, not of the store.
    length: u64,
}

impl Snapshot {
    fn concerns(&self, name: &str) -> bool {
        self.origin == name || self.store == name
    }
}

/// What is told of a logical volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogicalVolume {
    /// Name without that of its group.
    pub name: String,
    /// UUID as LVM2 spells it.
    pub uuid: String,
    /// Length in bytes.
    pub size: u64,
    /// The kinds of its segments, each once: `linear`, `raid1`, `thin`.
    pub kinds: Vec<String>,
    /// Whether it is a piece of others rather than a volume of its own: legs, logs, pools and their data, pvmove.
    pub is_hidden: bool,
    /// Whether LVM2 would not let anyone write to it.
    pub is_read_only: bool,
}

/// A logical volume, opened.
#[derive(Debug, Clone)]
pub struct OpenVolume {
    /// Its content.
    pub disk: SharedDisk,
    /// What was found out while opening it, in words: missing parts, copies that are not in sync.
    pub health: Vec<String>,
}

impl VolumeGroup {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.group.name
    }

    /// Its UUID as LVM2 spells it.
    pub fn uuid(&self) -> &str {
        &self.group.uuid
    }

    /// How often its metadata was changed.
    pub fn sequence(&self) -> u64 {
        self.group.sequence
    }

    /// Bytes in an extent.
    pub fn extent_bytes(&self) -> u64 {
        self.group.extent_bytes
    }

    /// Bytes of all extents of all its physical volumes.
    pub fn size(&self) -> u64 {
        self.group.physical.iter().fold(0, |sum: u64, physical| sum.saturating_add(physical.length))
    }

    /// Whether physical volumes are missing, outdated or there twice.
    pub fn is_degraded(&self) -> bool {
        self.members.iter().any(|member| member.problem.is_some())
    }

    /// Opens the volume `name`; of a snapshot, what it kept. Reads of extents that cannot be had fail with `Unavailable`.
    ///
    /// # Errors
    /// `NotFound`; `Unsupported`, by the name of the segment type; `Invalid` for a hidden volume; `Unavailable`
    /// when copies of the metadata contradict each other; `Corrupt` when the mapping makes no sense.
    pub fn open(&self, name: &str) -> Result<OpenVolume> {
        let in_volume = |error: Error| error.in_structure(format!("logical volume {}/{name}", self.name()));
        if let Some(conflict) = &self.conflict {
            return Err(in_volume(
                Error::new(ErrorKind::Unavailable, conflict).hint("name the disks of one copy only"),
            ));
        }
        let volume = self.find(name).ok_or_else(|| in_volume(Error::not_found("there is no such volume")))?;
        self.check_can_open(volume).map_err(in_volume)?;
        let mapped = match self.origin_of(name) {
            Some((origin, length)) => Mapper::new(self).snapshot(volume, origin, length),
            None => Mapper::new(self).volume(volume, 0),
        };
        let mapped = mapped.map_err(in_volume)?;
        Ok(OpenVolume { disk: mapped.disk, health: mapped.notes })
    }

    /// Whether the volume is a snapshot, or has one.
    pub(super) fn has_snapshot(&self, name: &str) -> bool {
        self.snapshots.iter().any(|snapshot| snapshot.origin == name || snapshot.store == name)
    }

    /// The origin of the snapshot that `store` keeps, and the snapshot's length in bytes.
    fn origin_of(&self, store: &str) -> Option<(&str, u64)> {
        let snapshot = self.snapshots.iter().find(|snapshot| snapshot.store == store)?;
        Some((&snapshot.origin, snapshot.length))
    }

    /// The logical volume `name`.
    pub(super) fn find(&self, name: &str) -> Option<&Logical> {
        self.logical_places.get(name).and_then(|at| self.group.logical.get(*at))
    }

    /// The physical volume that segments call `key`.
    pub(super) fn find_physical(&self, key: &str) -> Option<(&Physical, &Member)> {
        let at = *self.physical_places.get(key)?;
        Some((self.group.physical.get(at)?, self.members.get(at)?))
    }

    /// Refuses what would read as bytes that its machine never saw under this name.
    fn check_can_open(&self, volume: &Logical) -> Result<()> {
        let merging = self.snapshots.iter().find(|snapshot| snapshot.is_merging && snapshot.concerns(&volume.name));
        if let Some(Snapshot { origin, store, .. }) = merging {
            return Err(Error::unsupported(format!("the snapshot {store} is being merged into {origin}")));
        }
        if let Some(source) = self.merging.get(&volume.name) {
            return Err(Error::unsupported(format!("the snapshot {source} is being merged into it")));
        }
        if self.origin_of(&volume.name).is_some() {
            return Ok(());
        }
        if let Some(kind) = volume.segments.iter().find_map(|segment| match &segment.kind {
            kind @ Kind::Other(_) => Some(kind.name()),
            _ => None,
        }) {
            return Err(Error::unsupported(format!("segment type {kind} is not built yet")));
        }
        if volume.segments.iter().any(|segment| matches!(segment.kind, Kind::ThinPool { .. } | Kind::Snapshot { .. })) {
            return Err(Error::invalid("it only holds other volumes").hint("name one of those instead"));
        }
        if !volume.has("VISIBLE") {
            return Err(Error::invalid("it is an internal part of another volume").hint("name that volume instead"));
        }
        Ok(())
    }
}

/// Puts physical volumes together to groups, in the order in which the groups were first seen.
pub fn assemble(found: &[PhysicalVolume]) -> Vec<VolumeGroup> {
    let mut uuids: Vec<&str> = Vec::new();
    for copy in found.iter().flat_map(|physical| &physical.copies) {
        if !uuids.contains(&copy.uuid.as_str()) {
            uuids.push(&copy.uuid);
        }
    }
    uuids.into_iter().filter_map(|uuid| assemble_one(found, uuid)).collect()
}

fn assemble_one(found: &[PhysicalVolume], uuid: &str) -> Option<VolumeGroup> {
    let copies = || {
        found
            .iter()
            .flat_map(|physical| physical.copies.iter().map(move |copy| (physical, copy)))
            .filter(|(_, copy)| copy.uuid == uuid)
    };
    let (first, newest) = copies().max_by_key(|(_, copy)| copy.sequence)?;
    let mut health = Vec::new();
    let differs = copies().find(|(_, copy)| copy.sequence == newest.sequence && copy.section != newest.section);
    let conflict = differs.map(|(other, _)| {
        format!(
            "{} and {} hold different metadata of volume group {} with the same sequence number {}",
            first.name, other.name, newest.name, newest.sequence
        )
    });
    health.extend(conflict.clone());
    for (physical, copy) in copies().filter(|(_, copy)| copy.sequence != newest.sequence) {
        health.push(format!(
            "the metadata on {} is older: sequence number {} instead of {}",
            physical.name, copy.sequence, newest.sequence
        ));
    }
    health.dedup();
    for physical in found.iter().filter(|physical| physical.copies.iter().any(|copy| copy.uuid == uuid)) {
        if newest.physical.iter().all(|known| known.uuid != physical.label.uuid) {
            health.push(format!("{} was removed from the group", physical.name));
        }
    }
    let members: Vec<Member> = newest.physical.iter().map(|known| member(found, known)).collect();
    health.extend(members.iter().filter_map(|member| member.problem.clone()));
    if newest.flags.iter().any(|flag| flag == "EXPORTED") {
        health.push("it is exported".into());
    }
    let segments =
        || newest.logical.iter().flat_map(|volume| volume.segments.iter().map(move |segment| (volume, segment)));
    let snapshots: Vec<Snapshot> = segments()
        .filter_map(|(volume, segment)| match &segment.kind {
            Kind::Snapshot { origin, store, is_merging } => Some(Snapshot {
                origin: origin.clone(),
                store: store.clone(),
                is_merging: *is_merging,
                // Checked when the metadata was parsed.
                length: volume.extents.saturating_mul(newest.extent_bytes),
            }),
            _ => None,
        })
        .collect();
    let merging = segments()
        .filter_map(|(volume, segment)| match &segment.kind {
            Kind::Thin { merging_into: Some(target), .. } => Some((target.clone(), volume.name.clone())),
            _ => None,
        })
        .collect();
    let stores = snapshots.iter().map(|snapshot| (snapshot.store.as_str(), snapshot.length)).collect();
    let volumes = newest.logical.iter().map(|volume| describe(newest, volume, &stores)).collect();
    let physical_places = places(newest.physical.iter().map(|physical| &physical.key));
    let logical_places = places(newest.logical.iter().map(|logical| &logical.name));
    Some(VolumeGroup {
        group: newest.clone(),
        members,
        volumes,
        health,
        conflict,
        snapshots,
        merging,
        physical_places,
        logical_places,
        mapped: Arc::default(),
        pools: Arc::default(),
    })
}

/// The place of each name; the first of several counts, as everywhere in the text.
fn places<'a>(names: impl Iterator<Item = &'a String>) -> BTreeMap<String, usize> {
    let mut places = BTreeMap::new();
    for (at, name) in names.enumerate() {
        places.entry(name.clone()).or_insert(at);
    }
    places
}

fn member(found: &[PhysicalVolume], known: &Physical) -> Member {
    let places: Vec<usize> =
        found.iter().enumerate().filter(|(_, physical)| physical.label.uuid == known.uuid).map(|(at, _)| at).collect();
    let called = match &known.device {
        Some(device) => format!("physical volume {} (was {})", known.uuid, device.escape_debug()),
        None => format!("physical volume {}", known.uuid),
    };
    let (state, problem) = match places.as_slice() {
        [] => (MemberState::Missing, Some(format!("{called} is missing"))),
        [at] if known.is_missing => {
            (MemberState::Outdated(*at), Some(format!("{called} is outdated: the group went on without it")))
        }
        [at] => (MemberState::Present(*at), None),
        several => {
            let names: Vec<&str> =
                several.iter().filter_map(|at| found.get(*at)).map(|physical| physical.name.as_str()).collect();
            let what = format!("{called} is there {} times: {}", several.len(), names.join(", "));
            (MemberState::Duplicate(places), Some(what))
        }
    };
    let disk = match state {
        MemberState::Present(at) => found.get(at).map(|physical| physical.disk.clone()),
        _ => None,
    };
    Member { uuid: known.uuid.clone(), device: known.device.clone(), state, problem, disk }
}

fn describe(group: &Group, volume: &Logical, stores: &BTreeMap<&str, u64>) -> LogicalVolume {
    let mut kinds: Vec<String> = Vec::new();
    let snapshot_length = stores.get(volume.name.as_str()).copied();
    let is_store = snapshot_length.is_some();
    let holds_others = |kind: &Kind| matches!(kind, Kind::Snapshot { .. } | Kind::ThinPool { .. });
    let is_holder = volume.segments.iter().any(|segment| holds_others(&segment.kind));
    if is_store {
        kinds.push("snapshot".into());
    } else {
        for segment in &volume.segments {
            if kinds.iter().all(|kind| kind != segment.kind.name()) {
                kinds.push(segment.kind.name().to_owned());
            }
        }
    }
    LogicalVolume {
        name: volume.name.clone(),
        uuid: volume.uuid.clone(),
        // Checked when the metadata was parsed.
        size: snapshot_length.unwrap_or_else(|| volume.extents.saturating_mul(group.extent_bytes)),
        kinds,
        // Of a snapshot people know the store by name, although the metadata hides it and shows the link.
        is_hidden: is_holder || !(is_store || volume.has("VISIBLE")),
        is_read_only: !volume.has("WRITE"),
    }
}
