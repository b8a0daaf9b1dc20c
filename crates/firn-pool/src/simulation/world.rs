//! The store, its clock, and the scheduler: one actor moves at a time, by one operation.

use super::scenario::StoreMutant;
use crate::store::Settle;
use bytes::Bytes;
use firn_disk::testing::Random;
use futures::FutureExt;
use futures::stream::{BoxStream, StreamExt};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What befalls an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fortune {
    Done,
    /// Sent twice, as by a client that got no answer to the first; the second answer is what the actor sees.
    Repeated,
    FailedBefore,
    FailedAfter,
    CrashedBefore,
    CrashedAfter,
}

/// How an actor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Condition {
    /// It computes; the scheduler waits for it.
    Busy,
    /// It waits for its next operation.
    Ready,
    Asleep,
    Over,
}

#[derive(Debug)]
struct Actor {
    condition: Condition,
    fortune: Option<Fortune>,
    is_crashed: bool,
    /// Something went wrong for it, or the clock jumped: it may fail, but not lie.
    is_excused: bool,
}

/// An object, as it was before it was removed, so that it can come back.
type Removed = (Bytes, i64);

#[derive(Debug)]
struct State {
    actors: Vec<Actor>,
    random: Random,
    /// That of the round that is being played.
    weather: Option<Weather>,
    round_steps: u64,
    /// Who went on last.
    last: usize,
    clock: i64,
    steps: u64,
    put_at: BTreeMap<String, i64>,
    /// Not durable yet.
    loose_puts: BTreeSet<String>,
    loose_removals: BTreeMap<String, Removed>,
    deleted_packs: u64,
    mutant: Option<StoreMutant>,
}

/// The store that all actors share.
#[derive(Debug)]
pub(super) struct World {
    objects: InMemory,
    state: Mutex<State>,
    moved: Condvar,
}

/// What a round does to its actors.
#[derive(Debug, Clone, Copy)]
pub(super) struct Weather {
    /// Of 10,000 operations so many have another fortune than to be done.
    pub(super) faults: u64,
    /// Of 10,000 operations so many find their actor asleep.
    pub(super) naps: u64,
    /// How many operations one does on end, on average.
    pub(super) burst: u64,
    /// The store's host loses power after so many steps.
    pub(super) power_loss: Option<u64>,
}

const SECOND: i64 = 1_000_000_000;
const START: i64 = 1_700_000_000 * SECOND;

