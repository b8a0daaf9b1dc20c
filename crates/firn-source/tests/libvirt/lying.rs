//! A virsh that lies, hangs and stammers: whatever it answers, there is an error or a plan, in time, and no panic.

use firn_disk::ErrorKind;
use firn_source::libvirt::{LibvirtGuest, LibvirtSource, Virsh};
use firn_source::quiesce::Guest;
use firn_source::{FileOptions, Outcome, Request, Source};
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

/// The answers of an honest one: a running domain with one disk.
const HONEST: &str = r#"
  dumpxml) cat <<END
<domain type='qemu' id='1'><name>lab</name><uuid>93a5c045-6457-2c09-e56c-927cdf34e178</uuid><devices>
<disk type='file' device='disk'><driver type='qcow2'/><source file='/tmp/x.qcow2'/><target dev='vda'/></disk>
</devices></domain>
END
  ;;
  checkpoint-list) ;;
  domblkinfo) echo " vda 67108864 1 1" ;;
  domjobinfo) echo "Job type:         None" ;;
  backup-dumpxml) echo "error: Domain backup job id not found: no domain backup job present" >&2; exit 1 ;;
"#;

struct Liar {
    folder: tempfile::TempDir,
}

impl Liar {
    /// `lies` are arms of a `case` over virsh's command; they go before the honest ones.
    fn new(lies: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("virsh");
        let script = format!(
            "#!/bin/sh\nif [ \"$LC_ALL\" != C ]; then echo 'Fehler: keine englischen Meldungen' >&2; exit 1; fi\n\
             shift 2\ncase $1 in\n{lies}\n{HONEST}\n*) echo \"error: unknown command: '$1'\" >&2; exit 1 ;;\nesac\n"
        );
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        Self { folder }
    }

    fn source(&self) -> LibvirtSource {
        let program = self.folder.path().join("virsh");
        LibvirtSource::with_program("libvirt://lab", &program, FileOptions::default()).unwrap()
    }

    fn guest(&self) -> LibvirtGuest {
        LibvirtGuest::new(Virsh::with_program(&self.folder.path().join("virsh"), "qemu:///system"), "lab")
    }

    fn request(&self) -> Request {
        Request {
            machine: "lab".to_owned(),
            owner: format!("{:016x}", 0xFEED_0000_0000_u64 + u64::from(std::process::id())),
            run: "00000001".to_owned(),
            previous: Vec::new(),
            scratch_folder: Some(self.folder.path().to_owned()),
        }
    }
}

#[test]
fn an_honest_one_plans() {
    let liar = Liar::new("");
    let plan = liar.source().plan(&liar.request()).unwrap();
    assert_eq!((plan.disks.len(), plan.disks[0].length), (1, 64 << 20));
}

#[test]
fn answers_that_make_no_sense_are_errors() {
    let cases = [
        ("dumpxml) echo garbage ;;", ErrorKind::Io),
        ("dumpxml) head -c 100000 /dev/zero ;;", ErrorKind::Io),
        ("dumpxml) echo \"<!DOCTYPE a [<!ENTITY b 'c'>]><domain>&b;</domain>\" ;;", ErrorKind::Unsupported),
        ("dumpxml) ;;", ErrorKind::Io),
        ("dumpxml) exit 1 ;;", ErrorKind::Io),
        ("dumpxml) kill -9 $$ ;;", ErrorKind::Io),
        ("dumpxml) echo \"error: failed to get domain 'lab'\" >&2; exit 1 ;;", ErrorKind::NotFound),
        ("dumpxml) echo 'error: authentication unavailable: no polkit agent' >&2; exit 1 ;;", ErrorKind::Denied),
        (
            "dumpxml) echo 'error: failed to connect to the hypervisor' >&2; echo 'error: no socket' >&2; exit 1 ;;",
            ErrorKind::Unavailable,
        ),
        ("domblkinfo) ;;", ErrorKind::Io),
        ("domblkinfo) echo ' vda - - -' ;;", ErrorKind::Io),
        ("domblkinfo) echo ' vda 99999999999999999999999 1 1' ;;", ErrorKind::Io),
        ("checkpoint-list) echo \"error: unknown command: 'checkpoint-list'\" >&2; exit 1 ;;", ErrorKind::Unsupported),
    ];
    for (lies, kind) in cases {
        let liar = Liar::new(lies);
        let error = liar.source().plan(&liar.request()).unwrap_err();
        assert_eq!(error.kind(), kind, "{lies}: {error}");
    }
    let nobody = LibvirtSource::with_program("libvirt://lab", "/no/virsh".as_ref(), FileOptions::default());
    let error = nobody.unwrap().plan(&Liar::new("").request()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.next_step().unwrap().contains("libvirt-clients"));
}

