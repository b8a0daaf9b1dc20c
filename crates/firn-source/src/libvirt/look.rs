//! [`Look`]: a domain looked at, nothing changed: its disks, what the pool has of them, and what would be done.

use super::checkpoint::{Checkpoints, is_of};
use super::domain::{Domain, DomainDisk};
use super::host::Host;
use super::location::Location;
use super::run::scratch_folder;
use super::virsh::{PATIENCE, Virsh};
use crate::file::FileSource;
use crate::source::{Attachment, Plan, PlannedDisk, PreviousDisk, Request, Source};
use firn_disk::{Error, ErrorKind, Result};

/// A file of UEFI variables has 64 MiB at most, on x86 528 KiB; 16 MiB are kept with a snapshot.
const MOST_NVRAM: u64 = 16 << 20;

/// A domain as it was found.
#[derive(Debug)]
pub struct Look {
    /// What runs, or would run.
    pub domain: Domain,
    /// The definition, as `dumpxml --inactive` gives it, with its secrets where we may see them.
    pub definition: String,
    /// Tells what is made for this domain from what is made for others.
    pub tag: String,
    /// For each disk the checkpoint that its next changes count from: known to libvirt, of the state that the pool has.
    pub bases: Vec<Option<String>>,
}

/// What is known of a disk before it is read.
#[derive(Debug, PartialEq, Eq)]
pub enum Base {
    /// The changes since this checkpoint, with so many bytes.
    Since(String, u64),
    /// The pool has the state of this checkpoint, and libvirt does not know it (any more).
    Forgotten(String),
    /// All of it has to be read.
    None(String),
}

impl Look {
    /// Looks.
    ///
    /// # Errors
    /// As [`Virsh::run`], [`Domain::parse`]; `Invalid` where a number means another domain than the name.
    pub fn take(virsh: &Virsh, location: &Location) -> Result<Self> {
        let wanted = location.domain.as_str();
        let xml = virsh.run(&["dumpxml", "--domain", wanted], PATIENCE)?;
        let domain = Domain::parse(&xml, &location.skip)?;
        if domain.name != wanted && !domain.uuid.eq_ignore_ascii_case(wanted) {
            let error = Error::invalid(format!("libvirt takes {wanted} for the number of the domain {}", domain.name));
            return Err(error.hint("name the domain by its UUID"));
        }
        if domain.disks.is_empty() {
            return Err(Error::not_found(format!("the domain {} has no disk to take", domain.name)));
        }
        let arguments = ["dumpxml", "--domain", &domain.uuid, "--inactive", "--security-info"];
        let definition = match virsh.run(&arguments, PATIENCE) {
            // Who may only look does not see passwords.
            Err(error) if error.kind() != ErrorKind::Unavailable => virsh.run(&arguments[..4], PATIENCE)?,
            result => result?,
        };
        let tag = domain.uuid.chars().filter(char::is_ascii_hexdigit).take(12).collect::<String>().to_lowercase();
        Ok(Self { bases: vec![None; domain.disks.len()], domain, definition, tag })
    }

    /// What the pool's last state of each disk is worth. Notes the bases. `lengths` are those of the disks now.
    ///
    /// # Errors
    /// As [`Virsh::run`].
    pub fn find_bases(&mut self, virsh: &Virsh, request: &Request, lengths: Option<&[u64]>) -> Result<Vec<Base>> {
        let known = Checkpoints::list(virsh, &self.domain, &request.owner)?;
        let mut dirty: Vec<(String, Vec<(String, u64)>)> = Vec::new();
        let mut bases = Vec::new();
        for (number, disk) in self.domain.disks.iter().enumerate() {
            let previous = request.previous.iter().find(|previous| previous.name == disk.target);
            let length = lengths.and_then(|lengths| lengths.get(number));
            if previous.zip(length).is_some_and(|(previous, length)| previous.length > *length) {
                bases.push(Base::None("it was longer at the last snapshot".to_owned()));
                continue;
            }
            let name = match generation(disk, previous, &request.owner) {
                Ok(name) => name,
                Err(reason) => {
                    bases.push(Base::None(reason));
                    continue;
                }
            };
            if !known.contains(&name) {
                bases.push(Base::Forgotten(name));
                continue;
            }
            if !dirty.iter().any(|(known, _)| *known == name) && self.domain.id.is_some() {
                dirty.push((name.clone(), Checkpoints::dirty(virsh, &self.domain, &name)?));
            }
            let sizes = dirty.iter().find(|(known, _)| *known == name).map(|(_, sizes)| sizes);
            let size = sizes.and_then(|sizes| sizes.iter().find(|(target, _)| *target == disk.target));
            bases.push(match size {
                Some((_, bytes)) => Base::Since(name, *bytes),
                // QEMU alone knows its bitmaps.
                None if self.domain.id.is_none() => Base::Since(name, 0),
                None => Base::None("its dirty bitmap is lost or inconsistent".to_owned()),
            });
        }
        self.bases = bases
            .iter()
            .map(|base| match base {
                Base::Since(name, _) => Some(name.clone()),
                _ => None,
            })
            .collect();
        Ok(bases)
    }

