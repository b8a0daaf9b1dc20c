//! Which bytes of a file differ between two snapshots, out of what `btrfs send --no-data -p OLD NEW` says.
//!
//! ```text
//!   "btrfs-stream\0"  version: u32
//!   commands, each:    length: u32  command: u16  crc: u32   then `length` bytes of attributes
//!   attributes, each:  type: u16  length: u16                then `length` bytes
//! ```
//! Little endian. The CRC is CRC-32C, from 0 and not inverted, of the whole command with 0 in place of the CRC. In version 2
//! the attribute DATA has no length and is the rest of the command. Without data, everything that was written to a file,
//! punched into it or cloned into it comes as UPDATE_EXTENT or CLONE, and a new length as TRUNCATE.
//!
//! A command that is not known, a file that was renamed, replaced or linked, a folder above it that was, a stream that does
//! not end or does not check: then nothing is said, and all of the file is to be read.
//!
//! Source: Linux, fs/btrfs/send.h and send.c.

use std::ops::Range;

const MAGIC: &[u8] = b"btrfs-stream\0";
/// What is understood; later versions have commands that are not.
const LAST_VERSION: u32 = 2;
/// A list that is longer is slower than reading everything.
const MOST_RANGES: usize = 4 << 20;

mod command {
    pub(super) const SNAPSHOT: u16 = 2;
    pub(super) const MKFILE: u16 = 3;
    pub(super) const RMDIR: u16 = 12;
    pub(super) const SET_XATTR: u16 = 13;
    pub(super) const REMOVE_XATTR: u16 = 14;
    pub(super) const WRITE: u16 = 15;
    pub(super) const CLONE: u16 = 16;
    pub(super) const TRUNCATE: u16 = 17;
    pub(super) const CHMOD: u16 = 18;
    pub(super) const UTIMES: u16 = 20;
    pub(super) const END: u16 = 21;
    pub(super) const UPDATE_EXTENT: u16 = 22;
    pub(super) const FALLOCATE: u16 = 23;
    pub(super) const FILEATTR: u16 = 24;
    pub(super) const ENCODED_WRITE: u16 = 25;
}

mod attribute {
    pub(super) const UUID: u16 = 1;
    pub(super) const SIZE: u16 = 4;
    pub(super) const PATH: u16 = 15;
    pub(super) const PATH_TO: u16 = 16;
    pub(super) const PATH_LINK: u16 = 17;
    pub(super) const FILE_OFFSET: u16 = 18;
    pub(super) const DATA: u16 = 19;
    pub(super) const CLONE_UUID: u16 = 20;
    pub(super) const CLONE_LENGTH: u16 = 24;
    pub(super) const UNENCODED_FILE_LENGTH: u16 = 27;
}

/// What is asked of a stream.
#[derive(Debug)]
pub(super) struct Question<'a> {
    /// UUIDs by which the new snapshot may be called.
    pub(super) new: Vec<[u8; 16]>,
    /// The same for the old one.
    pub(super) old: Vec<[u8; 16]>,
    /// Paths of files in the snapshot, without a slash before them.
    pub(super) files: Vec<&'a [u8]>,
}

/// What may differ in a file, or why it is not known. The last range may reach past the file's end.
pub(super) type Changes = Result<Vec<Range<u64>>, String>;

/// One answer for each file of the question.
///
/// # Errors
/// Why the stream tells nothing.
pub(super) fn changes(stream: &[u8], question: &Question) -> Result<Vec<Changes>, String> {
    let mut rest = Bytes(stream);
    let version = (rest.take(MAGIC.len()) == Some(MAGIC)).then(|| rest.u32()).flatten();
    let version = version.ok_or("btrfs send printed no stream")?;
    if !(1..=LAST_VERSION).contains(&version) {
        return Err(format!("btrfs send speaks version {version}, which firn does not know"));
    }
    let mut files = vec![Ok(Vec::new()); question.files.len()];
    let mut is_first = true;
    loop {
        let command = Command::next(&mut rest, version)?;
        if is_first {
            command.check_snapshots(question)?;
            is_first = false;
        } else if command.kind == command::END {
            break;
        } else {
            for (changes, file) in files.iter_mut().zip(&question.files) {
                command.apply(file, changes)?;
            }
        }
    }
    if rest.0.is_empty() { Ok(files) } else { Err("btrfs send says something after its end".to_owned()) }
}

/// One command with those of its attributes that are used.
#[derive(Debug, Default)]
struct Command<'a> {
    kind: u16,
    uuid: Option<&'a [u8]>,
    clone_uuid: Option<&'a [u8]>,
    /// PATH, PATH_TO and PATH_LINK.
    paths: [Option<&'a [u8]>; 3],
    offset: Option<u64>,
    size: Option<u64>,
    clone_length: Option<u64>,
    unencoded_length: Option<u64>,
    data_length: Option<u64>,
}

