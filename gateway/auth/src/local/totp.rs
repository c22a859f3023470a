//! One-time codes by the clock (RFC 6238): SHA-1, six digits, steps of 30 s, as every authenticator application has them.

use super::{NoRandomness, random};
use std::fmt;
use totp_rs::{Algorithm, Builder, Totp};
use zeroize::Zeroizing;

/// Length of a secret, in bytes: that of the hash (RFC 4226, section 4, R6).
pub const TOTP_SECRET_BYTES: usize = 20;
const DIGITS: u8 = 6;
const STEP_S: u64 = 30;
/// Steps to either side of ours whose code is taken, for clocks that differ (RFC 6238, section 5.2).
const SKEW_STEPS: u64 = 1;

/// What an authenticator application and we both know. The store seals its bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct TotpSecret(Zeroizing<[u8; TOTP_SECRET_BYTES]>);

/// Why a code is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TotpFault {
    #[error("a code has six digits")]
    Malformed,
    #[error("the code is wrong; codes change every 30 seconds, and the phone's clock must be right")]
    Wrong,
    #[error("the code was used already; wait for the next one")]
    Used,
}

impl TotpSecret {
    /// # Errors
    /// Where the system gives no random bytes.
    pub fn generate() -> Result<Self, NoRandomness> {
        random().map(Self)
    }

    #[must_use]
    pub fn from_bytes(bytes: [u8; TOTP_SECRET_BYTES]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// To be sealed.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; TOTP_SECRET_BYTES] {
        &self.0
    }

    /// For people who type it in, RFC 4648 without padding.
    #[must_use]
    pub fn to_base32(&self) -> Zeroizing<String> {
        Zeroizing::new(self.totp("", "").secret().to_base32())
    }

    /// The address `otpauth://totp/…` for a QR code. It has the secret in it.
    #[must_use]
    pub fn uri(&self, issuer: &str, account: &str) -> Zeroizing<String> {
        // a colon parts issuer and account, in the names there is none
        let (issuer, account) = (issuer.replace(':', " "), account.replace(':', " "));
        Zeroizing::new(self.totp(&issuer, &account).to_url().unwrap_or_default())
    }

    /// Checks a code at `now_s`, in seconds since 1970.
    ///
    /// `last_step` is what the last code that was taken gave, or `None`. Store the step that comes back in the same change
    /// that checks that the stored one is still lower, or two requests at once take the same code.
    ///
    /// # Errors
    /// Where the code is wrong, or not later than the last one that was taken.
    pub fn check(&self, code: &str, now_s: u64, last_step: Option<u64>) -> Result<u64, TotpFault> {
        let code: String = code.chars().filter(|c| !c.is_whitespace()).collect();
        if code.len() != usize::from(DIGITS) || !code.bytes().all(|digit| digit.is_ascii_digit()) {
            return Err(TotpFault::Malformed);
        }
        let totp = self.totp("", "");
        let now = now_s / STEP_S;
        let window = now.saturating_sub(SKEW_STEPS)..=now.saturating_add(SKEW_STEPS);
        // `check` of a code with no skew compares one step, in constant time; every step is looked at
        let fitting = window.filter(|step| totp.check(&code, step.saturating_mul(STEP_S)).is_some());
        let fitting: Vec<u64> = fitting.collect();
        let fresh = fitting.iter().find(|step| last_step.is_none_or(|last| **step > last));
        match fresh {
            Some(step) => Ok(*step),
            None if fitting.is_empty() => Err(TotpFault::Wrong),
            None => Err(TotpFault::Used),
        }
    }

    fn totp(&self, issuer: &str, account: &str) -> Totp {
        Builder::new()
            .with_algorithm(Algorithm::SHA1)
            .with_digits(DIGITS)
            .with_skew(0)
            .with_step_duration(STEP_S)
            .with_secret(self.0.to_vec())
            .with_issuer(Some(issuer).filter(|issuer| !issuer.is_empty()))
            .with_account_name(account)
            .build_noncompliant()
    }
}

