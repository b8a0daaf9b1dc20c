//! [`Pool`]: making and opening one, its keys, and what the other modules share.

use crate::blobs::Blobs;
use crate::chunker::{Chunker, CutParameters};
use crate::disk::PoolDisk;
use crate::entropy::{Entropy, SystemEntropy, random_bytes, random_uuid};
use crate::header::Header;
use crate::index::Index;
use crate::key::slot::{self, Slot};
use crate::key::{Credential, KeySlotInfo, Keys, NewCredential, RecoveryKey, Scope, SlotKind};
use crate::manifest::DiskRecord;
use crate::mutant::Mutant;
use crate::names::{self, Copy};
use crate::object::FORMAT_VERSION;
use crate::store::Store;
use firn_disk::{Error, ErrorKind, Result};
use jiff::Timestamp;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use uuid::Uuid;
use zeroize::Zeroizing;

/// How a new pool is made.
#[derive(Debug)]
pub struct InitOptions<'a> {
    /// What shall open it.
    pub credential: NewCredential,
    /// A pool whose key domain the new one joins: same keys, same chunk ids. Its key slots are copied, and
    /// `credential` becomes one more, unless it is [`NewCredential::Clear`].
    pub same_keys_as: Option<&'a Pool>,
    /// How disks are cut.
    pub cut: CutParameters,
    /// Now.
    pub created: Timestamp,
    /// Where random bytes come from.
    pub entropy: Arc<dyn Entropy>,
}

/// How a pool is opened.
#[derive(Debug)]
pub struct OpenOptions {
    /// What the user brings, if anything.
    pub credential: Option<Credential>,
    /// The folder under which every pool has its cache folder; `None` works without.
    pub cache_folder: Option<PathBuf>,
    /// Where random bytes come from.
    pub entropy: Arc<dyn Entropy>,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self { credential: None, cache_folder: None, entropy: Arc::new(SystemEntropy) }
    }
}

/// What anybody can tell of a pool.
#[derive(Debug, Clone)]
pub struct PublicInfo {
    /// The pool's UUID.
    pub pool: Uuid,
    /// The UUID of its key domain: pools of one domain share keys and chunk ids.
    pub domain: Uuid,
    /// When it was made.
    pub created: Timestamp,
    /// How disks are cut.
    pub cut: CutParameters,
    /// Format version.
    pub version: u8,
    /// Its key slots.
    pub slots: Vec<KeySlotInfo>,
}

/// What can be told of an open pool.
#[derive(Debug, Clone)]
pub struct PoolInfo {
    /// What anybody can tell.
    pub public: PublicInfo,
    /// What the key that opened it gives.
    pub scope: Scope,
    /// Machines that have snapshots.
    pub machines: u64,
    /// Snapshots.
    pub snapshots: u64,
    /// Packs of chunks.
    pub data_packs: u64,
    /// Packs of tree nodes, each stored twice.
    pub node_packs: u64,
    /// Blobs that the index knows.
    pub blobs: u64,
    /// Bytes of all objects.
    pub stored_bytes: u64,
}

/// An open pool.
///
/// Any number of processes may have one pool open, and any number may write to it at once.
#[derive(Debug)]
pub struct Pool {
    blobs: Arc<Blobs>,
    header: Header,
    chunker: Option<Chunker>,
    entropy: Arc<dyn Entropy>,
    mutant: Option<Mutant>,
    /// One thread does everything, one thing after the other.
    is_simulated: bool,
}

/// The cache folder of the user that runs this: `$XDG_CACHE_HOME/firn` or `~/.cache/firn`.
pub fn default_cache_folder() -> Option<PathBuf> {
    let absolute = |path: PathBuf| path.is_absolute().then_some(path);
    std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .and_then(absolute)
        .or_else(|| Some(absolute(PathBuf::from(std::env::var_os("HOME")?))?.join(".cache")))
        .map(|folder| folder.join("firn"))
}

