//! Pools that are built here block by block; those of a real kernel are in the crate's `tests/`.

use super::*;
use firn_disk::MemDisk;
use firn_disk::testing::{self, FaultDisk, Random};

const BYTES: u64 = 65_536;

/// Metadata that is being built: whole blocks.
struct Builder(Vec<[u8; 4096]>);

impl Builder {
    fn put(&mut self, mut block: [u8; 4096], salt: u32) -> u64 {
        let place = self.0.len() as u64;
        block[8..16].copy_from_slice(&place.to_le_bytes());
        let sum = tree::checksum(&block[4..], salt);
        block[..4].copy_from_slice(&sum.to_le_bytes());
        self.0.push(block);
        place
    }

    fn node(&mut self, is_leaf: bool, entries: &[(u64, u64)], value_bytes: usize) -> u64 {
        let room = (4096 - 32) / (8 + value_bytes) / 3 * 3;
        let mut block = [0; 4096];
        block[4] = if is_leaf { 2 } else { 1 };
        for (at, number) in [(16, entries.len()), (20, room), (24, value_bytes)] {
            block[at..at + 4].copy_from_slice(&u32::try_from(number).unwrap().to_le_bytes());
        }
        for (at, (key, value)) in entries.iter().enumerate() {
            block[32 + 8 * at..][..8].copy_from_slice(&key.to_le_bytes());
            block[32 + 8 * room + value_bytes * at..][..8].copy_from_slice(&value.to_le_bytes());
        }
        self.put(block, 121_107)
    }

    /// A tree of all entries, as full as it gets.
    fn tree(&mut self, entries: &[(u64, u64)], value_bytes: usize) -> u64 {
        let per_leaf = (4096 - 32) / (8 + value_bytes) / 3 * 3;
        let mut level: Vec<(u64, u64)> = match entries {
            [] => vec![(0, self.node(true, &[], value_bytes))],
            _ => entries.chunks(per_leaf).map(|leaf| (leaf[0].0, self.node(true, leaf, value_bytes))).collect(),
        };
        while level.len() > 1 {
            level = level.chunks(252).map(|inner| (inner[0].0, self.node(false, inner, 8))).collect();
        }
        level[0].1
    }

    /// A whole pool with these devices, and the bytes of its metadata.
    fn pool(devices: &[(u64, Vec<(u64, u64)>)]) -> Vec<u8> {
        let mut builder = Self(vec![[0; 4096]]);
        let mut roots = Vec::new();
        for (device, entries) in devices {
            let values: Vec<(u64, u64)> = entries.iter().map(|(block, data)| (*block, data << 24 | 5)).collect();
            roots.push((*device, builder.tree(&values, 8)));
        }
        let mappings = builder.tree(&roots, 8);
        let details: Vec<(u64, u64)> =
            devices.iter().map(|(device, entries)| (*device, entries.len() as u64)).collect();
        let details = builder.tree(&details, 24);
        let mut block = [0; 4096];
        for (at, number) in
            [(32, MAGIC), (40, 2), (48, 7), (320, mappings), (328, details), (336, (BYTES / 512) | (8 << 32))]
        {
            block[at..at + 8].copy_from_slice(&number.to_le_bytes());
        }
        let sum = tree::checksum(&block[4..], SUPERBLOCK_SALT);
        block[..4].copy_from_slice(&sum.to_le_bytes());
        builder.0[0] = block;
        builder.0.concat()
    }
}

fn memory(bytes: Vec<u8>) -> SharedDisk {
    Arc::new(MemDisk::from(bytes))
}

