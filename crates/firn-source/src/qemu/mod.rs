//! A machine that QEMU runs, by its monitor: all disks at one instant, and only what changed is read.
//!
//! ```text
//!   plan      connects to the monitor, which serves one client: nobody else meddles until the end
//!   prepare   scratch files, filters that copy nothing yet, QEMU's NBD server on a private socket
//!   cut       the new bitmaps record, the filters stand in the way, the last bitmaps are copied   milliseconds
//!   open      exports of the instant, each with its copied bitmap as the list of what changed
//!   finish    all of it goes, but for the bitmap that the next snapshot is read by
//! ```
//! [`address`] has the URI, [`cut`] the two ways to the instant, [`bitmap`] what is believed of bitmaps, [`scratch`] and
//! [`watch`] how a full scratch ends the snapshot and never the guest, [`leftovers`] how a dead run is put in order. A
//! machine that is off is taken from its files: [`offline`].
//!
//! Least privileges: reading and writing the monitor's socket, which is power over the machine anyway; making files in
//! the folder for scratch files (beside the image, or where the user says). QEMU itself needs no right that it does not
//! have: files and sockets are handed to it open. For a machine that is off, its image files have to be readable.
//!
//! Versions: 7.1 on by filter, from 6.0 on by backup job. What is used stands in QEMU's `qapi/block-core.json`,
//! `block-export.json`, `transaction.json`, with the version that each came with.

mod address;
mod bitmap;
mod blocks;
mod cut;
mod export;
mod leftovers;
mod monitor;
mod names;
mod offline;
mod runtime;
mod scratch;
mod watch;

pub use cut::resume_machine;

use crate::file::FileOptions;
use crate::quiesce::{AgentGuest, Guest, Ticket};
use crate::source::{Finding, FrozenDisk, Outcome, Plan, PlannedDisk, Request, Source};
use address::{Address, Way};
use bitmap::Base;
use blocks::{Drive, Drives};
use cut::Cut;
use export::{Frozen, FrozenExport};
use firn_disk::{Error, ErrorKind, Result};
use leftovers::Server;
use monitor::Monitor;
use names::{Names, NodeKind};
use offline::Offline;
use runtime::Lock;
use scratch::Scratch;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use watch::{Loss, Watch};

/// For the monitor to greet us: another client may be about to leave.
const GREETING: Duration = Duration::from_secs(5);

/// A machine behind a QMP socket.
#[derive(Debug)]
pub struct QemuSource {
    address: Address,
    files: FileOptions,
    machine: Option<Machine>,
}

/// What the machine turned out to be when it was planned.
#[derive(Debug)]
enum Machine {
    Running(Box<Running>),
    Off(Offline),
}

/// A machine with a QEMU process.
#[derive(Debug)]
struct Running {
    monitor: Arc<Monitor>,
    drives: Drives,
    run: Option<Run>,
    /// The last, so that it is given back after all else is gone.
    _lock: Lock,
}

/// From `prepare` to `finish`.
#[derive(Debug)]
struct Run {
    names: Names,
    way: Way,
    bases: Vec<Base>,
    /// Generations of the last snapshot: needed still when this one fails.
    previous: Vec<String>,
    pauses: bool,
    socket: PathBuf,
    server: Server,
    scratch: Vec<Scratch>,
    loss: Arc<Loss>,
    watch: Option<Watch>,
    frozen: Vec<Arc<FrozenExport>>,
}

impl QemuSource {
    /// The machine that `uri` names. Nothing is connected yet. `files` says how image files are opened when it is off.
    ///
    /// # Errors
    /// `Invalid` when it is no such URI.
    pub fn new(uri: &str, files: FileOptions) -> Result<Self> {
        Ok(Self { address: Address::parse(uri)?, files, machine: None })
    }

    fn connect(&self) -> Result<(Monitor, Lock)> {
        let lock = Lock::take(&self.address.socket)?;
        Ok((Monitor::connect(&self.address.socket, GREETING)?, lock))
    }

    fn machine(&mut self) -> Result<&mut Machine> {
        self.machine.as_mut().ok_or_else(|| Error::invalid("the machine was not looked at yet"))
    }

