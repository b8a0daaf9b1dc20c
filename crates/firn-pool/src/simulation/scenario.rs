//! Scenarios: who comes when, in what weather, and what has to be true afterwards.

use super::actors::{Beliefs, Cast, Forgotten, Role, compare, second_of};
use super::world::{View, Weather, World};
use crate::NewCredential;
use crate::chunker::CutParameters;
use crate::entropy::tests::SeededEntropy;
use crate::mutant::Mutant;
use crate::pool::{InitOptions, OpenOptions, Pool};
use crate::prune::{PruneOptions, PruneProgress};
use crate::store::Store;
use crate::verify::{Depth, VerifyProgress};
use firn_disk::Result;
use firn_disk::testing::Random;
use jiff::Timestamp;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What may be wrong with the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StoreMutant {
    /// A new object is there at once but not durable: renamed into place, and the folder not synced.
    PutWithoutSync,
    /// A manifest that was removed may come back after its packs are gone, as its folder was not synced.
    RemovalWithoutSync,
}

/// How pools are opened in a scenario.
#[derive(Debug, Clone, Copy)]
pub(super) struct PoolMaker {
    pub(super) mutant: Option<Mutant>,
    pub(super) grace: Duration,
    pub(super) regions: usize,
}

impl PoolMaker {
    pub(super) fn open(&self, view: &View, seed: u64) -> Result<Pool> {
        let objects = Arc::new(view.clone());
        let store = Store::over(objects.clone(), Some(objects), "simulated")?;
        let entropy = Arc::new(SeededEntropy::new(seed));
        let pool = Pool::open_store(store, OpenOptions { credential: None, cache_folder: None, entropy })?;
        Ok(pool.simulated(self.mutant))
    }
}

/// Actors that come together.
#[derive(Debug, Clone)]
struct Round {
    seed: u64,
    roles: Vec<Role>,
    faults: u64,
    naps: u64,
    power_loss: Option<u64>,
    /// How many seconds nobody does anything afterwards.
    pause: i64,
}

/// A whole scenario.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    seed: u64,
    grace: Duration,
    regions: usize,
    rounds: Vec<Round>,
}

/// What happened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Summary {
    pub(super) steps: u64,
    pub(super) published: u64,
    pub(super) deleted_packs: u64,
    pub(super) attempts: Vec<(i64, Option<Result<(), String>>)>,
}

pub(super) struct Outcome {
    pub(super) violation: Option<String>,
    pub(super) summary: Summary,
}

impl Plan {
    pub(super) fn random(seed: u64) -> Self {
        let mut random = Random::new(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x5EED);
        let grace = Duration::from_secs([0, 0, 2000][usize::try_from(random.below(3)).unwrap()]);
        let regions = if random.below(12) == 0 { 2 } else { 1 };
        let calm = random.below(3) == 0;
        // In a rush, everybody wants the same at the same time.
        let rush = calm && random.below(2) == 0;
        // Nothing fails, but everybody may fall asleep anywhere, and much happens until he wakes up.
        let sleepy = !calm && random.below(2) == 0;
        let role = |random: &mut Random| match random.below(10) {
            0..2 if rush && !grace.is_zero() => Role::Reader,
            0..4 if rush => Role::Writer { machine: 0, incremental: true },
            4 if rush => Role::Pruner,
            0..4 => Role::Writer { machine: u8::try_from(random.below(2)).unwrap(), incremental: random.below(2) == 0 },
            4 => Role::Reader,
            5 | 6 => Role::Forgetter,
            _ => Role::Pruner,
        };
        let count = 3 + random.below(8) + if sleepy { 6 } else { 0 };
        let mut rounds: Vec<Round> = (0..count)
            .map(|_| Round {
                seed: random.below(u64::MAX),
                roles: (0..=random.below(5) + if rush { 3 } else { 0 }).map(|_| role(&mut random)).collect(),
                faults: if calm || sleepy { 0 } else { random.below(80) },
                naps: match (calm, sleepy) {
                    (true, _) => 0,
                    (_, true) => 150,
                    _ => [0, 0, 60][usize::try_from(random.below(3)).unwrap()],
                },
                power_loss: (!calm && !sleepy && random.below(5) == 0).then(|| random.below(400)),
                pause: [0, 0, 700, 3000, 200_000][usize::try_from(random.below(5)).unwrap()],
            })
            .collect();
        rounds[0].roles.insert(0, Role::Writer { machine: 0, incremental: false });
        Self { seed, grace, regions, rounds }
    }

    /// Plays it until something is wrong.
    pub(super) fn run(&self, mutant: Option<Mutant>, store: Option<StoreMutant>) -> Outcome {
        let world = World::new(store);
        let beliefs: Arc<Mutex<Beliefs>> = Arc::default();
        let maker = PoolMaker { mutant, grace: self.grace, regions: self.regions };
        let quiet = View { world: world.clone(), actor: None };
        init(&quiet, self.seed).unwrap();
        let mut number = 0;
        let played = std::thread::scope(|scope| {
            for round in &self.rounds {
                world.wake(false);
                for role in &round.roles {
                    number += 1;
                    let view = View { world: world.clone(), actor: Some(world.enter()) };
                    let seed = round.seed ^ u64::try_from(number).unwrap();
                    let cast = Cast { role: *role, number, seed, view, maker, beliefs: beliefs.clone() };
                    scope.spawn(move || cast.play());
                }
                let Round { seed, faults, naps, power_loss, pause, .. } = *round;
                let burst = [2, 8, 40][usize::try_from(seed % 3).unwrap()];
                world.run(seed, Weather { faults, naps, burst, power_loss });
                let checked = check(&quiet, &maker, &beliefs);
                if checked.is_err() {
                    world.lose_everybody();
                    return checked;
                }
                world.pass(pause);
            }
            world.wake(true);
            world.run(self.seed, Weather { faults: 0, naps: 0, burst: 2, power_loss: None });
            check(&quiet, &maker, &beliefs).and_then(|()| check_end(&quiet, &maker, &beliefs))
        });
        let mut beliefs = beliefs.lock().unwrap();
        let attempts: Vec<_> =
            beliefs.attempts.iter().map(|(second, attempt)| (*second, attempt.outcome.clone())).collect();
        let published = attempts.iter().filter(|(_, outcome)| matches!(outcome, Some(Ok(())))).count() as u64;
        let summary = Summary { steps: world.steps(), published, deleted_packs: world.deleted_packs(), attempts };
        Outcome { violation: played.err().or(beliefs.violation.take()), summary }
    }

