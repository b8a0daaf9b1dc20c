//! `firn verify`.

use super::context::Context;
use super::output;
use super::progress::{Status, Watch};
use clap::Args;
use firn_disk::Result;
use firn_pool::{Depth, Problem, VerifyProgress, VerifyReport, scrub_location};
use serde_json::{Value, json};
use std::process::ExitCode;
use std::sync::atomic::Ordering;

/// Look for damage: stored bytes, trees, and that every chunk is there.
///
/// Nothing is changed. By default every stored byte is compared with its checksum, and every snapshot is walked through: its manifest, its
/// trees, and that every chunk is where it should be. Exit code 3 when damage was found.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Only walk through the snapshots, without reading the chunks
    #[arg(long, group = "depth")]
    quick: bool,
    /// Only compare stored bytes with their checksums; needs no key
    #[arg(long, group = "depth")]
    scrub: bool,
    /// Also open every chunk and compare it with its name
    #[arg(long, group = "depth")]
    read_data: bool,
}

/// Runs it.
///
/// # Errors
/// What the pool says; damage is no error but exit code 3.
pub fn run(context: &Context, args: &VerifyArgs) -> Result<ExitCode> {
    let progress = VerifyProgress { cancel: context.interrupted.clone(), ..VerifyProgress::default() };
    let depth = match (args.quick, args.read_data) {
        (true, _) => Depth::Structure,
        (_, true) => Depth::Data,
        _ => Depth::Scrub,
    };
    let pool = if args.scrub { None } else { Some(context.open_pool()?) };
    let report = std::thread::scope(|scope| {
        let _watch = Watch::start(scope, context, "verify", || Status {
            done: progress.bytes_done.load(Ordering::Relaxed),
            total: progress.bytes_total.load(Ordering::Relaxed),
            words: String::new(),
        });
        match &pool {
            Some(pool) => pool.verify(depth, &progress),
            None => scrub_location(context.location()?, &progress),
        }
    })?;
    show(context, &report, pool.is_some().then_some(depth))?;
    Ok(if report.is_sound() { ExitCode::SUCCESS } else { ExitCode::from(3) })
}

/// `depth` is that of a check with a key.
fn show(context: &Context, report: &VerifyReport, depth: Option<Depth>) -> Result<()> {
    if context.json {
        let list = |problems: &[Problem], name: &str| -> Vec<Value> {
            problems.iter().map(|problem| json!({ name: problem.what, "message": problem.message })).collect()
        };
        return output::json(&json!({
            "sound": report.is_sound(),
            "objects": report.objects,
            "bytes": report.bytes,
            "snapshots": report.snapshots,
            "damaged_objects": list(&report.problems, "object"),
            "damaged_snapshots": list(&report.damaged_snapshots, "snapshot"),
        }));
    }
    for problem in &report.problems {
        output::line(&output::plain(&format!("damaged object   {}: {}", problem.what, problem.message)))?;
    }
    for problem in &report.damaged_snapshots {
        output::line(&output::plain(&format!("damaged snapshot {}: {}", problem.what, problem.message)))?;
    }
    let mut looked = Vec::new();
    if depth != Some(Depth::Structure) {
        looked.push(format!(
            "every byte of {}, {}",
            output::count(report.objects, "object"),
            output::size(report.bytes)
        ));
    }
    if depth.is_some() {
        looked.push(output::count(report.snapshots, "snapshot"));
    }
    let looked = format!("looked at {}", looked.join(", and at "));
    if report.is_sound() {
        return output::line(&format!("Everything is sound: {looked}"));
    }
    output::line(&format!("Damage was found: {looked}"))?;
    if report.damaged_snapshots.is_empty() && report.snapshots > 0 {
        output::line("Every snapshot can still be read whole: what is damaged is there twice, or is not needed.")?;
    }
    Ok(())
}