impl<'a> Command<'a> {
    fn next(rest: &mut Bytes<'a>, version: u32) -> Result<Self, String> {
        let start = rest.0;
        let header = (|| Some((usize::try_from(rest.u32()?).ok()?, rest.u16()?, rest.u32()?)))();
        let (length, kind, crc) = header.ok_or("the stream of btrfs send ends too early")?;
        let mut attributes = Bytes(rest.take(length).ok_or("the stream of btrfs send ends too early")?);
        if crc != checksum(&[&start[..6], &[0; 4], attributes.0]) {
            return Err("the stream of btrfs send has a wrong checksum".to_owned());
        }
        let mut command = Self { kind, ..Self::default() };
        while !attributes.0.is_empty() {
            command.attribute(&mut attributes, version).ok_or("an attribute in the stream of btrfs send is cut off")?;
        }
        Ok(command)
    }

    fn attribute(&mut self, rest: &mut Bytes<'a>, version: u32) -> Option<()> {
        let kind = rest.u16()?;
        let length = if kind == attribute::DATA && version >= 2 { rest.0.len() } else { usize::from(rest.u16()?) };
        let value = rest.take(length)?;
        let number = || Some(u64::from_le_bytes(value.try_into().ok()?));
        match kind {
            attribute::UUID => self.uuid = Some(value),
            attribute::CLONE_UUID => self.clone_uuid = Some(value),
            attribute::PATH => self.paths[0] = Some(value),
            attribute::PATH_TO => self.paths[1] = Some(value),
            attribute::PATH_LINK => self.paths[2] = Some(value),
            attribute::FILE_OFFSET => self.offset = Some(number()?),
            attribute::SIZE => self.size = Some(number()?),
            attribute::CLONE_LENGTH => self.clone_length = Some(number()?),
            attribute::UNENCODED_FILE_LENGTH => self.unencoded_length = Some(number()?),
            attribute::DATA => self.data_length = Some(length as u64),
            _ => {}
        }
        Some(())
    }

    /// The first command says which two snapshots are compared.
    fn check_snapshots(&self, question: &Question) -> Result<(), String> {
        let is = |uuid: Option<&[u8]>, known: &[[u8; 16]]| uuid.is_some_and(|uuid| known.iter().any(|one| one == uuid));
        if self.kind == command::SNAPSHOT && is(self.uuid, &question.new) && is(self.clone_uuid, &question.old) {
            return Ok(());
        }
        Err("btrfs send compared other snapshots than it was told to".to_owned())
    }

    /// Adds to `changes` what this command does to `file`.
    fn apply(&self, file: &[u8], changes: &mut Changes) -> Result<(), String> {
        let length = match self.kind {
            command::MKFILE..=command::RMDIR => {
                if self.paths.iter().flatten().any(|path| leads_to(path, file)) {
                    *changes = Err("the image was renamed, replaced or linked since the last snapshot".to_owned());
                }
                return Ok(());
            }
            command::SET_XATTR | command::REMOVE_XATTR | command::CHMOD..=command::UTIMES | command::FILEATTR => {
                return Ok(());
            }
            command::TRUNCATE => self.size.map(|size| size..u64::MAX),
            command::WRITE => self.range(self.data_length),
            command::CLONE => self.range(self.clone_length),
            command::UPDATE_EXTENT | command::FALLOCATE => self.range(self.size),
            command::ENCODED_WRITE => self.range(self.unencoded_length),
            unknown => return Err(format!("btrfs send says something that firn does not know (command {unknown})")),
        };
        let range = length.ok_or("btrfs send changes a file without saying where")?;
        let path = self.paths[0].ok_or("btrfs send changes a file without saying which")?;
        if let Ok(ranges) = changes
            && path == file
        {
            ranges.push(range);
            if ranges.len() > MOST_RANGES {
                *changes = Err(format!("there are more than {MOST_RANGES} changed ranges"));
            }
        }
        Ok(())
    }

    fn range(&self, length: Option<u64>) -> Option<Range<u64>> {
        let start = self.offset?;
        Some(start..start.checked_add(length?)?)
    }
}

/// Whether `path` is `file` or a folder above it.
fn leads_to(path: &[u8], file: &[u8]) -> bool {
    file.strip_prefix(path).is_some_and(|below| below.is_empty() || below.starts_with(b"/"))
}

/// CRC-32C as the kernel's `crc32c(0, …)` counts: without the inversions at both ends.
fn checksum(parts: &[&[u8]]) -> u32 {
    !parts.iter().fold(u32::MAX, |crc, part| crc32c::crc32c_append(crc, part))
}

