//! An export of an NBD server as a source: one disk, read-only, so that nothing has to be cut.

use crate::source::{Changed, FrozenDisk, Outcome, Plan, PlannedDisk, Request, Source};
use firn_disk::{Disk, Error, ErrorKind, Result, SharedDisk};
use std::sync::Arc;

/// Opens the export that `uri` names. One that may be written to while it is read is opened only when `torn` is set.
///
/// # Errors
/// `Invalid` for a URI of another kind; `Unavailable` for an export that is not read-only, unless `torn`; as
/// [`firn_nbd::open`].
pub fn open_export(uri: &str, torn: bool) -> Result<SharedDisk> {
    let disk = firn_nbd::open(&firn_nbd::Uri::parse(uri)?, &firn_nbd::Options::default())?;
    if !disk.is_read_only() && !torn {
        return Err(Error::new(ErrorKind::Unavailable, "this export can be written to while it is read")
            .at_path(uri)
            .hint("export it read-only, as by `qemu-nbd --read-only`, or add --torn if nobody writes to it"));
    }
    Ok(Arc::new(disk))
}

/// One export.
#[derive(Debug)]
pub struct NbdSource {
    uri: String,
    name: String,
    torn: bool,
    disk: Option<SharedDisk>,
}

impl NbdSource {
    /// The export at `uri`, whose disk is called `name`. With `torn`, also one that may be written to.
    pub fn new(uri: String, name: String, torn: bool) -> Self {
        Self { uri, name, torn, disk: None }
    }

    fn disk(&mut self) -> Result<SharedDisk> {
        if let Some(disk) = &self.disk {
            return Ok(disk.clone());
        }
        let disk = open_export(&self.uri, self.torn)?;
        self.disk = Some(disk.clone());
        Ok(disk)
    }
}

impl Source for NbdSource {
    fn uri(&self) -> String {
        self.uri.clone()
    }

    fn is_atomic(&self) -> bool {
        !self.torn
    }

    fn leaves_things(&self) -> bool {
        false
    }

    fn plan(&mut self, _request: &Request) -> Result<Plan> {
        let length = self.disk()?.len();
        let why_all = Some("an export does not tell what changed".to_owned());
        let disk = PlannedDisk { name: self.name.clone(), length, dirty_bytes: None, why_all };
        Ok(Plan { disks: vec![disk], steps: vec![format!("read {}", self.uri)], ..Plan::default() })
    }

    fn prepare(&mut self, _request: &Request) -> Result<()> {
        self.disk().map(drop)
    }

    fn cut(&mut self) -> Result<()> {
        Ok(())
    }

    fn open(&mut self) -> Result<Vec<FrozenDisk>> {
        Ok(vec![FrozenDisk {
            name: self.name.clone(),
            disk: self.disk()?,
            changed: Changed::Unknown("an export does not tell what changed".to_owned()),
            generation: None,
            source: self.uri.clone(),
        }])
    }

    fn check(&mut self) -> Result<()> {
        Ok(())
    }

    fn finish(&mut self, _outcome: Outcome) -> Result<()> {
        Ok(())
    }

    fn sweep(&mut self, _request: &Request) -> Result<()> {
        Ok(())
    }
}
