//! A listener to `GET /api/events`: one connection, server-sent events as they come.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

use crate::http::Api;

const OPEN_DEADLINE: Duration = Duration::from_secs(20);

/// One event.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Event {
    pub id: String,
    pub name: String,
    pub data: Value,
}

/// An open stream.
pub struct Events {
    socket: BufReader<TcpStream>,
    /// Text that is not an event yet.
    text: String,
    over: bool,
}

impl Events {
    /// Opens a stream and waits for its first event, which is answered too.
    ///
    /// # Errors
    /// Where the answer is not 200, or the first event does not come within 20 s.
    pub async fn open(api: &Api, last_event_id: Option<&str>) -> Result<(Self, Event)> {
        let opening = async {
            let mut socket = TcpStream::connect(api.authority()).await?;
            let mut head = format!("GET /api/events HTTP/1.1\r\nHost: {}\r\n", api.authority());
            if let Some(token) = api.token() {
                head += &format!("Authorization: Bearer {token}\r\n");
            }
            if let Some(id) = last_event_id {
                head += &format!("Last-Event-ID: {id}\r\n");
            }
            socket.write_all(format!("{head}\r\n").as_bytes()).await?;
            let mut socket = BufReader::new(socket);
            let mut status = String::new();
            socket.read_line(&mut status).await?;
            ensure!(status.contains(" 200 "), "events: {status}");
            let mut header = String::new();
            while header != "\r\n" {
                header.clear();
                ensure!(socket.read_line(&mut header).await? > 0, "no end of headers");
            }
            let mut events = Self {
                socket,
                text: String::new(),
                over: false,
            };
            let first = events.read().await?.context("the stream ended at once")?;
            Ok((events, first))
        };
        tokio::time::timeout(OPEN_DEADLINE, opening)
            .await
            .context("no first event within 20 s")?
    }

    /// The next event with this name; others are passed over. `None` where the stream ends first.
    ///
    /// # Errors
    /// Where neither comes in time.
    pub async fn next(&mut self, name: &str, within: Duration) -> Result<Option<Event>> {
        let waiting = async {
            while let Some(event) = self.read().await? {
                if event.name == name {
                    return Ok(Some(event));
                }
            }
            Ok(None)
        };
        tokio::time::timeout(within, waiting)
            .await
            .with_context(|| format!("no event {name} within {within:?}"))?
    }

    /// Every event until one of this name, which is the last.
    ///
    /// # Errors
    /// Where it does not come in time, or the stream ends before it.
    pub async fn until(&mut self, name: &str, within: Duration) -> Result<Vec<Event>> {
        let mut seen: Vec<Event> = Vec::new();
        let waiting = async {
            loop {
                let event = self.read().await?.context("the stream ended")?;
                seen.push(event);
                if seen.last().is_some_and(|event| event.name == name) {
                    return Ok(seen);
                }
            }
        };
        tokio::time::timeout(within, waiting)
            .await
            .with_context(|| format!("no event {name} within {within:?}"))?
    }

    async fn read(&mut self) -> Result<Option<Event>> {
        loop {
            if let Some((block, rest)) = self.text.split_once("\n\n") {
                let event = parse(block);
                self.text = rest.to_owned();
                match event {
                    Some(event) => return Ok(Some(event)),
                    None => continue,
                }
            }
            if self.over {
                return Ok(None);
            }
            self.chunk().await?;
        }
    }

    /// RFC 9112 §7.1.
    async fn chunk(&mut self) -> Result<()> {
        let mut length = String::new();
        if self.socket.read_line(&mut length).await? == 0 {
            self.over = true;
            return Ok(());
        }
        let length = usize::from_str_radix(length.trim(), 16).with_context(|| format!("chunk length {length:?}"))?;
        let mut bytes = vec![0; length + 2];
        self.socket.read_exact(&mut bytes).await?;
        if !bytes.ends_with(b"\r\n") {
            bail!("a chunk without its end");
        }
        bytes.truncate(length);
        self.over = length == 0;
        self.text.push_str(std::str::from_utf8(&bytes)?);
        Ok(())
    }
}

/// `None` for a block of comments.
fn parse(block: &str) -> Option<Event> {
    let mut event = Event::default();
    for line in block.lines() {
        match line.split_once(": ") {
            Some(("id", id)) => event.id = id.to_owned(),
            Some(("event", name)) => event.name = name.to_owned(),
            Some(("data", data)) => event.data = serde_json::from_str(data).unwrap_or(Value::Null),
            _ => {}
        }
    }
    (!event.name.is_empty()).then_some(event)
}
