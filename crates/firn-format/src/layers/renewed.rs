//! The disks of a machine with new identifiers everywhere, so that the copy can stand beside its original.
//!
//! GPT, MBR, LVM2 and file systems say which bytes change where they are; those are put through partitions and plain
//! logical volumes onto the disks, in memory. What cannot be changed safely is refused with all reasons at once.

use super::{LayerKind, Layers, Node, NodeId};
use crate::fs::{self, probe};
use crate::identity::{Fill, IdChange, Renewal};
use crate::table;
use crate::volume::lvm::{self, Renaming};
use firn_disk::{Error, Overlay, Result, SharedDisk};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What is to stay, and what else is to change.
#[derive(Debug, Clone, Default)]
pub struct RenewOptions {
    /// Layers that keep their identifiers, by their addresses with or without `#`: `vda3`, `vg0/data`, `vg0`.
    pub keep: Vec<String>,
    /// Volume groups that get another name: old and new.
    pub group_names: Vec<(String, String)>,
}

/// Disks with new identifiers.
#[derive(Debug)]
pub struct Renewed {
    /// Each with its name.
    pub disks: Vec<(String, SharedDisk)>,
    /// What was changed.
    pub changes: Vec<IdChange>,
}

impl Layers {
    /// The disks with new identifiers: GUIDs of GPT disks and partitions, signatures of MBRs, UUIDs of LVM groups and
    /// physical volumes, UUIDs and serial numbers of file systems and swap. `fill` gives random bytes. Journals must
    /// have been replayed ([`replayed`](Self::replayed)). Nothing is written.
    ///
    /// # Errors
    /// `Unsupported`, with every layer whose identifier cannot be changed safely and why; `NotFound` for a layer to
    /// keep, or a group to rename, that is not there; what the disks say.
    pub fn renewed(&self, options: &RenewOptions, fill: &mut Fill<'_>) -> Result<Renewed> {
        self.check_names(options)?;
        let mut work = Work { layers: self, overlays: BTreeMap::new(), changes: Vec::new(), refused: Vec::new() };
        let renaming = work.renaming(options, fill)?;
        for (id, node) in self.iter() {
            // A physical volume that keeps its own identifier still names the others of its group.
            if options.keeps(node) && node.kind != LayerKind::PhysicalVolume {
                continue;
            }
            work.attempt(id, &renaming, fill)?;
        }
        if !work.refused.is_empty() {
            let hint = "leave one as it is with --keep-id LAYER, and change it later by its own tools";
            let message = format!("not every identifier can be changed: {}", work.refused.join("; "));
            return Err(Error::unsupported(message).hint(hint));
        }
        let disks = self.roots.iter().filter(|id| self.node(**id).kind == LayerKind::Disk);
        let mut overlays = work.overlays;
        let disks = disks.map(|id| {
            let disk: SharedDisk = match overlays.remove(id) {
                Some(overlay) => Arc::new(overlay),
                None => self.disk(*id)?,
            };
            Ok((self.node(*id).name.clone(), disk))
        });
        Ok(Renewed { disks: disks.collect::<Result<_>>()?, changes: work.changes })
    }

    fn check_names(&self, options: &RenewOptions) -> Result<()> {
        for kept in &options.keep {
            if !self.iter().any(|(_, node)| is_named(node, kept)) {
                return Err(Error::not_found(format!("there is no layer {kept} to keep"))
                    .hint("`firn look` shows what there is"));
            }
        }
        let groups = || self.iter().filter(|(_, node)| node.kind == LayerKind::VolumeGroup);
        for (old, new) in &options.group_names {
            if !groups().any(|(_, node)| node.name == *old) {
                return Err(Error::not_found(format!("there is no volume group {old} to rename")));
            }
            // The rule of LVM2 (lib/misc/lvm-string.c).
            let is_name = |c: char| c.is_ascii_alphanumeric() || "+_.-".contains(c);
            let is_plain = !new.is_empty() && new.len() <= 127 && new.chars().all(is_name);
            if !is_plain || new.starts_with('-') || matches!(new.as_str(), "." | "..") {
                return Err(Error::invalid(format!("{new:?} is no name for a volume group")));
            }
            if groups().any(|(_, node)| node.name == *new) {
                return Err(Error::invalid(format!("there is a volume group {new} already")));
            }
        }
        Ok(())
    }
}

impl RenewOptions {
    fn keeps(&self, node: &Node) -> bool {
        self.keep.iter().any(|kept| is_named(node, kept))
    }
}

/// Whether `name` is the address of `node`, with or without `#`, or that of what holds it.
fn is_named(node: &Node, name: &str) -> bool {
    !node.address.is_empty() && node.address.trim_start_matches('#') == name.trim_start_matches('#')
        || node.kind == LayerKind::VolumeGroup && node.name == name
}

