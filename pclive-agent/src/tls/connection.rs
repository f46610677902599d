//! A connection and who is at its other end.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use super::Caller;

/// What the bytes travel on.
#[derive(Debug)]
enum Line {
    Unix(UnixStream),
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// An accepted connection whose caller is known.
#[derive(Debug)]
pub(crate) struct Connection {
    line: Line,
    caller: Caller,
}

impl Connection {
    /// A caller on the control socket.
    pub(super) fn local(stream: UnixStream) -> io::Result<Self> {
        let peer = stream.peer_cred()?;
        let caller = Caller::Local { uid: peer.uid(), pid: peer.pid().filter(|pid| *pid > 0) };
        Ok(Self { line: Line::Unix(stream), caller })
    }

    /// A caller on a listener that is configured to be insecure.
    pub(super) fn plain(stream: TcpStream) -> Self {
        Self { line: Line::Plain(stream), caller: Caller::Anybody }
    }

    /// A caller after a handshake.
    pub(super) fn secured(stream: TlsStream<TcpStream>, caller: Caller) -> Self {
        Self { line: Line::Tls(Box::new(stream)), caller }
    }
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

/// The same call on whatever the line is.
macro_rules! on_line {
    ($connection:expr, $method:ident $(, $argument:expr)*) => {
        match &mut $connection.get_mut().line {
            Line::Unix(stream) => Pin::new(stream).$method($($argument),*),
            Line::Plain(stream) => Pin::new(stream).$method($($argument),*),
            Line::Tls(stream) => Pin::new(stream.as_mut()).$method($($argument),*),
        }
    };
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        on_line!(self, poll_read, context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        on_line!(self, poll_write, context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_line!(self, poll_flush, context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_line!(self, poll_shutdown, context)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        on_line!(self, poll_write_vectored, context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}
