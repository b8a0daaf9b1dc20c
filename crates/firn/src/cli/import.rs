//! `firn import`: histories that other tools kept, into the pool.

use super::context::Context;
use super::output;
use super::progress::{Status, Watch};
use super::snap::default_name;
use crate::address;
use crate::import::{self, FindOptions, State, dates};
use clap::{Args, ValueHint};
use firn_disk::{Disk, Error, ErrorKind, Result};
use firn_format::image::{self, ImageFormat};
use firn_pool::{
    Attachment, Changes, Consistency, DiskInput, Manifest, Pool, SnapshotHooks, SnapshotOptions, SnapshotProgress,
};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

/// Bytes of a file that is kept with a snapshot.
const MOST_CONFIG_BYTES: u64 = 16 << 20;

/// Take the history that another tool kept into the pool, each state with its own date.
///
/// An image is taken with all images that it stands on, each as of its last write, and with its internal snapshots. A
/// folder is one of virtnbdbackup, or of images of one disk, whose names have dates in them or whose times are taken.
/// States that were imported before are skipped.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// The machine's name in the pool; a new name makes a new machine
    machine: String,
    /// Images and folders as [NAME=]PATH; several of one name are states of one disk. The name defaults to vda
    #[arg(value_name = "[NAME=]PATH", required = true, value_hint = ValueHint::AnyPath)]
    paths: Vec<OsString>,
    /// The date of a state, by the name of its file or internal snapshot, as disk.qcow2=2026-11-17T03:00 (repeatable)
    #[arg(long, value_name = "NAME=DATE", value_parser = parse_date)]
    date: Vec<(String, Timestamp)>,
    /// Only say what would be imported
    #[arg(long, short = 'n')]
    dry_run: bool,
    /// Let an image stand on files in this folder, too (repeatable)
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    allow_backing: Vec<PathBuf>,
    /// Take the named images for this format, whatever they begin with
    #[arg(long, value_name = "FORMAT", value_parser = super::restore::parse_input_format)]
    input_format: Option<ImageFormat>,
}

fn parse_date(text: &str) -> std::result::Result<(String, Timestamp), String> {
    let (name, date) = text.rsplit_once('=').ok_or("give it as NAME=DATE")?;
    dates::parse(date).map(|date| (name.to_owned(), date)).map_err(|error| error.to_string())
}

/// What became of a state.
struct Done {
    state: State,
    /// Bytes that were new in the pool; none for what was skipped, or only looked at.
    stored: Option<u64>,
    is_known: bool,
}

/// Runs it.
///
/// # Errors
/// As [`import::find`] and [`Pool::write_snapshot`]. What was imported before the error stays.
pub fn run(context: &Context, args: &ImportArgs) -> Result<ExitCode> {
    address::check_machine_name(&args.machine)?;
    let states = find(args)?;
    let pool = context.open_pool()?;
    let known = known(&pool, &args.machine)?;
    let mut done = Vec::new();
    for state in states {
        let is_known = known.iter().any(|manifest| is_of(manifest, &state));
        let stored = if is_known || args.dry_run { None } else { Some(take(context, args, &pool, &state)?) };
        done.push(Done { state, stored, is_known });
    }
    report(context, args, &done)?;
    Ok(ExitCode::SUCCESS)
}

/// All states, oldest first.
fn find(args: &ImportArgs) -> Result<Vec<State>> {
    let options = FindOptions {
        open: image::OpenOptions {
            format: args.input_format,
            allow_backing: args.allow_backing.clone(),
            ..image::OpenOptions::default()
        },
        dates: args.date.clone(),
    };
    let mut histories: BTreeMap<String, Vec<State>> = BTreeMap::new();
    for argument in &args.paths {
        let (name, path) = split(argument);
        let found = import::find(&path, &name, &options)?;
        histories.entry(name).or_default().extend(found);
    }
    for history in histories.values_mut() {
        history.sort_by_key(|state| state.created);
        // Two images on one base both have the base's state.
        history.dedup_by(|a, b| a.created == b.created && sources(a) == sources(b));
    }
    let mut states = import::together(histories.into_values().collect())?;
    states.sort_by_key(|state| state.created);
    Ok(states)
}

/// A disk's name and a path.
fn split(argument: &OsStr) -> (String, PathBuf) {
    let bytes = argument.as_bytes();
    let sign = bytes.iter().position(|byte| *byte == b'=').filter(|_| !Path::new(argument).exists());
    let split = sign.and_then(|at| Some((std::str::from_utf8(bytes.get(..at)?).ok()?, bytes.get(at + 1..)?)));
    match split {
        Some((name, path)) => (name.to_owned(), OsString::from_vec(path.to_vec()).into()),
        None => (default_name(0), argument.into()),
    }
}

fn sources(state: &State) -> Vec<(String, String)> {
    state.disks.iter().map(|disk| (disk.disk.clone(), disk.origin.source())).collect()
}

