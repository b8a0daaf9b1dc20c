//! From selectors to nodes.
//!
//! | selector | what it names |
//! |---|---|
//! | `vda`, `vda2` | a disk, its second partition |
//! | `vg0`, `vg0/root` | a volume group, one of its volumes |
//! | `md0`, `data`, `web:data` | an array: by number, by its name, by its whole name |
//! | a UUID | any layer: PARTUUID, table, PV, VG, LV, file system; in any case; also for the `vg0` of `vg0/root` |
//! | a label | a file system or GPT partition, when nothing else has that name and only one has that label |
//!
//! In a chain each selector looks inside what the one before it found, which is a disk called `vda` then:
//! `#vda1#vda2` is the second partition in the table in the first partition.

use super::scan::partition_name;
use super::{LayerKind, Layers, Node, NodeId};
use firn_disk::{Error, Result};

/// Most addresses that an error lists.
const MAX_SHOWN: usize = 40;

impl Layers {
    /// The layer that a chain of selectors, without their `#`, leads to.
    ///
    /// # Errors
    /// `Invalid` when several fit, with their UUIDs; `NotFound` when none does, with what there is.
    pub fn resolve<S: AsRef<str>>(&self, selectors: &[S]) -> Result<NodeId> {
        let mut scope = None;
        for selector in selectors {
            scope = Some(self.resolve_one(scope, selector.as_ref())?);
        }
        scope.ok_or_else(|| Error::invalid("no layer is named"))
    }

    fn resolve_one(&self, scope: Option<NodeId>, selector: &str) -> Result<NodeId> {
        let inside = self.inside(scope);
        let mut found = self.by_name(scope, &inside, selector);
        if found.is_empty() {
            found = self.by_uuid(&inside, selector);
        }
        if found.is_empty() {
            found = inside.iter().copied().filter(|id| self.node(*id).label.as_deref() == Some(selector)).collect();
        }
        // A partition and the file system in it may have one label: the outer one stands for both.
        let all = found.clone();
        found.retain(|id| !all.iter().any(|other| self.is_below(*id, *other)));
        match found.as_slice() {
            [one] => Ok(*one),
            [] => Err(self.nothing(&inside, selector)),
            several => {
                let list: Vec<String> = several.iter().map(|id| self.describe(*id)).collect();
                let what = format!("#{selector} fits {} layers: {}", several.len(), list.join("; "));
                Err(Error::invalid(what).hint("name one by its UUID, or name fewer disks"))
            }
        }
    }

    fn is_below(&self, id: NodeId, other: NodeId) -> bool {
        std::iter::successors(self.node(id).parent, |id| self.node(*id).parent).any(|parent| parent == other)
    }

    /// All nodes within `scope`: below it, and the groups that have a physical volume there, with all below.
    fn inside(&self, scope: Option<NodeId>) -> Vec<NodeId> {
        let Some(scope) = scope else { return self.iter().map(|(id, _)| id).collect() };
        let mut is_inside = vec![false; self.nodes.len()];
        // A node stands after its parent, and a group after its physical volumes.
        for (id, node) in self.iter() {
            let has = |other: &NodeId| is_inside.get(other.0).copied().unwrap_or(false);
            let belongs =
                node.parent.is_some_and(|parent| parent == scope || has(&parent)) || self.members(id).iter().any(has);
            if let Some(flag) = is_inside.get_mut(id.0) {
                *flag = belongs;
            }
        }
        self.iter().map(|(id, _)| id).filter(|id| is_inside.get(id.0).copied().unwrap_or(false)).collect()
    }

