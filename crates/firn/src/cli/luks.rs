//! What opens encrypted volumes: key files, passphrases from files, and a person at the terminal.

use super::context::{ask_secret, can_ask, read_password, read_secret};
use super::output;
use clap::{Args, ValueHint};
use firn_disk::{Error, ErrorKind, Result};
use firn_format::layers::{LayerKind, Layers};
use firn_format::volume::luks::Keys;
use std::path::PathBuf;
use zeroize::Zeroizing;

/// In place of --luks-key-file. Empty counts as not set.
const LUKS_KEY_FILE: &str = "FIRN_LUKS_KEY_FILE";

/// Keys of LUKS containers. Each is tried on every container.
#[derive(Debug, Args)]
pub struct LuksArgs {
    /// Open LUKS containers with the key in this file (repeatable) [env: FIRN_LUKS_KEY_FILE]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "Source")]
    luks_key_file: Vec<PathBuf>,
    /// Open LUKS containers with the passphrase in the first line of this file (repeatable)
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "Source")]
    luks_password_file: Vec<PathBuf>,
}

impl LuksArgs {
    /// The keys that were given.
    ///
    /// # Errors
    /// As [`read_secret`] and [`read_password`].
    pub fn keys(&self) -> Result<Keys> {
        let mut files = self.luks_key_file.clone();
        if files.is_empty() && self.luks_password_file.is_empty() {
            files.extend(std::env::var_os(LUKS_KEY_FILE).filter(|value| !value.is_empty()).map(PathBuf::from));
        }
        let mut keys = files.iter().map(|file| read_secret(file)).collect::<Result<Vec<_>>>()?;
        for file in &self.luks_password_file {
            keys.push(Zeroizing::new(read_password(file)?.as_bytes().to_vec()));
        }
        Ok(Keys::new(keys))
    }
}

/// Asks for the passphrase of the containers that are locked; `None` when there are none, nobody to ask, or the answer
/// is empty.
///
/// # Errors
/// As [`ask_secret`].
pub fn ask(layers: &Layers) -> Result<Option<Keys>> {
    let is_locked = |error: &Error| error.kind() == ErrorKind::Denied;
    let locked = layers
        .iter()
        .filter(|(_, node)| node.kind == LayerKind::Encrypted && node.error.as_ref().is_some_and(is_locked))
        .map(|(_, node)| node);
    let names: Vec<String> =
        locked.map(|node| format!("{} ({})", node.address, node.uuid.as_deref().unwrap_or("no UUID"))).collect();
    if names.is_empty() || !can_ask() {
        return Ok(None);
    }
    let prompt = format!("Passphrase of {} (empty to leave it locked): ", output::plain(&names.join(", ")));
    let answer = ask_secret(&prompt)?;
    Ok((!answer.is_empty()).then(|| Keys::new(vec![Zeroizing::new(answer.as_bytes().to_vec())])))
}
