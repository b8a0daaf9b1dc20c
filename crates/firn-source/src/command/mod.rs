//! The user's own commands as a source: how any array, volume manager or hypervisor with a command line takes part.
//!
//! ```text
//!   plan     check                       open     path, and changed where the last snapshot is still there
//!   prepare  list, delete of leftovers   check    list: the snapshot has to be there still
//!   cut      create                      finish   delete, or rename and delete of what is more than `keep`
//! ```
//! Which disks there are is known only once the frozen copies are: the plan names none. Commands are run by `sh -c`; what
//! stands for `{name}` and so on is in `names`, what stands in the file in `config`.
//!
//! Nothing that is on the array is removed but what carries the owner of this pool and machine. A snapshot that cannot be
//! deleted is told of and tried again in the next run; it stops no other snapshot.

mod config;
mod names;

use crate::file::{FileOptions, FileSource};
use crate::nbd;
use crate::process::{self, Finished};
use crate::source::{Changed, FrozenDisk, Outcome, Plan, Request, Source};
use crate::uri::SourceOptions;
use config::Commands;
use firn_disk::{Disk, Error, ErrorKind, Result, SharedDisk};
use names::Names;

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;

pub(crate) use config::known;
pub(crate) use names::is_word;

/// Before a generation whose disk was in an image: what changed in the file is not what changed on the disk.
const IMAGE: &str = "image:";
/// A machine with more disks is none.
const MOST_DISKS: usize = 256;
/// More snapshots than any array holds.
const MOST_NAMES: usize = 100_000;
/// Ranges are merged afterwards; a list that is longer is slower than reading everything.
const MOST_RANGES: usize = 4 << 20;

/// An array behind the user's commands.
#[derive(Debug)]
pub struct CommandSource {
    file: PathBuf,
    commands: Commands,
    options: SourceOptions,
    request: Request,
    /// Known from `prepare` on.
    names: Option<Names>,
    /// Whether `create` was run, whatever became of it.
    is_cut: bool,
    copies: Vec<FileSource>,
    /// Leftovers that could not be removed.
    trouble: Option<Error>,
}

/// A line of what `path` prints.
#[derive(Debug, PartialEq, Eq)]
struct Location<'a> {
    name: Option<&'a str>,
    place: &'a str,
}

/// What became of `changed`: ranges by the name of the disk, or why everything has to be read.
type Changes = std::result::Result<HashMap<String, Vec<Range<u64>>>, String>;

impl CommandSource {
    /// The array that the command file `name` speaks to: a file's path, or its name in one of the usual folders.
    ///
    /// # Errors
    /// `NotFound` when there is no such file, `Denied` when anybody may write to it, `Invalid` when it makes no sense.
    pub fn new(name: &str, options: &SourceOptions) -> Result<Self> {
        let file = config::find(name)?;
        let commands = config::read(&file)?;
        Ok(Self {
            file,
            commands,
            options: options.clone(),
            request: Request::default(),
            names: None,
            is_cut: false,
            copies: Vec::new(),
            trouble: None,
        })
    }

    fn run(&self, key: &str, command: &str, names: &Names, name: &str) -> Result<Finished> {
        let mut shell = Command::new("sh");
        shell.args(["-c", &names.fill(command, name)]).envs(names.environment(name));
        let explain = |error: Error| {
            let error = Error::new(error.kind(), error.to_string()).context(format!("the command {key}"));
            error.at_path(&self.file)
        };
        let finished = process::run(&mut shell, b"", self.commands.timeout()).map_err(explain)?;
        if finished.code == 0 {
            return Ok(finished);
        }
        let message = format!("the command {key} failed with code {}: {}", finished.code, finished.last_words());
        Err(Error::new(ErrorKind::Io, message).at_path(&self.file))
    }

    fn names(&self) -> Result<&Names> {
        self.names.as_ref().ok_or_else(|| Error::invalid("the source is not prepared"))
    }

    /// The snapshots on the array, oldest first.
    fn list(&self, names: &Names) -> Result<Vec<String>> {
        let text = self.run("list", &self.commands.list, names, &names.name())?.text();
        let list: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect();
        if list.len() > MOST_NAMES {
            let message = format!("the command list printed {} names, more than {MOST_NAMES}", list.len());
            return Err(Error::new(ErrorKind::Io, message).at_path(&self.file));
        }
        Ok(list)
    }

