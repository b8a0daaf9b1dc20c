//! The CRC-32 of Ethernet and zlib (polynomial 0x04C11DB7, reflected), which GPT and LVM2 both use.

/// The remainder of each byte.
const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        // `byte` is below 256.
        #[allow(clippy::cast_possible_truncation)]
        let mut remainder = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            remainder = (remainder >> 1) ^ if remainder & 1 == 1 { 0xEDB8_8320 } else { 0 };
            bit += 1;
        }
        table[byte] = remainder;
        byte += 1;
    }
    table
};

/// Goes on from `register` with `bytes`, without the inversions at the start and the end.
pub(crate) fn update(register: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(register, |register, byte| {
        let index = usize::from(register.to_le_bytes()[0] ^ byte);
        (register >> 8) ^ TABLE[index]
    })
}

/// The checksum as GPT has it.
pub(crate) fn checksum(bytes: &[u8]) -> u32 {
    !update(u32::MAX, bytes)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_check_value_of_the_catalogues() {
        assert_eq!(super::checksum(b"123456789"), 0xCBF4_3926);
    }
}
