//! Writing any disk as an image.
//!
//! ```text
//! source -> planner (skips holes) -> workers: read, find zeros, compress -> one writer, in order -> file
//! ```
//! What the source calls a hole or zero is never read, and blocks that turn out to be zeros are never written.
//! The same source gives the same file, whatever the number of threads.

mod pipeline;
mod qcow2;
mod raw;
mod table;
mod vdi;
mod vhd;
mod vhdx;
mod vmdk;

use super::ImageFormat;
use firn_disk::{Disk, Error, ErrorKind, FileDisk, Result, WriteDisk};
use pipeline::Pipeline;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// An image format that can be written, with its variant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WriteFormat {
    /// The bytes as they are; holes and zeros become holes of the file.
    Raw,
    /// qcow2 version 3 with clusters of 64 KiB, compressed or not.
    Qcow2(Option<ClusterCompression>),
    /// One file of grains that VMware's hosted products, VirtualBox and QEMU read and write.
    VmdkMonolithicSparse,
    /// Compressed grains in one stream: what OVF packages hold and ESXi imports. Not for running a machine.
    VmdkStreamOptimized,
    /// VHD in blocks of 2 MiB, up to 2040 GiB.
    VhdDynamic,
    /// VHDX in blocks of 1 MiB, with the disk's own sector size.
    VhdxDynamic,
    /// VDI in blocks of 1 MiB.
    VdiDynamic,
}

/// How clusters are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ClusterCompression {
    /// Understood by every QEMU.
    #[default]
    Zlib,
    /// Faster; needs QEMU 5.1 or newer.
    Zstd,
}

impl WriteFormat {
    /// The format that the extension of `path` stands for: `.qcow2`, `.vmdk` (monolithic sparse), `.vhd`, `.vhdx`,
    /// `.vdi`, else raw.
    pub fn from_extension(path: &Path) -> Self {
        match path.extension().map(|extension| extension.to_ascii_lowercase()) {
            Some(extension) if extension == "qcow2" => Self::Qcow2(None),
            Some(extension) if extension == "vmdk" => Self::VmdkMonolithicSparse,
            Some(extension) if extension == "vhd" => Self::VhdDynamic,
            Some(extension) if extension == "vhdx" => Self::VhdxDynamic,
            Some(extension) if extension == "vdi" => Self::VdiDynamic,
            _ => Self::Raw,
        }
    }

    /// The format without its variant.
    pub fn format(self) -> ImageFormat {
        match self {
            Self::Raw => ImageFormat::Raw,
            Self::Qcow2(_) => ImageFormat::Qcow2,
            Self::VmdkMonolithicSparse | Self::VmdkStreamOptimized => ImageFormat::Vmdk,
            Self::VhdDynamic => ImageFormat::Vhd,
            Self::VhdxDynamic => ImageFormat::Vhdx,
            Self::VdiDynamic => ImageFormat::Vdi,
        }
    }
}

