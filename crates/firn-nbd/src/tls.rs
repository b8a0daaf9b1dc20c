//! TLS by certificates: who is trusted, who we are, and one session shared by a reader and a writer.
//!
//! The folder has the file names that libnbd, QEMU and nbdkit use: `ca-cert.pem` (whom to trust), `client-cert.pem` and
//! `client-key.pem` (who we are, if the server asks), `ca-crl.pem` (who is trusted no more).

use crate::{Address, Options, Uri};
use firn_disk::{Error, ErrorKind, Result};
use rustls::client::WebPkiServerVerifier;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where Linux distributions keep the certificate authorities that they trust.
const SYSTEM_BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// A session that has not yet said anything, for the server that `uri` names.
///
/// # Errors
/// `Denied`, `NotFound` or `Invalid` when the certificates cannot be used.
pub(crate) fn session(uri: &Uri, options: &Options) -> Result<ClientConnection> {
    let name = match (uri.tls_hostname.as_ref().or(options.tls_hostname.as_ref()), &uri.address) {
        (Some(name), _) => name.clone(),
        (None, Address::Tcp { host, .. }) => host.split_once('%').map_or(host.as_str(), |(host, _)| host).to_owned(),
        (None, Address::Unix(_)) => {
            return Err(Error::invalid("a Unix socket has no name that the server's certificate could be for")
                .hint("add tls-hostname=NAME to the URI"));
        }
    };
    let name = ServerName::try_from(name).map_err(|error| Error::invalid("the server's TLS name").because(error))?;
    let folder = uri.tls_certificates.as_ref().or(options.tls_certificates.as_ref());
    let config = config(folder.map(PathBuf::as_path))?;
    ClientConnection::new(Arc::new(config), name).map_err(|error| unusable("set up TLS", error))
}

fn config(folder: Option<&Path>) -> Result<ClientConfig> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable("set up TLS", error))?;
    let Some(folder) = folder else {
        let bundle = SYSTEM_BUNDLES.iter().map(Path::new).find(|path| path.exists()).ok_or_else(|| {
            Error::not_found("this system has no list of certificate authorities")
                .hint("name a folder with ca-cert.pem: tls-certificates=FOLDER")
        })?;
        return Ok(builder.with_root_certificates(authorities(bundle)?).with_no_client_auth());
    };
    let builder = builder.with_webpki_verifier(verifier(folder, provider)?);
    let (certificate, key) = (folder.join("client-cert.pem"), folder.join("client-key.pem"));
    if !certificate.exists() && !key.exists() {
        return Ok(builder.with_no_client_auth());
    }
    let chain = certificates(&certificate)?;
    let key = PrivateKeyDer::from_pem_file(&key).map_err(|error| unusable("read the key", error).at_path(&key))?;
    builder
        .with_client_auth_cert(chain, key)
        .map_err(|error| unusable("use the certificate", error).at_path(certificate))
}

fn verifier(folder: &Path, provider: Arc<CryptoProvider>) -> Result<Arc<WebPkiServerVerifier>> {
    let roots = Arc::new(authorities(&folder.join("ca-cert.pem"))?);
    let mut builder = WebPkiServerVerifier::builder_with_provider(roots, provider);
    let revoked = folder.join("ca-crl.pem");
    if revoked.exists() {
        let bad = |error| unusable("read the revocation list", error).at_path(&revoked);
        let lists = CertificateRevocationListDer::pem_file_iter(&revoked).map_err(bad)?;
        builder =
            builder.with_crls(lists.collect::<Result<Vec<_>, _>>().map_err(bad)?).allow_unknown_revocation_status();
    }
    builder.build().map_err(|error| unusable("use the certificates", error).at_path(folder))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let bad = |error| unusable("read the certificates", error).at_path(path);
    CertificateDer::pem_file_iter(path).map_err(bad)?.collect::<Result<_, _>>().map_err(bad)
}

fn authorities(path: &Path) -> Result<RootCertStore> {
    let mut store = RootCertStore::empty();
    let (added, _) = store.add_parsable_certificates(certificates(path)?);
    if added == 0 {
        return Err(Error::invalid("no certificate authority in this file").at_path(path));
    }
    Ok(store)
}

fn unusable(what: &str, error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(ErrorKind::Denied, what).because(error)
}
