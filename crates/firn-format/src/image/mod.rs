//! Disk image formats: a file in, a [`Disk`] out, and back.
//!
//! [`open`] finds the format by content and opens everything the image stands on: backing files, data files,
//! extents, parents. [`write_image`] writes any disk as an image; [`Destination`] puts a finished image in its
//! place all at once.
//!
//! An image is input from a stranger. The files that it names are opened only inside its own folder unless the
//! user allows more ([`OpenOptions::allow_backing`]), every table entry is checked before it is followed, and
//! memory does not grow with what an image claims. An image that a running QEMU writes to is refused.

mod access;
mod bitmap;
mod destination;
mod layer;
mod lock;
mod name;
mod parent;
mod qcow2;
mod stream;
mod tables;
mod vdi;
mod vhd;
mod vhdx;
mod vmdk;
mod write;

pub use access::Moved;
pub use destination::Destination;
pub use qcow2::StoredBitmap;
pub use stream::{StreamInfo, is_stream, open_stream, stream_info};
pub use write::{ClusterCompression, WriteFormat, WriteOptions, WriteSummary, write_image};

use access::{Gate, ImageFile};
use firn_disk::{Disk, Error, Extent, FileDisk, Result, SharedDisk};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tables::TableCache;

/// Images that stand on one another, the first included; libvirt draws the same line.
const CHAIN_MAX: usize = 200;

/// An image format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ImageFormat {
    /// The disk's bytes as they are.
    Raw,
    /// QEMU's format, version 2 and 3.
    Qcow2,
    /// VMware's format.
    Vmdk,
    /// The format of Virtual PC, Azure and XenServer.
    Vhd,
    /// Hyper-V's format.
    Vhdx,
    /// VirtualBox's format.
    Vdi,
}

impl ImageFormat {
    /// Every format, in the order in which they are listed to people.
    pub const ALL: [Self; 6] = [Self::Raw, Self::Qcow2, Self::Vmdk, Self::Vhd, Self::Vhdx, Self::Vdi];

    /// Its usual name in lower case, the same that QEMU uses but for `vhd`, which is `vpc` there.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
            Self::Vhd => "vhd",
            Self::Vhdx => "vhdx",
            Self::Vdi => "vdi",
        }
    }
}

/// How to open an image.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// The format; `None` finds it by content. A raw disk whose guest may be hostile should be named `Raw`: the
    /// guest could have written another format's magic number.
    pub format: Option<ImageFormat>,
    /// Id or name of an internal snapshot (qcow2) to open in place of the current state.
    pub snapshot: Option<String>,
    /// Folders outside the image's own whose files the image may name.
    pub allow_backing: Vec<PathBuf>,
    /// Read even what a running QEMU writes to: what is read may mix old and new.
    pub torn: bool,
}

/// An open image.
#[derive(Debug, Clone)]
pub struct Image {
    /// What the guest sees. Holds QEMU's locks on all files of the image until it is dropped.
    pub disk: SharedDisk,
    /// The format of the file that was named.
    pub format: ImageFormat,
    /// What is known of it, for people.
    pub details: Details,
    bitmaps: Option<qcow2::Bitmaps>,
}

impl Image {
    /// The dirty bitmap called `name` that QEMU keeps in the image. Blocks while it is read.
    ///
    /// # Errors
    /// `Corrupt` when what the image says of it contradicts itself; the system's own.
    pub fn stored_bitmap(&self, name: &str) -> Result<StoredBitmap> {
        self.bitmaps.as_ref().map_or(Ok(StoredBitmap::Missing), |bitmaps| bitmaps.read(name))
    }
}

/// What an image says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Details {
    /// Length of the disk in bytes.
    pub virtual_size: u64,
    /// The kind within the format, as `streamOptimized`.
    pub subformat: Option<String>,
    /// Bytes in a cluster or grain.
    pub cluster_size: Option<u64>,
    /// What is special about it, in words.
    pub features: Vec<String>,
    /// The images below, the nearest first.
    pub chain: Vec<ChainLink>,
    /// Extents and data files of this image itself.
    pub data_files: Vec<PathBuf>,
    /// Internal snapshots, oldest first.
    pub snapshots: Vec<InternalSnapshot>,
    /// Whether it was not closed cleanly. Reading is not affected.
    pub is_dirty: bool,
    /// Whether its writer found it damaged.
    pub is_corrupt: bool,
}

