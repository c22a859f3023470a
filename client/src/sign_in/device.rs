//! With a browser on any machine (RFC 8628): a code is shown here and typed there.

use std::time::Duration;

use anyhow::{Result, bail};
use serde::Deserialize;
use serde_json::json;
use tokio::time::Instant;

use super::{Token, client_name};
use crate::secret::Secret;
use crate::server::{Problem, Server};
use crate::show;

/// What is added to the interval when the gateway says that it was asked too soon (RFC 8628, section 3.5).
const SLOWER: Duration = Duration::from_secs(5);
/// Shortest and longest interval that is believed.
const INTERVAL_S: (u64, u64) = (1, 60);
/// Longest wait that is believed.
const EXPIRES_MAX_S: u64 = 3_600;

#[derive(Deserialize)]
struct Begun {
    device_code: Secret,
    user_code: String,
    verification_uri: String,
    expires_in: u64,
    interval: u64,
}

/// Shows where to go and waits for the answer.
///
/// # Errors
/// Where the person says no or nothing, or the gateway cannot be asked.
pub async fn run(server: &Server) -> Result<Token> {
    let begun: Begun = server
        .post("/api/sign-in/device", &json!({"client_name": client_name()}))
        .await?;
    show::line(&format!(
        "Open {} in a browser and type the code\n\n    {}\n\nWaiting …",
        begun.verification_uri, begun.user_code
    ));
    let deadline = Instant::now() + Duration::from_secs(begun.expires_in.min(EXPIRES_MAX_S));
    let mut interval = Duration::from_secs(begun.interval.clamp(INTERVAL_S.0, INTERVAL_S.1));
    while Instant::now() < deadline {
        tokio::time::sleep(interval).await;
        let asked = server
            .post(
                "/api/sign-in/device/token",
                &json!({"device_code": &*begun.device_code}),
            )
            .await;
        let error = match asked {
            Ok(token) => return Ok(token),
            Err(error) => error,
        };
        let code = error
            .downcast_ref::<Problem>()
            .and_then(|problem| problem.error.as_deref());
        match code {
            Some("authorization_pending") => {}
            Some("slow_down") => interval += SLOWER,
            Some("access_denied") => bail!("The sign-in was refused in the browser."),
            Some("expired_token") => break,
            _ => return Err(error),
        }
    }
    bail!("Nobody answered in time. Run hoop login again.")
}
