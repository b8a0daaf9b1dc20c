//! [`Run`]: one snapshot of a domain that runs, from its lock to the last leftover.

use super::checkpoint::{self, Checkpoints};
use super::domain::{Domain, DomainDisk};
use super::host::{self, Forward, Gauge, Host, Names};
use super::job::{self, JobDisk};
use super::location::Location;
use super::lock::RunLock;
use super::look::{Base, Look};
use super::virsh::Virsh;
use super::watch::Watch;
use crate::source::{Changed, FrozenDisk, Outcome, Request};
use firn_disk::{Disk, Error, ErrorKind, Result};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A backup job that has not begun by then is given up: the guest may be frozen.
const CUT_PATIENCE: Duration = Duration::from_secs(20);
/// libvirt gives up itself what it could not begin in 30 s, and then needs a moment.
const LATE: Duration = Duration::from_secs(35);
/// With less than this no run is begun.
const LEAST_SCRATCH: u64 = 8 << 20;

/// What a run has made so far.
#[derive(Debug)]
pub struct Run {
    virsh: Virsh,
    host: Host,
    domain: Domain,
    definition: String,
    tag: String,
    request: Request,
    /// Held for as long as the run lasts.
    _lock: RunLock,
    /// For documents and the forwarded socket, on this host.
    folder: PathBuf,
    socket_folder: PathBuf,
    /// Where the user wants the socket's folder.
    socket_base: Option<PathBuf>,
    scratch_folders: Vec<PathBuf>,
    free: Vec<u64>,
    disks: Vec<JobDisk>,
    /// For each disk, why all of it is read.
    why_all: Vec<Option<String>>,
    forward: Option<Forward>,
    watch: Option<Watch>,
    /// Whether libvirt was asked to begin, and when.
    asked: Option<Instant>,
    /// Whether it may still begin, though nobody waits for it.
    may_begin_late: bool,
    is_cut: bool,
    has_checkpoint: bool,
}

/// Where the scratch file of a disk is made.
pub fn scratch_folder(disk: &DomainDisk, request: &Request) -> PathBuf {
    let beside = || disk.path.parent().filter(|_| !disk.is_block).map(Path::to_owned);
    request.scratch_folder.clone().or_else(beside).unwrap_or_else(|| "/var/tmp".into())
}

/// Removes what the run that `names` means left: job, scratch files, checkpoint, folders.
///
/// # Errors
/// The first thing that could not be removed; the others are.
pub fn sweep(
    virsh: &Virsh,
    host: &Host,
    look: &Look,
    location: &Location,
    names: &Names<'_>,
    scratch_folders: &[PathBuf],
) -> Result<()> {
    let mut first = Ok(());
    let mut note = |result: Result<()>| {
        if first.is_ok() {
            first = result;
        }
    };
    if look.domain.id.is_some() {
        note(end_job_of(virsh, &look.domain, names));
        if let Some(run) = names.run {
            note(delete_checkpoints(virsh, look, names, |name| name == checkpoint::name(names.owner, run)));
        }
    }
    note(remove_files(host, location.socket_folder.as_deref(), scratch_folders, names));
    first
}

fn end_job_of(virsh: &Virsh, domain: &Domain, names: &Names<'_>) -> Result<()> {
    match job::socket(virsh, &domain.uuid)? {
        Some(socket) if run_of(&socket, names).is_some_and(|run| names.run == Some(run)) => {
            job::end(virsh, &domain.uuid, &socket)
        }
        _ => Ok(()),
    }
}

/// The run whose socket it is, if that run is of this owner and for this domain.
fn run_of<'a>(socket: &'a str, names: &Names<'_>) -> Option<&'a str> {
    let folder = Path::new(socket).parent()?.file_name()?.to_str()?;
    let rest = folder.strip_prefix("firn-")?.strip_prefix(names.owner)?.strip_prefix('-')?;
    let (run, tag) = rest.split_once('-')?;
    (tag == names.tag && super::is_hexadecimal(run, 8)).then_some(run)
}

