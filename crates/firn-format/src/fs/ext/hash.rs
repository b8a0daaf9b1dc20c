//! The hashes by which an indexed folder sorts its names.
//!
//! Legacy, half MD4 and TEA, each in a signed and an unsigned form, as the machine's `char` was when the file system
//! was made.
//!
//! Source: the kernel's `fs/ext4/hash.c`.

/// The version number of a hash that folds names (casefold with encryption), which is not computed here.
const UNSIGNED: u8 = 3;
const LAST: u32 = 0x7FFF_FFFF;

/// Which hash, and what it starts from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hasher {
    version: u8,
    unsigned: bool,
    seed: [u32; 4],
}

impl Hasher {
    /// `version` as an indexed folder's root says it; `flags` and `seed` from the superblock. `None` for hashes that
    /// are not known.
    pub fn new(version: u8, flags: u32, seed: [u32; 4]) -> Option<Self> {
        const FLAG_UNSIGNED: u32 = 2;
        let unsigned = version >= UNSIGNED || flags & FLAG_UNSIGNED != 0;
        let version = if version >= UNSIGNED { version - UNSIGNED } else { version };
        (version < UNSIGNED).then_some(Self { version, unsigned, seed })
    }

    /// The major and the minor hash of a name. The lowest bit of the major one is zero.
    pub fn hash(&self, name: &[u8]) -> (u32, u32) {
        let mut state = [0x6745_2301, 0xEFCD_AB89, 0x98BA_DCFE, 0x1032_5476];
        if self.seed.iter().any(|word| *word != 0) {
            state = self.seed;
        }
        let (hash, minor) = match self.version {
            0 => (self.legacy(name), 0),
            1 => {
                let mut rest = name;
                while !rest.is_empty() {
                    half_md4(&mut state, &self.words::<8>(rest));
                    rest = rest.get(32..).unwrap_or(&[]);
                }
                (state[1], state[2])
            }
            _ => {
                let mut rest = name;
                while !rest.is_empty() {
                    tea(&mut state, &self.words::<4>(rest));
                    rest = rest.get(16..).unwrap_or(&[]);
                }
                (state[0], state[1])
            }
        };
        let hash = hash & !1;
        (if hash == LAST << 1 { (LAST - 1) << 1 } else { hash }, minor)
    }

    /// A byte as the machine's `char` widened to 32 bits.
    fn widen(&self, byte: u8) -> u32 {
        if self.unsigned { u32::from(byte) } else { i32::from(byte.cast_signed()).cast_unsigned() }
    }

    fn legacy(&self, name: &[u8]) -> u32 {
        let (mut hash, mut before) = (0x12A3_FE2D_u32, 0x37AB_E8F9_u32);
        for byte in name {
            let mut next = before.wrapping_add(hash ^ self.widen(*byte).wrapping_mul(7_152_373));
            if next & 0x8000_0000 != 0 {
                next = next.wrapping_sub(LAST);
            }
            before = hash;
            hash = next;
        }
        hash << 1
    }

    /// The first `4 * N` bytes as words, the rest filled with the length.
    fn words<const N: usize>(&self, name: &[u8]) -> [u32; N] {
        let length = u32::try_from(name.len()).unwrap_or(u32::MAX);
        let pad = length | length << 8;
        let pad = pad | pad << 16;
        let mut words = [pad; N];
        for (word, bytes) in words.iter_mut().zip(name.chunks(4)) {
            *word = bytes.iter().fold(pad, |word, byte| self.widen(*byte).wrapping_add(word << 8));
        }
        words
    }
}

fn tea(state: &mut [u32; 4], words: &[u32; 4]) {
    let [a, b, c, d] = *words;
    let [mut x, mut y, ..] = *state;
    let mut sum = 0_u32;
    for _ in 0..16 {
        sum = sum.wrapping_add(0x9E37_79B9);
        x = x.wrapping_add((y << 4).wrapping_add(a) ^ y.wrapping_add(sum) ^ (y >> 5).wrapping_add(b));
        y = y.wrapping_add((x << 4).wrapping_add(c) ^ x.wrapping_add(sum) ^ (x >> 5).wrapping_add(d));
    }
    state[0] = state[0].wrapping_add(x);
    state[1] = state[1].wrapping_add(y);
}

