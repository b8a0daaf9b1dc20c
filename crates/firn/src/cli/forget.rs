//! `firn forget`.

use super::context::Context;
use super::output::{self, Table};
use super::snapshots;
use crate::when::Moment;
use clap::Args;
use firn_disk::{Error, ErrorKind, Result};
use firn_pool::{Decision, KeepRules, Machine, Manifest, Pool, Snapshot, retain};
use jiff::tz::TimeZone;
use std::process::ExitCode;
use uuid::Uuid;

/// Remove snapshots, one by its address or all that no rule keeps.
///
/// Each rule keeps the newest snapshot of each of so many periods; a snapshot stays when any rule keeps it, and rules
/// never take a machine's last one. Locked snapshots stay. Other snapshots are not touched, whatever is removed. The space
/// comes back with `firn prune`.
#[derive(Debug, Args)]
pub struct ForgetArgs {
    /// MACHINE@TIME to remove the newest of that time; with rules: only these machines, else all
    #[arg(value_name = "ADDRESS")]
    addresses: Vec<String>,
    /// Keep the newest N
    #[arg(long, value_name = "N")]
    keep_last: Option<u32>,
    /// Keep the newest of each of N hours that have one
    #[arg(long, value_name = "N")]
    keep_hourly: Option<u32>,
    /// Of each of N days
    #[arg(long, value_name = "N")]
    keep_daily: Option<u32>,
    /// Of each of N weeks, from Monday
    #[arg(long, value_name = "N")]
    keep_weekly: Option<u32>,
    /// Of each of N months
    #[arg(long, value_name = "N")]
    keep_monthly: Option<u32>,
    /// Of each of N years
    #[arg(long, value_name = "N")]
    keep_yearly: Option<u32>,
    /// Say what would be removed, and remove nothing
    #[arg(long, short = 'n')]
    dry_run: bool,
    /// The addresses are UUIDs of snapshots, which are removed even if they are damaged; a lock still holds
    #[arg(long, conflicts_with_all = [
        "keep_last", "keep_hourly", "keep_daily", "keep_weekly", "keep_monthly", "keep_yearly",
    ], requires = "addresses")]
    force: bool,
}

struct Judged {
    snapshot: Snapshot,
    manifest: Manifest,
    name: String,
    decision: Decision,
}

/// Runs it.
///
/// # Errors
/// `Invalid` when it is not said what to remove; what the pool says.
pub fn run(context: &Context, args: &ForgetArgs) -> Result<ExitCode> {
    if args.force {
        return by_uuid(context, args);
    }
    let rules = KeepRules {
        last: args.keep_last,
        hourly: args.keep_hourly,
        daily: args.keep_daily,
        weekly: args.keep_weekly,
        monthly: args.keep_monthly,
        yearly: args.keep_yearly,
    };
    let targets =
        args.addresses.iter().map(|address| snapshots::machine_address(address)).collect::<Result<Vec<_>>>()?;
    let (one_by_one, whole): (Vec<_>, Vec<_>) = targets.iter().partition(|(_, moment)| moment.is_some());
    if rules.is_empty() && (one_by_one.is_empty() || !whole.is_empty()) {
        return Err(Error::invalid("it is not said which snapshots to remove")
            .hint("name one, as `firn forget web1@first`, or give rules, as --keep-daily 14"));
    }
    if !rules.is_empty() && !one_by_one.is_empty() {
        return Err(Error::invalid("an address with @ names one snapshot; rules are for whole machines")
            .hint("run the command twice"));
    }
    let counts = [rules.last, rules.hourly, rules.daily, rules.weekly, rules.monthly, rules.yearly];
    if !rules.is_empty() && counts.iter().all(|count| count.is_none_or(|count| count == 0)) {
        return Err(Error::invalid("these rules keep nothing")
            .hint("to remove a snapshot for good, name it: `firn forget web1@first`"));
    }
    let pool = context.open_pool()?;
    let mut judged = if rules.is_empty() {
        one_by_one
            .into_iter()
            .map(|(name, moment)| {
                let (snapshot, manifest) = snapshots::pick(context, &pool, name, moment.as_ref())?;
                check_meant(context, name, moment.as_ref(), &manifest)?;
                // Whether a lock holds is for the pool to say.
                let decision = Decision { keep: false, reason: "named".to_owned() };
                Ok(Judged { snapshot, manifest, name: name.clone(), decision })
            })
            .collect::<Result<Vec<_>>>()?
    } else {
        let machines = match whole.as_slice() {
            [] => pool.machines()?,
            names => names.iter().map(|(name, _)| pool.machine(name)).collect::<Result<_>>()?,
        };
        let judge = |machine| judge(context, &pool, machine, &rules);
        let judged = machines.iter().map(judge).collect::<Result<Vec<_>>>()?;
        judged.into_iter().flatten().collect()
    };
    for judged in judged.iter_mut().filter(|judged| !judged.decision.keep && !args.dry_run) {
        match pool.forget(&judged.snapshot) {
            // By the store's clock it is locked still, or it was locked just now.
            Err(error) if error.kind() == ErrorKind::Denied && !rules.is_empty() => {
                judged.decision = Decision { keep: true, reason: error.to_string() };
            }
            forgotten => forgotten?,
        }
    }
    report(context, &judged, args.dry_run)?;
    Ok(ExitCode::SUCCESS)
}

