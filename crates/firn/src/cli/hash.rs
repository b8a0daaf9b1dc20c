//! `firn hash`: SHA-256 of files, in the form that sha256sum checks.

use super::context::Context;
use super::source::{SourceArgs, path_of};
use super::trouble::Troubles;
use super::{names, output};
use crate::copy::{Piece, for_each_piece};
use crate::machine::{Follow, Order, Step, Walk, last_name, resolve};
use clap::{Args, ValueHint};
use firn_disk::{Error, ErrorKind, Result};
use firn_format::fs::{FileTree, FileType};
use ring::digest::{Context as Digest, SHA256};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::{BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Mutex, PoisonError};

/// Files that are hashed at one time.
const THREADS: usize = 2;
/// Files that wait for a thread, and results that wait for those before them.
const WAITING: usize = 256;
static ZEROS: [u8; 1 << 16] = [0; 1 << 16];

/// Print a checksum of each regular file, sorted by path.
///
/// The lines are `HASH  ./path`, as sha256sum prints them and `sha256sum -c` reads them within a copy of the folder.
#[derive(Debug, Args)]
pub struct HashArgs {
    /// The folder or file; without a path, all files
    #[arg(value_name = "ADDRESS[:/PATH]", value_hint = ValueHint::FilePath)]
    address: Option<OsString>,
    #[command(flatten)]
    source: SourceArgs,
}

/// A file that waits, or that could not even be found.
type Job = (u64, Vec<u8>, Result<u64>);
/// A file's number in order, its path, its hash.
type Hashed = (u64, Vec<u8>, Result<Vec<u8>>);

/// Runs it.
///
/// # Errors
/// `NotFound`; what the layers below say. What cannot be read is told of, and the rest is hashed.
pub fn run(context: &Context, args: &HashArgs) -> Result<ExitCode> {
    let address = args.source.address(args.address.as_deref())?;
    let path = path_of(&address)?;
    let mounted = args.source.mount(context, &address)?;
    let tree = &*mounted.tree;
    let start = resolve(tree, path, Follow::Last)?;
    if tree.stat(start)?.file_type != FileType::Folder && last_name(path).is_none() {
        return Err(Error::invalid("this is no file"));
    }
    let cancel = &*context.interrupted;
    let mut troubles = Troubles::default();
    let mut list = Vec::new();
    let mut out = BufWriter::with_capacity(1 << 16, std::io::stdout().lock());
    let mut show = |path: Vec<u8>, hash: Result<Vec<u8>>| match hash {
        Err(error) if error.kind() == ErrorKind::Interrupted => Err(error),
        Err(error) => {
            troubles.error(&error.at_path(OsStr::from_bytes(&path)));
            Ok(())
        }
        Ok(hash) if context.json => {
            let mut object = Map::new();
            names::put(&mut object, "path", &path);
            object.insert("sha256".into(), names::hex(&hash).into());
            list.push(Value::Object(object));
            Ok(())
        }
        Ok(hash) => out.write_all(&line(&hash, &path)).map_err(|error| Error::from_io("write to stdout", error)),
    };
    hash_all(tree, start, path, cancel, &mut show)?;
    out.flush().map_err(|error| Error::from_io("write to stdout", error))?;
    drop(out);
    if context.json {
        output::json(&serde_json::json!({ "layer": mounted.address, "files": list, "errors": troubles.to_json() }))?;
    }
    Ok(troubles.finish())
}

