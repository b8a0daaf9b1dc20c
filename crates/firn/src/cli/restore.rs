//! `firn restore`: disks out of the pool, or out of an image, as image files.

use super::context::Context;
use super::define::{DefineArgs, Definition};
use super::new_ids::{self, NewIdsArgs};
use super::progress::{Status, Watch};
use super::restored::{self, DamagedDisk, Restored, Written};
use super::snapshots::parse_address;
use super::source::Source;
use super::{in_place, output};
use crate::address::Address;
use crate::copy::{Piece, Salvage, for_each_piece};
use crate::machine::Machine;
use clap::{Args, ValueHint};
use firn_disk::{Disk, Error, ErrorKind, Fua, MayUnmap, Result, SharedDisk, WriteDisk};
use firn_format::fs::OpenOptions;
use firn_format::image::{self, ClusterCompression, Destination, ImageFormat, WriteFormat, WriteOptions};
use firn_pool::{Attachment, Entropy, SystemEntropy};
use std::ffi::OsString;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Write the disks of a snapshot, or of an image, as image files.
///
/// One disk becomes a file; several become a folder with a file for each and what was kept with the snapshot. A file
/// appears whole or not at all. The format follows from OUT's extension (.qcow2, .vmdk, .vhd, .vhdx, .vdi), else it is
/// raw. A device must be free: not mounted, and not in use by LVM or md. What of a snapshot is damaged in the pool reads
/// as zeros: its ranges are listed, and the exit code is 3.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// MACHINE, MACHINE@TIME or an image file
    #[arg(value_name = "ADDRESS", value_hint = ValueHint::FilePath)]
    address: OsString,
    /// The file or folder to write; an existing block device; an NBD export with --in-place; `-` for the raw bytes on
    /// stdout
    #[arg(value_name = "OUT", value_hint = ValueHint::AnyPath)]
    out: PathBuf,
    /// raw, qcow2, qcow2-zlib or qcow2-zstd (compressed), vmdk, vmdk-stream (compressed, for OVF and ESXi), vhd, vhdx
    /// or vdi
    #[arg(long, value_name = "FORMAT", value_parser = parse_output_format)]
    format: Option<OutputFormat>,
    /// Only this disk (repeatable)
    #[arg(long, value_name = "NAME")]
    disk: Vec<String>,
    /// Replace what is there; needed to write to a block device
    #[arg(long, short)]
    force: bool,
    /// Overwrite a raw image, a block device or an NBD export (nbd://HOST/EXPORT) only where it differs
    #[arg(long, conflicts_with = "force")]
    in_place: bool,
    /// Replay the journals of ext2, ext3 and ext4 file systems, as mounting each of them once would
    #[arg(long)]
    replayed: bool,
    #[command(flatten)]
    new_ids: NewIdsArgs,
    /// Let an image stand on files in this folder, too (repeatable)
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    allow_backing: Vec<PathBuf>,
    /// Take an image for this format, whatever it begins with
    #[arg(long, value_name = "FORMAT", value_parser = parse_input_format)]
    input_format: Option<ImageFormat>,
    /// Read an image even while a running QEMU writes to it: old and new may be mixed
    #[arg(long)]
    torn: bool,
    #[command(flatten)]
    define: DefineArgs,
}

/// A format to write, with the extension that files of it get in a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct OutputFormat {
    format: WriteFormat,
    extension: &'static str,
}

fn parse_output_format(text: &str) -> std::result::Result<OutputFormat, String> {
    let (format, extension) = match text {
        "raw" => (WriteFormat::Raw, "raw"),
        "qcow2" => (WriteFormat::Qcow2(None), "qcow2"),
        "qcow2-zlib" => (WriteFormat::Qcow2(Some(ClusterCompression::Zlib)), "qcow2"),
        "qcow2-zstd" => (WriteFormat::Qcow2(Some(ClusterCompression::Zstd)), "qcow2"),
        "vmdk" => (WriteFormat::VmdkMonolithicSparse, "vmdk"),
        "vmdk-stream" => (WriteFormat::VmdkStreamOptimized, "vmdk"),
        "vhd" => (WriteFormat::VhdDynamic, "vhd"),
        "vhdx" => (WriteFormat::VhdxDynamic, "vhdx"),
        "vdi" => (WriteFormat::VdiDynamic, "vdi"),
        _ => {
            let formats = "raw, qcow2, qcow2-zlib, qcow2-zstd, vmdk, vmdk-stream, vhd, vhdx and vdi";
            return Err(format!("the formats are {formats}"));
        }
    };
    Ok(OutputFormat { format, extension })
}