impl World {
    pub(super) fn new(mutant: Option<StoreMutant>) -> Arc<Self> {
        let state = State {
            actors: Vec::new(),
            random: Random::new(0),
            weather: None,
            round_steps: 0,
            last: 0,
            clock: START,
            steps: 0,
            put_at: BTreeMap::new(),
            loose_puts: BTreeSet::new(),
            loose_removals: BTreeMap::new(),
            deleted_packs: 0,
            mutant,
        };
        Arc::new(Self { objects: InMemory::new(), state: Mutex::new(state), moved: Condvar::new() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn steps(&self) -> u64 {
        self.lock().steps
    }

    pub(super) fn deleted_packs(&self) -> u64 {
        self.lock().deleted_packs
    }

    /// The time since the scenario began.
    pub(super) fn since_start(&self) -> Duration {
        Duration::from_nanos(u64::try_from(self.lock().clock - START).unwrap())
    }

    /// Ends all actors, those who sleep as well.
    pub(super) fn lose_everybody(&self) {
        let mut state = self.lock();
        state.weather = None;
        self.lose_power(&mut state);
        while state.actors.iter().any(|actor| actor.condition != Condition::Over) {
            state = self.moved.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Time goes by for all; who is at work meanwhile may have lost a lease or the grace.
    pub(super) fn pass(&self, seconds: i64) {
        let mut state = self.lock();
        state.clock += seconds * SECOND;
        let sleeping = state.actors.iter_mut().filter(|actor| actor.condition != Condition::Over);
        sleeping.for_each(|actor| actor.is_excused = true);
    }

    /// A new actor's number. It is busy until its first operation.
    pub(super) fn enter(&self) -> usize {
        let mut state = self.lock();
        state.actors.push(Actor { condition: Condition::Busy, fortune: None, is_crashed: false, is_excused: false });
        state.actors.len() - 1
    }

    /// The actor is through. Answers whether it crashed, and whether it may have failed.
    pub(super) fn leave(&self, actor: usize) -> (bool, bool) {
        let mut state = self.lock();
        let found = &mut state.actors[actor];
        found.condition = Condition::Over;
        let answer = (found.is_crashed, found.is_excused);
        self.choose(&mut state);
        self.moved.notify_all();
        answer
    }

    /// Runs all actors until each is over or asleep.
    pub(super) fn run(&self, seed: u64, weather: Weather) {
        let mut state = self.lock();
        state.random = Random::new(seed);
        state.weather = Some(weather);
        state.round_steps = 0;
        self.choose(&mut state);
        while state.weather.is_some() {
            state = self.moved.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Decides who goes on, once everybody waits; the round is over when nobody can. Whoever comes to wait last does
    /// this, so that one who goes on himself need not wait for another thread.
    fn choose(&self, state: &mut State) {
        let Some(weather) = state.weather else { return };
        loop {
            if state.actors.iter().any(|actor| actor.condition == Condition::Busy) {
                return;
            }
            let is_ready = |actor: &usize| state.actors[*actor].condition == Condition::Ready;
            let ready: Vec<_> = (0..state.actors.len()).filter(is_ready).collect();
            if ready.is_empty() {
                state.weather = None;
                self.moved.notify_all();
                return;
            }
            state.round_steps += 1;
            if weather.power_loss.is_some_and(|after| state.round_steps > after) {
                self.lose_power(state);
                continue;
            }
            let State { random, actors, clock, last, .. } = state;
            // Mostly the same one goes on: what goes wrong needs few changes, at the right moment.
            let chosen = if ready.contains(last) && random.below(weather.burst) > 0 {
                *last
            } else {
                ready[usize::try_from(random.below(ready.len() as u64)).unwrap()]
            };
            *last = chosen;
            *clock += i64::try_from(random.below(1_000_000_000)).unwrap();
            if random.below(10_000) < weather.naps {
                actors[chosen].condition = Condition::Asleep;
                continue;
            }
            let fortune = if random.below(10_000) < weather.faults {
                let fortunes = [
                    Fortune::Repeated,
                    Fortune::FailedBefore,
                    Fortune::FailedAfter,
                    Fortune::CrashedBefore,
                    Fortune::CrashedAfter,
                ];
                fortunes[usize::try_from(random.below(5)).unwrap()]
            } else {
                Fortune::Done
            };
            actors[chosen].condition = Condition::Busy;
            actors[chosen].fortune = Some(fortune);
            self.moved.notify_all();
            return;
        }
    }

    /// Wakes those who sleep, each or none with even odds unless `all`.
    pub(super) fn wake(&self, all: bool) {
        let mut state = self.lock();
        let State { actors, random, .. } = &mut *state;
        for actor in actors.iter_mut().filter(|actor| actor.condition == Condition::Asleep) {
            if all || random.below(2) == 0 {
                actor.condition = Condition::Ready;
            }
        }
    }

    /// Everybody crashes; what was not synced is undone, or not.
    fn lose_power(&self, state: &mut State) {
        for actor in &mut state.actors {
            if matches!(actor.condition, Condition::Ready | Condition::Asleep) {
                actor.condition = Condition::Busy;
                actor.fortune = Some(Fortune::CrashedBefore);
            }
        }
        for name in std::mem::take(&mut state.loose_puts) {
            if state.random.below(2) == 0 {
                self.remove_now(state, &name);
            }
        }
        for (name, (bytes, put)) in std::mem::take(&mut state.loose_removals) {
            if state.random.below(2) == 0 && !state.put_at.contains_key(&name) {
                let path = Path::from(name.as_str());
                ready(self.objects.put(&path, PutPayload::from(bytes))).unwrap();
                state.put_at.insert(name, put);
            }
        }
        self.moved.notify_all();
    }

    fn remove_now(&self, state: &mut State, name: &str) {
        let _ = ready(self.objects.delete(&Path::from(name)));
        state.put_at.remove(name);
    }

    /// Waits for the actor's turn. Answers what befalls the operation.
    fn turn(&self, actor: Option<usize>) -> Result<Fortune> {
        let Some(actor) = actor else { return Ok(Fortune::Done) };
        let mut state = self.lock();
        if state.actors[actor].is_crashed {
            return Err(failure("crashed"));
        }
        state.actors[actor].condition = Condition::Ready;
        self.choose(&mut state);
        loop {
            if let Some(fortune) = state.actors[actor].fortune.take() {
                let found = &mut state.actors[actor];
                found.is_excused |= fortune != Fortune::Done && fortune != Fortune::Repeated;
                found.is_crashed = matches!(fortune, Fortune::CrashedBefore | Fortune::CrashedAfter);
                state.steps += 1;
                return Ok(fortune);
            }
            state = self.moved.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// One operation: `act` may be done twice, or never.
    fn operate<T>(&self, actor: Option<usize>, act: impl Fn(&mut State) -> Result<T>) -> Result<T> {
        let fortune = self.turn(actor)?;
        let mut state = self.lock();
        match fortune {
            Fortune::Done => act(&mut state),
            Fortune::Repeated => act(&mut state).and_then(|_| act(&mut state)),
            Fortune::FailedBefore | Fortune::CrashedBefore => Err(failure("timed out")),
            Fortune::FailedAfter | Fortune::CrashedAfter => {
                let _ = act(&mut state);
                Err(failure("timed out"))
            }
        }
    }
}

/// What the objects in memory answer, which they do at once.
fn ready<T>(answer: impl Future<Output = T>) -> T {
    answer.now_or_never().expect("memory answers at once")
}

fn failure(what: &'static str) -> object_store::Error {
    let source = std::io::Error::new(std::io::ErrorKind::TimedOut, what);
    object_store::Error::Generic { store: "simulated", source: Box::new(source) }
}

/// The world as one actor sees it; without an actor, operations are done at once and go well.
#[derive(Debug, Clone)]
pub(super) struct View {
    pub(super) world: Arc<World>,
    pub(super) actor: Option<usize>,
}

impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("simulated")
    }
}

impl View {
    fn dated(&self, state: &State, mut meta: ObjectMeta) -> ObjectMeta {
        let nanoseconds = state.put_at.get(meta.location.as_ref()).copied().unwrap_or_default();
        meta.last_modified = Default::default();
        meta.last_modified += Duration::from_nanos(u64::try_from(nanoseconds).unwrap());
        meta
    }

    /// A listing takes a while: one half of the names is looked at first, and then the other.
    fn listed(&self, prefix: Option<&Path>) -> Result<Vec<ObjectMeta>> {
        let world = &self.world;
        let all = || {
            let listing = world.objects.list(prefix);
            ready(listing.collect::<Vec<_>>())
        };
        if self.actor.is_none() {
            let state = world.lock();
            return all().into_iter().map(|meta| Ok(self.dated(&state, meta?))).collect();
        }
        let half = |wanted: bool| {
            world.operate(self.actor, |state| {
                // Which half a name is in has nothing to do with its order.
                let is_in = |meta: &Result<ObjectMeta>| {
                    meta.as_ref().is_ok_and(|meta| {
                        (blake3::hash(meta.location.as_ref().as_bytes()).as_bytes()[0] < 128) == wanted
                    })
                };
                all().into_iter().filter(is_in).map(|meta| Ok(self.dated(state, meta?))).collect::<Result<Vec<_>>>()
            })
        };
        let mut found = half(true)?;
        found.extend(half(false)?);
        Ok(found)
    }

    fn delete_one(&self, location: &Path) -> Result<()> {
        let world = &self.world;
        world.operate(self.actor, |state| {
            let bytes = ready(async { world.objects.get(location).await?.bytes().await })?;
            let name = location.to_string();
            if name.starts_with("data/") || name.starts_with("node/") {
                state.deleted_packs += 1;
            }
            ready(world.objects.delete(location))?;
            let put = state.put_at.remove(&name).unwrap_or_default();
            state.loose_puts.remove(&name);
            state.loose_removals.insert(name, (bytes, put));
            Ok(())
        })
    }
}

impl Settle for View {
    fn settle(&self, folder: &str) -> std::io::Result<()> {
        let settled = self.world.operate(self.actor, |state| {
            if state.mutant == Some(StoreMutant::RemovalWithoutSync)
                && ["snap", "fate"].iter().any(|f| folder.starts_with(f))
            {
                return Ok(());
            }
            state.loose_removals.retain(|name, _| name.rsplit_once('/').map_or("", |(folder, _)| folder) != folder);
            Ok(())
        });
        settled.map_err(std::io::Error::other)
    }
}

#[async_trait::async_trait]
impl ObjectStore for View {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let world = &self.world;
        world.operate(self.actor, |state| {
            let put = world.objects.put_opts(location, payload.clone(), options.clone());
            let answer = ready(put)?;
            state.put_at.insert(location.to_string(), state.clock);
            state.loose_removals.remove(location.as_ref());
            if state.mutant == Some(StoreMutant::PutWithoutSync) {
                state.loose_puts.insert(location.to_string());
            }
            Ok(answer)
        })
    }

    async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        Err(failure("not simulated"))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let world = &self.world;
        world.operate(self.actor, |state| {
            let mut found = ready(world.objects.get_opts(location, options.clone()))?;
            found.meta = self.dated(state, found.meta);
            Ok(found)
        })
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let view = self.clone();
        locations
            .map(move |location| {
                let location = location?;
                view.delete_one(&location)?;
                Ok(location)
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let found = match self.listed(prefix) {
            Ok(found) => found.into_iter().map(Ok).collect(),
            Err(error) => vec![Err(error)],
        };
        futures::stream::iter(found).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let world = &self.world;
        world.operate(self.actor, |state| {
            let mut found = ready(world.objects.list_with_delimiter(prefix))?;
            found.objects = found.objects.into_iter().map(|meta| self.dated(state, meta)).collect();
            Ok(found)
        })
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        Err(failure("not simulated"))
    }
}
