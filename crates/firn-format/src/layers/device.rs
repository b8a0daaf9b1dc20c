//! From what a machine calls a device, as in its fstab, to the layer.
//!
//! | name | layer |
//! |---|---|
//! | `UUID=…`, `LABEL=…`, `/dev/disk/by-uuid/…`, `/dev/disk/by-label/…` | file system or swap |
//! | `PARTUUID=…`, `PARTLABEL=…`, `/dev/disk/by-partuuid/…`, `/dev/disk/by-partlabel/…` | partition |
//! | `/dev/vg0/root`, `/dev/mapper/vg0-root` (`-` in a name is written `--`) | logical volume |
//! | `/dev/mapper/luks-UUID` | what is encrypted there |
//! | `/dev/md0`, `/dev/md/data`, `/dev/md0p1`, `/dev/disk/by-id/md-uuid-…`, `/dev/disk/by-id/md-name-…` | array, its partition |
//! | `/dev/sda2`, `/dev/vda2`, `/dev/xvda2`, `/dev/nvme0n1p2`, `/dev/mmcblk0p2` | partition, of the disks in their order |

use super::{LayerKind, Layers, Node, NodeId};

impl Layers {
    /// The layer that the machine calls `name`, if it is there and only one fits.
    pub fn device(&self, name: &str) -> Option<NodeId> {
        const TAGS: [(&str, &str, Tag); 4] = [
            ("UUID=", "/dev/disk/by-uuid/", Tag::Uuid),
            ("LABEL=", "/dev/disk/by-label/", Tag::Label),
            ("PARTUUID=", "/dev/disk/by-partuuid/", Tag::PartitionUuid),
            ("PARTLABEL=", "/dev/disk/by-partlabel/", Tag::PartitionLabel),
        ];
        for (tag, folder, kind) in TAGS {
            if let Some(value) = name.strip_prefix(tag).or_else(|| name.strip_prefix(folder)) {
                return self.only(|node| kind.fits(node, value.trim_matches('"')));
            }
        }
        if let Some(uuid) = name.strip_prefix("/dev/mapper/luks-") {
            return self.only(|node| node.kind == LayerKind::Encrypted && node.uuid.as_deref() == Some(uuid));
        }
        if let Some(mapped) = name.strip_prefix("/dev/mapper/") {
            return self.only(|node| {
                let parts = node.name.split_once('/').filter(|_| node.kind == LayerKind::LogicalVolume);
                parts.is_some_and(|(group, volume)| {
                    format!("{}-{}", group.replace('-', "--"), volume.replace('-', "--")) == mapped
                })
            });
        }
        let device = name.strip_prefix("/dev/")?;
        if let Some(array) = self.array(device) {
            return Some(array);
        }
        if device.contains('/') {
            return self.only(|node| node.kind == LayerKind::LogicalVolume && node.name == device);
        }
        let (disk, partition) = disk_and_partition(device)?;
        let disks = self.roots.iter().copied().filter(|id| self.node(*id).kind == LayerKind::Disk);
        let disk = disks.into_iter().nth(disk)?;
        match partition {
            None => Some(disk),
            Some(number) => self.own_partitions(disk).find(|(_, node)| node.number == Some(number)).map(|(id, _)| id),
        }
    }

    /// The array, or the partition of one, that `device` names.
    fn array(&self, device: &str) -> Option<NodeId> {
        let short = device.strip_prefix("md/").or_else(|| device.strip_prefix("disk/by-id/md-name-"));
        let short = short.or_else(|| device.strip_prefix("disk/by-id/md-uuid-")).unwrap_or(device);
        let arrays = || self.iter().filter(|(_, node)| node.kind == LayerKind::Array).map(|(id, _)| id);
        // Of an array without a number, /dev/md/NAME is the name, and so is /dev/md/HOST:NAME.
        let mut found = arrays().filter(|id| self.is_array_named(*id, short));
        if let Some(id) = found.next() {
            return Some(id).filter(|_| found.next().is_none());
        }
        let (array, number) = short.rsplit_once('p')?;
        let number: u32 = number.parse().ok()?;
        let mut found = arrays().filter(|id| self.node(*id).name == array);
        let id = found.next().filter(|_| found.next().is_none())?;
        self.own_partitions(id).find(|(_, node)| node.number == Some(number)).map(|(id, _)| id)
    }