/// The format of an image that is read, by its name.
pub fn parse_input_format(text: &str) -> std::result::Result<ImageFormat, String> {
    ImageFormat::ALL
        .into_iter()
        .find(|format| format.as_str() == text)
        .ok_or_else(|| "the formats are raw, qcow2, vmdk, vhd, vhdx and vdi".to_owned())
}

/// What an address stands for: disks with their names, and files that were kept with them.
struct Found {
    disks: Vec<(String, SharedDisk)>,
    attachments: Vec<Attachment>,
    /// The same disks again where damage is passed over; they know it when they were read.
    salvaged: Vec<(String, Arc<Salvage>)>,
}

/// Runs it.
///
/// # Errors
/// `NotFound`, `Exists`; what reading and writing say.
pub fn run(context: &Context, args: &RestoreArgs) -> Result<ExitCode> {
    let address = parse_address(&args.address)?;
    if !address.selectors.is_empty() || address.path.is_some() {
        return Err(Error::invalid("restore gives whole disks; this address goes into one")
            .hint("leave out what stands after # or :, or choose disks by --disk"));
    }
    check_out(args)?;
    new_ids::check_all_disks(&args.new_ids, &args.disk)?;
    let mut found = find(context, &address, args)?;
    if args.replayed || args.new_ids.is_wanted() {
        found.disks = replay(context, found.disks)?;
    }
    let mut changes = Vec::new();
    if args.new_ids.is_wanted() {
        (found.disks, changes) = args.new_ids.apply(context, found.disks)?;
    }
    if !args.disk.is_empty() {
        found.disks = choose(found.disks, &args.disk)?;
    }
    let definition = definition(args, &found)?;
    let total = found.disks.iter().map(|(_, disk)| disk.len()).sum();
    let done = AtomicU64::new(0);
    let written = std::thread::scope(|scope| {
        let status = || Status { done: done.load(Ordering::Relaxed), total, words: String::new() };
        let _watch = Watch::start(scope, context, "restore", status);
        write_all(context, args, &found, &done)
    })?;
    let damaged = damage(&found);
    if let Some(definition) = definition.as_ref().filter(|_| damaged.is_empty()) {
        definition.define(context)?;
    }
    if !to_stdout(args) {
        let definition = definition.as_ref().filter(|_| damaged.is_empty());
        let restored =
            Restored { written: &written, in_place: args.in_place, damaged: &damaged, definition, changes: &changes };
        restored::report(context, &restored)?;
    }
    damaged.iter().for_each(restored::tell_damage);
    if definition.is_some() && !damaged.is_empty() {
        eprintln!("firn: the machine was not defined, since its disks are not whole");
    }
    Ok(if damaged.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(3) })
}

fn damage(found: &Found) -> Vec<DamagedDisk> {
    let damaged = found.salvaged.iter().map(|(name, disk)| (name.clone(), disk.damage()));
    let known = damaged.filter_map(|(name, damage)| damage.map(|(ranges, first)| DamagedDisk { name, ranges, first }));
    known.collect()
}

/// What `--define` will tell libvirt, with everything checked that can be before anything is written.
fn definition(args: &RestoreArgs, found: &Found) -> Result<Option<Definition>> {
    let Some(name) = args.define.name() else { return Ok(None) };
    if to_stdout(args) {
        return Err(Error::invalid("a domain needs its disks as files").hint("name a folder for them"));
    }
    let format = match args.format.map_or("raw", |format| format.extension) {
        "raw" => "raw",
        "qcow2" => "qcow2",
        _ => return Err(Error::invalid("a domain is given raw or qcow2 disks").hint("choose one of them by --format")),
    };
    let disks: Vec<_> = found.disks.iter().map(|(disk, _)| (disk.clone(), format)).collect();
    let new_ids = args.new_ids.is_wanted();
    Definition::prepare(&args.define, name, &args.out, &disks, &found.attachments, new_ids).map(Some)
}

fn to_stdout(args: &RestoreArgs) -> bool {
    args.out == Path::new("-")
}

