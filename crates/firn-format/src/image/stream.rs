//! The streams in which virtnbdbackup keeps a disk: what is data, and in a full one what is zeros, one after the other.
//!
//! ```text
//! meta 0000000000000000 000000000000018f\r\n  {"virtualSize": …, "checkpointName": …, …}\r\n
//! data 0000000000100000 0000000000010000\r\n  the bytes\r\n
//! zero 0000000000110000 0000000003ef0000\r\n
//! stop 0000000000000000 0000000000000000\r\n
//! ```
//! Start and length are 16 hexadecimal digits. An incremental stream has what changed since its parent's checkpoint;
//! the rest is as it was. Source: virtnbdbackup 1.9, libvirtnbdbackup/sparsestream. Refused: compressed streams.

use super::access::{Gate, ImageFile};
use super::layer::{Layer, Layered, Place, Run, Unit};
use super::{Details, Image, ImageFormat, OpenOptions};
use firn_disk::{Error, Record, Result, SharedDisk};
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;

/// Bytes of a frame's header: kind, start, length and the end of the line.
const FRAME: usize = 40;
const META_MAX: u64 = 1 << 20;
/// Frames of one stream: 16 bytes and more of memory each.
const FRAMES_MAX: usize = 16 << 20;

/// What a stream says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamInfo {
    /// Length of the disk in bytes.
    pub virtual_size: u64,
    /// The disk's name in its machine, as `vda`.
    pub disk: String,
    /// The checkpoint that was made with it.
    pub checkpoint: String,
    /// The checkpoint since which it has the changes; `None` for a full one.
    pub parent: Option<String>,
    /// When it was begun: ISO 8601 in the time zone of the machine that made it, which is not told.
    pub date: String,
    data_size: u64,
}

/// Whether `path` is a stream, and not a raw disk, which virtnbdbackup keeps under the same names.
///
/// # Errors
/// The system's own.
pub fn is_stream(path: impl AsRef<Path>) -> Result<bool> {
    let (_, file) = Gate::open(path.as_ref(), &OpenOptions::default(), None)?;
    let mut head = [0; 5];
    Ok(file.disk().len() >= FRAME as u64 && file.disk().read_at(&mut head, 0).map(|()| &head == b"meta ")?)
}

/// What the stream at `path` says of itself. Reads its beginning only.
///
/// # Errors
/// `Corrupt` when it is none; `Unsupported` when it is compressed; the system's own.
pub fn stream_info(path: impl AsRef<Path>) -> Result<StreamInfo> {
    let path = path.as_ref();
    let (_, file) = Gate::open(path, &OpenOptions::default(), None)?;
    read_info(&file).map(|(info, _)| info).map_err(|error| error.at_path(path))
}

/// Opens the stream at `path` over `below`, the disk at its parent's checkpoint; a full one stands over nothing.
/// Reads every frame's header.
///
/// # Errors
/// As [`stream_info`]; `Corrupt` when the stream does not end, or its frames make no sense; `Invalid` when something
/// is missing below, or too much.
pub fn open_stream(path: impl AsRef<Path>, below: Option<SharedDisk>) -> Result<Image> {
    let path = path.as_ref();
    let (_, file) = Gate::open(path, &OpenOptions::default(), None)?;
    open_file(&file, below).map_err(|error| error.at_path(path))
}

fn open_file(file: &ImageFile, below: Option<SharedDisk>) -> Result<Image> {
    let (info, start) = read_info(file)?;
    if info.parent.is_some() != below.is_some() {
        return Err(Error::invalid("an incremental stream stands on its parent, a full one on nothing"));
    }
    let frames = read_frames(file, &info, start)?;
    let details = Details { virtual_size: info.virtual_size, ..Details::default() };
    let layer = Stream { file: file.clone(), frames, size: info.virtual_size };
    Ok(Image { disk: Arc::new(Layered::new(layer, below)), format: ImageFormat::Raw, details, bitmaps: None })
}

fn corrupt(message: impl Into<String>, at: u64) -> Error {
    Error::corrupt(message).in_structure("virtnbdbackup stream").at_offset(at)
}

/// Kind, start and length of the frame at `at`.
fn read_frame(file: &ImageFile, at: u64) -> Result<([u8; 4], u64, u64)> {
    let mut buf = [0; FRAME];
    let record = Record::read(file.disk(), &mut buf, at, "virtnbdbackup stream")
        .map_err(|error| error.hint("the stream is cut short: take another copy"))?;
    let number = |from: usize| -> Result<u64> {
        let digits = record.slice(from, 16)?;
        let text = std::str::from_utf8(digits).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_hexdigit()));
        text.and_then(|text| u64::from_str_radix(text, 16).ok()).ok_or_else(|| corrupt("a frame that is none", at))
    };
    if record.u8(4)? != b' ' || record.u8(21)? != b' ' || record.slice(38, 2)? != b"\r\n" {
        return Err(corrupt("a frame that is none", at));
    }
    Ok((record.array(0)?, number(5)?, number(22)?))
}

