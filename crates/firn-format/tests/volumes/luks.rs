//! LUKS containers: of a real guest, of qemu-img and of cryptsetup.

use crate::support::{check, check_files, data, disks, find, shared};
use firn_disk::testing::{self, skip};
use firn_disk::{Disk, ErrorKind, FileDisk, SharedDisk};
use firn_format::layers::{LayerKind, Layers};
use firn_format::volume::luks::{Keys, Luks};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use zeroize::Zeroizing;

fn keys(names: &[&str]) -> Keys {
    Keys::new(names.iter().map(|name| Zeroizing::new(std::fs::read(data(&format!("{name}.key"))).unwrap())).collect())
}

fn secret(text: &str) -> Keys {
    Keys::new(vec![Zeroizing::new(text.as_bytes().to_vec())])
}

fn probe(disks: Vec<Vec<u8>>, keys: &Keys) -> Layers {
    let letters = 'a'..='z';
    let named = letters.zip(disks).map(|(letter, bytes)| (format!("vd{letter}"), shared(bytes)));
    Layers::probe_with_keys(named.collect(), keys)
}

#[test]
fn what_the_guest_encrypted_is_read_with_its_key() {
    let layers = probe(disks("luks1"), &keys(&["luks2", "luks1"]));
    let (_, node) = find(&layers, LayerKind::Encrypted, "luks1");
    assert_eq!(node.features, ["aes-cbc-essiv:sha256", "1 key slot"]);
    check(&layers, node.uuid.as_ref().unwrap(), "luks1");
    let layers = probe(disks("luks2"), &keys(&["luks2"]));
    check_files(&layers, "vda", "luks2");
    assert_eq!(find(&layers, LayerKind::Encrypted, "luks2").1.features[2], "sectors of 4096 bytes");
}

#[test]
fn encryption_volumes_and_arrays_nest_in_any_order() {
    let layers = probe(disks("nest"), &keys(&["nest"]));
    check_files(&layers, "nest/crypt", "nest");
    check_files(&layers, "vdb", "nest");
    // One half of the mirror does as well, and says so.
    let layers = probe(vec![disks("nest").remove(1)], &keys(&["nest"]));
    check_files(&layers, "nest/crypt", "nest");
    let (_, array) = layers.iter().find(|(_, node)| node.kind == LayerKind::Array).unwrap();
    assert_eq!(array.health, ["member 0 is missing"]);
    let layers = probe(disks("mdluks"), &keys(&["mdluks-2", "mdluks-0", "mdluks-1"]));
    let (_, array) = layers.iter().find(|(_, node)| node.kind == LayerKind::Array).unwrap();
    check_files(&layers, array.address.trim_start_matches('#'), "mdluks");
}

#[test]
fn without_the_key_it_is_shown_and_says_what_to_give() {
    for keys in [Keys::default(), keys(&["luks1"])] {
        let layers = probe(disks("luks2"), &keys);
        let (_, node) = find(&layers, LayerKind::Encrypted, "luks2");
        assert!(node.uuid.is_some() && node.features[0] == "aes-xts-plain64", "{:?}", node.features);
        let error = layers.file_system_of(layers.resolve(&["vda"]).unwrap()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied);
        assert!(error.next_step().unwrap().contains("--luks-key-file"), "{error:?}");
    }
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
        ("aes-192", "cbc", "plain64", "sha1"),
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

#[test]
fn damaged_containers_never_panic() {
    let seed = 91;
    eprintln!("seed {seed}");
    let mut random = testing::Random::new(seed);
    let keys = keys(&["luks2"]).with_memory_limit(64 << 20);
    let whole = disks("luks2").remove(0);
    let mut refused = 0;
    for _ in 0..60 {
        let mut bytes = whole.clone();
        for _ in 0..=random.below(3) {
            // The JSON is text; a digit for a digit makes other sizes.
            let at = 4096 + usize::try_from(random.below(1500)).unwrap();
            bytes[at] = b"0123456789\"{}"[usize::try_from(random.below(13)).unwrap()];
        }
        if random.below(2) == 0 {
            bytes[0x4000..0x5000].fill(0);
        }
        for start in [0, 0x4000] {
            let sum = {
                let header = &mut bytes[start..start + 0x4000];
                header[448..512].fill(0);
                ring::digest::digest(&ring::digest::SHA256, header)
            };
            bytes[start + 448..start + 480].copy_from_slice(sum.as_ref());
        }
        let disk = shared(bytes);
        match Luks::read(&disk) {
            Ok(Some(luks)) => match luks.unlock(&keys).and_then(|open| open.disk(&disk)) {
                Ok(open) => refused += u32::from(open.read_at(&mut [0; 512], 0).is_err()),
                Err(_) => refused += 1,
            },
            Ok(None) | Err(_) => refused += 1,
        }
    }
    assert!(refused > 15, "{refused} refused");
}
