//! The kernel's keyring of the user: where a pool's key lies for a time after `firn login` (keyrings(7)).
//!
//! ```text
//!   @u, the user's keyring ── user key "firn:<key domain's UUID>" = what `firn key export` writes
//! ```
//! The kernel forgets it when its time is over. Every process of the user may read it meanwhile, as root may.

use firn_disk::{Error, ErrorKind, Result};
use linux_keyutils::{Key, KeyError, KeyPermissionsBuilder, KeyRing, KeyRingIdentifier, Permission};
use std::time::Duration;
use uuid::Uuid;
use zeroize::Zeroizing;

fn description(domain: Uuid) -> String {
    format!("firn:{domain}")
}

fn ring() -> Result<KeyRing, KeyError> {
    KeyRing::from_special_id(KeyRingIdentifier::User, true)
}

fn find(domain: Uuid) -> Option<Key> {
    ring().and_then(|ring| ring.search(&description(domain))).ok()
}

/// Keeps `secret` for `time`, which replaces what was kept for this key domain.
///
/// # Errors
/// `Unavailable` when the kernel has no keyring for us, or no room in it.
pub fn keep(domain: Uuid, secret: &str, time: Duration) -> Result<()> {
    let seconds = usize::try_from(time.as_secs()).unwrap_or(usize::MAX);
    let keep = || {
        let ring = ring()?;
        // An old one may have no time left between these steps; a new one of the same name replaces it.
        let key = ring.add_key(&description(domain), secret)?;
        let kept = key.set_timeout(seconds).and_then(|()| {
            let may =
                Permission::VIEW | Permission::READ | Permission::WRITE | Permission::SEARCH | Permission::SETATTR;
            key.set_perms(KeyPermissionsBuilder::builder().posessor(Permission::ALL).user(may).build())
        });
        if kept.is_err() {
            // Better none than one that stays.
            let _ = key.invalidate();
        }
        kept
    };
    keep().map_err(|error| {
        Error::new(ErrorKind::Unavailable, format!("the kernel's keyring does not take the key: {error}"))
            .hint("use --password-file or --key-file instead")
    })
}

/// What is kept for this key domain, if anything is.
pub fn get(domain: Uuid) -> Option<Zeroizing<Vec<u8>>> {
    find(domain)?.read_to_vec().ok().map(Zeroizing::new)
}

/// Forgets what is kept for this key domain; answers whether there was something.
///
/// # Errors
/// `Unavailable` when the kernel does not let it go.
pub fn forget(domain: Uuid) -> Result<bool> {
    let Some(key) = find(domain) else { return Ok(false) };
    let gone = key.revoke().and_then(|()| ring()?.unlink_key(key));
    gone.map(|()| true).map_err(|error| {
        Error::new(ErrorKind::Unavailable, format!("the kernel's keyring does not let go of the key: {error}"))
    })
}
