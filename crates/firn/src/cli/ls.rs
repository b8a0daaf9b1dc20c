//! `firn ls`: the names in a folder.

use super::context::Context;
use super::source::{SourceArgs, path_of};
use super::trouble::Troubles;
use super::{names, output, stat};
use crate::machine::{Follow, Order, list, resolve};
use clap::{Args, ValueHint};
use firn_disk::{Error, Result};
use firn_format::fs::{Entry, FileTree, FileType, Stat};
use serde_json::{Map, Value};
use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::io::{BufWriter, IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;

/// List the files of a folder.
///
/// Names come one on a line, sorted as bytes, hidden ones too. On a terminal a name with anything but printable
/// characters is quoted as a shell would read it back; in a pipe it is given as it is. In JSON a name that is not UTF-8
/// has a `name_hex` beside it with all its bytes.
#[derive(Debug, Args)]
pub struct LsArgs {
    /// The folder or file, as disk.vmdk:/etc or web1@yesterday#vg0/root:/etc; without a path, the root folder
    #[arg(value_name = "ADDRESS[:/PATH]", value_hint = ValueHint::FilePath)]
    address: Option<OsString>,
    /// Type, mode, + for an access control list, links, owner, group, size or device numbers, time, target of a link
    #[arg(long, short)]
    long: bool,
    /// Folders within folders, too
    #[arg(long, short = 'R')]
    recursive: bool,
    /// Changes nothing: hidden names are always listed
    #[arg(long, short)]
    all: bool,
    #[command(flatten)]
    source: SourceArgs,
}

/// Longest path below the one that was asked for.
const MAX_PATH: usize = 1 << 20;

/// Runs it.
///
/// # Errors
/// `NotFound`; what the layers below say. What is damaged within the folder is told of, and the rest is listed.
pub fn run(context: &Context, args: &LsArgs) -> Result<ExitCode> {
    let address = args.source.address(args.address.as_deref())?;
    let path = path_of(&address)?;
    let mounted = args.source.mount(context, &address)?;
    let tree = &*mounted.tree;
    // As ls does: the long form tells of the link, the short one of the folder that it leads to.
    let followed = if args.long { None } else { resolve(tree, path, Follow::Last).ok() };
    let start = followed.map_or_else(|| resolve(tree, path, Follow::NotLast), Ok)?;
    let mut listing = Listing {
        tree,
        path,
        is_recursive: args.recursive,
        is_long: args.long,
        wants_stat: args.long || context.json,
        on_terminal: std::io::stdout().is_terminal(),
        troubles: Troubles::default(),
    };
    if context.json {
        let mut entries = Vec::new();
        listing.visit(start, &mut |_, folder| {
            entries.extend(folder.entries.iter().map(|entry| to_json(entry, &folder.below)));
            Ok(())
        })?;
        let mut document = Map::new();
        document.insert("layer".into(), mounted.address.clone().into());
        names::put(&mut document, "path", path);
        document.insert("entries".into(), entries.into());
        document.insert("errors".into(), listing.troubles.to_json());
        output::json(&document)?;
    } else {
        let mut out = BufWriter::with_capacity(1 << 16, std::io::stdout().lock());
        let failed = |error| Error::from_io("write to stdout", error);
        let mut is_first = true;
        listing.visit(start, &mut |listing, folder| {
            if listing.is_recursive && folder.is_folder {
                let gap = if std::mem::take(&mut is_first) { "" } else { "\n" };
                let name = listing.shown(&listing.full_path(&folder.below));
                out.write_all(gap.as_bytes()).and_then(|()| out.write_all(&name)).map_err(failed)?;
                out.write_all(b":\n").map_err(failed)?;
            }
            listing.print(&folder.entries, &mut out).map_err(failed)
        })?;
        out.flush().map_err(failed)?;
    }
    Ok(listing.troubles.finish())
}

struct Listing<'a> {
    tree: &'a dyn FileTree,
    path: &'a [u8],
    is_recursive: bool,
    is_long: bool,
    wants_stat: bool,
    on_terminal: bool,
    troubles: Troubles,
}

/// The names of one folder.
struct Folder {
    /// Its path below the one that was asked for.
    below: Vec<u8>,
    /// `false` for a file that was asked for by itself.
    is_folder: bool,
    entries: Vec<Named>,
}

/// A name with what could be found out about it.
struct Named {
    name: Vec<u8>,
    inode: u64,
    is_folder: bool,
    stat: Option<Stat>,
    target: Option<Vec<u8>>,
    has_acl: bool,
}