/// The snapshots that the machine has already.
fn known(pool: &Pool, machine: &str) -> Result<Vec<Manifest>> {
    match pool.machine(machine) {
        Ok(machine) => {
            let snapshots = pool.snapshots(machine.uuid)?;
            Ok(snapshots.into_iter().filter_map(|snapshot| snapshot.manifest.ok()).collect())
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Whether `manifest` is of `state`: the same instant, and the same disks from files of the same names, wherever the
/// files were then.
fn is_of(manifest: &Manifest, state: &State) -> bool {
    let last = |source: &str| source.rsplit('/').next().unwrap_or_default().to_owned();
    let theirs: Vec<_> = manifest.disks.iter().map(|disk| (disk.name.clone(), last(&disk.source))).collect();
    let ours: Vec<_> = sources(state).into_iter().map(|(disk, source)| (disk, last(&source))).collect();
    manifest.created == state.created && theirs == ours
}

/// Length and time of last change of a file.
fn file_state(path: &Path) -> Result<(u64, Option<SystemTime>)> {
    let metadata = std::fs::metadata(path).map_err(|error| Error::from_io("stat", error).at_path(path))?;
    Ok((metadata.len(), metadata.modified().ok()))
}

/// Takes a state; answers how many bytes were new.
fn take(context: &Context, args: &ImportArgs, pool: &Pool, state: &State) -> Result<u64> {
    let options = image::OpenOptions {
        format: args.input_format,
        allow_backing: args.allow_backing.clone(),
        ..image::OpenOptions::default()
    };
    let opened = state.disks.iter().map(|disk| disk.origin.open(&options)).collect::<Result<Vec<_>>>()?;
    let files: Vec<&PathBuf> = opened.iter().flat_map(|disk| &disk.files).collect();
    let before = files.iter().map(|file| file_state(file)).collect::<Result<Vec<_>>>()?;
    let inputs: Vec<_> = state
        .disks
        .iter()
        .zip(&opened)
        .map(|(disk, opened)| DiskInput {
            name: disk.disk.clone(),
            disk: &opened.disk,
            changes: Changes::All,
            source: disk.origin.source(),
            generation: Some(state.name.clone()),
        })
        .collect();
    let snapshot = SnapshotOptions {
        created: state.created,
        consistency: if state.is_one_instant { Consistency::Crash } else { Consistency::Torn },
        frozen_milliseconds: None,
        group: None,
        attachments: state.config.iter().map(|file| attachment(file)).collect::<Result<_>>()?,
        remarks: Vec::new(),
    };
    let progress = SnapshotProgress { cancel: context.interrupted.clone(), ..SnapshotProgress::default() };
    let total: u64 = opened.iter().map(|disk| disk.disk.len()).sum();
    let check = || match files.iter().zip(&before).find(|(file, before)| file_state(file).ok() != Some(**before)) {
        Some((file, _)) => Err(Error::new(ErrorKind::Unavailable, "it was written to while it was read").at_path(file)),
        None => Ok(()),
    };
    let published = std::thread::scope(|scope| {
        let _watch = Watch::start(scope, context, "import", || Status {
            done: progress.bytes_done.load(Ordering::Relaxed),
            total,
            words: format!("{}, {} new", state.name, output::size(progress.bytes_stored.load(Ordering::Relaxed))),
        });
        let hooks = SnapshotHooks { progress: &progress, elapsed: &|| context.elapsed(), before_publish: &check };
        pool.write_snapshot(&args.machine, &inputs, snapshot, hooks)
    })?;
    Ok(published.manifest.statistics.bytes_stored)
}

fn attachment(file: &Path) -> Result<Attachment> {
    let failed = |error| Error::from_io("read", error).at_path(file);
    if std::fs::metadata(file).map_err(failed)?.len() > MOST_CONFIG_BYTES {
        return Err(Error::invalid("more than 16 MiB are not kept with a snapshot").at_path(file));
    }
    let name = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(Attachment { name, bytes: std::fs::read(file).map_err(failed)? })
}

fn report(context: &Context, args: &ImportArgs, done: &[Done]) -> Result<()> {
    let word = |done: &Done| match (done.is_known, done.stored) {
        (true, _) => "already there",
        (false, None) => "to import",
        (false, Some(_)) => "imported",
    };
    if context.json {
        let state = |done: &Done| {
            let disks: BTreeMap<_, _> = sources(&done.state).into_iter().collect();
            serde_json::json!({
                "created": output::json_time(done.state.created),
                "name": done.state.name,
                "disks": disks,
                "result": word(done),
                "bytes_stored": done.stored,
            })
        };
        let states: Vec<_> = done.iter().map(state).collect();
        return output::json(&serde_json::json!({ "machine": args.machine, "states": states }));
    }
    for state in done {
        let stored = state.stored.map(|stored| format!(", {} new", output::size(stored))).unwrap_or_default();
        let (when, name) = (output::moment(state.state.created), output::plain(&state.state.name));
        output::line(&format!("{}@{when}  {name}  {}{stored}", args.machine, word(state)))?;
    }
    Ok(())
}