/// The metadata, and where the first frame after them begins.
fn read_info(file: &ImageFile) -> Result<(StreamInfo, u64)> {
    let (kind, _, length) = read_frame(file, 0)?;
    if &kind != b"meta" || length > META_MAX {
        return Err(corrupt("it does not begin with its metadata", 0));
    }
    let mut json = vec![0; usize::try_from(length).unwrap_or_default()];
    file.read_stored(&mut json, FRAME as u64)?;
    let meta: Value = serde_json::from_slice(&json)
        .map_err(|error| corrupt(format!("metadata that are no json: {error}"), FRAME as u64))?;
    // Version 1 had the same words with dashes.
    let word = |new: &str, old: &str| meta.get(new).or_else(|| meta.get(old)).cloned().unwrap_or(Value::Null);
    let missing = |name: &str| corrupt(format!("the metadata have no {name}"), FRAME as u64);
    let number = |new: &str, old: &str| word(new, old).as_u64().ok_or_else(|| missing(new));
    let text = |new: &str, old: &str| word(new, old).as_str().map(str::to_owned).ok_or_else(|| missing(new));
    if !matches!(word("compressed", "compressed"), Value::Null | Value::Bool(false)) {
        return Err(Error::unsupported("compressed streams of virtnbdbackup are not read")
            .hint("restore the disk with virtnbdrestore, and import that image"));
    }
    let is_incremental = word("incremental", "incremental").as_bool().unwrap_or(false);
    let parent = if is_incremental { Some(text("parentCheckpoint", "parent-checkpoint")?) } else { None };
    let virtual_size = number("virtualSize", "virtual-size")?;
    if i64::try_from(virtual_size).is_err() {
        return Err(corrupt(format!("a disk of {virtual_size} bytes"), FRAME as u64));
    }
    let info = StreamInfo {
        virtual_size,
        disk: text("diskName", "disk-name")?,
        checkpoint: text("checkpointName", "checkpoint-name").unwrap_or_default(),
        parent,
        date: text("date", "date")?,
        data_size: number("dataSize", "data-size")?,
    };
    Ok((info, FRAME as u64 + length + 2))
}

fn read_frames(file: &ImageFile, info: &StreamInfo, start: u64) -> Result<Vec<Frame>> {
    let (mut at, mut end, mut data) = (start, 0, 0);
    let mut frames: Vec<Frame> = Vec::new();
    loop {
        let (kind, start, length) = read_frame(file, at)?;
        at += FRAME as u64;
        let stop = start.checked_add(length).filter(|stop| start >= end && *stop <= info.virtual_size);
        let content = match &kind {
            b"stop" => break,
            b"data" => {
                let mut term = [0; 2];
                let after = at.checked_add(length).ok_or_else(|| corrupt("a frame without end", at))?;
                file.read_stored(&mut term, after)?;
                if &term != b"\r\n" {
                    return Err(corrupt("data that do not end where they should", after));
                }
                let stored = at;
                at = after + 2;
                data += length;
                Some(stored)
            }
            b"zero" => None,
            _ => return Err(corrupt("a frame of another kind", at - FRAME as u64)),
        };
        end =
            stop.ok_or_else(|| corrupt(format!("{length} bytes at {start}, out of order or outside the disk"), at))?;
        if frames.len() >= FRAMES_MAX {
            return Err(Error::unsupported(format!("a stream of more than {FRAMES_MAX} frames")));
        }
        if length > 0 {
            frames.push(Frame { start, end, content });
        }
    }
    if data != info.data_size {
        return Err(corrupt(format!("it has {data} bytes of data, not {}", info.data_size), at));
    }
    Ok(frames)
}

/// A run of the disk.
#[derive(Debug)]
struct Frame {
    start: u64,
    end: u64,
    /// Where in the file its bytes are; `None` for zeros.
    content: Option<u64>,
}

#[derive(Debug)]
struct Stream {
    file: ImageFile,
    /// In order, none over another.
    frames: Vec<Frame>,
    size: u64,
}

impl Layer for Stream {
    fn len(&self) -> u64 {
        self.size
    }

    fn unit_bytes(&self) -> u64 {
        0
    }

    fn map(&self, offset: u64) -> Result<Run<'_>> {
        let index = self.frames.partition_point(|frame| frame.end <= offset);
        let Some(frame) = self.frames.get(index) else {
            return Ok(Run { place: Place::Below, length: self.size - offset });
        };
        if frame.start > offset {
            return Ok(Run { place: Place::Below, length: frame.start - offset });
        }
        let place = match frame.content {
            Some(at) => Place::Stored { file: &self.file, at: at + (offset - frame.start) },
            None => Place::Zero,
        };
        Ok(Run { place, length: frame.end - offset })
    }

    fn unpack(&self, _: Unit, _: &mut [u8]) -> Result<()> {
        Err(Error::corrupt("nothing in a stream is compressed"))
    }
}
