//! Limits: how large the pool may grow, and what happens when it is full.
//!
//! `setting/<n>` says all settings; the highest number that can be read counts. Sealed under the structure key; the AAD
//! has the pool's UUID, the number and `"setting"`. Fields: `1` most bytes, `2` bytes to be left free on the pool's file
//! system, `3` one byte, what to do when it is full: 0 stop, 1 drop the oldest.

use crate::fields::{FieldWriter, Fields};
use crate::listing::Snapshot;
use crate::manifest::{open_structure, seal_structure};
use crate::names;
use crate::object::ObjectKind;
use crate::pool::Pool;
use crate::prune::{PruneOptions, PruneProgress};
use crate::rebuild::stored_packs;
use firn_disk::{Error, ErrorKind, Result};
use std::sync::atomic::{AtomicU64, Ordering};

const MOST_BYTES: u16 = 1;
const RESERVE: u16 = 2;
const WHEN_FULL: u16 = 3;
const MOST_ATTEMPTS: usize = 100;

/// What a snapshot does that finds the pool full.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum WhenFull {
    /// It fails; nothing is removed.
    #[default]
    Stop,
    /// The oldest snapshots that are not locked are forgotten, never the last of a machine. Their space comes back when
    /// the grace of prune is over, so what does not fit until then fails all the same.
    DropOldest,
}

impl WhenFull {
    /// A word for people and for `--json`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::DropOldest => "drop-oldest",
        }
    }
}

/// How large the pool may grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// The most bytes of all its objects.
    pub max_bytes: Option<u64>,
    /// Bytes that stay free on the file system that the pool is on.
    pub reserve_bytes: Option<u64>,
    /// What happens when either is reached.
    pub when_full: WhenFull,
}

impl Pool {
    fn setting_context(&self, number: u64) -> Vec<u8> {
        [self.header().pool.as_bytes().as_slice(), &number.to_le_bytes(), b"setting"].concat()
    }

    fn read_limits(&self, number: u64) -> Result<Limits> {
        let blobs = self.blobs();
        let object = blobs.store.get(&names::setting(number))?;
        let fields = open_structure(&blobs.keys, ObjectKind::Note, &self.setting_context(number), &object)?;
        let fields = Fields::parse(&fields, "setting", &[])?;
        let when_full = match fields.array(WHEN_FULL)? {
            [0] => WhenFull::Stop,
            [1] => WhenFull::DropOldest,
            [other] => return Err(Error::unsupported(format!("what to do when full: {other} is not known"))),
        };
        Ok(Limits {
            max_bytes: fields.optional_u64(MOST_BYTES)?,
            reserve_bytes: fields.optional_u64(RESERVE)?,
            when_full,
        })
    }

    /// Whether the object called `name` is a sound setting.
    pub(crate) fn check_setting(&self, name: &str) -> Result<()> {
        let number = names::parse_setting(name).ok_or_else(|| Error::corrupt("no setting has such a name"))?;
        self.read_limits(number).map(|_| ())
    }

    fn settings(&self) -> Result<(u64, Limits)> {
        let objects = self.blobs().store.list("setting")?;
        let numbers: Vec<u64> = objects.iter().filter_map(|object| names::parse_setting(&object.name)).collect();
        let limits = numbers.iter().rev().find_map(|number| self.read_limits(*number).ok());
        Ok((numbers.last().copied().unwrap_or(0), limits.unwrap_or_default()))
    }

    /// How large the pool may grow; without limits where nothing was set, or nothing of it can be read.
    ///
    /// # Errors
    /// What the store says.
    pub fn limits(&self) -> Result<Limits> {
        self.settings().map(|(_, limits)| limits)
    }

    /// What may still be stored in a pool whose packs have `pack_bytes`. When it is full already, the oldest snapshots
    /// are forgotten, if it was set so, and prune takes what its grace lets it.
    ///
    /// # Errors
    /// `Unavailable` when there is no room.
    pub(crate) fn make_room(&self, pack_bytes: u64) -> Result<Room> {
        let limits = self.limits()?;
        let mut room = Room::new(limits, self.bytes_beside(&limits, pack_bytes)?);
        let excess = room.excess(self, 0)?;
        if excess == 0 {
            return Ok(room);
        }
        if limits.when_full == WhenFull::DropOldest {
            self.drop_oldest(excess)?;
            self.prune(&PruneOptions::default(), &PruneProgress::default())?;
            let packs = stored_packs(&self.blobs().store)?;
            let pack_bytes = packs.values().flatten().map(|(_, object)| object.size).sum();
            room = Room::new(limits, self.bytes_beside(&limits, pack_bytes)?);
        }
        if room.excess(self, 0)? > 0 { Err(full(&limits)) } else { Ok(room) }
    }