/// How to write an image.
#[derive(Debug, Clone, Default)]
pub struct WriteOptions {
    /// Threads that read and compress; 0 takes as many as there are processors.
    pub threads: usize,
    /// Random bytes for the identifiers that a format holds: a VMDK's content id, the UUIDs of VHD, VHDX and VDI.
    pub unique: [u8; 16],
    /// Set from elsewhere to stop the work: it then ends with `Interrupted`.
    pub cancel: Arc<AtomicBool>,
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WriteSummary {
    /// Length in bytes of the disk in the image.
    pub virtual_size: u64,
    /// How many zero bytes of that were added to fill the last sector, as the format counts in sectors.
    pub padding: u64,
    /// Bytes of the disk that were stored, before compression: all that was not zero, in whole blocks.
    pub data_bytes: u64,
    /// Length of the file in bytes.
    pub file_size: u64,
}

/// Writes `source` into `output`, a new and empty regular file, and makes it durable. Blocks until done.
///
/// `progress` is called from several threads with the bytes of the disk done since the last call; the sum is
/// the length of `source`. After an error `output` holds no image and should be removed ([`Destination`] does).
///
/// # Errors
/// What reading `source` says; `Unsupported` when the disk is too large for the format, or empty in one that has no
/// empty disks; `Interrupted` when
/// [`WriteOptions::cancel`] is set; `Invalid` when `output` is not empty; the system's own, as `Unavailable`
/// for a full file system.
///
/// [`Destination`]: super::Destination
pub fn write_image(
    source: &dyn Disk,
    output: &FileDisk,
    format: WriteFormat,
    options: &WriteOptions,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<WriteSummary> {
    if output.is_device() || !output.is_empty() {
        return Err(Error::invalid("an image is written to a new, empty file").at_path(output.path()));
    }
    let pipeline = Pipeline { source, threads: threads(options.threads), cancel: &options.cancel, progress };
    let keeps_empty = matches!(format, WriteFormat::Raw | WriteFormat::Qcow2(_));
    if source.is_empty() && !keeps_empty {
        return Err(Error::unsupported(format!("a disk of 0 bytes cannot be a {}", format.format().as_str()))
            .hint("write it as raw or qcow2"));
    }
    let sector = if format == WriteFormat::VhdxDynamic { u64::from(source.logical_block_size()) } else { 512 };
    let padded = source.len().checked_next_multiple_of(sector).filter(|length| i64::try_from(*length).is_ok());
    let padded = padded.ok_or_else(|| too_large(source.len(), format.format().as_str()))?;
    let (virtual_size, data_bytes) = match format {
        WriteFormat::Raw => (source.len(), raw::write(&pipeline, output)?),
        WriteFormat::Qcow2(compression) => (padded, qcow2::write(&pipeline, output, padded, compression)?),
        WriteFormat::VmdkMonolithicSparse => (padded, vmdk::write_sparse(&pipeline, output, padded, &options.unique)?),
        WriteFormat::VmdkStreamOptimized => (padded, vmdk::write_stream(&pipeline, output, padded, &options.unique)?),
        WriteFormat::VhdDynamic => (padded, vhd::write(&pipeline, output, padded, &options.unique)?),
        WriteFormat::VhdxDynamic => (padded, vhdx::write(&pipeline, output, padded, &options.unique)?),
        WriteFormat::VdiDynamic => (padded, vdi::write(&pipeline, output, padded, &options.unique)?),
    };
    output.flush()?;
    Ok(WriteSummary { virtual_size, padding: virtual_size - source.len(), data_bytes, file_size: output.len() })
}

fn threads(wanted: usize) -> usize {
    let available = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    if wanted == 0 { available().min(16) } else { wanted.min(64) }
}

fn too_large(length: u64, format: &str) -> Error {
    Error::unsupported(format!("a disk of {length} bytes is too large for {format}")).hint("write it as raw or qcow2")
}

/// Writes `bytes` at `at`, making the file longer as needed.
fn write_growing(output: &FileDisk, bytes: &[u8], at: u64) -> Result<()> {
    let end =
        at.checked_add(bytes.len() as u64).ok_or_else(|| Error::out_of_bounds(at, bytes.len() as u64, u64::MAX))?;
    if end > output.len() {
        output.resize(end)?;
    }
    output.write_at(bytes, at, firn_disk::Fua::No)
}

/// A random UUID for `role`, from the random bytes that the caller gave. The version stands where the first three
/// fields are little endian, as in all formats here but VHD.
fn random_id(unique: &[u8; 16], role: &str) -> [u8; 16] {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    context.update(unique);
    context.update(role.as_bytes());
    let mut id = [0; 16];
    id.iter_mut().zip(context.finish().as_ref()).for_each(|(byte, hash)| *byte = *hash);
    let [.., version, variant, _, _, _, _, _, _, _] = &mut id;
    *version = *version & 0x0f | 0x40;
    *variant = *variant & 0x3f | 0x80;
    id
}

/// Whether all bytes are zero.
fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(256).all(|chunk| chunk.iter().fold(0, |sum, byte| sum | byte) == 0)
}

/// The error of work that was told to stop.
fn interrupted() -> Error {
    Error::new(ErrorKind::Interrupted, "stopped before the image was complete")
}