/// Removes snapshots by their UUIDs, whatever state they are in.
fn by_uuid(context: &Context, args: &ForgetArgs) -> Result<ExitCode> {
    let parse = |text: &String| {
        text.parse::<Uuid>().map_err(|_| {
            Error::invalid(format!("{text:?} is no UUID of a snapshot"))
                .hint("with --force, name snapshots by the UUIDs that `firn list --json` or the error shows")
        })
    };
    let wanted = args.addresses.iter().map(parse).collect::<Result<Vec<_>>>()?;
    let pool = context.open_pool()?;
    let mut found = Vec::new();
    for machine in pool.machines()? {
        let snapshots = pool.snapshots(machine.uuid)?.into_iter().filter(|snapshot| wanted.contains(&snapshot.uuid));
        found.extend(snapshots.map(|snapshot| (machine.name.clone(), snapshot)));
    }
    if let Some(missing) = wanted.iter().find(|uuid| found.iter().all(|(_, snapshot)| snapshot.uuid != **uuid)) {
        return Err(Error::not_found(format!("there is no snapshot {missing} in the pool")));
    }
    if !args.dry_run {
        found.iter().try_for_each(|(_, snapshot)| pool.forget_damaged(snapshot))?;
    }
    if context.json {
        let document = |(name, snapshot): &(String, Snapshot)| {
            serde_json::json!({
                "machine": name,
                "uuid": snapshot.uuid,
                "time": snapshot.manifest.as_ref().ok().map(|manifest| output::json_time(manifest.created)),
                "keep": false,
                "reason": "named",
            })
        };
        let snapshots: Vec<_> = found.iter().map(document).collect();
        output::json(&serde_json::json!({ "dry_run": args.dry_run, "snapshots": snapshots }))?;
    } else {
        let done = if args.dry_run { "would remove" } else { "removed" };
        found.iter().try_for_each(|(name, snapshot)| output::line(&format!("{done}  {name}  {}", snapshot.uuid)))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// To be removed a snapshot must lie in the span that was named; for reading an older one may do.
///
/// # Errors
/// `NotFound`.
fn check_meant(context: &Context, name: &str, moment: Option<&Moment>, manifest: &Manifest) -> Result<()> {
    match moment {
        Some(moment) if !moment.covers(manifest.created, &context.now())? => {
            let picked = output::moment(manifest.created);
            Err(Error::not_found(format!("{name} has no snapshot of that time; the newest before it is of {picked}"))
                .hint(format!("if that one shall go, name it: `firn forget {name}@{picked}`")))
        }
        _ => Ok(()),
    }
}

fn judge(context: &Context, pool: &Pool, machine: &Machine, rules: &KeepRules) -> Result<Vec<Judged>> {
    let now = context.now().timestamp();
    let snapshots = snapshots::of_machine(pool, machine)?.readable;
    let facts: Vec<_> = snapshots.iter().map(|(_, manifest)| (manifest.created, manifest.consistency)).collect();
    let decisions = retain(&facts, rules, &TimeZone::system());
    let judged = snapshots.into_iter().zip(decisions);
    Ok(judged
        .map(|((snapshot, manifest), mut decision)| {
            if let Some(reason) = snapshot.locks.reason(now).filter(|_| !decision.keep) {
                decision = Decision { keep: true, reason };
            }
            Judged { snapshot, manifest, name: machine.name.clone(), decision }
        })
        .collect())
}

fn report(context: &Context, judged: &[Judged], dry_run: bool) -> Result<()> {
    if context.json {
        let snapshots: Vec<_> = judged
            .iter()
            .map(|judged| {
                serde_json::json!({
                    "machine": judged.name,
                    "uuid": judged.manifest.snapshot,
                    "time": output::json_time(judged.manifest.created),
                    "keep": judged.decision.keep,
                    "reason": judged.decision.reason,
                })
            })
            .collect();
        return output::json(&serde_json::json!({ "dry_run": dry_run, "snapshots": snapshots }));
    }
    let mut table = Table::new(&["", "MACHINE", "SNAPSHOT", "REASON"], &[false, false, false, false]);
    for judged in judged {
        let what = match (judged.decision.keep, dry_run) {
            (true, _) => "keep",
            (false, true) => "would remove",
            (false, false) => "removed",
        };
        let Judged { name, manifest, decision, .. } = judged;
        table.row(vec![what.to_owned(), name.clone(), output::moment(manifest.created), decision.reason.clone()]);
    }
    if judged.is_empty() {
        eprintln!("firn: there is nothing to remove");
        return Ok(());
    }
    table.print()
}
