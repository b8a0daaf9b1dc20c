//! [`Record`]: the fields of an on-disk structure, read with checked bounds.
//!
//! Parsers take bytes from an enemy. A `Record` knows what it is and where it stood, so that reading past its
//! end is a `Corrupt` error that names both, never a panic.

use crate::{Disk, Error, Result};

/// A named piece of disk, read into memory, whose fields are read by offset.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    bytes: &'a [u8],
    structure: &'a str,
    offset: u64,
}

macro_rules! integers {
    ($($name:ident $big:ident $type:ty),*) => {$(
        #[doc = concat!("The little-endian `", stringify!($type), "` at `at`.\n\n# Errors\n`Corrupt` past the end.")]
        pub fn $name(&self, at: usize) -> Result<$type> {
            Ok(<$type>::from_le_bytes(self.array(at)?))
        }
        #[doc = concat!("The big-endian `", stringify!($type), "` at `at`.\n\n# Errors\n`Corrupt` past the end.")]
        pub fn $big(&self, at: usize) -> Result<$type> {
            Ok(<$type>::from_be_bytes(self.array(at)?))
        }
    )*};
}

impl<'a> Record<'a> {
    /// `structure` names it in errors ("qcow2 header"); `offset` is where on its disk it begins, in bytes.
    pub fn new(bytes: &'a [u8], structure: &'a str, offset: u64) -> Self {
        Self { bytes, structure, offset }
    }

    /// Fills `buf` from `disk` and wraps it.
    ///
    /// # Errors
    /// What the disk says; a read past its end is `Corrupt`, as the structure claims to be there.
    pub fn read(disk: &dyn Disk, buf: &'a mut [u8], offset: u64, structure: &'a str) -> Result<Self> {
        if crate::check_range(offset, buf.len() as u64, disk.len()).is_err() {
            return Err(Error::corrupt(format!("needs {} bytes, but the disk ends at byte {}", buf.len(), disk.len()))
                .in_structure(structure)
                .at_offset(offset));
        }
        disk.read_at(buf, offset).map_err(|error| error.in_structure(structure).at_offset(offset))?;
        Ok(Self::new(buf, structure, offset))
    }

    /// All of its bytes.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// `length` bytes at `at`.
    ///
    /// # Errors
    /// `Corrupt` past the end.
    pub fn slice(&self, at: usize, length: usize) -> Result<&'a [u8]> {
        at.checked_add(length)
            .and_then(|end| self.bytes.get(at..end))
            .ok_or_else(|| self.corrupt(at, format!("{length} bytes at {at} lie past its end at {}", self.bytes.len())))
    }

    /// `N` bytes at `at`.
    ///
    /// # Errors
    /// `Corrupt` past the end.
    pub fn array<const N: usize>(&self, at: usize) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.slice(at, N)?);
        Ok(array)
    }

    /// The byte at `at`.
    ///
    /// # Errors
    /// `Corrupt` past the end.
    pub fn u8(&self, at: usize) -> Result<u8> {
        Ok(self.array::<1>(at)?[0])
    }

    integers!(le_u16 be_u16 u16, le_u32 be_u32 u32, le_u64 be_u64 u64, le_i32 be_i32 i32, le_i64 be_i64 i64);

    /// A `Corrupt` error about the field at `at`.
    pub fn corrupt(&self, at: usize, message: impl Into<String>) -> Error {
        Error::corrupt(message).in_structure(self.structure).at_offset(self.offset.saturating_add(at as u64))
    }

    /// An `Unsupported` error about the field at `at`.
    pub fn unsupported(&self, at: usize, message: impl Into<String>) -> Error {
        Error::unsupported(message).in_structure(self.structure).at_offset(self.offset.saturating_add(at as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ErrorKind, MemDisk};

    #[test]
    fn fields_are_read_in_both_orders_and_never_past_the_end() {
        let record = Record::new(&[1, 2, 3, 4, 5, 6, 7, 8], "thing", 512);
        assert_eq!(record.le_u16(1).unwrap(), 0x0302);
        assert_eq!(record.be_u32(4).unwrap(), 0x0506_0708);
        assert_eq!(record.le_u64(0).unwrap(), 0x0807_0605_0403_0201);
        let error = record.le_u32(5).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(error.to_string().contains("thing") && error.to_string().contains("517"), "{error}");
        assert!(record.slice(usize::MAX, 2).is_err());
    }

    #[test]
    fn a_structure_past_the_end_of_its_disk_is_corrupt() {
        let disk = MemDisk::from(vec![0; 100]);
        let mut buf = [0; 64];
        assert_eq!(Record::read(&disk, &mut buf, 64, "header").unwrap_err().kind(), ErrorKind::Corrupt);
    }
}
