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

/// Between two single bytes of a dripping line.
const DRIP_PAUSE: Duration = Duration::from_millis(1);

/// Accepts on a port and passes each connection to one of several addresses.
#[derive(Debug)]
pub struct Balancer {
    pub address: SocketAddr,
    chosen: Arc<AtomicUsize>,
    then: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

/// No other choice follows.
const SAME: usize = usize::MAX;

impl Balancer {
    /// Starts on a free port of 127.0.0.1; always picks the first until told otherwise.
    ///
    /// # Errors
    /// Where no port can be had.
    pub async fn start(targets: Vec<SocketAddr>) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let chosen = Arc::new(AtomicUsize::new(0));
        let then = Arc::new(AtomicUsize::new(SAME));
        let (choice, next) = (Arc::clone(&chosen), Arc::clone(&then));
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if let Some(target) = targets.get(choice.load(Ordering::Relaxed)).copied() {
                    tokio::spawn(pass(client, target));
                }
                let next = next.swap(SAME, Ordering::Relaxed);
                if next != SAME {
                    choice.store(next, Ordering::Relaxed);
                }
            }
        });
        Ok(Self {
            address,
            chosen,
            then,
            task,
        })
    }

    /// Starts on a free port of 127.0.0.1; takes the targets in turn, and passes over those that do not answer.
    ///
    /// # Errors
    /// Where no port can be had.
    pub async fn even(targets: Vec<SocketAddr>) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let chosen = Arc::new(AtomicUsize::new(0));
        let turn = Arc::clone(&chosen);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let first = turn.fetch_add(1, Ordering::Relaxed);
                let mut order = targets.clone();
                order.rotate_left(first % targets.len().max(1));
                tokio::spawn(async move {
                    for target in order {
                        if let Ok(server) = TcpStream::connect(target).await {
                            return join(client, server).await;
                        }
                    }
                });
            }
        });
        Ok(Self {
            address,
            chosen,
            then: Arc::new(AtomicUsize::new(SAME)),
            task,
        })
    }

    /// From now on picks this one.
    pub fn choose(&self, index: usize) {
        self.chosen.store(index, Ordering::Relaxed);
    }

    /// The next connection goes to one, all that follow to another.
    pub fn choose_once(&self, index: usize, then: usize) {
        self.then.store(then, Ordering::Relaxed);
        self.choose(index);
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

/// A long line between two places.
#[derive(Debug, Clone, Copy)]
pub struct LongLine {
    /// So much later each byte arrives, in either direction.
    pub delay: Duration,
    /// What it carries in either direction; `None`: whatever comes.
    pub bytes_per_second: Option<u64>,
}

/// Relays on a bound port for ever over a long line, as far as the two ends' own flow control is concerned (TCP's own
/// windows see two short ones).
///
/// # Errors
/// Where accepting fails.
pub async fn long_line(listener: TcpListener, target: SocketAddr, line: LongLine) -> Result<()> {
    loop {
        let (client, _) = listener.accept().await?;
        tokio::spawn(async move {
            let Ok(server) = TcpStream::connect(target).await else {
                return;
            };
            let _ = (client.set_nodelay(true), server.set_nodelay(true));
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = server.into_split();
            tokio::join!(later(from_client, to_server, line), later(from_server, to_client, line));
        });
    }
}

/// One direction of a long line.
async fn later(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, line: LongLine) {
    let (begin, mut end) = tokio::sync::mpsc::channel::<(Instant, Bytes)>(LINE_CHUNKS);
    let read = async move {
        loop {
            let mut chunk = BytesMut::with_capacity(RELAY_BUFFER_BYTES);
            match from.read_buf(&mut chunk).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            if begin.send((Instant::now() + line.delay, chunk.freeze())).await.is_err() {
                return;
            }
        }
    };
    let write = async move {
        let mut free = Instant::now();
        while let Some((due, chunk)) = end.recv().await {
            tokio::time::sleep_until(due.max(free)).await;
            if let Some(rate) = line.bytes_per_second {
                free = due.max(free) + Duration::from_nanos(chunk.len() as u64 * 1_000_000_000 / rate.max(1));
            }
            if to.write_all(&chunk).await.is_err() {
                return;
            }
        }
        // The other side may be gone already.
        let _ = to.shutdown().await;
    };
    tokio::join!(read, write);
}

/// Relays on a bound port for ever. Towards the dialler a connection's first bytes go as they come; once `whole` have
/// gone, every byte goes by itself.
///
/// # Errors
/// Where accepting fails.
pub async fn dripping_line(listener: TcpListener, target: SocketAddr, whole: u64) -> Result<()> {
    loop {
        let (client, _) = listener.accept().await?;
        tokio::spawn(async move {
            let Ok(server) = TcpStream::connect(target).await else {
                return;
            };
            let _ = (client.set_nodelay(true), server.set_nodelay(true));
            let (mut from_client, to_client) = client.into_split();
            let (from_server, mut to_server) = server.into_split();
            let up = async move {
                let _ended = tokio::io::copy(&mut from_client, &mut to_server).await;
            };
            tokio::join!(up, drip(from_server, to_client, whole));
        });
    }
}

async fn drip(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut whole: u64) {
    let mut buffer = vec![0; RELAY_BUFFER_BYTES];
    loop {
        let Ok(read @ 1..) = from.read(&mut buffer).await else {
            return;
        };
        let bytes = buffer.get(..read).unwrap_or_default();
        let piece = if whole == 0 { 1 } else { read };
        whole = whole.saturating_sub(read as u64);
        for piece in bytes.chunks(piece) {
            if to.write_all(piece).await.is_err() {
                return;
            }
            if piece.len() == 1 {
                // The reader takes it before the next one comes.
                tokio::time::sleep(DRIP_PAUSE).await;
            }
        }
    }
}

async fn pass(client: TcpStream, target: SocketAddr) {
    if let Ok(server) = TcpStream::connect(target).await {
        join(client, server).await;
    }
}

async fn join(mut client: TcpStream, mut server: TcpStream) {
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    // Either side may break the connection at any time; the other then sees it end.
    let _ = copy_bidirectional_with_sizes(&mut client, &mut server, RELAY_BUFFER_BYTES, RELAY_BUFFER_BYTES).await;
}
