//! Random histories of an image, through the program and back, in every format.

use crate::support::{Firn, have, mixed_disk, tool, write_sparse};
use firn_disk::testing::Random;

const HISTORIES: u64 = 5;
const STEPS: usize = 6;
const FORMATS: [(&str, &str); 5] =
    [("raw", "raw"), ("qcow2", "qcow2"), ("vmdk", "vmdk"), ("qcow2-zstd", "qcow2"), ("vmdk-stream", "vmdk")];

/// Writes, zeros, copies, cuts off or adds, at places that no block cares for.
fn change(disk: &mut Vec<u8>, random: &mut Random) {
    let below = |random: &mut Random, bound: usize| usize::try_from(random.below(bound as u64)).unwrap();
    match random.below(8) {
        0 => disk.truncate(below(random, disk.len() + 1)),
        1 => {
            let more = below(random, 3 << 20);
            disk.resize(disk.len() + more, 0);
        }
        2 if !disk.is_empty() => {
            // As a file system that moves a file: the same bytes at another block.
            let length = below(random, disk.len().min(1 << 20)) / 4096 * 4096;
            let from = below(random, disk.len() - length) / 4096 * 4096;
            let to = below(random, disk.len() - length) / 4096 * 4096;
            disk.copy_within(from..from + length, to);
        }
        _ if disk.is_empty() => *disk = mixed_disk(100_000, random.next_u64()),
        kind => {
            let at = below(random, disk.len());
            let length = below(random, (disk.len() - at).min(300 << 10) + 1);
            let part = &mut disk[at..at + length];
            if kind < 5 { part.fill(0) } else { random.fill(part) }
        }
    }
}

#[test]
fn every_state_of_a_random_history_comes_back_in_every_format() {
    let test = "every_state_of_a_random_history_comes_back_in_every_format";
    if !have(test, &["qemu-img"]) {
        return;
    }
    for seed in 0..HISTORIES {
        let mut random = Random::new(seed);
        let firn = Firn::with_pool();
        let mut disk = mixed_disk(usize::try_from(random.below(20 << 20)).unwrap(), seed);
        let mut states = Vec::new();
        for _ in 0..STEPS {
            for _ in 0..random.below(6) {
                change(&mut disk, &mut random);
            }
            write_sparse(&firn.path("a.raw"), &disk);
            // Any format goes in, too. (qemu-img does not convert what is empty.)
            let (format, image) =
                if disk.is_empty() { FORMATS[0] } else { FORMATS[usize::try_from(random.below(3)).unwrap()] };
            if format != "raw" {
                tool(firn.folder(), "qemu-img", &["convert", "-f", "raw", "-O", image, "a.raw", "a.img"]);
                firn.ok("snap web1 a.img");
                disk.resize(disk.len().next_multiple_of(512), 0);
            } else {
                firn.ok("snap web1 a.raw");
            }
            states.push(disk.clone());
        }
        firn.ok("verify --read-data");
        for (number, state) in states.iter().enumerate() {
            let (name, format) = FORMATS[(number + usize::try_from(seed).unwrap()) % FORMATS.len()];
            let address = format!("web1@latest~{}", STEPS - 1 - number);
            assert!(firn.raw(&address) == *state, "seed {seed}, {address}");
            if state.is_empty() && format == "vmdk" {
                continue;
            }
            firn.ok(&format!("restore {address} out.img --force --format {name}"));
            tool(firn.folder(), "qemu-img", &["convert", "-f", format, "-O", "raw", "out.img", "back.raw"]);
            let back = firn.read("back.raw");
            assert!(back.len() == state.len().next_multiple_of(512), "seed {seed}, {address}, {name}");
            let (whole, rest) = back.split_at(state.len());
            assert!(whole == *state && rest.iter().all(|byte| *byte == 0), "seed {seed}, {address}, {name}");
        }
    }
}
