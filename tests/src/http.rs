//! A client of the gateway's REST API: JSON over HTTP/1.1, one connection a request.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const REQUEST_DEADLINE: Duration = Duration::from_secs(30);

/// Somebody who is signed in.
#[derive(Debug, Clone)]
pub struct Api {
    authority: String,
    token: Option<String>,
}

/// An answer as it came.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    head: String,
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as JSON; null where it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// The first header of this name.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.head.lines().filter_map(|line| line.split_once(':'));
        let found = headers.find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.trim())
    }

    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Api {
    /// Nobody yet. `base` is `http://host:port`.
    #[must_use]
    pub fn anonymous(base: &str) -> Self {
        let authority = base.trim_start_matches("http://").trim_end_matches('/').to_owned();
        Self { authority, token: None }
    }

    /// Somebody who has a token already.
    #[must_use]
    pub fn with_token(base: &str, token: &str) -> Self {
        Self {
            token: Some(token.to_owned()),
            ..Self::anonymous(base)
        }
    }

    /// Signs in.
    ///
    /// # Errors
    /// Where the gateway refuses.
    pub async fn login(base: &str, username: &str, password: &str) -> Result<Self> {
        let mut api = Self::anonymous(base);
        let answer = api
            .post("/api/login", json!({"username": username, "password": password}))
            .await?;
        let token = answer
            .get("token")
            .and_then(Value::as_str)
            .context("login answered no token")?;
        api.token = Some(token.to_owned());
        Ok(api)
    }

    /// The same person at another replica.
    #[must_use]
    pub fn at(&self, base: &str) -> Self {
        Self {
            token: self.token.clone(),
            ..Self::anonymous(base)
        }
    }

    /// `host:port`.
    #[must_use]
    pub fn authority(&self) -> &str {
        &self.authority
    }

    #[must_use]
    pub fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// One request, whatever the answer.
    ///
    /// # Errors
    /// Where no whole answer comes within 30 s.
    pub async fn send(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Answer> {
        self.send_with(method, path, body, &[]).await
    }

    /// The same with further headers.
    ///
    /// # Errors
    /// Where no whole answer comes within 30 s.
    pub async fn send_with(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
        headers: &[(&str, &str)],
    ) -> Result<Answer> {
        let exchange = self.exchange(method, path, body, headers);
        tokio::time::timeout(REQUEST_DEADLINE, exchange)
            .await
            .with_context(|| format!("{method} {path}: no answer within {REQUEST_DEADLINE:?}"))?
            .with_context(|| format!("{method} {path}"))
    }

    /// # Errors
    /// Where the answer is not 2xx.
    pub async fn get(&self, path: &str) -> Result<Value> {
        self.good("GET", path, None).await
    }

    /// # Errors
    /// Where the answer is not 2xx.
    pub async fn post(&self, path: &str, body: Value) -> Result<Value> {
        self.good("POST", path, Some(body)).await
    }

    /// # Errors
    /// Where the answer is not 2xx.
    pub async fn put(&self, path: &str, body: Value) -> Result<Value> {
        self.good("PUT", path, Some(body)).await
    }

    /// # Errors
    /// Where the answer is not 2xx.
    pub async fn delete(&self, path: &str) -> Result<Value> {
        self.good("DELETE", path, None).await
    }

    async fn good(&self, method: &str, path: &str, body: Option<Value>) -> Result<Value> {
        let answer = self.send(method, path, body.as_ref()).await?;
        if !(200..300).contains(&answer.status) {
            bail!("{method} {path}: {} {}", answer.status, answer.text());
        }
        Ok(answer.json())
    }

    async fn exchange(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
        headers: &[(&str, &str)],
    ) -> Result<Answer> {
        let body = body.map(Value::to_string);
        let mut head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n",
            self.authority
        );
        if let Some(token) = &self.token {
            head += &format!("Authorization: Bearer {token}\r\n");
        }
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        if let Some(body) = &body {
            head += &format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
        } else if method != "GET" {
            head += "Content-Length: 0\r\n";
        }
        head += "\r\n";
        let mut stream = TcpStream::connect(&self.authority).await?;
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(body.unwrap_or_default().as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        parse(&answer)
    }
}

/// RFC 9112 as far as a test needs it: status line, headers, a body that ends with the connection or is chunked.
fn parse(answer: &[u8]) -> Result<Answer> {
    let end = answer
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .context("no end of headers")?;
    let (head, rest) = answer.split_at(end);
    let head = String::from_utf8_lossy(head).into_owned();
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .context("no status")?;
    let body = rest.get(4..).unwrap_or_default();
    let body = if head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        dechunk(body)?
    } else {
        body.to_vec()
    };
    Ok(Answer { status, head, body })
}

fn dechunk(mut bytes: &[u8]) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = bytes
            .windows(2)
            .position(|two| two == b"\r\n")
            .context("chunk without a length")?;
        let (length, rest) = bytes.split_at(end);
        let length = String::from_utf8_lossy(length);
        let length = usize::from_str_radix(length.split(';').next().unwrap_or_default().trim(), 16)?;
        let rest = rest.get(2..).unwrap_or_default();
        if length == 0 {
            return Ok(body);
        }
        body.extend_from_slice(rest.get(..length).context("a chunk was cut")?);
        bytes = rest.get(length + 2..).context("a chunk was cut")?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunked_body_is_put_together() {
        let answer =
            parse(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n").unwrap();
        assert_eq!((answer.status, answer.text().as_str()), (200, "abcd"));
    }
}
