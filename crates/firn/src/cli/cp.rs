//! `firn cp`: files and folders out of a machine.

use super::cat;
use super::context::Context;
use super::output;
use super::progress::{Status, Watch};
use super::source::{SourceArgs, path_of};
use super::trouble::Troubles;
use crate::copy::{Copier, CopyOptions, CopyProgress, CopySummary, Report};
use crate::machine::{Follow, last_name, resolve};
use clap::{Args, ValueHint};
use firn_disk::{Error, ErrorKind, Result};
use firn_format::fs::FileType;
use serde_json::json;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::Ordering;

/// Copy a file, or with -r a folder, out of an image or a snapshot.
///
/// As cp does: into DEST if that is a folder, else to that name. Holes, modes, times, user attributes, hard and symbolic
/// links are kept; owners and all attributes when run by root. What is damaged is told of and left out, the rest is
/// copied, and the exit code is 3. A link inside never leads the writing out of DEST.
#[derive(Debug, Args)]
pub struct CpArgs {
    /// The file or folder, as disk.vmdk:/etc/hosts or web1@yesterday#vg0/root:/etc
    #[arg(value_name = "ADDRESS:/PATH", value_hint = ValueHint::FilePath)]
    address: Option<OsString>,
    /// Where to; `-` writes one file to stdout
    #[arg(value_name = "DEST", value_hint = ValueHint::AnyPath)]
    destination: Option<PathBuf>,
    /// Folders with all that is in them
    #[arg(long, short, visible_short_alias = 'R')]
    recursive: bool,
    /// Replace files that exist
    #[arg(long, short)]
    force: bool,
    /// Make device nodes, FIFOs and sockets, too
    #[arg(long)]
    devices: bool,
    /// Keep setuid and setgid bits and capabilities of files
    #[arg(long)]
    setuid: bool,
    #[command(flatten)]
    source: SourceArgs,
}

struct Told(Troubles);

impl Report for Told {
    fn error(&mut self, error: &Error) {
        self.0.error(error);
    }
    fn warning(&mut self, what: String) {
        self.0.warning(&what);
    }
}

/// Runs it.
///
/// # Errors
/// `Exists` without --force; `Invalid` for a folder without -r; what the layers below say.
pub fn run(context: &Context, args: &CpArgs) -> Result<ExitCode> {
    let (given, destination) = positions(args)?;
    let address = args.source.address(given)?;
    if address.path.is_none() {
        return Err(Error::invalid("the address names no file").hint("add a path to it, as :/etc/hosts"));
    }
    let path = path_of(&address)?;
    let mounted = args.source.mount(context, &address)?;
    let tree = &*mounted.tree;
    let follow = if args.recursive { Follow::NotLast } else { Follow::Last };
    let inode = resolve(tree, path, follow)?;
    let is_folder = tree.stat(inode)?.file_type == FileType::Folder;
    let named = Path::new(OsStr::from_bytes(path));
    if is_folder && !args.recursive {
        return Err(Error::invalid("this is a folder").at_path(named).hint("add -r to copy it with all that is in it"));
    }
    if destination == Path::new("-") {
        cat::print(tree, inode, &context.interrupted).map_err(|error| error.at_path(named))?;
        return Ok(ExitCode::SUCCESS);
    }
    let (into, name) = place(destination, path, is_folder)?;
    let options = CopyOptions {
        force: args.force,
        devices: args.devices,
        setuid: args.setuid,
        is_root: rustix::process::geteuid().is_root(),
    };
    let progress = CopyProgress::default();
    let mut told = Told(Troubles::default());
    let summary = std::thread::scope(|scope| {
        let status = || Status {
            done: progress.bytes.load(Ordering::Relaxed),
            total: 0,
            words: output::count(progress.files.load(Ordering::Relaxed), "file"),
        };
        let _watch = Watch::start(scope, context, "copy", status);
        let copier = Copier::new(tree, options, &context.interrupted, &progress, &mut told);
        match (&name, is_folder) {
            (name, true) => copier.copy_folder(inode, &into, name.as_deref()),
            (Some(name), false) => copier.copy_one(inode, &into, name).map_err(|error| error.at_path(into.join(name))),
            (None, false) => Err(Error::invalid("the file needs a name").hint("name it in DEST")),
        }
    })?;
    if summary.weakened > 0 {
        let files = output::count(summary.weakened, "file");
        told.0.warning(&format!("{files} copied without setuid, setgid or capabilities; --setuid keeps them"));
    }
    if context.json {
        output::json(&to_json(&summary, &told.0))?;
    }
    Ok(told.0.finish())
}

/// The address and the destination: with --image there is no address, and the first argument is the destination.
fn positions(args: &CpArgs) -> Result<(Option<&OsStr>, &Path)> {
    let missing = || Error::invalid("where to was not said").hint("name a file or folder as DEST, or - for stdout");
    match (&args.address, &args.destination) {
        (Some(destination), None) if args.source.has_image() => Ok((None, Path::new(destination))),
        (address, Some(destination)) => Ok((address.as_deref(), destination)),
        _ => Err(missing()),
    }
}

/// The folder to write into, and the name to write there; no name for the content of the source's root into a folder
/// that exists.
fn place(destination: &Path, path: &[u8], is_folder: bool) -> Result<(PathBuf, Option<OsString>)> {
    let own_name = last_name(path).map(|name| OsStr::from_bytes(name).to_owned());
    if destination.is_dir() {
        return Ok((destination.to_path_buf(), own_name));
    }
    let Some(name) = destination.file_name() else {
        return Err(Error::not_found("there is no such folder").at_path(destination));
    };
    if destination.as_os_str().as_bytes().ends_with(b"/") && !is_folder {
        return Err(Error::not_found("there is no such folder").at_path(destination).hint("make it first"));
    }
    let into = match destination.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    };
    if !into.is_dir() {
        return Err(Error::new(ErrorKind::NotFound, "there is no such folder").at_path(into).hint("make it first"));
    }
    Ok((into, Some(name.to_owned())))
}

fn to_json(summary: &CopySummary, troubles: &Troubles) -> serde_json::Value {
    json!({
        "files": summary.files,
        "folders": summary.folders,
        "symlinks": summary.symlinks,
        "hard_links": summary.hard_links,
        "special": summary.special,
        "bytes_written": summary.bytes,
        "skipped": summary.skipped,
        "without_setuid": summary.weakened,
        "warnings": troubles.warnings(),
        "error_count": troubles.errors(),
        "errors": troubles.to_json(),
    })
}