/// An image below another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainLink {
    /// Where it was found.
    pub path: PathBuf,
    /// Its format.
    pub format: ImageFormat,
}

/// A snapshot that an image keeps inside itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InternalSnapshot {
    /// Unique in the image; usually a number.
    pub id: String,
    /// What the user called it; not always unique.
    pub name: String,
    /// When it was taken, in seconds since 1970-01-01 UTC.
    pub seconds: u32,
    /// Nanoseconds after that second.
    pub nanoseconds: u32,
    /// Bytes of saved memory and devices; 0 when the machine was off.
    pub vm_state_size: u64,
    /// Length in bytes of the disk as it was.
    pub disk_size: u64,
}

/// Opens the image at `path`, with all that it stands on. Blocks while files are opened and headers are read.
///
/// # Errors
/// `Unsupported` for formats and features that are known but not read (each by name); `Corrupt`; `Denied` when
/// the image names a file outside what it may; `Unavailable` when a running QEMU writes to a file of it (see
/// [`OpenOptions::torn`]); `NotFound`, also for an internal snapshot; `Invalid` for a snapshot of a format that
/// has none; the system's own.
pub fn open(path: impl AsRef<Path>, options: &OpenOptions) -> Result<Image> {
    open_in(path.as_ref(), options, None)
}

/// As [`open`], for an image in a frozen copy of a folder: what it names below the folder is opened in the copy.
///
/// # Errors
/// As [`open`]; `Denied` when a file of it lies outside the copy.
pub fn open_moved(path: impl AsRef<Path>, options: &OpenOptions, moved: &Moved) -> Result<Image> {
    open_in(path.as_ref(), options, Some(moved))
}

fn open_in(path: &Path, options: &OpenOptions, moved: Option<&Moved>) -> Result<Image> {
    let (gate, file) = Gate::open(path, options, moved)?;
    let mut opener = Opener { gate, tables: TableCache::new(), open: Vec::new() };
    let opened = opener.open_file(&file, options.format, options.snapshot.as_deref())?;
    let Opened { disk, format, details, bitmaps, .. } = opened;
    Ok(Image { disk, format, details, bitmaps })
}

/// Opens a raw image or block device that is there already, to be changed in place, under QEMU's locks of a writer.
///
/// # Errors
/// `Unavailable` when a QEMU has it open, or the kernel uses the device; `Invalid` for an image of another format, unless
/// `even_if` says that it is raw all the same; the system's own.
pub fn open_in_place(path: &Path, even_if: bool) -> Result<FileDisk> {
    let format = open(path, &OpenOptions { torn: true, ..OpenOptions::default() }).map(|image| image.format);
    if !even_if && format.as_ref().map_or(true, |format| *format != ImageFormat::Raw) {
        let found = format.map_or_else(|error| error.to_string(), |format| format!("it is {}", format.as_str()));
        return Err(Error::invalid(format!("only a raw image is changed in place; {found}"))
            .at_path(path)
            .hint("add --format raw if its bytes are to be replaced as they are"));
    }
    let disk = FileDisk::open_writable(path)?;
    lock::lock_for_writing(disk.file(), path)?;
    Ok(disk)
}

/// What all images of one chain share while they are opened.
struct Opener {
    gate: Gate,
    tables: Arc<TableCache>,
    /// Device and inode of the images that are being opened, the first one first.
    open: Vec<(u64, u64)>,
}

/// One opened image of a chain.
struct Opened {
    disk: SharedDisk,
    format: ImageFormat,
    file: ImageFile,
    details: Details,
    bitmaps: Option<qcow2::Bitmaps>,
}

impl Opened {
    /// This image and those below it, as a child lists them.
    fn as_chain(&self) -> Vec<ChainLink> {
        let mut chain = vec![ChainLink { path: self.file.path().to_path_buf(), format: self.format }];
        chain.extend(self.details.chain.iter().cloned());
        chain
    }
}

