//! [`Uri`]: where an export lies.
//!
//! ```text
//!   nbd://HOST[:PORT]/EXPORT              nbds://…        TCP, port 10809 if none is named; [::1] for IPv6
//!   nbd+unix:///EXPORT?socket=PATH        nbds+unix://…   a Unix socket; %00 first for an abstract one
//!   …?tls-hostname=NAME&tls-certificates=FOLDER           for the schemes with an s, which insist on TLS
//! ```
//!
//! The path without its first slash, percent-decoded, is the name of the export. Parameters that are not known are
//! refused, as are those that would weaken TLS.

use firn_disk::{Error, Result};
use std::fmt;
use std::path::PathBuf;

/// The port that IANA gave to NBD.
const DEFAULT_PORT: u16 = 10809;
/// The protocol's own limit for a string, in bytes.
const MAX_NAME_BYTES: usize = 4096;
/// Longer than any URI of use.
const MAX_URI_BYTES: usize = 32 << 10;

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// Host name or IP address (IPv6 without brackets), and port.
    Tcp {
        /// The host's name or address.
        host: String,
        /// The port.
        port: u16,
    },
    /// A Unix socket; a first byte of 0 means Linux's abstract namespace.
    Unix(PathBuf),
}

/// A parsed NBD URI.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Uri {
    /// Where the server listens.
    pub address: Address,
    /// The name of the export; empty for the server's default one.
    pub export: String,
    /// Whether the connection has to be encrypted.
    pub tls: bool,
    /// The name that the server's certificate must be for.
    pub tls_hostname: Option<String>,
    /// The folder of the certificates.
    pub tls_certificates: Option<PathBuf>,
}

impl Uri {
    /// An export behind a Unix socket, without TLS.
    pub fn unix(socket: impl Into<PathBuf>, export: impl Into<String>) -> Self {
        Self {
            address: Address::Unix(socket.into()),
            export: export.into(),
            tls: false,
            tls_hostname: None,
            tls_certificates: None,
        }
    }

    /// Reads `text`.
    ///
    /// # Errors
    /// `Invalid` for what is no NBD URI; `Unsupported` for one that asks for something which firn does not do (VSOCK, SSH,
    /// TLS by pre-shared key).
    pub fn parse(text: &str) -> Result<Self> {
        parse(text).map_err(|error| error.in_structure(format!("NBD URI {}", text.escape_debug())))
    }
}

impl std::str::FromStr for Uri {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text)
    }
}

impl fmt::Display for Uri {
    /// The URI again, in one spelling.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secure = if self.tls { "s" } else { "" };
        let mut parameters = Vec::new();
        match &self.address {
            Address::Tcp { host, port } => {
                let host = if host.contains(':') { format!("[{}]", encode(host)) } else { encode_host(host) };
                write!(f, "nbd{secure}://{host}")?;
                if *port != DEFAULT_PORT {
                    write!(f, ":{port}")?;
                }
            }
            Address::Unix(path) => {
                write!(f, "nbd{secure}+unix://")?;
                parameters.push(format!("socket={}", encode(&path.to_string_lossy())));
            }
        }
        write!(f, "/{}", encode(&self.export))?;
        if let Some(name) = &self.tls_hostname {
            parameters.push(format!("tls-hostname={}", encode(name)));
        }
        if let Some(folder) = &self.tls_certificates {
            parameters.push(format!("tls-certificates={}", encode(&folder.to_string_lossy())));
        }
        if parameters.is_empty() { Ok(()) } else { write!(f, "?{}", parameters.join("&")) }
    }
}

