//! The states of an image: those that it stands on, and its internal snapshots.
//!
//! A file that others stand on was last written to just before the first of them was made, so its own time is that of
//! the state it holds.

use super::{FindOptions, Origin, State, dates, file_name, modified, single};
use firn_disk::{Error, Result};
use firn_format::image::{self, ImageFormat, OpenOptions};
use jiff::Timestamp;
use std::path::Path;

/// Every state of the image at `path`.
pub(super) fn find(path: &Path, disk: &str, options: &FindOptions) -> Result<Vec<State>> {
    let top = image::open(path, &options.open)?;
    let mut states = of_one(path, options.open.format, disk, options)?;
    let is_alone = states.len() == 1 && top.details.chain.is_empty();
    for link in &top.details.chain {
        states.extend(of_one(&link.path, Some(link.format), disk, options)?);
    }
    if is_alone
        && options.date(&file_name(path)).is_none()
        && let (Some(state), Some(date)) = (states.first_mut(), dates::in_name(&file_name(path)))
    {
        // An image by itself that is named by a date is of that date. In a chain such a name often says when the
        // image was begun, which is when the one below it ended.
        state.created = date;
    }
    Ok(states)
}

/// The states that one image holds itself: as it is, and its internal snapshots.
fn of_one(path: &Path, format: Option<ImageFormat>, disk: &str, options: &FindOptions) -> Result<Vec<State>> {
    let open = OpenOptions { format, ..options.open.clone() };
    let details = image::open(path, &open)?.details;
    let name = file_name(path);
    let origin = |snapshot: Option<String>| Origin::Image { file: path.to_path_buf(), snapshot, format };
    let written = std::iter::once(path).chain(details.data_files.iter().map(std::path::PathBuf::as_path));
    let times = written.map(modified).collect::<Result<Vec<_>>>()?;
    let created = options.date(&name).or_else(|| times.into_iter().max());
    let created = created.ok_or_else(|| Error::invalid("it has no time").at_path(path))?;
    let mut states = vec![single(created, name.clone(), disk, origin(None))];
    for snapshot in details.snapshots {
        let called = format!("{name}@{}", snapshot.name);
        let taken = Timestamp::new(i64::from(snapshot.seconds), i32::try_from(snapshot.nanoseconds).unwrap_or(0));
        let taken = taken.map_err(|error| Error::invalid(format!("{called}: no valid time")).because(error))?;
        let taken = options.date(&called).or_else(|| options.date(&snapshot.name)).unwrap_or(taken);
        states.push(single(taken, called, disk, origin(Some(snapshot.id))));
    }
    Ok(states)
}
