//! [`Address`]: the URI of a machine that QEMU runs.
//!
//! ```text
//!   qemu:QMP-SOCKET[?agent=SOCKET][&images=PATH,PATH...][&cut=filter|backup][&disk=PATH]
//! ```
//! `images` picks disks by their files, all where it is missing, and says where they are when the machine is off. `disk`
//! tells in a snapshot which of the machine's disks one is, and picks nothing. Paths may contain `%XX`; `%`, `?`, `&` and
//! `,` have to be written so.

use firn_disk::{Error, Result};
use std::ffi::OsString;
use std::fmt::Write;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// How the instant is kept while it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// A copy-before-write filter that gives the snapshot up rather than hold the guest back: QEMU 7.1 on.
    Filter,
    /// A backup job, whose scratch must never be full: before that.
    Backup,
}

/// A machine's monitor, and what is said beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) socket: PathBuf,
    pub(super) agent: Option<PathBuf>,
    pub(super) images: Vec<PathBuf>,
    pub(super) way: Option<Way>,
}

impl Address {
    /// Paths become absolute.
    ///
    /// # Errors
    /// `Invalid` when it is no such URI.
    pub(super) fn parse(uri: &str) -> Result<Self> {
        let bad = |message: String| {
            Error::invalid(format!("{uri}: {message}"))
                .hint("it has to look like qemu:/run/vm/qmp.sock?agent=/run/vm/ga.sock")
        };
        let rest = uri.strip_prefix("qemu:").ok_or_else(|| bad("not a qemu URI".to_owned()))?;
        let (socket, query) = rest.split_once('?').unwrap_or((rest, ""));
        let path = |text: &str| {
            let bytes = decode(text).ok_or_else(|| bad(format!("{text} has a % without two hexadecimal digits")))?;
            let path = PathBuf::from(OsString::from_vec(bytes));
            std::path::absolute(&path).map_err(|error| bad(format!("{text} is no path: {error}")))
        };
        let mut address = Self { socket: path(socket)?, agent: None, images: Vec::new(), way: None };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=').unwrap_or((pair, "")) {
                ("agent", value) => address.agent = Some(path(value)?),
                ("images", value) => address.images = value.split(',').map(path).collect::<Result<_>>()?,
                ("disk", _) => {}
                ("cut", "filter") => address.way = Some(Way::Filter),
                ("cut", "backup") => address.way = Some(Way::Backup),
                ("cut", other) => return Err(bad(format!("cut is filter or backup, not {other}"))),
                (other, _) => return Err(bad(format!("{other} is not known; agent, images and cut are"))),
            }
        }
        Ok(address)
    }

    /// The URI of one disk of this machine, by its file: that of the machine, and which of its disks it is.
    pub(super) fn of_disk(&self, file: &str) -> String {
        let uri = self.to_uri();
        let joint = if uri.contains('?') { '&' } else { '?' };
        format!("{uri}{joint}disk={}", encode(Path::new(file)))
    }

    /// The URI of the machine.
    pub(super) fn to_uri(&self) -> String {
        let mut uri = format!("qemu:{}", encode(&self.socket));
        let mut query = Vec::new();
        query.extend(self.agent.as_ref().map(|agent| format!("agent={}", encode(agent))));
        if !self.images.is_empty() {
            query.push(format!(
                "images={}",
                self.images.iter().map(|image| encode(image)).collect::<Vec<_>>().join(",")
            ));
        }
        query.extend(self.way.map(|way| format!("cut={}", if way == Way::Filter { "filter" } else { "backup" })));
        if !query.is_empty() {
            uri.push('?');
            uri.push_str(&query.join("&"));
        }
        uri
    }
}

/// The file that the URI of a disk names, as [`Address::of_disk`] makes it.
pub(super) fn file_of_disk(uri: &str) -> Option<String> {
    let (_, query) = uri.strip_prefix("qemu:")?.split_once('?')?;
    let file = query.split('&').find_map(|pair| pair.strip_prefix("disk="))?;
    String::from_utf8(decode(file)?).ok()
}

fn encode(path: &Path) -> String {
    let mut text = String::new();
    for character in path.as_os_str().as_bytes().utf8_chunks() {
        for part in character.valid().chars() {
            match part {
                '%' | '?' | '&' | ',' | '#' => {
                    let _ = write!(text, "%{:02X}", u32::from(part));
                }
                _ => text.push(part),
            }
        }
        for byte in character.invalid() {
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digits = std::str::from_utf8(after.get(..2)?).ok().filter(|digits| !digits.contains('+'))?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = after.get(2..)?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        let uri = "qemu:/run/a%3Fb.sock?agent=/run/ga.sock&images=/x%2C1,/y&cut=backup";
        let address = Address::parse(uri).unwrap();
        assert_eq!(address.socket, Path::new("/run/a?b.sock"));
        assert_eq!(address.images, [Path::new("/x,1"), Path::new("/y")]);
        assert_eq!(address.to_uri(), uri);
        let disk = address.of_disk("json:{\"driver\":\"nbd\",\"x\":1}");
        assert_eq!(file_of_disk(&disk).unwrap(), "json:{\"driver\":\"nbd\",\"x\":1}");
        assert_eq!(Address::parse(&disk).unwrap(), address);
        assert!(Address::parse("qemu:q.sock").unwrap().socket.is_absolute());
        for wrong in ["qemu:", "qemu:/a%zz", "qemu:/a%4", "qemu:/a?x=1", "qemu:/a?cut=no", "nbd:/a"] {
            assert!(Address::parse(wrong).is_err(), "{wrong}");
        }
    }
}
