//! Where random bytes come from: keys, salts and names of objects.

use firn_disk::{Error, ErrorKind, Result};
use ring::rand::{SecureRandom, SystemRandom};
use std::fmt::Debug;

/// A source of random bytes that nobody can guess. Tests pass a seeded one.
pub trait Entropy: Debug + Send + Sync {
    /// Fills `buf`.
    ///
    /// # Errors
    /// `Unavailable` when the system has none to give.
    fn fill(&self, buf: &mut [u8]) -> Result<()>;
}

/// The operating system's generator.
#[derive(Debug, Default, Clone, Copy)]
pub struct SystemEntropy;

impl Entropy for SystemEntropy {
    fn fill(&self, buf: &mut [u8]) -> Result<()> {
        SystemRandom::new()
            .fill(buf)
            .map_err(|_| Error::new(ErrorKind::Unavailable, "the system's random generator gave nothing"))
    }
}

/// `N` random bytes.
pub(crate) fn random_bytes<const N: usize>(entropy: &dyn Entropy) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    entropy.fill(&mut bytes)?;
    Ok(bytes)
}

/// A random (version 4) UUID.
pub(crate) fn random_uuid(entropy: &dyn Entropy) -> Result<uuid::Uuid> {
    Ok(uuid::Builder::from_random_bytes(random_bytes(entropy)?).into_uuid())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use firn_disk::testing::Random;
    use std::sync::Mutex;

    /// Repeatable bytes for tests.
    #[derive(Debug)]
    pub(crate) struct SeededEntropy(Mutex<Random>);

    impl SeededEntropy {
        pub(crate) fn new(seed: u64) -> Self {
            Self(Mutex::new(Random::new(seed)))
        }
    }

    impl Entropy for SeededEntropy {
        fn fill(&self, buf: &mut [u8]) -> Result<()> {
            self.0.lock().unwrap().fill(buf);
            Ok(())
        }
    }

    #[test]
    fn the_system_gives_different_bytes_each_time() {
        let a: [u8; 32] = random_bytes(&SystemEntropy).unwrap();
        let b: [u8; 32] = random_bytes(&SystemEntropy).unwrap();
        assert_ne!(a, b);
        assert_eq!(random_uuid(&SystemEntropy).unwrap().get_version_num(), 4);
    }
}
