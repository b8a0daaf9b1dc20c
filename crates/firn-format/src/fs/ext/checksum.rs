//! The checksums of ext2, ext3, ext4 and jbd2.
//!
//! | where | which |
//! |---|---|
//! | `metadata_csum`, jbd2 v2 and v3, fast commits | crc32c, seeded, neither inverted before nor after |
//! | `uninit_bg` group descriptors | crc16 (reflected 0x8005) |
//! | jbd2 v1 | crc32, most significant bit first, not inverted |
//!
//! Source: the kernel's `lib/crc16.c`, `lib/crc32.c`, `fs/ext4/ext4.h`.

/// crc32c of `bytes` that goes on from `seed`, without the usual inversions.
pub(super) fn crc32c(seed: u32, bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, bytes)
}

/// crc16 of `bytes` that goes on from `seed`.
pub(super) fn crc16(seed: u16, bytes: &[u8]) -> u16 {
    bytes.iter().fold(seed, |mut crc, byte| {
        crc ^= u16::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0xA001 } else { crc >> 1 };
        }
        crc
    })
}

/// crc32 of `bytes`, most significant bit first, that goes on from `seed`.
pub(super) fn crc32_be(seed: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(seed, |crc, byte| {
        let index = (crc >> 24) ^ u32::from(*byte);
        (crc << 8) ^ TABLE_BE.get(index as usize).copied().unwrap_or(0)
    })
}

static TABLE_BE: [u32; 256] = table_be();

const fn table_be() -> [u32; 256] {
    let mut table = [0; 256];
    let mut index = 0_u32;
    while index < 256 {
        let mut crc = index << 24;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000_0000 != 0 { (crc << 1) ^ 0x04C1_1DB7 } else { crc << 1 };
            bit += 1;
        }
        table[index as usize] = crc;
        index += 1;
    }
    table
}

/// The low 16 bits.
pub(super) fn low16(value: u32) -> u16 {
    let [a, b, _, _] = value.to_le_bytes();
    u16::from_le_bytes([a, b])
}

/// The high 16 bits.
pub(super) fn high16(value: u32) -> u16 {
    low16(value >> 16)
}

/// The low 32 bits.
pub(super) fn low32(value: u64) -> u32 {
    let [a, b, c, d, ..] = value.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// The high 32 bits.
pub(super) fn high32(value: u64) -> u32 {
    low32(value >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_known_check_values_come_out() {
        assert_eq!(!crc32c(!0, b"123456789"), 0xE306_9283);
        assert_eq!(crc16(0, b"123456789"), 0xBB3D);
        // CRC-32/MPEG-2 is exactly this one: seeded with ones, not inverted.
        assert_eq!(crc32_be(!0, b"123456789"), 0x0376_E6E7);
    }

    #[test]
    fn halves() {
        assert_eq!((low16(0x1234_5678), high16(0x1234_5678)), (0x5678, 0x1234));
        assert_eq!((low32(0x0123_4567_89AB_CDEF), high32(0x0123_4567_89AB_CDEF)), (0x89AB_CDEF, 0x0123_4567));
    }
}
