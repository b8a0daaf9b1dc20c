//! The headers and the region table of a VHDX, each twice in the file.
//!
//! ```text
//! header   0 "head"  4 CRC-32C  8 sequence u64  16 file write GUID  32 data write GUID  48 log GUID
//!         64 log version u16  66 version u16  68 log length u32  72 log u64
//! regions  0 "regi"  4 CRC-32C  8 entries u32; each 32 bytes from 16 on: GUID, place u64, length u32, required u32
//! ```
//! Of the headers that are sound the one with the higher sequence number counts. Source: MS-VHDX, 2.2.

use crate::image::access::ImageFile;
use crate::table::Guid;
use firn_disk::{Error, Record, Result};

const HEADERS: [u64; 2] = [64 << 10, 128 << 10];
const HEADER_BYTES: usize = 4096;
const REGIONS: [u64; 2] = [192 << 10, 256 << 10];
const REGION_BYTES: usize = 64 << 10;
const REGIONS_MAX: u32 = 2047;
const MIB: u64 = 1 << 20;

const BAT: &str = "2dc27766-f623-4200-9d64-115e9bfd4a08";
const METADATA: &str = "8b7ca206-4790-4b9a-b8fe-575f050f886e";

/// What the current header says.
#[derive(Debug)]
pub(super) struct Header {
    sequence: u64,
    /// Changes when the disk's content does.
    pub(super) data_write: Guid,
    /// Entries of the log that count have this GUID; nil when there are none.
    pub(super) log_guid: Guid,
    pub(super) log: u64,
    pub(super) log_length: u64,
}

impl Header {
    pub(super) fn read(file: &ImageFile) -> Result<Self> {
        let [first, second] = HEADERS.map(|at| Self::read_at(file, at));
        match (first, second) {
            (Ok(first), Ok(second)) if second.sequence > first.sequence => Ok(second),
            (Ok(first), _) => Ok(first),
            (Err(_), Ok(second)) => Ok(second),
            (Err(error), Err(_)) => Err(error.hint("both headers are damaged: take another copy of the file")),
        }
    }

    fn read_at(file: &ImageFile, at: u64) -> Result<Self> {
        let mut buf = vec![0; HEADER_BYTES];
        let record = Record::read(file.disk(), &mut buf, at, "VHDX header")?;
        check_sum(&record, b"head")?;
        let version = record.le_u16(66)?;
        if version != 1 {
            return Err(record.unsupported(66, format!("version {version}; 1 is known")));
        }
        let header = Self {
            sequence: record.le_u64(8)?,
            data_write: Guid::from_disk(record.array(32)?),
            log_guid: Guid::from_disk(record.array(48)?),
            log: record.le_u64(72)?,
            log_length: u64::from(record.le_u32(68)?),
        };
        if header.log_guid != Guid::NIL && record.le_u16(64)? != 0 {
            return Err(record.unsupported(64, format!("a log of version {}; 0 is known", record.le_u16(64)?)));
        }
        if !header.log.is_multiple_of(MIB) || !header.log_length.is_multiple_of(MIB) || header.log < MIB {
            let (at, length) = (header.log, header.log_length);
            return Err(record.corrupt(68, format!("a log of {length} bytes at byte {at}")));
        }
        Ok(header)
    }
}

/// `Ok` when `record` begins with `signature` and its CRC-32C, at 4, is right.
pub(super) fn check_sum(record: &Record<'_>, signature: &[u8; 4]) -> Result<()> {
    if record.slice(0, 4)? != signature {
        return Err(record.corrupt(0, "there is none"));
    }
    let sum = crc32c::crc32c_append(crc32c::crc32c(record.slice(0, 4)?), &[0; 4]);
    let sum = crc32c::crc32c_append(sum, record.slice(8, record.bytes().len().saturating_sub(8))?);
    if sum != record.le_u32(4)? {
        return Err(record.corrupt(4, "its checksum is wrong"));
    }
    Ok(())
}

/// Where the regions that are needed lie.
#[derive(Debug)]
pub(super) struct Regions {
    pub(super) bat: u64,
    pub(super) bat_length: u64,
    pub(super) metadata: u64,
    pub(super) metadata_length: u64,
}

impl Regions {
    pub(super) fn read(file: &ImageFile) -> Result<Self> {
        let [first, second] = REGIONS.map(|at| Self::read_at(file, at));
        first.or_else(|error| second.map_err(|_| error.hint("take another copy of the file")))
    }

    fn read_at(file: &ImageFile, at: u64) -> Result<Self> {
        let mut buf = vec![0; REGION_BYTES];
        let record = Record::read(file.disk(), &mut buf, at, "VHDX region table")?;
        check_sum(&record, b"regi")?;
        let count = record.le_u32(8)?;
        if count > REGIONS_MAX {
            return Err(record.corrupt(8, format!("{count} regions")));
        }
        let (mut bat, mut metadata) = (None, None);
        for number in 0..usize::try_from(count).unwrap_or_default() {
            let entry = 16 + number * 32;
            let guid = Guid::from_disk(record.array(entry)?);
            let (start, length) = (record.le_u64(entry + 16)?, u64::from(record.le_u32(entry + 24)?));
            if start < MIB || start % MIB != 0 || i64::try_from(start).is_err() {
                return Err(record.corrupt(entry + 16, format!("a region at byte {start}")));
            }
            match (guid.to_string().as_str(), record.le_u32(entry + 28)? & 1) {
                (BAT, _) => bat = Some((start, length)),
                (METADATA, _) => metadata = Some((start, length)),
                (_, 0) => {}
                _ => return Err(record.unsupported(entry, format!("the region {guid}, which a reader must know"))),
            }
        }
        let missing = |what: &str| Error::corrupt(format!("there is no {what}")).in_structure("VHDX region table");
        let (bat, bat_length) = bat.ok_or_else(|| missing("block allocation table"))?;
        let (metadata, metadata_length) = metadata.ok_or_else(|| missing("metadata"))?;
        Ok(Self { bat, bat_length, metadata, metadata_length })
    }
}
