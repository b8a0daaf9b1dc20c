//! A filer's own snapshots as a source: every version of an image file that is to be found beside it.
//!
//! ```text
//!   FOLDER/.snapshot/NAME/…            NetApp, in every folder of an NFS mount
//!   FOLDER/.zfs/snapshot/NAME/…        ZFS, in the top folder of each file system
//!   FOLDER/.snapshots/N/snapshot/…     snapper, with the date in .snapshots/N/info.xml
//!   FOLDER/@GMT-YYYY.MM.DD-hh.mm.ss/…  Samba's shadow copies
//! ```
//! They are looked for from the file's folder upwards until the file system ends, the path of the file from there on within
//! each. The same name in two places counts once, the nearer one. Such a version is of the past and read-only: there is
//! nothing to freeze nor to cut, and what it shows is as consistent as a machine that lost its power.
//!
//! Refused: a version whose image stands on files that are not in the same snapshot.

mod dates;

use crate::copy::CopiedImage;
use crate::source::{Changed, FrozenDisk, Outcome, Plan, PlannedDisk, Request, Source};
use crate::uri::SourceOptions;
use dates::Dated;
use firn_disk::{Disk, Error, ErrorKind, Result};
use firn_format::image::Moved;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// More snapshots than any filer keeps of a volume (ONTAP: 1023).
const MOST_VERSIONS: usize = 65_536;
/// snapper writes less than one.
const MOST_INFO_BYTES: u64 = 64 << 10;

/// A version of an image that a filer kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// What the filer calls the snapshot.
    pub name: String,
    /// When it was taken; see `remark` where that is not certain.
    pub taken: Timestamp,
    /// Where the image is within it.
    pub path: PathBuf,
    /// The URI that takes this version.
    pub source: String,
    /// The same for the same version at each look, and for no other of the same image: for finding those that are in the
    /// pool already.
    pub generation: String,
    /// What the instant rests on, where it is less than certain.
    pub remark: Option<String>,
    /// Which folder the snapshot is of, and where it is.
    moved: Moved,
}

/// All versions of the image `path` that are to be found, oldest first. Blocks while folders are read.
///
/// # Errors
/// `NotFound` when there is no folder with snapshots, `Denied` when there is none that may be looked into, `Unsupported`
/// when there are more than 65536; the system's own.
pub fn versions(path: &Path) -> Result<Vec<Version>> {
    versions_in(path, &TimeZone::system())
}

/// A source for each version that `uri` leads to, oldest first: `nas:PATH`. Each tells its instant by
/// [`Source::taken`], and [`NasSource::generation`] whether the pool has it.
///
/// # Errors
/// As [`versions`].
pub fn each(uri: &str, options: &SourceOptions) -> Result<Vec<NasSource>> {
    let path = Path::new(uri.strip_prefix("nas:").unwrap_or(uri));
    let versions = versions(path)?;
    Ok(versions.into_iter().map(|version| NasSource::new(path, version, options)).collect())
}

/// A folder with snapshots, and what they are snapshots of.
struct Shelf {
    /// The folder that was snapshot.
    of: PathBuf,
    /// Each snapshot with its name and the folder that has the date, if any.
    snapshots: Vec<(String, PathBuf, Option<PathBuf>)>,
}

fn versions_in(path: &Path, zone: &TimeZone) -> Result<Vec<Version>> {
    let failed = |error| Error::from_io("find", error).at_path(path);
    let file = std::path::absolute(path).map_err(failed)?;
    // The file itself may be gone by now; its folder may not.
    let (Some(folder), Some(file_name)) = (file.parent(), file.file_name()) else {
        return Err(Error::invalid("this is no image file").at_path(path));
    };
    let folder = folder.canonicalize().map_err(failed)?;
    let file = folder.join(file_name);
    let (shelves, denied) = shelves(&folder)?;
    if let (true, Some(denied)) = (shelves.is_empty(), denied) {
        return Err(denied);
    }
    if shelves.is_empty() {
        let error = Error::not_found("there is no folder with snapshots here or above").at_path(&folder);
        return Err(error.hint("firn looks for .snapshot, .zfs/snapshot, .snapshots/*/snapshot and @GMT-…"));
    }
    let mut versions: Vec<Version> = Vec::new();
    for shelf in shelves {
        for (name, snapshot, info) in &shelf.snapshots {
            let found = version(&file, &shelf.of, name, snapshot, info.as_deref(), zone);
            versions.extend(found.filter(|found| versions.iter().all(|other| other.name != found.name)));
        }
    }
    versions.sort_by(|a, b| (a.taken, &a.name).cmp(&(b.taken, &b.name)));
    Ok(versions)
}

