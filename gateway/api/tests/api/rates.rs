//! How many requests an account and an address may send.

use hoop_api::rate::{Rate, Rates};

use crate::rig::{Answer, rig_with};

const NARROW: Rate = Rate { per_s: 1, burst: 5 };
const WIDE: Rate = Rate {
    per_s: 1000,
    burst: 1000,
};

fn is_refused(answer: &Answer) {
    answer.problem(429);
    assert!(answer.header("retry-after").parse::<u64>().unwrap() >= 1);
    assert_eq!(answer.header("x-content-type-options"), "nosniff");
}

#[actix_web::test]
async fn an_account_is_held_to_its_rate_and_no_other_with_it() {
    let rig = rig_with(Rates {
        address: WIDE,
        account: NARROW,
    })
    .await;
    let mut last = rig.get("/api/me", &rig.member).await;
    for _ in 0..20 {
        last = rig.get("/api/me", &rig.member).await;
    }
    is_refused(&last);
    assert_eq!(rig.get("/api/me", &rig.admin).await.status, 200);
}

#[actix_web::test]
async fn an_address_is_held_to_its_rate_signed_in_or_not_and_health_is_exempt() {
    let rig = rig_with(Rates {
        address: NARROW,
        account: WIDE,
    })
    .await;
    let mut last = rig.get("/api/ca.pem", "").await;
    for _ in 0..20 {
        last = rig.get("/api/ca.pem", "").await;
    }
    is_refused(&last);
    is_refused(&rig.get("/api/me", "no token at all").await);
    for _ in 0..20 {
        assert_eq!(rig.get("/healthz", "").await.status, 200);
        assert_eq!(rig.get("/readyz", "").await.status, 200);
    }
}
