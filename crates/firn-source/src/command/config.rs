//! The file that says how an array is spoken to: its name, its keys, and what is refused in it.
//!
//! ```toml
//! check  = "…"        # optional: fails when no snapshot could be made now
//! create = "…"        # the instant: makes the snapshot {name}
//! path   = "…"        # prints where it is, a line [NAME=]PATH or [NAME=]nbd://… for each disk
//! delete = "…"        # removes {name}
//! list   = "…"        # prints the names of all snapshots, one a line, oldest first
//! rename = "…"        # optional: calls {name} {kept}, once it is in the pool
//! changed = "…"       # optional: prints NAME START LENGTH, in bytes, for what differs between {previous} and {name}
//! timeout = 60        # seconds for each command
//! keep   = 1          # snapshots that stay on the array
//! atomic = true       # whether `create` gets all disks at one instant
//! ```
//! A key that is not known is refused: a misspelt `delete` must not leave snapshots behind. So is a file that anybody
//! may write to, since its commands run with the rights of whoever takes the snapshot.

use firn_disk::{Error, ErrorKind, Result};
use serde::Deserialize;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// More than anybody writes by hand.
const MOST_BYTES: u64 = 1 << 20;
/// A snapshot each that the array keeps; more are asked of it by nobody.
const MOST_KEPT: u32 = 1000;
/// A day.
const MOST_SECONDS: u64 = 86400;
/// In place of the usual folders.
const FOLDER: &str = "FIRN_COMMANDS";

/// The user's commands.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Commands {
    pub(super) check: Option<String>,
    pub(super) create: String,
    pub(super) path: String,
    pub(super) delete: String,
    pub(super) list: String,
    pub(super) rename: Option<String>,
    pub(super) changed: Option<String>,
    #[serde(default = "Commands::default_timeout")]
    timeout: u64,
    keep: Option<u32>,
    #[serde(default = "Commands::default_atomic")]
    pub(super) atomic: bool,
}

impl Commands {
    fn default_timeout() -> u64 {
        60
    }

    fn default_atomic() -> bool {
        true
    }

    /// # Errors
    /// `Invalid` with the line that is wrong.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let commands: Self =
            toml::from_str(text).map_err(|error| Error::invalid(error.to_string().trim_end().to_owned()))?;
        commands.examine()?;
        Ok(commands)
    }

    fn examine(&self) -> Result<()> {
        let refuse = |message: &str| Err(Error::invalid(message.to_owned()));
        let named = [("create", &self.create), ("path", &self.path), ("delete", &self.delete), ("list", &self.list)];
        if let Some((key, _)) = named.iter().find(|(_, command)| command.trim().is_empty()) {
            return refuse(&format!("the command {key} is empty"));
        }
        if !(1..=MOST_SECONDS).contains(&self.timeout) {
            return refuse("timeout is 1 to 86400 seconds");
        }
        match (self.kept(), &self.rename) {
            (MOST_KEPT.., _) => refuse("keep is less than 1000"),
            (0, Some(_)) => refuse("rename makes no sense with keep = 0: nothing stays to have a new name"),
            // Without a name of its own, one that is kept looks like the leftover of a run that died.
            (2.., None) => refuse("keep of more than 1 needs rename"),
            _ => Ok(()),
        }
    }

    /// How long each command may take.
    pub(super) fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout)
    }

    /// How many snapshots stay on the array.
    pub(super) fn kept(&self) -> u32 {
        self.keep.unwrap_or(u32::from(self.rename.is_some()))
    }
}

/// The file that `name` means: a path if it has a slash, else `NAME.toml` in the first of the usual folders that has it.
///
/// # Errors
/// `Invalid` for what cannot be a name; `NotFound`, with the folders that were looked into.
pub(super) fn find(name: &str) -> Result<PathBuf> {
    if name.contains('/') {
        let path = std::path::absolute(name).map_err(|error| Error::from_io("find", error).at_path(name))?;
        return Ok(path);
    }
    let is_name = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
    if name.is_empty() || name.starts_with('.') || !name.chars().all(is_name) {
        return Err(Error::invalid(format!("{name:?} is no name of a command file"))
            .hint("name it as command:NAME, with letters, digits, dots, dashes and underscores, or as command:/PATH"));
    }
    let folders = folders();
    let file = folders.iter().map(|folder| folder.join(format!("{name}.toml"))).find(|file| file.is_file());
    file.ok_or_else(|| {
        let folders: Vec<_> = folders.iter().map(|folder| folder.display().to_string()).collect();
        Error::not_found(format!("there is no {name}.toml in {}", folders.join(", ")))
            .hint("docs/guide/sources.md says what stands in it")
    })
}

