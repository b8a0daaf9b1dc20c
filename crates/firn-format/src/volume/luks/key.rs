//! From what people bring to the key of a slot, and from stripes to the volume key.

use firn_disk::{Error, Result};
use ring::{digest, pbkdf2};
use std::num::NonZeroU32;
use std::sync::Arc;
use zeroize::Zeroizing;

/// Most keys that are tried.
const MAX_KEYS: usize = 64;
/// Most memory that a slot may take unless another limit is set: what cryptsetup makes at most by itself.
const MEMORY_LIMIT: u64 = 1 << 30;
/// Most iterations of PBKDF2, some minutes.
const MAX_ITERATIONS: u32 = 200_000_000;
/// Most bytes that Argon2 goes over in all its passes.
const MAX_ARGON2_WORK: u64 = 256 << 30;
/// Most stripes of a split key; cryptsetup makes 4000.
const MAX_STRIPES: u64 = 16_384;
/// Most bytes of a key.
pub(super) const MAX_KEY: usize = 512;

/// Passphrases and key files to try on every container. They are wiped when the last clone is dropped.
#[derive(Clone)]
pub struct Keys {
    candidates: Arc<Vec<Zeroizing<Vec<u8>>>>,
    memory_limit: u64,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} keys", self.candidates.len())
    }
}

impl Default for Keys {
    fn default() -> Self {
        Self { candidates: Arc::default(), memory_limit: MEMORY_LIMIT }
    }
}

impl Keys {
    /// These, of which the first 64 count: passphrases without a line's end, key files as they are.
    pub fn new(mut candidates: Vec<Zeroizing<Vec<u8>>>) -> Self {
        candidates.truncate(MAX_KEYS);
        Self { candidates: Arc::new(candidates), ..Self::default() }
    }

    /// Slots that take more memory than `bytes` are refused; 1 GiB unless changed.
    #[must_use]
    pub fn with_memory_limit(self, bytes: u64) -> Self {
        Self { memory_limit: bytes, ..self }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.candidates.is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.candidates.iter().map(|key| key.as_slice())
    }
}

/// A hash function of key slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hash {
    Sha1,
    Sha256,
    Sha384,
    Sha512,
}

impl Hash {
    /// The one called `name`.
    ///
    /// # Errors
    /// `Unsupported` for others.
    pub(super) fn of(name: &str) -> Result<Self> {
        match name {
            "sha1" => Ok(Self::Sha1),
            "sha256" => Ok(Self::Sha256),
            "sha384" => Ok(Self::Sha384),
            "sha512" => Ok(Self::Sha512),
            _ => Err(Error::unsupported(format!("the hash {} is not built yet", name.escape_debug()))),
        }
    }

    fn algorithm(self) -> &'static digest::Algorithm {
        match self {
            Self::Sha1 => &digest::SHA1_FOR_LEGACY_USE_ONLY,
            Self::Sha256 => &digest::SHA256,
            Self::Sha384 => &digest::SHA384,
            Self::Sha512 => &digest::SHA512,
        }
    }

    /// The hash of all pieces, one after the other.
    pub(super) fn digest(self, pieces: &[&[u8]]) -> Zeroizing<Vec<u8>> {
        let mut context = digest::Context::new(self.algorithm());
        pieces.iter().for_each(|piece| context.update(piece));
        Zeroizing::new(context.finish().as_ref().to_vec())
    }
}

/// How a key is made from a passphrase.
#[derive(Debug, Clone)]
pub(super) enum Kdf {
    Pbkdf2 { hash: Hash, iterations: u32, salt: Vec<u8> },
    Argon2 { is_hybrid: bool, passes: u32, memory_kib: u32, lanes: u32, salt: Vec<u8> },
}