impl fmt::Debug for TotpSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TotpSecret(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn secret() -> TotpSecret {
        TotpSecret::from_bytes(*b"12345678901234567890")
    }

    /// RFC 6238, appendix B, SHA-1: its eight digits, the last six of them.
    #[test]
    fn the_vectors_of_rfc_6238() {
        let vectors = [
            (59, "287082"),
            (1_111_111_109, "081804"),
            (1_111_111_111, "050471"),
            (1_234_567_890, "005924"),
            (2_000_000_000, "279037"),
            (20_000_000_000, "353130"),
        ];
        for (now_s, code) in vectors {
            assert_eq!(secret().check(code, now_s, None), Ok(now_s / 30), "{now_s}");
        }
    }

    /// RFC 4226, appendix D: the codes of the counts 0 to 9.
    #[test]
    fn one_step_to_either_side_is_taken_and_no_more() {
        let codes = [
            "755224", "287082", "359152", "969429", "338314", "254676", "287922", "162583", "399871", "520489",
        ];
        for (step, code) in (0u64..).zip(codes) {
            for now in 0..12u64 {
                let expected = if now.abs_diff(step) <= 1 {
                    Ok(step)
                } else {
                    Err(TotpFault::Wrong)
                };
                assert_eq!(
                    secret().check(code, now * 30 + 17, None),
                    expected,
                    "code of {step} at {now}"
                );
            }
        }
    }

    #[test]
    fn a_code_is_taken_once_and_none_before_it_after_that() {
        let secret = secret();
        let step = secret.check("254676", 5 * 30, None).unwrap();
        assert_eq!(step, 5);
        assert_eq!(secret.check("254676", 5 * 30 + 29, Some(step)), Err(TotpFault::Used));
        assert_eq!(secret.check("338314", 5 * 30, Some(step)), Err(TotpFault::Used));
        assert_eq!(secret.check("287922", 5 * 30, Some(step)), Ok(6));
    }

    #[test]
    fn only_six_digits_are_a_code() {
        assert_eq!(secret().check(" 254 676 ", 150, None), Ok(5));
        for code in ["", "25467", "2546760", "25467a", "-25467", "２５４６７６", "+54676"] {
            assert_eq!(secret().check(code, 150, None), Err(TotpFault::Malformed), "{code}");
        }
    }

    #[test]
    fn the_address_is_one_that_applications_read() {
        let uri = secret().uri("Hoop: prod", "ada@example.test");
        let read = Totp::from_url(uri.as_str()).unwrap();
        assert_eq!(read.secret().as_bytes(), b"12345678901234567890");
        assert_eq!(read.issuer(), Some("Hoop  prod"));
        assert!(uri.starts_with("otpauth://totp/Hoop%20%20prod:ada"), "{}", uri.as_str());
        assert_eq!(secret().to_base32().as_str(), "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ");
    }

    #[test]
    fn secrets_differ_and_are_not_printed() {
        let (one, other) = (TotpSecret::generate().unwrap(), TotpSecret::generate().unwrap());
        assert!(one != other);
        assert_eq!(format!("{one:?}"), "TotpSecret(..)");
    }

    proptest! {
        #[test]
        fn whatever_is_typed_is_judged(bytes: [u8; 20], code in "\\PC*", now_s: u64, last: Option<u64>) {
            let _ = TotpSecret::from_bytes(bytes).check(&code, now_s, last);
        }

        #[test]
        fn the_code_of_now_is_right_once(bytes: [u8; 20], now_s in 0u64..100_000_000_000) {
            let secret = TotpSecret::from_bytes(bytes);
            let code = secret.totp("", "").generate(now_s).to_string();
            let step = secret.check(&code, now_s, None).unwrap();
            // by chance, one in some hundred thousand, the step before or after has the same code
            prop_assert!(step.abs_diff(now_s / 30) <= 1);
            prop_assert!(secret.check(&code, now_s, Some(now_s / 30 + 1)).is_err());
        }
    }
}
