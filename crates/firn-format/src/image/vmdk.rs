//! VMDK: VMware's image format, a text descriptor over flat files, files of grains and zeros.
//!
//! ```text
//! descriptor: a file of its own, or inside a single file of grains
//!   |- extent 0: flat file | grains | zeros        extents follow one another on the disk
//!   |- extent 1: ...
//!   `- parent: another VMDK whose CID is our parentCID; what is in no grain is read from there
//! ```
//! Source: VMware, Virtual Disk Format 5.0. Refused by name: raw device mappings.

mod descriptor;
mod sesparse;
mod sparse;

use super::access::ImageFile;
use super::layer::{Layer, Layered, Place, Run, Unit};
use super::{Details, ImageFormat, Opened, Opener};
pub(super) use descriptor::is_descriptor;
use descriptor::{Descriptor, ExtentType};
use firn_disk::{Error, ErrorKind, Record, Result};
pub(super) use sesparse::MAGIC as SE_SPARSE_MAGIC;
use sesparse::SeSparse;
use sparse::Sparse;
pub(super) use sparse::{COWD_MAGIC, HOSTED_MAGIC};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

/// Opens a VMDK image by its descriptor, with its extents and parents.
pub(super) fn open(opener: &mut Opener, file: &ImageFile) -> Result<Opened> {
    let (descriptor, embedded) = read_descriptor(opener, file)?;
    let mut layer = Vmdk { extents: Vec::new(), length: 0, unit_bytes: 0 };
    let mut data_files = Vec::new();
    match embedded {
        Some(sparse) => layer.push(sparse.capacity, Content::Sparse(sparse))?,
        None => {
            for (number, line) in (0..).zip(&descriptor.extents) {
                let content = match line.kind {
                    ExtentType::Zero => Content::Zero,
                    _ => {
                        let extent = opener.gate.open_named(file, Path::new(&line.file), "extent")?;
                        data_files.push(extent.path().to_path_buf());
                        open_extent(opener, &extent, number, line)?
                    }
                };
                layer.push(line.bytes, content)?;
            }
        }
    }
    let mut details = layer.details(&descriptor);
    details.data_files = data_files;
    let below = match descriptor.parent_cid {
        None => None,
        Some(cid) => {
            let parent = open_parent(opener, file, &descriptor, cid)?;
            details.chain = parent.as_chain();
            Some(parent.disk)
        }
    };
    let disk = Arc::new(Layered::new(layer, below));
    Ok(Opened { disk, format: ImageFormat::Vmdk, file: file.clone(), details, bitmaps: None })
}

/// The descriptor, and the file of grains that it stands in, if it does.
fn read_descriptor(opener: &Opener, file: &ImageFile) -> Result<(Descriptor, Option<Sparse>)> {
    let disk = file.disk();
    let mut magic = [0; 4];
    Record::read(disk, &mut magic, 0, "VMDK header")?;
    let whole_extent = || {
        Error::invalid("this is one extent of a VMDK image, without its descriptor")
            .at_path(file.path())
            .hint("name the descriptor: the small .vmdk file beside it")
    };
    if SE_SPARSE_MAGIC.starts_with(&magic) {
        return Err(whole_extent());
    }
    let (at, length, sparse) = if magic == *HOSTED_MAGIC || magic == *COWD_MAGIC {
        let sparse = Sparse::open(file, 0, &opener.tables)?;
        let Some((at, length)) = sparse.descriptor else {
            return Err(whole_extent());
        };
        (at, length.min(disk.len().saturating_sub(at)), Some(sparse))
    } else {
        (0, disk.len().min(sparse::DESCRIPTOR_MAX), None)
    };
    let mut text = vec![0; usize::try_from(length).unwrap_or_default()];
    Record::read(disk, &mut text, at, "VMDK descriptor")?;
    let descriptor = Descriptor::parse(&text, sparse.is_some()).map_err(|error| error.at_path(file.path()))?;
    Ok((descriptor, sparse))
}

fn open_extent(opener: &Opener, extent: &ImageFile, number: u32, line: &descriptor::ExtentLine) -> Result<Content> {
    if let ExtentType::Flat(at) = line.kind {
        extent.check_stored(at, line.bytes)?;
        return Ok(Content::Flat(extent.clone(), at));
    }
    let (capacity, content) = if line.kind == ExtentType::SeSparse {
        let sparse = SeSparse::open(extent, &opener.tables)?;
        (sparse.capacity, Content::SeSparse(sparse))
    } else {
        let sparse = Sparse::open(extent, number, &opener.tables)?;
        (sparse.capacity, Content::Sparse(sparse))
    };
    if capacity < line.bytes {
        return Err(Error::corrupt(format!(
            "the extent holds {capacity} bytes, but the descriptor says {}",
            line.bytes
        ))
        .at_path(extent.path()));
    }
    Ok(content)
}

