//! The fast commits behind the log: what was fsynced since the last whole transaction.
//!
//! ```text
//! record  tag (2), length (2), value
//! HEAD      features (4), transaction (4)                 TAIL    transaction (4), crc32c (4), to the block's end
//! INODE     inode (4), its bytes                          PAD     nothing, to the block's end
//! ADD_RANGE inode (4), extent (12)                        DEL_RANGE  inode (4), first block (4), blocks (4)
//! CREAT, LINK, UNLINK  folder (4), inode (4), name
//! ```
//!
//! A fast commit counts when its tail names the transaction that follows the log and has the right crc32c over all
//! records since the tail before. What comes after the last such tail was being written when the machine stopped.
//!
//! Source: the kernel's `fs/ext4/fast_commit.c` (`ext4_fc_replay_scan`), `fs/ext4/fast_commit.h`.

use super::super::checksum::crc32c;
use super::Journal;
use firn_disk::{Error, Record, Result};

const TAG_ADD_RANGE: u16 = 1;
const TAG_DEL_RANGE: u16 = 2;
const TAG_CREAT: u16 = 3;
const TAG_LINK: u16 = 4;
const TAG_UNLINK: u16 = 5;
const TAG_INODE: u16 = 6;
const TAG_PAD: u16 = 7;
const TAG_TAIL: u16 = 8;
const TAG_HEAD: u16 = 9;
const HEADER: usize = 4;
/// The shortest record that is no pad, with its header.
const SHORTEST: usize = 12;
/// More fast commits than any journal has room for by default.
const MAX_BYTES: usize = 64 << 20;

/// One thing that a fast commit does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) enum Change {
    /// An inode as it is now; its block map only where the data is within.
    Inode { inode: u32, raw: Vec<u8> },
    /// Blocks of a file, as an extent of 12 bytes.
    AddRange { inode: u32, extent: [u8; 12] },
    /// Blocks that a file lost.
    DelRange { inode: u32, start: u32, length: u32 },
    /// A new inode got its name.
    Create { folder: u32, inode: u32, name: Vec<u8> },
    /// An inode got a name.
    Link { folder: u32, inode: u32, name: Vec<u8> },
    /// An inode lost a name.
    Unlink { folder: u32, inode: u32, name: Vec<u8> },
    /// The end of a fast commit. Inodes in it are as they were here.
    End,
}

/// All that the fast commits do, in order.
#[derive(Debug, Default)]
pub(in super::super) struct FastCommits {
    pub changes: Vec<Change>,
    /// How many there are.
    pub commits: u32,
    /// Whether one more had been begun.
    pub cut_off: bool,
}

impl Journal {
    /// Reads the fast commits that belong to transaction `expected`.
    pub(super) fn fast_commits(&self, expected: u32) -> Result<FastCommits> {
        let mut reader = Reader { expected, ..Reader::default() };
        let Some(first) = self.superblock.fast_commits else { return Ok(reader.found) };
        for block in first..self.superblock.blocks {
            let bytes = self.read(block)?;
            if block == first && Record::new(&bytes, "fast commit", 0).le_u16(0)? != TAG_HEAD {
                break;
            }
            if !reader.block(&bytes)? {
                break;
            }
        }
        reader.found.cut_off |= reader.has_head && reader.found.commits == 0;
        Ok(reader.found)
    }
}

#[derive(Default)]
struct Reader {
    expected: u32,
    /// Whether a head of the expected transaction was there.
    has_head: bool,
    found: FastCommits,
    /// Changes since the last tail.
    pending: Vec<Change>,
    crc: u32,
    bytes: usize,
}

impl Reader {
    /// Reads one block; `false` when the fast commits end in it.
    fn block(&mut self, bytes: &[u8]) -> Result<bool> {
        let record = Record::new(bytes, "fast commit", 0);
        self.bytes += bytes.len();
        if self.bytes > MAX_BYTES {
            return Err(Error::unsupported(format!("more than {MAX_BYTES} bytes of fast commits")));
        }
        let mut at = 0;
        while at + HEADER <= bytes.len() {
            let (tag, length) = (record.le_u16(at)?, usize::from(record.le_u16(at + 2)?));
            // Kernels before 6.2 left up to nine bytes at the end; nothing but a pad fits into them.
            if bytes.len() - at < SHORTEST && tag != TAG_PAD {
                break;
            }
            let Ok(value) = record.slice(at + HEADER, length) else { return Ok(false) };
            let whole = record.slice(at, HEADER + length)?;
            let goes_on = match tag {
                TAG_TAIL => self.tail(whole)?,
                TAG_HEAD => self.head(whole)?,
                TAG_PAD => {
                    self.crc = crc32c(self.crc, whole);
                    true
                }
                _ => match change(tag, value) {
                    Some(change) => {
                        self.crc = crc32c(self.crc, whole);
                        self.pending.push(change);
                        true
                    }
                    None => false,
                },
            };
            if !goes_on {
                return Ok(false);
            }
            at += HEADER + length;
        }
        Ok(true)
    }

    fn tail(&mut self, whole: &[u8]) -> Result<bool> {
        let record = Record::new(whole, "fast commit tail", 0);
        let (Ok(transaction), Ok(stored)) = (record.le_u32(HEADER), record.le_u32(HEADER + 4)) else {
            return Ok(false);
        };
        let counted = crc32c(self.crc, record.slice(0, HEADER + 4)?);
        // A tail of another transaction is what an earlier one left behind.
        if transaction != self.expected || stored != counted {
            self.found.cut_off |= transaction == self.expected;
            return Ok(false);
        }
        self.found.changes.append(&mut self.pending);
        self.found.changes.push(Change::End);
        self.found.commits += 1;
        self.crc = 0;
        Ok(true)
    }

