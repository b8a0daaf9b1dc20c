//! [`Watch`]: looks at the room for scratch files while a backup runs, and ends the backup before there is none.
//!
//! QEMU copies what the guest overwrites into the scratch file first. Under libvirt a scratch file that cannot grow makes
//! the guest's write fail, so the backup has to go before that. What is kept in reserve is 1 GiB, or half of what was
//! free where that is less: time for a fast guest to write between two looks and the abort.

use super::host::Gauge;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);
const MOST_RESERVE: u64 = 1 << 30;

/// A thread that looks.
#[derive(Debug)]
pub struct Watch {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
    trouble: Arc<Mutex<Option<String>>>,
}

impl Watch {
    /// Looks at `gauge`, whose folders had `free` bytes, until it is dropped; calls `end` once when one runs short.
    pub fn start(gauge: Gauge, free: &[u64], end: impl FnOnce() + Send + 'static) -> Self {
        let reserves: Vec<u64> = free.iter().map(|free| reserve(*free)).collect();
        let trouble = Arc::new(Mutex::new(None));
        let noted = trouble.clone();
        let (stop, stopped) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            while matches!(stopped.recv_timeout(LOOK), Err(RecvTimeoutError::Timeout)) {
                let free = gauge.read().unwrap_or_default();
                if let Some((free, _)) = free.iter().zip(&reserves).find(|(free, reserve)| free < reserve) {
                    let words = format!("the scratch files left only {} MiB free", free >> 20);
                    *noted.lock().unwrap_or_else(PoisonError::into_inner) = Some(words);
                    end();
                    return;
                }
            }
        });
        Self { stop: Some(stop), thread: Some(thread), trouble }
    }

    /// Why the backup was ended, if it was.
    pub fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        drop(self.stop.take());
        // It panics nowhere, and if it did there would be nothing left to do.
        self.thread.take().map(JoinHandle::join);
    }
}

/// What has to stay free of `free` bytes.
fn reserve(free: u64) -> u64 {
    MOST_RESERVE.min(free / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends_the_backup_once() {
        let told = Arc::new(Mutex::new(Some(vec![100 << 30, 1 << 30])));
        let (sender, ended) = mpsc::channel();
        let watch = Watch::start(Gauge::Told(told.clone()), &[100 << 30, 1 << 30], move || sender.send(()).unwrap());
        assert_eq!(watch.trouble(), None);
        *told.lock().unwrap() = Some(vec![100 << 30, 300 << 20]);
        ended.recv_timeout(Duration::from_secs(20)).unwrap();
        assert!(watch.trouble().unwrap().contains("300 MiB"));
        drop(watch);
        assert!(ended.try_recv().is_err());
    }
}