    fn only(&self, fits: impl Fn(&Node) -> bool) -> Option<NodeId> {
        let mut found = self.iter().filter(|(_, node)| fits(node)).map(|(id, _)| id);
        found.next().filter(|_| found.next().is_none())
    }
}

#[derive(Clone, Copy)]
enum Tag {
    Uuid,
    Label,
    PartitionUuid,
    PartitionLabel,
}

impl Tag {
    fn fits(self, node: &Node, value: &str) -> bool {
        let is_partition = node.kind == LayerKind::Partition;
        let is_content = matches!(node.kind, LayerKind::FileSystem | LayerKind::Swap | LayerKind::Encrypted);
        match self {
            Self::Uuid => is_content && node.uuid.as_deref().is_some_and(|uuid| uuid.eq_ignore_ascii_case(value)),
            Self::Label => is_content && node.label.as_deref() == Some(value),
            Self::PartitionUuid => {
                is_partition && node.uuid.as_deref().is_some_and(|uuid| uuid.eq_ignore_ascii_case(value))
            }
            Self::PartitionLabel => is_partition && node.label.as_deref() == Some(value),
        }
    }
}

/// The place of a disk among its like, from 0 on, and the number of its partition.
fn disk_and_partition(device: &str) -> Option<(usize, Option<u32>)> {
    let number = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?;
    for prefix in ["nvme", "mmcblk"] {
        if let Some(rest) = device.strip_prefix(prefix) {
            // nvme0n1p2: controller 0, its first namespace, partition 2.
            let (disk, partition) = match rest.split_once('p') {
                Some((disk, partition)) => (disk, Some(number(partition)?)),
                None => (rest, None),
            };
            let disk = disk.strip_suffix("n1").unwrap_or(disk);
            return Some((usize::try_from(number(disk)?).ok()?, partition));
        }
    }
    let rest = ["xvd", "sd", "vd", "hd"].iter().find_map(|prefix| device.strip_prefix(prefix))?;
    let letters = rest.trim_end_matches(|digit: char| digit.is_ascii_digit());
    let mut disk = 0_usize;
    for letter in letters.bytes().filter(|_| !letters.is_empty() && letters.len() <= 3) {
        // a is 1 here, so that aa comes after z.
        let place = usize::from(letter.is_ascii_lowercase().then(|| letter - b'a' + 1)?);
        disk = disk * 26 + place;
    }
    let digits = rest.get(letters.len()..).filter(|digits| !digits.is_empty());
    Some((disk.checked_sub(1)?, digits.map(number).map(|number| number.ok_or(())).transpose().ok()?))
}

#[cfg(test)]
mod tests {
    use super::disk_and_partition;

    #[test]
    fn linux_names_of_disks() {
        for (name, expected) in [
            ("sda", Some((0, None))),
            ("sdb3", Some((1, Some(3)))),
            ("vdz15", Some((25, Some(15)))),
            ("sdaa1", Some((26, Some(1)))),
            ("xvdc", Some((2, None))),
            ("nvme1n1p2", Some((1, Some(2)))),
            ("nvme0n1", Some((0, None))),
            ("mmcblk0p1", Some((0, Some(1)))),
            ("sd", None),
            ("sd1", None),
            ("sdA1", None),
            ("sdaaaa", None),
            ("loop0", None),
            ("nvmep", None),
            ("sda99999999999", None),
        ] {
            assert_eq!(disk_and_partition(name), expected, "{name}");
        }
    }
}
