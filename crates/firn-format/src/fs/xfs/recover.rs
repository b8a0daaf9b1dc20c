//! What mounting would do first: look at the log and replay it.

use super::XfsOptions;
use super::log::{Finished, Log};
use super::superblock::Superblock;
use super::volume::Volume;
use firn_disk::{Error, ErrorKind, Result, SharedDisk};

/// A file system that is ready to be read.
pub(super) struct Recovered {
    pub volume: Volume,
    pub notes: Vec<String>,
    /// Whether the log had nothing to replay.
    pub is_clean: bool,
}

/// Reads the superblock and does what mounting would do.
pub(super) fn recover(disk: SharedDisk, options: &XfsOptions) -> Result<Recovered> {
    let superblock = Superblock::read(&*disk, false)?;
    let mut notes = Vec::new();
    if superblock.blocks * superblock.block_bytes() > disk.len() {
        notes.push(format!("the disk ends at byte {}, before the file system does", disk.len()));
    }
    let state = log(&disk, &superblock, options).and_then(|log| Ok((log.state()?, log)));
    let unchanged = |disk, superblock| Volume::new(disk, superblock, Finished::default());
    let (state, log) = match state {
        Ok(found) => found,
        Err(error) if !options.replay => {
            notes.insert(0, format!("log not read ({error}): the newest changes may be missing"));
            return Ok(Recovered { volume: unchanged(disk, superblock), notes, is_clean: false });
        }
        Err(error) => return Err(hinted(error)),
    };
    if state.is_torn {
        notes.push("the last records of the log were not written whole, and are left out".into());
    }
    let Some(span) = state.span else {
        notes.insert(0, "log clean".into());
        return Ok(Recovered { volume: unchanged(disk, superblock), notes, is_clean: true });
    };
    if !options.replay {
        notes.insert(0, "log not replayed: the newest changes are missing".into());
        return Ok(Recovered { volume: unchanged(disk, superblock), notes, is_clean: false });
    }
    superblock.features.check_replay().map_err(hinted)?;
    let replayed = log.replay(&disk, &superblock, span).map_err(hinted)?;
    notes.insert(0, replayed.note());
    Ok(Recovered { volume: replayed.volume, notes, is_clean: false })
}

fn log(disk: &SharedDisk, superblock: &Superblock, options: &XfsOptions) -> Result<Log> {
    if superblock.log_start != 0 {
        return Log::internal(disk, superblock);
    }
    match &options.external_log {
        Some(external) => Log::external(external, superblock),
        None => Err(Error::new(ErrorKind::Unavailable, "the log is on another disk")
            .in_structure("XFS")
            .hint("name the log's disk too, or open without replay")),
    }
}

fn hinted(error: Error) -> Error {
    if error.next_step().is_some() {
        return error;
    }
    error.hint("open it without replaying the log to see what is on the disk")
}