/// The work so far.
struct Work<'a> {
    layers: &'a Layers,
    /// The changed disks.
    overlays: BTreeMap<NodeId, Overlay<SharedDisk>>,
    changes: Vec<IdChange>,
    refused: Vec<String>,
}

impl Work<'_> {
    /// New UUIDs for all groups and physical volumes, since each physical volume names all others of its group.
    fn renaming(&mut self, options: &RenewOptions, fill: &mut Fill<'_>) -> Result<Renaming> {
        let mut renaming = Renaming { names: options.group_names.iter().cloned().collect(), ..Renaming::default() };
        for (_, node) in self.layers.iter() {
            let what = match node.kind {
                LayerKind::VolumeGroup => format!("volume group {}", node.name),
                LayerKind::PhysicalVolume => "physical volume".to_owned(),
                _ => continue,
            };
            let Some(old) = node.uuid.clone().filter(|_| !options.keeps(node)) else { continue };
            if node.kind == LayerKind::VolumeGroup && node.features.iter().any(|feature| feature == "degraded") {
                self.refused.push(format!("volume group {}: a physical volume of it is missing", node.name));
            }
            let new = lvm::random_uuid(fill)?;
            if renaming.uuids.insert(old.clone(), new.clone()).is_some() {
                self.refused.push(format!("{}: another one has the UUID {old}, too", node.address));
            }
            self.changes.push(IdChange { what, address: node.address.clone(), old, new });
        }
        Ok(renaming)
    }

    /// Changes the layer `id`, or notes why that cannot be.
    fn attempt(&mut self, id: NodeId, renaming: &Renaming, fill: &mut Fill<'_>) -> Result<()> {
        let node = self.layers.node(id);
        match self.renewal(id, renaming, fill).and_then(|renewal| self.apply(id, renewal)) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == firn_disk::ErrorKind::Io => Err(error),
            Err(error) => {
                let address = if node.address.is_empty() { &node.name } else { &node.address };
                self.refused.push(format!("{address}: {error}"));
                Ok(())
            }
        }
    }

    fn renewal(&self, id: NodeId, renaming: &Renaming, fill: &mut Fill<'_>) -> Result<Renewal> {
        let node = self.layers.node(id);
        if let Some(error) = node.error.as_ref().filter(|_| !node.is_hidden) {
            return Err(Error::unsupported(format!("what it holds cannot be reached ({error})")));
        }
        match node.kind {
            LayerKind::Disk | LayerKind::Partition | LayerKind::VolumeGroup | LayerKind::LogicalVolume => {
                Ok(Renewal::default())
            }
            LayerKind::Table => {
                let disk = self.layers.disk(id)?;
                match table::read(&disk)? {
                    Some(table) => table::renew(&disk, &table, fill),
                    None => Ok(Renewal::default()),
                }
            }
            LayerKind::PhysicalVolume => lvm::renew(&self.layers.disk(id)?, renaming),
            LayerKind::FileSystem | LayerKind::Swap => fs::renew(&self.layers.disk(id)?, fill),
            LayerKind::Encrypted => Err(fs::renew_refusal(&node.name, probe::Class::Encrypted)),
            LayerKind::Member | LayerKind::Array => Err(fs::renew_refusal(&node.name, probe::Class::Member)),
        }
    }

    /// Puts the patches of what holds `id` onto the disks.
    fn apply(&mut self, id: NodeId, renewal: Renewal) -> Result<()> {
        let layers = self.layers;
        let address = &layers.node(id).address;
        let holder = layers.holder(id).ok_or_else(|| Error::invalid("nothing holds it"));
        for patch in &renewal.patches {
            let range = patch.offset..patch.offset.saturating_add(patch.bytes.len() as u64);
            layers.place(holder.clone()?, range, 0, 0, &mut |disk, at, start, length| {
                let from = usize::try_from(start).unwrap_or(usize::MAX);
                let end = from.saturating_add(usize::try_from(length).unwrap_or(usize::MAX));
                let piece = patch.bytes.get(from..end).ok_or_else(|| Error::invalid("a piece of nothing"))?;
                let overlay = match self.overlays.entry(disk) {
                    std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
                    std::collections::btree_map::Entry::Vacant(entry) => entry.insert(Overlay::new(layers.disk(disk)?)),
                };
                overlay.replace(at, piece.into())
            })?;
        }
        let changes = renewal.changes.into_iter().map(|change| IdChange { address: address.clone(), ..change });
        self.changes.extend(changes);
        Ok(())
    }
}