impl Listing<'_> {
    fn full_path(&self, below: &[u8]) -> Vec<u8> {
        match (self.path, below) {
            (path, []) => path.to_vec(),
            ([.., b'/'], below) => [self.path, below].concat(),
            (path, below) => [path, b"/", below].concat(),
        }
    }

    fn shown(&self, name: &[u8]) -> Vec<u8> {
        if self.on_terminal { names::quoted(name).into_bytes() } else { name.to_vec() }
    }

    fn trouble(&mut self, below: &[u8], error: Error) {
        let path = self.full_path(below);
        self.troubles.error(&error.at_path(OsStr::from_bytes(&path)));
    }

    /// Calls `show` with one folder after the other, each before those within it.
    fn visit(&mut self, start: u64, show: &mut dyn FnMut(&Self, Folder) -> Result<()>) -> Result<()> {
        let stat = self.tree.stat(start)?;
        if stat.file_type != FileType::Folder {
            let name = self.path.to_vec();
            let entry = self.look_at(Entry { name, inode: start, file_type: Some(stat.file_type) }, b"");
            return show(self, Folder { below: Vec::new(), is_folder: false, entries: vec![entry] });
        }
        let mut left = vec![(Vec::new(), start)];
        let mut seen = HashSet::new();
        while let Some((below, inode)) = left.pop() {
            if !seen.insert(inode) {
                self.trouble(&below, Error::corrupt(format!("the folder with inode {inode} has more than one name")));
                continue;
            }
            let (entries, failed) = list(self.tree, inode, Order::Names);
            if let Some(error) = failed {
                self.trouble(&below, error);
            }
            let entries: Vec<Named> = entries.into_iter().map(|entry| self.look_at(entry, &below)).collect();
            if self.is_recursive {
                for entry in entries.iter().rev().filter(|entry| entry.is_folder) {
                    let path = join(&below, &entry.name);
                    if path.len() > MAX_PATH {
                        self.trouble(&below, Error::unsupported("the folders within it are too deep to be listed"));
                    } else {
                        left.push((path, entry.inode));
                    }
                }
            }
            show(self, Folder { below, is_folder: true, entries })?;
        }
        Ok(())
    }

    fn look_at(&mut self, entry: Entry, below: &[u8]) -> Named {
        let Entry { name, inode, file_type } = entry;
        let mut named = Named {
            name,
            inode,
            is_folder: file_type == Some(FileType::Folder),
            stat: None,
            target: None,
            has_acl: false,
        };
        if !self.wants_stat && (file_type.is_some() || !self.is_recursive) {
            return named;
        }
        if let Err(error) = self.find_out(&mut named) {
            self.trouble(&join(below, &named.name), error);
        }
        named
    }

    fn find_out(&self, named: &mut Named) -> Result<()> {
        let stat = self.tree.stat(named.inode)?;
        named.is_folder = stat.file_type == FileType::Folder;
        named.stat = Some(stat.clone());
        if self.wants_stat {
            if stat.file_type == FileType::Symlink {
                named.target = Some(self.tree.read_link(named.inode)?);
            }
            named.has_acl = stat::has_acl(self.tree, &stat)?;
        }
        Ok(())
    }

    fn print(&self, entries: &[Named], out: &mut impl Write) -> std::io::Result<()> {
        let lines: Vec<[String; 6]> = if self.is_long { entries.iter().map(cells).collect() } else { Vec::new() };
        let mut widths = [0; 6];
        for line in &lines {
            for (width, cell) in widths.iter_mut().zip(line) {
                *width = cell.len().max(*width);
            }
        }
        let [mode, links, user, group, size, time] = widths;
        for (number, entry) in entries.iter().enumerate() {
            if let Some([a, b, c, d, e, f]) = lines.get(number) {
                write!(out, "{a:<mode$} {b:>links$} {c:>user$} {d:>group$} {e:>size$} {f:<time$} ")?;
            }
            out.write_all(&self.shown(&entry.name))?;
            if let Some(target) = entry.target.as_deref().filter(|_| self.is_long) {
                out.write_all(b" -> ")?;
                out.write_all(&self.shown(target))?;
            }
            out.write_all(b"\n")?;
        }
        Ok(())
    }
}

fn join(below: &[u8], name: &[u8]) -> Vec<u8> {
    if below.is_empty() { name.to_vec() } else { [below, b"/", name].concat() }
}

/// Mode, links, owner, group, size or device numbers, time. Of what cannot be read: question marks.
fn cells(entry: &Named) -> [String; 6] {
    let Some(stat) = &entry.stat else {
        return ["??????????", "?", "?", "?", "?", "?"].map(str::to_owned);
    };
    let size = stat.device.map_or_else(|| stat.size.to_string(), |(major, minor)| format!("{major},{minor}"));
    [
        stat::mode(stat) + if entry.has_acl { "+" } else { "" },
        stat.links.to_string(),
        stat.user.to_string(),
        stat.group.to_string(),
        size,
        stat::to_the_second(stat.modified),
    ]
}

fn to_json(entry: &Named, below: &[u8]) -> Value {
    let mut object = entry.stat.as_ref().map(stat::to_json).unwrap_or_default();
    names::put(&mut object, "name", &entry.name);
    names::put(&mut object, "path", &join(below, &entry.name));
    if let Some(target) = &entry.target {
        names::put(&mut object, "target", target);
    }
    if entry.has_acl {
        object.insert("acl".into(), true.into());
    }
    object.into()
}
