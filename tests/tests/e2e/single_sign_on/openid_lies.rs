//! What an OpenID provider signs with its own key and is not true of this sign-in.

use anyhow::{Context as _, Result, ensure};
use hoop_tests::record::text;
use serde_json::{Value, json};

use super::{Corp, groups};

#[tokio::test]
async fn an_id_token_for_another_client_an_expired_one_and_an_earlier_ones_are_refused() -> Result<()> {
    let test = "an_id_token_for_another_client_an_expired_one_and_an_earlier_ones_are_refused";
    let Some(mut corp) = Corp::start(test, 1, "").await? else {
        return Ok(());
    };
    let mut honest = corp.site.browser(0)?;
    corp.sign_in(&mut honest, "alice").await?;
    ensure!(corp.site.me(&mut honest).await?.0 == 200);
    for (lie, why) in [
        ("audience", "it is not for this client"),
        ("expired", "it has expired"),
        ("replay", "its nonce is missing, or not the one of this sign-in"),
    ] {
        corp.provider.tell(&format!("lie {lie}")).await?;
        let mut browser = corp.site.browser(0)?;
        let refused = corp.sign_in(&mut browser, "alice").await?;
        ensure!(refused.status == 403, "{lie}: {} {}", refused.status, refused.text);
        ensure!(
            browser.cookie(&corp.site.public, "hoop_session").is_none(),
            "{lie}: a session"
        );
        ensure!(corp.site.me(&mut browser).await?.0 == 401, "{lie}");
        let failed = corp.site.records("login.failed").await?;
        let told = failed.last().and_then(|record| record.pointer("/after/why"));
        ensure!(
            told.and_then(Value::as_str).is_some_and(|told| told.contains(why)),
            "{lie}: {told:?}"
        );
    }
    corp.provider.tell("lie nothing").await?;
    let mut again = corp.site.browser(0)?;
    corp.sign_in(&mut again, "alice").await?;
    ensure!(corp.site.me(&mut again).await?.0 == 200);
    ensure!(corp.site.records("login.failed").await?.len() == 3);
    Ok(())
}

#[tokio::test]
async fn where_groups_must_come_their_absence_takes_them_and_the_role_away() -> Result<()> {
    let test = "where_groups_must_come_their_absence_takes_them_and_the_role_away";
    let more = "groups_claim = \"groups\"\nadmin_groups = [\"admin\"]";
    let Some(mut corp) = Corp::start(test, 1, more).await? else {
        return Ok(());
    };
    let mut before = corp.site.browser(0)?;
    corp.sign_in(&mut before, "alice").await?;
    let (_, me) = corp.site.me(&mut before).await?;
    ensure!(text(&me, "role") == "admin" && groups(&me) == ["admin", "sre"], "{me}");
    corp.provider.tell("nogroups alice").await?;
    let mut after = corp.site.browser(0)?;
    corp.sign_in(&mut after, "alice").await?;
    for browser in [&mut after, &mut before] {
        let (status, me) = corp.site.me(browser).await?;
        ensure!(
            status == 200 && text(&me, "role") == "member" && groups(&me).is_empty(),
            "{me}"
        );
        let users = browser.api(&corp.site.public, "GET", "/api/users", None).await?;
        ensure!(users.0 == 403, "{users:?}");
    }
    let updated = corp.site.records("user.update").await?;
    let last = updated.last().context("no record of what was taken away")?;
    ensure!(last.pointer("/after/groups") == Some(&json!([])), "{last}");
    Ok(())
}
