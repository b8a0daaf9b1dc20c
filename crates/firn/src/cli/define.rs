//! `firn restore --define`: the restored disks become a domain of libvirt, beside the one that they were taken from.
//!
//! The definition is the `domain.xml` that was kept with the snapshot, with everything fresh that two domains must not share
//! (`firn_source::libvirt::redefine`). All of it is made up and checked before the first byte is written.

use super::context::Context;
use super::output;
use clap::Args;
use firn_disk::{Error, Result};
use firn_pool::{Attachment, Entropy, SystemEntropy};
use firn_source::libvirt::{self, Fresh, Redefined};
use serde_json::{Value, json};
use std::fmt;
use std::path::{Path, PathBuf};
use uuid::Builder;

/// The definition's name among the files that are kept with a snapshot.
const DEFINITION: &str = "domain.xml";
/// The UEFI variables' name.
const NVRAM: &str = "nvram.fd";

/// What a domain is made of.
#[derive(Debug, Args)]
pub struct DefineArgs {
    /// Define the restored disks as a libvirt domain of this name, with a fresh UUID and MAC addresses; OUT is a folder
    #[arg(long, value_name = "NEWNAME", help_heading = "As a libvirt domain")]
    define: Option<String>,
    /// At this libvirt, in place of LIBVIRT_DEFAULT_URI or qemu:///system
    #[arg(long, value_name = "URI", requires = "define", help_heading = "As a libvirt domain")]
    connect: Option<String>,
}

impl DefineArgs {
    /// The new domain's name, if there is to be one.
    pub fn name(&self) -> Option<&str> {
        self.define.as_deref()
    }
}

/// A domain that is about to be defined.
#[derive(Debug)]
pub struct Definition {
    name: String,
    uuid: String,
    connection: String,
    folder: PathBuf,
    made: Redefined,
}

impl Definition {
    /// Makes it up for `disks` (names and formats) that will lie in `folder` as `NAME.FORMAT`, with `new_ids` also with
    /// serial numbers and WWNs of their own.
    ///
    /// # Errors
    /// `NotFound` where no definition was kept or it does not have these disks; `Exists` where libvirt has a domain of that
    /// name; what libvirt says.
    pub fn prepare(
        args: &DefineArgs,
        name: &str,
        folder: &Path,
        disks: &[(String, &'static str)],
        attachments: &[Attachment],
        new_ids: bool,
    ) -> Result<Self> {
        let kept = |name: &str| attachments.iter().find(|attachment| attachment.name == name);
        let Some(definition) = kept(DEFINITION) else {
            return Err(Error::not_found(format!("no {DEFINITION} was kept with this snapshot")).hint(
                "restore without --define; snapshots of libvirt:// sources keep it, others by --config domain.xml",
            ));
        };
        let xml = std::str::from_utf8(&definition.bytes)
            .map_err(|_| Error::invalid(format!("the {DEFINITION} that was kept is no text")))?;
        let folder = std::path::absolute(folder).map_err(|error| Error::from_io("find", error).at_path(folder))?;
        let files: Vec<_> = disks
            .iter()
            .map(|(disk, format)| (disk.clone(), folder.join(format!("{disk}.{format}")), *format))
            .collect();
        let mut random = |bytes: &mut [u8]| SystemEntropy.fill(bytes);
        let mut bytes = [0; 16];
        random(&mut bytes)?;
        let uuid = Builder::from_random_bytes(bytes).into_uuid().to_string();
        let nvram = kept(NVRAM).map(|_| folder.join(NVRAM));
        let fresh = Fresh { name, uuid: &uuid, disks: &files, nvram: nvram.as_deref(), new_ids };
        let made = libvirt::redefine(xml, &fresh, &mut random)?;
        let connection = args.connect.clone().unwrap_or_else(libvirt::default_connection);
        libvirt::refuse_existing(&connection, name)?;
        Ok(Self { name: name.to_owned(), uuid, connection, folder, made })
    }

    /// Tells libvirt of it. The domain is not started.
    ///
    /// # Errors
    /// What libvirt says; the restored files stay.
    pub fn define(&self, context: &Context) -> Result<()> {
        libvirt::define(&self.connection, &self.made.xml).map_err(|error| {
            let hint = format!("the restored files are in {}", self.folder.display());
            error.context("the disks were restored, yet not defined").hint(hint)
        })?;
        for note in self.made.notes.iter().filter(|_| !context.quiet) {
            eprintln!("firn: {}: {}", output::plain(&self.name), output::plain(note));
        }
        Ok(())
    }

    /// For the report.
    pub fn json(&self) -> Value {
        json!({ "name": self.name, "uuid": self.uuid, "connection": self.connection, "notes": self.made.notes })
    }
}

impl fmt::Display for Definition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, connection) = (output::plain(&self.name), output::plain(&self.connection));
        write!(f, "defined {name} at {connection}, uuid {}", self.uuid)
    }
}
