//! [`Location`]: which domain, of which libvirt, on which host.
//!
//! ```text
//!   libvirt://DOMAIN                              qemu:///system, or what LIBVIRT_DEFAULT_URI says
//!   libvirt://DOMAIN?connect=URI                  any other connection: qemu:///session, qemu+ssh://HOST/system?keyfile=…
//!   libvirt+ssh://[USER@]HOST[:PORT]/DOMAIN       qemu+ssh://[USER@]HOST[:PORT]/system
//!   …?skip=vdb,vdc                                disks that are left out
//!   …?socket-folder=DIR                           where the NBD socket's folder is made, on the domain's host
//! ```
//! Names are percent-encoded. The parameters of libvirt's own URIs are those of
//! [its documentation](https://libvirt.org/uri.html); `keyfile`, `known_hosts`, `no_verify`, `command` and the port also
//! count for firn's own ssh to that host. Refused: connections that are not QEMU's, and to another host those that are not
//! ssh, since the disks are read through a forwarded socket.

use firn_disk::{Error, Result};
use std::path::PathBuf;

/// A domain, and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// libvirt's URI, for `virsh -c`.
    pub connection: String,
    /// The domain's name or UUID.
    pub domain: String,
    /// Target names of disks that are left out.
    pub skip: Vec<String>,
    /// Where the NBD socket's folder is made.
    pub socket_folder: Option<PathBuf>,
    /// How to get to its host, if it is another one.
    pub ssh: Option<Ssh>,
}

/// How ssh gets to a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ssh {
    /// The program, `ssh` by default.
    pub command: String,
    /// `[USER@]HOST`.
    pub destination: String,
    /// Options before the destination.
    pub options: Vec<String>,
}

impl Location {
    /// Reads a source's URI. `default` is the connection where none is named.
    ///
    /// # Errors
    /// `Invalid` for what is no such URI, `Unsupported` for a connection that cannot be read through.
    pub fn parse(uri: &str, default: &str) -> Result<Self> {
        let invalid = |what: &str| {
            Error::invalid(format!("{uri}: {what}")).hint("as libvirt://DOMAIN or libvirt+ssh://[USER@]HOST/DOMAIN")
        };
        let (base, query) = uri.split_once('?').unwrap_or((uri, ""));
        let (connection, domain) = if let Some(domain) = base.strip_prefix("libvirt://") {
            (None, domain)
        } else if let Some(rest) = base.strip_prefix("libvirt+ssh://") {
            let (host, domain) = rest.split_once('/').ok_or_else(|| invalid("the domain is missing"))?;
            if host.is_empty() {
                return Err(invalid("the host is missing"));
            }
            (Some(format!("qemu+ssh://{host}/system")), domain)
        } else {
            return Err(invalid("this names no libvirt domain"));
        };
        let domain = decode(domain).filter(|domain| is_text(domain)).ok_or_else(|| invalid("the domain is missing"))?;
        let mut location = Self { connection: String::new(), domain, skip: Vec::new(), socket_folder: None, ssh: None };
        let mut named = connection;
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            let (key, value) = parameter.split_once('=').ok_or_else(|| invalid("a parameter has no value"))?;
            let value =
                decode(value).filter(|value| is_text(value)).ok_or_else(|| invalid("a parameter has no value"))?;
            match key {
                "connect" if named.is_none() => named = Some(value),
                "connect" => return Err(invalid("the connection is named twice")),
                "skip" => location.skip.extend(value.split(',').map(str::to_owned)),
                "socket-folder" if value.starts_with('/') => location.socket_folder = Some(value.into()),
                _ => return Err(invalid(&format!("the parameter {key} is not known"))),
            }
        }
        let connection = named.unwrap_or_else(|| default.to_owned());
        location.ssh = way_to(&connection)?;
        location.connection = if location.ssh.is_some() { without_prompts(connection) } else { connection };
        Ok(location)
    }

    /// The URI that says all of it, whatever the environment.
    pub fn uri(&self) -> String {
        let mut parameters = Vec::new();
        if self.connection != super::SYSTEM {
            parameters.push(format!("connect={}", encode(&self.connection)));
        }
        if !self.skip.is_empty() {
            parameters.push(format!("skip={}", encode(&self.skip.join(","))));
        }
        if let Some(folder) = &self.socket_folder {
            parameters.push(format!("socket-folder={}", encode(&folder.to_string_lossy())));
        }
        let question = if parameters.is_empty() { "" } else { "?" };
        format!("libvirt://{}{question}{}", encode(&self.domain), parameters.join("&"))
    }
}

