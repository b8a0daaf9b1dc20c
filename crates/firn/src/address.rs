//! Addresses: what nearly every command works on.
//!
//! ```text
//! ADDRESS = TARGET [#SELECTOR]… [:PATH]
//! TARGET  = FILE[@SNAPSHOT][,FILE[@SNAPSHOT]]…     disk images of one machine
//!         | URI                                   nbd://…, qemu:…
//!         | MACHINE[@MOMENT]                      a snapshot in the pool
//! PATH    = /… | X:/…
//! ```
//! The longest prefix that is an existing file is an image, so that a file may have any name; only what is
//! left is taken apart. Where no prefix is a file, the path starts at the first `:/` or `:X:/`.
//!
//! Nothing is looked up here but whether a file exists, and that is asked of the caller.

use crate::when::Moment;
use firn_disk::{Error, Result};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// URIs that have no `//`. No machine can be addressed by one of these names and a path.
const SCHEMES: [&str; 12] =
    ["file", "qemu", "libvirt", "nbd", "btrfs", "zfs", "lvm", "rbd", "nas", "ebs", "command", "s3"];

/// What a command works on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Whose disks.
    pub target: Target,
    /// Which of their layers: selectors without their `#`, each inside the one before.
    pub selectors: Vec<String>,
    /// Which file: from `/` on, or from a drive letter on. File names are bytes.
    pub path: Option<OsString>,
}

/// Whose disks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Image files or block devices of one machine, in order.
    Images(Vec<Image>),
    /// A source that is named by a URI.
    Uri(String),
    /// A machine in the pool.
    Machine {
        /// Its name.
        name: String,
        /// Which snapshot of it, if that was said.
        moment: Option<Moment>,
    },
}

/// An image file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The file.
    pub file: PathBuf,
    /// The internal snapshot of it, by name or number.
    pub snapshot: Option<String>,
}

impl Address {
    /// Reads an address. `exists` says whether a path is that of a file or block device (not of a folder).
    ///
    /// # Errors
    /// `Invalid` when it does not follow the grammar; `NotFound` when it can only be a file that is not there.
    pub fn parse(text: &OsStr, exists: &dyn Fn(&Path) -> bool) -> Result<Self> {
        let bytes = text.as_bytes();
        let parsed = if bytes.is_empty() {
            Err(Error::invalid("it is empty"))
        } else if let Some(length) = image_length(bytes, exists) {
            Self::images(bytes, length, exists)
        } else if let Some(start) = uri_start(bytes) {
            Self::uri(bytes, start)
        } else {
            Self::machine(bytes)
        };
        parsed.map_err(|error| {
            error
                .in_structure(format!("address {:?}", text.to_string_lossy()))
                .hint("an address is an image file or a machine, as web1@latest, then #LAYER, then :/PATH")
        })
    }

    /// An address whose parts were given one by one and are taken as they are.
    pub fn from_parts(file: PathBuf, selectors: Vec<String>, path: Option<OsString>) -> Self {
        Self { target: Target::Images(vec![Image { file, snapshot: None }]), selectors, path }
    }

    fn images(mut bytes: &[u8], mut length: usize, exists: &dyn Fn(&Path) -> bool) -> Result<Self> {
        let mut images = Vec::new();
        loop {
            let (file, mut rest) = bytes.split_at_checked(length).unwrap_or((bytes, &[]));
            let mut snapshot = None;
            if let Some(after) = rest.strip_prefix(b"@") {
                let end = snapshot_length(after, exists);
                snapshot = Some(word(after.get(..end).unwrap_or_default(), "the snapshot's name")?);
                rest = after.get(end..).unwrap_or_default();
            }
            images.push(Image { file: to_path(file), snapshot });
            let Some(next) = rest.strip_prefix(b",") else {
                let (selectors, path) = tail(rest)?;
                return Ok(Self { target: Target::Images(images), selectors, path });
            };
            bytes = next;
            length = image_length(bytes, exists).ok_or_else(|| {
                let end = target_end(bytes);
                Error::not_found(format!("there is no file {}", to_path(bytes.get(..end).unwrap_or(bytes)).display()))
            })?;
        }
    }

    fn uri(bytes: &[u8], start: usize) -> Result<Self> {
        let end = start + target_end(bytes.get(start..).unwrap_or_default());
        let (uri, rest) = bytes.split_at_checked(end).unwrap_or((bytes, &[]));
        let (selectors, path) = tail(rest)?;
        Ok(Self { target: Target::Uri(word(uri, "the URI")?), selectors, path })
    }

