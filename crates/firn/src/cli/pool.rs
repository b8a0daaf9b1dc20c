//! `firn pool`.

use super::context::Context;
use super::output;
use clap::{Args, Subcommand};
use firn_disk::Result;
use std::process::ExitCode;

/// Tell about the pool, or make its index again.
#[derive(Debug, Args)]
pub struct PoolArgs {
    #[command(subcommand)]
    command: PoolCommand,
}

#[derive(Debug, Subcommand)]
enum PoolCommand {
    /// What is in the pool, and how much of it
    Info,
    /// Make the index again from the packs alone
    RebuildIndex,
}

/// Runs it.
///
/// # Errors
/// What the pool says.
pub fn run(context: &Context, args: &PoolArgs) -> Result<ExitCode> {
    match args.command {
        PoolCommand::Info => info(context),
        PoolCommand::RebuildIndex => rebuild(context),
    }
}

fn info(context: &Context) -> Result<ExitCode> {
    let info = context.open_pool()?.info()?;
    let public = &info.public;
    if context.json {
        output::json(&serde_json::json!({
            "pool": public.pool,
            "domain": public.domain,
            "location": context.location()?,
            "created": output::json_time(public.created),
            "format_version": public.version,
            "key_scope": info.scope.as_str(),
            "key_slots": public.slots.len(),
            "machines": info.machines,
            "snapshots": info.snapshots,
            "blobs": info.blobs,
            "data_packs": info.data_packs,
            "node_packs": info.node_packs,
            "stored_bytes": info.stored_bytes,
            "cut": {
                "average_bytes": 4096_u64 << public.cut.mask_bits,
                "least_bytes": u64::from(public.cut.least_blocks) * 4096,
                "most_bytes": u64::from(public.cut.most_blocks) * 4096,
            },
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows = [
        ("pool", public.pool.to_string()),
        ("key domain", public.domain.to_string()),
        ("made", output::time(public.created)),
        ("format", format!("version {}", public.version)),
        ("opened with", format!("a key to {}", info.scope.as_str())),
        ("key slots", public.slots.len().to_string()),
        ("machines", info.machines.to_string()),
        ("snapshots", info.snapshots.to_string()),
        ("stored", format!("{} in {} packs", output::size(info.stored_bytes), info.data_packs + info.node_packs)),
        ("chunks and nodes", info.blobs.to_string()),
        ("chunks", format!("cut by content, {} on average", output::size(4096 << public.cut.mask_bits))),
    ];
    rows.iter().try_for_each(|(name, value)| output::line(&format!("{name:<17} {value}")))?;
    Ok(ExitCode::SUCCESS)
}

fn rebuild(context: &Context) -> Result<ExitCode> {
    let pool = context.open_pool()?;
    let problems = pool.rebuild_index()?;
    if context.json {
        let problems: Vec<_> =
            problems.iter().map(|p| serde_json::json!({"object": p.what, "message": p.message})).collect();
        output::json(&serde_json::json!({ "problems": problems }))?;
    } else {
        for problem in &problems {
            eprintln!("firn: {}: {}", problem.what, problem.message);
        }
        output::line("Made the index again from the packs")?;
    }
    Ok(if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(3) })
}