fn open_parent(opener: &mut Opener, file: &ImageFile, descriptor: &Descriptor, cid: u32) -> Result<Opened> {
    let Some(hint) = &descriptor.parent_hint else {
        return Err(Error::corrupt("it has a parent but does not name it")
            .in_structure("VMDK descriptor")
            .at_path(file.path()));
    };
    let parent = opener.gate.open_named(file, Path::new(hint), "parent").or_else(|error| {
        // The hint of another host is often a path that is not here; the parent lies beside its child, and its
        // CID proves it.
        let name = hint.as_bytes().rsplit(|byte| matches!(byte, b'/' | b'\\')).next().unwrap_or_default();
        match error.kind() {
            ErrorKind::NotFound if !name.is_empty() && name.len() < hint.len() => {
                opener.gate.open_named(file, Path::new(OsStr::from_bytes(name)), "parent").map_err(|_| error)
            }
            _ => Err(error),
        }
    })?;
    let (parent_descriptor, _) = read_descriptor(opener, &parent)?;
    if parent_descriptor.cid != cid {
        return Err(Error::corrupt(format!(
            "the parent's CID is {:08x}, but its child was made from {cid:08x}",
            parent_descriptor.cid
        ))
        .at_path(parent.path())
        .hint("the parent was changed after its child was made, or it is another disk: take the parent as it was"));
    }
    opener.open_below(&parent, Some(ImageFormat::Vmdk))
}

/// What an extent's bytes come from.
#[derive(Debug)]
enum Content {
    Flat(ImageFile, u64),
    Sparse(Sparse),
    SeSparse(SeSparse),
    Zero,
}

#[derive(Debug)]
struct Extent {
    start: u64,
    end: u64,
    content: Content,
}

/// The extents of one image, one after the other.
#[derive(Debug)]
struct Vmdk {
    extents: Vec<Extent>,
    length: u64,
    unit_bytes: u64,
}

impl Vmdk {
    fn push(&mut self, bytes: u64, content: Content) -> Result<()> {
        let end = self.length.checked_add(bytes).filter(|end| i64::try_from(*end).is_ok());
        let end = end.ok_or_else(|| Error::corrupt("the extents' lengths overflow").in_structure("VMDK descriptor"))?;
        if let Content::Sparse(sparse) = &content
            && sparse.is_packed()
        {
            self.unit_bytes = self.unit_bytes.max(sparse.grain);
        }
        if bytes > 0 {
            self.extents.push(Extent { start: self.length, end, content });
        }
        self.length = end;
        Ok(())
    }

    fn extent(&self, offset: u64) -> Result<&Extent> {
        let index = self.extents.partition_point(|extent| extent.end <= offset);
        self.extents.get(index).ok_or_else(|| Error::out_of_bounds(offset, 1, self.length))
    }

    fn sparse(&self) -> impl Iterator<Item = &Sparse> {
        self.extents.iter().filter_map(|extent| match &extent.content {
            Content::Sparse(sparse) => Some(sparse),
            _ => None,
        })
    }

    fn details(&self, descriptor: &Descriptor) -> Details {
        let mut features = vec![format!("CID {:08x}", descriptor.cid)];
        if descriptor.extents.len() > 1 {
            features.push(format!("{} extents", descriptor.extents.len()));
        }
        if self.sparse().any(Sparse::is_packed) {
            features.push("compressed grains".to_owned());
        }
        if self.sparse().any(Sparse::has_redundant) {
            features.push("redundant grain directory".to_owned());
        }
        Details {
            virtual_size: self.length,
            subformat: Some(descriptor.create_type.clone()),
            cluster_size: self.extents.iter().find_map(|extent| match &extent.content {
                Content::Sparse(sparse) => Some(sparse.grain),
                Content::SeSparse(_) => Some(SeSparse::GRAIN),
                _ => None,
            }),
            features,
            chain: Vec::new(),
            data_files: Vec::new(),
            snapshots: Vec::new(),
            is_dirty: self.sparse().any(|sparse| sparse.is_dirty),
            is_corrupt: false,
        }
    }
}

impl Layer for Vmdk {
    fn len(&self) -> u64 {
        self.length
    }

    fn unit_bytes(&self) -> u64 {
        self.unit_bytes
    }

    fn map(&self, offset: u64) -> Result<Run<'_>> {
        let extent = self.extent(offset)?;
        let into = offset - extent.start;
        let rest = extent.end - offset;
        let run = match &extent.content {
            Content::Zero => Run { place: Place::Zero, length: rest },
            Content::Flat(file, at) => Run { place: Place::Stored { file, at: at.saturating_add(into) }, length: rest },
            Content::Sparse(sparse) => sparse.map(into, extent.start)?,
            Content::SeSparse(sparse) => sparse.map(into)?,
        };
        Ok(Run { length: run.length.min(rest), ..run })
    }

    fn unpack(&self, unit: Unit, buf: &mut [u8]) -> Result<()> {
        let extent = self.extent(unit.start)?;
        match &extent.content {
            Content::Sparse(sparse) => sparse.unpack(unit, extent.start, buf),
            _ => Err(Error::corrupt("only grains are compressed")),
        }
    }
}
