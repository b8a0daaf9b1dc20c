//! The conformance suite. It panics with what differs; every failure names its seed.

use crate::{Disk, ErrorKind, ExtentKind, Fua, MayUnmap, WriteDisk};

/// A small generator of repeatable pseudo-random numbers (SplitMix64), for tests only.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The same seed gives the same numbers.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `bound`, or 0 when `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next_u64().checked_rem(bound).unwrap_or(0)
    }

    /// Fills `buf`.
    pub fn fill(&mut self, buf: &mut [u8]) {
        for piece in buf.chunks_mut(8) {
            piece.copy_from_slice(&self.next_u64().to_le_bytes()[..piece.len()]);
        }
    }
}

/// `length` repeatable bytes that do not compress.
pub fn pattern(length: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; length];
    Random::new(seed).fill(&mut bytes);
    bytes
}

/// Checks every promise of [`Disk`] against the bytes that `disk` is known to hold.
///
/// # Panics
/// When a promise is broken.
pub fn check_disk(disk: &dyn Disk, expected: &[u8], seed: u64) {
    let length = expected.len() as u64;
    assert_eq!(disk.len(), length, "length");
    assert_eq!(disk.is_empty(), expected.is_empty());
    assert!(matches!(disk.logical_block_size(), 512 | 4096), "logical block size");
    check_reads(disk, expected, seed);
    check_bounds(disk, length);
    check_extents(disk, expected, seed);
    std::thread::scope(|scope| {
        for thread in 1..=3 {
            scope.spawn(move || check_reads(disk, expected, seed.wrapping_add(thread)));
        }
    });
}

fn check_reads(disk: &dyn Disk, expected: &[u8], seed: u64) {
    let mut random = Random::new(seed);
    let length = expected.len() as u64;
    let mut whole = vec![0xAA; expected.len()];
    disk.read_at(&mut whole, 0).expect("read the whole disk");
    if let Some(at) = whole.iter().zip(expected).position(|(a, b)| a != b) {
        panic!("byte {at} of a read of everything is {:#x}, not {:#x}", whole[at], expected[at]);
    }
    for _ in 0..200 {
        let offset = match random.below(4) {
            0 => random.below(length + 1),
            1 => random.below(length + 1) & !511,
            2 => random.below(length + 1) & !4095,
            _ => length - random.below(length.min(5000) + 1),
        };
        let most = (length - offset).min(1 << (random.below(18) + 1));
        let count = usize::try_from(random.below(most + 1)).expect("small");
        let start = usize::try_from(offset).expect("small");
        let mut buf = vec![0xAA; count];
        disk.read_at(&mut buf, offset)
            .unwrap_or_else(|error| panic!("seed {seed}: read {count} bytes at {offset}: {error}"));
        assert!(buf == expected[start..start + count], "seed {seed}: {count} bytes at {offset} differ");
    }
}

fn check_bounds(disk: &dyn Disk, length: u64) {
    for (offset, count) in [(length, 1), (length + 1, 0), (u64::MAX, 1), (length.saturating_sub(1), 2), (u64::MAX, 0)] {
        let result = disk.read_at(&mut vec![0; count], offset);
        let kind = result.expect_err("a read past the end must fail").kind();
        assert_eq!(kind, ErrorKind::OutOfBounds, "{count} bytes at {offset}");
    }
    disk.read_at(&mut [], length).expect("an empty read at the end");
    for offset in [length, u64::MAX] {
        let kind = disk.extent_at(offset).expect_err("an extent past the end must fail").kind();
        assert_eq!(kind, ErrorKind::OutOfBounds, "extent at {offset}");
    }
}

fn check_extents(disk: &dyn Disk, expected: &[u8], seed: u64) {
    let length = expected.len() as u64;
    let check = |at: u64| {
        let extent = disk.extent_at(at).unwrap_or_else(|error| panic!("extent at {at}: {error}"));
        assert!(extent.length > 0, "extent at {at} has no length");
        assert!(extent.length <= length - at, "extent at {at} reaches past the end");
        if extent.kind != ExtentKind::Data {
            let start = usize::try_from(at).expect("small");
            let run = &expected[start..start + usize::try_from(extent.length).expect("small")];
            assert!(run.iter().all(|&byte| byte == 0), "{:?} at {at} does not read as zeros", extent.kind);
        }
        extent.length
    };
    let mut at = 0;
    while at < length {
        at += check(at);
    }
    let mut random = Random::new(seed);
    for _ in 0..50_u64.min(length) {
        check(random.below(length));
    }
}

/// Drives `disk` with `operations` random writes, zeros, discards and flushes beside a `Vec` that gets the
/// same, and compares them. The disk's content at the start is the model's.
///
/// # Panics
/// When the two differ, or an operation fails.
pub fn check_write_disk(disk: &dyn WriteDisk, seed: u64, operations: u32) {
    let mut random = Random::new(seed);
    let mut model = vec![0; usize::try_from(disk.len()).expect("small")];
    disk.read_at(&mut model, 0).expect("read the start");
    for operation in 0..operations {
        let length = model.len() as u64;
        let offset = random.below(length + 1);
        let count = random.below((length - offset).min(10_000) + 1);
        let start = usize::try_from(offset).expect("small");
        let end = start + usize::try_from(count).expect("small");
        let range = offset..offset + count;
        let done = match random.below(5) {
            0 => disk.zero(range, if random.below(2) == 0 { MayUnmap::Yes } else { MayUnmap::No }).map(|()| {
                model[start..end].fill(0);
            }),
            1 => disk.discard(range).and_then(|()| {
                // The old bytes or zeros, each byte for itself.
                let mut now = vec![0; end - start];
                disk.read_at(&mut now, offset)?;
                for (new, old) in now.iter().zip(&model[start..end]) {
                    assert!(*new == 0 || new == old, "seed {seed}: discard made up a byte");
                }
                model[start..end].copy_from_slice(&now);
                Ok(())
            }),
            2 => disk.flush(),
            _ => {
                random.fill(&mut model[start..end]);
                disk.write_at(&model[start..end], offset, if random.below(8) == 0 { Fua::Yes } else { Fua::No })
            }
        };
        done.unwrap_or_else(|error| panic!("seed {seed}: operation {operation}: {error}"));
    }
    let length = model.len() as u64;
    for (offset, count) in [(length, 1), (u64::MAX, 1)] {
        let kind = disk.write_at(&vec![1; count], offset, Fua::No).expect_err("past the end").kind();
        assert_eq!(kind, ErrorKind::OutOfBounds);
        assert!(disk.zero(offset..offset.saturating_add(5), MayUnmap::No).is_err() || offset == u64::MAX);
    }
    check_disk(disk, &model, seed);
}
