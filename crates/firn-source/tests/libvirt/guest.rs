//! A real guest with its agent behind libvirt: frozen, cut, thawed; commands inside.

use crate::lab::{Lab, Taken, can_run, since, succeed};
use firn_disk::testing::skip;
use firn_source::libvirt::thaw;
use firn_source::quiesce::Ticket;
use firn_source::{Outcome, Source};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const NAME: &str = "a_guest_is_frozen_through_libvirt";
const PATIENCE: Duration = Duration::from_secs(60);

/// What `lab/make-guest.sh` made.
fn guest_folder() -> Option<PathBuf> {
    let folder = std::env::var_os("FIRN_LAB_GUEST").map(PathBuf::from);
    let folder = folder.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/lab-guest"));
    folder.join("guest-base.qcow2").is_file().then_some(folder)
}

#[test]
fn a_guest_is_frozen_through_libvirt() {
    if !can_run(NAME, &["virsh", "libvirtd", "qemu-system-x86_64", "qemu-img"]) {
        return;
    }
    let Some(folder) = guest_folder() else {
        return skip(NAME, "there is no guest; make one by lab/make-guest.sh target/lab-guest");
    };
    let Some(lab) = Lab::start(NAME) else { return };
    let image = lab.path("root.qcow2");
    succeed(
        Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"])
            .arg(folder.join("guest-base.qcow2"))
            .arg(&image),
    );
    let file = lab.path("guest.xml");
    std::fs::write(
        &file,
        format!(
            "<domain type='qemu'><name>lab</name><uuid>93a5c045-6457-2c09-e56c-927cdf34e178</uuid>
             <memory unit='MiB'>768</memory><vcpu>1</vcpu><features><acpi/></features>
             <os><type arch='x86_64' machine='q35'>hvm</type><kernel>{0}/vmlinuz</kernel><initrd>{0}/initrd.img</initrd>
             <cmdline>root=/dev/vda rw console=ttyS0 net.ifnames=0 quiet</cmdline></os>
             <devices><disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{1}'/>
             <target dev='vda' bus='virtio'/></disk>
             <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
             <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
             <controller type='usb' model='none'/><memballoon model='none'/></devices></domain>",
            folder.display(),
            image.display()
        ),
    )
    .unwrap();
    lab.virsh(&["define", &file.to_string_lossy()]);
    lab.virsh(&["start", "lab"]);
    let mut source = lab.source();
    let request = lab.request(1, &Taken::default());
    source.plan(&request).unwrap();
    let guest = source.guest().unwrap();
    // Before it has booted, its agent is missing, which is told at once.
    assert!(guest.freeze(&[], PATIENCE).is_err());
    lab.wait_long("the guest's agent", || guest.is_frozen(Duration::from_secs(5)).is_ok());
    assert!(!guest.is_frozen(PATIENCE).unwrap());

    let environment = [("FIRN_WORD".to_owned(), "a b".to_owned())];
    let ended = guest.run("echo \"$FIRN_WORD\"; echo no >&2; exit 7", &environment, PATIENCE).unwrap();
    assert_eq!((ended.code, ended.output.as_str()), (7, "a b\nno\n"));

    source.prepare(&request).unwrap();
    assert!(guest.freeze(&[], PATIENCE).unwrap() >= 1);
    assert!(guest.is_frozen(PATIENCE).unwrap());
    // Somebody else froze it: that is an error, and it stays frozen.
    assert!(guest.freeze(&[], PATIENCE).is_err());
    source.cut().unwrap();
    // Whoever has the ticket can thaw it, twice.
    let Ticket::Libvirt { connection, domain } = guest.ticket() else { panic!("another ticket") };
    assert!(thaw(&connection, &domain, PATIENCE).unwrap() >= 1);
    assert!(!guest.is_frozen(PATIENCE).unwrap());
    assert_eq!(thaw(&connection, &domain, PATIENCE).unwrap(), 0);

    // Only some mount points.
    assert_eq!(guest.freeze(&["/".to_owned()], PATIENCE).unwrap(), 1);
    assert_eq!(guest.thaw(PATIENCE).unwrap(), 1);

    // The guest writes while it is read, and none of it is in the snapshot.
    assert_eq!(guest.run("echo after >/root/after && sync", &[], PATIENCE).unwrap().code, 0);
    let frozen = source.open().unwrap();
    let copy = lab.path("copy.raw");
    let mut bytes = vec![0; usize::try_from(frozen[0].disk.len()).unwrap()];
    frozen[0].disk.read_at(&mut bytes, 0).unwrap();
    std::fs::write(&copy, &bytes).unwrap();
    source.check().unwrap();
    let first = crate::lab::taken(&frozen);
    source.finish(Outcome::Published).unwrap();
    // The file system was frozen, so it is clean but for its flag, and e2fsck finds nothing to mend.
    let check = Command::new("e2fsck").args(["-fn"]).arg(&copy).env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin").output();
    if let Ok(check) = check {
        let text = String::from_utf8_lossy(&check.stdout).into_owned();
        assert!(check.status.code().is_some_and(|code| code == 0), "{text}");
    }
    let shown = firn_format::image::open(&copy, &firn_format::image::OpenOptions::default()).unwrap();
    assert_eq!(shown.disk.len(), frozen[0].disk.len());

    assert_eq!(guest.run("head -c 1048576 /dev/urandom >/root/new && sync", &[], PATIENCE).unwrap().code, 0);
    lab.snap(2, &first, |frozen| {
        let dirty: u64 = since(&frozen[0]).iter().map(|range| range.end - range.start).sum();
        assert!((1 << 20..256 << 20).contains(&dirty), "{dirty}");
    });
}
