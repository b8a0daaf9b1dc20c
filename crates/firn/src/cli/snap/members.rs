//! From the command line to machines and their sources: `web1 qemu:/run/web1.sock --group db1=libvirt://db1`.

use super::super::snapshots::parse_address;
use super::SnapArgs;
use crate::address::{self, Target};
use firn_disk::{Error, ErrorKind, Result};
use firn_format::image;
use firn_pool::{Entropy, Manifest, Pool, SystemEntropy};
use firn_source::nas::NasSource;
use firn_source::quiesce::Member;
use firn_source::{FileOptions, FileSource, PreviousDisk, Request, Source, SourceOptions};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use uuid::Uuid;

/// The machines of which snapshots are to be taken.
#[derive(Debug)]
pub struct Wanted {
    pub members: Vec<Member>,
    /// The last snapshot of each, where there is one.
    pub last: Vec<Option<Manifest>>,
}

/// What was said of one machine: its name, and its sources as `[NAME=]SOURCE`.
type Said = (String, Vec<OsString>);

/// What the command line says of each machine, that of the first argument first.
fn said(args: &SnapArgs) -> Vec<Said> {
    let mut said: Vec<Said> = vec![(args.machine.clone(), args.sources.clone())];
    for text in &args.group {
        let (machine, source) = split_member(text);
        match said.iter_mut().find(|(name, _)| *name == machine) {
            Some((_, sources)) => sources.extend(source),
            None => said.push((machine, source.into_iter().collect())),
        }
    }
    said
}

/// The machines of the command line with their sources.
///
/// # Errors
/// `Invalid` for sources that make no sense, and where none were named and none are known.
pub fn wanted(pool: &Pool, args: &SnapArgs) -> Result<Wanted> {
    let run = random_hexadecimal()?;
    let images = images(args);
    let mut wanted = Wanted { members: Vec::new(), last: Vec::new() };
    for (machine, sources) in said(args) {
        let last = last_snapshot(pool, &machine, sources.is_empty())?;
        let mut member = member(pool.uuid(), &machine, &sources, last.as_ref(), &images)?;
        member.request.run.clone_from(&run);
        member.request.scratch_folder.clone_from(&args.scratch);
        member.hooks = args.quiesce.hooks();
        member.mount_points.clone_from(&args.quiesce.mount_point);
        wanted.members.push(member);
        wanted.last.push(last);
    }
    Ok(wanted)
}

fn images(args: &SnapArgs) -> FileOptions {
    let image = image::OpenOptions {
        format: args.input_format,
        snapshot: None,
        allow_backing: args.allow_backing.clone(),
        torn: args.torn,
    };
    FileOptions { image, is_copy: false }
}

