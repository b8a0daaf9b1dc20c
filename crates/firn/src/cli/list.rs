//! `firn list` and `firn show`.

use super::context::Context;
use super::lock;
use super::output::{self, Table};
use super::snapshots::{self, Snapshots};
use clap::Args;
use firn_disk::{Error, Result};
use firn_pool::{Machine, Manifest, Pool, Snapshot};
use serde_json::{Value, json};
use std::io::Write;
use std::process::ExitCode;

/// List machines and their snapshots, oldest first.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only these machines
    machines: Vec<String>,
}

/// Show one snapshot: its disks, what it cost, what is kept with it.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// MACHINE or MACHINE@TIME
    #[arg(value_name = "ADDRESS")]
    address: String,
    /// Print a file that is kept with the snapshot, in place of the listing
    #[arg(long, value_name = "NAME")]
    config: Option<String>,
}

/// Runs `firn list`. Exit code 3 when there are snapshots that cannot be read.
///
/// # Errors
/// `NotFound` for a machine that is not there; what the pool says.
pub fn list(context: &Context, args: &ListArgs) -> Result<ExitCode> {
    let pool = context.open_pool()?;
    let machines = match args.machines.as_slice() {
        [] => pool.machines()?,
        names => names.iter().map(|name| pool.machine(name)).collect::<Result<_>>()?,
    };
    let mut table = Table::new(
        &["MACHINE", "SNAPSHOT", "CONSISTENCY", "DISKS", "SIZE", "DATA", "NEW", "LOCKS"],
        &[false, false, false, true, true, true, true, false],
    );
    let now = context.now().timestamp();
    let mut documents = Vec::new();
    let mut is_damaged = false;
    for machine in &machines {
        let Snapshots { readable, unreadable } = snapshots::of_machine(&pool, machine)?;
        is_damaged |= !unreadable.is_empty();
        for (snapshot, manifest) in &readable {
            table.row(row(machine, manifest, lock::locks_in_short(&snapshot.locks, now)));
        }
        let pending = if machine.pending > 0 { pool.pending_snapshots(machine.uuid)? } else { Vec::new() };
        for manifest in pending.iter().filter_map(|snapshot| snapshot.manifest.as_ref().ok()) {
            table.row(row(machine, manifest, "pending: no snapshot yet".to_owned()));
        }
        documents.push(json!({
            "name": machine.name,
            "uuid": machine.uuid,
            "snapshots": readable.iter().map(|(snapshot, manifest)| {
                let mut document = snapshot_json(manifest);
                document["locks"] = lock::locks_json(&snapshot.locks);
                document
            }).collect::<Vec<_>>(),
            "pending": pending.iter().map(|snapshot| json!({
                "uuid": snapshot.uuid,
                "sequence": snapshot.sequence,
                "time": snapshot.manifest.as_ref().ok().map(|manifest| output::json_time(manifest.created)),
            })).collect::<Vec<_>>(),
            "unreadable": unreadable.iter().map(unreadable_json).collect::<Vec<_>>(),
        }));
    }
    if context.json {
        output::json(&json!({ "machines": documents }))?;
    } else if !table.is_empty() {
        table.print()?;
    } else if !is_damaged {
        eprintln!("firn: the pool has no snapshots; `firn snap MACHINE IMAGE` takes one");
    }
    Ok(if is_damaged { ExitCode::from(3) } else { ExitCode::SUCCESS })
}

fn row(machine: &Machine, manifest: &Manifest, last: String) -> Vec<String> {
    vec![
        machine.name.clone(),
        output::moment(manifest.created),
        manifest.consistency.as_str().to_owned(),
        manifest.disks.len().to_string(),
        output::size(manifest.total_length()),
        output::size(manifest.statistics.bytes_data),
        output::size(manifest.statistics.bytes_stored),
        last,
    ]
}

fn unreadable_json(snapshot: &Snapshot) -> Value {
    let message = snapshot.manifest.as_ref().err().map(ToString::to_string);
    json!({ "uuid": snapshot.uuid, "sequence": snapshot.sequence, "message": message })
}

