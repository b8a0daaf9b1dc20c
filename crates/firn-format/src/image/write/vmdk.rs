//! VMDK: monolithic sparse and stream-optimized, grains of 64 KiB.
//!
//! ```text
//! sparse  header | descriptor | redundant directory, its tables | directory, its tables | grains
//! stream  header | descriptor | grains of table 0, table 0 | grains of table 1, table 1 | ... | directory | footer | end
//! ```
//! In a stream each table, the directory and the footer follow a marker sector, and each grain a marker of
//! 12 bytes. Source: VMware, Virtual Disk Format 5.0.

use super::pipeline::Pipeline;
use super::{is_zero, too_large, write_growing};
use firn_disk::{Error, FileDisk, Result, WriteDisk};
use flate2::{Compress, Compression, FlushCompress, Status};

const SECTOR: u64 = 512;
const GRAIN: u64 = 64 << 10;
const GRAINS_PER_TABLE: u64 = 512;
const TABLE: u64 = GRAINS_PER_TABLE * 4;
const COVERAGE: u64 = GRAIN * GRAINS_PER_TABLE;
const DESCRIPTOR_SECTORS: u64 = 20;
const DIRECTORY_AT_END: u64 = u64::MAX;
const ZLIB_LEVEL: u32 = 6;
/// Bytes before a compressed grain.
const MARKER: usize = 12;

const FLAGS_SPARSE: u32 = 0b11;
const FLAGS_STREAM: u32 = 1 | 1 << 16 | 1 << 17;

const MARKER_TABLE: u32 = 1;
const MARKER_DIRECTORY: u32 = 2;
const MARKER_FOOTER: u32 = 3;

/// The fields of a header that differ.
struct Header {
    version: u32,
    flags: u32,
    capacity: u64,
    redundant: u64,
    directory: u64,
    overhead: u64,
    compression: u16,
}

impl Header {
    fn bytes(&self) -> Vec<u8> {
        let mut header = Vec::with_capacity(512);
        header.extend(b"KDMV");
        header.extend(self.version.to_le_bytes());
        header.extend(self.flags.to_le_bytes());
        for field in [self.capacity / SECTOR, GRAIN / SECTOR, 1, DESCRIPTOR_SECTORS] {
            header.extend(field.to_le_bytes());
        }
        header.extend(u32::try_from(GRAINS_PER_TABLE).unwrap_or_default().to_le_bytes());
        for field in [self.redundant, self.directory, self.overhead] {
            header.extend(field.to_le_bytes());
        }
        // Closed cleanly; the line ends that show a transfer as text.
        header.extend(b"\0\n \r\n");
        header.extend(self.compression.to_le_bytes());
        header.resize(512, 0);
        header
    }
}

/// The text descriptor, padded to its sectors.
fn descriptor(name: &str, create_type: &str, access: &str, size: u64, unique: &[u8; 16]) -> Result<Vec<u8>> {
    let mut long_id = *unique;
    // The content id is the last four bytes. 0xffffffff would mean no parent, 0xfffffffe is what VMware begins with.
    let [.., first, _, _, _] = &mut long_id;
    *first &= 0x7f;
    let long_id: String = long_id.iter().map(|byte| format!("{byte:02x}")).collect();
    let content_id = long_id.get(24..).unwrap_or_default();
    let (heads, track) = (255, 63);
    let cylinders = size / SECTOR / (heads * track);
    let text = format!(
        "# Disk DescriptorFile\nversion=1\nCID={content_id}\nparentCID=ffffffff\ncreateType=\"{create_type}\"\n\n\
         # Extent description\n{access} {} SPARSE \"{name}\"\n\n\
         # The Disk Data Base\n#DDB\n\nddb.virtualHWVersion = \"4\"\nddb.longContentID = \"{long_id}\"\n\
         ddb.geometry.cylinders = \"{cylinders}\"\nddb.geometry.heads = \"{heads}\"\n\
         ddb.geometry.sectors = \"{track}\"\nddb.adapterType = \"lsilogic\"\n",
        size / SECTOR
    );
    let mut bytes = text.into_bytes();
    let room = usize::try_from(DESCRIPTOR_SECTORS * SECTOR).unwrap_or_default();
    if bytes.len() > room {
        return Err(Error::invalid("the file's name is too long for a VMDK descriptor"));
    }
    bytes.resize(room, 0);
    Ok(bytes)
}

/// The name that the descriptor gives its only extent. Readers do not use it; it must only not break the line.
fn extent_name(output: &FileDisk) -> String {
    let name = output.path().file_name().unwrap_or_default().to_string_lossy();
    name.chars().filter(|letter| !letter.is_control() && *letter != '"').collect()
}

