//! A libvirt domain as a source, by virsh alone: one instant of all its disks, and what changed on them.
//!
//! ```text
//!   prepare   lock, leftovers away, room for scratch files      virsh checkpoint-delete, domjobabort
//!   cut       backup job and checkpoint in one transaction      virsh backup-begin (75 ms, most of it libvirt's)
//!   open      qcow2 scratch over the image, exported read-only  NBD over FOLDER/nbd.sock; from another host through ssh -L
//!   check     the job still copies aside what is overwritten    virsh backup-dumpxml, blockjob
//!   finish    job, scratch files, the older checkpoint away     virsh domjobabort, checkpoint-delete
//! ```
//! The checkpoint is a persistent dirty bitmap in every qcow2 image; its name is the state's generation. The next run asks
//! for the changes since it, disk by disk. A bitmap that is lost or inconsistent (QEMU was killed, the image was replaced)
//! means that this disk is read whole, in the same job. When libvirt forgot a checkpoint whose bitmaps are still there (the
//! domain is transient, was undefined or migrated), it is told again. Raw images and block devices have no bitmaps and are
//! read whole. A domain that is shut off is taken from its image files under QEMU's lock; the last checkpoint stays the base
//! of the next run, for it counts all changes since.
//!
//! **Left out**, each with a line in the plan: removable media, read-only and transient disks, what `skip` names. Refused:
//! network disks, LUNs and vhost-user disks, unless they are skipped. TPM state is not kept. QEMU refuses to go
//! back to an internal snapshot of an image that has bitmaps, so what it counts stays true.
//!
//! **Scratch files** lie in the request's folder, else beside their images (`/var/tmp` for block devices). libvirt's backup
//! lets the guest's write fail when a scratch file cannot grow, so a watch ends the job 1 GiB (or half of the room) before
//! that: the snapshot fails. Only a guest that writes so much between two looks, 50 ms apart, is faster.
//!
//! **Rights.** Reading and writing on the connection: root or the group `libvirt` for `qemu:///system` (polkit's
//! `org.libvirt.unix.manage`), nothing more for `qemu:///session`. The NBD socket lies in a folder of its own (mode 0700, in
//! `/run`, the user's runtime folder or `socket-folder`) that is given to QEMU's user, `libvirt-qemu` or `qemu`: root can do
//! that, anybody else has to be a member of QEMU's group, since QEMU makes the socket `0775`. Scratch files are made and
//! removed by libvirt; firn looks for their leftovers where it may. Under AppArmor add `/run/firn-*/nbd.sock rw,` to
//! `/etc/apparmor.d/local/abstractions/libvirt-qemu`; under SELinux name a `socket-folder` that QEMU may use. Neither was
//! tried. For another host ssh has to log in without a password, as root there or as such a member.
//!
//! **Versions.** Tried with libvirt 11.3 and QEMU 10.0, and with Debian 12's
//! libvirt 9.0 and QEMU 7.2. Sources: <https://libvirt.org/formatbackup.html>, `src/qemu/qemu_backup.c`.

mod checkpoint;
mod define;
mod domain;
mod guest;
mod host;
mod job;
mod location;
mod lock;
mod look;
mod run;
mod virsh;
mod watch;
mod xml;

pub use define::{Fresh, Redefined, define, redefine, refuse_existing};
pub use guest::{LibvirtGuest, thaw};
pub use virsh::Virsh;

use crate::file::{FileOptions, FileSource};
use crate::quiesce::Guest;
use crate::source::{Changed, Finding, FrozenDisk, Outcome, Plan, Request, Source};
use firn_disk::{Error, ErrorKind, Result};
use firn_format::image::ImageFormat;
use host::{Host, Names};
use location::Location;
use look::Look;
use run::Run;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// For `firn doctor` to ask for versions.
const EXAMINE: Duration = Duration::from_secs(10);

/// libvirt's own default connection for root.
pub const SYSTEM: &str = "qemu:///system";

/// The connection that `virsh` uses where none is named: what `LIBVIRT_DEFAULT_URI` says, else [`SYSTEM`].
pub fn default_connection() -> String {
    std::env::var("LIBVIRT_DEFAULT_URI").ok().filter(|uri| !uri.is_empty()).unwrap_or_else(|| SYSTEM.to_owned())
}

