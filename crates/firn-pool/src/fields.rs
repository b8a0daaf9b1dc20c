//! Typed, extensible fields: the payload of manifests, notes, key slots and the header.
//!
//! ```text
//! 0  2  tag      the high bit set: a reader that does not know the tag must refuse
//! 2  4  length of the value
//! 6  …  value
//! ```
//! Fields of one tag may repeat. Unknown tags without the high bit are passed over.

use firn_disk::{Error, Result};
use uuid::Uuid;

/// A reader that does not know a tag with this bit refuses the record.
const MUST_KNOW: u16 = 0x8000;

/// Builds a record of fields.
#[derive(Debug, Default)]
pub(crate) struct FieldWriter(Vec<u8>);

impl FieldWriter {
    pub(crate) fn bytes(&mut self, tag: u16, value: &[u8]) -> &mut Self {
        // Attachments are limited far below 4 GiB where they enter.
        let length = u32::try_from(value.len()).unwrap_or(u32::MAX);
        self.0.extend_from_slice(&tag.to_le_bytes());
        self.0.extend_from_slice(&length.to_le_bytes());
        self.0.extend_from_slice(value);
        self
    }

    pub(crate) fn text(&mut self, tag: u16, value: &str) -> &mut Self {
        self.bytes(tag, value.as_bytes())
    }

    pub(crate) fn u64(&mut self, tag: u16, value: u64) -> &mut Self {
        self.bytes(tag, &value.to_le_bytes())
    }

    pub(crate) fn i64(&mut self, tag: u16, value: i64) -> &mut Self {
        self.bytes(tag, &value.to_le_bytes())
    }

    pub(crate) fn uuid(&mut self, tag: u16, value: Uuid) -> &mut Self {
        self.bytes(tag, value.as_bytes())
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.0
    }
}

/// A record of fields, read.
#[derive(Debug)]
pub(crate) struct Fields<'a> {
    structure: &'static str,
    fields: Vec<(u16, &'a [u8])>,
}

impl<'a> Fields<'a> {
    /// Splits `bytes`; `structure` names the record in errors and `known` lists the tags that it may have.
    pub(crate) fn parse(mut bytes: &'a [u8], structure: &'static str, known: &[u16]) -> Result<Self> {
        let mut fields = Vec::new();
        while !bytes.is_empty() {
            let cut_short = || Error::corrupt("a field is cut short").in_structure(structure);
            let (head, rest) = bytes.split_first_chunk::<6>().ok_or_else(cut_short)?;
            let tag = u16::from_le_bytes([head[0], head[1]]);
            let length = u32::from_le_bytes([head[2], head[3], head[4], head[5]]);
            let length = usize::try_from(length).map_err(|_| cut_short())?;
            let (value, rest) = rest.split_at_checked(length).ok_or_else(cut_short)?;
            if tag & MUST_KNOW != 0 && !known.contains(&tag) {
                return Err(Error::unsupported(format!("unknown field {tag:#x}"))
                    .in_structure(structure)
                    .hint("a newer firn wrote this; use that one"));
            }
            fields.push((tag, value));
            bytes = rest;
        }
        Ok(Self { structure, fields })
    }

    fn bad(&self, tag: u16, message: &str) -> Error {
        Error::corrupt(format!("field {tag:#x} {message}")).in_structure(self.structure)
    }

    /// Every value of `tag`, in order.
    pub(crate) fn all(&self, tag: u16) -> impl Iterator<Item = &'a [u8]> + '_ {
        self.fields.iter().filter(move |field| field.0 == tag).map(|field| field.1)
    }

    pub(crate) fn optional(&self, tag: u16) -> Option<&'a [u8]> {
        self.all(tag).next()
    }

    pub(crate) fn bytes(&self, tag: u16) -> Result<&'a [u8]> {
        self.optional(tag).ok_or_else(|| self.bad(tag, "is missing"))
    }

    pub(crate) fn array<const N: usize>(&self, tag: u16) -> Result<[u8; N]> {
        self.bytes(tag)?.try_into().map_err(|_| self.bad(tag, "has the wrong length"))
    }

    pub(crate) fn text(&self, tag: u16) -> Result<String> {
        let bytes = self.bytes(tag)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| self.bad(tag, "is not UTF-8"))
    }

    pub(crate) fn optional_text(&self, tag: u16) -> Result<Option<String>> {
        self.optional(tag).map(|_| self.text(tag)).transpose()
    }

    pub(crate) fn u64(&self, tag: u16) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(tag)?))
    }

    pub(crate) fn optional_u64(&self, tag: u16) -> Result<Option<u64>> {
        self.optional(tag).map(|_| self.u64(tag)).transpose()
    }

    pub(crate) fn i64(&self, tag: u16) -> Result<i64> {
        Ok(i64::from_le_bytes(self.array(tag)?))
    }

    pub(crate) fn uuid(&self, tag: u16) -> Result<Uuid> {
        Ok(Uuid::from_bytes(self.array(tag)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use firn_disk::ErrorKind;

    #[test]
    fn fields_are_read_back_and_unknown_ones_passed_over() {
        let mut writer = FieldWriter::default();
        writer.u64(1, 7).text(2, "a").text(2, "b").i64(3, -1).bytes(0x7F, b"from the future");
        let bytes = writer.finish();
        let fields = Fields::parse(&bytes, "test", &[1, 2, 3]).unwrap();
        assert_eq!(fields.u64(1).unwrap(), 7);
        assert_eq!(fields.all(2).collect::<Vec<_>>(), [b"a", b"b"]);
        assert_eq!(fields.i64(3).unwrap(), -1);
        assert_eq!(fields.u64(4).unwrap_err().kind(), ErrorKind::Corrupt);
        assert_eq!(fields.uuid(1).unwrap_err().kind(), ErrorKind::Corrupt);
        for end in 1..bytes.len() {
            // Cut anywhere: an error or fewer fields, never a panic.
            let _ = Fields::parse(&bytes[..end], "test", &[]);
        }
    }

    #[test]
    fn a_field_that_must_be_known_is_refused() {
        let mut writer = FieldWriter::default();
        writer.u64(0x8001, 1);
        let bytes = writer.finish();
        assert_eq!(Fields::parse(&bytes, "test", &[]).unwrap_err().kind(), ErrorKind::Unsupported);
        Fields::parse(&bytes, "test", &[0x8001]).unwrap();
    }
}
