//! A bare TCP relay: `hoop-relay LISTEN TARGET`. Two of them chained are what any gateway and agent cost at least.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut address = |name: &str| -> Result<SocketAddr> {
        let text = arguments
            .next()
            .with_context(|| format!("usage: hoop-relay LISTEN TARGET; {name} is missing"))?;
        text.parse().with_context(|| format!("{text} is no socket address"))
    };
    let (listen, target) = (address("LISTEN")?, address("TARGET")?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(listen).await?;
        hoop_tests::tcp::relay(listener, target).await
    })
}
