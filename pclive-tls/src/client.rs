//! The calling end.

use std::io;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::{ALPN, Credentials, provider};

/// Makes connections that show one certificate.
#[derive(Clone)]
pub struct Connector(TlsConnector);

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connector")
    }
}

impl Connector {
    /// A connector with these credentials. Fails for keys that TLS 1.3 does not know.
    pub fn new(credentials: &Credentials) -> Result<Self, rustls::Error> {
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(Arc::clone(&credentials.roots))
            .with_client_auth_cert(credentials.chain.clone(), credentials.key.clone_key())?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.resumption = Resumption::disabled();
        Ok(Self(TlsConnector::from(Arc::new(config))))
    }

    /// Shakes hands with a server whose certificate must carry `name`, a host's name or an IP address.
    ///
    /// In TLS 1.3 a client has finished before the server has looked at its certificate. An HTTP/2 server speaks
    /// first, so its first byte is its word that it took the certificate; it is waited for, and stays unread. The
    /// caller limits the time. [`crate::Fault::of`] understands the error.
    pub async fn connect<I>(&self, name: &str, io: I) -> io::Result<TlsStream<I>>
    where
        I: AsyncRead + AsyncWrite + Unpin,
    {
        let name = ServerName::try_from(name.to_owned())
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let mut stream = self.0.connect(name, io).await?;
        if stream.fill_buf().await?.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(stream)
    }
}