#[test]
fn mapped_unmapped_and_origins_blocks_conform() {
    let data = testing::pattern(20 * 65_536, 1);
    let entries = vec![(0, 7), (1, 3), (4, 19), (6, 0)];
    let pool = Builder::pool(&[(1, entries.clone()), (2, vec![])]);
    let pool = Arc::new(Pool::open(memory(pool), memory(data.clone()), BYTES).unwrap());
    assert_eq!((pool.transaction, pool.needs_check), (7, false));
    let length = 7 * 65_536 + 1000;
    let origin = testing::pattern(3 * 65_536 - 500, 2);
    for origin in [None, Some(origin)] {
        let mut expected = origin.clone().unwrap_or_default();
        expected.resize(length, 0);
        for (block, at) in &entries {
            let (block, at) = (usize::try_from(*block).unwrap() * 65_536, usize::try_from(*at).unwrap() * 65_536);
            expected[block..block + 65_536].copy_from_slice(&data[at..at + 65_536]);
        }
        let volume = pool.volume(1, length as u64, origin.map(memory)).unwrap();
        testing::check_disk(&volume, &expected, 3);
    }
    let empty = pool.volume(2, 100_000, None).unwrap();
    assert_eq!(empty.extent_at(5).unwrap(), Extent { kind: ExtentKind::Hole, length: 99_995 });
    assert_eq!(pool.volume(3, 100_000, None).unwrap_err().kind(), ErrorKind::Unavailable);
}

#[test]
fn a_million_mappings_are_not_read_to_open_a_volume() {
    let entries: Vec<(u64, u64)> = (0..1_000_000).map(|block| (block * 3, block % 4)).collect();
    let metadata = FaultDisk::new(MemDisk::from(Builder::pool(&[(1, entries)])));
    let metadata = Arc::new(metadata);
    let data = testing::pattern(4 * 65_536, 5);
    let pool = Arc::new(Pool::open(metadata.clone(), memory(data.clone()), BYTES).unwrap());
    let volume = pool.volume(1, 3_000_000 * BYTES, None).unwrap();
    assert!(metadata.reads() < 10, "{} reads to open it", metadata.reads());
    let mut buf = [0; 512];
    for block in [0, 1_500_000, 2_999_997] {
        volume.read_at(&mut buf, block * BYTES).unwrap();
        let at = usize::try_from(block / 3 % 4 * BYTES).unwrap();
        assert_eq!(buf, data[at..at + 512]);
        let hole = volume.extent_at((block + 1) * BYTES).unwrap();
        assert_eq!((hole.kind, hole.length), (ExtentKind::Hole, 2 * BYTES));
    }
    assert!(metadata.reads() < 30, "{} reads", metadata.reads());
}

#[test]
fn damage_is_an_error_and_never_a_panic() {
    let whole = Builder::pool(&[(1, (0..2000).map(|block| (block * 2, block % 20)).collect())]);
    let data = memory(vec![7; 20 * 65_536]);
    let open = |metadata: Vec<u8>| {
        let pool = Arc::new(Pool::open(memory(metadata), data.clone(), BYTES)?);
        pool.volume(1, 4000 * BYTES, None)
    };
    let seed = 51;
    let mut random = Random::new(seed);
    eprintln!("seed {seed}");
    let (mut refused, mut read) = (0, 0);
    for round in 0..3000 {
        let mut bytes = whole.clone();
        let at = usize::try_from(random.below(bytes.len() as u64)).unwrap();
        let block = at / 4096 * 4096;
        for _ in 0..=random.below(3) {
            let place = if random.below(2) == 0 { block + usize::try_from(random.below(400)).unwrap() } else { at };
            bytes[place] = random.next_u64().to_le_bytes()[0];
        }
        let is_fixed = round % 3 > 0;
        if is_fixed {
            // Believed, whatever it says.
            let salt = if block == 0 { SUPERBLOCK_SALT } else { 121_107 };
            let sum = tree::checksum(&bytes[block + 4..block + 4096], salt);
            bytes[block..block + 4].copy_from_slice(&sum.to_le_bytes());
        }
        let changed = bytes != whole;
        let Ok(volume) = open(bytes) else {
            refused += 1;
            continue;
        };
        let mut buf = vec![0; 2048];
        for _ in 0..20 {
            let offset = random.below(volume.len() - 2048);
            match volume.read_at(&mut buf, offset) {
                Err(_) => refused += 1,
                Ok(()) if changed && !is_fixed => {
                    let is_mapped = (offset / BYTES).is_multiple_of(2);
                    assert!(buf[0] == if is_mapped { 7 } else { 0 }, "a damaged block was believed");
                    read += 1;
                }
                Ok(()) => read += 1,
            }
            let _ = volume.extent_at(offset);
        }
    }
    assert!(refused > 1000 && read > 1000, "{refused} refused, {read} read");
}