fn check_size(size: u64) -> Result<u64> {
    // Places in the file are sectors in 32 bits, and some readers keep the capacity so too.
    if size / SECTOR >= u64::from(u32::MAX) {
        return Err(too_large(size, "a VMDK in one file, which ends at 2 TiB"));
    }
    Ok(size.div_ceil(COVERAGE))
}

fn sector_of(at: u64) -> Result<u32> {
    u32::try_from(at / SECTOR)
        .map_err(|_| Error::unsupported("the VMDK grew past 2 TiB").hint("write it as qcow2 or raw"))
}

/// Cuts a unit into its grains that are not zero, each with its number; the last one is filled up.
fn grains<T>(offset: u64, bytes: &[u8], pack: impl Fn(u64, Vec<u8>) -> Result<T>) -> Result<Vec<(u64, T)>> {
    let mut packed = Vec::new();
    for (number, grain) in (offset / GRAIN..).zip(bytes.chunks(usize::try_from(GRAIN).unwrap_or(1 << 16))) {
        if !is_zero(grain) {
            let mut whole = grain.to_vec();
            whole.resize(usize::try_from(GRAIN).unwrap_or(1 << 16), 0);
            packed.push((number, pack(number, whole)?));
        }
    }
    Ok(packed)
}

/// Bytes of the disk that grain `number` holds.
fn grain_bytes(number: u64, size: u64) -> u64 {
    GRAIN.min(size.saturating_sub(number * GRAIN))
}

/// One grain table while its grains come.
#[derive(Default)]
struct Table {
    entries: Vec<u32>,
}

impl Table {
    fn set(&mut self, grain: u64, sector: u32) {
        self.entries.resize(usize::try_from(GRAINS_PER_TABLE).unwrap_or_default(), 0);
        let slot = usize::try_from(grain % GRAINS_PER_TABLE).unwrap_or(usize::MAX);
        if let Some(entry) = self.entries.get_mut(slot) {
            *entry = sector;
        }
    }

    fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.entries).iter().flat_map(|entry| entry.to_le_bytes()).collect()
    }
}

/// Writes a monolithic sparse image; answers the bytes of grains that are not zero.
pub(super) fn write_sparse(pipeline: &Pipeline<'_>, output: &FileDisk, size: u64, unique: &[u8; 16]) -> Result<u64> {
    let tables = check_size(size)?;
    let directory_bytes = (tables * 4).next_multiple_of(SECTOR);
    let redundant = (1 + DESCRIPTOR_SECTORS) * SECTOR;
    let redundant_tables = redundant + directory_bytes;
    let primary = redundant_tables + tables * TABLE;
    let primary_tables = primary + directory_bytes;
    let overhead = (primary_tables + tables * TABLE).next_multiple_of(GRAIN);
    // Tables that stay empty are never written: they are holes of the file, which read as they should.
    output.resize(overhead)?;
    for (directory, first) in [(redundant, redundant_tables), (primary, primary_tables)] {
        let entries: Result<Vec<u32>> = (0..tables).map(|index| sector_of(first + index * TABLE)).collect();
        let bytes: Vec<u8> = entries?.iter().flat_map(|entry| entry.to_le_bytes()).collect();
        write_growing(output, &bytes, directory)?;
    }
    let (mut end, mut stored, mut current, mut table) = (overhead, 0, None, Table::default());
    let write_table = |index: u64, bytes: Vec<u8>| {
        write_growing(output, &bytes, redundant_tables + index * TABLE)?;
        write_growing(output, &bytes, primary_tables + index * TABLE)
    };
    pipeline.run(
        |offset, bytes| grains(offset, &bytes, |_, grain| Ok(grain)),
        |_, grains: Vec<(u64, Vec<u8>)>| {
            for (number, bytes) in grains {
                let index = number / GRAINS_PER_TABLE;
                if let Some(before) = current.replace(index).filter(|before| *before != index) {
                    write_table(before, table.take())?;
                }
                table.set(number, sector_of(end)?);
                write_growing(output, &bytes, end)?;
                end += GRAIN;
                stored += grain_bytes(number, size);
            }
            Ok(())
        },
    )?;
    if let Some(index) = current {
        write_table(index, table.take())?;
    }
    let text = descriptor(&extent_name(output), "monolithicSparse", "RW", size, unique)?;
    write_growing(output, &text, SECTOR)?;
    let header = Header {
        version: 1,
        flags: FLAGS_SPARSE,
        capacity: size,
        redundant: redundant / SECTOR,
        directory: primary / SECTOR,
        overhead: overhead / SECTOR,
        compression: 0,
    };
    write_growing(output, &header.bytes(), 0)?;
    Ok(stored)
}

