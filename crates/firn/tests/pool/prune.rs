//! Prune beside everything else, locks, limits; and what killed processes leave behind.

use crate::stopped::{kill_when, moved_bytes};
use crate::support::{Firn, finish, mixed_disk};
use firn_disk::testing::Random;
use serde_json::Value;
use std::collections::HashMap;

/// How often snap and prune are killed, unless FIRN_KILL_ROUNDS says otherwise.
const KILL_ROUNDS: u64 = 40;

/// web1 with a snapshot of each of these disks, oldest first.
fn taken(firn: &Firn, seeds: &[u64]) -> Vec<Vec<u8>> {
    let disks: Vec<_> = seeds.iter().map(|seed| mixed_disk(2 << 20, *seed)).collect();
    for disk in &disks {
        firn.write("a.raw", disk);
        firn.ok("snap web1 a.raw");
    }
    disks
}

fn sound(firn: &Firn) {
    firn.ok("verify --read-data");
}

fn number(report: &Value, name: &str) -> u64 {
    report[name].as_u64().unwrap_or_else(|| panic!("{name} in {report}"))
}

fn bytes_of(firn: &Firn, folder: &str) -> u64 {
    firn.objects(folder).iter().map(|path| path.metadata().unwrap().len()).sum()
}

#[test]
fn the_space_of_a_forgotten_snapshot_comes_back() {
    let firn = Firn::with_pool();
    let disks = taken(&firn, &[1, 2]);
    let before = bytes_of(&firn, "data");
    firn.ok("forget web1@first");
    let objects = firn.objects("");
    let planned = firn.json("prune --dry-run --grace 0");
    assert!(number(&planned, "marked_packs") == 2 && number(&planned, "deleted_packs") == 0, "{planned}");
    assert_eq!(firn.objects(""), objects, "a dry run changes nothing");
    let report = firn.json("prune --grace 0");
    assert!(number(&report, "deleted_packs") == 2 && number(&report, "waiting_packs") == 0, "{report}");
    assert!(bytes_of(&firn, "data") < before * 2 / 3);
    assert!(firn.raw("web1") == disks[1]);
    sound(&firn);
    let again = firn.json("prune --grace 0");
    assert_eq!((number(&again, "marked_packs"), number(&again, "deleted_packs")), (0, 0));
    // What is left names nothing that is gone, for a stranger without a cache as well.
    std::fs::remove_dir_all(firn.path("home/.cache")).unwrap();
    sound(&firn);
    assert!(firn.raw("web1") == disks[1]);
    assert!(firn.objects("tomb").len() <= 1 && firn.objects("lease").is_empty());
}

#[test]
fn what_is_dead_waits_for_the_grace_and_is_not_built_on_meanwhile() {
    let firn = Firn::with_pool();
    let disks = taken(&firn, &[1, 2]);
    firn.ok("forget web1@first");
    // Younger than the grace it is not even marked: a snapshot that was interrupted may go on with it.
    let report = firn.json("prune");
    assert_eq!((number(&report, "marked_packs"), number(&report, "deleted_packs")), (0, 0));
    // With a tombstone over it, its content is stored again rather than found.
    let report = firn.json("prune --grace 0 --dry-run");
    assert_eq!(number(&report, "marked_packs"), 2);
    firn.write("a.raw", &disks[0]);
    assert_eq!(number(&firn.json("snap web1 a.raw"), "bytes_stored"), 0, "without a tombstone it is found");
    assert_eq!(number(&firn.json("prune --grace 0"), "marked_packs"), 0);
    assert!(firn.raw("web1") == disks[0] && firn.raw("web1@first") == disks[1]);
    sound(&firn);
}

