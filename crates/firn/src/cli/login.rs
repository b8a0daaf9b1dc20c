//! `firn login` and `firn logout`: a pool's key in the kernel's keyring for a while.

use super::context::Context;
use super::{keyring, output};
use clap::Args;
use firn_disk::Result;
use firn_pool::Pool;
use jiff::SignedDuration;
use std::process::ExitCode;
use std::time::Duration;

/// A week.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);

/// Keep the pool's key in the kernel's keyring for a while, so that no command asks for a password.
///
/// The key is kept in memory only, for your user, and for every pool of the same key domain.
#[derive(Debug, Args)]
pub struct LoginArgs {
    /// For how long, as 30m or 8h; at most a week
    #[arg(long = "for", value_name = "TIME", default_value = "1h", value_parser = parse_time)]
    time: Duration,
}

/// Forget the key that `firn login` keeps.
#[derive(Debug, Args)]
pub struct LogoutArgs {}

fn parse_time(text: &str) -> std::result::Result<Duration, String> {
    let wrong = || "write a time as 30m, 8h or 1h30m; at most a week".to_owned();
    let time: SignedDuration = text.parse().map_err(|_| wrong())?;
    let time = Duration::try_from(time).map_err(|_| wrong())?;
    if time < Duration::from_secs(1) || time > LONGEST { Err(wrong()) } else { Ok(time) }
}

/// Runs `firn login`.
///
/// # Errors
/// `Denied` for a key that opens only the structure; as [`Context::open_pool`] and [`keyring::keep`].
pub fn login(context: &Context, args: &LoginArgs) -> Result<ExitCode> {
    let pool = context.open_pool()?;
    let domain = pool.info()?.public.domain;
    keyring::keep(domain, &pool.export_key()?, args.time)?;
    let until = context.now().timestamp() + args.time;
    if context.json {
        output::json(&serde_json::json!({ "domain": domain, "until": output::json_time(until) }))?;
    } else {
        eprintln!("firn: the key of the pool {} is kept until {}", context.location()?, output::moment(until));
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs `firn logout`.
///
/// # Errors
/// As [`Pool::public_info`] and [`keyring::forget`].
pub fn logout(context: &Context, _args: &LogoutArgs) -> Result<ExitCode> {
    let was_there = keyring::forget(Pool::public_info(context.location()?)?.domain)?;
    if context.json {
        output::json(&serde_json::json!({ "forgotten": was_there }))?;
    } else if !was_there {
        eprintln!("firn: no key of this pool was kept");
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_unit_and_an_end() {
        assert_eq!(parse_time("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_time("1h30m"), Ok(Duration::from_secs(5400)));
        for wrong in ["", "90", "0s", "-1h", "8 days", "1000h", "soon"] {
            assert!(parse_time(wrong).is_err(), "{wrong}");
        }
    }
}
