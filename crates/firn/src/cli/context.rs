//! What every command needs: the pool and what opens it, the clock, and the user's Ctrl-C.

use super::Global;
use super::{keyring, output};
use firn_disk::{Error, ErrorKind, Result};
use firn_pool::{Credential, OpenOptions, Pool, RecoveryKey, SlotKind, SystemEntropy, default_cache_folder};
use jiff::Zoned;
use signal_hook::consts::{SIGINT, SIGTERM};
use std::ffi::OsString;
use std::fs::File;
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;
use zeroize::Zeroizing;

/// No password or key file is longer.
const MOST_SECRET_BYTES: u64 = 1 << 20;
/// In place of --pool, --password-file and --key-file, and the password itself. Empty ones count as not set.
const POOL: &str = "FIRN_POOL";
const PASSWORD_FILE: &str = "FIRN_PASSWORD_FILE";
const KEY_FILE: &str = "FIRN_KEY_FILE";
const PASSWORD: &str = "FIRN_PASSWORD";

/// The surroundings of a command.
#[derive(Debug)]
pub struct Context {
    pool: Option<String>,
    password_file: Option<PathBuf>,
    key_file: Option<PathBuf>,
    /// Print one JSON document.
    pub json: bool,
    /// Show no progress.
    pub quiet: bool,
    /// Set by the first Ctrl-C; a second one ends the program at once.
    pub interrupted: Arc<AtomicBool>,
    started: Instant,
}

impl Context {
    /// What is given on the command line goes before what the environment says.
    ///
    /// # Errors
    /// When signals cannot be caught; `Invalid` for an environment that contradicts itself.
    pub fn new(global: Global) -> Result<Self> {
        let (password_file, key_file) = match (global.password_file, global.key_file) {
            (None, None) => (environment(PASSWORD_FILE).map(PathBuf::from), environment(KEY_FILE).map(PathBuf::from)),
            given => given,
        };
        if password_file.is_some() && key_file.is_some() {
            return Err(Error::invalid(format!("both {PASSWORD_FILE} and {KEY_FILE} are set"))
                .hint("unset one of them, or give --password-file or --key-file"));
        }
        let pool = global.pool.map_or_else(|| environment_text(POOL), |pool| Ok(Some(pool)))?;
        let interrupted = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // In this order: the first signal sets the flag, and only one that finds it set ends the program.
            signal_hook::flag::register_conditional_shutdown(signal, 130, interrupted.clone())
                .and_then(|_| signal_hook::flag::register(signal, interrupted.clone()))
                .map_err(|error| Error::from_io("catch signals", error))?;
        }
        Ok(Self {
            pool,
            password_file,
            key_file,
            json: global.json,
            quiet: global.quiet,
            interrupted,
            started: Instant::now(),
        })
    }

    /// Now, in the user's time zone.
    pub fn now(&self) -> Zoned {
        Zoned::now()
    }

    /// Time since the program started.
    pub fn elapsed(&self) -> std::time::Duration {
        self.started.elapsed()
    }

    /// Where the pool is.
    ///
    /// # Errors
    /// `Invalid` when nobody said.
    pub fn location(&self) -> Result<&str> {
        self.pool.as_deref().ok_or_else(|| {
            Error::invalid("no pool was named")
                .hint("name it by --pool POOL or in FIRN_POOL; `firn init POOL` makes one")
        })
    }

    /// Opens the pool with what the user brought, or asks for a password.
    ///
    /// # Errors
    /// As [`Pool::open`].
    pub fn open_pool(&self) -> Result<Pool> {
        let location = self.location()?;
        let credential = self.credential(location)?;
        self.open_at(location, credential)
    }

    /// Opens another pool than the one that --pool names, with the same password or key.
    ///
    /// # Errors
    /// As [`Pool::open`].
    pub fn open_other(&self, location: &str) -> Result<Pool> {
        let credential = self.credential(location)?;
        self.open_at(location, credential)
    }

    fn open_at(&self, location: &str, credential: Option<Credential>) -> Result<Pool> {
        let options =
            OpenOptions { credential, cache_folder: default_cache_folder(), entropy: Arc::new(SystemEntropy) };
        Pool::open(location, options)
    }

    fn credential(&self, location: &str) -> Result<Option<Credential>> {
        if let Some(file) = &self.key_file {
            return Ok(Some(Credential::KeyFile(read_secret(file)?)));
        }
        if let Some(password) = self.given_password()? {
            return Ok(Some(to_credential(password)));
        }
        let public = Pool::public_info(location)?;
        if let Some(key) = keyring::get(public.domain) {
            return Ok(Some(Credential::KeyFile(key)));
        }
        let slots = public.slots;
        let opens = |kind| slots.iter().any(|slot| slot.kind == kind);
        if opens(SlotKind::Clear) || !(opens(SlotKind::Password) || opens(SlotKind::Recovery)) || !can_ask() {
            return Ok(None);
        }
        let prompt = format!("Password (or recovery key) of the pool {}: ", output::plain(location));
        ask_secret(&prompt).map(to_credential).map(Some)
    }

    /// The password from --password-file or FIRN_PASSWORD.
    ///
    /// # Errors
    /// The system's own.
    pub fn given_password(&self) -> Result<Option<Zeroizing<String>>> {
        if let Some(file) = &self.password_file {
            return read_password(file).map(Some);
        }
        Ok(environment_text(PASSWORD)?.map(Zeroizing::new))
    }

    /// The file of --key-file.
    pub fn key_file(&self) -> Option<&Path> {
        self.key_file.as_deref()
    }
}

