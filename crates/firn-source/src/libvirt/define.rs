//! A domain's definition made that of a new domain beside the old one: [`redefine`], [`define`].
//!
//! What two domains must not share is made fresh: name, UUID (in the SMBIOS entry, too), MAC addresses, VM generation id,
//! channels' paths, UEFI variables; the disks of the snapshot become the files that they were restored to. Everything else
//! stays as it was, in its order, known or not. Disk serials and WWNs are what the guest knows its disks by, so they stay
//! unless they are asked to be fresh. Disks that are not part of the snapshot and can be written to are dropped: two
//! domains writing to one disk destroy it.

use super::virsh::{PATIENCE, Virsh};
use super::xml::{Element, with_text};
use firn_disk::{Error, ErrorKind, Result};
use std::path::{Path, PathBuf};

/// What a domain is given afresh.
#[derive(Debug, Clone)]
pub struct Fresh<'a> {
    /// The new name.
    pub name: &'a str,
    /// The new UUID, `xxxxxxxx-xxxx-4xxx-yxxx-xxxxxxxxxxxx`.
    pub uuid: &'a str,
    /// For each disk of the snapshot its target (`vda`), the file, and the file's format (`raw`, `qcow2`).
    pub disks: &'a [(String, PathBuf, &'static str)],
    /// The file with UEFI variables, if they were kept. Without, the domain starts with those of its firmware.
    pub nvram: Option<&'a Path>,
    /// Whether serial numbers and WWNs of disks are made fresh, too.
    pub new_ids: bool,
}

/// A definition, and what should be known of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redefined {
    /// The document.
    pub xml: String,
    /// What was dropped or will not work as before, a line each.
    pub notes: Vec<String>,
}

/// The definition `xml` as that of a new domain. `random` fills a slice with random bytes.
///
/// # Errors
/// `Invalid` for what is no definition of a domain or for a name that libvirt does not take; `NotFound` for a disk that it
/// does not have; what `random` says.
pub fn redefine(xml: &str, fresh: &Fresh<'_>, random: &mut dyn FnMut(&mut [u8]) -> Result<()>) -> Result<Redefined> {
    check_name(fresh.name)?;
    let no_domain = |error: Error| Error::invalid(format!("this is no definition of a domain: {error}"));
    let mut root = Element::parse(xml).map_err(no_domain)?;
    if root.name != "domain" {
        return Err(no_domain(Error::invalid(format!("it is a {}", root.name))));
    }
    let mut notes = Vec::new();
    root.remove_attribute("id");
    root.retain_elements(|element| element.name != "seclabel");
    set_child(&mut root, "name", fresh.name);
    set_child(&mut root, "uuid", fresh.uuid);
    if let Some(genid) = root.child_mut("genid") {
        let id = random_uuid(random)?;
        genid.set_text(&id);
    }
    for info in root.elements_mut().filter(|element| element.name == "sysinfo") {
        for entry in info.elements_mut().filter(|element| element.name == "system").flat_map(Element::elements_mut) {
            if entry.attribute("name") == Some("uuid") {
                entry.set_text(fresh.uuid);
            }
        }
    }
    if let Some(nvram) = root.child_mut("os").and_then(|os| os.child_mut("nvram")) {
        set_nvram(nvram, fresh.nvram);
    }
    let devices = root.child_mut("devices").ok_or_else(|| no_domain(Error::invalid("it has no devices")))?;
    redefine_disks(devices, fresh, random, &mut notes)?;
    for device in devices.elements_mut() {
        // What libvirt made up has no meaning for another domain.
        device.retain_elements(|element| {
            element.name != "alias" || element.attribute("name").is_some_and(|name| name.starts_with("ua-"))
        });
        match device.name.as_str() {
            "interface" => redefine_interface(device, random)?,
            "channel" if device.attribute("type") == Some("unix") => {
                device.retain_elements(|element| {
                    element.name != "source" || element.attribute("mode") == Some("connect")
                });
            }
            "tpm" => notes.push("its TPM starts empty: what was sealed by the old one cannot be opened".to_owned()),
            "hostdev" => notes.push("it wants a device of the host for itself, as the old domain does".to_owned()),
            "graphics" if device.attribute("autoport") == Some("no") => {
                notes.push("its display has a fixed port, as that of the old domain".to_owned());
            }
            _ => {}
        }
    }
    Ok(Redefined { xml: root.write(), notes })
}