/// How to get to the host of a connection; none if it is this one.
///
/// # Errors
/// `Unsupported`, as the module says.
pub fn way_to(connection: &str) -> Result<Option<Ssh>> {
    let refuse = |what: &str| {
        Error::unsupported(format!("the connection {connection} {what}"))
            .hint("name qemu:///system, qemu:///session or qemu+ssh://HOST/system")
    };
    let (scheme, rest) = connection.split_once("://").ok_or_else(|| refuse("is no URI"))?;
    let (driver, transport) = scheme.split_once('+').unwrap_or((scheme, ""));
    if driver != "qemu" {
        return Err(refuse("is not to QEMU"));
    }
    let (base, query) = rest.split_once('?').unwrap_or((rest, ""));
    let host = base.split('/').next().unwrap_or_default();
    match (transport, host.is_empty()) {
        ("" | "unix", true) => return Ok(None),
        ("ssh", false) => {}
        _ => return Err(refuse("reaches another host by something else than ssh")),
    }
    let (destination, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => (name, Some(port)),
        _ => (host, None),
    };
    let destination = decode(destination).filter(|name| is_text(name)).ok_or_else(|| refuse("names no host"))?;
    if destination.starts_with('-') {
        return Err(refuse("names no host"));
    }
    let mut ssh =
        Ssh { command: "ssh".to_owned(), destination: destination.replace(['[', ']'], ""), options: Vec::new() };
    ssh.options.extend(["-o".to_owned(), "BatchMode=yes".to_owned()]);
    if let Some(port) = port {
        ssh.options.extend(["-p".to_owned(), port.to_owned()]);
    }
    for parameter in query.split('&') {
        let (key, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        let value = decode(value).ok_or_else(|| refuse("has a parameter that is no text"))?;
        match key {
            "keyfile" => ssh.options.extend(["-i".to_owned(), value]),
            "known_hosts" => ssh.options.extend(["-o".to_owned(), format!("UserKnownHostsFile={value}")]),
            "no_verify" if value != "0" => ssh.options.extend(["-o".to_owned(), "StrictHostKeyChecking=no".to_owned()]),
            "command" => ssh.command = value,
            _ => {}
        }
    }
    Ok(Some(ssh))
}

/// ssh under virsh must not ask on the terminal: nobody answers, and it would wait for ever.
fn without_prompts(connection: String) -> String {
    if connection.contains("no_tty=") {
        return connection;
    }
    let sign = if connection.contains('?') { '&' } else { '?' };
    format!("{connection}{sign}no_tty=1")
}

fn is_text(text: &str) -> bool {
    !text.is_empty() && !text.chars().any(char::is_control)
}

/// `%41` and the like as the characters that they stand for; none where they are no UTF-8.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digit = |byte: u8| char::from(byte).to_digit(16);
                let number = digit(rest.next()?)? << 4 | digit(rest.next()?)?;
                u8::try_from(number).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

fn encode(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/:,@+".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use firn_disk::ErrorKind;

    fn parse(uri: &str) -> Result<Location> {
        Location::parse(uri, "qemu:///system")
    }

    #[test]
    fn what_uris_mean() {
        let location = parse("libvirt://web%201?skip=vdb,vdc&socket-folder=/run/x").unwrap();
        assert_eq!((location.domain.as_str(), location.connection.as_str()), ("web 1", "qemu:///system"));
        assert_eq!((location.skip.len(), location.ssh.is_none()), (2, true));
        assert_eq!(location.uri(), "libvirt://web%201?skip=vdb,vdc&socket-folder=/run/x");
        let session = parse("libvirt://a?connect=qemu:///session%3Fsocket%3D/s").unwrap();
        assert_eq!(session.connection, "qemu:///session?socket=/s");
        assert_eq!(parse(&session.uri()).unwrap(), session);
        assert_eq!(
            Location::parse("libvirt://a", "qemu:///session").unwrap().uri(),
            "libvirt://a?connect=qemu:///session"
        );
    }

    #[test]
    fn another_host_is_reached_by_ssh() {
        let location = parse("libvirt+ssh://me@host:2222/a").unwrap();
        assert_eq!(location.connection, "qemu+ssh://me@host:2222/system?no_tty=1");
        let ssh = location.ssh.clone().unwrap();
        assert_eq!((ssh.destination.as_str(), ssh.options.join(" ").as_str()), ("me@host", "-o BatchMode=yes -p 2222"));
        assert_eq!(parse(&location.uri()).unwrap(), location);
        let ssh = way_to("qemu+ssh://h/system?keyfile=/k&no_verify=1&command=/bin/my").unwrap().unwrap();
        assert_eq!(ssh.options.join(" "), "-o BatchMode=yes -i /k -o StrictHostKeyChecking=no");
        assert_eq!((ssh.command.as_str(), ssh.destination.as_str()), ("/bin/my", "h"));
    }

    #[test]
    fn what_is_refused() {
        let invalid =
            ["libvirt://", "libvirt+ssh://host", "libvirt+ssh:///a", "libvirt://a?x=1", "libvirt://a?connect="];
        let more = ["libvirt://%FF", "libvirt://%4", "libvirt+ssh://h/a?connect=qemu:///system", "libvirt://a%0A"];
        for uri in invalid.iter().chain(&more).chain(&["libvirt://a?socket-folder=x"]) {
            assert_eq!(parse(uri).unwrap_err().kind(), ErrorKind::Invalid, "{uri}");
        }
        for connection in
            ["xen:///", "test:///default", "qemu+tls://h/system", "qemu://h/system", "qemu", "qemu+ssh://-oX/"]
        {
            assert_eq!(way_to(connection).unwrap_err().kind(), ErrorKind::Unsupported, "{connection}");
        }
    }
}