    fn run(&mut self) -> Result<(&Arc<Monitor>, &Drives, &mut Run)> {
        let missing = || Error::invalid("nothing was prepared");
        match self.machine()? {
            Machine::Running(running) => {
                let Running { monitor, drives, run, .. } = running.as_mut();
                Ok((monitor, drives, run.as_mut().ok_or_else(missing)?))
            }
            Machine::Off(_) => Err(missing()),
        }
    }
}

/// The URI of the machine that the disk at `uri` is one of.
///
/// # Errors
/// `Invalid` when it is no such URI.
pub(crate) fn machine_of(uri: &str) -> Result<String> {
    Ok(Address::parse(uri)?.to_uri())
}

/// Whether nobody is behind the socket: then the machine is off.
fn is_off(error: &Error) -> bool {
    let refused = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<std::io::Error>());
    refused.is_some_and(|cause| {
        matches!(cause.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused)
    })
}

impl Running {
    fn plan(&self, request: &Request, wanted: Option<Way>) -> Result<Plan> {
        let way = cut::choose(self.monitor.version(), wanted)?;
        blocks::refuse_migration(&blocks::status(&self.monitor)?, &self.monitor)?;
        let mut steps = self.drives.left_out.clone();
        let disks = self.drives.disks.iter().map(|drive| planned(drive, request)).collect();
        steps.push(match way {
            Way::Filter => {
                "keep the instant by copy-before-write filters, which give up before the guest has to wait".to_owned()
            }
            Way::Backup => {
                "keep the instant by a backup job into scratch files, cancelled before they are full".to_owned()
            }
        });
        if self.pauses(way)? {
            steps.push("pause the machine for the milliseconds of the instant".to_owned());
        }
        steps.push("read the disks by QEMU's NBD server on a private socket".to_owned());
        Ok(Plan { disks, steps, ..Plan::default() })
    }

    fn examine(&self, request: &Request, wanted: Option<Way>) -> Vec<Finding> {
        let version = self.monitor.version();
        let shown = format!("{}.{}.{}", version.major, version.minor, version.micro);
        let mut findings = vec![match cut::choose(version, wanted) {
            Ok(Way::Filter) => Finding::good("QEMU's version", shown),
            Ok(Way::Backup) => Finding::poor(
                "QEMU's version",
                format!("{shown}: snapshots are taken by a backup job"),
                "with 7.1 or later a full scratch costs the guest no waiting",
            ),
            Err(error) => Finding::bad("QEMU's version", &error),
        }];
        let names = Names::of(request);
        let folder = request.scratch_folder.as_deref();
        findings.push(match names.and_then(|names| scratch::open_all(&self.drives.disks, folder, &names)) {
            Ok(scratch) => {
                let room = |one: &Scratch| format!("{} MB in {}", one.limit / 1_000_000, one.folder().display());
                Finding::good("room for scratch files", scratch.iter().map(room).collect::<Vec<_>>().join(", "))
            }
            Err(error) => Finding::bad("room for scratch files", &error),
        });
        findings
    }

    /// One disk needs no pause, and one transaction neither; a machine that does not run has one already.
    fn pauses(&self, way: Way) -> Result<bool> {
        Ok(way == Way::Filter && self.drives.disks.len() > 1 && blocks::status(&self.monitor)?.running)
    }

    fn prepare(&mut self, request: &Request, address: &Address) -> Result<()> {
        let names = Names::of(request)?;
        let way = cut::choose(self.monitor.version(), address.way)?;
        leftovers::refuse_others(&self.monitor, &names)?;
        put_in_order(&self.monitor, &names, request)?;
        let drives = blocks::drives(&self.monitor, request, &address.images)?;
        let outline =
            |drives: &Drives| drives.disks.iter().map(|disk| (disk.name.clone(), disk.length)).collect::<Vec<_>>();
        if outline(&drives) != outline(&self.drives) {
            let message = "the machine has other disks now than when it was looked at";
            return Err(Error::new(ErrorKind::Unavailable, message).hint("try again"));
        }
        self.drives = drives;
        blocks::refuse_migration(&blocks::status(&self.monitor)?, &self.monitor)?;
        let run = Run {
            way,
            bases: self.drives.disks.iter().map(|drive| bitmap::base(drive, &request.previous)).collect(),
            previous: generations(request),
            pauses: self.pauses(way)?,
            socket: runtime::export_socket(self.monitor.path())?,
            server: Server::Leave,
            scratch: scratch::open_all(&self.drives.disks, request.scratch_folder.as_deref(), &names)?,
            loss: Arc::new(Loss::default()),
            watch: None,
            frozen: Vec::new(),
            names,
        };
        // From here on `finish` has something to remove.
        let run = self.run.insert(run);
        run.cut(&self.monitor, &self.drives).prepare(&run.scratch)?;
        export::start_server(&self.monitor, &run.socket, &mut run.server)
    }
}

