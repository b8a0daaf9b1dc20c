//! [`Store`]: the object store behind a pool, for callers that block.
//!
//! What is relied on: an object appears whole or not at all; creating an object that exists fails; an object
//! that was put is durable when the call returns (the local store is told to fsync file and folder), and so is its
//! removal (which the local store forgets about, so the folder is synced here). A listing shows what was there all
//! the while. Compare-and-swap is not relied on, because the local store has none.
//!
//! A put whose answer was lost may have gone well. Names that nobody else would use are therefore put by
//! [`Store::create_own`], which looks before it gives up.
//!
//! No call here may be made from the runtime's own threads.

use crate::entropy::{Entropy, random_bytes};
use crate::names;
use crate::object::{self, ObjectKind};
use bytes::Bytes;
use firn_disk::{Error, ErrorKind, Result};
use futures::{StreamExt, TryStreamExt};
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use std::collections::BTreeSet;
use std::ops::Range;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;
use uuid::Uuid;

/// How many ranges of objects are fetched at once, over all readers of one pool.
pub(crate) const FETCHES: usize = 16;

/// ext file systems have such a folder in their root, which only root may look into.
const LOST_AND_FOUND: &str = "lost+found";

/// More folders than a pool has, one for each first byte of a pack's id and one a machine.
const MOST_FOLDERS: usize = 1 << 20;

/// An object's name, its length in bytes, and when it was put, by the store's clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ObjectInfo {
    pub(crate) name: String,
    pub(crate) size: u64,
    pub(crate) modified: StoreTime,
}

impl From<ObjectMeta> for ObjectInfo {
    fn from(meta: ObjectMeta) -> Self {
        let modified = StoreTime(meta.last_modified.timestamp_nanos_opt().unwrap_or_default());
        Self { name: meta.location.to_string(), size: meta.size, modified }
    }
}

/// Nanoseconds since 1970 by the clock of the store, which all who use it share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct StoreTime(pub(crate) i64);

impl StoreTime {
    /// How long before `self` that was; zero for what lies in the future, as after a clock was set back.
    pub(crate) fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

/// Makes removals durable, where the object store does not.
pub(crate) trait Settle: std::fmt::Debug + Send + Sync {
    /// What was removed from `folder` (without its slash; empty for the root) stays removed after a power loss.
    ///
    /// # Errors
    /// What the system says.
    fn settle(&self, folder: &str) -> std::io::Result<()>;
}

/// A pool's folder on a file system.
#[derive(Debug)]
struct LocalFolder(PathBuf);

impl Settle for LocalFolder {
    fn settle(&self, folder: &str) -> std::io::Result<()> {
        match std::fs::File::open(self.0.join(folder)) {
            Ok(folder) => folder.sync_all(),
            // What never was cannot come back.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// An object store and the runtime that drives it.
#[derive(Debug)]
pub(crate) struct Store {
    runtime: Runtime,
    objects: Arc<dyn ObjectStore>,
    settle: Option<Arc<dyn Settle>>,
    /// The folder that it is, if it is one.
    folder: Option<PathBuf>,
    /// What errors call it.
    location: String,
}

impl Store {
    /// The store that `location` names: a folder, or `file:` and a folder.
    ///
    /// # Errors
    /// `NotFound` when the folder is not there, `Unsupported` for other kinds of URL.
    pub(crate) fn open(location: &str) -> Result<Self> {
        let folder = local_folder(location)?;
        if !folder.is_dir() {
            return Err(Error::not_found("there is no pool in this folder")
                .at_path(&folder)
                .hint(format!("make one with `firn init {location}`, or name another by --pool or FIRN_POOL")));
        }
        let objects = LocalFileSystem::new_with_prefix(&folder)
            .map_err(|error| convert(error, "open").at_path(&folder))?
            .with_fsync(true);
        let settle: Arc<dyn Settle> = Arc::new(LocalFolder(folder.clone()));
        Ok(Self { folder: Some(folder), ..Self::over(Arc::new(objects), Some(settle), location)? })
    }

    /// Makes the folder that `location` names, if it is missing, and opens it. A new one is for its owner alone.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn create(location: &str) -> Result<Self> {
        let folder = local_folder(location)?;
        make_folder(&folder).map_err(|error| {
            let error = match error.kind() {
                std::io::ErrorKind::AlreadyExists if folder.exists() => {
                    Error::new(ErrorKind::Exists, "this is a file, not a folder")
                }
                std::io::ErrorKind::AlreadyExists | std::io::ErrorKind::NotADirectory => {
                    Error::invalid("part of this path is a file, not a folder")
                }
                _ => Error::from_io("make the folder", error),
            };
            error.at_path(&folder).hint("name a folder that is empty or can be made")
        })?;
        Self::open(location)
    }

    /// A store over any object store; `settle` is for those whose removals do not last by themselves.
    pub(crate) fn over(objects: Arc<dyn ObjectStore>, settle: Option<Arc<dyn Settle>>, location: &str) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(FETCHES)
            .thread_name("firn-store")
            .build()
            .map_err(|error| Error::from_io("start the store's threads", error))?;
        Ok(Self { runtime, objects, settle, folder: None, location: location.to_owned() })
    }

    /// Bytes that can still be stored; `None` where there is no such bound.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn free_bytes(&self) -> Result<Option<u64>> {
        let Some(folder) = &self.folder else { return Ok(None) };
        let failed = |error: rustix::io::Errno| Error::from_io("ask for free space", error.into()).at_path(folder);
        let stat = rustix::fs::statvfs(folder).map_err(failed)?;
        Ok(Some(stat.f_bavail.saturating_mul(stat.f_frsize)))
    }

