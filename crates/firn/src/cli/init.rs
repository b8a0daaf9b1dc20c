//! `firn init`.

use super::context::{self, Context};
use super::output;
use clap::{Args, ValueHint};
use firn_disk::{Error, ErrorKind, Result};
use firn_pool::{CutParameters, Entropy, InitOptions, NewCredential, Pool, SystemEntropy};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use zeroize::Zeroizing;

/// Make a pool in a folder that is empty or does not exist yet.
///
/// The pool is encrypted. It opens with a password (asked for, unless --password-file or --key-file is given) and
/// with the recovery key that is printed once. Without either, nobody can read it.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// The folder; without it, what --pool or FIRN_POOL names
    #[arg(value_name = "POOL", value_hint = ValueHint::DirPath)]
    location: Option<String>,
    /// Keep the key in clear beside the data: no secret, nothing to lose
    #[arg(long, conflicts_with_all = ["password_file", "key_file", "same_keys_as"])]
    no_password: bool,
    /// Share keys and chunk ids with another pool, so that packs can travel between the two as they are
    #[arg(long, value_name = "POOL", value_hint = ValueHint::DirPath)]
    same_keys_as: Option<String>,
}

/// Runs it.
///
/// # Errors
/// As [`Pool::init`].
pub fn run(context: &Context, args: &InitArgs) -> Result<ExitCode> {
    let location = args.location.as_deref().map_or_else(|| context.location(), Ok)?;
    let other = args.same_keys_as.as_deref().map(|other| context.open_other(other)).transpose()?;
    // A pool that joins another one's keys is opened by what opens that one.
    let credential = if other.is_some() { NewCredential::Clear } else { new_credential(context, args.no_password)? };
    let options = InitOptions {
        credential,
        same_keys_as: other.as_ref(),
        cut: CutParameters::default(),
        created: context.now().timestamp(),
        entropy: Arc::new(SystemEntropy),
    };
    let recovery = Pool::init(location, &options)?;
    let info = Pool::public_info(location)?;
    let recovery = recovery.map(|key| key.to_text());
    if context.json {
        output::json(&serde_json::json!({
            "pool": info.pool,
            "domain": info.domain,
            "location": location,
            "recovery_key": recovery.as_ref().map(|key| key.as_str()),
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    output::line(&format!("Made the pool {}", output::plain(location)))?;
    if let Some(key) = recovery {
        output::line(&format!("\nRecovery key:  {}\n", *key))?;
        output::line(
            "Write it down and keep it away from this machine. It opens the pool when the password or key file",
        )?;
        output::line("is lost. Whoever loses all of these loses everything in the pool.")?;
    } else if other.is_none() {
        output::line(
            "Its key stands in clear beside the data: whoever can read the folder can read everything in it.",
        )?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What the user wants a new key slot to be opened by.
///
/// A key file that does not exist is made.
///
/// # Errors
/// `Invalid` when nothing was given and there is nobody to ask.
pub fn new_credential(context: &Context, no_password: bool) -> Result<NewCredential> {
    if no_password {
        return Ok(NewCredential::Clear);
    }
    if let Some(file) = context.key_file() {
        return key_file(file).map(NewCredential::KeyFile);
    }
    if let Some(password) = context.given_password()? {
        return Ok(NewCredential::Password(password));
    }
    ask_new_password()
}

/// Asks for a new password, twice.
///
/// # Errors
/// `Invalid` when there is nobody to ask, or the two differ.
pub fn ask_new_password() -> Result<NewCredential> {
    if !context::can_ask() {
        return Err(Error::invalid("no password was given, and there is no terminal to ask on")
            .hint("give --password-file FILE, --key-file FILE or --no-password"));
    }
    let password = context::ask_secret("New password: ")?;
    if context::ask_secret("Once more: ")? != password {
        return Err(Error::invalid("the two passwords differ").hint("run the command again"));
    }
    Ok(NewCredential::Password(password))
}

/// The content of a key file, which is made with 32 random bytes when it does not exist.
///
/// # Errors
/// The system's own.
pub fn key_file(file: &Path) -> Result<Zeroizing<Vec<u8>>> {
    match context::read_secret(file) {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        other => return other,
    }
    let mut key = Zeroizing::new(vec![0; 32]);
    SystemEntropy.fill(&mut key)?;
    let made = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file);
    made.and_then(|mut made| made.write_all(&key).and_then(|()| made.sync_all()))
        .map_err(|error| Error::from_io("make the key file", error).at_path(file))?;
    eprintln!("firn: made the key file {}", output::plain(&file.to_string_lossy()));
    Ok(key)
}
