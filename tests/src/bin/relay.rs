//! A bare TCP relay: `hoop-relay LISTEN TARGET [DELAY_MS [BYTES_PER_SECOND]]`. Two of them chained are what any gateway and agent cost at
//! least; with a delay it is a long line between two places.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use hoop_tests::tcp::{self, LongLine};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut address = |name: &str| -> Result<SocketAddr> {
        let text = arguments
            .next()
            .with_context(|| format!("usage: hoop-relay LISTEN TARGET; {name} is missing"))?;
        text.parse().with_context(|| format!("{text} is no socket address"))
    };
    let (listen, target) = (address("LISTEN")?, address("TARGET")?);
    let number = |at: usize| std::env::args().nth(at).map(|text| text.parse::<u64>()).transpose();
    let bytes_per_second = number(4)?;
    let line = number(3)?.map(|delay_ms| LongLine {
        delay: Duration::from_millis(delay_ms),
        bytes_per_second,
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(listen).await?;
        match line {
            Some(line) => tcp::long_line(listener, target, line).await,
            None => tcp::relay(listener, target).await,
        }
    })
}
