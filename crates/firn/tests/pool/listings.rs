//! What is in the pool: list, show, verify, forget, pool info; as text, and as documents whose names stay.

use crate::support::{Firn, mixed_disk, shape};

const SNAPSHOT: &str = "bytes: number
bytes_data: number
bytes_read: number
bytes_stored: number
config[].bytes: number
config[].name: string
consistency: string
disks[].bytes: number
disks[].logical_block_size: number
disks[].name: string
disks[].source: string
frozen_milliseconds: null
group: null
locks.compliance_until: null
locks.damaged: bool
locks.governance_until: null
locks.holds[]: nothing
machine: string
milliseconds: number
sequence: number
time: string
uuid: string";

/// Two machines: web1 with three snapshots of one disk, db1 with one of two disks and a kept file.
fn populated() -> Firn {
    let firn = Firn::with_pool();
    for seed in 0..3 {
        firn.write("a.raw", mixed_disk(3 << 20, seed));
        firn.ok("snap web1 a.raw");
    }
    firn.write("b.raw", mixed_disk(1 << 20, 9));
    firn.write("db1.xml", "<domain/>");
    firn.ok("snap db1 root=b.raw data=a.raw --config db1.xml");
    firn
}

#[test]
fn list_and_show_tell_what_there_is() {
    let firn = Firn::with_pool();
    let run = firn.run("list");
    assert!(
        run.code == 0 && run.stdout.is_empty() && run.stderr.contains("no snapshots; `firn snap"),
        "{}",
        run.stderr
    );
    assert_eq!(shape(&firn.json("list")), "machines[]: nothing");

    let firn = populated();
    let text = firn.ok("list");
    let lines: Vec<_> = text.lines().collect();
    assert!(lines[0].starts_with("MACHINE") && lines.len() == 5, "{text}");
    assert!(lines[1].starts_with("db1") && lines[4].starts_with("web1"), "{text}");
    assert_eq!(firn.ok("list web1").lines().count(), 4);
    firn.fails(4, "list web1 nobody", &["there is no machine nobody", "the pool has db1, web1"]);
    let list = firn.json("list db1");
    let prefixed = SNAPSHOT.lines().map(|line| format!("machines[].snapshots[].{line}\n")).collect::<String>();
    let expected = format!(
        "machines[].name: string\nmachines[].pending[]: nothing\n{prefixed}machines[].unreadable[]: nothing\nmachines[].uuid: string"
    );
    assert_eq!(shape(&list), expected);

    let shown = firn.json("show db1");
    assert_eq!(shape(&shown), SNAPSHOT);
    assert_eq!(shown["disks"][0]["name"], "root");
    assert_eq!(shown["disks"][0]["source"], firn.path("b.raw").to_str().unwrap());
    assert_eq!(shown["bytes"], 4 << 20);
    assert_eq!(shown["sequence"], 1);
    let text = firn.ok("show db1");
    for part in ["snapshot         db1@2", "4.0 MiB", "db1.xml (9 B)", "root", "b.raw"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    // What is printed as a snapshot's name is an address.
    let address = text.split_whitespace().nth(1).unwrap().to_owned();
    assert_eq!(firn.json(&format!("show {address}"))["uuid"], shown["uuid"]);
    let listed = firn.ok("list db1").lines().nth(1).unwrap().split_whitespace().nth(1).unwrap().to_owned();
    assert_eq!(address, format!("db1@{listed}"));

    assert_eq!(firn.ok("show db1 --config db1.xml"), "<domain/>");
    firn.fails(4, "show db1 --config other", &["no file other is kept", "it has: db1.xml"]);
    firn.fails(4, "show web1 --config other", &["it has: none"]);
}

#[test]
fn addresses_name_one_snapshot() {
    let firn = populated();
    let all = firn.snapshots("web1");
    let picked = |address: &str| firn.json(&format!("show {address}"))["uuid"].as_str().unwrap().to_owned();
    for (address, number) in [
        ("web1", 2),
        ("web1@latest", 2),
        ("web1@latest~1", 1),
        ("web1@latest~2", 0),
        ("web1@first", 0),
        ("web1@today", 2),
    ] {
        // The day may end while this test runs.
        if address != "web1@today" || firn.run("show web1@today").code == 0 {
            assert_eq!(picked(address), all[number], "{address}");
        }
    }
    assert_eq!(picked("web1@2999"), all[2]);
    let run = firn.run("show web1@2999 --quiet");
    assert!(run.stderr.is_empty() && run.code == 0, "{}", run.stderr);
    let run = firn.run("show web1@first");
    assert!(run.stderr.starts_with("firn: web1@2") && run.stderr.contains("(crash)"), "{}", run.stderr);
    for (code, address, part) in [
        (4, "web1@latest~3", "web1 has no snapshot that fits; it has 3"),
        (4, "web1@1999-12-31", "no snapshot that fits"),
        (4, "web2", "there is no machine web2"),
        (2, "web1@noon", "@noon names no snapshot"),
        (2, "web1@", "names no snapshot"),
        (2, "web1#vda", "is no snapshot in the pool"),
        (2, "web1:/etc", "is no snapshot in the pool"),
        (2, "a/b", "is no snapshot in the pool"),
        (2, "../pool", "is no snapshot in the pool"),
        (2, "..", "neither a file that exists nor the name of a machine"),
        (2, "nbd://host/x", "is no snapshot in the pool"),
    ] {
        firn.fails(code, &format!("show {address}"), &[part]);
    }
    firn.words_fail(2, &["show", ""], &["it is empty"]);
    assert_eq!(firn.snapshots("web1"), all);
}

#[test]
fn verify_says_how_deep_it_looked() {
    let firn = populated();
    for (arguments, part) in [
        ("verify", "every byte of"),
        ("verify --read-data", "and at 4 snapshots"),
        ("verify --quick", "looked at 4 snapshots"),
        ("verify --scrub", "every byte of"),
    ] {
        let text = firn.ok(arguments);
        assert!(text.starts_with("Everything is sound") && text.contains(part), "{text}");
    }
    let report = firn.json("verify");
    assert_eq!(
        shape(&report),
        "bytes: number\ndamaged_objects[]: nothing\ndamaged_snapshots[]: nothing\nobjects: number\nsnapshots: number\nsound: bool"
    );
    assert_eq!(report["snapshots"], 4);
    assert_eq!(report["objects"], firn.objects("").len());
}

#[test]
fn the_pool_tells_about_itself_and_its_index_is_made_again() {
    let firn = populated();
    let info = firn.json("pool info");
    assert_eq!(
        shape(&info),
        "blobs: number\ncreated: string\ncut.average_bytes: number\ncut.least_bytes: number\ncut.most_bytes: number
data_packs: number\ndomain: string\nformat_version: number\nkey_scope: string\nkey_slots: number
limits.max_bytes: null\nlimits.reserve_bytes: null\nlimits.when_full: string\nlocation: string
machines: number\nnode_packs: number\npool: string\nsnapshots: number\nstored_bytes: number"
    );
    assert_eq!((info["machines"].as_u64(), info["snapshots"].as_u64()), (Some(2), Some(4)));
    let stored: u64 = firn.objects("").iter().map(|object| object.metadata().unwrap().len()).sum();
    assert_eq!(info["stored_bytes"], stored);
    assert!(firn.ok("pool info").contains("opened with"));

    let content = firn.read("a.raw");
    std::fs::remove_dir_all(firn.path("pool/idx")).unwrap();
    firn.fails(3, "restore web1 out.raw", &["firn pool rebuild-index"]);
    firn.ok("list");
    assert_eq!(shape(&firn.json("pool rebuild-index")), "problems[]: nothing");
    assert_eq!(firn.raw("web1"), content);
    firn.ok("verify --read-data");
    assert!(firn.ok("pool rebuild-index").contains("Made the index again"));
    assert_eq!(firn.raw("web1"), content);
    // Without an index nothing that is there is stored again either: packs are found by themselves.
    std::fs::remove_dir_all(firn.path("pool/idx")).unwrap();
    let again = firn.json("snap web1 a.raw");
    assert_eq!(again["bytes_stored"], 0, "{again}");
    firn.ok("verify");
}

#[test]
fn forget_removes_what_is_named_and_nothing_else() {
    let firn = populated();
    let before = firn.snapshots("web1");
    for arguments in ["forget", "forget web1", "forget web1 db1@first"] {
        firn.fails(2, arguments, &["it is not said which snapshots", "firn forget web1@first"]);
    }
    firn.fails(2, "forget web1@first --keep-last 1", &["rules are for whole machines"]);
    firn.fails(4, "forget nobody --keep-last 1", &["there is no machine nobody"]);
    firn.fails(2, "forget --keep-last 0 --keep-daily 0", &["these rules keep nothing", "name it"]);
    // To read, an older one may do; not to remove.
    assert_eq!(firn.json("show web1@2999")["uuid"], before[2].as_str());
    firn.fails(4, "forget web1@2999", &["web1 has no snapshot of that time; the newest before it is of 2", "name it"]);
    assert_eq!(firn.snapshots("web1"), before);
    let text = firn.ok("forget web1@latest~1 --dry-run");
    assert!(text.contains("would remove  web1") && text.contains("named"), "{text}");
    assert_eq!(firn.snapshots("web1"), before);
    let text = firn.ok("forget web1@latest~1");
    assert!(text.contains("removed  web1"), "{text}");
    assert_eq!(firn.snapshots("web1"), [before[0].clone(), before[2].clone()]);
    let document = firn.json("forget web1@first -n");
    assert_eq!(
        shape(&document),
        "dry_run: bool\nsnapshots[].keep: bool\nsnapshots[].machine: string\nsnapshots[].reason: string
snapshots[].time: string\nsnapshots[].uuid: string"
    );
    assert_eq!(document["dry_run"], true);
    firn.ok("verify --read-data");
    assert_eq!(firn.raw("web1@first"), mixed_disk(3 << 20, 0));
    let address = firn.ok("show web1").split_whitespace().nth(1).unwrap().to_owned();
    firn.ok(&format!("forget {address} --dry-run"));
    // The last one of a machine takes the machine along.
    firn.ok("forget db1@first");
    firn.fails(4, "show db1", &["there is no machine db1"]);
}

#[test]
fn each_rule_keeps_the_newest_and_says_why() {
    let firn = populated();
    let newest = firn.snapshots("web1")[2].clone();
    for rule in ["last", "hourly", "daily", "weekly", "monthly", "yearly"] {
        let document = firn.json(&format!("forget web1 --keep-{rule} 1 --dry-run"));
        let snapshots = document["snapshots"].as_array().unwrap();
        let kept: Vec<_> = snapshots.iter().filter(|snapshot| snapshot["keep"] == true).collect();
        assert!(kept.len() == 1 && kept[0]["uuid"] == newest.as_str(), "{rule}: {document}");
        assert!(kept[0]["reason"].as_str().unwrap().starts_with(rule), "{rule}: {document}");
        let removed = snapshots.iter().find(|snapshot| snapshot["keep"] == false).unwrap();
        assert_eq!(removed["reason"], "no rule keeps it");
    }
    let text = firn.ok("forget --keep-last 2");
    assert!(text.contains("keep     db1") && text.contains("last 2") && text.contains("removed  web1"), "{text}");
    assert_eq!(firn.snapshots("web1").len(), 2);
    assert_eq!(firn.snapshots("db1").len(), 1);
    // A rule that no snapshot fits does not take a machine's last one.
    firn.write("a.raw", [5; 4096]);
    firn.ok("snap odd a.raw --torn");
    firn.ok("forget odd --keep-daily 3");
    assert_eq!(firn.snapshots("odd").len(), 1);
    let run = Firn::with_pool().run("forget --keep-last 1");
    assert!(run.code == 0 && run.stderr.contains("nothing to remove"), "{}", run.stderr);
}