fn check_name(name: &str) -> Result<()> {
    if name.is_empty() || name.trim() != name || name.contains('/') || name.chars().any(char::is_control) {
        return Err(Error::invalid(format!("{name:?} is no name for a domain")));
    }
    Ok(())
}

fn set_child(element: &mut Element, name: &str, text: &str) {
    match element.child_mut(name) {
        Some(child) => child.set_text(text),
        None => element.push(with_text(name, text)),
    }
}

fn set_nvram(nvram: &mut Element, file: Option<&Path>) {
    nvram.remove_attribute("type");
    nvram.children.clear();
    if let Some(file) = file {
        nvram.set_text(&file.to_string_lossy());
    }
}

fn redefine_disks(
    devices: &mut Element,
    fresh: &Fresh<'_>,
    random: &mut dyn FnMut(&mut [u8]) -> Result<()>,
    notes: &mut Vec<String>,
) -> Result<()> {
    let target =
        |disk: &Element| disk.child("target").and_then(|target| target.attribute("dev")).unwrap_or_default().to_owned();
    let restored = |disk: &Element| fresh.disks.iter().find(|(name, ..)| *name == target(disk));
    let is_medium = |disk: &Element| matches!(disk.attribute("device"), Some("cdrom" | "floppy"));
    devices.retain_elements(|device| {
        let stays = device.name != "disk"
            || restored(device).is_some()
            || is_medium(device)
            || device.child("readonly").is_some();
        if !stays {
            notes.push(format!("its disk {} is not in the snapshot and was dropped", target(device)));
        }
        stays
    });
    let mut found = 0;
    for disk in devices.elements_mut().filter(|device| device.name == "disk") {
        let Some((_, file, format)) = restored(disk) else {
            if let Some(source) = disk.child_mut("source") {
                source.remove_attribute("index");
                if source.attribute("startupPolicy").is_none() {
                    // A medium that is not here must not keep it from starting.
                    source.set_attribute("startupPolicy", "optional");
                }
            }
            continue;
        };
        found += 1;
        disk.set_attribute("type", "file");
        disk.retain_elements(|element| {
            !["backingStore", "mirror", "encryption", "auth"].contains(&element.name.as_str())
        });
        let mut source = Element::new("source", &[("file", &file.to_string_lossy())]);
        match disk.child_mut("source") {
            Some(old) => std::mem::swap(old, &mut source),
            None => disk.push(source),
        }
        match disk.child_mut("driver") {
            Some(driver) => driver.set_attribute("type", format),
            None => disk.push(Element::new("driver", &[("name", "qemu"), ("type", format)])),
        }
        if fresh.new_ids {
            for id in disk.elements_mut().filter(|element| element.name == "serial" || element.name == "wwn") {
                let digits = random_digits(random)?;
                // A WWN begins with the kind of its maker's number: 5 is a registered one.
                let text = if id.name == "wwn" { format!("5{}", &digits[1..]) } else { digits };
                id.set_text(&text);
            }
        }
    }
    if found != fresh.disks.len() {
        let names: Vec<_> = fresh.disks.iter().map(|(name, ..)| name.as_str()).collect();
        return Err(Error::not_found(format!("the definition does not have all of these disks: {}", names.join(", ")))
            .hint("the disks of the snapshot have to be called as their targets in the definition (vda=…)"));
    }
    Ok(())
}