#[test]
fn packs_that_are_mostly_dead_are_copied_together() {
    let firn = Firn::with_pool();
    let mut disk = mixed_disk(4 << 20, 1);
    firn.write("a.raw", &disk);
    firn.ok("snap web1 a.raw");
    // Three quarters of it change.
    disk[1 << 20..].copy_from_slice(&mixed_disk(3 << 20, 2));
    firn.write("a.raw", &disk);
    firn.ok("snap web1 a.raw");
    firn.ok("forget web1@first");
    let kept = firn.json("prune --grace 0 --repack-below 0");
    assert_eq!(number(&kept, "repacked_packs"), 0, "{kept}");
    let report = firn.json("prune --grace 0");
    assert!(number(&report, "repacked_bytes") > 0 && number(&report, "deleted_packs") > 0, "{report}");
    let (live, left) = (number(&report, "live_bytes"), bytes_of(&firn, "data"));
    assert!(left < live + live / 4, "{left} bytes are left of {live}");
    assert!(firn.raw("web1") == disk);
    sound(&firn);
}

#[test]
fn a_locked_snapshot_is_not_forgotten() {
    let firn = Firn::with_pool();
    let disks = taken(&firn, &[1, 2]);
    firn.ok("lock web1@first --until 30d");
    firn.fails(5, "forget web1@first", &["is locked until", "firn unlock"]);
    let kept = firn.json("forget --keep-last 1");
    assert!(
        kept["snapshots"][0]["keep"] == true && kept["snapshots"][0]["reason"].as_str().unwrap().contains("locked")
    );
    assert!(firn.ok("list").contains("until 20") && firn.ok("show web1@first").contains("locked"));
    firn.ok("lock web1@first --hold audit");
    firn.ok("unlock web1@first");
    firn.fails(5, "forget web1@first", &["held for audit"]);
    firn.fails(4, "unlock web1@first --hold nobody", &["nobody does not hold", "audit"]);
    firn.fails(4, "unlock web1@first", &["no lock that could be lifted"]);
    let run = firn.run("lock web1@first --compliance --until 60d");
    assert!(run.code == 0 && run.stderr.contains("Whoever may delete the pool's files"), "{}", run.stderr);
    firn.fails(5, "lock web1@first --compliance --until 59d", &["never shortened"]);
    firn.ok("lock web1@first --compliance --until 61d");
    firn.ok("unlock web1@first --hold audit");
    firn.fails(5, "unlock web1@first", &["compliance lock cannot be lifted"]);
    firn.fails(5, "forget web1@first", &["locked (compliance) until", "nobody can lift"]);
    let uuid = firn.snapshots("web1")[0].clone();
    firn.fails(5, &format!("forget {uuid} --force"), &["compliance"]);
    firn.fails(2, "lock web1 --until 2001-01-01", &["is past"]);
    let locks = &firn.json("show web1@first")["locks"];
    assert!(locks["compliance_until"].is_string() && locks["holds"].as_array().unwrap().is_empty(), "{locks}");
    firn.ok("prune --grace 0");
    assert!(firn.raw("web1@first") == disks[0]);
    // A note that cannot be read may have been a lock.
    firn.ok("lock web1 --hold me");
    let notes = firn.objects("lock");
    let note = notes.iter().find(|note| note.to_string_lossy().contains(&firn.snapshots("web1")[1].replace('-', "")));
    std::fs::write(note.unwrap(), "rubbish").unwrap();
    firn.fails(5, "forget web1@latest", &["may be locked"]);
    firn.ok(&format!("forget {} --force", firn.snapshots("web1")[1]));
}

#[test]
fn a_full_pool_stops_or_drops_its_oldest() {
    let firn = Firn::with_pool();
    assert_eq!(firn.json("pool set")["max_bytes"], Value::Null);
    let disks = taken(&firn, &[1, 2, 3]);
    let stored = number(&firn.json("pool info"), "stored_bytes");
    let set = firn.json(&format!("pool set --max-bytes {} --when-full stop", stored + 1000));
    assert_eq!(set["when_full"], "stop");
    firn.write("a.raw", mixed_disk(2 << 20, 4));
    firn.fails(6, "snap web1 a.raw", &["reached the limit", "firn prune"]);
    assert_eq!(firn.snapshots("web1").len(), 3);
    sound(&firn);
    firn.ok("pool set --max-bytes none --reserve 100000T");
    firn.fails(6, "snap web1 a.raw", &["reached the limit"]);
    firn.ok("lock web1@first --hold me");
    firn.ok(&format!("pool set --reserve none --max-bytes {stored} --when-full drop-oldest"));
    firn.fails(6, "snap web1 a.raw", &["the oldest snapshots were forgotten as far as they may", "after the grace"]);
    let left = firn.snapshots("web1").len();
    assert!(left == 2, "the second is dropped, the locked and the last one stay: {left}");
    assert!(firn.raw("web1@first") == disks[0] && firn.raw("web1") == disks[2]);
    // Their space comes back with prune; an unchanged disk needs next to none.
    assert!(number(&firn.json("prune --grace 0"), "deleted_packs") > 0);
    firn.write("a.raw", &disks[2]);
    firn.ok("snap web1 a.raw");
    sound(&firn);
}