fn delete_checkpoints(virsh: &Virsh, look: &Look, names: &Names<'_>, is_meant: impl Fn(&str) -> bool) -> Result<()> {
    let found = Checkpoints::list(virsh, &look.domain, names.owner)?;
    let meant: Vec<_> = found.iter().filter(|name| is_meant(name)).collect();
    if meant.is_empty() {
        return Ok(());
    }
    let folder = TemporaryFolder::make(names)?;
    let checkpoints = Checkpoints { virsh, domain: &look.domain, definition: &look.definition, folder: &folder.0 };
    meant.into_iter().try_for_each(|name| checkpoints.delete(name))
}

/// A private folder for as long as documents are needed.
struct TemporaryFolder(PathBuf);

impl TemporaryFolder {
    fn make(names: &Names<'_>) -> Result<Self> {
        let name = format!("firn-{}-{}-{}-sweep", names.owner, names.run.unwrap_or("00000000"), names.tag);
        let folder = host::runtime_folder().join(name);
        // That of a run that died here.
        let _ = std::fs::remove_dir_all(&folder);
        host::make_private_folder(&folder)?;
        Ok(Self(folder))
    }
}

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn remove_files(host: &Host, base: Option<&Path>, scratch_folders: &[PathBuf], names: &Names<'_>) -> Result<()> {
    let there = host.socket_folders(base).into_iter().chain(scratch_folders.iter().cloned());
    let removed: Vec<_> = there.into_iter().map(|folder| host.remove(&folder, names)).collect();
    removed.into_iter().chain([Host::Local.remove(&host::runtime_folder(), names)]).collect()
}

impl Run {
    /// Takes the lock, removes leftovers, looks for room and makes the folders.
    ///
    /// # Errors
    /// `Unavailable` when another run is at it, another job keeps the domain busy, or there is no room.
    pub fn prepare(virsh: &Virsh, host: &Host, look: &Look, location: &Location, request: &Request) -> Result<Self> {
        let mut lock = RunLock::take(&request.owner, &look.tag)?;
        let all = Names { owner: &request.owner, run: None, tag: &look.tag };
        let mut scratch_folders: Vec<_> = look.domain.disks.iter().map(|disk| scratch_folder(disk, request)).collect();
        scratch_folders.sort();
        scratch_folders.dedup();
        end_dead_job(virsh, &look.domain, &all, lock.last.as_deref())?;
        job::refuse_other_jobs(virsh, &look.domain.uuid)?;
        remove_files(host, location.socket_folder.as_deref(), &scratch_folders, &all)?;
        lock.note(&request.run)?;

        let free = host.free(&scratch_folders)?;
        if let Some((folder, _)) = scratch_folders.iter().zip(&free).find(|(_, free)| **free < LEAST_SCRATCH) {
            let error = Error::new(ErrorKind::Unavailable, "there is no room for scratch files").at_path(folder);
            return Err(error.hint("free some, or name another folder for them"));
        }
        let name = format!("firn-{}-{}-{}", request.owner, request.run, look.tag);
        let folder = host::runtime_folder().join(format!("{name}-firn"));
        host::make_private_folder(&folder)?;
        let mut run = Self {
            virsh: virsh.clone(),
            host: host.clone(),
            domain: look.domain.clone(),
            definition: look.definition.clone(),
            tag: look.tag.clone(),
            request: request.clone(),
            _lock: lock,
            folder,
            socket_folder: PathBuf::new(),
            socket_base: location.socket_folder.clone(),
            scratch_folders,
            free,
            disks: Vec::new(),
            why_all: Vec::new(),
            forward: None,
            watch: None,
            asked: None,
            may_begin_late: false,
            is_cut: false,
            has_checkpoint: false,
        };
        let prepared = run.prepare_rest(&name);
        if prepared.is_err() {
            // Its error counts; what stays is found by the next run.
            let _ = run.finish(Outcome::Failed);
        }
        prepared.map(|()| run)
    }

    fn prepare_rest(&mut self, name: &str) -> Result<()> {
        self.find_bases()?;
        self.socket_folder = self.host.make_socket_folder(self.socket_base.as_deref(), name, self.domain.owner)?;
        if let Host::Remote(ssh) = &self.host {
            let here = self.folder.join("nbd.sock");
            self.forward = Some(Forward::start(ssh, &here, &self.socket(), &self.scratch_folders)?);
        }
        Ok(())
    }

