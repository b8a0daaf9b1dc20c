//! A folder that virtnbdbackup made.
//!
//! ```text
//! vda.full.data  vda.copy.data                a full stream; of a raw disk, the disk itself
//! vda.inc.virtnbdbackup.1.data                what changed until checkpoint 1
//! vda.diff.1763344800.data                    what changed since the last checkpoint, without one of its own
//! vmconfig.virtnbdbackup.1.xml                the machine's definition then
//! ```

use super::{DiskState, FindOptions, Origin, State, dates, file_name, modified};
use firn_disk::{Error, Result};
use firn_format::image::{self, StreamInfo};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Files that are looked at.
const FILES_MAX: usize = 100_000;
const PREFIX: &str = "virtnbdbackup.";

/// What a file's name says it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Full,
    /// By its checkpoint's number.
    Incremental(u64),
    /// By its time.
    Differential(u64),
}

/// A name of the folder, taken apart: the disk and what of it.
fn parse_name(name: &str) -> Option<(String, Level)> {
    let name = name.strip_suffix(".data")?;
    for full in [".full", ".copy"] {
        if let Some(disk) = name.strip_suffix(full) {
            return Some((disk.to_owned(), Level::Full));
        }
    }
    if let Some((disk, checkpoint)) = name.split_once(".inc.") {
        return Some((disk.to_owned(), Level::Incremental(checkpoint.strip_prefix(PREFIX)?.parse().ok()?)));
    }
    let (disk, time) = name.split_once(".diff.")?;
    Some((disk.to_owned(), Level::Differential(time.parse().ok()?)))
}

/// The streams of the folder at `path`, by disk.
fn streams(path: &Path) -> Result<BTreeMap<String, BTreeMap<Level, PathBuf>>> {
    let failed = |error| Error::from_io("list", error).at_path(path);
    let mut streams: BTreeMap<String, BTreeMap<Level, PathBuf>> = BTreeMap::new();
    for entry in std::fs::read_dir(path).map_err(failed)?.take(FILES_MAX) {
        let file = entry.map_err(failed)?.path();
        if let Some((disk, level)) = parse_name(&file_name(&file)).filter(|_| file.is_file()) {
            streams.entry(disk).or_default().insert(level, file);
        }
    }
    Ok(streams)
}

/// Whether the folder at `path` is one of virtnbdbackup.
pub(super) fn is_one(path: &Path) -> Result<bool> {
    Ok(streams(path)?.values().any(|levels| levels.contains_key(&Level::Full)))
}

/// A stream with what it says of itself; a raw disk says nothing.
struct Found {
    file: PathBuf,
    info: Option<StreamInfo>,
}

/// The states in the folder at `path`: one for each level, of all disks that have it.
pub(super) fn find(path: &Path, options: &FindOptions) -> Result<Vec<State>> {
    let streams = streams(path)?;
    let levels: BTreeSet<Level> = streams.values().flat_map(|levels| levels.keys().cloned()).collect();
    let mut states = Vec::new();
    for level in levels {
        let mut state: Option<State> = None;
        for (disk, files) in streams.iter().filter(|(_, files)| files.contains_key(&level)) {
            let chain = chain(disk, files, &level).map_err(|error| error.at_path(path))?;
            let Some(last) = chain.last() else { continue };
            let created = match &last.info {
                Some(info) => dates::parse(&info.date).map_err(|error| error.at_path(&last.file))?,
                None => modified(&last.file)?,
            };
            let created = options.date(&file_name(&last.file)).unwrap_or(created);
            let name = last.info.as_ref().map_or_else(|| "full".to_owned(), |info| info.checkpoint.clone());
            let config = path.join(format!("vmconfig.{name}.xml"));
            let origin = Origin::Streams(chain.into_iter().map(|found| found.file).collect());
            let added = DiskState { disk: disk.clone(), origin };
            match &mut state {
                // All disks are of the instant at which the first of them was begun.
                Some(state) => {
                    state.created = state.created.min(created);
                    state.disks.push(added);
                }
                None => {
                    let config = if config.is_file() { vec![config] } else { Vec::new() };
                    state = Some(State { created, name, disks: vec![added], config, is_one_instant: true });
                }
            }
        }
        states.extend(state);
    }
    Ok(states)
}

/// The streams that make up `level` of a disk, the full one first.
fn chain(disk: &str, files: &BTreeMap<Level, PathBuf>, level: &Level) -> Result<Vec<Found>> {
    let missing = |what: String| {
        Error::not_found(format!("{what} is missing, and later states of {disk} need it"))
            .hint("find it, or move what needs it out of the folder")
    };
    let read = |level: &Level, what: String| -> Result<Found> {
        let file = files.get(level).ok_or_else(|| missing(what))?.clone();
        let info = if image::is_stream(&file)? { Some(image::stream_info(&file)?) } else { None };
        Ok(Found { file, info })
    };
    let mut chain = vec![read(&Level::Full, format!("{disk}.full.data"))?];
    let last = match level {
        Level::Full => return Ok(chain),
        Level::Incremental(number) => *number,
        // What it stands on, it says itself.
        Level::Differential(_) => 0,
    };
    let differential = match level {
        Level::Differential(time) => Some(read(level, format!("{disk}.diff.{time}.data"))?),
        _ => None,
    };
    let parent = differential.as_ref().and_then(|found| found.info.as_ref()).and_then(|info| info.parent.clone());
    let last = parent.and_then(|parent| parent.strip_prefix(PREFIX)?.parse().ok()).unwrap_or(last);
    for number in 1..=last {
        let found = read(&Level::Incremental(number), format!("{disk}.inc.{PREFIX}{number}.data"))?;
        check_parent(&found, number - 1)?;
        chain.push(found);
    }
    if let Some(found) = differential {
        check_parent(&found, last)?;
        chain.push(found);
    }
    Ok(chain)
}

/// `Ok` when `found` has the changes since checkpoint `number`.
fn check_parent(found: &Found, number: u64) -> Result<()> {
    let parent = found.info.as_ref().and_then(|info| info.parent.as_deref());
    if parent == Some(format!("{PREFIX}{number}").as_str()) {
        return Ok(());
    }
    let says = parent.unwrap_or("nothing");
    Err(Error::corrupt(format!("it has the changes since {says}, not since {PREFIX}{number}")).at_path(&found.file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart() {
        assert_eq!(parse_name("vda.full.data"), Some(("vda".into(), Level::Full)));
        assert_eq!(parse_name("vdb.copy.data"), Some(("vdb".into(), Level::Full)));
        assert_eq!(parse_name("vda.inc.virtnbdbackup.12.data"), Some(("vda".into(), Level::Incremental(12))));
        assert_eq!(parse_name("sda.diff.1763344800.data"), Some(("sda".into(), Level::Differential(1_763_344_800))));
        for other in ["vda.full.data.partial", "vda.data", "vmconfig.virtnbdbackup.0.xml", "vda.inc.other.1.data"] {
            assert_eq!(parse_name(other), None, "{other}");
        }
    }
}