#[test]
fn halves_that_a_killed_writer_left_are_completed() {
    let firn = Firn::with_pool();
    let disks = taken(&firn, &[1]);
    for (folder, healer) in
        [("fate", "snap web1 a.raw"), ("snap", "prune"), ("fate", "prune"), ("snap", "snap web1 a.raw")]
    {
        for copy in ["-a", "-b"] {
            let objects = firn.objects(folder);
            let first = objects.iter().find(|path| path.to_string_lossy().ends_with(copy)).unwrap();
            std::fs::remove_file(first).unwrap();
            firn.run("verify --quick");
            assert!(firn.raw("web1@first") == disks[0], "one copy is enough");
            firn.ok(healer);
            sound(&firn);
        }
    }
}

#[test]
fn what_was_never_confirmed_is_pending_and_goes_with_prune() {
    let firn = Firn::with_pool();
    let disks = taken(&firn, &[1, 2]);
    let newest = firn.snapshots("web1")[1].replace('-', "");
    for object in firn.objects("fate").iter().filter(|object| object.to_string_lossy().contains(&newest)) {
        std::fs::remove_file(object).unwrap();
    }
    let list = firn.json("list web1");
    assert_eq!(list["machines"][0]["snapshots"].as_array().unwrap().len(), 1);
    assert_eq!(list["machines"][0]["pending"].as_array().unwrap().len(), 1);
    assert!(firn.ok("list").contains("pending"));
    assert!(firn.raw("web1") == disks[0], "it is no snapshot");
    sound(&firn);
    let report = firn.json("prune --grace 0");
    assert_eq!(number(&report, "abandoned_snapshots"), 1, "{report}");
    assert!(number(&firn.json("prune --grace 0"), "deleted_packs") > 0);
    assert!(firn.objects("snap").len() == 2 && firn.raw("web1") == disks[0]);
    sound(&firn);
}

#[test]
fn a_snapshot_whose_manifest_is_unreadable_stops_prune_until_it_is_given_up() {
    let firn = Firn::with_pool();
    let disks = taken(&firn, &[1, 2]);
    let uuid = firn.snapshots("web1")[0].clone();
    for object in firn.objects("snap").iter().filter(|path| path.to_string_lossy().contains(&uuid.replace('-', ""))) {
        std::fs::write(object, "rubbish").unwrap();
    }
    firn.fails(3, "prune --grace 0", &["not known what a snapshot needs", &format!("firn forget {uuid} --force")]);
    firn.fails(2, "forget web1 --force", &["no UUID"]);
    firn.fails(4, "forget 00000000-0000-4000-8000-000000000000 --force", &["there is no snapshot"]);
    firn.ok(&format!("forget {uuid} --force"));
    assert!(number(&firn.json("prune --grace 0"), "deleted_packs") > 0);
    assert!(firn.raw("web1") == disks[1]);
    sound(&firn);
}

