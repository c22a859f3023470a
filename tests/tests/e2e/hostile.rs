//! Slow, silent and hostile peers: they never delay another.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use hoop_tests::clients::Login;
use hoop_tests::full;
use hoop_tests::hoop::Hoop;
use hoop_tests::process::{eventually, resident_kib};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// The handshake's own deadline is 30 s.
const CLOSE_DEADLINE: Duration = Duration::from_secs(40);

/// The median of five logins with one query, without a client program's start.
async fn login_time(login: &Login) -> Result<Duration> {
    let login = login.sslmode("disable");
    let mut times = Vec::new();
    for _ in 0..5 {
        let begun = Instant::now();
        login.connect().await?.simple_query("select 1").await?;
        times.push(begun.elapsed());
    }
    times.sort();
    times.get(2).copied().context("no login")
}

/// Silent sockets of one address: fewer than a gateway lets one address have before their login.
const SILENT_PER_ADDRESS: usize = 400;

#[tokio::test]
async fn silent_sockets_do_not_delay_a_login() -> Result<()> {
    let count = if full() {
        2000
    } else {
        hoop_tests::skipped("2,000 silent sockets", "200 were opened; ./dev test --full opens 2,000");
        200
    };
    let hoop = Hoop::start().await?;
    let me = hoop.person().await?;
    let gateway: std::net::SocketAddr = hoop.gateway()?.ready.postgres.parse()?;
    let sockets = open_files(hoop.gateway()?.process.pid())?;
    let before = login_time(&me).await?;
    let mut silent = Vec::new();
    for number in 0..count {
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.bind(format!("127.0.1.{}:0", 1 + number / SILENT_PER_ADDRESS).parse()?)?;
        silent.push(socket.connect(gateway).await?);
    }
    eventually("the gateway holds them all", Duration::from_secs(20), async || {
        let now = open_files(hoop.gateway()?.process.pid())?;
        Ok((now >= sockets + count).then_some(()))
    })
    .await?;
    let beside = login_time(&me).await?;
    ensure!(
        open_files(hoop.gateway()?.process.pid())? >= sockets + count,
        "they were not silent beside the logins"
    );
    drop(silent);
    let after = login_time(&me).await?;
    // A busy machine is as slow without them.
    let alone = before.max(after);
    ensure!(
        beside < Duration::from_millis(100) || beside < alone * 3 / 2,
        "logins took {before:?} before, {beside:?} beside {count} silent sockets, {after:?} after"
    );
    Ok(())
}

