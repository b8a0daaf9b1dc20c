//! Those who use the pool, and what they believe of it.

use super::scenario::PoolMaker;
use super::world::View;
use crate::manifest::Manifest;
use crate::pool::Pool;
use crate::prune::{PruneOptions, PruneProgress};
use crate::snapshot::{Changes, DiskInput, SnapshotHooks, SnapshotOptions, SnapshotProgress};
use crate::{Consistency, Snapshot};
use firn_disk::testing::{Random, pattern};
use firn_disk::{Disk, Error, ErrorKind, Extent, ExtentKind, Result, check_range};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

const BLOCK: u64 = 4096;
const REGION: u64 = 16 << 20;
/// Blocks with content at the start of each region.
const LETTERS: usize = 10;
/// Different contents that a block may have; few, so that snapshots share most of them.
const ALPHABET: u64 = 16;

/// A disk as letters, one a block: nothing where it is zero. Each region begins with so many of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Letters(Vec<u8>);

impl Letters {
    fn random(regions: usize, random: &mut Random) -> Self {
        Self((0..regions * LETTERS).map(|_| u8::try_from(random.below(ALPHABET)).unwrap()).collect())
    }

    /// With some of them changed; answers which bytes.
    fn change(&self, random: &mut Random) -> (Self, Vec<Range<u64>>) {
        let mut letters = self.0.clone();
        let mut ranges = Vec::new();
        for _ in 0..=random.below(3) {
            let number = usize::try_from(random.below(letters.len() as u64)).unwrap();
            letters[number] = u8::try_from(random.below(ALPHABET)).unwrap();
            let start = offset(number);
            ranges.push(start..start + BLOCK);
        }
        (Self(letters), ranges)
    }

    fn letter_at(&self, block: u64) -> u8 {
        let (region, at) = (block / (REGION / BLOCK), block % (REGION / BLOCK));
        let number = usize::try_from(at).ok().filter(|at| *at < LETTERS);
        number.and_then(|at| self.0.get(usize::try_from(region).unwrap() * LETTERS + at)).copied().unwrap_or(0)
    }
}

fn offset(number: usize) -> u64 {
    (number / LETTERS) as u64 * REGION + (number % LETTERS) as u64 * BLOCK
}

fn content(letter: u8) -> Vec<u8> {
    if letter == 0 { vec![0; 4096] } else { pattern(4096, u64::from(letter)) }
}

impl Disk for Letters {
    fn len(&self) -> u64 {
        offset(self.0.len() - 1) + BLOCK
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(offset, buf.len() as u64, self.len())?;
        for (number, piece) in buf.chunks_mut(4096).enumerate() {
            piece.copy_from_slice(&content(self.letter_at(offset / BLOCK + number as u64))[..piece.len()]);
        }
        Ok(())
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        check_range(offset, 1, self.len())?;
        let block = offset / BLOCK;
        if self.letter_at(block) != 0 {
            return Ok(Extent { kind: ExtentKind::Data, length: BLOCK });
        }
        let at = block % (REGION / BLOCK);
        let end = if at < LETTERS as u64 { block + 1 } else { (block / (REGION / BLOCK) + 1) * (REGION / BLOCK) };
        Ok(Extent { kind: ExtentKind::Hole, length: (end * BLOCK).min(self.len()) - offset })
    }
}

/// How far a snapshot has come in being forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
pub(super) enum Forgotten {
    No,
    Tried,
    Done,
}

/// A snapshot that somebody wanted to take.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) disk: Letters,
    /// `None` while it is not known, or when the writer crashed.
    pub(super) outcome: Option<Result<(), String>>,
    pub(super) was_seen: bool,
    pub(super) forgotten: Forgotten,
}

/// What those who use the pool believe.
#[derive(Debug, Default)]
pub(super) struct Beliefs {
    /// By the second that the snapshot shows.
    pub(super) attempts: BTreeMap<i64, Attempt>,
    pub(super) violation: Option<String>,
}

impl Beliefs {
    pub(super) fn violated(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }
}

/// Who acts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Writer { machine: u8, incremental: bool },
    Reader,
    Forgetter,
    Pruner,
}

/// One actor with what it needs.
#[derive(Debug, Clone)]
pub(super) struct Cast {
    pub(super) role: Role,
    pub(super) number: i64,
    pub(super) seed: u64,
    pub(super) view: View,
    pub(super) maker: PoolMaker,
    pub(super) beliefs: Arc<Mutex<Beliefs>>,
}

pub(super) fn second_of(manifest: &Manifest) -> i64 {
    manifest.created.as_second()
}

impl Cast {
    pub(super) fn beliefs(&self) -> MutexGuard<'_, Beliefs> {
        self.beliefs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Plays the role to its end, and writes down what came of it.
    pub(super) fn play(self) {
        let mut random = Random::new(self.seed);
        let mut act = || {
            self.maker.open(&self.view, self.seed).and_then(|pool| match self.role {
                Role::Writer { machine, incremental } => self.write(&pool, machine, incremental, &mut random),
                Role::Reader => self.read(&pool, &mut random),
                Role::Forgetter => self.forget(&pool, &mut random),
                Role::Pruner => self.prune(&pool),
            })
        };
        // Whoever panics must still leave, or the scheduler waits for ever.
        let played = std::panic::catch_unwind(std::panic::AssertUnwindSafe(&mut act)).unwrap_or_else(|_| {
            self.beliefs().violated(format!("{:?} {} panicked", self.role, self.number));
            Ok(())
        });
        let (has_crashed, is_excused) = self.view.world.leave(self.view.actor.unwrap());
        let mut beliefs = self.beliefs();
        if let Err(error) = &played
            && !has_crashed
            && !is_excused
        {
            let hint = error.next_step().unwrap_or_default();
            beliefs.violated(format!("{:?} {} failed without a reason: {error} ({hint})", self.role, self.number));
        }
        if let Some(attempt) = beliefs.attempts.get_mut(&self.number)
            && !has_crashed
        {
            attempt.outcome = Some(played.map_err(|error| error.to_string()));
        }
    }

