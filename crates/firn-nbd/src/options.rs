//! [`Options`]: how a server is talked to.

use std::path::PathBuf;
use std::time::Duration;

/// How a server is talked to. The default suits a source that is read once.
#[derive(Debug, Clone)]
pub struct Options {
    /// At most so many connections, where the server says that several of them see one disk (`CAN_MULTI_CONN`);
    /// otherwise one. At least one. A server that does not take all of them is read over those that it took.
    pub connections: usize,
    /// How often a read that lost its connection is sent again, each time over a new connection. With 0 the first loss
    /// is an error; that is right where a server that came back would show something else. Writes are never repeated.
    pub reconnect: u32,
    /// The first reconnection is tried at once; the pause before the second. It doubles each time, up to 5 s.
    pub reconnect_delay: Duration,
    /// The longest silence while an answer is awaited, and the longest time for connecting and negotiating. A request
    /// whose answer trickles in is given up after twenty times as long.
    pub timeout: Duration,
    /// Metadata contexts that have to be there beside `base:allocation`, as `qemu:dirty-bitmap:NAME`.
    pub contexts: Vec<String>,
    /// The folder with `ca-cert.pem` and, if the server wants them, `client-cert.pem` and `client-key.pem`. What the URI
    /// says goes first. Without either, the certificate authorities of this system are trusted.
    pub tls_certificates: Option<PathBuf>,
    /// The name that the server's certificate must be for, instead of the host's. What the URI says goes first.
    pub tls_hostname: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            connections: 4,
            reconnect: 5,
            reconnect_delay: Duration::from_millis(200),
            timeout: Duration::from_secs(30),
            contexts: Vec::new(),
            tls_certificates: None,
            tls_hostname: None,
        }
    }
}
