//! docs/recover.py: a reader that knows docs/format.md and nothing of firn gives every disk back.

use crate::support::{Firn, have, mixed_disk, tool, write_sparse};
use std::path::Path;

/// Debian's Python, for which its packages are.
const PYTHON: &str = "/usr/bin/python3";
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/recover.py");

/// Whether the script can run here; says loudly when `test` is skipped.
fn can_run(test: &str) -> bool {
    let modules = ["-c", "import cryptography, zstandard, argon2"];
    let runs = std::process::Command::new(PYTHON).args(modules).output().is_ok_and(|output| output.status.success());
    if !runs {
        firn_disk::testing::skip(test, "needs python3 with cryptography, zstandard and argon2");
    }
    runs && have(test, &["cmp"])
}

fn recover(folder: &Path, words: &str) -> String {
    tool(folder, PYTHON, &[&[SCRIPT, "pool"], words.split(' ').collect::<Vec<_>>().as_slice()].concat())
}

#[test]
fn every_disk_of_every_snapshot_comes_back_by_every_kind_of_key() {
    if !can_run("every_disk_of_every_snapshot_comes_back_by_every_kind_of_key") {
        return;
    }
    let mut firn = Firn::new();
    firn.write("password", "correct horse\n");
    firn.write("secret.key", [7; 40]);
    firn.set("FIRN_PASSWORD_FILE", "password");
    let recovery = firn.json("init pool")["recovery_key"].as_str().unwrap().to_owned();
    firn.write("recovery", recovery);
    firn.ok("key add --new-key-file secret.key");
    firn.ok("key export master.key");
    // Of more than one region, of none, not of whole blocks, and one whose every byte is a hole.
    let disks = [mixed_disk(40 << 20, 3), mixed_disk((16 << 20) + 1537, 4), Vec::new(), vec![0; 1 << 20]];
    for (number, disk) in disks.iter().enumerate() {
        write_sparse(&firn.path(&format!("{number}.raw")), disk);
    }
    firn.ok("snap web1 a=0.raw b=1.raw c=2.raw d=3.raw");
    let first = firn.read("0.raw");
    write_sparse(&firn.path("0.raw"), &mixed_disk(24 << 20, 5));
    firn.ok("snap web1 a=0.raw");

    let keys =
        ["--password-file password", "--key-file secret.key", "--recovery-file recovery", "--key-file master.key"];
    for key in keys {
        assert_eq!(recover(firn.folder(), &format!("{key} list")).lines().count(), 2, "{key}");
    }
    for (number, name) in ["a", "b", "c", "d"].iter().enumerate() {
        recover(firn.folder(), &format!("{} restore web1 {name} {name}.out --sequence 1", keys[number]));
        assert!(firn.read(&format!("{name}.out")) == disks[number], "disk {name}");
    }
    assert!(firn.read("a.out") == first);
    recover(firn.folder(), "--password-file password restore web1 a newest.out");
    assert!(firn.read("newest.out") == firn.read("0.raw"));
}

#[test]
fn one_copy_of_what_is_stored_twice_is_enough() {
    if !can_run("one_copy_of_what_is_stored_twice_is_enough") {
        return;
    }
    let firn = Firn::with_pool();
    let disk = mixed_disk(20 << 20, 6);
    firn.write("a.raw", &disk);
    firn.ok("snap web1 a.raw");
    for object in firn.objects("").iter().filter(|object| object.to_string_lossy().ends_with("-a")) {
        let mut bytes = std::fs::read(object).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x10;
        std::fs::write(object, bytes).unwrap();
    }
    recover(firn.folder(), "restore web1 vda out.raw");
    assert!(firn.read("out.raw") == disk);
}
