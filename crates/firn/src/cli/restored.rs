//! What `firn restore` wrote, and what of it was damaged, for people and as JSON.

use super::context::Context;
use super::define::Definition;
use super::{new_ids, output};
use firn_disk::{Error, Result};
use firn_format::identity::IdChange;
use serde_json::{Value, json};
use std::ops::Range;
use std::path::PathBuf;

/// So many damaged ranges are told on stderr.
const MOST_RANGES: usize = 20;

/// A file or device that was written.
#[derive(Debug)]
pub struct Written {
    /// The disk's name; none for a file that was kept with the snapshot.
    pub disk: Option<String>,
    pub path: PathBuf,
    /// Bytes of the disk.
    pub length: u64,
    /// Bytes that had to be written.
    pub stored: u64,
    /// Bytes added to fill the last sector.
    pub padding: u64,
}

/// A disk of which not all could be read.
#[derive(Debug)]
pub struct DamagedDisk {
    pub name: String,
    /// What was written as zeros.
    pub ranges: Vec<Range<u64>>,
    /// Why the first of it could not be read.
    pub first: Error,
}

/// All that a run did.
#[derive(Debug)]
pub struct Restored<'a> {
    pub written: &'a [Written],
    pub in_place: bool,
    pub damaged: &'a [DamagedDisk],
    pub definition: Option<&'a Definition>,
    /// Identifiers that the copy has in place of the original's.
    pub changes: &'a [IdChange],
}

/// Tells on stderr what of a disk is zeros that should not be.
pub fn tell_damage(damaged: &DamagedDisk) {
    let DamagedDisk { name, ranges, first } = damaged;
    let lost = ranges.iter().map(|range| range.end - range.start).sum();
    let count = output::count(ranges.len() as u64, "range");
    eprintln!("firn: {name}: {} in {count} are damaged in the pool and were written as zeros", output::size(lost));
    eprintln!("firn: the first of it: {}", output::plain(&first.to_string()));
    for hint in first.next_step().unwrap_or_default().lines() {
        eprintln!("      {}", output::plain(hint));
    }
    for range in ranges.iter().take(MOST_RANGES) {
        eprintln!("firn:   bytes {} to {}", range.start, range.end - 1);
    }
    if ranges.len() > MOST_RANGES {
        eprintln!("firn:   and {} more; --json lists them all", ranges.len() - MOST_RANGES);
    }
}

/// Prints what was written.
///
/// # Errors
/// The system's own when stdout cannot be written to.
pub fn report(context: &Context, restored: &Restored<'_>) -> Result<()> {
    if context.json {
        return output::json(&document(restored));
    }
    for Written { disk, path, length, stored, padding } in restored.written {
        let path = output::plain(&path.to_string_lossy());
        let Some(disk) = disk else {
            output::line(&format!("kept with them -> {path}  {}", output::size(*length)))?;
            continue;
        };
        let padded =
            if *padding > 0 { format!(", {padding} zero bytes added to fill the last sector") } else { String::new() };
        let what = if restored.in_place { "differed and was written" } else { "of data" };
        let stored = output::size(*stored);
        output::line(&format!("{disk} -> {path}  {}, {stored} {what}{padded}", output::size(*length)))?;
    }
    restored.definition.map_or(Ok(()), |definition| output::line(&definition.to_string()))
}

fn document(restored: &Restored<'_>) -> Value {
    let ranges = |disk: &str| -> Vec<Value> {
        let of_it = restored.damaged.iter().filter(|damaged| damaged.name == disk).flat_map(|damaged| &damaged.ranges);
        of_it.map(|range| json!({ "start": range.start, "end": range.end })).collect()
    };
    let disk = |file: &Written| {
        file.disk.as_ref().map(|disk| {
            json!({
                "disk": disk,
                "path": file.path.to_string_lossy(),
                "bytes": file.length,
                "bytes_written": file.stored,
                "padding": file.padding,
                "damaged": ranges(disk),
            })
        })
    };
    let files = restored.written.iter();
    let config: Vec<_> =
        files.clone().filter(|file| file.disk.is_none()).map(|file| file.path.to_string_lossy()).collect();
    let disks: Vec<_> = files.filter_map(disk).collect();
    let mut document = json!({ "disks": disks, "config": config });
    if !restored.changes.is_empty() {
        document["new_ids"] = new_ids::to_json(restored.changes);
    }
    if let Some(definition) = restored.definition {
        document["defined"] = definition.json();
    }
    document
}
