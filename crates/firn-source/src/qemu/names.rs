//! What a run calls the things that it makes inside QEMU, so that they are found again after its death.
//!
//! ```text
//!   bitmap      firn-OWNER-RUN          records from this run's instant on; its name is the disk's generation
//!   bitmap      firn-OWNER-RUN-dirty    what the last one had recorded at the instant; goes with the run
//!   node        firnOWNERRUNkii         k: kind, ii: number of the disk, hexadecimal; 31 bytes are QEMU's limit
//!   job, export firn-OWNER-RUN-ii
//! ```
//! OWNER is 16 hexadecimal digits (pool and machine), RUN 8.

use crate::source::Request;
use firn_disk::{Error, Result};

/// Disks of one machine: the number has two digits.
pub(super) const MOST_DISKS: usize = 256;

/// What a node of ours is, and its letter in the name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NodeKind {
    /// The scratch file.
    File = b'f' as isize,
    /// The raw layer that keeps the scratch file from growing past its limit.
    Limit = b'l' as isize,
    /// The qcow2 image in the scratch file.
    Scratch = b's' as isize,
    /// The copy-before-write filter.
    Filter = b'c' as isize,
    /// What reads the instant out of the filter.
    Access = b'a' as isize,
}

impl NodeKind {
    /// In the order in which they can be removed: who uses comes before who is used.
    pub(super) const REMOVAL: [Self; 5] = [Self::Access, Self::Filter, Self::Scratch, Self::Limit, Self::File];

    fn letter(self) -> char {
        char::from(self as u8)
    }
}

/// The names of one run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Names {
    owner: String,
    run: String,
}

impl Names {
    /// # Errors
    /// `Invalid` when owner or run are not hexadecimal digits of their length.
    pub(super) fn of(request: &Request) -> Result<Self> {
        let is_hex = |text: &str, length| text.len() == length && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !is_hex(&request.owner, 16) || !is_hex(&request.run, 8) {
            return Err(Error::invalid("an owner has 16 hexadecimal digits and a run 8"));
        }
        Ok(Self { owner: request.owner.clone(), run: request.run.clone() })
    }

    /// What stands at the beginning of all names of this owner but those of nodes.
    pub(super) fn owner_prefix(&self) -> String {
        format!("firn-{}-", self.owner)
    }

    /// `firn-OWNER-RUN`.
    pub(super) fn bitmap(&self) -> String {
        format!("firn-{}-{}", self.owner, self.run)
    }

    /// `firn-OWNER-RUN-dirty`.
    pub(super) fn dirty_bitmap(&self) -> String {
        format!("{}-dirty", self.bitmap())
    }

    /// The name of a job, an export, and of what else there is one of for each disk.
    pub(super) fn item(&self, index: usize) -> String {
        format!("{}-{index:02x}", self.bitmap())
    }

    pub(super) fn node(&self, kind: NodeKind, index: usize) -> String {
        format!("firn{}{}{}{index:02x}", self.owner, self.run, kind.letter())
    }

    /// Whether a node is one of this owner's, of whatever run.
    pub(super) fn owns_node(&self, node: &str, kind: NodeKind) -> bool {
        is_node(node) && node.get(4..20) == Some(&self.owner) && node.get(28..29) == Some(&kind.letter().to_string())
    }
}

/// Whether a node is one of firn's, whoever owns it.
pub(super) fn is_node(node: &str) -> bool {
    let is_hex = |range| node.get(range).is_some_and(|text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit()));
    node.len() == 31 && node.starts_with("firn") && is_hex(4..28) && is_hex(29..31)
}

/// What the nodes of one disk of one run have in common, and no others have.
pub(super) fn disk_of_node(node: &str) -> String {
    // Owner and run, then the disk's number; between them is the kind.
    format!("{}{}", node.get(4..28).unwrap_or_default(), node.get(29..).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_and_are_found_again() {
        let request =
            Request { owner: "0123456789abcdef".to_owned(), run: "00ff00ff".to_owned(), ..Request::default() };
        let names = Names::of(&request).unwrap();
        assert_eq!(names.node(NodeKind::Filter, 255), "firn0123456789abcdef00ff00ffcff");
        assert_eq!(names.dirty_bitmap(), "firn-0123456789abcdef-00ff00ff-dirty");
        assert!(names.bitmap().starts_with(&names.owner_prefix()));
        assert!(names.owns_node(&names.node(NodeKind::Filter, MOST_DISKS - 1), NodeKind::Filter));
        assert!(!names.owns_node(&names.node(NodeKind::Filter, 0), NodeKind::Access));
        assert_eq!(disk_of_node(&names.node(NodeKind::File, 7)), disk_of_node(&names.node(NodeKind::Access, 7)));
        assert_ne!(disk_of_node(&names.node(NodeKind::File, 7)), disk_of_node(&names.node(NodeKind::File, 8)));
        assert!(!is_node("firnish0") && !is_node("#block123") && !is_node(&"ä".repeat(16)));
        let other = Names { owner: "f".repeat(16), run: "0".repeat(8) };
        assert!(
            is_node(&other.node(NodeKind::File, 1)) && !names.owns_node(&other.node(NodeKind::File, 1), NodeKind::File)
        );
        assert!(Names::of(&Request::default()).is_err());
    }
}
