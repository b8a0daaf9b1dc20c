//! Image files in a btrfs subvolume: a read-only snapshot of it is the instant, and what changed comes from btrfs itself.
//!
//! ```text
//!   btrfs:/vms/web1/a.img,/vms/web1/b.qcow2      btrfs:/vms/web1?images=a.img,b.qcow2     each as [NAME=]FILE
//!
//!   /vms/web1                        the subvolume
//!   /vms/.firn-OWNER-ID-RUN          its snapshot, beside it: ID is the subvolume's number
//!   /vms/web1/.firn-OWNER-ID-RUN     or in it, where the folder above is another file system
//! ```
//! The snapshot of the last run stays until the next one is in the pool: its UUID and generation are the state that raw
//! images are compared with ([`stream`]). What changed in the file of another format is not what changed on its disk, so
//! such an image is read whole, and no snapshot stays for it.
//!
//! Refused: images of several subvolumes in one source; an image that stands on files outside of the subvolume, which
//! would not be of the same instant; what is not on btrfs. It takes root.

mod stream;
mod volume;

use crate::copy::CopiedImage;
use crate::source::{Changed, FrozenDisk, Outcome, Plan, PlannedDisk, PreviousDisk, Request, Source};
use crate::uri::SourceOptions;
use firn_disk::{Disk, Error, ErrorKind, Result};
use firn_format::image::{ImageFormat, Moved};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use stream::{Changes, Question};
use volume::Subvolume;

/// A machine with more disks is none.
const MOST_DISKS: usize = 256;
/// Why everything is read.
const BASE_IS_LOST: &str = "the subvolume's snapshot that the pool has is gone, or was written to";

/// Images in one subvolume.
#[derive(Debug)]
pub struct BtrfsSource {
    images: Vec<NamedImage>,
    /// The top folder of the subvolume.
    top: PathBuf,
    options: SourceOptions,
    run: Option<Run>,
}

#[derive(Debug)]
struct NamedImage {
    name: String,
    /// Whether the user gave the name.
    is_named: bool,
    /// Without symbolic links.
    file: PathBuf,
}

/// What `prepare` found and `cut` made.
#[derive(Debug)]
struct Run {
    request: Request,
    /// The subvolume's number.
    id: u64,
    /// Where the snapshot is made.
    snapshot: PathBuf,
    /// The last run's snapshot, if it is what the pool has.
    base: Result<Base, String>,
    made: Option<Subvolume>,
    opened: Vec<CopiedImage>,
    /// Leftovers that could not be removed.
    trouble: Option<Error>,
}

/// A snapshot that the pool has already.
#[derive(Debug)]
struct Base {
    folder: PathBuf,
    subvolume: Subvolume,
}

impl BtrfsSource {
    /// The images that `uri` names.
    ///
    /// # Errors
    /// `Invalid` when they do not lie in one subvolume of a btrfs, or are none; the system's own.
    pub fn new(uri: &str, options: &SourceOptions) -> Result<Self> {
        let named = split(uri.strip_prefix("btrfs:").unwrap_or(uri));
        if named.is_empty() || named.len() > MOST_DISKS {
            return Err(Error::invalid(format!("{uri} names no images"))
                .hint("name them as btrfs:/vms/a.img,/vms/b.img or btrfs:/vms?images=a.img,b.img"));
        }
        let is_single = named.len() == 1;
        if options.is_named && !is_single {
            return Err(Error::invalid(format!("{uri} names several disks, not the one disk {}", options.name)));
        }
        let mut images: Vec<NamedImage> = Vec::new();
        for (number, (name, path)) in named.into_iter().enumerate() {
            let file = path.canonicalize().map_err(|error| Error::from_io("find", error).at_path(&path))?;
            let given = name.is_some();
            let default = || if is_single { options.name.clone() } else { default_name(number) };
            let name = name.unwrap_or_else(default);
            if images.iter().any(|image| image.name == name) {
                return Err(Error::invalid(format!("{uri} names two disks {name}")));
            }
            images.push(NamedImage { name, is_named: given, file });
        }
        let top = volume::top_of(&images[0].file)?;
        for NamedImage { file, .. } in &images {
            if !file.is_file() {
                return Err(Error::invalid("this is no image file").at_path(file));
            }
            let other = volume::top_of(file)?;
            if other != top {
                let message = format!("it lies in the subvolume {}, not in {}", other.display(), top.display());
                let error = Error::invalid(message).at_path(file);
                return Err(error.hint("name a source for each subvolume; they are cut together"));
            }
        }
        Ok(Self { images, top, options: options.clone(), run: None })
    }

    /// What a generation is recorded with: the source and name of a disk.
    fn is_mine(&self, disk: &PreviousDisk) -> bool {
        disk.source == self.uri() && self.images.iter().any(|image| image.name == disk.name)
    }

