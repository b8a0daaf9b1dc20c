//! Copies that can stand beside their original.

use crate::support::{Firn, have, tool};

/// A disk with a GPT, an ext4 that has an fstab, and swap.
fn machine(firn: &Firn) -> String {
    let folder = firn.folder();
    for (name, length) in [("disk", 64 << 20), ("ext", 16 << 20), ("swap", 8 << 20)] {
        std::fs::File::create(firn.path(name)).unwrap().set_len(length).unwrap();
    }
    tool(folder, "sgdisk", &["-n", "1:2048:+16M", "-n", "2:0:+8M", "-t", "2:8200", "disk"]);
    tool(folder, "mkswap", &["-q", "swap"]);
    let uuid = tool(folder, "blkid", &["-p", "-s", "UUID", "-o", "value", "swap"]).trim().to_owned();
    std::fs::create_dir_all(firn.path("tree/etc")).unwrap();
    firn.write("tree/etc/fstab", format!("# the swap\nUUID={uuid} none swap sw 0 0\n/dev/vda1 / ext4 defaults 0 1\n"));
    tool(folder, "mkfs.ext4", &["-q", "-F", "-d", "tree", "ext"]);
    for (part, sector) in [("ext", "2048"), ("swap", "34816")] {
        tool(
            folder,
            "dd",
            &[&format!("if={part}"), "of=disk", &format!("seek={sector}"), "conv=notrunc", "status=none"],
        );
    }
    uuid
}

#[test]
fn a_copy_with_new_identifiers_is_whole_and_says_what_is_stale() {
    let test = "a_copy_with_new_identifiers_is_whole_and_says_what_is_stale";
    if !have(test, &["sgdisk", "blkid", "mkfs.ext4", "mkswap", "e2fsck", "qemu-img"]) {
        return;
    }
    let firn = Firn::with_pool();
    let swap = machine(&firn);
    firn.ok("snap web1 disk");
    let run = firn.run("restore web1 copy.qcow2 --new-ids --json");
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert!(run.stderr.contains("etc/fstab") && run.stderr.contains(&swap), "{}", run.stderr);
    assert!(!run.stderr.contains("/dev/vda1 /"), "{}", run.stderr);
    let document: serde_json::Value = serde_json::from_slice(&run.stdout).unwrap();
    let ids = document["new_ids"].as_array().unwrap();
    // Disk, two partitions, ext4, swap.
    assert_eq!(ids.len(), 5, "{ids:?}");
    tool(firn.folder(), "qemu-img", &["convert", "-O", "raw", "copy.qcow2", "copy"]);
    assert!(tool(firn.folder(), "sgdisk", &["-v", "copy"]).contains("No problems found"));
    let of = |what: &str| ids.iter().find(|id| id["what"] == what).unwrap()["new"].as_str().unwrap().to_owned();
    assert_eq!(tool(firn.folder(), "blkid", &["-p", "-s", "PTUUID", "-o", "value", "copy"]).trim(), of("disk"));
    tool(firn.folder(), "dd", &["if=copy", "of=part", "skip=2048", "count=32768", "status=none"]);
    tool(firn.folder(), "e2fsck", &["-f", "-n", "part"]);
    assert_eq!(tool(firn.folder(), "blkid", &["-p", "-s", "UUID", "-o", "value", "part"]).trim(), of("ext4"));
    // Kept ones stay, and the files are what they were.
    firn.ok("restore web1 kept --new-ids --keep-id vda2");
    tool(firn.folder(), "dd", &["if=kept", "of=part", "skip=34816", "count=16384", "status=none"]);
    assert_eq!(tool(firn.folder(), "blkid", &["-p", "-s", "UUID", "-o", "value", "part"]).trim(), swap);
    assert_eq!(firn.ok("cat kept#vda1:/etc/fstab"), firn.ok("cat disk#vda1:/etc/fstab"));
    firn.fails(4, "restore web1 no --new-ids --keep-id vda9", &["vda9"]);
    firn.fails(2, "restore web1 no --keep-id vda2", &[]);
    firn.fails(2, "restore web1 no --new-ids --disk vda", &["all disks"]);
}
