//! Finding the layers.

use super::replayed::Part;
use super::{LayerKind, Layers, Node, NodeId};
use crate::fs::probe::{self, Class, Signature};
use crate::table::{self, Partition, Table};
use crate::volume::luks::{Keys, Luks};
use crate::volume::lvm::{self, LinearPiece, MemberState, PhysicalVolume, VolumeGroup};
use crate::volume::md::{self, MdMember};
use firn_disk::{Disk, Error, SharedDisk};
use std::sync::Arc;

/// Most nodes. A table has at most 256 partitions, and a group seldom more than some hundred volumes.
const MAX_NODES: usize = 20_000;
/// Deepest nesting of tables in partitions and volumes.
const MAX_DEPTH: usize = 8;
/// How often arrays and groups are assembled: those on disks, those on volumes of those, and so on.
const MAX_ROUNDS: usize = 8;
/// Most bytes of LVM metadata that are read in all.
const MAX_METADATA: u64 = 256 << 20;

#[derive(Default)]
pub(super) struct Scan {
    layers: Layers,
    /// Physical volumes that are not yet assembled, with their nodes.
    physical: Vec<(PhysicalVolume, NodeId)>,
    /// Members of arrays that are not yet assembled, with their nodes.
    md: Vec<(MdMember, NodeId)>,
    metadata_bytes: u64,
    /// What opens encrypted layers.
    keys: Keys,
}

/// A node of `kind` that nothing is known of but its name and size.
fn node(kind: LayerKind, name: impl Into<String>, size: u64) -> Node {
    Node {
        kind,
        name: name.into(),
        address: String::new(),
        number: None,
        size,
        uuid: None,
        label: None,
        features: vec![],
        health: vec![],
        error: None,
        is_hidden: false,
        parent: None,
        children: vec![],
        disk: None,
    }
}

/// How partition `number` of the disk `disk` is called, as Linux does it.
pub(super) fn partition_name(disk: &str, number: u32) -> String {
    let separator = if disk.ends_with(|last: char| last.is_ascii_digit()) { "p" } else { "" };
    format!("{disk}{separator}{number}")
}

/// Whether an md superblock of version 0.90, which does not say where it stands, is that of the last partition: both the
/// disk's and the partition's may be looked for at the same place.
fn is_of_last_partition(signature: &Signature, disk: &SharedDisk) -> bool {
    if signature.kind != "md" || signature.offset != (disk.len() & !0xFFFF).saturating_sub(0x1_0000) {
        return false;
    }
    let Ok(Some(table)) = table::read(disk) else { return false };
    table.partitions.iter().any(|partition| {
        let place = (partition.length & !0xFFFF).checked_sub(0x1_0000);
        place.and_then(|place| partition.start.checked_add(place)) == Some(signature.offset)
    })
}

impl Scan {
    pub(super) fn new(keys: Keys) -> Self {
        Self { keys, ..Self::default() }
    }

    pub(super) fn run(mut self, disks: Vec<(String, SharedDisk)>) -> Layers {
        for (name, disk) in disks {
            let mut found = node(LayerKind::Disk, &name, disk.len());
            found.address = format!("#{name}");
            found.disk = Some(disk);
            if let Some(id) = self.add(None, found) {
                self.look_into(id, 0);
            }
        }
        for _ in 0..MAX_ROUNDS {
            // Arrays first: a group may have physical volumes on disks and on arrays.
            let members = std::mem::take(&mut self.md);
            if !members.is_empty() {
                self.assemble_md(&members);
                continue;
            }
            let physical = std::mem::take(&mut self.physical);
            if physical.is_empty() {
                break;
            }
            self.assemble(&physical);
        }
        if !self.physical.is_empty() || !self.md.is_empty() {
            let what = "arrays and volume groups are nested too deeply; the innermost were not looked at";
            self.layers.health.push(what.into());
        }
        self.layers.address_groups();
        self.layers
    }

    /// `None` when there are too many nodes.
    fn add(&mut self, parent: Option<NodeId>, mut node: Node) -> Option<NodeId> {
        let id = NodeId(self.layers.nodes.len());
        if id.0 >= MAX_NODES {
            let cut = format!("there are more than {MAX_NODES} layers; the rest was not looked at");
            if !self.layers.health.contains(&cut) {
                self.layers.health.push(cut);
            }
            return None;
        }
        node.parent = parent;
        match parent.and_then(|parent| self.layers.nodes.get_mut(parent.0)) {
            Some(parent) => {
                parent.children.push(id);
                if node.address.is_empty() {
                    node.address.clone_from(&parent.address);
                }
            }
            None => self.layers.roots.push(id),
        }
        self.layers.nodes.push(node);
        Some(id)
    }

    fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.layers.nodes[id.0]
    }

    /// Finds out what the disk, partition or volume `id` holds.
    fn look_into(&mut self, id: NodeId, depth: usize) {
        let Some(disk) = self.layers.node(id).disk.clone() else { return };
        if let Err(error) = self.try_look_into(id, &disk, depth) {
            self.node_mut(id).error.get_or_insert(error);
        }
    }

    fn try_look_into(&mut self, id: NodeId, disk: &SharedDisk, depth: usize) -> Result<(), Error> {
        let signature = probe::identify(disk)?.filter(|signature| !is_of_last_partition(signature, disk));
        if let Some(signature) = signature.as_ref().filter(|signature| signature.kind == "md") {
            self.add_md_member(id, signature, disk);
            return Ok(());
        }
        // A partition that holds something is that; a table inside it would be a left-over of its boot code.
        let is_whole = self.layers.node(id).kind != LayerKind::Partition;
        if !is_whole && self.try_physical(id, disk)? {
            return Ok(());
        }
        let table = if is_whole || signature.is_none() { self.read_table(id, disk, depth) } else { None };
        if let Some(table) = table.as_ref().filter(|table| !table.partitions.is_empty()) {
            let before = self.layers.nodes.len();
            self.add_table(id, table, disk, depth);
            let is_content = |node: &Node| !matches!(node.kind, LayerKind::Table | LayerKind::Partition);
            let is_used = self.layers.nodes.iter().skip(before).any(is_content);
            match &signature {
                // The usual hybrid image for discs and sticks is both.
                Some(signature) if signature.kind == "iso9660" || !is_used => {
                    self.add_signature(id, signature, disk);
                }
                Some(signature) => {
                    let left = format!("a signature of {} is there too, and ignored", signature.kind);
                    self.node_mut(id).health.push(left);
                }
                None => {}
            }
            return Ok(());
        }
        if is_whole && self.try_physical(id, disk)? {
            return Ok(());
        }
        match (signature, table) {
            (Some(signature), _) if signature.kind.starts_with("luks") => self.add_luks(id, &signature, disk, depth),
            (Some(signature), _) => drop(self.add_signature(id, &signature, disk)),
            (None, Some(table)) if is_whole => self.add_table(id, &table, disk, depth),
            _ => {}
        }
        Ok(())
    }

    /// Whether `disk` is a physical volume, which is then noted.
    fn try_physical(&mut self, id: NodeId, disk: &SharedDisk) -> Result<bool, Error> {
        if self.metadata_bytes > MAX_METADATA {
            self.node_mut(id).health.push("there is too much LVM metadata to look for more".into());
            return Ok(false);
        }
        let address = self.layers.node(id).address.clone();
        let found = PhysicalVolume::read(disk, address.trim_start_matches('#'))?;
        let is_one = found.is_some();
        if let Some(physical) = found {
            self.metadata_bytes = self.metadata_bytes.saturating_add(physical.metadata_bytes());
            self.add_physical(id, physical);
        }
        Ok(is_one)
    }

    /// The table on `disk`; one that is damaged becomes a node with its error.
    fn read_table(&mut self, id: NodeId, disk: &SharedDisk, depth: usize) -> Option<Table> {
        if depth >= MAX_DEPTH {
            self.node_mut(id).health.push("nested too deeply to look further".into());
            return None;
        }
        match table::read(disk) {
            Ok(table) => table,
            Err(error) => {
                let mut damaged = node(LayerKind::Table, "table", disk.len());
                damaged.error = Some(error);
                self.add(Some(id), damaged);
                None
            }
        }
    }

    fn add_table(&mut self, id: NodeId, table: &Table, disk: &SharedDisk, depth: usize) {
        let mut found = node(LayerKind::Table, table.kind.as_str(), disk.len());
        found.uuid.clone_from(&table.uuid);
        found.features.clone_from(&table.features);
        found.features.push(format!("sectors of {} bytes", table.block_size));
        found.health.clone_from(&table.health);
        let Some(table_id) = self.add(Some(id), found) else { return };
        let holder = self.layers.node(id);
        // A disk's own partitions hang on its name; inside anything else they are those of a disk called vda.
        let (name, before) = match holder.kind {
            LayerKind::Disk => (holder.name.clone(), String::new()),
            _ => ("vda".to_owned(), holder.address.clone()),
        };
        for partition in &table.partitions {
            self.add_partition(table_id, partition, disk, (&name, &before), depth);
        }
    }

    fn add_partition(
        &mut self,
        table: NodeId,
        partition: &Partition,
        disk: &SharedDisk,
        (disk_name, before): (&str, &str),
        depth: usize,
    ) {
        let name = partition_name(disk_name, partition.number);
        let mut found = node(LayerKind::Partition, &name, partition.length);
        found.address = format!("{before}#{name}");
        found.number = Some(partition.number);
        found.uuid.clone_from(&partition.uuid);
        found.label.clone_from(&partition.label);
        found.health.clone_from(&partition.health);
        let code = partition.partition_type;
        found.features.push(code.name().map_or_else(|| format!("type {code}"), str::to_owned));
        if partition.bootable {
            found.features.push("bootable".into());
        }
        match partition.open(disk) {
            Ok(window) => found.disk = Some(Arc::new(window)),
            Err(error) => found.error = Some(error),
        }
        let Some(id) = self.add(Some(table), found) else { return };
        if let (Some(below), Some(open)) = (self.layers.node(table).parent, &self.layers.node(id).disk) {
            let part = Part { start: 0, length: open.len(), below, at: partition.start };
            self.layers.parts.insert(id, Ok(vec![part]));
        }
        // An extended partition is only the chain that was followed already; one that begins where its table
        // stands (hybrid disc images) holds that table again.
        if !code.is_extended() && partition.start > 0 {
            self.look_into(id, depth + 1);
        }
    }

    fn add_signature(&mut self, id: NodeId, signature: &Signature, disk: &SharedDisk) -> Option<NodeId> {
        let kind = match signature.class {
            Class::FileSystem => LayerKind::FileSystem,
            Class::Swap => LayerKind::Swap,
            Class::Encrypted => LayerKind::Encrypted,
            Class::Member => LayerKind::Member,
        };
        let mut found = node(kind, signature.kind, disk.len());
        found.uuid.clone_from(&signature.uuid);
        found.label.clone_from(&signature.label);
        found.features.clone_from(&signature.features);
        self.add(Some(id), found)
    }

    fn add_luks(&mut self, id: NodeId, signature: &Signature, disk: &SharedDisk, depth: usize) {
        let Some(layer) = self.add_signature(id, signature, disk) else { return };
        let opened = Luks::read(disk).and_then(|luks| {
            let luks = luks.ok_or_else(|| Error::corrupt("its header is gone"))?;
            let found = self.node_mut(layer);
            found.features.extend(luks.features());
            found.health.clone_from(&luks.health);
            luks.unlock(&self.keys)?.disk(disk)
        });
        match opened {
            Ok(open) => {
                let found = self.node_mut(layer);
                found.size = open.len();
                found.disk = Some(Arc::new(open));
                if depth < MAX_DEPTH {
                    self.look_into(layer, depth + 1);
                } else {
                    found.health.push("nested too deeply to look further".into());
                }
            }
            Err(error) => self.node_mut(layer).error = Some(error),
        }
    }

    fn add_md_member(&mut self, id: NodeId, signature: &Signature, disk: &SharedDisk) {
        let address = self.layers.node(id).address.clone();
        let read = MdMember::read(disk, address.trim_start_matches('#'));
        let Some(member_id) = self.add_signature(id, signature, disk) else { return };
        match read {
            Ok(Some(member)) => {
                self.node_mut(member_id).features = member.features();
                self.md.push((member, member_id));
            }
            Ok(None) => {}
            Err(error) => self.node_mut(member_id).error = Some(error),
        }
    }

    fn assemble_md(&mut self, members: &[(MdMember, NodeId)]) {
        let list: Vec<MdMember> = members.iter().map(|(member, _)| member.clone()).collect();
        for array in md::assemble(&list) {
            let open = array.open();
            let size = open.as_ref().map_or(0, |disk| disk.len());
            let mut found = node(LayerKind::Array, &array.name, size);
            found.uuid = Some(array.uuid.clone());
            found.label = Some(array.full_name.clone()).filter(|name| !name.is_empty());
            found.features.clone_from(&array.features);
            found.health.clone_from(&array.health);
            if array.is_degraded {
                found.features.push("degraded".into());
            }
            match open {
                Ok(disk) => found.disk = Some(disk),
                Err(error) => found.error = Some(error.in_structure(format!("array {}", array.name))),
            }
            let Some(id) = self.add(None, found) else { return };
            let nodes = array.members.iter().filter_map(|at| members.get(*at)).map(|(_, id)| *id).collect::<Vec<_>>();
            for member in &nodes {
                self.node_mut(*member).features.push(format!("array {}", array.name));
            }
            self.layers.members.push((id, nodes));
            self.look_into(id, 1);
        }
    }

    fn add_physical(&mut self, id: NodeId, physical: PhysicalVolume) {
        let mut found = node(LayerKind::PhysicalVolume, "LVM2 PV", physical.disk().len());
        found.uuid = Some(physical.uuid().to_owned());
        found.health.clone_from(&physical.health);
        if let Some(size) = physical.device_size().filter(|size| *size > physical.disk().len()) {
            found.health.push(format!("its device had {size} bytes when it was last written to"));
        }
        if let Some(id) = self.add(Some(id), found) {
            self.physical.push((physical, id));
        }
    }

    fn assemble(&mut self, physical: &[(PhysicalVolume, NodeId)]) {
        let list: Vec<PhysicalVolume> = physical.iter().map(|(physical, _)| physical.clone()).collect();
        for group in lvm::assemble(&list) {
            let mut found = node(LayerKind::VolumeGroup, group.name(), group.size());
            found.uuid = Some(group.uuid().to_owned());
            found.features.push(format!("extents of {} bytes", group.extent_bytes()));
            found.health.clone_from(&group.health);
            if group.is_degraded() {
                found.features.push("degraded".into());
            }
            let Some(id) = self.add(None, found) else { return };
            let places = group.members.iter().flat_map(|member| match &member.state {
                MemberState::Present(at) | MemberState::Outdated(at) => vec![*at],
                MemberState::Duplicate(places) => places.clone(),
                MemberState::Missing => vec![],
            });
            let members: Vec<NodeId> = places.filter_map(|at| physical.get(at)).map(|(_, id)| *id).collect();
            for member in &members {
                self.node_mut(*member).features.push(format!("volume group {}", group.name()));
            }
            self.layers.members.push((id, members));
            self.add_volumes(id, &group, physical);
        }
        for (physical, id) in physical {
            if self.layers.node(*id).features.is_empty() && physical.health.is_empty() {
                let what = if physical.is_used() { "its volume group was not found" } else { "in no volume group" };
                self.node_mut(*id).features.push(what.into());
            }
        }
    }

    /// Where the pieces of a volume stand in what holds its physical volumes.
    fn parts_of(
        &self,
        group: &VolumeGroup,
        volume: &str,
        physical: &[(PhysicalVolume, NodeId)],
    ) -> Result<Vec<Part>, Error> {
        let part = |piece: LinearPiece| {
            let node = physical.get(piece.physical).map(|(_, id)| *id);
            let below = node.and_then(|id| self.layers.node(id).parent);
            let below = below.ok_or_else(|| Error::corrupt("a physical volume is in nothing"))?;
            Ok(Part { start: piece.start, length: piece.length, below, at: piece.at })
        };
        group.linear(volume)?.into_iter().map(part).collect()
    }

    fn add_volumes(&mut self, group_id: NodeId, group: &VolumeGroup, physical: &[(PhysicalVolume, NodeId)]) {
        for volume in &group.volumes {
            let mut found = node(LayerKind::LogicalVolume, format!("{}/{}", group.name(), volume.name), volume.size);
            found.uuid = Some(volume.uuid.clone());
            found.features.clone_from(&volume.kinds);
            found.is_hidden = volume.is_hidden;
            if volume.is_read_only {
                found.features.push("read only".into());
            }
            if !volume.is_hidden {
                match group.open(&volume.name) {
                    Ok(open) => {
                        found.disk = Some(open.disk);
                        found.health = open.health;
                    }
                    Err(error) => found.error = Some(error),
                }
            }
            let is_open = found.disk.is_some();
            let Some(id) = self.add(Some(group_id), found) else { return };
            if is_open {
                self.layers.parts.insert(id, self.parts_of(group, &volume.name, physical));
            }
            self.look_into(id, 1);
        }
    }
}