    /// The state that the pool has of this source, if all its disks agree.
    fn known<'a>(&self, request: &'a Request) -> Option<&'a str> {
        let mine = request.previous.iter().filter(|disk| self.is_mine(disk));
        let mut generations = mine.filter_map(|disk| disk.generation.as_deref());
        let first = generations.next()?;
        generations.all(|generation| generation == first).then_some(first)
    }

    /// Folders in which snapshots of this subvolume may be, the one for new ones first.
    fn places(&self, request: &Request) -> Vec<PathBuf> {
        let fits = |folder: &&Path| volume::is_same_mount(folder, &self.top);
        let scratch = request.scratch_folder.as_deref().filter(fits);
        let parent = self.top.parent().filter(fits);
        scratch.into_iter().chain(parent).chain([self.top.as_path()]).map(Path::to_path_buf).collect()
    }

    /// All snapshots that runs of this owner made of this subvolume, or of one that is gone.
    fn snapshots(&self, request: &Request, id: u64) -> Result<Vec<PathBuf>> {
        let prefix = prefix(request);
        let mut found = Vec::new();
        for folder in self.places(request) {
            let failed = |error| Error::from_io("read the folder", error).at_path(&folder);
            for entry in std::fs::read_dir(&folder).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                let name = entry.file_name();
                let Some(rest) = name.to_str().and_then(|name| name.strip_prefix(&prefix)) else { continue };
                let Some(other) = rest.split('-').next().and_then(|id| id.parse::<u64>().ok()) else { continue };
                // The tool would follow a symbolic link that somebody else put there.
                let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
                if is_folder && (other == id || !volume::has_id(&self.top, other)?) {
                    found.push(entry.path());
                }
            }
        }
        Ok(found)
    }

    /// Removes all snapshots of this owner but the one that is the state `keep`, as far as possible.
    fn remove(&self, request: &Request, id: u64, keep: Option<&str>) -> Result<()> {
        let mut failed = Ok(());
        for folder in self.snapshots(request, id)? {
            let is_kept = || volume::show(&folder).is_ok_and(|found| generation(&found).as_deref() == keep);
            if keep.is_none() || !is_kept() {
                let hint = "the next run of firn tries again to delete this snapshot";
                failed = failed.and(volume::delete(&folder).map_err(|error| error.hint(hint)));
            }
        }
        failed
    }

    /// The snapshot that is the state the pool has.
    fn base(&self, request: &Request, id: u64) -> Result<Base, String> {
        let Some(known) = self.known(request) else {
            return Err("there is no snapshot of this source yet to compare with".to_owned());
        };
        let folders = self.snapshots(request, id).map_err(|error| error.to_string())?;
        let shown = folders.into_iter().filter_map(|folder| {
            let subvolume = volume::show(&folder).ok()?;
            Some(Base { folder, subvolume })
        });
        let is_it = |base: &Base| generation(&base.subvolume).as_deref() == Some(known);
        let mut found = shown.filter(is_it);
        found.next().filter(|base| base.subvolume.is_read_only).ok_or_else(|| BASE_IS_LOST.to_owned())
    }

    fn run(&self) -> Result<&Run> {
        self.run.as_ref().ok_or_else(|| Error::invalid("the source is not prepared"))
    }

    /// What changed in each image, in order.
    fn changes(&self, run: &Run, made: &Subvolume, formats: &[ImageFormat]) -> Vec<Changes> {
        let none = |reason: &str| vec![Err(reason.to_owned()); self.images.len()];
        if !formats.contains(&ImageFormat::Raw) {
            return none("what changed in an image file is not what changed on its disk");
        }
        let base = match &run.base {
            Ok(base) => base,
            Err(reason) => return none(reason),
        };
        // The cut wrote out all that was in memory, so that a base that was made writable for a while shows it now.
        if volume::show(&base.folder).ok().as_ref() != Some(&base.subvolume) {
            return none(BASE_IS_LOST);
        }
        let stream = match volume::compare(&base.folder, &run.snapshot) {
            Ok(stream) => stream,
            Err(error) => return none(&error.to_string()),
        };
        let below = |image: &NamedImage| image.file.strip_prefix(&self.top).unwrap_or(&image.file).to_path_buf();
        let files: Vec<_> = self.images.iter().map(below).collect();
        let question = Question {
            new: made.names_in_stream(),
            old: base.subvolume.names_in_stream(),
            files: files.iter().map(|file| file.as_os_str().as_bytes()).collect(),
        };
        let mut changes = match stream::changes(&stream, &question) {
            Ok(changes) => changes,
            Err(reason) => return none(&reason),
        };
        for ((changes, file), (image, format)) in changes.iter_mut().zip(&files).zip(self.images.iter().zip(formats)) {
            let mut previous = run.request.previous.iter().filter(|disk| self.is_mine(disk) && disk.name == image.name);
            let (old, new) = (base.folder.join(file), run.snapshot.join(file));
            let verdict = comparable(previous.next(), *format, &old, &new);
            if let Err(reason) = verdict {
                *changes = Err(reason);
            }
        }
        changes
    }
}