/// Calls `show` with each file in order while others are hashed.
fn hash_all(
    tree: &dyn FileTree,
    start: u64,
    path: &[u8],
    cancel: &AtomicBool,
    show: &mut dyn FnMut(Vec<u8>, Result<Vec<u8>>) -> Result<()>,
) -> Result<()> {
    let walk = Walk::new(tree, start, Order::Paths)?;
    std::thread::scope(|scope| {
        let (jobs, waiting) = sync_channel::<Job>(WAITING);
        let waiting = std::sync::Arc::new(Mutex::new(waiting));
        let (results, done) = sync_channel::<Hashed>(WAITING);
        for _ in 0..THREADS {
            let (waiting, results) = (waiting.clone(), results.clone());
            scope.spawn(move || {
                while let Some((number, path, inode)) = next(&waiting) {
                    let hash = inode.and_then(|inode| hash(tree, inode, cancel));
                    if results.send((number, path, hash)).is_err() {
                        break;
                    }
                }
            });
        }
        // Their ends are with the threads; when those are gone, so are these.
        drop((waiting, results));
        scope.spawn(move || {
            let mut number = 0;
            for step in walk {
                let job = match step {
                    Step::Node(item) if item.stat.file_type == FileType::File => {
                        let name = if item.path.is_empty() { last_name(path).unwrap_or_default() } else { &item.path };
                        (number, name.to_vec(), Ok(item.stat.inode))
                    }
                    Step::Failed(path, error) => (number, path, Err(error)),
                    _ => continue,
                };
                if jobs.send(job).is_err() {
                    break;
                }
                number += 1;
            }
        });
        in_order(done, show)
    })
}

fn next(waiting: &Mutex<Receiver<Job>>) -> Option<Job> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
}

/// Hands on what comes out of order in order. A few large files hold back as many small ones as there are meanwhile.
fn in_order(done: Receiver<Hashed>, show: &mut dyn FnMut(Vec<u8>, Result<Vec<u8>>) -> Result<()>) -> Result<()> {
    let mut early = BTreeMap::new();
    let mut expected = 0;
    for (number, path, hash) in done {
        early.insert(number, (path, hash));
        while let Some((path, hash)) = early.remove(&expected) {
            show(path, hash)?;
            expected += 1;
        }
    }
    Ok(())
}

fn hash(tree: &dyn FileTree, inode: u64, cancel: &AtomicBool) -> Result<Vec<u8>> {
    let disk = tree.open(inode)?;
    let mut digest = Digest::new(&SHA256);
    for_each_piece(&disk, cancel, &mut |piece| {
        match piece {
            Piece::Bytes(bytes, _) => digest.update(bytes),
            Piece::Zeros(run) => {
                let mut left = run.end - run.start;
                while left > 0 {
                    let count = usize::try_from(left).unwrap_or(usize::MAX).min(ZEROS.len());
                    digest.update(&ZEROS[..count]);
                    left -= count as u64;
                    if cancel.load(std::sync::atomic::Ordering::Relaxed) {
                        return Err(Error::new(ErrorKind::Interrupted, "stopped"));
                    }
                }
            }
        }
        Ok(())
    })?;
    Ok(digest.finish().as_ref().to_vec())
}

/// A line as sha256sum writes it: with a backslash in front where the name has backslashes or line ends.
fn line(hash: &[u8], path: &[u8]) -> Vec<u8> {
    let is_escaped = path.iter().any(|byte| matches!(byte, b'\\' | b'\n'));
    let mut line = Vec::with_capacity(path.len() + 72);
    if is_escaped {
        line.push(b'\\');
    }
    line.extend(names::hex(hash).into_bytes());
    line.extend(b"  ./");
    for byte in path {
        match byte {
            b'\\' => line.extend(b"\\\\"),
            b'\n' => line.extend(b"\\n"),
            other => line.push(*other),
        }
    }
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::testing::Fake;

    #[test]
    fn files_come_sorted_with_the_right_hash() {
        let mut tree = Fake::default();
        for number in 0..600 {
            tree.file(&format!("a/{number:04}"), format!("{number}").as_bytes());
        }
        tree.file("a.txt", b"abc");
        let mut lines = Vec::new();
        let cancel = AtomicBool::new(false);
        hash_all(&tree, 1, b"/", &cancel, &mut |path, hash| {
            lines.push((path, names::hex(&hash.unwrap())));
            Ok(())
        })
        .unwrap();
        assert_eq!(lines.len(), 601);
        assert!(lines.is_sorted());
        assert_eq!(lines[0].0, b"a.txt");
        assert_eq!(lines[0].1, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn lines_are_escaped_as_sha256sum_does_it() {
        assert_eq!(line(&[0xab], b"a b"), b"ab  ./a b\n");
        assert_eq!(line(&[0xab], b"a\n\\"), b"\\ab  ./a\\n\\\\\n");
    }
}
