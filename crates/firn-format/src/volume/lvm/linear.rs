//! Where the bytes of a plain volume stand on its physical volumes, for whoever wants to replace them there.

use super::group::{MemberState, VolumeGroup};
use super::metadata::Kind;
use firn_disk::{Error, Result};

/// A run of bytes of a volume that stands in one piece on a physical volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinearPiece {
    /// Where it begins in the volume, in bytes.
    pub start: u64,
    /// Its length in bytes.
    pub length: u64,
    /// The physical volume's place in the list that was assembled.
    pub physical: usize,
    /// Where it begins on the physical volume's disk, in bytes.
    pub at: u64,
}

impl VolumeGroup {
    /// The pieces of the volume `name` in order, when each byte of it stands in exactly one place.
    ///
    /// # Errors
    /// `Unsupported`, by the name of the segment type, for every other volume, and for the origin of a snapshot,
    /// whose old bytes the snapshot would lose; `Unavailable` when a physical volume is missing; `NotFound`.
    pub fn linear(&self, name: &str) -> Result<Vec<LinearPiece>> {
        let refuse = |what: String| Error::unsupported(format!("{}/{name} {what}", self.name()));
        let volume = self.find(name).ok_or_else(|| Error::not_found(format!("{}/{name} is not there", self.name())))?;
        if self.has_snapshot(name) {
            return Err(refuse("has a snapshot, or is one".into()));
        }
        let mut pieces = Vec::with_capacity(volume.segments.len());
        for segment in &volume.segments {
            let place = match &segment.kind {
                Kind::Striped { stripes, .. } => match stripes.as_slice() {
                    [place] => place,
                    _ => return Err(refuse("is striped".into())),
                },
                other => return Err(refuse(format!("has segments of type {}", other.name()))),
            };
            let Some((known, member)) = self.find_physical(&place.volume) else {
                return Err(refuse(format!("lies on another volume, {}", place.volume)));
            };
            let (MemberState::Present(physical), None) = (&member.state, &member.problem) else {
                let what = format!("a physical volume of {}/{name} is missing or old", self.name());
                return Err(Error::new(firn_disk::ErrorKind::Unavailable, what));
            };
            let extent = self.extent_bytes();
            let length = segment.count.saturating_mul(extent);
            let into = place.extent.saturating_mul(extent);
            if firn_disk::check_range(into, length, known.length).is_err() {
                return Err(Error::corrupt(format!(
                    "a segment of {}/{name} lies past its physical volume",
                    self.name()
                )));
            }
            let start = segment.first.saturating_mul(extent);
            pieces.push(LinearPiece { start, length, physical: *physical, at: known.start.saturating_add(into) });
        }
        Ok(pieces)
    }
}