/// Whether the stream's ranges for a file are those of its disk, and all of them.
fn comparable(previous: Option<&PreviousDisk>, format: ImageFormat, old: &Path, new: &Path) -> Result<(), String> {
    if format != ImageFormat::Raw {
        return Err("what changed in an image file is not what changed on its disk".to_owned());
    }
    let Some(previous) = previous else { return Err("this disk was not in the last snapshot".to_owned()) };
    if previous.generation.is_none() {
        return Err("the disk was not read from a raw image at the last snapshot".to_owned());
    }
    let gone = || "the image was not there at the last snapshot".to_owned();
    let (Ok(old), Ok(new)) = (std::fs::symlink_metadata(old), std::fs::symlink_metadata(new)) else {
        return Err(gone());
    };
    // A file of several names appears under any of them in the stream.
    if !old.is_file() || !new.is_file() || old.ino() != new.ino() || (old.nlink(), new.nlink()) != (1, 1) {
        return Err("the image was replaced since the last snapshot, or has several names".to_owned());
    }
    if old.len() != previous.length {
        return Err("the pool has another length of the disk than its last snapshot".to_owned());
    }
    Ok(())
}

/// In order, without overlaps, and not past `length`.
fn tidy(mut ranges: Vec<Range<u64>>, length: u64) -> Vec<Range<u64>> {
    ranges.sort_unstable_by_key(|range| range.start);
    let mut tidy: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        let range = range.start..range.end.min(length);
        match tidy.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ if range.is_empty() => {}
            _ => tidy.push(range),
        }
    }
    tidy
}

/// `UUID:GENERATION`.
fn generation(subvolume: &Subvolume) -> Option<String> {
    subvolume.uuid.map(|uuid| format!("{}:{}", volume::uuid_text(uuid), subvolume.generation))
}

/// What the names of all snapshots of this owner begin with.
fn prefix(request: &Request) -> String {
    format!(".firn-{}-", request.owner)
}

/// `vda`, `vdb` and so on.
fn default_name(number: usize) -> String {
    let letters = (b'a'..=b'z').map(char::from);
    let (first, second) = (letters.clone().nth(number % 26), letters.clone().nth((number / 26).wrapping_sub(1)));
    ["vd".to_owned()].into_iter().chain(second.into_iter().chain(first).map(String::from)).collect()
}

/// Names and files of `A,B` and `FOLDER?images=A,B`.
fn split(text: &str) -> Vec<(Option<String>, PathBuf)> {
    let (folder, list) = match text.rsplit_once("?images=") {
        Some((folder, list)) if !Path::new(text).exists() => (Path::new(folder), list),
        _ => (Path::new(""), text),
    };
    let one = |item: &str| match item.split_once('=') {
        Some((name, file)) if crate::command::is_word(name) && !folder.join(item).exists() => {
            (Some(name.to_owned()), folder.join(file))
        }
        _ => (None, folder.join(item)),
    };
    if folder.join(list).is_file() {
        return vec![one(list)];
    }
    list.split(',').filter(|item| !item.is_empty()).map(one).collect()
}

impl Source for BtrfsSource {
    fn uri(&self) -> String {
        let item = |image: &NamedImage| {
            let file = image.file.display();
            if image.is_named { format!("{}={file}", image.name) } else { file.to_string() }
        };
        format!("btrfs:{}", self.images.iter().map(item).collect::<Vec<_>>().join(","))
    }

    fn plan(&mut self, request: &Request) -> Result<Plan> {
        let subvolume = volume::show(&self.top)?;
        let base = self.base(request, subvolume.id);
        let moved = Moved { from: self.top.clone(), to: self.top.clone() };
        let mut disks = Vec::new();
        for NamedImage { name, file, .. } in &self.images {
            // A running machine holds its lock; this looks at the length only.
            let options = firn_format::image::OpenOptions { torn: true, ..self.options.file.image.clone() };
            let image = CopiedImage::open(file, &options, &moved)?;
            let why_all = match (&base, image.format) {
                (Ok(_), ImageFormat::Raw) => None,
                (Err(reason), ImageFormat::Raw) => Some(reason.clone()),
                _ => Some("what changed in an image file is not what changed on its disk".to_owned()),
            };
            disks.push(PlannedDisk { name: name.clone(), length: image.disk.len(), dirty_bytes: None, why_all });
        }
        let place = self.places(request).swap_remove(0);
        let steps = vec![
            format!("snapshot the subvolume {} read-only in {}", self.top.display(), place.display()),
            "read the images in it, and keep it until the next one is in the pool".to_owned(),
        ];
        Ok(Plan { disks, steps, ..Plan::default() })
    }

