//! Arithmetic in GF(2^8) with the polynomial x^8 + x^4 + x^3 + x^2 + 1 (0x11D), in which 2 generates all powers.
//!
//! Source: H. Peter Anvin, *The mathematics of RAID-6*.

/// The powers of 2, twice, so that sums of two logarithms need no reduction.
const POWERS: [u8; 510] = powers();
/// The logarithm of each byte to the base 2; that of 0 is not used.
const LOGARITHMS: [u8; 256] = logarithms();

const fn powers() -> [u8; 510] {
    let mut table = [0; 510];
    let mut value: u8 = 1;
    let mut at = 0;
    while at < 510 {
        table[at] = value;
        value = (value << 1) ^ (if value & 0x80 != 0 { 0x1D } else { 0 });
        at += 1;
    }
    table
}

const fn logarithms() -> [u8; 256] {
    let mut table = [0; 256];
    let mut power: u8 = 0;
    while power < 255 {
        table[POWERS[power as usize] as usize] = power;
        power += 1;
    }
    table
}

/// 2 to the power of `exponent`.
pub(super) fn power(exponent: usize) -> u8 {
    POWERS[exponent % 255]
}

pub(super) fn multiply(a: u8, b: u8) -> u8 {
    if a == 0 || b == 0 {
        0
    } else {
        POWERS[usize::from(LOGARITHMS[usize::from(a)]) + usize::from(LOGARITHMS[usize::from(b)])]
    }
}

/// The number that `a` is multiplied with to give 1; 0 for 0, which has none.
pub(super) fn inverse(a: u8) -> u8 {
    if a == 0 { 0 } else { POWERS[255 - usize::from(LOGARITHMS[usize::from(a)])] }
}

/// Adds `bytes` to `sum`, byte by byte.
pub(super) fn add(sum: &mut [u8], bytes: &[u8]) {
    for (sum, byte) in sum.iter_mut().zip(bytes) {
        *sum ^= byte;
    }
}

/// Adds `factor` times `bytes` to `sum`, byte by byte.
pub(super) fn add_multiple(sum: &mut [u8], bytes: &[u8], factor: u8) {
    let table = table_of(factor);
    for (sum, byte) in sum.iter_mut().zip(bytes) {
        *sum ^= table[usize::from(*byte)];
    }
}

/// Multiplies every byte by `factor`.
pub(super) fn scale(bytes: &mut [u8], factor: u8) {
    let table = table_of(factor);
    for byte in bytes {
        *byte = table[usize::from(*byte)];
    }
}

/// All multiples of `factor`.
fn table_of(factor: u8) -> [u8; 256] {
    let mut table = [0; 256];
    for (product, byte) in table.iter_mut().zip(0..=u8::MAX) {
        *product = multiply(factor, byte);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_field_is_a_field() {
        assert_eq!((multiply(2, 0x80), multiply(3, 7), power(8), power(255)), (0x1D, 9, 0x1D, 1));
        for a in 1..=255 {
            assert_eq!(multiply(a, inverse(a)), 1, "{a}");
            for b in 0..=255 {
                assert_eq!(multiply(a, b), multiply(b, a));
                assert_eq!(multiply(a, b ^ 0x5A), multiply(a, b) ^ multiply(a, 0x5A));
            }
        }
    }

    #[test]
    fn slices_are_scaled_and_added() {
        let mut sum = [1, 2, 0xFF];
        add_multiple(&mut sum, &[0x80, 0, 1], 2);
        assert_eq!(sum, [1 ^ 0x1D, 2, 0xFD]);
        scale(&mut sum, 1);
        add(&mut sum, &[1 ^ 0x1D, 2, 0xFD]);
        assert_eq!(sum, [0; 3]);
    }
}
