//! `firn prune`.

use super::context::Context;
use super::output;
use super::progress::{Status, Watch};
use clap::Args;
use firn_disk::{Error, Result};
use firn_pool::{PruneOptions, PrunePhase, PruneProgress, PruneReport};
use serde_json::json;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Give back the space of what no snapshot needs, while snapshots and restores go on.
///
/// What is found to be dead is marked now and deleted by the first prune after the grace, so that a restore which began
/// before can finish. Run it every day. Nobody has to stop for it, and any number may run at once.
#[derive(Debug, Args)]
pub struct PruneArgs {
    /// Say what would be done, and change nothing
    #[arg(long, short = 'n')]
    dry_run: bool,
    /// How long what is dead stays, as 12h, 90min, 7d, or 0 to delete at once what no running snapshot may use
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = parse_time)]
    grace: Duration,
    /// Copy packs together of which less than this is needed
    #[arg(long, value_name = "PERCENT", default_value_t = 70, value_parser = clap::value_parser!(u8).range(0..=100))]
    repack_below: u8,
}

/// Reads a length of time: a number with `s`, `min`, `h` or `d`, or 0.
///
/// # Errors
/// `Invalid`, with the forms that there are.
pub fn parse_time(text: &str) -> Result<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let seconds: Option<u64> = match (number, unit) {
        ("0", "") => Some(1),
        (_, "s") => Some(1),
        (_, "min") => Some(60),
        (_, "h") => Some(3600),
        (_, "d") => Some(24 * 3600),
        _ => None,
    };
    let time = seconds.zip(number.parse::<u64>().ok()).and_then(|(unit, number)| number.checked_mul(unit));
    time.map(Duration::from_secs)
        .ok_or_else(|| Error::invalid(format!("{text:?} is no length of time")).hint("write 30s, 90min, 12h, 7d or 0"))
}

/// Runs it.
///
/// # Errors
/// What the pool says.
pub fn run(context: &Context, args: &PruneArgs) -> Result<ExitCode> {
    let options = PruneOptions { grace: args.grace, repack_below_percent: args.repack_below, dry_run: args.dry_run };
    let pool = context.open_pool()?;
    let progress = PruneProgress { cancel: context.interrupted.clone(), ..PruneProgress::default() };
    let report = std::thread::scope(|scope| {
        let _watch = Watch::start(scope, context, "prune", || status(&progress));
        pool.prune(&options, &progress)
    })?;
    if context.json {
        output::json(&document(&report, args.dry_run))?;
    } else {
        show(&report, args)?;
    }
    for problem in &report.problems {
        eprintln!("firn: warning: {} is damaged and was left alone: {}", problem.what, problem.message);
    }
    if report.missing_chunks > 0 {
        let chunks = output::count(report.missing_chunks, "chunk");
        eprintln!("firn: warning: {chunks} that snapshots need are in no pack; `firn verify` lists them");
    }
    let is_sound = report.problems.is_empty() && report.missing_chunks == 0;
    Ok(if is_sound { ExitCode::SUCCESS } else { ExitCode::from(3) })
}

fn status(progress: &PruneProgress) -> Status {
    let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    let (done, total) = (load(&progress.done), load(&progress.total));
    match progress.phase() {
        PrunePhase::Marking => Status { words: format!("marking, disk {done} of {total}"), ..Status::default() },
        PrunePhase::Repacking => Status { done, total, words: "copying what lives".to_owned() },
        PrunePhase::Deleting => Status { words: format!("deleting, pack {done} of {total}"), ..Status::default() },
    }
}

fn document(report: &PruneReport, dry_run: bool) -> serde_json::Value {
    json!({
        "dry_run": dry_run,
        "packs": report.packs,
        "pack_bytes": report.pack_bytes,
        "live_bytes": report.live_bytes,
        "marked_packs": report.buried_packs,
        "marked_bytes": report.buried_bytes,
        "repacked_packs": report.repacked_packs,
        "repacked_bytes": report.repacked_bytes,
        "deleted_packs": report.deleted_packs,
        "deleted_bytes": report.deleted_bytes,
        "waiting_packs": report.waiting_packs,
        "waiting_bytes": report.waiting_bytes,
        "waits_for_snapshots": report.waits_for_snapshots,
        "undone_packs": report.undone_packs,
        "abandoned_snapshots": report.abandoned,
        "completed_copies": report.completed_copies,
        "missing_chunks": report.missing_chunks,
        "damaged_objects":
            report.problems.iter().map(|p| json!({"object": p.what, "message": p.message})).collect::<Vec<_>>(),
    })
}

fn show(report: &PruneReport, args: &PruneArgs) -> Result<()> {
    let packs = |count, bytes| format!("{} of {}", output::count(count, "pack"), output::size(bytes));
    let would = |done: &'static str, would: &'static str| if args.dry_run { would } else { done };
    let mut rows = vec![("in the pool", packs(report.packs, report.pack_bytes))];
    rows.push(("needed", output::size(report.live_bytes)));
    if report.repacked_packs > 0 {
        let copied = output::size(report.repacked_bytes);
        rows.push((
            would("copied", "would copy"),
            format!("{copied} out of {}", output::count(report.repacked_packs, "pack")),
        ));
    }
    if report.abandoned > 0 {
        let snapshots = output::count(report.abandoned, "snapshot");
        rows.push((would("removed", "would remove"), format!("{snapshots} that never got complete")));
    }
    rows.push((would("marked as dead", "would mark"), packs(report.buried_packs, report.buried_bytes)));
    if !args.dry_run {
        rows.push(("deleted", packs(report.deleted_packs, report.deleted_bytes)));
    }
    if report.undone_packs > 0 {
        rows.push(("stays after all", output::count(report.undone_packs, "pack")));
    }
    if report.waiting_packs > 0 {
        let why =
            if report.waits_for_snapshots { " for the grace or a running snapshot to end" } else { " for the grace" };
        rows.push(("waiting", format!("{}{why}", packs(report.waiting_packs, report.waiting_bytes))));
    }
    rows.iter().try_for_each(|(name, value)| output::line(&format!("{name:<15} {value}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_have_a_unit() {
        for (text, seconds) in [("0", 0), ("30s", 30), ("90min", 5400), ("12h", 43_200), ("7d", 604_800)] {
            assert_eq!(parse_time(text).unwrap(), Duration::from_secs(seconds));
        }
        for text in ["", "12", "h", "-1h", "1w", "99999999999999999999d", "9999999999999999999d"] {
            parse_time(text).unwrap_err();
        }
    }
}
