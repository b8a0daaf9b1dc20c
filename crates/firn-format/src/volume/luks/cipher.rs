//! AES in XTS and CBC over sectors, as dm-crypt uses it.
//!
//! | name | initialisation vector of a sector |
//! |---|---|
//! | `aes-xts-plain64`, `aes-cbc-plain64` | its number, 64 bits little-endian |
//! | `aes-xts-plain`, `aes-cbc-plain` | the lower 32 bits of its number |
//! | `aes-cbc-essiv:sha256` | its number, encrypted under the hash of the key |
//!
//! The number counts sectors of 512 bytes whatever the sector size. Source: Linux, drivers/md/dm-crypt.c; IEEE 1619.

use super::key::Hash;
use aes::cipher::generic_array::GenericArray;
use aes::cipher::{BlockDecrypt, BlockEncrypt, KeyInit};
use aes::{Aes128, Aes192, Aes256, Block};
use firn_disk::{Disk, Error, Result, SharedDisk, check_range};

/// Bytes of a block of AES.
const BLOCK: usize = 16;
/// Blocks that are decrypted at once: enough for the processor to overlap them.
const BATCH: usize = 32;

enum Aes {
    Short(Aes128),
    Middle(Aes192),
    Long(Aes256),
}

impl Aes {
    fn new(key: &[u8]) -> Option<Self> {
        Some(match key.len() {
            16 => Self::Short(Aes128::new(GenericArray::from_slice(key))),
            24 => Self::Middle(Aes192::new(GenericArray::from_slice(key))),
            32 => Self::Long(Aes256::new(GenericArray::from_slice(key))),
            _ => return None,
        })
    }

    fn encrypt(&self, block: &mut Block) {
        match self {
            Self::Short(aes) => aes.encrypt_block(block),
            Self::Middle(aes) => aes.encrypt_block(block),
            Self::Long(aes) => aes.encrypt_block(block),
        }
    }