/// Where command files are looked for, in order.
fn folders() -> Vec<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let own = set("XDG_CONFIG_HOME").or_else(|| set("HOME").map(|home| home.join(".config")));
    let own = own.map(|folder| folder.join("firn/commands"));
    set(FOLDER).into_iter().chain(own).chain([PathBuf::from("/etc/firn/commands")]).collect()
}

/// All command files in the usual folders: names, places, and whether they can be used.
pub(crate) fn known() -> Vec<(String, PathBuf, Result<()>)> {
    let mut known: Vec<(String, PathBuf, Result<()>)> = Vec::new();
    for entry in folders().iter().filter_map(|folder| std::fs::read_dir(folder).ok()).flatten().flatten() {
        let file = entry.path();
        let name = file.file_stem().and_then(|name| name.to_str()).map(str::to_owned);
        let Some(name) = name.filter(|_| file.extension().is_some_and(|ending| ending == "toml")) else { continue };
        // The first folder's one is taken, by `find` as well.
        if known.iter().all(|(other, ..)| *other != name) {
            let usable = read(&file).map(drop);
            known.push((name, file, usable));
        }
    }
    known
}

/// Reads a command file.
///
/// # Errors
/// `Denied` for one that others could have written; `Invalid` for one that makes no sense; the system's own.
pub(super) fn read(path: &Path) -> Result<Commands> {
    let failed = |error| Error::from_io("read", error).at_path(path);
    let metadata = std::fs::metadata(path).map_err(failed)?;
    let owners = [0, rustix::process::geteuid().as_raw()];
    if metadata.mode() & 0o002 != 0 || !owners.contains(&metadata.uid()) {
        return Err(Error::new(ErrorKind::Denied, "its commands are not run: somebody else may write to this file")
            .at_path(path)
            .hint("have it belong to you or root, and not be writable for others"));
    }
    if !metadata.is_file() || metadata.len() > MOST_BYTES {
        return Err(Error::invalid("this is no command file").at_path(path));
    }
    let text = std::fs::read_to_string(path).map_err(failed)?;
    Commands::parse(&text).map_err(|error| error.at_path(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: &str = "create = 'c'\npath = 'p'\ndelete = 'd'\nlist = 'l'\n";

    #[test]
    fn what_is_not_said_has_a_default() {
        let commands = Commands::parse(LEAST).unwrap();
        assert_eq!((commands.timeout(), commands.kept(), commands.atomic), (Duration::from_secs(60), 0, true));
        let kept = |more: &str| Commands::parse(&format!("{LEAST}{more}")).unwrap().kept();
        assert_eq!([kept("rename = 'r'"), kept("keep = 1"), kept("keep = 9\nrename = 'r'")], [1, 1, 9]);
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_a_reason() {
        for (text, word) in [
            ("create = 'c'", "missing field"),
            (&format!("{LEAST}delet = 'd'"), "delet"),
            (&format!("{LEAST}timeout = 0"), "timeout"),
            (&format!("{LEAST}keep = 2"), "rename"),
            (&format!("{LEAST}keep = 0\nrename = 'r'"), "rename"),
            (&format!("{LEAST}keep = 100000\nrename = 'r'"), "1000"),
            (&LEAST.replace("'d'", "' '"), "delete"),
            ("create", "expected"),
        ] {
            let error = Commands::parse(text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{text}");
            assert!(error.to_string().contains(word), "{error}");
        }
    }

    #[test]
    fn names_lead_into_no_other_folder() {
        for name in ["", ".", "..", "a b", "a\0", ".hidden"] {
            assert_eq!(find(name).unwrap_err().kind(), ErrorKind::Invalid, "{name:?}");
        }
        assert_eq!(find("no-such-command-file").unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(find("/a/b.toml").unwrap(), Path::new("/a/b.toml"));
    }
}