#[test]
fn prune_beside_snapshots_in_many_processes() {
    let firn = Firn::with_pool();
    let mut contents: HashMap<String, Vec<u8>> = HashMap::new();
    for round in 0..6_u64 {
        let names = ["one", "two", "three"];
        let children: Vec<_> = names
            .iter()
            .zip(0..)
            .map(|(name, number)| {
                // Two of them share their content, and the third has that of the round before.
                let disk = mixed_disk(1 << 20, round + number / 2);
                firn.write(&format!("{name}.raw"), &disk);
                contents.insert((*name).to_owned(), disk);
                firn.spawn(&format!("snap {name} {name}.raw --quiet"))
            })
            .collect();
        let prunes: Vec<_> = (0..2).map(|_| firn.spawn("prune --grace 0 --quiet")).collect();
        for child in children.into_iter().chain(prunes) {
            let run = finish(child);
            assert_eq!(run.code, 0, "round {round}: {}", run.stderr);
        }
        if round % 2 == 1 {
            firn.ok("forget --keep-last 1");
        }
        for (name, content) in &contents {
            assert!(firn.raw(name) == *content, "round {round}: {name}");
        }
    }
    sound(&firn);
    firn.ok("forget --keep-last 1");
    firn.ok("prune --grace 0");
    sound(&firn);
}

#[test]
fn killed_at_any_moment_snap_and_prune_lose_nothing() {
    let firn = Firn::with_pool();
    let rounds = std::env::var("FIRN_KILL_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(KILL_ROUNDS);
    let seed = 20_262;
    eprintln!("seed {seed}, {rounds} rounds");
    let mut random = Random::new(seed);
    let mut contents: HashMap<String, u64> = HashMap::new();
    let disk = |seed: u64| mixed_disk(1 << 20, seed);
    for round in 0..rounds {
        let mut children = Vec::new();
        for machine in ["m0", "m1"] {
            let content = random.below(6);
            firn.write(&format!("{machine}.raw"), disk(content));
            let child = firn.spawn(&format!("snap {machine} {machine}.raw --quiet --json"));
            children.push((child, Some(content)));
        }
        children.push((firn.spawn("prune --grace 0 --quiet"), None));
        if random.below(3) == 0 {
            children.push((firn.spawn("forget --keep-last 2 --quiet"), None));
        }
        // Whoever comes first is waited for first; the others go on meanwhile.
        for (child, content) in children {
            let bytes = random.below(400 << 10);
            let counter = if random.below(2) == 0 { "rchar" } else { "wchar" };
            let is_spared = random.below(4) == 0;
            let run = kill_when(child, |process| !is_spared && moved_bytes(process, counter) >= bytes);
            assert!(matches!(run.code, 0 | 137), "round {round}: {} {}", run.code, run.stderr);
            if let Some(content) = content.filter(|_| run.code == 0) {
                let taken: Value = serde_json::from_str(run.text()).unwrap();
                contents.insert(taken["uuid"].as_str().unwrap().to_owned(), content);
            }
        }
        if round % 10 == 9 || round + 1 == rounds {
            check_contents(&firn, &contents, &disk);
        }
    }
    firn.ok("snap m0 m0.raw");
    firn.ok("snap m1 m1.raw");
    firn.ok("prune --grace 0");
    sound(&firn);
    check_contents(&firn, &contents, &disk);
}

/// Every snapshot that is listed reads back as it was taken; nothing is damaged.
fn check_contents(firn: &Firn, contents: &HashMap<String, u64>, disk: &dyn Fn(u64) -> Vec<u8>) {
    let run = firn.run("verify --read-data --json");
    let report: Value = serde_json::from_str(run.text()).unwrap();
    assert!(matches!(run.code, 0 | 3), "{}", run.stderr);
    assert_eq!(report["damaged_snapshots"].as_array().unwrap().len(), 0, "{report}");
    for machine in firn.json("list")["machines"].as_array().unwrap() {
        let name = machine["name"].as_str().unwrap();
        let snapshots = machine["snapshots"].as_array().unwrap();
        assert!(machine["unreadable"].as_array().unwrap().is_empty(), "{machine}");
        for (number, snapshot) in snapshots.iter().enumerate() {
            if let Some(content) = contents.get(snapshot["uuid"].as_str().unwrap()) {
                let address = format!("{name}@latest~{}", snapshots.len() - 1 - number);
                assert!(firn.raw(&address) == disk(*content), "{address}");
            }
        }
    }
}
