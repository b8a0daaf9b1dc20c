//! The layers under a machine's disks: tables, partitions, volumes, file systems, as one tree.
//!
//! ```text
//! vda                    disk
//!   gpt                  table
//!     vda1               partition
//!       fat32              file system
//!     vda2               partition
//!       LVM2 PV            physical volume
//! md0                    array, over all disks
//! vg0                    volume group, over all disks and arrays
//!   vg0/root             logical volume
//!     ext4                 file system
//! ```
//! A layer that cannot be read carries its error; the rest of the tree stays. What a volume holds is looked
//! at in turn (a table in a logical volume, a group inside another), to a bounded depth.
//!
//! Which layer wins where a disk carries several signatures: an md superblock, since its members must be read
//! through the array; then a table with partitions; then a physical volume; then a file system.

mod device;
mod renewed;
mod replayed;
mod scan;
mod select;

use crate::fs::{self, FileTree, OpenOptions};
use crate::volume::luks::Keys;
use firn_disk::{Error, Result, SharedDisk};
use replayed::Part;
use std::collections::BTreeMap;
use std::sync::Arc;

pub use renewed::{RenewOptions, Renewed};
pub use replayed::Replayed;

/// A node of [`Layers`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(usize);

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LayerKind {
    /// A whole disk.
    Disk,
    /// A partition table.
    Table,
    /// A partition.
    Partition,
    /// An array of several disks: Linux software RAID.
    Array,
    /// An LVM2 physical volume.
    PhysicalVolume,
    /// An LVM2 volume group.
    VolumeGroup,
    /// An LVM2 logical volume.
    LogicalVolume,
    /// A file system.
    FileSystem,
    /// Swap space.
    Swap,
    /// Something encrypted; what it holds stands below when a key opens it.
    Encrypted,
    /// A member of an array, or of something that firn does not assemble: ZFS, bcache.
    Member,
}

impl LayerKind {
    /// A lower-case word for people and for `--json`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::Table => "table",
            Self::Partition => "partition",
            Self::Array => "array",
            Self::PhysicalVolume => "physical-volume",
            Self::VolumeGroup => "volume-group",
            Self::LogicalVolume => "logical-volume",
            Self::FileSystem => "file-system",
            Self::Swap => "swap",
            Self::Encrypted => "encrypted",
            Self::Member => "member",
        }
    }
}

/// A layer.
#[derive(Debug, Clone)]
pub struct Node {
    /// What it is.
    pub kind: LayerKind,
    /// Its name: `vda`, `vda2`, `md0`, `vg0`, `vg0/root`; of tables and file systems, the format: `gpt`, `ext4`.
    pub name: String,
    /// The selectors that lead to it, as `#vda2`; of what has none of its own, those of what holds it.
    pub address: String,
    /// The number of a partition in its table, as Linux counts.
    pub number: Option<u32>,
    /// Length in bytes.
    pub size: u64,
    /// UUID, PARTUUID or serial number in its usual spelling.
    pub uuid: Option<String>,
    /// Label, or PARTLABEL.
    pub label: Option<String>,
    /// Facts in words: the type of a partition, the segment types of a volume.
    pub features: Vec<String>,
    /// What is wrong or was found out, in words. Empty when all is well.
    pub health: Vec<String>,
    /// Why it cannot be read at all.
    pub error: Option<Error>,
    /// Whether it is an internal piece of another volume.
    pub is_hidden: bool,
    /// What holds it; `None` for disks, arrays and volume groups.
    pub parent: Option<NodeId>,
    /// What it holds.
    pub children: Vec<NodeId>,
    disk: Option<SharedDisk>,
}

/// All layers of a machine's disks.
#[derive(Debug, Default)]
pub struct Layers {
    nodes: Vec<Node>,
    roots: Vec<NodeId>,
    /// The nodes of the members of each array and the physical volumes of each volume group.
    members: Vec<(NodeId, Vec<NodeId>)>,
    /// Where the bytes of partitions and logical volumes stand in the layer below.
    parts: BTreeMap<NodeId, Result<Vec<Part>>>,
    /// What is told of the whole, in words: that looking was cut short.
    pub health: Vec<String>,
}

impl Layers {
    /// Looks at `disks`, each with its name (`vda`, `vdb`, …). What cannot be read is told in its node.
    pub fn probe(disks: Vec<(String, SharedDisk)>) -> Self {
        Self::probe_with_keys(disks, &Keys::default())
    }

    /// As [`probe`](Self::probe), and looks into what `keys` open. Takes as long as the key slots say.
    pub fn probe_with_keys(disks: Vec<(String, SharedDisk)>, keys: &Keys) -> Self {
        scan::Scan::new(keys.clone()).run(disks)
    }

    /// The disks and, after them, the arrays and volume groups.
    pub fn roots(&self) -> &[NodeId] {
        &self.roots
    }

    /// The node of `id`.
    ///
    /// # Panics
    /// When `id` is of other layers.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0]
    }

    /// All nodes, each after what holds it.
    pub fn iter(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        self.nodes.iter().enumerate().map(|(at, node)| (NodeId(at), node))
    }

    /// The nodes of the members of an array, or of the physical volumes that a volume group was found on.
    pub fn members(&self, group: NodeId) -> &[NodeId] {
        self.members.iter().find(|(id, _)| *id == group).map_or(&[], |(_, members)| members)
    }

    /// The content of a layer; of a table, a physical volume or a file system, that of what holds it.
    ///
    /// # Errors
    /// Why the layer cannot be read; `Invalid` for a volume group and for a hidden volume.
    pub fn disk(&self, id: NodeId) -> Result<SharedDisk> {
        let mut at = Some(id);
        while let Some(node) = at.map(|id| self.node(id)) {
            if let Some(disk) = &node.disk {
                return Ok(disk.clone());
            }
            if let Some(error) = &node.error {
                return Err(error.clone());
            }
            if node.kind == LayerKind::VolumeGroup {
                let error = Error::invalid(format!("{} is a volume group", node.name));
                return Err(error.hint(format!("name one of its volumes: {}", self.addresses(&node.children))));
            }
            if node.is_hidden {
                let error = Error::invalid(format!("{} is an internal part of another volume", node.name));
                return Err(error.hint("name that volume instead"));
            }
            at = node.parent;
        }
        Err(Error::invalid("there is nothing to read"))
    }

    /// Opens the file system that `id` is or holds.
    ///
    /// # Errors
    /// As [`file_system_of`](Self::file_system_of); what the file system says.
    pub fn open_files(&self, id: NodeId, options: &OpenOptions) -> Result<Arc<dyn FileTree>> {
        let id = self.file_system_of(id)?;
        let tree = fs::open(&self.disk(id)?, options)?;
        tree.ok_or_else(|| Error::not_found("no file system was recognised").at_path(&self.node(id).address))
    }

    /// The addresses of `ids` for people.
    fn addresses(&self, ids: &[NodeId]) -> String {
        let shown: Vec<&str> = ids
            .iter()
            .map(|id| self.node(*id))
            .filter(|node| !node.is_hidden)
            .map(|node| node.address.as_str())
            .collect();
        if shown.is_empty() { "it has none".into() } else { shown.join(", ") }
    }
}