/// The versions of `nas:PATH` that no snapshot of the machine has, oldest first.
///
/// # Errors
/// `Invalid` for any other source; what the filer's folders say.
pub fn missing_versions(pool: &Pool, args: &SnapArgs) -> Result<Vec<NasSource>> {
    let [source] = args.sources.as_slice() else {
        return Err(Error::invalid("--each goes with one source, nas:PATH"));
    };
    let named = name_disks(std::slice::from_ref(source)).pop();
    let named = named.filter(|named| named.source.as_bytes().starts_with(b"nas:"));
    let Named { name, is_named, source } = named.ok_or_else(|| {
        Error::invalid("--each goes with a source that has many versions")
            .hint("write `firn snap web1 nas:/srv/web1.img --each`")
    })?;
    let known = match pool.machine(&args.machine) {
        Ok(machine) => {
            pool.snapshots(machine.uuid)?.into_iter().filter_map(|snapshot| snapshot.manifest.ok()).collect()
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    let has = |source: &NasSource| {
        let mut disks = known.iter().flat_map(|manifest| &manifest.disks);
        disks.any(|disk| disk.generation.as_deref() == Some(source.generation()))
    };
    let uri = source.to_str().ok_or_else(|| Error::invalid("the source is not UTF-8"))?;
    let options = SourceOptions { name, is_named, file: images(args) };
    Ok(firn_source::nas::each(uri, &options)?.into_iter().filter(|source| !has(source)).collect())
}

/// The machine of the command line with this source in place of those it names.
///
/// # Errors
/// What the pool says.
pub fn with_source(pool: &Pool, args: &SnapArgs, source: NasSource) -> Result<Wanted> {
    let request = Request {
        owner: owner(pool.uuid(), &args.machine),
        machine: args.machine.clone(),
        run: random_hexadecimal()?,
        previous: Vec::new(),
        scratch_folder: args.scratch.clone(),
    };
    let member = Member {
        machine: args.machine.clone(),
        request,
        sources: vec![Box::new(source)],
        hooks: Vec::new(),
        mount_points: Vec::new(),
    };
    Ok(Wanted { members: vec![member], last: vec![None] })
}

/// One machine with its sources, to be looked at.
///
/// # Errors
/// As [`wanted`].
pub fn looked_at(pool: Option<&Pool>, machine: &str, sources: &[OsString]) -> Result<Member> {
    let last = pool.map(|pool| last_snapshot(pool, machine, sources.is_empty())).transpose()?.flatten();
    let pool = pool.map(Pool::uuid).unwrap_or_default();
    let mut member = member(pool, machine, sources, last.as_ref(), &FileOptions::default())?;
    member.request.run = random_hexadecimal()?;
    Ok(member)
}

fn member(
    pool: Uuid,
    machine: &str,
    sources: &[OsString],
    last: Option<&Manifest>,
    images: &FileOptions,
) -> Result<Member> {
    let named = if sources.is_empty() { last_sources(machine, last)? } else { name_disks(sources) };
    let sources = named.into_iter().map(|named| open(named, images)).collect::<Result<Vec<_>>>()?;
    let request = Request {
        owner: owner(pool, machine),
        machine: machine.to_owned(),
        run: String::new(),
        previous: last.map(previous_disks).unwrap_or_default(),
        scratch_folder: None,
    };
    Ok(Member { machine: machine.to_owned(), request, sources, hooks: Vec::new(), mount_points: Vec::new() })
}

/// `db1=libvirt://db1` or `db1`.
fn split_member(text: &OsStr) -> (String, Option<OsString>) {
    let bytes = text.as_bytes();
    let (machine, source) = match bytes.iter().position(|byte| *byte == b'=') {
        Some(at) => (&bytes[..at], Some(OsString::from_vec(bytes[at + 1..].to_vec()))),
        None => (bytes, None),
    };
    (String::from_utf8_lossy(machine).into_owned(), source)
}

/// Tells this machine in this pool from all others, in the names of what sources make.
fn owner(pool: Uuid, machine: &str) -> String {
    let text = format!("{pool} {machine}");
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    hexadecimal(digest.as_ref().get(..8).unwrap_or_default())
}

fn random_hexadecimal() -> Result<String> {
    let mut bytes = [0; 4];
    SystemEntropy.fill(&mut bytes)?;
    Ok(hexadecimal(&bytes))
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The last snapshot. One that cannot be read is an error only where its sources are `needed`: without it all is read.
fn last_snapshot(pool: &Pool, machine: &str, needed: bool) -> Result<Option<Manifest>> {
    let machine = match pool.machine(machine) {
        Ok(machine) => machine,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    match pool.snapshots(machine.uuid)?.pop().map(|snapshot| snapshot.manifest).transpose() {
        Err(_) if !needed => Ok(None),
        last => last,
    }
}

fn previous_disks(manifest: &Manifest) -> Vec<PreviousDisk> {
    let previous = |disk: &firn_pool::DiskRecord| PreviousDisk {
        name: disk.name.clone(),
        length: disk.length,
        source: disk.source.clone(),
        generation: disk.generation.clone(),
    };
    manifest.disks.iter().map(previous).collect()
}

/// The sources of the machine's last snapshot; one that gave several disks is named once.
fn last_sources(machine: &str, last: Option<&Manifest>) -> Result<Vec<Named>> {
    let last = last.ok_or_else(|| {
        let hint = if Path::new(machine).is_file() {
            format!("the name of a machine comes first: `firn snap MACHINE {machine}`")
        } else {
            format!("name them, as `firn snap {machine} disk.qcow2` or `firn snap {machine} qemu:/run/{machine}.sock`")
        };
        Error::invalid(format!("no disks were named, and {machine} has no snapshot yet to take them from")).hint(hint)
    })?;
    let mut named: Vec<Named> = Vec::new();
    for disk in &last.disks {
        let source = OsString::from(firn_source::source_of_disk(&disk.source));
        if named.iter().all(|other| other.source != source) {
            named.push(Named { name: disk.name.clone(), is_named: false, source });
        }
    }
    Ok(named)
}

/// A source with the name of its disk.
#[derive(Debug, PartialEq, Eq)]
struct Named {
    name: String,
    /// Whether the user gave the name.
    is_named: bool,
    source: OsString,
}

/// Names for the disks, in order: as given, else `vda`, `vdb` and so on by position.
fn name_disks(arguments: &[OsString]) -> Vec<Named> {
    let exists = |path: &OsStr| Path::new(path).exists();
    let mut named = Vec::new();
    for (number, argument) in arguments.iter().enumerate() {
        let bytes = argument.as_bytes();
        // The sign in a URI, as in nbd+unix:///?socket=PATH, ends no name.
        let split =
            bytes.iter().position(|byte| *byte == b'=').filter(|at| !exists(argument) && !bytes[..*at].contains(&b':'));
        named.push(match split.and_then(|at| Some((std::str::from_utf8(&bytes[..at]).ok()?, &bytes[at + 1..]))) {
            Some((name, file)) => {
                Named { name: name.to_owned(), is_named: true, source: OsString::from_vec(file.to_vec()) }
            }
            None => Named { name: default_name(number), is_named: false, source: argument.clone() },
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

fn open(named: Named, images: &FileOptions) -> Result<Box<dyn Source>> {
    let Named { name, is_named, source } = named;
    let folder = Path::new(&source);
    if folder.is_dir() {
        return Err(Error::invalid("this is a folder").at_path(folder).hint("name an image file or a block device"));
    }
    let address = parse_address(&source)?;
    match (address.target, address.selectors.is_empty(), address.path) {
        (Target::Images(mut named), true, None) if named.len() == 1 => {
            let image = named.remove(0);
            let mut options = images.clone();
            options.image.snapshot = image.snapshot;
            Ok(Box::new(FileSource::new(&image.file, name, options)?))
        }
        (Target::Machine { name, .. }, ..) => Err(Error::not_found(format!("there is no file {name}"))
            .hint("name an image file, a block device, or a source as qemu:SOCKET; `firn sources` shows what is here")),
        (Target::Uri(uri), true, None) => {
            firn_source::open(&uri, &SourceOptions { name, is_named, file: images.clone() })
        }
        _ => Err(Error::invalid(format!("{} is not one whole disk", source.to_string_lossy()))
            .hint("name each image by itself, as `firn snap web1 vda=a.img vdb=b.img`")),
    }
}

/// # Errors
/// `Invalid`, with what a name of a machine is.
pub fn check_names(args: &SnapArgs) -> Result<()> {
    said(args).iter().try_for_each(|(name, sources)| {
        address::check_machine_name(name).map_err(|_| {
            let hint = if sources.is_empty() && Path::new(name).exists() {
                "the name of a machine comes first: `firn snap MACHINE FILE`"
            } else {
                "a name has letters, digits, dots, dashes and underscores, and begins with a letter or digit"
            };
            Error::invalid(format!("{name:?} is no name for a machine")).hint(hint)
        })
    })
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
        let arguments = ["root=a.img", "b.img", "x=y=z", "nbd+unix:///?socket=/s", "qemu:/s?agent=/a"];
        let named = name_disks(&arguments.map(OsString::from));
        let named: Vec<_> = named.iter().map(|named| (named.name.as_str(), named.source.to_str().unwrap())).collect();
        let uris = [("vdd", "nbd+unix:///?socket=/s"), ("vde", "qemu:/s?agent=/a")];
        assert_eq!(named, [[("root", "a.img"), ("vdb", "b.img"), ("x", "y=z")].as_slice(), &uris].concat());
    }

    #[test]
    fn a_member_of_a_group_has_a_name_and_perhaps_a_source() {
        let split = |text: &str| {
            let (machine, source) = split_member(OsStr::new(text));
            (machine, source.map(|source| source.into_string().unwrap()))
        };
        assert_eq!(split("db1"), ("db1".into(), None));
        assert_eq!(split("db1=qemu:/s?agent=/a"), ("db1".into(), Some("qemu:/s?agent=/a".into())));
    }
}