    /// Finds out from where each disk is read, and deletes the checkpoints of dead runs.
    fn find_bases(&mut self) -> Result<()> {
        let mut look = Look {
            domain: self.domain.clone(),
            definition: self.definition.clone(),
            tag: self.tag.clone(),
            bases: Vec::new(),
        };
        let lengths = look.lengths(&self.virsh)?;
        let mut bases = look.find_bases(&self.virsh, &self.request, Some(&lengths))?;
        let mut forgotten: Vec<_> = bases
            .iter()
            .filter_map(|base| match base {
                Base::Forgotten(name) => Some(name.clone()),
                _ => None,
            })
            .collect();
        forgotten.sort();
        forgotten.dedup();
        if !forgotten.is_empty() {
            for name in &forgotten {
                self.checkpoints().recover(name)?;
            }
            bases = look.find_bases(&self.virsh, &self.request, Some(&lengths))?;
        }
        let kept: Vec<_> = look.bases.iter().flatten().cloned().collect();
        for name in Checkpoints::list(&self.virsh, &self.domain, &self.request.owner)? {
            if !kept.contains(&name) {
                self.checkpoints().delete(&name)?;
            }
        }
        for (disk, base) in self.domain.disks.iter().zip(bases) {
            let file = format!("firn-{}-{}-{}-{}.qcow2", self.request.owner, self.request.run, self.tag, disk.target);
            let scratch = scratch_folder(disk, &self.request).join(file).to_string_lossy().into_owned();
            let (base, why_all) = match base {
                Base::Since(name, _) => (Some(name), None),
                Base::Forgotten(name) => {
                    (None, Some(format!("libvirt lost the checkpoint {name}, and QEMU its bitmap")))
                }
                Base::None(reason) => (None, Some(reason)),
            };
            self.disks.push(JobDisk { target: disk.target.clone(), scratch, base, has_bitmap: disk.has_bitmaps() });
            self.why_all.push(why_all);
        }
        Ok(())
    }