    fn machine(bytes: &[u8]) -> Result<Self> {
        let end = target_end(bytes);
        let (target, rest) = bytes.split_at_checked(end).unwrap_or((bytes, &[]));
        let target = word(target, "the machine's name")?;
        let (name, moment) = match target.split_once('@') {
            Some((name, moment)) => (name, Some(moment)),
            None => (target.as_str(), None),
        };
        check_machine_name(name)?;
        let (selectors, path) = tail(rest)?;
        let moment = moment.map(Moment::parse).transpose()?;
        Ok(Self { target: Target::Machine { name: name.to_owned(), moment }, selectors, path })
    }
}

/// Whether `name` can be that of a machine: `[A-Za-z0-9][A-Za-z0-9._-]*`, without `..` in it.
///
/// # Errors
/// `Invalid`, or `NotFound` for what looks like a path.
pub fn check_machine_name(name: &str) -> Result<()> {
    if name.contains('/') {
        return Err(Error::not_found(format!("there is no file {name}")));
    }
    if let Some((machine, rest)) = name.split_once(':') {
        let what = format!("after {machine}: comes a path from / on, not {rest:?}");
        return Err(Error::invalid(what).hint(format!("write {machine}:/{rest}")));
    }
    let is_name = name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name.chars().all(|letter| letter.is_ascii_alphanumeric() || "._-".contains(letter))
        && !name.contains("..");
    if is_name {
        return Ok(());
    }
    Err(Error::invalid(format!("{name:?} is neither a file that exists nor the name of a machine"))
        .hint("a machine's name has letters, digits, dots, dashes and underscores, and begins with a letter or digit"))
}

/// How many bytes the longest prefix that is an existing file has. A prefix ends where a part could begin.
fn image_length(bytes: &[u8], exists: &dyn Fn(&Path) -> bool) -> Option<usize> {
    let ends = bytes.iter().enumerate().filter(|(_, byte)| b"@#:,".contains(byte)).map(|(at, _)| at);
    let mut ends: Vec<usize> = ends.chain([bytes.len()]).filter(|end| *end > 0).collect();
    ends.sort_unstable();
    ends.into_iter()
        .rev()
        .find(|end| bytes.get(..*end).is_some_and(|prefix| exists(Path::new(OsStr::from_bytes(prefix)))))
}

/// Where what a URI says begins, after `scheme:` or `scheme://`; `None` when it is no URI.
fn uri_start(bytes: &[u8]) -> Option<usize> {
    let colon = bytes.iter().position(|byte| *byte == b':')?;
    let scheme = std::str::from_utf8(bytes.get(..colon)?).ok()?;
    let is_scheme = scheme.starts_with(|first: char| first.is_ascii_lowercase())
        && scheme.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"+-.".contains(&byte));
    let has_slashes = bytes.get(colon + 1..)?.starts_with(b"//");
    if !is_scheme || !(has_slashes || SCHEMES.contains(&scheme)) {
        return None;
    }
    Some(if has_slashes { colon + 3 } else { colon + 1 })
}

/// Where the path's colon is: before `/`, or before a drive letter, a colon and `/`.
fn path_start(bytes: &[u8]) -> Option<usize> {
    (0..bytes.len()).find(|at| match bytes.get(*at..) {
        Some([b':', b'/', ..]) => true,
        Some([b':', letter, b':', b'/', ..]) => letter.is_ascii_alphabetic(),
        _ => false,
    })
}

/// Where selectors or the path begin.
fn target_end(bytes: &[u8]) -> usize {
    let path = path_start(bytes).unwrap_or(bytes.len());
    bytes.iter().position(|byte| *byte == b'#').unwrap_or(path).min(path)
}

/// Where the name of an internal snapshot ends: a comma belongs to it unless a file comes after.
fn snapshot_length(bytes: &[u8], exists: &dyn Fn(&Path) -> bool) -> usize {
    let end = target_end(bytes);
    let is_next = |at: &usize| {
        bytes.get(*at) == Some(&b',') && bytes.get(at + 1..).is_some_and(|next| image_length(next, exists).is_some())
    };
    (0..end).find(is_next).unwrap_or(end)
}

