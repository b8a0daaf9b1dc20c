//! Checkpoints: libvirt's names for the dirty bitmaps in a domain's qcow2 images
//! (<https://libvirt.org/formatcheckpoint.html>).
//!
//! ```text
//!   firn-0123456789abcdef-89abcdef        firn-<owner>-<run>
//! ```
//! A bitmap counts everything written since its checkpoint, whatever other checkpoints there are. The two parts live
//! apart: libvirt forgets the checkpoint when the domain is undefined or, being transient, ends; QEMU loses the bitmap
//! when it is killed before it could write it into the image, and then calls what an older run wrote inconsistent.
//! `--redefine` puts the two together again: with `--redefine-validate` only where a sound bitmap is there, which then can
//! be used; without it always, so that even a broken bitmap can be deleted.

use super::domain::Domain;
use super::job::checkpoint_xml;
use super::virsh::{PATIENCE, Virsh};
use super::xml::{Element, with_text};
use firn_disk::{Error, ErrorKind, Result};
use std::path::Path;

/// The name of a run's checkpoint.
pub fn name(owner: &str, run: &str) -> String {
    format!("firn-{owner}-{run}")
}

/// Whether `name` is one of a run of `owner`.
pub fn is_of(name: &str, owner: &str) -> bool {
    let run =
        name.strip_prefix("firn-").and_then(|name| name.strip_prefix(owner)).and_then(|name| name.strip_prefix('-'));
    run.is_some_and(|run| super::is_hexadecimal(run, 8))
}

/// A running domain's checkpoints.
#[derive(Debug, Clone, Copy)]
pub struct Checkpoints<'a> {
    pub virsh: &'a Virsh,
    pub domain: &'a Domain,
    /// The domain's definition, without which nothing can be redefined.
    pub definition: &'a str,
    /// A folder for documents that virsh reads.
    pub folder: &'a Path,
}

impl Checkpoints<'_> {
    /// What libvirt knows of `owner`'s.
    ///
    /// # Errors
    /// As [`Virsh::run`].
    pub fn list(virsh: &Virsh, domain: &Domain, owner: &str) -> Result<Vec<String>> {
        let text = virsh.run(&["checkpoint-list", "--domain", &domain.uuid, "--name"], PATIENCE)?;
        Ok(text.lines().map(str::trim).filter(|name| is_of(name, owner)).map(str::to_owned).collect())
    }

    /// The disks for which QEMU has a sound bitmap of the checkpoint, with the bytes that are dirty in it.
    ///
    /// # Errors
    /// As [`Virsh::run`]; answers that make no sense.
    pub fn dirty(virsh: &Virsh, domain: &Domain, name: &str) -> Result<Vec<(String, u64)>> {
        let arguments =
            ["checkpoint-dumpxml", "--domain", &domain.uuid, "--checkpointname", name, "--size", "--no-domain"];
        let xml = virsh.run(&arguments, PATIENCE)?;
        let root = Element::parse(&xml).map_err(|error| error.context("virsh checkpoint-dumpxml"))?;
        let disks = root.child("disks").into_iter().flat_map(Element::elements);
        let sizes =
            disks.filter_map(|disk| Some((disk.attribute("name")?.to_owned(), disk.attribute("size")?.parse().ok()?)));
        Ok(sizes.collect())
    }

    /// Makes libvirt know the checkpoint `name` again, for those disks that still have a sound bitmap of it. Nothing
    /// happens where there is none.
    ///
    /// # Errors
    /// As [`Virsh::run`].
    pub fn recover(&self, name: &str) -> Result<()> {
        let mut sound = Vec::new();
        for disk in self.domain.disks.iter().filter(|disk| disk.has_bitmaps()) {
            if self.redefine(name, &[&disk.target], true).is_ok() {
                self.forget(name)?;
                sound.push(disk.target.as_str());
            }
        }
        if sound.is_empty() { Ok(()) } else { self.redefine(name, &sound, true) }
    }

    /// Deletes a checkpoint with all its bitmaps, sound or not.
    ///
    /// # Errors
    /// As [`Virsh::run`]: what is left then is a bitmap that costs a little memory.
    pub fn delete(&self, name: &str) -> Result<()> {
        let Err(error) = self.delete_as_it_is(name) else { return Ok(()) };
        if matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Denied)
            || error.to_string().contains("inactive domain")
        {
            return Err(error);
        }
        // One of its bitmaps is lost, so each is deleted by itself.
        self.forget(name)?;
        for disk in self.domain.disks.iter().filter(|disk| disk.has_bitmaps()) {
            self.redefine(name, &[&disk.target], false)?;
            if self.delete_as_it_is(name).is_err() {
                self.forget(name)?;
            }
        }
        Ok(())
    }

    fn delete_as_it_is(&self, name: &str) -> Result<()> {
        let arguments = ["checkpoint-delete", "--domain", &self.domain.uuid, "--checkpointname", name];
        self.virsh.run(&arguments, PATIENCE).map(drop)
    }

    fn forget(&self, name: &str) -> Result<()> {
        let arguments = ["checkpoint-delete", "--domain", &self.domain.uuid, "--checkpointname", name, "--metadata"];
        self.virsh.run(&arguments, PATIENCE).map(drop)
    }

    fn redefine(&self, name: &str, targets: &[&str], validate: bool) -> Result<()> {
        let mut document = checkpoint_xml(name, targets, std::iter::empty());
        // libvirt insists on a time and does not use it.
        document.push(with_text("creationTime", "1"));
        document.push(Element::parse(self.definition)?);
        let file = self.folder.join("redefine.xml");
        write_document(&file, &document.write())?;
        let file = file.to_string_lossy();
        let mut arguments = vec!["checkpoint-create", "--domain", &self.domain.uuid, "--xmlfile", &file, "--redefine"];
        if validate {
            arguments.push("--redefine-validate");
        }
        self.virsh.run(&arguments, PATIENCE).map(drop)
    }
}

/// Writes a document for virsh to read.
///
/// # Errors
/// The system's own.
pub fn write_document(file: &Path, document: &str) -> Result<()> {
    std::fs::write(file, document).map_err(|error| Error::from_io("write", error).at_path(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let owner = "0123456789abcdef";
        assert!(is_of(&name(owner, "89abcdef"), owner));
        for other in
            ["firn-0123456789abcdef-89abcde", "firn-0123456789abcdef-89abcdeg", "firn-0123456789abcdee-89abcdef", "x"]
        {
            assert!(!is_of(other, owner), "{other}");
        }
    }
}
