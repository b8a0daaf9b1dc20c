//! TLS against qemu-nbd and nbdkit, with certificates that openssl makes.

use crate::common::{Server, default_options, have, run};
use firn_disk::testing::{check_disk, pattern};
use firn_disk::{Disk, ErrorKind};
use firn_nbd::{Uri, list, open};
use std::path::Path;

/// An authority, a server's and a client's certificate in `folder`, with the names that everybody uses.
fn certificates(folder: &Path) {
    let file = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let new_key = ["req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout"];
    let run_openssl = |arguments: &[&str]| run("openssl", arguments);
    let ca = [file("ca-key.pem"), file("ca-cert.pem")];
    let subject = ["-subj", "/CN=authority", "-x509", "-days", "30", "-addext", "basicConstraints=critical,CA:TRUE"];
    run_openssl(
        &[&new_key[..], &[&ca[0]], &["-addext", "keyUsage=critical,keyCertSign", "-out", &ca[1]], &subject].concat(),
    );
    for (who, extensions) in [
        ("server", "subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth\n"),
        ("client", "subjectAltName=DNS:client\nextendedKeyUsage=clientAuth\n"),
    ] {
        let (key, certificate) = (file(&format!("{who}-key.pem")), file(&format!("{who}-cert.pem")));
        let (request, extra) = (file("request.pem"), file("extra.conf"));
        std::fs::write(&extra, format!("basicConstraints=CA:FALSE\nkeyUsage=digitalSignature\n{extensions}")).unwrap();
        run_openssl(&[&new_key[..], &[&key, "-out", &request, "-subj", &format!("/CN={who}")]].concat());
        let sign = ["x509", "-req", "-in", &request, "-CA", &ca[1], "-CAkey", &ca[0], "-CAcreateserial", "-days", "30"];
        run_openssl(&[&sign[..], &["-extfile", &extra, "-out", &certificate]].concat());
    }
}

/// A folder with only those files of `from`.
fn only(from: &Path, into: &Path, files: &[&str]) -> String {
    std::fs::create_dir(into).unwrap();
    for file in files {
        std::fs::copy(from.join(file), into.join(file)).unwrap();
    }
    into.to_str().unwrap().to_owned()
}

const SERVER: [&str; 3] = ["ca-cert.pem", "server-cert.pem", "server-key.pem"];
const CLIENT: [&str; 3] = ["ca-cert.pem", "client-cert.pem", "client-key.pem"];

#[test]
fn qemu_nbd_with_certificates_of_both_sides() {
    if !have("qemu_nbd_with_certificates_of_both_sides", &["qemu-nbd", "openssl"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    certificates(folder.path());
    let theirs = only(folder.path(), &folder.path().join("server"), &SERVER);
    let ours = only(folder.path(), &folder.path().join("client"), &CLIENT);
    let image = folder.path().join("disk.raw");
    let bytes = pattern(5 << 20, 41);
    std::fs::write(&image, &bytes).unwrap();
    let object = format!("tls-creds-x509,id=tls0,endpoint=server,dir={theirs},verify-peer=on");
    let arguments = ["-f", "raw", "-r", "-t", "--shared=0", "--object", &object, "--tls-creds", "tls0"];
    let server = Server::qemu_tcp(&arguments, &image);
    let address = format!("127.0.0.1:{}/", server.port);
    let uri = |parameters: &str| Uri::parse(&format!("nbds://{address}?{parameters}")).unwrap();
    let good = uri(&format!("tls-certificates={ours}"));
    let disk = open(&good, &default_options()).unwrap();
    assert_eq!(disk.connections(), 4);
    check_disk(&disk, &bytes, 42);
    assert_eq!(list(&good, &default_options()).unwrap().len(), 1);
    let named = uri(&format!("tls-certificates={ours}&tls-hostname=localhost"));
    open(&named, &default_options()).unwrap();
    let refused = |uri: &Uri| {
        let error = open(uri, &default_options()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    };
    refused(&uri(&format!("tls-certificates={ours}&tls-hostname=elsewhere")));
    // This system's own authorities have not signed it.
    refused(&uri(&format!("tls-certificates={}", stranger(folder.path()))));
    refused(&Uri::parse(&format!("nbd://{address}")).unwrap());
    let nameless = only(folder.path(), &folder.path().join("nameless"), &["ca-cert.pem"]);
    open(&uri(&format!("tls-certificates={nameless}")), &default_options()).unwrap_err();
    open(&uri("tls-certificates=/nonexistent"), &default_options()).unwrap_err();
}

/// A folder with an authority that has signed nothing here.
fn stranger(folder: &Path) -> String {
    let other = folder.join("stranger");
    std::fs::create_dir(&other).unwrap();
    certificates(&other);
    other.to_str().unwrap().to_owned()
}

#[test]
fn nbdkit_with_tls_over_a_unix_socket_and_never_without() {
    if !have("nbdkit_with_tls_over_a_unix_socket_and_never_without", &["nbdkit", "openssl"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    certificates(folder.path());
    let theirs = only(folder.path(), &folder.path().join("server"), &SERVER);
    let ours = only(folder.path(), &folder.path().join("client"), &["ca-cert.pem"]);
    let with_tls = |server: &Server, hostname: &str| {
        let socket = server.socket.display();
        Uri::parse(&format!("nbds+unix:///?socket={socket}&tls-certificates={ours}{hostname}")).unwrap()
    };
    let certificates = format!("--tls-certificates={theirs}");
    let server = Server::nbdkit(&["--tls=require", &certificates, "pattern", "size=8M"], folder.path());
    let disk = open(&with_tls(&server, "&tls-hostname=localhost"), &default_options()).unwrap();
    let mut bytes = vec![0; 8 << 20];
    disk.read_at(&mut bytes, 0).unwrap();
    assert!(bytes.chunks_exact(8).zip(0_u64..).all(|(word, index)| word == (8 * index).to_be_bytes()));
    let kind = |uri: &Uri| open(uri, &default_options()).unwrap_err().kind();
    assert_eq!(kind(&with_tls(&server, "")), ErrorKind::Invalid);
    assert_eq!(kind(&server.uri("")), ErrorKind::Denied);
    // A server without TLS is not talked to where TLS is asked for.
    let plain = Server::nbdkit(&["pattern", "size=8M"], folder.path());
    assert_eq!(kind(&with_tls(&plain, "&tls-hostname=localhost")), ErrorKind::Denied);
    let old = Server::nbdkit(&["--mask-handshake=0", "pattern", "size=8M"], folder.path());
    assert_eq!(kind(&with_tls(&old, "&tls-hostname=localhost")), ErrorKind::Denied);
}
