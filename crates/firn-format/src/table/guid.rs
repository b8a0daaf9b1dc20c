//! GUIDs as GPT keeps them: the first three fields little endian, the rest in order (UEFI 2.10, appendix A).

use std::fmt;

/// A GUID. Printed in the usual lower-case form with dashes, as Linux prints PARTUUIDs.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Guid([u8; 16]);

impl Guid {
    /// The GUID of no partition: an unused entry.
    pub const NIL: Self = Self([0; 16]);

    /// From its 16 bytes on disk.
    pub fn from_disk(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Its 16 bytes as they stand on disk.
    pub fn to_disk(self) -> [u8; 16] {
        self.0
    }

    /// From 16 bytes that stand in the order in which they are printed.
    pub fn from_printed_order(bytes: [u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, rest @ ..] = bytes;
        let mut disk = [0; 16];
        disk[..8].copy_from_slice(&[d, c, b, a, f, e, h, g]);
        disk[8..].copy_from_slice(&rest);
        Self(disk)
    }

    /// From the form with dashes, in any case; `None` when it is not one.
    pub fn parse(text: &str) -> Option<Self> {
        let dashes_stand_right = text.len() == 36
            && text
                .bytes()
                .enumerate()
                .all(|(at, byte)| if matches!(at, 8 | 13 | 18 | 23) { byte == b'-' } else { byte.is_ascii_hexdigit() });
        if !dashes_stand_right {
            return None;
        }
        let digits = u128::from_str_radix(&text.replace('-', ""), 16).ok()?;
        Some(Self::from_printed_order(digits.to_be_bytes()))
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f1, g, h, i, j, rest @ ..] = self.0;
        write!(f, "{d:02x}{c:02x}{b:02x}{a:02x}-{f1:02x}{e:02x}-{h:02x}{g:02x}-{i:02x}{j:02x}-")?;
        rest.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_are_swapped_as_the_specification_says() {
        // The EFI system partition's type, as hexdump shows it.
        let disk = [0x28, 0x73, 0x2A, 0xC1, 0x1F, 0xF8, 0xD2, 0x11, 0xBA, 0x4B, 0x00, 0xA0, 0xC9, 0x3E, 0xC9, 0x3B];
        let text = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b";
        assert_eq!(Guid::from_disk(disk).to_string(), text);
        assert_eq!(Guid::parse(&text.to_uppercase()), Some(Guid::from_disk(disk)));
        for wrong in ["", "c12a7328", "c12a7328-f81f-11d2-ba4b-00a0c93ec93", "c12a7328-f81f-11d2-ba4b+00a0c93ec93b"] {
            assert_eq!(Guid::parse(wrong), None);
        }
    }
}