fn planned(drive: &Drive, request: &Request) -> PlannedDisk {
    let (dirty_bytes, why_all) = match bitmap::base(drive, &request.previous) {
        Base::Since { dirty_bytes, .. } => (Some(dirty_bytes), None),
        Base::Nothing(reason) => (None, Some(reason)),
    };
    PlannedDisk { name: drive.name.clone(), length: drive.length, dirty_bytes, why_all }
}

fn generations(request: &Request) -> Vec<String> {
    request.previous.iter().filter_map(|disk| disk.generation.clone()).collect()
}

/// Removes what dead runs of this owner left, and keeps what the last snapshot's successor is read by.
fn put_in_order(monitor: &Monitor, names: &Names, request: &Request) -> Result<()> {
    runtime::remove_export_socket(monitor.path())?;
    leftovers::remove_nodes(monitor, names, Server::StopIfOurs)?;
    let keep = generations(request);
    leftovers::remove_bitmaps(monitor, names, &keep.iter().map(String::as_str).collect::<Vec<_>>())
}

impl Run {
    fn cut<'a>(&'a self, monitor: &'a Monitor, drives: &'a Drives) -> Cut<'a> {
        let (names, bases, way, pauses) = (&self.names, &self.bases, self.way, self.pauses);
        Cut { monitor, names, drives: &drives.disks, bases, way, pauses }
    }

    fn open(&mut self, monitor: &Monitor, drives: &Drives, address: &Address) -> Result<Vec<FrozenDisk>> {
        let mut disks = Vec::with_capacity(drives.disks.len());
        for (index, (drive, base)) in drives.disks.iter().zip(&self.bases).enumerate() {
            let node = match self.way {
                Way::Filter => cut::add_access(monitor, &self.names, index)?,
                Way::Backup => self.names.node(NodeKind::Scratch, index),
            };
            let export = self.names.item(index);
            let frozen = Frozen { drive, base, node, export, bitmap_by_node: self.way == Way::Filter };
            let opened = frozen.open(monitor, &self.names, &self.socket, &self.loss);
            let (disk, changed) = opened.map_err(|error| self.loss.check().err().unwrap_or(error))?;
            self.frozen.push(disk.clone());
            let (name, generation) = (drive.name.clone(), Some(self.names.bitmap()));
            disks.push(FrozenDisk { name, disk, changed, generation, source: address.of_disk(&drive.file) });
        }
        Ok(disks)
    }

    fn check(&self, monitor: &Monitor) -> Result<()> {
        self.loss.check()?;
        if self.way == Way::Backup {
            cut::check_jobs(monitor, &self.names, self.frozen.len())?;
        }
        self.frozen.iter().try_for_each(|disk| disk.check())?;
        // What was lost during the look.
        self.loss.check()
    }

    fn finish(mut self, monitor: &Monitor, outcome: Outcome) -> Result<()> {
        self.watch = None;
        self.frozen.clear();
        let removed = leftovers::remove_nodes(monitor, &self.names, self.server);
        let own = self.names.bitmap();
        let keep = match outcome {
            Outcome::Published => vec![own.as_str()],
            Outcome::Failed => self.previous.iter().map(String::as_str).collect(),
        };
        let bitmaps = leftovers::remove_bitmaps(monitor, &self.names, &keep);
        removed.and(bitmaps).and(runtime::remove_export_socket(monitor.path()))
    }
}

impl Source for QemuSource {
    fn uri(&self) -> String {
        self.address.to_uri()
    }