    fn head(&mut self, whole: &[u8]) -> Result<bool> {
        let record = Record::new(whole, "fast commit head", 0);
        let (Ok(features), Ok(transaction)) = (record.le_u32(HEADER), record.le_u32(HEADER + 4)) else {
            return Ok(false);
        };
        if transaction != self.expected {
            return Ok(false);
        }
        if features != 0 {
            return Err(record.unsupported(HEADER, format!("fast commits with features {features:#x}")));
        }
        self.has_head = true;
        self.crc = crc32c(self.crc, whole);
        Ok(true)
    }
}

/// Decodes a record that changes something; `None` when it makes no sense.
fn change(tag: u16, value: &[u8]) -> Option<Change> {
    let record = Record::new(value, "fast commit record", 0);
    let word = |at: usize| record.le_u32(at).ok();
    let rest = |at: usize| value.get(at..).map(<[u8]>::to_vec);
    Some(match tag {
        TAG_ADD_RANGE => Change::AddRange { inode: word(0)?, extent: record.array(4).ok()? },
        TAG_DEL_RANGE => Change::DelRange { inode: word(0)?, start: word(4)?, length: word(8)? },
        TAG_CREAT => Change::Create { folder: word(0)?, inode: word(4)?, name: rest(8)? },
        TAG_LINK => Change::Link { folder: word(0)?, inode: word(4)?, name: rest(8)? },
        TAG_UNLINK => Change::Unlink { folder: word(0)?, inode: word(4)?, name: rest(8)? },
        TAG_INODE => Change::Inode { inode: word(0)?, raw: rest(4)? },
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(tag: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(value.len()).unwrap();
        [&tag.to_le_bytes()[..], &length.to_le_bytes(), value].concat()
    }

    fn commit(changes: &[Vec<u8>], transaction: u32, head: bool) -> Vec<u8> {
        let mut bytes = if head { record(TAG_HEAD, &[&[0; 4][..], &7_u32.to_le_bytes()].concat()) } else { vec![] };
        bytes.extend(changes.concat());
        let length = u16::try_from(1024 - bytes.len() - 4 - 1).unwrap();
        let tail = [&TAG_TAIL.to_le_bytes()[..], &length.to_le_bytes(), &transaction.to_le_bytes()].concat();
        let crc = crc32c(crc32c(0, &bytes), &tail);
        bytes.extend(tail);
        bytes.extend(crc.to_le_bytes());
        bytes.resize(1024, 0);
        bytes
    }

    fn read(blocks: &[Vec<u8>]) -> FastCommits {
        let mut reader = Reader { expected: 7, ..Reader::default() };
        for block in blocks {
            if !reader.block(block).unwrap() {
                break;
            }
        }
        reader.found
    }

    /// A block that is filled up to `left` bytes, the rest a pad or, as old kernels did, nothing.
    fn filled(left: usize, pad: bool) -> (Vec<u8>, u32) {
        let head = record(TAG_HEAD, &[&[0; 4][..], &7_u32.to_le_bytes()].concat());
        let name = vec![b'n'; 200];
        let mut bytes = head;
        while 1024 - bytes.len() - left > 400 {
            bytes.extend(record(TAG_LINK, &[&[2, 0, 0, 0, 12, 0, 0, 0][..], &name].concat()));
        }
        let last = vec![b'l'; 1024 - bytes.len() - left - 12];
        bytes.extend(record(TAG_LINK, &[&[2, 0, 0, 0, 12, 0, 0, 0][..], &last].concat()));
        if pad {
            bytes.extend(record(TAG_PAD, &vec![0; left - 4]));
        }
        let crc = crc32c(0, &bytes);
        bytes.resize(1024, 0);
        (bytes, crc)
    }

    #[test]
    fn blocks_are_filled_to_the_end_by_new_kernels_and_not_by_old_ones() {
        for (left, pad) in [(4, true), (5, true), (9, true), (1, false), (5, false), (9, false)] {
            let (first, crc) = filled(left, pad);
            let mut second = record(TAG_LINK, b"\x02\0\0\0\x0C\0\0\0name");
            let length = u16::try_from(1024 - second.len() - 4).unwrap();
            let tail = [&TAG_TAIL.to_le_bytes()[..], &length.to_le_bytes(), &7_u32.to_le_bytes()].concat();
            let crc = crc32c(crc32c(crc, &second), &tail);
            second.extend(tail);
            second.extend(crc.to_le_bytes());
            second.resize(1024, 0);
            assert_eq!(read(&[first, second]).commits, 1, "{left} bytes left, {pad}");
        }
    }

    #[test]
    fn only_whole_commits_of_the_right_transaction_count() {
        let link = record(TAG_LINK, b"\x02\0\0\0\x0C\0\0\0name");
        let expected = Change::Link { folder: 2, inode: 12, name: b"name".to_vec() };
        let first = commit(std::slice::from_ref(&link), 7, true);
        let found = read(&[first.clone(), commit(&[link.clone(), link.clone()], 7, false)]);
        assert_eq!(found.changes, [expected.clone(), Change::End, expected.clone(), expected.clone(), Change::End]);
        assert_eq!((found.commits, found.cut_off), (2, false));
        let mut bad = commit(std::slice::from_ref(&link), 7, false);
        bad[9] ^= 1;
        let found = read(&[first.clone(), bad]);
        assert_eq!((found.changes.len(), found.commits, found.cut_off), (2, 1, true));
        let found = read(&[first, commit(&[link], 8, false)]);
        assert_eq!((found.changes.len(), found.commits, found.cut_off), (2, 1, false));
    }
}