fn environment(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

fn environment_text(name: &str) -> Result<Option<String>> {
    let text = environment(name).map(OsString::into_string).transpose();
    text.map_err(|_| Error::invalid(format!("{name} is not UTF-8")))
}

/// Whether there is a person to ask.
pub fn can_ask() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

/// Asks on the terminal, without echo.
///
/// # Errors
/// The system's own; `Interrupted` after Ctrl-C.
pub fn ask_secret(prompt: &str) -> Result<Zeroizing<String>> {
    rpassword::prompt_password(prompt).map(Zeroizing::new).map_err(|error| match error.kind() {
        std::io::ErrorKind::Interrupted => {
            eprintln!();
            Error::new(ErrorKind::Interrupted, "stopped before there was a password")
        }
        _ => Error::from_io("ask for the password", error),
    })
}

fn to_credential(text: Zeroizing<String>) -> Credential {
    // A recovery key has a checksum of its own: no password is taken for one by accident.
    RecoveryKey::parse(&text).map_or(Credential::Password(text), Credential::Recovery)
}

/// The bytes of a key file.
///
/// # Errors
/// The system's own; `Invalid` for a file that is too large to be one.
pub fn read_secret(file: &Path) -> Result<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(Vec::new());
    // A pipe or device has no length that could be asked for.
    File::open(file)
        .and_then(|file| file.take(MOST_SECRET_BYTES + 1).read_to_end(&mut bytes))
        .map_err(|error| Error::from_io("read", error).at_path(file))?;
    if bytes.len() as u64 > MOST_SECRET_BYTES {
        return Err(Error::invalid("this is more than 1 MiB, too much for a key or password").at_path(file));
    }
    Ok(bytes)
}

/// The first line of a password file.
///
/// # Errors
/// As [`read_secret`]; `Invalid` when it is empty or not UTF-8.
pub fn read_password(file: &Path) -> Result<Zeroizing<String>> {
    let bytes = read_secret(file)?;
    let text =
        std::str::from_utf8(&bytes).map_err(|_| Error::invalid("the password file is not UTF-8").at_path(file))?;
    match text.lines().next() {
        Some(line) if !line.is_empty() => Ok(Zeroizing::new(line.to_owned())),
        _ => Err(Error::new(ErrorKind::Invalid, "the password file has no password in its first line").at_path(file)),
    }
}
