//! One pool's side of snapshots: what the last one left, and how one is taken step by step.

use crate::machine::Machine;
use firn_disk::{Disk, Result};
use firn_source::{Changed, FrozenDisk, Outcome, Plan, PreviousDisk, Request, Source, SourceOptions, open};
use std::collections::BTreeMap;

pub const OWNER: &str = "0123456789abcdef";

/// A pool's memory of one machine.
#[derive(Debug, Default, Clone)]
pub struct Pool {
    pub request: Request,
    runs: u32,
    /// What the last snapshot of each disk holds.
    pub stored: BTreeMap<String, Vec<u8>>,
}

/// What a snapshot was like.
#[derive(Debug)]
pub struct Taken {
    pub plan: Plan,
    /// Bytes read of each disk; `None` where all were.
    pub read: BTreeMap<String, Option<u64>>,
    pub why_all: BTreeMap<String, String>,
}

impl Pool {
    pub fn new(owner: &str) -> Self {
        let request = Request { machine: "m".to_owned(), owner: owner.to_owned(), ..Request::default() };
        Self { request, ..Self::default() }
    }

    /// A request for the next run.
    pub fn next(&mut self) -> Request {
        self.runs += 1;
        self.request.run = format!("{:08x}", self.runs);
        self.request.clone()
    }

    /// Takes a snapshot by all steps; `meanwhile` happens after the instant and before anything is read.
    pub fn take(&mut self, uri: &str, meanwhile: impl FnOnce()) -> Result<Taken> {
        let mut source = source(uri);
        let request = self.next();
        let taken = self.steps(source.as_mut(), &request, meanwhile);
        let outcome = if taken.is_ok() { Outcome::Published } else { Outcome::Failed };
        let finished = source.finish(outcome);
        let taken = taken?;
        finished?;
        Ok(taken)
    }

    pub fn steps(&mut self, source: &mut dyn Source, request: &Request, meanwhile: impl FnOnce()) -> Result<Taken> {
        let plan = source.plan(request)?;
        source.prepare(request)?;
        source.cut()?;
        meanwhile();
        let disks = source.open()?;
        let mut taken = Taken { plan, read: BTreeMap::new(), why_all: BTreeMap::new() };
        let mut stored = BTreeMap::new();
        for disk in &disks {
            stored.insert(disk.name.clone(), self.read(disk, &mut taken)?);
        }
        source.check()?;
        self.stored = stored;
        self.request.previous = disks.iter().map(previous).collect();
        Ok(taken)
    }

    /// What changed is read, the rest comes from the last snapshot.
    fn read(&self, frozen: &FrozenDisk, taken: &mut Taken) -> Result<Vec<u8>> {
        let length = usize::try_from(frozen.disk.len()).unwrap();
        let mut bytes = vec![0xee; length];
        match &frozen.changed {
            Changed::Unknown(reason) => {
                frozen.disk.read_at(&mut bytes, 0)?;
                taken.read.insert(frozen.name.clone(), None);
                taken.why_all.insert(frozen.name.clone(), reason.clone());
            }
            Changed::Since(ranges) => {
                bytes.copy_from_slice(&self.stored[&frozen.name]);
                let mut read = 0;
                for range in ranges {
                    let at = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
                    frozen.disk.read_at(&mut bytes[at], range.start)?;
                    read += range.end - range.start;
                }
                taken.read.insert(frozen.name.clone(), Some(read));
            }
        }
        Ok(bytes)
    }
}

pub fn previous(disk: &FrozenDisk) -> PreviousDisk {
    PreviousDisk {
        name: disk.name.clone(),
        length: disk.disk.len(),
        source: disk.source.clone(),
        generation: disk.generation.clone(),
    }
}

pub fn source(uri: &str) -> Box<dyn Source> {
    open(uri, &SourceOptions::default()).unwrap()
}

/// That the pool holds what the machine's disks held when `expected` was taken from them.
pub fn assert_stored(pool: &Pool, expected: &BTreeMap<String, Vec<u8>>) {
    assert_eq!(pool.stored.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (name, bytes) in expected {
        let stored = &pool.stored[name];
        assert_eq!(stored.len(), bytes.len(), "{name}");
        let wrong = stored.iter().zip(bytes).position(|(stored, expected)| stored != expected);
        assert_eq!(wrong, None, "{name}: the first byte that differs");
    }
}

/// What the disks hold now, by the names that firn gives them in the order of the machine's.
pub fn content(machine: &Machine) -> BTreeMap<String, Vec<u8>> {
    let names = ('a'..='z').map(|letter| format!("vd{letter}"));
    names.zip(machine.disks.values().map(|disk| disk.bytes.clone())).collect()
}