    fn prepare(&mut self, request: &Request) -> Result<()> {
        let is_hexadecimal = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !is_hexadecimal(&request.owner) || !is_hexadecimal(&request.run) {
            return Err(Error::invalid("a snapshot needs an owner and a run"));
        }
        let id = volume::show(&self.top)?.id;
        volume::sync(&self.top)?;
        let trouble = self.remove(request, id, self.known(request)).err();
        let base = self.base(request, id);
        let name = format!("{}{id}-{}", prefix(request), request.run);
        let snapshot = self.places(request).swap_remove(0).join(name);
        self.run = Some(Run { request: request.clone(), id, snapshot, base, made: None, opened: Vec::new(), trouble });
        Ok(())
    }

    fn cut(&mut self) -> Result<()> {
        volume::snapshot(&self.top, &self.run()?.snapshot)
    }

    fn open(&mut self) -> Result<Vec<FrozenDisk>> {
        let uri = self.uri();
        let run = self.run()?;
        let made = volume::show(&run.snapshot)?;
        if !made.is_read_only {
            return Err(Error::new(ErrorKind::Unavailable, "this snapshot can be written to").at_path(&run.snapshot));
        }
        let moved = Moved { from: self.top.clone(), to: run.snapshot.clone() };
        let mut opened = Vec::new();
        for NamedImage { file, .. } in &self.images {
            let below = file.strip_prefix(&self.top).unwrap_or(file);
            opened.push(CopiedImage::open(&run.snapshot.join(below), &self.options.file.image, &moved)?);
        }
        let formats: Vec<_> = opened.iter().map(|image| image.format).collect();
        let changes = self.changes(run, &made, &formats);
        let mut disks = Vec::new();
        for ((image, copy), changes) in self.images.iter().zip(&opened).zip(changes) {
            let changed = match changes {
                Ok(ranges) => Changed::Since(tidy(ranges, copy.disk.len())),
                Err(reason) => Changed::Unknown(reason),
            };
            let generation = generation(&made).filter(|_| copy.format == ImageFormat::Raw);
            let disk = copy.disk.clone();
            disks.push(FrozenDisk { name: image.name.clone(), disk, changed, generation, source: uri.clone() });
        }
        if let Some(run) = &mut self.run {
            run.made = Some(made);
            run.opened = opened;
        }
        Ok(disks)
    }

    fn check(&mut self) -> Result<()> {
        let run = self.run()?;
        run.opened.iter().try_for_each(CopiedImage::check)?;
        match volume::show(&run.snapshot) {
            Ok(found) if found.is_read_only && run.made.as_ref().is_some_and(|made| made.uuid == found.uuid) => Ok(()),
            _ => {
                let message = "this snapshot was removed or written to while it was read; there is no snapshot";
                Err(Error::new(ErrorKind::Unavailable, message).at_path(&run.snapshot))
            }
        }
    }

    fn finish(&mut self, outcome: Outcome) -> Result<()> {
        let Some(run) = self.run.take() else { return Ok(()) };
        let serves_next = run.opened.iter().any(|image| image.format == ImageFormat::Raw);
        let mine = run.made.as_ref().and_then(generation).filter(|_| serves_next);
        let kept = if outcome == Outcome::Published { mine.as_deref() } else { self.known(&run.request) };
        self.remove(&run.request, run.id, kept).and(run.trouble.map_or(Ok(()), Err))
    }

    fn sweep(&mut self, request: &Request) -> Result<()> {
        let id = volume::show(&self.top)?.id;
        self.remove(request, id, self.known(request))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_named_one_by_one_or_by_their_folder() {
        let named = |name: &str, file: &str| (Some(name.to_owned()), PathBuf::from(file));
        let plain = |file: &str| (None, PathBuf::from(file));
        assert_eq!(split("/no/a,/no/b"), [plain("/no/a"), plain("/no/b")]);
        assert_eq!(split("/no?images=a,root=b"), [plain("/no/a"), named("root", "/no/b")]);
        assert_eq!(split("root=/no/a"), [named("root", "/no/a")]);
        assert_eq!(split(""), []);
        assert_eq!([0, 25, 26, 255].map(default_name), ["vda", "vdz", "vdaa", "vdiv"]);
    }

    #[test]
    fn ranges_are_joined_and_end_with_the_disk() {
        assert_eq!(tidy(vec![8..12, 0..4, 4..6, 5..6, 10..u64::MAX], 20), [0..6, 8..20]);
        assert_eq!(tidy(vec![30..u64::MAX, 20..20], 20), []);
    }
}
