//! A real guest that writes without pause: whatever it had fsynced before the instant is in the snapshot, byte for byte.
//!
//! The guest is the lab's (`lab/make-guest.sh`), in the folder that `FIRN_LAB_GUEST` names or in `target/lab-guest`. What
//! a snapshot holds is judged by the kernel, which mounts a copy, and by sha256sum.

use crate::machine::{Control, QEMU};
use crate::taking::{OWNER, previous, source};
use firn_disk::testing::skip;
use firn_disk::{Disk, ExtentKind, visit_extents};
use firn_source::{Changed, FrozenDisk, Outcome, Request};
use serde_json::Value;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// Writes files on both disks for ever, and into a log what was fsynced.
const LOAD: &str = r#"
mkdir -p /mnt && mkfs.ext4 -q -F /dev/vdb && mount /dev/vdb /mnt && mkdir /mnt/load /var/load
cat > /root/load.sh <<'END'
i=0
while [ $i -lt 4000 ]; do
  i=$((i+1))
  for d in /mnt/load /var/load; do
    head -c $((i * 7919 % 200000 + 1)) /dev/urandom > $d/f$i
    sync $d/f$i $d
    sha256sum $d/f$i >> /var/load.log
  done
done
END
sync -f /mnt; sync -f /
(setsid sh /root/load.sh >/dev/null 2>&1 &)
"#;

struct Guest {
    lab: PathBuf,
    run: PathBuf,
}

impl Guest {
    /// The guest, booted, with its load; nothing where it cannot be had.
    fn boot(test: &str) -> Option<Self> {
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let folder =
            std::env::var_os("FIRN_LAB_GUEST").map_or_else(|| repository.join("target/lab-guest"), PathBuf::from);
        if !folder.join("guest-base.qcow2").exists() {
            skip(test, &format!("there is no guest in {}; lab/make-guest.sh makes one", folder.display()));
            return None;
        }
        if Command::new(QEMU).arg("--version").output().is_err() || Command::new("python3").arg("-V").output().is_err()
        {
            skip(test, "qemu-system-x86_64 or python3 is not installed");
            return None;
        }
        if !rustix::process::geteuid().is_root() {
            skip(test, "only root can mount the copies");
            return None;
        }
        let name = format!("qemu-{}", std::process::id());
        let guest = Self { lab: repository.join("lab"), run: folder.join("run").join(&name) };
        let control = format!("unix:{},server=on,wait=off", guest.run.join("control.sock").display());
        let started = Command::new(guest.lab.join("vm.sh")).arg(&folder).arg(&name).args(["-qmp", &control]).status();
        assert!(started.unwrap().success());
        // 20 s on an idle machine.
        guest.run(LOAD, 600);
        Some(guest)
    }