/// What can be told before the pool is opened, which may take a password.
///
/// # Errors
/// `Invalid`, `NotFound`.
fn check_out(args: &RestoreArgs) -> Result<()> {
    if to_stdout(args) {
        return match args.format {
            Some(format) if format.format != WriteFormat::Raw => {
                Err(Error::invalid("stdout takes raw bytes only").hint("leave out --format, or name a file"))
            }
            _ => Ok(()),
        };
    }
    if args.in_place || in_place::is_export(&args.out) {
        return check_in_place(args);
    }
    let folder = args.out.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match std::fs::metadata(folder) {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) => Err(Error::invalid("this is a file, not a folder").at_path(folder)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(Error::not_found("there is no such folder")
            .at_path(folder)
            .hint("make it first, or name another place to write to")),
        Err(error) => Err(Error::from_io("look into the folder", error).at_path(folder)),
    }
}

fn check_in_place(args: &RestoreArgs) -> Result<()> {
    if !args.in_place {
        return Err(Error::new(ErrorKind::Exists, "this is an NBD export; what is on it would be overwritten")
            .at_path(&args.out)
            .hint("add --in-place to overwrite it where it differs"));
    }
    match args.format {
        Some(format) if format.format != WriteFormat::Raw => {
            Err(Error::invalid("only raw bytes are written in place").hint("leave out --format"))
        }
        _ => Ok(()),
    }
}

fn find(context: &Context, address: &Address, args: &RestoreArgs) -> Result<Found> {
    let options = image::OpenOptions {
        format: args.input_format,
        allow_backing: args.allow_backing.clone(),
        torn: args.torn,
        ..image::OpenOptions::default()
    };
    let source = Source::open(context, &address.target, &options)?;
    let is_in_pool = source.manifest.is_some();
    let attachments = source.manifest.map(|manifest| manifest.attachments).unwrap_or_default();
    // Zeros in place of damage must neither overwrite what is good, nor be taken for a file system's own.
    if !is_in_pool || args.in_place || args.replayed || args.new_ids.is_wanted() {
        return Ok(Found { disks: source.disks, attachments, salvaged: Vec::new() });
    }
    let salvage = |(name, disk)| (name, Arc::new(Salvage::new(disk)));
    let salvaged: Vec<(String, Arc<Salvage>)> = source.disks.into_iter().map(salvage).collect();
    salvaged.iter().try_for_each(|(_, disk)| disk.check())?;
    let disks = salvaged.iter().map(|(name, disk)| (name.clone(), disk.clone() as SharedDisk)).collect();
    Ok(Found { disks, attachments, salvaged })
}

/// The disks with all journals replayed; what was done is told on stderr.
fn replay(context: &Context, disks: Vec<(String, SharedDisk)>) -> Result<Vec<(String, SharedDisk)>> {
    let replayed = Machine::new(disks).layers().replayed(&OpenOptions::default())?;
    for (address, note) in replayed.notes.iter().filter(|_| !context.quiet) {
        eprintln!("firn: {}: {}", output::plain(address), output::plain(note));
    }
    Ok(replayed.disks)
}

fn choose(disks: Vec<(String, SharedDisk)>, names: &[String]) -> Result<Vec<(String, SharedDisk)>> {
    let known: Vec<_> = disks.iter().map(|(name, _)| name.clone()).collect();
    if let Some(missing) = names.iter().find(|name| !known.contains(name)) {
        return Err(Error::not_found(format!("there is no disk {}", output::plain(missing)))
            .hint(format!("the disks are {}", known.join(", "))));
    }
    Ok(disks.into_iter().filter(|(name, _)| names.contains(name)).collect())
}

fn write_all(context: &Context, args: &RestoreArgs, found: &Found, done: &AtomicU64) -> Result<Vec<Written>> {
    if let ([(name, disk)], None) = (found.disks.as_slice(), args.define.name()) {
        return write_one(context, args, name, disk, done).map(|written| vec![written]);
    }
    if to_stdout(args) {
        return Err(Error::invalid("several disks do not go to stdout").hint("choose one by --disk"));
    }
    if args.in_place {
        return Err(Error::invalid("several disks are not written in place at once").hint("choose one by --disk"));
    }
    let is_new = make_folder(args, found.disks.len())?;
    let mut written = Vec::new();
    let result = write_folder(context, args, found, done, &mut written);
    if result.is_err() && !args.force {
        // The folder was empty, and the same command shall work again. What cannot be removed is told of then.
        written.iter().for_each(|file| drop(std::fs::remove_file(&file.path)));
        if is_new {
            let _ = std::fs::remove_dir(&args.out);
        }
    }
    result.map(|()| written)
}

