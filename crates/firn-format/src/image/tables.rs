//! A small shared cache of the pages that an image's mapping tables lie in.
//!
//! All layers of one chain share one cache, so that memory stays the same whatever the size of the disk and
//! the length of the chain. Tables are never loaded whole: even the first level is read a page at a time.

use super::access::ImageFile;
use firn_disk::{Error, Result};
use lru::LruCache;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes in a page; every table entry lies inside one, as entries are aligned to their size.
pub(super) const PAGE: u64 = 16 << 10;
/// Pages kept: 4 MiB, which map 32 GiB of a qcow2 image with default clusters.
const PAGES: usize = 256;

/// A page that was read, and where in it the wanted entry begins.
pub(super) struct Page {
    bytes: Arc<[u8]>,
    at: usize,
}

impl Page {
    /// The bytes from the wanted entry on, at most `length` and never past the page or the file.
    pub(super) fn entries(&self, length: u64) -> &[u8] {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        rest.get(..usize::try_from(length).unwrap_or(usize::MAX)).unwrap_or(rest)
    }
}

/// Pages by the number of their file and the byte at which they begin.
type Pages = LruCache<(u32, u64), Arc<[u8]>>;

/// The cache that the layers of one open image share.
#[derive(Debug)]
pub(super) struct TableCache {
    next: AtomicU32,
    pages: Mutex<Pages>,
}

impl TableCache {
    pub(super) fn new() -> Arc<Self> {
        let pages = NonZeroUsize::new(PAGES).unwrap_or(NonZeroUsize::MIN);
        Arc::new(Self { next: AtomicU32::new(0), pages: Mutex::new(LruCache::new(pages)) })
    }
}

/// The tables of one file.
#[derive(Debug, Clone)]
pub(super) struct Tables {
    file: ImageFile,
    number: u32,
    cache: Arc<TableCache>,
}

impl Tables {
    pub(super) fn new(file: ImageFile, cache: &Arc<TableCache>) -> Self {
        let number = cache.next.fetch_add(1, Ordering::Relaxed);
        Self { file, number, cache: cache.clone() }
    }

    pub(super) fn file(&self) -> &ImageFile {
        &self.file
    }

    /// The page that holds the entry at byte `at` of the file.
    ///
    /// # Errors
    /// `Corrupt` when the file ends before it; what reading says.
    pub(super) fn page(&self, at: u64) -> Result<Page> {
        let disk = self.file.disk();
        let start = at - at % PAGE;
        let length = disk.len().saturating_sub(start).min(PAGE);
        let within = usize::try_from(at - start).unwrap_or(usize::MAX);
        if at - start >= length {
            return Err(Error::corrupt(format!("a table lies past the end of the file at byte {}", disk.len()))
                .at_path(self.file.path())
                .at_offset(at));
        }
        let key = (self.number, start);
        let cached = self.cache.pages.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        if let Some(bytes) = cached {
            return Ok(Page { bytes, at: within });
        }
        // The lock is not held while reading: two threads may read one page twice, none waits for another.
        let mut bytes = vec![0; usize::try_from(length).unwrap_or_default()];
        disk.read_at(&mut bytes, start)?;
        let bytes: Arc<[u8]> = bytes.into();
        self.cache.pages.lock().unwrap_or_else(PoisonError::into_inner).put(key, bytes.clone());
        Ok(Page { bytes, at: within })
    }

    /// `N` bytes at byte `at`, which is aligned to `N`.
    ///
    /// # Errors
    /// As [`page`](Self::page).
    pub(super) fn entry<const N: usize>(&self, at: u64) -> Result<[u8; N]> {
        let page = self.page(at)?;
        let mut entry = [0; N];
        let bytes = page.entries(N as u64);
        if bytes.len() < N {
            return Err(Error::corrupt("a table is cut off by the end of the file")
                .at_path(self.file.path())
                .at_offset(at));
        }
        entry.copy_from_slice(bytes);
        Ok(entry)
    }
}
