//! A domain on another host: here, by way of a real sshd on a port of its own.

use crate::lab::{Lab, MIB, Taken, byte, can_run, since, succeed, taken};
use firn_source::{FileOptions, Outcome, Source};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

const NAME: &str = "a_domain_on_another_host_is_read_through_ssh";

/// An sshd that lets root in by a key.
struct Server {
    child: Child,
    port: u16,
}

impl Server {
    fn start(lab: &Lab) -> Self {
        for key in ["host", "user"] {
            succeed(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(lab.path(key)));
        }
        // A port that is free now; nobody else takes random ones here.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        std::fs::create_dir_all("/run/sshd").unwrap();
        let config = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {0}/host\nAuthorizedKeysFile {0}/user.pub\nUsePAM no\n\
             StrictModes no\nPermitRootLogin prohibit-password\nPidFile none\nLogLevel ERROR\n",
            lab.folder.path().display()
        );
        std::fs::write(lab.path("sshd.conf"), config).unwrap();
        let mut command = Command::new("/usr/sbin/sshd");
        command.args(["-D", "-e", "-f"]).arg(lab.path("sshd.conf")).stdin(Stdio::null()).stderr(Stdio::null());
        let server = Self { child: command.spawn().unwrap(), port };
        lab.wait("sshd", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_domain_on_another_host_is_read_through_ssh() {
    if !can_run(NAME, &["sshd", "ssh", "ssh-keygen", "nc"]) {
        return;
    }
    let Some(lab) = Lab::start(NAME) else { return };
    lab.boot();
    lab.write(0, 1, 0..MIB);
    let server = Server::start(&lab);
    let socket = lab.connection.split_once("socket=").unwrap().1;
    let connection = format!(
        "qemu+ssh://root@127.0.0.1:{}/system?proxy=netcat&no_verify=1&keyfile={}&socket={socket}",
        server.port,
        lab.path("user").display()
    );
    let uri = format!("libvirt://lab?connect={}", connection.replace('&', "%26").replace('?', "%3F"));
    let open = || firn_source::libvirt::LibvirtSource::new(&uri, FileOptions::default()).unwrap();
    let begin = |run: u32, last: &Taken| {
        let mut source = open();
        let request = lab.request(run, last);
        source.plan(&request).unwrap();
        source.prepare(&request).unwrap();
        source.cut().unwrap();
        (source, request)
    };
    let (mut source, _) = begin(1, &Taken::default());
    let frozen = source.open().unwrap();
    lab.write(0, 2, 0..MIB);
    assert_eq!(byte(&frozen[0], 0..MIB), 1);
    source.check().unwrap();
    let first = taken(&frozen);
    source.finish(Outcome::Published).unwrap();
    assert_eq!((lab.leftovers(), lab.checkpoints()), (Vec::new(), vec![lab.checkpoint(1)]));

    // One that dies leaves no ssh behind, and what it left at the other end is swept.
    let (mut source, request) = begin(2, &first);
    let frozen = source.open().unwrap();
    assert_eq!(since(&frozen[0]), [0..MIB]);
    drop((frozen, source));
    open().sweep(&request).unwrap();
    assert_eq!((lab.leftovers(), lab.checkpoints(), lab.has_job()), (Vec::new(), vec![lab.checkpoint(1)], false));

    // When nobody is let in any more, the run cannot end well, and says so.
    let (mut source, _) = begin(3, &first);
    drop(server);
    assert!(source.check().is_err());
    assert!(source.finish(Outcome::Failed).is_err());
    drop(source);
    // Who comes by another way sweeps it.
    lab.source().sweep(&lab.request(3, &first)).unwrap();
    assert_eq!((lab.checkpoints(), lab.has_job()), (vec![lab.checkpoint(1)], false));
}
