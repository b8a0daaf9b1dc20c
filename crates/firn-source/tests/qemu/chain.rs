//! Snapshot after snapshot: each is of its instant, and only what changed is read.

use crate::machine::{MIB, Machine, can_run};
use crate::taking::{OWNER, Pool, assert_stored, content};

const KIB64: u64 = 64 << 10;

/// Both ways to the instant, as a URI says them.
const WAYS: [&str; 2] = ["?cut=filter", "?cut=backup"];

#[test]
fn every_snapshot_is_of_its_instant_and_reads_what_changed() {
    if !can_run("every_snapshot_is_of_its_instant_and_reads_what_changed") {
        return;
    }
    for way in WAYS {
        let mut machine = Machine::new(&[("a", "qcow2", 8 * MIB), ("b", "raw", 3 * MIB + 512)]);
        machine.start();
        let uri = machine.uri() + way;
        let mut pool = Pool::new(OWNER);
        machine.write("a", 1, 0, MIB);
        machine.write("b", 2, 3 * MIB, 512);
        let expected = content(&machine);
        let taken = pool.take(&uri, || {
            machine.write("a", 3, MIB / 2, MIB);
            machine.write("b", 4, 0, 4096);
        });
        let taken = taken.unwrap();
        assert_eq!(taken.read["vda"], None, "{way}");
        assert_stored(&pool, &expected);
        machine.assert_clean(way);
        assert_eq!(machine.bitmaps("a").len(), 1);
        assert_eq!(machine.bitmaps("b").len(), 1);

        machine.write("a", 5, 4 * MIB + 1024, 512);
        let expected = content(&machine);
        let taken = pool.take(&uri, || machine.write("a", 6, 0, 4 * MIB)).unwrap();
        assert_eq!(taken.plan.disks[0].dirty_bytes, Some(MIB + KIB64));
        assert_eq!(taken.read["vda"], Some(MIB + KIB64), "{way}");
        assert_eq!(taken.read["vdb"], Some(KIB64), "{way}");
        assert_stored(&pool, &expected);

        let expected = content(&machine);
        let taken = pool.take(&uri, || ()).unwrap();
        assert_eq!((taken.read["vda"], taken.read["vdb"]), (Some(4 * MIB), Some(0)));
        assert_stored(&pool, &expected);
        machine.assert_clean(way);
    }
}
