//! `firn snap`: image files and block devices into the pool.

use super::context::Context;
use super::output;
use super::progress::{Status, Watch};
use super::snapshots::parse_address;
use crate::address::{self, Target};
use clap::{Args, ValueHint};
use firn_disk::{Disk, Error, ErrorKind, Result};
use firn_format::image::{self, ImageFormat};
use firn_pool::{
    Attachment, Changes, Consistency, DiskInput, Manifest, Pool, SnapshotHooks, SnapshotOptions, SnapshotProgress,
};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::Ordering;

/// What is kept with a snapshot is small.
const MOST_CONFIG_BYTES: u64 = 16 << 20;

/// Take a snapshot of a machine's disks into the pool.
///
/// Only what the pool does not have yet is stored. An image that a running QEMU holds is refused.
#[derive(Debug, Args)]
pub struct SnapArgs {
    /// The machine's name in the pool; a new name makes a new machine
    machine: String,
    /// Its disks as [NAME=]FILE: images (raw, qcow2, VMDK), block devices or NBD exports (nbd://HOST/EXPORT). Names
    /// default to vda, vdb, …; without any, the disks of the last snapshot are taken again
    #[arg(value_name = "[NAME=]FILE", value_hint = ValueHint::FilePath)]
    disks: Vec<OsString>,
    /// Keep a small file with the snapshot: libvirt XML, .vmx, NVRAM (repeatable)
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    config: Vec<PathBuf>,
    /// Let an image stand on files in this folder, too (repeatable)
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    allow_backing: Vec<PathBuf>,
    /// Take the files for this format, whatever they begin with
    #[arg(long, value_name = "FORMAT", value_parser = super::restore::parse_input_format)]
    input_format: Option<ImageFormat>,
    /// Read even what something is writing to; such a snapshot never counts as a good one
    #[arg(long)]
    torn: bool,
}

/// A disk that was named on the command line, open.
struct Source {
    name: String,
    /// Absolute, with `@` and the internal snapshot; what the manifest keeps.
    source: String,
    disk: firn_disk::SharedDisk,
    watched: Vec<(PathBuf, FileState)>,
}

/// What changes when somebody writes to a file.
#[derive(Debug, PartialEq, Eq)]
struct FileState {
    length: u64,
    inode: (u64, u64),
    modified: (i64, i64),
}

impl FileState {
    fn of(path: &Path) -> Result<Self> {
        let metadata = std::fs::metadata(path).map_err(|error| Error::from_io("stat", error).at_path(path))?;
        Ok(Self {
            length: metadata.len(),
            inode: (metadata.dev(), metadata.ino()),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        })
    }
}

/// Runs it.
///
/// # Errors
/// What opening and reading the images says, and [`Pool::write_snapshot`].
pub fn run(context: &Context, args: &SnapArgs) -> Result<ExitCode> {
    check_machine(args)?;
    let attachments = args.config.iter().map(|file| attachment(file)).collect::<Result<Vec<_>>>()?;
    let pool = context.open_pool()?;
    let named = if args.disks.is_empty() { last_sources(&pool, &args.machine)? } else { name_disks(&args.disks) };
    let created = context.now().timestamp();
    let sources = named.into_iter().map(|(name, file)| open(name, &file, args)).collect::<Result<Vec<_>>>()?;
    let progress = SnapshotProgress { cancel: context.interrupted.clone(), ..SnapshotProgress::default() };
    let inputs: Vec<_> = sources
        .iter()
        .map(|source| DiskInput {
            name: source.name.clone(),
            disk: &source.disk,
            changes: Changes::All,
            source: source.source.clone(),
            generation: None,
        })
        .collect();
    let options = SnapshotOptions {
        created,
        consistency: if args.torn { Consistency::Torn } else { Consistency::Crash },
        frozen_milliseconds: None,
        group: None,
        attachments,
    };
    let total: u64 = sources.iter().map(|source| source.disk.len()).sum();
    let manifest = std::thread::scope(|scope| {
        let _watch = Watch::start(scope, context, "snapshot", || status(&progress, total));
        let hooks = SnapshotHooks {
            progress: &progress,
            elapsed: &|| context.elapsed(),
            before_publish: &|| sources.iter().filter(|_| !args.torn).try_for_each(check_unchanged),
        };
        pool.write_snapshot(&args.machine, &inputs, options, hooks)
    })?
    .manifest;
    report(context, &manifest)?;
    Ok(ExitCode::SUCCESS)
}