impl Opener {
    fn open_file(&mut self, file: &ImageFile, format: Option<ImageFormat>, snapshot: Option<&str>) -> Result<Opened> {
        if self.open.contains(&file.identity()) {
            return Err(Error::corrupt("the chain of images comes back to this file").at_path(file.path()));
        }
        if self.open.len() >= CHAIN_MAX {
            return Err(Error::unsupported(format!("a chain of more than {CHAIN_MAX} images")).at_path(file.path()));
        }
        let format = match format {
            Some(format) => format,
            None => find_format(file)?,
        };
        if snapshot.is_some() && format != ImageFormat::Qcow2 {
            return Err(
                Error::invalid(format!("a {} image has no internal snapshots", format.as_str())).at_path(file.path())
            );
        }
        self.open.push(file.identity());
        let opened = match format {
            ImageFormat::Raw => Ok(open_raw(file)),
            ImageFormat::Qcow2 => qcow2::open(self, file, snapshot),
            ImageFormat::Vmdk => vmdk::open(self, file),
            ImageFormat::Vhd => vhd::open(self, file),
            ImageFormat::Vhdx => vhdx::open(self, file),
            ImageFormat::Vdi => vdi::open(self, file),
        };
        self.open.pop();
        opened.map_err(|error| error.at_path(file.path()))
    }

    /// Opens an image that another one stands on. Its format is the recorded one: a raw disk's content must not
    /// decide what it is. Only where none was recorded the content is looked at, as QEMU does.
    fn open_below(&mut self, file: &ImageFile, recorded: Option<ImageFormat>) -> Result<Opened> {
        self.open_file(file, recorded, None)
    }
}

/// Raw: the file itself.
#[derive(Debug)]
struct Raw(ImageFile);

impl Disk for Raw {
    fn len(&self) -> u64 {
        self.0.disk().len()
    }
    fn logical_block_size(&self) -> u32 {
        self.0.disk().logical_block_size()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.0.disk().read_at(buf, offset)
    }
    fn extent_at(&self, offset: u64) -> Result<Extent> {
        self.0.disk().extent_at(offset)
    }
}

fn open_raw(file: &ImageFile) -> Opened {
    let details = Details { virtual_size: file.disk().len(), ..Details::default() };
    Opened { disk: Arc::new(Raw(file.clone())), format: ImageFormat::Raw, file: file.clone(), details, bitmaps: None }
}

/// Formats that would read as garbage if taken for raw, by their first bytes.
const FOREIGN: [(&[u8], &str); 3] =
    [(b"QED\0", "QED"), (b"WithoutFreeSpace", "Parallels"), (b"WithouFreSpacExt", "Parallels")];

/// The format of `file` by its content: raw when nothing else fits.
fn find_format(file: &ImageFile) -> Result<ImageFormat> {
    let disk = file.disk();
    let mut head = vec![0; usize::try_from(disk.len().min(4096)).unwrap_or_default()];
    disk.read_at(&mut head, 0)?;
    let begins = |magic: &[u8]| head.starts_with(magic);
    let is_vmdk = [vmdk::HOSTED_MAGIC.as_slice(), vmdk::COWD_MAGIC, vmdk::SE_SPARSE_MAGIC].into_iter().any(begins);
    if begins(qcow2::MAGIC) {
        return Ok(ImageFormat::Qcow2);
    }
    if is_vmdk || vmdk::is_descriptor(&head) {
        return Ok(ImageFormat::Vmdk);
    }
    if begins(vhdx::MAGIC) {
        return Ok(ImageFormat::Vhdx);
    }
    if head.get(vdi::MAGIC_AT..).is_some_and(|rest| rest.starts_with(vdi::MAGIC)) {
        return Ok(ImageFormat::Vdi);
    }
    if let Some((_, name)) = FOREIGN.iter().find(|(magic, _)| begins(magic)) {
        return Err(Error::unsupported(format!("{name} images are not read yet"))
            .at_path(file.path())
            .hint("convert it with qemu-img convert -O qcow2, or name the format raw if it is a raw disk"));
    }
    if begins(vhd::MAGIC) || ends_as_vhd(disk)? {
        return Ok(ImageFormat::Vhd);
    }
    Ok(ImageFormat::Raw)
}

/// A VHD of fixed size is a raw disk with one sector more, which begins with its magic.
fn ends_as_vhd(disk: &dyn Disk) -> Result<bool> {
    let Some(at) = disk.len().checked_sub(512) else { return Ok(false) };
    let mut magic = [0; 8];
    disk.read_at(&mut magic, at)?;
    Ok(&magic == vhd::MAGIC)
}
