//! `firn sources`: what can be found on this host to take snapshots of.

use super::context::Context;
use super::output::{self, Table};
use clap::Args;
use firn_disk::Result;
use firn_source::Found;
use serde_json::{Value, json};
use std::process::ExitCode;

/// List what disks can be taken from on this host: running QEMUs, libvirt, btrfs, filers, LVM, block devices.
///
/// Only looks, and changes nothing. Each line begins with what to give to `firn snap`, or has the reason why it cannot be
/// taken as it is.
#[derive(Debug, Args)]
pub struct SourcesArgs {}

/// Runs it.
///
/// # Errors
/// When stdout is closed or full.
pub fn run(context: &Context, _args: &SourcesArgs) -> Result<ExitCode> {
    let found = firn_source::discover();
    if context.json {
        output::json(&json!({ "sources": found.iter().map(as_json).collect::<Vec<_>>() }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(&["SOURCE", "KIND", "DETAIL"], &[false, false, false]);
    for Found { uri, what, detail, refused } in found {
        let detail = refused.map_or_else(|| detail.clone(), |reason| format!("{detail}: {reason}"));
        table.row(vec![uri.unwrap_or_else(|| "-".to_owned()), what.to_owned(), detail]);
    }
    if table.is_empty() {
        eprintln!("firn: nothing was found; an image file or nbd:// export is taken by its name");
        return Ok(ExitCode::SUCCESS);
    }
    table.print()?;
    Ok(ExitCode::SUCCESS)
}

fn as_json(found: &Found) -> Value {
    json!({ "uri": found.uri, "kind": found.what, "detail": found.detail, "refused": found.refused })
}