fn parse(text: &str) -> Result<Uri> {
    if text.len() > MAX_URI_BYTES {
        return Err(Error::invalid("too long"));
    }
    let (scheme, rest) = text.split_once(':').ok_or_else(|| Error::invalid("no scheme, as nbd://"))?;
    let (unix, tls) = match scheme.to_ascii_lowercase().as_str() {
        "nbd" => (false, false),
        "nbds" => (false, true),
        "nbd+unix" => (true, false),
        "nbds+unix" => (true, true),
        "nbd+vsock" | "nbds+vsock" | "nbd+ssh" | "nbds+ssh" => {
            return Err(Error::unsupported(format!("the transport of {scheme}:")));
        }
        _ => return Err(Error::invalid(format!("the scheme {scheme} is not one of nbd, nbds, nbd+unix, nbds+unix"))),
    };
    let rest = rest.strip_prefix("//").ok_or_else(|| Error::invalid(format!("// must follow {scheme}:")))?;
    let rest = rest.split_once('#').map_or(rest, |(before, _)| before);
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let export = decode(path)?;
    if export.len() > MAX_NAME_BYTES || export.contains('\0') {
        return Err(Error::invalid("the export's name is longer than 4096 bytes or has a NUL in it"));
    }
    let query = Query::parse(query)?;
    let address = match (unix, query.socket) {
        (true, Some(socket)) if authority.is_empty() => Address::Unix(socket),
        (true, Some(_)) => {
            return Err(Error::invalid("a Unix socket has no host").hint("write three slashes: nbd+unix:///"));
        }
        (true, None) => return Err(Error::invalid("no socket is named").hint("add ?socket=PATH")),
        (false, Some(_)) => return Err(Error::invalid("socket= is for nbd+unix: and nbds+unix:")),
        (false, None) => parse_authority(authority)?,
    };
    Ok(Uri { address, export, tls, tls_hostname: query.hostname, tls_certificates: query.certificates })
}

#[derive(Default)]
struct Query {
    socket: Option<PathBuf>,
    hostname: Option<String>,
    certificates: Option<PathBuf>,
}

impl Query {
    fn parse(text: &str) -> Result<Self> {
        let mut query = Self::default();
        for parameter in text.split(['&', ';']).filter(|parameter| !parameter.is_empty()) {
            let (key, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            let value = decode(value)?;
            let given = |value: String| {
                if value.is_empty() { Err(Error::invalid(format!("{key}= has no value"))) } else { Ok(value) }
            };
            match key.to_ascii_lowercase().as_str() {
                "socket" => query.socket = Some(given(value)?.into()),
                "tls-hostname" => query.hostname = Some(given(value)?),
                "tls-certificates" => query.certificates = Some(given(value)?.into()),
                "tls-type" if value.eq_ignore_ascii_case("x509") => {}
                "tls-verify-peer" if value == "1" || value.eq_ignore_ascii_case("true") => {}
                "tls-type" | "tls-psk-file" | "tls-username" | "tls-priority" | "tls-verify-peer" => {
                    return Err(Error::unsupported(format!("{key}={value}"))
                        .hint("firn does TLS by certificates, and always verifies the server's"));
                }
                _ => return Err(Error::invalid(format!("the parameter {key} is not known"))),
            }
        }
        Ok(query)
    }
}

fn parse_authority(authority: &str) -> Result<Address> {
    if authority.contains('@') {
        return Err(Error::unsupported("a user name").hint("firn does TLS by certificates"));
    }
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (host, after) = rest.split_once(']').ok_or_else(|| Error::invalid("no ] after the IPv6 address"))?;
        // A zone may follow, as in fe80::1%25eth0.
        let host = decode(host)?;
        let bare = host.split_once('%').map_or(host.as_str(), |(bare, _)| bare);
        if bare.parse::<std::net::Ipv6Addr>().is_err() {
            return Err(Error::invalid(format!("{host} is no IPv6 address")));
        }
        let port = match after {
            "" => None,
            _ => Some(after.strip_prefix(':').ok_or_else(|| Error::invalid("only :PORT may follow the ]"))?),
        };
        (host, port)
    } else {
        let (host, port) = authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port)));
        (decode(host)?, port)
    };
    // Without a host it is this machine, as for libnbd.
    let host = if host.is_empty() { "localhost".to_owned() } else { host };
    let port = match port {
        None | Some("") => DEFAULT_PORT,
        Some(text) => match text.parse::<u16>() {
            Ok(port) if port != 0 && text.bytes().all(|byte| byte.is_ascii_digit()) => port,
            _ => return Err(Error::invalid(format!("{text} is no port"))),
        },
    };
    Ok(Address::Tcp { host, port })
}

fn decode(text: &str) -> Result<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16));
        let (Some(high), Some(low)) = (digit(rest.next()), digit(rest.next())) else {
            return Err(Error::invalid("two hexadecimal digits must follow each %"));
        };
        bytes.push(u8::try_from(high * 16 + low).unwrap_or(0));
    }
    String::from_utf8(bytes).map_err(|_| Error::invalid("not UTF-8 after decoding"))
}

