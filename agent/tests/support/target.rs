//! A target that takes any PostgreSQL login and then echoes, and remembers the cancels that it was sent.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

pub const PROCESS_ID: u32 = 4_711;
pub const SECRET: [u8; 4] = [1, 2, 3, 4];
const CANCEL_CODE: u32 = 80_877_102;

type Cancels = Arc<Mutex<Vec<(u32, Vec<u8>)>>>;

#[derive(Clone, Copy, PartialEq)]
pub enum Behaviour {
    /// Sends back what it gets; closes when the peer has.
    Echo,
    /// Sends so many bytes and closes.
    Source(usize),
    /// Reads nothing and says nothing.
    Deaf,
}

pub struct EchoTarget {
    pub address: SocketAddr,
    cancels: Cancels,
    cancelled: Arc<Notify>,
}

impl EchoTarget {
    pub async fn start(behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let cancels = Arc::new(Mutex::new(Vec::new()));
        let cancelled = Arc::new(Notify::new());
        let (seen, notify) = (Arc::clone(&cancels), Arc::clone(&cancelled));
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(serve(socket, behaviour, Arc::clone(&seen), Arc::clone(&notify)));
            }
        });
        Self {
            address,
            cancels,
            cancelled,
        }
    }

    /// Waits for the first cancel.
    pub async fn cancel(&self) -> (u32, Vec<u8>) {
        loop {
            let notified = self.cancelled.notified();
            if let Some(cancel) = self.cancels.lock().unwrap().first() {
                return cancel.clone();
            }
            notified.await;
        }
    }
}

async fn serve(mut socket: TcpStream, behaviour: Behaviour, cancels: Cancels, cancelled: Arc<Notify>) -> Option<()> {
    let length = socket.read_u32().await.ok()?;
    let mut startup = vec![0; length as usize - 4];
    socket.read_exact(&mut startup).await.ok()?;
    if startup[..4] == CANCEL_CODE.to_be_bytes() {
        let process_id = u32::from_be_bytes(startup[4..8].try_into().ok()?);
        cancels.lock().unwrap().push((process_id, startup[8..].to_vec()));
        cancelled.notify_waiters();
        return None;
    }
    let mut answer = b"R\0\0\0\x08\0\0\0\0S\0\0\0\x09a\0bc\0".to_vec();
    answer.extend_from_slice(b"K\0\0\0\x0c");
    answer.extend_from_slice(&PROCESS_ID.to_be_bytes());
    answer.extend_from_slice(&SECRET);
    answer.extend_from_slice(b"Z\0\0\0\x05I");
    socket.write_all(&answer).await.ok()?;
    match behaviour {
        Behaviour::Echo => {
            let mut buffer = vec![0; 64 * 1024];
            loop {
                let read = socket.read(&mut buffer).await.ok()?;
                if read == 0 {
                    return Some(());
                }
                socket.write_all(&buffer[..read]).await.ok()?;
            }
        }
        Behaviour::Source(bytes) => {
            let piece: Vec<u8> = (0..251_u8).cycle().take(251 * 1000).collect();
            let mut left = bytes;
            while left > 0 {
                let now = left.min(piece.len());
                socket.write_all(&piece[..now]).await.ok()?;
                left -= now;
            }
        }
        Behaviour::Deaf => std::future::pending().await,
    }
    Some(())
}