/// Writes every disk and what was kept with them, and notes each in `written`.
fn write_folder(
    context: &Context,
    args: &RestoreArgs,
    found: &Found,
    done: &AtomicU64,
    written: &mut Vec<Written>,
) -> Result<()> {
    let format = args.format.unwrap_or(OutputFormat { format: WriteFormat::Raw, extension: "raw" });
    let mut taken = Vec::new();
    for (name, disk) in &found.disks {
        let file = format!("{name}.{}", format.extension);
        written.push(write_file(context, name, disk, &args.out.join(&file), format.format, args.force, done)?);
        taken.push(file);
    }
    for attachment in &found.attachments {
        // One that is called like a disk's file must not replace it.
        let mut name = attachment.name.clone();
        while taken.contains(&name) {
            name = format!("config-{name}");
        }
        written.push(write_attachment(&args.out, &name, attachment, args.force)?);
        taken.push(name);
    }
    Ok(())
}

/// Makes the folder for several disks; answers whether it is a new one.
fn make_folder(args: &RestoreArgs, disks: usize) -> Result<bool> {
    let folder = &args.out;
    match std::fs::create_dir(folder) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && folder.is_dir() => {
            let is_empty = std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none());
            if is_empty || args.force {
                return Ok(false);
            }
            Err(Error::new(ErrorKind::Exists, "the folder is not empty")
                .at_path(folder)
                .hint("name another one, or add --force to replace files in it"))
        }
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            Err(Error::new(ErrorKind::Exists, format!("{disks} disks need a folder, and this is none"))
                .at_path(folder)
                .hint("name a folder, or choose one disk by --disk"))
        }
        Err(error) => Err(Error::from_io("make the folder", error).at_path(folder)),
    }
}

/// The manifest promises that the name is that of a file without a folder; it is checked again where it matters.
fn write_attachment(folder: &Path, name: &str, attachment: &Attachment, force: bool) -> Result<Written> {
    let plain = Path::new(name).file_name().filter(|plain| *plain == name);
    let path = folder.join(plain.ok_or_else(|| Error::corrupt(format!("{name:?} is no file name")))?);
    let destination = create(&path, force)?;
    let length = attachment.bytes.len() as u64;
    destination.output().resize(length)?;
    destination.output().write_at(&attachment.bytes, 0, Fua::No)?;
    destination.commit()?;
    Ok(Written { disk: None, path, length, stored: length, padding: 0 })
}

fn write_one(
    context: &Context,
    args: &RestoreArgs,
    name: &str,
    disk: &SharedDisk,
    done: &AtomicU64,
) -> Result<Written> {
    if to_stdout(args) {
        write_stdout(disk, &context.interrupted, done)?;
        return Ok(Written {
            disk: Some(name.to_owned()),
            path: args.out.clone(),
            length: disk.len(),
            stored: disk.len(),
            padding: 0,
        });
    }
    if args.in_place {
        let difference = in_place::write(context, disk, &args.out, args.format.is_some(), done)?;
        return Ok(Written {
            disk: Some(name.to_owned()),
            path: args.out.clone(),
            length: disk.len(),
            stored: difference.written + difference.zeroed,
            padding: 0,
        });
    }
    if std::fs::metadata(&args.out).is_ok_and(|metadata| metadata.file_type().is_block_device()) {
        return write_device(context, args, name, disk, done);
    }
    let format = args.format.map_or_else(|| WriteFormat::from_extension(&args.out), |format| format.format);
    if args.out.is_dir() || args.out.as_os_str().as_bytes().ends_with(b"/") {
        let extension = args.format.map_or("raw", |format| format.extension);
        let file = args.out.join(format!("{name}.{extension}"));
        return Err(Error::new(ErrorKind::Exists, "this is a folder, and a single disk becomes a file")
            .at_path(&args.out)
            .hint(format!("name the file, as {}", file.display())));
    }
    write_file(context, name, disk, &args.out, format, args.force, done)
}