    /// Removes the snapshot `name`. One that is gone already is no error.
    fn delete(&self, names: &Names, name: &str) -> Result<()> {
        let Err(error) = self.run("delete", &self.commands.delete, names, name) else { return Ok(()) };
        if self.list(names).is_ok_and(|list| !list.iter().any(|other| other == name)) {
            return Ok(());
        }
        let words = format!("the snapshot {name} is still on the array");
        Err(error.context(words).hint("the next run of firn tries again to delete it"))
    }

    /// Removes what `unwanted` says of all that is listed, as far as possible.
    fn delete_all(&self, names: &Names, unwanted: impl Fn(&str) -> bool) -> Result<()> {
        let list = self.list(names)?;
        let mut failed = Ok(());
        for name in list.iter().filter(|name| unwanted(name)) {
            failed = failed.and(self.delete(names, name));
        }
        failed
    }

    /// What the last snapshot of this source is called on the array, if the pool knows and it was kept.
    fn previous(&self, request: &Request) -> Option<String> {
        let uri = self.uri();
        let mut names =
            request.previous.iter().filter(|disk| disk.source == uri).map(|disk| disk.generation.as_deref());
        let first = names.next()??;
        let plain = |name: &'_ str| name.strip_prefix(IMAGE).unwrap_or(name).to_owned();
        let first = plain(first);
        let is_one = names.all(|name| name.map(plain).as_ref() == Some(&first));
        Some(first).filter(|name| is_one && is_word(name))
    }

    /// Removes what runs left that died: everything of this owner that has no reason to be there.
    fn remove_leftovers(&self, names: &Names) -> Result<()> {
        let previous = names.previous.as_deref();
        self.delete_all(names, |name| names.is_transient(name) && Some(name) != previous)
    }

    /// Keeps as many as there should be, the newest, and this run's among them.
    fn keep(&self, names: &Names) -> Result<()> {
        let own = if let Some(rename) = &self.commands.rename {
            self.run("rename", rename, names, &names.name())?;
            names.kept()
        } else {
            names.name()
        };
        let is_renamed = self.commands.rename.is_some();
        let is_alike = |name: &str| if is_renamed { names.is_kept(name) } else { names.is_transient(name) };
        let others = |name: &str| is_alike(name) && name != own;
        let list = self.list(names)?;
        let older: Vec<_> = list.iter().filter(|name| others(name)).collect();
        let surplus = (older.len() + 1).saturating_sub(self.commands.kept() as usize);
        let mut failed = Ok(());
        for name in older.into_iter().take(surplus) {
            failed = failed.and(self.delete(names, name));
        }
        failed
    }

    /// What this run's snapshot is going to be called on the array, if it stays.
    fn generation(&self, names: &Names) -> Option<String> {
        let stays = self.commands.kept() > 0;
        stays.then(|| if self.commands.rename.is_some() { names.kept() } else { names.name() })
    }

    fn open_place(&mut self, name: &str, place: &str) -> Result<(SharedDisk, bool)> {
        if place.contains("://") {
            return Ok((nbd::open_export(place, self.options.file.image.torn)?, true));
        }
        let path = Path::new(place);
        if !path.is_absolute() {
            return Err(self.refuse("path", &format!("{place:?} is no absolute path")));
        }
        let options = FileOptions { is_copy: true, ..self.options.file.clone() };
        let mut copy = FileSource::new(path, name.to_owned(), options)?;
        let is_raw = copy.is_raw()?;
        let disk = copy.open()?.pop().map(|frozen| frozen.disk);
        self.copies.push(copy);
        disk.map(|disk| (disk, is_raw)).ok_or_else(|| Error::not_found("there is no disk").at_path(path))
    }

    fn refuse(&self, key: &str, message: &str) -> Error {
        let error = Error::new(ErrorKind::Invalid, format!("the command {key}: {message}")).at_path(&self.file);
        error.hint("docs/guide/sources.md says what it has to print")
    }

