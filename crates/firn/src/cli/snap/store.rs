//! From frozen disks into the pool.

use super::super::context::Context;
use super::super::output;
use super::super::progress::{Status, Watch};
use firn_disk::{Error, Result};
use firn_pool::{Changes, DiskInput, Manifest, Pool, SnapshotHooks, SnapshotOptions, SnapshotProgress};
use firn_source::quiesce::Member;
use firn_source::{Changed, FrozenDisk, Source};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

/// Reads the frozen disks of one machine and publishes the snapshot.
///
/// # Errors
/// What sources and pool say. There is no snapshot then.
pub fn store(
    context: &Context,
    pool: &Pool,
    member: &mut Member,
    last: Option<&Manifest>,
    options: SnapshotOptions,
) -> Result<Manifest> {
    let disks = open(&mut member.sources)?;
    let inputs: Vec<_> = disks.iter().map(|frozen| input(frozen, last)).collect::<Result<_>>()?;
    let progress = SnapshotProgress { cancel: context.interrupted.clone(), ..SnapshotProgress::default() };
    let total: u64 = disks.iter().map(|frozen| frozen.disk.len()).sum();
    let sources = Mutex::new(&mut member.sources);
    let published = std::thread::scope(|scope| {
        let _watch = Watch::start(scope, context, "snapshot", || status(&progress, total));
        let hooks = SnapshotHooks {
            progress: &progress,
            elapsed: &|| context.elapsed(),
            before_publish: &|| {
                let mut sources = sources.lock().unwrap_or_else(PoisonError::into_inner);
                sources.iter_mut().try_for_each(|source| source.check())
            },
        };
        pool.write_snapshot(&member.machine, &inputs, options, hooks)
    });
    // A copy that broke while it was read explains what the reader could only call an error of the server.
    match published {
        Ok(published) => Ok(published.manifest),
        Err(error) => {
            let mut sources = sources.lock().unwrap_or_else(PoisonError::into_inner);
            Err(sources.iter_mut().find_map(|source| source.check().err()).unwrap_or(error))
        }
    }
}

fn open(sources: &mut [Box<dyn Source>]) -> Result<Vec<FrozenDisk>> {
    let mut disks = Vec::new();
    for source in sources {
        disks.extend(source.open()?);
    }
    Ok(disks)
}

fn input<'a>(frozen: &'a FrozenDisk, last: Option<&'a Manifest>) -> Result<DiskInput<'a>> {
    let changes = match &frozen.changed {
        Changed::Unknown(_) => Changes::All,
        Changed::Since(ranges) => {
            let base = last.and_then(|last| last.disks.iter().find(|disk| disk.name == frozen.name));
            // A source that knows what changed knows it by the generation of the last snapshot.
            let base = base.filter(|base| base.generation.is_some()).ok_or_else(|| {
                Error::invalid(format!("the source tells what changed on {}, but not since when", frozen.name))
            })?;
            Changes::Since { base, ranges }
        }
    };
    Ok(DiskInput {
        name: frozen.name.clone(),
        disk: &frozen.disk,
        changes,
        source: frozen.source.clone(),
        generation: frozen.generation.clone(),
    })
}

fn status(progress: &SnapshotProgress, total: u64) -> Status {
    let stored = progress.bytes_stored.load(Ordering::Relaxed);
    let words = format!("{} new", output::size(stored));
    Status { done: progress.bytes_done.load(Ordering::Relaxed), total, words }
}