    /// Leaves out rounds, then actors, as long as something is still wrong.
    pub(super) fn shrink(mut self) -> (Self, String) {
        let mut violation = self.run(None, None).violation.unwrap_or_default();
        let mut goes_on = true;
        while goes_on {
            goes_on = false;
            let mut shorter = Vec::new();
            for number in 0..self.rounds.len() {
                let mut plan = self.clone();
                plan.rounds.remove(number);
                shorter.push(plan);
                for role in 0..self.rounds[number].roles.len() {
                    let mut plan = self.clone();
                    plan.rounds[number].roles.remove(role);
                    shorter.push(plan);
                }
            }
            for plan in shorter {
                if let Some(found) = plan.run(None, None).violation {
                    (self, violation, goes_on) = (plan, found, true);
                    break;
                }
            }
        }
        (self, violation)
    }
}

fn init(view: &View, seed: u64) -> Result<()> {
    let objects = Arc::new(view.clone());
    let store = Store::over(objects.clone(), Some(objects), "simulated")?;
    let options = InitOptions {
        credential: NewCredential::Clear,
        same_keys_as: None,
        cut: CutParameters { mask_bits: 0, least_blocks: 1, most_blocks: 1 },
        created: Timestamp::UNIX_EPOCH,
        entropy: Arc::new(SeededEntropy::new(seed)),
    };
    Pool::init_clear(&store, &options)
}

/// What has to be true whenever nobody is at work: what was published is there, whole, and nothing else.
fn check(quiet: &View, maker: &PoolMaker, beliefs: &Mutex<Beliefs>) -> Result<(), String> {
    let mut beliefs = beliefs.lock().unwrap();
    if let Some(violation) = beliefs.violation.take() {
        return Err(violation);
    }
    let failed = |error: firn_disk::Error| format!("the pool cannot be looked at: {error}");
    let pool = maker.open(quiet, 1).map_err(failed)?;
    let mut found = Vec::new();
    for machine in pool.machines().map_err(failed)? {
        for snapshot in pool.snapshots(machine.uuid).map_err(failed)? {
            let manifest = snapshot.manifest.map_err(failed)?;
            let second = second_of(&manifest);
            found.push(second);
            let Some(attempt) = beliefs.attempts.get_mut(&second) else {
                return Err(format!("snapshot {second} was never taken"));
            };
            match compare(&pool, &manifest, &attempt.disk) {
                Ok(true) => attempt.was_seen = true,
                Ok(false) => return Err(format!("snapshot {second} has wrong bytes")),
                Err(error) => return Err(format!("snapshot {second} is lost: {error}")),
            }
        }
    }
    for (second, attempt) in &beliefs.attempts {
        let is_there = found.contains(second);
        let must_be = attempt.was_seen || attempt.outcome == Some(Ok(()));
        match attempt.forgotten {
            Forgotten::No if must_be && !is_there => return Err(format!("snapshot {second} is gone")),
            Forgotten::Done if is_there => return Err(format!("snapshot {second} was forgotten and is there")),
            _ => {}
        }
    }
    Ok(())
}

/// What has to be true in the end: after a while and a prune the pool is sound, and empty when all is forgotten.
fn check_end(quiet: &View, maker: &PoolMaker, beliefs: &Mutex<Beliefs>) -> Result<(), String> {
    let failed = |error: firn_disk::Error| format!("in the end: {error}");
    let options = PruneOptions { grace: maker.grace, ..PruneOptions::default() };
    let prune = |seed: u64| -> Result<(), String> {
        for round in 0..3 {
            quiet.world.pass(40 * 24 * 3600);
            let pool = maker.open(quiet, seed + round).map_err(failed)?;
            pool.prune(&options, &PruneProgress::default()).map_err(failed)?;
        }
        Ok(())
    };
    prune(100)?;
    check(quiet, maker, beliefs)?;
    let pool = maker.open(quiet, 200).map_err(failed)?;
    let report = pool.verify(Depth::Data, &VerifyProgress::default()).map_err(failed)?;
    if !report.is_sound() {
        return Err(format!("after prune the pool is not sound: {report:?}"));
    }
    for machine in pool.machines().map_err(failed)? {
        for snapshot in pool.snapshots(machine.uuid).map_err(failed)? {
            pool.forget(&snapshot).map_err(failed)?;
        }
    }
    prune(300)?;
    let store = &pool.blobs().store;
    for folder in ["data", "node", "idx", "snap", "tomb", "lease", "fate", "lock", "time"] {
        let left = store.list(folder).map_err(failed)?;
        if !left.is_empty() {
            return Err(format!("all is forgotten and pruned, but this is left: {left:?}"));
        }
    }
    Ok(())
}