    /// None for a machine that is off.
    fn guest(&self) -> Option<Arc<dyn Guest>> {
        if matches!(self.machine, Some(Machine::Off(_))) {
            return None;
        }
        self.address.agent.clone().map(|socket| Arc::new(AgentGuest::new(socket)) as Arc<dyn Guest>)
    }

    fn examine(&mut self, request: &Request) -> Vec<Finding> {
        match &self.machine {
            Some(Machine::Running(running)) => running.examine(request, self.address.way),
            Some(Machine::Off(_)) => vec![Finding::good("machine", "is off: its image files would be read")],
            None => Vec::new(),
        }
    }

    fn plan(&mut self, request: &Request) -> Result<Plan> {
        Names::of(request)?;
        if self.machine.is_none() {
            let machine = match self.connect() {
                Ok((monitor, lock)) => {
                    let drives = blocks::drives(&monitor, request, &self.address.images)?;
                    let monitor = Arc::new(monitor);
                    Machine::Running(Box::new(Running { monitor, drives, run: None, _lock: lock }))
                }
                Err(error) if is_off(&error) => {
                    Machine::Off(Offline::new(&self.address, request, &self.files).map_err(|why| why.because(error))?)
                }
                Err(error) => return Err(error),
            };
            self.machine = Some(machine);
        }
        let way = self.address.way;
        match self.machine()? {
            Machine::Running(running) => running.plan(request, way),
            Machine::Off(offline) => offline.plan(request),
        }
    }

    fn prepare(&mut self, request: &Request) -> Result<()> {
        let address = self.address.clone();
        match self.machine()? {
            Machine::Running(running) => running.prepare(request, &address),
            Machine::Off(offline) => offline.prepare(request),
        }
    }

    fn tickets(&self) -> Vec<Ticket> {
        match &self.machine {
            Some(Machine::Running(running)) if running.run.as_ref().is_some_and(|run| run.pauses) => {
                vec![Ticket::Monitor { socket: self.address.socket.clone() }]
            }
            _ => Vec::new(),
        }
    }

    fn cut(&mut self) -> Result<()> {
        if let Machine::Off(_) = self.machine()? {
            return Ok(());
        }
        let (monitor, drives, run) = self.run()?;
        run.cut(monitor, drives).cut()?;
        let scratch = std::mem::take(&mut run.scratch);
        run.watch = Some(Watch::start(monitor, &run.names, run.way, scratch, &run.loss)?);
        Ok(())
    }

    fn open(&mut self) -> Result<Vec<FrozenDisk>> {
        let address = self.address.clone();
        if let Machine::Off(offline) = self.machine()? {
            return offline.open(&address);
        }
        let (monitor, drives, run) = self.run()?;
        run.open(monitor, drives, &address)
    }

    fn check(&mut self) -> Result<()> {
        if let Machine::Off(offline) = self.machine()? {
            return offline.check();
        }
        let (monitor, _, run) = self.run()?;
        run.check(monitor)
    }

    fn finish(&mut self, outcome: Outcome) -> Result<()> {
        match self.machine.take() {
            Some(Machine::Running(mut running)) => {
                let Some(run) = running.run.take() else { return Ok(()) };
                if blocks::status(&running.monitor).is_ok() || !running.monitor.has_ended() {
                    return run.finish(&running.monitor, outcome);
                }
                // The connection was lost, and perhaps QEMU with it. The lock stays ours.
                match Monitor::connect(&self.address.socket, GREETING) {
                    Ok(monitor) => run.finish(&monitor, outcome),
                    Err(error) if is_off(&error) => runtime::remove_export_socket(&self.address.socket),
                    Err(error) => Err(error),
                }
            }
            Some(Machine::Off(offline)) => offline.finish(),
            None => Ok(()),
        }
    }

    fn sweep(&mut self, request: &Request) -> Result<()> {
        let names = Names::of(request)?;
        if let Some(Machine::Running(running)) = &self.machine {
            return put_in_order(&running.monitor, &names, request);
        }
        match self.connect() {
            Ok((monitor, _lock)) => put_in_order(&monitor, &names, request),
            Err(error) if is_off(&error) => {
                let _lock = Lock::take(&self.address.socket)?;
                runtime::remove_export_socket(&self.address.socket)
            }
            Err(error) => Err(error),
        }
    }
}