fn open_files(pid: u32) -> Result<usize> {
    Ok(std::fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

/// How a start-up ends.
#[derive(Debug, Clone, Copy)]
enum Ends {
    /// With an ErrorResponse of this SQLSTATE and message.
    Told(&'static str, &'static str),
    /// With nothing but the end of the connection.
    Closed,
}

/// SQLSTATE and message of an ErrorResponse (manual, "Message Formats").
fn error_response(bytes: &[u8]) -> Option<(String, String)> {
    let body = bytes.strip_prefix(b"E")?.get(4..)?;
    let field = |kind: u8| {
        body.split(|byte| *byte == 0)
            .find_map(|field| field.strip_prefix(&[kind]))
            .map(|text| String::from_utf8_lossy(text).into_owned())
    };
    Some((field(b'C')?, field(b'M')?))
}

fn start_up(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap_or(u32::MAX);
    [length.to_be_bytes().as_slice(), body].concat()
}

/// Bytes that begin no session, and what is said to them.
fn malformed() -> Vec<(&'static str, Vec<u8>, Ends)> {
    use Ends::{Closed, Told};
    let long = [b"\0\x03\0\0user\0".as_slice(), &[b'a'; 20_000], b"\0\0"].concat();
    let length = |_: &str| Told("08P01", "invalid length of startup packet");
    vec![
        ("length zero", vec![0; 8], length("")),
        ("length one", vec![0, 0, 0, 1, 0, 3, 0, 0], length("")),
        ("length negative", vec![0xff; 64], length("")),
        (
            "two gigabytes announced",
            vec![0x7f, 0xff, 0xff, 0xff, 0, 3, 0, 0],
            length(""),
        ),
        ("20 kB of user name", start_up(&long), length("")),
        (
            "no user",
            start_up(b"\0\x03\0\0\0"),
            Told("28000", "no PostgreSQL user name specified in startup packet"),
        ),
        (
            "no terminator",
            start_up(b"\0\x03\0\0user\0abc"),
            Told("08P01", "invalid startup packet"),
        ),
        (
            "an odd parameter",
            start_up(b"\0\x03\0\0user\0abc\0database\0\0\0x"),
            Told("08P01", "invalid startup packet"),
        ),
        (
            "a user that is no text",
            start_up(b"\0\x03\0\0user\0\xff\xfe\0\0"),
            Told("08P01", "invalid startup packet: parameter user is not UTF-8"),
        ),
        (
            "protocol 2",
            start_up(b"\0\x02\0\0user\0abc\0\0"),
            Told("0A000", "unsupported frontend protocol 2.0: server supports 3.0 to 3.2"),
        ),
        (
            "protocol 9",
            start_up(b"\0\x09\0\0user\0abc\0\0"),
            Told("0A000", "unsupported frontend protocol 9.0: server supports 3.0 to 3.2"),
        ),
        (
            "an HTTP request",
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
            length(""),
        ),
        (
            "a broken TLS hello",
            [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".as_slice(), &[0x41; 600]].concat(),
            Closed,
        ),
        (
            "a password before it is asked",
            b"p\0\0\0\x0asecret\0".to_vec(),
            length(""),
        ),
        (
            "a cancel of nobody",
            vec![0, 0, 0, 16, 4, 210, 22, 46, 0, 0, 0, 1, 0, 0, 0, 2],
            Closed,
        ),
        (
            "a short cancel",
            vec![0, 0, 0, 9, 4, 210, 22, 46, 0],
            Told(
                "08P01",
                "invalid startup packet: its process id is missing or malformed",
            ),
        ),
        (
            "clear text behind SSLRequest",
            [0, 0, 0, 8, 4, 210, 22, 47].repeat(16),
            Told("08P01", "received unencrypted data after SSL"),
        ),
    ]
}

/// Sends the bytes and reads to the end; an error of the connection is an end too.
async fn ended(address: &str, bytes: &[u8]) -> Result<Vec<u8>> {
    let mut socket = TcpStream::connect(address).await?;
    // It may be closed while we still write.
    let _ = socket.write_all(bytes).await;
    let mut told = Vec::new();
    let _ = tokio::time::timeout(CLOSE_DEADLINE, socket.read_to_end(&mut told))
        .await
        .context("neither an error nor closed")?;
    Ok(told)
}

#[tokio::test]
async fn malformed_start_ups_end_in_an_error_or_a_closed_socket() -> Result<()> {
    let hoop = Hoop::start().await?;
    let me = hoop.person().await?;
    let address = hoop.gateway()?.ready.postgres.clone();
    for (name, bytes, ends) in malformed() {
        let told = ended(&address, &bytes).await.context(name)?;
        match ends {
            Ends::Told(code, message) => {
                let (was, said) = error_response(&told).with_context(|| format!("{name}: {told:?}"))?;
                ensure!(was == code && said.starts_with(message), "{name}: {was} {said}");
            }
            Ends::Closed => ensure!(error_response(&told).is_none(), "{name}: {told:?}"),
        }
    }
    ensure!(me.query("select 1").await? == "1");
    let log = hoop.gateway()?.process.log();
    ensure!(!log.contains("panicked"), "{log}");
    Ok(())
}

/// What thousands of hostile connections may leave behind, in KiB: what the allocator keeps, and nothing for each of them.
const LEFT_BEHIND_KIB: u64 = 8 * 1024;

#[tokio::test]
async fn thousands_of_malformed_start_ups_leave_no_memory_behind() -> Result<()> {
    let rounds = if full() {
        300
    } else {
        hoop_tests::skipped(
            "5,100 malformed start-ups",
            "1,020 were sent; ./dev test --full sends 5,100",
        );
        60
    };
    let hoop = Hoop::start().await?;
    let me = hoop.person().await?;
    let address = hoop.gateway()?.ready.postgres.clone();
    let pid = hoop.gateway()?.process.pid();
    let cases = malformed();
    let round = async || {
        let all = cases.iter().map(|(_, bytes, _)| ended(&address, bytes));
        futures_util::future::try_join_all(all).await.map(drop)
    };
    for _ in 0..20 {
        round().await?;
    }
    let before = resident_kib(pid)?;
    for _ in 0..rounds {
        round().await?;
    }
    let after = resident_kib(pid)?;
    ensure!(
        after < before + LEFT_BEHIND_KIB,
        "memory grew from {before} to {after} KiB"
    );
    ensure!(me.query("select 1").await? == "1");
    Ok(())
}

#[tokio::test]
async fn start_ups_that_trickle_in_are_ended_and_hold_little() -> Result<()> {
    let hoop = Hoop::start().await?;
    let me = hoop.person().await?;
    let address = hoop.gateway()?.ready.postgres.clone();
    let pid = hoop.gateway()?.process.pid();
    let before = resident_kib(pid)?;
    let long = [b"\0\x03\0\0user\0".as_slice(), &[b'a'; 4000], b"\0\0"].concat();
    let bytes = start_up(&long);
    let begun = Instant::now();
    let trickle = async || {
        let mut socket = TcpStream::connect(&address).await?;
        for byte in &bytes {
            let mut one = [0];
            let pause = Duration::from_millis(100);
            if socket.write_all(std::slice::from_ref(byte)).await.is_err()
                || matches!(
                    tokio::time::timeout(pause, socket.read(&mut one)).await,
                    Ok(Ok(0) | Err(_))
                )
            {
                return Ok(());
            }
            // By the deadline of the whole: no byte starts it anew.
            ensure!(begun.elapsed() < CLOSE_DEADLINE, "a trickling start-up is still open");
        }
        anyhow::bail!("it was read to its end")
    };
    let all = futures_util::future::try_join_all((0..TRICKLING).map(|_| trickle()));
    let look = async {
        tokio::time::sleep(Duration::from_secs(10)).await;
        let during = resident_kib(pid)?;
        ensure!(
            during < before + LEFT_BEHIND_KIB,
            "memory grew from {before} to {during} KiB with {TRICKLING} trickling start-ups"
        );
        me.query("select 1").await
    };
    let (ended, beside) = tokio::join!(all, look);
    ended?;
    ensure!(beside? == "1");
    Ok(())
}

/// Clients that send a byte every 100 ms.
const TRICKLING: usize = 300;
