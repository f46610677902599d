//! Connections from sockets: each handshake is a task of its own, so that a caller that dawdles holds up nobody.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use pclive_tls::{End, Facts, Fault};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;

use super::{Caller, Connection, Keeper};
use crate::link::Tuning;

/// Most handshakes at once on a listener; more callers wait in the kernel's queue.
pub(crate) const HANDSHAKES: usize = 64;
/// Longest handshake.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// Rest after a failure of the listener itself (no descriptors left), so that it does not spin.
const RESPITE: Duration = Duration::from_millis(100);

type Sender = mpsc::Sender<io::Result<Connection>>;

/// What a listener's callers must do to be connected.
#[derive(Debug, Clone)]
pub(crate) enum Welcome {
    /// Nothing: the configuration says `insecure`.
    Anybody,
    /// A handshake with the certificates of the moment.
    Certified(Arc<Keeper>),
}

/// The connections of the control socket. Ends with its receiver.
pub(crate) fn local(listener: UnixListener) -> impl Stream<Item = io::Result<Connection>> {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = sender.closed() => return,
            };
            match accepted.and_then(|(stream, _)| Connection::local(stream)) {
                // The receiver is gone when the services have ended.
                Ok(connection) => drop(sender.send(Ok(connection)).await),
                Err(error) => rest(&error).await,
            }
        }
    });
    ReceiverStream::new(receiver)
}

/// The connections of a TCP listener. Ends with its receiver.
pub(crate) fn tcp(
    listener: TcpListener,
    tuning: Tuning,
    welcome: Welcome,
) -> impl Stream<Item = io::Result<Connection>> {
    let (sender, receiver) = mpsc::channel(1);
    let slots = Arc::new(Semaphore::new(HANDSHAKES));
    tokio::spawn(async move {
        loop {
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = sender.closed() => return,
            };
            match accepted {
                Ok((stream, address)) => {
                    tuning.set(&stream);
                    let (sender, welcome) = (sender.clone(), welcome.clone());
                    tokio::spawn(async move {
                        receive(stream, address, welcome, sender).await;
                        drop(slot);
                    });
                }
                Err(error) => rest(&error).await,
            }
        }
    });
    ReceiverStream::new(receiver)
}

async fn rest(error: &io::Error) {
    tracing::warn!("cannot accept a connection: {error}");
    tokio::time::sleep(RESPITE).await;
}

async fn receive(stream: TcpStream, address: SocketAddr, welcome: Welcome, sender: Sender) {
    let connection = match welcome {
        Welcome::Anybody => Connection::plain(stream),
        Welcome::Certified(keeper) => {
            let handshake = shake_hands(keeper.acceptor(), stream);
            match tokio::time::timeout(PATIENCE, handshake).await {
                Ok(Ok(connection)) => connection,
                Ok(Err(error)) => return refused(address, &error),
                Err(_) => return tracing::warn!(from = %address, "a caller did not finish its handshake"),
            }
        }
    };
    // The receiver is gone when the services have ended.
    let _ = sender.send(Ok(connection)).await;
}

async fn shake_hands(acceptor: TlsAcceptor, stream: TcpStream) -> io::Result<Connection> {
    let stream = acceptor.accept(stream).await?;
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let certificate = certificate.ok_or_else(|| io::Error::other("no certificate"))?;
    let caller = Caller::certified(Facts::of(certificate).map_err(io::Error::other)?);
    Ok(Connection::secured(stream, caller))
}

fn refused(address: SocketAddr, error: &io::Error) {
    match Fault::of(error, End::Server) {
        Some(Fault { what, hint }) => {
            tracing::warn!(from = %address, hint, "refused a connection: {what}");
        }
        // Gone before it was done: port scans, callers that do not trust this agent and say nothing.
        None => tracing::debug!(from = %address, "a connection ended in its handshake: {error}"),
    }
}
