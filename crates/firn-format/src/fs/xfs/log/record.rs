//! Records of the log: their headers, checksums, and the words that cycle numbers took the place of.

use super::{Log, STRUCTURE, UNIT};
use firn_disk::{Record, Result};

/// The first word of a header; no cycle has this number.
pub(super) const MAGIC: u32 = 0xFEED_BABE;
/// Bytes of a record that one header has the words of.
const HEADER_COVERS: u64 = 32 << 10;
/// The longest record, without its headers.
pub(super) const MAX_RECORD: u64 = 256 << 10;
/// Bytes of the first header that are checksummed: with and without the padding that some machines have.
const HEADER_SIZES: [usize; 2] = [328, 324];
/// Bytes of the other headers that are checksummed.
const MORE_HEADER_SIZE: usize = 260;
const WORDS: usize = 44;
const WORDS_PER_HEADER: usize = 64;
const LITTLE_ENDIAN: u32 = 1;

/// What the first 512 bytes of a record say.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    /// Bytes behind the headers.
    pub length: u64,
    pub lsn: u64,
    pub tail_lsn: u64,
    pub crc: u32,
    pub operations: u32,
    pub format: u32,
    pub uuid: [u8; 16],
    /// Units of all headers.
    pub header_units: u64,
    pub is_known_version: bool,
}

impl Header {
    /// Decodes a header; `None` when this is none.
    pub fn parse(log: &Log, bytes: &[u8], at: u64) -> Result<Option<Self>> {
        let record = Record::new(bytes, STRUCTURE, at % log.units * UNIT);
        if record.be_u32(0)? != MAGIC {
            return Ok(None);
        }
        let (version, size) = (record.be_u32(8)?, u64::from(record.be_u32(320)?));
        let is_large = log.is_v2 && version & 2 != 0 && size > HEADER_COVERS;
        Ok(Some(Self {
            length: u64::from(record.be_u32(12)?),
            lsn: record.be_u64(16)?,
            tail_lsn: record.be_u64(24)?,
            crc: record.le_u32(32)?,
            operations: record.be_u32(40)?,
            format: record.be_u32(300)?,
            uuid: record.array(304)?,
            header_units: if is_large { size.div_ceil(HEADER_COVERS).min(MAX_RECORD / HEADER_COVERS) } else { 1 },
            is_known_version: version != 0 && version & !3 == 0,
        }))
    }

    /// Units of the whole record.
    pub fn units(&self) -> u64 {
        self.header_units + self.length.div_ceil(UNIT)
    }

    /// Where in the log the tail was when this was written.
    pub fn tail(&self) -> u64 {
        self.tail_lsn & 0xFFFF_FFFF
    }
}

/// A record whose words are back in place.
#[derive(Debug)]
pub(super) struct Unpacked {
    pub header: Header,
    pub data: Vec<u8>,
}

impl Log {
    /// The header at unit `at`; `None` when there is none.
    pub(super) fn header(&self, at: u64) -> Result<Option<Header>> {
        Header::parse(self, &self.read(at, 1)?, at)
    }

    /// Reads and checks the record at unit `at`, which has at most `limit` units.
    ///
    /// What is wrong with it is `Corrupt`; the head may be moved back to it then.
    pub(super) fn record(&self, at: u64, limit: u64) -> Result<Unpacked> {
        let Some(header) = self.header(at)? else { return Err(self.corrupt(at, "no record")) };
        if !header.is_known_version {
            return Err(self.corrupt(at, "a record of an unknown version"));
        }
        if header.length == 0 || header.length > MAX_RECORD || header.units() > limit {
            return Err(self.corrupt(at, format!("a record of {} bytes", header.length)));
        }
        let bytes = self.read(at, header.units())?;
        let headers = usize::try_from(header.header_units * UNIT).unwrap_or(usize::MAX);
        let length = usize::try_from(header.length).unwrap_or(usize::MAX);
        let whole = Record::new(&bytes, STRUCTURE, at % self.units * UNIT);
        let packed = whole.slice(headers, length)?;
        // Records that mkfs makes have none.
        if header.crc != 0 && !HEADER_SIZES.iter().any(|size| sum(&bytes, *size, packed) == header.crc) {
            return Err(self.corrupt(at, "a record whose checksum is wrong"));
        }
        let mut data = packed.to_vec();
        for (index, unit) in data.chunks_mut(512).enumerate() {
            let word = match index.checked_sub(WORDS_PER_HEADER) {
                None => WORDS + index * 4,
                // The others begin with their cycle.
                Some(more) => (1 + more / WORDS_PER_HEADER) * 512 + 4 + more % WORDS_PER_HEADER * 4,
            };
            if word >= headers {
                return Err(self.corrupt(at, "a record that is longer than its headers say"));
            }
            let word: [u8; 4] = whole.array(word)?;
            if let Some(first) = unit.get_mut(..4) {
                first.copy_from_slice(&word);
            }
        }
        Ok(Unpacked { header, data })
    }

    /// Refuses a record that another machine or another file system wrote.
    pub(super) fn check_owner(&self, header: &Header, at: u64) -> Result<()> {
        if header.format != LITTLE_ENDIAN {
            return Err(firn_disk::Error::unsupported(format!(
                "the log was written by a machine of another kind (format {})",
                header.format
            ))
            .in_structure(STRUCTURE));
        }
        if header.uuid != self.uuid {
            return Err(self.corrupt(at, "a record of another file system's log"));
        }
        Ok(())
    }
}

/// The checksum of a record: of its headers with the field itself zero, but for those that it is too short to need, and
/// of what follows them.
fn sum(bytes: &[u8], header_size: usize, packed: &[u8]) -> u32 {
    let needed = packed.len().div_ceil(usize::try_from(HEADER_COVERS).unwrap_or(usize::MAX));
    let part = |range: std::ops::Range<usize>| bytes.get(range).unwrap_or(&[]);
    let mut crc = crc32c::crc32c(part(0..32));
    crc = crc32c::crc32c_append(crc, &[0; 4]);
    crc = crc32c::crc32c_append(crc, part(36..header_size));
    for at in (1..needed).map(|index| index * 512) {
        crc = crc32c::crc32c_append(crc, part(at..at + MORE_HEADER_SIZE));
    }
    crc32c::crc32c_append(crc, packed)
}