    /// Lengths of all disks in bytes, in order.
    ///
    /// # Errors
    /// As [`Virsh::run`]; answers that make no sense.
    pub fn lengths(&self, virsh: &Virsh) -> Result<Vec<u64>> {
        let text = virsh.run(&["domblkinfo", "--domain", &self.domain.uuid, "--all"], PATIENCE)?;
        let length = |disk: &DomainDisk| {
            let line = text
                .lines()
                .map(str::split_whitespace)
                .find_map(|mut fields| (fields.next()? == disk.target).then_some(fields.next()?.parse::<u64>()));
            line.and_then(std::result::Result::ok).ok_or_else(|| {
                Error::new(ErrorKind::Io, format!("virsh domblkinfo tells no length of {}", disk.target))
            })
        };
        self.domain.disks.iter().map(length).collect()
    }

    /// The plan for a domain that runs.
    ///
    /// # Errors
    /// As [`Virsh::run`].
    pub fn plan_running(&mut self, virsh: &Virsh, host: &Host, request: &Request) -> Result<Plan> {
        let lengths = self.lengths(virsh)?;
        let bases = self.find_bases(virsh, request, Some(&lengths))?;
        let mut plan = Plan { steps: self.first_steps(), ..Plan::default() };
        for ((disk, base), length) in self.domain.disks.iter().zip(bases).zip(lengths) {
            let (dirty_bytes, why_all) = match base {
                Base::Since(_, bytes) => (Some(bytes), None),
                Base::Forgotten(name) => (None, Some(format!("libvirt does not know its checkpoint {name} any more"))),
                Base::None(reason) => (None, Some(reason)),
            };
            plan.disks.push(PlannedDisk { name: disk.target.clone(), length, dirty_bytes, why_all });
            let folder = scratch_folder(disk, request);
            let step = format!("{}: copy aside what the guest overwrites, in {}", disk.target, folder.display());
            plan.steps.push(step);
        }
        plan.steps.push("begin one backup job with a checkpoint over all of them, and read it over NBD".to_owned());
        self.attach(host, &mut plan);
        Ok(plan)
    }

    /// The plan for one that is shut off.
    ///
    /// # Errors
    /// As [`Virsh::run`] and opening the images.
    pub fn plan_files(
        &mut self,
        virsh: &Virsh,
        host: &Host,
        request: &Request,
        files: &mut [FileSource],
    ) -> Result<Plan> {
        self.find_bases(virsh, request, None)?;
        let mut plan = Plan { steps: self.first_steps(), ..Plan::default() };
        for file in files {
            let of_file = file.plan(request)?;
            plan.disks.extend(of_file.disks);
            plan.steps.extend(of_file.steps);
        }
        for disk in &mut plan.disks {
            disk.why_all = Some("the domain is shut off".to_owned());
        }
        self.attach(host, &mut plan);
        Ok(plan)
    }

    fn first_steps(&self) -> Vec<String> {
        self.domain.left_out.iter().map(|(target, reason)| format!("leave out {target}: {reason}")).collect()
    }

    /// Definition and UEFI variables. What cannot be kept is told.
    fn attach(&self, host: &Host, plan: &mut Plan) {
        let bytes = self.definition.clone().into_bytes();
        plan.attachments.push(Attachment { name: "domain.xml".to_owned(), bytes });
        if let Some(nvram) = &self.domain.nvram {
            match host.read(nvram, MOST_NVRAM) {
                Ok(bytes) => plan.attachments.push(Attachment { name: "nvram.fd".to_owned(), bytes }),
                Err(error) => plan.steps.push(format!("the UEFI variables are not kept: {error}")),
            }
        }
        if self.domain.has_tpm {
            plan.steps.push("the state of the TPM is not kept".to_owned());
        }
        if self.domain.id.is_some() && !self.domain.has_agent {
            plan.steps.push("the domain has no channel for a guest agent, so it cannot be frozen".to_owned());
        }
    }
}

/// The checkpoint of the pool's last state of a disk, or why there is none.
fn generation(disk: &DomainDisk, previous: Option<&PreviousDisk>, owner: &str) -> std::result::Result<String, String> {
    if !disk.has_bitmaps() {
        return Err(format!("a {} image keeps no dirty bitmap", disk.format));
    }
    let Some(previous) = previous else { return Err("there is no snapshot of it yet".to_owned()) };
    let generation = previous.generation.as_deref().filter(|generation| is_of(generation, owner));
    generation.map(str::to_owned).ok_or_else(|| "the last snapshot of it left no checkpoint".to_owned())
}
