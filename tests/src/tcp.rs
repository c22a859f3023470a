//! Bare TCP: a balancer before replicas, and a relay that adds nothing (the limit of any gateway and agent).

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Result;
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional_with_sizes};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// What a relay reads at once, in bytes.
pub const RELAY_BUFFER_BYTES: usize = 64 * 1024;
/// Reads that a long line holds: up to 256 MiB, more than any window under test.
const LINE_CHUNKS: usize = 4096;

/// Accepts on a port and passes each connection to one of several addresses.
#[derive(Debug)]
pub struct Balancer {
    pub address: SocketAddr,
    chosen: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Balancer {
    /// Starts on a free port of 127.0.0.1; always picks the first until told otherwise.
    ///
    /// # Errors
    /// Where no port can be had.
    pub async fn start(targets: Vec<SocketAddr>) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let chosen = Arc::new(AtomicUsize::new(0));
        let choice = Arc::clone(&chosen);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if let Some(target) = targets.get(choice.load(Ordering::Relaxed)).copied() {
                    tokio::spawn(pass(client, target));
                }
            }
        });
        Ok(Self { address, chosen, task })
    }

    /// From now on picks this one.
    pub fn choose(&self, index: usize) {
        self.chosen.store(index, Ordering::Relaxed);
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Relays on a bound port for ever.
///
/// # Errors
/// Where accepting fails.
pub async fn relay(listener: TcpListener, target: SocketAddr) -> Result<()> {
    loop {
        let (client, _) = listener.accept().await?;
        tokio::spawn(pass(client, target));
    }
}

/// Relays on a bound port for ever, each byte `delay` later in either direction: a long line, as far as the two ends'
/// own flow control is concerned (TCP's own windows see two short ones).
///
/// # Errors
/// Where accepting fails.
pub async fn long_line(listener: TcpListener, target: SocketAddr, delay: Duration) -> Result<()> {
    loop {
        let (client, _) = listener.accept().await?;
        tokio::spawn(async move {
            let Ok(server) = TcpStream::connect(target).await else {
                return;
            };
            let _ = (client.set_nodelay(true), server.set_nodelay(true));
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = server.into_split();
            tokio::join!(
                later(from_client, to_server, delay),
                later(from_server, to_client, delay)
            );
        });
    }
}

/// One direction of a long line.
async fn later(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, delay: Duration) {
    let (line, mut end) = tokio::sync::mpsc::channel::<(Instant, Bytes)>(LINE_CHUNKS);
    let read = async move {
        loop {
            let mut chunk = BytesMut::with_capacity(RELAY_BUFFER_BYTES);
            match from.read_buf(&mut chunk).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            if line.send((Instant::now() + delay, chunk.freeze())).await.is_err() {
                return;
            }
        }
    };
    let write = async move {
        while let Some((due, chunk)) = end.recv().await {
            tokio::time::sleep_until(due).await;
            if to.write_all(&chunk).await.is_err() {
                return;
            }
        }
        // The other side may be gone already.
        let _ = to.shutdown().await;
    };
    tokio::join!(read, write);
}

async fn pass(mut client: TcpStream, target: SocketAddr) {
    let Ok(mut server) = TcpStream::connect(target).await else {
        return;
    };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    // Either side may break the connection at any time; the other then sees it end.
    let _ = copy_bidirectional_with_sizes(&mut client, &mut server, RELAY_BUFFER_BYTES, RELAY_BUFFER_BYTES).await;
}
