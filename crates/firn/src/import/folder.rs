//! A folder of images, each a state of the same disk.

use super::{FindOptions, Origin, State, dates, file_name, modified, single};
use firn_disk::{Error, Result};
use firn_format::image;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// What images are called.
const EXTENSIONS: [&str; 8] = ["raw", "img", "qcow2", "vmdk", "vhd", "vhdx", "vdi", "avhdx"];
/// More images than anyone keeps of one disk.
const IMAGES_MAX: usize = 10_000;

/// The states in the folder at `path`.
pub(super) fn find(path: &Path, disk: &str, options: &FindOptions) -> Result<Vec<State>> {
    let images = images(path)?;
    let kinds: BTreeSet<String> = images
        .iter()
        .map(|image| file_name(image))
        .filter(|name| dates::in_name(name).is_some())
        .map(|name| dates::without_date(&name))
        .collect();
    if kinds.len() > 1 {
        let names: Vec<_> = kinds.into_iter().collect();
        return Err(Error::invalid(format!("the images look like those of several disks: {}", names.join(", ")))
            .at_path(path)
            .hint("name the files of each disk, as vda=FILE vda=FILE vdb=FILE"));
    }
    let state = |image: &PathBuf| {
        let name = file_name(image);
        let created = match options.date(&name).or_else(|| dates::in_name(&name)) {
            Some(date) => date,
            None => modified(image)?,
        };
        Ok(single(created, name, disk, Origin::Image { file: image.clone(), snapshot: None, format: None }))
    };
    images.iter().map(state).collect()
}

/// The images in the folder, without those files that others of them consist of.
fn images(path: &Path) -> Result<Vec<PathBuf>> {
    let failed = |error| Error::from_io("list", error).at_path(path);
    let mut images = Vec::new();
    for entry in std::fs::read_dir(path).map_err(failed)? {
        let file = entry.map_err(failed)?.path();
        let extension = file.extension().map(|extension| extension.to_string_lossy().to_ascii_lowercase());
        let is_image = extension.is_some_and(|extension| EXTENSIONS.contains(&extension.as_str()));
        let is_hidden = file_name(&file).starts_with('.');
        if is_image && !is_hidden && file.is_file() {
            images.push(file);
        }
        if images.len() > IMAGES_MAX {
            return Err(Error::unsupported(format!("a folder of more than {IMAGES_MAX} images")).at_path(path));
        }
    }
    images.sort();
    let mut parts = BTreeSet::new();
    for image in &images {
        // One that cannot be opened by itself is an extent of another, or is told of when it is taken.
        if let Ok(opened) = image::open(image, &image::OpenOptions::default()) {
            parts.extend(opened.details.data_files.iter().filter_map(|file| file.canonicalize().ok()));
        }
    }
    images.retain(|image| image.canonicalize().is_ok_and(|real| !parts.contains(&real)));
    if images.is_empty() {
        let hint = format!("an image is called {}", EXTENSIONS.map(|extension| format!("*.{extension}")).join(", "));
        return Err(Error::not_found("there is no image in the folder").at_path(path).hint(hint));
    }
    Ok(images)
}
