//! Local accounts: password rules, one-time codes (RFC 6238) with recovery codes, and how sign-in attempts are slowed.
