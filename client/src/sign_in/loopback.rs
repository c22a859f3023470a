//! With the browser of this machine (RFC 8252): the browser brings a one-time code to a port that only this machine
//! reaches, and the code is good only with the verifier that never left here (RFC 7636).

use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use url::Url;
use zeroize::Zeroizing;

use super::{Token, client_name};
use crate::server::Server;
use crate::{browser, show};

/// How long the person may take.
const PERSON_DEADLINE: Duration = Duration::from_secs(600);
/// How long a request on the port may take.
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);
/// The first line of a request and its headers, at most.
const REQUEST_MAX_BYTES: usize = 16 * 1024;
const RANDOM_BYTES: usize = 32;

/// Opens the browser and waits for it to come back.
///
/// # Errors
/// Where the person says no or nothing, or the gateway cannot be asked.
pub async fn run(server: &Server) -> Result<Token> {
    let (verifier, state) = (secret()?, secret()?);
    let challenge = URL_SAFE_NO_PAD.encode(digest(&SHA256, verifier.as_bytes()));
    let listener = TcpListener::bind(("127.0.0.1", 0))
        .await
        .context("listening on 127.0.0.1")?;
    let redirect_uri = format!("http://{}/", listener.local_addr()?);
    let mut page = Url::parse(&format!("{}/api/sign-in/loopback", server.address()))?;
    page.query_pairs_mut()
        .append_pair("redirect_uri", &redirect_uri)
        .append_pair("code_challenge", &challenge)
        .append_pair("state", &state)
        .append_pair("client_name", &client_name());
    show::line(&format!(
        "Opening the browser. If none comes up, open\n\n    {page}\n\nor run hoop login --device."
    ));
    browser::open(page.as_str());
    let waited = tokio::time::timeout(PERSON_DEADLINE, answer(&listener, &state)).await;
    let code = waited.map_err(|_| anyhow!("Nobody answered in time. Run hoop login again."))??;
    let body = json!({"code": code.as_str(), "code_verifier": verifier.as_str()});
    server.post("/api/sign-in/loopback/token", &body).await
}

fn secret() -> Result<Zeroizing<String>> {
    let mut bytes = Zeroizing::new([0; RANDOM_BYTES]);
    aws_lc_rs::rand::fill(bytes.as_mut_slice()).map_err(|_| anyhow!("no random numbers"))?;
    Ok(Zeroizing::new(URL_SAFE_NO_PAD.encode(bytes.as_slice())))
}

/// The code that the browser brings. Requests without our state are of somebody else, and are passed over.
async fn answer(listener: &TcpListener, state: &str) -> Result<Zeroizing<String>> {
    loop {
        let (mut socket, _) = listener.accept().await.context("listening on 127.0.0.1")?;
        let target = tokio::time::timeout(REQUEST_DEADLINE, target(&mut socket)).await;
        let brought = match target {
            Ok(Some(target)) => brought(&target, state),
            _ => None,
        };
        match brought {
            Some(Brought::Code(code)) => {
                reply(&mut socket, "200 OK", "You are signed in. Go back to your terminal.").await;
                return Ok(code);
            }
            Some(Brought::Refused) => {
                reply(&mut socket, "200 OK", "The sign-in was refused.").await;
                bail!("The sign-in was refused in the browser.");
            }
            None => reply(&mut socket, "404 Not Found", "There is nothing here.").await,
        }
    }
}

enum Brought {
    Code(Zeroizing<String>),
    Refused,
}

fn brought(target: &str, state: &str) -> Option<Brought> {
    let url = Url::parse("http://127.0.0.1").ok()?.join(target).ok()?;
    let find = |name: &str| {
        url.query_pairs()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.into_owned())
    };
    verify_slices_are_equal(find("state")?.as_bytes(), state.as_bytes()).ok()?;
    match find("code") {
        Some(code) => Some(Brought::Code(Zeroizing::new(code))),
        None => Some(Brought::Refused),
    }
}

/// What is asked for, of a request whose headers are there (RFC 9112, section 3).
async fn target(socket: &mut TcpStream) -> Option<Zeroizing<String>> {
    let mut head = Zeroizing::new(Vec::new());
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let mut piece = [0; 1024];
        let read = socket.read(&mut piece).await.ok()?;
        if read == 0 || head.len() + read > REQUEST_MAX_BYTES {
            return None;
        }
        head.extend_from_slice(piece.get(..read)?);
    }
    let line = std::str::from_utf8(head.split(|byte| *byte == b'\r').next()?).ok()?;
    let mut words = line.split(' ');
    (words.next() == Some("GET")).then_some(())?;
    words.next().map(|target| Zeroizing::new(target.to_owned()))
}

async fn reply(socket: &mut TcpStream, status: &str, text: &str) {
    let page = format!("<!doctype html><meta charset=\"utf-8\"><title>Hoop</title><p>{text}</p>");
    let answer = format!(
        "HTTP/1.1 {status}\r\ncontent-type: text/html; charset=utf-8\r\ncontent-length: {}\r\ncache-control: no-store\r\n\
         connection: close\r\n\r\n{page}",
        page.len()
    );
    // the browser may have gone already
    let _ = socket.write_all(answer.as_bytes()).await;
    let _ = socket.shutdown().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_counts_with_our_state_alone() {
        assert!(matches!(brought("/?code=abc&state=s", "s"), Some(Brought::Code(code)) if *code == "abc"));
        assert!(matches!(
            brought("/?error=access_denied&state=s", "s"),
            Some(Brought::Refused)
        ));
        for stranger in [
            "/?code=abc&state=t",
            "/?code=abc",
            "/favicon.ico",
            "",
            "//[",
            "/?state=",
        ] {
            assert!(brought(stranger, "s").is_none(), "{stranger}");
        }
    }

    #[tokio::test]
    async fn strangers_on_the_port_are_passed_over() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let ask = async |request: String| {
            let mut socket = TcpStream::connect(address).await.unwrap();
            socket.write_all(request.as_bytes()).await.unwrap();
            socket.shutdown().await.unwrap();
            let mut answer = String::new();
            socket.read_to_string(&mut answer).await.unwrap();
            answer
        };
        let asked = async {
            let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(2 * REQUEST_MAX_BYTES));
            assert!(
                !ask("GET /?code=evil&state=guess HTTP/1.1\r\n\r\n".into())
                    .await
                    .contains("200 OK")
            );
            assert!(
                !ask("POST /?code=evil&state=right HTTP/1.1\r\n\r\n".into())
                    .await
                    .contains("200 OK")
            );
            let mut socket = TcpStream::connect(address).await.unwrap();
            // it may be closed before all of it is written
            let _ = socket.write_all(long.as_bytes()).await;
            assert!(
                ask("GET /?code=good&state=right HTTP/1.1\r\n\r\n".into())
                    .await
                    .contains("200 OK")
            );
        };
        let (code, ()) = tokio::join!(answer(&listener, "right"), asked);
        assert_eq!(*code.unwrap(), "good");
    }
}
