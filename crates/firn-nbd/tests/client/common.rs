//! Starts servers and ends them.

use firn_disk::testing::skip;
use firn_nbd::{Options, Uri};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Quick to give up, so that a failing test ends.
pub fn default_options() -> Options {
    Options {
        timeout: Duration::from_secs(10),
        reconnect: 2,
        reconnect_delay: Duration::from_millis(20),
        ..Options::default()
    }
}

/// Whether all of `tools` are there; otherwise `test` is skipped.
pub fn have(test: &str, tools: &[&str]) -> bool {
    for tool in tools {
        let found = Command::new(tool).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if found.is_err() {
            skip(test, &format!("{tool} is not installed"));
            return false;
        }
    }
    true
}

/// Runs a tool to its good end.
pub fn run(tool: &str, arguments: &[&str]) {
    let output = Command::new(tool).args(arguments).output().unwrap();
    assert!(output.status.success(), "{tool} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A server that ends with the test.
pub struct Server {
    child: Child,
    /// Where it listens, if on TCP.
    pub port: u16,
    /// Where it listens, if not.
    pub socket: PathBuf,
}

impl Server {
    fn start(command: &mut Command, port: u16, socket: &Path) -> Self {
        let child = command.stdin(Stdio::null()).spawn().unwrap();
        let mut server = Self { child, port, socket: socket.to_owned() };
        let started = Instant::now();
        let listens = || {
            if port == 0 {
                UnixStream::connect(socket).is_ok()
            } else {
                TcpStream::connect(("127.0.0.1", port)).is_ok()
            }
        };
        while !listens() {
            assert!(server.child.try_wait().unwrap().is_none(), "{command:?} ended");
            assert!(started.elapsed() < Duration::from_secs(20), "{command:?} does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }

    /// qemu-nbd on a TCP port.
    pub fn qemu_tcp(arguments: &[&str], image: &Path) -> Self {
        // Free now, and hardly taken by somebody else in between.
        let port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
        let mut command = Command::new("qemu-nbd");
        command.args(["-b", "127.0.0.1", "-p", &port.to_string()]).args(arguments).arg(image);
        Self::start(&mut command, port, Path::new(""))
    }

    /// qemu-nbd on a Unix socket in `folder`.
    pub fn qemu_unix(arguments: &[&str], image: &Path, folder: &Path) -> Self {
        let socket = folder.join("qemu.sock");
        let mut command = Command::new("qemu-nbd");
        command.arg("-k").arg(&socket).args(arguments).arg(image);
        Self::start(&mut command, 0, &socket)
    }

    /// nbdkit on a new Unix socket in `folder`.
    pub fn nbdkit(arguments: &[&str], folder: &Path) -> Self {
        let count = std::fs::read_dir(folder).unwrap().count();
        Self::nbdkit_at(arguments, &folder.join(format!("nbdkit-{count}.sock")))
    }

    /// nbdkit on a Unix socket.
    pub fn nbdkit_at(arguments: &[&str], socket: &Path) -> Self {
        let mut command = Command::new("nbdkit");
        command.args(["-f", "--exit-with-parent", "-U"]).arg(socket).args(arguments);
        // A probe of the socket would be the last client of the filter exitlast.
        if arguments.contains(&"--filter=exitlast") {
            let child = command.stdin(Stdio::null()).spawn().unwrap();
            let started = Instant::now();
            while !socket.exists() {
                assert!(started.elapsed() < Duration::from_secs(20), "nbdkit does not listen");
                std::thread::sleep(Duration::from_millis(20));
            }
            return Self { child, port: 0, socket: socket.to_owned() };
        }
        Self::start(&mut command, 0, socket)
    }

    /// An export of the server on its Unix socket.
    pub fn uri(&self, export: &str) -> Uri {
        Uri::unix(&self.socket, export)
    }

    /// Ends it as a crash would: nbdkit otherwise waits for its clients to leave.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        std::fs::remove_file(&self.socket).ok();
    }

    /// Whether it ends by itself.
    pub fn ended_within(&mut self, time: Duration) -> bool {
        let started = Instant::now();
        while started.elapsed() < time {
            if self.child.try_wait().unwrap().is_some() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A terminated server writes its image's caches out; a killed one does not.
        run_quietly("kill", &self.child.id().to_string());
        if !self.ended_within(Duration::from_secs(10)) {
            self.child.kill().ok();
            self.child.wait().ok();
        }
    }
}

fn run_quietly(tool: &str, argument: &str) {
    Command::new(tool).arg(argument).stderr(Stdio::null()).status().ok();
}
