//! `IdentityRefresh`: asks providers again who the people are who stay signed in, so that a group that somebody lost, or
//! an account that was closed there, has its effect here without a new sign-in.
//!
//! Each replica has one; which of them asks for whom is settled by a claim in the store. A provider that is away changes
//! nothing.

use std::time::Duration;

use actix::{Actor, AsyncContext, Context};
use futures_util::{StreamExt, stream};
use hoop_api::control::Control;
use hoop_api::single_sign_on::{Policy, Protocol, Provider, ProviderWitness, Providers};
use hoop_auth::oidc::{OidcError, OidcProvider, Secret, SignedIn};
use hoop_store::refreshes::Claimed;
use hoop_store::{Store, StoreError};
use std::sync::Arc;
use tracing::{info, warn};

/// People claimed at once, and asked for at the same time.
const BATCH: i64 = 8;
const AT_ONCE: usize = 4;
/// How long a claim lasts: longer than the slowest provider may take for the claimed of one turn.
const CLAIM: Duration = Duration::from_secs(240);
/// Longest time for one person: at most five requests to a provider, each of at most a minute.
const ASK_TIMEOUT: Duration = Duration::from_secs(90);
/// Time between two looks for who is due, at most.
const LOOK_INTERVAL_MAX: Duration = Duration::from_secs(10);
/// Least time between two.
const LOOK_INTERVAL_MIN: Duration = Duration::from_millis(500);

/// What it is made from.
#[derive(Clone)]
pub struct RefreshParts {
    pub store: Store,
    pub control: Arc<dyn Control>,
    pub providers: Providers,
    /// Between two questions about one person.
    pub interval: Duration,
}

/// The actor, on the main arbiter.
pub struct IdentityRefresh {
    parts: RefreshParts,
    asking: bool,
}

impl IdentityRefresh {
    #[must_use]
    pub const fn new(parts: RefreshParts) -> Self {
        Self { parts, asking: false }
    }

    fn look(&mut self, ctx: &mut Context<Self>) {
        if self.asking {
            return;
        }
        self.asking = true;
        let parts = self.parts.clone();
        let asking = actix::fut::wrap_future::<_, Self>(async move { turn(&parts).await });
        ctx.spawn(actix::ActorFutureExt::map(asking, |done, refresh: &mut Self, _| {
            refresh.asking = false;
            if let Err(error) = done {
                warn!(%error, "cannot look for whom to ask the identity providers");
            }
        }));
    }
}

impl Actor for IdentityRefresh {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let pause = (self.parts.interval / 4).clamp(LOOK_INTERVAL_MIN, LOOK_INTERVAL_MAX);
        ctx.run_interval(pause, |refresh, ctx| refresh.look(ctx));
    }
}

/// Asks for everybody who is due, until nobody is.
async fn turn(parts: &RefreshParts) -> Result<(), StoreError> {
    let of_oidc = |provider: &&Arc<Provider>| matches!(provider.protocol, Protocol::Oidc(_));
    let names: Vec<String> = (parts.providers.iter().filter(of_oidc))
        .map(|provider| provider.name().to_owned())
        .collect();
    loop {
        let claimed = parts.store.claim_refreshes(&names, BATCH, CLAIM).await?;
        let full = i64::try_from(claimed.len()).unwrap_or(i64::MAX) >= BATCH;
        stream::iter(claimed)
            .for_each_concurrent(AT_ONCE, |claimed| async move {
                if let Err(error) = ask(parts, &claimed).await {
                    let (provider, user) = (&claimed.provider, claimed.user_id);
                    warn!(provider, %user, %error, "what an identity provider said could not be kept");
                }
            })
            .await;
        if !full {
            return Ok(());
        }
    }
}

async fn ask(parts: &RefreshParts, claimed: &Claimed) -> Result<(), StoreError> {
    let Some(provider) = parts.providers.get(&claimed.provider) else {
        return Ok(());
    };
    let Protocol::Oidc(oidc) = &provider.protocol else {
        return Ok(());
    };
    match refresh(oidc, claimed).await {
        Some(Ok(signed_in)) => confirmed(parts, claimed, &provider.policy, signed_in).await,
        Some(Err(error)) if error.ends_sign_in() => over(parts, claimed, &provider.policy, &error).await,
        failed => {
            let why = failed.and_then(Result::err).map(|error| error.to_string());
            let (provider, user) = (&claimed.provider, claimed.user_id);
            warn!(provider, %user, why, "an identity provider could not be asked; nothing changes");
            parts.store.refresh_later(claimed, parts.interval).await
        }
    }
}

/// `None`: it took too long.
async fn refresh(oidc: &OidcProvider, claimed: &Claimed) -> Option<Result<SignedIn, OidcError>> {
    let token = Secret::new(claimed.token.as_str());
    let asked = oidc.refresh(&token, &claimed.subject);
    tokio::time::timeout(ASK_TIMEOUT, asked).await.ok()
}

/// The next token is kept before anything else, for the last one is used up.
async fn confirmed(
    parts: &RefreshParts,
    claimed: &Claimed,
    policy: &Policy,
    signed_in: SignedIn,
) -> Result<(), StoreError> {
    let next = signed_in
        .refresh_token
        .as_ref()
        .map_or(claimed.token.as_str(), Secret::expose);
    if !parts.store.refreshed(claimed, next, parts.interval).await? {
        return Ok(());
    }
    let vouched = policy.vouched(signed_in.identity);
    let role = policy.terms(vouched.groups.as_deref()).role;
    parts.store.confirm(&vouched, role, &witness(parts, claimed)).await
}

async fn over(parts: &RefreshParts, claimed: &Claimed, policy: &Policy, why: &OidcError) -> Result<(), StoreError> {
    let ended = parts
        .store
        .sign_in_is_over(claimed, policy.role(&[]), &witness(parts, claimed))
        .await?;
    if let Some(user) = ended {
        let provider = &claimed.provider;
        info!(provider, user = user.username, %why, "an identity provider ended a sign-in");
    }
    Ok(())
}

fn witness<'a>(parts: &'a RefreshParts, claimed: &'a Claimed) -> ProviderWitness<'a> {
    ProviderWitness {
        control: parts.control.as_ref(),
        provider: &claimed.provider,
        subject: &claimed.subject,
        address: None,
    }
}
