//! A machine that is off: its disks from their image files, under QEMU's lock.
//!
//! Which files they are is said by the URI, or else by the last snapshot. A machine that is started meanwhile finds them
//! locked, as if another QEMU had them.

use super::address::{Address, file_of_disk};
use crate::file::{FileOptions, FileSource};
use crate::source::{FrozenDisk, Outcome, Plan, PreviousDisk, Request, Source};
use firn_disk::{Error, ErrorKind, Result};
use std::path::PathBuf;

/// The disks of a machine that is off.
#[derive(Debug)]
pub(super) struct Offline {
    disks: Vec<OfflineDisk>,
}

#[derive(Debug)]
struct OfflineDisk {
    path: PathBuf,
    file: FileSource,
}

impl Offline {
    /// # Errors
    /// `Unavailable` when nothing tells the files.
    pub(super) fn new(address: &Address, request: &Request, options: &FileOptions) -> Result<Self> {
        let known = |disk: &PreviousDisk| Some((disk.name.clone(), PathBuf::from(file_of_disk(&disk.source)?)));
        let known: Vec<(String, PathBuf)> = request.previous.iter().filter_map(known).collect();
        let disks = if address.images.is_empty() { known } else { name_images(&address.images, &known) };
        if disks.is_empty() {
            return Err(Error::new(ErrorKind::Unavailable, "the machine is off, and nothing tells its image files")
                .at_path(&address.socket)
                .hint("start it, or name its images: qemu:SOCKET?images=PATH,PATH"));
        }
        let open = |(name, path): (String, PathBuf)| {
            let file = FileSource::new(&path, name, options.clone())?;
            Ok(OfflineDisk { path, file })
        };
        Ok(Self { disks: disks.into_iter().map(open).collect::<Result<_>>()? })
    }

    pub(super) fn plan(&mut self, request: &Request) -> Result<Plan> {
        let mut plan = Plan::default();
        plan.steps.push("the machine is off: take its image files".to_owned());
        for disk in &mut self.disks {
            let one = disk.file.plan(request)?;
            plan.disks.extend(one.disks);
            plan.steps.extend(one.steps);
        }
        Ok(plan)
    }

    pub(super) fn prepare(&mut self, request: &Request) -> Result<()> {
        self.disks.iter_mut().try_for_each(|disk| disk.file.prepare(request))
    }

    pub(super) fn open(&mut self, address: &Address) -> Result<Vec<FrozenDisk>> {
        let mut frozen = Vec::new();
        for disk in &mut self.disks {
            for mut one in disk.file.open()? {
                one.source = address.of_disk(&disk.path.to_string_lossy());
                frozen.push(one);
            }
        }
        Ok(frozen)
    }

    pub(super) fn check(&mut self) -> Result<()> {
        self.disks.iter_mut().try_for_each(|disk| disk.file.check())
    }

    pub(super) fn finish(mut self) -> Result<()> {
        self.disks.iter_mut().try_for_each(|disk| disk.file.finish(Outcome::Published))
    }
}

/// Images by the names that they had in the last snapshot, others as virtio disks in their order.
fn name_images(images: &[PathBuf], known: &[(String, PathBuf)]) -> Vec<(String, PathBuf)> {
    let mut free =
        ('a'..='z').map(|letter| format!("vd{letter}")).filter(|name| !known.iter().any(|(it, _)| it == name));
    let name = |path: &PathBuf| {
        let before = known.iter().find(|(_, file)| file == path).map(|(name, _)| name.clone());
        before.or_else(|| free.next()).unwrap_or_else(|| path.display().to_string())
    };
    images.iter().map(name).zip(images.iter().cloned()).collect()
}
