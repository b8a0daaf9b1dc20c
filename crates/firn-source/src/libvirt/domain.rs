//! [`Domain`]: what firn has to know of a domain's XML (<https://libvirt.org/formatdomain.html>).

use super::xml::Element;
use firn_disk::{Error, ErrorKind, Result};
use std::path::PathBuf;

/// A domain as `virsh dumpxml` tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Domain {
    /// Its name.
    pub name: String,
    /// Its UUID, as libvirt writes it.
    pub uuid: String,
    /// Whether QEMU runs for it, and under which number; another number is another run.
    pub id: Option<String>,
    /// Disks that hold its data.
    pub disks: Vec<DomainDisk>,
    /// Targets of what is left out, with the reason.
    pub left_out: Vec<(String, String)>,
    /// The file of its UEFI variables.
    pub nvram: Option<PathBuf>,
    /// Whether it has a TPM that keeps a state of its own.
    pub has_tpm: bool,
    /// User and group that QEMU runs as, where libvirt says so.
    pub owner: Option<(u32, u32)>,
    /// Whether it has a channel for the guest agent.
    pub has_agent: bool,
}

/// A disk of a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DomainDisk {
    /// `vda` and so on.
    pub target: String,
    /// The image or device.
    pub path: PathBuf,
    /// Whether it is a block device.
    pub is_block: bool,
    /// `qcow2`, `raw` and so on.
    pub format: String,
}

impl DomainDisk {
    /// Whether QEMU can keep a dirty bitmap in it.
    pub fn has_bitmaps(&self) -> bool {
        self.format == "qcow2"
    }
}

impl Domain {
    /// Reads what `virsh dumpxml` printed. Disks in `skip` are left out.
    ///
    /// # Errors
    /// `Unsupported` for disks that can neither be read nor be left out without a word of the user; `Io` for answers
    /// that make no sense.
    pub fn parse(xml: &str, skip: &[String]) -> Result<Self> {
        let root = Element::parse(xml).map_err(|error| error.context("virsh dumpxml"))?;
        let text = |path: &[&str]| root.at(path).map(Element::text).filter(|text| !text.is_empty());
        let missing = |what: &str| Error::new(ErrorKind::Io, format!("virsh dumpxml tells no {what}"));
        if root.name != "domain" {
            return Err(missing("domain"));
        }
        let devices = root.child("devices");
        let mut domain = Self {
            name: text(&["name"]).ok_or_else(|| missing("name"))?,
            uuid: text(&["uuid"]).filter(|uuid| is_uuid(uuid)).ok_or_else(|| missing("UUID"))?,
            id: root.attribute("id").map(str::to_owned),
            disks: Vec::new(),
            left_out: Vec::new(),
            nvram: nvram_of(&root),
            has_tpm: devices.and_then(|devices| devices.child("tpm")).is_some(),
            owner: root.elements().find_map(owner_of),
            has_agent: devices.is_some_and(has_agent),
        };
        for disk in devices.into_iter().flat_map(Element::elements).filter(|element| element.name == "disk") {
            domain.add_disk(disk, skip)?;
        }
        if let Some(unknown) = skip.iter().find(|name| !domain.left_out.iter().any(|(target, _)| target == *name)) {
            return Err(Error::not_found(format!("the domain {} has no disk {unknown} to leave out", domain.name)));
        }
        Ok(domain)
    }

    fn add_disk(&mut self, disk: &Element, skip: &[String]) -> Result<()> {
        let target = disk.child("target").and_then(|target| target.attribute("dev")).unwrap_or_default().to_owned();
        if target.is_empty() || !target.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(Error::new(ErrorKind::Io, "virsh dumpxml tells of a disk without a target"));
        }
        let source = disk.child("source");
        let attribute = |name| source.and_then(|source| source.attribute(name)).map(PathBuf::from);
        let device = disk.attribute("device").unwrap_or("disk");
        let kind = disk.attribute("type").unwrap_or_default();
        let reason = if skip.contains(&target) {
            Some("as told")
        } else if device == "cdrom" || device == "floppy" {
            Some("a removable medium")
        } else if disk.child("readonly").is_some() {
            Some("read-only")
        } else if disk.child("transient").is_some() {
            Some("its changes are dropped when the domain ends")
        } else if source.is_none() {
            Some("there is no medium in it")
        } else {
            None
        };
        if let Some(reason) = reason {
            self.left_out.push((target, reason.to_owned()));
            return Ok(());
        }
        let (path, is_block) = match (kind, device) {
            ("file", "disk") => (attribute("file"), false),
            ("block", "disk") => (attribute("dev"), true),
            _ => (None, false),
        };
        let Some(path) = path.filter(|path| path.is_absolute()) else {
            let what = if device == "disk" { format!("of type {kind}") } else { format!("a {device}") };
            let error = Error::unsupported(format!("the disk {target} of domain {} is {what}", self.name));
            return Err(error.hint(format!("take it by itself (nbd://…), and leave it out here by ?skip={target}")));
        };
        let driver = disk.child("driver").and_then(|driver| driver.attribute("type"));
        let format = driver.unwrap_or("raw").to_owned();
        if self.disks.iter().any(|other| other.target == target) {
            return Err(Error::new(ErrorKind::Io, format!("virsh dumpxml tells of two disks {target}")));
        }
        self.disks.push(DomainDisk { target, path, is_block, format });
        Ok(())
    }
}