/// A stream so far.
struct Stream<'a> {
    output: &'a FileDisk,
    end: u64,
    directory: Vec<u32>,
    current: Option<u64>,
    table: Table,
}

impl Stream<'_> {
    /// Appends `bytes`, filled up to whole sectors; answers the sector at which they begin.
    fn append(&mut self, mut bytes: Vec<u8>) -> Result<u32> {
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        let sector = sector_of(self.end)?;
        write_growing(self.output, &bytes, self.end)?;
        self.end += bytes.len() as u64;
        Ok(sector)
    }

    fn append_marker(&mut self, kind: u32, sectors: u64) -> Result<()> {
        let mut marker = Vec::with_capacity(512);
        marker.extend(sectors.to_le_bytes());
        marker.extend(0_u32.to_le_bytes());
        marker.extend(kind.to_le_bytes());
        marker.resize(512, 0);
        self.append(marker).map(|_| ())
    }

    fn put(&mut self, number: u64, grain: Vec<u8>) -> Result<()> {
        let index = number / GRAINS_PER_TABLE;
        if self.current != Some(index) {
            self.end_table()?;
            self.current = Some(index);
        }
        let sector = self.append(grain)?;
        self.table.set(number, sector);
        Ok(())
    }

    fn end_table(&mut self) -> Result<()> {
        let Some(index) = self.current.take() else { return Ok(()) };
        self.append_marker(MARKER_TABLE, TABLE / SECTOR)?;
        let bytes = self.table.take();
        let sector = self.append(bytes)?;
        if let Some(entry) = usize::try_from(index).ok().and_then(|index| self.directory.get_mut(index)) {
            *entry = sector;
        }
        Ok(())
    }
}

/// Writes a stream-optimized image; answers the bytes of grains that are not zero.
pub(super) fn write_stream(pipeline: &Pipeline<'_>, output: &FileDisk, size: u64, unique: &[u8; 16]) -> Result<u64> {
    let tables = check_size(size)?;
    let directory = vec![0; usize::try_from(tables).unwrap_or_default()];
    let mut stream = Stream { output, end: GRAIN, directory, current: None, table: Table::default() };
    let mut stored = 0;
    pipeline.run(
        |offset, bytes| grains(offset, &bytes, |number, grain| compress(number, &grain)),
        |_, grains: Vec<(u64, Vec<u8>)>| {
            for (number, bytes) in grains {
                stream.put(number, bytes)?;
                stored += grain_bytes(number, size);
            }
            Ok(())
        },
    )?;
    stream.end_table()?;
    let bytes: Vec<u8> = stream.directory.iter().flat_map(|entry| entry.to_le_bytes()).collect();
    let sectors = (bytes.len() as u64).div_ceil(SECTOR);
    stream.append_marker(MARKER_DIRECTORY, sectors)?;
    let directory = u64::from(stream.append(bytes)?);
    let mut header = Header {
        version: 3,
        flags: FLAGS_STREAM,
        capacity: size,
        redundant: 0,
        directory,
        overhead: GRAIN / SECTOR,
        compression: 1,
    };
    stream.append_marker(MARKER_FOOTER, 1)?;
    stream.append(header.bytes())?;
    // The end of the stream is a marker of zeros.
    stream.append(vec![0; 512])?;
    let text = descriptor(&extent_name(output), "streamOptimized", "RW", size, unique)?;
    write_growing(output, &text, SECTOR)?;
    header.directory = DIRECTORY_AT_END;
    write_growing(output, &header.bytes(), 0)?;
    Ok(stored)
}

/// A grain in a stream: its first sector on the disk, the length of the zlib stream, the zlib stream.
fn compress(number: u64, grain: &[u8]) -> Result<Vec<u8>> {
    let failed = || Error::invalid("a grain could not be compressed");
    let mut stream = Compress::new(Compression::new(ZLIB_LEVEL), true);
    // What does not compress becomes longer by a few bytes for each 16 KiB; this is room for more.
    let mut packed = vec![0; MARKER + grain.len() + grain.len() / 8];
    let (marker, room) = packed.split_at_mut(MARKER);
    match stream.compress(grain, room, FlushCompress::Finish) {
        Ok(Status::StreamEnd) => {}
        _ => return Err(failed()),
    }
    let length = u32::try_from(stream.total_out()).map_err(|_| failed())?;
    let (first_sector, length_field) = marker.split_at_mut(8);
    first_sector.copy_from_slice(&(number * (GRAIN / SECTOR)).to_le_bytes());
    length_field.copy_from_slice(&length.to_le_bytes());
    packed.truncate(MARKER + usize::try_from(length).map_err(|_| failed())?);
    Ok(packed)
}