/// As [`encode`], without what would end a host.
fn encode_host(text: &str) -> String {
    encode(text).replace('/', "%2F").replace('@', "%40")
}

fn encode(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' | b':' | b'@' => {
                encoded.push(char::from(byte));
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;
    use firn_disk::ErrorKind;
    use firn_disk::testing::Random;

    fn tcp(host: &str, port: u16) -> Address {
        Address::Tcp { host: host.to_owned(), port }
    }

    #[test]
    fn the_specification_s_examples() {
        for (text, address, export) in [
            ("nbd://example.com:10809/export", tcp("example.com", 10809), "export"),
            ("nbd://example.com/disk", tcp("example.com", 10809), "disk"),
            ("nbd+unix:///disk?socket=sock", Address::Unix("sock".into()), "disk"),
            ("nbd://example.com/", tcp("example.com", 10809), ""),
            ("nbd://example.com", tcp("example.com", 10809), ""),
            ("nbd://example.com//disk", tcp("example.com", 10809), "/disk"),
            ("nbd://example.com/hello%20world", tcp("example.com", 10809), "hello world"),
            ("nbd+unix:///?socket=%00/abstract", Address::Unix("\0/abstract".into()), ""),
            ("NBD://[::1]:99/%C3%A4", tcp("::1", 99), "ä"),
            ("nbd://[fe80::1%25eth0]", tcp("fe80::1%eth0", 10809), ""),
            ("nbd://", tcp("localhost", 10809), ""),
        ] {
            let uri = Uri::parse(text).unwrap();
            assert_eq!((&uri.address, uri.export.as_str(), uri.tls), (&address, export, false), "{text}");
            assert_eq!(Uri::parse(&uri.to_string()).unwrap(), uri, "{text}");
        }
        let uri =
            Uri::parse("nbds+unix:///a?tls-hostname=h&tls-certificates=/c%26d&socket=/s&tls-verify-peer=1").unwrap();
        assert!(uri.tls);
        assert_eq!(uri.tls_hostname.as_deref(), Some("h"));
        assert_eq!(uri.tls_certificates, Some("/c&d".into()));
        assert_eq!(Uri::parse(&uri.to_string()).unwrap(), uri);
    }

    #[test]
    fn what_is_wrong_is_refused() {
        for text in [
            "",
            "nbd",
            "nbd:",
            "nbd:/x",
            "http://x/",
            "nbd://h:0/",
            "nbd://h:65536/",
            "nbd://h:+1/",
            "nbd://h:1:2/",
            "nbd://[::1",
            "nbd://[::1]x",
            "nbd://[localhost]",
            "nbd://h/%",
            "nbd://h/%zz",
            "nbd://h/%ff",
            "nbd://h/%00",
            "nbd+unix:///x",
            "nbd+unix://h/x?socket=/s",
            "nbd://h/?socket=/s",
            "nbd://h/?mystery=1",
            "nbds+unix:///?socket=",
        ] {
            assert_eq!(Uri::parse(text).unwrap_err().kind(), ErrorKind::Invalid, "{text}");
        }
        for text in [
            "nbd+vsock://1/",
            "nbds://h/?tls-verify-peer=0",
            "nbds://h/?tls-psk-file=x",
            "nbds://u@h/",
            "nbds://h?tls-type=psk",
        ] {
            assert_eq!(Uri::parse(text).unwrap_err().kind(), ErrorKind::Unsupported, "{text}");
        }
    }

    #[test]
    fn mutations_neither_panic_nor_change_in_a_second_reading() {
        let mut random = Random::new(11);
        for _ in 0..20_000 {
            let mut bytes = b"nbds+unix://[::1]:1/a%20b?socket=/s&tls-hostname=h#f".to_vec();
            for _ in 0..=random.below(6) {
                let at = usize::try_from(random.below(bytes.len() as u64)).unwrap();
                match random.below(3) {
                    0 if bytes.len() > 1 => drop(bytes.remove(at)),
                    1 => bytes[at] = b"%/?:&#[]=@0\xC3"[usize::try_from(random.below(12)).unwrap()],
                    _ => bytes.truncate(at.max(1)),
                }
            }
            if let Ok(uri) = Uri::parse(&String::from_utf8_lossy(&bytes)) {
                let again = uri.to_string();
                assert_eq!(Uri::parse(&again).unwrap(), uri, "{again}");
            }
        }
    }
}