/// The folders with snapshots from `folder` upwards, as far as its file system goes, the nearest first; and the first of
/// those that may not be looked into.
fn shelves(folder: &Path) -> Result<(Vec<Shelf>, Option<Error>)> {
    let device = |folder: &Path| std::fs::metadata(folder).map(|metadata| metadata.dev());
    let here = device(folder).map_err(|error| Error::from_io("stat", error).at_path(folder))?;
    let (mut shelves, mut denied) = (Vec::new(), None);
    for of in folder.ancestors().take_while(|folder| device(folder).is_ok_and(|device| device == here)) {
        let mut snapshots = Vec::new();
        let mut look = |folder: &Path, prefix: &str| match names_in(folder, prefix) {
            // Only where nothing else is found this is what one has to know.
            Err(error) if error.kind() == ErrorKind::Denied => {
                denied.get_or_insert(error);
                Ok(Vec::new())
            }
            other => other,
        };
        for kept in [".snapshot", ".zfs/snapshot"] {
            snapshots.extend(look(&of.join(kept), "")?.into_iter().map(|(name, path)| (name, path, None)));
        }
        for (name, path) in look(&of.join(".snapshots"), "")? {
            let is_number = name.bytes().all(|byte| byte.is_ascii_digit());
            let snapshot = path.join("snapshot");
            snapshots.extend((is_number && snapshot.is_dir()).then_some((name, snapshot, Some(path))));
        }
        snapshots.extend(look(of, "@GMT-")?.into_iter().map(|(name, path)| (name, path, None)));
        if !snapshots.is_empty() {
            shelves.push(Shelf { of: of.to_path_buf(), snapshots });
        }
    }
    Ok((shelves, denied))
}

/// Names and paths of the folders in `folder` whose names begin with `prefix`; none if it is not there. A link to a
/// folder is one as well: Samba's are.
///
/// # Errors
/// `Denied`; `Unsupported` when there are more than 65536; the system's own.
fn names_in(folder: &Path, prefix: &str) -> Result<Vec<(String, PathBuf)>> {
    let failed = |error| Error::from_io("read the folder", error).at_path(folder);
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => return Err(failed(error)),
        Err(_) => return Ok(Vec::new()),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        // Whatever made snapshots gave them names that can be said.
        let Ok(name) = entry.file_name().into_string() else { continue };
        if name.starts_with(prefix) && entry.file_type().is_ok_and(|kind| kind.is_dir() || kind.is_symlink()) {
            names.push((name, entry.path()));
        }
        if names.len() > MOST_VERSIONS {
            return Err(Error::unsupported(format!("more than {MOST_VERSIONS} folders")).at_path(folder));
        }
    }
    Ok(names)
}

/// The version of `file` in one snapshot of the folder `of`, if it has one.
fn version(
    file: &Path,
    of: &Path,
    name: &str,
    snapshot: &Path,
    info: Option<&Path>,
    zone: &TimeZone,
) -> Option<Version> {
    let path = snapshot.join(file.strip_prefix(of).ok()?);
    let image = std::fs::metadata(&path).ok().filter(Metadata::is_file)?;
    let (dated, remark) = match info.and_then(snapper_date).or_else(|| dates::find(name, zone)) {
        Some(dated) if dated.is_local => {
            (Some(dated), Some("the date in its name was taken for this machine's time zone".to_owned()))
        }
        dated => (dated, None),
    };
    let (taken, remark) = match dated {
        Some(Dated { taken, .. }) => (taken, remark),
        None => (
            last_change(&[std::fs::metadata(snapshot).ok()?, image.clone()])?,
            Some("its name has no date; this is the last change that it shows".to_owned()),
        ),
    };
    // `hourly.0` is another one an hour later, so a name without a date does not tell it from others.
    let is_lasting = info.is_some() || dates::find(name, zone).is_some();
    let identity = if is_lasting { name.to_owned() } else { format!("{}", taken.as_nanosecond()) };
    Some(Version {
        name: name.to_owned(),
        taken,
        source: format!("nas:{}?version={name}", file.display()),
        generation: format!("{identity}:{}", image.ino()),
        remark,
        path,
        moved: Moved { from: of.to_path_buf(), to: snapshot.to_path_buf() },
    })
}