fn redefine_interface(interface: &mut Element, random: &mut dyn FnMut(&mut [u8]) -> Result<()>) -> Result<()> {
    let mut tail = [0; 3];
    random(&mut tail)?;
    // Three bytes are the maker's: QEMU's 52:54:00, or what the user chose.
    let old = interface.child("mac").and_then(|mac| mac.attribute("address")).unwrap_or_default();
    let maker = old.get(..8).filter(|maker| maker.split(':').count() == 3).unwrap_or("52:54:00").to_owned();
    let address = format!("{maker}:{:02x}:{:02x}:{:02x}", tail[0], tail[1], tail[2]);
    match interface.child_mut("mac") {
        Some(mac) => mac.set_attribute("address", &address),
        None => interface.push(Element::new("mac", &[("address", &address)])),
    }
    if let Some(source) = interface.child_mut("source") {
        source.remove_attribute("portid");
    }
    interface.retain_elements(|element| element.name != "target" || element.attribute("managed") == Some("no"));
    for parameters in
        interface.elements_mut().filter(|element| element.name == "virtualport").flat_map(Element::elements_mut)
    {
        parameters.remove_attribute("interfaceid");
    }
    Ok(())
}

/// 16 hexadecimal digits.
fn random_digits(random: &mut dyn FnMut(&mut [u8]) -> Result<()>) -> Result<String> {
    let mut bytes = [0; 8];
    random(&mut bytes)?;
    Ok(format!("{:016x}", u64::from_be_bytes(bytes)))
}

/// A UUID of version 4 (RFC 9562).
fn random_uuid(random: &mut dyn FnMut(&mut [u8]) -> Result<()>) -> Result<String> {
    let mut bytes = [0; 16];
    random(&mut bytes)?;
    let number = u128::from_be_bytes(bytes) & !(0xF << 76 | 0x3 << 62) | 0x4 << 76 | 0x2 << 62;
    let digits = format!("{number:032x}");
    Ok([&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]].join("-"))
}

/// # Errors
/// `Exists` where `connection` has a domain called `name`; `Unsupported` for a connection to another host, whose domains
/// cannot have their disks here; as [`Virsh::run`].
pub fn refuse_existing(connection: &str, name: &str) -> Result<()> {
    if super::location::way_to(connection)?.is_some() {
        return Err(Error::unsupported(format!("{connection} is another host, and the disks are written here"))
            .hint("run firn on that host"));
    }
    check_name(name)?;
    let names = Virsh::new(connection).run(&["list", "--all", "--name"], PATIENCE)?;
    if names.lines().any(|line| line.trim() == name) {
        return Err(
            Error::new(ErrorKind::Exists, format!("there is a domain {name} already")).hint("choose another name")
        );
    }
    Ok(())
}

