//! `firn lock` and `firn unlock`.

use super::context::Context;
use super::output;
use super::snapshots;
use clap::{ArgGroup, Args};
use firn_disk::{Error, ErrorKind, Result};
use firn_pool::{Lock, Locks, Manifest, Snapshot, Unlock};
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp, Zoned};
use serde_json::{Value, json};
use std::process::ExitCode;

/// Keep a snapshot from being forgotten, until a time or for somebody.
///
/// A lock until a time can be lifted by `firn unlock`. With --compliance it cannot: not by unlock, not by a rule, only
/// its end can be moved to later. Whoever may delete the files of a pool in a folder can still do that, whatever firn
/// says: for protection against that, keep a second pool where nobody but firn has access.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("what").required(true).args(["until", "hold"])))]
pub struct LockArgs {
    /// MACHINE or MACHINE@TIME
    #[arg(value_name = "ADDRESS")]
    address: String,
    /// Until then: 2027-01-31, 2027-01-31T12:00, or from now on 30d, 12h
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Nobody can lift it before its end
    #[arg(long, requires = "until")]
    compliance: bool,
    /// Until this owner lets go of it by `firn unlock --hold OWNER`
    #[arg(long, value_name = "OWNER")]
    hold: Option<String>,
}

/// Lift a lock that was put on a snapshot.
#[derive(Debug, Args)]
pub struct UnlockArgs {
    /// MACHINE or MACHINE@TIME
    #[arg(value_name = "ADDRESS")]
    address: String,
    /// Lift the hold of this owner, in place of the lock until a time
    #[arg(long, value_name = "OWNER")]
    hold: Option<String>,
}

/// Runs `firn lock`.
///
/// # Errors
/// `NotFound` for a snapshot that is not there; what the pool says.
pub fn lock(context: &Context, args: &LockArgs) -> Result<ExitCode> {
    let lock = match (&args.until, &args.hold) {
        (Some(until), _) => {
            let until = parse_until(until, &context.now())?;
            if args.compliance { Lock::Compliance(until) } else { Lock::Governance(until) }
        }
        (None, Some(owner)) => Lock::Hold(owner.clone()),
        (None, None) => return Err(Error::invalid("it is not said until when, or for whom")),
    };
    let (name, moment) = snapshots::machine_address(&args.address)?;
    let pool = context.open_pool()?;
    let (snapshot, manifest) = snapshots::pick(context, &pool, &name, moment.as_ref())?;
    let locks = pool.lock(&snapshot, &lock)?;
    if args.compliance {
        eprintln!("firn: note: this binds firn. Whoever may delete the pool's files can still delete them");
    }
    report(context, &name, &snapshot, &manifest, &locks, pool.store_time()?)
}

/// Runs `firn unlock`.
///
/// # Errors
/// `NotFound` for a snapshot or lock that is not there; what the pool says.
pub fn unlock(context: &Context, args: &UnlockArgs) -> Result<ExitCode> {
    let unlock = args.hold.clone().map_or(Unlock::Governance, Unlock::Hold);
    let (name, moment) = snapshots::machine_address(&args.address)?;
    let pool = context.open_pool()?;
    let (snapshot, manifest) = snapshots::pick(context, &pool, &name, moment.as_ref())?;
    let now = pool.store_time()?;
    let locks = pool.unlock(&snapshot, &unlock).map_err(|error| {
        match snapshot.locks.compliance.filter(|until| *until > now && error.kind() == ErrorKind::NotFound) {
            Some(until) => Error::new(ErrorKind::Denied, "a compliance lock cannot be lifted")
                .hint(format!("it ends by itself at {}", output::time(until))),
            None => error,
        }
    })?;
    report(context, &name, &snapshot, &manifest, &locks, now)
}

fn report(
    context: &Context,
    name: &str,
    snapshot: &Snapshot,
    manifest: &Manifest,
    locks: &Locks,
    now: Timestamp,
) -> Result<ExitCode> {
    if context.json {
        output::json(&json!({ "machine": name, "uuid": snapshot.uuid, "locks": locks_json(locks) }))?;
    } else {
        let reason = locks.reason(now).unwrap_or_else(|| "not locked".to_owned());
        output::line(&output::plain(&format!("{name}@{}  {reason}", output::moment(manifest.created))))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Locks as every `--json` shows them.
pub fn locks_json(locks: &Locks) -> Value {
    let holds: Vec<_> =
        locks.holds.iter().map(|hold| json!({"owner": hold.owner, "since": output::json_time(hold.since)})).collect();
    json!({
        "governance_until": locks.governance.map(output::json_time),
        "compliance_until": locks.compliance.map(output::json_time),
        "holds": holds,
        "damaged": locks.is_damaged,
    })
}

/// A few words for a column: `compliance`, `until 2027-01-31`, `held`.
pub fn locks_in_short(locks: &Locks, now: Timestamp) -> String {
    let day = |time: Timestamp| time.to_zoned(TimeZone::system()).strftime("%Y-%m-%d").to_string();
    let mut words = Vec::new();
    if let Some(until) = locks.compliance.filter(|until| *until > now) {
        words.push(format!("compliance {}", day(until)));
    }
    if let Some(until) = locks.governance.filter(|until| *until > now) {
        words.push(format!("until {}", day(until)));
    }
    words.extend(locks.holds.iter().map(|hold| format!("held: {}", hold.owner)));
    if locks.is_damaged {
        words.push("damaged".to_owned());
    }
    words.join(", ")
}

/// A time in the future: a day (its end), a moment of the local zone or with one of its own, or how long from now.
fn parse_until(text: &str, now: &Zoned) -> Result<Timestamp> {
    let not_understood = || {
        Error::invalid(format!("{text:?} is no time"))
            .hint("write 2027-01-31, 2027-01-31T12:00, or 30d, 12h from now on")
    };
    if let Ok(length) = super::prune::parse_time(text) {
        return now.timestamp().checked_add(length).map_err(|_| not_understood());
    }
    if let Ok(timestamp) = text.parse::<Timestamp>() {
        return Ok(timestamp);
    }
    let local = match text.parse::<jiff::civil::Date>() {
        Ok(day) if !text.contains('T') => {
            day.to_datetime(jiff::civil::Time::midnight()).checked_add(Span::new().days(1))
        }
        _ => text.parse::<DateTime>(),
    };
    let local = local.map_err(|_| not_understood())?;
    local.to_zoned(now.time_zone().clone()).map(|time| time.timestamp()).map_err(|_| not_understood())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_a_day_a_moment_or_a_length_of_time() {
        let instant: Timestamp = "2026-11-21T10:00:00Z".parse().unwrap();
        let now = instant.to_zoned(TimeZone::UTC);
        for (text, expected) in [
            ("2d", "2026-11-23T10:00:00Z"),
            ("12h", "2026-11-21T22:00:00Z"),
            ("2027-01-31", "2027-02-01T00:00:00Z"),
            ("2027-01-31T12:00", "2027-01-31T12:00:00Z"),
            ("2027-01-31T12:00:00+01:00", "2027-01-31T11:00:00Z"),
        ] {
            assert_eq!(parse_until(text, &now).unwrap(), expected.parse().unwrap(), "{text}");
        }
        for text in ["", "tomorrow", "2027", "5"] {
            parse_until(text, &now).unwrap_err();
        }
    }
}
