//! TCP: names to addresses, addresses to a socket. Used for the link and for targets; knows nothing of either.
//!
//! Addresses are tried in the resolver's order with families taking turns, the next one starting when the last has not
//! answered for a moment (RFC 8305, sections 4 and 5), so one dead address costs a quarter second and not a time-out.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};

/// Most addresses of one name that are tried.
const ADDRESSES_MAX: usize = 16;
/// How long the resolver may take.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an attempt runs alone before the next address is tried beside it (RFC 8305, section 5).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);
/// Idle time after which the kernel asks whether the peer is still there.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 3;

#[derive(Debug, thiserror::Error)]
pub enum NetError {
    #[error("the name could not be resolved")]
    Resolve(#[source] io::Error),
    #[error("the name could not be resolved within {} s", RESOLVE_TIMEOUT.as_secs())]
    ResolveTimeout,
    #[error("the name has no address")]
    NoAddress,
    #[error("no connection to {address}")]
    Connect { address: SocketAddr, source: io::Error },
    #[error("no connection within {0:?}")]
    ConnectTimeout(Duration),
}

/// The addresses of `host`, families taking turns, the resolver's first choice first.
pub async fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, NetError> {
    if let Ok(address) = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let found = timeout(RESOLVE_TIMEOUT, tokio::net::lookup_host((host, port)))
        .await
        .map_err(|_| NetError::ResolveTimeout)?
        .map_err(NetError::Resolve)?;
    let addresses = interleave(found.take(ADDRESSES_MAX).collect());
    if addresses.is_empty() {
        Err(NetError::NoAddress)
    } else {
        Ok(addresses)
    }
}

fn interleave(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first_is_v6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (mut same, mut other) = (Vec::new(), Vec::new());
    for address in addresses {
        if address.is_ipv6() == first_is_v6 {
            same.push(address)
        } else {
            other.push(address)
        }
    }
    let mut merged = Vec::with_capacity(same.len() + other.len());
    let (mut same, mut other) = (same.into_iter(), other.into_iter());
    loop {
        let before = merged.len();
        merged.extend(same.next());
        merged.extend(other.next());
        if merged.len() == before {
            return merged;
        }
    }
}

/// Connects to the first of `addresses` that answers, within `deadline` for all of them together. No delay, keepalive
/// on; buffer sizes are left to the kernel.
pub async fn connect(addresses: &[SocketAddr], deadline: Duration) -> Result<TcpStream, NetError> {
    let stream = timeout(deadline, race(addresses))
        .await
        .map_err(|_| NetError::ConnectTimeout(deadline))??;
    tune(&stream);
    Ok(stream)
}

async fn race(addresses: &[SocketAddr]) -> Result<TcpStream, NetError> {
    let mut waiting = addresses.iter().copied();
    let mut running = FuturesUnordered::new();
    let mut last_error = NetError::NoAddress;
    loop {
        if let Some(address) = waiting.next() {
            running.push(attempt(address));
        } else if running.is_empty() {
            return Err(last_error);
        }
        let next_start = Instant::now() + ATTEMPT_DELAY;
        let more = waiting.len() > 0;
        tokio::select! {
            biased;
            Some(result) = running.next() => match result {
                Ok(stream) => return Ok(stream),
                Err(error) => last_error = error,
            },
            () = sleep_until(next_start), if more => {}
        }
    }
}

async fn attempt(address: SocketAddr) -> Result<TcpStream, NetError> {
    TcpStream::connect(address)
        .await
        .map_err(|source| NetError::Connect { address, source })
}

/// A failure here costs speed or a late discovery of a dead peer, never correctness, so it is only noted.
fn tune(stream: &TcpStream) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY could not be set");
    }
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES);
    if let Err(error) = SockRef::from(stream).set_tcp_keepalive(&keepalive) {
        tracing::debug!(%error, "TCP keepalive could not be set");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[test]
    fn families_take_turns_beginning_with_the_resolvers_choice() {
        let list = |texts: &[&str]| {
            texts
                .iter()
                .map(|text| text.parse().unwrap())
                .collect::<Vec<SocketAddr>>()
        };
        let mixed = list(&["[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1", "2.2.2.2:1"]);
        assert_eq!(
            interleave(mixed),
            list(&["[::1]:1", "1.1.1.1:1", "[::2]:1", "2.2.2.2:1", "[::3]:1"])
        );
    }

    #[tokio::test]
    async fn an_address_that_refuses_is_passed_over() {
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let closed_address = closed.local_addr().unwrap();
        drop(closed);
        let open = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = connect(&[closed_address, open.local_addr().unwrap()], Duration::from_secs(5))
            .await
            .unwrap();
        assert_eq!(stream.peer_addr().unwrap(), open.local_addr().unwrap());
        assert!(stream.nodelay().unwrap());
        assert!(SockRef::from(&stream).keepalive().unwrap());
    }

    #[tokio::test]
    async fn when_every_address_refuses_the_last_one_is_named() {
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = closed.local_addr().unwrap();
        drop(closed);
        let error = connect(&[address], Duration::from_secs(5)).await.unwrap_err();
        assert!(
            matches!(error, NetError::Connect { address: named, .. } if named == address),
            "{error}"
        );
        assert!(matches!(
            connect(&[], Duration::from_secs(5)).await.unwrap_err(),
            NetError::NoAddress
        ));
    }

    #[tokio::test]
    async fn literal_addresses_need_no_resolver() {
        assert_eq!(resolve("[::1]", 5).await.unwrap(), ["[::1]:5".parse().unwrap()]);
        assert_eq!(resolve("127.0.0.1", 5).await.unwrap(), ["127.0.0.1:5".parse().unwrap()]);
    }
}