fn is_uuid(text: &str) -> bool {
    text.len() == 36 && text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-')
}

/// As text of the element, or as a source of its own since libvirt 8.5.
fn nvram_of(root: &Element) -> Option<PathBuf> {
    let nvram = root.at(&["os", "nvram"])?;
    let text = nvram.text();
    let path = if text.is_empty() { nvram.child("source")?.attribute("file")?.to_owned() } else { text };
    Some(PathBuf::from(path)).filter(|path| path.is_absolute())
}

/// `<seclabel model='dac'><label>+64055:+64055</label>`: user and group of the running QEMU.
fn owner_of(element: &Element) -> Option<(u32, u32)> {
    if element.name != "seclabel" || element.attribute("model") != Some("dac") {
        return None;
    }
    let label = element.child("label")?.text();
    let (user, group) = label.split_once(':')?;
    let number = |text: &str| text.trim_start_matches('+').parse().ok();
    Some((number(user)?, number(group)?))
}

fn has_agent(devices: &Element) -> bool {
    let target = |channel: &Element| channel.child("target")?.attribute("name").map(str::to_owned);
    devices.elements().any(|channel| channel.name == "channel" && target(channel).is_some_and(|name| name == AGENT))
}

const AGENT: &str = "org.qemu.guest_agent.0";

#[cfg(test)]
mod tests {
    use super::*;

    fn domain(disks: &str) -> String {
        format!(
            "<domain type='kvm' id='7'><name>a &amp; b</name><uuid>93a5c045-6457-2c09-e56c-927cdf34e178</uuid>
             <os><nvram template='/t'>/var/n.fd</nvram></os><devices>{disks}<tpm model='tpm-crb'/>
             <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel></devices>
             <seclabel type='dynamic' model='dac' relabel='yes'><label>+64055:+107</label></seclabel></domain>"
        )
    }

    #[test]
    fn what_is_read() {
        let xml = domain(
            "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/a' index='2'/>
               <backingStore/><target dev='vda' bus='virtio'/></disk>
             <disk type='block'><source dev='/dev/b'/><target dev='sdb'/></disk>
             <disk type='file' device='cdrom'><target dev='hdc'/><readonly/></disk>
             <disk type='file' device='disk'><source file='/c'/><target dev='vdc'/><readonly/></disk>
             <disk type='network' device='disk'><source protocol='rbd' name='p/i'/><target dev='vdd'/></disk>",
        );
        let domain = Domain::parse(&xml, &["vdd".to_owned()]).unwrap();
        assert_eq!(
            (domain.name.as_str(), domain.id.as_deref(), domain.owner),
            ("a & b", Some("7"), Some((64055, 107)))
        );
        assert_eq!(domain.nvram.as_deref(), Some(std::path::Path::new("/var/n.fd")));
        assert!(domain.has_tpm && domain.has_agent);
        let disks: Vec<_> = domain.disks.iter().map(|disk| (disk.target.as_str(), disk.format.as_str())).collect();
        assert_eq!(disks, [("vda", "qcow2"), ("sdb", "raw")]);
        let left_out: Vec<_> = domain.left_out.iter().map(|(target, _)| target.as_str()).collect();
        assert_eq!(left_out, ["hdc", "vdc", "vdd"]);
        let error = Domain::parse(&xml, &[]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.next_step().unwrap().contains("skip=vdd"), "{error:?}");
        assert_eq!(Domain::parse(&xml, &["vdd".to_owned(), "vdx".to_owned()]).unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn answers_that_make_no_sense() {
        for xml in ["", "<domain/>", "<domainbackup/>", "<domain><name>x</name><uuid>../..</uuid></domain>"] {
            assert_eq!(Domain::parse(xml, &[]).unwrap_err().kind(), ErrorKind::Io, "{xml}");
        }
        let disk = "<disk type='file'><source file='/a'/><target dev='vda'/></disk>";
        assert_eq!(Domain::parse(&domain(&format!("{disk}{disk}")), &[]).unwrap_err().kind(), ErrorKind::Io);
        let disk = "<disk type='file'><source file='/a'/><target dev='../x'/></disk>";
        assert_eq!(Domain::parse(&domain(disk), &[]).unwrap_err().kind(), ErrorKind::Io);
        let disk = "<disk type='file'><source file='a'/><target dev='vda'/></disk>";
        assert_eq!(Domain::parse(&domain(disk), &[]).unwrap_err().kind(), ErrorKind::Unsupported);
    }
}
