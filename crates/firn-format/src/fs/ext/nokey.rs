//! The names of encrypted folders, as Linux shows them to who does not have the key.
//!
//! The name is base64 (the form for addresses, without padding) of the folder's hash of the stored name (8 bytes), and
//! the stored name; of a stored name longer than 149 bytes, its first 149 and the SHA-256 of the rest.
//!
//! Source: the kernel's `fs/crypto/fname.c` (`struct fscrypt_nokey_name`).

const PREFIX: usize = 149;
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// The name to show for a stored name with this hash.
pub(super) fn encode(stored: &[u8], hash: (u32, u32)) -> Vec<u8> {
    let mut bytes = [hash.0.to_le_bytes(), hash.1.to_le_bytes()].concat();
    match stored.split_at_checked(PREFIX) {
        Some((start, rest)) if !rest.is_empty() => {
            bytes.extend(start);
            bytes.extend(ring::digest::digest(&ring::digest::SHA256, rest).as_ref());
        }
        _ => bytes.extend(stored),
    }
    base64(&bytes)
}

fn base64(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len().div_ceil(3) * 4);
    for piece in bytes.chunks(3) {
        let word = piece.iter().fold(0_u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - piece.len()));
        for digit in 0..=piece.len() {
            let index = word >> (18 - 6 * digit) & 63;
            out.push(ALPHABET.get(index as usize).copied().unwrap_or(b'A'));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_without_padding() {
        for (bytes, text) in [("", ""), ("f", "Zg"), ("fo", "Zm8"), ("foo", "Zm9v"), ("foob", "Zm9vYg")] {
            assert_eq!(base64(bytes.as_bytes()), text.as_bytes());
        }
        assert_eq!(base64(&[0xFB, 0xFF]), b"-_8");
    }

    #[test]
    fn every_name_fits_and_long_ones_differ() {
        let (a, mut b) = (vec![7; 255], vec![7; 255]);
        b[254] = 8;
        assert!(encode(&a, (1, 2)).len() <= 255);
        assert_ne!(encode(&a, (1, 2)), encode(&b, (1, 2)));
        assert_ne!(encode(&a[..149], (1, 2)), encode(&a[..150], (1, 2)));
    }
}