/// A domain with all disks that hold its data.
#[derive(Debug)]
pub struct LibvirtSource {
    location: Location,
    virsh: Virsh,
    host: Host,
    options: FileOptions,
    look: Option<Look>,
    state: State,
}

#[derive(Debug)]
enum State {
    Idle,
    /// The domain runs.
    Running(Box<Run>),
    /// It is shut off.
    Files(Vec<FileSource>),
}

impl LibvirtSource {
    /// The domain that `uri` names; nothing is asked yet. `options` say how the images of a domain that is shut off are
    /// opened.
    ///
    /// # Errors
    /// `Invalid` for what is no such URI, `Unsupported` for a connection that cannot be read through.
    pub fn new(uri: &str, options: FileOptions) -> Result<Self> {
        let location = Location::parse(uri, &default_connection())?;
        let virsh = Virsh::new(&location.connection);
        Ok(Self::with_virsh(location, virsh, options))
    }

    fn with_virsh(location: Location, virsh: Virsh, options: FileOptions) -> Self {
        let host = location.ssh.clone().map_or(Host::Local, Host::Remote);
        Self { location, virsh, host, options, look: None, state: State::Idle }
    }

    /// As [`new`](Self::new), asking by this program in place of virsh.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_program(uri: &str, program: &std::path::Path, options: FileOptions) -> Result<Self> {
        let location = Location::parse(uri, &default_connection())?;
        let virsh = Virsh::with_program(program, &location.connection);
        Ok(Self::with_virsh(location, virsh, options))
    }

    fn looked(&mut self) -> Result<&Look> {
        self.look.as_ref().ok_or_else(|| Error::invalid("the domain was not looked at yet"))
    }

    /// The images of a domain that is shut off, in the order of its disks.
    fn files(&self, look: &Look) -> Result<Vec<FileSource>> {
        if let Host::Remote(ssh) = &self.host {
            let what =
                format!("the domain {} is shut off, and its images lie on {}", look.domain.name, ssh.destination);
            return Err(Error::unsupported(what).hint("start it, or run firn on that host"));
        }
        let file = |disk: &domain::DomainDisk| {
            let mut options = self.options.clone();
            options.image.format = Some(match disk.format.as_str() {
                "raw" => ImageFormat::Raw,
                "qcow2" => ImageFormat::Qcow2,
                "vmdk" => ImageFormat::Vmdk,
                other => {
                    let what = format!("the disk {} of a domain that is shut off is a {other} image", disk.target);
                    return Err(Error::unsupported(what).hint("start the domain, so that QEMU reads it"));
                }
            });
            FileSource::new(&disk.path, disk.target.clone(), options)
        };
        look.domain.disks.iter().map(file).collect()
    }

    /// The folders in which scratch files may lie.
    fn scratch_folders(look: &Look, request: &Request) -> Vec<PathBuf> {
        let mut folders: Vec<_> = look.domain.disks.iter().map(|disk| run::scratch_folder(disk, request)).collect();
        folders.sort();
        folders.dedup();
        folders
    }
}

impl Source for LibvirtSource {
    fn uri(&self) -> String {
        self.location.uri()
    }

    fn guest(&self) -> Option<Arc<dyn Guest>> {
        let domain = match &self.look {
            Some(look) if look.domain.id.is_none() => return None,
            Some(look) => &look.domain.uuid,
            None => &self.location.domain,
        };
        Some(Arc::new(LibvirtGuest::new(self.virsh.clone(), domain)))
    }

    fn plan(&mut self, request: &Request) -> Result<Plan> {
        let mut look = Look::take(&self.virsh, &self.location)?;
        let plan = if look.domain.id.is_some() {
            look.plan_running(&self.virsh, &self.host, request)?
        } else {
            let mut files = self.files(&look)?;
            let plan = look.plan_files(&self.virsh, &self.host, request, &mut files)?;
            self.state = State::Files(files);
            plan
        };
        self.look = Some(look);
        Ok(plan)
    }

