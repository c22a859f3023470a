//! Bare TCP: a balancer before replicas, and a relay that adds nothing (the limit of any gateway and agent).

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;
use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// What a relay reads at once, in bytes.
pub const RELAY_BUFFER_BYTES: usize = 64 * 1024;

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

async fn pass(mut client: TcpStream, target: SocketAddr) {
    let Ok(mut server) = TcpStream::connect(target).await else {
        return;
    };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    // Either side may break the connection at any time; the other then sees it end.
    let _ = copy_bidirectional_with_sizes(&mut client, &mut server, RELAY_BUFFER_BYTES, RELAY_BUFFER_BYTES).await;
}
