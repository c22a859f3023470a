//! A listening socket: bound dual-stack, accepted on the main arbiter, each connection handed to an arbiter in turn.
//! Binding is apart from accepting: a bind error is retried with backoff by the listener's keeper, an accept error is
//! logged, counted, and the loop goes on.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, ActorContext, AsyncContext, Context};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tracing::{error, warn};

/// Connections that the kernel holds ready for us.
const BACKLOG: i32 = 4096;
/// Pause after an accept error that is ours (no file descriptors left), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Keepalive of every socket: a peer that is gone is noticed.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// Binds `address`. An IPv6 wildcard takes IPv4 too.
///
/// # Errors
/// The system's, e.g. address in use.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Sets a fresh connection's options: no delay, keepalive.
pub fn tune(socket: &TcpStream) {
    let socket = SockRef::from(socket);
    // a socket that is gone already tells so at its first read
    drop(socket.set_tcp_nodelay(true));
    drop(socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE)));
}

/// What a listener does with a connection: hand it to an arbiter.
pub type Deliver = Arc<dyn Fn(TcpStream, SocketAddr) + Send + Sync>;

/// The listener's actor: one protocol, one port.
pub struct Listener {
    name: &'static str,
    socket: io::Result<TcpListener>,
    deliver: Deliver,
}

impl Listener {
    /// Makes a listener, as often as its keeper needs one. The bound socket outlives them all, so no connection that
    /// the kernel has taken is lost between two.
    pub fn factory(name: &'static str, socket: TcpListener, deliver: Deliver) -> impl FnMut() -> Self + Send + 'static {
        move || Self {
            name,
            socket: socket.try_clone(),
            deliver: deliver.clone(),
        }
    }
}

impl Actor for Listener {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let (name, deliver) = (self.name, self.deliver.clone());
        let socket = std::mem::replace(&mut self.socket, Err(io::ErrorKind::NotConnected.into()));
        let listener = match socket.and_then(tokio::net::TcpListener::from_std) {
            Ok(listener) => listener,
            Err(error) => {
                error!(%error, listener = name, "cannot listen");
                ctx.stop();
                return;
            }
        };
        ctx.spawn(actix::fut::wrap_future(async move {
            loop {
                match listener
                    .accept()
                    .await
                    .and_then(|(socket, client)| Ok((socket.into_std()?, client)))
                {
                    Ok((socket, client)) => {
                        tune(&socket);
                        deliver(socket, client);
                    }
                    Err(error) => {
                        warn!(%error, listener = name, "cannot accept a connection");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        }));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, Ordering};

    use actix::Arbiter;
    use hoop_actors::keeper::{Keeper, Policy};
    use tokio::io::AsyncReadExt;

    use super::*;

    /// Longest wait for the restarted listener.
    const PATIENCE: Duration = Duration::from_secs(20);

    #[actix_rt::test]
    async fn a_listener_that_panics_is_restarted_and_loses_no_connection_that_waits() {
        let socket = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = socket.local_addr().unwrap();
        let panicked = Arc::new(AtomicBool::new(false));
        let (first, kept) = (panicked.clone(), Mutex::new(Vec::new()));
        let deliver: Deliver = Arc::new(move |socket, client| {
            assert!(
                first.swap(true, Ordering::SeqCst),
                "the first connection makes it panic"
            );
            use std::io::Write;
            (&socket).write_all(b"served").unwrap();
            kept.lock().unwrap().push((socket, client));
        });
        let keeper = Keeper::new();
        keeper.keep(
            "listener",
            &Arbiter::current(),
            Policy::default(),
            Listener::factory("test", socket, deliver),
        );
        let _poison = tokio::net::TcpStream::connect(address).await.unwrap();
        let mut waits = tokio::net::TcpStream::connect(address).await.unwrap();
        let mut served = [0; 6];
        let read = tokio::time::timeout(PATIENCE, waits.read_exact(&mut served)).await;
        read.expect("it is not served: no listener runs any more").unwrap();
        assert_eq!(&served, b"served");
        assert!(panicked.load(Ordering::SeqCst));
        keeper.stop();
    }

    #[test]
    fn an_ipv6_wildcard_serves_ipv4_too() {
        let listener = bind("[::]:0".parse().unwrap()).unwrap();
        let port = listener.local_addr().unwrap().port();
        TcpStream::connect(("127.0.0.1", port)).unwrap();
        TcpStream::connect(("::1", port)).unwrap();
    }
}
