//! `https`: the connector that shows the user's certificate.

use std::future::Future;
use std::io;
use std::pin::Pin;

use hyper_util::rt::TokioIo;
use pclive_tls::{Connector, Credentials, Files};
use thiserror::Error;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tonic::transport::Uri;

use crate::args::Tls;
use crate::failure::Failure;

/// A connection as hyper wants it.
type Line = TokioIo<TlsStream<TcpStream>>;
type Opening = Pin<Box<dyn Future<Output = io::Result<Line>> + Send>>;

/// Not everything was given.
#[derive(Debug, Error)]
#[error("--cert and --key (PCLIVE_CERT, PCLIVE_KEY) must be given")]
struct Missing;

/// Connects to the host of the URI; its certificate must be for that host.
pub(crate) fn connector(
    tls: &Tls,
) -> Result<
    impl tower::Service<Uri, Response = Line, Error = io::Error, Future = Opening> + Send + use<>,
    Failure,
> {
    let (Some(certificate), Some(key)) = (tls.cert.clone(), tls.key.clone()) else {
        return Err(Failure::Credentials { source: Box::new(Missing) });
    };
    let files = Files { ca: tls.ca.clone(), certificate, key };
    let credentials =
        Credentials::load(&files).map_err(|error| Failure::Credentials { source: Box::new(error) })?;
    let connector =
        Connector::new(&credentials).map_err(|error| Failure::Credentials { source: Box::new(error) })?;
    Ok(tower::service_fn(move |uri: Uri| -> Opening { Box::pin(open(connector.clone(), uri)) }))
}

async fn open(connector: Connector, uri: Uri) -> io::Result<Line> {
    let (Some(host), Some(port)) = (uri.host(), uri.port_u16()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not host:port"));
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let stream = TcpStream::connect((host, port)).await?;
    Ok(TokioIo::new(connector.connect(host, stream).await?))
}
