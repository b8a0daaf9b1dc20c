//! `firn doctor`: what stands in the way of snapshots on this host, and of this machine.

use super::context::Context;
use super::output::{self, Table};
use super::snap;
use clap::Args;
use firn_disk::{Error, Result};
use firn_source::quiesce::{self, Guest};
use firn_source::{Finding, Health, Source};
use serde_json::{Value, json};
use std::ffi::OsString;
use std::process::{Command, ExitCode};
use std::time::Duration;

/// How long a program is waited for that only says its version.
const VERSION_TIMEOUT: Duration = Duration::from_secs(10);

/// Look for what stands in the way: of this host, or of taking snapshots of a machine.
///
/// Nothing is changed, and no guest is frozen unless --freeze is given. Exit code 6 when something does not work.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// A machine, to be taken from its SOURCEs or those of its last snapshot; none for this host alone
    machine: Option<String>,
    /// Where its disks come from, as for `firn snap`
    #[arg(value_name = "[NAME=]SOURCE")]
    sources: Vec<OsString>,
    /// Try whether the guest freezes and thaws: its file systems stand still for a moment
    #[arg(long)]
    freeze: bool,
    /// How long the guest may take to answer
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=600))]
    timeout: u64,
}

/// Findings about one thing.
type Section = (String, Vec<Finding>);

/// Runs it.
///
/// # Errors
/// `Invalid` for a machine without sources; what the pool says.
pub fn run(context: &Context, args: &DoctorArgs) -> Result<ExitCode> {
    let mut sections = vec![("this host".to_owned(), host()), ("pool".to_owned(), pool(context))];
    if let Some(machine) = &args.machine {
        let pool = context.location().ok().map(|_| context.open_pool()).transpose()?;
        let mut member = snap::member(pool.as_ref(), machine, &args.sources)?;
        for source in &mut member.sources {
            let uri = source.uri();
            let findings = examine(source.as_mut(), &member.request, args);
            sections.push((format!("{machine} from {uri}"), findings));
        }
    }
    print(context, &sections)?;
    let worst = sections.iter().flat_map(|(_, findings)| findings).map(|finding| finding.state).max();
    Ok(if worst == Some(Health::Bad) { ExitCode::from(6) } else { ExitCode::SUCCESS })
}

fn host() -> Vec<Finding> {
    let mut findings = vec![Finding::good("firn", env!("CARGO_PKG_VERSION"))];
    findings.push(match state_folder() {
        Ok(folder) => Finding::good("the folder for what must outlive firn", folder),
        Err(error) => Finding::bad("the folder for what must outlive firn", &error),
    });
    let optional = [
        ("qemu-img", "--version", "only its users miss it: firn reads and writes images itself"),
        ("virsh", "--version", "needed for libvirt: sources; package libvirt-clients"),
        ("btrfs", "--version", "needed for btrfs: sources; package btrfs-progs"),
        ("ssh", "-V", "needed for hooks over ssh and libvirt+ssh: sources; package openssh-client"),
    ];
    for (program, argument, what_for) in optional {
        let mut command = Command::new(program);
        command.arg(argument).env("LC_ALL", "C");
        findings.push(match firn_source::process::run(&mut command, b"", VERSION_TIMEOUT) {
            Ok(ended) => Finding::good(program, ended.last_line()),
            Err(_) => Finding::good(program, format!("not here; {what_for}")),
        });
    }
    findings
}

fn state_folder() -> Result<String> {
    let folder = quiesce::state_folder()?;
    std::fs::create_dir_all(&folder).map_err(|error| Error::from_io("create", error).at_path(&folder))?;
    let probe = folder.join(format!("doctor-{}", std::process::id()));
    let written = std::fs::write(&probe, b"").and_then(|()| std::fs::remove_file(&probe));
    written.map_err(|error| Error::from_io("write to", error).at_path(&folder))?;
    Ok(folder.display().to_string())
}

