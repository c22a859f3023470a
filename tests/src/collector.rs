//! A collector of traces (OTLP over HTTP, JSON): keeps what it is sent.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// Listens until it is dropped.
pub struct Collector {
    /// Its base URL.
    pub url: String,
    bodies: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Collector {
    /// # Errors
    /// Where no port is free.
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let bodies: Arc<Mutex<Vec<String>>> = Arc::default();
        let kept = Arc::clone(&bodies);
        let task = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let kept = Arc::clone(&kept);
                // a sender that leaves in the middle has sent nothing
                tokio::spawn(async move { drop(serve(socket, &kept).await) });
            }
        });
        Ok(Self { url, bodies, task })
    }

    /// Everything that was sent, as it came.
    #[must_use]
    pub fn text(&self) -> String {
        self.bodies.lock().unwrap_or_else(PoisonError::into_inner).join("\n")
    }

    /// Every span.
    #[must_use]
    pub fn spans(&self) -> Vec<Value> {
        let bodies = self.bodies.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut spans = Vec::new();
        for body in bodies {
            let request: Value = serde_json::from_str(&body).unwrap_or_default();
            if let Some(Value::Array(sent)) = request.pointer("/resourceSpans/0/scopeSpans/0/spans") {
                spans.extend(sent.iter().cloned());
            }
        }
        spans
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(socket: TcpStream, kept: &Mutex<Vec<String>>) -> Result<()> {
    let mut socket = BufReader::new(socket);
    loop {
        let (mut length, mut line) = (0, String::new());
        loop {
            line.clear();
            if socket.read_line(&mut line).await? == 0 {
                return Ok(());
            }
            if line == "\r\n" {
                break;
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse()?;
            }
        }
        let mut body = vec![0; length];
        socket.read_exact(&mut body).await?;
        let body = String::from_utf8_lossy(&body).into_owned();
        kept.lock().unwrap_or_else(PoisonError::into_inner).push(body);
        socket
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}")
            .await?;
    }
}