    fn by_name(&self, scope: Option<NodeId>, inside: &[NodeId], selector: &str) -> Vec<NodeId> {
        let disks: Vec<(NodeId, &str)> = match scope {
            Some(scope) => vec![(scope, "vda")],
            None => self.roots.iter().map(|id| (*id, self.node(*id).name.as_str())).collect(),
        };
        let mut found = Vec::new();
        for (disk, name) in disks {
            let is_group = self.node(disk).kind == LayerKind::VolumeGroup;
            if selector == name && !is_group {
                found.push(disk);
            }
            let is_it = |node: &Node| node.number.is_some_and(|number| partition_name(name, number) == selector);
            found.extend(self.own_partitions(disk).filter(|(_, node)| is_it(node)).map(|(id, _)| id));
        }
        let group_named = |id: NodeId, name: &str| {
            let node = self.node(id);
            let has_uuid = node.uuid.as_deref().is_some_and(|uuid| uuid.eq_ignore_ascii_case(name));
            node.kind == LayerKind::VolumeGroup && (node.name == name || has_uuid)
        };
        for id in inside.iter().copied() {
            if self.node(id).kind == LayerKind::Array && self.is_array_named(id, selector) {
                found.push(id);
            }
            match selector.split_once('/') {
                None if group_named(id, selector) => found.push(id),
                Some((group, volume)) if group_named(id, group) => {
                    let is_it = |node: &Node| node.name.rsplit_once('/').is_some_and(|(_, name)| name == volume);
                    found.extend(self.node(id).children.iter().copied().filter(|child| is_it(self.node(*child))));
                }
                _ => {}
            }
        }
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Whether an array is called so, by its name or its UUID as mdadm spells it.
    pub(super) fn is_array_named(&self, id: NodeId, name: &str) -> bool {
        let node = self.node(id);
        let digits = |text: &str| -> String { text.chars().filter(char::is_ascii_hexdigit).collect() };
        let is_uuid = name.len() == 35
            && name.matches(':').count() == 3
            && node.uuid.as_deref().is_some_and(|uuid| digits(uuid).eq_ignore_ascii_case(&digits(name)));
        node.name == name || node.label.as_deref() == Some(name) || is_uuid
    }

    /// The partitions of the table that stands directly on `id`, or in what is encrypted there.
    pub(super) fn own_partitions(&self, id: NodeId) -> impl Iterator<Item = (NodeId, &Node)> {
        let encrypted = |id: &NodeId| self.node(*id).kind == LayerKind::Encrypted;
        let children = &self.node(id).children;
        children
            .iter()
            .filter(move |child| encrypted(child))
            .flat_map(|child| &self.node(*child).children)
            .chain(children)
            .filter(|child| self.node(**child).kind == LayerKind::Table)
            .flat_map(|table| &self.node(*table).children)
            .map(|id| (*id, self.node(*id)))
    }

    fn by_uuid(&self, inside: &[NodeId], selector: &str) -> Vec<NodeId> {
        let is_it = |id: &NodeId| {
            self.node(*id).uuid.as_deref().is_some_and(|uuid| !uuid.is_empty() && uuid.eq_ignore_ascii_case(selector))
        };
        inside.iter().copied().filter(is_it).collect()
    }

    fn nothing(&self, inside: &[NodeId], selector: &str) -> Error {
        let mut names: Vec<&str> = inside
            .iter()
            .map(|id| self.node(*id))
            .filter(|node| !node.is_hidden && !node.address.is_empty())
            .map(|node| node.address.as_str())
            .collect();
        names.sort_unstable();
        names.dedup();
        let there = match names.len() {
            0 => "nothing that could be named".to_owned(),
            count if count > MAX_SHOWN => {
                names.truncate(MAX_SHOWN);
                format!("{} and {} more", names.join(", "), count - MAX_SHOWN)
            }
            _ => names.join(", "),
        };
        Error::not_found(format!("there is no layer #{selector}")).hint(format!("there is {there}"))
    }

    /// A node for people who have to choose between several.
    fn describe(&self, id: NodeId) -> String {
        let node = self.node(id);
        let uuid = node.uuid.as_deref().unwrap_or("without UUID");
        let mut holder = id;
        while let Some(parent) = self.node(holder).parent {
            holder = parent;
        }
        let mut places: Vec<&str> = match self.members(holder) {
            [] => vec![self.node(holder).name.as_str()],
            members => members.iter().map(|member| self.node(*member).address.as_str()).collect(),
        };
        places.dedup();
        format!("{} {} ({uuid}, on {})", node.kind.as_str(), node.name, places.join(" and "))
    }

    /// The file systems, hidden ones left out, in the order of the tree.
    pub fn file_systems(&self) -> Vec<NodeId> {
        self.iter().filter(|(_, node)| node.kind == LayerKind::FileSystem).map(|(id, _)| id).collect()
    }

    /// The file systems in the order in which to look for the one that a machine has as its root: those that
    /// Linux is installed on before others, larger ones first.
    pub fn root_candidates(&self) -> Vec<NodeId> {
        let mut list = self.file_systems();
        list.sort_by_key(|id| {
            let node = self.node(*id);
            let is_usual =
                matches!(node.name.as_str(), "ext2" | "ext3" | "ext4" | "xfs" | "btrfs" | "f2fs" | "reiserfs");
            let size = node.parent.map_or(node.size, |parent| self.node(parent).size);
            (!is_usual, std::cmp::Reverse(size), *id)
        });
        list
    }

    /// The file system that `id` is, or the only one that it holds.
    ///
    /// # Errors
    /// Why the layer cannot be read; `Invalid` when it holds several, or something that is no file system;
    /// `NotFound` when nothing is recognised.
    pub fn file_system_of(&self, id: NodeId) -> Result<NodeId> {
        let node = self.node(id);
        if node.kind == LayerKind::FileSystem {
            return Ok(id);
        }
        let mut inside = self.inside(Some(id));
        inside.insert(0, id);
        let of_kind = |kind| inside.iter().copied().filter(move |id| self.node(*id).kind == kind);
        let own: Vec<NodeId> = of_kind(LayerKind::FileSystem).collect();
        match own.as_slice() {
            [one] => return Ok(*one),
            [] => {}
            several => {
                let what = format!("{} holds {} file systems", node.address, several.len());
                return Err(Error::invalid(what).hint(format!("name one of them: {}", self.addresses(several))));
            }
        }
        if let Some(failed) = inside.iter().find_map(|id| self.node(*id).error.clone()) {
            return Err(failed);
        }
        if node.kind != LayerKind::VolumeGroup {
            self.disk(id)?;
        }
        for (kind, what) in [
            (LayerKind::Encrypted, "is encrypted, which is not built yet"),
            (LayerKind::Member, "is a member of something that cannot be put together"),
        ] {
            if let Some(member) = of_kind(kind).next() {
                return Err(Error::unsupported(format!("{} {what} ({})", node.address, self.node(member).name)));
            }
        }
        if of_kind(LayerKind::Swap).next().is_some() {
            return Err(Error::invalid(format!("{} is swap space: it holds no files", node.address)));
        }
        Err(Error::not_found(format!("no file system was recognised on {}", node.address)))
    }

    /// Gives the arrays, the groups and what they hold their addresses: by name, or by UUID where a name is there twice.
    pub(super) fn address_groups(&mut self) {
        let groups: Vec<(NodeId, String, Option<String>)> = self
            .iter()
            .filter(|(_, node)| matches!(node.kind, LayerKind::VolumeGroup | LayerKind::Array))
            .map(|(id, node)| (id, node.name.clone(), node.uuid.clone()))
            .collect();
        for (id, name, uuid) in &groups {
            let is_taken = self.roots.iter().any(|other| other != id && self.node(*other).name == *name)
                || self.iter().any(|(_, node)| node.kind == LayerKind::Partition && node.name == *name);
            let shown = uuid.as_ref().filter(|_| is_taken).unwrap_or(name).clone();
            self.readdress(*id, &shown);
        }
    }

    /// Puts the address of a group into it and all below it.
    fn readdress(&mut self, group: NodeId, shown: &str) {
        let mut queue = vec![(group, format!("#{shown}"))];
        while let Some((id, address)) = queue.pop() {
            let Some(node) = self.nodes.get_mut(id.0) else { continue };
            node.address.clone_from(&address);
            for child in node.children.clone() {
                let Some(below) = self.nodes.get(child.0) else { continue };
                let own = match below.kind {
                    LayerKind::LogicalVolume => {
                        let name = below.name.rsplit_once('/').map_or(below.name.as_str(), |(_, name)| name);
                        format!("#{shown}/{name}")
                    }
                    LayerKind::Partition => format!("{address}#{}", below.name),
                    _ => address.clone(),
                };
                queue.push((child, own));
            }
        }
    }
}
