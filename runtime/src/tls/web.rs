//! TLS to servers of others, by the authorities that this machine trusts.

use std::{fs, io, path::Path, sync::Arc};

use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::provider;

/// The client's end of TLS, as a browser has it: the name in the address counts, and no certificate of ours.
#[derive(Clone)]
pub struct WebTls(Arc<rustls::ClientConfig>);

impl std::fmt::Debug for WebTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WebTls")
    }
}

impl WebTls {
    /// Trusts the authorities in a file (PEM), or those of the system. Reads files.
    pub fn new(authorities: Option<&Path>) -> io::Result<Self> {
        let mut roots = rustls::RootCertStore::empty();
        let certificates: Vec<CertificateDer<'static>> = match authorities {
            Some(path) => {
                let bytes = fs::read(path)?;
                CertificateDer::pem_slice_iter(&bytes)
                    .collect::<Result<_, _>>()
                    .map_err(|error| io::Error::other(format!("{}: {error:?}", path.display())))?
            }
            // What cannot be read is left out; an empty list is noticed below.
            None => rustls_native_certs::load_native_certs().certs,
        };
        roots.add_parsable_certificates(certificates);
        if roots.is_empty() {
            return Err(io::Error::other(
                "no authority is trusted on this machine; name a file of them",
            ));
        }
        let config = rustls::ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self(Arc::new(config)))
    }

    /// Shakes hands over a socket that was dialled.
    pub async fn connect(&self, host: &str, socket: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        TlsConnector::from(Arc::clone(&self.0))
            .connect(name, socket)
            .await
    }
}
