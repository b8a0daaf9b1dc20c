//! Locks: what keeps a snapshot from being forgotten, in numbered notes on it.
//!
//! `lock/<snapshot>-<n>` says all that holds from then on; the highest number that can be read counts, except that a
//! compliance lock, once said, lasts until its end whatever a later note says. Numbers are taken one after the other
//! and only once, so of two who change the locks at once the second sees what the first did. Forgetting takes a number,
//! too: a snapshot is locked or forgotten, never both.
//!
//! Sealed under the structure key; the AAD has the snapshot's UUID, the number and `"lock"`. Fields: `1` governance until,
//! nanoseconds; `2` compliance until; `3` (repeats) a hold: fields `1` owner, `2` since; `4` forgotten, one byte `1`.

use crate::clock;
use crate::entropy::Entropy;
use crate::fields::{FieldWriter, Fields};
use crate::key::Keys;
use crate::listing::Snapshot;
use crate::manifest::{open_structure, seal_structure};
use crate::names;
use crate::object::ObjectKind;
use crate::pool::Pool;
use crate::store::Store;
use firn_disk::{Error, ErrorKind, Result};
use jiff::Timestamp;
use std::collections::BTreeMap;
use uuid::Uuid;

const GOVERNANCE: u16 = 1;
const COMPLIANCE: u16 = 2;
const HOLD: u16 = 3;
const FORGOTTEN: u16 = 4;
/// Others may take a number first; nobody loses this often.
const MOST_ATTEMPTS: usize = 100;
/// An owner's name is a short text.
const MOST_OWNER_BYTES: usize = 200;

/// What somebody keeps a snapshot for, until that one says otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    /// Who, in words.
    pub owner: String,
    /// Since when, by the store's clock.
    pub since: Timestamp,
}

/// Everything that keeps a snapshot from being forgotten.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Locks {
    /// Until then nobody forgets it by mistake or by rule; whoever has the key may lift this.
    pub governance: Option<Timestamp>,
    /// Until then nobody forgets it.
    pub compliance: Option<Timestamp>,
    /// As long as there is any, it is not forgotten.
    pub holds: Vec<Hold>,
    /// A note on the snapshot is damaged, so there may be more; it counts as locked.
    pub is_damaged: bool,
}

impl Locks {
    /// Whether nothing was ever said, or nothing of it holds at `now`.
    pub fn is_open(&self, now: Timestamp) -> bool {
        self.reason(now).is_none()
    }

    /// Why the snapshot cannot be forgotten at `now`, for people; `None` when it can.
    pub fn reason(&self, now: Timestamp) -> Option<String> {
        let time = |time: Timestamp| time.strftime("%Y-%m-%dT%H:%M:%SZ");
        if let Some(until) = self.compliance.filter(|until| *until > now) {
            return Some(format!("locked (compliance) until {}", time(until)));
        }
        if let Some(hold) = self.holds.first() {
            return Some(format!("held for {}", hold.owner));
        }
        if let Some(until) = self.governance.filter(|until| *until > now) {
            return Some(format!("locked until {}", time(until)));
        }
        self.is_damaged.then(|| "a note on it is damaged, so it may be locked".to_owned())
    }
}

/// A lock to be put on a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lock {
    /// Until then, in place of another governance lock.
    Governance(Timestamp),
    /// Until then; an earlier end than it has is refused.
    Compliance(Timestamp),
    /// For this owner.
    Hold(String),
}

/// A lock to be lifted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unlock {
    /// The governance lock.
    Governance,
    /// This owner's hold.
    Hold(String),
}

/// What the notes on one snapshot say.
#[derive(Debug, Clone, Default)]
pub(crate) struct Noted {
    pub(crate) locks: Locks,
    pub(crate) is_forgotten: bool,
    last: u64,
}

#[derive(Debug, Default)]
struct Note {
    governance: Option<Timestamp>,
    compliance: Option<Timestamp>,
    holds: Vec<Hold>,
    is_forgotten: bool,
}

fn context(snapshot: Uuid, number: u64) -> Vec<u8> {
    [snapshot.as_bytes().as_slice(), &number.to_le_bytes(), b"lock"].concat()
}

