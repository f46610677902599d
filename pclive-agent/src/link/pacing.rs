//! Connections that the kernel paces: what is handed over in one piece goes out in packets that are spread over time.
//!
//! A limit that holds back whole messages lets each of them out as fast as the link goes, and whatever shares the link
//! waits behind it (docs/EVALUATION.md has what that costs clients). A connection that was limited once stays paced by its
//! own congestion window, and its rate is that of the limit until the other end has confirmed something that was sent
//! without it: so the limit is lifted before the last message of a round. Kernel: `SO_MAX_PACING_RATE` (socket(7)).

use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use pclive_engine::sys::socket;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// What stands for "not limited".
const UNLIMITED: u64 = u64::MAX;

/// How fast each connection of a migration may send. Its clones are one; it may change at any time, and a connection
/// follows when it is written to next.
#[derive(Debug, Clone)]
pub struct Pacing(Arc<AtomicU64>);

impl Default for Pacing {
    /// As fast as it goes.
    fn default() -> Self {
        Self(Arc::new(AtomicU64::new(UNLIMITED)))
    }
}

impl Pacing {
    /// At most so many bytes a second on each connection; `None`: as fast as it goes.
    pub fn set(&self, bytes_per_second: Option<u64>) {
        self.0.store(bytes_per_second.unwrap_or(UNLIMITED).max(1), Ordering::Relaxed);
    }

    fn rate(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A connection that follows a [`Pacing`].
#[derive(Debug)]
pub(super) struct Paced {
    stream: TcpStream,
    pacing: Pacing,
    /// What the kernel was told last.
    rate: u64,
}

impl Paced {
    /// `stream` is not limited yet.
    pub(super) fn new(stream: TcpStream, pacing: Pacing) -> Self {
        Self { stream, pacing, rate: UNLIMITED }
    }

    /// A kernel that does not pace sends as fast as it can.
    fn follow(&mut self) {
        let wanted = self.pacing.rate();
        if self.rate != wanted {
            self.rate = wanted;
            let limit = (wanted != UNLIMITED).then_some(wanted);
            if let Err(error) = socket::set_max_pacing_rate(self.stream.as_fd(), limit) {
                tracing::debug!("cannot pace a connection: {error}");
            }
        }
    }
}

impl AsyncRead for Paced {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Paced {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.follow();
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.follow();
        Pin::new(&mut self.stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    fn told(paced: &Paced) -> u64 {
        let mut value = [0; 8];
        // SOL_SOCKET and SO_MAX_PACING_RATE.
        let (level, name) = (1, 47);
        socket::get_option(paced.stream.as_fd(), level, name, &mut value).unwrap();
        u64::from_ne_bytes(value)
    }

    #[tokio::test]
    async fn connections_follow_when_they_are_written_to() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut other, _) = listener.accept().await.unwrap();
        let pacing = Pacing::default();
        let mut paced = Paced::new(stream, pacing.clone());
        let mut heard = [0; 1];
        for (limit, rate) in [(None, UNLIMITED), (Some(50_000_000), 50_000_000), (None, UNLIMITED)] {
            pacing.set(limit);
            paced.write_all(&[7]).await.unwrap();
            other.read_exact(&mut heard).await.unwrap();
            assert_eq!((told(&paced), heard), (rate, [7]), "{limit:?}");
        }
    }
}
