//! The recovery key: printed once when a pool is made, to be kept on paper.
//!
//! 20 random bytes as 32 digits of Crockford's base 32, then 4 digits of checksum, in groups of four:
//! `7K3M-…-….` Case does not matter, `O` is read as 0, `I` and `L` as 1; blanks and dashes are passed over.

use crate::entropy::{Entropy, random_bytes};
use firn_disk::{Error, ErrorKind, Result};
use std::fmt;
use zeroize::Zeroizing;

const DIGITS: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const SECRET_DIGITS: usize = 32;
const CHECK_DIGITS: usize = 4;

/// A secret of 160 bits that people can write down.
#[derive(Clone)]
pub struct RecoveryKey(Zeroizing<[u8; 20]>);

impl RecoveryKey {
    /// A new one.
    pub(crate) fn generate(entropy: &dyn Entropy) -> Result<Self> {
        Ok(Self(Zeroizing::new(random_bytes(entropy)?)))
    }

    /// Reads what a person typed.
    ///
    /// # Errors
    /// `Denied` when a digit is missing or mistyped; the checksum catches that.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = |message: &str| Error::new(ErrorKind::Denied, message.to_owned());
        let mut digits = Zeroizing::new(Vec::with_capacity(SECRET_DIGITS + CHECK_DIGITS));
        for character in text.chars().filter(|c| !c.is_whitespace() && *c != '-') {
            let value =
                digit(character).ok_or_else(|| wrong("the recovery key has a character that no such key has"))?;
            digits.push(value);
        }
        if digits.len() != SECRET_DIGITS + CHECK_DIGITS {
            return Err(wrong("the recovery key has nine groups of four characters"));
        }
        let mut secret = Zeroizing::new([0; 20]);
        for (bytes, group) in secret.chunks_exact_mut(5).zip(digits.chunks_exact(8)) {
            let value = group.iter().fold(0_u64, |value, digit| value << 5 | u64::from(*digit));
            bytes.copy_from_slice(&value.to_be_bytes()[3..]);
        }
        if digits[SECRET_DIGITS..] != check_digits(&secret) {
            return Err(wrong("the recovery key is mistyped: its last group does not fit the others"));
        }
        Ok(Self(secret))
    }

    pub(crate) fn secret(&self) -> &[u8] {
        self.0.as_ref()
    }

    /// The key as people write it down.
    pub fn to_text(&self) -> Zeroizing<String> {
        let mut digits = Vec::with_capacity(SECRET_DIGITS + CHECK_DIGITS);
        for bytes in self.0.chunks_exact(5) {
            let value = bytes.iter().fold(0_u64, |value, byte| value << 8 | u64::from(*byte));
            digits.extend((0..8).rev().map(|place| (value >> (place * 5) & 31) as u8));
        }
        digits.extend(check_digits(&self.0));
        let groups = digits.chunks(4).map(|group| group.iter().map(|d| char::from(DIGITS[usize::from(*d)])).collect());
        Zeroizing::new(groups.collect::<Vec<String>>().join("-"))
    }
}

impl fmt::Debug for RecoveryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RecoveryKey")
    }
}

fn digit(character: char) -> Option<u8> {
    let upper = match character.to_ascii_uppercase() {
        'O' => '0',
        'I' | 'L' => '1',
        other => other,
    };
    let at = DIGITS.iter().position(|digit| char::from(*digit) == upper)?;
    u8::try_from(at).ok()
}

fn check_digits(secret: &[u8; 20]) -> [u8; CHECK_DIGITS] {
    let hash = blake3::derive_key("firn recovery key checksum", secret);
    [hash[0] & 31, hash[1] & 31, hash[2] & 31, hash[3] & 31]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entropy::tests::SeededEntropy;

    #[test]
    fn it_is_read_back_however_it_is_typed() {
        let key = RecoveryKey::generate(&SeededEntropy::new(1)).unwrap();
        let text = key.to_text();
        assert_eq!(text.len(), 9 * 4 + 8);
        for typed in [text.to_string(), text.to_lowercase(), text.replace('-', " "), text.replace('0', "o")] {
            assert_eq!(RecoveryKey::parse(&typed).unwrap().secret(), key.secret());
        }
    }

    #[test]
    fn a_mistyped_one_is_told_apart_from_a_wrong_one() {
        let text = RecoveryKey::generate(&SeededEntropy::new(2)).unwrap().to_text().to_string();
        assert!(RecoveryKey::parse(&text[1..]).is_err());
        assert!(RecoveryKey::parse("").is_err());
        let other = if text.starts_with('7') { "8" } else { "7" };
        assert!(RecoveryKey::parse(&format!("{other}{}", &text[1..])).is_err());
    }
}