fn write(store: &Store, keys: &Keys, snapshot: Uuid, number: u64, note: &Note, entropy: &dyn Entropy) -> Result<()> {
    let mut fields = FieldWriter::default();
    for (tag, until) in [(GOVERNANCE, note.governance), (COMPLIANCE, note.compliance)] {
        if let Some(until) = until {
            fields.i64(tag, clock::to_nanoseconds(until)?);
        }
    }
    for hold in &note.holds {
        let mut inner = FieldWriter::default();
        inner.text(1, &hold.owner).i64(2, clock::to_nanoseconds(hold.since)?);
        fields.bytes(HOLD, &inner.finish());
    }
    if note.is_forgotten {
        fields.bytes(FORGOTTEN, &[1]);
    }
    let object = seal_structure(keys, ObjectKind::Note, &context(snapshot, number), &fields.finish(), entropy)?;
    store.create_own(&names::lock(snapshot, number), &object.into())
}

fn read(store: &Store, keys: &Keys, snapshot: Uuid, number: u64) -> Result<Note> {
    let object = store.get(&names::lock(snapshot, number))?;
    let fields = open_structure(keys, ObjectKind::Note, &context(snapshot, number), &object)?;
    let fields = Fields::parse(&fields, "note on a snapshot", &[])?;
    let time = |tag| fields.optional(tag).map(|_| clock::from_nanoseconds(fields.i64(tag)?)).transpose();
    let hold = |bytes| {
        let fields = Fields::parse(bytes, "hold", &[])?;
        Ok(Hold { owner: fields.text(1)?, since: clock::from_nanoseconds(fields.i64(2)?)? })
    };
    Ok(Note {
        governance: time(GOVERNANCE)?,
        compliance: time(COMPLIANCE)?,
        holds: fields.all(HOLD).map(hold).collect::<Result<_>>()?,
        is_forgotten: fields.optional(FORGOTTEN).is_some(),
    })
}

/// Whether the object called `name` is a sound note on a snapshot.
pub(crate) fn check(store: &Store, keys: &Keys, name: &str) -> Result<()> {
    let (snapshot, number) = names::parse_lock(name).ok_or_else(|| Error::corrupt("no lock has such a name"))?;
    read(store, keys, snapshot, number).map(|_| ())
}

/// The numbers of the notes on each snapshot that has any.
#[derive(Debug, Default)]
pub(crate) struct LockNames(BTreeMap<Uuid, Vec<u64>>);

impl LockNames {
    /// # Errors
    /// What the store says.
    pub(crate) fn list(store: &Store) -> Result<Self> {
        let mut names: BTreeMap<Uuid, Vec<u64>> = BTreeMap::new();
        for object in store.list("lock")? {
            if let Some((snapshot, number)) = names::parse_lock(&object.name) {
                names.entry(snapshot).or_default().push(number);
            }
        }
        Ok(Self(names))
    }

    /// What the notes on a snapshot say.
    pub(crate) fn read(&self, store: &Store, keys: &Keys, snapshot: Uuid) -> Noted {
        let mut noted = Noted::default();
        for number in self.0.get(&snapshot).into_iter().flatten().copied() {
            noted.last = noted.last.max(number);
            match read(store, keys, snapshot, number) {
                Ok(note) => {
                    let locks = &mut noted.locks;
                    locks.governance = note.governance;
                    locks.compliance = locks.compliance.max(note.compliance);
                    locks.holds = note.holds;
                    noted.is_forgotten |= note.is_forgotten;
                }
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(_) => noted.locks.is_damaged = true,
            }
        }
        noted
    }
}

impl Pool {
    /// The store's time: what locks are measured by.
    ///
    /// # Errors
    /// What the store says, which must let objects be put.
    pub fn store_time(&self) -> Result<Timestamp> {
        clock::from_nanoseconds(self.blobs().store.now(self.blobs().keys.domain, self.entropy())?.0)
    }

    /// Puts a lock on a snapshot and answers all that it has then.
    ///
    /// # Errors
    /// `Invalid` for an end that is past or an owner without a name; `Denied` for a compliance lock that would end
    /// earlier; `NotFound` when the snapshot was forgotten meanwhile; what the store says.
    pub fn lock(&self, snapshot: &Snapshot, lock: &Lock) -> Result<Locks> {
        let now = self.store_time()?;
        self.change_locks(snapshot.uuid, |locks| {
            match lock {
                Lock::Governance(until) | Lock::Compliance(until) if *until <= now => {
                    return Err(Error::invalid(format!("{until} is past, by the clock of the pool's store")));
                }
                Lock::Governance(until) => locks.governance = Some(*until),
                Lock::Compliance(until) => {
                    if let Some(end) = locks.compliance.filter(|end| end > until) {
                        return Err(Error::new(ErrorKind::Denied, "a compliance lock is never shortened")
                            .hint(format!("it lasts until {end}; name that time or a later one")));
                    }
                    locks.compliance = Some(*until);
                }
                Lock::Hold(owner) => {
                    if owner.is_empty() || owner.len() > MOST_OWNER_BYTES || owner.chars().any(char::is_control) {
                        return Err(Error::invalid("the owner of a hold is a short text"));
                    }
                    if locks.holds.iter().all(|hold| hold.owner != *owner) {
                        locks.holds.push(Hold { owner: owner.clone(), since: now });
                    }
                }
            }
            Ok(())
        })
    }