impl Pool {
    /// Makes a pool at `location` and answers the recovery key that opens it, unless the pool has no password or
    /// joined a key domain that has its own recovery keys.
    ///
    /// # Errors
    /// `Exists` when there is a pool, or anything else in the folder; `Invalid` for a weak credential; what the
    /// store says. After an error there may be a folder but there is no pool.
    pub fn init(location: &str, options: &InitOptions<'_>) -> Result<Option<RecoveryKey>> {
        options.cut.check()?;
        let entropy = options.entropy.as_ref();
        let keys = match options.same_keys_as {
            None => Keys::from_master(random_uuid(entropy)?, Zeroizing::new(random_bytes(entropy)?))?,
            Some(other) => Keys::from_master(other.header.domain, other.blobs.keys.full()?.master.clone())?,
        };
        let mut slots = match options.same_keys_as {
            None => Vec::new(),
            Some(other) => read_slots(&other.blobs.store)?.0,
        };
        let mut recovery = None;
        let joins_with_own_slots = options.same_keys_as.is_some() && matches!(options.credential, NewCredential::Clear);
        if !joins_with_own_slots {
            let create = |credential: &NewCredential, label: &str| {
                Slot::create(&keys, credential, Scope::All, label, options.created, entropy)
            };
            slots.push(create(&options.credential, "")?);
            if options.same_keys_as.is_none() && !matches!(options.credential, NewCredential::Clear) {
                let key = RecoveryKey::generate(entropy)?;
                slots.push(create(&NewCredential::Recovery(key.clone()), "printed at init")?);
                recovery = Some(key);
            }
        }
        Self::init_store(&Store::create(location)?, location, slots, &keys, options)?;
        Ok(recovery)
    }

    fn init_store(
        store: &Store,
        location: &str,
        slots: Vec<Slot>,
        keys: &Keys,
        options: &InitOptions<'_>,
    ) -> Result<()> {
        let objects = store.list("")?;
        if !objects.is_empty() {
            let is_pool = objects.iter().any(|object| Copy::BOTH.map(names::header).contains(&object.name));
            let what = if is_pool { "there is a pool here already" } else { "this folder is not empty" };
            return Err(Error::new(ErrorKind::Exists, what)
                .at_path(location)
                .hint("name a folder that is empty or does not exist yet; a pool that exists needs no init"));
        }
        let header = Header::new(keys, random_uuid(options.entropy.as_ref())?, options.created, options.cut.check()?)?;
        let mut written = 0;
        let made = slots
            .iter()
            .try_for_each(|slot| write_slot(store, slot).inspect(|()| written += 1))
            // The header makes the pool; whoever comes second fails here.
            .and_then(|()| header.write(store));
        if made.is_err() {
            // So that the same command can be given again. What cannot be removed either is told of next time.
            for (slot, copy) in slots.iter().take(written).flat_map(|slot| Copy::BOTH.map(|copy| (slot, copy))) {
                let _ = store.delete(&names::key_slot(slot.info.uuid, copy));
            }
        }
        made
    }

    /// Makes a pool without a password in `store`.
    #[cfg(test)]
    pub(crate) fn init_clear(store: &Store, options: &InitOptions<'_>) -> Result<()> {
        let entropy = options.entropy.as_ref();
        let keys = Keys::from_master(random_uuid(entropy)?, Zeroizing::new(random_bytes(entropy)?))?;
        let slot = Slot::create(&keys, &options.credential, Scope::All, "", options.created, entropy)?;
        Self::init_store(store, store.location(), vec![slot], &keys, options)
    }

    /// What anybody can tell of the pool at `location`, without a key.
    ///
    /// # Errors
    /// `NotFound` when there is none; `Corrupt`, `Unsupported`.
    pub fn public_info(location: &str) -> Result<PublicInfo> {
        let store = Store::open(location)?;
        public_info(&Header::read(&store)?, &store)
    }

    /// Opens the pool at `location`.
    ///
    /// # Errors
    /// `NotFound` when there is none, `Denied` when no key slot opens with the credential, `Corrupt`,
    /// `Unsupported`.
    pub fn open(location: &str, options: OpenOptions) -> Result<Self> {
        Self::open_store(Store::open(location)?, options)
    }

    /// Opens the pool in `store`.
    pub(crate) fn open_store(store: Store, options: OpenOptions) -> Result<Self> {
        let header = Header::read(&store)?;
        let keys = unlock(&store, &header, options.credential.as_ref())?;
        header.check(&keys).map_err(|error| error.at_path(store.location()))?;
        let cache = options.cache_folder.map(|folder| folder.join(header.pool.to_string()));
        let index = Index::open(&store, header.domain, cache.as_deref())?;
        let chunker = keys.full().ok().map(|full| Chunker::new(full.cut.clone(), header.cut));
        let blobs = Arc::new(Blobs { store, index, keys });
        Ok(Self { blobs, header, chunker, entropy: options.entropy, mutant: None, is_simulated: false })
    }

    /// Whether all that is done shall be done by one thread, so that it happens in the same order each time.
    pub(crate) fn is_simulated(&self) -> bool {
        cfg!(test) && self.is_simulated
    }

    /// Whether this pool shall do one of the known wrong things, to see that the simulation notices.
    pub(crate) fn mutates(&self, mutant: Mutant) -> bool {
        cfg!(test) && self.mutant == Some(mutant)
    }