#[test]
fn a_job_that_cannot_begin_leaves_nothing() {
    for lies in [
        "domjobinfo) echo garbage ;;",
        "domjobinfo) printf 'Job type:         Unbounded\\nOperation:        Outgoing migration\\n' ;;",
        "backup-dumpxml) echo '<domainbackup/>' ;;",
        "backup-dumpxml) echo garbage ;;",
        "backup-begin) echo 'error: internal error: no' >&2; exit 1 ;;",
        "backup-begin) exit 0 ;;",
    ] {
        let liar = Liar::new(lies);
        let (mut source, request) = (liar.source(), liar.request());
        source.plan(&request).unwrap();
        let ended = source.prepare(&request).and_then(|()| source.cut()).and_then(|()| source.open().map(drop));
        let error = ended.unwrap_err();
        assert!(!error.to_string().is_empty(), "{lies}");
        source.finish(Outcome::Failed).unwrap();
        let left = |folder: &str| {
            let names =
                std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
            names.filter(|name| name.contains(&request.owner) && !name.ends_with(".lock")).collect::<Vec<_>>()
        };
        assert_eq!((left("/run"), left("/tmp")), (Vec::new(), Vec::new()), "{lies}");
        for folder in ["/run", "/tmp"] {
            let _ = std::fs::remove_file(format!("{folder}/firn-{}-93a5c0456457.lock", request.owner));
        }
    }
}

#[test]
fn a_guest_that_does_not_answer_is_given_up_in_time() {
    let second = Duration::from_secs(1);
    let hanging = Liar::new("dom*|qemu-agent-command) sleep 600 ;;");
    let start = Instant::now();
    let guest = hanging.guest();
    assert_eq!(guest.freeze(&[], second).unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(guest.is_frozen(second).unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(guest.thaw(second).unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(guest.run("true", &[], second).unwrap_err().kind(), ErrorKind::Unavailable);
    assert!(start.elapsed() < Duration::from_secs(300), "four seconds were asked for");

    let missing = Liar::new(
        "dom*|qemu-agent-command) echo 'error: Guest agent is not responding: QEMU guest agent is not connected' >&2; exit 1 ;;",
    );
    let error = missing.guest().freeze(&["/".to_owned()], second).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.next_step().unwrap().contains("qemu-guest-agent"));
    let none = Liar::new("dom*) echo 'error: argument unsupported: QEMU guest agent is not configured' >&2; exit 1 ;;");
    assert_eq!(none.guest().freeze(&[], second).unwrap_err().kind(), ErrorKind::Unsupported);

    // The agent is busy at first: the thaw goes on until it is through.
    let busy = Liar::new(
        "domfsthaw) if [ -e \"$0.2\" ]; then echo 'Thawed 3 filesystem(s)'; exit 0; fi
         if [ -e \"$0.1\" ]; then touch \"$0.2\"; else touch \"$0.1\"; fi
         echo 'error: Timed out during operation: cannot acquire state change lock' >&2; exit 1 ;;
         domstate) echo running ;;",
    );
    assert_eq!(busy.guest().thaw(Duration::from_secs(60)).unwrap(), 3);
    let off = Liar::new("domfsthaw) echo 'error: domain is not running' >&2; exit 1 ;;\n domstate) echo 'shut off' ;;");
    assert_eq!(off.guest().thaw(Duration::from_secs(60)).unwrap(), 0);
    for lies in ["domfsfreeze) ;;", "domfsfreeze) echo 'Froze filesystem(s)' ;;"] {
        assert_eq!(Liar::new(lies).guest().freeze(&[], second).unwrap_err().kind(), ErrorKind::Io);
    }
    for answer in ["", "{}", "{\"return\":\"maybe\"}", "{\"return\":{}}", "[]", "{\"error\":{}}"] {
        let liar = Liar::new(&format!("qemu-agent-command) echo '{answer}' ;;"));
        assert_eq!(liar.guest().is_frozen(second).unwrap_err().kind(), ErrorKind::Io, "{answer}");
        assert_eq!(liar.guest().run("x", &[], second).unwrap_err().kind(), ErrorKind::Io, "{answer}");
    }
}
