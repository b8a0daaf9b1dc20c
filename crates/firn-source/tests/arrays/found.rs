//! What is found on this host: images on a mounted btrfs, a loop device, and where nothing can be taken, why.

use crate::support::Btrfs;
use firn_source::discover;

#[test]
fn what_is_mounted_is_found_with_what_to_do_about_it() {
    let Some(disk) = Btrfs::mount("what_is_mounted_is_found_with_what_to_do_about_it") else { return };
    let folder = disk.subvolume("vms");
    for name in ["b.qcow2", "a.img", "note.txt"] {
        std::fs::write(folder.join(name), "").unwrap();
    }
    let found = discover();
    let uri = format!("btrfs:{}?images=a.img,b.qcow2", folder.display());
    assert!(found.iter().any(|found| found.uri.as_ref() == Some(&uri)), "{found:#?}");
    // The loop device below the file system is there, and cannot be taken while it is mounted.
    let mounted = format!("mounted on {}", disk.text("").trim_end_matches('/'));
    let is_it = |reason: &String| reason.contains(&mounted);
    assert!(found.iter().any(|found| found.uri.is_none() && found.refused.as_ref().is_some_and(is_it)), "{found:#?}");
    assert!(found.iter().all(|found| found.uri.is_some() != found.refused.is_some()), "{found:#?}");
}