fn write_file(
    context: &Context,
    name: &str,
    disk: &SharedDisk,
    path: &Path,
    format: WriteFormat,
    force: bool,
    done: &AtomicU64,
) -> Result<Written> {
    let destination = create(path, force)?;
    let options = WriteOptions { threads: 0, unique: random()?, cancel: context.interrupted.clone() };
    let progress = |bytes: u64| {
        done.fetch_add(bytes, Ordering::Relaxed);
    };
    let summary = image::write_image(disk, destination.output(), format, &options, &progress)
        .and_then(|summary| destination.commit().map(|()| summary))
        .map_err(|error| explain(error, path))?;
    Ok(Written {
        disk: Some(name.to_owned()),
        path: path.to_path_buf(),
        length: summary.virtual_size,
        stored: summary.data_bytes,
        padding: summary.padding,
    })
}

fn create(path: &Path, force: bool) -> Result<Destination> {
    Destination::create(path, force, random()?).map_err(|error| explain(error, path))
}

/// An error of the temporary file as one of the file that was asked for, where that is all the user can see to.
fn explain(error: Error, path: &Path) -> Error {
    use std::error::Error as _;
    use std::io::ErrorKind as Os;
    let system = error.source().and_then(|source| source.downcast_ref::<std::io::Error>()).map(std::io::Error::kind);
    match system {
        Some(Os::StorageFull | Os::QuotaExceeded) => {
            Error::new(ErrorKind::Unavailable, "there is not enough space for it; what was written of it is removed")
                .at_path(path)
                .hint("free space there, or name another place, and run the command again")
        }
        Some(Os::PermissionDenied) => Error::new(ErrorKind::Denied, "you may not make files in its folder")
            .at_path(path)
            .hint("name another place to write to"),
        Some(Os::ReadOnlyFilesystem) => Error::new(ErrorKind::Denied, "its folder can only be read")
            .at_path(path)
            .hint("name another place to write to"),
        _ => error,
    }
}

fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    SystemEntropy.fill(&mut bytes)?;
    Ok(bytes)
}

/// Bytes of the disk that a piece stands for.
fn length_of(piece: &Piece<'_>) -> u64 {
    match piece {
        Piece::Bytes(bytes, _) => bytes.len() as u64,
        Piece::Zeros(range) => range.end - range.start,
    }
}

fn write_stdout(disk: &SharedDisk, cancel: &AtomicBool, done: &AtomicU64) -> Result<()> {
    let failed = |error: std::io::Error| {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            // Unlike with a listing, whose reader has seen enough.
            return Error::new(ErrorKind::Io, "the program that reads stdout ended before it had the whole disk");
        }
        Error::from_io("write to stdout", error)
    };
    let zeros = vec![0; 1 << 16];
    let mut stdout = std::io::stdout().lock();
    for_each_piece(disk, cancel, &mut |piece| {
        match &piece {
            Piece::Bytes(bytes, _) => stdout.write_all(bytes).map_err(failed)?,
            Piece::Zeros(range) => {
                let mut left = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
                while left > 0 {
                    let count = left.min(zeros.len());
                    stdout.write_all(&zeros[..count]).map_err(failed)?;
                    left -= count;
                }
            }
        }
        done.fetch_add(length_of(&piece), Ordering::Relaxed);
        Ok(())
    })?;
    stdout.flush().map_err(failed)
}

fn write_device(
    context: &Context,
    args: &RestoreArgs,
    name: &str,
    disk: &SharedDisk,
    done: &AtomicU64,
) -> Result<Written> {
    let path = &args.out;
    if !args.force {
        return Err(Error::new(ErrorKind::Exists, "this is a block device; all that is on it would be lost")
            .at_path(path)
            .hint("add --force to overwrite it"));
    }
    if args.format.is_some_and(|format| format.format != WriteFormat::Raw) {
        return Err(Error::invalid("a block device takes raw bytes only").hint("leave out --format"));
    }
    let device = in_place::open_device(path)?;
    if device.len() < disk.len() {
        return Err(Error::invalid(format!("the device has {} bytes, the disk {}", device.len(), disk.len()))
            .at_path(path)
            .hint("choose a device that is large enough"));
    }
    let mut stored = 0;
    for_each_piece(disk, &context.interrupted, &mut |piece| {
        let length = length_of(&piece);
        match piece {
            Piece::Bytes(bytes, offset) => {
                stored += length;
                device.write_at(bytes, offset, Fua::No)?;
            }
            Piece::Zeros(range) => device.zero(range, MayUnmap::Yes)?,
        }
        done.fetch_add(length, Ordering::Relaxed);
        Ok(())
    })?;
    device.flush()?;
    Ok(Written { disk: Some(name.to_owned()), path: path.clone(), length: disk.len(), stored, padding: 0 })
}