    fn changes(&self, names: &Names) -> Changes {
        let Some(changed) = &self.commands.changed else {
            return Err("there is no command that tells what changed".to_owned());
        };
        let Some(previous) = &names.previous else {
            return Err("the last snapshot was not kept on the array".to_owned());
        };
        let list = self.list(names).map_err(|error| error.to_string())?;
        if !list.contains(previous) {
            return Err(format!("the array no longer has {previous}"));
        }
        let printed = self.run("changed", changed, names, &names.name()).map_err(|error| error.to_string())?;
        let text = String::from_utf8(printed.stdout).map_err(|_| "the command changed printed no text".to_owned())?;
        parse_ranges(&text)
    }
}

/// Lines `NAME START LENGTH`, in bytes.
fn parse_ranges(text: &str) -> Changes {
    let mut changes: HashMap<String, Vec<Range<u64>>> = HashMap::new();
    for (number, line) in text.lines().filter(|line| !line.trim().is_empty()).enumerate() {
        let refuse = || format!("the command changed printed {line:?}, which is not NAME START LENGTH");
        let mut words = line.split_whitespace();
        let name = words.next().filter(|name| is_word(name)).ok_or_else(refuse)?;
        let mut next = || words.next().and_then(|word| word.parse::<u64>().ok()).ok_or_else(refuse);
        let (start, length) = (next()?, next()?);
        let end = start.checked_add(length).filter(|_| words.next().is_none()).ok_or_else(refuse)?;
        if number >= MOST_RANGES {
            return Err("the command changed printed too many ranges".to_owned());
        }
        changes.entry(name.to_owned()).or_default().push(start..end);
    }
    Ok(changes)
}

/// Lines `[NAME=]PATH-or-URI`.
fn parse_locations(text: &str) -> Vec<Location<'_>> {
    let location = |line| match str::split_once(line, '=') {
        // The sign in a URI or path ends no name.
        Some((name, place)) if is_word(name) => Location { name: Some(name), place },
        _ => Location { name: None, place: line },
    };
    text.lines().map(str::trim).filter(|line| !line.is_empty()).map(location).collect()
}

impl Source for CommandSource {
    fn uri(&self) -> String {
        format!("command:{}", self.file.display())
    }

    fn is_atomic(&self) -> bool {
        self.commands.atomic && !self.options.file.image.torn
    }

    fn plan(&mut self, request: &Request) -> Result<Plan> {
        let names = Names::of(request)?.with_previous(self.previous(request));
        if let Some(check) = &self.commands.check {
            self.run("check", check, &names, &names.name())?;
        }
        let mut steps = vec![format!("run create of {} for the snapshot {}", self.file.display(), names.name())];
        steps.push("read where path says that the frozen copies are".to_owned());
        steps.push(match (&self.commands.rename, self.commands.kept()) {
            (_, 0) => "delete the snapshot".to_owned(),
            (None, _) => "keep the snapshot, and delete the one before".to_owned(),
            (Some(_), kept) => format!("call the snapshot {}, and delete all but the last {kept}", names.kept()),
        });
        Ok(Plan { steps, ..Plan::default() })
    }

    fn prepare(&mut self, request: &Request) -> Result<()> {
        let names = Names::of(request)?.with_previous(self.previous(request));
        self.request = request.clone();
        self.trouble = self.remove_leftovers(&names).err();
        self.names = Some(names);
        Ok(())
    }

    fn cut(&mut self) -> Result<()> {
        let names = self.names()?.clone();
        self.is_cut = true;
        self.run("create", &self.commands.create, &names, &names.name()).map(drop)
    }

    fn open(&mut self) -> Result<Vec<FrozenDisk>> {
        let names = self.names()?.clone();
        let printed = self.run("path", &self.commands.path, &names, &names.name())?.text();
        let locations = parse_locations(&printed);
        if locations.is_empty() || locations.len() > MOST_DISKS {
            let message = format!("it printed {} lines, and there is one for each disk", locations.len());
            return Err(self.refuse("path", &message));
        }
        let (is_single, uri) = (locations.len() == 1, self.uri());
        if self.options.is_named && !is_single {
            let message = format!("{} was asked for, but there are {} disks", self.options.name, locations.len());
            return Err(self.refuse("path", &message));
        }
        let changes = self.changes(&names);
        let generation = self.generation(&names);
        let mut disks: Vec<FrozenDisk> = Vec::new();
        for Location { name, place } in locations {
            let default =
                Some(self.options.name.as_str()).filter(|_| is_single && (self.options.is_named || name.is_none()));
            let Some(name) = default.or(name).map(str::to_owned) else {
                return Err(self.refuse("path", "it printed several lines, so each has to begin with NAME="));
            };
            if disks.iter().any(|disk| disk.name == name) {
                return Err(self.refuse("path", &format!("it printed two disks of the name {name}")));
            }
            let (disk, is_raw) = self.open_place(&name, place)?;
            let changed = changed_of(&changes, &self.request, &uri, &name, is_raw, disk.len());
            let generation = generation.as_ref().map(|name| format!("{}{name}", if is_raw { "" } else { IMAGE }));
            disks.push(FrozenDisk { name, disk, changed, generation, source: uri.clone() });
        }
        Ok(disks)
    }

