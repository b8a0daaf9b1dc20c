//! A machine that is off: its disks from their image files, under QEMU's lock.
//!
//! Which files they are is said by the URI, or else by the last snapshot. A machine that is started meanwhile finds them
//! locked, as if another QEMU had them.
//!
//! QEMU saved the last snapshot's bitmap in a qcow2 image when the machine was shut off: if it counts, only that is read.
//! A new one cannot be begun without QEMU, so that the old one stays the disk's generation: it goes on recording when the
//! machine is started, and what it holds then is what changed since this snapshot, and more. Where there is none that
//! counts, the next snapshot reads everything.

use super::address::{Address, file_of_disk};
use crate::file::{FileOptions, FileSource};
use crate::source::{Changed, FrozenDisk, Outcome, Plan, PlannedDisk, PreviousDisk, Request, Source};
use firn_disk::{Error, ErrorKind, Result};
use firn_format::image::{self, StoredBitmap};
use std::path::PathBuf;

/// The disks of a machine that is off.
#[derive(Debug)]
pub(super) struct Offline {
    disks: Vec<OfflineDisk>,
    options: FileOptions,
}

#[derive(Debug)]
struct OfflineDisk {
    path: PathBuf,
    file: FileSource,
    /// Known once it is planned, while the image is locked.
    changed: Changed,
    generation: Option<String>,
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
            let changed = Changed::Unknown(String::new());
            Ok(OfflineDisk { path, file, changed, generation: None })
        };
        Ok(Self { disks: disks.into_iter().map(open).collect::<Result<_>>()?, options: options.clone() })
    }

    pub(super) fn plan(&mut self, request: &Request) -> Result<Plan> {
        let mut plan = Plan::default();
        plan.steps.push("the machine is off: take its image files".to_owned());
        for disk in &mut self.disks {
            let one = disk.file.plan(request)?;
            plan.steps.extend(one.steps);
            for mut planned in one.disks {
                disk.look_at_bitmap(&planned, request, &self.options)?;
                (planned.dirty_bytes, planned.why_all) = match &disk.changed {
                    Changed::Unknown(reason) => (None, Some(reason.clone())),
                    Changed::Since(ranges) => (Some(ranges.iter().map(|range| range.end - range.start).sum()), None),
                };
                plan.disks.push(planned);
            }
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
                one.changed = disk.changed.clone();
                one.generation.clone_from(&disk.generation);
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

impl OfflineDisk {
    fn look_at_bitmap(&mut self, disk: &PlannedDisk, request: &Request, options: &FileOptions) -> Result<()> {
        let before = request.previous.iter().find(|before| before.name == disk.name);
        let (changed, generation) = match before.and_then(|before| Some((before, before.generation.as_ref()?))) {
            None => (Changed::Unknown("the last snapshot left no dirty bitmap".to_owned()), None),
            Some((before, _)) if before.length != disk.length => {
                let message = format!("it was resized from {} to {} bytes", before.length, disk.length);
                (Changed::Unknown(message), None)
            }
            Some((_, generation)) => match image::open(&self.path, &options.image)?.stored_bitmap(generation) {
                Ok(StoredBitmap::Dirty(ranges)) => (Changed::Since(ranges), Some(generation.clone())),
                Ok(StoredBitmap::Missing) => {
                    (Changed::Unknown("its dirty bitmap is not in the image".to_owned()), None)
                }
                Ok(StoredBitmap::Unusable(why)) => (Changed::Unknown(format!("of its dirty bitmap: {why}")), None),
                // All of it can be read all the same.
                Err(error) => (Changed::Unknown(format!("its dirty bitmap cannot be read: {error}")), None),
            },
        };
        (self.changed, self.generation) = (changed, generation);
        Ok(())
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
