//! The client against servers that others wrote: qemu-nbd and nbdkit.

use crate::common::{Server, default_options, have};
use firn_disk::testing::{check_disk, check_write_disk, pattern};
use firn_disk::{Disk, ErrorKind, ExtentKind, WriteDisk, visit_extents};
use firn_nbd::{Options, Uri, list, open, open_writable};
use std::time::{Duration, Instant};

/// 3 MiB: a megabyte of data, one of nothing, a quarter of data, nothing.
fn image() -> Vec<u8> {
    let mut bytes = vec![0; 3 << 20];
    bytes[..1 << 20].copy_from_slice(&pattern(1 << 20, 1));
    bytes[2 << 20..][..1 << 18].copy_from_slice(&pattern(1 << 18, 2));
    bytes
}

fn holes(disk: &dyn Disk) -> u64 {
    let mut sum = 0;
    visit_extents(disk, 0..disk.len(), |kind, range| {
        sum += if kind == ExtentKind::Data { 0 } else { range.end - range.start };
        Ok(())
    })
    .unwrap();
    sum
}

#[test]
fn qemu_nbd_raw_over_tcp_with_several_connections() {
    if !have("qemu_nbd_raw_over_tcp_with_several_connections", &["qemu-nbd"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.raw");
    let bytes = image();
    std::fs::write(&path, &bytes).unwrap();
    let server = Server::qemu_tcp(&["-f", "raw", "-r", "-t", "--shared=8", "-x", "a disk"], &path);
    let uri = Uri::parse(&format!("nbd://127.0.0.1:{}/a%20disk", server.port)).unwrap();
    let disk = open(&uri, &default_options()).unwrap();
    assert_eq!(disk.connections(), 4);
    assert!(disk.is_read_only());
    check_disk(&disk, &bytes, 21);
    assert_eq!(open_writable(&uri, &default_options()).unwrap_err().kind(), ErrorKind::Denied);
    let wrong = Uri { export: "other".to_owned(), ..uri.clone() };
    assert_eq!(open(&wrong, &default_options()).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(list(&uri, &default_options()).unwrap()[0].name, "a disk");
    // By name, which may also be ::1, where nobody listens.
    let named = Uri::parse(&format!("nbd://localhost:{}/a%20disk", server.port)).unwrap();
    assert_eq!(open(&named, &default_options()).unwrap().len(), bytes.len() as u64);
    drop((disk, server));
    assert_eq!(open(&uri, &default_options()).unwrap_err().kind(), ErrorKind::Unavailable, "connection refused");
}

#[test]
fn qemu_nbd_qcow2_has_holes_and_is_written_over_a_unix_socket() {
    if !have("qemu_nbd_qcow2_has_holes_and_is_written_over_a_unix_socket", &["qemu-nbd", "qemu-img"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (raw, path) = (folder.path().join("disk.raw"), folder.path().join("disk.qcow2"));
    let bytes = image();
    std::fs::write(&raw, &bytes).unwrap();
    crate::common::run("qemu-img", &["convert", "-O", "qcow2", raw.to_str().unwrap(), path.to_str().unwrap()]);
    let server = Server::qemu_unix(&["-f", "qcow2", "-t", "--shared=0", "--discard=unmap"], &path, folder.path());
    let disk = open(&server.uri(""), &default_options()).unwrap();
    check_disk(&disk, &bytes, 22);
    assert_eq!(holes(&disk), (3 << 20) - (1 << 20) - (1 << 18));
    drop(disk);
    let disk = open_writable(&server.uri(""), &default_options()).unwrap();
    check_write_disk(&disk, 23, 150);
    assert_eq!(disk.resize(1).unwrap_err().kind(), ErrorKind::Unsupported);
    let mut now = vec![0; bytes.len()];
    disk.read_at(&mut now, 0).unwrap();
    disk.flush().unwrap();
    drop(disk);
    drop(server);
    crate::common::run("qemu-img", &["convert", "-O", "raw", path.to_str().unwrap(), raw.to_str().unwrap()]);
    assert!(std::fs::read(&raw).unwrap() == now, "the image holds what was written");
}

#[test]
fn a_server_that_takes_fewer_connections_than_it_promised_is_read_over_those() {
    if !have("a_server_that_takes_fewer_connections_than_it_promised_is_read_over_those", &["qemu-nbd"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.raw");
    std::fs::write(&path, image()).unwrap();
    let server = Server::qemu_unix(&["-f", "raw", "-r", "-t", "--shared=2"], &path, folder.path());
    let options = Options { timeout: Duration::from_millis(1500), ..default_options() };
    let disk = open(&server.uri(""), &options).unwrap();
    assert_eq!(disk.connections(), 2);
    check_disk(&disk, &image(), 24);
}

#[test]
fn a_persistent_dirty_bitmap_of_qcow2() {
    if !have("a_persistent_dirty_bitmap_of_qcow2", &["qemu-nbd", "qemu-img", "qemu-io"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.qcow2");
    let name = path.to_str().unwrap();
    crate::common::run("qemu-img", &["create", "-f", "qcow2", name, "6G"]);
    crate::common::run("qemu-img", &["bitmap", "--add", "-g", "65536", name, "since"]);
    for at in ["write -P 1 0 1000", "write -P 2 1M 128k", "write -P 3 5G 64k"] {
        crate::common::run("qemu-io", &["-f", "qcow2", "-c", at, name]);
    }
    let server = Server::qemu_unix(&["-f", "qcow2", "-r", "-t", "--shared=0", "-B", "since"], &path, folder.path());
    let context = format!("{}since", firn_nbd::QEMU_DIRTY_BITMAP);
    let options = Options { contexts: vec![context.clone()], ..default_options() };
    let disk = open(&server.uri(""), &options).unwrap();
    let mut dirty = Vec::new();
    disk.changed(&context, |range| {
        dirty.push(range);
        Ok(())
    })
    .unwrap();
    let (mib, gib) = (1 << 20, 1 << 30);
    assert_eq!(dirty, [0..65536, mib..mib + (128 << 10), 5 * gib..5 * gib + 65536]);
    // QEMU also sees which part of a cluster is a hole of the image file.
    assert!(holes(&disk) >= 6 * gib - 65536 - (128 << 10) - 65536);
    let options = Options { contexts: vec![format!("{}other", firn_nbd::QEMU_DIRTY_BITMAP)], ..default_options() };
    assert_eq!(open(&server.uri(""), &options).unwrap_err().kind(), ErrorKind::NotFound);
    let disk = open(&server.uri(""), &default_options()).unwrap();
    assert_eq!(disk.changed(&context, |_| Ok(())).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn nbdkit_memory_is_written() {
    if !have("nbdkit_memory_is_written", &["nbdkit"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let server = Server::nbdkit(&["memory", "size=1000001"], folder.path());
    let disk = open_writable(&server.uri(""), &default_options()).unwrap();
    assert_eq!(disk.as_disk().connections(), 4);
    check_write_disk(&disk, 25, 200);
}

#[test]
fn nbdkit_without_structured_replies_and_without_zeroing() {
    if !have("nbdkit_without_structured_replies_and_without_zeroing", &["nbdkit"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["--no-sr", "--filter=nozero", "memory", "size=500000"];
    let server = Server::nbdkit(&arguments, folder.path());
    let disk = open_writable(&server.uri(""), &default_options()).unwrap();
    check_write_disk(&disk, 26, 100);
    let options = Options { contexts: vec!["qemu:dirty-bitmap:x".to_owned()], ..default_options() };
    assert_eq!(open(&server.uri(""), &options).unwrap_err().kind(), ErrorKind::Unsupported);
}

#[test]
fn nbdkit_without_fixed_newstyle_is_asked_by_export_name() {
    if !have("nbdkit_without_fixed_newstyle_is_asked_by_export_name", &["nbdkit"]) {
        return;
    }
    for mask in ["--mask-handshake=0", "--mask-handshake=2"] {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::nbdkit(&[mask, "memory", "size=64K"], folder.path());
        let disk = open(&server.uri(""), &default_options()).unwrap();
        check_disk(&disk, &[0; 65536], 27);
        assert_eq!(list(&server.uri(""), &default_options()).unwrap_err().kind(), ErrorKind::Unsupported);
    }
    let folder = tempfile::tempdir().unwrap();
    let server = Server::nbdkit(&["-o", "memory", "size=64K"], folder.path());
    assert_eq!(open(&server.uri(""), &default_options()).unwrap_err().kind(), ErrorKind::Unsupported);
}

#[test]
fn nbdkit_with_strict_block_sizes() {
    if !have("nbdkit_with_strict_block_sizes", &["nbdkit"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let policy = ["blocksize-minimum=4096", "blocksize-preferred=4096", "blocksize-maximum=16384"];
    let arguments = ["--filter=blocksize-policy", "memory", "size=1M", "blocksize-error-policy=error"];
    let server = Server::nbdkit(&[&arguments[..], &policy[..]].concat(), folder.path());
    let disk = open_writable(&server.uri(""), &default_options()).unwrap();
    check_write_disk(&disk, 28, 150);
}

#[test]
fn nbdkit_pattern_of_a_terabyte_is_read_anywhere() {
    if !have("nbdkit_pattern_of_a_terabyte_is_read_anywhere", &["nbdkit"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let server = Server::nbdkit(&["pattern", "size=1T"], folder.path());
    let disk = open(&server.uri(""), &default_options()).unwrap();
    for offset in [0, 5, (1 << 40) - (9 << 20) - 8, 3 << 32] {
        let mut bytes = vec![0; 9 << 20];
        disk.read_at(&mut bytes, offset).unwrap();
        // Each eight bytes hold their own offset.
        let skip = offset.next_multiple_of(8) - offset;
        for (index, word) in bytes[usize::try_from(skip).unwrap()..].chunks_exact(8).enumerate() {
            assert_eq!(u64::from_be_bytes(word.try_into().unwrap()), offset + skip + 8 * index as u64);
        }
    }
}

#[test]
fn nbdkit_sparse_random_holes_are_holes() {
    if !have("nbdkit_sparse_random_holes_are_holes", &["nbdkit"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let plugin = ["sparse-random", "size=16M", "seed=3", "percent=30", "runlength=65536"];
    let server = Server::nbdkit(&plugin, folder.path());
    let disk = open(&server.uri(""), &default_options()).unwrap();
    let mut bytes = vec![0; 16 << 20];
    disk.read_at(&mut bytes, 0).unwrap();
    // Not the conformance suite: to reads that begin within its blocks the plugin gives other bytes, to qemu-io too.
    let mut empty = 0;
    visit_extents(&disk, 0..disk.len(), |kind, range| {
        let run = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
        if kind != ExtentKind::Data {
            assert!(bytes[run.clone()].iter().all(|&byte| byte == 0));
            empty += run.len();
        }
        Ok(())
    })
    .unwrap();
    assert!(empty > 4 << 20, "{empty}");
    assert!(bytes.iter().any(|&byte| byte != 0));
}

#[test]
fn errors_of_the_server_are_told_and_do_not_break_the_connection() {
    if !have("errors_of_the_server_are_told_and_do_not_break_the_connection", &["nbdkit"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let server = Server::nbdkit(
        &["--filter=error", "memory", "size=1M", "error-pwrite=ENOSPC", "error-pwrite-rate=100%"],
        folder.path(),
    );
    let disk = open_writable(&server.uri(""), &default_options()).unwrap();
    disk.read_at(&mut [0; 100], 5).unwrap();
    let error = disk.write_at(&[1; 512], 0, firn_disk::Fua::No).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    disk.read_at(&mut [0; 100], 5).unwrap();
    let server = Server::nbdkit(
        &["--filter=error", "memory", "size=1M", "error-pread=EIO", "error-pread-rate=100%"],
        folder.path(),
    );
    let disk = open(&server.uri(""), &default_options()).unwrap();
    assert_eq!(disk.read_at(&mut [0; 100], 5).unwrap_err().kind(), ErrorKind::Io);
    assert_eq!(disk.read_at(&mut [0; 100], 5).unwrap_err().kind(), ErrorKind::Io);
}

#[test]
fn a_slow_server_is_waited_for_and_a_silent_one_is_not() {
    if !have("a_slow_server_is_waited_for_and_a_silent_one_is_not", &["nbdkit"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let options = Options { timeout: Duration::from_millis(400), reconnect: 1, ..default_options() };
    let server = Server::nbdkit(&["--filter=rate", "memory", "size=1M", "rate=8M"], folder.path());
    let disk = open(&server.uri(""), &default_options()).unwrap();
    disk.read_at(&mut vec![0; 1 << 20], 0).unwrap();
    let server = Server::nbdkit(&["--filter=delay", "memory", "size=1M", "rdelay=60"], folder.path());
    let disk = open(&server.uri(""), &options).unwrap();
    let started = Instant::now();
    assert_eq!(disk.read_at(&mut [0; 100], 5).unwrap_err().kind(), ErrorKind::Unavailable);
    assert!(started.elapsed() < Duration::from_secs(30), "it was not waited for");
    drop(disk);
    server.kill();
}

#[test]
fn many_requests_are_on_their_way_at_once_on_one_connection() {
    if !have("many_requests_are_on_their_way_at_once_on_one_connection", &["nbdkit"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let server = Server::nbdkit(&["--filter=delay", "memory", "size=8M", "rdelay=1"], folder.path());
    let disk = open(&server.uri(""), &Options { connections: 1, ..default_options() }).unwrap();
    let started = Instant::now();
    disk.read_at(&mut vec![0; 8 << 20], 0).unwrap();
    assert!(started.elapsed() < Duration::from_secs(6), "one after another it would take 8 s");
}

#[test]
fn a_client_that_leaves_is_gone_for_the_server() {
    if !have("a_client_that_leaves_is_gone_for_the_server", &["nbdkit"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::nbdkit(&["--filter=exitlast", "memory", "size=1M"], folder.path());
    drop(open(&server.uri(""), &default_options()).unwrap());
    assert!(server.ended_within(Duration::from_secs(10)), "it ends with its last client");
}

#[test]
fn a_server_that_is_started_again_is_found_again() {
    if !have("a_server_that_is_started_again_is_found_again", &["nbdkit"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("same.sock");
    let server = Server::nbdkit_at(&["pattern", "size=4M"], &socket);
    let disk = open(&server.uri(""), &default_options()).unwrap();
    let mut word = [0; 8];
    disk.read_at(&mut word, 80).unwrap();
    server.kill();
    assert_eq!(disk.read_at(&mut word, 80).unwrap_err().kind(), ErrorKind::Unavailable);
    let server = Server::nbdkit_at(&["pattern", "size=4M"], &socket);
    disk.read_at(&mut word, 88).unwrap();
    assert_eq!(u64::from_be_bytes(word), 88);
    server.kill();
    let _server = Server::nbdkit_at(&["pattern", "size=5M"], &socket);
    let error = disk.read_at(&mut word, 88).unwrap_err();
    assert!(error.to_string().contains("length went from"), "{error}");
}