    fn write(&self, pool: &Pool, machine: u8, incremental: bool, random: &mut Random) -> Result<()> {
        let name = format!("m{machine}");
        let base = match pool.machine(&name) {
            Ok(found) if incremental => pool.snapshots(found.uuid)?.pop().and_then(|snapshot| snapshot.manifest.ok()),
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => None,
        };
        let old = base.as_ref().and_then(|base| Some(self.beliefs().attempts.get(&second_of(base))?.disk.clone()));
        let (disk, ranges) = match &old {
            Some(old) => old.change(random),
            None => (Letters::random(self.maker.regions, random), Vec::new()),
        };
        let attempt = Attempt { disk: disk.clone(), outcome: None, was_seen: false, forgotten: Forgotten::No };
        self.beliefs().attempts.insert(self.number, attempt);
        let changes = match (&old, &base) {
            (Some(_), Some(base)) => Changes::Since { base: &base.disks[0], ranges: &ranges },
            _ => Changes::All,
        };
        let input = DiskInput { name: "vda".into(), disk: &disk, changes, source: String::new(), generation: None };
        let options = SnapshotOptions {
            created: Timestamp::from_second(self.number).unwrap(),
            consistency: Consistency::Crash,
            frozen_milliseconds: None,
            group: None,
            attachments: Vec::new(),
            remarks: Vec::new(),
        };
        let (progress, world) = (SnapshotProgress::default(), &self.view.world);
        // Half of them have a clock that stands still, as that of a machine that is suspended.
        let elapsed = || if self.number % 2 == 0 { Duration::ZERO } else { world.since_start() };
        let hooks = SnapshotHooks { progress: &progress, elapsed: &elapsed, before_publish: &|| Ok(()) };
        let written = pool.write_snapshot(&name, &[input], options, hooks);
        match written {
            // Somebody forgot it in between, which is nobody's fault.
            Err(error) if error.kind() == ErrorKind::NotFound && incremental => {
                self.beliefs().attempts.remove(&self.number);
                Ok(())
            }
            written => written.map(|_| ()),
        }
    }

    fn snapshots(pool: &Pool) -> Result<Vec<Snapshot>> {
        let mut all = Vec::new();
        for machine in pool.machines()? {
            all.extend(pool.snapshots(machine.uuid)?);
        }
        Ok(all)
    }

    fn pick(pool: &Pool, random: &mut Random) -> Result<Option<Snapshot>> {
        let mut all = Self::snapshots(pool)?;
        if all.is_empty() {
            return Ok(None);
        }
        Ok(Some(all.swap_remove(usize::try_from(random.below(all.len() as u64)).unwrap())))
    }

    fn read(&self, pool: &Pool, random: &mut Random) -> Result<()> {
        let Some(snapshot) = Self::pick(pool, random)? else { return Ok(()) };
        let manifest = snapshot.manifest?;
        let second = second_of(&manifest);
        let Some(expected) = self.beliefs().attempts.get(&second).map(|attempt| attempt.disk.clone()) else {
            return Err(Error::invalid(format!("snapshot {second} was never taken")));
        };
        match compare(pool, &manifest, &expected) {
            Ok(true) => Ok(()),
            Ok(false) => {
                self.beliefs().violated(format!("snapshot {second} reads back wrong"));
                Ok(())
            }
            // Without a grace, what is forgotten may go while it is read.
            Err(_) if self.maker.grace.is_zero() && self.beliefs().attempts[&second].forgotten > Forgotten::No => {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn forget(&self, pool: &Pool, random: &mut Random) -> Result<()> {
        let Some(snapshot) = Self::pick(pool, random)? else { return Ok(()) };
        let Ok(manifest) = &snapshot.manifest else { return Ok(()) };
        let second = second_of(manifest);
        let mark = |forgotten| {
            if let Some(attempt) = self.beliefs().attempts.get_mut(&second)
                && attempt.forgotten < forgotten
            {
                attempt.forgotten = forgotten;
            }
        };
        mark(Forgotten::Tried);
        pool.forget(&snapshot)?;
        mark(Forgotten::Done);
        Ok(())
    }

    fn prune(&self, pool: &Pool) -> Result<()> {
        let options = PruneOptions { grace: self.maker.grace, ..PruneOptions::default() };
        pool.prune(&options, &PruneProgress::default()).map(|_| ())
    }
}

/// Whether a disk of the pool has this content.
pub(super) fn compare(pool: &Pool, manifest: &Manifest, expected: &Letters) -> Result<bool> {
    let disk = pool.disk(&manifest.disks[0]);
    if disk.len() != expected.len() {
        return Ok(false);
    }
    let mut bytes = vec![0; 4096];
    for number in 0..expected.0.len() {
        disk.read_at(&mut bytes, offset(number))?;
        if bytes != content(expected.0[number]) {
            return Ok(false);
        }
    }
    Ok(true)
}
