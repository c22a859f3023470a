//! A bare TCP relay: `hoop-relay LISTEN TARGET [DELAY_MS]`. Two of them chained are what any gateway and agent cost at
//! least; with a delay it is a long line between two places.

use std::net::SocketAddr;
use std::time::Duration;

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
    let delay_ms: Option<u64> = std::env::args().nth(3).map(|text| text.parse()).transpose()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(listen).await?;
        match delay_ms {
            Some(delay_ms) => hoop_tests::tcp::long_line(listener, target, Duration::from_millis(delay_ms)).await,
            None => hoop_tests::tcp::relay(listener, target).await,
        }
    })
}