impl Kdf {
    /// A key of `length` bytes from `secret`.
    ///
    /// # Errors
    /// `Unsupported` when it takes more time or memory than allowed; `Corrupt` when the parameters make no sense.
    pub(super) fn derive(&self, secret: &[u8], length: usize, keys: &Keys) -> Result<Zeroizing<Vec<u8>>> {
        if length == 0 || length > MAX_KEY {
            return Err(Error::corrupt(format!("a key of {length} bytes")));
        }
        let mut key = Zeroizing::new(vec![0; length]);
        match self {
            Self::Pbkdf2 { hash, iterations, salt } => {
                let none = || Error::corrupt("a key slot has no iterations");
                let iterations = NonZeroU32::new(*iterations).ok_or_else(none)?;
                if iterations.get() > MAX_ITERATIONS {
                    return Err(Error::unsupported(format!("{iterations} iterations take too long")));
                }
                let algorithm = match hash {
                    Hash::Sha1 => pbkdf2::PBKDF2_HMAC_SHA1,
                    Hash::Sha256 => pbkdf2::PBKDF2_HMAC_SHA256,
                    Hash::Sha384 => pbkdf2::PBKDF2_HMAC_SHA384,
                    Hash::Sha512 => pbkdf2::PBKDF2_HMAC_SHA512,
                };
                pbkdf2::derive(algorithm, iterations, salt, secret, &mut key);
            }
            Self::Argon2 { is_hybrid, passes, memory_kib, lanes, salt } => {
                let memory = u64::from(*memory_kib) << 10;
                if memory > keys.memory_limit {
                    let what = format!("it takes {memory} bytes of memory, the limit is {}", keys.memory_limit);
                    return Err(Error::unsupported(what));
                }
                if memory.saturating_mul((*passes).into()) > MAX_ARGON2_WORK {
                    return Err(Error::unsupported(format!("{passes} passes over {memory} bytes take too long")));
                }
                let odd = |error: argon2::Error| Error::corrupt(format!("Argon2: {error}"));
                let params = argon2::Params::new(*memory_kib, *passes, *lanes, Some(length)).map_err(odd)?;
                let kind = if *is_hybrid { argon2::Algorithm::Argon2id } else { argon2::Algorithm::Argon2i };
                let argon2 = argon2::Argon2::new(kind, argon2::Version::V0x13, params);
                argon2.hash_password_into(secret, salt, &mut key).map_err(odd)?;
            }
        }
        Ok(key)
    }
}

/// How a key is spread over stripes, all of which it takes to have it (*anti-forensic splitter*).
#[derive(Debug, Clone, Copy)]
pub(super) struct Splitter {
    pub(super) hash: Hash,
    pub(super) stripes: u64,
}

impl Splitter {
    /// Bytes of all stripes of a key.
    ///
    /// # Errors
    /// `Corrupt` when that makes no sense.
    pub(super) fn bytes(self, key_bytes: usize) -> Result<u64> {
        if self.stripes == 0 || self.stripes > MAX_STRIPES || key_bytes == 0 || key_bytes > MAX_KEY {
            return Err(Error::corrupt(format!("{} stripes of a key of {key_bytes} bytes", self.stripes)));
        }
        Ok(self.stripes * key_bytes as u64)
    }

    /// The key from its stripes.
    ///
    /// # Errors
    /// As [`bytes`](Self::bytes).
    pub(super) fn merge(self, material: &[u8], key_bytes: usize) -> Result<Zeroizing<Vec<u8>>> {
        let length = usize::try_from(self.bytes(key_bytes)?).unwrap_or(usize::MAX);
        let stripes = material.get(..length).ok_or_else(|| Error::corrupt("key material is too short"))?;
        let mut sum = Zeroizing::new(vec![0; key_bytes]);
        for (number, stripe) in (1..).zip(stripes.chunks_exact(key_bytes)) {
            sum.iter_mut().zip(stripe).for_each(|(sum, byte)| *sum ^= byte);
            if number < self.stripes {
                self.diffuse(&mut sum);
            }
        }
        Ok(sum)
    }

    /// Each piece of the hash's length becomes the hash of its number and itself.
    fn diffuse(self, bytes: &mut [u8]) {
        let size = self.hash.algorithm().output_len();
        for (number, piece) in (0_u32..).zip(bytes.chunks_mut(size)) {
            let hashed = self.hash.digest(&[&number.to_be_bytes(), piece]);
            piece.iter_mut().zip(hashed.iter()).for_each(|(byte, hashed)| *byte = *hashed);
        }
    }
}
