//! Slow, silent and hostile peers: they never delay another.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use hoop_tests::clients::Login;
use hoop_tests::full;
use hoop_tests::hoop::Hoop;
use hoop_tests::process::eventually;
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

#[tokio::test]
async fn silent_sockets_do_not_delay_a_login() -> Result<()> {
    let (count, limit) = if full() {
        (2000, Duration::from_millis(100))
    } else {
        hoop_tests::skipped("2,000 silent sockets", "200 were opened; ./dev test --full opens 2,000");
        (200, Duration::from_millis(500))
    };
    let hoop = Hoop::start().await?;
    let me = hoop.person().await?;
    let address = hoop.gateway()?.ready.postgres.clone();
    let mut silent = Vec::new();
    for _ in 0..count {
        silent.push(TcpStream::connect(&address).await?);
    }
    eventually(
        "logins beside silent sockets are quick",
        Duration::from_secs(20),
        async || {
            let took = login_time(&me).await?;
            ensure!(took < limit, "a login beside {count} silent sockets took {took:?}");
            Ok(Some(()))
        },
    )
    .await?;
    drop(silent);
    Ok(())
}

#[tokio::test]
async fn malformed_start_ups_end_in_an_error_or_a_closed_socket() -> Result<()> {
    let hoop = Hoop::start().await?;
    let me = hoop.person().await?;
    let address = hoop.gateway()?.ready.postgres.clone();
    let start_up = |body: &[u8]| {
        let length = u32::try_from(body.len() + 4).unwrap_or(u32::MAX);
        [length.to_be_bytes().as_slice(), body].concat()
    };
    let long = [b"\0\x03\0\0user\0".as_slice(), &[b'a'; 20_000], b"\0\0"].concat();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("length zero", vec![0; 8]),
        ("length one", vec![0, 0, 0, 1, 0, 3, 0, 0]),
        ("length negative", vec![0xff; 64]),
        ("two gigabytes announced", vec![0x7f, 0xff, 0xff, 0xff, 0, 3, 0, 0]),
        ("20 kB of user name", start_up(&long)),
        ("no user", start_up(b"\0\x03\0\0\0")),
        ("no terminator", start_up(b"\0\x03\0\0user\0abc")),
        ("an odd parameter", start_up(b"\0\x03\0\0user\0abc\0database\0\0\0x")),
        ("protocol 2", start_up(b"\0\x02\0\0user\0abc\0\0")),
        ("protocol 9", start_up(b"\0\x09\0\0user\0abc\0\0")),
        ("an HTTP request", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        (
            "a broken TLS hello",
            [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".as_slice(), &[0x41; 600]].concat(),
        ),
        ("a password before it is asked", b"p\0\0\0\x0asecret\0".to_vec()),
        (
            "a cancel of nobody",
            vec![0, 0, 0, 16, 4, 210, 22, 46, 0, 0, 0, 1, 0, 0, 0, 2],
        ),
        ("a short cancel", vec![0, 0, 0, 9, 4, 210, 22, 46, 0]),
        ("sixteen SSLRequests", [0, 0, 0, 8, 4, 210, 22, 47].repeat(16)),
    ];
    for (name, bytes) in cases {
        let mut socket = TcpStream::connect(&address).await?;
        // It may be closed while we still write.
        let _ = socket.write_all(&bytes).await;
        let mut told = Vec::new();
        let closed = tokio::time::timeout(CLOSE_DEADLINE, socket.read_to_end(&mut told)).await;
        ensure!(closed.is_ok(), "{name}: neither an error nor closed; told {told:?}");
    }
    // Slow bytes: a start-up that trickles in is ended by the deadline of its whole, not restarted by each byte.
    let mut socket = TcpStream::connect(&address).await?;
    let begun = Instant::now();
    let trickle = start_up(&long[..4000]);
    for byte in &trickle {
        if socket.write_all(std::slice::from_ref(byte)).await.is_err() {
            break;
        }
        let mut one = [0];
        if matches!(
            tokio::time::timeout(Duration::from_millis(100), socket.read(&mut one)).await,
            Ok(Ok(0) | Err(_))
        ) {
            break;
        }
        ensure!(
            begun.elapsed() < Duration::from_secs(90),
            "a trickling start-up is still open"
        );
    }
    ensure!(me.query("select 1").await? == "1");
    let log = hoop.gateway()?.process.log();
    ensure!(!log.contains("panicked"), "{log}");
    Ok(())
}

#[tokio::test]
async fn clients_that_stop_reading_delay_nobody_and_cost_no_memory() -> Result<()> {
    let count = if full() {
        100
    } else {
        hoop_tests::skipped("100 stalled readers", "20 were started; ./dev test --full starts 100");
        20
    };
    let hoop = Hoop::start().await?;
    let me = hoop.person().await?;
    let alone = login_time(&me).await?;
    let mut stalled = Stalled(Vec::new());
    for number in 0..count {
        let mut command = me.command("psql");
        // Most of them leave large frames unread, some many tiny ones.
        let sql = if number % 20 != 0 {
            "copy (select repeat('z', 100000) from generate_series(1, 100000)) to stdout"
        } else {
            "copy (select 1 from generate_series(1, 100000000)) to stdout"
        };
        command
            .args(["-X", "-q", "-c", sql])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        stalled.0.push(command.spawn()?);
    }
    // Until every buffer on the way is as full as it may get.
    let (mut last, mut still) = (0, 0);
    eventually("nothing moves any more", Duration::from_secs(240), async || {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let now = resident(&hoop)?;
        still = if now.abs_diff(last) < 512 { still + 1 } else { 0 };
        last = now;
        Ok((still >= 3).then_some(()))
    })
    .await?;
    let before = resident(&hoop)?;
    // Other tests share the machine: the claim is that no stalled reader is in the way, not how busy the machine is.
    eventually(
        "a login beside stalled readers is as quick as alone",
        Duration::from_secs(30),
        async || {
            let beside = login_time(&me).await?;
            ensure!(
                beside < alone * 2 + Duration::from_millis(100),
                "alone {alone:?}, beside stalled readers {beside:?}"
            );
            Ok(Some(()))
        },
    )
    .await?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let after = resident(&hoop)?;
    ensure!(
        after < before + 8 * 1024,
        "memory grew from {before} to {after} KiB while nobody read"
    );
    Ok(())
}

#[tokio::test]
async fn a_slow_reader_gets_its_whole_result() -> Result<()> {
    let hoop = Hoop::start().await?;
    let me = hoop.person().await?;
    let rows = if full() { 10_000 } else { 500 };
    let sql = format!("copy (select repeat('w', 100000) from generate_series(1, {rows})) to stdout");
    let mut command = me.command("sh");
    // Reads 1 MB, then pauses, again and again.
    command.args(["-c", "\"$1\" -X -q -c \"$2\" | while dd bs=1M count=8 iflag=fullblock status=none | wc -c | grep -v '^0$'; do sleep 0.2; done"]);
    command
        .arg("sh")
        .arg(hoop_tests::clients::own_program("psql".as_ref()))
        .arg(&sql);
    let said = hoop_tests::process::run(command, Duration::from_secs(600)).await?;
    let read: u64 = said
        .out
        .lines()
        .filter_map(|line| line.trim().parse::<u64>().ok())
        .sum();
    ensure!(read == rows * 100_001, "{read} bytes came: {}", said.err);
    Ok(())
}

struct Stalled(Vec<Child>);

impl Drop for Stalled {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Resident memory of gateway and agent, in KiB.
fn resident(hoop: &Hoop) -> Result<u64> {
    let mut sum = 0;
    for pid in hoop.pids() {
        let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .context("no VmRSS")?;
        sum += line.split_whitespace().next().context("no VmRSS")?.parse::<u64>()?;
    }
    Ok(sum)
}