    fn check(&mut self) -> Result<()> {
        for copy in &mut self.copies {
            copy.check()?;
        }
        let names = self.names()?;
        if self.list(names)?.contains(&names.name()) {
            return Ok(());
        }
        let message = format!("the array lost the snapshot {} while it was read; there is no snapshot", names.name());
        Err(Error::new(ErrorKind::Unavailable, message).at_path(&self.file))
    }

    fn finish(&mut self, outcome: Outcome) -> Result<()> {
        self.copies.clear();
        let trouble = self.trouble.take().map_or(Ok(()), Err);
        let Some(names) = self.names.take().filter(|_| std::mem::take(&mut self.is_cut)) else { return trouble };
        let finished = match outcome {
            Outcome::Published if self.commands.kept() > 0 => self.keep(&names),
            _ => self.delete(&names, &names.name()),
        };
        finished.and(trouble)
    }

    fn sweep(&mut self, request: &Request) -> Result<()> {
        let names = Names::of(request)?.with_previous(self.previous(request));
        self.remove_leftovers(&names)
    }
}

/// What changed on the disk `name`, if `changes` can be trusted for it.
fn changed_of(changes: &Changes, request: &Request, uri: &str, name: &str, is_raw: bool, length: u64) -> Changed {
    let ranges = match changes {
        Ok(ranges) => ranges,
        Err(reason) => return Changed::Unknown(reason.clone()),
    };
    let is_it = |disk: &&crate::source::PreviousDisk| disk.name == name && disk.source == uri;
    if !is_raw {
        return Changed::Unknown("what changed in an image file is not what changed on its disk".to_owned());
    }
    match request.previous.iter().find(is_it).map(|disk| disk.generation.as_deref().unwrap_or(IMAGE)) {
        None => return Changed::Unknown("this disk was not in the last snapshot".to_owned()),
        Some(generation) if generation.starts_with(IMAGE) => {
            return Changed::Unknown("this disk was not a raw one in the last snapshot".to_owned());
        }
        Some(_) => {}
    }
    let clip = |range: &Range<u64>| range.start.min(length)..range.end.min(length);
    let ranges = ranges.get(name).into_iter().flatten().map(clip).filter(|range| !range.is_empty());
    Changed::Since(ranges.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_have_names_or_none() {
        let text = "vda=/dev/vg0/x\n /srv/a=b.img \n\nnbd://h/e?a=b\nroot=nbd+unix:///?socket=/s\n";
        let location = |name, place| Location { name, place };
        let expected = [
            location(Some("vda"), "/dev/vg0/x"),
            location(None, "/srv/a=b.img"),
            location(None, "nbd://h/e?a=b"),
            location(Some("root"), "nbd+unix:///?socket=/s"),
        ];
        assert_eq!(parse_locations(text), expected);
    }

    #[test]
    fn ranges_are_understood_or_not_at_all() {
        let changes = parse_ranges("vda 0 4096\n\nvdb 8192 1\nvda 65536 65536\n").unwrap();
        assert_eq!(changes["vda"], [0..4096, 65536..131_072]);
        let one = 8192..8193;
        assert_eq!(changes["vdb"], [one]);
        assert!(parse_ranges("").unwrap().is_empty());
        for text in ["vda 1", "vda 1 2 3", "vda -1 2", "vda 1 18446744073709551615", "1k", "vda 0x10 1", "a;b 1 2"] {
            assert!(parse_ranges(text).unwrap_err().contains("NAME START LENGTH"), "{text}");
        }
    }
}