    /// Removes uploads that were cut off longer than `age` before `now`. They are files that the object store itself
    /// passes over, and take space.
    ///
    /// # Errors
    /// What the system says to reading the folders.
    pub(crate) fn remove_cut_uploads(&self, age: Duration, now: StoreTime) -> Result<()> {
        let mut folders: Vec<PathBuf> = self.folder.iter().cloned().collect();
        while let Some(folder) = folders.pop() {
            let failed = |error| Error::from_io("list", error).at_path(&folder);
            for entry in std::fs::read_dir(&folder).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                let kind = entry.file_type().map_err(failed)?;
                let name = entry.file_name();
                // No deeper than objects lie: data/xx/pack.
                if kind.is_dir() && name != LOST_AND_FOUND && folders.len() < MOST_FOLDERS {
                    folders.push(entry.path());
                }
                let is_upload = name.to_string_lossy().rsplit_once('#').is_some_and(|(_, number)| {
                    !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit())
                });
                let modified = || {
                    let since = entry.metadata().ok()?.modified().ok()?.duration_since(std::time::UNIX_EPOCH).ok()?;
                    Some(StoreTime(i64::try_from(since.as_nanos()).ok()?))
                };
                if kind.is_file() && is_upload && modified().is_some_and(|modified| now.since(modified) > age) {
                    // Only tidying up.
                    let _ = std::fs::remove_file(entry.path());
                }
            }
        }
        Ok(())
    }

    pub(crate) fn location(&self) -> &str {
        &self.location
    }

    fn failed(&self, error: object_store::Error, doing: &str, name: &str) -> Error {
        convert(error, doing).at_path(Path::new(&self.location).join(name))
    }

    /// Puts a new object; it is durable when this returns.
    ///
    /// # Errors
    /// `Exists` when the name is taken; `Unavailable` when the store is full.
    pub(crate) fn create_object(&self, name: &str, bytes: Bytes) -> Result<()> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let path = ObjectPath::from(name);
        self.runtime
            .block_on(self.objects.put_opts(&path, PutPayload::from(bytes), options))
            .map(|_| ())
            .map_err(|error| self.failed(error, "write", name))
    }

    /// Puts an object under a name that nobody else would use. Where the answer to a put was lost, or a repeated put
    /// says that the name is taken, what stands there decides.
    ///
    /// # Errors
    /// As [`create_object`](Self::create_object).
    pub(crate) fn create_own(&self, name: &str, bytes: &Bytes) -> Result<()> {
        self.create_object(name, bytes.clone()).or_else(|error| match self.get(name) {
            Ok(stored) if stored == *bytes => Ok(()),
            _ => Err(error),
        })
    }

    /// The store's time: an object is put, looked at, and removed.
    ///
    /// # Errors
    /// What the store says.
    pub(crate) fn now(&self, domain: Uuid, entropy: &dyn Entropy) -> Result<StoreTime> {
        let name = names::probe(random_bytes(entropy)?);
        let bytes = object::seal_small(ObjectKind::Probe, domain, &[]);
        self.create_own(&name, &bytes.into())?;
        let meta = self.runtime.block_on(self.objects.head(&ObjectPath::from(name.as_str())));
        // One that stays is removed by a later prune.
        let _ = self.delete(&name);
        meta.map(|meta| ObjectInfo::from(meta).modified).map_err(|error| self.failed(error, "look at", &name))
    }

    /// Whether there is such an object.
    ///
    /// # Errors
    /// What the store says.
    pub(crate) fn exists(&self, name: &str) -> Result<bool> {
        match self.runtime.block_on(self.objects.head(&ObjectPath::from(name))) {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(self.failed(error, "look at", name)),
        }
    }

    /// Whole objects, at most [`FETCHES`] at once, in the order asked for.
    pub(crate) fn get_each(&self, names: Vec<String>) -> Vec<Result<Bytes>> {
        let fetch = |name: String| async move {
            let object = async { self.objects.get(&ObjectPath::from(name.as_str())).await?.bytes().await };
            object.await.map_err(|error| self.failed(error, "read", &name))
        };
        self.runtime.block_on(futures::stream::iter(names.into_iter().map(fetch)).buffered(FETCHES).collect())
    }

    /// The whole object.
    pub(crate) fn get(&self, name: &str) -> Result<Bytes> {
        self.runtime
            .block_on(async { self.objects.get(&ObjectPath::from(name)).await?.bytes().await })
            .map_err(|error| self.failed(error, "read", name))
    }

    /// One range of an object; shorter than asked for where the object ends.
    ///
    /// # Errors
    /// `Corrupt` when the object is missing or ends before the range: whoever asks for a range knows of the object.
    pub(crate) fn get_range(&self, name: &str, range: Range<u64>) -> Result<Bytes> {
        self.runtime.block_on(self.fetch(name, range))
    }

    async fn fetch(&self, name: &str, range: Range<u64>) -> Result<Bytes> {
        let path = ObjectPath::from(name);
        let error = match self.objects.get_range(&path, range.clone()).await {
            Ok(bytes) => return Ok(bytes),
            Err(error) => error,
        };
        let damage = match self.objects.head(&path).await {
            Err(object_store::Error::NotFound { .. }) => "this object of the pool is missing".to_owned(),
            Ok(found) if found.size < range.end => {
                format!("this object of the pool is cut short: {} bytes are left of it", found.size)
            }
            _ => return Err(self.failed(error, "read", name)),
        };
        Err(Error::corrupt(damage)
            .at_path(Path::new(&self.location).join(name))
            .hint("`firn verify` lists the snapshots that it reaches"))
    }

    /// Ranges of many objects, at most [`FETCHES`] at once, in the order asked for.
    ///
    /// # Errors
    /// The first failure.
    pub(crate) fn get_many(&self, wanted: Vec<(String, Range<u64>)>) -> Result<Vec<Bytes>> {
        self.runtime.block_on(async {
            futures::stream::iter(wanted.into_iter().map(|(name, range)| async move { self.fetch(&name, range).await }))
                .buffered(FETCHES)
                .try_collect()
                .await
        })
    }

    /// Puts the same bytes under two names, or under neither.
    ///
    /// # Errors
    /// As [`create_object`](Self::create_object).
    pub(crate) fn create_both(&self, names: [String; 2], bytes: &Bytes) -> Result<()> {
        let [first, second] = &names;
        self.create_own(first, bytes)?;
        self.create_own(second, bytes).inspect_err(|_| {
            // The failure that matters is told; half of a pair that cannot be removed either does no harm.
            let _ = self.delete(first);
        })
    }

    /// Every object below a folder (without its slash), sorted by name. An absent folder is empty. The empty name
    /// stands for the whole pool, without what file systems keep in their root.
    pub(crate) fn list(&self, folder: &str) -> Result<Vec<ObjectInfo>> {
        let listed = self.runtime.block_on(async {
            if !folder.is_empty() {
                return self.list_below(folder.into()).await;
            }
            let root = self.objects.list_with_delimiter(None).await?;
            let mut found: Vec<ObjectInfo> = root.objects.into_iter().map(ObjectInfo::from).collect();
            for folder in root.common_prefixes.into_iter().filter(|folder| folder.as_ref() != LOST_AND_FOUND) {
                found.extend(self.list_below(folder).await?);
            }
            Ok(found)
        });
        let mut found = listed.map_err(|error| self.failed(error, "list", folder))?;
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    async fn list_below(&self, folder: ObjectPath) -> object_store::Result<Vec<ObjectInfo>> {
        self.objects.list(Some(&folder)).map_ok(ObjectInfo::from).try_collect().await
    }

    /// Removes an object for good; one that is not there is as good as removed.
    pub(crate) fn delete(&self, name: &str) -> Result<()> {
        self.delete_all(std::slice::from_ref(&name))
    }

    /// Removes objects, in this order; all are gone for good when this returns.
    ///
    /// # Errors
    /// The first failure; later ones are then still there.
    pub(crate) fn delete_all(&self, names: &[impl AsRef<str>]) -> Result<()> {
        let mut folders = BTreeSet::new();
        for name in names.iter().map(AsRef::as_ref) {
            match self.runtime.block_on(self.objects.delete(&ObjectPath::from(name))) {
                // Gone already, maybe by somebody who has not synced yet: what follows may build on it.
                Ok(()) | Err(object_store::Error::NotFound { .. }) => {
                    folders.insert(name.rsplit_once('/').map_or("", |(folder, _)| folder));
                }
                Err(error) => return Err(self.failed(error, "delete", name)),
            }
        }
        let Some(settle) = &self.settle else { return Ok(()) };
        folders.into_iter().try_for_each(|folder| {
            settle.settle(folder).map_err(|error| {
                Error::from_io("sync the folder", error).at_path(Path::new(&self.location).join(folder))
            })
        })
    }
}