    fn checkpoints(&self) -> Checkpoints<'_> {
        Checkpoints { virsh: &self.virsh, domain: &self.domain, definition: &self.definition, folder: &self.folder }
    }

    fn names(&self) -> Names<'_> {
        Names { owner: &self.request.owner, run: Some(&self.request.run), tag: &self.tag }
    }

    /// The NBD socket on the domain's host.
    fn socket(&self) -> PathBuf {
        self.socket_folder.join("nbd.sock")
    }

    fn checkpoint(&self) -> String {
        checkpoint::name(&self.request.owner, &self.request.run)
    }

    /// Begins the job. What libvirt refuses with bitmaps is tried without: first those of the last checkpoint, then any.
    ///
    /// # Errors
    /// As [`Virsh::run`].
    pub fn cut(&mut self) -> Result<()> {
        let deadline = Instant::now() + CUT_PATIENCE;
        self.asked = Some(Instant::now());
        loop {
            let Err(error) = self.begin(deadline) else { break };
            let is_lasting = matches!(error.kind(), ErrorKind::Io | ErrorKind::Unsupported | ErrorKind::NotFound);
            if !is_lasting || Instant::now() >= deadline || !self.do_with_less(&error) {
                self.may_begin_late = Instant::now() >= deadline;
                return Err(error);
            }
            job::end(&self.virsh, &self.domain.uuid, &self.socket().to_string_lossy())?;
        }
        self.is_cut = true;
        self.has_checkpoint = self.disks.iter().any(|disk| disk.has_bitmap);
        let (virsh, domain) = (self.virsh.clone(), self.domain.uuid.clone());
        let gauge = match &self.forward {
            Some(forward) => forward.gauge.clone(),
            None => Gauge::Local(self.scratch_folders.clone()),
        };
        let socket = self.socket().to_string_lossy().into_owned();
        self.watch = Some(Watch::start(gauge, &self.free, move || {
            // `check` fails all the same, and `finish` tries again.
            let _ = job::end(&virsh, &domain, &socket);
        }));
        Ok(())
    }

    fn begin(&self, deadline: Instant) -> Result<()> {
        let backup = self.folder.join("backup.xml");
        checkpoint::write_document(&backup, &job::backup_xml(&self.socket(), &self.disks))?;
        let backup = backup.to_string_lossy();
        let mut arguments = vec!["backup-begin", "--domain", &self.domain.uuid, "--backupxml", &backup];
        let file = self.folder.join("checkpoint.xml");
        let file = file.to_string_lossy();
        let with: Vec<_> = self.disks.iter().filter(|disk| disk.has_bitmap).map(|disk| disk.target.as_str()).collect();
        if !with.is_empty() {
            let without = self.disks.iter().filter(|disk| !disk.has_bitmap).map(|disk| disk.target.as_str());
            let left_out = self.domain.left_out.iter().map(|(target, _)| target.as_str());
            let document = job::checkpoint_xml(&self.checkpoint(), &with, without.chain(left_out));
            checkpoint::write_document(Path::new(file.as_ref()), &document.write())?;
            arguments.extend(["--checkpointxml", &file]);
        }
        self.virsh.run(&arguments, deadline.saturating_duration_since(Instant::now())).map(drop)
    }

    /// Answers whether there is less to do it with.
    fn do_with_less(&mut self, error: &Error) -> bool {
        if self.disks.iter().any(|disk| disk.base.is_some()) {
            for (disk, why_all) in self.disks.iter_mut().zip(&mut self.why_all) {
                if disk.base.take().is_some() {
                    *why_all = Some(format!("its dirty bitmap is of no use: {error}"));
                }
            }
            return true;
        }
        let had_bitmaps = self.disks.iter().any(|disk| disk.has_bitmap);
        self.disks.iter_mut().for_each(|disk| disk.has_bitmap = false);
        had_bitmaps
    }

    /// The frozen disks. `source` is the URI that they are said to come from.
    ///
    /// # Errors
    /// What connecting says.
    pub fn open(&mut self, source: &str) -> Result<Vec<FrozenDisk>> {
        if !self.is_cut {
            return Err(Error::invalid("there is no frozen copy to open"));
        }
        let socket = self.forward.as_ref().map_or_else(|| self.socket(), |forward| forward.socket.clone());
        let checkpoint = self.checkpoint();
        let mut frozen = Vec::new();
        for (disk, why_all) in self.disks.iter().zip(&self.why_all) {
            let context = job::context(&disk.target);
            let wanted = disk.base.iter().map(|_| context.clone()).collect();
            // A server that came back would be another job's.
            let options = firn_nbd::Options { reconnect: 0, contexts: wanted, ..firn_nbd::Options::default() };
            let export = firn_nbd::open(&firn_nbd::Uri::unix(&socket, &disk.target), &options).map_err(|error| {
                let hint = format!(
                    "{} has to be open to the user who runs firn, on the domain's host",
                    self.socket_folder.display()
                );
                error.hint(hint)
            })?;
            let changed = match &disk.base {
                Some(_) => {
                    let mut ranges: Vec<Range<u64>> = Vec::new();
                    export.changed(&context, |range| {
                        ranges.push(range);
                        Ok(())
                    })?;
                    Changed::Since(ranges)
                }
                None => Changed::Unknown(why_all.clone().unwrap_or_else(|| "nothing is known of it".to_owned())),
            };
            if export.is_empty() {
                return Err(Error::new(ErrorKind::Io, format!("QEMU exports {} without any content", disk.target)));
            }
            frozen.push(FrozenDisk {
                name: disk.target.clone(),
                disk: Arc::new(export),
                changed,
                generation: disk.has_bitmap.then(|| checkpoint.clone()),
                source: source.to_owned(),
            });
        }
        Ok(frozen)
    }

    /// # Errors
    /// `Unavailable` when the job has ended, for whatever reason.
    pub fn check(&mut self) -> Result<()> {
        self.check_room()?;
        let ours = self.socket().to_string_lossy().into_owned();
        let found = match job::socket(&self.virsh, &self.domain.uuid) {
            // A transient domain that has ended is gone.
            Err(error) if is_gone(&error) => None,
            result => result?,
        };
        if found.as_ref() != Some(&ours) {
            let error = Error::new(ErrorKind::Unavailable, "the backup job has ended too early");
            return self.check_room().and(Err(error.hint("did the domain end, or somebody end the job?")));
        }
        self.disks.iter().try_for_each(|disk| job::check_disk(&self.virsh, &self.domain.uuid, &disk.target))?;
        self.check_room()
    }

    fn check_room(&self) -> Result<()> {
        match self.watch.as_ref().and_then(Watch::trouble) {
            Some(words) => Err(Error::new(
                ErrorKind::Unavailable,
                format!("{words}, so the backup was ended for the guest's sake"),
            )
            .hint("free some space there, or name another folder for scratch files")),
            None => Ok(()),
        }
    }

    /// Ends and removes everything; keeps this run's checkpoint or the older one.
    ///
    /// # Errors
    /// The first thing that could not be removed; the others are.
    pub fn finish(&mut self, outcome: Outcome) -> Result<()> {
        self.watch = None;
        let mut results = Vec::new();
        if self.asked.is_some() {
            results.push(self.end_job());
            results.push(self.settle_checkpoints(outcome));
        }
        self.forward = None;
        results.push(remove_files(&self.host, self.socket_base.as_deref(), &self.scratch_folders, &self.names()));
        results.into_iter().collect()
    }

    fn end_job(&self) -> Result<()> {
        let socket = self.socket().to_string_lossy().into_owned();
        // A virsh that was killed leaves its wish with libvirt.
        let until = self.asked.filter(|_| self.may_begin_late).map(|asked| asked + LATE);
        loop {
            match job::end(&self.virsh, &self.domain.uuid, &socket) {
                Err(error) if is_gone(&error) => return Ok(()),
                result => result?,
            }
            if until.is_none_or(|until| Instant::now() >= until) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    fn settle_checkpoints(&self, outcome: Outcome) -> Result<()> {
        let ours = self.checkpoint();
        let is_meant = |name: &String| match outcome {
            Outcome::Published => *name != ours || !self.has_checkpoint,
            Outcome::Failed => *name == ours,
        };
        let settled = Checkpoints::list(&self.virsh, &self.domain, &self.request.owner).and_then(|names| {
            names.iter().filter(|name| is_meant(name)).try_for_each(|name| self.checkpoints().delete(name))
        });
        match settled {
            // The next run that finds it running does it.
            Err(error) if is_gone(&error) => Ok(()),
            result => result,
        }
    }
}

/// Whether it failed because the domain has ended meanwhile.
fn is_gone(error: &Error) -> bool {
    error.kind() == ErrorKind::NotFound || error.to_string().contains("inactive domain")
}

/// Ends the job of the run that was the last to hold the lock.
///
/// # Errors
/// `Unavailable` for any other backup job.
fn end_dead_job(virsh: &Virsh, domain: &Domain, names: &Names<'_>, last: Option<&str>) -> Result<()> {
    let Some(socket) = job::socket(virsh, &domain.uuid)? else { return Ok(()) };
    match run_of(&socket, names) {
        Some(run) if last == Some(run) => job::end(virsh, &domain.uuid, &socket),
        Some(run) => {
            let what =
                format!("run {run} of firn takes a snapshot of this domain, from another host or as another user");
            Err(Error::new(ErrorKind::Unavailable, what)
                .hint("if that one is dead, end its job by `virsh domjobabort`"))
        }
        None => Err(Error::new(ErrorKind::Unavailable, "another backup of this domain is running")
            .hint("wait for its end; `virsh backup-dumpxml` shows it")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whose_job_it_is() {
        let names = Names { owner: "0123456789abcdef", run: None, tag: "aabb" };
        let socket = "/run/firn-0123456789abcdef-89abcdef-aabb/nbd.sock";
        assert_eq!(run_of(socket, &names), Some("89abcdef"));
        for other in ["", "/nbd.sock", "/run/x/nbd.sock", "/run/firn-0123456789abcdef-89abcdef-aabc/nbd.sock"] {
            assert_eq!(run_of(other, &names), None, "{other}");
        }
    }

    #[test]
    fn where_scratch_files_lie() {
        let disk = |path: &str, is_block| DomainDisk {
            target: "vda".to_owned(),
            path: path.into(),
            is_block,
            format: "raw".to_owned(),
        };
        let request = Request::default();
        assert_eq!(scratch_folder(&disk("/srv/a.img", false), &request), Path::new("/srv"));
        assert_eq!(scratch_folder(&disk("/dev/vg/a", true), &request), Path::new("/var/tmp"));
        let request = Request { scratch_folder: Some("/s".into()), ..request };
        assert_eq!(scratch_folder(&disk("/dev/vg/a", true), &request), Path::new("/s"));
    }
}