fn pool(context: &Context) -> Vec<Finding> {
    let Ok(location) = context.location() else {
        let hint = "name it by --pool POOL or in FIRN_POOL; `firn init POOL` makes one";
        return vec![Finding::poor("where", "none was named", hint)];
    };
    let mut findings = vec![Finding::good("where", location)];
    findings.push(match context.open_pool().and_then(|pool| pool.info()) {
        Ok(info) => {
            let machines = output::count(info.machines, "machine");
            let snapshots = output::count(info.snapshots, "snapshot");
            Finding::good("opens", format!("{machines}, {snapshots}, {}", output::size(info.stored_bytes)))
        }
        Err(error) => Finding::bad("opens", &error),
    });
    findings
}

fn examine(source: &mut dyn Source, request: &firn_source::Request, args: &DoctorArgs) -> Vec<Finding> {
    let mut findings = Vec::new();
    match source.plan(request) {
        Ok(plan) => {
            for disk in &plan.disks {
                let what = format!("disk {}", disk.name);
                let size = output::size(disk.length);
                findings.push(match (disk.dirty_bytes, &disk.why_all) {
                    (Some(dirty), _) => Finding::good(what, format!("{size}, {} changed", output::size(dirty))),
                    (None, Some(why)) => Finding::good(what, format!("{size}, all of it would be read: {why}")),
                    (None, None) => Finding::good(what, size),
                });
            }
            let poor = |warning: &String| Finding::poor("warning", warning, "see to it before the next snapshot");
            findings.extend(plan.warnings.iter().map(poor));
        }
        Err(error) => findings.push(Finding::bad("what would be taken", &error)),
    }
    findings.extend(source.examine(request));
    match source.guest() {
        Some(guest) => findings.extend(examine_guest(guest.as_ref(), args)),
        None if source.taken().is_some() => {}
        None => findings.push(Finding::good("guest", "none to be frozen here")),
    }
    findings
}

fn examine_guest(guest: &dyn Guest, args: &DoctorArgs) -> Vec<Finding> {
    let timeout = Duration::from_secs(args.timeout);
    let what = guest.describe();
    let is_frozen = match guest.is_frozen(timeout) {
        Ok(is_frozen) => is_frozen,
        Err(error) => {
            let hint = "install and start qemu-guest-agent in the guest; without it snapshots are crash-consistent";
            let hint = error.next_step().unwrap_or(hint).to_owned();
            return vec![Finding::poor(what, error.to_string(), hint)];
        }
    };
    let mut findings = vec![Finding::good(what, "answers")];
    if is_frozen {
        let hint = "whoever froze it has to thaw it; `firn snap` refuses to do it for them";
        findings.push(Finding::poor("file systems of the guest", "are frozen by somebody", hint));
    } else if args.freeze {
        let frozen = guest.freeze(&[], timeout);
        // Whatever became of the freeze: it may have happened.
        let thawed = guest.thaw(timeout);
        findings.push(match (frozen, thawed) {
            (Ok(count), Ok(_)) => Finding::good("freeze and thaw", output::count(count, "file system")),
            (Err(error), _) | (_, Err(error)) => {
                let hint = error.next_step().unwrap_or("look into the guest's own log").to_owned();
                Finding::poor("freeze and thaw", error.to_string(), hint)
            }
        });
    }
    findings
}

fn print(context: &Context, sections: &[Section]) -> Result<()> {
    let word = |state| match state {
        Health::Good => "good",
        Health::Poor => "poor",
        Health::Bad => "bad",
    };
    if context.json {
        let finding = |finding: &Finding| {
            json!({
                "what": finding.what,
                "state": word(finding.state),
                "detail": finding.detail,
                "hint": finding.hint,
            })
        };
        let section = |(name, findings): &Section| -> Value {
            json!({ "name": name, "findings": findings.iter().map(finding).collect::<Vec<_>>() })
        };
        return output::json(&json!({ "sections": sections.iter().map(section).collect::<Vec<_>>() }));
    }
    let mut table = Table::new(&["OF", "WHAT", "STATE", "FOUND"], &[false; 4]);
    for (name, findings) in sections {
        for finding in findings {
            let hint = finding.hint.as_ref().map(|hint| format!("; {hint}")).unwrap_or_default();
            let found = format!("{}{hint}", finding.detail).replace('\n', " ");
            table.row(vec![name.clone(), finding.what.clone(), word(finding.state).to_owned(), found]);
        }
    }
    table.print()
}