/// Three of MD4's rounds, each over half of its words: which word is used when, and how far it is rotated.
fn half_md4(state: &mut [u32; 4], words: &[u32; 8]) {
    const ORDER: [[usize; 8]; 3] = [[0, 1, 2, 3, 4, 5, 6, 7], [1, 3, 5, 7, 0, 2, 4, 6], [3, 7, 2, 6, 1, 5, 0, 4]];
    const ROTATE: [[u32; 4]; 3] = [[3, 7, 11, 19], [3, 5, 9, 13], [3, 9, 11, 15]];
    const ADD: [u32; 3] = [0, 0x5A82_7999, 0x6ED9_EBA1];
    let mix = |round: usize, x: u32, y: u32, z: u32| match round {
        0 => z ^ (x & (y ^ z)),
        1 => (x & y).wrapping_add((x ^ y) & z),
        _ => x ^ y ^ z,
    };
    let [mut a, mut b, mut c, mut d] = *state;
    for (round, (order, add)) in ORDER.iter().zip(ADD).enumerate() {
        for (step, index) in order.iter().enumerate() {
            let value = a.wrapping_add(mix(round, b, c, d)).wrapping_add(words[*index]).wrapping_add(add);
            (a, b, c, d) = (d, value.rotate_left(ROTATE[round][step % 4]), b, c);
        }
    }
    for (word, add) in state.iter_mut().zip([a, b, c, d]) {
        *word = word.wrapping_add(add);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: &str = "a name that is longer than thirty-two bytes, so that it takes two rounds";
    const SEED: [u32; 4] = [0x0403_0201, 0x0807_0605, 0x0C0B_0A09, 0x100F_0E0D];

    /// Version, seed, name, hash.
    type Known = (u8, [u32; 4], &'static str, (u32, u32));

    /// What `debugfs -R "dx_hash -h VERSION [-s 01020304-...-0f10] NAME"` of e2fsprogs 1.47 says.
    const KNOWN: [Known; 12] = [
        (0, [0; 4], "hello", (0x3225_2546, 0)),
        (0, [0; 4], LONG, (0xDC40_27A8, 0)),
        (0, [0; 4], "ünïcode", (0x0DD7_2FF6, 0)),
        (1, [0; 4], "hello", (0x1746_DA32, 0x4200_13B5)),
        (1, SEED, "hello", (0xE2DD_F968, 0xC8BC_0924)),
        (1, [0; 4], LONG, (0x181C_0A2A, 0xB3FB_E64B)),
        (1, SEED, LONG, (0xCBB8_E166, 0x171E_47EE)),
        (1, [0; 4], "ünïcode", (0x5155_BBDA, 0x4CD0_30CC)),
        (1, SEED, "ünïcode", (0x276F_E536, 0xB2B3_86B6)),
        (2, [0; 4], "hello", (0x6F5B_B1A8, 0x2319_17C2)),
        (2, SEED, LONG, (0xE303_5BAA, 0x9212_569B)),
        (2, [0; 4], "ünïcode", (0x33E9_2700, 0x7118_658A)),
    ];

    #[test]
    fn equal_to_what_debugfs_says() {
        for (version, seed, name, expected) in KNOWN {
            let hasher = Hasher::new(version, 1, seed).unwrap();
            assert_eq!(hasher.hash(name.as_bytes()), expected, "{version} {name}");
        }
    }

    #[test]
    fn the_sign_of_a_byte_counts() {
        let signed = Hasher::new(1, 1, [0; 4]).unwrap();
        for unsigned in [Hasher::new(4, 1, [0; 4]).unwrap(), Hasher::new(1, 2, [0; 4]).unwrap()] {
            assert_eq!(unsigned.hash(b"hello"), signed.hash(b"hello"));
            assert_ne!(unsigned.hash("ü".as_bytes()), signed.hash("ü".as_bytes()));
        }
        assert!(Hasher::new(6, 1, [0; 4]).is_none());
    }
}
