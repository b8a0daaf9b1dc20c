//! Repacking: what is still needed of packs that are mostly dead goes into new ones.

use super::mark::{Place, Survey};
use super::roots::{Look, PackSeen};
use super::{Prune, PrunePhase};
use crate::index::SegmentBuilder;
use crate::names::{self, PackId, PackKind};
use crate::pack::{self, PackBuilder, PackEntry};
use crate::rebuild::fetch_directory;
use crate::seal::{Opener, PackCipher};
use crate::store::{ObjectInfo, StoreTime};
use crate::verify::Problem;
use firn_disk::{Error, ErrorKind, Result};
use std::ops::Range;

/// Neighbours in a pack that are no further apart than this are fetched as one.
const GAP_BYTES: u64 = 64 << 10;
/// A single fetch is no longer than this.
const FETCH_BYTES: u64 = 4 << 20;
/// A segment is written after so many packs.
const SEGMENT_PACKS: usize = 64;

impl Prune<'_> {
    /// Copies what is needed out of packs of which little is. Answers the packs that nothing needs any more then: what
    /// they held is durable, and known to the index, elsewhere.
    pub(super) fn repack(&mut self, look: &Look, survey: &Survey, now: StoreTime) -> Result<Vec<(PackKind, PackId)>> {
        let can_open = |kind| kind == PackKind::Node || self.pool.blobs().keys.full().is_ok();
        let is_sparse = |id: &PackId, pack: &PackSeen| {
            let live = survey.live.get(id).copied().unwrap_or(0);
            // A pack that two segments name is counted twice.
            let body = survey.body.get(id).copied().unwrap_or(0).min(pack.size);
            live > 0
                && live.saturating_mul(100) < body.saturating_mul(u64::from(self.options.repack_below_percent))
                && can_open(pack.kind)
                && self.is_settled(look, pack, now)
        };
        let sparse: Vec<_> = look.packs.iter().filter(|(id, pack)| is_sparse(id, pack)).collect();
        self.report.repacked_packs = sparse.len() as u64;
        self.report.repacked_bytes = sparse.iter().filter_map(|(id, _)| survey.live.get(id)).sum();
        if self.options.dry_run {
            return Ok(sparse.into_iter().map(|(id, pack)| (pack.kind, *id)).collect());
        }
        self.progress.begin(PrunePhase::Repacking, sparse.iter().map(|(_, pack)| pack.size).sum());
        let mut copied = Vec::new();
        for kind in PackKind::BOTH {
            let mut out = Output { prune: self, kind, open: None, segment: SegmentBuilder::default() };
            let mut problems = Vec::new();
            for (id, pack) in sparse.iter().filter(|(_, pack)| pack.kind == kind) {
                out.prune.progress.go_on()?;
                match out.copy_pack(look, **id, pack) {
                    Ok(()) => copied.push((kind, **id)),
                    // What cannot be read stays where it is, for `firn repair`.
                    Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::NotFound) => {
                        problems.push(Problem::object(&names::pack(kind, **id, None), error.to_string()));
                    }
                    Err(error) => return Err(error),
                }
                out.prune.progress.add(pack.size);
            }
            out.finish_pack()?;
            out.publish()?;
            self.report.problems.extend(problems);
        }
        self.report.repacked_packs = copied.len() as u64;
        Ok(copied)
    }
}

/// Packs that are being filled with what is copied.
struct Output<'a, 'p> {
    prune: &'a Prune<'p>,
    kind: PackKind,
    open: Option<PackBuilder>,
    segment: SegmentBuilder,
}

impl Output<'_, '_> {
    fn copy_pack(&mut self, look: &Look, id: PackId, pack: &PackSeen) -> Result<()> {
        let mut first = None;
        for copy in self.kind.copies() {
            let name = names::pack(self.kind, id, *copy);
            let object = ObjectInfo { name, size: pack.size, modified: pack.modified };
            match self.copy_object(look, id, &object) {
                Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::NotFound) => {
                    first = first.or(Some(error));
                }
                done => return done,
            }
        }
        Err(first.unwrap_or_else(|| Error::corrupt("the pack has no copy")))
    }

    fn copy_object(&mut self, look: &Look, id: PackId, object: &ObjectInfo) -> Result<()> {
        let blobs = self.prune.pool.blobs();
        let directory = fetch_directory(&blobs.store, self.kind, object)?;
        let mut places = Vec::new();
        let mut wanted = Vec::new();
        for entry in directory.entries {
            if !self.prune.marks.contains_blob(&entry.id) {
                continue;
            }
            self.prune.marks.places(&entry.id.prefix(), &mut places)?;
            if let Place::Free(location) = look.place(&places, false)
                && location.pack == id
                && location.offset == u64::from(entry.offset)
            {
                wanted.push(entry);
            }
        }
        let cipher = PackCipher::new(&blobs.keys, self.kind, id)?;
        let mut opener = Opener::new()?;
        for fetch in fetches(&wanted) {
            let range = fetch[0].range().start..fetch[fetch.len() - 1].range().end;
            let bytes = blobs.store.get_range(&object.name, range.clone())?;
            for entry in fetch {
                let at = |offset: u64| usize::try_from(offset - range.start).unwrap_or(usize::MAX);
                let stored: Range<usize> = at(entry.range().start)..at(entry.range().end);
                let cut_short = || Error::corrupt("the pack is cut short");
                let mut stored = bytes.get(stored).ok_or_else(cut_short)?.to_vec();
                let plain = opener.checked_plain(&blobs.keys, &cipher, &mut stored, entry)?;
                self.append(entry, plain)?;
            }
        }
        Ok(())
    }

    fn append(&mut self, entry: &PackEntry, plain: &[u8]) -> Result<()> {
        if self.open.as_ref().is_some_and(|open| open.is_full_for(plain.len())) {
            self.finish_pack()?;
        }
        let pool = self.prune.pool;
        let open = match &mut self.open {
            Some(open) => open,
            None => self.open.insert(PackBuilder::new(&pool.blobs().keys, self.kind, pool.entropy())?),
        };
        open.append(entry.kind, entry.id, plain)
    }

    fn finish_pack(&mut self) -> Result<()> {
        let Some(open) = self.open.take() else { return Ok(()) };
        let finished = open.finish();
        let size = finished.bytes.len() as u64;
        pack::store(&self.prune.pool.blobs().store, finished.kind, finished.id, &finished.bytes.into())?;
        self.segment.add(finished.kind, finished.id, size, &finished.entries);
        if self.segment.pack_count() >= SEGMENT_PACKS { self.publish() } else { Ok(()) }
    }

    fn publish(&mut self) -> Result<()> {
        let segment = std::mem::take(&mut self.segment);
        if segment.is_empty() {
            return Ok(());
        }
        let blobs = self.prune.pool.blobs();
        let id = crate::entropy::random_bytes(self.prune.pool.entropy())?;
        blobs.index.publish(&blobs.store, id, segment, blobs.keys.domain)
    }
}

/// Joins neighbours, which are in the order of their offsets.
fn fetches(wanted: &[PackEntry]) -> Vec<&[PackEntry]> {
    let (mut joined, mut start) = (Vec::new(), 0);
    for number in 1..=wanted.len() {
        let ends = wanted.get(number).is_none_or(|entry| {
            entry.range().start > wanted[number - 1].range().end + GAP_BYTES
                || entry.range().end - wanted[start].range().start > FETCH_BYTES
        });
        if ends {
            joined.push(&wanted[start..number]);
            start = number;
        }
    }
    joined
}