    #[cfg(test)]
    pub(crate) fn simulated(self, mutant: Option<Mutant>) -> Self {
        Self { mutant, is_simulated: true, ..self }
    }

    pub(crate) fn header(&self) -> &Header {
        &self.header
    }

    pub(crate) fn blobs(&self) -> &Blobs {
        &self.blobs
    }

    pub(crate) fn entropy(&self) -> &dyn Entropy {
        self.entropy.as_ref()
    }

    pub(crate) fn random_uuid(&self) -> Result<Uuid> {
        random_uuid(self.entropy())
    }

    pub(crate) fn chunker(&self) -> Result<&Chunker> {
        match &self.chunker {
            Some(chunker) => Ok(chunker),
            None => self.blobs.keys.full().and_then(|_| Err(Error::invalid("this pool cannot be cut by"))),
        }
    }

    /// # Errors
    /// `Unsupported` when a feature of the pool forbids this program to write, `Denied` when its key does.
    pub(crate) fn writable(&self) -> Result<()> {
        self.shared()?;
        self.blobs.keys.full().map(|_| ())
    }

    /// Whether objects may be put and removed here, as the structure key is enough for.
    ///
    /// # Errors
    /// `Unsupported` when a feature of the pool, or the want of one, forbids that.
    pub(crate) fn shared(&self) -> Result<()> {
        if !self.header.two_phase {
            return Err(Error::unsupported("this pool was made by an early firn; it can be read but not changed")
                .at_path(self.blobs.store.location())
                .hint("make a new pool and take its snapshots over: `firn restore`, then `firn snap`"));
        }
        if self.header.read_only {
            return Err(Error::unsupported("this pool has features that this firn can read but not write")
                .at_path(self.blobs.store.location())
                .hint("use the newer firn that made it"));
        }
        Ok(())
    }

    /// The pool's UUID.
    pub fn uuid(&self) -> Uuid {
        self.header.pool
    }

    /// A disk of a snapshot of this pool.
    pub fn disk(&self, record: &DiskRecord) -> PoolDisk {
        PoolDisk::new(self.blobs.clone(), record.clone())
    }

    /// Calls `visit` with each range of bytes in which two disks of this pool may differ, in order.
    ///
    /// What is not visited is equal; a visited range may hold equal bytes, as chunks are compared whole.
    ///
    /// # Errors
    /// What reading the trees says, and what `visit` says.
    pub fn changed_ranges(
        &self,
        a: &DiskRecord,
        b: &DiskRecord,
        visit: impl FnMut(Range<u64>) -> Result<()>,
    ) -> Result<()> {
        crate::diff::changed_ranges(&self.disk(a), &self.disk(b), visit)
    }

    /// Counts what there is.
    ///
    /// # Errors
    /// What the store says.
    pub fn info(&self) -> Result<PoolInfo> {
        let store = &self.blobs.store;
        let objects = store.list("")?;
        let count = |kind| {
            let of_kind =
                |name: &str| names::parse_pack(name).is_some_and(|(k, _, copy)| k == kind && copy != Some(Copy::B));
            objects.iter().filter(|object| of_kind(&object.name)).count() as u64
        };
        let machines = self.machines()?;
        let snapshots = machines.iter().map(|machine| Ok(self.snapshots(machine.uuid)?.len() as u64));
        Ok(PoolInfo {
            public: public_info(&self.header, store)?,
            scope: self.blobs.keys.scope(),
            machines: machines.len() as u64,
            snapshots: snapshots.sum::<Result<_>>()?,
            data_packs: count(names::PackKind::Data),
            node_packs: count(names::PackKind::Node),
            blobs: self.blobs.index.entry_count(),
            stored_bytes: objects.iter().map(|object| object.size).sum(),
        })
    }

    /// The key slots.
    ///
    /// # Errors
    /// What the store says.
    pub fn key_slots(&self) -> Result<Vec<KeySlotInfo>> {
        Ok(read_slots(&self.blobs.store)?.0.into_iter().map(|slot| slot.info).collect())
    }

    /// Adds a key slot.
    ///
    /// # Errors
    /// `Denied` when `scope` is more than the key that opened the pool gives; `Invalid` for a weak credential.
    pub fn add_key(
        &self,
        credential: &NewCredential,
        scope: Scope,
        label: &str,
        now: Timestamp,
    ) -> Result<KeySlotInfo> {
        let slot = Slot::create(&self.blobs.keys, credential, scope, label, now, self.entropy())?;
        write_slot(&self.blobs.store, &slot)?;
        Ok(slot.info)
    }