/// A snapshot as every `--json` shows it.
pub fn snapshot_json(manifest: &Manifest) -> Value {
    let disks: Vec<_> = manifest
        .disks
        .iter()
        .map(|disk| {
            json!({
                "name": disk.name,
                "bytes": disk.length,
                "logical_block_size": disk.logical_block_size,
                "source": disk.source,
            })
        })
        .collect();
    let statistics = &manifest.statistics;
    json!({
        "machine": manifest.machine_name,
        "uuid": manifest.snapshot,
        "sequence": manifest.sequence,
        "time": output::json_time(manifest.created),
        "consistency": manifest.consistency.as_str(),
        "frozen_milliseconds": manifest.frozen_milliseconds,
        "group": manifest.group,
        "disks": disks,
        "config": manifest.attachments.iter().map(|file| json!({"name": file.name, "bytes": file.bytes.len()})).collect::<Vec<_>>(),
        "bytes": manifest.total_length(),
        "bytes_data": statistics.bytes_data,
        "bytes_read": statistics.bytes_read,
        "bytes_stored": statistics.bytes_stored,
        "milliseconds": statistics.milliseconds,
        "remarks": manifest.remarks,
    })
}

/// Runs `firn show`.
///
/// # Errors
/// `NotFound` for a snapshot or a kept file that is not there; what the pool says.
pub fn show(context: &Context, args: &ShowArgs) -> Result<ExitCode> {
    let (name, moment) = snapshots::machine_address(&args.address)?;
    let pool: Pool = context.open_pool()?;
    let (snapshot, manifest) = snapshots::pick(context, &pool, &name, moment.as_ref())?;
    if let Some(wanted) = &args.config {
        let file = manifest.attachments.iter().find(|file| file.name == *wanted).ok_or_else(|| {
            let names: Vec<_> = manifest.attachments.iter().map(|file| output::plain(&file.name)).collect();
            Error::not_found(format!("no file {} is kept with this snapshot", output::plain(wanted)))
                .hint(format!("it has: {}", if names.is_empty() { "none".to_owned() } else { names.join(", ") }))
        })?;
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(&file.bytes).map_err(|error| Error::from_io("write to stdout", error))?;
        return Ok(ExitCode::SUCCESS);
    }
    if context.json {
        let mut document = snapshot_json(&manifest);
        document["locks"] = lock::locks_json(&snapshot.locks);
        output::json(&document)?;
        return Ok(ExitCode::SUCCESS);
    }
    print(&name, &manifest, &lock::locks_in_short(&snapshot.locks, context.now().timestamp()))?;
    Ok(ExitCode::SUCCESS)
}

fn print(name: &str, manifest: &Manifest, locks: &str) -> Result<()> {
    let statistics = &manifest.statistics;
    let mut rows = vec![
        ("snapshot", format!("{name}@{}", output::moment(manifest.created))),
        ("uuid", manifest.snapshot.to_string()),
        ("number", manifest.sequence.to_string()),
        ("consistency", manifest.consistency.as_str().to_owned()),
    ];
    if let Some(frozen) = manifest.frozen_milliseconds {
        rows.push(("frozen", format!("{frozen} ms")));
    }
    rows.push((
        "size",
        format!("{}, {} of it data", output::size(manifest.total_length()), output::size(statistics.bytes_data)),
    ));
    rows.push(("read", output::size(statistics.bytes_read)));
    rows.push(("new in the pool", output::size(statistics.bytes_stored)));
    rows.push(("taken in", output::duration(statistics.milliseconds)));
    if !locks.is_empty() {
        rows.push(("locked", locks.to_owned()));
    }
    for file in &manifest.attachments {
        rows.push(("kept with it", format!("{} ({})", file.name, output::size(file.bytes.len() as u64))));
    }
    for remark in &manifest.remarks {
        rows.push(("remark", remark.clone()));
    }
    for (name, value) in rows {
        output::line(&format!("{name:<16} {}", output::plain(&value)))?;
    }
    output::line("")?;
    let mut table = Table::new(&["DISK", "SIZE", "SECTOR", "SOURCE"], &[false, true, true, false]);
    for disk in &manifest.disks {
        table.row(vec![
            disk.name.clone(),
            output::size(disk.length),
            disk.logical_block_size.to_string(),
            disk.source.clone(),
        ]);
    }
    table.print()
}
