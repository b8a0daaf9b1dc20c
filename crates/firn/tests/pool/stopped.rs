//! Work that is stopped: Ctrl-C, SIGTERM, SIGKILL at any moment; and several at once.
//!
//! Whatever happens, the pool is sound, and every snapshot that was published comes back bit for bit.

use crate::support::{Firn, Run, finish, mixed_disk, pattern_file, send, sprinkled, stop_at, until};
use firn_disk::testing::Random;
use serde_json::Value;
use std::collections::HashMap;
use std::process::Child;

/// How often a snapshot is killed.
const KILLS: u64 = 14;

fn no_damaged_snapshot(firn: &Firn) {
    let run = firn.run("verify --read-data --json");
    let report: Value = serde_json::from_str(run.text()).unwrap();
    assert!(matches!(run.code, 0 | 3), "{}", run.stderr);
    assert_eq!(report["damaged_snapshots"].as_array().unwrap().len(), 0, "{report}");
}

#[test]
fn ctrl_c_leaves_a_sound_pool_and_what_was_stored_is_used() {
    let firn = Firn::with_pool();
    let first = mixed_disk(1 << 20, 1);
    firn.write("small.raw", &first);
    firn.ok("snap web1 small.raw");
    // 2048 chunks of which a thousand are read by the time it is stopped.
    let source = firn.path("big.raw");
    sprinkled(&source, 1 << 40, 1 << 29);
    for signal in ["INT", "TERM"] {
        let child = firn.spawn("snap big big.raw");
        stop_at(&child, &source, 1 << 39);
        send(signal, &child);
        send("CONT", &child);
        let run = finish(child);
        assert_eq!(run.code, 130, "{signal}: {}", run.stderr);
        let parts = ["stopped before the snapshot was complete", "run the same command again"];
        assert!(parts.iter().all(|part| run.stderr.contains(part)) && run.stdout.is_empty(), "{}", run.stderr);
        firn.fails(4, "show big", &["there is no machine big"]);
        firn.ok("verify --read-data");
    }
    let taken = firn.json("snap big big.raw");
    let (stored, data) = (taken["bytes_stored"].as_u64().unwrap(), taken["bytes_data"].as_u64().unwrap());
    assert!(data == 2048 * 4096 && stored < data * 3 / 4, "{stored} of {data} bytes were stored again");
    assert!(firn.raw("web1") == first);
    firn.ok("verify --read-data");
}

#[test]
fn ctrl_c_leaves_nothing_of_a_restore() {
    let firn = Firn::with_pool();
    sprinkled(&firn.path("big.raw"), 1 << 40, 1 << 32);
    firn.ok("snap big big.raw");
    firn.write("b.raw", [1; 512]);
    firn.ok("snap two b.raw big.raw");
    firn.write("there.raw", "precious");
    // To stdout nobody can write faster than we read.
    for arguments in ["restore big -", "verify --read-data"] {
        let mut child = firn.spawn(arguments);
        if arguments.starts_with("restore") {
            let mut stdout = child.stdout.take().unwrap();
            std::io::Read::read_exact(&mut stdout, &mut [0; 4096]).unwrap();
            send("INT", &child);
            std::io::copy(&mut stdout, &mut std::io::sink()).unwrap();
            let run = finish(child);
            assert!(run.code == 130 && run.stderr.contains("stopped before"), "{} {}", run.code, run.stderr);
        } else {
            send("INT", &child);
            let run = finish(child);
            assert!(matches!(run.code, 0 | 130), "{} {}", run.code, run.stderr);
        }
    }
    for (arguments, out) in [("restore big there.raw --force", "."), ("restore two out", "out")] {
        let mut child = firn.spawn(arguments);
        let temporary = || {
            let entries = std::fs::read_dir(firn.path(out)).ok()?.flatten();
            entries.map(|entry| entry.file_name()).find(|name| name.to_string_lossy().contains(".firn-")).map(drop)
        };
        let is_over = until("the restore has begun", || {
            let is_over = child.try_wait().unwrap().is_some();
            (temporary().is_some() || is_over).then_some(is_over)
        });
        if !is_over {
            send("INT", &child);
        }
        let run = finish(child);
        assert!(matches!(run.code, 0 | 130), "{} {}", run.code, run.stderr);
        if run.code == 130 {
            assert_eq!(firn.read("there.raw"), b"precious");
        } else {
            firn.write("there.raw", "precious");
        }
        firn.assert_tidy("");
    }
}

