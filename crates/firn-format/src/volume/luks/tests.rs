//! What the ciphers' own test vectors and mutated headers say; real containers are in the crate's `tests/`.

use super::*;
use firn_disk::MemDisk;
use firn_disk::testing::{self, Random};
use std::sync::Arc;

fn shared(bytes: Vec<u8>) -> SharedDisk {
    Arc::new(MemDisk::from(bytes))
}

#[test]
fn xts_decrypts_the_vectors_of_the_standard() {
    // IEEE 1619-2007, annex B, vectors 1 and 2.
    let mut block = *b"\x91\x7c\xf6\x9e\xbd\x68\xb2\xec\x9b\x9f\xe9\xa3\xea\xdd\xa6\x92\xcd\x43\xd2\xf5\x95\x98\xed\x85\x8c\x02\xc2\x65\x2f\xbf\x92\x2e";
    Cipher::new("aes-xts-plain64", &[0; 32]).unwrap().decrypt(&mut block, 0);
    assert_eq!(block, [0; 32]);
    let key = [[0x11; 16], [0x22; 16]].concat();
    let mut block = *b"\xc4\x54\x18\x5e\x6a\x16\x93\x6e\x39\x33\x40\x38\xac\xef\x83\x8b\xfb\x18\x6f\xff\x74\x80\xad\xc4\x28\x93\x82\xec\xd6\xd3\x94\xf0";
    Cipher::new("aes-xts-plain64", &key).unwrap().decrypt(&mut block, 0x33_3333_3333);
    assert_eq!(block, [0x44; 32]);
}

#[test]
fn a_decrypted_disk_conforms_whatever_is_read_of_it() {
    let below = testing::pattern(100_000, 3);
    for (sector, name) in [
        (512_u64, "aes-xts-plain64"),
        (4096, "aes-xts-plain64"),
        (512, "aes-cbc-essiv:sha256"),
        (1024, "aes-cbc-plain"),
    ] {
        let cipher = Cipher::new(name, &[7; 32]).unwrap();
        let start = 1000;
        let count = (100_000 - start) / usize::try_from(sector).unwrap();
        let mut expected = below[start..start + count * usize::try_from(sector).unwrap()].to_vec();
        for (number, bytes) in (0..).zip(expected.chunks_mut(usize::try_from(sector).unwrap())) {
            cipher.decrypt(bytes, 5 + number * sector / 512);
        }
        let cipher = Cipher::new(name, &[7; 32]).unwrap();
        let disk = Crypt::new(shared(below.clone()), start as u64, (100_000 - start) as u64, sector, 5, cipher);
        testing::check_disk(&disk, &expected, 9);
    }
}

#[test]
fn what_is_not_known_is_refused_by_name() {
    for name in [
        "serpent-xts-plain64",
        "aes-xts-essiv:sha256",
        "aes-cbc-essiv:wp512",
        "aes-ecb",
        "capi:xts(aes)",
        "cipher_null-ecb",
    ] {
        let error = Cipher::new(name, &[0; 64]).map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    }
    assert_eq!(Cipher::new("aes-xts-plain64", &[0; 33]).map(drop).unwrap_err().kind(), ErrorKind::Corrupt);
    let keys = Keys::new(vec![Zeroizing::new(b"a".to_vec())]).with_memory_limit(1 << 20);
    let kdf = |memory_kib, passes| Kdf::Argon2 { is_hybrid: true, passes, memory_kib, lanes: 1, salt: vec![1; 16] };
    assert_eq!(kdf(2048, 4).derive(b"a", 32, &keys).unwrap_err().kind(), ErrorKind::Unsupported);
    assert_eq!(kdf(512, u32::MAX).derive(b"a", 32, &keys).unwrap_err().kind(), ErrorKind::Unsupported);
    assert!(kdf(512, 1).derive(b"a", 32, &keys).is_ok());
    assert_eq!(format!("{keys:?}"), "1 keys");
}

/// A LUKS1 header with one slot whose material is whatever stands there.
fn header1() -> Vec<u8> {
    let mut bytes = testing::pattern(300_000, 6);
    bytes[..592].fill(0);
    bytes[..8].copy_from_slice(b"LUKS\xBA\xBE\x00\x01");
    for (at, text) in [(8, "aes"), (40, "xts-plain64"), (72, "sha256"), (168, "c5a3c5a3-0000-4000-8000-000000000000")] {
        bytes[at..at + text.len()].copy_from_slice(text.as_bytes());
    }
    for (at, number) in [(104, 520_u32), (108, 64), (164, 1), (208, 0x00AC_71F3), (212, 1), (248, 8), (252, 4000)] {
        bytes[at..at + 4].copy_from_slice(&number.to_be_bytes());
    }
    bytes
}

#[test]
fn mutated_headers_never_panic_or_take_long() {
    let seed = 81;
    eprintln!("seed {seed}");
    let mut random = Random::new(seed);
    let keys = Keys::new(vec![Zeroizing::new(b"x".to_vec())]);
    let (mut denied, mut other) = (0, 0);
    for _ in 0..300 {
        let mut bytes = header1();
        for _ in 0..=random.below(3) {
            let at = 8 + usize::try_from(random.below(250)).unwrap();
            // Iterations stay few, so that the test is quick; their limit has a test of its own.
            if !(164..168).contains(&at) && !(212..216).contains(&at) {
                bytes[at] = random.next_u64().to_le_bytes()[0];
            }
        }
        let luks = match Luks::read(&shared(bytes)) {
            Ok(Some(luks)) => luks,
            _ => {
                other += 1;
                continue;
            }
        };
        match luks.unlock(&keys) {
            Err(error) if error.kind() == ErrorKind::Denied => denied += 1,
            Err(_) => other += 1,
            Ok(_) => panic!("a random key fits"),
        }
    }
    assert!(denied > 50 && other > 20, "{denied} denied, {other} others");
}