/// Makes `folder`, readable for its owner only, and those above it as usual.
fn make_folder(folder: &Path) -> std::io::Result<()> {
    if let Some(above) = folder.parent() {
        std::fs::create_dir_all(above)?;
    }
    match std::fs::DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && folder.is_dir() => Ok(()),
        made => made,
    }
}

fn local_folder(location: &str) -> Result<PathBuf> {
    let unsupported = |kind: &str| {
        Err(Error::unsupported(format!("{location}: this build keeps pools in folders, not on {kind}"))
            .hint("name a folder"))
    };
    match location.split_once("://") {
        Some(("file", path)) => Ok(PathBuf::from(path)),
        Some((scheme, _)) => unsupported(scheme),
        None if location.is_empty() => Err(Error::invalid("the pool's name is empty")),
        None => Ok(PathBuf::from(location.strip_prefix("file:").unwrap_or(location))),
    }
}

/// An object store's error as ours. The system error at its root, if there is one, decides the kind.
fn convert(error: object_store::Error, doing: &str) -> Error {
    use object_store::Error as Store;
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    let mut system = None;
    while let Some(current) = cause {
        if let Some(io) = current.downcast_ref::<std::io::Error>() {
            system = Some(std::io::Error::new(io.kind(), io.to_string()));
        }
        cause = current.source();
    }
    match (&error, system) {
        (Store::AlreadyExists { .. }, _) => Error::new(ErrorKind::Exists, format!("{doing}: it exists already")),
        (Store::NotFound { .. }, _) => Error::not_found(format!("{doing}: there is no such object")),
        (_, Some(system)) => {
            use std::io::ErrorKind as Os;
            let hint = match system.kind() {
                Os::StorageFull => "the pool's file system is full; free space there and run the command again",
                Os::QuotaExceeded => {
                    "the quota on the pool's file system is used up; free space and run the command again"
                }
                Os::ReadOnlyFilesystem => "the pool can only be read here; mount its file system for writing",
                Os::PermissionDenied => "run it as a user to whom the pool's files belong",
                _ => return Error::from_io(doing, system),
            };
            Error::from_io(doing, system).hint(hint)
        }
        (Store::PermissionDenied { .. } | Store::Unauthenticated { .. }, None) => {
            Error::new(ErrorKind::Denied, doing).because(error)
        }
        (_, None) => Error::new(ErrorKind::Io, doing).because(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_created_once_read_in_ranges_and_listed_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::create(folder.path().join("pool").to_str().unwrap()).unwrap();
        store.create_object("snap/b", Bytes::from_static(b"0123456789")).unwrap();
        store.create_object("snap/a/x", Bytes::from_static(b"abc")).unwrap();
        let again = store.create_object("snap/b", Bytes::from_static(b"other"));
        assert_eq!(again.unwrap_err().kind(), ErrorKind::Exists);
        let names: Vec<_> = store.list("snap").unwrap().into_iter().map(|info| (info.name, info.size)).collect();
        assert_eq!(names, [("snap/a/x".to_owned(), 3), ("snap/b".to_owned(), 10)]);
        assert!(store.list("nothing").unwrap().is_empty());
        let ranges = vec![("snap/b".to_owned(), 2..5), ("snap/a/x".to_owned(), 0..1)];
        let got = store.get_many(ranges).unwrap();
        assert_eq!((&got[0][..], &got[1][..]), (&b"234"[..], &b"a"[..]));
        for (name, range) in [("snap/b", 10..12), ("snap/nobody", 0..1)] {
            let error = store.get_range(name, range).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        }
        let pair = |second: &str| store.create_both(["snap/c".into(), second.into()], &Bytes::from_static(b"1"));
        assert_eq!(pair("snap/b").unwrap_err().kind(), ErrorKind::Exists);
        assert_eq!(store.get("snap/c").unwrap_err().kind(), ErrorKind::NotFound);
        pair("snap/d").unwrap();
        store.delete("snap/b").unwrap();
        store.delete("snap/b").unwrap();
        assert_eq!(store.get("snap/b").unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn what_is_no_folder_is_told_apart() {
        let nothing = tempfile::tempdir().unwrap().path().join("pool");
        assert_eq!(Store::open(nothing.to_str().unwrap()).unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(Store::open("gopher://x/y").unwrap_err().kind(), ErrorKind::Unsupported);
        assert_eq!(Store::open("").unwrap_err().kind(), ErrorKind::Invalid);
    }
}