    /// Lifts a lock and answers what is left.
    ///
    /// # Errors
    /// `NotFound` when there is no such lock; what the store says. A compliance lock cannot be named here.
    pub fn unlock(&self, snapshot: &Snapshot, unlock: &Unlock) -> Result<Locks> {
        self.change_locks(snapshot.uuid, |locks| match unlock {
            Unlock::Governance => {
                let none = || Error::not_found("this snapshot has no lock that could be lifted");
                locks.governance.take().map(|_| ()).ok_or_else(none)
            }
            Unlock::Hold(owner) => {
                let before = locks.holds.len();
                locks.holds.retain(|hold| hold.owner != *owner);
                if locks.holds.len() == before {
                    let owners: Vec<_> = locks.holds.iter().map(|hold| hold.owner.as_str()).collect();
                    let hint = if owners.is_empty() { "nobody".to_owned() } else { owners.join(", ") };
                    return Err(Error::not_found(format!("{owner} does not hold this snapshot"))
                        .hint(format!("it is held for: {hint}")));
                }
                Ok(())
            }
        })
    }

    fn change_locks(&self, snapshot: Uuid, change: impl Fn(&mut Locks) -> Result<()>) -> Result<Locks> {
        self.shared()?;
        self.add_note(snapshot, |noted| {
            change(&mut noted.locks)?;
            let Locks { governance, compliance, holds, .. } = noted.locks.clone();
            Ok(Note { governance, compliance, holds, is_forgotten: false })
        })
        .map(|noted| noted.locks)
    }

    /// Whether a note says that a snapshot was forgotten.
    ///
    /// # Errors
    /// What the store says.
    pub(crate) fn is_forgotten(&self, snapshot: Uuid) -> Result<bool> {
        let blobs = self.blobs();
        Ok(LockNames::list(&blobs.store)?.read(&blobs.store, &blobs.keys, snapshot).is_forgotten)
    }

    /// Says for good that a snapshot is forgotten, unless a lock forbids that.
    ///
    /// # Errors
    /// `Denied` when it is locked.
    pub(crate) fn note_forgotten(&self, snapshot: Uuid, despite_damage: bool) -> Result<()> {
        let blobs = self.blobs();
        let names = LockNames::list(&blobs.store)?;
        let has_notes = names.0.contains_key(&snapshot);
        let now = if has_notes { self.store_time()? } else { Timestamp::MIN };
        let noted = self.add_note(snapshot, |noted| {
            let mut locks = noted.locks.clone();
            locks.is_damaged &= !despite_damage;
            if let Some(reason) = locks.reason(now) {
                let hint = if locks.compliance.is_some_and(|until| until > now) {
                    "nobody can lift a compliance lock"
                } else {
                    "`firn unlock` lifts it"
                };
                return Err(Error::new(ErrorKind::Denied, format!("the snapshot is {reason}")).hint(hint));
            }
            Ok(Note { is_forgotten: true, compliance: locks.compliance, ..Note::default() })
        });
        match noted {
            // Somebody else is at it, or was stopped.
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            // Where not even a note fits, forgetting must still make room. The locks were looked at.
            Err(error) if error.kind() == ErrorKind::Unavailable => Ok(()),
            noted => noted.map(|_| ()),
        }
    }

    /// Adds the next note on a snapshot. `next` makes it from what the earlier ones say.
    fn add_note(&self, snapshot: Uuid, next: impl Fn(&mut Noted) -> Result<Note>) -> Result<Noted> {
        let blobs = self.blobs();
        for _ in 0..MOST_ATTEMPTS {
            let mut noted = LockNames::list(&blobs.store)?.read(&blobs.store, &blobs.keys, snapshot);
            if noted.is_forgotten {
                return Err(Error::not_found("the snapshot was forgotten"));
            }
            let note = next(&mut noted)?;
            match write(&blobs.store, &blobs.keys, snapshot, noted.last + 1, &note, self.entropy()) {
                Ok(()) => return Ok(noted),
                Err(error) if error.kind() == ErrorKind::Exists => {}
                Err(error) => return Err(error),
            }
        }
        Err(Error::new(ErrorKind::Io, "others change the locks of this snapshot all the time"))
    }
}