/// Makes the domain that the document `xml` describes known to libvirt at `connection`. It is not started.
///
/// # Errors
/// As [`Virsh::run`].
pub fn define(connection: &str, xml: &str) -> Result<()> {
    Virsh::new(connection).run_with(&["define", "--file", "/dev/stdin"], xml.as_bytes(), PATIENCE).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "<domain type='kvm' id='3' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>web1</name>
  <uuid>93a5c045-6457-2c09-e56c-927cdf34e178</uuid>
  <genid>43dc0cf8-809b-4adb-9bea-a9abb5f3d90e</genid>
  <metadata><x:y xmlns:x='urn:x'>kept &amp; whole</x:y></metadata>
  <sysinfo type='smbios'><system><entry name='uuid'>93a5c045-6457-2c09-e56c-927cdf34e178</entry></system></sysinfo>
  <os><type>hvm</type><loader>/l</loader><nvram template='/t'>/old/n.fd</nvram></os>
  <devices>
    <disk type='network' device='disk'>
      <driver name='qemu' type='raw' cache='none'/>
      <auth username='u'><secret type='ceph'/></auth>
      <source protocol='rbd' name='p/web1' index='2'><host name='h'/></source>
      <backingStore type='file'/>
      <target dev='vda' bus='virtio'/>
      <serial>ROOT</serial>
      <wwn>5000c50015ea71ad</wwn>
      <alias name='virtio-disk0'/>
      <boot order='1'/>
    </disk>
    <disk type='file' device='disk'><source file='/shared.img'/><target dev='vdb'/></disk>
    <disk type='file' device='cdrom'><source file='/i.iso' index='1'/><target dev='sda'/><readonly/></disk>
    <interface type='bridge'><mac address='52:54:00:11:22:33'/><source bridge='br0' portid='p'/><target dev='vnet3'/></interface>
    <channel type='unix'><source mode='bind' path='/c/web1'/><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <tpm model='tpm-crb'><backend type='emulator'/><alias name='ua-mine'/></tpm>
  </devices>
  <seclabel type='dynamic' model='dac'/>
  <qemu:commandline><qemu:arg value='-x'/></qemu:commandline>
</domain>";
    const UUID: &str = "11111111-2222-4333-8444-555555555555";

    fn fresh<'a>(disks: &'a [(String, PathBuf, &'static str)], new_ids: bool) -> Fresh<'a> {
        Fresh { name: "web2 & co", uuid: UUID, disks, nvram: Some(Path::new("/new/nvram.fd")), new_ids }
    }

    fn redefined(xml: &str, new_ids: bool) -> Result<Redefined> {
        let disks = [("vda".to_owned(), PathBuf::from("/new/v'da.raw"), "qcow2")];
        redefine(xml, &fresh(&disks, new_ids), &mut |bytes| {
            bytes.fill(0xAB);
            Ok(())
        })
    }

    #[test]
    fn a_new_domain_shares_nothing_with_the_old_one() {
        let new = redefined(OLD, false).unwrap();
        let expected = format!(
            "<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>web2 &amp; co</name>
  <uuid>{UUID}</uuid>
  <genid>abababab-abab-4bab-abab-abababababab</genid>
  <metadata><x:y xmlns:x='urn:x'>kept &amp; whole</x:y></metadata>
  <sysinfo type='smbios'><system><entry name='uuid'>{UUID}</entry></system></sysinfo>
  <os><type>hvm</type><loader>/l</loader><nvram template='/t'>/new/nvram.fd</nvram></os>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' cache='none'/>
      <source file='/new/v&apos;da.raw'/>
      <target dev='vda' bus='virtio'/>
      <serial>ROOT</serial>
      <wwn>5000c50015ea71ad</wwn>
      <boot order='1'/>
    </disk>
    <disk type='file' device='cdrom'><source file='/i.iso' startupPolicy='optional'/><target dev='sda'/><readonly/></disk>
    <interface type='bridge'><mac address='52:54:00:ab:ab:ab'/><source bridge='br0'/></interface>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <tpm model='tpm-crb'><backend type='emulator'/><alias name='ua-mine'/></tpm>
  </devices>
  <qemu:commandline><qemu:arg value='-x'/></qemu:commandline>
</domain>"
        );
        assert_eq!(new.xml, expected);
        assert!(new.notes[0].contains("vdb") && new.notes[1].contains("TPM"), "{:?}", new.notes);
        let ids = redefined(OLD, true).unwrap().xml;
        assert!(
            ids.contains("<serial>abababababababab</serial>") && ids.contains("<wwn>5bababababababab</wwn>"),
            "{ids}"
        );
    }

    #[test]
    fn what_is_refused() {
        for xml in ["", "<domainsnapshot/>", "<domain><name>x</name></domain>", "no"] {
            assert_eq!(redefined(xml, false).unwrap_err().kind(), ErrorKind::Invalid, "{xml}");
        }
        assert_eq!(redefined("<domain><devices/></domain>", false).unwrap_err().kind(), ErrorKind::NotFound);
        for name in ["", " a", "a/b", "a\nb"] {
            let new = Fresh { name, ..fresh(&[], false) };
            assert_eq!(redefine(OLD, &new, &mut |_| Ok(())).unwrap_err().kind(), ErrorKind::Invalid, "{name:?}");
        }
        let error = refuse_existing("qemu+ssh://host/system", "a").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
    }
}