    fn examine(&mut self, request: &Request) -> Vec<Finding> {
        let Some(look) = self.look.as_ref().filter(|look| look.domain.id.is_some()) else { return Vec::new() };
        let version = self.virsh.run(&["version"], EXAMINE);
        let mut findings = vec![match version {
            Ok(text) => {
                // "Using library: libvirt 11.3.0", "Running hypervisor: QEMU 10.0.2".
                let words: Vec<_> =
                    text.lines().filter_map(|line| line.split_once(": ")).map(|(_, word)| word).collect();
                Finding::good(format!("libvirt at {}", self.virsh.connection()), words.join(", "))
            }
            Err(error) => Finding::bad("libvirt", &error),
        }];
        let folders = Self::scratch_folders(look, request);
        findings.push(match self.host.free(&folders) {
            Ok(free) => {
                let room =
                    |(folder, bytes): (&PathBuf, u64)| format!("{} MB in {}", bytes / 1_000_000, folder.display());
                let rooms: Vec<_> = folders.iter().zip(free).map(room).collect();
                Finding::good("room for scratch files", rooms.join(", "))
            }
            Err(error) => Finding::bad("room for scratch files", &error),
        });
        findings
    }

    fn prepare(&mut self, request: &Request) -> Result<()> {
        let planned = self.looked()?.domain.clone();
        let look = Look::take(&self.virsh, &self.location)?;
        if look.domain.id != planned.id || look.domain.disks != planned.disks {
            return Err(Error::new(ErrorKind::Unavailable, format!("the domain {} changed meanwhile", planned.name))
                .hint("take the snapshot again"));
        }
        if look.domain.id.is_none() {
            let State::Files(files) = &mut self.state else {
                return Err(Error::invalid("the images are not open"));
            };
            return files.iter_mut().try_for_each(|file| file.prepare(request));
        }
        let run = Run::prepare(&self.virsh, &self.host, &look, &self.location, request)?;
        self.state = State::Running(Box::new(run));
        self.look = Some(look);
        Ok(())
    }

    fn cut(&mut self) -> Result<()> {
        match &mut self.state {
            State::Running(run) => run.cut(),
            State::Files(_) => Ok(()),
            State::Idle => Err(Error::invalid("the snapshot was not prepared")),
        }
    }

    fn open(&mut self) -> Result<Vec<FrozenDisk>> {
        let uri = self.uri();
        let bases = self.look.as_ref().map(|look| look.bases.clone()).unwrap_or_default();
        match &mut self.state {
            State::Running(run) => run.open(&uri),
            State::Files(files) => {
                let mut disks = Vec::new();
                for (file, base) in files.iter_mut().zip(bases) {
                    for disk in file.open()? {
                        let changed = Changed::Unknown("the domain is shut off".to_owned());
                        disks.push(FrozenDisk { changed, generation: base.clone(), source: uri.clone(), ..disk });
                    }
                }
                Ok(disks)
            }
            State::Idle => Err(Error::invalid("the snapshot was not prepared")),
        }
    }

    fn check(&mut self) -> Result<()> {
        match &mut self.state {
            State::Running(run) => run.check(),
            State::Files(files) => files.iter_mut().try_for_each(Source::check),
            State::Idle => Err(Error::invalid("there is no snapshot to check")),
        }
    }

    fn finish(&mut self, outcome: Outcome) -> Result<()> {
        match std::mem::replace(&mut self.state, State::Idle) {
            State::Running(mut run) => run.finish(outcome),
            State::Files(_) | State::Idle => Ok(()),
        }
    }

    fn sweep(&mut self, request: &Request) -> Result<()> {
        self.state = State::Idle;
        let look = match Look::take(&self.virsh, &self.location) {
            Ok(look) => look,
            // Nothing of a domain that is gone can be in its way.
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        let names = Names { owner: &request.owner, run: Some(&request.run), tag: &look.tag };
        let scratch = Self::scratch_folders(&look, request);
        run::sweep(&self.virsh, &self.host, &look, &self.location, &names, &scratch)
    }
}

/// Whether `text` consists of `digits` hexadecimal digits in lower case.
fn is_hexadecimal(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}