/// # Errors
/// `Invalid`, with what a name of a machine is.
fn check_machine(args: &SnapArgs) -> Result<()> {
    let name = &args.machine;
    address::check_machine_name(name).map_err(|_| {
        let hint = if args.disks.is_empty() && Path::new(name).exists() {
            "the name of a machine comes first: `firn snap MACHINE FILE`"
        } else {
            "a name has letters, digits, dots, dashes and underscores, and begins with a letter or digit"
        };
        Error::invalid(format!("{name:?} is no name for a machine")).hint(hint)
    })
}

fn status(progress: &SnapshotProgress, total: u64) -> Status {
    let stored = progress.bytes_stored.load(Ordering::Relaxed);
    let words = format!("{} new", output::size(stored));
    Status { done: progress.bytes_done.load(Ordering::Relaxed), total, words }
}

fn report(context: &Context, manifest: &Manifest) -> Result<()> {
    if context.json {
        return output::json(&super::list::snapshot_json(manifest));
    }
    let statistics = &manifest.statistics;
    output::line(&format!(
        "{}@{}  {}, {} of data, {} new in the pool, {}",
        manifest.machine_name,
        output::moment(manifest.created),
        output::count(manifest.disks.len() as u64, "disk"),
        output::size(statistics.bytes_data),
        output::size(statistics.bytes_stored),
        output::duration(statistics.milliseconds),
    ))
}

/// Names for the disks, in order: as given, else `vda`, `vdb` and so on by position.
fn name_disks(arguments: &[OsString]) -> Vec<(String, OsString)> {
    let exists = |path: &OsStr| Path::new(path).exists();
    let mut named = Vec::new();
    for (number, argument) in arguments.iter().enumerate() {
        let bytes = argument.as_bytes();
        // The sign in a URI, as in nbd+unix:///?socket=PATH, ends no name.
        let split = bytes
            .iter()
            .position(|byte| *byte == b'=')
            .filter(|at| !exists(argument) && !bytes[..*at].windows(3).any(|part| part == b"://"));
        named.push(match split.and_then(|at| Some((std::str::from_utf8(&bytes[..at]).ok()?, &bytes[at + 1..]))) {
            Some((name, file)) => (name.to_owned(), OsString::from_vec(file.to_vec())),
            None => (default_name(number), argument.clone()),
        });
    }
    named
}

/// `vda` to `vdz`, `vdaa` and so on, as Linux names virtio disks.
pub fn default_name(number: usize) -> String {
    let letter = |number: usize| char::from(b'a' + u8::try_from(number % 26).unwrap_or(0));
    let mut letters = vec![letter(number)];
    let mut rest = number / 26;
    while rest > 0 {
        letters.push(letter(rest - 1));
        rest = (rest - 1) / 26;
    }
    format!("vd{}", letters.into_iter().rev().collect::<String>())
}

/// The disks of the machine's last snapshot.
fn last_sources(pool: &Pool, machine: &str) -> Result<Vec<(String, OsString)>> {
    let none = || {
        let hint = if Path::new(machine).is_file() {
            format!("the name of a machine comes first: `firn snap MACHINE {machine}`")
        } else {
            format!("name them, as `firn snap {machine} disk.qcow2`")
        };
        Error::invalid(format!("no disks were named, and {machine} has no snapshot yet to take them from")).hint(hint)
    };
    let machine =
        pool.machine(machine).map_err(|error| if error.kind() == ErrorKind::NotFound { none() } else { error })?;
    let last = pool.snapshots(machine.uuid)?.pop().ok_or_else(none)?.manifest?;
    Ok(last.disks.into_iter().map(|disk| (disk.name, OsString::from(disk.source))).collect())
}

