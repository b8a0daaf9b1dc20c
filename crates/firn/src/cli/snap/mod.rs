//! `firn snap`: one instant of a machine's disks, or of several machines', into the pool.
//!
//! ```text
//!   members: sources and what the pool has ─ plan ─ take (freeze, cut, thaw) ─ store each machine ─ finish
//! ```

mod members;
mod plan;
mod store;

use super::context::Context;
use super::output;
use clap::{Args, ValueEnum, ValueHint};
use firn_disk::{Error, ErrorKind, Result};
use firn_format::image::ImageFormat;
use firn_pool::{Attachment, Consistency, Entropy, Manifest, Pool, SnapshotOptions, SystemEntropy};
use firn_source::Outcome;
use firn_source::quiesce::{
    self, CutOptions, FailedHook, Freeze, Hook, HookOutcome, Member, Phase, Place, Surroundings, Taken,
};
use members::Wanted;
use plan::MachinePlan;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use uuid::Uuid;

pub use members::{default_name, looked_at as member};

/// What is kept with a snapshot is small.
const MOST_CONFIG_BYTES: u64 = 16 << 20;
/// Of what a hook printed, so much is kept in the snapshot.
const MOST_HOOK_CHARACTERS: usize = 2000;

/// Take a snapshot of a machine's disks into the pool.
///
/// Only what the pool does not have yet is stored, and only what changed is read where the source knows it. A running
/// guest goes on after some milliseconds, whatever happens to firn.
#[derive(Debug, Args)]
pub struct SnapArgs {
    /// The machine's name in the pool; a new name makes a new machine
    machine: String,
    /// Where its disks come from, as [NAME=]SOURCE: an image (raw, qcow2, VMDK…), a block device, nbd://HOST/EXPORT,
    /// qemu:QMP-SOCKET[?agent=SOCKET], libvirt://DOMAIN, btrfs:PATH, nas:PATH, command:NAME. Disks are named vda, vdb, …
    /// where the source has no names. Without any, the sources of the last snapshot are taken again
    #[arg(value_name = "[NAME=]SOURCE", value_hint = ValueHint::FilePath)]
    sources: Vec<OsString>,
    /// Another machine at the same instant, all frozen together (repeatable)
    #[arg(long, value_name = "MACHINE[=SOURCE]")]
    group: Vec<OsString>,
    /// Take every version that nas:PATH finds and that the pool does not have yet, oldest first, each as a snapshot
    #[arg(long, conflicts_with = "group")]
    each: bool,
    /// Say what would be done and how much is dirty, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Where scratch files lie while a running machine is read; by default beside its images
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    scratch: Option<PathBuf>,
    #[command(flatten)]
    quiesce: QuiesceArgs,
    /// Keep a small file with the snapshot: .vmx, NVRAM (repeatable)
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

/// How the guests are brought to a consistent point.
#[derive(Debug, Args)]
#[command(next_help_heading = "Consistency")]
struct QuiesceArgs {
    /// Freeze the guests' file systems for the instant: where it works, or else no snapshot, or not at all
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = FreezeChoice::Auto)]
    freeze: FreezeChoice,
    /// Freeze only these mount points of the guest, as /srv (repeatable)
    #[arg(long, value_name = "FOLDER")]
    mount_point: Vec<String>,
    /// How long a guest may take to freeze
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=600))]
    freeze_timeout: u64,
    /// Run a command before the freeze: guest:COMMAND through the agent, host:COMMAND here, ssh:HOST:COMMAND there
    /// (repeatable; for a group it runs for each machine, told by FIRN_MACHINE)
    #[arg(long, value_name = "PLACE:COMMAND", value_parser = parse_hook)]
    hook_before: Vec<(Place, String)>,
    /// Run a command after the thaw, whatever became of the snapshot, told by FIRN_OUTCOME (repeatable)
    #[arg(long, value_name = "PLACE:COMMAND", value_parser = parse_hook)]
    hook_after: Vec<(Place, String)>,
    /// How long a hook may take
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86400))]
    hook_timeout: u64,
    /// When a hook before the freeze fails: no snapshot, or one that is less than application-consistent
    #[arg(long, value_name = "WHAT", value_enum, default_value_t = HookFailure::Fail)]
    hook_failure: HookFailure,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum FreezeChoice {
    Auto,
    Require,
    No,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum HookFailure {
    Fail,
    GoOn,
}

/// `guest:COMMAND`, `host:COMMAND` or `ssh:HOST:COMMAND`.
fn parse_hook(text: &str) -> std::result::Result<(Place, String), String> {
    let wrong = || "write guest:COMMAND, host:COMMAND or ssh:HOST:COMMAND".to_owned();
    let (place, command) = text.split_once(':').ok_or_else(wrong)?;
    let (place, command) = match place {
        "guest" => (Place::Guest, command),
        "host" => (Place::Host, command),
        "ssh" => {
            let (host, command) = command.split_once(':').ok_or_else(wrong)?;
            // What begins with a dash is an option to ssh.
            if host.is_empty() || host.starts_with('-') {
                return Err(wrong());
            }
            (Place::Ssh(host.to_owned()), command)
        }
        _ => return Err(wrong()),
    };
    if command.trim().is_empty() { Err(wrong()) } else { Ok((place, command.to_owned())) }
}

impl QuiesceArgs {
    fn hooks(&self) -> Vec<Hook> {
        let timeout = Duration::from_secs(self.hook_timeout);
        let hook = |phase| {
            move |(place, command): &(Place, String)| Hook {
                place: place.clone(),
                phase,
                command: command.clone(),
                timeout,
            }
        };
        let before = self.hook_before.iter().map(hook(Phase::PreFreeze));
        before.chain(self.hook_after.iter().map(hook(Phase::PostThaw))).collect()
    }

    fn cut_options(&self) -> Result<CutOptions> {
        let mut options = CutOptions::new(quiesce::state_folder()?);
        options.freeze = match self.freeze {
            FreezeChoice::Auto => Freeze::Auto,
            FreezeChoice::Require => Freeze::Require,
            FreezeChoice::No => Freeze::No,
        };
        options.freeze_timeout = Duration::from_secs(self.freeze_timeout);
        options.frozen_limit = options.frozen_limit.max(options.freeze_timeout * 3);
        options.failed_hook = match self.hook_failure {
            HookFailure::Fail => FailedHook::Fail,
            HookFailure::GoOn => FailedHook::GoOn,
        };
        Ok(options)
    }
}

/// Runs it.
///
/// # Errors
/// What the sources say, and [`Pool::write_snapshot`].
pub fn run(context: &Context, args: &SnapArgs) -> Result<ExitCode> {
    members::check_names(args)?;
    let kept = args.config.iter().map(|file| attachment(file)).collect::<Result<Vec<_>>>()?;
    let pool = context.open_pool()?;
    if args.each {
        return each(context, &pool, args);
    }
    let mut wanted = members::wanted(&pool, args)?;
    let plans = wanted.members.iter_mut().map(MachinePlan::of).collect::<Result<Vec<_>>>()?;
    plans.iter().for_each(MachinePlan::warn);
    if args.dry_run {
        let machines: Vec<_> = wanted.members.iter().zip(&plans).collect();
        plan::print(context, &machines)?;
        return Ok(ExitCode::SUCCESS);
    }
    let kept: Vec<_> = plans.iter().map(|plan| together(&kept, plan)).collect::<Result<_>>()?;
    let manifests = take(context, &pool, &mut wanted, args, kept)?;
    report(context, &manifests)?;
    Ok(ExitCode::SUCCESS)
}

/// Every version of a filer that is not in the pool yet.
fn each(context: &Context, pool: &Pool, args: &SnapArgs) -> Result<ExitCode> {
    let mut manifests = Vec::new();
    let mut missing = members::missing_versions(pool, args)?;
    for source in missing.drain(..) {
        let mut wanted = members::with_source(pool, args, source)?;
        let plans = wanted.members.iter_mut().map(MachinePlan::of).collect::<Result<Vec<_>>>()?;
        if args.dry_run {
            let machines: Vec<_> = wanted.members.iter().zip(&plans).collect();
            plan::print(context, &machines)?;
        } else {
            manifests.extend(take(context, pool, &mut wanted, args, vec![Vec::new()])?);
        }
    }
    if !args.dry_run {
        report(context, &manifests)?;
        if manifests.is_empty() && !context.quiet {
            eprintln!("firn: the pool has every version that is there");
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The instant, and then each machine into the pool.
fn take(
    context: &Context,
    pool: &Pool,
    wanted: &mut Wanted,
    args: &SnapArgs,
    mut kept: Vec<Vec<Attachment>>,
) -> Result<Vec<Manifest>> {
    let around = Surroundings {
        now: &|| context.now().timestamp(),
        elapsed: &|| context.elapsed(),
        cancel: &context.interrupted,
    };
    let (taken, watch) = quiesce::take(&mut wanted.members, &args.quiesce.cut_options()?, &around)?;
    warn(&wanted.members, &taken);
    let group = (wanted.members.len() > 1).then(new_uuid).transpose()?;
    let mut manifests = Vec::new();
    let mut failure = None;
    for (number, (member, taken)) in wanted.members.iter_mut().zip(&taken).enumerate() {
        // One machine that fails is no reason to give up the others' snapshots.
        let options = options(taken, group, kept.get_mut(number).map(std::mem::take).unwrap_or_default());
        let last = wanted.last.get(number).and_then(Option::as_ref);
        let stored = store::store(context, pool, member, last, options);
        let outcome = if stored.is_ok() { Outcome::Published } else { Outcome::Failed };
        finish(member, outcome);
        match stored {
            Ok(manifest) => manifests.push(manifest),
            Err(error) if failure.is_none() => failure = Some(error),
            Err(error) => eprintln!("firn: machine {}: {}", member.machine, output::plain(&error.to_string())),
        }
    }
    if let Err(error) = watch.done() {
        eprintln!("firn: warning: {}", output::plain(&error.to_string()));
    }
    match failure {
        None => Ok(manifests),
        Some(error) => {
            for manifest in &manifests {
                eprintln!("firn: {}@{} was taken", manifest.machine_name, output::moment(manifest.created));
            }
            Err(error)
        }
    }
}

fn options(taken: &Taken, group: Option<Uuid>, attachments: Vec<Attachment>) -> SnapshotOptions {
    let hooks = taken.hooks.iter().map(|hook| {
        let code = hook.code.map_or_else(|| "did not end".to_owned(), |code| format!("code {code}"));
        let HookOutcome { place, phase, command, milliseconds, output, .. } = hook;
        let output = output.trim_end();
        let shown: String = output.chars().take(MOST_HOOK_CHARACTERS).collect();
        let colon = if shown.is_empty() { "" } else { ": " };
        format!("{} hook at {place}: {command}: {code} after {milliseconds} ms{colon}{shown}", phase.as_str())
    });
    SnapshotOptions {
        created: taken.created,
        consistency: match taken.consistency {
            quiesce::Consistency::Torn => Consistency::Torn,
            quiesce::Consistency::Crash => Consistency::Crash,
            quiesce::Consistency::Filesystem => Consistency::Filesystem,
            quiesce::Consistency::Application => Consistency::Application,
        },
        frozen_milliseconds: taken.frozen.map(|frozen| u64::try_from(frozen.as_millis()).unwrap_or(u64::MAX)),
        group,
        attachments,
        remarks: taken.remarks.iter().cloned().chain(hooks).collect(),
    }
}

/// What is less than was hoped for is said at once, not only in the snapshot.
fn warn(members: &[Member], taken: &[Taken]) {
    for (member, taken) in members.iter().zip(taken) {
        let bad = taken.hooks.iter().filter(|hook| !hook.is_good());
        let hooks =
            bad.map(|hook| format!("the {} hook {:?} failed: {}", hook.phase.as_str(), hook.command, hook.output));
        for line in taken.remarks.iter().cloned().chain(hooks) {
            eprintln!("firn: warning: {}: {}", member.machine, output::plain(line.trim_end()));
        }
    }
}

/// The snapshot stands or falls without it: what cannot be cleaned up is told, and tried again by the next run.
fn finish(member: &mut Member, outcome: Outcome) {
    for source in &mut member.sources {
        if let Err(error) = source.finish(outcome) {
            let uri = source.uri();
            eprintln!("firn: warning: {}: {}", output::plain(&uri), output::plain(&error.to_string()));
        }
    }
}

fn new_uuid() -> Result<Uuid> {
    let mut bytes = [0; 16];
    SystemEntropy.fill(&mut bytes)?;
    Ok(uuid::Builder::from_random_bytes(bytes).into_uuid())
}

fn report(context: &Context, manifests: &[Manifest]) -> Result<()> {
    if context.json {
        let documents: Vec<_> = manifests.iter().map(super::list::snapshot_json).collect();
        return match documents.as_slice() {
            [one] => output::json(one),
            _ => output::json(&serde_json::json!({ "snapshots": documents })),
        };
    }
    manifests.iter().try_for_each(report_one)
}

fn report_one(manifest: &Manifest) -> Result<()> {
    let statistics = &manifest.statistics;
    let frozen = manifest.frozen_milliseconds.map(|time| format!(", frozen for {time} ms")).unwrap_or_default();
    output::line(&format!(
        "{}@{}  {}, {}, {} of data, {} read, {} new in the pool, {}{frozen}",
        manifest.machine_name,
        output::moment(manifest.created),
        manifest.consistency.as_str(),
        output::count(manifest.disks.len() as u64, "disk"),
        output::size(statistics.bytes_data),
        output::size(statistics.bytes_read),
        output::size(statistics.bytes_stored),
        output::duration(statistics.milliseconds),
    ))
}

/// What the user gives along, and what the sources do.
fn together(given: &[Attachment], plan: &MachinePlan) -> Result<Vec<Attachment>> {
    let mut all = given.to_vec();
    for file in plan.attachments() {
        if all.iter().any(|other| other.name == file.name) {
            return Err(Error::new(ErrorKind::Exists, format!("two files called {} would be kept", file.name))
                .hint("the source keeps one itself; leave out --config for it"));
        }
        all.push(Attachment { name: file.name.clone(), bytes: file.bytes.clone() });
    }
    Ok(all)
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
    fn a_hook_has_a_place_and_a_command() {
        assert_eq!(parse_hook("guest:sync; echo a:b"), Ok((Place::Guest, "sync; echo a:b".into())));
        assert_eq!(parse_hook("ssh:me@db1:x -y"), Ok((Place::Ssh("me@db1".into()), "x -y".into())));
        for wrong in ["", "guest", "guest: ", "ssh:db1", "ssh::x", "ssh:-oProxyCommand=x:y", "else:x"] {
            assert!(parse_hook(wrong).is_err(), "{wrong}");
        }
    }
}