/// The selectors and the path that `bytes` consist of.
fn tail(mut bytes: &[u8]) -> Result<(Vec<String>, Option<OsString>)> {
    let mut selectors = Vec::new();
    while let Some(rest) = bytes.strip_prefix(b"#") {
        let end = target_end(rest);
        selectors.push(word(rest.get(..end).unwrap_or_default(), "the layer after #")?);
        bytes = rest.get(end..).unwrap_or_default();
    }
    match bytes {
        [] => Ok((selectors, None)),
        [b':', path @ ..] if path_start(bytes) == Some(0) => Ok((selectors, Some(OsString::from_vec(path.to_vec())))),
        [b':', path @ ..] => {
            let path = String::from_utf8_lossy(path);
            Err(Error::invalid(format!("a path begins with /, {path:?} does not")).hint(format!("write :/{path}")))
        }
        other => Err(Error::invalid(format!("{:?} belongs to nothing", String::from_utf8_lossy(other)))),
    }
}

fn word(bytes: &[u8], what: &str) -> Result<String> {
    match std::str::from_utf8(bytes) {
        Ok("") => Err(Error::invalid(format!("{what} is missing"))),
        Ok(text) => Ok(text.to_owned()),
        Err(_) => Err(Error::invalid(format!("{what} is not UTF-8"))),
    }
}

fn to_path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(bytes))
}