    /// All bytes of the pool, where it matters.
    fn bytes_beside(&self, limits: &Limits, pack_bytes: u64) -> Result<u64> {
        if limits.max_bytes.is_none() {
            return Ok(pack_bytes);
        }
        let small = ["idx", "snap", "key", "note", "lock", "fate", "tomb", "lease", "setting"];
        let bytes = |folder: &&str| Ok(self.blobs().store.list(folder)?.iter().map(|object| object.size).sum::<u64>());
        small.iter().map(bytes).try_fold(pack_bytes, |sum, bytes: Result<u64>| Ok(sum.saturating_add(bytes?)))
    }

    /// Forgets the oldest snapshots that are not locked, until about `excess` bytes were theirs; of no machine the last.
    fn drop_oldest(&self, excess: u64) -> Result<()> {
        let now = self.store_time()?;
        let mut candidates = Vec::new();
        for machine in self.machines()? {
            let mut snapshots = self.snapshots(machine.uuid)?;
            snapshots.pop();
            candidates.extend(snapshots.into_iter().filter(|snapshot| snapshot.locks.is_open(now)));
        }
        let created = |snapshot: &Snapshot| snapshot.manifest.as_ref().map(|manifest| manifest.created).ok();
        candidates.retain(|snapshot| created(snapshot).is_some());
        candidates.sort_by_key(created);
        let mut freed = 0_u64;
        for snapshot in candidates {
            if freed >= excess {
                break;
            }
            self.forget(&snapshot)?;
            freed += snapshot.manifest.map_or(0, |manifest| manifest.statistics.bytes_stored);
        }
        Ok(())
    }

    /// Sets how large the pool may grow, from the next snapshot on.
    ///
    /// # Errors
    /// What the store says; `Unsupported`, `Denied` when the pool cannot be written.
    pub fn set_limits(&self, limits: &Limits) -> Result<()> {
        self.writable()?;
        let blobs = self.blobs();
        let mut fields = FieldWriter::default();
        for (tag, value) in [(MOST_BYTES, limits.max_bytes), (RESERVE, limits.reserve_bytes)] {
            if let Some(value) = value {
                fields.u64(tag, value);
            }
        }
        fields.bytes(WHEN_FULL, &[limits.when_full as u8]);
        let fields = fields.finish();
        for _ in 0..MOST_ATTEMPTS {
            let number = self.settings()?.0 + 1;
            let context = self.setting_context(number);
            let object = seal_structure(&blobs.keys, ObjectKind::Note, &context, &fields, self.entropy())?;
            match blobs.store.create_own(&names::setting(number), &object.into()) {
                Err(error) if error.kind() == ErrorKind::Exists => {}
                written => return written,
            }
        }
        Err(Error::new(ErrorKind::Unavailable, "others change the settings of this pool all the time"))
    }
}

/// What a snapshot may still store.
#[derive(Debug)]
pub(crate) struct Room {
    limits: Limits,
    /// Bytes of all objects, as far as this process knows.
    stored: AtomicU64,
}

impl Room {
    /// For a pool of `stored` bytes.
    pub(crate) fn new(limits: Limits, stored: u64) -> Self {
        Self { limits, stored: AtomicU64::new(stored) }
    }

    /// How many bytes too many the pool has when `more` are added; zero when they fit.
    ///
    /// # Errors
    /// What the system says when it is asked for free space.
    pub(crate) fn excess(&self, pool: &Pool, more: u64) -> Result<u64> {
        let stored = self.stored.load(Ordering::Relaxed).saturating_add(more);
        let over = self.limits.max_bytes.map_or(0, |most| stored.saturating_sub(most));
        let short = match (self.limits.reserve_bytes, pool.blobs().store.free_bytes()?) {
            (Some(reserve), Some(free)) => reserve.saturating_add(more).saturating_sub(free),
            _ => 0,
        };
        Ok(over.max(short))
    }

    /// Takes `bytes` of the room before they are stored.
    ///
    /// # Errors
    /// `Unavailable` when they do not fit.
    pub(crate) fn take(&self, pool: &Pool, bytes: u64) -> Result<()> {
        if self.limits.max_bytes.is_none() && self.limits.reserve_bytes.is_none() {
            return Ok(());
        }
        if self.excess(pool, bytes)? > 0 {
            return Err(full(&self.limits));
        }
        self.stored.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }
}

pub(crate) fn full(limits: &Limits) -> Error {
    let hint = match limits.when_full {
        WhenFull::Stop => "`firn forget` and `firn prune` make room, `firn pool set` moves the limit",
        WhenFull::DropOldest => {
            "the oldest snapshots were forgotten as far as they may; their space comes back with prune after the grace"
        }
    };
    Error::new(ErrorKind::Unavailable, "the pool has reached the limit that was set for it").hint(hint)
}