    /// A new recovery key with a slot of its own.
    ///
    /// # Errors
    /// As [`add_key`](Self::add_key).
    pub fn add_recovery_key(&self, label: &str, now: Timestamp) -> Result<(KeySlotInfo, RecoveryKey)> {
        let key = RecoveryKey::generate(self.entropy())?;
        let info = self.add_key(&NewCredential::Recovery(key.clone()), Scope::All, label, now)?;
        Ok((info, key))
    }

    /// Removes a key slot. Whoever knew its password and kept the master key can still read the pool.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` when it is the last that gives everything: nobody could open the pool any more.
    pub fn remove_key(&self, uuid: Uuid) -> Result<()> {
        let (slots, _) = read_slots(&self.blobs.store)?;
        if !slots.iter().any(|slot| slot.info.uuid == uuid) {
            return Err(Error::not_found(format!("there is no key slot {uuid}")).hint("`firn key list` shows them"));
        }
        if !slots.iter().any(|slot| slot.info.uuid != uuid && slot.info.scope == Scope::All) {
            return Err(Error::invalid("this is the last key that opens everything; without it the pool is lost")
                .hint("add another with `firn key add` first"));
        }
        Copy::BOTH.into_iter().try_for_each(|copy| self.blobs.store.delete(&names::key_slot(uuid, copy)))
    }

    /// The master key as text that opens the pool as a key file, even when all slots are lost.
    ///
    /// # Errors
    /// `Denied` when only the structure key is known.
    pub fn export_key(&self) -> Result<Zeroizing<String>> {
        slot::export(&self.blobs.keys)
    }
}

fn public_info(header: &Header, store: &Store) -> Result<PublicInfo> {
    Ok(PublicInfo {
        pool: header.pool,
        domain: header.domain,
        created: header.created,
        cut: header.cut,
        version: FORMAT_VERSION,
        slots: read_slots(store)?.0.into_iter().map(|slot| slot.info).collect(),
    })
}

fn write_slot(store: &Store, slot: &Slot) -> Result<()> {
    store.create_both(Copy::BOTH.map(|copy| names::key_slot(slot.info.uuid, copy)), &slot.to_object()?.into())
}

/// Every slot that can be read from one of its copies, oldest first, and what is wrong with the others.
fn read_slots(store: &Store) -> Result<(Vec<Slot>, Option<Error>)> {
    let mut slots: Vec<Slot> = Vec::new();
    let mut damaged = None;
    for object in store.list("key")? {
        match store.get(&object.name).and_then(|bytes| Slot::from_object(&bytes)) {
            Ok(slot) if slots.iter().all(|other| other.info.uuid != slot.info.uuid) => slots.push(slot),
            Ok(_) => {}
            Err(error) => damaged = Some(error.at_path(Path::new(store.location()).join(&object.name))),
        }
    }
    slots.sort_by_key(|slot| (slot.info.created, slot.info.uuid));
    Ok((slots, damaged))
}

fn unlock(store: &Store, header: &Header, credential: Option<&Credential>) -> Result<Keys> {
    if let Some(Credential::KeyFile(file)) = credential
        && let Some(keys) = slot::import(file, header.domain)?
    {
        return Ok(keys);
    }
    let (mut slots, damaged) = read_slots(store)?;
    slots.retain(|slot| slot.domain() == header.domain);
    // One password may open two slots: the one that gives more is tried first.
    slots.sort_by_key(|slot| slot.info.scope != Scope::All);
    // A pool that needs no password opens whatever was brought along.
    for candidate in [credential, None] {
        for slot in &slots {
            if let Some(keys) = slot.unlock(candidate)? {
                return Ok(keys);
            }
        }
    }
    if let Some(error) = damaged {
        return Err(error.hint("this key slot is damaged; use another password, key file or recovery key"));
    }
    let has = |kind| slots.iter().any(|slot| slot.info.kind == kind);
    let (message, hint) = match credential {
        None => (
            "this pool needs a password, key file or recovery key",
            "give --password-file, --key-file or FIRN_PASSWORD",
        ),
        Some(Credential::Password(_)) if !has(SlotKind::Password) => {
            ("this pool has no password", "give the key file by --key-file, or the recovery key")
        }
        Some(Credential::Password(_)) => ("the password is wrong", "try again, or use the recovery key"),
        Some(Credential::KeyFile(_)) => ("the key file does not open this pool", "`firn key list` shows what does"),
        Some(Credential::Recovery(_)) => ("the recovery key does not open this pool", "is it the one of this pool?"),
    };
    Err(Error::new(ErrorKind::Denied, message).at_path(store.location()).hint(hint))
}