fn open(name: String, file: &OsStr, args: &SnapArgs) -> Result<Source> {
    let folder = Path::new(file);
    if folder.is_dir() {
        return Err(Error::invalid("this is a folder").at_path(folder).hint("name an image file or a block device"));
    }
    let address = parse_address(file)?;
    let image = match (address.target, address.selectors.is_empty(), address.path) {
        (Target::Images(mut images), true, None) if images.len() == 1 => images.remove(0),
        (Target::Machine { name, .. }, ..) => {
            return Err(
                Error::not_found(format!("there is no file {name}")).hint("name an image file or a block device")
            );
        }
        (Target::Uri(uri), true, None) => {
            let disk = super::nbd::open(&uri, args.torn)?;
            return Ok(Source { name, source: uri, watched: Vec::new(), disk });
        }
        _ => {
            return Err(Error::invalid(format!("{} is not one whole disk", file.to_string_lossy()))
                .hint("name each image by itself, as `firn snap web1 vda=a.img vdb=b.img`"));
        }
    };
    let options = image::OpenOptions {
        format: args.input_format,
        snapshot: image.snapshot.clone(),
        allow_backing: args.allow_backing.clone(),
        torn: args.torn,
    };
    let absolute =
        std::path::absolute(&image.file).map_err(|error| Error::from_io("find", error).at_path(&image.file))?;
    // Opened twice: what is written after the files' states are taken is noticed in the end, what was written before
    // is in the second view.
    let first = image::open(&image.file, &options)?;
    let files = files_of(&absolute, &first);
    if !args.torn {
        files.iter().try_for_each(|file| firn_source::refuse_mounted(file))?;
    }
    let watched = files.iter().map(|path| Ok((path.clone(), FileState::of(path)?))).collect::<Result<_>>()?;
    let opened = image::open(&image.file, &options)?;
    if files_of(&absolute, &opened) != files {
        return Err(changed(&absolute));
    }
    if opened.details.is_corrupt {
        eprintln!(
            "firn: warning: {} is marked as corrupt by the program that wrote it",
            output::plain(&image.file.to_string_lossy())
        );
    }
    let mut source = absolute.to_string_lossy().into_owned();
    if let Some(snapshot) = &image.snapshot {
        source = format!("{source}@{snapshot}");
    }
    Ok(Source { name, source, watched, disk: opened.disk })
}

/// Every file that an image consists of, itself first.
fn files_of(image: &Path, opened: &image::Image) -> Vec<PathBuf> {
    let details = &opened.details;
    let others = details.chain.iter().map(|link| &link.path).chain(&details.data_files);
    std::iter::once(image.to_path_buf()).chain(others.cloned()).collect()
}

fn changed(path: &Path) -> Error {
    Error::new(ErrorKind::Unavailable, "the image was written to while it was read; there is no snapshot")
        .at_path(path)
        .hint("stop what writes to it, or take it with --torn, knowing that it may not be of one instant")
}

/// # Errors
/// `Unavailable` when a file of the image was written to since it was opened.
fn check_unchanged(source: &Source) -> Result<()> {
    for (path, before) in &source.watched {
        if FileState::of(path)? != *before {
            return Err(changed(path));
        }
    }
    Ok(())
}

fn attachment(file: &Path) -> Result<Attachment> {
    let failed = |error| Error::from_io("read", error).at_path(file);
    let metadata = std::fs::metadata(file).map_err(failed)?;
    if !metadata.is_file() || metadata.len() > MOST_CONFIG_BYTES {
        return Err(Error::invalid("only a regular file of at most 16 MiB is kept with a snapshot").at_path(file));
    }
    let bytes = std::fs::read(file).map_err(failed)?;
    let name = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(Attachment { name, bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_named_as_linux_names_them() {
        assert_eq!(
            [0, 1, 25, 26, 27, 701, 702].map(default_name),
            ["vda", "vdb", "vdz", "vdaa", "vdab", "vdzz", "vdaaa"]
        );
    }

    #[test]
    fn a_name_is_what_stands_before_an_equals_sign() {
        let named = name_disks(&["root=a.img".into(), "b.img".into(), "x=y=z".into(), "nbd+unix:///?socket=/s".into()]);
        let named: Vec<_> = named.iter().map(|(name, file)| (name.as_str(), file.to_str().unwrap())).collect();
        let uri = ("vdd", "nbd+unix:///?socket=/s");
        assert_eq!(named, [("root", "a.img"), ("vdb", "b.img"), ("x", "y=z"), uri]);
    }
}