/// What is left of the stream.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(head)
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_le_bytes(self.take(2)?.try_into().ok()?))
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use firn_disk::testing::Random;

    type Attributes = Vec<(u16, Vec<u8>)>;

    const NEW: [u8; 16] = [1; 16];
    const OLD: [u8; 16] = [2; 16];

    fn number(value: u64) -> Vec<u8> {
        value.to_le_bytes().to_vec()
    }

    fn push(stream: &mut Vec<u8>, kind: u16, attributes: &[(u16, Vec<u8>)]) {
        let mut body = Vec::new();
        for (kind, value) in attributes {
            body.extend(kind.to_le_bytes());
            body.extend(u16::try_from(value.len()).unwrap().to_le_bytes());
            body.extend(value);
        }
        let mut header = u32::try_from(body.len()).unwrap().to_le_bytes().to_vec();
        header.extend(kind.to_le_bytes());
        let crc = checksum(&[&header, &[0; 4], &body]);
        stream.extend([header, crc.to_le_bytes().to_vec(), body].concat());
    }

    /// The beginning of a stream, some commands, and its end.
    fn stream(commands: &[(u16, Attributes)]) -> Vec<u8> {
        let mut stream = [MAGIC, &1_u32.to_le_bytes()].concat();
        let first = [(attribute::UUID, NEW.to_vec()), (attribute::CLONE_UUID, OLD.to_vec())];
        push(&mut stream, command::SNAPSHOT, &first);
        for (kind, attributes) in commands {
            push(&mut stream, *kind, attributes);
        }
        push(&mut stream, command::END, &[]);
        stream
    }

    fn update(path: &str, offset: u64, size: u64) -> (u16, Attributes) {
        let path = (attribute::PATH, path.as_bytes().to_vec());
        let place = [path, (attribute::FILE_OFFSET, number(offset)), (attribute::SIZE, number(size))];
        (command::UPDATE_EXTENT, place.to_vec())
    }

    fn question() -> Question<'static> {
        Question { new: vec![NEW], old: vec![OLD], files: vec![b"d/a.img", b"b.img"] }
    }

    #[test]
    fn ranges_are_those_of_the_file_that_is_named() {
        let truncate = vec![(attribute::PATH, b"b.img".to_vec()), (attribute::SIZE, number(9))];
        let commands = [update("d/a.img", 4096, 8192), update("a.img", 0, 1), (command::TRUNCATE, truncate)];
        let found = changes(&stream(&commands), &question()).unwrap();
        let (a, b) = (4096..12288, 9..u64::MAX);
        assert_eq!(found, [Ok(vec![a]), Ok(vec![b])]);
    }

    #[test]
    fn a_file_that_is_not_where_it_was_is_read_whole() {
        let rename = |from: &str, to: &str| {
            let paths = vec![(attribute::PATH, from.into()), (attribute::PATH_TO, to.into())];
            changes(&stream(&[(9, paths), update("b.img", 0, 1)]), &question()).unwrap()
        };
        assert!(rename("d", "e")[0].is_err() && rename("x", "d/a.img")[0].is_err() && rename("o1", "d")[0].is_err());
        assert!(rename("d/b.img", "dd")[0].is_ok() && rename("d", "e")[1].is_ok());
    }

    #[test]
    fn what_is_not_understood_tells_nothing() {
        let good = stream(&[update("b.img", 0, 1)]);
        for length in 0..good.len() {
            assert!(changes(&good[..length], &question()).is_err(), "{length}");
        }
        assert!(changes(&stream(&[(99, vec![])]), &question()).unwrap_err().contains("99"));
        assert!(changes(&stream(&[update("b.img", u64::MAX, 1)]), &question()).is_err());
        assert!(changes(&[good.clone(), vec![0]].concat(), &question()).is_err());
        let other = Question { old: vec![NEW], ..question() };
        assert!(changes(&good, &other).unwrap_err().contains("other snapshots"));
        let mut later = good;
        later[MAGIC.len()] = 3;
        assert!(changes(&later, &question()).unwrap_err().contains("version 3"));
    }

    #[test]
    fn no_flipped_bit_passes_for_another_answer() {
        let good = stream(&[update("b.img", 4096, 4096), update("d/a.img", 0, 65536)]);
        let expected = changes(&good, &question()).unwrap();
        let seed = 7;
        let mut random = Random::new(seed);
        for round in 0..2000 {
            let mut bad = good.clone();
            let at = usize::try_from(random.below(bad.len() as u64)).unwrap();
            bad[at] ^= 1 << random.below(8);
            // Version 1 and 2 differ where there is data, and there is none.
            let found = changes(&bad, &question());
            assert!(found.is_err() || found.as_ref() == Ok(&expected), "seed {seed} round {round}: {found:?}");
        }
    }
}
