//! [`Extents`]: what `base:allocation` said, kept.
//!
//! One answer of a server tells of many runs, and who asks goes from one to the next. The number of runs that are kept
//! is limited; when it is reached, all are forgotten.

use crate::wire::allocation;
use firn_disk::{Extent, ExtentKind, Result};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Runs that are kept: about 4 MiB of memory.
const MAX_RUNS: usize = 64 << 10;

/// Runs of bytes whose kind is known.
#[derive(Debug, Default)]
pub(crate) struct Extents(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    /// Start to end and kind; apart from each other.
    runs: BTreeMap<u64, (u64, ExtentKind)>,
    /// Counts how often all was forgotten, so that an answer which is older than that is not kept.
    age: u64,
}

impl Extents {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The rest of the run at `offset`, asked for by `ask` (flags and ranges, in order, reaching past `offset`) if it is
    /// not known.
    pub(crate) fn at(&self, offset: u64, ask: impl FnOnce() -> Result<Vec<(u32, Range<u64>)>>) -> Result<Extent> {
        let age = {
            let known = self.known();
            if let Some(extent) = known.find(offset) {
                return Ok(extent);
            }
            known.age
        };
        let runs = ask()?;
        let mut extent = Extent { kind: ExtentKind::Data, length: 1 };
        let mut known = self.known();
        for (flags, run) in runs {
            let kind = kind(flags);
            if run.contains(&offset) {
                extent = Extent { kind, length: run.end - offset };
            }
            if known.age == age && known.runs.len() < MAX_RUNS {
                known.runs.insert(run.start, (run.end, kind));
            }
        }
        if known.runs.len() >= MAX_RUNS {
            known.forget();
        }
        Ok(extent)
    }

    /// Forgets all, and what is being asked for just now. Before and after each change of the disk.
    pub(crate) fn forget(&self) {
        self.known().forget();
    }
}

impl Known {
    fn find(&self, offset: u64) -> Option<Extent> {
        let (_, &(end, kind)) = self.runs.range(..=offset).next_back()?;
        (offset < end).then(|| Extent { kind, length: end - offset })
    }

    fn forget(&mut self) {
        self.runs.clear();
        self.age = self.age.wrapping_add(1);
    }
}

/// A hole alone promises nothing of what is read there; only zeros do.
fn kind(flags: u32) -> ExtentKind {
    match (flags & allocation::ZERO != 0, flags & allocation::HOLE != 0) {
        (true, true) => ExtentKind::Hole,
        (true, false) => ExtentKind::Zero,
        (false, _) => ExtentKind::Data,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_answer_serves_for_all_its_runs_and_only_zeros_are_holes() {
        let extents = Extents::default();
        let runs = || Ok(vec![(0, 0..10), (3, 10..20), (2, 20..30), (1, 30..40)]);
        assert_eq!(extents.at(4, runs).unwrap(), Extent { kind: ExtentKind::Data, length: 6 });
        let known = |offset| extents.at(offset, || panic!("asked again for {offset}")).unwrap();
        assert_eq!(known(10), Extent { kind: ExtentKind::Hole, length: 10 });
        assert_eq!(known(29), Extent { kind: ExtentKind::Zero, length: 1 });
        assert_eq!(known(30), Extent { kind: ExtentKind::Data, length: 10 });
        extents.forget();
        assert_eq!(extents.at(10, || Ok(vec![(0, 10..20)])).unwrap().kind, ExtentKind::Data);
    }

    #[test]
    fn memory_has_a_limit_and_old_answers_are_not_kept() {
        let extents = Extents::default();
        let many = MAX_RUNS as u64 + 5;
        let runs = (0..many).map(|at| (0, at..at + 1)).collect();
        extents.at(0, || Ok(runs)).unwrap();
        assert!(extents.known().runs.is_empty());
        let asked = || {
            extents.forget();
            Ok(vec![(3, 0..10)])
        };
        assert_eq!(extents.at(0, asked).unwrap().kind, ExtentKind::Hole);
        assert!(extents.known().runs.is_empty());
    }
}