/// The address as it would be written, without the file's path.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.target {
            Target::Images(images) => {
                for (at, image) in images.iter().enumerate() {
                    write!(f, "{}{}", if at > 0 { "," } else { "" }, image.file.display())?;
                    image.snapshot.iter().try_for_each(|name| write!(f, "@{name}"))?;
                }
            }
            Target::Uri(uri) => f.write_str(uri)?,
            Target::Machine { name, moment } => {
                f.write_str(name)?;
                moment.iter().try_for_each(|moment| write!(f, "@{moment}"))?;
            }
        }
        self.selectors.iter().try_for_each(|selector| write!(f, "#{selector}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::when::Period;
    use firn_disk::ErrorKind;
    use firn_disk::testing::Random;

    const FILES: [&str; 9] = [
        "disk.vmdk",
        "disk.qcow2",
        "a.img",
        "b.img",
        "c,d.img",
        "odd@name#1:2.img",
        "/srv/vm/web1.raw",
        "win:/x",
        "web2",
    ];

    fn parse(text: &str) -> Result<Address> {
        Address::parse(OsStr::new(text), &|path| FILES.iter().any(|file| Path::new(file) == path))
    }

    fn image(file: &str, snapshot: Option<&str>) -> Image {
        Image { file: file.into(), snapshot: snapshot.map(Into::into) }
    }

    fn machine(name: &str, moment: Option<&str>) -> Target {
        Target::Machine { name: name.into(), moment: moment.map(|text| Moment::parse(text).unwrap()) }
    }

    #[track_caller]
    fn check(text: &str, target: Target, selectors: &[&str], path: Option<&str>) {
        let address = parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        let selectors = selectors.iter().map(|selector| (*selector).to_owned()).collect();
        assert_eq!(address, Address { target, selectors, path: path.map(Into::into) }, "{text}");
    }

    #[test]
    fn machines_and_moments() {
        check("web1", machine("web1", None), &[], None);
        check("web1@latest~2", machine("web1", Some("latest~2")), &[], None);
        check("web1@first#vda2:/boot", machine("web1", Some("first")), &["vda2"], Some("/boot"));
        check("web1@03:00:/etc/hosts", machine("web1", Some("03:00")), &[], Some("/etc/hosts"));
        check("web1@2026-11-17T03:00:00:C:/Users", machine("web1", Some("2026-11-17T03:00:00")), &[], Some("C:/Users"));
        check("web1@yesterday#vg0/root", machine("web1", Some("yesterday")), &["vg0/root"], None);
        check("web1:/a#b:/c@d", machine("web1", None), &[], Some("/a#b:/c@d"));
        check("C:/x", machine("C", None), &[], Some("/x"));
        let address = parse("web1@2026-11-17").unwrap();
        assert!(matches!(address.target, Target::Machine { moment: Some(Moment::UpTo(Period::Calendar { .. })), .. }));
    }

    #[test]
    fn images_by_the_longest_name_that_exists() {
        let one = |file, snapshot| Target::Images(vec![image(file, snapshot)]);
        check("disk.vmdk", one("disk.vmdk", None), &[], None);
        check("disk.qcow2@s1:/etc", one("disk.qcow2", Some("s1")), &[], Some("/etc"));
        check("disk.qcow2@a,b@c#vda", one("disk.qcow2", Some("a,b@c")), &["vda"], None);
        check("/srv/vm/web1.raw#vda1#vda2:/x", one("/srv/vm/web1.raw", None), &["vda1", "vda2"], Some("/x"));
        check("odd@name#1:2.img#md0", one("odd@name#1:2.img", None), &["md0"], None);
        check("win:/x", one("win:/x", None), &[], None);
        check("win:/x:/y", one("win:/x", None), &[], Some("/y"));
        check("c,d.img", one("c,d.img", None), &[], None);
        // A file wins over a machine of its name.
        check("web2", one("web2", None), &[], None);
        let list = |images: &[Image]| Target::Images(images.to_vec());
        check("a.img,b.img#vda", list(&[image("a.img", None), image("b.img", None)]), &["vda"], None);
        check(
            "a.img@s,1,b.img@t,c,d.img:/x",
            list(&[image("a.img", Some("s,1")), image("b.img", Some("t")), image("c,d.img", None)]),
            &[],
            Some("/x"),
        );
    }

    #[test]
    fn uris() {
        let uri = |text: &str| Target::Uri(text.into());
        check("nbd://host:10809/web1#vda2:/etc", uri("nbd://host:10809/web1"), &["vda2"], Some("/etc"));
        check("qemu:/run/vm.sock", uri("qemu:/run/vm.sock"), &[], None);
        check("file:/srv/x.img:/etc", uri("file:/srv/x.img"), &[], Some("/etc"));
        check("libvirt+ssh://host/web1", uri("libvirt+ssh://host/web1"), &[], None);
        check("lvm:vg0/root", uri("lvm:vg0/root"), &[], None);
    }

    #[test]
    fn file_names_are_bytes() {
        let address = Address::parse(OsStr::from_bytes(b"web1:/\xFF\xFE"), &|_| false).unwrap();
        assert_eq!(address.path.unwrap().as_bytes(), b"/\xFF\xFE");
        let address =
            Address::parse(OsStr::from_bytes(b"\xFF.img:/x"), &|path| path.as_os_str().as_bytes() == b"\xFF.img");
        assert!(matches!(address.unwrap().target, Target::Images(_)));
    }

    #[test]
    fn what_is_wrong_is_told_with_what_to_do() {
        for (text, kind, part) in [
            ("", ErrorKind::Invalid, "empty"),
            ("web1:etc", ErrorKind::Invalid, "from / on"),
            ("disk.vmdk:etc", ErrorKind::Invalid, "begins with /"),
            ("disk.vmdk:", ErrorKind::Invalid, "begins with /"),
            ("web1@", ErrorKind::Invalid, "@ names no snapshot"),
            ("web1@tuesday", ErrorKind::Invalid, "@tuesday"),
            ("web1#", ErrorKind::Invalid, "the layer after # is missing"),
            ("web1##vda", ErrorKind::Invalid, "the layer after # is missing"),
            ("disk.qcow2@", ErrorKind::Invalid, "the snapshot's name is missing"),
            ("./nothing.img", ErrorKind::NotFound, "there is no file ./nothing.img"),
            ("a.img,nothing.img:/x", ErrorKind::NotFound, "there is no file nothing.img"),
            ("nothing.img,a.img", ErrorKind::Invalid, "neither a file that exists"),
            ("..", ErrorKind::Invalid, "neither a file"),
            ("-x", ErrorKind::Invalid, "neither a file"),
            ("web..1", ErrorKind::Invalid, "neither a file"),
            ("wéb", ErrorKind::Invalid, "neither a file"),
            (":/etc", ErrorKind::Invalid, "is missing"),
        ] {
            let error = parse(text).expect_err(text);
            assert_eq!(error.kind(), kind, "{text}: {error}");
            assert!(error.to_string().contains(part) && error.next_step().is_some(), "{text}: {error}");
        }
    }

    #[test]
    fn nothing_panics_and_no_byte_gets_lost() {
        let pieces: [&[u8]; 14] = [
            b"web1", b"a.img", b"@", b"#", b":", b"/", b",", b"X:/", b"vda1", b"latest", b"\xFF", b"~2", b"03:00",
            b"nbd",
        ];
        let mut random = Random::new(5);
        for _ in 0..50_000 {
            let mut text = Vec::new();
            for _ in 0..random.below(9) {
                let at = usize::try_from(random.below(pieces.len() as u64)).unwrap();
                text.extend_from_slice(pieces[at]);
            }
            let exists = |path: &Path| path == Path::new("a.img") || path == Path::new("a.img,web1");
            let Ok(address) = Address::parse(OsStr::from_bytes(&text), &exists) else { continue };
            let Target::Images(_) = address.target else { continue };
            let mut again = address.to_string().into_bytes();
            if let Some(path) = &address.path {
                again.push(b':');
                again.extend_from_slice(path.as_bytes());
            }
            assert_eq!(again, text);
        }
    }
}
