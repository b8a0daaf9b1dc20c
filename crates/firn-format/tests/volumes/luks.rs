//! LUKS containers of qemu-img and of cryptsetup.

use crate::support::shared;
use firn_disk::testing::{self, skip};
use firn_disk::{Disk, ErrorKind, FileDisk, SharedDisk};
use firn_format::volume::luks::{Keys, Luks};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use zeroize::Zeroizing;

fn secret(text: &str) -> Keys {
    Keys::new(vec![Zeroizing::new(text.as_bytes().to_vec())])
}

/// Runs a program that is there; `None`, said aloud, when it cannot do this here.
fn run(test: &str, program: &str, arguments: &[&str]) -> Option<()> {
    let output = match Command::new(program).args(arguments).output() {
        Ok(output) => output,
        Err(error) => {
            skip(test, &format!("{program}: {error}"));
            return None;
        }
    };
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
    Some(())
}

#[test]
fn what_qemu_encrypted_is_read_in_every_mode() {
    let test = "what_qemu_encrypted_is_read_in_every_mode";
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let bytes = testing::pattern(1 << 20, 7);
    std::fs::write(file("clear"), &bytes).unwrap();
    std::fs::write(file("key"), "a passphrase").unwrap();
    let secret_object = format!("secret,id=key,file={}", file("key"));
    for (cipher, mode, vector, hash) in [
        ("aes-256", "xts", "plain64", "sha256"),
        ("aes-128", "xts", "plain64", "sha1"),
        ("aes-256", "cbc", "essiv", "sha256"),
        ("aes-128", "cbc", "plain", "sha512"),
    ] {
        let target = file("luks");
        let _ = std::fs::remove_file(&target);
        let essiv = if vector == "essiv" { ",ivgen-hash-alg=sha256" } else { "" };
        let options = format!(
            "key-secret=key,cipher-alg={cipher},cipher-mode={mode},ivgen-alg={vector}{essiv},hash-alg={hash},iter-time=10"
        );
        let create = ["create", "-q", "--object", &secret_object, "-f", "luks", "-o", &options, &target, "1M"];
        if run(test, "qemu-img", &create).is_none() {
            return;
        }
        let opened = format!("driver=luks,key-secret=key,file.filename={target}");
        let clear = file("clear");
        let convert =
            ["convert", "-n", "--object", &secret_object, "-f", "raw", "--target-image-opts", &clear, &opened];
        run(test, "qemu-img", &convert);
        let disk: SharedDisk = Arc::new(FileDisk::open(Path::new(&target)).unwrap());
        let luks = Luks::read(&disk).unwrap().unwrap();
        let open = luks.unlock(&secret("a passphrase")).and_then(|open| open.disk(&disk));
        let open = open.unwrap_or_else(|error| panic!("{cipher} {mode} {vector} {hash}: {error}"));
        assert_eq!(open.len(), 1 << 20);
        testing::check_disk(&open, &bytes, 5);
        assert_eq!(luks.unlock(&secret("a passphrasE")).map(drop).unwrap_err().kind(), ErrorKind::Denied);
    }
}

#[test]
fn every_slot_that_cryptsetup_made_opens_the_container() {
    let test = "every_slot_that_cryptsetup_made_opens_the_container";
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    for name in ["one", "two", "three"] {
        std::fs::write(file(name), format!("key {name}")).unwrap();
    }
    std::fs::File::create(file("luks")).unwrap().set_len(20 << 20).unwrap();
    let (luks, one, two, three) = (file("luks"), file("one"), file("two"), file("three"));
    let cost = ["--pbkdf-memory", "8192", "--pbkdf-force-iterations", "4", "--pbkdf-parallel", "1"];
    let format = [&["luksFormat", "-q", "--type", "luks2", "--pbkdf", "argon2id"][..], &cost, &[&luks, &one]].concat();
    if run(test, "cryptsetup", &format).is_none() {
        return;
    }
    let add = |kind: &str, cost: &[&str], new: &str| {
        let arguments = [&["luksAddKey", "-q", "--key-file", &one, "--pbkdf", kind][..], cost, &[&luks, new]].concat();
        run(test, "cryptsetup", &arguments);
    };
    add("argon2i", &cost, &two);
    add("pbkdf2", &["--pbkdf-force-iterations", "1000"], &three);
    let bytes = std::fs::read(&luks).unwrap();
    let opens = |bytes: Vec<u8>, key: &str| -> Result<Vec<String>, firn_disk::Error> {
        let disk = shared(bytes);
        let luks = Luks::read(&disk)?.unwrap();
        assert_eq!(luks.features()[1], "3 key slots");
        luks.unlock(&secret(key)).map(|_| luks.health)
    };
    for key in ["key one", "key two", "key three"] {
        assert_eq!(opens(bytes.clone(), key).unwrap(), Vec::<String>::new());
    }
    assert_eq!(opens(bytes.clone(), "key four").unwrap_err().kind(), ErrorKind::Denied);
    // Either header alone is enough, and the damage is told.
    for (place, word) in [(5000, "first"), (0x4000 + 5000, "second")] {
        let mut damaged = bytes.clone();
        damaged[place] ^= 1;
        let health = opens(damaged, "key two").unwrap();
        assert!(health.len() == 1 && health[0].contains(&format!("the {word} header is damaged")), "{health:?}");
    }
    let mut damaged = bytes;
    damaged[5000] ^= 1;
    damaged[0x4000 + 5000] ^= 1;
    assert_eq!(opens(damaged, "key one").unwrap_err().kind(), ErrorKind::Corrupt);
}
