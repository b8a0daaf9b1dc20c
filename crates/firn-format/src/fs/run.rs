//! Runs of a file's blocks, as the maps of all file systems with extents tell them.

/// What a run of a file's blocks is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::fs) enum RunKind {
    /// On the disk from this block on.
    Data(u64),
    /// Reserved on the disk from this block on, reads as zeros.
    Unwritten(u64),
    /// Not there, reads as zeros.
    Hole,
}

/// Blocks of a file that are of one kind and next to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::fs) struct Run {
    /// The first block within the file.
    pub start: u64,
    /// Number of blocks, at least 1.
    pub length: u64,
    pub kind: RunKind,
}

impl Run {
    pub fn end(&self) -> u64 {
        self.start + self.length
    }

    /// What is left of it from `block` on.
    pub fn from(self, block: u64) -> Self {
        let skip = block - self.start;
        let kind = match self.kind {
            RunKind::Data(at) => RunKind::Data(at + skip),
            RunKind::Unwritten(at) => RunKind::Unwritten(at + skip),
            RunKind::Hole => RunKind::Hole,
        };
        Self { start: block, length: self.length - skip, kind }
    }
}