    fn decrypt(&self, blocks: &mut [Block]) {
        match self {
            Self::Short(aes) => aes.decrypt_blocks(blocks),
            Self::Middle(aes) => aes.decrypt_blocks(blocks),
            Self::Long(aes) => aes.decrypt_blocks(blocks),
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Width {
    Bits32,
    Bits64,
}

/// How a sector's number becomes its vector; in XTS always by the second half of the key.
enum Vector {
    Plain(Width),
    Essiv(Box<Aes>),
}

/// A cipher with its key.
pub(super) struct Cipher {
    data: Aes,
    vector: Vector,
    /// The key for tweaks, of XTS.
    tweak: Option<Aes>,
}

impl std::fmt::Debug for Cipher {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(if self.tweak.is_some() { "aes-xts" } else { "aes-cbc" })
    }
}

impl Cipher {
    /// The cipher called `name`, as `aes-xts-plain64`.
    ///
    /// # Errors
    /// `Unsupported` for another one; `Corrupt` when the key has the wrong length.
    pub(super) fn new(name: &str, key: &[u8]) -> Result<Self> {
        let unsupported = || Error::unsupported(format!("the cipher {} is not built yet", name.escape_debug()));
        let rest = name.strip_prefix("aes-").ok_or_else(unsupported)?;
        let (mode, vector) = rest.split_once('-').ok_or_else(unsupported)?;
        let wrong = || Error::corrupt(format!("{} with a key of {} bytes", name.escape_debug(), key.len()));
        let plain = match vector {
            "plain64" => Some(Vector::Plain(Width::Bits64)),
            "plain" => Some(Vector::Plain(Width::Bits32)),
            _ => None,
        };
        match (mode, plain) {
            ("xts", Some(vector)) => {
                let (data, tweak) = key.split_at(key.len() / 2);
                let pair = Aes::new(data).zip(Aes::new(tweak)).filter(|_| key.len().is_multiple_of(2));
                let (data, tweak) = pair.ok_or_else(wrong)?;
                Ok(Self { data, vector, tweak: Some(tweak) })
            }
            ("cbc", Some(vector)) => Ok(Self { data: Aes::new(key).ok_or_else(wrong)?, vector, tweak: None }),
            ("cbc", None) => {
                let hash = vector.strip_prefix("essiv:").ok_or_else(unsupported)?;
                let salted = Hash::of(hash)?.digest(&[key]);
                let vector = Vector::Essiv(Box::new(Aes::new(&salted).ok_or_else(unsupported)?));
                Ok(Self { data: Aes::new(key).ok_or_else(wrong)?, vector, tweak: None })
            }
            _ => Err(unsupported()),
        }
    }

    /// Decrypts a sector, whose length is a multiple of 16, in place. `number` counts sectors of 512 bytes.
    pub(super) fn decrypt(&self, sector: &mut [u8], number: u64) {
        let mut vector = Block::default();
        match &self.vector {
            Vector::Plain(Width::Bits64) | Vector::Essiv(_) => vector[..8].copy_from_slice(&number.to_le_bytes()),
            Vector::Plain(Width::Bits32) => vector[..4].copy_from_slice(&number.to_le_bytes()[..4]),
        }
        if let Vector::Essiv(aes) = &self.vector {
            aes.encrypt(&mut vector);
        }
        match &self.tweak {
            Some(tweak) => {
                tweak.encrypt(&mut vector);
                self.decrypt_xts(sector, u128::from_le_bytes(vector.into()));
            }
            None => self.decrypt_cbc(sector, vector),
        }
    }

    fn decrypt_xts(&self, sector: &mut [u8], mut tweak: u128) {
        let mut blocks = [Block::default(); BATCH];
        let mut tweaks = [0_u128; BATCH];
        for piece in sector.chunks_mut(BATCH * BLOCK) {
            let count = piece.len() / BLOCK;
            for ((bytes, block), own) in piece.chunks_exact(BLOCK).zip(&mut blocks).zip(&mut tweaks) {
                *own = tweak;
                *block = mixed(bytes, tweak);
                // Times x in GF(2^128).
                tweak = (tweak << 1) ^ if tweak >> 127 == 1 { 0x87 } else { 0 };
            }
            self.data.decrypt(&mut blocks[..count]);
            for ((bytes, block), own) in piece.chunks_exact_mut(BLOCK).zip(&blocks).zip(&tweaks) {
                bytes.copy_from_slice(&mixed(block, *own));
            }
        }
    }

    fn decrypt_cbc(&self, sector: &mut [u8], mut before: Block) {
        let mut blocks = [Block::default(); BATCH];
        for piece in sector.chunks_mut(BATCH * BLOCK) {
            let count = piece.len() / BLOCK;
            for (bytes, block) in piece.chunks_exact(BLOCK).zip(&mut blocks) {
                block.copy_from_slice(bytes);
            }
            self.data.decrypt(&mut blocks[..count]);
            for (bytes, block) in piece.chunks_exact_mut(BLOCK).zip(&blocks) {
                let clear = mixed(block, u128::from_le_bytes(before.into()));
                before.copy_from_slice(bytes);
                bytes.copy_from_slice(&clear);
            }
        }
    }
}

/// A block with a mask over it.
fn mixed(bytes: &[u8], mask: u128) -> Block {
    let mut block = Block::default();
    block.copy_from_slice(bytes);
    (u128::from_le_bytes(block.into()) ^ mask).to_le_bytes().into()
}

/// A decrypted disk.
#[derive(Debug)]
pub struct Crypt {
    below: SharedDisk,
    start: u64,
    length: u64,
    sector_bytes: u64,
    first_sector: u64,
    cipher: Cipher,
}

impl Crypt {
    pub(super) fn new(
        below: SharedDisk,
        start: u64,
        length: u64,
        sector_bytes: u64,
        first_sector: u64,
        cipher: Cipher,
    ) -> Self {
        // What is left at the end is too short to be encrypted.
        let length = length - length % sector_bytes;
        Self { below, start, length, sector_bytes, first_sector, cipher }
    }

    /// Fills `buf` with whole sectors from `offset` on.
    fn read_sectors(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.below.read_at(buf, self.start.saturating_add(offset))?;
        let size = usize::try_from(self.sector_bytes).unwrap_or(BLOCK);
        let first = self.first_sector.wrapping_add(offset / 512);
        for (number, sector) in (0_u64..).zip(buf.chunks_mut(size)) {
            self.cipher.decrypt(sector, first.wrapping_add(number.wrapping_mul(self.sector_bytes / 512)));
        }
        Ok(())
    }
}

impl Disk for Crypt {
    fn len(&self) -> u64 {
        self.length
    }

    fn logical_block_size(&self) -> u32 {
        // As dm-crypt's device: sectors of 4096 bytes are not read in parts there.
        if self.sector_bytes == 4096 { 4096 } else { self.below.logical_block_size() }
    }

    fn read_at(&self, mut buf: &mut [u8], mut offset: u64) -> Result<()> {
        check_range(offset, buf.len() as u64, self.length)?;
        let mut sector = zeroize::Zeroizing::new([0; 4096]);
        let size = usize::try_from(self.sector_bytes).unwrap_or(0);
        while !buf.is_empty() {
            let within = usize::try_from(offset % self.sector_bytes).unwrap_or(0);
            let whole = buf.len() - buf.len() % size.max(1);
            let count = if within == 0 && whole > 0 { whole } else { (size - within).min(buf.len()) };
            let (now, later) = buf.split_at_mut(count);
            if within == 0 && whole > 0 {
                self.read_sectors(now, offset)?;
            } else {
                let own = &mut sector[..size];
                self.read_sectors(own, offset - within as u64)?;
                now.copy_from_slice(&own[within..within + count]);
            }
            buf = later;
            offset += count as u64;
        }
        Ok(())
    }
}
