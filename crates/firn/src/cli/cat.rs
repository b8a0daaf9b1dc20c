//! `firn cat`: the content of files to stdout.

use super::context::Context;
use super::source::{SourceArgs, path_of};
use crate::copy::{Piece, for_each_piece};
use crate::machine::{Follow, resolve};
use clap::{Args, ValueHint};
use firn_disk::{Error, Result};
use firn_format::fs::{FileTree, FileType};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;

/// Zeros that are written for holes.
static ZEROS: [u8; 1 << 16] = [0; 1 << 16];

/// Print the content of files.
#[derive(Debug, Args)]
pub struct CatArgs {
    /// The files, as disk.vmdk:/etc/hosts or web1@yesterday#vg0/root:/etc/hosts
    #[arg(value_name = "ADDRESS:/PATH", value_hint = ValueHint::FilePath)]
    addresses: Vec<OsString>,
    #[command(flatten)]
    source: SourceArgs,
}

/// Runs it.
///
/// # Errors
/// `NotFound`; `Invalid` for what is no file; what the layers below say, after what could be read before it.
pub fn run(context: &Context, args: &CatArgs) -> Result<ExitCode> {
    let given: Vec<Option<&OsStr>> = match args.addresses.as_slice() {
        [] => vec![None],
        several => several.iter().map(|address| Some(address.as_os_str())).collect(),
    };
    for text in given {
        let address = args.source.address(text)?;
        let path = path_of(&address)?;
        let mounted = args.source.mount(context, &address)?;
        let inode = resolve(&*mounted.tree, path, Follow::Last)?;
        print(&*mounted.tree, inode, &context.interrupted).map_err(|error| error.at_path(OsStr::from_bytes(path)))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes a regular file to stdout, holes as zeros.
///
/// # Errors
/// `Invalid` when it is no regular file; what reading and writing say.
pub fn print(tree: &dyn FileTree, inode: u64, cancel: &AtomicBool) -> Result<()> {
    let failed = |error| Error::from_io("write to stdout", error);
    let file_type = tree.stat(inode)?.file_type;
    if file_type != FileType::File {
        let error = Error::invalid(format!("this is a {}", file_type.as_str()));
        return Err(error.hint("only regular files have a content to print"));
    }
    let disk = tree.open(inode)?;
    // The standard library's own handle looks for line ends in all that goes through it.
    let mut out = std::io::stdout().as_fd().try_clone_to_owned().map(File::from).map_err(failed)?;
    for_each_piece(&disk, cancel, &mut |piece| match piece {
        Piece::Bytes(bytes, _) => out.write_all(bytes).map_err(failed),
        Piece::Zeros(run) => {
            let mut left = run.end - run.start;
            while left > 0 {
                let count = usize::try_from(left).unwrap_or(usize::MAX).min(ZEROS.len());
                out.write_all(&ZEROS[..count]).map_err(failed)?;
                left -= count as u64;
            }
            Ok(())
        }
    })
}
