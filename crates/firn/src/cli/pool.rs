//! `firn pool`.

use super::context::Context;
use super::output;
use clap::{ArgGroup, Args, Subcommand};
use firn_disk::{Error, Result};
use firn_pool::{Limits, WhenFull};
use std::process::ExitCode;

/// Tell about the pool, set how large it may grow, or make its index again.
#[derive(Debug, Args)]
pub struct PoolArgs {
    #[command(subcommand)]
    command: PoolCommand,
}

#[derive(Debug, Subcommand)]
enum PoolCommand {
    /// What is in the pool, and how much of it
    Info,
    /// Set how large the pool may grow, or show it
    Set(SetArgs),
    /// Make the index again from the packs alone
    RebuildIndex,
}

/// What is not given stays as it is.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("limit").multiple(true).args(["max_bytes", "reserve", "when_full"])))]
struct SetArgs {
    /// The most that the pool may have, as 500G or 2T; `none` for no limit
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    max_bytes: Option<Size>,
    /// What stays free on the pool's file system; `none` for nothing
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    reserve: Option<Size>,
    /// What a snapshot does that finds the pool full: `stop`, or `drop-oldest` to forget the oldest that are not locked
    #[arg(long, value_name = "WHAT", value_parser = parse_when_full)]
    when_full: Option<WhenFull>,
}

/// A number of bytes, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Size(Option<u64>);

/// A number with K, M, G or T (powers of 1024), or `none`.
fn parse_size(text: &str) -> Result<Size> {
    if text == "none" {
        return Ok(Size(None));
    }
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit {
        "" | "B" => Some(0),
        "K" | "KiB" => Some(10),
        "M" | "MiB" => Some(20),
        "G" | "GiB" => Some(30),
        "T" | "TiB" => Some(40),
        _ => None,
    };
    let bytes = shift.zip(number.parse::<u64>().ok()).and_then(|(shift, number)| number.checked_mul(1 << shift));
    bytes.map(|bytes| Size(Some(bytes))).ok_or_else(|| {
        Error::invalid(format!("{text:?} is no size")).hint("write 500G, 2T, a number of bytes, or none")
    })
}

fn parse_when_full(text: &str) -> Result<WhenFull> {
    [WhenFull::Stop, WhenFull::DropOldest].into_iter().find(|what| what.as_str() == text).ok_or_else(|| {
        Error::invalid(format!("{text:?} is nothing that can be done")).hint("write stop or drop-oldest")
    })
}

/// Runs it.
///
/// # Errors
/// What the pool says.
pub fn run(context: &Context, args: &PoolArgs) -> Result<ExitCode> {
    match &args.command {
        PoolCommand::Info => info(context),
        PoolCommand::Set(args) => set(context, args),
        PoolCommand::RebuildIndex => rebuild(context),
    }
}

fn set(context: &Context, args: &SetArgs) -> Result<ExitCode> {
    let pool = context.open_pool()?;
    let before = pool.limits()?;
    let limits = Limits {
        max_bytes: args.max_bytes.map_or(before.max_bytes, |size| size.0),
        reserve_bytes: args.reserve.map_or(before.reserve_bytes, |size| size.0),
        when_full: args.when_full.unwrap_or(before.when_full),
    };
    if limits != before {
        pool.set_limits(&limits)?;
    }
    if context.json {
        output::json(&limits_json(&limits))?;
        return Ok(ExitCode::SUCCESS);
    }
    limit_rows(&limits).iter().try_for_each(|(name, value)| output::line(&format!("{name:<17} {value}")))?;
    Ok(ExitCode::SUCCESS)
}

fn limits_json(limits: &Limits) -> serde_json::Value {
    serde_json::json!({
        "max_bytes": limits.max_bytes,
        "reserve_bytes": limits.reserve_bytes,
        "when_full": limits.when_full.as_str(),
    })
}

fn limit_rows(limits: &Limits) -> [(&'static str, String); 3] {
    let size = |bytes: Option<u64>| bytes.map_or_else(|| "none".to_owned(), output::size);
    [
        ("most bytes", size(limits.max_bytes)),
        ("reserve", size(limits.reserve_bytes)),
        ("when full", limits.when_full.as_str().to_owned()),
    ]
}

fn info(context: &Context) -> Result<ExitCode> {
    let pool = context.open_pool()?;
    let (info, limits) = (pool.info()?, pool.limits()?);
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
            "limits": limits_json(&limits),
            "cut": {
                "average_bytes": 4096_u64 << public.cut.mask_bits,
                "least_bytes": u64::from(public.cut.least_blocks) * 4096,
                "most_bytes": u64::from(public.cut.most_blocks) * 4096,
            },
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = vec![
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
    if limits != Limits::default() {
        rows.extend(limit_rows(&limits));
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_binary_units() {
        for (text, bytes) in [("none", None), ("7", Some(7)), ("500G", Some(500 << 30)), ("2TiB", Some(2 << 40))] {
            assert_eq!(parse_size(text).unwrap(), Size(bytes), "{text}");
        }
        for text in ["", "G", "1.5G", "-1", "1GB", "99999999T", "99999999999999999999"] {
            parse_size(text).unwrap_err();
        }
    }
}
