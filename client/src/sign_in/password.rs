//! With a local password, and with the second factor where the account has one or must get one.

use anyhow::{Result, bail};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Token;
use crate::secret::Secret;
use crate::server::{Server, is_signed_out};
use crate::{show, terminal};

/// Codes that a person may mistype; the gateway takes no more than five for one sign-in.
const CODES_MAX: usize = 3;
/// Digits of a code by the clock (RFC 6238); a recovery code is longer.
const CODE_DIGITS: usize = 6;

/// A token, or the second step.
#[derive(Deserialize)]
#[serde(untagged)]
enum Answer {
    Token(Token),
    Wanted { challenge: Secret, enrol: bool },
}

#[derive(Deserialize)]
struct Enrolment {
    secret: Secret,
    uri: Secret,
}

#[derive(Deserialize)]
struct Completed {
    #[serde(flatten)]
    token: Token,
    #[serde(default)]
    recovery_codes: Vec<Secret>,
}

/// Asks for the password, and for a code where the gateway wants one.
///
/// # Errors
/// Where one of them is wrong, or the gateway cannot be asked.
pub async fn run(server: &Server, user: &str) -> Result<Token> {
    let password = terminal::ask(&format!("Password of {user} at {}", server.address()), true).await?;
    let body = json!({"username": user, "password": password.as_str()});
    match server.post("/api/login", &body).await? {
        Answer::Token(token) => Ok(token),
        Answer::Wanted { challenge, enrol } => {
            if enrol {
                begin(server, &challenge).await?;
            }
            complete(server, &challenge).await
        }
    }
}

/// The account has no second factor, and may not sign in without one.
async fn begin(server: &Server, challenge: &str) -> Result<()> {
    let enrolment: Enrolment = server
        .post("/api/login/enrol", &json!({"challenge": challenge}))
        .await?;
    show::line(&format!(
        "This gateway asks for a second factor, and the account has none yet. Add it to an authenticator, by its key\n\n    \
         {}\n\nor by its address\n\n    {}\n",
        &*enrolment.secret, &*enrolment.uri
    ));
    Ok(())
}

async fn complete(server: &Server, challenge: &str) -> Result<Token> {
    for _ in 0..CODES_MAX {
        let typed = terminal::ask("Code of your authenticator, or a recovery code", false).await?;
        let typed = typed.trim();
        match server.post("/api/login/second-factor", &step(challenge, typed)).await {
            Ok(completed) => return Ok(told(completed)),
            Err(error) if is_signed_out(&error) && terminal::is_person() => show::error(&error),
            Err(error) => return Err(error),
        }
    }
    bail!("No code was right. Run hoop login again.")
}

fn step(challenge: &str, typed: &str) -> Value {
    let digits: String = typed.chars().filter(|c| !c.is_whitespace()).collect();
    if digits.len() == CODE_DIGITS && digits.bytes().all(|b| b.is_ascii_digit()) {
        json!({"challenge": challenge, "code": digits})
    } else {
        json!({"challenge": challenge, "recovery_code": typed})
    }
}

/// Recovery codes are shown this once.
fn told(completed: Completed) -> Token {
    if !completed.recovery_codes.is_empty() {
        show::line(
            "Keep these codes for when the authenticator is lost. Each is good once, and they are shown only now:\n",
        );
        for code in &completed.recovery_codes {
            show::line(&format!("    {}", &**code));
        }
        show::line("");
    }
    completed.token
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn six_digits_are_a_code_and_all_else_is_a_recovery_code() {
        assert_eq!(step("c", "123 456"), json!({"challenge": "c", "code": "123456"}));
        for other in ["abcde-fghij", "12345", "1234567"] {
            assert_eq!(step("c", other), json!({"challenge": "c", "recovery_code": other}));
        }
    }

    #[test]
    fn an_answer_is_a_token_or_a_second_step() {
        let read = |text: &str| serde_json::from_str::<Answer>(text).unwrap();
        let wanted = read(r#"{"challenge":"x","expires_at":"2026-01-01T00:00:00Z","enrol":true}"#);
        assert!(matches!(wanted, Answer::Wanted { enrol: true, .. }));
        let token = read(r#"{"token":"t","expires_at":"2026-01-01T00:00:00Z"}"#);
        assert!(matches!(token, Answer::Token(_)));
    }
}