/// Kills `child` as soon as `is_time` or it has ended.
pub fn kill_when(mut child: Child, mut is_time: impl FnMut(u32) -> bool) -> Run {
    until("it is time to kill firn", || (is_time(child.id()) || child.try_wait().unwrap().is_some()).then_some(()));
    // It may have ended by itself just now.
    let _ = child.kill();
    finish(child)
}

/// How many bytes a process has read or written so far, going by the kernel's "rchar" and "wchar".
pub fn moved_bytes(process: u32, counter: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{process}/io")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(counter)?.strip_prefix(": "));
    line.and_then(|number| number.trim().parse().ok()).unwrap_or(0)
}

/// Files below a folder of the pool, temporary ones included.
fn everything_in(firn: &Firn, folder: &str) -> u64 {
    firn.objects(folder).len() as u64
}

#[test]
fn killed_at_any_moment_nothing_that_was_published_is_lost() {
    let firn = Firn::with_pool();
    let seed = 20_261;
    eprintln!("seed {seed}");
    let mut random = Random::new(seed);
    let mut disk = mixed_disk(12 << 20, seed);
    let mut published: HashMap<String, Vec<u8>> = HashMap::new();
    let mut killed = 0;
    firn.write("a.raw", &disk);
    firn.ok("snap web1 a.raw");
    published.insert(firn.snapshots("web1")[0].clone(), disk.clone());
    for round in 0..KILLS {
        for _ in 0..20 {
            let at = usize::try_from(random.below(disk.len() as u64 - (200 << 10))).unwrap();
            let length = usize::try_from(random.below(200 << 10)).unwrap();
            random.fill(&mut disk[at..at + length]);
        }
        firn.write("a.raw", &disk);
        // Somewhere in the source, or when a new object of some kind is being written.
        let folder =
            ["", "data", "node", "idx", "note", "snap", "snap", "snap"][usize::try_from(random.below(8)).unwrap()];
        let (before, after) = (everything_in(&firn, folder), 1 + random.below(2));
        let bytes = random.below(disk.len() as u64);
        let run = kill_when(firn.spawn("snap web1 a.raw --json"), |process| match folder {
            "" => moved_bytes(process, "rchar") >= bytes,
            _ => everything_in(&firn, folder) >= before + after,
        });
        killed += u64::from(run.code == 128 + 9);
        assert!(matches!(run.code, 0 | 137), "round {round}: {}", run.stderr);
        let now = firn.snapshots("web1");
        assert!(published.keys().all(|uuid| now.contains(uuid)), "round {round}");
        assert!(run.code != 0 || now.len() > published.len(), "round {round}");
        for uuid in now {
            published.entry(uuid).or_insert_with(|| disk.clone());
        }
        assert!(firn.raw("web1") == published[firn.snapshots("web1").last().unwrap()], "round {round}");
    }
    eprintln!("{killed} of {KILLS} were killed, {} published", published.len());
    assert!(killed > 2, "nothing was killed in the middle");
    no_damaged_snapshot(&firn);
    // Where it left off: what is stored counts, and half of anything is in nobody's way.
    firn.ok("snap web1");
    firn.ok("snap web1");
    let all = firn.snapshots("web1");
    published.insert(all[all.len() - 1].clone(), disk.clone());
    published.insert(all[all.len() - 2].clone(), disk);
    for (back, uuid) in all.iter().rev().enumerate() {
        assert!(firn.raw(&format!("web1@latest~{back}")) == published[uuid], "{back}");
    }
    no_damaged_snapshot(&firn);
    firn.ok("pool rebuild-index");
    assert!(firn.raw("web1@first") == published[&all[0]]);
}

