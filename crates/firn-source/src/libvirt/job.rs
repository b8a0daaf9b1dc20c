//! The backup job of a domain: `backup-begin`, `backup-dumpxml`, `domjobabort`
//! (<https://libvirt.org/formatbackup.html>).
//!
//! ```text
//!   <domainbackup mode='pull'>                                     <domaincheckpoint>
//!     <server transport='unix' socket='FOLDER/nbd.sock'/>            <name>firn-OWNER-RUN</name>
//!     <disks>                                                        <disks>
//!       <disk name='vda' type='file' backupmode='incremental'          <disk name='vda' checkpoint='bitmap'/>
//!             incremental='firn-OWNER-RUN'>                             <disk name='vdb' checkpoint='no'/>
//!         <scratch file='…/firn-OWNER-RUN-TAG-vda.qcow2'/> …
//! ```
//! libvirt has one job of this kind for a domain at a time. It exports each disk under its target's name, with the dirty
//! bitmap `backup-TARGET` where it is incremental, and makes and removes the scratch files. A domain that another job
//! keeps busy makes it wait 30 s, so that is looked at before the guest is frozen.

use super::virsh::{PATIENCE, Virsh};
use super::xml::{Element, with_text};
use firn_disk::{Error, ErrorKind, Result};
use std::path::Path;
use std::time::{Duration, Instant};

/// How a disk takes part in a job.
#[derive(Debug, Clone)]
pub struct JobDisk {
    /// `vda` and so on.
    pub target: String,
    /// Where the scratch file is made.
    pub scratch: String,
    /// The checkpoint since which changes are wanted.
    pub base: Option<String>,
    /// Whether the new checkpoint keeps a bitmap in it.
    pub has_bitmap: bool,
}

/// The job's document.
pub fn backup_xml(socket: &Path, disks: &[JobDisk]) -> String {
    let mut root = Element::new("domainbackup", &[("mode", "pull")]);
    root.push(Element::new("server", &[("transport", "unix"), ("socket", &socket.to_string_lossy())]));
    let mut list = Element::new("disks", &[]);
    for disk in disks {
        let mut element = Element::new("disk", &[("name", &disk.target), ("backup", "yes"), ("type", "file")]);
        if let Some(base) = &disk.base {
            element.set_attribute("backupmode", "incremental");
            element.set_attribute("incremental", base);
        } else {
            element.set_attribute("backupmode", "full");
        }
        element.push(Element::new("driver", &[("type", "qcow2")]));
        element.push(Element::new("scratch", &[("file", &disk.scratch)]));
        list.push(element);
    }
    root.push(list);
    root.write()
}

/// The document of the checkpoint `name`, for the disks that have bitmaps; `others` take no part.
pub fn checkpoint_xml<'a>(name: &str, bitmaps: &[&str], others: impl Iterator<Item = &'a str>) -> Element {
    let mut root = Element::new("domaincheckpoint", &[]);
    root.push(with_text("name", name));
    let mut list = Element::new("disks", &[]);
    for target in bitmaps {
        list.push(Element::new("disk", &[("name", target), ("checkpoint", "bitmap"), ("bitmap", name)]));
    }
    for target in others {
        list.push(Element::new("disk", &[("name", target), ("checkpoint", "no")]));
    }
    root.push(list);
    root
}

/// The name of the bitmap that is exported with a disk.
pub fn context(target: &str) -> String {
    format!("{}backup-{target}", firn_nbd::QEMU_DIRTY_BITMAP)
}

/// The socket of the domain's backup job; none where there is no job. It is empty for one that has no unix socket.
///
/// # Errors
/// As [`Virsh::run`].
pub fn socket(virsh: &Virsh, domain: &str) -> Result<Option<String>> {
    match virsh.run(&["backup-dumpxml", "--domain", domain], PATIENCE) {
        Ok(xml) => {
            let root = Element::parse(&xml).map_err(|error| error.context("virsh backup-dumpxml"))?;
            let socket = root.child("server").and_then(|server| server.attribute("socket"));
            Ok(Some(socket.unwrap_or_default().to_owned()))
        }
        Err(error) if error.to_string().contains("no domain backup job") => Ok(None),
        Err(error) => Err(error),
    }
}

/// # Errors
/// `Unavailable` when some other job keeps the domain busy: a migration, a dump.
pub fn refuse_other_jobs(virsh: &Virsh, domain: &str) -> Result<()> {
    let text = virsh.run(&["domjobinfo", "--domain", domain], PATIENCE)?;
    let value = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key));
        line.map(|value| value.trim_start_matches(':').trim().to_owned())
    };
    match value("Job type").as_deref() {
        Some("None") => Ok(()),
        Some(_) => {
            let what = value("Operation").unwrap_or_else(|| "another job".to_owned());
            Err(Error::new(ErrorKind::Unavailable, format!("the domain is busy: {}", what.to_lowercase()))
                .hint("wait for its end; `virsh domjobinfo` shows it"))
        }
        None => Err(Error::new(ErrorKind::Io, "virsh domjobinfo tells no job type")),
    }
}

/// # Errors
/// `Unavailable` where QEMU itself no longer copies aside what is overwritten on the disk `target`.
pub fn check_disk(virsh: &Virsh, domain: &str, target: &str) -> Result<()> {
    let text = virsh.run(&["blockjob", "--domain", domain, "--path", target, "--info", "--raw"], PATIENCE)?;
    if text.lines().any(|line| line.trim() == "type=Backup") {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Unavailable, format!("the backup job of disk {target} has ended")))
}

/// Ends the domain's backup job if it is the one at `ours`, and waits until it has ended.
///
/// # Errors
/// As [`Virsh::run`]; `Unavailable` when it has not ended in 40 s.
pub fn end(virsh: &Virsh, domain: &str, ours: &str) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let is_there = || Ok::<_, Error>(socket(virsh, domain)?.is_some_and(|socket| socket == ours));
    let mut last = None;
    while is_there()? {
        // It may be ending already; whether it has ended is looked at in any case.
        last = virsh.run(&["domjobabort", "--domain", domain], PATIENCE).err().or(last);
        if Instant::now() >= deadline {
            let late = Error::new(ErrorKind::Unavailable, "libvirt did not end the backup job");
            return Err(last.unwrap_or(late).hint("`virsh domjobabort` ends it"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documents() {
        let disk = |target: &str, base: Option<&str>| JobDisk {
            target: target.to_owned(),
            scratch: format!("/s/{target}&"),
            base: base.map(str::to_owned),
            has_bitmap: true,
        };
        let xml = backup_xml(Path::new("/r/nbd.sock"), &[disk("vda", Some("firn-a-b")), disk("vdb", None)]);
        assert_eq!(
            xml,
            "<domainbackup mode='pull'><server transport='unix' socket='/r/nbd.sock'/><disks>\
             <disk name='vda' backup='yes' type='file' backupmode='incremental' incremental='firn-a-b'>\
             <driver type='qcow2'/><scratch file='/s/vda&amp;'/></disk>\
             <disk name='vdb' backup='yes' type='file' backupmode='full'><driver type='qcow2'/>\
             <scratch file='/s/vdb&amp;'/></disk></disks></domainbackup>"
        );
        assert_eq!(
            checkpoint_xml("n", &["vda"], ["vdb"].into_iter()).write(),
            "<domaincheckpoint><name>n</name><disks><disk name='vda' checkpoint='bitmap' bitmap='n'/>\
             <disk name='vdb' checkpoint='no'/></disks></domaincheckpoint>"
        );
    }
}
