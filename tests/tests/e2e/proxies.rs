//! Behind a balancer: whom a trusted proxy names is whom the gateway counts and records; nobody else is believed.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hoop_tests::hoop::{Hoop, Options};
use hoop_tests::process::eventually;
use hoop_tests::record::text;
use hoop_tests::tls::Tls;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// The balancer's address here; the gateway trusts it alone.
const PROXY: &str = "127.0.0.9";
const CLOSE_DEADLINE: Duration = Duration::from_secs(10);
const VERSION_1: &[u8] = b"PROXY TCP4 203.0.113.7 192.0.2.1 4711 15432\r\n";
/// 2001:db8::7, port 4712.
const VERSION_2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x24\
    \x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x07\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x01\x12\x68\x3c\x48";

async fn hoop() -> Result<Hoop> {
    Hoop::with(Options {
        gateway_env: vec![("HOOP_TRUSTED_PROXIES".into(), format!("{PROXY}/32, 192.0.2.0/24"))],
        ..Options::default()
    })
    .await
}

async fn from_proxy(to: SocketAddr) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(PROXY.parse()?, 0))?;
    Ok(socket.connect(to).await?)
}

/// A balancer that begins each connection with `header`.
async fn balancer(to: &str, header: &'static [u8]) -> Result<SocketAddr> {
    let to: SocketAddr = to.parse()?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut server = from_proxy(to).await?;
                server.write_all(header).await?;
                copy_bidirectional(&mut client, &mut server).await?;
                anyhow::Ok(())
            });
        }
    });
    Ok(address)
}

/// Whether the gateway closes this connection without a word.
async fn closed_at_once(mut socket: TcpStream, says: &[u8]) -> Result<()> {
    // it may be closed while we still write
    let _ = socket.write_all(says).await;
    let mut told = Vec::new();
    let read = tokio::time::timeout(CLOSE_DEADLINE, socket.read_to_end(&mut told)).await;
    let read = read.context("it is still open")?;
    ensure!(read.is_err() || !told.starts_with(b"R"), "a login went on: {told:?}");
    Ok(())
}

#[tokio::test]
async fn the_record_names_whom_a_trusted_proxy_names_by_either_version() -> Result<()> {
    let hoop = hoop().await?;
    let me = hoop.person().await?;
    let gateway = hoop.gateway()?.ready.postgres.clone();
    for (header, client) in [(VERSION_1, "203.0.113.7:4711"), (VERSION_2, "[2001:db8::7]:4712")] {
        let balancer = balancer(&gateway, header).await?;
        let application = format!("from {client}");
        let login = me.port(balancer.port()).with("PGAPPNAME", &application);
        ensure!(login.query("select 1").await? == "1");
        let session = hoop.session(&application).await?;
        ensure!(text(&session, "client_address") == client, "{session}");
    }
    Ok(())
}

#[tokio::test]
async fn the_agents_port_takes_the_header_too() -> Result<()> {
    let hoop = hoop().await?;
    let balancer = balancer(&hoop.gateway()?.ready.link, VERSION_2).await?;
    let ca_pem = std::fs::read_to_string(&hoop.ca_file)?;
    let tls = tokio::task::spawn_blocking(move || Tls::connect(&balancer.to_string(), &ca_pem, b"h2", b"")).await??;
    ensure!(!tls.certificate().is_empty());
    Ok(())
}

#[tokio::test]
async fn a_header_from_anybody_else_and_a_trusted_proxy_without_one_are_closed() -> Result<()> {
    let hoop = hoop().await?;
    let me = hoop.person().await?;
    let ready = &hoop.gateway()?.ready;
    for address in [&ready.postgres, &ready.link] {
        let address: SocketAddr = address.parse()?;
        for header in [VERSION_1, VERSION_2] {
            closed_at_once(TcpStream::connect(address).await?, header).await?;
        }
        closed_at_once(
            from_proxy(address).await?,
            b"\0\0\0\x08\x04\xd2\x16\x2f and no header at all",
        )
        .await?;
        // a header that is cut off, and then silence: closed by its own deadline
        closed_at_once(from_proxy(address).await?, b"PROXY TCP4 203.0").await?;
    }
    let without = balancer(&ready.postgres, b"").await?;
    let said = me.port(without.port()).psql(&["-c", "select 1"]).await?;
    ensure!(!said.ok, "{}", said.out);
    ensure!(me.query("select 1").await? == "1", "who comes directly needs no header");
    Ok(())
}

#[tokio::test]
async fn a_failed_sign_in_is_counted_by_the_address_that_a_trusted_proxy_forwards() -> Result<()> {
    let hoop = hoop().await?;
    let api: SocketAddr = hoop.gateway()?.ready.api.trim_start_matches("http://").parse()?;
    let body = r#"{"username":"nobody","password":"wrong"}"#;
    let request = format!(
        "POST /api/login HTTP/1.1\r\nHost: hoop\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         X-Forwarded-For: 198.51.100.66, 203.0.113.8\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    for (mut socket, counted) in [
        (from_proxy(api).await?, "203.0.113.8"),
        (TcpStream::connect(api).await?, "127.0.0.1"),
    ] {
        socket.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await?;
        ensure!(answer.starts_with("HTTP/1.1 401"), "{answer}");
        eventually("the failure is logged with its address", CLOSE_DEADLINE, async || {
            let log = hoop.gateway()?.process.log();
            let failed = log.lines().rfind(|line| line.contains("a sign-in failed"));
            Ok(failed.is_some_and(|line| line.contains(counted)).then_some(()))
        })
        .await?;
    }
    ensure!(
        !hoop.gateway()?.process.log().contains("198.51.100.66"),
        "the client's own word was believed"
    );
    Ok(())
}