#[test]
fn a_restore_that_is_killed_leaves_the_old_file() {
    let firn = Firn::with_pool();
    let content = mixed_disk(24 << 20, 3);
    firn.write("a.raw", &content);
    firn.ok("snap web1 a.raw");
    for (file, bytes) in [("out.raw", 1 << 20), ("out.qcow2", 3 << 20), ("out.vmdk", 2 << 20)] {
        firn.write(file, pattern_file(file));
        let run = kill_when(firn.spawn(&format!("restore web1 {file} --force")), |process| {
            moved_bytes(process, "wchar") >= bytes
        });
        if run.code == 137 {
            assert!(firn.read(file) == pattern_file(file), "{file}");
        }
        firn.ok(&format!("restore web1 {file} --force"));
        assert!(firn.read(file).len() > content.len() / 4, "{file}");
    }
    assert!(firn.read("out.raw") == content);
}

#[test]
fn two_at_once_on_one_machine_and_on_two() {
    let firn = Firn::with_pool();
    let contents: Vec<_> = (0..4).map(|seed| mixed_disk(6 << 20, seed)).collect();
    for (number, content) in contents.iter().enumerate() {
        // The first two share half of their data with each other.
        let mut content = content.clone();
        if number == 1 {
            content[..3 << 20].copy_from_slice(&contents[0][..3 << 20]);
        }
        firn.write(&format!("{number}.raw"), content);
    }
    for machines in [["one", "one", "two", "three"], ["one", "two", "one", "two"]] {
        let children: Vec<_> = machines
            .iter()
            .enumerate()
            .map(|(number, name)| firn.spawn(&format!("snap {name} {number}.raw --json")))
            .collect();
        let taken: Vec<Value> = children
            .into_iter()
            .map(|child| {
                let run = finish(child);
                assert_eq!(run.code, 0, "{}", run.stderr);
                serde_json::from_str(run.text()).unwrap()
            })
            .collect();
        for (number, (taken, machine)) in taken.iter().zip(machines).enumerate() {
            let uuids = firn.snapshots(machine);
            let place = uuids.iter().position(|uuid| *uuid == taken["uuid"].as_str().unwrap()).unwrap();
            let back = uuids.len() - 1 - place;
            assert!(firn.raw(&format!("{machine}@latest~{back}")) == firn.read(&format!("{number}.raw")), "{machine}");
        }
    }
    assert_eq!((firn.snapshots("one").len(), firn.snapshots("two").len(), firn.snapshots("three").len()), (4, 3, 1));
    assert_eq!(firn.json("pool info")["machines"], 3);
    firn.ok("verify --read-data");
}

#[test]
fn readers_and_forgetting_beside_a_writer() {
    let firn = Firn::with_pool();
    let content = mixed_disk(4 << 20, 1);
    firn.write("a.raw", &content);
    firn.write("b.raw", mixed_disk(30 << 20, 2));
    firn.ok("snap web1 a.raw");
    firn.ok("snap old a.raw");
    let writer = firn.spawn("snap web2 b.raw");
    let others = ["restore web1 out.raw", "verify --read-data", "forget old@first", "list", "pool rebuild-index"];
    let children: Vec<_> = others.iter().map(|arguments| firn.spawn(arguments)).collect();
    for (child, arguments) in children.into_iter().zip(others) {
        let run = finish(child);
        // What is forgotten while it is looked at may be missed by the one who looks.
        let fine = run.code == 0 || arguments.starts_with("verify") && run.code == 3;
        assert!(fine, "{arguments}: {} {}{}", run.code, run.text(), run.stderr);
    }
    assert_eq!(finish(writer).code, 0);
    assert!(firn.read("out.raw") == content && firn.raw("web2") == firn.read("b.raw"));
    firn.ok("verify --read-data");
    firn.fails(4, "show old", &["there is no machine old"]);
}