/// `<date>2026-11-17 03:05:00</date>`, in UTC.
fn snapper_date(folder: &Path) -> Option<Dated> {
    let file = folder.join("info.xml");
    let is_small =
        std::fs::metadata(&file).is_ok_and(|metadata| metadata.is_file() && metadata.len() < MOST_INFO_BYTES);
    let text = std::fs::read_to_string(file).ok().filter(|_| is_small)?;
    let (date, _) = text.split_once("<date>")?.1.split_once("</date>")?;
    dates::find(&format!("{}Z", date.trim()), &TimeZone::UTC)
}

/// The last change that any of these show. A snapshot was not taken before it.
fn last_change(files: &[Metadata]) -> Option<Timestamp> {
    let times = files.iter().flat_map(|file| {
        [(file.mtime(), file.mtime_nsec()), (file.ctime(), file.ctime_nsec())]
            .map(|(seconds, nanoseconds)| Timestamp::new(seconds, i32::try_from(nanoseconds).unwrap_or(0)).ok())
    });
    times.flatten().max()
}

/// One version of an image.
#[derive(Debug)]
pub struct NasSource {
    file: PathBuf,
    version: Version,
    options: SourceOptions,
    image: Option<CopiedImage>,
}

impl NasSource {
    fn new(file: &Path, version: Version, options: &SourceOptions) -> Self {
        Self { file: file.to_path_buf(), version, options: options.clone(), image: None }
    }

    /// The version that `uri` names, as `nas:PATH?version=NAME`, or else the newest.
    ///
    /// # Errors
    /// `NotFound` when there is none; otherwise as [`versions`].
    pub fn open(uri: &str, options: &SourceOptions) -> Result<Self> {
        let rest = uri.strip_prefix("nas:").unwrap_or(uri);
        let (path, name) = match rest.rsplit_once("?version=") {
            Some((path, name)) if !Path::new(rest).exists() => (Path::new(path), Some(name)),
            _ => (Path::new(rest), None),
        };
        let mut found = versions(path)?;
        found.retain(|version| name.is_none_or(|name| version.name == name));
        let version = found.pop().ok_or_else(|| {
            let wanted =
                name.map_or_else(|| "with this file".to_owned(), |name| format!("called {name} with this file"));
            Error::not_found(format!("no snapshot {wanted}")).at_path(path)
        })?;
        Ok(Self::new(path, version, options))
    }

    /// The version that is taken.
    pub fn version(&self) -> &Version {
        &self.version
    }

    /// The same as [`Version::generation`], and as [`FrozenDisk::generation`] later.
    pub fn generation(&self) -> &str {
        &self.version.generation
    }

    fn image(&mut self) -> Result<&CopiedImage> {
        if self.image.is_none() {
            let Version { path, moved, .. } = &self.version;
            self.image = Some(CopiedImage::open(path, &self.options.file.image, moved)?);
        }
        self.image.as_ref().ok_or_else(|| Error::invalid("the image is not open"))
    }

    fn reads_all() -> String {
        "a filer's snapshot does not tell what changed".to_owned()
    }
}

impl Source for NasSource {
    fn uri(&self) -> String {
        let file = std::path::absolute(&self.file).unwrap_or_else(|_| self.file.clone());
        format!("nas:{}", file.display())
    }

    fn taken(&self) -> Option<Timestamp> {
        Some(self.version.taken)
    }

    fn plan(&mut self, _request: &Request) -> Result<Plan> {
        let length = self.image()?.disk.len();
        let why_all = Some(Self::reads_all());
        let disk = PlannedDisk { name: self.options.name.clone(), length, dirty_bytes: None, why_all };
        let Version { name, path, remark, .. } = &self.version;
        let mut steps = vec![format!("read {} out of the snapshot {name}", path.display())];
        steps.extend(remark.clone());
        Ok(Plan { disks: vec![disk], steps, ..Plan::default() })
    }

    fn prepare(&mut self, _request: &Request) -> Result<()> {
        self.image().map(drop)
    }

    fn cut(&mut self) -> Result<()> {
        Ok(())
    }

    fn open(&mut self) -> Result<Vec<FrozenDisk>> {
        Ok(vec![FrozenDisk {
            name: self.options.name.clone(),
            disk: self.image()?.disk.clone(),
            changed: Changed::Unknown(Self::reads_all()),
            generation: Some(self.version.generation.clone()),
            source: self.uri(),
        }])
    }

    fn check(&mut self) -> Result<()> {
        self.image()?.check()
    }

    fn finish(&mut self, _outcome: Outcome) -> Result<()> {
        self.image = None;
        Ok(())
    }

    fn sweep(&mut self, _request: &Request) -> Result<()> {
        Ok(())
    }
}