    /// Runs a command in the guest; waits so many seconds for its agent, and for its end.
    fn run(&self, command: &str, seconds: u32) -> String {
        let output = Command::new("python3")
            .arg(self.lab.join("guest-exec.py"))
            .arg(self.run.join("ga.sock"))
            .args([command, &seconds.to_string()])
            .output()
            .unwrap();
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn uri(&self) -> String {
        format!("qemu:{}?agent={}", self.run.join("qmp.sock").display(), self.run.join("ga.sock").display())
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let pid = std::fs::read_to_string(self.run.join("pid")).unwrap_or_default();
        if let Some(pid) = pid.trim().parse().ok().and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        let _ = std::fs::remove_dir_all(&self.run);
    }
}

/// Brings the copy up to what the disk was at the instant. Returns the bytes that were read.
fn copy(frozen: &FrozenDisk, file: &Path) -> u64 {
    let output = File::options().create(true).truncate(false).write(true).open(file).unwrap();
    output.set_len(frozen.disk.len()).unwrap();
    let mut read = 0;
    let mut pass_on = |range: std::ops::Range<u64>| {
        let mut at = range.start;
        while at < range.end {
            let mut bytes = vec![0; usize::try_from((range.end - at).min(1 << 20)).unwrap()];
            frozen.disk.read_at(&mut bytes, at)?;
            output.write_all_at(&bytes, at).unwrap();
            at += bytes.len() as u64;
        }
        read += range.end - range.start;
        Ok(())
    };
    match &frozen.changed {
        Changed::Unknown(_) => {
            let visit = |kind, run| if kind == ExtentKind::Data { pass_on(run) } else { Ok(()) };
            visit_extents(&frozen.disk, 0..frozen.disk.len(), visit).unwrap();
        }
        Changed::Since(ranges) => ranges.iter().for_each(|range| pass_on(range.clone()).unwrap()),
    }
    read
}

/// That every file that the guest's log told of is in the copies, with its hash.
fn assert_files(log: &str, copies: &Path, mount: &Path) {
    for (disk, prefix) in [("vda", "/var/load/"), ("vdb", "/mnt/load/")] {
        let image = copies.join(format!("{disk}.mount"));
        // Mounting replays the journal: on a copy, so that the next snapshot finds what it left.
        let made =
            Command::new("cp").args(["--sparse=always", "--reflink=auto"]).arg(copies.join(disk)).arg(&image).status();
        assert!(made.unwrap().success());
        let mounted = Command::new("mount").args(["-o", "loop"]).arg(&image).arg(mount).status();
        assert!(mounted.unwrap().success(), "{disk} cannot be mounted");
        let inside = if disk == "vda" { "var/load/" } else { "load/" };
        let list: String = log
            .lines()
            .filter(|line| line.contains(prefix))
            .map(|line| format!("{}\n", line.replace(prefix, &format!("{}/{inside}", mount.display()))))
            .collect();
        let files = list.lines().count();
        std::fs::write(copies.join("list"), list).unwrap();
        let checked = Command::new("sha256sum").args(["--quiet", "-c"]).arg(copies.join("list")).output().unwrap();
        assert!(Command::new("umount").arg(mount).status().unwrap().success());
        std::fs::remove_file(&image).unwrap();
        assert!(checked.status.success(), "{disk}: {}", String::from_utf8_lossy(&checked.stdout));
        assert!(files > 0, "{disk}: the guest had written nothing");
        println!("{disk}: {files} files are right");
    }
}

#[test]
fn fsynced_files_of_a_writing_guest_are_in_the_snapshot() {
    let Some(guest) = Guest::boot("fsynced_files_of_a_writing_guest_are_in_the_snapshot") else { return };
    let work = tempfile::tempdir().unwrap();
    let mount = tempfile::tempdir().unwrap();
    let mut request = Request { machine: "m".to_owned(), owner: OWNER.to_owned(), ..Request::default() };
    for (run, way) in ["&cut=filter", "&cut=filter", "&cut=backup"].iter().enumerate() {
        request.run = format!("{run:08x}");
        // Some files more since the last time.
        let lines = guest.run("wc -l < /var/load.log", 60).trim().parse::<u32>().unwrap();
        guest.run(&format!("while [ $(wc -l < /var/load.log) -lt {} ]; do sleep 0.1; done", lines + 20), 120);
        let mut taking = source(&(guest.uri() + way));
        taking.plan(&request).unwrap();
        taking.prepare(&request).unwrap();
        let log = guest.run("cat /var/load.log", 60);
        let begun = Instant::now();
        taking.cut().unwrap();
        println!("{way}: the instant took {:?}", begun.elapsed());
        let frozen = taking.open().unwrap();
        for disk in &frozen {
            let read = copy(disk, &work.path().join(&disk.name));
            println!("{}: {} KiB read", disk.name, read >> 10);
            assert_eq!(matches!(disk.changed, Changed::Unknown(_)), run == 0, "{:?}", disk.name);
        }
        taking.check().unwrap();
        request.previous = frozen.iter().map(previous).collect();
        drop(frozen);
        taking.finish(Outcome::Published).unwrap();
        assert_files(&log, work.path(), mount.path());
    }
    // The guest wrote on all the while, and nothing of ours is left.
    let lines = guest.run("wc -l < /var/load.log", 60).trim().parse::<u32>().unwrap();
    guest.run(&format!("while [ $(wc -l < /var/load.log) -le {lines} ]; do sleep 0.1; done; dmesg | grep -i 'i/o error' && exit 1; true"), 120);
    let mut control = Control::connect(&guest.run.join("control.sock"));
    assert_eq!(control.call("query-fdsets", Value::Null), Value::Array(Vec::new()));
    assert_eq!(control.call("query-status", Value::Null)["status"], "running");
}
