//! `restore --define` against a libvirtd of its own (`lab/libvirt.sh`): the new domain starts beside the old one.

use crate::support::{Firn, have, mixed_disk, tool};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A libvirtd; ends with it.
struct Libvirt {
    folder: tempfile::TempDir,
    connection: String,
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../lab/libvirt.sh")
}

impl Libvirt {
    fn start(test: &str) -> Option<Self> {
        if !have(test, &["root", "virsh", "libvirtd", "qemu-system-x86_64", "qemu-img"]) {
            return None;
        }
        let folder = tempfile::Builder::new().prefix("fl").tempdir().unwrap();
        let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("libvirt-cache");
        let started = Command::new(script()).arg("start").arg(folder.path()).env("CACHE", cache).output().unwrap();
        assert!(started.status.success(), "{}", String::from_utf8_lossy(&started.stderr));
        let connection = String::from_utf8(started.stdout).unwrap().trim().to_owned();
        Some(Self { folder, connection })
    }

    fn virsh(&self, arguments: &[&str]) -> String {
        let connect = ["--quiet", "-c", &self.connection];
        tool(self.folder.path(), "virsh", &[connect.as_slice(), arguments].concat())
    }
}

impl Drop for Libvirt {
    fn drop(&mut self) {
        // A test that fails has said why already.
        let _ = Command::new(script()).arg("stop").arg(self.folder.path()).status();
    }
}

#[test]
fn a_restored_machine_runs_beside_the_old_one() {
    let Some(libvirt) = Libvirt::start("a_restored_machine_runs_beside_the_old_one") else { return };
    let firn = Firn::with_pool();
    for (name, seed) in [("a.raw", 1), ("b.raw", 2)] {
        firn.write(name, mixed_disk(2 << 20, seed));
    }
    let disk = |file: &str, target: &str| {
        let path = firn.path(file);
        format!(
            "<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{}'/>\
             <target dev='{target}' bus='virtio'/><serial>S-{target}</serial></disk>",
            path.display()
        )
    };
    firn.write(
        "old.xml",
        format!(
            "<domain type='qemu'><name>web1</name><memory unit='MiB'>32</memory>
             <os><type arch='x86_64' machine='pc'>hvm</type></os><devices>{}{}
             <interface type='user'><mac address='52:54:00:11:22:33'/></interface>
             <controller type='usb' model='none'/><memballoon model='none'/></devices></domain>",
            disk("a.raw", "vda"),
            disk("b.raw", "vdb")
        ),
    );
    libvirt.virsh(&["define", firn.path("old.xml").to_str().unwrap()]);
    firn.write("domain.xml", libvirt.virsh(&["dumpxml", "web1", "--inactive"]));
    firn.ok("snap web1 a.raw b.raw --config domain.xml");
    libvirt.virsh(&["start", "web1", "--paused"]);

    let connection = &libvirt.connection;
    let made = firn.json(&format!("restore web1 out --format qcow2 --define web2 --connect {connection}"));
    assert_eq!(made["defined"]["name"], "web2");
    libvirt.virsh(&["start", "web2", "--paused"]);
    for (file, image) in [("a.raw", "out/vda.qcow2"), ("b.raw", "out/vdb.qcow2")] {
        tool(firn.folder(), "qemu-img", &["compare", "-U", "-q", "-f", "raw", "-F", "qcow2", file, image]);
    }
    let new = libvirt.virsh(&["dumpxml", "web2"]);
    let old = libvirt.virsh(&["dumpxml", "web1"]);
    assert!(new.contains(made["defined"]["uuid"].as_str().unwrap()) && new.contains("out/vda.qcow2"), "{new}");
    assert!(new.contains("<serial>S-vda</serial>") && new.contains("<mac address='52:54:00:"), "{new}");
    assert!(old.contains("52:54:00:11:22:33") && !new.contains("52:54:00:11:22:33"), "{new}");

    // Only one of the disks.
    let text = firn.run(&format!("restore web1 one --disk vdb --define web3 --connect {connection}"));
    assert!(text.code == 0 && text.text().contains("defined web3 at qemu:///system"), "{}{}", text.text(), text.stderr);
    assert!(text.stderr.contains("its disk vda is not in the snapshot and was dropped"), "{}", text.stderr);
    // All of them, on fresh ids.
    firn.ok(&format!("restore web1 fresh --define web5 --new-ids --connect {connection}"));
    assert!(!libvirt.virsh(&["dumpxml", "web5"]).contains("S-vdb"));

    // What cannot be is told before anything is written.
    let fails = |code: i32, arguments: &str, parts: &[&str]| {
        firn.fails(code, arguments, parts);
        assert!(!firn.exists("not"));
    };
    fails(1, &format!("restore web1 not --define web2 --connect {connection}"), &["there is a domain web2 already"]);
    fails(2, &format!("restore web1 not --define w/2 --connect {connection}"), &["no name for a domain"]);
    fails(2, &format!("restore web1 not --format vmdk --define web4 --connect {connection}"), &["raw or qcow2"]);
    fails(2, &format!("restore web1 - --define web4 --connect {connection}"), &["needs its disks as files"]);
    fails(2, "restore web1 not --connect qemu:///system", &["--define"]);
    libvirt.virsh(&["destroy", "web1"]);
    libvirt.virsh(&["destroy", "web2"]);
    firn.ok("snap plain a.raw");
    fails(4, &format!("restore plain not --define web4 --connect {connection}"), &["no domain.xml was kept"]);
}
